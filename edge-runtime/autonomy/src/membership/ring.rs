//! Whom a node probes next.
//!
//! Of four probes two go to the next live node on one ring (all nodes sorted by a hash of their
//! names), one to the next on another ring, and one to a random node. So each node is watched by two
//! others in turn, whatever the size of the site: a death is noticed within two periods, where random
//! choice alone takes up to five in one of a hundred cases. Random probes find what a watcher that is
//! itself broken does not.

use std::sync::Arc;

use rand::RngExt as _;
use rand::rngs::ChaCha8Rng;

/// Places on both rings.
pub(super) type Places = [u64; 2];

/// Where a node lies.
pub(super) fn places(node: &str) -> Places {
    [
        hash(node, 0x9e37_79b9_7f4a_7c15),
        hash(node, 0xc2b2_ae3d_27d4_eb4f),
    ]
}

/// Chooses for the `round`-th probe among `others`, with their places; none where there are none.
pub(super) fn choose<'a>(
    round: u64,
    me: &str,
    others: impl Iterator<Item = (&'a Arc<str>, Places)>,
    rng: &mut ChaCha8Rng,
) -> Option<&'a Arc<str>> {
    let ring = match round % 4 {
        0 | 2 => 0,
        1 => 1,
        _ => {
            let others: Vec<_> = others.map(|(node, _)| node).collect();
            return (!others.is_empty()).then(|| others[rng.random_range(0..others.len())]);
        }
    };
    let mine = places(me)[ring];
    others
        .min_by_key(|(node, at)| {
            (
                at[ring].wrapping_sub(mine).wrapping_sub(1),
                Arc::clone(node),
            )
        })
        .map(|(node, _)| node)
}

/// FNV-1a with a final mix: the same on all machines and in all versions of the agent.
fn hash(text: &str, salt: u64) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ salt;
    for byte in text.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ (hash >> 32)
}
