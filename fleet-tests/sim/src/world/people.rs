//! People: what they do with workloads, at the control plane and at sites.

use hyperion_api::workload::HyperionWorkloadSpec;
use hyperion_operator::index::Name;
use hyperion_proto::agent_v1::{Intent, ReplicaKey, ReplicaRecord};
use serde_json::json;

use super::{World, note};
use crate::users::{self, Action};

impl World {
    pub(super) fn person(&mut self, n: usize) {
        let action = self.plan.actions[n].1.clone();
        note!(self, "person: {}", told(&action));
        let now = self.now;
        match action {
            Action::Apply(name, spec) => {
                self.checker.wants(&name, &spec, now);
                self.api.apply(&name, *spec);
            }
            Action::Scale(name, replicas) => {
                if let Some(held) = self.api.workloads.get(&name) {
                    let mut spec = held.spec.clone();
                    spec.replicas = replicas;
                    self.checker.wants(&name, &spec, now);
                    self.api.apply(&name, spec);
                }
            }
            Action::Roll(name) => {
                if let Some(held) = self.api.workloads.get(&name) {
                    let mut spec = held.spec.clone();
                    users::roll(&mut spec, &mut self.rng);
                    self.checker.wants(&name, &spec, now);
                    self.api.apply(&name, spec);
                }
            }
            Action::Delete(name) => {
                self.checker.deletes(&name, now);
                self.api.delete(&name);
            }
            Action::ApplyAt(node, name, spec) => self.apply_at(node, &name, &spec),
            Action::DeleteAt(node, name) => self.delete_at(node, &name),
        }
        self.show();
    }

    /// A person applies a workload on a device.
    fn apply_at(&mut self, node: usize, name: &Name, spec: &HyperionWorkloadSpec) {
        let now = self.instant(node);
        let uid = format!("site-{:016x}", self.rng.number());
        let Some(records) = records(name, spec, &uid) else {
            return;
        };
        let device = &mut self.devices[node];
        device.containers.set_now(self.now);
        let Some(agent) = &mut device.node else {
            return;
        };
        match agent.apply(records, now, &device.outbox) {
            // The person gets no answer, and may find it there later or not.
            Ok(()) if device.disk.is_cut() => note!(self, "no answer: {name}"),
            Ok(()) => {
                self.checker.wants(name, spec, self.now);
                let site = self.devices[node].site;
                self.checker.local.insert(name.clone(), site);
            }
            Err(e) => note!(self, "refused: {e}"),
        }
        self.settle(node);
    }

    fn delete_at(&mut self, node: usize, name: &Name) {
        let now = self.instant(node);
        let device = &mut self.devices[node];
        device.containers.set_now(self.now);
        let Some(agent) = &mut device.node else {
            return;
        };
        match agent.delete(&name.namespace, &name.name, now, &device.outbox) {
            Ok(()) => self.checker.deletes(name, self.now),
            Err(e) => note!(self, "refused: {e}"),
        }
        self.settle(node);
    }
}

fn told(action: &Action) -> String {
    match action {
        Action::Apply(name, spec) => format!("apply {name}, {} replicas", spec.replicas),
        Action::Scale(name, n) => format!("scale {name} to {n}"),
        Action::Delete(name) => format!("delete {name}"),
        Action::Roll(name) => format!("roll {name}"),
        Action::ApplyAt(node, name, _) => format!("apply {name} at edge-{node}"),
        Action::DeleteAt(node, name) => format!("delete {name} at edge-{node}"),
    }
}

/// What `hyperion apply` on a device makes of a workload.
fn records(name: &Name, spec: &HyperionWorkloadSpec, uid: &str) -> Option<Vec<ReplicaRecord>> {
    let manifest = json!({
        "apiVersion": "hyperion.io/v1alpha1",
        "kind": "HyperionWorkload",
        "metadata": { "name": name.name, "namespace": name.namespace },
        "spec": spec,
    });
    let intent = Intent {
        manifest: manifest.to_string(),
        ..hyperion_api::intent::intent(spec).ok()?
    };
    let pod = hyperion_api::agent_pod::pod_spec(spec, &[]).ok()?;
    let replicas = u32::try_from(spec.replicas).ok()?;
    let record = |index| ReplicaRecord {
        key: Some(ReplicaKey {
            namespace: name.namespace.clone(),
            workload: name.name.clone(),
            workload_uid: uid.to_owned(),
            index,
        }),
        pod: Some(pod.clone()),
        intent: Some(intent.clone()),
        ..ReplicaRecord::default()
    };
    Some((0..replicas).map(record).collect())
}
