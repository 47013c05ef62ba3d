//! Figures of an episode.

use hyperion_placement::model::{Goal, WorkloadType};

use super::replica::{Account, Replica};
use super::simulator::{Counts, Simulator};
use crate::scenario::Workload;

/// How long a p99 was how high: bins of half a per cent, so that episodes can be added up.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tail {
    hours: Vec<f64>,
}

/// Lowest p99 that is told apart, milliseconds.
const LEAST_MS: f64 = 0.1;
/// Logarithm of the quotient of two bins.
const BIN: f64 = 0.005;
/// Bins, up to about three minutes.
const BINS: usize = 2900;

impl Tail {
    /// Notes that the p99 was `ms` for some hours.
    pub fn add(&mut self, ms: f64, hours: f64) {
        if hours <= 0.0 || !ms.is_finite() {
            return;
        }
        let bin = (libm::log(ms.max(LEAST_MS) / LEAST_MS) / BIN) as usize;
        let bin = bin.min(BINS - 1);
        if self.hours.len() <= bin {
            self.hours.resize(bin + 1, 0.0);
        }
        self.hours[bin] += hours;
    }

    /// Adds another's times.
    pub fn merge(&mut self, other: &Self) {
        if self.hours.len() < other.hours.len() {
            self.hours.resize(other.hours.len(), 0.0);
        }
        for (mine, theirs) in self.hours.iter_mut().zip(&other.hours) {
            *mine += theirs;
        }
    }

    /// The p99 that was not exceeded for a share of the time, milliseconds; none where there was
    /// no time.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let all: f64 = self.hours.iter().sum();
        if all <= 0.0 {
            return None;
        }
        let mut seen = 0.0;
        let bin = self.hours.iter().position(|hours| {
            seen += hours;
            seen >= share * all
        });
        let bin = bin.unwrap_or(self.hours.len().saturating_sub(1));
        Some(LEAST_MS * libm::exp((bin as f64 + 0.5) * BIN))
    }
}

/// One workload's figures.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Its name.
    pub replica: String,
    /// Goal.
    pub goal: Goal,
    /// Service or job.
    pub workload_type: WorkloadType,
    /// It has clients at the edge.
    pub edge_clients: bool,
    /// Reward.
    pub reward: f64,
    /// Hours that it asked for, up to the horizon.
    pub demanded_hours: f64,
    /// US dollars paid, egress included.
    pub usd: f64,
    /// US dollars for each hour that it served, or worked without losing the work; none where it never did.
    pub usd_per_hour: Option<f64>,
    /// Mean p99 over the time that it served, milliseconds.
    pub p99_ms: Option<f64>,
    /// Minutes from arrival to completion, for jobs; to the horizon where it was not finished.
    pub jct_minutes: Option<f64>,
    /// A job that was not done at the horizon.
    pub unfinished: bool,
    /// All that accrued.
    pub account: Account,
}

/// Sums over workloads.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures {
    /// Workloads.
    pub workloads: u64,
    /// Reward.
    pub reward: f64,
    /// Hours asked for.
    pub demanded_hours: f64,
    /// US dollars paid.
    pub usd: f64,
    /// Integral of the p99, millisecond hours.
    pub p99_ms_hours: f64,
    /// Hours in which it was known.
    pub p99_hours: f64,
    /// How long it was how high.
    pub tail: Tail,
    /// Hours of services in the system.
    pub service_hours: f64,
    /// Of these, not served within the target.
    pub missed_hours: f64,
    /// Jobs.
    pub jobs: u64,
    /// Jobs not done at the horizon.
    pub unfinished: u64,
    /// Sum of minutes to completion.
    pub jct_minutes: f64,
    /// Choices that broke a hard constraint.
    pub violations: u64,
    /// Moves.
    pub moves: u64,
    /// Hours of work lost.
    pub lost_hours: f64,
    /// Hours of the episodes.
    pub horizon: f64,
}

impl Figures {
    /// Reward for each hour asked for.
    #[must_use]
    pub fn mean_reward(&self) -> f64 {
        over(self.reward, self.demanded_hours).unwrap_or(0.0)
    }

