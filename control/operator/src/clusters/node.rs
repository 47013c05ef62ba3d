//! What a Node of a workload cluster is in the words of the fleet. No I/O.
//!
//! Nothing is guessed: a Node that does not say who sells it, where it is or what it has is not used,
//! and its object says why.

use std::collections::BTreeMap;

use hyperion_api::node::{HyperionNodeStatus, NodeTaint};
use hyperion_api::quantity;
use hyperion_gateway::facts;
use hyperion_placement::gpu;
use hyperion_placement::model::{
    CLUSTER_LABEL, CapacityType, GpuDevice, Provider, Resources, normalize_arch,
};
use hyperion_proto::domain::Capabilities;
use hyperion_providers::shapes;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;

use super::pod::LABEL_OWNER;
use super::usage::Usage;

/// A cluster, as its nodes are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Name of the HyperionCluster.
    pub name: String,
    /// Its uid: Pods of ours carry it.
    pub uid: String,
    /// Whose machines its nodes are.
    pub provider: Provider,
    /// Where they are.
    pub region: String,
    /// Labels of the nodes that are ours to use.
    pub selector: BTreeMap<String, String>,
}

/// A node that can be used.
#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    /// For its object; with all that the node has.
    pub facts: HyperionNodeStatus,
    /// Whether its kubelet answers.
    pub reach: Reach,
    /// What is worth telling people about a node that is used all the same.
    pub note: String,
    has: Resources,
    pods: u64,
}

/// Whether a kubelet answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// It is ready.
    Up,
    /// It answers, and can start nothing now.
    Runtime(String),
    /// It has gone silent.
    Silent(String),
}

/// Why a node can't be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    /// CamelCase.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// Machines that are larger than this, in cores and bytes, do not exist: the largest that can be
/// bought in 2026 have some 1,920 virtual cores and 32 TiB.
const MOST_CPU_MILLIS: u64 = 10_000_000;
const MOST_MEMORY: u64 = 1 << 50;
const MOST_GPUS: u64 = 1024;
/// Pods of a node that does not say: the kubelet's default.
const PODS: u64 = 110;
/// Names of objects are at most so long.
const NAME: usize = 253;
/// Taints that repeat what a node's conditions and `unschedulable` say.
const SAID_ELSEWHERE: &[&str] = &[
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
    "node.kubernetes.io/unschedulable",
];
/// Taint of a node that Karpenter is about to take away.
const DISRUPTED: &str = "karpenter.sh/disrupted";
/// Labels that only nodes of one provider have.
const MARKS: &[(&str, Provider)] = &[
    ("eks.amazonaws.com/", Provider::Aws),
    ("cloud.google.com/gke-", Provider::Gcp),
    ("kubernetes.azure.com/", Provider::Azure),
];

/// Name of the HyperionNode of a node. Long names are cut, and told apart by a hash.
#[must_use]
pub fn node_id(cluster: &str, node: &str) -> String {
    let id = format!("{cluster}.{node}");
    if id.len() <= NAME {
        return id;
    }
    let mark = crate::events::mark(&[cluster, node], 0);
    let head = id.get(..NAME - 17).unwrap_or(&id);
    format!("{}-{mark:016x}", head.trim_end_matches(['-', '.']))
}

