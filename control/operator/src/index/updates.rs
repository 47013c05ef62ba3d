//! What nodes say of their updates, and which of them are emptied for one.

use std::collections::BTreeSet;

use hyperion_api::node::HyperionNodeStatus;
use hyperion_api::update::NodeUpdate;

use super::{Index, Name, Priority};

/// What a node says of its versions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// Version of the agent.
    pub agent_version: String,
    /// The rest; none where it can't be updated by a rollout.
    pub update: Option<NodeUpdate>,
}

impl Said {
    pub(super) fn of(status: &HyperionNodeStatus) -> Self {
        Self {
            agent_version: status.agent_version.clone(),
            update: status.update.clone(),
        }
    }
}

impl Index {
    /// What a node's agent says of its versions.
    pub fn node_said(&mut self, id: &str, said: Said) {
        if let Some(entry) = self.nodes.get_mut(id).filter(|n| n.connected) {
            entry.said = said;
        }
    }

    /// What a node's agent says of its update has changed.
    pub fn node_updates(&mut self, id: &str, update: NodeUpdate) {
        if let Some(entry) = self.nodes.get_mut(id).filter(|n| n.connected) {
            entry.said.update = Some(update);
        }
    }

    /// Exactly these nodes are emptied for an update: their replicas move away, and they take no new
    /// ones.
    pub fn set_emptied(&mut self, nodes: &BTreeSet<String>) {
        let differ = |(id, entry): (&String, &super::NodeEntry)| {
            (entry.emptied != nodes.contains(id)).then(|| id.clone())
        };
        let changed: Vec<String> = self.nodes.iter().filter_map(differ).collect();
        for id in &changed {
            if let Some(entry) = self.nodes.get_mut(id) {
                entry.emptied = !entry.emptied;
            }
            self.refresh_node(id);
            self.touch_node(id, Priority::High);
        }
        if !changed.is_empty() {
            self.touch_unplaced();
        }
    }

    /// Replicas that a node has or may have, and one of their workloads that is `exclusive`.
    pub(crate) fn holds(&self, id: &str) -> (usize, Option<Name>) {
        let mut exclusive = None;
        let mut count = 0;
        for placement in self.promised(id).filter(|p| !p.ended()) {
            count += 1;
            let name = placement.workload();
            let workload = self.workloads.get(&name);
            if workload.is_some_and(|w| w.object.spec.policy.exclusive) {
                exclusive = Some(name);
            }
        }
        (count + self.leaving_on(id).count(), exclusive)
    }
}
