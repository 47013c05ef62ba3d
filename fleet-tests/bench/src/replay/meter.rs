//! What all that costs, and how often it moves: an account that follows what runs, and shares no code
//! with the scheduler. Pods pay, not placements: while a service moves both of its copies do.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::fixed::Fixed;
use crate::cluster::check::facts::Asked;

/// Workload and number of a replica.
pub(super) type Replica = (String, u64);

/// Seconds of an hour.
const SECONDS: f64 = 3600.0;

/// What an hour of the window brought. Dollars are those of the hour.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Hour {
    /// Shares of machines that Pods take, at the price of the moment.
    pub usd: f64,
    /// The same shares at the machines' on-demand prices.
    pub on_demand_usd: f64,
    /// Had each replica stayed where it was first placed, and had nothing been taken back.
    pub stayed_usd: f64,
    /// The same workloads on us-east-1 on demand, by shares.
    pub static_usd: f64,
    /// All of each machine that runs one of our Pods.
    pub machines_usd: f64,
    /// Whole machines of the static fleet.
    pub static_machines_usd: f64,
    /// Seconds in which a replica did not run, and those of them without a placement.
    pub waiting_s: f64,
    pub unplaced_s: f64,
    /// Seconds in which a replica cost more than its limit: prices rise after it was placed.
    pub over_limit_s: f64,
    /// Seconds in which replicas were wanted.
    pub wanted_s: f64,
    /// Moves to a better place, and moves because the machine was gone.
    pub moves_chosen: u32,
    pub moves_forced: u32,
    pub price_changes: u32,
    pub machines_taken_back: u32,
    pub violations: u32,
}

/// A replica went from one machine to another.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Move {
    pub hour: f64,
    pub workload: String,
    pub from: String,
    pub to: String,
    /// The machine was gone.
    pub forced: bool,
}

#[derive(Debug, Clone)]
struct Machine {
    usd: f64,
    on_demand: f64,
    there: bool,
}

#[derive(Debug, Clone)]
struct Pod {
    replica: Replica,
    machine: String,
    share: f64,
    running: bool,
}

#[derive(Debug, Clone, Default)]
struct Wanted {
    /// Most US dollars per hour.
    limit: Option<f64>,
    placed: bool,
    /// Machine and share of the first Pod.
    first: Option<(String, f64)>,
    /// Machine of the last placement.
    last: Option<String>,
}

/// Dollars of a group of workloads, or dollars per hour.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Group {
    pub usd: f64,
    pub static_usd: f64,
}

/// US dollars per hour at a moment.
#[derive(Debug, Clone, Default, PartialEq)]
struct Rates {
    groups: BTreeMap<&'static str, Group>,
    usd: f64,
    on_demand: f64,
    stayed: f64,
    fixed: f64,
    machines: f64,
    fixed_machines: f64,
    waiting: f64,
    unplaced: f64,
    over_limit: f64,
    wanted: f64,
}

/// The account.
#[derive(Debug, Clone, Default)]
pub(super) struct Meter {
    now: f64,
    machines: BTreeMap<String, Machine>,
    pods: BTreeMap<String, Pod>,
    wanted: BTreeMap<Replica, Wanted>,
    fixed: Fixed,
    /// Which group each replica is of, also of those that have ended.
    group_of: BTreeMap<Replica, &'static str>,
    /// What each group cost so far.
    pub groups: BTreeMap<&'static str, Group>,
    /// One of each hour that has begun.
    pub hours: Vec<Hour>,
    pub moves: Vec<Move>,
    /// Hour, US dollars per hour of ours and of the static fleet: each change.
    pub course: Vec<(f64, f64, f64)>,
}

impl Meter {
    /// Nothing runs yet, at hour 0.
    pub(super) fn new(fixed: Fixed) -> Self {
        Self {
            fixed,
            hours: vec![Hour::default()],
            ..Self::default()
        }
    }

    /// Hours since the beginning.
    pub(super) fn now(&self) -> f64 {
        self.now
    }

    /// The hour that it is.
    pub(super) fn hour(&mut self) -> &mut Hour {
        let at = self.now.floor().max(0.0) as usize;
        if self.hours.len() <= at {
            self.hours.resize(at + 1, Hour::default());
        }
        let last = self.hours.len() - 1;
        &mut self.hours[at.min(last)]
    }

