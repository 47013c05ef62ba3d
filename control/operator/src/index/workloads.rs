//! Workloads of the index.

use std::sync::Arc;
use std::time::Duration;

use hyperion_api::cost::Spent;
use hyperion_api::workload::{
    HyperionWorkload, HyperionWorkloadSpec, HyperionWorkloadStatus, WorkloadType,
};
use hyperion_api::{Invalid, SITE_UID, agent_pod, intent};
use hyperion_placement::model::Request;
use hyperion_proto::agent_v1::Intent;
use kube::ResourceExt;
use kube::core::{DeserializeGuard, ObjectMeta};

use super::{Index, Name, Priority};

/// A workload's spec, read once per change.
#[derive(Debug, Clone)]
pub struct Template {
    /// What one replica asks for.
    pub request: Request,
    /// Hash of the pod template.
    pub hash: String,
    /// PriorityClass that it names.
    pub class: Option<String>,
    /// Grace between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// `policy.disconnect.replaceAfter`, or the default.
    pub replace_after: Duration,
    /// `policy.disconnect.stopAfter`.
    pub stop_after: Option<Duration>,
    /// What its nodes' sites have to know of it.
    pub intent: Arc<Intent>,
}

/// A workload that can't be read.
#[derive(Debug, Clone)]
pub struct Broken {
    /// Why.
    pub error: String,
    /// What can be read.
    pub metadata: ObjectMeta,
}

/// A workload.
#[derive(Debug, Clone)]
pub struct WorkloadEntry {
    /// As the API gave it.
    pub object: Arc<HyperionWorkload>,
    /// Read form, or the field that is wrong.
    pub template: Result<Arc<Template>, Invalid>,
    /// Status as last read or written.
    pub status: HyperionWorkloadStatus,
    /// Highest generation of its replicas whose placement is gone.
    pub highest: i64,
    /// What placements that are over have cost.
    pub spent: Option<Spent>,
    /// The finalizer was asked for.
    pub marked: bool,
    /// Last warning that was published, so that a pass that changes nothing says nothing.
    pub said: Option<String>,
}

impl WorkloadEntry {
    /// The uid that its replicas are keyed by: the object's, or where it was applied at a site first
    /// the one that the site gave it.
    #[must_use]
    pub fn uid(&self) -> &str {
        let annotations = self.object.metadata.annotations.as_ref();
        annotations
            .and_then(|a| a.get(SITE_UID))
            .filter(|uid| is_site_uid(uid))
            .map_or_else(|| self.object_uid(), String::as_str)
    }

    /// Uid of the object.
    #[must_use]
    pub fn object_uid(&self) -> &str {
        self.object.metadata.uid.as_deref().unwrap_or_default()
    }

    /// True once a user asked for its deletion.
    #[must_use]
    pub fn deleting(&self) -> bool {
        self.object.metadata.deletion_timestamp.is_some()
    }

    /// Its replicas end by themselves.
    #[must_use]
    pub fn is_job(&self) -> bool {
        self.object.spec.type_ == WorkloadType::Job
    }

    /// No copy of a replica is to run beside another.
    #[must_use]
    pub fn runs_alone(&self) -> bool {
        self.object.spec.policy.exclusive || self.is_job()
    }

    /// Desired replicas.
    #[must_use]
    pub fn replicas(&self) -> u32 {
        u32::try_from(self.object.spec.replicas).unwrap_or(0)
    }
}

/// Uids that sites give begin so: nobody can take another object's for one.
#[must_use]
pub fn is_site_uid(uid: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    uid.starts_with("site-") && uid.len() <= 63 && uid.bytes().all(plain) && !uid.ends_with('-')
}

fn read(spec: &HyperionWorkloadSpec, replace_after: Duration) -> Result<Arc<Template>, Invalid> {
    let request = hyperion_api::request::request(spec)?;
    // Also proves that a node can be told to run it.
    agent_pod::pod_spec(spec, &[])?;
    hyperion_api::request::replicas(spec)?;
    let times = intent::times(spec)?;
    let pod = hyperion_api::request::pod(spec)?;
    let grace = agent_pod::grace(pod)?;
    let class = pod
        .priority_class_name
        .clone()
        .filter(|name| !name.is_empty());
    Ok(Arc::new(Template {
        request,
        hash: hash(spec),
        class,
        grace: Duration::from_secs(u64::from(grace)),
        replace_after: times.replace_after.unwrap_or(replace_after),
        stop_after: times.stop_after,
        intent: Arc::new(intent::intent(spec)?),
    }))
}

