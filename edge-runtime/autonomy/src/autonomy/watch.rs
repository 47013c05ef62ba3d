//! Since when something is not as it should be.

use std::collections::BTreeMap;
use std::time::Duration;

use hyperion_placement::model::WorkloadType;
use hyperion_wire::agent_v1::{RecordState, ReplicaPhase};
use hyperion_wire::domain::ReplicaKey;

use super::Autonomy;
use super::mine::same;
use crate::profile::Profile;
use crate::site::ReplicaEntry;

/// A live node that says nothing of a replica that was placed there has not taken it, after this.
const NOT_TAKEN: Duration = Duration::from_secs(30);
/// A replica that can't be created is tried elsewhere after this, as by the control plane.
const FAILED: Duration = Duration::from_secs(10);
/// A service that crashes is tried elsewhere after this: some five attempts.
const CRASHES: Duration = Duration::from_secs(90);
/// Fetching an image takes its time, but at a site without a registry it may never end.
const STARTS: Duration = Duration::from_secs(180);

/// What a live node's word of a replica amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    NotTaken,
    Failed,
    Crashes,
    Starts,
}

impl Trouble {
    const fn patience(self) -> Duration {
        match self {
            Self::NotTaken => NOT_TAKEN,
            Self::Failed => FAILED,
            Self::Crashes => CRASHES,
            Self::Starts => STARTS,
        }
    }

    const fn says(self) -> &'static str {
        match self {
            Self::NotTaken => "did not take it",
            Self::Failed => "can't run it",
            Self::Crashes => "sees it crash",
            Self::Starts => "can't get it started",
        }
    }
}

/// When nodes spoke last, and since when replicas are in trouble.
#[derive(Debug)]
pub(super) struct Watch {
    /// For nodes that were never seen alive.
    unseen_since: Duration,
    /// Last word of nodes that are suspect or dead.
    words: BTreeMap<String, Duration>,
    trouble: BTreeMap<ReplicaKey, (u64, Trouble, Duration)>,
}

impl Watch {
    /// A node that was never seen since this one started is not dead until all had time to start and
    /// to find each other: power comes back to a whole site at once.
    pub(super) fn new(now: Duration, profile: &Profile) -> Self {
        Self {
            unseen_since: now.saturating_add(profile.autonomous_after * 5),
            words: BTreeMap::new(),
            trouble: BTreeMap::new(),
        }
    }

    pub(super) fn up(&mut self, node: &str) {
        self.words.remove(node);
    }

    pub(super) fn suspect(&mut self, node: &str, at: Duration) {
        self.words.insert(node.to_owned(), at);
    }

    pub(super) fn down(&mut self, node: &str, at: Duration) {
        self.words.entry(node.to_owned()).or_insert(at);
    }

    /// When a node that is not alive was last heard of.
    pub(super) fn last_word(&self, node: &str) -> Duration {
        self.words.get(node).copied().unwrap_or(self.unseen_since)
    }
}

impl Autonomy {
    /// What a live node says of a replica that is placed there: when it is to be taken from it and
    /// why, or none where all is well.
    pub(super) fn trouble(
        &mut self,
        key: &ReplicaKey,
        now: Duration,
    ) -> Option<(Duration, &'static str)> {
        let kind = self.site.replica(key).and_then(|e| self.trouble_of(key, e));
        let generation = self.site.replica(key).map_or(0, |e| e.record.generation);
        let Some(kind) = kind else {
            self.watch.trouble.remove(key);
            return None;
        };
        let entry = self
            .watch
            .trouble
            .entry(key.clone())
            .or_insert((generation, kind, now));
        if (entry.0, entry.1) != (generation, kind) {
            *entry = (generation, kind, now);
        }
        Some((entry.2.saturating_add(kind.patience()), kind.says()))
    }

    fn trouble_of(&self, key: &ReplicaKey, entry: &ReplicaEntry) -> Option<Trouble> {
        let intent = entry.intent.as_ref()?;
        if entry.state() != RecordState::Placed {
            return None;
        }
        let node = self.site.node(&entry.record.node)?;
        let held = node.record.held.iter();
        let held = held
            .filter(|h| h.generation >= entry.record.generation)
            .find(|h| h.key.as_ref().is_some_and(|k| same(k, key)));
        let Some(held) = held else {
            // What is held back by its own node is not for others to start.
            let held_back = intent.exclusive || intent.stop_after.is_some();
            return (!held_back).then_some(Trouble::NotTaken);
        };
        match ReplicaPhase::try_from(held.phase).ok()? {
            ReplicaPhase::Failed if intent.wants.workload_type == WorkloadType::Service => {
                Some(Trouble::Failed)
            }
            ReplicaPhase::Backoff => Some(Trouble::Crashes),
            ReplicaPhase::Pulling | ReplicaPhase::Starting => Some(Trouble::Starts),
            _ => None,
        }
    }

    /// Forgets troubles of replicas that are gone.
    pub(super) fn forget_troubles(&mut self) {
        let site = &self.site;
        self.watch.trouble.retain(|key, (generation, _, _)| {
            site.replica(key)
                .is_some_and(|e| e.record.generation == *generation)
        });
    }
}
