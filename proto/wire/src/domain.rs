//! Validated forms of what crosses the link.

use std::fmt;

use hyperion_placement::model::GpuDevice;

use crate::agent_v1::{self, ReplicaPhase};

mod site;
mod update;

pub use site::{Intent, Reconcile, Record};
pub use update::{Bundle, BundleKind, UpdateOrder};

/// Which replica: workload (by uid, so that a deleted namesake is another one) and index.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaKey {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Workload name.
    pub workload: String,
    /// Workload uid.
    pub uid: String,
    /// Replica number, from 0.
    pub index: u32,
}

impl fmt::Display for ReplicaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.namespace, self.workload, self.index)
    }
}

impl From<&ReplicaKey> for agent_v1::ReplicaKey {
    fn from(key: &ReplicaKey) -> Self {
        Self {
            namespace: key.namespace.clone(),
            workload: key.workload.clone(),
            workload_uid: key.uid.clone(),
            index: key.index,
        }
    }
}

/// What a node has.
#[derive(Debug, Clone, PartialEq)]
pub struct Capabilities {
    /// Kubernetes' word: `amd64`, `arm64`.
    pub arch: String,
    /// Thousandths of a core.
    pub cpu_millis: u64,
    /// Bytes.
    pub memory_bytes: u64,
    /// Bytes.
    pub disk_bytes: u64,
    /// GPUs, all free.
    pub gpus: Vec<GpuDevice>,
    /// Labels.
    pub labels: std::collections::BTreeMap<String, String>,
}

/// One telemetry message; every number finite and not negative.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Telemetry {
    /// Percent of all cores.
    pub cpu_percent: f32,
    /// Bytes.
    pub memory_used_bytes: u64,
    /// Bytes.
    pub disk_used_bytes: u64,
    /// One-minute load average.
    pub load1: f32,
    /// Bytes per second.
    pub rx_bytes_per_second: u64,
    /// Bytes per second.
    pub tx_bytes_per_second: u64,
    /// Round trip to the control plane, milliseconds.
    pub rtt_ms: f32,
    /// Hottest sensor.
    pub max_celsius: Option<f32>,
    /// Utilisation per GPU, percent.
    pub gpu_percent: Vec<f32>,
    /// Grows by one per message of one boot of the agent.
    pub sequence: u64,
    /// Messages and events that the agent had to drop.
    pub dropped_total: u64,
}

/// What a node says of one replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Replica.
    pub key: ReplicaKey,
    /// Generation that the node holds.
    pub generation: u64,
    /// Never `Unspecified`.
    pub phase: ReplicaPhase,
    /// Readiness.
    pub ready: bool,
    /// CamelCase.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Restarts on this node.
    pub restarts: u32,
    /// Address, may be empty.
    pub pod_ip: String,
}

/// An order to run a replica; the pod has passed validation.
#[derive(Debug, Clone, PartialEq)]
pub struct Start {
    /// Replica.
    pub key: ReplicaKey,
    /// At least 1.
    pub generation: u64,
    /// What to run.
    pub pod: agent_v1::PodSpec,
}
