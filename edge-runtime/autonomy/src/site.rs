//! What is known of the site's nodes and replicas.
//!
//! Merging is a join: of two records of one replica the one with the higher [`Order`] holds, of two
//! records of one node the one with the higher version. So the order in which news comes, and how
//! often it comes, does not matter. What peers send is checked first; what is refused names the peer
//! and changes nothing.
//!
//! For [`sync`](crate::sync): [`Site::buckets`] are hashes of what is known, kept up to date with
//! each change; [`Site::node_versions`] and [`Site::replica_versions`] list a bucket;
//! [`Site::compare_node`] and [`Site::compare_replica`] say whose entry is the newer one. After
//! merging, [`Site::take_changes`] tells what was news; the caller acts on it and spreads it.

mod hash;
mod order;
mod own;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use hyperion_wire::agent_v1::{RecordState, ReplicaRecord, SiteInfo};
use hyperion_wire::convert;
use hyperion_wire::domain::{Capabilities, Intent, ReplicaKey};
use hyperion_wire::peer_v1::{NodeRecord, NodeVersion, ReplicaVersion};

pub(crate) use hash::Hash;
pub use hash::{BUCKETS, bucket_of_node, bucket_of_replica};
pub use order::Order;
pub use own::Own;

/// Most nodes that are known: eight sites of the size planned for.
pub const MAX_NODES: usize = 4096;
/// Most replicas that are known, ended and removed ones included.
pub const MAX_REPLICAS: usize = 16_384;
/// Most bytes of replica records, as they are sent.
pub const MAX_BYTES: usize = 32 << 20;
/// Replicas that were removed and forgotten, whose old records are still known for old.
const MAX_GRAVES: usize = 8192;
/// Time that the record of a removed replica is kept once the control plane knows of it: every node
/// that is back within it hears that the replica is gone.
pub const TOMBSTONE_AGE: Duration = Duration::from_secs(24 * 3600);
/// A record may be this many generations ahead of the known one: nobody decides so often between two
/// times that a node hears of its site.
const MAX_LEAP: u64 = 1 << 20;

/// What a peer sent and was dropped, for people; names the peer and the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("peer {peer}: {problem}")]
pub struct Refused {
    /// Node id of the sender.
    pub peer: String,
    /// What is wrong.
    pub problem: String,
}

/// Whose entry is the newer one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Both have the same.
    Same,
    /// Ours: the peer lacks it.
    Ours,
    /// Theirs: we lack it.
    Theirs,
}

/// A node of the site.
#[derive(Debug, Clone)]
pub struct NodeEntry {
    /// As it was sent.
    pub record: NodeRecord,
    /// Read from it.
    pub capabilities: Capabilities,
    /// When this version was merged.
    pub at: Duration,
}

/// A replica of the site.
#[derive(Debug, Clone)]
pub struct ReplicaEntry {
    /// As it was sent.
    pub record: ReplicaRecord,
    /// Read from it; none where there is none that can be read.
    pub intent: Option<Intent>,
    /// Of the record.
    pub order: Order,
    /// When this decision was merged.
    pub at: Duration,
    /// Bytes on the wire.
    bytes: usize,
}

impl ReplicaEntry {
    /// State.
    #[must_use]
    pub fn state(&self) -> RecordState {
        self.order.state
    }

    /// True where the replica runs, or is to run, on this node.
    #[must_use]
    pub fn placed_on(&self, node: &str) -> bool {
        self.state() == RecordState::Placed && self.record.node == node
    }

    /// True for a decision of the site that the control plane has not taken, and for a job that
    /// ended while nobody could tell it.
    #[must_use]
    pub fn untaken(&self) -> bool {
        let ours = !self.record.decider.is_empty() || self.state() == RecordState::Ended;
        !self.record.taken && ours
    }

    /// What the site's next decision is made from. Once the control plane has taken one it knows the
    /// workload: one that was applied at the site and is deleted there later must not come back with
    /// the next decision.
    #[must_use]
    pub fn next_record(&self) -> ReplicaRecord {
        let mut record = self.record.clone();
        if record.taken
            && let Some(intent) = &mut record.intent
        {
            intent.manifest.clear();
        }
        record
    }

    fn version(&self, key: &ReplicaKey) -> ReplicaVersion {
        ReplicaVersion {
            key: Some(key.into()),
            generation: self.record.generation,
            state: self.record.state,
            decider: self.record.decider.clone(),
            taken: self.record.taken,
            digest: self.order.digest,
            ended: self.order.ended,
        }
    }
}

