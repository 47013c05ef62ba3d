//! `HyperionNode`: one machine, with an agent or in a workload cluster.

use std::collections::BTreeMap;

use hyperion_placement::model::Taint;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::update::NodeUpdate;
use crate::workload::{CapacityType, Geography, Provider, Tier};

/// A machine of the fleet. Made at enrolment, or for a node of a HyperionCluster; `unschedulable`,
/// `draining`, `revoked` and `taints` are for people and tools to set.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "hyperion.io",
    version = "v1alpha1",
    kind = "HyperionNode",
    plural = "hyperionnodes",
    shortname = "hn",
    status = "HyperionNodeStatus",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.ready"),
    printcolumn(name = "Provider", type_ = "string", json_path = ".status.provider"),
    printcolumn(name = "Region", type_ = "string", json_path = ".status.region"),
    printcolumn(name = "Site", type_ = "string", json_path = ".spec.site"),
    printcolumn(name = "Arch", type_ = "string", json_path = ".status.arch"),
    printcolumn(name = "CPU", type_ = "string", json_path = ".status.allocatable.cpu"),
    printcolumn(
        name = "Memory",
        type_ = "string",
        json_path = ".status.allocatable.memory"
    ),
    printcolumn(name = "GPUs", type_ = "integer", json_path = ".status.gpuCount"),
    printcolumn(
        name = "System",
        type_ = "string",
        json_path = ".status.update.systemVersion",
        priority = 1
    ),
    printcolumn(
        name = "Update",
        type_ = "string",
        json_path = ".status.update.progress.phase",
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct HyperionNodeSpec {
    /// Site that the join token stood for.
    #[serde(default)]
    pub site: String,
    /// HyperionCluster that it is a node of; none for a machine with an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Cordoned: takes no new replicas.
    #[serde(default)]
    pub unschedulable: bool,
    /// Its replicas move away, and it takes no new ones.
    #[serde(default)]
    pub draining: bool,
    /// Its certificate is no longer accepted.
    #[serde(default)]
    pub revoked: bool,
    /// Taints, with Kubernetes' meaning. Those that a node has in its cluster come on top.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<NodeTaint>,
}

/// A taint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeTaint {
    /// Key.
    pub key: String,
    /// Value.
    #[serde(default)]
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

impl From<&NodeTaint> for Taint {
    fn from(taint: &NodeTaint) -> Self {
        Self {
            key: taint.key.clone(),
            value: taint.value.clone(),
            effect: taint.effect.clone(),
        }
    }
}

/// Mode of the agent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AgentMode {
    /// In contact with the control plane.
    Connected,
    /// Contact lost a moment ago.
    #[default]
    Suspect,
    /// Its site decides for itself.
    Autonomous,
    /// Comparing generations after the return.
    Reconciling,
}

/// Status of a node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HyperionNodeStatus {
    /// "True", "False" or "Unknown": the Ready condition, for the table.
    #[serde(default)]
    pub ready: String,
    /// Mode.
    #[serde(default)]
    pub mode: AgentMode,
    /// Conditions.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// Tier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
    /// Provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<Provider>,
    /// Region.
    #[serde(default)]
    pub region: String,
    /// Zone.
    #[serde(default)]
    pub zone: String,
    /// Geography.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub geography: Option<Geography>,
    /// How it is paid for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_type: Option<CapacityType>,
    /// Instance type or board.
    #[serde(default)]
    pub instance_type: String,
    /// US dollars per hour.
    #[serde(default)]
    pub price_per_hour: f64,
    /// CPU architecture in Kubernetes' words.
    #[serde(default)]
    pub arch: String,
    /// Hostname.
    #[serde(default)]
    pub hostname: String,
    /// Agent version.
    #[serde(default)]
    pub agent_version: String,
    /// Boot id of the agent.
    #[serde(default)]
    pub boot_id: String,
    /// Labels that the agent reported.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Taints that it has in its cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<NodeTaint>,
    /// Cordoned in its cluster, or nothing can be placed on it there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cordoned: bool,
    /// What it has for replicas, as Kubernetes quantities: cpu, memory, nvidia.com/gpu.
    #[serde(default)]
    pub allocatable: BTreeMap<String, String>,
    /// GPUs.
    #[serde(default)]
    pub gpus: Vec<NodeGpu>,
    /// Number of GPUs, for the table.
    #[serde(default)]
    pub gpu_count: i32,
    /// Where the other nodes of its site find it, "HOST:PORT".
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peer_addresses: Vec<String>,
    /// SHA-256 of the policy that it decides with while it is cut off; empty for rules.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub policy: String,
    /// Versions, slots and its last update; none where it can't be updated by a rollout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<NodeUpdate>,
    /// Last time its stream was opened or closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition: Option<Time>,
}

/// A GPU of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeGpu {
    /// Uuid.
    pub uuid: String,
    /// Model.
    pub model: String,
    /// Bytes.
    pub memory_bytes: i64,
}
