//! New places for replicas that need one, while the site is on its own.
//!
//! Two nodes that see other members alive may decide about one replica at once. For most that means
//! two copies until each has heard of the other's record. For an `exclusive` one it must not: its
//! decider first *claims* it (a record without a place), and places it when the claim has stood for
//! long enough to be heard by a majority. Of two claims the join keeps one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hyperion_placement::model::Goal;
use hyperion_wire::agent_v1::{GpuShare, PodSpec, RecordState, ReplicaRecord, SiteExplanation};
use hyperion_wire::domain::{Intent, ReplicaKey};

use super::Autonomy;
use super::shed::is_shed;
use crate::decide::{Decide, Decided, Room, Wanted, choose, decider, share_of};
use crate::mode::Mode;
use crate::output::Output;
use crate::site::ReplicaEntry;

/// Time until a replica that found no place is tried again although nothing has changed.
const AGAIN: Duration = Duration::from_secs(5);
/// A node that gave a replica up is not given it again for this long.
const GAVE_UP: Duration = Duration::from_secs(120);

/// Ends the cause of a decision about a dead node's replica.
const IS_DEAD: &str = " is dead";

/// What a replica needs.
enum Need {
    /// Nothing.
    None,
    /// Perhaps something, then.
    At(Duration),
    /// A place.
    Place {
        cause: String,
        avoid: BTreeMap<String, String>,
    },
    /// A place, but it has to wait: why.
    Wait(String),
}

impl Autonomy {
    /// Decides for the replicas that this node is the decider of.
    pub(super) fn place(&mut self, now: Duration, decide: &dyn Decide, out: &mut Vec<Output>) {
        self.place_at = Duration::MAX;
        if self.mode() != Mode::Autonomous || self.site.is_revoked(&self.node_id) {
            return;
        }
        self.forget_troubles();
        self.shed(now, out);
        self.give_back_what_is_too_much(now, out);
        let live: BTreeSet<String> = self
            .membership
            .live()
            .into_iter()
            .filter(|id| !self.site.is_revoked(id))
            .map(str::to_owned)
            .collect();
        let keys: Vec<ReplicaKey> = self
            .site
            .replicas()
            .filter(|(_, e)| matches!(e.state(), RecordState::Placed | RecordState::Pending))
            .map(|(key, _)| key.clone())
            .collect();
        let mut wanting = Vec::new();
        for key in keys {
            match self.need(&key, &live, now) {
                Need::None => {}
                Need::At(at) => self.place_at = self.place_at.min(at),
                // Asked last: it is the dearest question.
                _ if decider(&key, live.iter().map(String::as_str)) != Some(&self.node_id) => {}
                Need::Wait(why) => self.tell_that_it_waits(&key, why, out),
                Need::Place { cause, avoid } => match self.blocked.get(&key) {
                    Some(until) if now < *until => self.place_at = self.place_at.min(*until),
                    _ => wanting.push((key, cause, avoid)),
                },
            }
        }
        if wanting.is_empty() {
            return;
        }
        wanting.sort_by_key(|(key, _, _)| (std::cmp::Reverse(self.importance(key)), key.clone()));
        let mut room = Room::of(&self.site, |id| live.contains(id));
        for (key, cause, avoid) in wanting {
            let placed = self.place_one(&key, cause, avoid, &mut room, now, decide, out);
            if !placed {
                let until = now.saturating_add(AGAIN);
                self.blocked.insert(key, until);
                self.place_at = self.place_at.min(until);
            }
        }
    }

    /// The more important goes first, and is shed last.
    pub(super) fn importance(&self, key: &ReplicaKey) -> (i32, u8, bool) {
        let intent = self.site.replica(key).and_then(|e| e.intent.as_ref());
        intent.map_or((i32::MIN, 0, false), |intent| {
            let goal = match intent.wants.goal {
                Goal::Cost => 0,
                Goal::Default => 1,
                Goal::Latency => 2,
            };
            let service =
                intent.wants.workload_type == hyperion_placement::model::WorkloadType::Service;
            (intent.priority, goal, service)
        })
    }

