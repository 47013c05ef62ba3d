//! All weights in one flat vector: what the optimiser changes and checkpoints hold.

use hyperion_placement::features::{
    FIT, FitSlot, NODE, NODE_LEN, PAIR, PAIR_LEN, PairSlot, REQUEST, REQUEST_LEN,
};
use hyperion_placement::policy::Network;
use hyperion_placement::policy::network::{DIRECT, EMBED, HIDDEN};

use super::config::Taste;
use super::model::{CRITIC_HIDDEN, POOLED};
use super::random::{Purpose, Stream};

/// What a candidate loses that holds another replica of the workload. Episodes have one replica of
/// each, so this is not learnt and stays as it is: about what 0.3 of reward are worth.
const SPREAD: f32 = -6.0;

/// Shape of a layer. Its weight lies in the vector row by row, then its bias.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub rows: usize,
    pub columns: usize,
    pub bias: bool,
}

const fn shape(rows: usize, columns: usize, bias: bool) -> Shape {
    Shape {
        rows,
        columns,
        bias,
    }
}

/// Layers of the policy, in the order of [`Network::layers`].
const ACTOR: [Shape; 7] = [
    shape(HIDDEN, NODE_LEN, true),
    shape(EMBED, HIDDEN, true),
    shape(HIDDEN, REQUEST_LEN, true),
    shape(EMBED, HIDDEN, true),
    shape(DIRECT, HIDDEN, true),
    shape(EMBED, PAIR_LEN, false),
    shape(1, EMBED, false),
];

/// Layers of the critic.
const CRITIC: [Shape; 3] = [
    shape(CRITIC_HIDDEN, POOLED, true),
    shape(CRITIC_HIDDEN, CRITIC_HIDDEN, true),
    shape(1, CRITIC_HIDDEN, true),
];

impl Shape {
    const fn weights(self) -> usize {
        self.rows * self.columns
    }

    const fn biases(self) -> usize {
        if self.bias { self.rows } else { 0 }
    }
}

/// All layers, the policy's first.
pub(super) fn shapes() -> impl Iterator<Item = Shape> {
    ACTOR.into_iter().chain(CRITIC)
}

fn length(shapes: &[Shape]) -> usize {
    shapes.iter().map(|s| s.weights() + s.biases()).sum()
}

/// Length of the policy's part, which comes first.
pub(super) fn actor_len() -> usize {
    length(&ACTOR)
}

/// Length of the vector.
pub(super) fn total_len() -> usize {
    length(&ACTOR) + length(&CRITIC)
}

/// The policy that the vector holds.
pub(super) fn network(values: &[f32]) -> Network {
    let mut network = Network::zeros();
    let mut rest = values;
    for (_, layer) in network.layers_mut() {
        for part in [&mut layer.weight, &mut layer.bias] {
            let (taken, left) = rest.split_at(part.len());
            part.copy_from_slice(taken);
            rest = left;
        }
    }
    network
}

/// Writes a policy into the vector.
pub(super) fn set_network(values: &mut [f32], network: &Network) {
    let mut at = 0;
    for (_, layer) in network.layers() {
        for part in [&layer.weight, &layer.bias] {
            values[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
    }
}

/// Makes the critic, whose last layer is linear, say `scale * v + shift` where it said `v`.
pub(super) fn rescale_critic(values: &mut [f32], scale: f64, shift: f64) {
    let last = CRITIC_HIDDEN + 1;
    let start = values.len() - last;
    for weight in &mut values[start..] {
        *weight = (f64::from(*weight) * scale) as f32;
    }
    if let Some(bias) = values.last_mut() {
        *bias = (f64::from(*bias) + shift) as f32;
    }
}

/// The beginning: random embeddings behind a head so small that they hardly count, and direct
/// weights that prefer by the taste.
pub(super) fn initial(seed: u64, taste: &Taste) -> Vec<f32> {
    let mut values = Vec::with_capacity(total_len());
    let normal = |values: &mut Vec<f32>, stream: u64, shape: Shape, deviation: f64| {
        let mut random = Stream::new(seed, Purpose::Weights, 0, stream);
        values.extend((0..shape.weights()).map(|_| (deviation * random.normal()) as f32));
        values.extend(std::iter::repeat_n(0.0, shape.biases()));
    };
    // Deviations that keep the size of what passes through (He et al., 2015); slots behind the
    // tables are always 0 and do not count.
    let he = |inputs: usize| (2.0 / inputs as f64).sqrt();
    let deviations = [
        he(NODE.len()),
        he(HIDDEN) / 2.0,
        he(REQUEST.len()),
        he(HIDDEN) / 2.0,
        0.0,
        he(PAIR.len()) / 2.0,
        taste.noise / (EMBED as f64).sqrt(),
        he(PAIR.len() + NODE.len() + FIT.len() + HIDDEN + EMBED) / 2.0,
        he(CRITIC_HIDDEN),
        0.01,
    ];
    for (i, (shape, deviation)) in shapes().zip(deviations).enumerate() {
        normal(&mut values, i as u64, shape, deviation);
    }
    let mut policy = network(&values);
    prefer(&mut policy.direct.bias, taste);
    set_network(&mut values, &policy);
    values
}

/// Scores by reward over temperature.
fn prefer(direct: &mut [f32], taste: &Taste) {
    let per_reward = 1.0 / taste.temperature;
    let (reward, lost) = (PairSlot::Reward as usize, FitSlot::LatencyLost as usize);
    direct[reward] = (per_reward * f64::from(PAIR[reward].scale)) as f32;
    direct[PAIR_LEN + lost] = (-per_reward * f64::from(FIT[lost].scale)) as f32;
    direct[PAIR_LEN + FitSlot::Here as usize] = (per_reward * taste.stay_bonus) as f32;
    direct[PAIR_LEN + FitSlot::Sibling as usize] = SPREAD;
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASTE: Taste = Taste {
        temperature: 0.1,
        stay_bonus: 0.05,
        noise: 0.05,
    };

    #[test]
    fn a_network_survives_the_vector() {
        let values = initial(3, &TASTE);
        assert_eq!(values.len(), total_len());
        let policy = network(&values);
        let mut copy = vec![0.0; total_len()];
        set_network(&mut copy, &policy);
        assert_eq!(copy[..actor_len()], values[..actor_len()]);
    }

    #[test]
    fn layers_lie_where_the_network_has_them() {
        let network = Network::zeros();
        for ((name, layer), shape) in network.layers().into_iter().zip(shapes()) {
            let found = (layer.rows(), layer.columns, !layer.bias.is_empty());
            assert_eq!(found, (shape.rows, shape.columns, shape.bias), "{name}");
        }
    }
}
