//! What is wanted of one replica and what is there.

use std::time::{Duration, Instant};

use hyperion_proto::agent_v1::{PullPolicy, ReplicaPhase};
use hyperion_proto::domain::{ReplicaKey, Start};

use super::Finished;

/// A replica that should run, or has ended for good.
#[derive(Debug, Clone)]
pub(super) struct Want {
    pub start: Start,
    /// Of the pod.
    pub hash: String,
    pub finished: Option<Finished>,
    /// A replica of a deleted workload of the same name that is still being stopped: its ports
    /// and GPUs are not free yet.
    pub behind: Option<ReplicaKey>,
}

/// A sandbox of a replica.
#[derive(Debug, Clone)]
pub(super) struct Sandbox {
    pub id: String,
    pub attempt: u32,
    pub hash: String,
    pub ready: bool,
    /// Empty on the host's network.
    pub ip: String,
    pub grace: Duration,
    pub containers: Vec<Container>,
}

/// A container of a sandbox.
#[derive(Debug, Clone)]
pub(super) struct Container {
    pub id: String,
    pub name: String,
    /// Grows by one per start over the life of the replica; names the log file.
    pub attempt: u32,
    /// Starts of this container before this one, of the same pod.
    pub restarts: u32,
    pub state: State,
    pub started: Instant,
}

/// State of a container.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum State {
    /// Made, never started.
    Created,
    Running,
    Exited(Ended),
    /// containerd lost track of it; it may run.
    Unknown,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ended {
    pub code: i32,
    /// containerd's word: `Completed`, `Error`, `OOMKilled`, `StartError`, `Unknown`.
    pub reason: String,
    pub message: String,
    pub ran: Duration,
    pub at: Instant,
}

impl Ended {
    /// The device or containerd went down with it: nobody saw it end.
    pub(super) fn unseen(&self) -> bool {
        self.reason == "Unknown"
    }

    /// In words, with what the liveness probe said where that is why it was stopped.
    pub(super) fn told(&self, container: &str, liveness: Option<&str>) -> String {
        let mut words = format!("container {container} ended with exit code {}", self.code);
        if let Some(probe) = liveness {
            words = format!("{words} (LivenessFailed: {probe})");
        } else if !self.reason.is_empty() {
            words = format!("{words} ({})", self.reason);
        }
        if !self.message.is_empty() {
            words = format!("{words}: {}", self.message);
        }
        words
    }

    /// The reason for reports: `otherwise` where nothing better is known.
    pub(super) fn told_reason<'a>(&self, liveness: Option<&str>, otherwise: &'a str) -> &'a str {
        match (liveness, self.reason.as_str()) {
            (Some(_), _) => "LivenessFailed",
            (None, "OOMKilled") => "OOMKilled",
            (None, "StartError") => "StartFailed",
            (None, "Unknown") => "Interrupted",
            _ => otherwise,
        }
    }
}

impl Sandbox {
    /// Something in it may hold processes, or the network.
    pub(super) fn live(&self) -> bool {
        self.ready || self.containers.iter().any(Container::live)
    }

    /// The latest start of a container.
    pub(super) fn latest(&self, name: &str) -> Option<&Container> {
        let named = self.containers.iter().filter(|c| c.name == name);
        named.max_by_key(|c| c.attempt)
    }
}

impl Container {
    pub(super) fn live(&self) -> bool {
        matches!(self.state, State::Running | State::Unknown)
    }
}

/// The next thing to do for a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    EnsureImage {
        image: String,
        policy: PullPolicy,
    },
    RunSandbox {
        attempt: u32,
    },
    StartContainer {
        sandbox: String,
        name: String,
        attempt: u32,
        restarts: u32,
    },
    StopContainer {
        id: String,
        grace: Duration,
    },
    RemoveContainer {
        id: String,
        name: String,
        attempt: u32,
    },
    /// Containers first, with their grace.
    StopSandbox {
        id: String,
        containers: Vec<String>,
        grace: Duration,
    },
    RemoveSandbox {
        id: String,
    },
}

impl Step {
    /// Reason in reports when it fails.
    pub(super) fn failure_reason(&self) -> &'static str {
        match self {
            Self::EnsureImage { .. } => "ImagePullFailed",
            Self::RunSandbox { .. } => "SandboxFailed",
            Self::StartContainer { .. } => "CreateFailed",
            Self::StopContainer { .. } | Self::StopSandbox { .. } => "StopFailed",
            Self::RemoveContainer { .. } | Self::RemoveSandbox { .. } => "RemoveFailed",
        }
    }
}

/// What a report says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Status {
    pub phase: ReplicaPhase,
    pub ready: bool,
    pub reason: String,
    pub message: String,
    pub restarts: u32,
    pub pod_ip: String,
    pub exit_code: i32,
    pub container_ids: Vec<String>,
}

impl Status {
    pub(super) fn new(phase: ReplicaPhase, reason: &str, message: impl Into<String>) -> Self {
        Self {
            phase,
            ready: false,
            reason: reason.to_owned(),
            message: message.into(),
            restarts: 0,
            pod_ip: String::new(),
            exit_code: 0,
            container_ids: Vec::new(),
        }
    }
}
