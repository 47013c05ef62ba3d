//! Copies that must not run for now although they are placed here: `exclusive` ones without a
//! majority, and those whose `stopAfter` has passed. They keep their records, and run again when
//! that is over.
//!
//! **Exclusive.** A majority of the site may place an exclusive replica again when its node is dead
//! to it. So a node that runs one stops it when it sees no majority, before the majority may act
//! ([`Autonomy::exclusive_after`]). It need not where its last word to the others was, for long
//! enough to have been heard, that it has a link: then they leave the replica alone (whoever the
//! control plane can reach, the control plane answers for).

use std::time::Duration;

use hyperion_placement::model::WorkloadType;
use hyperion_wire::agent_v1::{RecordState, ReplicaPhase};
use hyperion_wire::convert;
use hyperion_wire::domain::ReplicaKey;

use super::Autonomy;
use super::mine::Hold;
use crate::output::Output;

/// A node that has a link and met no peer since it started runs its exclusive replicas after this
/// long: at sites whose nodes can't hear each other.
const ALONE: Duration = Duration::from_secs(60);

/// Whether this node sees a majority of its site.
#[derive(Debug, Default)]
pub(super) struct Majority {
    /// Live and enrolled nodes, as they were counted last.
    counted: Option<(usize, usize)>,
    /// Since when it does.
    since: Option<Duration>,
    /// What it lost, since it did not see one any more, was told before of a link.
    told_linked: bool,
    /// A peer was alive since the start.
    pub met: bool,
    heard: Option<Duration>,
    linked_since: Option<Duration>,
    complete_since: Option<Duration>,
    /// Copies that went on while the agent was away go on until this node can know better.
    grace_until: Duration,
}

impl Majority {
    /// Members came or went.
    pub(super) fn count_again(&mut self) {
        self.counted = None;
    }

    /// A peer said something.
    pub(super) fn heard(&mut self, now: Duration) {
        self.heard = Some(now);
    }
}

impl Autonomy {
    /// Enrolled nodes of the site, this one included.
    pub(super) fn members(&self) -> usize {
        self.majority
            .counted
            .map_or_else(|| self.count_members(), |(_, all)| all)
    }

    /// Those of them that are alive.
    pub(super) fn live_members(&self) -> usize {
        self.majority
            .counted
            .map_or_else(|| self.count_live(), |(live, _)| live)
    }

    fn count_members(&self) -> usize {
        let revoked = |id: &str| self.site.is_revoked(id);
        let info = self.site.info();
        let enrolled = info.members.iter().filter(|m| !revoked(&m.node_id)).count();
        // Without a list everybody that was ever heard counts.
        if info.members.is_empty() {
            return self
                .site
                .nodes()
                .filter(|(id, _)| !revoked(id))
                .count()
                .max(1);
        }
        enrolled.max(1)
    }

    fn count_live(&self) -> usize {
        let info = self.site.info();
        if info.members.is_empty() {
            return self.membership.live().len();
        }
        info.members
            .iter()
            .filter(|m| !self.site.is_revoked(&m.node_id) && self.membership.is_live(&m.node_id))
            .count()
    }

    /// True where more than half of the site's enrolled nodes are alive.
    pub(super) fn sees_majority(&self) -> bool {
        self.live_members() * 2 > self.members()
    }

    /// Time within which a node notices that it is cut off from the majority, whoever is with it: it
    /// asks each of the others within as many probes as there are, and half of them suffice. And a
    /// margin for the wake-ups of a busy device.
    fn notices_within(&self) -> Duration {
        let members = u32::try_from(self.members()).unwrap_or(u32::MAX);
        let probes = self
            .profile
            .probe_period
            .saturating_mul(members.div_ceil(2) + 2);
        probes
            .saturating_add(self.profile.suspicion * 2)
            .saturating_add(self.profile.sync_period)
    }

    /// Time since a dead node's last word after which a majority may place its exclusive replicas
    /// again; `grace` is what their pods are given to end.
    pub(super) fn exclusive_after(&self, grace: Duration) -> Duration {
        (self.notices_within() * 3 / 2).saturating_add(grace)
    }

