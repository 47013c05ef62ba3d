//! One workload's best plan, as looks at regular times would see it.

use hyperion_placement::cost;
use hyperion_placement::model::WorkloadType;

use super::STEP;
use super::machines::{Machine, World, endings, ever_closed, mark, priced_time};
use super::table::{Paid, Table};
use crate::sim::random::phase;
use crate::sim::{
    COOL_DOWN_HOURS, REFUSAL_HOURS, SimConfig, WAIT_PENALTY, data_hours, transfer_hours,
};

/// Weights of a look at work that are tried.
const WEIGHTS: usize = 5;

/// A place where the workload could be.
pub struct Place {
    /// Machine, and the member that the workload is there.
    pub machine: usize,
    pub member: usize,
    /// Looks that it is on its way for, the first time and again.
    pub first: f64,
    pub again: f64,
    /// Looks after which it is there at the latest, as far as that makes a difference: who is on
    /// the way to others makes the instance cheaper for them.
    pub longest: usize,
    /// Mean reward per look while it is open.
    pub rate: f64,
    /// Reward lost for the dollars of a start.
    pub dollars: f64,
    /// By step: reward lost per hour for being paid while another copy serves.
    pub second: Vec<f64>,
    /// Its mean per look.
    pub usual_second: f64,
    /// By step: the next one at which a machine closes, and dies.
    pub closing: Vec<usize>,
    pub death: Vec<usize>,
}

/// A workload with all places where it could be.
pub struct Planner {
    pub places: Vec<Place>,
    pub job: bool,
    /// First look, with the share of the first looks that are one later; the same of the end.
    pub from: (usize, f64),
    pub until: (usize, f64),
    /// By step: it may leave where it runs.
    pub free: Vec<bool>,
    /// Looks that see a job at work.
    pub units: usize,
    /// The hours of work in looks.
    pub work: f64,
    /// Looks for which work may be lost.
    pub unsaved: usize,
    /// Reward that a look more or less at work is weighed with, and whether a look more or less on
    /// the way costs what the place earns, beside the wait. Any values give a bound.
    pub usual: f64,
    pub eager: bool,
}

impl Planner {
    /// Looks everything up.
    pub fn new(
        world: &World<'_>,
        machines: &[Machine],
        workload: usize,
        config: &SimConfig,
    ) -> Self {
        let scenario = world.scenario;
        let of = &scenario.workloads[workload];
        let request = &of.request;
        let weights = world.weights.of(request.goal);
        let mut places = Vec::new();
        for (index, machine) in machines.iter().enumerate() {
            let Some(member) = machine.members.iter().position(|m| m.workload == workload) else {
                continue;
            };
            let image = transfer_hours(of.image_gib, machine.network_gbps);
            let start = of.load_hours + data_hours(scenario, request, &machine.node.location);
            let others = || machine.members.iter().filter(|m| m.workload != workload);
            let same = others().any(|m| {
                let images = &scenario.workloads[m.workload].request.images;
                images.iter().any(|i| request.images.contains(i))
            });
            let (first, again) = if machine.owned {
                (start + if same { 0.0 } else { image }, start)
            } else {
                // Who is not alone may come to an instance that runs.
                let fresh = machine.boot_hours + image + start;
                let joined = start + if same { 0.0 } else { image };
                let hours = if others().next().is_some() {
                    joined
                } else {
                    fresh
                };
                (hours, hours)
            };
            let longest = if machine.pays() {
                ((machine.longest_boot + image + start) / STEP).ceil() as usize
            } else {
                0
            };
            let share = machine.members[member].share;
            let second: Vec<f64> = machine
                .price
                .iter()
                .map(|p| weights.extra_usd_term(p * share.min(1.0)))
                .collect();
            let open = (0..world.steps).filter(|k| machine.open[*k] > 0.0);
            let rates = open.map(|k| machine.members[member].alone[k]);
            let rates: Vec<f64> = rates.filter(|r| r.is_finite()).collect();
            places.push(Place {
                rate: STEP * rates.iter().sum::<f64>() / rates.len().max(1) as f64,
                machine: index,
                member,
                first: first / STEP,
                again: again / STEP,
                longest,
                dollars: weights.extra_usd_term(cost::egress_usd(request, &machine.node.location)),
                usual_second: STEP * second.iter().sum::<f64>() / second.len().max(1) as f64,
                second,
                closing: following(&machine.closes),
                death: following(&machine.dies),
            });
        }
        let job = request.workload_type == WorkloadType::Job;
        let saves = of.checkpoint_hours > 0.0;
        Self {
            job,
            from: looks(of.arrival.max(0.0)),
            until: looks(world.end(workload)),
            free: decisions(world, workload, config),
            units: if job {
                (of.work_hours / STEP - 1e-9).ceil().max(1.0) as usize
            } else {
                1
            },
            work: of.work_hours / STEP,
            usual: 0.0,
            eager: false,
            places,
            unsaved: if saves {
                (of.checkpoint_hours / STEP) as usize + 2
            } else {
                usize::MAX
            },
        }
    }

