//! Replicas as Pods, and what Pods say of replicas. No I/O.

use std::collections::BTreeMap;
use std::time::Duration;

use hyperion_api::agent_pod::DEFAULT_GRACE;
use hyperion_api::workload::{HyperionWorkload, WorkloadType};
use hyperion_api::{LABEL_CLUSTER, LABEL_WORKLOAD};
use hyperion_proto::agent_v1::ReplicaPhase;
use hyperion_proto::domain::{ReplicaKey, Report};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod, PodSpec, PodTemplateSpec};
use kube::ResourceExt;
use kube::core::ObjectMeta;

/// Label of our Pods: the uid of the HyperionCluster, so that no other control plane's are ours.
pub const LABEL_OWNER: &str = "hyperion.io/cluster-uid";
/// Label of our Pods: the replica's number.
pub const LABEL_REPLICA: &str = "hyperion.io/replica";
/// Label of our Pods: the generation of the decision.
pub const LABEL_GENERATION: &str = "hyperion.io/generation";
/// Annotation of our Pods: the workload's name, which may be too long for a label.
pub const WORKLOAD: &str = "hyperion.io/workload";
/// Annotation of our Pods: the uid that the workload's replicas are keyed by.
pub const WORKLOAD_UID: &str = "hyperion.io/workload-uid";

/// Annotation of Pods that are bound later: the node that they are for.
pub const NODE: &str = "hyperion.io/node";
/// Kueue's label: the queue that admits the Pod.
pub const QUEUE: &str = "kueue.x-k8s.io/queue-name";
/// Scheduler of Pods that are bound later: no cluster's own, which would choose another node.
const SCHEDULER: &str = "hyperion";

/// Names of Pods are at most so long.
const NAME: usize = 253;
/// Label values are at most so long.
const LABEL: usize = 63;
/// Longest message that is handed on, bytes.
const MESSAGE: usize = 500;
/// Waiting for one of these is the course of things.
const STARTING: &[&str] = &["ContainerCreating", "PodInitializing"];

/// Name of the Pod of a replica by the decision of this generation: the same whoever makes it, and
/// another one for a namesake of the workload.
#[must_use]
pub fn pod_name(key: &ReplicaKey, generation: u64) -> String {
    let mark = crate::events::mark(&[&key.workload, &key.uid], u64::from(key.index));
    let tail = format!("-{}-{generation}-{:05x}", key.index, mark & 0xf_ffff);
    let room = NAME - tail.len();
    let head = key.workload.get(..room).unwrap_or(&key.workload);
    format!("{}{tail}", head.trim_end_matches(['-', '.']))
}

/// A Pod of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ours {
    /// Replica.
    pub key: ReplicaKey,
    /// Generation.
    pub generation: u64,
    /// Node of the workload cluster.
    pub node: String,
    /// Uid of the Pod.
    pub uid: String,
    /// Images, in order: nothing else of what runs can be changed in a Pod.
    pub images: Vec<String>,
    /// Seconds between SIGTERM and SIGKILL.
    pub grace: u32,
    /// Somebody asked for its deletion.
    pub ending: bool,
    /// It is still to be bound to its node, and nothing holds it back.
    pub to_bind: bool,
    /// What it says of the replica.
    pub report: Report,
}

impl Ours {
    /// Seconds between SIGTERM and SIGKILL where only so much time is left; at least one, since none
    /// means that nobody waits for its end.
    #[must_use]
    pub fn grace_within(&self, within: Duration) -> u32 {
        let within = u32::try_from(within.as_secs()).unwrap_or(u32::MAX);
        self.grace.min(within).max(1)
    }
}

