//! One workload's best plan against known prices, by dynamic programming over time.

use hyperion_placement::cost;
use hyperion_placement::filter::{Candidate, first_rejection};
use hyperion_placement::latency;
use hyperion_placement::model::{Node, Request, WorkloadType};
use hyperion_placement::reward::{JOB_P99_MS, RewardWeights, Weights};

use super::{PRICED, RESOURCES, STEP};
use crate::scenario::{Path, Pool, Scenario, Workload};
use crate::sim::{NOTICE_HOURS, WAIT_PENALTY, data_hours, transfer_hours};

/// Prices of room.
pub struct Room<'a> {
    /// By place (devices, then pools), hour and resource: reward per hour of all of a machine.
    pub prices: &'a [f64],
    /// Priced hours of an episode.
    pub hours: usize,
}

impl Room<'_> {
    fn index(&self, place: usize, step: usize) -> usize {
        let hour = ((step as f64 * STEP) / PRICED) as usize;
        (place * self.hours + hour.min(self.hours - 1)) * RESOURCES
    }
}

/// What a spot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// An instance of the pool with this index.
    Pool(usize),
    /// The device with this index.
    Device(usize),
}

/// What the best plan earns from each state on.
pub struct Table {
    from: usize,
    until: usize,
    width: usize,
    spots: usize,
    run: Vec<f32>,
    again: Vec<f64>,
}

impl Table {
    /// From the first step that begins at `hour` or later, with `left` units of work left: at
    /// `spot`, staying or going elsewhere; none means being nowhere.
    pub fn value(&self, hour: f64, left: usize, spot: Option<usize>) -> f64 {
        let step = (hour / STEP - 1e-9).ceil().max(0.0) as usize;
        if step >= self.until || left == 0 || self.width == 0 {
            return 0.0;
        }
        let at = (step.max(self.from) - self.from) * self.width + left.min(self.width - 1);
        let again = self.again[at];
        spot.map_or(again, |s| {
            again.max(f64::from(self.run[at * self.spots + s]))
        })
    }
}

/// A place where the workload could be.
struct Spot {
    /// What it is.
    at: At,
    /// Its index among the places whose room is priced: devices, then pools.
    place: usize,
    /// Shares of the machine's CPU, GPUs and memory that it takes.
    takes: [f64; RESOURCES],
    /// By step: reward per hour at the best moment of the step; none where it can't be had.
    rate: Vec<Option<f64>>,
    /// By step: it can be had at the step's beginning, so that one may stay from the step before.
    kept: Vec<bool>,
    /// Hours to start for the first time, and again.
    first: f64,
    again: f64,
    /// Reward lost for the dollars of a start.
    dollars: f64,
}

/// A workload with all places where it could be.
pub struct Item {
    spots: Vec<Spot>,
    job: bool,
    /// First step, and the step after the last.
    from: usize,
    until: usize,
    /// By step: hours of it that the workload is in the system.
    lengths: Vec<f64>,
    /// Units of work of one step; 1 for services, whose work does not run out.
    units: usize,
    /// Hours of the last unit.
    last_unit: f64,
}

impl Item {
    /// Looks everything up.
    pub fn new(scenario: &Scenario, workload: &Workload, weights: &RewardWeights) -> Self {
        let end = match workload.request.workload_type {
            WorkloadType::Service => workload.end.min(scenario.horizon),
            WorkloadType::Job => scenario.horizon,
        };
        let steps = (scenario.horizon / STEP).ceil() as usize;
        let from = ((workload.arrival.max(0.0) / STEP) as usize).min(steps);
        let until = ((end / STEP).ceil() as usize).clamp(from, steps);
        let lengths = (0..steps)
            .map(|k| {
                let begin = k as f64 * STEP;
                (end.min(begin + STEP) - workload.arrival.max(begin)).max(0.0)
            })
            .collect();
        let job = workload.request.workload_type == WorkloadType::Job;
        let units = if job {
            (workload.work_hours / STEP).ceil().max(1.0) as usize
        } else {
            1
        };
        let looker = Looker {
            scenario,
            workload,
            weights: weights.of(workload.request.goal),
            steps,
            from,
            until,
        };
        let bought = (0..scenario.pools.len()).filter_map(|i| looker.pool(i));
        let owned = (0..scenario.devices.len()).filter_map(|i| looker.device(i));
        Self {
            spots: bought.chain(owned).collect(),
            job,
            from,
            until,
            lengths,
            units,
            last_unit: workload.work_hours - (units - 1) as f64 * STEP,
        }
    }

