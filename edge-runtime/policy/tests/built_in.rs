//! The policy that is part of the program.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyperion_placement::model::*;
use hyperion_placement::{CandidateRef, PolicyScorer, decide};
use hyperion_policy::{BUILT_IN, BUILT_IN_QUANTISED, PolicyFile};

const GIB: u64 = 1 << 30;

fn node(id: &str) -> Node {
    let shape = Resources {
        cpu_millis: 4000,
        memory_bytes: 8 * GIB,
    };
    Node {
        id: id.to_owned(),
        location: Location {
            tier: Tier::Edge,
            provider: Provider::Edge,
            region: String::new(),
            zone: String::new(),
            site: "lab".to_owned(),
            geography: Some(Geography::Eu),
        },
        arch: "arm64".to_owned(),
        capacity_type: CapacityType::Owned,
        instance_type: String::new(),
        allocatable: shape,
        free: shape,
        gpus: Vec::new(),
        labels: BTreeMap::new(),
        taints: Vec::new(),
        schedulable: true,
        ready: true,
        price_per_hour: 0.0,
        cpu_utilization: 0.1,
        images: Vec::new(),
        supply: Supply::default(),
    }
}

fn request(goal: Goal) -> Request {
    Request {
        goal,
        resources: Resources {
            cpu_millis: 1000,
            memory_bytes: GIB,
        },
        clients: vec![Client {
            place: Place("geo:EU".to_owned()),
            weight: 1.0,
        }],
        ..Request::new("default/web/1")
    }
}

#[test]
fn replicas_of_a_workload_land_apart_on_equal_nodes() {
    let file = PolicyFile::read(BUILT_IN).unwrap();
    let scorer = PolicyScorer::new(Arc::new(file.network));
    for goal in Goal::ALL {
        // The first replica is on "a", which is therefore fuller.
        let mut taken = node("a");
        taken.free.cpu_millis -= 1000;
        taken.free.memory_bytes -= GIB;
        taken.cpu_utilization = 0.2;
        let snapshot = Snapshot {
            nodes: vec![taken, node("b")],
            ..Snapshot::default()
        };
        let mut asked = request(*goal);
        asked.siblings.insert("a".to_owned());
        let choice = decide(&snapshot, &asked, &scorer).choice.unwrap();
        assert_eq!(
            choice.candidate,
            CandidateRef::Node("b".to_owned()),
            "{goal}"
        );
    }
}

#[test]
fn both_files_are_the_same_policy() {
    let full = PolicyFile::read(BUILT_IN).unwrap();
    let quantised = PolicyFile::read(BUILT_IN_QUANTISED).unwrap();
    assert_eq!(full.card, quantised.card);
    assert!(BUILT_IN.len() < 1 << 20 && BUILT_IN_QUANTISED.len() < 256 << 10);
}