    /// All hours together.
    pub(super) fn total(&self) -> Hour {
        let mut all = Hour::default();
        for hour in &self.hours {
            all.usd += hour.usd;
            all.on_demand_usd += hour.on_demand_usd;
            all.stayed_usd += hour.stayed_usd;
            all.static_usd += hour.static_usd;
            all.machines_usd += hour.machines_usd;
            all.static_machines_usd += hour.static_machines_usd;
            all.waiting_s += hour.waiting_s;
            all.unplaced_s += hour.unplaced_s;
            all.over_limit_s += hour.over_limit_s;
            all.wanted_s += hour.wanted_s;
            all.moves_chosen += hour.moves_chosen;
            all.moves_forced += hour.moves_forced;
            all.price_changes += hour.price_changes;
            all.machines_taken_back += hour.machines_taken_back;
            all.violations += hour.violations;
        }
        all
    }

    /// Time goes on until `to`, with everything as it is. Time never goes back.
    pub(super) fn advance(&mut self, to: f64) {
        if to <= self.now {
            return;
        }
        let rates = self.rates();
        let before = self.course.last().map(|(_, usd, fixed)| (*usd, *fixed));
        if before != Some((rates.usd, rates.fixed)) {
            self.course.push((self.now, rates.usd, rates.fixed));
        }
        while self.now < to {
            let end = (self.now.floor() + 1.0).min(to);
            let hours = end - self.now;
            let hour = self.hour();
            hour.usd += rates.usd * hours;
            hour.on_demand_usd += rates.on_demand * hours;
            hour.stayed_usd += rates.stayed * hours;
            hour.static_usd += rates.fixed * hours;
            hour.machines_usd += rates.machines * hours;
            hour.static_machines_usd += rates.fixed_machines * hours;
            hour.waiting_s += rates.waiting * hours * SECONDS;
            hour.unplaced_s += rates.unplaced * hours * SECONDS;
            hour.over_limit_s += rates.over_limit * hours * SECONDS;
            hour.wanted_s += rates.wanted * hours * SECONDS;
            for (name, rate) in &rates.groups {
                let group = self.groups.entry(name).or_default();
                group.usd += rate.usd * hours;
                group.static_usd += rate.static_usd * hours;
            }
            self.now = end;
        }
    }

    fn rates(&self) -> Rates {
        let mut rates = Rates {
            fixed: self.fixed.usd_of_shares(),
            fixed_machines: self.fixed.usd_of_machines(),
            wanted: self.wanted.len() as f64,
            ..Rates::default()
        };
        let mut used = BTreeSet::new();
        let mut paid: BTreeMap<&Replica, f64> = BTreeMap::new();
        let mut running = BTreeSet::new();
        for pod in self.pods.values() {
            let Some(machine) = self.machines.get(&pod.machine).filter(|m| m.there) else {
                continue;
            };
            let usd = machine.usd * pod.share;
            rates.usd += usd;
            if let Some(group) = self.group_of.get(&pod.replica) {
                rates.groups.entry(group).or_default().usd += usd;
            }
            rates.on_demand += machine.on_demand * pod.share;
            if used.insert(&pod.machine) {
                rates.machines += machine.usd;
            }
            // Of two copies the one that costs more.
            let most = paid.entry(&pod.replica).or_default();
            *most = most.max(usd);
            if pod.running {
                running.insert(&pod.replica);
            }
        }
        for (replica, usd) in self.fixed.shares() {
            if let Some(group) = self.group_of.get(replica) {
                rates.groups.entry(group).or_default().static_usd += usd;
            }
        }
        for (replica, wanted) in &self.wanted {
            if !running.contains(replica) {
                rates.waiting += 1.0;
                rates.unplaced += f64::from(u8::from(!wanted.placed));
            }
            let usd = paid.get(replica).copied().unwrap_or_default();
            if wanted.limit.is_some_and(|limit| usd > limit + 1e-6) {
                rates.over_limit += 1.0;
            }
            if let Some((machine, share)) = &wanted.first {
                let usd = self.machines.get(machine).map_or(0.0, |m| m.usd);
                rates.stayed += usd * share;
            }
        }
        rates
    }

    /// How many replicas do not run now.
    pub(super) fn waiting(&self) -> usize {
        self.rates().waiting as usize
    }

