//! What a node's slots hold and how far its update is: part of a `HyperionNode`'s status.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Versions, slots and the last update of a node, as its agent says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeUpdate {
    /// Board that bundles have to name; empty where it has no engine for the whole system.
    #[serde(default)]
    pub machine: String,
    /// Version of the system that runs; empty where it is not known.
    #[serde(default)]
    pub system_version: String,
    /// Slots of the system.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slots: Vec<NodeSlot>,
    /// Of the last order; none where there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<UpdateProgress>,
}

/// A place for a whole system.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeSlot {
    /// Name.
    pub name: String,
    /// Version of the system in it; empty where it is not known.
    #[serde(default)]
    pub version: String,
    /// State.
    #[serde(default)]
    pub state: SlotState,
    /// The system runs from it.
    #[serde(default)]
    pub running: bool,
}

/// State of a slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SlotState {
    /// Said in words of a newer agent.
    #[default]
    Unknown,
    /// It ran well.
    Good,
    /// It was rolled back from, or is damaged.
    Bad,
    /// It runs, and has not shown yet that it can.
    Trial,
    /// Nothing is in it.
    Empty,
}

/// How far an update is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpdateProgress {
    /// Order that this is about.
    pub order: String,
    /// Phase.
    #[serde(default)]
    pub phase: UpdatePhase,
    /// Of the phase.
    #[serde(default)]
    pub percent: u32,
    /// CamelCase word; empty where all goes well.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The node's words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Version of the bundle.
    #[serde(default)]
    pub version: String,
}

/// Phase of an update.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum UpdatePhase {
    /// Said in words of a newer agent.
    #[default]
    Unknown,
    /// The bundle is on its way.
    Downloading,
    /// It is written beside what runs.
    Installing,
    /// It waits beside what runs until the node has been emptied.
    Installed,
    /// The node restarts into it.
    Restarting,
    /// It runs, and has to become Ready in time.
    Trial,
    /// It runs, and is kept.
    Done,
    /// It did not become Ready in time: what ran before runs again.
    RolledBack,
    /// The node does not take it: bad slot, downgrade, wrong machine, bad signature, too large.
    Refused,
    /// The download or the disk failed.
    Failed,
}

impl UpdatePhase {
    /// The order ended without the new version.
    #[must_use]
    pub const fn failed(self) -> bool {
        matches!(self, Self::RolledBack | Self::Refused | Self::Failed)
    }

    /// The node is between the old version and the new one.
    #[must_use]
    pub const fn between(self) -> bool {
        matches!(self, Self::Restarting | Self::Trial)
    }
}

impl fmt::Display for UpdatePhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl fmt::Display for SlotState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
