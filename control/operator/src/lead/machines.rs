//! Nodes of workload clusters: what is heard of them, and which cluster an order is for.

use std::time::Instant;

use hyperion_proto::domain::ReplicaKey;
use tracing::{debug, info};

use super::Work;
use crate::clusters::Event;
use crate::events::{self, Note};
use crate::index::{CapacityNote, Name, PlacementEntry};

impl Work {
    /// What clusters say of their nodes.
    pub(super) fn machine(&mut self, event: Event) {
        match event {
            Event::Up {
                node,
                facts,
                problem,
            } => {
                debug!(node, "node is in reach");
                self.heard = Instant::now();
                self.index.machine_up(&node, *facts, problem);
            }
            Event::Facts { node, facts } => self.index.machine_changed(&node, *facts),
            Event::Heard => self.heard = Instant::now(),
            Event::Machines(cluster, heard) => {
                self.index.machines_heard(&cluster, heard, Instant::now());
                self.stale_counts = true;
            }
            Event::Said(event) => self.agent(*event),
        }
    }

    /// Tells clusters which machines are wanted, and people what became of some.
    pub(super) fn launches(&mut self) {
        for cluster in self.index.take_wants() {
            let wants = self.index.claims_wanted(&cluster);
            self.clusters.want(&cluster, wants);
            self.stale_counts = true;
        }
        for note in self.index.take_capacity_notes() {
            self.tell(note);
        }
    }

    fn tell(&self, note: CapacityNote) {
        let CapacityNote {
            cluster,
            workload,
            warning,
            reason,
            text,
        } = note;
        let about = match &workload {
            Some(name) => {
                let Some(held) = self.index.workloads.get(name) else {
                    return;
                };
                events::workload(name, held.object_uid())
            }
            None => match self.clusters.about(&cluster) {
                Some(about) => about,
                None => return,
            },
        };
        info!(cluster, ?workload, reason, "{text}");
        self.publisher.publish(Note {
            about,
            warning,
            reason: reason.to_owned(),
            text,
            past: None,
        });
    }

    /// The cluster that carries out orders for a node; none for nodes with agents.
    pub(super) fn cluster_of(&self, node: &str) -> Option<String> {
        let spec = self.index.nodes.get(node).and_then(|n| n.spec.as_ref());
        match spec {
            Some(spec) => spec.cluster.clone(),
            None => self.clusters.of_node(node),
        }
    }

    /// Has a Pod made. Clusters take the template as it was written, and not as agents read it.
    pub(super) fn start_in(&self, cluster: &str, node: &str, key: &ReplicaKey, generation: u64) {
        let name = Name::new(&key.namespace, &key.workload);
        let Some(workload) = self.index.workloads.get(&name) else {
            return;
        };
        let placement = self.index.placement(&name, key.index);
        let ended = placement.is_some_and(PlacementEntry::ended);
        let workload = workload.object.clone();
        self.clusters
            .start(cluster, node, key, generation, workload, ended);
    }
}
