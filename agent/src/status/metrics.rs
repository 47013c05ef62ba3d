//! Counters and gauges of the agent.

use std::sync::atomic::AtomicU64;

use hyperion_proto::agent_v1::ReplicaReport;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::peers::PeerMetrics;
use super::sensors::Shown;
use crate::node::Node;
use crate::telemetry::Sample;
use crate::workloads::Workloads;

type FloatGauge = Gauge<f64, AtomicU64>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MemberStateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Phase {
    phase: String,
}

/// Counters and gauges.
#[derive(Default)]
pub struct Metrics {
    pub(super) connected: Gauge,
    pub(super) connections: Counter,
    pub(super) runtime_available: Gauge,
    pub(super) store_on_disk: Gauge,
    /// Telemetry messages handed to the link.
    pub telemetry_sent: Counter,
    /// Telemetry messages kept for later.
    pub telemetry_kept: Counter,
    telemetry_dropped: Counter,
    backfilled: Counter,
    orders_refused: Counter,
    records_refused: Counter,
    policies_refused: Counter,
    ring_bytes: Gauge,
    ring_batches: Gauge,
    records: Gauge,
    untaken: Gauge,
    mode: Gauge,
    members: Family<MemberStateLabel, Gauge>,
    decisions: Counter,
    superseded: Counter,
    shed: Counter,
    messages_refused: Counter,
    peers_refused: Counter,
    pub(super) peers: PeerMetrics,
    replicas: Family<Phase, Gauge>,
    cpu: FloatGauge,
    load1: FloatGauge,
    memory_total: Gauge,
    memory_used: Gauge,
    disk_total: Gauge,
    disk_used: Gauge,
    receive: Gauge,
    transmit: Gauge,
    sensors: Shown,
    resident: Gauge,
    cpu_seconds: Counter<f64, AtomicU64>,
}

