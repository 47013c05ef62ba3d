//! What the store holds, in memory: the truth that the agent acts on. The file follows it.

use std::collections::BTreeMap;

use bytes::Bytes;
use hyperion_proto::agent_v1::{Event, PolicyOffer, ReplicaRecord, SiteInfo};
use hyperion_proto::domain::ReplicaKey;
use prost::Message;

use super::ring::Ring;
use super::update::KeptUpdate;
use crate::supervisor::Desired;

/// Removed replicas whose highest generation is remembered. A stale order for a replica that was
/// removed this many removals ago would be taken again; no control plane keeps orders that long.
pub const TOMBSTONES: usize = 1024;
/// Undelivered events that are kept; at a dozen a minute a node may be cut off for most of an hour
/// without losing one, and the file stays small.
pub const EVENTS: usize = 512;
/// Longest message of an event, bytes.
pub const MESSAGE: usize = 1024;

/// The highest generation that was seen for a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Generation.
    pub generation: u64,
    /// Grows with each change: the oldest tombstones go first.
    pub order: u64,
}

/// A record of the site, as the file has it: the node's core keeps the decoded ones, and a site
/// may have thousands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptRecord {
    /// Its generation.
    pub generation: u64,
    /// `ReplicaRecord`.
    pub bytes: Vec<u8>,
}

impl KeptRecord {
    /// Encodes one.
    pub fn of(record: &ReplicaRecord) -> Self {
        Self {
            generation: record.generation,
            bytes: record.encode_to_vec(),
        }
    }
}

/// A policy file and the offer it came by.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptPolicy {
    /// With hash and signature; with an empty hash where the control plane took its offer back.
    pub offer: PolicyOffer,
    /// The file; empty with an empty hash.
    pub file: Bytes,
}

/// Everything.
#[derive(Default)]
pub struct State {
    /// What this node should run.
    pub desired: BTreeMap<ReplicaKey, Desired>,
    /// Highest generations, of what it should run and of what it ran.
    pub seen: BTreeMap<ReplicaKey, Seen>,
    /// Undelivered events by id.
    pub events: BTreeMap<u64, Event>,
    /// Id of the next event.
    pub next_event: u64,
    /// Events that the ring dropped over the life of the store.
    pub dropped: u64,
    /// Starts of the agent on this store.
    pub boot: u64,
    /// True until the control plane has told the whole, where the store was lost: what runs may
    /// be more than `desired` says, so nothing may be stopped for not being in it.
    pub partial: bool,
    /// What the site knows of its replicas.
    pub records: BTreeMap<ReplicaKey, KeptRecord>,
    /// What the control plane said of the site.
    pub site: Option<SiteInfo>,
    /// The policy that decides; none for the built-in one.
    pub policy: Option<KeptPolicy>,
    /// The one before.
    pub previous_policy: Option<KeptPolicy>,
    /// Telemetry that could not be sent.
    pub ring: Ring,
    /// The update that was ordered last.
    pub update: KeptUpdate,
}

/// What [`State::see`] did to the highest generations.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SeenChange {
    /// New value, where it grew.
    pub set: Option<Seen>,
    /// Tombstones that had to go.
    pub forgotten: Vec<ReplicaKey>,
}

impl State {
    /// Highest generation seen for a replica, 0 for a new one. What is held counts too: a damaged
    /// file may have lost the other record.
    pub fn highest(&self, key: &ReplicaKey) -> u64 {
        let held = self.desired.get(key).map_or(0, |d| d.start.generation);
        self.seen.get(key).map_or(held, |s| s.generation.max(held))
    }

    /// Notes a generation.
    pub fn see(&mut self, key: &ReplicaKey, generation: u64) -> SeenChange {
        let generation = generation.max(self.highest(key));
        let order = self
            .seen
            .values()
            .map(|s| s.order)
            .max()
            .map_or(0, |o| o + 1);
        let seen = Seen { generation, order };
        self.seen.insert(key.clone(), seen);
        SeenChange {
            set: Some(seen),
            forgotten: self.forget(key),
        }
    }

    fn forget(&mut self, keep: &ReplicaKey) -> Vec<ReplicaKey> {
        let excess = self
            .seen
            .len()
            .saturating_sub(self.desired.len() + TOMBSTONES);
        if excess == 0 {
            return Vec::new();
        }
        let mut old: Vec<(u64, ReplicaKey)> = self
            .seen
            .iter()
            .filter(|(key, _)| *key != keep && !self.desired.contains_key(key))
            .map(|(key, seen)| (seen.order, key.clone()))
            .collect();
        old.sort_unstable();
        old.truncate(excess);
        for (_, key) in &old {
            self.seen.remove(key);
        }
        old.into_iter().map(|(_, key)| key).collect()
    }

    /// Puts an event into the ring; gives it and the ids that it pushed out.
    pub fn add_event(&mut self, mut event: Event) -> (Event, Vec<u64>) {
        event.id = self.next_event;
        self.next_event += 1;
        truncate(&mut event.message, MESSAGE);
        truncate(&mut event.reason, 128);
        self.events.insert(event.id, event.clone());
        let mut out = Vec::new();
        while self.events.len() > EVENTS
            && let Some((id, _)) = self.events.pop_first()
        {
            self.dropped += 1;
            out.push(id);
        }
        (event, out)
    }

    /// Forgets events up to an id; gives those that were there.
    pub fn ack(&mut self, id: u64) -> Vec<u64> {
        let gone: Vec<u64> = self.events.range(..=id).map(|(id, _)| *id).collect();
        for id in &gone {
            self.events.remove(id);
        }
        gone
    }
}

fn truncate(text: &mut String, max: usize) {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}
