//! What this node is to run, and when a copy that another decision has outdated ends.

use std::time::Duration;

use hyperion_placement::model::WorkloadType;
use hyperion_wire::agent_v1::{RecordState, ReplicaPhase, RestartPolicy};
use hyperion_wire::convert;
use hyperion_wire::domain::ReplicaKey;
use hyperion_wire::peer_v1::HeldReplica;

use super::{Autonomy, Me};
use crate::mode::Mode;
use crate::output::Output;
use crate::site::ReplicaEntry;

/// A service's copy that was placed elsewhere goes on until the new one is ready, or this long where
/// the new node says nothing against it.
const OVERLAP: Duration = Duration::from_secs(10);
/// And never longer than this while the new node is alive.
const LONGEST_OVERLAP: Duration = Duration::from_secs(300);

/// Why a replica that is placed here does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    /// Exclusive, and without a majority nobody knows whether another node runs it.
    NoMajority,
    /// Exclusive, and what the majority decided while this node was away may not be known yet.
    Listens,
    /// The control plane was out of reach for `stopAfter`.
    CutOff,
}

/// A replica that this node runs, or is to run.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Mine {
    pub generation: u64,
    pub hold: Option<Hold>,
    /// Since when another decision holds.
    pub superseded: Option<Duration>,
    /// It was told to stop; kept until the node no longer says that it holds it.
    pub stopped: bool,
}

impl Mine {
    pub(super) fn of(generation: u64) -> Self {
        Self {
            generation,
            ..Self::default()
        }
    }
}

/// What is to become of an outdated copy.
enum End {
    Now(String),
    /// To be looked at again then.
    Wait(Duration),
    /// Somebody else's to say.
    Leave,
}

impl Autonomy {
    /// Runs what is placed here and is not run, ends what is outdated.
    pub(super) fn follow(&mut self, now: Duration, out: &mut Vec<Output>) {
        self.follow_at = Duration::MAX;
        self.run_what_is_placed_here(now, out);
        let keys: Vec<ReplicaKey> = self
            .mine
            .iter()
            .filter(|(_, mine)| !mine.stopped)
            .map(|(key, _)| key.clone())
            .collect();
        for key in keys {
            match self.outdated(&key, now) {
                End::Now(why) => self.end(&key, why, out),
                End::Wait(until) => self.follow_at = self.follow_at.min(until),
                End::Leave => {}
            }
        }
        self.look_at_holds(now, out);
    }

    fn run_what_is_placed_here(&mut self, now: Duration, out: &mut Vec<Output>) {
        let linked = self.machine.linked();
        let due: Vec<(ReplicaKey, u64)> = self
            .site
            .replicas()
            .filter(|(key, entry)| {
                entry.placed_on(&self.node_id)
                    && self.mine.get(*key).is_none_or(|mine| {
                        mine.generation < entry.record.generation || mine.stopped
                    })
                    // What the control plane decided it tells itself while it can.
                    && (entry.untaken() || !linked)
            })
            .map(|(key, entry)| (key.clone(), entry.record.generation))
            .collect();
        for (key, generation) in due {
            let hold = self.must_hold(&key, now);
            let before = self.mine.insert(
                key.clone(),
                Mine {
                    hold,
                    ..Mine::of(generation)
                },
            );
            match hold {
                Some(hold) => {
                    if before.is_some_and(|b| b.hold.is_none() && !b.stopped) {
                        self.stop_for(&key, hold, now, out);
                    } else {
                        self.tell_of_hold(&key, hold, now, out);
                    }
                }
                None => self.run(&key, out),
            }
        }
    }

    pub(super) fn run(&mut self, key: &ReplicaKey, out: &mut Vec<Output>) {
        if let Some(entry) = self.site.replica(key) {
            out.push(Output::Run(Box::new(entry.record.clone())));
        }
    }

    fn outdated(&mut self, key: &ReplicaKey, now: Duration) -> End {
        let Some(mine) = self.mine.get(key).copied() else {
            return End::Leave;
        };
        let Some(entry) = self.site.replica(key) else {
            return End::Leave;
        };
        if entry.record.generation < mine.generation || entry.placed_on(&self.node_id) {
            if let Some(mine) = self.mine.get_mut(key) {
                mine.superseded = None;
            }
            return End::Leave;
        }
        let settled = self.mode() == Mode::Connected || !entry.untaken();
        if self.machine.linked() && settled {
            // A move by the control plane may want both copies for a while.
            return End::Leave;
        }
        let end = self.end_of(key, entry, mine.superseded.unwrap_or(now), now);
        if let Some(mine) = self.mine.get_mut(key) {
            mine.superseded.get_or_insert(now);
        }
        end
    }

