//! What a node's free capacity is worth to the requests that are expected from now on.
//!
//! The fleet is seen as a packing problem: expected requests (as many as fill what is free) go on
//! free devices, and every request is worth the GPU share that it uses. The linear relaxation has
//! a price per request size; with these prices a device with `f` free is worth the best set of
//! sizes that fits in `f` (a knapsack), and a request should go where it destroys least worth.
//! This is bid-price control (Talluri and van Ryzin, "An Analysis of Bid-Price Controls for Network
//! Revenue Management", 1998) on the cutting-stock dual (Gilmore and Gomory, 1961), found by
//! subgradient steps. Three terms beside it are ours and were tuned on arrivals that the reported
//! figures do not use (docs/packing.md): CPU and memory that cannot carry the GPUs, nodes kept
//! whole for requests of several devices as far as these are scarce, and a preference for the
//! fullest device among equals.
//!
//! A decision compares thousands of nodes, so [`Prices::loss`] allocates nothing and searches nothing:
//! it takes some table look-ups for each device.

use std::collections::BTreeMap;

use super::rates::Rates;
use super::{Demand, Free, Models, TypicalRequests, fits};
use crate::gpu::WHOLE;

/// Steps into which a device is divided.
const STEPS: usize = 100;
/// Thousandths of a device per step.
const STEP_MILLIS: u32 = WHOLE / STEPS as u32;
/// Subgradient steps per refresh; each refresh starts from the prices of the one before.
const ITERATIONS: u32 = 60;
/// Subgradient steps without such a start.
const FIRST_ITERATIONS: u32 = 400;
/// Length of the first subgradient step; the n-th is this over the root of n.
const STEP_LENGTH: f64 = 0.05;
/// How far stranded CPU and memory count, 0 to 1.
const BALANCE: f64 = 0.5;
/// Worth of a node kept whole for a request of several devices, in GPUs per share of demand.
const KEPT_WHOLE: f64 = 10.0;
/// Worth of free capacity being on one device rather than on several: weight of its square.
const TOGETHER: f64 = 0.1;
/// Whole devices of one node beyond which no more places for requests of several are counted.
const MOST_WHOLE: usize = 64;

/// Prices of free capacity; see the module's description. With [`Prices::default`] capacity is
/// worth what it is, and the fullest device with room is preferred.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prices {
    /// By item, what the scarcity of this request takes off its worth.
    scarcity: BTreeMap<Item, f64>,
    pools: Vec<Pool>,
}

/// A device share of some size for which some models will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Item {
    steps: usize,
    models: Models,
}

/// Devices that the same requests can use.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pool {
    models: Models,
    /// Worth of a device by free steps, in whole devices.
    worth: Vec<f64>,
    /// Worth of places for requests of several devices, by whole devices of a node.
    kept: Vec<f64>,
    cpu: Rates,
    memory: Rates,
}

/// A request that needs several devices of one node.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Several {
    demand: Demand,
    /// Worth of one place for it, in whole devices.
    worth: f64,
}

/// What the value of a node is made of.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    cpu_millis: f64,
    memory_bytes: f64,
    worth: f64,
    squares: f64,
    whole: u32,
}

