//! The fleet as a person sees it: rows made from API objects and live telemetry, changed only by
//! [`Fleet::apply`]. Every string is cleaned on its way in.

pub mod column;
pub mod explain;
pub mod happening;
pub mod live;
pub mod node;
pub mod placement;
pub mod rollout;
pub mod store;
pub mod summary;
pub mod workload;

use hyperion_api::fleet::ScorerStatus;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use serde::{Deserialize, Serialize};

pub use happening::Happening;
pub use node::{Node, NodeState};
pub use placement::Placement;
pub use rollout::Rollout;
pub use store::Store;
pub use workload::Workload;

use crate::text::clean_in_place;
use column::Row;
use live::LiveSample;

/// Events kept; the oldest go first. An hour of a busy fleet.
pub const MAX_HAPPENINGS: usize = 2000;

/// A condition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Condition {
    /// Type.
    pub name: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Reason.
    pub reason: String,
    /// Message.
    pub message: String,
}

impl From<&meta::Condition> for Condition {
    fn from(c: &meta::Condition) -> Self {
        Self {
            name: c.type_.clone(),
            status: c.status.clone(),
            reason: c.reason.clone(),
            message: c.message.clone(),
        }
    }
}

impl Condition {
    fn prepare(&mut self) {
        for text in [
            &mut self.name,
            &mut self.status,
            &mut self.reason,
            &mut self.message,
        ] {
            clean_in_place(text);
        }
    }
}

/// A change of the fleet.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Change {
    /// All nodes there are.
    Nodes(Vec<Node>),
    /// One node, new or changed.
    Node(Box<Node>),
    /// A node is gone.
    NodeGone(String),
    /// All workloads there are.
    Workloads(Vec<Workload>),
    /// One workload, new or changed.
    Workload(Box<Workload>),
    /// A workload is gone.
    WorkloadGone(String),
    /// All placements there are.
    Placements(Vec<Placement>),
    /// One placement, new or changed.
    Placement(Box<Placement>),
    /// A placement is gone.
    PlacementGone(String),
    /// All rollouts there are.
    Rollouts(Vec<Rollout>),
    /// One rollout, new or changed.
    Rollout(Box<Rollout>),
    /// A rollout is gone.
    RolloutGone(String),
    /// Events, new or counted up.
    Happenings(Vec<Happening>),
    /// Live values that arrived.
    Live(Vec<LiveSample>),
    /// Who decides.
    Scorer(ScorerStatus),
}

/// What a change touched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Touched {
    /// Nodes came, went or changed.
    pub nodes: bool,
    /// Live values changed.
    pub live: bool,
    /// Workloads.
    pub workloads: bool,
    /// Placements.
    pub placements: bool,
    /// Events.
    pub happenings: bool,
}

/// All rows.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Fleet {
    /// Nodes.
    pub nodes: Store<Node>,
    /// Workloads.
    pub workloads: Store<Workload>,
    /// Placements.
    pub placements: Store<Placement>,
    /// Rollouts.
    pub rollouts: Store<Rollout>,
    /// Events.
    pub happenings: Store<Happening>,
    /// Who decides; nobody has said yet where `decides` is empty.
    pub scorer: ScorerStatus,
}

impl Fleet {
    /// Takes a change at time `now_ms`.
    pub fn apply(&mut self, change: Change, now_ms: i64) -> Touched {
        let mut touched = Touched::default();
        match change {
            Change::Nodes(rows) => {
                keep_only(&mut self.nodes, &rows);
                rows.into_iter().for_each(|row| self.put_node(row));
                self.count_replicas();
                touched.nodes = true;
            }
            Change::Node(row) => {
                self.put_node(*row);
                touched.nodes = true;
            }
            Change::NodeGone(id) => touched.nodes = self.nodes.remove(&id).is_some(),
            Change::Workloads(rows) => {
                keep_only(&mut self.workloads, &rows);
                rows.into_iter().for_each(|row| self.put_workload(row));
                touched.workloads = true;
            }
            Change::Workload(row) => {
                self.put_workload(*row);
                touched.workloads = true;
            }
            Change::WorkloadGone(id) => touched.workloads = self.workloads.remove(&id).is_some(),
            Change::Placements(rows) => {
                keep_only(&mut self.placements, &rows);
                rows.into_iter().for_each(|row| {
                    self.put_placement(row);
                });
                self.count_replicas();
                touched.placements = true;
            }
            Change::Placement(row) => {
                let node = row.node.clone();
                let before = self.put_placement(*row);
                if before.as_deref() != Some(node.as_str()) {
                    self.recount(before.as_deref(), Some(&node));
                }
                touched.placements = true;
            }
            Change::PlacementGone(id) => {
                if let Some(row) = self.placements.remove(&id) {
                    self.recount(Some(&row.node), None);
                    touched.placements = true;
                }
            }
            Change::Rollouts(rows) => {
                keep_only(&mut self.rollouts, &rows);
                rows.into_iter().for_each(|row| self.put_rollout(row));
            }
            Change::Rollout(row) => self.put_rollout(*row),
            Change::RolloutGone(id) => drop(self.rollouts.remove(&id)),
            Change::Happenings(rows) => {
                for mut row in rows {
                    row.prepare();
                    self.happenings.put(row);
                }
                self.forget_old_happenings();
                touched.happenings = true;
            }
            Change::Live(samples) => {
                for sample in &samples {
                    // Telemetry of a node whose object has not arrived yet: the next one will do.
                    if let Some(node) = self.nodes.get_mut(&sample.id) {
                        node.live.get_or_insert_default().take(sample, now_ms);
                    }
                }
                touched.live = true;
            }
            Change::Scorer(mut scorer) => {
                for text in [
                    &mut scorer.decides,
                    &mut scorer.policy,
                    &mut scorer.source,
                    &mut scorer.refused,
                ] {
                    clean_in_place(text);
                }
                self.scorer = scorer;
            }
        }
        touched
    }