    /// Reward of the best plan less what it pays for room; adds what it takes to `usage`.
    pub fn best(&self, room: &Room<'_>, usage: &mut [f64]) -> f64 {
        self.solve(room, usage, None)
    }

    /// What the best plan earns from each state on, less what it pays for room.
    pub fn table(&self, room: &Room<'_>) -> Table {
        let mut table = Table {
            from: self.from,
            until: self.until,
            width: self.units + 1,
            spots: self.spots.len(),
            run: Vec::new(),
            again: Vec::new(),
        };
        let steps = self.until - self.from;
        table.run = vec![f32::NEG_INFINITY; steps * table.width * table.spots];
        table.again = vec![0.0; steps * table.width];
        let mut usage = vec![0.0; room.prices.len()];
        self.solve(room, &mut usage, Some(&mut table));
        table
    }

    /// Index of the spot of a pool (by its index) or of a device.
    pub fn spot_of(&self, at: At) -> Option<usize> {
        self.spots.iter().position(|s| s.at == at)
    }

    /// Hours to start again at a spot.
    pub fn again(&self, spot: usize) -> f64 {
        self.spots[spot].again
    }

    /// Units of work in so many hours of it.
    pub fn units_of(&self, hours: f64) -> usize {
        if self.job {
            ((hours / STEP).ceil().max(0.0) as usize).min(self.units)
        } else {
            1
        }
    }

    /// What room on a device costs the workload for some hours from a time on.
    pub fn rent_from(&self, spot: usize, room: &Room<'_>, hour: f64, hours: f64) -> f64 {
        let k = ((hour / STEP) as usize).min(self.lengths.len().saturating_sub(1));
        self.rent(&self.spots[spot], room, k, hours)
    }

    fn solve(&self, room: &Room<'_>, usage: &mut [f64], mut keep: Option<&mut Table>) -> f64 {
        let (spots, units) = (self.spots.len(), self.units);
        let steps = self.until - self.from;
        if steps == 0 {
            return 0.0;
        }
        // Gains by unit of work left and spot, of the step after and of this one.
        let width = units + 1;
        let mut run_next = vec![f64::NEG_INFINITY; width * spots];
        let mut run = run_next.clone();
        let (mut again_next, mut first_next) = (vec![0.0; width], vec![0.0; width]);
        let mut stays = vec![false; steps * width * spots];
        // Spot + 1, or 0 to wait.
        let mut again_to = vec![0_u16; steps * width];
        let mut first_to = vec![0_u16; steps * width];
        for step in (0..steps).rev() {
            let k = self.from + step;
            let length = self.lengths[k];
            let last = step + 1 == steps;
            let mut again = vec![0.0; width];
            let mut first = vec![0.0; width];
            for left in 1..width {
                let (hours, after) = if self.job {
                    let hours = if left == 1 { self.last_unit } else { STEP };
                    (hours, left - 1)
                } else {
                    (length, left)
                };
                again[left] = WAIT_PENALTY * length + if last { 0.0 } else { again_next[left] };
                first[left] = WAIT_PENALTY * length + if last { 0.0 } else { first_next[left] };
                for (s, spot) in self.spots.iter().enumerate() {
                    let Some(rate) = spot.rate[k] else {
                        run[left * spots + s] = f64::NEG_INFINITY;
                        continue;
                    };
                    let mut gain = rate * hours - self.rent(spot, room, k, hours);
                    if !(last || (self.job && after == 0)) {
                        let stay = if spot.kept[k + 1] {
                            run_next[after * spots + s]
                        } else {
                            f64::NEG_INFINITY
                        };
                        stays[(step * width + left) * spots + s] = stay >= again_next[after];
                        gain += stay.max(again_next[after]);
                    }
                    run[left * spots + s] = gain;
                    // A service earns nothing while it starts, and its move leaves no gap.
                    let lost = |hours: f64| {
                        let hours = hours.min(length);
                        if self.job {
                            hours
                        } else {
                            hours * (1.0 + rate)
                        }
                    };
                    let to_first = gain - lost(spot.first) - spot.dollars;
                    let to_again = gain - if self.job { spot.again } else { 0.0 } - spot.dollars;
                    let here = s as u16 + 1;
                    if to_first > first[left] {
                        (first[left], first_to[step * width + left]) = (to_first, here);
                    }
                    if to_again > again[left] {
                        (again[left], again_to[step * width + left]) = (to_again, here);
                    }
                }
            }
            if let Some(table) = keep.as_deref_mut() {
                let at = step * width * spots;
                for (kept, gain) in table.run[at..at + width * spots].iter_mut().zip(&run) {
                    *kept = *gain as f32;
                }
                table.again[step * width..(step + 1) * width].copy_from_slice(&again);
            }
            std::mem::swap(&mut run, &mut run_next);
            (again_next, first_next) = (again, first);
        }
        let stays = |step: usize, left: usize, s: usize| stays[(step * width + left) * spots + s];
        self.walk(room, usage, &first_to, &again_to, stays);
        first_next[units]
    }