    /// Looks at who is there.
    pub(super) fn look_at_majority(&mut self, now: Duration) {
        if self.majority.counted.is_none() {
            self.majority.counted = Some((self.count_live(), self.count_members()));
        }
        let silent = self
            .profile
            .suspicion
            .saturating_mul(2)
            .max(Duration::from_secs(2));
        let alone = self.members() == 1;
        let hears = alone
            || self
                .majority
                .heard
                .is_some_and(|at| now.saturating_sub(at) < silent);
        let sees = self.sees_majority() && hears;
        self.majority.met |= self.membership.peers().next().is_some();
        let linked = self.machine.linked();
        let long_enough = self.notices_within() + self.profile.sync_period;
        let since = |was: Option<Duration>, is: bool| is.then(|| was.unwrap_or(now));
        if sees {
            self.majority.since.get_or_insert(now);
            self.majority.told_linked = false;
        } else if self.majority.since.take().is_some() {
            self.majority.told_linked = linked
                && self
                    .majority
                    .linked_since
                    .is_some_and(|at| now.saturating_sub(at) > long_enough);
            self.follow_at = now;
        }
        self.majority.linked_since = since(self.majority.linked_since, linked);
        self.majority.complete_since = since(self.majority.complete_since, self.machine.complete());
    }

    /// Until when this node compares what it knows with the majority that it has met; none once it
    /// has.
    pub(super) fn compares_until(&self, now: Duration) -> Option<Duration> {
        let since = self.majority.since.unwrap_or(now);
        let until = since.saturating_add(self.profile.sync_period * 3);
        (self.members() > 1 && now < until).then_some(until)
    }

    /// True where an exclusive replica may run here.
    fn may_run_exclusive(&self, now: Duration) -> bool {
        if self.members() == 1 || self.majority.told_linked || now < self.majority.grace_until {
            return true;
        }
        let alone = |since: Duration| now.saturating_sub(since) >= ALONE;
        // Until it has compared what it knows with a few of them. The control plane's word is not
        // enough: it may not have heard yet what they decided.
        (self.majority.since.is_some() && self.compares_until(now).is_none())
            || (!self.majority.met && self.majority.complete_since.is_some_and(alone))
    }

    /// Why a replica must not run here now.
    pub(super) fn must_hold(&self, key: &ReplicaKey, now: Duration) -> Option<Hold> {
        let entry = self.site.replica(key)?;
        if entry.state() == RecordState::Ended {
            // There is nothing to stop, and its outcome is to be kept.
            return None;
        }
        let intent = entry.intent.as_ref()?;
        if intent.wants.workload_type == WorkloadType::Job && self.is_over(key, entry) {
            return None;
        }
        if intent.exclusive && !self.may_run_exclusive(now) {
            let begins = now < self.started.saturating_add(self.notices_within());
            return Some(if begins || self.majority.since.is_some() {
                Hold::Listens
            } else {
                Hold::NoMajority
            });
        }
        (self.is_cut_off(intent.stop_after, now) || self.waits_for_the_list(key))
            .then_some(Hold::CutOff)
    }

    /// True for a copy that `stopAfter` has stopped, while the control plane has not said on this
    /// link whether it is still wanted here: it may run elsewhere by now. A first welcome that is not
    /// complete says nothing of what it lacks.
    fn waits_for_the_list(&self, key: &ReplicaKey) -> bool {
        let stopped = |mine: &super::mine::Mine| mine.hold == Some(Hold::CutOff);
        self.mine.get(key).is_some_and(stopped)
            && self.machine.linked()
            && !self.machine.complete()
            && !self.ordered.contains(key)
    }

    /// True where this node has had no link of its own, direct or through a peer, for `stop_after`.
    pub(super) fn is_cut_off(&self, stop_after: Option<Duration>, now: Duration) -> bool {
        stop_after.is_some_and(|after| {
            !self.machine.linked() && now.saturating_sub(self.machine.own_contact(now)) >= after
        })
    }

