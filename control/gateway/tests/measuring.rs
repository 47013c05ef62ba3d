//! Agents on nodes of clusters: they enrol by their cluster's word, and speak for the machine alone.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

mod common;

use std::path::Path;

use common::*;
use hyperion_gateway::GatewayEvent;
use hyperion_gateway::measuring::{Doubt, Proof};
use hyperion_link::{EnrolError, EnrolRequest, Identity, InCluster, LinkEvent};
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{
    Interruption, InterruptionKind, Interruptions, NodeState, ReplicaReport,
};
use serde_json::json;

const NODE: &str = "east.ip-10-0-0-1";

fn object(node: &str, spec: serde_json::Value) -> serde_json::Value {
    json!({ "apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionNode",
        "metadata": { "name": node, "uid": node }, "spec": spec,
        "status": { "ready": "True", "hostname": "the cluster's word" } })
}

/// A fleet with a node of a cluster, whose cluster believes the token `true`.
async fn fleet() -> Fleet {
    let fleet = Fleet::start().await;
    let spec = json!({ "cluster": "east" });
    fleet.api.put(&node_path(NODE), object(NODE, spec));
    let mut proofs = fleet.gateway.proofs().unwrap();
    assert!(fleet.gateway.proofs().is_none());
    tokio::spawn(async move {
        while let Some(Proof {
            cluster,
            token,
            answer,
        }) = proofs.recv().await
        {
            let said = match (cluster.as_str(), token.as_str()) {
                ("east", "true") => Ok(NODE.to_owned()),
                ("east", "elsewhere") => Ok("east.other".to_owned()),
                ("east", _) => Err(Doubt::Ever("the cluster does not know it".to_owned())),
                _ => Err(Doubt::Yet(format!("there is no cluster {cluster}"))),
            };
            answer.send(said).unwrap();
        }
    });
    fleet
}

fn measuring(dir: &Path, cluster: &str, token: &str) -> EnrolRequest {
    let token_file = dir.join("token");
    std::fs::write(&token_file, format!("{token}\n")).unwrap();
    EnrolRequest {
        cluster: Some(InCluster {
            cluster: cluster.to_owned(),
            token_file,
        }),
        ..request("")
    }
}

async fn enrolled(fleet: &Fleet) -> Identity {
    let dir = tempfile::tempdir().unwrap();
    let request = measuring(dir.path(), "east", "true");
    hyperion_link::enrol(&fleet.target(), request)
        .await
        .unwrap()
}

#[tokio::test]
async fn what_it_says_is_of_the_cluster_s_node_and_of_the_machine_alone() {
    let mut fleet = fleet().await;
    let identity = enrolled(&fleet).await;
    assert_eq!(
        (identity.node_id.as_str(), identity.site.as_str()),
        (NODE, "")
    );
    let mut link = fleet.link(&identity);
    let LinkEvent::Connected(welcome) = link.next_event().await.unwrap() else {
        panic!("not connected");
    };
    assert!(welcome.replicas.is_empty() && welcome.site.is_none() && welcome.policy.is_none());
    fleet.serves(&link).await;
    assert_eq!(fleet.gateway.take_measured().get(NODE).copied(), Some(0.01));
    let live = fleet.gateway.live_since(0);
    assert_eq!(
        live.nodes.iter().map(|n| n.id.as_str()).collect::<Vec<_>>(),
        [NODE]
    );

    // Reports of replicas are not its own to give, and an order would be of no use.
    let report = ReplicaReport {
        key: Some(key("web", 0)),
        generation: 9,
        ..ReplicaReport::default()
    };
    let said = [
        Body::ReplicaReport(report),
        Body::NodeState(NodeState {
            mode: "autonomous".to_owned(),
            interruptions: Some(Interruptions {
                notices: vec![Interruption {
                    kind: InterruptionKind::Spot.into(),
                    deadline_unix_ms: 1_900_000_000_000,
                    id: "i-1".to_owned(),
                    detail: "terminate".to_owned(),
                }],
            }),
            ..NodeState::default()
        }),
    ];
    for body in said {
        link.sender().try_send(message(body)).unwrap();
    }
    // The first that the operator hears of it is the notice.
    let GatewayEvent::Notices { node, notices } = fleet.next_event().await else {
        panic!("another event");
    };
    assert_eq!((node.as_str(), notices.len()), (NODE, 1));
    assert_eq!(fleet.refused("replica_report"), 1);

    // Nor is its end one of the node.
    link.close().await;
    let gateway = fleet.gateway.clone();
    eventually("the session ends", || !gateway.connected(NODE)).await;
    assert!(fleet.events.try_recv().is_err());
    let object = fleet.api.get(&node_path(NODE)).unwrap();
    assert_eq!(object["status"]["hostname"], "the cluster's word");
    assert_eq!(object["status"]["ready"], "True");
}

