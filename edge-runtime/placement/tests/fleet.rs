//! A fleet decides what the reference decides on the same snapshot, whatever happened to it.

mod common;

use std::sync::Arc;

use common::Random;
use hyperion_placement::features::{Features, Summary};
use hyperion_placement::filter::Candidate;
use hyperion_placement::model::*;
use hyperion_placement::score::{Fast, Score};
use hyperion_placement::*;
use proptest::prelude::*;

/// A scorer that a fleet knows nothing of.
struct Outside;

impl Scorer for Outside {
    fn name(&self) -> &str {
        "outside"
    }

    fn score(&self, _: &Request, candidate: &Candidate<'_>, features: &Features) -> Score {
        let here = f64::from(features.node.iter().sum::<f32>());
        let name = candidate.id.len() as f64;
        Score {
            terms: vec![("node", here), ("id", name)],
        }
    }

    fn packing_weight(&self) -> f64 {
        0.0
    }
}

/// Hides from the fleet what the scorer is.
struct Slow<S>(S);

impl<S: Scorer> Scorer for Slow<S> {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn score(&self, r: &Request, c: &Candidate<'_>, f: &Features) -> Score {
        self.0.score(r, c, f)
    }

    fn total(&self, r: &Request, c: &Candidate<'_>, f: &Features) -> f64 {
        self.0.total(r, c, f)
    }

    fn for_request<'a>(&'a self, r: &Request, s: &Summary) -> Option<Box<dyn Scorer + 'a>> {
        self.0.for_request(r, s)
    }

    fn packing_weight(&self) -> f64 {
        self.0.packing_weight()
    }

    fn fast(&self) -> Fast<'_> {
        Fast::No
    }
}

fn same(fleet: &Fleet, scratch: &mut Scratch, request: &Request, scorer: &dyn Scorer) {
    let snapshot = fleet.snapshot();
    let mut expected = decide(&snapshot, request, scorer);
    let mut found = fleet.decide(scratch, request, scorer);
    // NaN is not equal to itself.
    assert_eq!(format!("{found:?}"), format!("{expected:?}"));
    if let Some(choice) = &expected.choice {
        assert_eq!(
            fleet.check(request, choice),
            check(&snapshot, request, choice)
        );
    }
    choose::explain(&snapshot, request, scorer, &mut expected.explanation);
    fleet.explain(request, scorer, &mut found.explanation);
    assert_eq!(
        format!("{:?}", found.explanation),
        format!("{:?}", expected.explanation)
    );
}

fn same_candidates(fleet: &Fleet, scratch: &mut Scratch, request: &Request) {
    let snapshot = fleet.snapshot();
    let (expected, rejected) = consider(&snapshot, request);
    let (found, also_rejected) = fleet.consider(scratch, request);
    assert_eq!(rejected, also_rejected);
    let words = |all: &[Considered<'_>]| {
        all.iter()
            .map(|c| format!("{} {:?}", c.candidate.id, c.features))
            .collect::<Vec<_>>()
    };
    assert_eq!(words(&found), words(&expected));
}

fn filled(r: &mut Random, changes: usize, ids: usize) -> Fleet {
    let mut fleet = Fleet::new();
    fleet.set_latency(common::latency(r));
    for _ in 0..changes {
        common::change(r, &mut fleet, ids);
    }
    fleet
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_fleet_decides_what_the_reference_decides(seed in any::<u64>()) {
        let mut r = Random(seed);
        let ids = r.of(&[3, 20, 60, 200]);
        let network = Arc::new(common::network(&mut r));
        let early = r.chance(0.5);
        let mut fleet = Fleet::new();
        if early {
            fleet.set_network(Some(network.clone()));
        }
        let mut scratch = Scratch::new();
        for _ in 0..4 {
            for _ in 0..ids {
                common::change(&mut r, &mut fleet, ids);
            }
            fleet.set_network(Some(network.clone()).filter(|_| early || r.chance(0.8)));
            prop_assert_eq!(*fleet.summary(), Summary::of(&fleet.snapshot()));
            if r.chance(0.7) {
                fleet.set_packing(common::prices(&mut r));
            }
            let request = common::request(&mut r, ids);
            let policy = PolicyScorer::new(network.clone());
            same(&fleet, &mut scratch, &request, &RulesScorer);
            same(&fleet, &mut scratch, &request, &policy);
            same(&fleet, &mut scratch, &request, &Slow(policy));
            same(&fleet, &mut scratch, &request, &Outside);
            same_candidates(&fleet, &mut scratch, &request);
        }
    }

    #[test]
    fn the_order_of_changes_does_not_matter(seed in any::<u64>()) {
        let mut r = Random(seed);
        let fleet = filled(&mut r, 60, 30);
        let snapshot = fleet.snapshot();
        let mut again = Fleet::new();
        let mut nodes: Vec<&Node> = snapshot.nodes.iter().collect();
        while !nodes.is_empty() {
            again.upsert_node(nodes.swap_remove(r.below(nodes.len())).clone());
        }
        for offer in snapshot.offers.iter().rev() {
            again.upsert_offer(offer.clone());
        }
        again.set_latency(snapshot.latency.clone());
        again.set_queue(snapshot.queue);
        let request = common::request(&mut r, 30);
        let mut scratch = Scratch::new();
        let decisions = [&fleet, &again].map(|f| f.decide(&mut scratch, &request, &RulesScorer));
        prop_assert_eq!(format!("{:?}", decisions[0]), format!("{:?}", decisions[1]));
        prop_assert_eq!(fleet.kinds(), again.kinds());
    }

    #[test]
    fn many_replicas_go_where_they_would_go_one_by_one(seed in any::<u64>()) {
        let mut r = Random(seed);
        let ids = r.of(&[3, 20, 60]);
        let mut fleet = filled(&mut r, 2 * ids, ids);
        if r.chance(0.5) {
            fleet.set_packing(common::prices(&mut r));
        }
        let network = Arc::new(common::network(&mut r));
        fleet.set_network(Some(network.clone()));
        let mut request = common::request(&mut r, ids);
        let policy = PolicyScorer::new(network);
        let scorer: &dyn Scorer = match r.below(3) {
            0 => &policy,
            1 => &Outside,
            _ => &RulesScorer,
        };
        let mut scratch = Scratch::new();
        let mut one_by_one = fleet.clone();
        let together = fleet.decide_many(&mut scratch, &request, 7, scorer);
        // The request is read once, with the fleet as it was.
        let ready = scorer.for_request(&request, one_by_one.summary());
        let ready = Slow(Ready(ready.as_deref().unwrap_or(scorer)));
        for decision in together {
            let single = one_by_one.decide(&mut scratch, &request, &ready);
            prop_assert_eq!(format!("{decision:?}"), format!("{single:?}"));
            let Some(choice) = single.choice else { continue };
            prop_assert_eq!(one_by_one.reserve(&request, &choice), Ok(()));
            if let CandidateRef::Node(id) = choice.candidate {
                request.siblings.insert(id);
            }
        }
        prop_assert_eq!(
            format!("{:?}", fleet.snapshot().nodes),
            format!("{:?}", one_by_one.snapshot().nodes)
        );
    }
}

