//! The fleet API: live state that never goes to etcd, as JSON over the API server's service proxy
//! (`/api/v1/namespaces/hyperion-system/services/hyperion-control:http/proxy/fleet/v1/…`), so that
//! a laptop needs nothing but a kubeconfig.
//!
//! - `GET nodes?since=VERSION` -> [`LiveFleet`]: nodes whose live state changed after `VERSION`, and
//!   who decides now.
//! - `GET history?node=` -> [`History`]: what a node measured while it was out of reach.
//! - `GET logs?namespace=&workload=&replica=&container=&tail=&follow=` -> text, chunked.

use serde::{Deserialize, Serialize};

/// Path prefix under an API server, for kube clients.
pub const PROXY_PREFIX: &str =
    "/api/v1/namespaces/hyperion-system/services/hyperion-control:http/proxy/fleet/v1";

/// Answer to `GET nodes`: [`LiveNodes`], and beside its fields `scorer`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LiveFleet {
    /// Nodes.
    #[serde(flatten)]
    pub live: LiveNodes,
    /// Who decides.
    #[serde(default)]
    pub scorer: ScorerStatus,
}

/// Who decides where replicas go, and whether that is who was asked to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ScorerStatus {
    /// `rules`, or the name of the policy that decides.
    pub decides: String,
    /// The policy that is loaded: the first digits of its file's hash; empty where none is.
    pub policy: String,
    /// Where it comes from: `built-in`, `file PATH`, `configmap NAMESPACE/NAME`, or `rules`.
    pub source: String,
    /// Rules decide, and the policy only watches.
    pub shadow: bool,
    /// Why the policy that was asked for is refused; empty where it is not.
    pub refused: String,
    /// Decisions that a guard rail gave to rules since the control plane began.
    pub fallbacks: u64,
}

/// The nodes of an answer to `GET nodes`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LiveNodes {
    /// Ask with `since=` this next time.
    pub version: u64,
    /// Changed nodes, sorted by id.
    pub nodes: Vec<LiveNode>,
}

/// Live state of one node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LiveNode {
    /// Node id, the name of its `HyperionNode`.
    pub id: String,
    /// Its stream is open.
    pub connected: bool,
    /// Milliseconds since its last message.
    pub age_ms: u64,
    /// Percent of all cores.
    pub cpu_percent: f32,
    /// Bytes.
    pub memory_used_bytes: u64,
    /// Bytes.
    pub memory_total_bytes: u64,
    /// Bytes.
    pub disk_used_bytes: u64,
    /// One-minute load average.
    pub load1: f32,
    /// Bytes per second.
    pub rx_bytes_per_second: u64,
    /// Bytes per second.
    pub tx_bytes_per_second: u64,
    /// Round trip to the control plane.
    pub rtt_ms: f32,
    /// Hottest sensor.
    pub max_celsius: Option<f32>,
    /// Per GPU: utilisation, percent.
    pub gpu_percent: Vec<f32>,
    /// Telemetry and events that the agent had to drop.
    pub dropped_total: u64,
}

/// What a node measured while it was out of reach, as far as it could keep it and this control plane
/// does; it is gone with the control plane.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct History {
    /// Node id.
    pub node: String,
    /// Oldest first, as the node measured them.
    pub samples: Vec<PastTelemetry>,
    /// Samples that the node had to drop because its store was full.
    pub dropped_total: u64,
}

/// One sample of a [`History`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PastTelemetry {
    /// Milliseconds since 1970 by the node's clock; 0 where it had none.
    pub unix_ms: i64,
    /// Percent of all cores.
    pub cpu_percent: f32,
    /// Bytes.
    pub memory_used_bytes: u64,
    /// Bytes.
    pub disk_used_bytes: u64,
    /// One-minute load average.
    pub load1: f32,
    /// Hottest sensor.
    pub max_celsius: Option<f32>,
    /// Of the GPU that is busiest: utilisation, percent.
    pub gpu_percent: Option<f32>,
}
