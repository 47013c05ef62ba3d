//! The network in 8 bits beside the one in full precision.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../../placement/tests/cases/mod.rs"]
#[allow(dead_code)]
mod cases;
mod common;

use std::sync::Arc;

use cases::{Case, case, network};
use common::card;
use hyperion_placement::features::Summary;
use hyperion_placement::policy::Network;
use hyperion_placement::score::PolicyScorer;
use hyperion_placement::{Scorer, decide};
use hyperion_policy::{Encoded, PolicyFile, Quantisation, Quantised};

fn encoded(case: &Case) -> Vec<Encoded> {
    case.features().iter().map(Encoded::from).collect()
}

fn exact(network: &Network, case: &Case) -> Vec<f32> {
    let prepared = network.prepare(&case.request_vector());
    let score = |c: &Encoded| {
        let kind = network.prepare_kind(&prepared, &c.pair);
        network.score(&prepared, &kind, &network.embed(&c.node), &c.fit)
    };
    encoded(case).iter().map(score).collect()
}

fn first(scores: &[f32]) -> usize {
    let best = |a: &usize, b: &usize| scores[*a].total_cmp(&scores[*b]);
    (0..scores.len()).max_by(best).unwrap()
}

/// The network that a quantised file holds.
fn dequantised(network: &Network, quantisation: Quantisation) -> Network {
    let bytes = PolicyFile::write_gguf(&card(), network, quantisation).unwrap();
    PolicyFile::read(&bytes).unwrap().network
}

#[test]
fn scores_are_those_of_the_weights_after_quantising() {
    for quantisation in [Quantisation::Q8, Quantisation::Q4] {
        let network = dequantised(&network(3), quantisation);
        let quantised = Quantised::new(&network, quantisation).unwrap();
        let mut worst = 0.0_f32;
        for seed in 0..20 {
            let case = case(seed, 20);
            let scores = quantised.scores(&case.request_vector(), &encoded(&case));
            for (a, b) in scores.iter().zip(exact(&network, &case)) {
                worst = worst.max((a - b).abs() / b.abs().max(1.0));
            }
        }
        assert!(worst < 1e-3, "{quantisation:?}: {worst}");
    }
}

#[test]
fn eight_bits_choose_what_full_precision_chooses() {
    let (mut same, mut all) = (0, 0);
    for weights in 0..10 {
        let network = network(weights);
        let quantised = Quantised::new(&network, Quantisation::Q8).unwrap();
        for seed in 0..100 {
            let case = case(1000 * (weights + 1) + seed, 20);
            let scores = quantised.scores(&case.request_vector(), &encoded(&case));
            same += u64::from(first(&scores) == first(&exact(&network, &case)));
            all += 1;
        }
    }
    println!("{same} of {all} first choices are the same");
    assert!(same * 100 >= all * 99, "{same} of {all}");
}

#[test]
fn as_a_scorer_it_decides_like_the_network() {
    let network = network(5);
    let quantised = Quantised::new(&network, Quantisation::Q8).unwrap();
    let full = PolicyScorer::new(Arc::new(dequantised(&network, Quantisation::Q8)));
    for seed in 0..20 {
        let case = case(seed, 30);
        let ours = decide(&case.snapshot, &case.request, &quantised);
        let theirs = decide(&case.snapshot, &case.request, &full);
        assert_eq!(ours.explanation.scorer, "ppo-q8");
        let id = |d: &hyperion_placement::Decision| d.choice.as_ref().map(|c| c.candidate.clone());
        assert_eq!(id(&ours), id(&theirs), "seed {seed}");
        let (Some(ours), Some(theirs)) = (ours.choice, theirs.choice) else {
            continue;
        };
        assert!((ours.score - theirs.score).abs() < 1e-2);
    }
}

#[test]
fn one_by_one_and_all_at_once_score_the_same() {
    let quantised = Quantised::new(&network(5), Quantisation::Q8).unwrap();
    let case = case(9, 500);
    let at_once = quantised.scores(&case.request_vector(), &encoded(&case));
    let ready = quantised.ready(&case.request, &Summary::of(&case.snapshot));
    let candidate = hyperion_placement::filter::Candidate::from(&case.snapshot.nodes[0]);
    for (features, score) in case.features().iter().zip(at_once) {
        let total = ready.total(&case.request, &candidate, features);
        assert_eq!(total.to_bits(), f64::from(score).to_bits());
    }
}

#[test]
fn nothing_to_score_is_no_fault() {
    let quantised = Quantised::new(&network(5), Quantisation::Q8).unwrap();
    assert!(quantised.scores(&[0.0; 32], &[]).is_empty());
    assert!(quantised.embed(&[]).is_empty());
}
