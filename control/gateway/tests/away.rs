//! What a node brings of the time without a link, and what it is told to act without one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Fleet, eventually, hello, key, message, next, start, welcome};
use hyperion_gateway::GatewayEvent;
use hyperion_gateway::state::Decision;
use hyperion_link::{Identity, Link, LinkConfig, LinkEvent};
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{
    FetchPolicy, Hello, Intent, NodeState, PolicyChunk, RecordState, ReplicaRecord, SiteDecisions,
    SiteInfo, StampedTelemetry, Telemetry, TelemetryBatch,
};
use hyperion_proto::convert;

fn link(fleet: &Fleet, identity: &Identity, change: impl FnOnce(&mut Hello)) -> Link {
    let mut config = LinkConfig::new(fleet.target());
    config.backoff_min = Duration::from_millis(50);
    config.backoff_max = Duration::from_millis(500);
    let mut hello = hello(&identity.node_id, "boot-1");
    change(&mut hello);
    hyperion_link::start(config, identity.clone(), Arc::new(move || hello.clone()))
}

fn record(node: &str, index: u32, generation: u64) -> ReplicaRecord {
    ReplicaRecord {
        key: Some(key("web", index)),
        generation,
        decider: node.to_owned(),
        state: RecordState::Placed.into(),
        node: node.to_owned(),
        pod: start("web", index, generation, 1).pod,
        intent: Some(Intent {
            workload_type: "service".to_owned(),
            goal: "default".to_owned(),
            ..Intent::default()
        }),
        ..ReplicaRecord::default()
    }
}

fn decision(record: &ReplicaRecord) -> Decision {
    let key = convert::replica_key("key", record.key.as_ref()).unwrap();
    (key, record.generation, record.decider.clone())
}

async fn body(link: &mut Link) -> Body {
    loop {
        if let LinkEvent::Message(m) = next(link).await {
            return m.body.unwrap();
        }
    }
}

async fn site_info(link: &mut Link) -> SiteInfo {
    loop {
        if let Body::SiteInfo(info) = body(link).await {
            return info;
        }
    }
}

async fn told(fleet: &mut Fleet) -> Vec<ReplicaRecord> {
    loop {
        if let GatewayEvent::SiteDecisions { records, .. } = fleet.next_event().await {
            return records;
        }
    }
}

#[tokio::test]
async fn a_list_is_not_complete_until_what_the_site_decided_is_taken() {
    let mut fleet = Fleet::start().await;
    fleet.gateway.mark_desired_complete();
    let identity = fleet.enrol().await;
    let node = identity.node_id.clone();
    let records = vec![
        record(&node, 0, 2),
        record(&node, 1, 2),
        record(&node, 2, 2),
    ];
    let brings = SiteDecisions {
        records: records.clone(),
    };
    let mut link = link(&fleet, &identity, |h| h.site_decisions = Some(brings));
    assert!(!welcome(&mut link).await.replicas_complete);
    assert_eq!(told(&mut fleet).await, records);

    fleet.gateway.set_desired(&node, start("web", 0, 2, 1));
    fleet
        .gateway
        .decisions_taken(&node, &[decision(&records[0]), decision(&records[1])]);
    let Body::StartReplica(_) = body(&mut link).await else {
        panic!("no order");
    };
    let Body::DecisionsTaken(taken) = body(&mut link).await else {
        panic!("not taken");
    };
    assert_eq!(taken.records.len(), 2);
    assert_eq!(
        (taken.records[1].generation, &taken.records[1].decider),
        (2, &node)
    );
    // A decision that stays as it is, is not called taken, and holds nothing up.
    fleet
        .gateway
        .decisions_kept(&node, &[decision(&records[2])]);
    let Body::Welcome(complete) = body(&mut link).await else {
        panic!("no welcome");
    };
    assert!(complete.replicas_complete);
    assert_eq!(complete.replicas.len(), 1);
}