    fn rent(&self, spot: &Spot, room: &Room<'_>, k: usize, hours: f64) -> f64 {
        let at = room.index(spot.place, k);
        let prices = &room.prices[at..at + RESOURCES];
        prices
            .iter()
            .zip(spot.takes)
            .map(|(p, t)| p * t)
            .sum::<f64>()
            * hours
    }

    /// Follows the best plan and notes the room that it takes.
    fn walk(
        &self,
        room: &Room<'_>,
        usage: &mut [f64],
        first_to: &[u16],
        again_to: &[u16],
        stays: impl Fn(usize, usize, usize) -> bool,
    ) {
        let width = self.units + 1;
        let (mut at, mut placed, mut left) = (None::<usize>, false, self.units);
        for step in 0..self.until - self.from {
            if left == 0 {
                return;
            }
            let k = self.from + step;
            let spot = at.or_else(|| {
                let to = if placed { again_to } else { first_to };
                usize::from(to[step * width + left]).checked_sub(1)
            });
            let Some(s) = spot else { continue };
            placed = true;
            let hours = match (self.job, left) {
                (true, 1) => self.last_unit,
                (true, _) => STEP,
                (false, _) => self.lengths[k],
            };
            let place = room.index(self.spots[s].place, k);
            let used = usage[place..place + RESOURCES].iter_mut();
            for (used, takes) in used.zip(self.spots[s].takes) {
                *used += takes * hours;
            }
            at = stays(step, left, s).then_some(s);
            if self.job {
                left -= 1;
            }
        }
    }
}

/// Looks up what one workload would meet at the places of a scenario.
struct Looker<'a> {
    scenario: &'a Scenario,
    workload: &'a Workload,
    weights: Weights,
    steps: usize,
    from: usize,
    until: usize,
}

