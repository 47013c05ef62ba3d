//! Experiences come back as they were, and nothing makes the parser panic.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../../placement/tests/cases/mod.rs"]
#[allow(dead_code)]
mod cases;

use cases::{Draw, case, network};
use hyperion_policy::{
    Encoded, Experience, MOST_OTHERS, Outcome, Quantisation, Quantised, log_probability,
};
use proptest::prelude::*;

/// A decision as the control plane records it.
fn experience(seed: u64) -> Experience {
    let case = case(seed, 100);
    let all: Vec<Encoded> = case.features().iter().map(Encoded::from).collect();
    let kept = Experience::kept(all.len(), (seed % 150) as usize);
    let candidates: Vec<Encoded> = kept.iter().map(|i| all[*i]).collect();
    let quantised = Quantised::new(&network(1), Quantisation::Q8).unwrap();
    let request = case.request_vector();
    let scores = quantised.scores(&request, &candidates);
    Experience {
        goal: case.request.goal,
        request,
        candidates,
        chosen: 0,
        log_probability: log_probability(&scores, 0).unwrap(),
        outcome: Outcome {
            cost_per_hour: 0.1,
            p99_ms: seed.is_multiple_of(2).then_some(20.0 / 3.0),
            completed: true,
            moved: seed.is_multiple_of(3),
            violations: 0,
            hours: 0.25,
        },
    }
}

#[test]
fn a_recorded_decision_comes_back_bit_for_bit() {
    let all: Vec<Experience> = (0..5).map(experience).collect();
    let text: String = all.iter().map(|e| e.to_line().unwrap()).collect();
    assert_eq!(Experience::parse(&text).unwrap(), all);
    assert_eq!(all[0].candidates.len(), MOST_OTHERS + 1);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 500,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_change_of_a_line_makes_the_parser_panic(seed in any::<u64>(), changes in 1..8) {
        let mut draw = Draw(seed);
        let mut bytes = experience(3).to_line().unwrap().into_bytes();
        let odd = b"{}[]\",:-.0e9nt\\ \n";
        for _ in 0..changes {
            let at = draw.below(bytes.len() as u64) as usize;
            let with = odd[draw.below(odd.len() as u64) as usize];
            match draw.below(3) {
                0 => bytes[at] = with,
                1 => bytes.insert(at, with),
                _ => bytes.truncate(at.max(1)),
            }
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Err(error) = Experience::parse(&text) {
            prop_assert!(error.line >= 1 && !error.field.is_empty());
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,80}") {
        let _ = Experience::parse(&text);
    }
}
