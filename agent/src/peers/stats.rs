//! What the endpoint counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers of the endpoint since its start; for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PeerStats {
    /// Connections that stand now.
    pub connections: u64,
    /// Datagrams handed to QUIC.
    pub datagrams_sent: u64,
    /// Datagrams handed on.
    pub datagrams_received: u64,
    /// Datagrams that had no way to go.
    pub datagrams_dropped: u64,
    /// Frames handed to a stream.
    pub frames_sent: u64,
    /// Frames handed on.
    pub frames_received: u64,
    /// Frames for a peer that could not be reached or did not keep up.
    pub frames_dropped: u64,
    /// Datagrams beyond what a peer may send, or more than this node could look at.
    pub flooded: u64,
    /// Connections refused: no certificate of this fleet and site, revoked, a clone.
    pub refused: u64,
    /// Connections closed because of what the peer sent.
    pub malformed: u64,
    /// Calls made.
    pub calls: u64,
    /// Calls that nobody answered.
    pub calls_failed: u64,
    /// Packets passed on between peers and the control plane.
    pub relayed: u64,
    /// Images and policies given to peers.
    pub given: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub datagrams_sent: Counter,
    pub datagrams_received: Counter,
    pub datagrams_dropped: Counter,
    pub frames_sent: Counter,
    pub frames_received: Counter,
    pub frames_dropped: Counter,
    pub flooded: Counter,
    pub refused: Counter,
    pub malformed: Counter,
    pub calls: Counter,
    pub calls_failed: Counter,
    pub relayed: Counter,
    pub given: Counter,
}

#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    pub(super) fn read(&self, connections: usize) -> PeerStats {
        PeerStats {
            connections: connections as u64,
            datagrams_sent: self.datagrams_sent.get(),
            datagrams_received: self.datagrams_received.get(),
            datagrams_dropped: self.datagrams_dropped.get(),
            frames_sent: self.frames_sent.get(),
            frames_received: self.frames_received.get(),
            frames_dropped: self.frames_dropped.get(),
            flooded: self.flooded.get(),
            refused: self.refused.get(),
            malformed: self.malformed.get(),
            calls: self.calls.get(),
            calls_failed: self.calls_failed.get(),
            relayed: self.relayed.get(),
            given: self.given.get(),
        }
    }
}
