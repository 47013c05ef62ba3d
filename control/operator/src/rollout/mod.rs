//! Rollouts: which nodes get which version, and when.
//!
//! [`step`] is pure: a rollout's plan, what is known of its nodes and the time give orders, which
//! nodes are emptied, and what to say. [`Rollouts`] holds what steps begin with and act on.
//!
//! A step acts on what the API holds: a node is told to restart after the rollout's status says so,
//! and a leader that takes over finds there which nodes are between two versions.

pub mod node;
pub mod status;
pub mod step;
#[cfg(test)]
mod tests;
mod view;
pub mod write;

use std::collections::{BTreeMap, BTreeSet};

use hyperion_api::conditions;
use hyperion_api::rollout::{HyperionRollout, HyperionRolloutStatus, Plan, RolloutPhase};
use hyperion_proto::agent_v1::UpdateOrder;
use jiff::Timestamp;
use kube::core::DeserializeGuard;
use kube::{Resource, ResourceExt};
use tracing::warn;

use crate::events::Note;
use crate::index::Index;
use node::{Of, View};
use step::{Moving, Step};

/// A rollout.
struct Entry {
    object: HyperionRollout,
    /// What it asks for, or why that can't be carried out.
    plan: Result<Of, String>,
    /// What the API holds, as far as this process knows.
    stored: HyperionRolloutStatus,
    /// What is being written.
    written: Option<HyperionRolloutStatus>,
    /// Nodes that were told of it and may not have answered yet.
    told: BTreeSet<String>,
    /// Failures that were told in events.
    said: BTreeSet<String>,
}

/// What follows from a round over all rollouts.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Orders that changed; with an empty id nothing is wanted of the node any more.
    pub orders: Vec<(String, UpdateOrder)>,
    /// Nodes that are to be emptied, all of them.
    pub emptied: BTreeSet<String>,
    /// Statuses to be written.
    pub statuses: Vec<(String, HyperionRolloutStatus)>,
    /// For people.
    pub words: Vec<Note>,
}

/// All rollouts.
#[derive(Default)]
pub struct Rollouts {
    held: BTreeMap<String, Entry>,
    /// Orders that nodes were given.
    orders: BTreeMap<String, UpdateOrder>,
    /// Something changed since the last round.
    pub dirty: bool,
}

impl Entry {
    fn new(object: HyperionRollout) -> Self {
        let stored = object.status.clone().unwrap_or_default();
        let said = stored.failures.iter().map(|f| f.node.clone()).collect();
        Self {
            plan: read(&object),
            object,
            stored,
            written: None,
            told: BTreeSet::new(),
            said,
        }
    }

    /// What is or will be in the API.
    fn latest(&self) -> &HyperionRolloutStatus {
        self.written.as_ref().unwrap_or(&self.stored)
    }

    /// True where it is over, and nobody has changed it since.
    fn over(&self) -> bool {
        let held = self.latest();
        held.phase == RolloutPhase::Complete
            && held.observed_generation == self.object.metadata.generation
    }
}

fn read(object: &HyperionRollout) -> Result<Of, String> {
    let plan = Plan::read(&object.spec).map_err(|e| e.to_string())?;
    Ok(Of::new(plan, &object.uid().unwrap_or_default()))
}

impl Rollouts {
    /// A rollout was made or changed. One that can't be read is as one that is gone.
    pub fn apply(&mut self, object: DeserializeGuard<HyperionRollout>) {
        self.dirty = true;
        let object = match object.0 {
            Ok(object) => object,
            Err(e) => {
                let name = e.metadata.name.unwrap_or_default();
                warn!(rollout = name, error = %e.error, "bad HyperionRollout");
                self.held.remove(&name);
                return;
            }
        };
        let name = object.name_any();
        match self.held.get_mut(&name) {
            // Of a status that changes this process itself is the source.
            Some(entry) if entry.object.uid() == object.uid() => {
                if entry.object.spec != object.spec {
                    entry.plan = read(&object);
                }
                entry.object = object;
            }
            _ => {
                self.held.insert(name, Entry::new(object));
            }
        }
    }

    /// A rollout is gone: what was not activated is withdrawn, and its nodes are released.
    pub fn delete(&mut self, object: &DeserializeGuard<HyperionRollout>) {
        self.dirty = true;
        self.held.remove(&object.name_any());
    }

    /// The complete list, after a watch began anew.
    pub fn reset(&mut self, list: Vec<DeserializeGuard<HyperionRollout>>) {
        self.dirty = true;
        let names: BTreeSet<String> = list.iter().map(ResourceExt::name_any).collect();
        self.held.retain(|held, _| names.contains(held));
        list.into_iter().for_each(|object| self.apply(object));
    }

    /// The API holds this status now.
    pub fn stored(&mut self, name: &str, uid: Option<&str>, status: HyperionRolloutStatus) {
        let Some(entry) = self.held.get_mut(name) else {
            return;
        };
        if entry.object.metadata.uid.as_deref() != uid {
            return;
        }
        if entry.written.as_ref() == Some(&status) {
            entry.written = None;
        }
        entry.stored = status;
        self.dirty = true;
    }

    /// Something changed that a rollout may follow from.
    pub fn news(&mut self) {
        self.dirty |= self.active();
    }