/// The Pod of a replica on a node.
#[must_use]
pub fn pod(
    workload: &HyperionWorkload,
    key: &ReplicaKey,
    generation: u64,
    node: &str,
    cluster: (&str, &str),
) -> Pod {
    let PodTemplateSpec { metadata, spec } = workload.spec.template.clone();
    let metadata = metadata.unwrap_or_default();
    let mut labels = metadata.labels.unwrap_or_default();
    let mut annotations = metadata.annotations.unwrap_or_default();
    let (name, uid) = cluster;
    for (label, value) in [
        (LABEL_CLUSTER, name.to_owned()),
        (LABEL_OWNER, uid.to_owned()),
        (LABEL_WORKLOAD, shortened(&key.workload)),
        (LABEL_REPLICA, key.index.to_string()),
        (LABEL_GENERATION, generation.to_string()),
    ] {
        labels.insert(label.to_owned(), value);
    }
    let template = spec.unwrap_or_default();
    let queue = workload.labels().get(QUEUE).or(labels.get(QUEUE)).cloned();
    let gated = template.scheduling_gates.iter().flatten().count() > 0;
    let mut spec = pinned(template, workload.spec.type_, node);
    if queue.is_some() || gated {
        // An API server takes no Pod that is bound and gated; Kueue gates those of its queues when
        // they are made.
        spec.node_name = None;
        spec.scheduler_name = Some(SCHEDULER.to_owned());
        annotations.insert(NODE.to_owned(), node.to_owned());
    }
    if let Some(queue) = queue {
        labels.insert(QUEUE.to_owned(), queue);
    }
    annotations.insert(WORKLOAD.to_owned(), key.workload.clone());
    annotations.insert(WORKLOAD_UID.to_owned(), key.uid.clone());
    Pod {
        metadata: ObjectMeta {
            name: Some(pod_name(key, generation)),
            namespace: Some(key.namespace.clone()),
            labels: Some(labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

fn pinned(mut spec: PodSpec, type_: WorkloadType, node: &str) -> PodSpec {
    spec.node_name = Some(node.to_owned());
    // The decision has seen to it. Its words need not be those of the Node: our labels are not
    // there, and a kubelet refuses a Pod whose selector does not match.
    spec.node_selector = None;
    let usual = match type_ {
        WorkloadType::Service => "Always",
        WorkloadType::Job => "OnFailure",
    };
    spec.restart_policy.get_or_insert_with(|| usual.to_owned());
    // Clusters take it from the class alone.
    spec.priority = None;
    spec.scheduler_name = None;
    spec
}

/// A Pod as one of ours; none for one that is not, or whose marks were changed.
#[must_use]
pub fn ours(pod: &Pod, owner: &str) -> Option<Ours> {
    let labels = pod.labels();
    let annotations = pod.annotations();
    if labels.get(LABEL_OWNER).map(String::as_str) != Some(owner) {
        return None;
    }
    let key = ReplicaKey {
        namespace: pod.namespace()?,
        workload: annotations.get(WORKLOAD)?.clone(),
        uid: annotations.get(WORKLOAD_UID)?.clone(),
        index: labels.get(LABEL_REPLICA)?.parse().ok()?,
    };
    let generation: u64 = labels.get(LABEL_GENERATION)?.parse().ok()?;
    let spec = pod.spec.as_ref()?;
    let bound = spec.node_name.clone().filter(|n| !n.is_empty());
    let ending = pod.metadata.deletion_timestamp.is_some();
    let gates = spec.scheduling_gates.iter().flatten().count();
    let to_bind = bound.is_none() && gates == 0 && !ending;
    let node = bound.or_else(|| annotations.get(NODE).cloned())?;
    if generation == 0 || pod.name_any() != pod_name(&key, generation) {
        return None;
    }
    let containers = spec.containers.iter();
    let images = containers.map(|c| c.image.clone().unwrap_or_default());
    let report = report(pod, key.clone(), generation);
    Some(Ours {
        key,
        generation,
        node,
        uid: pod.uid().unwrap_or_default(),
        images: images.collect(),
        grace: spec
            .termination_grace_period_seconds
            .and_then(|s| u32::try_from(s).ok())
            .unwrap_or(DEFAULT_GRACE),
        ending,
        to_bind,
        report,
    })
}

/// What a Pod says of its replica.
fn report(pod: &Pod, key: ReplicaKey, generation: u64) -> Report {
    let status = pod.status.clone().unwrap_or_default();
    let main = status.container_statuses.unwrap_or_default();
    let init = status.init_container_statuses.unwrap_or_default();
    let all = || init.iter().chain(&main);
    let restarts: i64 = all().map(|c| i64::from(c.restart_count.max(0))).sum();
    let conditions = status.conditions.iter().flatten();
    let ready = conditions
        .into_iter()
        .any(|c| c.type_ == "Ready" && c.status == "True");
    let told = status.reason.filter(|r| !r.is_empty());
    let text = status.message.unwrap_or_default();
    let stuck = || {
        all().find_map(|c| {
            let waiting = c.state.as_ref()?.waiting.as_ref()?;
            let reason = waiting.reason.clone().filter(|r| !r.is_empty())?;
            let hopeless = !STARTING.contains(&reason.as_str());
            hopeless.then(|| {
                let own = waiting.message.clone().filter(|m| !m.is_empty());
                (reason, own.or_else(|| last_end(c)).unwrap_or_default())
            })
        })
    };
    let (phase, reason, message) = match status.phase.as_deref().unwrap_or_default() {
        _ if pod.metadata.deletion_timestamp.is_some() => {
            (ReplicaPhase::Stopping, "Terminating".to_owned(), text)
        }
        "Succeeded" => (ReplicaPhase::Succeeded, "Completed".to_owned(), text),
        "Failed" => {
            let end = all().find_map(bad_end);
            let (reason, message) = match (told, end) {
                (Some(reason), _) => (reason, text),
                (None, Some(end)) => end,
                (None, None) => ("Error".to_owned(), text),
            };
            (ReplicaPhase::Failed, reason, message)
        }
        phase => match stuck() {
            Some((reason, message)) => (ReplicaPhase::Backoff, reason, message),
            None if phase == "Running" => {
                let end = all().find_map(bad_end).filter(|_| !ready);
                let (reason, message) = end.unwrap_or_default();
                (ReplicaPhase::Running, reason, message)
            }
            None => {
                let held = held_back(pod).map(|text| ("SchedulingGated".to_owned(), text));
                let (reason, message) = held.unwrap_or_else(|| {
                    let waiting =
                        all().find_map(|c| c.state.as_ref()?.waiting.as_ref()?.reason.clone());
                    let reason = told.or(waiting).unwrap_or_else(|| "Pending".to_owned());
                    (reason, text)
                });
                (ReplicaPhase::Starting, reason, message)
            }
        },
    };
    Report {
        key,
        generation,
        phase,
        ready: ready && phase == ReplicaPhase::Running,
        reason,
        message: cut(&message),
        restarts: u32::try_from(restarts).unwrap_or(u32::MAX),
        pod_ip: status.pod_ip.unwrap_or_default(),
    }
}

/// What holds a Pod back from being bound.
fn held_back(pod: &Pod) -> Option<String> {
    let gates = pod
        .spec
        .iter()
        .flat_map(|s| s.scheduling_gates.iter().flatten());
    let gates: Vec<&str> = gates.map(|gate| gate.name.as_str()).collect();
    let queue = pod.labels().get(QUEUE);
    let queue = queue.map_or_else(String::new, |queue| format!(" of queue {queue}"));
    (!gates.is_empty()).then(|| format!("it waits for scheduling gate {}{queue}", gates.join(", ")))
}

/// How a container ended that did not end well: reason and message.
fn bad_end(container: &ContainerStatus) -> Option<(String, String)> {
    ended(container.state.as_ref()?, &container.name)
}

/// How a container that waits ended before.
fn last_end(container: &ContainerStatus) -> Option<String> {
    let (reason, message) = ended(container.last_state.as_ref()?, &container.name)?;
    Some(format!("{reason}: {message}"))
}

fn ended(state: &ContainerState, name: &str) -> Option<(String, String)> {
    let end = state.terminated.as_ref().filter(|t| t.exit_code != 0)?;
    let reason = end.reason.clone().filter(|r| !r.is_empty());
    let said = end.message.as_deref().unwrap_or_default().trim();
    let mut message = format!("container {name} ended with exit code {}", end.exit_code);
    if !said.is_empty() {
        message = format!("{message}: {said}");
    }
    Some((reason.unwrap_or_else(|| "Error".to_owned()), message))
}

/// Label values hold at most 63 bytes; names are ASCII.
fn shortened(name: &str) -> String {
    let head = name.get(..LABEL).unwrap_or(name);
    head.trim_end_matches(['-', '.']).to_owned()
}

fn cut(text: &str) -> String {
    let end = (0..=MESSAGE.min(text.len()))
        .rev()
        .find(|i| text.is_char_boundary(*i))
        .unwrap_or(0);
    text[..end].to_owned()
}

/// The labels of a namespace that is made for replicas.
#[must_use]
pub fn namespace_labels() -> BTreeMap<String, String> {
    let managed = "app.kubernetes.io/managed-by".to_owned();
    BTreeMap::from([(managed, "hyperion".to_owned())])
}

#[cfg(test)]
mod tests;