    /// Stops what must not run, runs again what may.
    pub(super) fn look_at_holds(&mut self, now: Duration, out: &mut Vec<Output>) {
        let keys: Vec<ReplicaKey> = self
            .mine
            .iter()
            .filter(|(key, mine)| {
                !mine.stopped
                    && self.site.replica(key).is_some_and(|e| {
                        e.placed_on(&self.node_id)
                            && e.intent
                                .as_ref()
                                .is_some_and(|i| i.exclusive || i.stop_after.is_some())
                    })
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in keys {
            let must = self.must_hold(&key, now);
            let Some(mine) = self.mine.get_mut(&key) else {
                continue;
            };
            let before = std::mem::replace(&mut mine.hold, must);
            match (before, must) {
                (None, Some(hold)) => self.stop_for(&key, hold, now, out),
                (Some(before), Some(hold)) if before != hold => {
                    self.tell_of_hold(&key, hold, now, out);
                }
                (Some(_), None) => {
                    if self.people.held_back.remove(&key) {
                        out.push(Output::Event {
                            reason: "RunsAgain",
                            message: format!("{} may run it again", self.node_id),
                            warning: false,
                            key: Some(key.clone()),
                        });
                    }
                    self.run(&key, out);
                }
                _ => {}
            }
            self.wake_for_hold(&key, now);
        }
    }

    fn wake_for_hold(&mut self, key: &ReplicaKey, now: Duration) {
        let Some(intent) = self.site.replica(key).and_then(|e| e.intent.as_ref()) else {
            return;
        };
        let mut at = Duration::MAX;
        if intent.exclusive && self.members() > 1 {
            // What is silent tells nobody: it is looked for.
            at = now.saturating_add(self.profile.probe_period);
        }
        if let Some(after) = intent.stop_after
            && !self.machine.linked()
            && !self.is_cut_off(Some(after), now)
        {
            at = at.min(self.machine.own_contact(now).saturating_add(after));
        }
        self.follow_at = self.follow_at.min(at);
    }

    /// Holds a copy back that runs, or that the store would start.
    pub(super) fn stop_for(
        &mut self,
        key: &ReplicaKey,
        hold: Hold,
        now: Duration,
        out: &mut Vec<Output>,
    ) {
        let generation = self.mine.get(key).map_or(0, |mine| mine.generation);
        self.tell_of_hold(key, hold, now, out);
        let (_, why) = self.says_of_hold(hold, now);
        out.push(Output::Stop {
            key: key.clone(),
            generation,
            why,
        });
    }

    /// Tells people once; that a node listens for some seconds after its start is no news.
    pub(super) fn tell_of_hold(
        &mut self,
        key: &ReplicaKey,
        hold: Hold,
        now: Duration,
        out: &mut Vec<Output>,
    ) {
        if hold == Hold::Listens || !self.people.held_back.insert(key.clone()) {
            return;
        }
        let (reason, message) = self.says_of_hold(hold, now);
        out.push(Output::Event {
            reason,
            message,
            warning: true,
            key: Some(key.clone()),
        });
    }

    fn says_of_hold(&self, hold: Hold, now: Duration) -> (&'static str, String) {
        let me = &self.node_id;
        match hold {
            Hold::NoMajority => (
                "NoMajority",
                format!(
                    "{me} sees {} of {} nodes of its site, and another one may run this exclusive \
                     replica",
                    self.live_members(),
                    self.members()
                ),
            ),
            Hold::Listens => (
                "Listens",
                format!("{me} hears first what its peers have decided of this exclusive replica"),
            ),
            Hold::CutOff => (
                "StoppedCutOff",
                format!(
                    "{me} has had no link to the control plane for {} s (stopAfter)",
                    now.saturating_sub(self.machine.own_contact(now)).as_secs()
                ),
            ),
        }
    }

    /// At the start: an exclusive replica that went on while the agent was away goes on until this
    /// node can know better; others are held back.
    pub(super) fn hold_at_start(&mut self, key: &ReplicaKey, now: Duration) -> Option<Hold> {
        let runs = self.me.held.iter().any(|h| {
            h.phase == i32::from(ReplicaPhase::Running)
                && convert::replica_key("held", h.key.as_ref()).is_ok_and(|k| k == *key)
        });
        if runs {
            self.majority.grace_until = now.saturating_add(self.notices_within());
        }
        self.must_hold(key, now)
    }
}
