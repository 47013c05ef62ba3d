//! The snapshot that schedulers see, kept up to date in place.

use hyperion_placement::model::{CapacityType, Node, Offer, Request, Snapshot, Supply};

use super::host::{Host, Promise};
use crate::scenario::{Path, Pool, Scenario};

/// Hours between two looks at what pools did of late.
pub const SUPPLY_TICK: f64 = 1.0 / 12.0;
/// Hours over which obtainability is counted.
const OBTAINABLE_HOURS: f64 = 24.0;
/// Hours over which reclaims are counted.
const RECLAIM_HOURS: f64 = 72.0;

/// The snapshot and which host or pool its entries are.
#[derive(Debug, Clone)]
pub struct View {
    /// What schedulers see.
    pub snapshot: Snapshot,
    /// Host of each node of the snapshot.
    pub hosts: Vec<usize>,
    /// Pool of each offer of the snapshot.
    pub pools: Vec<usize>,
    /// Offers that are not to be had now, by pool.
    parked: Vec<Option<Offer>>,
    history: Vec<History>,
    tick: i64,
}

impl View {
    /// No nodes, all offers.
    pub fn new(scenario: &Scenario) -> Self {
        let offers = scenario.pools.iter().map(|pool| Offer {
            price_per_hour: pool.price.at(0.0),
            startup_s: (pool.boot_hours * 3600.0) as f32,
            ..pool.offer.clone()
        });
        Self {
            snapshot: Snapshot {
                version: 0,
                nodes: Vec::new(),
                offers: offers.collect(),
                latency: scenario.latency.clone(),
                ..Snapshot::default()
            },
            hosts: Vec::new(),
            pools: (0..scenario.pools.len()).collect(),
            parked: vec![None; scenario.pools.len()],
            history: scenario.pools.iter().map(History::new).collect(),
            tick: i64::MIN,
        }
    }

    fn position(&self, id: &str) -> Result<usize, usize> {
        self.snapshot.nodes.binary_search_by(|n| (*n.id).cmp(id))
    }

    /// The node of a host that schedulers see.
    pub fn find(&self, host: &Host) -> Option<&Node> {
        let at = self.position(&host.id).ok()?;
        self.snapshot.nodes.get(at)
    }

    /// The same, to change it.
    pub fn node(&mut self, host: &Host) -> Option<&mut Node> {
        let at = self.position(&host.id).ok()?;
        self.snapshot.nodes.get_mut(at)
    }

    /// Shows a node.
    pub fn show(&mut self, index: usize, node: Node) {
        if let Err(at) = self.position(&node.id) {
            self.snapshot.nodes.insert(at, node);
            self.hosts.insert(at, index);
        }
    }

    /// Takes a node out of sight.
    pub fn hide(&mut self, host: &Host) -> Option<Node> {
        let at = self.position(&host.id).ok()?;
        self.hosts.remove(at);
        Some(self.snapshot.nodes.remove(at))
    }

    /// Takes the room of a promise from a node, or gives it back.
    pub fn promise(&mut self, host: &Host, request: &Request, promise: &Promise, take: bool) {
        let Some(node) = self.node(host) else { return };
        let asked = request.resources;
        let change = |free: &mut u64, asked: u64| {
            *free = if take {
                free.saturating_sub(asked)
            } else {
                *free + asked
            };
        };
        change(&mut node.free.cpu_millis, asked.cpu_millis);
        change(&mut node.free.memory_bytes, asked.memory_bytes);
        for (uuid, millis) in &promise.gpus {
            if let Some(gpu) = node.gpus.iter_mut().find(|g| g.uuid == *uuid) {
                gpu.free_millis = if take {
                    gpu.free_millis.saturating_sub(*millis)
                } else {
                    gpu.free_millis + millis
                };
            }
        }
    }

    /// Offers a pool, or stops offering it.
    pub fn offer(&mut self, pool: usize, open: bool) {
        match (self.pools.binary_search(&pool), open) {
            (Ok(at), false) => {
                self.pools.remove(at);
                self.parked[pool] = Some(self.snapshot.offers.remove(at));
            }
            (Err(at), true) => {
                if let Some(offer) = self.parked[pool].take() {
                    self.pools.insert(at, pool);
                    self.snapshot.offers.insert(at, offer);
                }
            }
            _ => {}
        }
    }

