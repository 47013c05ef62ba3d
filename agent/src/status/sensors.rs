//! What sensors showed at the last look, for /metrics. A sensor that is gone is not there any more.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::telemetry::sensors::{Look, metric};

/// The last look.
#[derive(Debug, Clone, Default)]
pub struct Shown(Arc<Mutex<Look>>);

impl Shown {
    /// Sets it.
    pub fn set(&self, look: &Look) {
        look.clone_into(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Collector for Shown {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let look = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for metric in metric::ALL {
            let mut readings = look.of(metric).peekable();
            if readings.peek().is_none() {
                continue;
            }
            let (name, kind) = if metric.is_counter() {
                // The format adds the ending.
                (metric.name.trim_end_matches("_total"), MetricType::Counter)
            } else {
                (metric.name, MetricType::Gauge)
            };
            let mut family = encoder.encode_descriptor(name, metric.help, None, kind)?;
            for reading in readings {
                let labels: Vec<(&str, &str)> = reading
                    .sensor
                    .labels
                    .iter()
                    .map(|(name, value)| (*name, value.as_str()))
                    .collect();
                let one = family.encode_family(&labels)?;
                if metric.is_counter() {
                    ConstCounter::new(reading.value).encode(one)?;
                } else {
                    ConstGauge::new(reading.value).encode(one)?;
                }
            }
        }
        if !look.facts.is_empty() {
            let facts = look.facts.iter();
            let labels: Vec<(&str, &str)> =
                facts.map(|fact| (fact.name, fact.value.as_str())).collect();
            let mut info = encoder.encode_descriptor(
                "hyperion_node_board",
                "What the board is; always 1",
                None,
                MetricType::Gauge,
            )?;
            ConstGauge::new(1_i64).encode(info.encode_family(&labels)?)?;
        }
        if !look.gpus.is_empty() {
            let mut info = encoder.encode_descriptor(
                "hyperion_gpu_info",
                "What replicas can be given, by what it is called where it is measured; always 1",
                None,
                MetricType::Gauge,
            )?;
            for gpu in &look.gpus {
                let labels = [
                    ("uuid", gpu.uuid.as_str()),
                    ("gpu", gpu.measured_as.as_str()),
                    ("model", gpu.model.as_str()),
                ];
                ConstGauge::new(1_i64).encode(info.encode_family(&labels)?)?;
            }
        }
        let left_out = encoder.encode_descriptor(
            "hyperion_agent_sensors_left_out",
            "Sensors that hang, or whose driver does not work",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(i64::try_from(look.left_out.len()).unwrap_or(i64::MAX)).encode(left_out)
    }
}
