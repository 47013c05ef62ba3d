//! What is true now and hidden from schedulers: for the greedy baseline, and for tests.

use super::rates::usd_reward;
use super::simulator::{CandidateAt, Simulator};
use super::{REFUSAL_HOURS, Truth, WAIT_PENALTY};

/// The truth of the decision that waits.
#[derive(Debug, Clone, Copy)]
pub struct Now<'a> {
    pub(super) simulator: &'a Simulator,
}

impl Truth for Now<'_> {
    fn reward(&self, index: usize) -> f64 {
        let Some(pending) = &self.simulator.pending else {
            return f64::NEG_INFINITY;
        };
        pending.feasible.get(index).map_or(f64::NEG_INFINITY, |at| {
            self.simulator.one_step(pending.replica, *at)
        })
    }

    fn others(&self, index: usize) -> f64 {
        let Some(pending) = &self.simulator.pending else {
            return 0.0;
        };
        let at = pending.feasible.get(index);
        at.map_or(0.0, |at| self.simulator.felt(pending.replica, *at))
    }
}

impl Simulator {
    /// Reward of a replica until it is decided anew, if it went to a candidate and nothing else
    /// changed: what it earns there, and the price of getting there.
    fn one_step(&self, index: usize, at: CandidateAt) -> f64 {
        let step = self.step();
        let replica = &self.replicas[index];
        let left = if replica.is_job() {
            (self.scenario.workloads[index].work_hours - replica.work).max(0.0)
        } else {
            step
        };
        let terms = self.terms_at(index, at);
        let there = self.earns(index, &terms);
        let (boot, images): (f64, &[String]) = match at {
            CandidateAt::Node(i) if replica.serving == Some(self.view.hosts[i]) => {
                return there.reward * step.min(left);
            }
            CandidateAt::Node(i) => (0.0, &self.view.snapshot.nodes[i].images),
            CandidateAt::Offer(i) => {
                let pool = self.view.pools[i];
                if !self.pools[pool].obtainable {
                    return self.refused(index, step);
                }
                (self.scenario.pools[pool].boot_hours, &[])
            }
        };
        let start = (boot + self.start_hours(index, terms.shape, images)).min(step);
        let weights = self.weights(index);
        let owned = self.shapes[terms.shape].owned;
        let meanwhile = match replica.serving {
            Some(host) if !replica.is_job() => {
                let old = self.earns(index, &self.terms(index, host)).reward;
                old - usd_reward(&weights, terms.cost(owned).unwrap_or(0.0))
            }
            _ => WAIT_PENALTY,
        };
        let egress = usd_reward(&weights, self.pair(index, terms.shape).egress_usd);
        meanwhile * start + there.reward * (step - start).min(left) - egress
    }

    fn step(&self) -> f64 {
        if self.config.reconsider_hours > 0.0 {
            self.config.reconsider_hours
        } else {
            0.5
        }
    }

    /// A launch that is refused costs a minute, and then another choice has to be made: it is
    /// worth no more than waiting.
    fn refused(&self, index: usize, step: f64) -> f64 {
        match self.replicas[index].serving {
            Some(host) if !self.replicas[index].is_job() => {
                let old = self.earns(index, &self.terms(index, host)).reward;
                old * step - REFUSAL_HOURS
            }
            _ => WAIT_PENALTY * step,
        }
    }

    /// What the others on the candidate's machine gain or lose by it in the same time.
    fn felt(&self, index: usize, at: CandidateAt) -> f64 {
        let CandidateAt::Node(i) = at else { return 0.0 };
        let host = self.view.hosts[i];
        if self.replicas[index].serving == Some(host) {
            return 0.0;
        }
        let step = self.step();
        let there = self.terms_at(index, at);
        let others = self.hosts[host].promises.iter();
        let serving = others.filter(|p| self.replicas[p.replica].serving == Some(host));
        serving
            .map(|p| {
                let before = self.terms(p.replica, host);
                let mut after = before;
                after.shares = there.shares;
                after.busy = there.busy;
                let gain =
                    self.earns(p.replica, &after).reward - self.earns(p.replica, &before).reward;
                gain * step
            })
            .sum()
    }
}
