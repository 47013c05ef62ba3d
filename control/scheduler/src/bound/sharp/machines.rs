//! Machines, and what sets of workloads (teams) earn together on one of them, by step.

use hyperion_placement::cost;
use hyperion_placement::filter::{Candidate, first_rejection};
use hyperion_placement::latency;
use hyperion_placement::model::{CapacityType, Node, Request, WorkloadType};
use hyperion_placement::reward::{JOB_P99_MS, RewardWeights, Weights};

use super::super::plan::{fold, least, takes};
use super::{PRICED, STEP};
use crate::scenario::{Path, Pool, Scenario};
use crate::sim::NOTICE_HOURS;
use crate::sim::random::boot_factor;

/// What all instances of a pool, or one device, have in common.
pub struct Machine {
    /// A node of it.
    pub node: Node,
    /// Gigabits per second at which images arrive.
    pub network_gbps: f64,
    /// Machines there may be at once.
    pub count: f64,
    /// Least and most hours to boot one; 0 for devices.
    pub boot_hours: f64,
    pub longest_boot: f64,
    /// By step: share of it in which a machine may run.
    pub open: Vec<f64>,
    /// By step: a machine dies just before a look in it.
    pub dies: Vec<bool>,
    /// By step: the same, or it gets notice.
    pub closes: Vec<bool>,
    /// By step: lowest price, US dollars per hour.
    pub price: Vec<f64>,
    /// Who could be there.
    pub members: Vec<Member>,
    /// Sets of two and more that fit.
    teams: Vec<Team>,
    /// Together some earn more than each alone.
    shared: bool,
    /// It is owned.
    pub owned: bool,
}

/// A workload that could be on a machine.
pub struct Member {
    /// Its index.
    pub workload: usize,
    /// Dominant share.
    pub share: f64,
    /// By step: what it earns there alone; none where it is not in the system.
    pub alone: Vec<f64>,
    /// By step: what has to be added where it is there and does nothing yet, beyond what the team
    /// is told to earn.
    pub coming: Vec<f64>,
    /// By step: the same where its work is going to be lost.
    pub lost: Vec<f64>,
    /// Least it may be paid for being there, so that no team gains anything at first.
    first: f64,
}

struct Team {
    members: Vec<usize>,
    /// By step: what they earn together beyond the sum of each alone.
    gain: Vec<f64>,
}

/// What all lookups need.
pub struct World<'a> {
    pub scenario: &'a Scenario,
    pub weights: &'a RewardWeights,
    pub steps: usize,
}

