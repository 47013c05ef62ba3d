//! How the agent is, for /healthz, and its metrics.

mod metrics;
mod peers;
mod sensors;

use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hyperion_autonomy::Mode as SiteMode;
use prometheus_client::registry::Registry;
use serde_json::json;

pub use self::metrics::Metrics;
use crate::peers::PeerStats;
use crate::supervisor::RuntimeState;

/// State of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// No identity yet.
    Enrolling,
    /// The control plane answered hello.
    Connected,
    /// No connection; what the store says runs on.
    Suspect,
    /// No connection at the site: it decides for itself.
    Autonomous,
    /// Connected again, and the control plane has not taken what the site decided.
    Reconciling,
    /// The control plane does not want this node.
    Refused,
}

impl Mode {
    /// The site's mode, as far as this node's own link bears it out.
    #[must_use]
    pub fn of(mode: SiteMode, linked: bool) -> Self {
        match mode {
            SiteMode::Reconciling if linked => Self::Reconciling,
            SiteMode::Connected | SiteMode::Suspect if linked => Self::Connected,
            SiteMode::Autonomous => Self::Autonomous,
            _ if linked => Self::Connected,
            _ => Self::Suspect,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Enrolling => "enrolling",
            Self::Connected => "connected",
            Self::Suspect => "suspect",
            Self::Autonomous => "autonomous",
            Self::Reconciling => "reconciling",
            Self::Refused => "refused",
        }
    }
}

struct Inner {
    mode: Mode,
    reason: String,
    node: String,
    runtime: String,
    runtime_problem: Option<String>,
    store_problem: Option<String>,
}

/// Shared by the session, which writes, and the HTTP server, which reads.
pub struct Status {
    inner: Mutex<Inner>,
    registry: Registry,
    /// What the agent counts.
    pub metrics: Metrics,
}

impl Default for Status {
    fn default() -> Self {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let inner = Inner {
            mode: Mode::Enrolling,
            reason: String::new(),
            node: String::new(),
            runtime: String::new(),
            runtime_problem: None,
            store_problem: None,
        };
        Self {
            inner: Mutex::new(inner),
            registry,
            metrics,
        }
    }
}

impl Status {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// State of the link.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.lock().mode
    }

    /// Why the link is in its state.
    #[must_use]
    pub fn reason(&self) -> String {
        self.lock().reason.clone()
    }

    /// Sets the state of the link and why it is so.
    pub fn set_mode(&self, mode: Mode, reason: &str) {
        let connected = i64::from(matches!(mode, Mode::Connected | Mode::Reconciling));
        if connected == 1 && self.metrics.connected.get() == 0 {
            self.metrics.connections.inc();
        }
        self.metrics.connected.set(connected);
        let mut inner = self.lock();
        inner.mode = mode;
        inner.reason = reason.to_owned();
    }

    /// Sets the node id.
    pub fn set_node(&self, node: &str) {
        node.clone_into(&mut self.lock().node);
    }

    /// Sets the container runtime.
    pub fn set_runtime(&self, state: &RuntimeState) {
        let mut inner = self.lock();
        match state {
            RuntimeState::Available { name, version } => {
                inner.runtime = format!("{name} {version}");
                inner.runtime_problem = None;
                self.metrics.runtime_available.set(1);
            }
            RuntimeState::Unavailable { reason } => {
                inner.runtime_problem = Some(reason.clone());
                self.metrics.runtime_available.set(0);
            }
        }
    }

    /// Sets why the store is not on disk, where it is not.
    pub fn set_store(&self, problem: Option<&str>) {
        self.metrics.store_on_disk.set(i64::from(problem.is_none()));
        self.lock().store_problem = problem.map(str::to_owned);
    }

    /// Sets what the endpoint of the peers counts.
    pub fn set_peers(&self, stats: &PeerStats) {
        self.metrics.peers.set(stats);
    }

    /// Body of /healthz. The agent is well while it answers: what is wrong around it is told, but
    /// a restart of the agent would not mend it.
    #[must_use]
    pub fn health(&self) -> String {
        let inner = self.lock();
        let degraded = inner.runtime_problem.is_some() || inner.store_problem.is_some();
        json!({
            "status": if degraded { "degraded" } else { "ok" },
            "node": inner.node,
            "link": inner.mode.word(),
            "linkReason": inner.reason,
            "runtime": inner.runtime,
            "runtimeProblem": inner.runtime_problem,
            "storeProblem": inner.store_problem,
            "version": crate::version(),
        })
        .to_string()
    }

    /// Body of /metrics.
    #[must_use]
    pub fn exposition(&self) -> String {
        self.metrics.set_process();
        let mut text = String::with_capacity(8 * 1024);
        if prometheus_client::encoding::text::encode(&mut text, &self.registry).is_err() {
            let _ = writeln!(text, "# encoding failed");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Sample;
    use crate::telemetry::sensors::{Board, Look};

    #[test]
    fn metrics_follow_the_naming_rules() {
        let status = Status::default();
        status.metrics.telemetry_sent.inc();
        status.set_mode(Mode::Connected, "");
        let text = status.exposition();
        for line in [
            "hyperion_agent_telemetry_sent_total 1",
            "hyperion_agent_link_connected 1",
            "hyperion_agent_link_connections_total 1",
            "# UNIT hyperion_node_memory_used_bytes bytes",
        ] {
            assert!(text.contains(line), "{line} is missing in:\n{text}");
        }
    }

    #[test]
    fn sensors_are_told_while_they_are_there() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/jetson-orin-nano");
        let look = Board::new(root.into()).look(std::time::Instant::now());
        let status = Status::default();
        let sample = |sensors| Sample {
            sensors,
            ..Sample::default()
        };
        status.metrics.set_sample(&sample(look));
        let text = status.exposition();
        for line in [
            "hyperion_gpu_utilization_ratio{gpu=\"17000000.gpu\"} 0.874",
            "hyperion_node_temperature_celsius{sensor=\"tj-thermal\"} 53.718",
            "# TYPE hyperion_node_overcurrent_events counter",
            "hyperion_node_overcurrent_events_total{event=\"oc3\"} 14.0",
            "hyperion_agent_sensors_left_out 0",
        ] {
            assert!(text.contains(line), "{line} is missing in:\n{text}");
        }
        let board = text.lines().find(|l| l.starts_with("hyperion_node_board{"));
        assert!(
            board.unwrap().contains("l4t_release=\"36.4.3\""),
            "{board:?}"
        );
        status.metrics.set_sample(&sample(Look::default()));
        assert!(!status.exposition().contains("celsius"));
    }

    #[test]
    fn health_names_what_is_wrong() {
        let status = Status::default();
        status.set_store(Some("No space left on device"));
        let health: serde_json::Value = serde_json::from_str(&status.health()).unwrap();
        assert_eq!(health["status"], "degraded");
        assert_eq!(health["storeProblem"], "No space left on device");
        assert_eq!(health["link"], "enrolling");
    }
}
