//! The Kubernetes API as far as the control plane sees it: objects that outlive every process.

use std::collections::BTreeMap;

use hyperion_api::node::HyperionNode;
use hyperion_api::placement::HyperionPlacement;
use hyperion_api::workload::{HyperionWorkload, HyperionWorkloadSpec};
use hyperion_operator::apply::Applied;
use hyperion_operator::index::Name;
use hyperion_operator::plan::Action;
use hyperion_proto::agent_v1::Hello;
use hyperion_proto::convert;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// What a watch shows.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Workload(Box<HyperionWorkload>),
    WorkloadGone(Box<HyperionWorkload>),
    Placement(Box<HyperionPlacement>),
    PlacementGone(Box<HyperionPlacement>),
    Node(Box<HyperionNode>),
}

/// All objects.
#[derive(Debug, Default)]
pub(crate) struct Api {
    pub workloads: BTreeMap<Name, HyperionWorkload>,
    pub placements: BTreeMap<(Name, u32), HyperionPlacement>,
    pub nodes: BTreeMap<String, HyperionNode>,
    uids: u64,
    /// What watches have not shown yet.
    pub changes: Vec<Change>,
}

impl Api {
    pub(crate) fn add_node(&mut self, node: HyperionNode) {
        self.changes.push(Change::Node(Box::new(node.clone())));
        let name = node.metadata.name.clone().unwrap_or_default();
        self.nodes.insert(name, node);
    }

    /// A node's object says what the node has, as its agent tells it.
    pub(crate) fn describe(&mut self, hello: &Hello) {
        let Ok(capabilities) = convert::capabilities(hello.capabilities.as_ref()) else {
            return;
        };
        let (status, _) = hyperion_gateway::facts::describe(&capabilities);
        if let Some(node) = self.nodes.get_mut(&hello.node_id)
            && node.status.as_ref() != Some(&status)
        {
            node.status = Some(status);
            self.changes.push(Change::Node(Box::new(node.clone())));
        }
    }

    /// A user applies a workload.
    pub(crate) fn apply(&mut self, name: &Name, spec: HyperionWorkloadSpec) {
        match self.workloads.get_mut(name) {
            Some(held) if held.metadata.deletion_timestamp.is_some() => return,
            Some(held) if held.spec == spec => return,
            Some(held) => {
                held.spec = spec;
                let generation = held.metadata.generation.get_or_insert(1);
                *generation += 1;
            }
            None => {
                let mut made = HyperionWorkload::new(&name.name, spec);
                self.uids += 1;
                made.metadata.namespace = Some(name.namespace.clone());
                made.metadata.uid = Some(format!("uid-{}", self.uids));
                made.metadata.generation = Some(1);
                self.workloads.insert(name.clone(), made);
            }
        }
        self.show(name);
    }

    /// A workload that the control plane makes of what was applied at a site.
    fn create(&mut self, mut workload: HyperionWorkload) {
        let name = &Name::new(
            workload.metadata.namespace.as_deref().unwrap_or_default(),
            workload.metadata.name.as_deref().unwrap_or_default(),
        );
        if self.workloads.contains_key(name) {
            return;
        }
        self.uids += 1;
        workload.metadata.uid = Some(format!("uid-{}", self.uids));
        workload.metadata.generation = Some(1);
        self.workloads.insert(name.clone(), workload);
        self.show(name);
    }

    /// A user deletes a workload: it is gone when its finalizer is.
    pub(crate) fn delete(&mut self, name: &Name) {
        let Some(held) = self.workloads.get_mut(name) else {
            return;
        };
        if held.metadata.finalizers.iter().flatten().next().is_some() {
            held.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
            self.show(name);
        } else {
            self.remove(name);
        }
    }

    fn remove(&mut self, name: &Name) {
        if let Some(gone) = self.workloads.remove(name) {
            self.changes.push(Change::WorkloadGone(Box::new(gone)));
        }
        let owned: Vec<(Name, u32)> = self
            .placements
            .range((name.clone(), 0)..=(name.clone(), u32::MAX))
            .map(|(at, _)| at.clone())
            .collect();
        for at in owned {
            self.remove_placement(&at);
        }
    }

    fn remove_placement(&mut self, at: &(Name, u32)) -> bool {
        let Some(gone) = self.placements.remove(at) else {
            return false;
        };
        self.changes.push(Change::PlacementGone(Box::new(gone)));
        true
    }

    fn show(&mut self, name: &Name) {
        if let Some(held) = self.workloads.get(name) {
            self.changes.push(Change::Workload(Box::new(held.clone())));
        }
    }

    /// Carries out a write; gives what the writer learns.
    pub(crate) fn write(&mut self, action: Action) -> Option<Applied> {
        match action {
            Action::Store(object) => {
                let workload = Name::new(
                    object.metadata.namespace.as_deref().unwrap_or_default(),
                    &object.spec.workload,
                );
                let replica = u32::try_from(object.spec.replica).unwrap_or(0);
                let generation = object.spec.generation;
                let at = (workload.clone(), replica);
                let mut stored = *object;
                stored.status = self
                    .placements
                    .get(&at)
                    .and_then(|held| held.status.clone());
                self.changes
                    .push(Change::Placement(Box::new(stored.clone())));
                self.placements.insert(at, stored);
                return Some(Applied::Stored {
                    workload,
                    replica,
                    generation,
                });
            }
            Action::Delete { workload, replica }
                if !self.remove_placement(&(workload.clone(), replica)) =>
            {
                return Some(Applied::Gone {
                    workload,
                    replica,
                    generation: i64::MAX,
                });
            }
            Action::PlacementStatus {
                workload,
                replica,
                status,
            } => {
                if let Some(held) = self.placements.get_mut(&(workload, replica)) {
                    held.status = Some(*status);
                }
            }
            Action::WorkloadStatus { workload, status } => {
                if let Some(held) = self.workloads.get_mut(&workload) {
                    held.status = Some(*status);
                }
            }
            Action::Finalizer {
                workload,
                uid,
                present,
            } => self.finalizer(&workload, &uid, present),
            Action::Make(object) => self.create(*object),
            _ => {}
        }
        None
    }

    fn finalizer(&mut self, name: &Name, uid: &str, present: bool) {
        let Some(held) = self.workloads.get_mut(name) else {
            return;
        };
        if held.metadata.uid.as_deref() != Some(uid) {
            return;
        }
        held.metadata.finalizers = present.then(|| vec![hyperion_api::FINALIZER.to_owned()]);
        if !present && held.metadata.deletion_timestamp.is_some() {
            self.remove(name);
        } else {
            self.show(name);
        }
    }
}
