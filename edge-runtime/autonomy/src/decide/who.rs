//! Who decides.

use hyperion_wire::domain::ReplicaKey;

use crate::site::Hash;

/// The decider of a replica: of `live` the node with the highest hash of key and node (rendezvous
/// hashing). When a node comes or goes, only the replicas that it decides for change hands.
pub fn decider<'a>(key: &ReplicaKey, live: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    highest(Hash::new().number(5).key(key), live)
}

/// The node that speaks for the site about `topic`, so that not each node says the same.
pub fn first_of<'a>(topic: &str, live: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    highest(Hash::new().number(6).text(topic), live)
}

fn highest<'a>(seed: Hash, live: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    live.into_iter()
        .max_by_key(|node| (seed.text(node).finish(), *node))
}
