//! The ring of telemetry: see [`ring`](super::ring).

use std::time::Instant;

use hyperion_proto::agent_v1::{StampedTelemetry, TelemetryBatch};
use prost::Message;
use redb::Durability;

use super::disk::{self, Write};
use super::{Store, ring};

/// What the ring holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RingCounts {
    /// Batches.
    pub batches: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Samples that wait to be packed, in memory.
    pub waiting: usize,
    /// Samples that were dropped over the life of the store.
    pub dropped: u64,
}

impl Store {
    /// Bytes that telemetry may take; 0 keeps none.
    pub fn set_ring_limit(&mut self, bytes: u64) {
        self.state.ring.limit = bytes;
        let gone = self.state.ring.shrink();
        self.write_ring(&[], &gone, Durability::None);
    }

    /// Batches get ids above this one: for a store that was made anew, of which the control plane
    /// may have had higher ones before.
    pub fn raise_batch_ids(&mut self, above: u64) {
        let ring = &mut self.state.ring;
        ring.next_id = ring.next_id.max(above);
    }

    /// Keeps a sample until it is acknowledged. It reaches the disk with others, within a minute.
    pub fn add_telemetry(&mut self, sample: StampedTelemetry, now: Instant) {
        if self.state.ring.push(sample, now) {
            self.seal_telemetry();
        }
    }

    /// Puts samples on disk that have waited for a minute; to be called about once a second.
    pub fn sync_telemetry(&mut self, now: Instant) {
        if self.state.ring.due(now) {
            self.seal_telemetry();
        }
    }

    /// Puts all samples on disk, in batches that can be sent.
    pub fn seal_telemetry(&mut self) {
        let (made, gone) = self.state.ring.seal();
        if !made.is_empty() || !gone.is_empty() {
            self.write_ring(&made, &gone, Durability::Immediate);
        }
    }

    /// The first batch behind an id. One that can't be read is dropped and counted.
    pub fn telemetry_after(&mut self, id: u64) -> Option<TelemetryBatch> {
        loop {
            let id = self.state.ring.after(id)?;
            if let Some(mut batch) = self.read_batch(id) {
                batch.dropped_total = self.state.ring.dropped;
                return Some(batch);
            }
            self.state.ring.lose(id);
            self.write_ring(&[], &[id], Durability::None);
        }
    }

    fn read_batch(&self, id: u64) -> Option<TelemetryBatch> {
        let decode = |bytes: &[u8]| TelemetryBatch::decode(bytes).ok();
        match (self.state.ring.bytes(id), &self.db) {
            (Some(bytes), _) => decode(bytes),
            (None, Some(db)) => decode(&disk::batch(db, id).ok()??),
            (None, None) => None,
        }
    }

    /// True where a batch waits behind an id.
    #[must_use]
    pub fn has_telemetry_after(&self, id: u64) -> bool {
        self.state.ring.after(id).is_some()
    }

    /// Forgets the batches up to an id.
    pub fn ack_telemetry(&mut self, id: u64) {
        let gone = self.state.ring.ack(id);
        if !gone.is_empty() {
            self.write_ring(&[], &gone, Durability::None);
        }
    }

    /// What the ring holds.
    #[must_use]
    pub fn ring(&self) -> RingCounts {
        let (batches, bytes, waiting) = self.state.ring.counts();
        RingCounts {
            batches,
            bytes,
            waiting,
            dropped: self.state.ring.dropped,
        }
    }

    fn write_ring(&mut self, made: &[u64], gone: &[u64], durability: Durability) {
        let ring: &ring::Ring = &self.state.ring;
        let mut writes: Vec<Write<'_>> = ring.in_memory().collect();
        writes.extend(gone.iter().map(|id| Write::BatchGone(*id)));
        if !made.is_empty() {
            writes.push(Write::Meta("next_batch", ring.next_id));
        }
        if !gone.is_empty() {
            writes.push(Write::Meta("telemetry_dropped", ring.dropped));
        }
        if writes.is_empty() {
            return;
        }
        Self::write(&mut self.db, &mut self.failure, durability, &writes);
        drop(writes);
        if self.db.is_some() {
            self.state.ring.all_on_disk();
            self.unsynced |= matches!(durability, Durability::None);
        } else {
            self.state.ring.shrink_memory();
        }
        self.after_write();
    }
}
