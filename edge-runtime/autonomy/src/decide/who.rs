//! Who decides.

use hyperion_wire::domain::ReplicaKey;

use crate::site::Hash;

/// The decider of a replica: of `live` the node with the highest hash of workload and node
/// (rendezvous hashing). When a node comes or goes, only the replicas that it decides for change
/// hands. All replicas of a workload have the same, so that they can be spread.
pub fn decider<'a>(key: &ReplicaKey, live: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let workload = Hash::new()
        .number(5)
        .text(&key.namespace)
        .text(&key.workload)
        .text(&key.uid);
    highest(workload, live)
}

/// The node that speaks for the site about `topic`, so that not each node says the same.
pub fn first_of<'a>(topic: &str, live: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    highest(Hash::new().number(6).text(topic), live)
}

fn highest<'a>(seed: Hash, live: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    live.into_iter()
        .max_by_key(|node| (seed.text(node).finish(), *node))
}
