//! When rules decide in the policy's place.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../../placement/tests/cases/mod.rs"]
#[allow(dead_code)]
mod cases;
mod common;

use std::sync::Arc;
use std::time::Duration;

use cases::{Case, case, network};
use common::statistics;
use hyperion_placement::features::{Features, NodeSlot, PairSlot, Summary};
use hyperion_placement::filter::Candidate;
use hyperion_placement::model::Request;
use hyperion_placement::packing::{self, Lesson, TypicalRequests};
use hyperion_placement::score::{PolicyScorer, Score};
use hyperion_placement::{RulesScorer, Scorer, decide};
use hyperion_policy::{Encoded, Guard, Guarded, Limits, Quantisation, Quantised, Reason, sample};

const FRESH: Duration = Duration::from_secs(1);

fn encoded(case: &Case) -> Vec<Encoded> {
    case.features().iter().map(Encoded::from).collect()
}

fn guard() -> Guard {
    let seen: Vec<Case> = (0..200).map(|seed| case(seed, 20)).collect();
    let requests: Vec<_> = seen.iter().map(Case::request_vector).collect();
    let candidates: Vec<_> = seen.iter().flat_map(encoded).collect();
    Guard::new(&statistics(&requests, &candidates), Limits::default())
}

#[test]
fn what_is_like_training_is_admitted() {
    let guard = guard();
    for seed in 1000..1100 {
        let case = case(seed, 40);
        let candidates = sample(&case.snapshot, &case.request);
        assert!(candidates.len() <= 16);
        let verdict = guard.admit(&case.request_vector(), &candidates, FRESH);
        assert_eq!(verdict, Ok(()), "seed {seed}");
    }
    assert_eq!(
        guard.admit(&case(1, 1).request_vector(), &[], FRESH),
        Ok(())
    );
}

#[test]
fn an_old_snapshot_is_stale() {
    let case = case(1, 20);
    let request = case.request_vector();
    let limit = Limits::default().most_age;
    assert_eq!(guard().admit(&request, &[], limit), Ok(()));
    let late = limit + Duration::from_millis(1);
    assert_eq!(guard().admit(&request, &[], late), Err(Reason::Stale));
}

#[test]
fn requests_and_candidates_far_from_training_are_unfamiliar() {
    let guard = guard();
    let case = case(1000, 40);
    let request = case.request_vector();
    let mut odd = request;
    odd[..4].fill(50.0);
    assert_eq!(guard.admit(&odd, &[], FRESH), Err(Reason::Unfamiliar));
    odd[..4].fill(f32::NAN);
    assert_eq!(guard.admit(&odd, &[], FRESH), Err(Reason::Unfamiliar));
    // One fact gone odd is borne.
    let mut candidates = sample(&case.snapshot, &case.request);
    for candidate in &mut candidates {
        candidate.node[NodeSlot::Price as usize] = 9.0;
        candidate.pair[PairSlot::Cost as usize] = 9.0;
    }
    assert_eq!(guard.admit(&request, &candidates, FRESH), Ok(()));
    for candidate in &mut candidates {
        candidate.fit.fill(9.0);
    }
    let verdict = guard.admit(&request, &candidates, FRESH);
    assert_eq!(verdict, Err(Reason::Unfamiliar));
}

#[test]
fn the_policy_decides_where_the_guard_admits_it() {
    let scorer = PolicyScorer::new(Arc::new(network(2)));
    let guarded = Guarded::new(scorer.clone(), guard());
    for seed in 1000..1010 {
        let case = case(seed, 40);
        let decision = guarded.decide(&case.snapshot, &case.request, FRESH);
        assert_eq!(decision, decide(&case.snapshot, &case.request, &scorer));
        assert_eq!(decision.explanation.scorer, "ppo");
    }
    assert_eq!(guarded.counts().policy, 10);
    assert_eq!(guarded.counts().rules, [0; 3]);
}

