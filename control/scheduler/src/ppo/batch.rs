//! Turns as tensors. Turns with about as many candidates go together, so that little is padded.

use candle_core::{Device, Tensor};
use hyperion_placement::features::{FIT_LEN, NODE_LEN, PAIR_LEN, REQUEST_LEN};
use hyperion_placement::policy::network::DIRECT;

use super::Turn;

/// Rows of a batch. Candle splits what it does number by number over the machine's cores from 65,536
/// numbers on, and waits for them in a busy loop: 1,008 rows of at most 64 numbers stay below it.
pub(super) const ROWS: usize = 1008;
/// What a candidate that does not exist scores.
const ABSENT: f32 = -1e9;
/// Features of a candidate.
const FEATURES: usize = NODE_LEN + PAIR_LEN + FIT_LEN;

/// Some turns, padded to the same number of candidates.
pub(super) struct Batch {
    /// How many.
    pub turns: usize,
    /// Candidates of the turn that has most.
    pub width: usize,
    /// Turns × [`REQUEST_LEN`].
    pub request: Tensor,
    /// Turns · candidates × ([`NODE_LEN`] + 1): the features and a 1.
    pub node: Tensor,
    /// Turns × candidates × [`DIRECT`].
    pub direct: Tensor,
    /// Turns × candidates: 0 where there is a candidate, hugely negative where there is none.
    pub absent: Tensor,
    /// Turns × candidates: 1 where there is a candidate, 0 where there is none.
    pub present: Tensor,
    /// Turns × 1 × candidates: weights that make a mean over the candidates.
    pub mean: Tensor,
    /// Turns × 2 [`FEATURES`]: mean and largest value of each feature.
    pub pooled: Tensor,
}

impl Batch {
    /// Packs turns; at least one.
    pub(super) fn new(turns: &[&Turn]) -> candle_core::Result<Self> {
        let count = turns.len();
        let width = turns.iter().map(|t| t.candidates.len()).max().unwrap_or(1);
        let rows = count * width;
        let mut request = Vec::with_capacity(count * REQUEST_LEN);
        let mut node = vec![0.0_f32; rows * (NODE_LEN + 1)];
        let mut direct = vec![0.0_f32; rows * DIRECT];
        let (mut absent, mut present) = (vec![ABSENT; rows], vec![0.0_f32; rows]);
        let mut mean = vec![0.0_f32; rows];
        let mut pooled = Vec::with_capacity(count * 2 * FEATURES);
        for (i, turn) in turns.iter().enumerate() {
            request.extend_from_slice(&turn.request);
            let (start, many) = (i * width, turn.candidates.len());
            absent[start..start + many].fill(0.0);
            present[start..start + many].fill(1.0);
            mean[start..start + many].fill(1.0 / many as f32);
            for (row, candidate) in (start..).zip(&turn.candidates) {
                let row_node = &mut node[row * (NODE_LEN + 1)..][..NODE_LEN + 1];
                row_node[..NODE_LEN].copy_from_slice(&candidate.node);
                row_node[NODE_LEN] = 1.0;
                let row_direct = &mut direct[row * DIRECT..][..DIRECT];
                row_direct[..PAIR_LEN].copy_from_slice(&candidate.pair);
                row_direct[PAIR_LEN..].copy_from_slice(&candidate.fit);
            }
            pool(turn, &mut pooled);
        }
        let device = &Device::Cpu;
        Ok(Self {
            turns: count,
            width,
            request: Tensor::from_vec(request, (count, REQUEST_LEN), device)?,
            node: Tensor::from_vec(node, (rows, NODE_LEN + 1), device)?,
            direct: Tensor::from_vec(direct, (count, width, DIRECT), device)?,
            absent: Tensor::from_vec(absent, (count, width), device)?,
            present: Tensor::from_vec(present, (count, width), device)?,
            mean: Tensor::from_vec(mean, (count, 1, width), device)?,
            pooled: Tensor::from_vec(pooled, (count, 2 * FEATURES), device)?,
        })
    }
}

fn pool(turn: &Turn, out: &mut Vec<f32>) {
    let mut sum = [0.0_f32; FEATURES];
    let mut max = [f32::MIN; FEATURES];
    for candidate in &turn.candidates {
        let features = candidate.node.iter().chain(&candidate.pair);
        let features = features.chain(&candidate.fit);
        for ((sum, max), value) in sum.iter_mut().zip(&mut max).zip(features) {
            *sum += value;
            *max = max.max(*value);
        }
    }
    let count = turn.candidates.len() as f32;
    out.extend(sum.iter().map(|s| s / count));
    out.extend_from_slice(&max);
}

/// Cuts items into batches of about [`ROWS`] rows, like with like: sorted by their number of
/// candidates, items with the same number in the order in which they came.
pub(super) fn batches<T>(mut items: Vec<T>, candidates: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    items.sort_by_key(&candidates);
    let mut batches = Vec::new();
    let mut batch: Vec<T> = Vec::new();
    for item in items {
        // The items are sorted: this one is the widest so far.
        let rows = (batch.len() + 1) * candidates(&item);
        if rows > ROWS && !batch.is_empty() {
            batches.push(std::mem::take(&mut batch));
        }
        batch.push(item);
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_every_item_once_and_little_padding() {
        let items: Vec<usize> = (0..2000).map(|i| 40 + i * 7919 % 81).collect();
        let batches = batches(items.clone(), |c| *c);
        let mut found: Vec<usize> = batches.concat();
        let mut expected = items;
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected);
        let rows: usize = batches.iter().map(|b| b.len() * b[b.len() - 1]).sum();
        let used: usize = found.iter().sum();
        assert!(rows * 100 < used * 105, "{rows} rows for {used}");
        assert!(batches.iter().all(|b| b.len() * b[b.len() - 1] <= ROWS));
    }

    #[test]
    fn a_turn_too_large_for_a_batch_has_one_of_its_own() {
        let batches = batches(vec![100_000, 3, 100_000], |c| *c);
        assert_eq!(batches, [vec![3], vec![100_000], vec![100_000]]);
    }
}