    /// Chooses what looks more or less are weighed with, so that the bound is low.
    pub fn tune(&mut self, machines: &[Machine], prices: &[Vec<f64>]) {
        let mut usual = vec![0.0];
        if self.job {
            usual.extend(self.places.iter().map(|p| p.rate.max(0.0)));
            usual.sort_by(|a, b| b.total_cmp(a));
            usual.dedup_by(|a, b| (*a - *b).abs() < 0.1 * *b);
            usual.truncate(WEIGHTS);
        }
        let mut best = (f64::INFINITY, self.usual, self.eager);
        for usual in usual {
            for eager in [false, true] {
                (self.usual, self.eager) = (usual, eager);
                let mut asked: Vec<_> = prices.iter().map(|p| vec![0.0; p.len()]).collect();
                let reward = self.best(machines, prices, &mut asked);
                if reward < best.0 {
                    best = (reward, usual, eager);
                }
            }
        }
        (_, self.usual, self.eager) = best;
    }

    /// Reward of the best plan with what places pay; adds the hours at each to `asked`. Looks come
    /// at all times alike, so those that see one step more or less count as often as they do.
    pub fn best(&self, machines: &[Machine], prices: &[Vec<f64>], asked: &mut [Vec<f64>]) -> f64 {
        if self.places.is_empty() {
            let looks = (self.until.0 - self.from.0) as f64 + self.until.1 - self.from.1;
            return WAIT_PENALTY * STEP * looks;
        }
        let (late, long) = (self.from.1, self.until.1);
        // Looks at shares of a step below `long` see one step more at the end, those below `late`
        // one less at the beginning.
        let both = late.min(long);
        let parts = [
            (self.from.0 + 1, self.until.0 + 1, both),
            (self.from.0 + 1, self.until.0, late - both),
            (self.from.0, self.until.0 + 1, long - both),
            (self.from.0, self.until.0, 1.0 - late.max(long)),
        ];
        let mut sum = 0.0;
        for until in [self.until.0, self.until.0 + 1] {
            let wanted = || parts.iter().filter(|p| p.1 == until && p.2 > 1e-12);
            if wanted().next().is_none() {
                continue;
            }
            let paid: Vec<Paid> = self
                .places
                .iter()
                .map(|p| self.paid(p, &machines[p.machine], &prices[p.machine], until))
                .collect();
            let table = Table::new(self, machines, &paid, until);
            for (from, _, weight) in wanted() {
                sum += weight * table.walk(*from, weight * STEP, asked);
            }
        }
        sum
    }

    fn paid(&self, place: &Place, machine: &Machine, prices: &[f64], until: usize) -> Paid {
        let member = &machine.members[place.member];
        let times = prices.len() / machine.members.len();
        let price = |k: usize| prices[place.member * times + priced_time(k).min(times - 1)];
        let there = |k: usize| machine.open[k] > 0.0 && member.alone[k] > f64::NEG_INFINITY;
        let at: Vec<f64> = (0..until)
            .map(|k| {
                if there(k) {
                    STEP * (member.alone[k] - price(k))
                } else {
                    f64::NEG_INFINITY
                }
            })
            .collect();
        let sums = |of: &dyn Fn(usize) -> f64| {
            let mut sums = vec![0.0; until + 1];
            for k in 0..until {
                let value = of(k);
                sums[k + 1] = sums[k] + if value.is_finite() { value } else { 0.0 };
            }
            sums
        };
        let wait = STEP * WAIT_PENALTY;
        let mut closed = vec![until; until + 1];
        for k in (0..until).rev() {
            closed[k] = if there(k) { closed[k + 1] } else { k };
        }
        Paid {
            coming: sums(&|k| at[k] + STEP * member.coming[k] + wait),
            moving: sums(&|k| at[k] + STEP * (member.coming[k] - place.second[k])),
            lost: sums(&|k| at[k] + STEP * member.lost[k]),
            old: sums(&|k| at[k].max(wait)),
            closed,
            at,
        }
    }
}

/// Whole looks in so many hours, and the rest.
fn looks(hours: f64) -> (usize, f64) {
    let looks = hours / STEP;
    let whole = looks.round();
    if (looks - whole).abs() < 1e-6 {
        (whole as usize, 0.0)
    } else {
        (looks as usize, looks.fract())
    }
}

/// By step: the next one behind it that is marked.
fn following(marks: &[bool]) -> Vec<usize> {
    let mut next = usize::MAX;
    let mut found = vec![next; marks.len()];
    for (k, marked) in marks.iter().enumerate().rev() {
        found[k] = next;
        if *marked {
            next = k;
        }
    }
    found
}

/// By step: the look in it may be the first after a decision about a replica that runs. Decisions
/// come every half hour, at the end of a machine, and a minute after each launch that is refused.
fn decisions(world: &World<'_>, workload: usize, config: &SimConfig) -> Vec<bool> {
    let scenario = world.scenario;
    let mut free = vec![false; world.steps + 2];
    let pools = scenario.pools.iter();
    let refusing = pools.filter(|p| ever_closed(&p.obtainable, scenario.horizon));
    let longer = refusing.count() as f64 * REFUSAL_HOURS;
    if longer >= COOL_DOWN_HOURS {
        // The first of them can be asked again before the last has refused, and so on.
        return vec![true; world.steps + 2];
    }
    for end in endings(scenario) {
        mark(&mut free, end, end + longer);
    }
    let period = config.reconsider_hours;
    if period > 0.0 {
        let mut at = phase(&scenario.workloads[workload].request.replica) * period;
        while at < scenario.horizon {
            mark(&mut free, at, at + longer);
            at += period;
        }
    }
    free
}
