//! The device's decider: the reference path's choice, and rules where the policy is not to be
//! trusted.

use std::collections::BTreeMap;

use hyperion_placement::model::{
    CapacityType, Geography, Location, Node, Provider, Resources, Tier,
};
use hyperion_policy::{BUILT_IN, Card, Quantisation};

use super::*;

const GIB: u64 = 1 << 30;

fn node(n: usize) -> Node {
    let shape = Resources {
        cpu_millis: 4000,
        memory_bytes: 8 * GIB,
    };
    Node {
        id: format!("edge-{n:03}"),
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
        free: Resources {
            cpu_millis: 4000 - 30 * u64::try_from(n % 100).unwrap(),
            ..shape
        },
        gpus: Vec::new(),
        labels: BTreeMap::new(),
        taints: Vec::new(),
        schedulable: true,
        ready: true,
        price_per_hour: 0.0,
        cpu_utilization: 0.1,
        images: Vec::new(),
        supply: Default::default(),
    }
}

fn site(nodes: usize) -> Snapshot {
    Snapshot {
        nodes: (0..nodes).map(node).collect(),
        ..Snapshot::default()
    }
}

fn request() -> Request {
    Request {
        resources: Resources {
            cpu_millis: 500,
            memory_bytes: GIB,
        },
        ..Request::new("default/w/0")
    }
}

fn chosen(snapshot: &Snapshot, scorer: &dyn Scorer) -> String {
    match choose::decide(snapshot, &request(), scorer)
        .choice
        .unwrap()
        .candidate
    {
        CandidateRef::Node(id) | CandidateRef::Offer(id) => id,
    }
}

#[test]
fn the_built_in_policy_decides_as_the_reference_path_does() {
    let decider = Decider::built_in();
    assert_eq!(decider.policy_hash(), hash(BUILT_IN_QUANTISED));
    let file = PolicyFile::read(BUILT_IN_QUANTISED).unwrap();
    let scorer = PolicyScorer::new(Arc::new(file.network));
    let snapshot = site(100);
    let decided = decider.decide(&snapshot, &request());
    assert_eq!(decided.node, Some(chosen(&snapshot, &scorer)));
    let why = decided.explanation;
    assert_eq!(why.candidates, 100);
    assert_eq!(why.policy.len(), DIGITS);
    assert_eq!(
        (why.scorer.as_str(), why.fallback.as_str()),
        (decider.name(), "")
    );
    assert_eq!(why.top.first().map(|t| t.node.clone()), decided.node);
    assert!(!why.terms.is_empty());
}

#[test]
fn without_a_policy_rules_decide_and_say_why() {
    let decider = Decider::rules("there is none");
    let snapshot = site(5);
    let decided = decider.decide(&snapshot, &request());
    assert_eq!(decided.node, Some(chosen(&snapshot, &RulesScorer)));
    assert_eq!(decided.explanation.fallback, "there is none");
    assert_eq!(decided.explanation.policy, "");
    assert_eq!(decider.policy_hash(), "");
}

#[test]
fn what_the_policy_never_saw_is_left_to_rules() {
    let decider = Decider::built_in();
    let mut snapshot = site(5);
    for node in &mut snapshot.nodes {
        node.price_per_hour = 1e9;
        node.allocatable.cpu_millis = 1 << 40;
        node.allocatable.memory_bytes = 1 << 60;
        node.free = node.allocatable;
        node.cpu_utilization = 1e6;
    }
    let odd = Request {
        resources: Resources {
            cpu_millis: 1 << 39,
            memory_bytes: 1 << 59,
        },
        latency_target_ms: Some(1e-9),
        max_hourly_cost: Some(1e12),
        ..request()
    };
    let decided = decider.decide(&snapshot, &odd);
    assert!(
        decided.explanation.fallback.contains("far from"),
        "{decided:?}"
    );
    assert_eq!(decided.explanation.scorer, "rules");
    assert!(
        !decided.explanation.policy.is_empty(),
        "it is loaded all the same"
    );
}

#[test]
fn where_nothing_fits_nobody_is_named_and_the_reasons_are_counted() {
    let mut big = request();
    big.resources.memory_bytes = 100 * GIB;
    let decided = Decider::built_in().decide(&site(4), &big);
    assert_eq!(decided.node, None);
    let rejected = &decided.explanation.rejected;
    assert_eq!(rejected.iter().map(|r| r.count).sum::<u32>(), 4);
    assert_eq!(Decider::built_in().decide(&site(0), &request()).node, None);
}

fn made(change: impl FnOnce(&mut Card, &mut Network)) -> Vec<u8> {
    let PolicyFile {
        mut card,
        mut network,
        ..
    } = PolicyFile::read(BUILT_IN).unwrap();
    change(&mut card, &mut network);
    PolicyFile::write_gguf(&card, &network, Quantisation::Q8).unwrap()
}

#[test]
fn a_policy_that_tells_nothing_apart_is_refused() {
    let flat = made(|_, network| *network = Network::zeros());
    let why = Decider::read(&flat).unwrap_err();
    assert!(why.contains("same score"), "{why}");
}

#[test]
fn golden_scores_must_agree() {
    let case = |score: f64| {
        serde_json::json!({ "golden": [{
            "request": vec![0.25_f32; REQUEST_LEN],
            "node": vec![0.5_f32; NODE_LEN],
            "pair": vec![0.5_f32; PAIR_LEN],
            "fit": vec![0.5_f32; FIT_LEN],
            "score": score,
        }]})
    };
    let wrong = made(|card, _| card.evaluation = case(12_345.0));
    let why = Decider::read(&wrong).unwrap_err();
    assert!(why.contains("golden[0]"), "{why}");
    // What it says instead is the right one.
    let score: f64 = why
        .split("score ")
        .nth(1)
        .and_then(|rest| rest.split(',').next())
        .and_then(|number| number.parse().ok())
        .unwrap();
    let right = made(|card, _| card.evaluation = case(score));
    assert!(Decider::read(&right).is_ok());
    let short = made(|card, _| {
        card.evaluation = serde_json::json!({ "golden": [{ "request": [1.0] }] });
    });
    assert!(
        Decider::read(&short)
            .unwrap_err()
            .contains("golden[0].request")
    );
}

#[test]
fn no_bytes_make_it_panic() {
    for bytes in [&b""[..], b"GGUF", &BUILT_IN_QUANTISED[..500], &[0xFF; 100]] {
        assert!(Decider::read(bytes).is_err());
    }
}
