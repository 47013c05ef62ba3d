//! A sharper bound for small worlds: what no scheduler exceeds, with what the rules of the simulator
//! make it pay.
//!
//! Time is cut into steps of two minutes. Look at any schedule at the times `(k + θ) × step`, `k` =
//! 0, 1, …: for each θ between 0 and 1 the looks are a *plan* of each workload (where it is, on its
//! way, waiting), and over all θ alike they see each state for as long as it lasts. So the reward
//! of a schedule is at most the mean over θ of what its plans earn, if each look earns the most
//! that its state can earn in its step (lowest price, least load), and no more than what the best
//! plan earns. What lasts some hours is seen by that many looks less one at the least.
//!
//! Plans are found exactly, by dynamic programming ([`plan`]). They pay for starts (data, image,
//! loading, and the boot where nobody else could have bought the instance) and for the second copy
//! of a service that moves, leave a place that runs only when they are asked (each half hour, at a
//! reclaim or failure, after a refused launch), and lose the work since a checkpoint or do not.
//!
//! What workloads do to each other is exact in each step: of all sets of replicas that fit on a
//! machine together ([`machines`]), what each pays of the instance and how much slower the others
//! make it. Plans and sets have to agree on who is where; that demand has prices (Lagrangian
//! decomposition; Guignard and Kim, Mathematical Programming 39, 1987), and any prices give a
//! bound:
//!
//! ```text
//! bound(prices) = Σ workloads best plan's reward less what it pays for being where it is
//!               + Σ machines, steps: best set's payments and what its members gain together
//! ```
//!
//! Not counted, all in the planner's favour: the boot where another workload could have bought the
//! instance, waiting for a decision while nowhere, that the same launch has one boot time (the
//! shortest of all is taken), limits on the price of a new instance. Not in its favour are two
//! things: a replica alone in a pool that leaves an instance and comes back to it within five
//! minutes would not boot, and a service that moves twice within a step.

mod machines;
mod plan;
mod table;

use machines::{Machine, World};
use plan::Planner;

use crate::scenario::Scenario;
use crate::sim::SimConfig;

/// Hours of a step.
pub const STEP: f64 = 1.0 / 30.0;
/// Hours for which being at a place has one price.
const PRICED: f64 = 0.5;
/// More workloads than these have too many sets that fit together.
pub const MOST_WORKLOADS: usize = 12;
/// Rounds without a lower bound after which steps get smaller.
const PATIENCE: u32 = 10;
/// Share of the direction of the steps before that is kept.
const KEPT: f64 = 0.6;

/// An upper bound on an episode's reward, for at most [`MOST_WORKLOADS`] workloads. `reached` is
/// what some schedule earns: steps aim there. More rounds only lower it.
#[must_use]
pub fn sharp(scenario: &Scenario, config: &SimConfig, rounds: u32, reached: f64) -> Option<f64> {
    if scenario.workloads.len() > MOST_WORKLOADS {
        return None;
    }
    let world = World {
        scenario,
        weights: &config.weights,
        steps: (scenario.horizon / STEP - 1e-9).ceil() as usize,
    };
    let machines = world.machines();
    let mut planners: Vec<Planner> = (0..scenario.workloads.len())
        .map(|w| Planner::new(&world, &machines, w, config))
        .collect();
    let times = (scenario.horizon / PRICED).ceil().max(1.0) as usize;
    let mut prices: Vec<Vec<f64>> = machines.iter().map(|m| m.first_prices(times)).collect();
    let none: Vec<Vec<f64>> = prices.iter().map(|p| vec![0.0; p.len()]).collect();
    let mut drift = none.clone();
    let (mut best, mut since, mut pace) = (f64::INFINITY, 0, 1.0);
    for round in 0..=rounds {
        if round == 0 || round == rounds / 2 {
            for planner in &mut planners {
                planner.tune(&machines, &prices);
            }
        }
        let (mut asked, mut used) = (none.clone(), none.clone());
        let mut total: f64 = planners
            .iter()
            .map(|p| p.best(&machines, &prices, &mut asked))
            .sum();
        for (m, machine) in machines.iter().enumerate() {
            total += machine.best(&prices[m], &mut used[m]);
        }
        since += 1;
        if total < best - 1e-6 * best.abs() {
            since = 0;
        }
        best = best.min(total);
        if since >= PATIENCE {
            (since, pace) = (0, pace * 0.6);
        }
        step(
            &machines,
            &mut prices,
            &mut drift,
            (&asked, &used),
            pace * (total - reached),
        );
    }
    Some(best)
}

/// Moves prices: being where too many want to be becomes dearer. How far follows from what is
/// left to gain (Polyak's rule).
fn step(
    machines: &[Machine],
    prices: &mut [Vec<f64>],
    drift: &mut [Vec<f64>],
    (asked, used): (&[Vec<f64>], &[Vec<f64>]),
    gap: f64,
) {
    let mut square = 0.0;
    for (m, machine) in machines.iter().enumerate() {
        let mut towards = vec![0.0; prices[m].len()];
        machine.directions(&prices[m], &asked[m], &used[m], &mut towards);
        for (drift, towards) in drift[m].iter_mut().zip(&towards) {
            *drift = KEPT * *drift + (1.0 - KEPT) * towards;
            square += *drift * *drift;
        }
    }
    if square <= 1e-12 {
        return;
    }
    let pace = gap.max(0.0) / square;
    for (m, machine) in machines.iter().enumerate() {
        for (price, drift) in prices[m].iter_mut().zip(&drift[m]) {
            *price += pace * drift;
            if !machine.pays() {
                *price = price.max(0.0);
            }
        }
    }
}

#[cfg(test)]
mod tests;