    /// The offer of a pool, whether it is to be had now or not.
    pub fn any_offer(&mut self, pool: usize) -> Option<&mut Offer> {
        match self.pools.binary_search(&pool) {
            Ok(at) => self.snapshot.offers.get_mut(at),
            Err(_) => self.parked.get_mut(pool)?.as_mut(),
        }
    }

    /// Looks at what pools did of late, at most once in [`SUPPLY_TICK`]; never at what they will
    /// do.
    pub fn look(&mut self, now: f64, hosts: &[Host]) {
        let tick = (now / SUPPLY_TICK).floor() as i64;
        if tick == self.tick {
            return;
        }
        self.tick = tick;
        let then = tick as f64 * SUPPLY_TICK;
        for pool in 0..self.history.len() {
            let supply = self.history[pool].supply(then);
            if let Some(offer) = self.any_offer(pool) {
                supply.write(&mut offer.supply);
            }
        }
        for (node, host) in self.snapshot.nodes.iter_mut().zip(&self.hosts) {
            if let Some(history) = self.history.get(hosts[*host].shape) {
                history.supply(then).write(&mut node.supply);
            }
        }
    }
}

/// What a pool was seen to do.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Seen {
    obtainable: f32,
    reclaims_per_hour: f32,
}

impl Seen {
    fn write(self, supply: &mut Supply) {
        supply.obtainable = self.obtainable;
        supply.reclaims_per_hour = self.reclaims_per_hour;
    }
}

/// A pool's path with running sums, so that a look costs two searches.
#[derive(Debug, Clone)]
struct History {
    times: Vec<f64>,
    values: Vec<f64>,
    /// Hours obtainable before each point, counted from the first.
    hours: Vec<f64>,
    /// Times that it turned to 0 up to each point.
    drops: Vec<u32>,
    spot: bool,
}

impl History {
    fn new(pool: &Pool) -> Self {
        let Path { points } = &pool.obtainable;
        let (mut hours, mut drops) = (Vec::with_capacity(points.len()), Vec::new());
        let (mut sum, mut count) = (0.0, 0);
        let mut before: Option<(f64, f64)> = None;
        for (time, value) in points {
            if let Some((t, v)) = before {
                sum += if v > 0.0 { time - t } else { 0.0 };
                count += u32::from(v > 0.0 && *value <= 0.0);
            }
            hours.push(sum);
            drops.push(count);
            before = Some((*time, *value));
        }
        Self {
            times: points.iter().map(|p| p.0).collect(),
            values: points.iter().map(|p| p.1).collect(),
            hours,
            drops,
            spot: pool.offer.capacity_type == CapacityType::Spot,
        }
    }

    /// Hours obtainable and times turned to 0 until a time, counted from the first point; the
    /// first value also holds before it.
    fn until(&self, hour: f64) -> (f64, u32) {
        let Some(first) = self.times.first() else {
            return (0.0, 0);
        };
        let open = |at: usize| self.values[at] > 0.0;
        match self.times.partition_point(|t| *t <= hour) {
            0 => (if open(0) { hour - first } else { 0.0 }, 0),
            after => {
                let at = after - 1;
                let since = if open(at) { hour - self.times[at] } else { 0.0 };
                (self.hours[at] + since, self.drops[at])
            }
        }
    }

    fn supply(&self, now: f64) -> Seen {
        let (open, drops) = self.until(now);
        let (open_day, _) = self.until(now - OBTAINABLE_HOURS);
        let (open_before, drops_before) = self.until(now - RECLAIM_HOURS);
        let hours = open - open_before;
        let reclaims = f64::from(drops - drops_before);
        Seen {
            obtainable: ((open - open_day) / OBTAINABLE_HOURS) as f32,
            // What is bought on demand is not reclaimed, however hard it is to get more of it.
            reclaims_per_hour: if self.spot && hours > 0.0 {
                (reclaims / hours) as f32
            } else {
                0.0
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_sees_the_share_and_the_reclaims_of_the_past_only() {
        let history = History {
            spot: true,
            ..History::new(&super::super::tests::pool(
                "aws/us-east-1/a/m/spot",
                1.0,
                vec![(-100.0, 1.0), (-12.0, 0.0), (-6.0, 1.0), (3.0, 0.0)],
            ))
        };
        let seen = history.supply(0.0);
        assert_eq!(seen.obtainable, 0.75);
        assert_eq!(seen.reclaims_per_hour, (1.0_f64 / 66.0) as f32);
        assert_eq!(history.supply(2.9).reclaims_per_hour, (1.0 / 66.0) as f32);
    }
}
