//! What the fleet costs, for `/metrics`: US dollars by namespace, counted up at the prices at which
//! replicas were placed. It begins at 0 with each leader, as counters do.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::index::Index;

/// Namespaces that are told apart; the rest is one, named [`OTHERS`].
const NAMESPACES: usize = 1000;
/// Name of the rest. No namespace is named so.
const OTHERS: &str = "(others)";
/// Counted at least as often.
pub const COUNTED: Duration = Duration::from_secs(15);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Namespace {
    namespace: String,
}

/// Counters.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    total: Family<Namespace, Counter<f64, AtomicU64>>,
    rate: Family<Namespace, Gauge<f64, AtomicU64>>,
}

impl Metrics {
    /// Registers both under `hyperion_cost_`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let r = registry.sub_registry_with_prefix("hyperion_cost");
        r.register(
            "usd",
            "US dollars since this control plane leads, at the prices when replicas were placed",
            metrics.total.clone(),
        );
        r.register(
            "usd_per_hour",
            "US dollars per hour of what is placed now",
            metrics.rate.clone(),
        );
        metrics
    }
}

/// Counts up.
#[derive(Debug)]
pub struct Meter {
    since: Instant,
    rates: BTreeMap<String, f64>,
}

impl Meter {
    /// From now on.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            since: now,
            rates: BTreeMap::new(),
        }
    }

    /// When to count at the latest.
    #[must_use]
    pub fn due(&self) -> Instant {
        self.since + COUNTED
    }

    /// Counts what was placed since the last time, and looks at what is placed now.
    pub fn count(&mut self, index: &Index, now: Instant, metrics: &Metrics) {
        let hours = now.saturating_duration_since(self.since).as_secs_f64() / 3600.0;
        for (namespace, rate) in &self.rates {
            let namespace = namespace.clone();
            let total = metrics.total.get_or_create(&Namespace { namespace });
            total.inc_by(rate * hours);
        }
        let mut rates: BTreeMap<String, f64> = BTreeMap::new();
        // Those that are gone cost nothing, and say so.
        for namespace in self.rates.keys() {
            rates.insert(namespace.clone(), 0.0);
        }
        for placement in index.placements().filter(|p| p.takes_room()) {
            let namespace = placement.key.namespace.as_str();
            let known = rates.contains_key(namespace) || rates.len() < NAMESPACES;
            let namespace = if known { namespace } else { OTHERS };
            *rates.entry(namespace.to_owned()).or_default() += placement.spec.hourly_cost.max(0.0);
        }
        for (namespace, rate) in &rates {
            let namespace = namespace.clone();
            metrics
                .rate
                .get_or_create(&Namespace { namespace })
                .set(*rate);
        }
        (self.since, self.rates) = (now, rates);
    }
}
