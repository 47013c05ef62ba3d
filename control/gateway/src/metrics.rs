//! What the gateway counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Label of refused input.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct What {
    /// `telemetry`, `hello`, `replica_report`, `enrolment` …
    pub what: String,
}

/// Counters and gauges.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Open streams.
    pub sessions: Gauge,
    /// Telemetry messages taken.
    pub telemetry_received: Counter,
    /// Messages refused, by kind.
    pub refused: Family<What, Counter>,
    /// Nodes enrolled.
    pub enrolled: Counter,
    /// Samples of the time without a link that were taken.
    pub backfilled: Counter,
    /// Samples that nodes had to drop before they could bring them.
    pub dropped: Counter,
    /// Decisions of sites that nodes brought.
    pub site_decisions: Counter,
}

impl Metrics {
    /// Registers all under `hyperion_gateway_` and `hyperion_telemetry_`.
    pub fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        let r = registry.sub_registry_with_prefix("hyperion_gateway");
        r.register("sessions", "Open agent streams", m.sessions.clone());
        r.register(
            "telemetry_received",
            "Telemetry messages taken",
            m.telemetry_received.clone(),
        );
        r.register("refused", "Messages refused, by kind", m.refused.clone());
        r.register("enrolled", "Nodes enrolled", m.enrolled.clone());
        r.register(
            "site_decisions",
            "Decisions of sites that nodes brought when they were back",
            m.site_decisions.clone(),
        );
        let r = registry.sub_registry_with_prefix("hyperion_telemetry");
        r.register(
            "backfilled",
            "Samples of the time without a link that were taken",
            m.backfilled.clone(),
        );
        r.register(
            "dropped",
            "Samples that nodes dropped, because their stores were full, before they could bring them",
            m.dropped.clone(),
        );
        m
    }

    /// Counts a refusal.
    pub fn refuse(&self, what: &str) {
        self.refused
            .get_or_create(&What {
                what: what.to_owned(),
            })
            .inc();
    }
}
