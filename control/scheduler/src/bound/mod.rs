//! The best that perfect knowledge could do: an upper bound on the reward of an episode that no
//! scheduler can exceed, however it decides.
//!
//! Each workload's best plan is found exactly, by dynamic programming over time, on its own
//! ([`plan`]); what couples workloads, the room on owned devices and the instances that a pool
//! gives at once, is priced (Lagrangian relaxation; Fisher, "The Lagrangian Relaxation Method for
//! Solving Integer Programming Problems", Management Science 27(1), 1981). For any prices that are
//! not negative,
//!
//! ```text
//! bound(prices) = Σ workloads best plan's reward less what it pays for room
//!               + Σ devices, pools, hours price × room
//! ```
//!
//! is at least the reward of every schedule, so the lowest over some rounds of subgradient steps is
//! given. Whatever else is simplified is simplified in favour of the planner: it pays its own share
//! of a bought instance, never waits for one to boot, knows every reclaim in advance and loses no
//! work, and has the lowest price and the least load of each quarter of an hour. One thing is not: work that is
//! going to be lost earns nothing and costs nothing in the episode, while the planner pays for waiting;
//! and a job's unit of work that is not a whole quarter is its last.
//!
//! For small worlds there is a sharper bound ([`sharp`]), and a search for a schedule that comes near
//! it ([`optimum`]).

mod foresight;
mod optimum;
mod plan;
mod room;
mod search;
mod sharp;

pub use foresight::{Foresight, foresee};
pub use optimum::{Optimum, optimum};
pub use room::{CHARGED, RoomPrices};
pub use search::{exhaustive, record};
pub use sharp::{MOST_WORKLOADS, sharp};

use crate::scenario::{Pool, Scenario};
use crate::sim::NOTICE_HOURS;
use hyperion_placement::model::CapacityType;
use hyperion_placement::reward::RewardWeights;
use plan::{Item, Room};

/// Hours of a step of the plan.
pub const STEP: f64 = 0.25;
/// Hours for which room on a device has one price.
const PRICED: f64 = 1.0;
/// By how much the price of room changes where one more replica than fits asks for all of it, in the
/// first round and in the last: the best of those tried on 4 episodes of training, where 120 rounds
/// lower the bound by 0.2 % beyond what 60 do.
const FIRST_STEP: f64 = 1.0;
const LAST_STEP: f64 = 0.02;
/// Share of the direction of the steps before that is kept.
const KEPT: f64 = 0.7;
/// Resources of a device that are priced: CPU, GPU, memory.
const RESOURCES: usize = 3;

/// An upper bound on an episode's reward.
#[derive(Debug, Clone, PartialEq)]
pub struct Bound {
    /// No scheduler earns more in all.
    pub reward: f64,
    /// The same over the hours that workloads ask for, as rewards of schedulers are given.
    pub mean_reward: f64,
    /// Without prices for room: every workload as if alone.
    pub mean_reward_alone: f64,
}

/// Whose room is taken to be scarce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scarce {
    /// That of devices and of pools, which give so many instances at once and no more.
    All,
    /// That of devices alone.
    Devices,
}

/// Computes the bound with `rounds` of subgradient steps; more rounds only lower it.
#[must_use]
pub fn bound(scenario: &Scenario, weights: &RewardWeights, rounds: u32) -> Bound {
    priced(scenario, weights, rounds, Scarce::All).0
}

/// The bound, with each workload's places and the prices of room that gave it.
fn priced(
    scenario: &Scenario,
    weights: &RewardWeights,
    rounds: u32,
    scarce: Scarce,
) -> (Bound, Vec<Item>, Vec<f64>) {
    let items: Vec<Item> = scenario
        .workloads
        .iter()
        .map(|w| Item::new(scenario, w, weights))
        .collect();
    let demanded = scenario.demanded_hours();
    let hours = (scenario.horizon / PRICED).ceil() as usize;
    let up = room_there_is(scenario, hours, scarce);
    let mut prices = vec![0.0; up.len()];
    let (mut best, mut alone) = (f64::INFINITY, f64::INFINITY);
    let mut best_prices = prices.clone();
    let mut drift = vec![0.0; prices.len()];
    for round in 0..=rounds {
        let room = Room {
            prices: &prices,
            hours,
        };
        let mut usage = vec![0.0; prices.len()];
        let mut total = 0.0;
        for item in &items {
            total += item.best(&room, &mut usage);
        }
        for (price, up) in prices.iter().zip(&up) {
            total += price * up;
        }
        if round == 0 {
            alone = total;
        }
        if total < best {
            best = total;
            best_prices.clone_from(&prices);
        }
        // Room that is asked for beyond what there is becomes dearer, unused room cheaper. Steps
        // get smaller at a constant rate, and go on in the direction of those before: so prices
        // settle, instead of swinging around what they should be.
        let step =
            FIRST_STEP * (LAST_STEP / FIRST_STEP).powf(f64::from(round) / f64::from(rounds.max(1)));
        for (i, price) in prices.iter_mut().enumerate() {
            drift[i] = KEPT * drift[i] + (1.0 - KEPT) * (usage[i] - up[i]) / PRICED;
            *price = (*price + step * drift[i]).max(0.0);
        }
    }
    let per_hour = |total: f64| {
        if demanded > 0.0 {
            total / demanded
        } else {
            0.0
        }
    };
    let bound = Bound {
        reward: best,
        mean_reward: per_hour(best),
        mean_reward_alone: per_hour(alone),
    };
    (bound, items, best_prices)
}

/// Machine hours that each place has in each priced hour, once for each resource: devices while
/// they are up, and as many instances of a pool as may run at once while it gives them.
fn room_there_is(scenario: &Scenario, hours: usize, scarce: Scarce) -> Vec<f64> {
    let places = scenario.devices.len() + scenario.pools.len();
    let mut room = Vec::with_capacity(places * hours * RESOURCES);
    let spans = |hour: usize| {
        let from = hour as f64 * PRICED;
        (from, (from + PRICED).min(scenario.horizon))
    };
    for device in &scenario.devices {
        for (from, to) in (0..hours).map(spans) {
            room.extend([device.up.integral(from, to); RESOURCES]);
        }
    }
    for pool in &scenario.pools {
        for (from, to) in (0..hours).map(spans) {
            let limit = match scarce {
                Scarce::All => f64::from(pool.limit),
                // More than all could ask for.
                Scarce::Devices => scenario.workloads.len() as f64,
            };
            let alive = alive_hours(pool, from, to);
            room.extend([alive * limit; RESOURCES]);
        }
    }
    room
}

/// Hours between two times in which an instance of a pool may run: what is reclaimed runs on for
/// the time of its notice, and what is bought on demand is not reclaimed.
fn alive_hours(pool: &Pool, from: f64, to: f64) -> f64 {
    if pool.offer.capacity_type != CapacityType::Spot {
        return to - from;
    }
    let path = &pool.obtainable;
    // Until when it is certain to run on.
    let mut until = if path.at(from - NOTICE_HOURS) > 0.0 {
        from
    } else {
        f64::NEG_INFINITY
    };
    let (mut at, mut hours) = (from - NOTICE_HOURS, 0.0);
    while at < to {
        let next = path.next_change(at).map_or(to, |t| t.min(to));
        if path.at(at) > 0.0 {
            let (begin, end) = (at.max(until).max(from), (next + NOTICE_HOURS).min(to));
            hours += (end - begin).max(0.0);
            until = until.max(end);
        }
        at = next;
    }
    hours
}

#[cfg(test)]
mod tests;
