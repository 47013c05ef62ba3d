//! Golden scores of quantised networks: the same on every machine but for the last bits, which
//! depend on the width of its vector unit. `.ci/golden-aarch64` runs this on another architecture.
//!
//! After a wanted change: `HYPERION_REGENERATE=1 cargo test -p hyperion-policy --test golden`.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../../placement/tests/cases/mod.rs"]
#[allow(dead_code)]
mod cases;

use cases::{case, network};
use hyperion_policy::{Encoded, Quantisation, Quantised};
use serde_json::{Value, json};

const TOLERANCE: f64 = 1e-5;

fn scores() -> Value {
    let network = network(1);
    let mut rows = Vec::new();
    for quantisation in [Quantisation::Q8, Quantisation::Q4] {
        let quantised = Quantised::new(&network, quantisation).unwrap();
        for seed in 0..7 {
            let case = case(seed, 2);
            let candidates: Vec<_> = case.features().iter().map(Encoded::from).collect();
            rows.push(json!({
                "scorer": quantisation.scorer_name(),
                "case": seed,
                "scores": quantised.scores(&case.request_vector(), &candidates),
            }));
        }
    }
    Value::Array(rows)
}

#[test]
fn quantised_scores_are_the_golden_ones() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden.json");
    let ours = scores();
    if std::env::var_os("HYPERION_REGENERATE").is_some() {
        let text = serde_json::to_string_pretty(&ours).unwrap();
        std::fs::write(path, text + "\n").unwrap();
    }
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let (ours, golden) = (ours.as_array().unwrap(), golden.as_array().unwrap());
    assert_eq!(ours.len(), golden.len());
    for (ours, golden) in ours.iter().zip(golden) {
        let name = format!("{} of case {}", golden["scorer"], golden["case"]);
        let list = |v: &Value| v["scores"].as_array().unwrap().clone();
        assert_eq!(list(ours).len(), list(golden).len(), "{name}");
        for (a, b) in list(ours).iter().zip(list(golden)) {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            assert!((a - b).abs() <= TOLERANCE, "{name}: {a}, expected {b}");
        }
    }
}