impl Metrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        let agent = registry.sub_registry_with_prefix("hyperion_agent");
        agent.register(
            "link_connected",
            "1 while the control plane is connected",
            m.connected.clone(),
        );
        agent.register(
            "link_connections",
            "Connections to the control plane",
            m.connections.clone(),
        );
        agent.register(
            "runtime_available",
            "1 while the container runtime answers",
            m.runtime_available.clone(),
        );
        agent.register(
            "store_on_disk",
            "1 while changes reach the disk",
            m.store_on_disk.clone(),
        );
        agent.register(
            "telemetry_sent",
            "Telemetry messages sent",
            m.telemetry_sent.clone(),
        );
        m.register_edge(agent);
        agent.register("replicas", "Replicas by phase", m.replicas.clone());
        m.register_node(registry.sub_registry_with_prefix("hyperion_node"));
        registry.register_collector(Box::new(m.sensors.clone()));
        let process = registry.sub_registry_with_prefix("process");
        process.register_with_unit(
            "resident_memory",
            "Resident memory of the agent",
            Unit::Bytes,
            m.resident.clone(),
        );
        process.register(
            "cpu_seconds",
            "CPU time of the agent",
            m.cpu_seconds.clone(),
        );
        m
    }

    fn register_edge(&self, agent: &mut Registry) {
        for (name, help, counter) in [
            (
                "telemetry_kept",
                "Telemetry messages kept until the control plane is back",
                &self.telemetry_kept,
            ),
            (
                "telemetry_dropped",
                "Telemetry messages that the ring dropped over the life of the store",
                &self.telemetry_dropped,
            ),
            (
                "telemetry_batches_acknowledged",
                "Batches of kept telemetry that the control plane has stored",
                &self.backfilled,
            ),
            (
                "orders_refused",
                "Orders of the control plane that were refused",
                &self.orders_refused,
            ),
            (
                "records_refused",
                "Decisions of the site that were refused",
                &self.records_refused,
            ),
            (
                "policies_refused",
                "Policies that were refused",
                &self.policies_refused,
            ),
        ] {
            agent.register(name, help, counter.clone());
        }
        for (name, help, counter) in [
            (
                "site_decisions",
                "Places that this node decided while the site was cut off",
                &self.decisions,
            ),
            (
                "site_superseded",
                "Copies here that ended because another decision held",
                &self.superseded,
            ),
            (
                "site_shed",
                "Replicas that this node gave up for heat or lack of memory",
                &self.shed,
            ),
            (
                "peer_messages_refused",
                "Messages of peers that were dropped, or parts of them",
                &self.messages_refused,
            ),
            (
                "peers_turned_away",
                "Strangers, clones and revoked nodes that were turned away",
                &self.peers_refused,
            ),
        ] {
            agent.register(name, help, counter.clone());
        }
        agent.register(
            "site_members",
            "Nodes of the site by state",
            self.members.clone(),
        );
        self.peers.register(agent);
        for (name, help, gauge) in [
            (
                "telemetry_ring_bytes",
                "Telemetry kept, bytes",
                &self.ring_bytes,
            ),
            (
                "telemetry_ring_batches",
                "Telemetry kept, batches",
                &self.ring_batches,
            ),
            (
                "records",
                "Replicas of the site that the node has a record of",
                &self.records,
            ),
            (
                "decisions_untaken",
                "Decisions of the site that the control plane has not taken",
                &self.untaken,
            ),
            (
                "mode",
                "0 connected, 1 suspect, 2 autonomous, 3 reconciling",
                &self.mode,
            ),
        ] {
            agent.register(name, help, gauge.clone());
        }
    }

    fn register_node(&self, node: &mut Registry) {
        node.register(
            "cpu_utilization_percent",
            "CPU time that was not idle, of all cores",
            self.cpu.clone(),
        );
        node.register("load1", "Load average of one minute", self.load1.clone());
        for (name, help, gauge) in [
            ("memory_total", "Memory", &self.memory_total),
            ("memory_used", "Memory not available", &self.memory_used),
            (
                "disk_total",
                "File system of the data directory",
                &self.disk_total,
            ),
            (
                "disk_used",
                "Used of the data directory's file system",
                &self.disk_used,
            ),
            (
                "network_receive_rate",
                "Received in a second, without loopback",
                &self.receive,
            ),
            (
                "network_transmit_rate",
                "Sent in a second, without loopback",
                &self.transmit,
            ),
        ] {
            node.register_with_unit(name, help, Unit::Bytes, gauge.clone());
        }
    }

    /// Sets what the node counts.
    pub fn set_node<W: Workloads>(&self, node: &Node<W>) {
        self.set_replicas(&node.workloads().reports());
        let (counts, ring) = (node.counts(), node.ring());
        let m = self;
        let set = |gauge: &Gauge, value: u64| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        let count = |counter: &Counter, value: u64| {
            counter.inc_by(value.saturating_sub(counter.get()));
        };
        count(&m.orders_refused, counts.orders_refused);
        count(&m.records_refused, counts.records_refused);
        count(&m.policies_refused, counts.policies_refused);
        count(&m.backfilled, counts.batches_acknowledged);
        // Over the life of the store; a counter of the process begins there.
        count(&m.telemetry_dropped, ring.dropped);
        set(&m.ring_bytes, ring.bytes);
        set(&m.ring_batches, ring.batches as u64);
        set(&m.records, node.store().record_count() as u64);
        set(&m.untaken, node.untaken_count() as u64);
        set(&m.mode, node.mode() as u64);
        count(&m.peers_refused, counts.peers_refused);
        let site = node.autonomy().counts();
        count(&m.decisions, site.decisions);
        count(&m.superseded, site.superseded);
        count(&m.shed, site.shed);
        count(&m.messages_refused, site.refused);
        m.members.clear();
        for state in node.member_states() {
            m.members.get_or_create(&MemberStateLabel { state }).inc();
        }
    }

    /// Sets what the node measured; a number that is missing keeps its last value.
    pub fn set_sample(&self, sample: &Sample) {
        let set = |gauge: &Gauge, value: Option<u64>| {
            if let Some(value) = value.and_then(|v| i64::try_from(v).ok()) {
                gauge.set(value);
            }
        };
        if let Some(cpu) = sample.cpu_percent {
            self.cpu.set(f64::from(cpu));
        }
        if let Some(load) = sample.load1 {
            self.load1.set(f64::from(load));
        }
        set(&self.memory_total, sample.memory.map(|m| m.total));
        set(&self.memory_used, sample.memory.map(|m| m.used));
        set(&self.disk_total, sample.disk.map(|d| d.total));
        set(&self.disk_used, sample.disk.map(|d| d.used));
        set(&self.receive, sample.network.map(|n| n.0));
        set(&self.transmit, sample.network.map(|n| n.1));
        self.sensors.set(&sample.sensors);
    }

    /// Counts replicas by phase.
    pub fn set_replicas(&self, reports: &[ReplicaReport]) {
        self.replicas.clear();
        for report in reports {
            let phase = report
                .phase()
                .as_str_name()
                .trim_start_matches("REPLICA_PHASE_")
                .to_ascii_lowercase();
            self.replicas.get_or_create(&Phase { phase }).inc();
        }
    }

    /// The agent's own use, read when asked for: /proc here is always the real one.
    pub(super) fn set_process(&self) {
        let resident = std::fs::read_to_string("/proc/self/status")
            .ok()
            .and_then(|t| {
                let kib = t.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
                kib.split_ascii_whitespace().next()?.parse::<i64>().ok()
            });
        if let Some(kib) = resident {
            self.resident.set(kib.saturating_mul(1024));
        }
        let used = std::fs::read_to_string("/proc/self/stat")
            .ok()
            .and_then(|t| cpu_seconds(&t));
        if let Some(used) = used {
            self.cpu_seconds
                .inc_by((used - self.cpu_seconds.get()).max(0.0));
        }
    }
}

/// User and system time of a process from its `stat`; the name before may hold anything. Linux
/// shows ticks of a hundredth of a second to programs, whatever its own are.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut ticks = fields.split_ascii_whitespace().skip(11);
    let user: f64 = ticks.next()?.parse().ok()?;
    let system: f64 = ticks.next()?.parse().ok()?;
    Some((user + system) / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_behind_any_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 90 0 0 0 250 50 0 0 20 0 1 0 5";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(cpu_seconds("7 (a"), None);
    }
}
