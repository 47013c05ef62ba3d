use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hyperion_placement::model::{GpuRequest, Request, Resources};
use hyperion_wire::agent_v1::{
    Container, Gpu, GpuShare, Intent as WireIntent, NodeCapabilities, PodSpec, RecordState,
    ReplicaRecord, SiteInfo, SiteMember,
};
use hyperion_wire::domain::{Intent, ReplicaKey};
use hyperion_wire::peer_v1::{HeldReplica, Load, NodeRecord};

use super::*;
use crate::site::Site;

const NOW: Duration = Duration::from_secs(1);

/// Takes the named node, whatever is asked for.
struct Stubborn(&'static str);

impl Decide for Stubborn {
    fn decide(&self, _: &Snapshot, _: &Request) -> Decided {
        Decided {
            node: Some(self.0.to_owned()),
            gpus: Vec::new(),
            explanation: SiteExplanation::default(),
        }
    }

    fn policy_hash(&self) -> &'static str {
        ""
    }
}

/// Takes the first node with room.
struct First;

impl Decide for First {
    fn decide(&self, snapshot: &Snapshot, request: &Request) -> Decided {
        let fits = |n: &&hyperion_placement::model::Node| {
            hyperion_placement::filter::first_rejection(request, &(*n).into()).is_none()
        };
        let node = snapshot.nodes.iter().find(fits);
        Decided {
            node: node.map(|n| n.id.clone()),
            gpus: node
                .and_then(|n| hyperion_placement::gpu::assign(&request.gpu, &n.gpus))
                .unwrap_or_default(),
            explanation: SiteExplanation::default(),
        }
    }

    fn policy_hash(&self) -> &'static str {
        ""
    }
}

/// Takes what the rules say.
struct Rules;

impl Decide for Rules {
    fn decide(&self, snapshot: &Snapshot, request: &Request) -> Decided {
        let rules = hyperion_placement::RulesScorer;
        let choice = hyperion_placement::decide(snapshot, request, &rules).choice;
        Decided {
            node: choice.as_ref().map(|c| c.candidate.id().to_owned()),
            gpus: choice.map_or_else(Vec::new, |c| c.gpus),
            explanation: SiteExplanation::default(),
        }
    }

    fn policy_hash(&self) -> &'static str {
        ""
    }
}

fn key(name: &str, index: u32) -> ReplicaKey {
    ReplicaKey {
        namespace: "default".into(),
        workload: name.into(),
        uid: format!("uid-{name}"),
        index,
    }
}

fn node(id: &str) -> NodeRecord {
    NodeRecord {
        node_id: id.into(),
        version: 1,
        capabilities: Some(NodeCapabilities {
            cpu_arch: "aarch64".into(),
            cpu_millis: 4000,
            memory_bytes: 1 << 30,
            gpus: vec![Gpu {
                uuid: format!("gpu-{id}"),
                ..Gpu::default()
            }],
            labels: [("hyperion.io/geography".to_owned(), "EU".to_owned())].into(),
            ..NodeCapabilities::default()
        }),
        accepts: true,
        ..NodeRecord::default()
    }
}

fn intent() -> Intent {
    Intent::new(Request {
        resources: Resources {
            cpu_millis: 1500,
            memory_bytes: 1 << 20,
        },
        gpu: GpuRequest {
            count: 1,
            millis: 400,
        },
        ..Request::new("")
    })
}

fn pod(gpu: Option<&str>) -> PodSpec {
    PodSpec {
        containers: vec![Container {
            name: "main".into(),
            image: "i".into(),
            cpu_request_millis: 700,
            memory_limit_bytes: 1000,
            ..Container::default()
        }],
        gpus: gpu
            .map(|uuid| GpuShare {
                uuid: uuid.into(),
                millis: 400,
            })
            .into_iter()
            .collect(),
        ..PodSpec::default()
    }
}

fn placed(key: &ReplicaKey, node: &str, intent: Option<&Intent>) -> ReplicaRecord {
    ReplicaRecord {
        key: Some(key.into()),
        generation: 1,
        state: RecordState::Placed.into(),
        node: node.into(),
        pod: Some(pod(Some(&format!("gpu-{node}")))),
        intent: intent.map(WireIntent::from),
        taken: true,
        ..ReplicaRecord::default()
    }
}