impl Prices {
    /// Prices for what is free now, where requests like `typical` are expected until it is used
    /// up. `before`, the prices of a moment ago, makes it quick. Takes time in proportion to
    /// sizes × pools, and to nodes.
    #[must_use]
    pub fn refresh(typical: &TypicalRequests, fleet: &[Free<'_>], before: &Self) -> Self {
        let mut items: BTreeMap<Item, f64> = BTreeMap::new();
        for (demand, count) in typical.iter().filter(|(demand, _)| demand.gpu_count > 0) {
            let item = Item {
                steps: demand.gpu_millis.div_ceil(STEP_MILLIS) as usize,
                models: demand.models,
            };
            *items.entry(item).or_default() += count * f64::from(demand.gpu_count);
        }
        let free: f64 = fleet.iter().map(|node| gpus_free(node)).sum();
        let asked: f64 = typical.iter().map(|(d, count)| d.gpus() * count).sum();
        if free <= 0.0 || asked <= 0.0 {
            return Self::default();
        }
        let problem = Problem::new(&items, fleet, free, asked);
        let scarcity = problem.solve(&before.scarcity);
        let several = several(typical, fleet, free, asked);
        let pools = problem
            .pools
            .iter()
            .map(|supply| {
                let (worth, _) = problem.knapsack(supply, &scarcity);
                Pool::new(supply.models, worth, &several, typical)
            })
            .collect();
        Self {
            pools,
            scarcity: problem.items.iter().copied().zip(scarcity).collect(),
        }
    }

    /// False as long as nothing is known of requests, and what is free is worth what it is.
    #[must_use]
    pub fn known(&self) -> bool {
        !self.pools.is_empty()
    }

    /// What the free capacity of the node is worth, in whole devices.
    #[must_use]
    pub fn value(&self, free: &Free<'_>) -> f64 {
        let pool = self.pool(free.model);
        value(pool, &state(pool, &Left::from(free)))
    }

    /// Free capacity that the requests expected from now on can make nothing of, in whole devices.
    #[must_use]
    pub fn wasted(&self, free: &Free<'_>) -> f64 {
        let pool = self.pool(free.model);
        let state = state(pool, &Left::from(free));
        let usable = pool.map_or(state.worth, |pool| pool.carried(&state));
        (gpus_free(free) - usable).max(0.0)
    }

    /// The worth that placing the demand here destroys, in whole devices: least is best. None
    /// where it does not fit.
    #[must_use]
    pub fn loss(&self, free: &Free<'_>, demand: &Demand) -> Option<f64> {
        if !fits(free, demand) {
            return None;
        }
        loss(self.pool(free.model), &Left::from(free), demand)
    }

    /// The devices that the demand should get, by index; none where it does not fit.
    #[must_use]
    pub fn assign(&self, free: &Free<'_>, demand: &Demand) -> Option<Vec<usize>> {
        if !fits(free, demand) {
            return None;
        }
        devices(self.pool(free.model), free.gpus.iter().copied(), demand)
    }

    /// The pool of nodes with these devices; none where none were free at the last refresh.
    pub(super) fn pool(&self, model: Models) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.models.overlaps(model))
    }
}

/// What is left of a node, in the form that is compared by the thousand.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Left<D> {
    /// Thousandths of a core.
    pub(crate) cpu_millis: f64,
    /// Bytes.
    pub(crate) memory_bytes: f64,
    /// Per device, thousandths of it, 0 to 1000.
    pub(crate) devices: D,
}

impl<'a> From<&Free<'a>> for Left<std::iter::Copied<std::slice::Iter<'a, u32>>> {
    fn from(free: &Free<'a>) -> Self {
        Self {
            cpu_millis: free.cpu_millis as f64,
            memory_bytes: free.memory_bytes as f64,
            devices: free.gpus.iter().copied(),
        }
    }
}

/// [`Prices::loss`], for those who know the pool. None where too few devices have room; that there
/// is room on them for the rest is up to the caller.
#[inline]
pub(super) fn loss<D>(pool: Option<&Pool>, left: &Left<D>, demand: &Demand) -> Option<f64>
where
    D: Iterator<Item = u32> + Clone,
{
    let before = state(pool, left);
    let after = place(pool, left, demand, before, |_| {})?;
    Some(value(pool, &before) - value(pool, &after))
}

/// [`Prices::assign`], likewise.
pub(super) fn devices(
    pool: Option<&Pool>,
    devices: impl Iterator<Item = u32> + Clone,
    demand: &Demand,
) -> Option<Vec<usize>> {
    let left = Left {
        cpu_millis: 0.0,
        memory_bytes: 0.0,
        devices,
    };
    let mut taken = Vec::with_capacity((demand.gpu_count as usize).min(MOST_WHOLE));
    place(pool, &left, demand, State::default(), |d| taken.push(d))?;
    Some(taken)
}

fn value(pool: Option<&Pool>, state: &State) -> f64 {
    let (carried, kept) = pool.map_or((state.worth, 0.0), |pool| {
        (pool.carried(state), pool.kept(state.whole))
    });
    (1.0 - BALANCE) * state.worth + BALANCE * carried + kept + TOGETHER * state.squares
}

impl Pool {
    fn new(
        models: Models,
        worth: Vec<f64>,
        several: &[Several],
        typical: &TypicalRequests,
    ) -> Self {
        let usual = || {
            typical
                .iter()
                .filter(|(d, _)| d.gpu_count > 0 && d.models.overlaps(models))
                .map(|(d, count)| (d, d.gpus(), count * d.gpus()))
        };
        let kept = |whole: usize| {
            let places = |s: &Several| f64::from(whole as u32 / s.demand.gpu_count.max(1));
            let own = several.iter().filter(|s| s.demand.models.overlaps(models));
            own.map(|s| s.worth * places(s)).sum()
        };
        Self {
            models,
            worth,
            kept: (0..=MOST_WHOLE).map(kept).collect(),
            cpu: Rates::new(usual().map(|(d, gpus, weight)| (gpus, d.cpu_millis, weight))),
            memory: Rates::new(usual().map(|(d, gpus, weight)| (gpus, d.memory_bytes, weight))),
        }
    }