/// True for a node that the cluster's selector takes.
#[must_use]
pub fn selected(node: &Node, of: &Identity) -> bool {
    let labels = node.labels();
    of.selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

/// Reads a node.
///
/// # Errors
/// Why it can't be used.
pub fn machine(node: &Node, of: &Identity) -> Result<Machine, Unusable> {
    let labels = node.labels();
    let get = |key: &str| labels.get(key).map_or("", String::as_str);
    provider(node, of)?;
    let edge = of.provider == Provider::Edge;
    let region = match get("topology.kubernetes.io/region") {
        "" => get("failure-domain.beta.kubernetes.io/region"),
        region => region,
    };
    if region.is_empty() && !edge {
        let what = "it has no label topology.kubernetes.io/region";
        return Err(unusable("RegionMissing", what));
    }
    if !region.is_empty() && region != of.region {
        let what = format!(
            "it is in region {region:?}, and the cluster in {:?}",
            of.region
        );
        return Err(unusable("OtherRegion", what));
    }
    let instance_type = match get("node.kubernetes.io/instance-type") {
        "" => get("beta.kubernetes.io/instance-type"),
        name => name,
    };
    if instance_type.is_empty() && !edge {
        let what = "it has no label node.kubernetes.io/instance-type: its price is not known";
        return Err(unusable("InstanceTypeMissing", what));
    }
    let info = node.status.as_ref().and_then(|s| s.node_info.as_ref());
    let os = match get("kubernetes.io/os") {
        "" => info.map_or("linux", |i| i.operating_system.as_str()),
        os => os,
    };
    if !os.is_empty() && os != "linux" {
        let what = format!("its operating system is {os:?}");
        return Err(unusable("NotLinux", what));
    }
    let arch = match get("kubernetes.io/arch") {
        "" => info.map_or("", |i| i.architecture.as_str()),
        arch => arch,
    };
    if arch.is_empty() {
        let what = "it has no label kubernetes.io/arch";
        return Err(unusable("ArchitectureMissing", what));
    }
    let (has, pods, count) = capacity(node)?;
    let (gpus, note) = gpus(of.provider, instance_type, labels, count);
    let mut described: BTreeMap<String, String> = labels.clone();
    for own in [CLUSTER_LABEL, "hyperion.io/node", "hyperion.io/site"] {
        described.remove(own);
    }
    for (key, value) in [
        ("hyperion.io/provider", of.provider.to_string()),
        (
            "hyperion.io/capacity-type",
            capacity_type(of.provider, labels).to_string(),
        ),
        ("topology.kubernetes.io/region", of.region.clone()),
        ("node.kubernetes.io/instance-type", instance_type.to_owned()),
    ] {
        if !value.is_empty() {
            described.insert(key.to_owned(), value);
        }
    }
    let (mut facts, problems) = facts::describe(&Capabilities {
        arch: normalize_arch(arch).to_owned(),
        cpu_millis: has.cpu_millis,
        memory_bytes: has.memory_bytes,
        disk_bytes: 0,
        gpus,
        labels: described,
    });
    facts.hostname = node.name_any();
    if let Some(info) = info {
        facts.boot_id.clone_from(&info.boot_id);
        facts.agent_version.clone_from(&info.kubelet_version);
    }
    let spec = node.spec.clone().unwrap_or_default();
    let mut taints = spec.taints.iter().flatten();
    facts.cordoned = spec.unschedulable == Some(true)
        || node.metadata.deletion_timestamp.is_some()
        || taints.any(|t| t.key == DISRUPTED);
    facts.taints = spec
        .taints
        .into_iter()
        .flatten()
        .filter(|t| !SAID_ELSEWHERE.contains(&t.key.as_str()))
        .map(|t| NodeTaint {
            key: t.key,
            value: t.value.unwrap_or_default(),
            effect: t.effect,
        })
        .collect();
    let notes: Vec<String> = note.into_iter().chain(problems).collect();
    Ok(Machine {
        facts,
        reach: reach(node),
        note: notes.join("; "),
        has,
        pods,
    })
}

impl Machine {
    /// What is told to the fleet: what is left beside Pods of others. `others` are theirs, `ours` is
    /// how many Pods we have there.
    #[must_use]
    pub fn beside(&self, others: &Usage, ours: u64) -> HyperionNodeStatus {
        let mut facts = self.facts.clone();
        let cpu = self.has.cpu_millis.saturating_sub(others.cpu_millis);
        let memory = self.has.memory_bytes.saturating_sub(others.memory_bytes);
        let allocatable = &mut facts.allocatable;
        allocatable.insert("cpu".to_owned(), format!("{cpu}m"));
        allocatable.insert("memory".to_owned(), memory.to_string());
        let taken = usize::try_from(others.gpus).unwrap_or(usize::MAX);
        facts.gpus.truncate(facts.gpus.len().saturating_sub(taken));
        facts.gpu_count = i32::try_from(facts.gpus.len()).unwrap_or(i32::MAX);
        facts.cordoned |= others.pods.saturating_add(ours) >= self.pods;
        facts
    }
}

fn unusable(reason: &'static str, message: impl Into<String>) -> Unusable {
    Unusable {
        reason,
        message: message.into(),
    }
}

/// Whose machine a provider id is of; none for one that is no cloud's of ours.
#[must_use]
pub fn provider_of(provider_id: &str) -> Option<Provider> {
    match provider_id.split_once("://")?.0 {
        "aws" => Some(Provider::Aws),
        "gce" => Some(Provider::Gcp),
        "azure" => Some(Provider::Azure),
        _ => None,
    }
}

fn provider(node: &Node, of: &Identity) -> Result<(), Unusable> {
    let id = node.spec.as_ref().and_then(|s| s.provider_id.as_deref());
    let id = id.unwrap_or_default();
    let edge = of.provider == Provider::Edge;
    if id.is_empty() && !edge {
        let what = "it has no providerID: nobody can tell whose machine it is";
        return Err(unusable("ProviderMissing", what));
    }
    let found = provider_of(id);
    // One that we had launched says so, and is of no other cloud.
    let ours = node.labels().get(LABEL_OWNER) == Some(&of.uid) && !of.uid.is_empty();
    let matches = if edge {
        found.is_none()
    } else {
        found == Some(of.provider) || ours && found.is_none()
    };
    if !matches {
        let what = format!("its providerID {id:?} is not one of {}", of.provider);
        return Err(unusable("OtherProvider", what));
    }
    let foreign = node.labels().keys().find(|label| {
        let of_another =
            |(mark, who): &&(&str, Provider)| label.starts_with(mark) && *who != of.provider;
        MARKS.iter().any(|mark| of_another(&mark))
    });
    if let Some(label) = foreign {
        let what = format!("its label {label} is none of {}", of.provider);
        return Err(unusable("OtherProvider", what));
    }
    if of.provider == Provider::Aws && id.contains("/fargate-") {
        let what = "it is a Fargate node, which runs the one Pod that it was made for";
        return Err(unusable("Fargate", what));
    }
    Ok(())
}

/// How a node is paid for. A word that is not known counts as on-demand, which costs most.
fn capacity_type(provider: Provider, labels: &BTreeMap<String, String>) -> CapacityType {
    let get = |key: &str| labels.get(key).map(|v| v.to_ascii_lowercase());
    let spot = match (get("karpenter.sh/capacity-type"), provider) {
        (Some(word), _) => word == "spot",
        (None, Provider::Aws) => get("eks.amazonaws.com/capacityType").is_some_and(|w| w == "spot"),
        (None, Provider::Gcp) => {
            let yes = |key| get(key).is_some_and(|w| w == "true");
            let word = get("cloud.google.com/gke-provisioning");
            yes("cloud.google.com/gke-spot")
                || yes("cloud.google.com/gke-preemptible")
                || word.is_some_and(|w| w == "spot" || w == "preemptible")
        }
        (None, Provider::Azure) => {
            let word = get("kubernetes.azure.com/scalesetpriority");
            word.or_else(|| get("kubernetes.azure.com/priority"))
                .is_some_and(|w| w == "spot")
        }
        (None, Provider::Edge) => return CapacityType::Owned,
    };
    if spot {
        CapacityType::Spot
    } else {
        CapacityType::OnDemand
    }
}

/// What the node has for Pods: cores and bytes, Pods, GPUs.
fn capacity(node: &Node) -> Result<(Resources, u64, u64), Unusable> {
    let absurd = |what: String| unusable("CapacityAbsurd", what);
    let status = node.status.as_ref();
    let allocatable = status.and_then(|s| s.allocatable.as_ref());
    let capacity = status.and_then(|s| s.capacity.as_ref());
    let read = |name: &str, read: &dyn Fn(&str, &str) -> Result<u64, hyperion_api::Invalid>| {
        let of = |list: Option<&BTreeMap<String, Quantity>>, at: &str| {
            let found = list.and_then(|l| l.get(name));
            let value = found.map(|q| read(&format!("status.{at}.{name}"), &q.0));
            value.transpose().map_err(|e| absurd(e.to_string()))
        };
        let (left, whole) = (of(allocatable, "allocatable")?, of(capacity, "capacity")?);
        if let (Some(left), Some(whole)) = (left, whole)
            && left > whole
        {
            let what = format!("status.allocatable.{name} is more than status.capacity.{name}");
            return Err(absurd(what));
        }
        Ok(left)
    };
    let cpu_millis = read("cpu", &quantity::cpu_millis)?.unwrap_or(0);
    let memory_bytes = read("memory", &quantity::bytes)?.unwrap_or(0);
    let pods = read("pods", &|f, t| quantity::count(f, t, u64::MAX))?.unwrap_or(PODS);
    let gpus = read("nvidia.com/gpu", &|f, t| quantity::count(f, t, MOST_GPUS))?.unwrap_or(0);
    for (name, value, most) in [
        ("cpu", cpu_millis, MOST_CPU_MILLIS),
        ("memory", memory_bytes, MOST_MEMORY),
        ("pods", pods, u64::MAX),
    ] {
        if value == 0 {
            let what = format!("it has no status.allocatable.{name}");
            return Err(unusable("NoCapacity", what));
        }
        if value > most {
            let what = format!("status.allocatable.{name} is more than any machine has");
            return Err(absurd(what));
        }
    }
    let has = Resources {
        cpu_millis,
        memory_bytes,
    };
    Ok((has, pods, gpus))
}

/// The node's GPUs, which its kubelet hands out whole: their names are ours. What is worth telling.
fn gpus(
    provider: Provider,
    instance_type: &str,
    labels: &BTreeMap<String, String>,
    count: u64,
) -> (Vec<GpuDevice>, Option<String>) {
    let get = |key: &str| labels.get(key).map_or("", String::as_str);
    let strategy = get("nvidia.com/gpu.sharing-strategy");
    let shared = matches!(strategy, "time-slicing" | "mps")
        || get("nvidia.com/gpu.replicas")
            .parse::<u64>()
            .is_ok_and(|replicas| replicas > 1);
    if count > 0 && shared {
        let note = "its GPUs are shared, so that none is whole: they are not used";
        return (Vec::new(), Some(note.to_owned()));
    }
    let shape = shapes::shape(provider, instance_type).filter(|s| s.gpus > 0);
    let product = get("nvidia.com/gpu.product");
    let mig = product.contains("MIG");
    let accelerator = get("cloud.google.com/gke-accelerator");
    let model = match (shape, product) {
        (Some(shape), _) if !mig => shape.gpu.to_owned(),
        (_, "") => accelerator
            .trim_start_matches("nvidia-")
            .trim_start_matches("tesla-")
            .to_uppercase(),
        (_, product) => product
            .trim_start_matches("NVIDIA-")
            .trim_start_matches("Tesla-")
            .to_owned(),
    };
    // Feature discovery tells mebibytes.
    let told = get("nvidia.com/gpu.memory").parse::<u64>().ok();
    let told = told.filter(|mib| *mib > 0 && *mib < 1 << 30);
    let memory_bytes = told.map_or_else(
        || shape.map_or(0, |s| u64::from(s.gpu_memory_gb) << 30),
        |mib| mib << 20,
    );
    let device = |n: u64| GpuDevice {
        uuid: format!("gpu-{n:04}"),
        model: model.clone(),
        memory_bytes,
        free_millis: gpu::WHOLE,
    };
    ((0..count).map(device).collect(), None)
}

fn reach(node: &Node) -> Reach {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let ready = conditions
        .into_iter()
        .flatten()
        .find(|c| c.type_ == "Ready");
    let Some(ready) = ready else {
        return Reach::Silent("its kubelet has not said whether it is ready".to_owned());
    };
    let words = [ready.reason.as_deref(), ready.message.as_deref()];
    let words: Vec<&str> = words
        .into_iter()
        .flatten()
        .filter(|w| !w.is_empty())
        .collect();
    match ready.status.as_str() {
        "True" => Reach::Up,
        "False" => Reach::Runtime(if words.is_empty() {
            "its kubelet is not ready".to_owned()
        } else {
            words.join(": ")
        }),
        _ => Reach::Silent(if words.is_empty() {
            "its kubelet is silent".to_owned()
        } else {
            words.join(": ")
        }),
    }
}

#[cfg(test)]
mod tests;