impl World<'_> {
    /// First step and the step after the last in which a workload may be in the system.
    pub fn life(&self, workload: usize) -> (usize, usize) {
        let end = self.end(workload);
        let first = (self.scenario.workloads[workload].arrival.max(0.0) / STEP) as usize;
        (first, ((end / STEP).ceil() as usize).min(self.steps))
    }

    /// When it is deleted at the latest, hours.
    pub fn end(&self, workload: usize) -> f64 {
        let w = &self.scenario.workloads[workload];
        match w.request.workload_type {
            WorkloadType::Service => w.end.min(self.scenario.horizon),
            WorkloadType::Job => self.scenario.horizon,
        }
    }

    fn request(&self, workload: usize) -> &Request {
        &self.scenario.workloads[workload].request
    }

    fn weights(&self, workload: usize) -> Weights {
        self.weights.of(self.request(workload).goal)
    }

    /// All machines that somebody could use.
    pub fn machines(&self) -> Vec<Machine> {
        let pools = self.scenario.pools.iter().enumerate();
        let pools = pools.filter_map(|(i, p)| self.pool(i, p));
        let devices = self.scenario.devices.iter().filter_map(|d| {
            let price = Path::constant(d.node.price_per_hour);
            let none = (1.0, (0.0, 0.0), d.network_gbps);
            self.machine(d.node.clone(), none, &d.up, 0.0, &price)
        });
        pools.chain(devices).collect()
    }

    fn pool(&self, index: usize, pool: &Pool) -> Option<Machine> {
        let scenario = self.scenario;
        // Each launch takes its workload half a minute at least, so there are no more than these.
        let launches = scenario.horizon * 120.0 * scenario.workloads.len() as f64;
        let factors = (0..launches as u64).map(|n| boot_factor(scenario.seed, index as u64, n));
        let boot = factors.fold((1.0, 1.0), |(least, most): (f64, f64), factor| {
            (least.min(factor), most.max(factor))
        });
        let boot = (pool.boot_hours * boot.0, pool.boot_hours * boot.1);
        let node = pool.offer.node(pool.offer.id.clone());
        let of = (f64::from(pool.limit), boot, pool.network_gbps);
        if pool.offer.capacity_type == CapacityType::Spot {
            return self.machine(node, of, &pool.obtainable, NOTICE_HOURS, &pool.price);
        }
        self.machine(node, of, &Path::constant(1.0), 0.0, &pool.price)
    }

    fn machine(
        &self,
        mut node: Node,
        (count, boot, network_gbps): (f64, (f64, f64), f64),
        up: &Path,
        notice: f64,
        price: &Path,
    ) -> Option<Machine> {
        (node.ready, node.schedulable, node.free) = (true, true, node.allocatable);
        let span = |k: usize| (k as f64 * STEP, (k + 1) as f64 * STEP);
        let mut machine = Machine {
            network_gbps,
            count,
            boot_hours: boot.0,
            longest_boot: boot.1,
            open: (0..self.steps)
                .map(|k| alive(up, notice, span(k)))
                .collect(),
            dies: vec![false; self.steps + 2],
            closes: vec![false; self.steps + 2],
            price: (0..self.steps)
                .map(|k| least(price, span(k).0, span(k).1))
                .collect(),
            members: Vec::new(),
            teams: Vec::new(),
            shared: false,
            owned: node.capacity_type == CapacityType::Owned,
            node,
        };
        for close in closings(up, self.scenario.horizon) {
            mark(&mut machine.closes, close, close + notice);
            mark(&mut machine.dies, close + notice, close + notice);
        }
        for workload in 0..self.scenario.workloads.len() {
            machine
                .members
                .extend(self.member(&machine, workload, price));
        }
        if machine.members.is_empty() {
            return None;
        }
        self.form(&mut machine);
        Some(machine)
    }

    fn member(&self, machine: &Machine, workload: usize, price: &Path) -> Option<Member> {
        let request = self.request(workload);
        let (from, until) = self.life(workload);
        if !(from..until).any(|k| machine.open[k] > 0.0) {
            return None;
        }
        // Who is there stays when the price passes the limit of cost, so the lowest one counts.
        let mut node = machine.node.clone();
        node.price_per_hour = least(price, 0.0, self.scenario.horizon);
        if first_rejection(request, &Candidate::from(&node)).is_some() {
            return None;
        }
        node.price_per_hour = 1.0;
        Some(Member {
            workload,
            share: cost::replica_share(request, &Candidate::from(&node)).unwrap_or(1.0),
            alone: Vec::new(),
            coming: Vec::new(),
            lost: Vec::new(),
            first: 0.0,
        })
    }

    /// Finds all teams that fit and what they earn.
    fn form(&self, machine: &mut Machine) {
        let sets = fitting(machine, self);
        let count = machine.members.len();
        let steps = self.steps;
        // Thousandths of cores that each keeps busy at the least, and where it is in the system.
        let busy: Vec<Vec<f64>> = machine
            .members
            .iter()
            .map(|m| {
                let load = &self.scenario.workloads[m.workload].load;
                let asked = self.request(m.workload).resources.cpu_millis as f64;
                let (from, until) = self.life(m.workload);
                (0..steps)
                    .map(|k| {
                        let (begin, end) = (k as f64 * STEP, (k + 1) as f64 * STEP);
                        if (from..until).contains(&k) {
                            least(load, begin, end).max(0.0) * asked
                        } else {
                            f64::NAN
                        }
                    })
                    .collect()
            })
            .collect();
        let mut alone = vec![vec![f64::NEG_INFINITY; steps]; count];
        let mut lowest = vec![vec![f64::INFINITY; steps]; count];
        let mut relief = vec![vec![0.0_f64; steps]; count];
        let mut best = vec![0.0_f64; count];
        let mut teams = Vec::new();
        for set in &sets {
            let shares: f64 = set.iter().map(|m| machine.members[*m].share).sum();
            let mut gain = vec![f64::NEG_INFINITY; steps];
            for (k, gain) in gain.iter_mut().enumerate() {
                let all: f64 = set.iter().map(|m| busy[*m][k]).sum();
                if all.is_nan() {
                    continue;
                }
                let mut sum = 0.0;
                for m in set {
                    let cost = self.cost_term(machine, *m, shares, k);
                    let latency = self.latency_term(machine, *m, all);
                    if set.len() == 1 {
                        alone[*m][k] = cost + latency;
                    }
                    let own = self.cost_term(machine, *m, machine.members[*m].share, k);
                    lowest[*m][k] = lowest[*m][k].min(own + latency);
                    // What the others gain while this one is there and not busy yet.
                    let others = set.iter().filter(|o| *o != m).map(|o| {
                        self.latency_term(machine, *o, all - busy[*m][k])
                            - self.latency_term(machine, *o, all)
                    });
                    relief[*m][k] = relief[*m][k].max(others.sum::<f64>());
                    best[*m] = best[*m].max(cost + latency - alone[*m][k]);
                    sum += cost + latency - alone[*m][k];
                }
                *gain = sum;
            }
            if set.len() > 1 {
                machine.shared |= gain.iter().any(|g| *g > 1e-9);
                teams.push(Team {
                    members: set.clone(),
                    gain,
                });
            }
        }
        machine.teams = teams;
        for (m, member) in machine.members.iter_mut().enumerate() {
            member.lost = lowest[m].iter().map(|low| -low).collect();
            let coming = member.lost.iter().zip(&relief[m]);
            member.coming = coming.map(|(lost, relief)| lost + relief).collect();
            member.alone = std::mem::take(&mut alone[m]);
            member.first = -best[m];
        }
    }

    fn cost_term(&self, machine: &Machine, member: usize, shares: f64, k: usize) -> f64 {
        let member = &machine.members[member];
        let part = if machine.owned {
            member.share
        } else {
            member
                .share
                .max(member.share / shares.max(f64::MIN_POSITIVE))
        };
        self.weights(member.workload)
            .cost_term(machine.price[k] * part.min(1.0))
    }

    fn latency_term(&self, machine: &Machine, member: usize, busy: f64) -> f64 {
        let workload = machine.members[member].workload;
        let (request, weights) = (self.request(workload), self.weights(workload));
        if request.workload_type == WorkloadType::Job {
            return weights.latency / JOB_P99_MS;
        }
        let all = machine.node.allocatable.cpu_millis.max(1) as f64;
        let matrix = &self.scenario.latency;
        latency::client_rtt_ms(matrix, request, &machine.node.location).map_or(0.0, |rtt| {
            let queue = latency::sojourn_p99_ms(latency::service_ms(request), busy / all);
            weights.latency_term(rtt * latency::P99_FACTOR + queue)
        })
    }
}

