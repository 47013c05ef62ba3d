//! Telemetry of the time without a link. Samples are packed into batches, each one record of the
//! file: a write a minute instead of one a second spares the flash. Only an index of the batches is
//! in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use hyperion_proto::agent_v1::{StampedTelemetry, TelemetryBatch};
use prost::Message;

use super::disk::Write;

/// What the ring may hold where nobody said, bytes: a day of one sample a second with half a dozen
/// sensors each.
pub const DEFAULT: u64 = 16 << 20;
/// Longest time that a sample waits for the disk.
const SEAL: Duration = Duration::from_secs(60);
/// Samples that wait at most, bytes: where they come faster than once a second.
const OPEN: usize = 60_000;
/// Largest batch, bytes. redb gives a record pages of a power of two; this one fits into 8 KiB.
const BATCH: usize = 7_900;
/// What stays in memory while the disk takes no writes, bytes.
const MEMORY: u64 = 512 * 1024;

/// One batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    samples: u32,
    size: u64,
    /// Its bytes, until they are on disk.
    bytes: Option<Vec<u8>>,
}

impl Batch {
    /// One that the file holds.
    pub fn on_disk(samples: u32, size: usize) -> Self {
        Self {
            samples,
            size: size as u64,
            bytes: None,
        }
    }
}

/// See the module.
pub struct Ring {
    /// Bytes of batches that are kept.
    pub limit: u64,
    /// Id of the next batch.
    pub next_id: u64,
    /// Samples that were dropped over the life of the store.
    pub dropped: u64,
    batches: BTreeMap<u64, Batch>,
    size: u64,
    open: Vec<StampedTelemetry>,
    open_size: usize,
    open_since: Option<Instant>,
}

impl Default for Ring {
    fn default() -> Self {
        Self {
            limit: DEFAULT,
            next_id: 1,
            dropped: 0,
            batches: BTreeMap::new(),
            size: 0,
            open: Vec::new(),
            open_size: 0,
            open_since: None,
        }
    }
}

impl Ring {
    /// Takes a sample; true where it is time to [`Ring::seal`].
    pub fn push(&mut self, sample: StampedTelemetry, now: Instant) -> bool {
        if self.limit == 0 {
            self.dropped += 1;
            return false;
        }
        self.open_since.get_or_insert(now);
        self.open_size += framed(&sample);
        self.open.push(sample);
        self.open_size >= OPEN || self.due(now)
    }

    /// True where samples have waited long enough for the disk.
    pub fn due(&self, now: Instant) -> bool {
        self.open_since
            .is_some_and(|since| now.saturating_duration_since(since) >= SEAL)
    }

    /// Packs what waits into batches, and gives the ids of those and of the ones that had to go.
    pub fn seal(&mut self) -> (Vec<u64>, Vec<u64>) {
        self.open_since = None;
        self.open_size = 0;
        let mut made = Vec::new();
        let mut samples = Vec::new();
        let mut size = 0;
        for sample in std::mem::take(&mut self.open) {
            let more = framed(&sample);
            if size + more > BATCH && !samples.is_empty() {
                made.push(self.add(std::mem::take(&mut samples)));
                size = 0;
            }
            size += more;
            samples.push(sample);
        }
        if !samples.is_empty() {
            made.push(self.add(samples));
        }
        let gone = self.shrink();
        made.retain(|id| self.batches.contains_key(id));
        (made, gone)
    }

    fn add(&mut self, samples: Vec<StampedTelemetry>) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let count = u32::try_from(samples.len()).unwrap_or(u32::MAX);
        let batch = TelemetryBatch {
            id,
            samples,
            dropped_total: 0,
        };
        let bytes = batch.encode_to_vec();
        self.found(
            id,
            Batch {
                samples: count,
                size: bytes.len() as u64,
                bytes: Some(bytes),
            },
        );
        id
    }

    /// Drops the oldest above the limit; gives their ids.
    pub fn shrink(&mut self) -> Vec<u64> {
        let mut gone = Vec::new();
        while self.size > self.limit
            && let Some((&id, _)) = self.batches.first_key_value()
        {
            self.lose(id);
            gone.push(id);
        }
        gone
    }

    /// Drops the oldest of those that only memory has, above what memory may hold.
    pub fn shrink_memory(&mut self) {
        let held = |b: &Batch| b.bytes.as_ref().map_or(0, Vec::len) as u64;
        let mut size: u64 = self.batches.values().map(held).sum();
        while size > MEMORY
            && let Some((&id, batch)) = self.batches.iter().find(|(_, b)| b.bytes.is_some())
        {
            size -= held(batch);
            self.lose(id);
        }
    }

    /// Takes a batch into the index.
    pub fn found(&mut self, id: u64, batch: Batch) {
        self.size += batch.size;
        if let Some(before) = self.batches.insert(id, batch) {
            self.size -= before.size;
        }
    }

    fn remove(&mut self, id: u64) -> Option<Batch> {
        let batch = self.batches.remove(&id)?;
        self.size -= batch.size;
        Some(batch)
    }

    /// Drops a batch and counts its samples.
    pub fn lose(&mut self, id: u64) {
        if let Some(batch) = self.remove(id) {
            self.dropped += u64::from(batch.samples);
        }
    }

    /// Forgets batches up to an id; gives those that were there.
    pub fn ack(&mut self, id: u64) -> Vec<u64> {
        let gone: Vec<u64> = self.batches.range(..=id).map(|(id, _)| *id).collect();
        for id in &gone {
            self.remove(*id);
        }
        gone
    }

    /// The first batch behind an id.
    pub fn after(&self, id: u64) -> Option<u64> {
        let mut later = self.batches.range(id.saturating_add(1)..);
        later.next().map(|(id, _)| *id)
    }

    /// Bytes of a batch that is not on disk yet.
    pub fn bytes(&self, id: u64) -> Option<&Vec<u8>> {
        self.batches.get(&id)?.bytes.as_ref()
    }

    /// True where the batch is known.
    pub fn has(&self, id: u64) -> bool {
        self.batches.contains_key(&id)
    }

    /// What memory has that the file has not, to be written.
    pub fn in_memory(&self) -> impl Iterator<Item = Write<'_>> {
        self.batches.iter().filter_map(|(id, batch)| {
            let bytes = batch.bytes.as_ref()?;
            Some(Write::Batch(*id, batch.samples, bytes))
        })
    }

    /// Drops, and counts, what neither memory nor the file has.
    pub fn only_with(&mut self, on_disk: &BTreeSet<u64>) {
        let lost: Vec<u64> = self
            .batches
            .iter()
            .filter(|(id, batch)| batch.bytes.is_none() && !on_disk.contains(id))
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            self.lose(id);
        }
    }

    /// Memory lets go of bytes that the file has now.
    pub fn all_on_disk(&mut self) {
        for batch in self.batches.values_mut() {
            batch.bytes = None;
        }
    }

    /// Batches, their bytes, and samples that wait to be packed.
    pub fn counts(&self) -> (usize, u64, usize) {
        (self.batches.len(), self.size, self.open.len())
    }
}

/// What a sample takes in a batch, bytes.
fn framed(sample: &StampedTelemetry) -> usize {
    let size = sample.encoded_len();
    size + 1 + prost::length_delimiter_len(size)
}
