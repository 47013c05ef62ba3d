//! What is done about a decision.

use hyperion_placement::check;
use hyperion_placement::choose::{CandidateRef, Choice, choice_of};
use hyperion_placement::reward::{RewardWeights, VIOLATION};

use super::REFUSAL_HOURS;
use super::event::Event;
use super::host::{Host, State};
use super::replica::Coming;
use super::simulator::{CandidateAt, Pending, Simulator};
use crate::scenario::Path;

impl Simulator {
    /// Answers the decision with an index into its candidates. None lets a replica that waits wait
    /// on, and one that runs stay. An index that is none counts as none.
    pub fn act(&mut self, choice: Option<usize>) {
        let Some(pending) = self.pending.take() else {
            return;
        };
        let at = choice.and_then(|i| pending.feasible.get(i).copied());
        self.answer(&pending, at);
    }

    /// Answers the decision with any node or offer. One that breaks a hard constraint is refused,
    /// and counted.
    pub fn act_on(&mut self, choice: &CandidateRef) {
        let Some(pending) = self.pending.take() else {
            return;
        };
        let at = self.find(choice);
        if at.is_none() {
            self.violated(pending.replica, 1);
        }
        self.answer(&pending, at);
    }

    fn answer(&mut self, pending: &Pending, at: Option<CandidateAt>) {
        let index = pending.replica;
        let choice = at.and_then(|at| self.checked(index, at).map(|choice| (at, choice)));
        self.lend(index, pending.lent, true);
        match choice {
            Some((CandidateAt::Node(i), choice)) => {
                let host = self.view.hosts[i];
                if self.replicas[index].serving != Some(host) {
                    self.go(index, host, choice.gpus);
                }
            }
            Some((CandidateAt::Offer(i), choice)) => {
                self.launch(index, self.view.pools[i], choice.gpus);
            }
            None => self.wait(index),
        }
    }

    /// The choice of a candidate, if it breaks no hard constraint.
    fn checked(&mut self, index: usize, at: CandidateAt) -> Option<Choice> {
        let request = &self.replicas[index].request;
        let weights = RewardWeights::default().of(request.goal);
        let candidate = self.candidate(at);
        let features = self.features(index, at, &candidate, &weights);
        let Some(choice) = choice_of(
            &self.view.snapshot.packing,
            request,
            &candidate,
            &features,
            0.0,
        ) else {
            self.violated(index, 1);
            return None;
        };
        match check(&self.view.snapshot, request, &choice) {
            Ok(()) => Some(choice),
            Err(violations) => {
                self.violated(index, violations.len() as u32);
                None
            }
        }
    }

    fn violated(&mut self, index: usize, times: u32) {
        let account = &mut self.replicas[index].account;
        account.violations += times;
        account.reward += VIOLATION * f64::from(times);
    }

    /// Leaves where it is, if it is anywhere: a job saves its work and stops, a service serves on
    /// until its new copy does.
    fn leave(&mut self, index: usize) {
        self.settle(index);
        self.waiting.remove(&index);
        let replica = &mut self.replicas[index];
        replica.epoch += 1;
        let Some(old) = replica.serving else { return };
        replica.account.moves += 1;
        if replica.is_job() {
            replica.save();
            replica.serving = None;
            self.release(old, index);
        }
    }

    fn go(&mut self, index: usize, host: usize, gpus: Vec<(String, u32)>) {
        self.leave(index);
        self.replicas[index].coming = Coming::Host(host);
        self.promise(index, host, gpus);
        self.start(index, host);
    }

    fn launch(&mut self, index: usize, pool: usize, gpus: Vec<(String, u32)>) {
        self.leave(index);
        let nth = self.pools[pool].launches;
        self.pools[pool].launches += 1;
        self.pools[pool].taken += 1;
        self.check_offer(pool);
        let ready = self.now + self.boot_hours(pool, nth);
        if closes(&self.scenario.pools[pool].obtainable, self.now, ready) {
            self.counts.refused += 1;
            let replica = &mut self.replicas[index];
            replica.coming = Coming::Refused;
            let event = Event::LaunchFailed(index, replica.epoch, pool);
            self.agenda.at(self.now + REFUSAL_HOURS, event);
            self.rerate(index);
            return;
        }
        self.counts.launches += 1;
        let host = self.hosts.len();
        self.hosts.push(Host {
            shape: pool,
            id: format!("{}/{nth:06}", self.scenario.pools[pool].offer.id),
            state: State::Booting,
            promises: Vec::new(),
            price: self.scenario.pools[pool].price.at(self.now),
            busy: 0.0,
            shares: 0.0,
            bought: self.now,
            ended: None,
            idle_since: None,
            idle_epoch: 0,
            last: index,
        });
        self.replicas[index].coming = Coming::Host(host);
        self.promise(index, host, gpus);
        self.agenda.at(ready, Event::Ready(host));
    }
}

/// Whether a pool does not give instances at some moment from `from` until before `to`.
fn closes(obtainable: &Path, from: f64, to: f64) -> bool {
    let mut at = from;
    loop {
        if obtainable.at(at) <= 0.0 {
            return true;
        }
        match obtainable.next_change(at) {
            Some(next) if next < to => at = next,
            _ => return false,
        }
    }
}