/// What was news since the last look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Node ids.
    pub nodes: BTreeSet<String>,
    /// Replicas.
    pub replicas: BTreeSet<ReplicaKey>,
    /// What is known of the site as a whole.
    pub info: bool,
}

impl Changes {
    /// True where nothing was news.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.replicas.is_empty() && !self.info
    }
}

/// What is known of the site.
#[derive(Debug)]
pub struct Site {
    me: String,
    nodes: BTreeMap<String, NodeEntry>,
    replicas: BTreeMap<ReplicaKey, ReplicaEntry>,
    bytes: usize,
    untaken: usize,
    /// Replicas that were forgotten after they were removed, with the last generation.
    graves: BTreeMap<ReplicaKey, u64>,
    buried: VecDeque<ReplicaKey>,
    info: SiteInfo,
    buckets: [u64; BUCKETS],
    changes: Changes,
}

impl Site {
    /// Knows nothing but its own id.
    #[must_use]
    pub fn new(me: &str) -> Self {
        Self {
            me: me.to_owned(),
            nodes: BTreeMap::new(),
            replicas: BTreeMap::new(),
            bytes: 0,
            untaken: 0,
            graves: BTreeMap::new(),
            buried: VecDeque::new(),
            info: SiteInfo::default(),
            buckets: [0; BUCKETS],
            changes: Changes::default(),
        }
    }

    /// Own node id.
    #[must_use]
    pub fn me(&self) -> &str {
        &self.me
    }