    /// From now on things count: what happened before hour 0 is forgotten, what runs is what was
    /// placed first.
    pub(super) fn begin(&mut self) {
        self.hours = vec![Hour::default()];
        self.groups.clear();
        self.moves.clear();
        for wanted in self.wanted.values_mut() {
            wanted.first = None;
        }
        for pod in self.pods.values() {
            if let Some(wanted) = self.wanted.get_mut(&pod.replica) {
                wanted.first = Some((pod.machine.clone(), pod.share));
            }
        }
    }

    /// A machine is there, at this price.
    pub(super) fn machine(&mut self, id: &str, usd: f64, on_demand: f64) {
        let machine = Machine {
            usd,
            on_demand,
            there: true,
        };
        self.machines.insert(id.to_owned(), machine);
    }

    /// Is it there?
    pub(super) fn has_machine(&self, id: &str) -> bool {
        self.machines.get(id).is_some_and(|m| m.there)
    }

    /// It is gone; nobody pays for it any more.
    pub(super) fn machine_gone(&mut self, id: &str) {
        if let Some(machine) = self.machines.get_mut(id) {
            machine.there = false;
        }
    }

    /// It has another price.
    pub(super) fn price(&mut self, id: &str, usd: f64) {
        if let Some(machine) = self.machines.get_mut(id) {
            machine.usd = usd;
        }
    }

    /// A replica of a group is wanted from now on, and may cost so much an hour. False where the static
    /// fleet has no machine for it.
    pub(super) fn want(
        &mut self,
        replica: &Replica,
        group: &'static str,
        asked: Asked,
        limit: Option<f64>,
    ) -> bool {
        self.group_of.insert(replica.clone(), group);
        let wanted = Wanted {
            limit,
            ..Wanted::default()
        };
        self.wanted.insert(replica.clone(), wanted);
        self.fixed.add(replica, asked)
    }

    /// It is wanted no more: a job has ended.
    pub(super) fn unwant(&mut self, replica: &Replica) {
        self.wanted.remove(replica);
    }

    /// The static fleet, from which nothing is taken back, has finished it.
    pub(super) fn ends_on_static(&mut self, replica: &Replica) {
        self.fixed.remove(replica);
    }

    /// A Pod of a replica is on a machine and takes a share of it.
    pub(super) fn pod(&mut self, id: &str, replica: &Replica, at: (&str, f64), running: bool) {
        let (machine, share) = at;
        if let Some(wanted) = self.wanted.get_mut(replica) {
            wanted.first.get_or_insert((machine.to_owned(), share));
        }
        let pod = Pod {
            replica: replica.clone(),
            machine: machine.to_owned(),
            share,
            running,
        };
        self.pods.insert(id.to_owned(), pod);
    }

    /// It has ended, or is gone.
    pub(super) fn pod_gone(&mut self, id: &str) {
        self.pods.remove(id);
    }

    /// A replica has a placement on this machine, or none any more.
    pub(super) fn placed(&mut self, replica: &Replica, machine: Option<&str>) {
        let Some(wanted) = self.wanted.get_mut(replica) else {
            return;
        };
        wanted.placed = machine.is_some();
        let Some(machine) = machine else {
            return;
        };
        let before = wanted.last.replace(machine.to_owned());
        let Some(from) = before.filter(|from| from != machine) else {
            return;
        };
        let forced = !self.has_machine(&from);
        self.moves.push(Move {
            hour: self.now,
            workload: format!("{}-{}", replica.0, replica.1),
            from,
            to: machine.to_owned(),
            forced,
        });
        let hour = self.hour();
        if forced {
            hour.moves_forced += 1;
        } else {
            hour.moves_chosen += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fixed::Type;
    use super::*;

    fn asks(cpu: &str) -> Asked {
        Asked::of_pod(&json!({ "containers": [{ "resources": { "requests": { "cpu": cpu }}}]}))
    }

    fn meter() -> Meter {
        let mut has = asks("8");
        for _ in 0..9 {
            has.add(&asks("0"));
        }
        let mut meter = Meter::new(Fixed::new(vec![Type { usd: 0.8, has }]));
        meter.machine("spot", 0.4, 2.0);
        meter.machine("dear", 1.0, 1.0);
        meter
    }

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-9, "{a} is not {b}");
    }

