//! The telemetry of all nodes as metrics: devices behind a NAT can't be scraped, and here one scrape
//! has them all. Names are those of the agent's own `/metrics`, with the label `node`.

use std::fmt;

use hyperion_api::fleet::LiveNode;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

/// Nodes of one answer: the fleet that is planned for, twice. Some 17 MB.
const MAX_NODES: usize = 20_000;
/// GPUs of a node; no machine has more.
const MAX_GPUS: usize = 16;

/// A number of a node; none where it has not been measured.
type Measure = fn(&LiveNode) -> Option<f64>;

/// What is said of every node.
const STATE: [(&str, &str, Measure); 2] = [
    ("connected", "1 while the node's stream is open", |n| {
        Some(f64::from(u8::from(n.connected)))
    }),
    (
        "last_heard_seconds",
        "Time since the node's last telemetry",
        |n| Some(n.age_ms as f64 / 1000.0),
    ),
];

/// What is said of nodes in reach: of others, the numbers would be old ones.
const MEASURES: [(&str, &str, Measure); 9] = [
    (
        "cpu_utilization_percent",
        "CPU time that was not idle, of all cores",
        |n| Some(f64::from(n.cpu_percent)),
    ),
    ("load1", "Load average of one minute", |n| {
        Some(f64::from(n.load1))
    }),
    ("memory_total_bytes", "Memory", |n| {
        positive(n.memory_total_bytes)
    }),
    ("memory_used_bytes", "Memory not available", |n| {
        positive(n.memory_used_bytes)
    }),
    (
        "disk_used_bytes",
        "Used of the data folder's file system",
        |n| positive(n.disk_used_bytes),
    ),
    (
        "network_receive_rate_bytes",
        "Received in a second, without loopback",
        |n| Some(n.rx_bytes_per_second as f64),
    ),
    (
        "network_transmit_rate_bytes",
        "Sent in a second, without loopback",
        |n| Some(n.tx_bytes_per_second as f64),
    ),
    (
        "max_temperature_celsius",
        "Temperature of the hottest sensor",
        |n| n.max_celsius.map(f64::from),
    ),
    ("rtt_seconds", "Round trip to the control plane", |n| {
        (n.rtt_ms > 0.0).then(|| f64::from(n.rtt_ms) / 1000.0)
    }),
];

fn positive(bytes: u64) -> Option<f64> {
    (bytes > 0).then_some(bytes as f64)
}

/// The text of `GET /metrics/fleet`.
///
/// # Errors
/// Formatting.
pub fn text(nodes: Vec<LiveNode>) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    let registered = registry.sub_registry_with_prefix("hyperion_node");
    registered.register_collector(Box::new(Nodes(nodes)));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Nodes(Vec<LiveNode>);

impl Collector for Nodes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let e = &mut encoder;
        let shown = || self.0.iter().take(MAX_NODES);
        let measured = || shown().filter(|node| node.connected && has_telemetry(node));
        for (name, help, measure) in STATE {
            gauges(e, name, help, shown(), measure)?;
        }
        for (name, help, measure) in MEASURES {
            gauges(e, name, help, measured(), measure)?;
        }
        let mut gpus = e.encode_descriptor(
            "gpu_utilization_percent",
            "Utilisation of a GPU",
            None,
            MetricType::Gauge,
        )?;
        for node in measured() {
            for (gpu, percent) in node.gpu_percent.iter().take(MAX_GPUS).enumerate() {
                let percent = f64::from(*percent);
                if percent.is_finite() {
                    let labels = [("node", node.id.as_str()), ("gpu", &gpu.to_string())];
                    ConstGauge::new(percent).encode(gpus.encode_family(&labels)?)?;
                }
            }
        }
        let mut dropped = e.encode_descriptor(
            "telemetry_dropped",
            "Telemetry and events that the node had to drop",
            None,
            MetricType::Counter,
        )?;
        for node in measured() {
            let labels = [("node", node.id.as_str())];
            ConstCounter::new(node.dropped_total).encode(dropped.encode_family(&labels)?)?;
        }
        let left = self.0.len().saturating_sub(MAX_NODES);
        let left_out = e.encode_descriptor(
            "left_out",
            "Nodes that are not in this answer because it would be too long",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(left as f64).encode(left_out)
    }
}

/// A machine that measures has some memory in use, or some work.
fn has_telemetry(node: &LiveNode) -> bool {
    node.memory_used_bytes > 0 || node.cpu_percent > 0.0 || node.load1 > 0.0
}

fn gauges<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    nodes: impl Iterator<Item = &'a LiveNode>,
    measure: Measure,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for node in nodes {
        if let Some(value) = measure(node).filter(|value| value.is_finite()) {
            let labels = [("node", node.id.as_str())];
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str) -> LiveNode {
        LiveNode {
            id: id.to_owned(),
            connected: true,
            age_ms: 1500,
            cpu_percent: 12.5,
            memory_used_bytes: 1 << 30,
            memory_total_bytes: 8 << 30,
            max_celsius: Some(61.5),
            gpu_percent: vec![70.0, f32::NAN],
            dropped_total: 3,
            ..LiveNode::default()
        }
    }

    #[test]
    fn each_number_has_the_node_s_name_and_what_is_not_measured_is_not_there() {
        let text = text(vec![node("lab-1")]).unwrap();
        for line in [
            "hyperion_node_connected{node=\"lab-1\"} 1.0",
            "hyperion_node_last_heard_seconds{node=\"lab-1\"} 1.5",
            "hyperion_node_cpu_utilization_percent{node=\"lab-1\"} 12.5",
            "hyperion_node_memory_used_bytes{node=\"lab-1\"} 1073741824.0",
            "hyperion_node_max_temperature_celsius{node=\"lab-1\"} 61.5",
            "hyperion_node_gpu_utilization_percent{node=\"lab-1\",gpu=\"0\"} 70.0",
            "hyperion_node_telemetry_dropped_total{node=\"lab-1\"} 3",
            "hyperion_node_left_out 0.0",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert!(!text.contains("gpu=\"1\""), "no number\n{text}");
        assert!(!text.contains("hyperion_node_rtt_seconds{"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn a_node_out_of_reach_and_a_new_one_have_no_numbers_of_before() {
        let mut lost = node("lost");
        lost.connected = false;
        let new = LiveNode {
            id: "new".to_owned(),
            connected: true,
            ..LiveNode::default()
        };
        let text = text(vec![lost, new]).unwrap();
        assert!(text.contains("hyperion_node_connected{node=\"lost\"} 0.0"));
        assert!(text.contains("hyperion_node_connected{node=\"new\"} 1.0"));
        assert!(!text.contains("cpu_utilization_percent{"), "{text}");
        assert!(!text.contains("load1{"), "{text}");
    }

    #[test]
    fn the_answer_is_bounded_in_nodes_and_gpus_and_escapes_names() {
        let mut odd = node("a\"b\n");
        odd.gpu_percent = vec![1.0; 100];
        let said = text(vec![odd]).unwrap();
        assert!(said.contains("node=\"a\\\"b\\n\""), "{said}");
        assert_eq!(said.matches("gpu=\"").count(), MAX_GPUS);
        let many = (0..MAX_NODES + 5).map(|n| LiveNode {
            id: n.to_string(),
            ..LiveNode::default()
        });
        let said = text(many.collect()).unwrap();
        assert!(said.contains("hyperion_node_left_out 5.0"));
        assert_eq!(said.matches("hyperion_node_connected{").count(), MAX_NODES);
        assert!(text(Vec::new()).unwrap().ends_with("# EOF\n"));
    }
}