#[tokio::test]
async fn decisions_that_make_no_sense_are_counted_and_hold_nothing_up() {
    let fleet = Fleet::start().await;
    fleet.gateway.mark_desired_complete();
    let identity = fleet.enrol().await;
    let node = identity.node_id.clone();
    let good = record(&node, 0, 2);
    let bad = [
        ReplicaRecord {
            key: None,
            ..good.clone()
        },
        ReplicaRecord {
            generation: 0,
            ..good.clone()
        },
        ReplicaRecord {
            generation: u64::MAX,
            ..good.clone()
        },
        ReplicaRecord {
            state: 99,
            ..good.clone()
        },
        ReplicaRecord {
            decider: "../x".to_owned(),
            ..good.clone()
        },
        ReplicaRecord {
            pod: None,
            ..good.clone()
        },
    ];
    let count = bad.len() as u64;
    let brings = SiteDecisions {
        records: bad.into(),
    };
    let mut link = link(&fleet, &identity, |h| h.site_decisions = Some(brings));
    assert!(welcome(&mut link).await.replicas_complete);
    assert_eq!(fleet.refused("site_decision"), count);
    fleet.serves(&link).await;
}

#[tokio::test]
async fn decisions_may_come_in_the_middle_of_a_session() {
    let mut fleet = Fleet::start().await;
    fleet.gateway.mark_desired_complete();
    let identity = fleet.enrol().await;
    let mut link = link(&fleet, &identity, |_| {});
    assert!(welcome(&mut link).await.replicas_complete);
    let one = record(&identity.node_id, 0, 2);
    let decisions = SiteDecisions {
        records: vec![one.clone()],
    };
    link.sender()
        .try_send(message(Body::SiteDecisions(decisions)))
        .unwrap();
    assert_eq!(told(&mut fleet).await, std::slice::from_ref(&one));
    fleet.gateway.mark_desired_complete();
    let Body::Welcome(again) = body(&mut link).await else {
        panic!("no welcome");
    };
    assert!(!again.replicas_complete);
    fleet
        .gateway
        .decisions_taken(&identity.node_id, &[decision(&one)]);
    let Body::DecisionsTaken(_) = body(&mut link).await else {
        panic!("not taken");
    };
    let Body::Welcome(again) = body(&mut link).await else {
        panic!("no welcome");
    };
    assert!(again.replicas_complete);
}

#[tokio::test]
async fn nodes_are_told_of_their_site_and_when_it_changes() {
    let fleet = Fleet::start().await;
    let (a, b) = (fleet.enrol().await, fleet.enrol().await);
    let mut first = link(&fleet, &a, |h| {
        h.peer_addresses = vec!["10.0.0.1:7446".to_owned()];
    });
    let site = welcome(&mut first).await.site.unwrap();
    assert_eq!((site.site.as_str(), site.members.len()), ("lab", 2));
    let mut second = link(&fleet, &b, |h| {
        h.peer_addresses = vec!["10.0.0.2:7446".to_owned()];
    });
    welcome(&mut second).await;
    let both = loop {
        let info = site_info(&mut first).await;
        if info.members.iter().all(|m| !m.addresses.is_empty()) {
            break info;
        }
    };
    assert!(both.version > site.version);
    fleet.set_node(&b.node_id, |o| o["spec"]["unschedulable"] = true.into());
    let cordoned = site_info(&mut first).await;
    let member = cordoned.members.iter().find(|m| m.node_id == b.node_id);
    assert!(!member.unwrap().schedulable);
    fleet.set_node(&b.node_id, |o| o["spec"]["revoked"] = true.into());
    let revoked = site_info(&mut first).await;
    assert_eq!(
        (revoked.members.len(), &revoked.revoked),
        (1, &vec![b.node_id.clone()])
    );
    // One that knows it already is not told again; after a restart addresses are still known.
    let version = revoked.version;
    first.close().await;
    let mut again = link(&fleet, &a, |h| h.site_info_version = version);
    assert_eq!(welcome(&mut again).await.site, None);
    again.close().await;
    let path = common::node_path(&a.node_id);
    eventually("addresses are in the object", || {
        fleet.api.get(&path).unwrap()["status"]["peerAddresses"][0] == "10.0.0.1:7446"
    })
    .await;
    let fleet = fleet.restart().await;
    let mut after = link(&fleet, &a, |_| {});
    let site = welcome(&mut after).await.site.unwrap();
    assert_eq!(site.members[0].addresses, ["10.0.0.1:7446"]);
    assert!(site.version > version);
}