    #[test]
    fn known_prices_have_a_known_cost_hour_by_hour() {
        let mut meter = meter();
        let a = ("a".to_owned(), 0);
        assert!(meter.want(&a, "cost", asks("4"), Some(0.3)));
        // A quarter of an hour without a placement, another until it runs.
        meter.advance(0.25);
        meter.placed(&a, Some("spot"));
        meter.pod("p", &a, ("spot", 0.5), false);
        meter.advance(0.5);
        meter.pod("p", &a, ("spot", 0.5), true);
        meter.advance(1.5);
        // The price triples, and the replica costs more than its limit.
        meter.price("spot", 1.2);
        meter.advance(2.0);
        // Both copies are paid while it moves.
        meter.placed(&a, Some("dear"));
        meter.pod("q", &a, ("dear", 0.25), true);
        meter.advance(2.5);
        meter.pod_gone("p");
        meter.advance(3.0);
        let [first, second, third] = &meter.hours[..3] else {
            panic!("{:?}", meter.hours)
        };
        near(first.usd, 0.75 * 0.2);
        near(first.on_demand_usd, 0.75);
        near(first.static_usd, 0.4);
        near(first.static_machines_usd, 0.8);
        near(first.waiting_s, 1800.0);
        near(first.unplaced_s, 900.0);
        near(first.wanted_s, 3600.0);
        near(second.usd, 0.5 * 0.2 + 0.5 * 0.6);
        near(second.machines_usd, 0.5 * 0.4 + 0.5 * 1.2);
        near(second.over_limit_s, 1800.0);
        near(third.usd, 0.5 * (0.6 + 0.25) + 0.5 * 0.25);
        near(third.stayed_usd, 0.6);
        near(third.machines_usd, 0.5 * 2.2 + 0.5);
        assert_eq!((third.moves_chosen, third.moves_forced), (1, 0));
        let total = meter.total();
        near(total.usd, first.usd + second.usd + third.usd);
        near(total.static_usd, 1.2);
        // Each change once, however often time goes on.
        meter.advance(3.1);
        meter.advance(3.2);
        let course: Vec<f64> = meter.course.iter().map(|(at, ..)| *at).collect();
        assert_eq!(course, [0.0, 0.25, 1.5, 2.0, 2.5]);
        near(meter.groups["cost"].usd, total.usd + 0.2 * 0.25);
        near(meter.groups["cost"].static_usd, 1.2 + 0.2 * 0.4);
        assert_eq!(total.moves_chosen, 1);
    }

    #[test]
    fn a_machine_that_is_taken_back_costs_nothing_and_forces_a_move() {
        let mut meter = meter();
        let a = ("a".to_owned(), 0);
        meter.want(&a, "cost", asks("4"), None);
        meter.placed(&a, Some("spot"));
        meter.pod("p", &a, ("spot", 0.5), true);
        meter.advance(0.5);
        meter.machine_gone("spot");
        meter.advance(0.75);
        // The placement is deleted, then there is a new one.
        meter.placed(&a, None);
        meter.advance(1.0);
        meter.placed(&a, Some("dear"));
        meter.pod("q", &a, ("dear", 0.5), true);
        // The same again changes nothing.
        meter.placed(&a, Some("dear"));
        meter.advance(2.0);
        near(meter.hours[0].usd, 0.1);
        near(meter.hours[0].waiting_s, 1800.0);
        near(meter.hours[0].unplaced_s, 900.0);
        near(meter.hours[1].usd, 0.5);
        near(meter.hours[1].waiting_s, 0.0);
        let [only] = &meter.moves[..] else {
            panic!("{:?}", meter.moves)
        };
        assert!(only.forced && only.hour == 1.0, "{only:?}");
        // A job's end: nobody waits for it, and the static fleet ends it in its own time.
        meter.unwant(&a);
        meter.pod_gone("q");
        meter.advance(2.5);
        near(meter.hours[2].waiting_s, 0.0);
        near(meter.hours[2].usd, 0.0);
        near(meter.hours[2].static_usd, 0.2);
        meter.ends_on_static(&a);
        meter.advance(3.0);
        near(meter.hours[2].static_usd, 0.2);
        // Time does not go back.
        meter.advance(1.0);
        near(meter.now(), 3.0);
    }
}
