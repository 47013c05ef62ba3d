//! Telemetry: live where the link takes it, else into the ring; and what the ring holds, in order,
//! when the link is back.

use std::time::{Duration, Instant};

use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{StampedTelemetry, Telemetry};

use super::{Node, Now, Outgoing};
use crate::workloads::Workloads;

/// Batches that are sent in a second at most: live telemetry, reports and logs share the link. A
/// day of one sample a second is through in some six minutes.
const PER_SECOND: u32 = 8;
/// Time after which a batch that was not acknowledged is sent again.
const AGAIN: Duration = Duration::from_secs(20);
/// Times that a batch is sent on one connection; a control plane that never acknowledges is an
/// older one.
const TRIES: u32 = 3;

/// Where a sample went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measured {
    /// To the control plane.
    Sent,
    /// Into the ring.
    Kept,
}

/// Telemetry and this connection.
#[derive(Default)]
pub(super) struct Live {
    sequence: u64,
    on_its_way: Option<OnItsWay>,
    /// The second that is counted in, and what was sent in it.
    second: Option<(Instant, u32)>,
}

struct OnItsWay {
    id: u64,
    sent: Instant,
    tries: u32,
}

impl Live {
    pub(super) fn new_connection(&mut self) {
        self.on_its_way = None;
    }

    fn may_send(&mut self, now: Instant) -> bool {
        let (from, count) = self.second.get_or_insert((now, 0));
        if now.saturating_duration_since(*from) >= Duration::from_secs(1) {
            (*from, *count) = (now, 0);
        }
        *count += 1;
        *count <= PER_SECOND
    }
}

impl<W: Workloads> Node<W> {
    /// Takes what the node measured; sequence, time since the start and what was dropped are filled
    /// in here.
    pub fn measured(&mut self, mut sample: Telemetry, now: Now, out: &dyn Outgoing) -> Measured {
        self.telemetry.sequence += 1;
        sample.sequence = self.telemetry.sequence;
        sample.uptime_ms = u64::try_from(self.clock.since(now).as_millis()).unwrap_or(u64::MAX);
        sample.dropped_total = self.store.dropped() + self.store.ring().dropped;
        self.set_load(&sample, now);
        self.refresh(now);
        if self.linked && out.send(Body::Telemetry(sample.clone())) {
            self.counts.telemetry_sent += 1;
            return Measured::Sent;
        }
        self.counts.telemetry_kept += 1;
        let stamped = StampedTelemetry {
            unix_ms: self.clock.unix_ms(now),
            telemetry: Some(sample),
        };
        self.store.add_telemetry(stamped, now.at);
        Measured::Kept
    }

    /// Sends the oldest batch that is kept, one at a time.
    pub(super) fn backfill(&mut self, now: Now, out: &dyn Outgoing) {
        if !self.linked {
            return;
        }
        let mut tries = 0;
        if let Some(sent) = &self.telemetry.on_its_way {
            let waited = now.at.saturating_duration_since(sent.sent);
            if waited < AGAIN || sent.tries >= TRIES {
                return;
            }
            tries = sent.tries;
        }
        if !self.store.has_telemetry_after(0) || !self.telemetry.may_send(now.at) {
            return;
        }
        let Some(batch) = self.store.telemetry_after(0) else {
            return;
        };
        let id = batch.id;
        if out.send(Body::TelemetryBatch(batch)) {
            self.telemetry.on_its_way = Some(OnItsWay {
                id,
                sent: now.at,
                tries: tries + 1,
            });
        }
    }

    pub(super) fn telemetry_acknowledged(&mut self, id: u64, now: Now, out: &dyn Outgoing) {
        // Only what was sent can have been stored: another's acknowledgement loses nothing.
        let Some(sent) = &self.telemetry.on_its_way else {
            return;
        };
        if sent.id != id {
            return;
        }
        self.telemetry.on_its_way = None;
        self.counts.batches_acknowledged += 1;
        self.store.ack_telemetry(id);
        self.backfill(now, out);
    }
}