impl Looker<'_> {
    fn pool(&self, index: usize) -> Option<Spot> {
        let pool: &Pool = &self.scenario.pools[index];
        let node = pool.offer.node(pool.offer.id.clone());
        self.spot(
            At::Pool(index),
            node,
            &pool.obtainable,
            Some(&pool.price),
            pool.network_gbps,
        )
    }

    fn device(&self, index: usize) -> Option<Spot> {
        let device = &self.scenario.devices[index];
        let node = device.node.clone();
        self.spot(
            At::Device(index),
            node,
            &device.up,
            None,
            device.network_gbps,
        )
    }

    fn spot(
        &self,
        at: At,
        mut node: Node,
        open: &Path,
        price: Option<&Path>,
        network_gbps: f64,
    ) -> Option<Spot> {
        let request = &self.workload.request;
        let matrix = &self.scenario.latency;
        let rtt = latency::client_rtt_ms(matrix, request, &node.location);
        (node.ready, node.schedulable) = (true, true);
        let mut rate = vec![None; self.steps];
        let mut any = false;
        for (k, rate) in rate.iter_mut().enumerate().take(self.until).skip(self.from) {
            let (begin, end) = (k as f64 * STEP, (k + 1) as f64 * STEP);
            // What is reclaimed earns until it dies.
            if most(open, begin - NOTICE_HOURS, end) <= 0.0 {
                continue;
            }
            // Who is there stays when the price passes the bound on cost, so the lowest one counts.
            if let Some(price) = price {
                node.price_per_hour = least(price, 0.0, self.scenario.horizon);
            }
            if first_rejection(request, &Candidate::from(&node)).is_some() {
                continue;
            }
            if let Some(price) = price {
                node.price_per_hour = least(price, begin, end);
            }
            let candidate = Candidate::from(&node);
            *rate = Some(self.rate(&candidate, rtt, begin, end));
            any = true;
        }
        if !any {
            return None;
        }
        let kept = (0..self.steps).map(|k| {
            let begin = k as f64 * STEP;
            most(open, begin - NOTICE_HOURS, begin) > 0.0
        });
        let again = self.workload.load_hours + data_hours(self.scenario, request, &node.location);
        let image = if self.image_is_shared() {
            0.0
        } else {
            transfer_hours(self.workload.image_gib, network_gbps)
        };
        let place = match at {
            At::Device(device) => device,
            At::Pool(pool) => self.scenario.devices.len() + pool,
        };
        Some(Spot {
            at,
            place,
            takes: takes(request, &node),
            kept: kept.collect(),
            first: again + image,
            again,
            dollars: dollars(&self.weights, cost::egress_usd(request, &node.location)),
            rate,
        })
    }

    fn rate(&self, candidate: &Candidate<'_>, rtt: Option<f64>, begin: f64, end: f64) -> f64 {
        let request = &self.workload.request;
        let cost =
            cost::replica_share(request, candidate).map_or(0.0, |usd| self.weights.cost_term(usd));
        if request.workload_type == WorkloadType::Job {
            return cost + self.weights.latency / JOB_P99_MS;
        }
        let all = candidate.allocatable.cpu_millis.max(1) as f64;
        let busy = least(&self.workload.load, begin, end) * request.resources.cpu_millis as f64;
        let latency = rtt.map_or(0.0, |rtt| {
            let p99 = rtt * latency::P99_FACTOR
                + latency::sojourn_p99_ms(latency::service_ms(request), busy / all);
            self.weights.latency_term(p99)
        });
        cost + latency
    }

    /// Another workload may have brought the image before.
    fn image_is_shared(&self) -> bool {
        let images = &self.workload.request.images;
        let others = self.scenario.workloads.iter();
        let name = &self.workload.request.replica;
        others
            .filter(|w| w.request.replica != *name)
            .any(|w| w.request.images.iter().any(|i| images.contains(i)))
    }
}

/// Reward lost for dollars beyond the hourly cost.
fn dollars(weights: &Weights, usd: f64) -> f64 {
    weights.extra_usd_term(usd)
}

/// Shares of a node's CPU and GPUs that a request takes.
pub fn takes(request: &Request, node: &Node) -> [f64; RESOURCES] {
    let cpu = request.resources.cpu_millis as f64 / node.allocatable.cpu_millis.max(1) as f64;
    let asked = f64::from(request.gpu.count) * f64::from(request.gpu.millis.clamp(1, 1000));
    let gpu = asked / (node.gpus.len().max(1) as f64 * 1000.0);
    let memory =
        request.resources.memory_bytes as f64 / node.allocatable.memory_bytes.max(1) as f64;
    [cpu, gpu, memory]
}

/// Lowest value of a path between two times.
pub(super) fn least(path: &Path, begin: f64, end: f64) -> f64 {
    fold(path, begin, end, f64::min)
}

/// Highest value of a path between two times.
fn most(path: &Path, begin: f64, end: f64) -> f64 {
    fold(path, begin, end, f64::max)
}

pub(super) fn fold(path: &Path, begin: f64, end: f64, pick: fn(f64, f64) -> f64) -> f64 {
    let mut found = path.at(begin);
    let mut at = begin;
    while let Some(next) = path.next_change(at).filter(|t| *t < end) {
        found = pick(found, path.at(next));
        at = next;
    }
    found
}