/// All sets of members that fit on one machine, smaller ones first.
fn fitting(machine: &Machine, world: &World<'_>) -> Vec<Vec<usize>> {
    let count = machine.members.len();
    let mut sets: Vec<Vec<usize>> = (0..count).map(|m| vec![m]).collect();
    let takes: Vec<_> = machine
        .members
        .iter()
        .map(|m| takes(world.request(m.workload), &machine.node))
        .collect();
    let mut at = 0;
    while at < sets.len() {
        let last = sets[at].last().copied().unwrap_or(0);
        for next in last + 1..count {
            let set: Vec<usize> = sets[at].iter().copied().chain([next]).collect();
            let life = |m: &usize| world.life(machine.members[*m].workload);
            let from = set.iter().map(|m| life(m).0).max();
            let until = set.iter().map(|m| life(m).1).min();
            let fits = (0..takes[0].len())
                .all(|r| set.iter().map(|m| takes[*m][r]).sum::<f64>() <= 1.0 + 1e-9);
            if fits && from < until {
                sets.push(set);
            }
        }
        at += 1;
    }
    sets
}

impl Machine {
    /// Payments for being there that let no team gain anything, by member and priced time.
    pub fn first_prices(&self, times: usize) -> Vec<f64> {
        let of = |m: &Member| std::iter::repeat_n(if self.shared { m.first } else { 0.0 }, times);
        self.members.iter().flat_map(of).collect()
    }

