//! Rollouts in the leader's loop: what they follow from, and what follows from them.

use std::time::{Duration, Instant};

use tracing::info;

use super::Work;
use crate::rollout::write::Stored;

/// Two rounds over rollouts are at least this far apart: nodes answer by the hundred.
const ROUND: Duration = Duration::from_millis(250);
/// While a rollout is under way, a round follows this long after the last although nothing was heard:
/// windows open, and patience ends.
const IDLE: Duration = Duration::from_secs(5);

impl Work {
    /// The API holds a rollout's status.
    pub(super) fn rollout_stored(&mut self, stored: Stored) {
        self.rollouts
            .stored(&stored.name, stored.uid.as_deref(), stored.status);
    }

    /// When rollouts are to be looked at again; none where nothing is to be done.
    pub(super) fn round_at(&self) -> Option<Instant> {
        // The first comes with the first pass, and nothing wakes the loop for it.
        let last = self.round?;
        if self.rollouts.dirty {
            Some(last + ROUND)
        } else {
            self.rollouts.active().then(|| last + IDLE)
        }
    }

    /// Looks at rollouts where that is due.
    pub(super) fn rollouts(&mut self, now: Instant) {
        if self.round.is_some() && self.round_at().is_none_or(|at| at > now) {
            return;
        }
        let first = self.round.replace(now).is_none();
        let outcome = self.rollouts.round(&self.index, jiff::Timestamp::now());
        self.index.set_emptied(&outcome.emptied);
        for (node, order) in outcome.orders {
            self.leader.gateway.set_update(&node, order);
        }
        if first {
            self.leader.gateway.mark_updates_known();
        }
        for word in outcome.words {
            let name = word.about.name.as_deref().unwrap_or_default();
            info!(rollout = name, reason = word.reason, "{}", word.text);
            self.publisher.publish(word);
        }
        if !outcome.statuses.is_empty() {
            // A closed queue means that the leader stops.
            let _ = self.statuses.send(outcome.statuses);
        }
        self.leader.metrics.count_rollouts(self.rollouts.counts());
    }
}
