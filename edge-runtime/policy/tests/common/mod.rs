//! A card that goes with synthetic networks.
#![allow(dead_code)]

use hyperion_placement::features::{FIT_LEN, NODE_LEN, PAIR_LEN, REQUEST_LEN};
use hyperion_placement::reward::RewardWeights;
use hyperion_policy::{Card, Encoded, SlotStats, Statistics, TrainingData};

/// Statistics of what was seen.
pub fn statistics(requests: &[[f32; REQUEST_LEN]], candidates: &[Encoded]) -> Statistics {
    Statistics {
        request: slots(requests.iter()),
        node: slots::<NODE_LEN>(candidates.iter().map(|c| &c.node)),
        pair: slots::<PAIR_LEN>(candidates.iter().map(|c| &c.pair)),
        fit: slots::<FIT_LEN>(candidates.iter().map(|c| &c.fit)),
    }
}

fn slots<'a, const N: usize>(
    vectors: impl Iterator<Item = &'a [f32; N]> + Clone,
) -> Vec<SlotStats> {
    let slot = |i: usize| {
        let values: Vec<f32> = vectors.clone().map(|v| v[i]).collect();
        let count = values.len().max(1) as f32;
        let mean = values.iter().sum::<f32>() / count;
        let square = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / count;
        SlotStats {
            mean,
            deviation: square.sqrt(),
            min: values.iter().copied().reduce(f32::min).unwrap_or(0.0),
            max: values.iter().copied().reduce(f32::max).unwrap_or(0.0),
        }
    };
    (0..N).map(slot).collect()
}

/// A card.
pub fn card() -> Card {
    Card {
        data: TrainingData {
            names: vec!["catalog.csv".to_owned(), "built-in world".to_owned()],
            hash: "00ff".to_owned(),
        },
        seed: u64::MAX,
        steps: 1_000_000,
        reward: RewardWeights::default(),
        statistics: statistics(&[], &[]),
        evaluation: serde_json::json!({"reward": {"mean": 1.25}, "worlds": ["a", "b"]}),
    }
}