    fn need(&mut self, key: &ReplicaKey, live: &BTreeSet<String>, now: Duration) -> Need {
        let Some(entry) = self.site.replica(key) else {
            return Need::None;
        };
        let Some(intent) = entry.intent.clone() else {
            return Need::None;
        };
        if self.is_cut_off(intent.stop_after, now) {
            return Need::None;
        }
        let node = entry.record.node.clone();
        match entry.state() {
            RecordState::Pending => self.need_of_pending(entry, &intent, now),
            RecordState::Placed if !live.contains(&node) => {
                self.need_of_orphan(entry, &intent, &node, now)
            }
            RecordState::Placed => match self.trouble(key, now) {
                Some((at, _)) if now < at => Need::At(at),
                // An exclusive replica's node has to be asked to stop it first, and may not.
                Some(_) if intent.exclusive => Need::None,
                Some((_, says)) => Need::Place {
                    cause: format!("node {node} {says}"),
                    avoid: [(node, says.to_owned())].into(),
                },
                None => Need::None,
            },
            _ => Need::None,
        }
    }

    fn need_of_pending(&self, entry: &ReplicaEntry, intent: &Intent, now: Duration) -> Need {
        if intent.exclusive {
            if entry.record.taken {
                return Need::Wait(
                    "the control plane has taken it, and may run it elsewhere".to_owned(),
                );
            }
            if !self.sees_majority() {
                return self.no_majority();
            }
            // One of the majority may know that the control plane has taken it.
            if let Some(at) = self.compares_until(now) {
                return Need::At(at);
            }
        }
        if is_claim(&entry.record) {
            let own = entry.record.decider == self.node_id;
            // Of another node that decided no more: it died, or sees others alive.
            let times = if own { 1 } else { 3 };
            let at = entry.at.saturating_add(self.claim_stands() * times);
            if now < at {
                return Need::At(at);
            }
        }
        let cause = entry
            .record
            .explanation
            .as_ref()
            .map_or_else(String::new, |why| why.cause.clone());
        let mut avoid = BTreeMap::new();
        if is_shed(&entry.record) && now.saturating_sub(entry.at) < GAVE_UP {
            avoid.insert(entry.record.decider.clone(), cause.clone());
        }
        let cause = if cause.is_empty() {
            "it waited for a place".to_owned()
        } else {
            cause
        };
        Need::Place { cause, avoid }
    }

    /// Its node is dead, or was revoked.
    fn need_of_orphan(
        &self,
        entry: &ReplicaEntry,
        intent: &Intent,
        node: &str,
        now: Duration,
    ) -> Need {
        let mut wait = intent.replace_after.unwrap_or(self.profile.takeover_after);
        if intent.exclusive {
            let known = self.site.node(node);
            // It may run there under the eyes of the control plane, or nobody knows what it does.
            if known.is_none_or(|n| n.record.linked) {
                return Need::Wait(format!(
                    "node {node} had a link to the control plane when it was last heard, and may \
                     run it"
                ));
            }
            if !self.sees_majority() {
                return self.no_majority();
            }
            let grace = entry
                .record
                .pod
                .as_ref()
                .map_or(0, |pod| pod.termination_grace_period_seconds);
            let grace = Duration::from_secs(u64::from(grace));
            wait = wait.max(self.exclusive_after(grace));
        }
        let at = self.watch.last_word(node).saturating_add(wait);
        if now < at {
            return Need::At(at);
        }
        Need::Place {
            cause: format!("node {node}{IS_DEAD}"),
            avoid: BTreeMap::new(),
        }
    }

    fn tell_that_it_waits(&mut self, key: &ReplicaKey, why: String, out: &mut Vec<Output>) {
        if self.people.waiting.insert((key.clone(), "NoMajority")) {
            out.push(Output::Event {
                reason: "NoMajority",
                message: format!("an exclusive replica waits: {why}"),
                warning: true,
                key: Some(key.clone()),
            });
        }
    }

    fn no_majority(&self) -> Need {
        Need::Wait(format!(
            "{} of {} nodes of the site are alive",
            self.live_members(),
            self.members()
        ))
    }

    /// Time that a claim has to stand.
    fn claim_stands(&self) -> Duration {
        self.profile.sync_period * 3 + self.profile.probe_period
    }

    /// What this node's next decision about a replica is made from.
    fn next_decision(&self, entry: &ReplicaEntry, now: Duration) -> ReplicaRecord {
        ReplicaRecord {
            generation: entry.record.generation + 1,
            decider: self.node_id.clone(),
            unix_ms: self.unix_ms(now),
            taken: false,
            ..entry.next_record()
        }
    }

    /// The decision that a replica has no place for now; `scorer` says why there is none.
    pub(super) fn unplaced(
        &self,
        entry: &ReplicaEntry,
        cause: &str,
        scorer: &str,
        now: Duration,
    ) -> ReplicaRecord {
        ReplicaRecord {
            state: RecordState::Pending.into(),
            node: String::new(),
            explanation: Some(SiteExplanation {
                cause: cause.to_owned(),
                scorer: scorer.to_owned(),
                ..SiteExplanation::default()
            }),
            ..self.next_decision(entry, now)
        }
    }