#[tokio::test]
async fn a_policy_is_offered_and_handed_out_in_pieces() {
    let fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    let file = vec![7_u8; 150_000];
    let mut link = link(&fleet, &identity, |h| h.policy_hash = "ab12".to_owned());
    assert_eq!(welcome(&mut link).await.policy, None, "not known yet");
    fleet.gateway.set_device_policy(Some(&file)).unwrap();
    let offer = loop {
        if let Body::PolicyOffer(offer) = body(&mut link).await {
            break offer;
        }
    };
    assert_eq!((offer.bytes, offer.sha256.len()), (150_000, 64));
    assert!(!offer.signature.is_empty());
    let mut got = Vec::new();
    loop {
        let piece = ask(&mut link, &offer.sha256, got.len() as u64).await;
        assert_eq!((piece.error.as_str(), piece.offset), ("", got.len() as u64));
        got.extend(piece.data);
        if piece.end {
            break;
        }
    }
    assert_eq!(got, file);
    assert_ne!(ask(&mut link, "00", 0).await.error, "");
    fleet.gateway.set_device_policy(None).unwrap();
    let Body::PolicyOffer(none) = body(&mut link).await else {
        panic!("no offer");
    };
    assert_eq!(none.sha256, "");
    // Which one it has, is in its object.
    let path = common::node_path(&identity.node_id);
    let policy = || fleet.api.get(&path).unwrap()["status"]["policy"].clone();
    eventually("policy in the object", || policy() == "ab12").await;
    let state = NodeState {
        policy_hash: offer.sha256.clone(),
        mode: "connected".to_owned(),
        ..NodeState::default()
    };
    link.sender()
        .try_send(message(Body::NodeState(state)))
        .unwrap();
    eventually("the new one in the object", || {
        let _ = link.sender().try_send(common::telemetry(1.0));
        policy() == offer.sha256
    })
    .await;
}

async fn ask(link: &mut Link, sha256: &str, offset: u64) -> PolicyChunk {
    let asked = FetchPolicy {
        sha256: sha256.to_owned(),
        offset,
    };
    link.sender()
        .try_send(message(Body::FetchPolicy(asked)))
        .unwrap();
    loop {
        if let Body::PolicyChunk(chunk) = body(link).await {
            return chunk;
        }
    }
}

#[tokio::test]
async fn telemetry_of_the_time_away_is_taken_once_and_acknowledged() {
    let fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    let mut link = link(&fleet, &identity, |_| {});
    welcome(&mut link).await;
    let sample = |unix_ms, cpu| StampedTelemetry {
        unix_ms,
        telemetry: Some(Telemetry {
            cpu_utilization_percent: cpu,
            ..Telemetry::default()
        }),
    };
    let batch = TelemetryBatch {
        id: 7,
        samples: vec![
            sample(1000, 10.0),
            sample(2000, f32::NAN),
            sample(3000, 30.0),
        ],
        dropped_total: 4,
    };
    for _ in 0..2 {
        link.sender()
            .try_send(message(Body::TelemetryBatch(batch.clone())))
            .unwrap();
        let Body::TelemetryAck(ack) = body(&mut link).await else {
            panic!("not acknowledged");
        };
        assert_eq!(ack.id, 7);
    }
    assert_eq!(fleet.metric("hyperion_telemetry_backfilled_total"), 2);
    assert_eq!(fleet.metric("hyperion_telemetry_dropped_total"), 4);
    assert_eq!(fleet.refused("telemetry_batch"), 1);
    let history = fleet.gateway.history(&identity.node_id).unwrap();
    let times: Vec<(i64, f32)> = history
        .samples
        .iter()
        .map(|s| (s.unix_ms, s.cpu_percent))
        .collect();
    assert_eq!(times, [(1000, 10.0), (3000, 30.0)]);
    assert_eq!(fleet.telemetry_received(), 0, "what is past is not live");
    assert!(fleet.gateway.history("nobody").is_none());
}

#[tokio::test]
async fn an_order_of_the_same_generation_brings_a_changed_policy() {
    let fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    let node = &identity.node_id;
    fleet.gateway.set_desired(node, start("web", 0, 2, 1));
    let mut link = link(&fleet, &identity, |_| {});
    welcome(&mut link).await;
    let mut changed = start("web", 0, 2, 1);
    changed.intent = Some(Intent {
        replace_after_ms: 5000,
        ..Intent::default()
    });
    fleet.gateway.set_desired(node, start("web", 0, 2, 1));
    fleet.gateway.set_desired(node, changed.clone());
    let Body::StartReplica(order) = body(&mut link).await else {
        panic!("no order");
    };
    assert_eq!(order, changed, "the one that changes nothing is not sent");
}
