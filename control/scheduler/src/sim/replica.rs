//! Replicas and their accounts.

use hyperion_placement::model::{Goal, Request, WorkloadType};

/// Where a replica is going.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coming {
    /// Nowhere.
    No,
    /// Room was promised on this host; it boots or the replica starts.
    Host(usize),
    /// A launch that is about to be refused.
    Refused,
}

/// How far a replica is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Not applied yet.
    Unborn,
    /// In the system.
    Here,
    /// Deleted or finished.
    Over,
}

/// What accrues by the hour, until something changes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rate {
    /// Reward.
    pub reward: f64,
    /// US dollars.
    pub usd: f64,
    /// p99, where it serves and the round trip is known, milliseconds.
    pub p99_ms: Option<f64>,
    /// A service that serves.
    pub serving: bool,
    /// A service that does not serve within its target.
    pub missed: bool,
    /// A job that works.
    pub working: bool,
}

/// One replica.
#[derive(Debug, Clone)]
pub struct Replica {
    /// As the scheduler is asked.
    pub request: Request,
    /// How far it is in its life.
    pub life: Life,
    /// Host where it serves or works.
    pub serving: Option<usize>,
    /// Where it is going.
    pub coming: Coming,
    /// Grows when `serving` or `coming` change: events of before no longer hold.
    pub epoch: u32,
    /// It will be decided anew at this hour at the latest, if it waits.
    pub retry_at: f64,
    /// Hours of work done.
    pub work: f64,
    /// Hours of work that can't be lost.
    pub saved: f64,
    /// Reward for the work since.
    pub unsaved: f64,
    /// Until when the account is settled, hours.
    pub settled: f64,
    /// What accrues since.
    pub rate: Rate,
    /// What has accrued.
    pub account: Account,
}

/// What has accrued to a replica.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Account {
    /// Reward.
    pub reward: f64,
    /// US dollars paid, egress included.
    pub usd: f64,
    /// Of these, for egress.
    pub egress_usd: f64,
    /// Hours in the system.
    pub hours: f64,
    /// Hours in which it served or worked.
    pub running_hours: f64,
    /// Hours of a service that were not served within its target.
    pub missed_hours: f64,
    /// Integral of the p99, and for how long it was known.
    pub p99_ms_hours: f64,
    /// Hours in which the p99 was known.
    pub p99_hours: f64,
    /// Hours of work lost.
    pub lost_hours: f64,
    /// Choices that broke a hard constraint.
    pub violations: u32,
    /// Moves.
    pub moves: u32,
    /// Decisions made for it.
    pub decisions: u32,
    /// When it was over, hours.
    pub over: Option<f64>,
}

impl Replica {
    /// Not applied yet.
    pub fn new(request: Request) -> Self {
        Self {
            request,
            life: Life::Unborn,
            serving: None,
            coming: Coming::No,
            epoch: 0,
            retry_at: f64::NEG_INFINITY,
            work: 0.0,
            saved: 0.0,
            unsaved: 0.0,
            settled: 0.0,
            rate: Rate::default(),
            account: Account::default(),
        }
    }

    /// Runs to completion.
    pub fn is_job(&self) -> bool {
        self.request.workload_type == WorkloadType::Job
    }

    /// Index of its goal in tables by goal.
    pub fn goal(&self) -> usize {
        goal_index(self.request.goal)
    }

    /// In the system, with nowhere to be or to go.
    pub fn waits(&self) -> bool {
        self.life == Life::Here && self.serving.is_none() && self.coming == Coming::No
    }

    /// Reward until `now`.
    pub fn reward_at(&self, now: f64) -> f64 {
        self.account.reward + self.rate.reward * (now - self.settled)
    }

    /// Brings the account up to `now`.
    pub fn settle(&mut self, now: f64) {
        let hours = now - self.settled;
        self.settled = now;
        if hours <= 0.0 {
            return;
        }
        let (rate, account) = (self.rate, &mut self.account);
        account.reward += rate.reward * hours;
        account.usd += rate.usd * hours;
        if self.life != Life::Here {
            return;
        }
        account.hours += hours;
        if rate.serving || rate.working {
            account.running_hours += hours;
        }
        if rate.missed {
            account.missed_hours += hours;
        }
        if let Some(p99) = rate.p99_ms {
            account.p99_ms_hours += p99 * hours;
            account.p99_hours += hours;
        }
        if rate.working {
            self.work += hours;
            self.unsaved += rate.reward * hours;
        }
    }

    /// A checkpoint: what is done so far can't be lost.
    pub fn save(&mut self) {
        self.saved = self.work;
        self.unsaved = 0.0;
    }

    /// The machine is lost: so is the work since the last checkpoint, and the reward for it.
    pub fn lose(&mut self) {
        self.account.lost_hours += self.work - self.saved;
        self.account.reward -= self.unsaved;
        self.work = self.saved;
        self.unsaved = 0.0;
    }
}

/// Index of a goal in [`Goal::ALL`].
pub fn goal_index(goal: Goal) -> usize {
    match goal {
        Goal::Cost => 0,
        Goal::Latency => 1,
        Goal::Default => 2,
    }
}
