//! `HyperionRollout`: which nodes get which version, and in what order.

mod amount;
mod plan;
#[cfg(test)]
mod tests;
mod window;

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use amount::Amount;
pub use plan::{Bundle, Plan, READY_WITHIN};
pub use window::{Day, Hours, Window};

/// Brings a version to nodes with an agent, wave by wave. It is over when the nodes of its last wave
/// have the version; a change of the spec begins it again.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "hyperion.io",
    version = "v1alpha1",
    kind = "HyperionRollout",
    plural = "hyperionrollouts",
    shortname = "hr",
    status = "HyperionRolloutStatus",
    printcolumn(name = "Version", type_ = "string", json_path = ".spec.bundle.version"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason"),
    printcolumn(name = "Wave", type_ = "string", json_path = ".status.waveOf"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes"),
    printcolumn(name = "Done", type_ = "integer", json_path = ".status.done"),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".status.failed"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct HyperionRolloutSpec {
    /// What they get.
    pub bundle: RolloutBundle,
    /// Labels of the nodes; all nodes where there are none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Sites of the nodes; all sites where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sites: Vec<String>,
    /// How many nodes, or which percentage of them, are updated together with those of the waves
    /// before; a wave begins when all nodes of the one before have ended (default 1, 10%, 100%).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waves: Vec<Amount>,
    /// Most nodes, or percentage of them, that are not Ready at a time; those that are not Ready for
    /// another reason count (default 1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_unavailable: Option<Amount>,
    /// Nodes, or percentage of them, that may fail; one more pauses the rollout (default 0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_failures: Option<Amount>,
    /// Failures that somebody has looked at: they do not count for maxFailures any more.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub accepted_failures: u32,
    /// A higher number lets nodes that failed try again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attempt: u32,
    /// When nodes may be emptied and restarted; always where there are none. Downloads need no
    /// window.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<Window>,
    /// Nothing more is begun; nodes that restart at this moment go on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// Time for a node to be Ready after the restart; it rolls back otherwise (default 5m).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_within: Option<String>,
    /// Time for workloads to move off a node; it is restarted with what can't move after that
    /// (default 10m).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty_within: Option<String>,
    /// What becomes of nodes that run `exclusive` workloads (default Wait).
    #[serde(default)]
    pub exclusive: Exclusive,
}

/// Nodes that run `exclusive` workloads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Exclusive {
    /// They are not restarted before these have ended.
    #[default]
    Wait,
    /// These are stopped and placed elsewhere, and where they can't be, restarted with the node.
    Move,
}

/// A bundle, and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutBundle {
    /// Where nodes get it: http, https, or file (on the device).
    pub url: String,
    /// SHA-256 of the file, 64 hex digits.
    pub sha256: String,
    /// Size of the file; nodes refuse what does not fit before they download it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<i64>,
    /// Version that it brings: letters, digits and -._+~. Nodes that have it are done.
    pub version: String,
    /// What it replaces.
    #[serde(default)]
    pub kind: BundleKind,
    /// Boards that it is for: others refuse it unseen. Where there are none, each node looks into
    /// the bundle.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub machines: Vec<String>,
}

/// What a bundle replaces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BundleKind {
    /// The whole system: nodes are emptied and restarted.
    #[default]
    System,
    /// The agent alone: workloads run on.
    Agent,
}

/// Where a rollout is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RolloutPhase {
    /// Nodes are updated, or waited for.
    #[default]
    Progressing,
    /// Nothing is begun until somebody resumes it.
    Paused,
    /// It is over.
    Complete,
    /// The spec can't be carried out.
    Invalid,
}

impl fmt::Display for RolloutPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Status of a rollout.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HyperionRolloutStatus {
    /// Phase.
    #[serde(default)]
    pub phase: RolloutPhase,
    /// Reason of the phase, CamelCase, for the table.
    #[serde(default)]
    pub reason: String,
    /// What it waits for, or why it ended, for people.
    #[serde(default)]
    pub message: String,
    /// Wave, from 1.
    #[serde(default)]
    pub wave: i32,
    /// Wave and number of waves, for the table.
    #[serde(default)]
    pub wave_of: String,
    /// Nodes that it is for.
    #[serde(default)]
    pub nodes: i32,
    /// Of these: have the version.
    #[serde(default)]
    pub done: i32,
    /// Of these: download, install, are emptied or restart.
    #[serde(default)]
    pub updating: i32,
    /// Of these: have not begun.
    #[serde(default)]
    pub waiting: i32,
    /// Of these: ended without the version.
    #[serde(default)]
    pub failed: i32,
    /// Of these: are not Ready, or are emptied.
    #[serde(default)]
    pub unavailable: i32,
    /// Selected nodes that can't have the bundle, known beforehand: another board, no engine.
    #[serde(default)]
    pub refused: i32,
    /// Conditions.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// Nodes that are emptied or restart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moving: Vec<RolloutNode>,
    /// Nodes that failed or were refused, the first 50.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<RolloutFailure>,
    /// Generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// A node between the old version and the new one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutNode {
    /// Node.
    pub name: String,
    /// Where it is.
    pub stage: RolloutStage,
    /// Since when.
    pub since: Time,
    /// Order that it has.
    #[serde(default)]
    pub order: String,
}

/// Where a node is between the old version and the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RolloutStage {
    /// Its replicas move away.
    Emptying,
    /// It was told to restart, and is not Ready again.
    Restarting,
}

/// A node without the version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutFailure {
    /// Node.
    pub node: String,
    /// CamelCase word.
    pub reason: String,
    /// The node's words.
    #[serde(default)]
    pub message: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}