fn site(nodes: &[&str]) -> Site {
    let mut site = Site::new("edge-1");
    for id in nodes {
        if *id == "edge-1" {
            site.put_own(node(id), NOW).unwrap();
        } else {
            site.merge_node(id, node(id), NOW).unwrap();
        }
    }
    site
}

fn wanted<'a>(key: &'a ReplicaKey, intent: &'a Intent, pod: &'a PodSpec) -> Wanted<'a> {
    Wanted {
        key,
        intent,
        pod,
        siblings: BTreeSet::new(),
        avoid: BTreeMap::new(),
    }
}

#[test]
fn one_node_decides_whatever_the_order_and_few_change_hands() {
    let live: Vec<String> = (1..=20).map(|n| format!("edge-{n}")).collect();
    let names = || live.iter().map(String::as_str);
    let all: Vec<ReplicaKey> = (0..500).map(|n| key(&format!("w{n}"), 0)).collect();
    let mut shares: BTreeMap<&str, usize> = BTreeMap::new();
    let mut moved = 0;
    for key in &all {
        let who = decider(key, names()).unwrap();
        assert_eq!(Some(who), decider(key, names().rev()));
        *shares.entry(who).or_default() += 1;
        let without = decider(key, names().filter(|n| *n != "edge-7")).unwrap();
        moved += usize::from(without != who);
        assert!(without == who || who == "edge-7");
    }
    assert_eq!(moved, shares["edge-7"]);
    assert!(shares.values().all(|n| (5..=60).contains(n)), "{shares:?}");
    assert_eq!(decider(&all[0], []), None);
    // Written down: another hash would let two versions of the agent disagree.
    assert_eq!(decider(&key("web", 0), names()), Some("edge-4"));
    assert_eq!(decider(&key("web", 7), names()), Some("edge-4"));
}

#[test]
fn room_is_what_records_do_not_promise() {
    let mut site = site(&["edge-1", "edge-2", "edge-3"]);
    let wants = intent();
    site.merge_replica("p", placed(&key("a", 0), "edge-1", Some(&wants)), NOW)
        .unwrap();
    site.merge_replica("p", placed(&key("b", 0), "edge-2", None), NOW)
        .unwrap();
    let room = Room::of(&site, |id| id != "edge-3");
    let nodes = &room.snapshot().nodes;
    assert_eq!(nodes.len(), 2, "the dead have no room");
    assert_eq!(nodes[0].free.cpu_millis, 2500);
    assert_eq!(nodes[0].gpus[0].free_millis, 600);
    // Without an intent, what its containers ask for.
    assert_eq!(nodes[1].free.cpu_millis, 3300);
    assert_eq!(nodes[1].arch, "arm64");
    assert_eq!(nodes[1].location.geography.unwrap().as_str(), "EU");
}

#[test]
fn a_copy_that_still_runs_takes_room_and_is_kept_where_it_is() {
    let mut site = site(&["edge-1", "edge-2"]);
    let wants = intent();
    let key = key("a", 0);
    site.merge_replica("p", placed(&key, "edge-9", Some(&wants)), NOW)
        .unwrap();
    let holder = NodeRecord {
        version: 2,
        held: vec![HeldReplica {
            key: Some((&key).into()),
            generation: 1,
            ..HeldReplica::default()
        }],
        ..node("edge-2")
    };
    site.merge_node("edge-2", holder, NOW).unwrap();
    let room = Room::of(&site, |_| true);
    assert_eq!(room.snapshot().nodes[1].free.cpu_millis, 2500);
    assert_eq!(room.strays(&key), ["edge-2"]);
    let pod = pod(None);
    let decided = choose(&room, &wanted(&key, &wants, &pod), &First);
    assert_eq!(decided.node.as_deref(), Some("edge-2"), "not the first");
}

