//! The fleet API: live state that never goes to etcd, as JSON over the API server's service proxy
//! (`/api/v1/namespaces/hyperion-system/services/hyperion-control:http/proxy/fleet/v1/…`), so that
//! a laptop needs nothing but a kubeconfig.
//!
//! - `GET nodes?since=VERSION` -> [`LiveNodes`]: nodes whose live state changed after `VERSION`.
//! - `GET logs?namespace=&workload=&replica=&container=&tail=&follow=` -> text, chunked.

use serde::{Deserialize, Serialize};

/// Path prefix under an API server, for kube clients.
pub const PROXY_PREFIX: &str =
    "/api/v1/namespaces/hyperion-system/services/hyperion-control:http/proxy/fleet/v1";

/// Answer to `GET nodes`.
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
