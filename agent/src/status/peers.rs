//! Metrics of the endpoint of the peers.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::peers::PeerStats;

/// Counters of the endpoint, one for each of [`PeerStats`].
#[derive(Default)]
pub struct PeerMetrics {
    connections: Gauge,
    counters: [Counter; COUNTERS.len()],
}

type Of = fn(&PeerStats) -> u64;

const COUNTERS: [(&str, &str, Of); 13] = [
    ("datagrams_sent", "Probes sent to peers", |s| {
        s.datagrams_sent
    }),
    ("datagrams_received", "Probes received from peers", |s| {
        s.datagrams_received
    }),
    ("datagrams_dropped", "Probes that had no way to go", |s| {
        s.datagrams_dropped
    }),
    ("frames_sent", "Messages of records sent to peers", |s| {
        s.frames_sent
    }),
    ("frames_received", "Messages of records received", |s| {
        s.frames_received
    }),
    (
        "frames_dropped",
        "Messages of records for peers that could not be reached or did not keep up",
        |s| s.frames_dropped,
    ),
    ("flooded", "Datagrams beyond what a peer may send", |s| {
        s.flooded
    }),
    (
        "connections_refused",
        "Connections without a certificate of this fleet and site, revoked, or of a clone",
        |s| s.refused,
    ),
    (
        "malformed",
        "Connections closed because of what the peer sent",
        |s| s.malformed,
    ),
    ("calls", "Calls to peers", |s| s.calls),
    ("calls_failed", "Calls that nobody answered", |s| {
        s.calls_failed
    }),
    (
        "relayed",
        "Packets passed on between peers and the control plane",
        |s| s.relayed,
    ),
    ("given", "Images and policies given to peers", |s| s.given),
];

impl PeerMetrics {
    /// Registers all of them.
    pub fn register(&self, agent: &mut Registry) {
        let peers = agent.sub_registry_with_prefix("peer");
        peers.register(
            "connections",
            "Connections with peers that stand now",
            self.connections.clone(),
        );
        for ((name, help, _), counter) in COUNTERS.iter().zip(&self.counters) {
            peers.register(*name, *help, counter.clone());
        }
    }

    /// Sets them.
    pub fn set(&self, stats: &PeerStats) {
        let connections = i64::try_from(stats.connections).unwrap_or(i64::MAX);
        self.connections.set(connections);
        for ((_, _, of), counter) in COUNTERS.iter().zip(&self.counters) {
            counter.inc_by(of(stats).saturating_sub(counter.get()));
        }
    }
}