/// The quantised policy and the guard around it leave nothing of the score out.
#[test]
fn what_gpu_capacity_is_worth_counts_in_the_policys_decisions() {
    let quantised = Quantised::new(&network(3), Quantisation::Q8).unwrap();
    let guarded = Guarded::new(quantised, guard());
    let counted = (0..100).filter(|seed| {
        let mut case = case(*seed, 20);
        case.request.gpu.count = 1;
        case.request.gpu.millis = 300;
        case.request.current = None;
        let mut typical = TypicalRequests::default();
        typical.observe_many(packing::demand_of(&case.request), 10);
        let lesson = Lesson::new(typical, case.snapshot.nodes.iter(), Arc::default());
        case.snapshot.packing = Arc::new(lesson.prices());
        let said = guarded.decide(&case.snapshot, &case.request, FRESH);
        let said = said.explanation;
        said.scorer == "ppo-q8" && said.terms.iter().any(|(name, _)| name == packing::TERM)
    });
    assert!(counted.count() > 20);
}

#[test]
fn rules_decide_where_it_does_not_and_the_explanation_says_so() {
    let case = case(1000, 40);
    let quantised = Quantised::new(&network(2), Quantisation::Q8).unwrap();
    let guarded = Guarded::new(quantised, guard());
    let late = Duration::from_secs(3600);
    let mut decision = guarded.decide(&case.snapshot, &case.request, late);
    assert_eq!(decision.explanation.scorer, "rules (guard: stale)");
    "rules".clone_into(&mut decision.explanation.scorer);
    assert_eq!(
        decision,
        decide(&case.snapshot, &case.request, &RulesScorer)
    );
    assert_eq!(guarded.counts().of(Reason::Stale), 1);
    assert_eq!(guarded.counts().policy, 0);
    let decision = guarded.decide(&case.snapshot, &case.request, FRESH);
    assert_eq!(decision.explanation.scorer, "ppo-q8");
}

/// Says NaN of one candidate.
struct Odd {
    id: String,
    prepared: bool,
}

impl Scorer for Odd {
    fn name(&self) -> &str {
        "odd"
    }

    fn score(&self, _: &Request, candidate: &Candidate<'_>, _: &Features) -> Score {
        let value = if candidate.id == self.id {
            f64::NAN
        } else {
            1.0
        };
        Score {
            terms: vec![("odd", value)],
        }
    }

    fn for_request<'a>(&'a self, _: &Request, _: &Summary) -> Option<Box<dyn Scorer + 'a>> {
        self.prepared.then(|| -> Box<dyn Scorer + 'a> {
            Box::new(Self {
                id: self.id.clone(),
                prepared: false,
            })
        })
    }

    fn packing_weight(&self) -> f64 {
        0.0
    }
}

#[test]
fn one_score_that_is_no_number_leaves_the_decision_to_the_rules() {
    let case = case(1000, 40);
    let rules = decide(&case.snapshot, &case.request, &RulesScorer);
    let chosen = rules.explanation.top.last().unwrap();
    let (hyperion_placement::CandidateRef::Node(id) | hyperion_placement::CandidateRef::Offer(id)) =
        &chosen.candidate;
    for prepared in [false, true] {
        let id = id.clone();
        let guarded = Guarded::new(Odd { id, prepared }, guard());
        let decision = guarded.decide(&case.snapshot, &case.request, FRESH);
        assert_eq!(decision.explanation.scorer, "rules (guard: notFinite)");
        assert_eq!(decision.choice, rules.choice);
        assert_eq!(guarded.counts().of(Reason::NotFinite), 1);
    }
}

#[test]
fn weights_that_overflow_leave_the_decision_to_the_rules() {
    let mut network = network(2);
    network.head.weight.fill(3e38);
    let guarded = Guarded::new(PolicyScorer::new(Arc::new(network)), guard());
    let case = case(1000, 40);
    let decision = guarded.decide(&case.snapshot, &case.request, FRESH);
    assert_eq!(decision.explanation.scorer, "rules (guard: notFinite)");
}
