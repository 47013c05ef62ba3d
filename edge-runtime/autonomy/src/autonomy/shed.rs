//! Giving work up: a node that is too hot, or short of memory, sheds the least important of what it
//! runs, one at a time, and never the last (nor an `exclusive` one: it would end here while it starts
//! elsewhere). And a node on which two deciders, who did not know of
//! each other, have placed more than it has room for, gives back what is too much.

use std::collections::BTreeMap;
use std::time::Duration;

use hyperion_placement::model::Resources;
use hyperion_wire::agent_v1::{RecordState, ReplicaRecord};
use hyperion_wire::domain::ReplicaKey;

use super::Autonomy;
use crate::decide::share_of;
use crate::output::Output;

/// A node that is overloaded for this long gives something up.
const PATIENCE: Duration = Duration::from_secs(10);
/// And something more after this, if that did not help.
const AGAIN: Duration = Duration::from_secs(30);
/// Share of the memory in use, percent, that is too much.
const FULL_PERCENT: u64 = 95;

/// Since when a node is overloaded.
#[derive(Debug, Default)]
pub(super) struct Shed {
    since: Option<Duration>,
    last: Option<Duration>,
}

/// True where a node gave the replica up.
pub(super) fn is_shed(record: &ReplicaRecord) -> bool {
    record.state == i32::from(RecordState::Pending)
        && record
            .explanation
            .as_ref()
            .is_some_and(|why| why.scorer == SHED)
}

/// Stands where the scorer stands in decisions about places.
const SHED: &str = "shed";

impl Autonomy {
    /// Why this node is overloaded.
    fn overload(&self) -> Option<String> {
        let load = self.me.load;
        if load.throttled {
            return Some(format!(
                "node {} throttles at {} degrees",
                self.node_id, load.max_celsius
            ));
        }
        let used = u64::try_from(load.memory_used_bytes).unwrap_or(0);
        let all = u64::try_from(self.me.capabilities.memory_bytes).unwrap_or(0);
        let percent = used.saturating_mul(100).checked_div(all).unwrap_or(0);
        (percent >= FULL_PERCENT)
            .then(|| format!("node {} uses {percent} % of its memory", self.node_id))
    }

    /// Gives back the least important of what the site has placed here beyond what there is room for.
    pub(super) fn give_back_what_is_too_much(&mut self, now: Duration, out: &mut Vec<Output>) {
        while self.is_too_much() {
            let least = self
                .site
                .replicas()
                .filter(|(_, e)| e.placed_on(&self.node_id))
                // What the control plane has seen it answers for; and an exclusive one would end
                // here while it starts elsewhere.
                .filter(|(_, e)| e.untaken() && e.intent.as_ref().is_some_and(|i| !i.exclusive))
                .map(|(key, _)| key)
                .min_by_key(|key| (self.importance(key), std::cmp::Reverse((*key).clone())))
                .cloned();
            let cause = format!("node {} has no room for it after all", self.node_id);
            match least {
                Some(key) if self.give_up(&key, &cause, now, out) => {}
                _ => return,
            }
        }
    }

    /// True where more is placed on this node than it has.
    fn is_too_much(&self) -> bool {
        let Some(me) = self.site.node(&self.node_id) else {
            return false;
        };
        let mut sum = Resources::default();
        let mut gpus: BTreeMap<String, u32> = BTreeMap::new();
        for (_, entry) in self.site.replicas() {
            if entry.placed_on(&self.node_id) {
                let share = share_of(entry.intent.as_ref(), entry.record.pod.as_ref());
                sum.cpu_millis = sum.cpu_millis.saturating_add(share.resources.cpu_millis);
                sum.memory_bytes = sum
                    .memory_bytes
                    .saturating_add(share.resources.memory_bytes);
                for (uuid, millis) in share.gpus {
                    let given = gpus.entry(uuid).or_default();
                    *given = given.saturating_add(millis);
                }
            }
        }
        sum.cpu_millis > me.capabilities.cpu_millis
            || sum.memory_bytes > me.capabilities.memory_bytes
            || gpus.values().any(|millis| *millis > 1000)
    }

    /// Gives up the least important replica where this node has been overloaded for long enough.
    pub(super) fn shed(&mut self, now: Duration, out: &mut Vec<Output>) {
        let Some(cause) = self.overload() else {
            self.shed.since = None;
            return;
        };
        let since = *self.shed.since.get_or_insert(now);
        let due = since.saturating_add(PATIENCE).max(
            self.shed
                .last
                .map_or(Duration::ZERO, |at| at.saturating_add(AGAIN)),
        );
        if now < due {
            self.place_at = self.place_at.min(due);
            return;
        }
        let Some(key) = self.least_important() else {
            return;
        };
        if self.give_up(&key, &cause, now, out) {
            self.shed.last = Some(now);
            self.place_at = self.place_at.min(now.saturating_add(AGAIN));
        }
    }

    /// The replica waits for another place; false where that could not be written down.
    fn give_up(
        &mut self,
        key: &ReplicaKey,
        cause: &str,
        now: Duration,
        out: &mut Vec<Output>,
    ) -> bool {
        let Some(entry) = self.site.replica(key) else {
            return false;
        };
        let record = self.unplaced(entry, cause, SHED, now);
        if !self.keep(record, now, out) {
            return false;
        }
        self.counts.shed += 1;
        out.push(Output::Event {
            reason: "Shed",
            message: format!("{cause}: it waits for another place"),
            warning: true,
            key: Some(key.clone()),
        });
        true
    }

    /// Of two or more.
    fn least_important(&self) -> Option<ReplicaKey> {
        let running: Vec<&ReplicaKey> = self
            .mine
            .iter()
            .filter(|(key, mine)| {
                !mine.stopped
                    && mine.hold.is_none()
                    && self
                        .site
                        .replica(key)
                        .is_some_and(|e| e.placed_on(&self.node_id))
            })
            .map(|(key, _)| key)
            .collect();
        if running.len() < 2 {
            return None;
        }
        running
            .into_iter()
            .filter(|key| {
                let intent = self.site.replica(key).and_then(|e| e.intent.as_ref());
                intent.is_some_and(|intent| !intent.exclusive)
            })
            .min_by_key(|key| (self.importance(key), std::cmp::Reverse((*key).clone())))
            .cloned()
    }
}