    fn put_node(&mut self, mut row: Node) {
        row.prepare();
        if let Some(before) = self.nodes.get_mut(&row.id) {
            row.live = before.live.take();
            row.replicas = before.replicas;
        }
        self.nodes.put(row);
    }

    fn put_workload(&mut self, mut row: Workload) {
        row.prepare();
        self.workloads.put(row);
    }

    fn put_rollout(&mut self, mut row: Rollout) {
        row.prepare();
        self.rollouts.put(row);
    }

    /// Gives the node that the placement was on before.
    fn put_placement(&mut self, mut row: Placement) -> Option<String> {
        row.prepare();
        self.placements.put(row).map(|before| before.node)
    }

    fn recount(&mut self, less: Option<&str>, more: Option<&str>) {
        if let Some(node) = less.and_then(|id| self.nodes.get_mut(id)) {
            node.replicas = node.replicas.saturating_sub(1);
        }
        if let Some(node) = more.and_then(|id| self.nodes.get_mut(id)) {
            node.replicas += 1;
        }
    }

    fn count_replicas(&mut self) {
        let mut counts = std::collections::HashMap::<&str, u32>::new();
        for (_, placement) in self.placements.iter() {
            *counts.entry(&placement.node).or_default() += 1;
        }
        let ids: Vec<String> = self.nodes.ids().cloned().collect();
        for id in ids {
            let count = counts.get(id.as_str()).copied().unwrap_or(0);
            if let Some(node) = self.nodes.get_mut(&id) {
                node.replicas = count;
            }
        }
    }

    fn forget_old_happenings(&mut self) {
        let surplus = self.happenings.len().saturating_sub(MAX_HAPPENINGS);
        if surplus == 0 {
            return;
        }
        let mut by_age: Vec<(i64, String)> = self
            .happenings
            .iter()
            .map(|(_, h)| (h.at_ms, h.key.clone()))
            .collect();
        by_age.sort_unstable();
        for (_, key) in by_age.into_iter().take(surplus) {
            self.happenings.remove(&key);
        }
    }

    /// Placements of a workload, by replica.
    #[must_use]
    pub fn placements_of(&self, workload_key: &str) -> Vec<&Placement> {
        let mut found: Vec<&Placement> = self
            .placements
            .iter()
            .map(|(_, p)| p)
            .filter(|p| p.is_of(workload_key))
            .collect();
        found.sort_by_key(|p| p.replica);
        found
    }
}

/// Removes the rows whose ids are not among `rows`.
fn keep_only<T: Row>(store: &mut Store<T>, rows: &[T]) {
    let stay: std::collections::HashSet<&str> = rows.iter().map(Row::id).collect();
    let gone: Vec<String> = store
        .ids()
        .filter(|id| !stay.contains(id.as_str()))
        .cloned()
        .collect();
    for id in gone {
        store.remove(&id);
    }
}

/// The word of an API enum, as a user writes it.
pub(crate) fn word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

pub(crate) fn millis_of(time: &meta::Time) -> i64 {
    time.0.as_millisecond()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placement(key: &str, node: &str) -> Placement {
        Placement {
            key: key.to_owned(),
            node: node.to_owned(),
            ..Default::default()
        }
    }

    fn node(id: &str) -> Node {
        Node {
            id: id.to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn replicas_are_counted_through_moves_and_removals() {
        let mut fleet = Fleet::default();
        fleet.apply(
            Change::Placements(vec![placement("d/a", "n1"), placement("d/b", "n1")]),
            0,
        );
        fleet.apply(Change::Nodes(vec![node("n1"), node("n2")]), 0);
        let count = |f: &Fleet, id| f.nodes.get(id).unwrap().replicas;
        assert_eq!((count(&fleet, "n1"), count(&fleet, "n2")), (2, 0));
        fleet.apply(Change::Placement(Box::new(placement("d/a", "n2"))), 0);
        fleet.apply(Change::Node(Box::new(node("n2"))), 0);
        assert_eq!((count(&fleet, "n1"), count(&fleet, "n2")), (1, 1));
        fleet.apply(Change::PlacementGone("d/b".to_owned()), 0);
        assert_eq!(count(&fleet, "n1"), 0);
    }

    #[test]
    fn live_values_survive_changes_of_the_object_and_go_with_it() {
        let mut fleet = Fleet::default();
        fleet.apply(Change::Node(Box::new(node("n1"))), 0);
        let sample = |id: &str| LiveSample {
            id: id.to_owned(),
            cpu_percent: Some(5.0),
            ..Default::default()
        };
        fleet.apply(Change::Live(vec![sample("n1"), sample("stranger")]), 1);
        fleet.apply(Change::Node(Box::new(node("n1"))), 2);
        assert_eq!(
            fleet.nodes.get("n1").unwrap().live.as_ref().unwrap().cpu,
            5.0
        );
        fleet.apply(Change::Nodes(vec![node("n2")]), 3);
        assert!(fleet.nodes.get("n1").is_none() && fleet.nodes.len() == 1);
    }

    #[test]
    fn the_oldest_events_are_forgotten() {
        let mut fleet = Fleet::default();
        let rows = (0..MAX_HAPPENINGS as i64 + 10)
            .map(|i| Happening {
                key: format!("d/{i}"),
                at_ms: i,
                ..Default::default()
            })
            .collect();
        fleet.apply(Change::Happenings(rows), 0);
        assert_eq!(fleet.happenings.len(), MAX_HAPPENINGS);
        assert!(fleet.happenings.get("d/9").is_none() && fleet.happenings.get("d/10").is_some());
    }
}