    fn carried(&self, state: &State) -> f64 {
        let cpu = self.cpu.usable(state.worth, state.cpu_millis);
        cpu.min(self.memory.usable(state.worth, state.memory_bytes))
    }

    fn kept(&self, whole: u32) -> f64 {
        let at = (whole as usize).min(MOST_WHOLE);
        self.kept.get(at).copied().unwrap_or(0.0)
    }
}

fn gpus_free(free: &Free<'_>) -> f64 {
    free.gpus.iter().map(|&left| share(left)).sum()
}

fn share(millis: u32) -> f64 {
    f64::from(millis) / f64::from(WHOLE)
}

/// Worth of one device with so much left.
fn worth(pool: Option<&Pool>, left: u32) -> f64 {
    let steps = (left / STEP_MILLIS) as usize;
    pool.and_then(|pool| pool.worth.get(steps).copied())
        .unwrap_or_else(|| share(left))
}

fn state<D>(pool: Option<&Pool>, left: &Left<D>) -> State
where
    D: Iterator<Item = u32> + Clone,
{
    let mut state = State {
        cpu_millis: left.cpu_millis,
        memory_bytes: left.memory_bytes,
        ..State::default()
    };
    for left in left.devices.clone() {
        state.worth += worth(pool, left);
        state.squares += share(left) * share(left);
        state.whole += u32::from(left >= WHOLE);
    }
    state
}

/// The state after the demand took the devices that lose least, told to `taken`.
fn place<D>(
    pool: Option<&Pool>,
    left: &Left<D>,
    demand: &Demand,
    mut state: State,
    mut taken: impl FnMut(usize),
) -> Option<State>
where
    D: Iterator<Item = u32> + Clone,
{
    state.cpu_millis = (state.cpu_millis - demand.cpu_millis as f64).max(0.0);
    state.memory_bytes = (state.memory_bytes - demand.memory_bytes as f64).max(0.0);
    let change = |left: u32| {
        let after = left - demand.gpu_millis;
        (
            worth(pool, left) - worth(pool, after),
            share(left) * share(left) - share(after) * share(after),
        )
    };
    let mut last: Option<(f64, usize)> = None;
    for _ in 0..demand.gpu_count {
        let next = left
            .devices
            .clone()
            .enumerate()
            .filter(|(_, left)| *left >= demand.gpu_millis)
            .map(|(device, left)| {
                let (worth, squares) = change(left);
                (worth + TOGETHER * squares, device)
            })
            .filter(|next| last.is_none_or(|last| order(next, &last).is_gt()))
            .min_by(order)?;
        let left = left.devices.clone().nth(next.1)?;
        let (worth, squares) = change(left);
        state.worth -= worth;
        state.squares -= squares;
        state.whole -= u32::from(left >= WHOLE && state.whole > 0);
        taken(next.1);
        last = Some(next);
    }
    Some(state)
}

fn order(a: &(f64, usize), b: &(f64, usize)) -> std::cmp::Ordering {
    a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))
}