/// A scorer that has read its request already.
struct Ready<'a>(&'a dyn Scorer);

impl Scorer for Ready<'_> {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn score(&self, r: &Request, c: &Candidate<'_>, f: &Features) -> Score {
        self.0.score(r, c, f)
    }

    fn total(&self, r: &Request, c: &Candidate<'_>, f: &Features) -> f64 {
        self.0.total(r, c, f)
    }

    fn packing_weight(&self) -> f64 {
        self.0.packing_weight()
    }
}

#[test]
fn a_large_site_and_many_equal_nodes_are_decided_alike() {
    let mut r = Random(7);
    let network = Arc::new(common::network(&mut r));
    let mut fleet = Fleet::new();
    fleet.set_network(Some(network.clone()));
    let policy = PolicyScorer::new(network);
    let like = common::node(&mut r, "x");
    let mut scratch = Scratch::new();
    for n in 0..400 {
        let mut node = like.clone();
        node.id = format!("n-{:03}", (n * 37) % 400);
        node.location.tier = Tier::Edge;
        node.location.provider = Provider::Edge;
        node.location.site = if n % 3 == 0 { "dock" } else { "lab" }.to_owned();
        node.ready = true;
        node.schedulable = true;
        node.taints.clear();
        fleet.upsert_node(node);
        if n % 50 == 49 {
            for place in ["site:lab", "site:dock", "geo:US"] {
                let mut request = common::request(&mut Random(n as u64), 400);
                request.clients = vec![Client {
                    place: Place(place.to_owned()),
                    weight: 1.0,
                }];
                same(&fleet, &mut scratch, &request, &RulesScorer);
                same(&fleet, &mut scratch, &request, &policy);
            }
        }
    }
    for n in 0..390 {
        fleet.remove_node(&format!("n-{n:03}"));
    }
    same(&fleet, &mut scratch, &common::request(&mut r, 400), &policy);
    assert_eq!(fleet.len(), 10);
}

#[test]
fn of_two_decisions_for_the_last_room_one_is_refused() {
    let mut r = Random(3);
    let mut fleet = Fleet::new();
    let mut node = common::node(&mut r, "only");
    (node.ready, node.schedulable) = (true, true);
    node.taints.clear();
    node.allocatable = Resources {
        cpu_millis: 1000,
        memory_bytes: 1 << 30,
    };
    node.free = node.allocatable;
    fleet.upsert_node(node.clone());
    let mut request = common::request(&mut r, 1);
    for list in [&mut request.archs, &mut request.cluster_only_fields] {
        list.clear();
    }
    (request.geographies, request.clouds, request.tiers) = Default::default();
    (request.node_selector, request.avoid) = Default::default();
    (request.gpu, request.max_hourly_cost) = Default::default();
    request.resources = node.free;
    let mut scratch = Scratch::new();
    let choices = [0, 1].map(|_| fleet.decide(&mut scratch, &request, &RulesScorer).choice);
    let [Some(a), Some(b)] = choices else {
        panic!("both see the room");
    };
    assert_eq!(fleet.reserve(&request, &a), Ok(()));
    let broken = fleet.reserve(&request, &b).unwrap_err();
    assert_eq!(broken[0].constraint, "cpu");
    fleet.release("only", node.free, &[]).unwrap();
    assert_eq!(fleet.node("only"), Some(&node));
    assert_eq!(fleet.reserve(&request, &b), Ok(()));
}

#[test]
fn what_is_not_there_is_named() {
    let mut fleet = Fleet::new();
    let error = fleet.set_telemetry("ghost", 0.5).unwrap_err();
    assert_eq!(error.to_string(), "node \"ghost\" is not in the fleet");
    let mut node = common::node(&mut Random(1), "n");
    node.gpus.clear();
    node.free = node.allocatable;
    fleet.upsert_node(node);
    let error = fleet
        .take("n", Resources::default(), &[("g".to_owned(), 1)])
        .unwrap_err();
    assert_eq!(error.to_string(), "node \"n\" has no GPU \"g\"");
    assert!(!fleet.remove_node("ghost") && !fleet.remove_offer("n"));
}
