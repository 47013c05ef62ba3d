//! Golden vectors: encodings and scores in full precision are the same, bit for bit, on every
//! machine. `.ci/golden-aarch64` runs this on another architecture.
//!
//! After a wanted change of the feature table or the network's arithmetic:
//! `HYPERION_REGENERATE=1 cargo test -p hyperion-placement --test golden`.

#![allow(clippy::unwrap_used, clippy::panic)]

mod cases;

use cases::{case, network};
use serde_json::{Value, json};

const CASES: u64 = 7;
const NODES: u64 = 2;

fn hex(values: &[f32]) -> String {
    values
        .iter()
        .map(|v| format!("{:08x}", v.to_bits()))
        .collect()
}

fn vectors() -> Value {
    let network = network(1);
    let mut rows = Vec::new();
    for seed in 0..CASES {
        let case = case(seed, NODES);
        let request = case.request_vector();
        let prepared = network.prepare(&request);
        for features in case.features() {
            let embedding = network.embed(&features.node);
            let kind = network.prepare_kind(&prepared, &features.pair);
            let score = network.score(&prepared, &kind, &embedding, &features.fit);
            rows.push(json!({
                "case": seed,
                "request": hex(&request),
                "node": hex(&features.node),
                "pair": hex(&features.pair),
                "fit": hex(&features.fit),
                "embedding": hex(&embedding),
                "score": hex(&[score]),
            }));
        }
    }
    Value::Array(rows)
}

#[test]
fn encodings_and_scores_have_the_golden_bits() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden.json");
    let ours = vectors();
    if std::env::var_os("HYPERION_REGENERATE").is_some() {
        let text = serde_json::to_string_pretty(&ours).unwrap();
        std::fs::write(path, text + "\n").unwrap();
    }
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let (ours, golden) = (ours.as_array().unwrap(), golden.as_array().unwrap());
    assert_eq!(ours.len(), golden.len());
    assert!(ours.len() >= 20);
    for (i, (ours, golden)) in ours.iter().zip(golden).enumerate() {
        for (name, value) in golden.as_object().unwrap() {
            assert_eq!(&ours[name], value, "{name} of row {i}");
        }
    }
}