    fn end_of(
        &self,
        key: &ReplicaKey,
        entry: &ReplicaEntry,
        since: Duration,
        now: Duration,
    ) -> End {
        let winner = entry.record.node.as_str();
        match entry.state() {
            RecordState::Removed => return End::Now("it was removed".to_owned()),
            // The agent keeps its outcome: an order for it must not start it again.
            RecordState::Ended if winner == self.node_id => return End::Leave,
            RecordState::Ended => return End::Now(format!("it ended on {winner}")),
            // Whoever decides finds the copy here and keeps it, unless this node gave it up.
            RecordState::Pending if entry.record.decider != self.node_id => return End::Leave,
            RecordState::Pending => return End::Now("this node gave it up".to_owned()),
            RecordState::Placed | RecordState::Unspecified => {}
        }
        let elsewhere = || {
            let decider = match entry.record.decider.as_str() {
                "" => "the control plane",
                node => node,
            };
            format!("{decider} placed it on {winner}")
        };
        let single = entry.intent.as_ref().is_some_and(|intent| {
            intent.exclusive || intent.wants.workload_type == WorkloadType::Job
        });
        if single && self.has_succeeded(key) {
            // Nothing runs, and the control plane is to hear of it.
            return End::Leave;
        }
        if single {
            return End::Now(elsewhere());
        }
        let theirs = self.site.node(winner).and_then(|node| {
            let held = node.record.held.iter();
            held.filter(|h| h.generation >= entry.record.generation)
                .find(|h| h.key.as_ref().is_some_and(|k| same(k, key)))
        });
        if !self.membership.is_live(winner) {
            // It will be placed again, whatever it said last; a look when members change is enough.
            return End::Leave;
        }
        if theirs.is_some_and(|h| h.ready) {
            return End::Now(elsewhere());
        }
        let patience = if theirs.is_some_and(is_not_there_yet) {
            LONGEST_OVERLAP
        } else {
            OVERLAP
        };
        if now.saturating_sub(since) >= patience {
            return End::Now(elsewhere());
        }
        End::Wait(since.saturating_add(patience))
    }

    /// True where a job's replica has ended well here.
    fn has_succeeded(&self, key: &ReplicaKey) -> bool {
        self.is_said(key, ReplicaPhase::Succeeded)
    }

    /// True where a job's replica has ended here for good, and the site may not know it yet.
    pub(super) fn is_over(&self, key: &ReplicaKey, entry: &ReplicaEntry) -> bool {
        let pod = entry.record.pod.as_ref();
        let never = pod.is_some_and(|pod| pod.restart_policy() == RestartPolicy::Never);
        self.has_succeeded(key) || (never && self.is_said(key, ReplicaPhase::Failed))
    }

    fn is_said(&self, key: &ReplicaKey, phase: ReplicaPhase) -> bool {
        let mut held = self.me.held.iter();
        held.any(|h| h.phase == i32::from(phase) && h.key.as_ref().is_some_and(|k| same(k, key)))
    }

    fn end(&mut self, key: &ReplicaKey, why: String, out: &mut Vec<Output>) {
        let Some(mine) = self.mine.get_mut(key) else {
            return;
        };
        mine.stopped = true;
        let (generation, held) = (mine.generation, mine.hold.is_none());
        if held {
            self.counts.superseded += 1;
            out.push(Output::Event {
                reason: "Superseded",
                message: format!("the copy on {} ends: {why}", self.node_id),
                warning: false,
                key: Some(key.clone()),
            });
        }
        out.push(Output::Stop {
            key: key.clone(),
            generation,
            why,
        });
        self.forget_if_gone(key);
    }

    /// What the node holds: copies that nobody told of, and the end of those that were stopped.
    pub(super) fn note_held(&mut self, me: &Me) {
        let mut held = std::collections::BTreeMap::new();
        for h in &me.held {
            if let Ok(key) = convert::replica_key("held", h.key.as_ref()) {
                held.insert(key, h);
            }
        }
        self.mine
            .retain(|key, mine| !mine.stopped || held.contains_key(key));
        for (key, h) in held {
            let runs = !matches!(
                ReplicaPhase::try_from(h.phase),
                Ok(ReplicaPhase::Stopping | ReplicaPhase::Stopped)
            );
            if runs && h.generation > 0 {
                self.mine
                    .entry(key)
                    .or_insert_with(|| Mine::of(h.generation));
            }
        }
    }

    pub(super) fn forget_if_gone(&mut self, key: &ReplicaKey) {
        let held = self.me.held.iter();
        if !held.filter_map(|h| h.key.as_ref()).any(|k| same(k, key)) {
            self.mine.remove(key);
        }
    }
}

/// True where the wire's key means this replica.
pub(super) fn same(wire: &hyperion_wire::agent_v1::ReplicaKey, key: &ReplicaKey) -> bool {
    wire.index == key.index
        && wire.workload_uid == key.uid
        && wire.workload == key.workload
        && wire.namespace == key.namespace
}

/// A copy that has some way to go until it serves.
fn is_not_there_yet(held: &HeldReplica) -> bool {
    matches!(
        ReplicaPhase::try_from(held.phase),
        Ok(ReplicaPhase::Pulling
            | ReplicaPhase::Starting
            | ReplicaPhase::Backoff
            | ReplicaPhase::Failed)
    )
}