    /// US dollars per hour of the episode.
    #[must_use]
    pub fn usd_per_hour(&self) -> f64 {
        over(self.usd, self.horizon).unwrap_or(0.0)
    }

    /// Mean p99 over time, milliseconds.
    #[must_use]
    pub fn p99_ms(&self) -> Option<f64> {
        over(self.p99_ms_hours, self.p99_hours)
    }

    /// Share of the services' time that was not served within the target, per cent.
    #[must_use]
    pub fn slo_miss_percent(&self) -> Option<f64> {
        over(100.0 * self.missed_hours, self.service_hours)
    }

    /// Mean minutes from a job's arrival to its completion.
    #[must_use]
    pub fn mean_jct_minutes(&self) -> Option<f64> {
        over(self.jct_minutes, self.jobs as f64)
    }

    fn add(&mut self, record: &Record) {
        let account = &record.account;
        self.workloads += 1;
        self.reward += record.reward;
        self.demanded_hours += record.demanded_hours;
        self.usd += record.usd;
        self.p99_ms_hours += account.p99_ms_hours;
        self.p99_hours += account.p99_hours;
        if record.workload_type == WorkloadType::Service {
            self.service_hours += account.hours;
            self.missed_hours += account.missed_hours;
        }
        if let Some(minutes) = record.jct_minutes {
            self.jobs += 1;
            self.unfinished += u64::from(record.unfinished);
            self.jct_minutes += minutes;
        }
        self.violations += u64::from(account.violations);
        self.moves += u64::from(account.moves);
        self.lost_hours += account.lost_hours;
    }
}

fn over(sum: f64, count: f64) -> Option<f64> {
    (count > 0.0).then(|| sum / count)
}

/// How an episode went.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// All workloads.
    pub all: Figures,
    /// By goal, in the order of [`Goal::ALL`].
    pub goals: [Figures; 3],
    /// Each workload, in order of arrival.
    pub workloads: Vec<Record>,
    /// Counts.
    pub counts: Counts,
    /// US dollars paid for instances.
    pub instances_usd: f64,
}

impl Outcome {
    pub(super) fn of(simulator: &Simulator) -> Self {
        let scenario = &simulator.scenario;
        let records: Vec<Record> = simulator
            .replicas
            .iter()
            .zip(&scenario.workloads)
            .filter(|(_, w)| w.arrival < scenario.horizon)
            .map(|(r, w)| record(r, w, scenario.horizon, simulator.now))
            .collect();
        let mut goals = [(); 3].map(|()| Figures {
            horizon: scenario.horizon,
            ..Figures::default()
        });
        let mut all = goals[0].clone();
        for record in &records {
            all.add(record);
            goals[super::replica::goal_index(record.goal)].add(record);
        }
        for (goal, tail) in goals.iter_mut().zip(&simulator.tails) {
            goal.tail = tail.clone();
            all.tail.merge(tail);
        }
        Self {
            all,
            goals,
            workloads: records,
            counts: simulator.counts,
            instances_usd: simulator.instances_usd(),
        }
    }
}

fn record(replica: &Replica, workload: &Workload, horizon: f64, now: f64) -> Record {
    let account = replica.account;
    let request = &workload.request;
    let job = replica.is_job();
    Record {
        replica: request.replica.clone(),
        goal: request.goal,
        workload_type: request.workload_type,
        edge_clients: request
            .clients
            .iter()
            .any(|c| c.place.0.starts_with("site:")),
        reward: replica.reward_at(now),
        demanded_hours: workload
            .demanded_hours()
            .min(horizon - workload.arrival)
            .max(0.0),
        usd: account.usd,
        usd_per_hour: over(account.usd, account.running_hours - account.lost_hours),
        p99_ms: over(account.p99_ms_hours, account.p99_hours),
        jct_minutes: job.then(|| (account.over.unwrap_or(horizon) - workload.arrival) * 60.0),
        unfinished: job && account.over.is_none(),
        account,
    }
}
