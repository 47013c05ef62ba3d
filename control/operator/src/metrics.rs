//! What the operator counts.

use hyperion_api::placement::PlacementPhase;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Label of [`Metrics::placements`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Phase {
    /// The phase's word.
    pub phase: String,
}

/// Counters and gauges.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// 1 while this process decides.
    pub leader: Gauge,
    /// Decisions made.
    pub decisions: Counter,
    /// Seconds per pass over a workload that made a decision.
    pub decision_seconds: Histogram,
    /// Workloads waiting to be looked at.
    pub queue: Gauge,
    /// Workloads known.
    pub workloads: Gauge,
    /// Placements by phase.
    pub placements: Family<Phase, Gauge>,
    /// API writes that failed and were tried again.
    pub write_failures: Counter,
}

impl Metrics {
    /// Registers all under `hyperion_operator_`.
    pub fn register(registry: &mut Registry) -> Self {
        let m = Self {
            leader: Gauge::default(),
            decisions: Counter::default(),
            // 50 µs to 1.6 s.
            decision_seconds: Histogram::new(exponential_buckets(0.000_05, 2.0, 16)),
            queue: Gauge::default(),
            workloads: Gauge::default(),
            placements: Family::default(),
            write_failures: Counter::default(),
        };
        let r = registry.sub_registry_with_prefix("hyperion_operator");
        r.register("leader", "1 while this process decides", m.leader.clone());
        r.register("decisions", "Decisions made", m.decisions.clone());
        r.register(
            "decision_seconds",
            "Time per pass over a workload that made a decision",
            m.decision_seconds.clone(),
        );
        r.register(
            "queue_length",
            "Workloads waiting to be looked at",
            m.queue.clone(),
        );
        r.register("workloads", "Workloads known", m.workloads.clone());
        r.register("placements", "Placements by phase", m.placements.clone());
        r.register(
            "write_failures",
            "API writes that failed and were tried again",
            m.write_failures.clone(),
        );
        m
    }

    /// Counts placements by phase.
    pub fn count_placements(&self, phases: impl Iterator<Item = PlacementPhase>) {
        let mut counts = std::collections::BTreeMap::<String, i64>::new();
        for phase in ALL {
            counts.insert(format!("{phase:?}"), 0);
        }
        for phase in phases {
            *counts.entry(format!("{phase:?}")).or_default() += 1;
        }
        for (phase, count) in counts {
            self.placements.get_or_create(&Phase { phase }).set(count);
        }
    }
}

const ALL: [PlacementPhase; 8] = [
    PlacementPhase::Pending,
    PlacementPhase::Starting,
    PlacementPhase::Running,
    PlacementPhase::Backoff,
    PlacementPhase::Succeeded,
    PlacementPhase::Failed,
    PlacementPhase::Stopping,
    PlacementPhase::Unknown,
];