    /// True while some rollout is not over: time alone may be what it waits for.
    #[must_use]
    pub fn active(&self) -> bool {
        self.held.values().any(|entry| !entry.over())
    }

    /// Nodes by state, of every rollout.
    pub fn counts(&self) -> impl Iterator<Item = (&str, &HyperionRolloutStatus)> {
        let all = self.held.iter();
        all.map(|(name, entry)| (name.as_str(), entry.latest()))
    }

    /// Looks at every rollout, the oldest first: of two for one node it has it.
    pub fn round(&mut self, index: &Index, now: Timestamp) -> Outcome {
        self.dirty = false;
        let mut out = Outcome::default();
        let mut orders = BTreeMap::new();
        let mut claimed: BTreeMap<String, String> = BTreeMap::new();
        let mut names: Vec<(Option<Timestamp>, String)> = self
            .held
            .iter()
            .map(|(name, entry)| {
                let made = entry.object.metadata.creation_timestamp.as_ref();
                (made.map(|t| t.0), name.clone())
            })
            .collect();
        names.sort();
        for (_, name) in names {
            let Some(entry) = self.held.get_mut(&name) else {
                continue;
            };
            if entry.over() {
                entry.told.clear();
                continue;
            }
            let mut stored = status::moving(&entry.stored);
            if let Ok(of) = &entry.plan {
                // Begun for another bundle: those nodes begin anew, with this one.
                stored.retain(|_, moving| of.gave(&moving.order));
            }
            let (step, status) = match &entry.plan {
                Ok(of) => {
                    let views = view::views(index, of, &claimed);
                    let step = step::step(of, &views, &stored, &entry.told, now);
                    if step.tally.phase != RolloutPhase::Complete {
                        let mine = views.iter().filter(|v| v.claimable(of));
                        claimed.extend(mine.map(|v| (v.name.to_owned(), name.clone())));
                    }
                    let status = status::status(&entry.object, &step, entry.latest(), now);
                    (Some(step), status)
                }
                Err(problem) => {
                    let status = status::invalid(&entry.object, problem, entry.latest(), now);
                    (None, status)
                }
            };
            if let (Some(step), Ok(of)) = (&step, &entry.plan) {
                entry.told = step.orders.keys().cloned().collect();
                for (node, order) in &step.orders {
                    orders.insert(node.clone(), of.order(order));
                }
                if of.empties() {
                    out.emptied.extend(kept(step, &stored));
                }
            }
            // One at a time: the next follows from what is stored then, and forgets no node.
            if entry.written.is_none() && entry.stored != status {
                entry.say(&status, &mut out.words);
                entry.written = Some(status.clone());
                out.statuses.push((name, status));
            }
        }
        self.changes(orders, &mut out);
        out
    }

    /// Orders that differ from what nodes were given.
    fn changes(&mut self, orders: BTreeMap<String, UpdateOrder>, out: &mut Outcome) {
        for node in self
            .orders
            .keys()
            .filter(|node| !orders.contains_key(*node))
        {
            out.orders.push((node.clone(), UpdateOrder::default()));
        }
        for (node, order) in &orders {
            if self.orders.get(node) != Some(order) {
                out.orders.push((node.clone(), order.clone()));
            }
        }
        self.orders = orders;
    }
}

/// Nodes that were to be emptied by what is stored, and still are.
fn kept<'a>(
    step: &'a Step,
    stored: &'a BTreeMap<String, Moving>,
) -> impl Iterator<Item = String> + 'a {
    let still = step.moving.keys().filter(|node| stored.contains_key(*node));
    still.cloned()
}

impl Entry {
    /// Says what is new in a status.
    fn say(&mut self, status: &HyperionRolloutStatus, words: &mut Vec<Note>) {
        /// Failures that are told one by one at a time.
        const TOLD: usize = 10;
        let before = self.latest();
        let of = |warning, reason: &str, text: String| Note {
            about: self.object.object_ref(&()),
            warning,
            reason: reason.to_owned(),
            text,
            past: None,
        };
        let new = status
            .failures
            .iter()
            .filter(|f| !self.said.contains(&f.node));
        for failure in new.take(TOLD) {
            let text = format!(
                "node {}: {} {}",
                failure.node, failure.reason, failure.message
            );
            words.push(of(true, conditions::EVENT_UPDATE_FAILED, text));
        }
        if (before.phase, &before.reason) != (status.phase, &status.reason) {
            let stopped = matches!(status.phase, RolloutPhase::Paused | RolloutPhase::Invalid);
            let resumed = before.phase == RolloutPhase::Paused;
            if stopped || resumed || status.phase == RolloutPhase::Complete {
                words.push(of(stopped, &status.reason, status.message.clone()));
            }
        }
        if status.wave > before.wave && status.phase == RolloutPhase::Progressing {
            let text = format!("wave {} begins: {}", status.wave_of, status.message);
            words.push(of(false, conditions::EVENT_WAVE, text));
        }
        self.said = status.failures.iter().map(|f| f.node.clone()).collect();
    }
}

impl View<'_> {
    /// True for a node that a rollout holds against later ones.
    fn claimable(&self, of: &Of) -> bool {
        self.other.is_none() && of.refuses(self).is_none()
    }
}
