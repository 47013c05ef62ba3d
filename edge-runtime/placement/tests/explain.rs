//! Explanations add up, and what they say would change a decision does change it.

mod common;

use std::sync::Arc;

use common::Random;
use hyperion_placement::explain::{Change, Flip};
use hyperion_placement::features::Summary;
use hyperion_placement::model::*;
use hyperion_placement::*;
use proptest::prelude::*;

fn explained(snapshot: &Snapshot, request: &Request, scorer: &dyn Scorer) -> Decision {
    let mut decision = decide(snapshot, request, scorer);
    choose::explain(snapshot, request, scorer, &mut decision.explanation);
    decision
}

fn id(choice: Option<Choice>) -> Option<String> {
    choice.map(|c| match c.candidate {
        CandidateRef::Node(id) | CandidateRef::Offer(id) => id,
    })
}

/// Does what a flip says. False where a snapshot can't tell it.
fn apply(snapshot: &mut Snapshot, flip: &Flip) -> bool {
    let find = |nodes: &mut Vec<Node>, id: &str| nodes.iter().position(|n| n.id == id);
    match flip.change {
        Change::Price => match find(&mut snapshot.nodes, &flip.second) {
            Some(at) => snapshot.nodes[at].price_per_hour = flip.needed,
            None => return false,
        },
        Change::Free => match find(&mut snapshot.nodes, &flip.winner) {
            Some(at) => {
                snapshot.nodes[at].free.cpu_millis = (flip.needed * 1000.0).round() as u64;
            }
            None => return false,
        },
        Change::P99 => return false,
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn terms_add_up_and_flips_come_true(seed in any::<u64>()) {
        let mut r = Random(seed);
        let mut snapshot = Snapshot {
            nodes: (0..12).map(|n| common::node(&mut r, &format!("n-{n:02}"))).collect(),
            latency: common::latency(&mut r),
            ..Snapshot::default()
        };
        // Only the state of the fleet that a flip changes, so that a policy reads the same.
        for node in &mut snapshot.nodes {
            node.ready = true;
        }
        let request = common::request(&mut r, 12);
        let policy = PolicyScorer::new(Arc::new(common::network(&mut r)));
        let scorers: [&dyn Scorer; 2] = [&RulesScorer, &policy];
        for scorer in scorers {
            let decision = explained(&snapshot, &request, scorer);
            let why = &decision.explanation;
            prop_assert_eq!(why.top.len(), why.candidates.min(explain::TOP));
            for ranked in &why.top {
                let sum: f64 = ranked.terms.iter().map(|(_, v)| v).sum();
                prop_assert!((sum - ranked.score).abs() < 1e-5, "{ranked:?}");
            }
            prop_assert_eq!(why.top.first().map(|t| &t.terms), Some(&why.terms).filter(|_| why.candidates > 0));
            let summary = Summary::of(&snapshot);
            for flip in &why.flips {
                prop_assert!(flip.needed < flip.now, "{flip}");
                let mut changed = snapshot.clone();
                // Free CPU of the fleet is what a policy reads of the request's surroundings.
                let read = matches!(flip.change, Change::Free) && scorer.name() == "ppo";
                if read || !apply(&mut changed, flip) {
                    continue;
                }
                prop_assert_eq!(Summary::of(&changed).edge.nodes, summary.edge.nodes);
                let now = id(decide(&changed, &request, scorer).choice);
                prop_assert_eq!(now, Some(flip.second.clone()), "{}", flip);
            }
        }
    }
}

#[test]
fn a_flip_says_what_would_have_to_change() {
    let mut r = Random(1);
    let mut node = |id: &str, region: &str, price: f64| {
        let mut node = common::node(&mut r, id);
        node.location = Location {
            tier: Tier::Cloud,
            provider: Provider::Aws,
            region: region.to_owned(),
            zone: String::new(),
            site: String::new(),
            geography: None,
        };
        node.capacity_type = CapacityType::OnDemand;
        node.allocatable = Resources {
            cpu_millis: 4000,
            memory_bytes: 8 << 30,
        };
        (node.free, node.price_per_hour) = (node.allocatable, price);
        (node.ready, node.schedulable, node.cpu_utilization) = (true, true, 0.0);
        node.taints.clear();
        node
    };
    let mut snapshot = Snapshot {
        nodes: vec![node("near", "a", 1.0), node("far", "b", 1.0)],
        ..Snapshot::default()
    };
    let place = |p: &str| Place(p.to_owned());
    snapshot
        .latency
        .insert(&place("geo:EU"), &place("aws:a"), 20.0);
    snapshot
        .latency
        .insert(&place("geo:EU"), &place("aws:b"), 40.0);
    let mut request = common::request(&mut Random(2), 1);
    request.goal = Goal::Latency;
    request.resources = Resources {
        cpu_millis: 4000,
        memory_bytes: 1 << 30,
    };
    (request.gpu, request.max_hourly_cost) = Default::default();
    (request.geographies, request.clouds, request.tiers) = Default::default();
    (request.node_selector, request.avoid, request.archs) = Default::default();
    (request.siblings, request.data_locality, request.service_ms) = Default::default();
    (request.cluster_only_fields, request.latency_target_ms) = Default::default();
    request.current = None;
    request.prefer_spot = false;
    request.images.clear();
    request.clients = vec![Client {
        place: place("geo:EU"),
        weight: 1.0,
    }];
    let decision = explained(&snapshot, &request, &RulesScorer);
    assert_eq!(id(decision.choice).as_deref(), Some("near"));
    let flips = &decision.explanation.flips;
    let p99 = flips.iter().find(|f| f.change == Change::P99).unwrap();
    // At the same price it wins by its smaller id as soon as it is as near.
    assert!((p99.now - p99.needed - 26.0).abs() < 0.01, "{p99}");
    let text = p99.to_string();
    assert!(
        text.starts_with("far would win if its p99 fell by 26.0 ms to"),
        "{text}"
    );
    // The weight of cost is too small to make up for it.
    assert!(
        !flips.iter().any(|f| f.change == Change::Price),
        "{flips:?}"
    );
}