/// FNV-1a over the template's JSON: equal templates have equal hashes in every release. A collision
/// would leave one change of one workload unnoticed; with 64 bits that is not worth a SHA.
fn hash(spec: &HyperionWorkloadSpec) -> String {
    let json = serde_json::to_vec(&spec.template).unwrap_or_default();
    let hash = json.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

impl Index {
    /// A workload was made or changed. One that can't be read is noted as broken; what it runs
    /// stays as it is.
    pub fn apply_workload(&mut self, object: DeserializeGuard<HyperionWorkload>) {
        match object.0 {
            Ok(workload) => self.apply_good_workload(workload),
            Err(mut e) => {
                e.metadata.managed_fields = None;
                let name = Name::new(
                    e.metadata.namespace.as_deref().unwrap_or_default(),
                    e.metadata.name.as_deref().unwrap_or_default(),
                );
                if e.metadata.deletion_timestamp.is_some()
                    && let Some(entry) = self.workloads.get_mut(&name)
                {
                    Arc::make_mut(&mut entry.object).metadata = e.metadata.clone();
                }
                self.touch(&name, Priority::High);
                let broken = Broken {
                    error: e.error,
                    metadata: e.metadata,
                };
                self.broken.insert(name, broken);
            }
        }
    }

    fn apply_good_workload(&mut self, mut workload: HyperionWorkload) {
        // The largest part of many objects, and of no use here.
        workload.metadata.managed_fields = None;
        let name = Name::new(
            &workload.namespace().unwrap_or_default(),
            &workload.name_any(),
        );
        self.broken.remove(&name);
        let held = self.workloads.get(&name);
        let same_object = held.filter(|h| h.object.metadata.uid == workload.metadata.uid);
        let same_spec = same_object.is_some_and(|h| h.object.spec == workload.spec);
        let same_marks = same_object.is_some_and(|h| {
            h.object.metadata.deletion_timestamp == workload.metadata.deletion_timestamp
                && h.object.metadata.finalizers == workload.metadata.finalizers
                && h.object.metadata.generation == workload.metadata.generation
        });
        // The status that comes back is what this operator wrote, or older.
        let status = same_object.map_or_else(
            || workload.status.clone().unwrap_or_default(),
            |held| held.status.clone(),
        );
        let told = status.highest_generation.unwrap_or(0);
        let entry = WorkloadEntry {
            template: match same_object {
                Some(held) if same_spec => held.template.clone(),
                _ => read(&workload.spec, self.replace_after),
            },
            marked: same_object.is_some_and(|held| held.marked),
            highest: same_object.map_or(told, |held| held.highest.max(told)),
            spent: same_object.map_or_else(|| status.spent.clone(), |held| held.spent.clone()),
            said: same_object
                .filter(|_| same_spec)
                .and_then(|held| held.said.clone()),
            object: Arc::new(workload),
            status,
        };
        self.workloads.insert(name.clone(), entry);
        if !(same_spec && same_marks) {
            self.refresh_promises(&name);
            self.touch(&name, Priority::High);
        }
    }

    /// A workload is gone.
    pub fn delete_workload(&mut self, object: &DeserializeGuard<HyperionWorkload>) {
        let (namespace, name) = match &object.0 {
            Ok(w) => (w.metadata.namespace.as_deref(), w.metadata.name.as_deref()),
            Err(e) => (e.metadata.namespace.as_deref(), e.metadata.name.as_deref()),
        };
        let name = Name::new(namespace.unwrap_or_default(), name.unwrap_or_default());
        self.forget_workload(&name);
    }

    fn forget_workload(&mut self, name: &Name) {
        self.workloads.remove(name);
        self.broken.remove(name);
        self.set_unplaced(name, 0);
        self.looks.remove(name);
        self.forget_ways(name, 0);
        self.touch(name, Priority::High);
    }

    /// The complete list, after a watch began anew.
    pub fn reset_workloads(&mut self, list: Vec<DeserializeGuard<HyperionWorkload>>) {
        let mut gone: std::collections::BTreeSet<Name> = self
            .workloads
            .keys()
            .chain(self.broken.keys())
            .cloned()
            .collect();
        for object in list {
            let metadata = match &object.0 {
                Ok(w) => &w.metadata,
                Err(e) => &e.metadata,
            };
            gone.remove(&Name::new(
                metadata.namespace.as_deref().unwrap_or_default(),
                metadata.name.as_deref().unwrap_or_default(),
            ));
            self.apply_workload(object);
        }
        for name in gone {
            self.forget_workload(&name);
        }
    }

    /// Notes a status that is being written.
    pub(crate) fn wrote_status(&mut self, name: &Name, status: HyperionWorkloadStatus) {
        if let Some(entry) = self.workloads.get_mut(name) {
            entry.status = status;
        }
    }
}