/// Requests of several devices, and what a place for each is worth: its share of the demand,
/// and less where more places are left than requests are expected.
fn several(typical: &TypicalRequests, fleet: &[Free<'_>], free: f64, asked: f64) -> Vec<Several> {
    let several = || typical.iter().filter(|(demand, _)| demand.gpu_count > 1);
    let mut kinds: BTreeMap<(u32, Models), f64> = BTreeMap::new();
    for (demand, count) in several() {
        *kinds.entry((demand.gpu_count, demand.models)).or_default() += count * free / asked;
    }
    for (&(devices, models), expected) in &mut kinds {
        let left: u32 = fleet
            .iter()
            .filter(|node| node.model.overlaps(models))
            .map(|node| node.gpus.iter().filter(|left| **left >= WHOLE).count() as u32 / devices)
            .sum();
        *expected = ((*expected + 1.0) / (f64::from(left) + 1.0)).min(1.0);
    }
    several()
        .map(|(demand, count)| {
            let scarce = kinds.get(&(demand.gpu_count, demand.models));
            Several {
                demand: *demand,
                worth: KEPT_WHOLE * count * demand.gpus() / asked * scarce.copied().unwrap_or(1.0),
            }
        })
        .collect()
}

/// Devices of a pool by free steps, as a share of everything that is free.
struct Supply {
    models: Models,
    usable: Vec<bool>,
    devices: Vec<f64>,
}

/// The packing problem whose dual gives the prices.
struct Problem {
    items: Vec<Item>,
    /// Expected requests per free GPU, by item.
    expected: Vec<f64>,
    pools: Vec<Supply>,
}

impl Problem {
    fn new(items: &BTreeMap<Item, f64>, fleet: &[Free<'_>], free: f64, asked: f64) -> Self {
        let mut pools: Vec<Supply> = Vec::new();
        for node in fleet.iter().filter(|node| !node.gpus.is_empty()) {
            let usable = |item: &Item| item.models.overlaps(node.model);
            let at = pools
                .iter()
                .position(|pool| items.keys().map(usable).eq(pool.usable.iter().copied()))
                .unwrap_or(pools.len());
            if at == pools.len() {
                pools.push(Supply {
                    models: Models(0),
                    usable: items.keys().map(usable).collect(),
                    devices: vec![0.0; STEPS + 1],
                });
            }
            if let Some(pool) = pools.get_mut(at) {
                pool.models.0 |= node.model.0;
                for &left in node.gpus {
                    let steps = (left / STEP_MILLIS) as usize;
                    if let Some(devices) = pool.devices.get_mut(steps) {
                        *devices += 1.0 / free;
                    }
                }
            }
        }
        Self {
            items: items.keys().copied().collect(),
            expected: items.values().map(|count| count / asked).collect(),
            pools,
        }
    }

    /// By item, the dual price of its demand: minimises expected × price + the worth of all
    /// devices, by subgradient steps, and returns the mean of the later half of them.
    fn solve(&self, before: &BTreeMap<Item, f64>) -> Vec<f64> {
        let mut price: Vec<f64> = self
            .items
            .iter()
            .map(|item| before.get(item).copied().unwrap_or(0.0))
            .collect();
        let iterations = if before.is_empty() {
            FIRST_ITERATIONS
        } else {
            ITERATIONS
        };
        let mut mean = vec![0.0; price.len()];
        for n in 0..iterations {
            if n >= iterations / 2 {
                for (mean, price) in mean.iter_mut().zip(&price) {
                    *mean += price / f64::from(iterations - iterations / 2);
                }
            }
            let used = self.used(&price);
            let length = STEP_LENGTH / f64::from(n + 1).sqrt();
            for (i, price) in price.iter_mut().enumerate() {
                *price += length * (used[i] - self.expected[i]);
                *price = price.clamp(0.0, self.items[i].steps as f64 / STEPS as f64);
            }
        }
        mean
    }

    /// By item, how many go on the devices per free GPU where every device takes its best set.
    fn used(&self, price: &[f64]) -> Vec<f64> {
        let mut used = vec![0.0; price.len()];
        for pool in &self.pools {
            let (_, choice) = self.knapsack(pool, price);
            let mut devices = pool.devices.clone();
            for steps in (1..=STEPS).rev() {
                let here = devices[steps];
                match choice[steps] {
                    Some(item) => {
                        used[item] += here;
                        devices[steps - self.items[item].steps] += here;
                    }
                    None => devices[steps - 1] += here,
                }
            }
        }
        used
    }

    /// By free steps, the worth of the best set of items, and an item of that set (none where a
    /// step less is worth the same).
    fn knapsack(&self, pool: &Supply, price: &[f64]) -> (Vec<f64>, Vec<Option<usize>>) {
        // Less than this is no reason to prefer one set over another.
        const SAME: f64 = 1e-12;
        let mut worth = vec![0.0; STEPS + 1];
        let mut choice = vec![None; STEPS + 1];
        for steps in 1..=STEPS {
            let mut best = worth[steps - 1];
            for (i, item) in self.items.iter().enumerate() {
                if !pool.usable[i] || item.steps > steps || item.steps == 0 {
                    continue;
                }
                let profit = item.steps as f64 / STEPS as f64 - price[i];
                let with = worth[steps - item.steps] + profit;
                if with > best + SAME {
                    best = with;
                    choice[steps] = Some(i);
                }
            }
            worth[steps] = best;
        }
        (worth, choice)
    }
}

#[cfg(test)]
mod tests;