    /// Claims an exclusive replica; true where it may be placed now.
    fn claim(
        &mut self,
        key: &ReplicaKey,
        cause: &str,
        now: Duration,
        out: &mut Vec<Output>,
    ) -> bool {
        let Some(entry) = self.site.replica(key) else {
            return false;
        };
        let exclusive = entry.intent.as_ref().is_some_and(|i| i.exclusive);
        let claimed = is_claim(&entry.record) && entry.record.decider == self.node_id;
        if !exclusive || self.members() == 1 || claimed {
            return true;
        }
        let record = self.unplaced(entry, cause, CLAIM, now);
        self.keep(record, now, out);
        false
    }

    #[expect(clippy::too_many_arguments, reason = "one pass's state, used once")]
    fn place_one(
        &mut self,
        key: &ReplicaKey,
        cause: String,
        avoid: BTreeMap<String, String>,
        room: &mut Room,
        now: Duration,
        decide: &dyn Decide,
        out: &mut Vec<Output>,
    ) -> bool {
        if !self.claim(key, &cause, now, out) {
            return true;
        }
        let Some(entry) = self.site.replica(key) else {
            return true;
        };
        let (Some(intent), Some(pod)) = (&entry.intent, &entry.record.pod) else {
            return true;
        };
        let wanted = Wanted {
            key,
            intent,
            pod,
            siblings: self.siblings(key),
            avoid,
        };
        let decided = choose(room, &wanted, decide);
        let Decided {
            node: Some(node),
            gpus,
            explanation,
        } = decided
        else {
            self.counts.no_room += 1;
            if self.people.waiting.insert((key.clone(), "NoRoom")) {
                out.push(Output::Event {
                    reason: "NoRoom",
                    message: format!("{cause}, and {}", nowhere(&decided.explanation)),
                    warning: true,
                    key: Some(key.clone()),
                });
            }
            return false;
        };
        let pod = PodSpec {
            gpus: gpus
                .into_iter()
                .map(|(uuid, millis)| GpuShare { uuid, millis })
                .collect(),
            ..pod.clone()
        };
        let share = share_of(Some(intent), Some(&pod));
        let before = entry.record.node.clone();
        let record = ReplicaRecord {
            state: RecordState::Placed.into(),
            node: node.clone(),
            pod: Some(pod),
            explanation: Some(SiteExplanation {
                cause: cause.clone(),
                ..explanation
            }),
            ..self.next_decision(entry, now)
        };
        if !self.keep(record, now, out) {
            return false;
        }
        if !room.strays(key).contains(&node) {
            room.take(&node, &share);
        }
        self.counts.decisions += 1;
        self.people.waiting.remove(&(key.clone(), "NoRoom"));
        let reason = if before.is_empty() && !cause.ends_with(IS_DEAD) {
            "Placed"
        } else {
            "TakenOver"
        };
        out.push(Output::Event {
            reason,
            message: format!("{} placed it on {node}: {cause}", self.node_id),
            warning: false,
            key: Some(key.clone()),
        });
        true
    }

    /// Nodes with other replicas of the workload.
    fn siblings(&self, key: &ReplicaKey) -> BTreeSet<String> {
        let first = ReplicaKey {
            index: 0,
            ..key.clone()
        };
        let last = ReplicaKey {
            index: u32::MAX,
            ..key.clone()
        };
        self.site
            .replicas_between(&first, &last)
            .filter(|(other, entry)| *other != key && entry.state() == RecordState::Placed)
            .map(|(_, entry)| entry.record.node.clone())
            .collect()
    }
}

/// Stands where the scorer stands in decisions about places.
const CLAIM: &str = "claim";

fn is_claim(record: &ReplicaRecord) -> bool {
    record.state == i32::from(RecordState::Pending)
        && record
            .explanation
            .as_ref()
            .is_some_and(|why| why.scorer == CLAIM)
}

fn nowhere(why: &SiteExplanation) -> String {
    let reasons: Vec<String> = why
        .rejected
        .iter()
        .map(|r| format!("{} by {}", r.count, r.constraint))
        .collect();
    match (reasons.is_empty(), why.fallback.as_str()) {
        (false, _) => format!("no live node fits: ruled out {}", reasons.join(", ")),
        (true, "") => "no live node fits".to_owned(),
        (true, why) => why.to_owned(),
    }
}