#[test]
fn each_decision_takes_its_room_at_once() {
    let site = site(&["edge-1", "edge-2"]);
    let mut room = Room::of(&site, |_| true);
    let (wants, pod) = (intent(), pod(None));
    let mut got = Vec::new();
    for n in 0..6 {
        let key = key("a", n);
        let decided = choose(&room, &wanted(&key, &wants, &pod), &First);
        if let Some(node) = &decided.node {
            let share = Share {
                resources: wants.wants.resources,
                gpus: decided.gpus.clone(),
            };
            room.take(node, &share);
        }
        got.push(decided.node);
    }
    let names: Vec<Option<&str>> = got.iter().map(Option::as_deref).collect();
    // 4 cores hold two of 1.5, and a GPU two shares of 400.
    let (one, two) = (Some("edge-1"), Some("edge-2"));
    assert_eq!(names, [one, one, two, two, None, None]);
}

#[test]
fn what_breaks_a_constraint_is_not_carried_out_whoever_chose_it() {
    let mut site = site(&["edge-1", "edge-2"]);
    let hot = NodeRecord {
        version: 2,
        load: Some(Load {
            throttled: true,
            ..Load::default()
        }),
        ..node("edge-2")
    };
    site.merge_node("edge-2", hot, NOW).unwrap();
    let room = Room::of(&site, |_| true);
    let (wants, pod, key) = (intent(), pod(None), key("a", 0));
    for (node, why) in [("edge-2", "notReady"), ("edge-9", "not in the snapshot")] {
        let decided = choose(&room, &wanted(&key, &wants, &pod), &Stubborn(node));
        assert_eq!(decided.node, None);
        assert!(
            decided.explanation.fallback.contains(why),
            "{:?}",
            decided.explanation
        );
    }
    let mut avoided = wanted(&key, &wants, &pod);
    avoided.avoid.insert("edge-1".into(), "failed".into());
    assert_eq!(choose(&room, &avoided, &First).node, None);
}

#[test]
fn the_control_planes_word_about_members_counts() {
    let mut site = site(&["edge-1", "edge-2"]);
    let member = |id: &str, schedulable| SiteMember {
        node_id: id.into(),
        schedulable,
        price_per_hour: 0.25,
        ..SiteMember::default()
    };
    let info = SiteInfo {
        version: 1,
        site: "lab".into(),
        members: vec![member("edge-1", false), member("edge-2", true)],
        rtts: vec![hyperion_wire::agent_v1::PlaceRtt {
            from: "site:lab".into(),
            to: "geo:EU".into(),
            rtt_ms: 12.0,
        }],
        ..SiteInfo::default()
    };
    site.merge_info("p", info).unwrap();
    let room = Room::of(&site, |_| true);
    let nodes = &room.snapshot().nodes;
    assert!(!nodes[0].schedulable && nodes[1].schedulable);
    assert_eq!(nodes[1].price_per_hour, 0.25);
    assert_eq!(nodes[1].location.site, "lab");
    let pair = room.snapshot().latency.rtt_ms.keys().next().unwrap();
    assert_eq!(
        (pair.0.0.as_str(), pair.1.0.as_str()),
        ("geo:EU", "site:lab")
    );
}

#[test]
fn a_share_of_a_gpu_goes_where_it_leaves_nothing_useless() {
    let wants = |millis| {
        let mut intent = intent();
        intent.wants.gpu.millis = millis;
        intent
    };
    let holds = |name: &str, node: &str, millis| ReplicaRecord {
        pod: Some(PodSpec {
            gpus: vec![GpuShare {
                uuid: format!("gpu-{node}"),
                millis,
            }],
            ..pod(None)
        }),
        ..placed(&key(name, 0), node, Some(&wants(millis)))
    };
    let mut site = site(&["edge-1", "edge-2"]);
    for (name, node, millis) in [("a", "edge-1", 400), ("b", "edge-2", 700)] {
        let record = holds(name, node, millis);
        site.merge_replica("p", record, NOW).unwrap();
    }
    // What is left of the 600 on edge-1 after a 300 suits neither a 400 nor a 700.
    let room = Room::of(&site, |_| true);
    assert!(room.snapshot().packing.known());
    let (wants, pod, key) = (wants(300), pod(None), key("c", 0));
    let decided = choose(&room, &wanted(&key, &wants, &pod), &Rules);
    assert_eq!(decided.node.as_deref(), Some("edge-2"));
    assert_eq!(decided.gpus, [("gpu-edge-2".to_owned(), 300)]);
    // Where nobody wants a GPU, nothing is known.
    let empty = Room::of(&self::site(&["edge-1"]), |_| true);
    assert!(!empty.snapshot().packing.known());
}
