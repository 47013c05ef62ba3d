//! A scheduler that knows the future: each decision is the true reward of the next half hour plus
//! what the workload's best plan earns after it, at the prices of room that gave the bound.
//!
//! It is no scheduler to choose: it tells how much of the bound can be had.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyperion_placement::filter::Candidate;

use super::plan::{At, Item, Room, Table};
use super::{Bound, CHARGED, PRICED, Scarce, priced};
use crate::scenario::Scenario;
use crate::sim::{DecisionPoint, Outcome, SimConfig, Simulator, Truth};

/// Hours to the next decision of a replica that runs.
const NEXT: f64 = 0.5;

/// Reward that staying is thought to be worth.
const STAY: f64 = 0.5;

/// What is known of an episode's future.
pub struct Foresight {
    scenario: Arc<Scenario>,
    items: Vec<Item>,
    tables: Vec<Table>,
    prices: Vec<f64>,
    hours: usize,
    pools: BTreeMap<String, usize>,
    devices: BTreeMap<String, usize>,
    /// The bound that goes with it.
    pub bound: Bound,
}

impl Foresight {
    /// Looks into an episode's future; `rounds` as in [`super::bound`].
    #[must_use]
    pub fn new(scenario: &Arc<Scenario>, config: &SimConfig, rounds: u32) -> Self {
        let (bound, items, prices) = priced(scenario, &config.weights, rounds, Scarce::All);
        let hours = (scenario.horizon / PRICED).ceil() as usize;
        let room = Room {
            prices: &prices,
            hours,
        };
        let tables = items.iter().map(|i| i.table(&room)).collect();
        let pools = scenario.pools.iter().enumerate();
        let devices = scenario.devices.iter().enumerate();
        Self {
            pools: pools.map(|(i, p)| (p.offer.id.clone(), i)).collect(),
            devices: devices.map(|(i, d)| (d.node.id.clone(), i)).collect(),
            scenario: Arc::clone(scenario),
            items,
            tables,
            prices,
            hours,
            bound,
        }
    }

    /// What a candidate is worth to a workload from now on. `now` is the reward of the next half
    /// hour there, `here` that the workload runs there, `left` its hours of work left.
    fn worth(
        &self,
        workload: usize,
        candidate: &Candidate<'_>,
        hour: f64,
        now: f64,
        left: f64,
        here: bool,
    ) -> f64 {
        let (item, table) = (&self.items[workload], &self.tables[workload]);
        let at = self.at(candidate);
        let spot = at.and_then(|at| item.spot_of(at));
        let mut next = hour + NEXT;
        let mut earned = now;
        let mut kept = true;
        if let Some(At::Pool(pool)) = at {
            let path = &self.scenario.pools[pool].obtainable;
            let closes = path.next_change(hour).filter(|t| *t < next);
            if candidate.node.is_none() && path.at(hour) <= 0.0 {
                return f64::NEG_INFINITY;
            }
            if let Some(closes) = closes {
                // What it would earn until then, and then it has to go.
                earned = now * (closes - hour) / NEXT;
                next = closes;
                kept = false;
            }
        }
        let start = spot.map_or(0.0, |s| item.again(s));
        let start = if here {
            0.0
        } else {
            start + f64::from(candidate.startup_s) / 3600.0
        };
        let worked = (next - hour - start).clamp(0.0, left);
        let units = item.units_of(left - worked);
        let room = Room {
            prices: &self.prices,
            hours: self.hours,
        };
        let rent = spot.map_or(0.0, |s| item.rent_from(s, &room, hour, next - hour));
        let spot = if kept { spot } else { None };
        // What is worth the same to several would be left and taken again each half hour.
        let stay = if here { STAY } else { 0.0 };
        earned + stay - CHARGED * rent + table.value(next, units, spot)
    }

    /// The answer to a decision.
    pub(super) fn choose(&self, point: &DecisionPoint<'_>) -> Option<usize> {
        let truth = point.truth();
        let left = point.request.expected_hours.unwrap_or(f64::INFINITY);
        let worth = |index: usize| {
            let candidate = &point.candidates[index].candidate;
            let here = point.request.current.as_deref() == Some(candidate.id);
            let now = truth.reward(index) + truth.others(index);
            self.worth(point.workload, candidate, point.hour, now, left, here)
        };
        (0..point.candidates.len())
            .map(|i| (i, worth(i)))
            .max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)))
            .filter(|(_, worth)| *worth > f64::NEG_INFINITY)
            .map(|(i, _)| i)
    }

    fn at(&self, candidate: &Candidate<'_>) -> Option<At> {
        if let Some(device) = self.devices.get(candidate.id) {
            return Some(At::Device(*device));
        }
        if let Some(pool) = self.pools.get(candidate.id) {
            return Some(At::Pool(*pool));
        }
        // A bought node: the pool of the same place and kind.
        let same = |p: &crate::scenario::Pool| {
            p.offer.location == *candidate.location
                && p.offer.capacity_type == candidate.capacity_type
                && candidate
                    .node
                    .is_some_and(|n| n.instance_type == p.offer.instance_type)
        };
        self.scenario.pools.iter().position(same).map(At::Pool)
    }
}

/// Plays an episode with knowledge of its future.
#[must_use]
pub fn foresee(scenario: &Arc<Scenario>, config: SimConfig, foresight: &Foresight) -> Outcome {
    let mut simulator = Simulator::new(scenario, config);
    while let Some(point) = simulator.next_decision() {
        let choice = foresight.choose(&point);
        simulator.act(choice);
    }
    simulator.outcome()
}