#[tokio::test]
async fn a_node_that_no_cluster_vouches_for_does_not_enrol() {
    let fleet = fleet().await;
    let dir = tempfile::tempdir().unwrap();
    let refused = async |cluster: &str, token: &str| {
        let request = measuring(dir.path(), cluster, token);
        let refused = hyperion_link::enrol(&fleet.target(), request).await;
        refused.unwrap_err()
    };
    // Those that may be put right by waiting, and those that may not.
    for (cluster, token, says, ever) in [
        ("east", "false", "does not know it", true),
        ("east", "", "cluster_token", true),
        ("west", "true", "no cluster west", false),
        ("east", "elsewhere", "no node east.other", false),
    ] {
        let error = refused(cluster, token).await;
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(error.is_final(), ever, "{error}");
    }
    // Of another cluster, and revoked.
    let other = "east.other";
    let spec = json!({ "cluster": "west" });
    fleet.api.put(&node_path(other), object(other, spec));
    let error = refused("east", "elsewhere").await;
    assert!(error.to_string().contains("no node east.other"), "{error}");
    let spec = json!({ "cluster": "east", "revoked": true });
    fleet.api.put(&node_path(other), object(other, spec));
    let error = refused("east", "elsewhere").await;
    assert!(error.to_string().contains("revoked"), "{error}");

    let missing = EnrolRequest {
        cluster: Some(InCluster {
            cluster: "east".to_owned(),
            token_file: dir.path().join("no-such-token"),
        }),
        ..request("")
    };
    let error = hyperion_link::enrol(&fleet.target(), missing).await;
    let error = error.unwrap_err();
    assert!(matches!(error, EnrolError::PodToken(..)), "{error}");
    assert!(error.to_string().contains("no-such-token"), "{error}");
    assert!(!error.is_final());
}

#[tokio::test]
async fn an_old_certificate_is_no_proof_and_a_second_agent_is_told_of() {
    let mut fleet = fleet().await;
    let first = enrolled(&fleet).await;
    let alone = hyperion_link::re_enrol(&fleet.target(), &first, request("")).await;
    let error = alone.unwrap_err();
    assert!(error.to_string().contains("of a cluster"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let proven = measuring(dir.path(), "east", "true");
    let again = hyperion_link::re_enrol(&fleet.target(), &first, proven).await;
    assert_eq!(again.unwrap().node_id, NODE);

    let mut link = fleet.link(&first);
    let connected = link.next_event().await.unwrap();
    assert!(matches!(connected, LinkEvent::Connected(_)));
    let second = enrolled(&fleet).await;
    let other = fleet.link_with(&second, "boot-2", |_| {});
    let alive = async {
        loop {
            let _ = link.sender().try_send(telemetry(1.0));
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    let event = tokio::select! {
        event = fleet.next_event() => event,
        () = alive => unreachable!(),
    };
    let GatewayEvent::Event { node, event } = event else {
        panic!("{event:?}");
    };
    assert_eq!(
        (node.as_str(), event.reason.as_str()),
        (NODE, "DuplicateIdentity")
    );
    assert!(event.warning);
    other.close().await;

    // A node whose object goes takes its agent with it.
    fleet.api.delete(&node_path(NODE));
    let gateway = fleet.gateway.clone();
    eventually("it is cut off", || !gateway.connected(NODE)).await;
}
