//! Measurements of nodes that no agent streams: asked of a Prometheus server, now and then.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use hyperion_providers::feeds::http::{Http, Limits};
use hyperion_providers::prometheus::{Prometheus, Queries, Sample};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How often it is asked: half of how often Prometheus itself usually looks.
const EVERY: Duration = Duration::from_secs(15);
/// Bounds on one answer: 10,000 nodes have about 3 MB.
const LIMITS: Limits = Limits {
    patience: Duration::from_secs(10),
    bytes: 16 << 20,
};

/// Shares of CPU in use, by node.
pub type Measured = Arc<Vec<Sample>>;

/// Label of `hyperion_prometheus_queries_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: String,
}

/// What is counted.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    queries: Family<Outcome, Counter>,
    left_out: Counter,
    /// Nodes that have a value of the last answer.
    pub nodes: Gauge,
    /// Samples of the last answer that are of no node of the fleet.
    pub unknown: Gauge,
}

impl Metrics {
    /// Registers all under `hyperion_prometheus_`.
    pub fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        let r = registry.sub_registry_with_prefix("hyperion_prometheus");
        r.register("queries", "Queries, by outcome", m.queries.clone());
        r.register(
            "samples_left_out",
            "Samples without a node's name, or whose value is no share",
            m.left_out.clone(),
        );
        r.register(
            "nodes",
            "Nodes that the last answer measured",
            m.nodes.clone(),
        );
        r.register(
            "unknown_nodes",
            "Samples of the last answer that are of no node of the fleet",
            m.unknown.clone(),
        );
        m
    }
}

/// Where measurements come from.
#[derive(Debug)]
pub struct Source {
    server: Prometheus,
    queries: Queries,
}

impl Source {
    /// A server at an address, with a bearer token from a file and queries from another.
    ///
    /// # Errors
    /// The address is none, or a file can't be used.
    pub fn new(
        address: &str,
        token: Option<&Path>,
        queries: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let read = |path: &Path| std::fs::read_to_string(path);
        let token = match token {
            Some(path) => {
                Some(read(path).with_context(|| format!("--prometheus-token {}", path.display()))?)
            }
            None => None,
        };
        let queries = match queries {
            Some(path) => {
                let what = || format!("--prometheus-queries {}", path.display());
                let text = read(path).with_context(what)?;
                serde_yaml_ng::from_str(&text).with_context(what)?
            }
            None => Queries::default(),
        };
        let http = Http::new(LIMITS).context("--prometheus: no trusted roots")?;
        match Prometheus::new(http, address, token.as_deref()) {
            Ok(server) => Ok(Self { server, queries }),
            Err(text) => bail!("--prometheus: {text}"),
        }
    }

    /// Asks until `stop`. What fails is said once, until it works again; measured values stay as
    /// they are meanwhile.
    #[must_use]
    pub fn start(self, metrics: Metrics, stop: CancellationToken) -> watch::Receiver<Measured> {
        let (sender, receiver) = watch::channel(Measured::default());
        tokio::spawn(async move {
            let mut failed = false;
            loop {
                let answer = self.server.ask(&self.queries.cpu_utilization).await;
                let outcome = match &answer {
                    Ok(_) => "ok".to_owned(),
                    Err(e) => e.reason.to_string(),
                };
                metrics.queries.get_or_create(&Outcome { outcome }).inc();
                match answer {
                    Ok(answer) => {
                        if std::mem::take(&mut failed) {
                            info!("Prometheus answers again");
                        }
                        let count = answer.samples.len() + answer.left_out;
                        let samples: Vec<Sample> =
                            answer.samples.into_iter().filter_map(share).collect();
                        let left_out = count - samples.len();
                        metrics
                            .left_out
                            .inc_by(u64::try_from(left_out).unwrap_or(u64::MAX));
                        sender.send_replace(Arc::new(samples));
                    }
                    Err(e) if !failed => {
                        failed = true;
                        warn!(error = %e, "no measurements");
                    }
                    Err(_) => {}
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(EVERY) => {}
                }
            }
        });
        receiver
    }
}

/// A share of CPU, 0 to 1. Rates are of moments that are not exact: a little more than all of it is
/// all of it, and what is beyond that is another measure than the one that is meant.
fn share(sample: Sample) -> Option<Sample> {
    (-0.05..=1.05).contains(&sample.value).then(|| Sample {
        value: sample.value.clamp(0.0, 1.0),
        ..sample
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_share_is_left_out() {
        let sample = |value| Sample {
            cluster: None,
            node: "n".to_owned(),
            value,
        };
        for (value, expected) in [
            (0.5, Some(0.5)),
            (1.02, Some(1.0)),
            (-0.01, Some(0.0)),
            (37.0, None),
            (-1.0, None),
        ] {
            assert_eq!(share(sample(value)).map(|s| s.value), expected, "{value}");
        }
    }

    #[test]
    fn files_that_cannot_be_used_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("queries.yaml");
        let said = |queries: &Path, token: Option<&Path>| {
            let refused = Source::new("http://127.0.0.1:1", token, Some(queries)).unwrap_err();
            format!("{refused:#}")
        };
        assert!(said(&file, None).contains("queries.yaml"));
        std::fs::write(&file, "cpuUtilisation: {query: a, nodeLabel: b}").unwrap();
        assert!(said(&file, None).contains("cpuUtilisation"));
        std::fs::write(&file, "cpuUtilization: {query: a}").unwrap();
        assert!(said(&file, None).contains("nodeLabel"));
        assert!(said(&file, Some(&dir.path().join("none"))).contains("none"));
        std::fs::write(&file, "cpuUtilization: {query: a, nodeLabel: b}").unwrap();
        Source::new("http://127.0.0.1:1", None, Some(&file)).unwrap();
        assert!(Source::new("prometheus", None, None).is_err());
    }
}