    /// The most that teams earn beyond their members alone and what those pay, over the episode.
    /// Adds the hours of each member to `used`. Both by member and priced time.
    pub fn best(&self, prices: &[f64], used: &mut [f64]) -> f64 {
        let times = prices.len() / self.members.len();
        let mut sum = 0.0;
        for (k, open) in self.open.iter().enumerate() {
            if *open <= 0.0 {
                continue;
            }
            let time = priced_time(k).min(times - 1);
            let price = |m: usize| prices[m * times + time];
            let single = (0..self.members.len())
                .filter(|m| self.members[*m].alone[k] > f64::NEG_INFINITY)
                .map(|m| (m, price(m)))
                .max_by(|a, b| a.1.total_cmp(&b.1));
            let team = self
                .teams
                .iter()
                .map(|t| {
                    (
                        t,
                        t.gain[k] + t.members.iter().map(|m| price(*m)).sum::<f64>(),
                    )
                })
                .max_by(|a, b| a.1.total_cmp(&b.1));
            let weight = STEP * open * self.count;
            let (alone, together) = (
                single.map_or(0.0, |s| s.1),
                team.as_ref().map_or(0.0, |t| t.1),
            );
            if alone.max(together) <= 0.0 {
                continue;
            }
            sum += weight * alone.max(together);
            match (single, team) {
                (_, Some((team, gain))) if gain > alone => {
                    for m in &team.members {
                        used[m * times + time] += weight;
                    }
                }
                (Some((m, _)), _) => used[m * times + time] += weight,
                _ => {}
            }
        }
        sum
    }

    /// Moves prices by what is asked for beyond what teams give.
    pub fn directions(&self, prices: &[f64], asked: &[f64], used: &[f64], to: &mut [f64]) {
        let times = prices.len() / self.members.len();
        for (time, room) in self.room(times).into_iter().enumerate() {
            let of = |m: usize| m * times + time;
            let members = || 0..self.members.len();
            let wanted: f64 = members().map(|m| asked[of(m)]).sum();
            // Where nothing is short and nothing is paid, nothing has to change.
            let free =
                !self.shared && wanted <= room + 1e-9 && members().all(|m| prices[of(m)] == 0.0);
            for m in members() {
                to[of(m)] = if free {
                    0.0
                } else {
                    asked[of(m)] - used[of(m)]
                };
            }
        }
    }

    /// Whether prices may be negative: only where being together is worth something.
    pub const fn pays(&self) -> bool {
        self.shared
    }

    fn room(&self, times: usize) -> Vec<f64> {
        let mut room = vec![0.0; times];
        for (k, open) in self.open.iter().enumerate() {
            room[priced_time(k).min(times - 1)] += STEP * open * self.count;
        }
        room
    }
}

/// The priced time of a step.
pub fn priced_time(step: usize) -> usize {
    ((step as f64 + 0.5) * STEP / PRICED) as usize
}

/// Share of a span in which a machine may run that lives on for `notice` hours.
fn alive(up: &Path, notice: f64, (begin, end): (f64, f64)) -> f64 {
    let mut hours = 0.0;
    let mut at = begin - notice;
    let mut until = begin;
    while at < end {
        let next = up.next_change(at).map_or(end, |t| t.min(end));
        if up.at(at) > 0.0 {
            let (from, to) = (at.max(until), (next + notice).min(end));
            hours += (to - from).max(0.0);
            until = until.max(to);
        }
        at = next;
    }
    (hours / (end - begin)).min(1.0)
}

/// When a path turns to 0, from the beginning of the episode to a time.
fn closings(up: &Path, horizon: f64) -> Vec<f64> {
    let mut found = Vec::new();
    let mut at = 0.0;
    while let Some(next) = up.next_change(at).filter(|t| *t < horizon) {
        if up.at(at) > 0.0 && up.at(next) <= 0.0 {
            found.push(next);
        }
        at = next;
    }
    found
}

/// Marks the steps whose look may be the first one after something that happens between two times.
pub fn mark(steps: &mut [bool], from: f64, to: f64) {
    let first = (from / STEP - 1e-9).floor().max(0.0) as usize;
    let last = (to / STEP + 1e-9).floor() as usize + 1;
    for step in steps.iter_mut().take(last + 1).skip(first) {
        *step = true;
    }
}

/// All times at which a spot pool or a device ends, with the notice.
pub fn endings(scenario: &Scenario) -> Vec<f64> {
    let spot = |p: &&Pool| p.offer.capacity_type == CapacityType::Spot;
    let pools = scenario.pools.iter().filter(spot).map(|p| &p.obtainable);
    let devices = scenario.devices.iter().map(|d| &d.up);
    pools
        .chain(devices)
        .flat_map(|path| closings(path, scenario.horizon))
        .flat_map(|t| [t, t + NOTICE_HOURS])
        .collect()
}

/// Whether a path is ever 0 in the episode.
pub fn ever_closed(path: &Path, horizon: f64) -> bool {
    fold(path, 0.0, horizon, f64::min) <= 0.0
}
