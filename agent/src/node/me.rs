//! What the node says of itself to its peers.

use std::time::Duration;

use hyperion_autonomy::Me;
use hyperion_proto::agent_v1::{Gpu, ReplicaPhase, ReplicaReport, Telemetry};
use hyperion_proto::peer_v1::{HeldReplica, Load};

use super::glue::Work;
use super::{Node, NodeConfig, Now};
use crate::store::Store;
use crate::supervisor::Exits;
use crate::workloads::Workloads;

/// Memory in use is told in steps of this, bytes, so that noise makes no news.
const MEMORY_STEP: i64 = 32 << 20;
/// A node that throttled takes work again when it is this much cooler, degrees.
const COOLER: f32 = 5.0;
/// A node whose clocks are held down for so long gives work away: governors do so for a moment under
/// any load.
const SLOWED: Duration = Duration::from_secs(10);

/// At the start: what runs already, by the supervisor's word or by what was found before it began.
pub(super) fn first(config: &NodeConfig, store: &Store, reports: Vec<ReplicaReport>) -> Me {
    let running = |report: &ReplicaReport| report.phase() == ReplicaPhase::Running;
    let said = reports.into_iter().filter(running);
    let said = said.chain(ends(config, store)).map(|r| HeldReplica {
        key: r.key,
        generation: r.generation,
        phase: r.phase,
        ready: r.ready,
    });
    let found = config.running.iter().map(|key| HeldReplica {
        key: Some(key.into()),
        generation: store.held(key).map_or(0, |held| held.start.generation),
        phase: ReplicaPhase::Running.into(),
        ready: false,
    });
    Me {
        held: said.chain(found).collect(),
        capabilities: config.facts.capabilities.clone(),
        accepts: false,
        addresses: config.addresses.clone(),
        agent_version: crate::version().to_owned(),
        ..Me::default()
    }
}

/// Jobs' replicas that ended while the agent was away, as reports.
pub(super) fn ends(config: &NodeConfig, store: &Store) -> Vec<ReplicaReport> {
    let report = |exits: &Exits| {
        let held = store.held(exits.key())?;
        let finished = exits.end_of(held)?;
        Some(ReplicaReport {
            key: Some(exits.key().into()),
            generation: held.start.generation,
            phase: finished.phase.into(),
            exit_code: finished.exit_code,
            reason: finished.reason,
            ..ReplicaReport::default()
        })
    };
    config.exits.iter().filter_map(report).collect()
}

impl<W: Workloads> Node<W> {
    /// Names of the images that the container runtime has.
    pub fn set_images(&mut self, images: Vec<String>, now: Now) {
        self.me.images = images;
        self.refresh(now);
    }

    /// "HOST:PORT" of the peer port, as others reach it.
    pub fn set_addresses(&mut self, addresses: Vec<String>, now: Now) {
        self.me.addresses = addresses;
        self.refresh(now);
    }

    /// GPUs that the node has now: a driver may be loaded after the agent began. Peers hear of it, and
    /// the control plane at the next connection.
    pub fn set_gpus(&mut self, gpus: Vec<Gpu>) {
        // A driver that is being replaced takes no GPU away from what runs.
        if !gpus.is_empty() {
            self.config.facts.capabilities.gpus = gpus;
        }
    }

    /// Whether kernel or driver hold clocks down for heat now.
    pub fn set_slowed(&mut self, slowed: bool, now: Now) {
        let since = self.slowed_since.unwrap_or(now.at);
        self.slowed_since = slowed.then_some(since);
    }

    pub(super) fn set_load(&mut self, sample: &Telemetry, now: Now) {
        let hottest = sample.temperatures.iter().map(|t| t.celsius);
        let hottest = hottest.filter(|c| c.is_finite()).fold(0.0, f32::max);
        if let Some(limit) = self.config.throttle_celsius {
            let limit = if self.hot { limit - COOLER } else { limit };
            let slowed = self
                .slowed_since
                .map(|at| now.at.saturating_duration_since(at));
            self.hot = hottest >= limit || slowed.is_some_and(|time| time >= SLOWED);
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped to 0 to 100 before the cast; NaN becomes 0"
        )]
        let cpu = (sample.cpu_utilization_percent.clamp(0.0, 100.0) / 5.0).round() as u32 * 5;
        self.me.load = Load {
            cpu_percent: cpu,
            memory_used_bytes: sample.memory_used_bytes / MEMORY_STEP * MEMORY_STEP,
            max_celsius: hottest.round(),
            throttled: self.hot,
        };
    }

    /// Tells autonomy how the node is, where that has changed.
    pub(super) fn refresh(&mut self, now: Now) {
        let held = self.all_reports().into_iter();
        self.me.held = held
            .map(|(key, report)| HeldReplica {
                key: Some((&key).into()),
                generation: report.generation,
                phase: report.phase,
                ready: report.ready,
            })
            .collect();
        self.me
            .capabilities
            .clone_from(&self.config.facts.capabilities);
        self.me.accepts = !self.draining
            && self.runtime_problem.is_empty()
            && !self.me.capabilities.container_runtime.is_empty();
        let outputs = self.autonomy.set_me(self.me.clone(), self.clock.since(now));
        self.carry_out(Work::of(outputs), now);
    }
}
