//! Replicas on a node that its cloud is about to take back. A service gets its new copy at once, and
//! the old one goes on until that is ready or the node ends. A job, and what is exclusive, is told to
//! stop while there is time to write down where it was, and goes on elsewhere.

use std::time::{Duration, Instant};

use hyperion_placement::model::{Node, Request};

use super::Pass;
use super::better::LATER;
use super::moves::Why;
use super::place::{Decided, decide_on};
use crate::decider::{View, part};
use crate::index::{LAST_WORDS, PlacementEntry, WorkloadEntry};

/// Time for an old copy to end what it is at, before its node ends.
const CLOSING: Duration = Duration::from_secs(5);

impl Pass<'_> {
    /// Why a replica is to leave a node that is about to end, or may be.
    pub(super) fn interrupted(&self, workload: &WorkloadEntry, node: &str) -> Option<Why> {
        let notice = self.index.nodes.get(node)?.notice.as_ref()?;
        let (node, detail) = (node.to_owned(), notice.detail.clone());
        if notice.ends() {
            Some(Why::Interrupted(node, detail))
        } else {
            // Stopping work for what may never come costs more than it saves.
            (!workload.runs_alone()).then_some(Why::AtRisk(node, detail))
        }
    }

    /// Until when the old copy on this node goes on for a successor that is not ready.
    pub(super) fn serves_until(&self, node: &str, patience: Duration) -> Instant {
        let end = self.index.ends_at(node);
        match end {
            Some(end) => end
                .checked_sub(CLOSING)
                .map_or(self.now, |at| at.max(self.now)),
            None => self.now + patience,
        }
    }

    /// Nowhere to go. True where the replica is to be stopped all the same: it would lose what it
    /// has not written down. Looks again in time for that.
    pub(super) fn runs_out(
        &mut self,
        workload: &WorkloadEntry,
        entry: &PlacementEntry,
        why: &Why,
    ) -> bool {
        let Why::Interrupted(node, _) = why else {
            return false;
        };
        let end = self.index.ends_at(node);
        let Some(end) = end.filter(|_| workload.runs_alone() && !entry.ended()) else {
            return false;
        };
        let due = end.checked_sub(self.grace() + LAST_WORDS);
        match due.filter(|due| *due > self.now) {
            Some(due) => {
                self.wake_at(due);
                false
            }
            None => true,
        }
    }

    /// Looks again later for a place for one that may stay where it is.
    pub(super) fn stays_at_risk(&mut self) {
        self.wake_at(self.now + LATER);
    }

    /// Decides among the nodes whose pools are left alone: better there than nowhere.
    pub(super) fn decide_on_cold(&mut self, request: &Request) -> Option<Decided> {
        let fleet = &self.index.fleet;
        let cold = self.index.cold_nodes();
        let nodes = cold.filter_map(|id| fleet.node(id)).map(|node| Node {
            schedulable: true,
            ..node.clone()
        });
        let nodes: Vec<Node> = nodes.collect();
        if nodes.is_empty() {
            return None;
        }
        let part = part(fleet, nodes);
        decide_on(self.decider, View::Part(&part), request).ok()
    }
}
