//! Hashes that are the same on every machine. They find out what differs; nothing is secured by
//! them.

use hyperion_wire::domain::ReplicaKey;

use super::Order;

/// Buckets of a [summary](hyperion_wire::peer_v1::Summary): half a kilobyte on the wire.
pub const BUCKETS: usize = 64;

/// FNV-1a with 64 bits, finished so that all bits depend on all input.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hash(u64);

impl Hash {
    pub(crate) const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self
    }

    /// With its length, so that parts can't be taken for one another.
    pub(crate) fn text(self, text: &str) -> Self {
        self.number(text.len() as u64).bytes(text.as_bytes())
    }

    pub(crate) fn number(self, number: u64) -> Self {
        self.bytes(&number.to_le_bytes())
    }

    pub(crate) fn key(self, key: &ReplicaKey) -> Self {
        self.text(&key.namespace)
            .text(&key.workload)
            .text(&key.uid)
            .number(u64::from(key.index))
    }

    /// murmur3's finaliser.
    pub(crate) const fn finish(self) -> u64 {
        let mut h = self.0;
        h = (h ^ (h >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        h = (h ^ (h >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        h ^ (h >> 33)
    }
}

/// Bucket of a node.
#[must_use]
pub fn bucket_of_node(id: &str) -> usize {
    bucket(Hash::new().number(1).text(id))
}

/// Bucket of a replica.
#[must_use]
pub fn bucket_of_replica(key: &ReplicaKey) -> usize {
    bucket(Hash::new().number(2).key(key))
}

fn bucket(hash: Hash) -> usize {
    (hash.finish() % BUCKETS as u64) as usize
}

pub(super) fn node(id: &str, version: u64) -> u64 {
    Hash::new().number(1).text(id).number(version).finish()
}

pub(super) fn replica(key: &ReplicaKey, order: &Order, taken: bool) -> u64 {
    Hash::new()
        .number(2)
        .key(key)
        .number(order.generation)
        .number(order.state as u64)
        .text(&order.decider)
        .number(u64::from(order.digest))
        .number(u64::from(taken))
        .finish()
}

pub(super) fn info(version: u64) -> u64 {
    if version == 0 {
        return 0;
    }
    Hash::new().number(3).number(version).finish()
}