    /// Nodes, by id, this one included.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &NodeEntry)> {
        self.nodes.iter().map(|(id, entry)| (id.as_str(), entry))
    }

    /// One node.
    #[must_use]
    pub fn node(&self, id: &str) -> Option<&NodeEntry> {
        self.nodes.get(id)
    }

    /// Replicas, by key.
    pub fn replicas(&self) -> impl Iterator<Item = (&ReplicaKey, &ReplicaEntry)> {
        self.replicas.iter()
    }

    /// Replicas from the first key to the last, both included.
    pub fn replicas_between(
        &self,
        first: &ReplicaKey,
        last: &ReplicaKey,
    ) -> impl Iterator<Item = (&ReplicaKey, &ReplicaEntry)> {
        self.replicas.range(first..=last)
    }

    /// True where the site has decided something that the control plane has not taken.
    #[must_use]
    pub fn has_untaken(&self) -> bool {
        self.untaken > 0
    }

    /// One replica.
    #[must_use]
    pub fn replica(&self, key: &ReplicaKey) -> Option<&ReplicaEntry> {
        self.replicas.get(key)
    }

    /// What the control plane said of the site; empty where it never did.
    #[must_use]
    pub fn info(&self) -> &SiteInfo {
        &self.info
    }

    /// True for a node that is not to be heard.
    #[must_use]
    pub fn is_revoked(&self, node: &str) -> bool {
        self.info.revoked.iter().any(|id| id == node)
    }

    /// Hashes of what is known, by bucket: equal hashes mean equal knowledge.
    #[must_use]
    pub fn buckets(&self) -> &[u64; BUCKETS] {
        &self.buckets
    }

    /// Versions of the nodes in one bucket.
    pub fn node_versions(&self, bucket: usize) -> impl Iterator<Item = NodeVersion> + '_ {
        self.nodes
            .iter()
            .filter(move |(id, _)| bucket_of_node(id) == bucket)
            .map(|(id, entry)| NodeVersion {
                node_id: id.clone(),
                version: entry.record.version,
            })
    }

    /// Versions of the replicas in one bucket.
    pub fn replica_versions(&self, bucket: usize) -> impl Iterator<Item = ReplicaVersion> + '_ {
        self.replicas
            .iter()
            .filter(move |(key, _)| bucket_of_replica(key) == bucket)
            .map(|(key, entry)| entry.version(key))
    }

    /// Who knows the newer version of a node.
    #[must_use]
    pub fn compare_node(&self, theirs: &NodeVersion) -> Side {
        let ours = self.nodes.get(&theirs.node_id);
        match ours.map_or(0, |n| n.record.version).cmp(&theirs.version) {
            std::cmp::Ordering::Less => Side::Theirs,
            std::cmp::Ordering::Equal => Side::Same,
            std::cmp::Ordering::Greater => Side::Ours,
        }
    }

    /// Who knows the newer decision about a replica.
    ///
    /// # Errors
    /// Names the peer and the field.
    pub fn compare_replica(&self, peer: &str, theirs: &ReplicaVersion) -> Result<Side, Refused> {
        let key = convert::replica_key("replica_version.key", theirs.key.as_ref())
            .map_err(|e| refused(peer, &e))?;
        let Some(ours) = self.replicas.get(&key) else {
            return Ok(if self.is_buried(&key, theirs.generation) {
                Side::Same
            } else {
                Side::Theirs
            });
        };
        let order = Order::of_version(theirs);
        Ok(match ours.order.cmp(&order) {
            std::cmp::Ordering::Less => Side::Theirs,
            std::cmp::Ordering::Greater => Side::Ours,
            std::cmp::Ordering::Equal => match (ours.record.taken, theirs.taken) {
                (true, false) => Side::Ours,
                (false, true) => Side::Theirs,
                _ => Side::Same,
            },
        })
    }

    /// Takes what a peer says of a node; true where it was news.
    ///
    /// # Errors
    /// Names the peer and the field; nothing was changed.
    pub fn merge_node(
        &mut self,
        peer: &str,
        record: NodeRecord,
        now: Duration,
    ) -> Result<bool, Refused> {
        let (id, capabilities) = convert::node_record(&record).map_err(|e| refused(peer, &e))?;
        if id == self.me {
            // Only this node speaks for itself. A higher version is of a life that the store has
            // lost: see `Own::surpass`.
            return Ok(false);
        }
        if self.is_revoked(&id) {
            return Err(refused(peer, &format!("node_record of revoked node {id}")));
        }
        let held = self.nodes.get(&id);
        if held.is_some_and(|n| n.record.version >= record.version) {
            return Ok(false);
        }
        if held.is_none() && self.nodes.len() >= MAX_NODES {
            let problem = format!("node_record of {id}: {MAX_NODES} nodes are known already");
            return Err(refused(peer, &problem));
        }
        self.put_node(id, record, capabilities, now);
        Ok(true)
    }

    fn put_node(
        &mut self,
        id: String,
        record: NodeRecord,
        capabilities: Capabilities,
        now: Duration,
    ) {
        let bucket = bucket_of_node(&id);
        self.buckets[bucket] ^= hash::node(&id, record.version);
        let entry = NodeEntry {
            record,
            capabilities,
            at: now,
        };
        self.changes.nodes.insert(id.clone());
        if let Some(before) = self.nodes.insert(id.clone(), entry) {
            self.buckets[bucket] ^= hash::node(&id, before.record.version);
        }
    }

    /// Takes a new version of what this node says of itself.
    ///
    /// # Errors
    /// Names the field; nothing was changed.
    pub fn put_own(&mut self, record: NodeRecord, now: Duration) -> Result<(), Refused> {
        let me = self.me.clone();
        let (id, capabilities) = convert::node_record(&record).map_err(|e| refused(&me, &e))?;
        self.put_node(id, record, capabilities, now);
        Ok(())
    }

    /// Forgets a node that is gone for good.
    pub fn forget_node(&mut self, id: &str) {
        if let Some(before) = self.nodes.remove(id) {
            self.buckets[bucket_of_node(id)] ^= hash::node(id, before.record.version);
        }
    }

    /// Takes what `peer` (or this node itself) says of a replica; true where it was news.
    ///
    /// # Errors
    /// Names the peer and the field; nothing was changed.
    pub fn merge_replica(
        &mut self,
        peer: &str,
        record: ReplicaRecord,
        now: Duration,
    ) -> Result<bool, Refused> {
        let read = convert::record(&record).map_err(|e| refused(peer, &e))?;
        let order = Order::of(&record);
        let key = read.key;
        if self.is_buried(&key, record.generation) {
            return Ok(false);
        }
        if let Some(held) = self.replicas.get_mut(&key) {
            let known = held.record.generation;
            if peer != self.me && record.generation > known.saturating_add(MAX_LEAP) {
                let problem = format!(
                    "replica_record.generation: {key} leaps from {known} to {}",
                    record.generation
                );
                return Err(refused(peer, &problem));
            }
            if order < held.order || (order == held.order && held.record.taken >= record.taken) {
                return Ok(false);
            }
            if order == held.order {
                let bucket = bucket_of_replica(&key);
                self.buckets[bucket] ^= hash::replica(&key, &held.order, false);
                self.buckets[bucket] ^= hash::replica(&key, &held.order, true);
                self.untaken -= usize::from(held.untaken());
                held.record.taken = true;
                self.changes.replicas.insert(key);
                return Ok(true);
            }
        }
        let bytes = prost::Message::encoded_len(&record);
        self.make_room(&key, bytes, peer)?;
        let bucket = bucket_of_replica(&key);
        self.buckets[bucket] ^= hash::replica(&key, &order, record.taken);
        self.bytes += bytes;
        self.changes.replicas.insert(key.clone());
        let entry = ReplicaEntry {
            record,
            intent: read.intent,
            order,
            at: now,
            bytes,
        };
        self.untaken += usize::from(entry.untaken());
        if let Some(before) = self.replicas.insert(key.clone(), entry) {
            self.take_out(&key, &before);
        }
        Ok(true)
    }

    fn take_out(&mut self, key: &ReplicaKey, before: &ReplicaEntry) {
        self.bytes -= before.bytes;
        self.untaken -= usize::from(before.untaken());
        self.buckets[bucket_of_replica(key)] ^=
            hash::replica(key, &before.order, before.record.taken);
    }

    /// Forgets removed replicas, the oldest first, until there is room.
    fn make_room(&mut self, key: &ReplicaKey, bytes: usize, peer: &str) -> Result<(), Refused> {
        let before = self.replicas.get(key).map_or(0, |held| held.bytes);
        let full = |site: &Self| {
            (before == 0 && site.replicas.len() >= MAX_REPLICAS)
                || site.bytes + bytes - before.min(bytes) > MAX_BYTES
        };
        while full(self) {
            let oldest = self
                .replicas
                .iter()
                .filter(|(k, entry)| *k != key && is_tombstone(entry))
                .min_by_key(|(_, entry)| entry.at)
                .map(|(k, _)| k.clone());
            let Some(oldest) = oldest else {
                let problem = format!(
                    "replica_record of {key}: no room beside {} replicas of {} bytes",
                    self.replicas.len(),
                    self.bytes
                );
                return Err(refused(peer, &problem));
            };
            self.bury(&oldest);
        }
        Ok(())
    }

    fn is_buried(&self, key: &ReplicaKey, generation: u64) -> bool {
        self.graves.get(key).is_some_and(|last| generation <= *last)
    }

    fn bury(&mut self, key: &ReplicaKey) {
        let Some(entry) = self.replicas.remove(key) else {
            return;
        };
        self.take_out(key, &entry);
        self.changes.replicas.insert(key.clone());
        if self
            .graves
            .insert(key.clone(), entry.record.generation)
            .is_none()
        {
            self.buried.push_back(key.clone());
        }
        if self.buried.len() > MAX_GRAVES
            && let Some(oldest) = self.buried.pop_front()
        {
            self.graves.remove(&oldest);
        }
    }

    /// Forgets replicas that were removed long ago, and nodes that `gone` says are gone for good.
    /// Replicas that are no longer known then are among the changes.
    pub fn expire(&mut self, now: Duration, gone: impl Fn(&str, &NodeEntry) -> bool) {
        let old: Vec<ReplicaKey> = self
            .replicas
            .iter()
            .filter(|(_, e)| is_tombstone(e) && now.saturating_sub(e.at) > TOMBSTONE_AGE)
            .map(|(key, _)| key.clone())
            .collect();
        for key in old {
            self.bury(&key);
        }
        let gone: Vec<String> = self
            .nodes
            .iter()
            .filter(|(id, entry)| **id != self.me && gone(id, entry))
            .map(|(id, _)| id.clone())
            .collect();
        for id in gone {
            self.forget_node(&id);
        }
    }

    /// Takes what the control plane said of the site, by whatever way; true where it was news.
    ///
    /// # Errors
    /// Names the peer and the field; nothing was changed.
    pub fn merge_info(&mut self, peer: &str, info: SiteInfo) -> Result<bool, Refused> {
        convert::site_info(&info).map_err(|e| refused(peer, &e))?;
        if info.version <= self.info.version {
            return Ok(false);
        }
        self.buckets[0] ^= hash::info(self.info.version) ^ hash::info(info.version);
        for id in &info.revoked {
            if *id != self.me {
                self.forget_node(id);
            }
        }
        self.info = info;
        self.changes.info = true;
        Ok(true)
    }

    /// What was news since the last call. A replica that was forgotten is among them and no longer
    /// [known](Site::replica).
    #[must_use]
    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// True where something was news since the last [`Site::take_changes`].
    #[must_use]
    pub fn has_changes(&self) -> bool {
        !self.changes.is_empty()
    }
}

/// A removed replica of which the control plane knows.
fn is_tombstone(entry: &ReplicaEntry) -> bool {
    entry.state() == RecordState::Removed && !entry.untaken()
}

fn refused(peer: &str, problem: &dyn std::fmt::Display) -> Refused {
    Refused {
        peer: peer.to_owned(),
        problem: problem.to_string(),
    }
}

#[cfg(test)]
mod tests;
