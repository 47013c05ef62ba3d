//! What room on owned devices is worth to others, hour by hour.
//!
//! A replica that takes a device keeps others from it. The prices of room that give the lowest
//! bound say how much they would have earned there: who pays them for what it takes, and looks for
//! its own reward beyond that, does what is best for all. Learners are charged them.

use std::collections::BTreeMap;

use hyperion_placement::model::{Node, Request};
use hyperion_placement::reward::RewardWeights;

use super::plan::takes;
use super::{PRICED, RESOURCES, Scarce, priced};
use crate::scenario::Scenario;

/// Share of the worth of room that who takes it is charged. At the whole price those who would
/// gain just that much are indifferent, and room would lie idle.
pub const CHARGED: f64 = 0.9;

/// Prices of room on the devices of an episode.
#[derive(Debug, Clone, PartialEq)]
pub struct RoomPrices {
    /// By device id: reward per hour of all of each resource, in each hour.
    devices: BTreeMap<String, (Node, Vec<[f64; RESOURCES]>)>,
}

impl RoomPrices {
    /// Computes them with `rounds` as in [`super::bound`].
    #[must_use]
    pub fn new(scenario: &Scenario, weights: &RewardWeights, rounds: u32) -> Self {
        let (_, _, prices) = priced(scenario, weights, rounds, Scarce::Devices);
        let hours = (scenario.horizon / PRICED).ceil() as usize;
        let of = |device: usize| {
            let all = &prices[device * hours * RESOURCES..(device + 1) * hours * RESOURCES];
            all.chunks_exact(RESOURCES)
                .map(|c| std::array::from_fn(|i| c[i]))
                .collect()
        };
        let devices = scenario.devices.iter().enumerate();
        Self {
            devices: devices
                .map(|(i, d)| (d.node.id.clone(), (d.node.clone(), of(i))))
                .collect(),
        }
    }

    /// What a replica's room on a node is worth to others from one time to another; 0 for nodes
    /// that are not devices.
    #[must_use]
    pub fn rent(&self, node: &str, request: &Request, from: f64, to: f64) -> f64 {
        let Some((device, hours)) = self.devices.get(node) else {
            return 0.0;
        };
        let taken = takes(request, device);
        let (mut at, mut rent) = (from.max(0.0), 0.0);
        while at < to {
            let hour = (at / PRICED) as usize;
            let Some(prices) = hours.get(hour) else { break };
            let next = ((hour + 1) as f64 * PRICED).min(to);
            let rate: f64 = prices.iter().zip(taken).map(|(p, t)| p * t).sum();
            rent += rate * (next - at);
            at = next;
        }
        rent
    }
}
