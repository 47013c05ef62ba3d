//! How the agent finds its sandboxes and containers again.

use std::collections::{BTreeMap, HashMap};

use hyperion_proto::agent_v1::PodSpec;
use hyperion_proto::domain::ReplicaKey;
use prost::Message;
use sha2::{Digest, Sha256};

/// Node that the sandbox belongs to.
pub const NODE: &str = "hyperion.io/node";
/// Namespace of the workload.
pub const NAMESPACE: &str = "hyperion.io/namespace";
/// Name of the workload.
pub const WORKLOAD: &str = "hyperion.io/workload";
/// Uid of the workload.
pub const WORKLOAD_UID: &str = "hyperion.io/workload-uid";
/// Index of the replica.
pub const REPLICA: &str = "hyperion.io/replica";
/// Hash of the pod that the sandbox was made from: equal hashes need no restart.
pub const POD_HASH: &str = "hyperion.io/pod-hash";
/// Annotation: generation at which the sandbox was made, for people.
pub const GENERATION: &str = "hyperion.io/generation";
/// Annotation: seconds between SIGTERM and SIGKILL. The pod may be forgotten when it is stopped.
pub const GRACE_SECONDS: &str = "hyperion.io/grace-seconds";

/// Labels that select the sandboxes and containers of one node.
#[must_use]
pub fn selector(node_id: &str) -> HashMap<String, String> {
    HashMap::from([(NODE.to_owned(), node_id.to_owned())])
}

/// All labels of one replica's sandbox and containers; the pod's own may not hide ours.
#[must_use]
pub fn of_replica(
    node_id: &str,
    key: &ReplicaKey,
    pod: &PodSpec,
    hash: &str,
) -> HashMap<String, String> {
    let mut labels = pod.labels.clone();
    let ours = [
        (NODE, node_id.to_owned()),
        (NAMESPACE, key.namespace.clone()),
        (WORKLOAD, key.workload.clone()),
        (WORKLOAD_UID, key.uid.clone()),
        (REPLICA, key.index.to_string()),
        (POD_HASH, hash.to_owned()),
    ];
    labels.extend(ours.map(|(name, value)| (name.to_owned(), value)));
    labels
}

/// The replica that labels name; none where one is missing.
#[must_use]
pub fn replica_of(labels: &HashMap<String, String>) -> Option<ReplicaKey> {
    Some(ReplicaKey {
        namespace: labels.get(NAMESPACE)?.clone(),
        workload: labels.get(WORKLOAD)?.clone(),
        uid: labels.get(WORKLOAD_UID)?.clone(),
        index: labels.get(REPLICA)?.parse().ok()?,
    })
}

/// Hash of a pod, the same in every process: maps are hashed in order of their keys.
#[must_use]
pub fn pod_hash(pod: &PodSpec) -> String {
    let mut ordered = pod.clone();
    let labels: BTreeMap<_, _> = std::mem::take(&mut ordered.labels).into_iter().collect();
    let mut hash = Sha256::new();
    hash.update(ordered.encode_to_vec());
    for (key, value) in labels {
        for part in [key, value] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    let digest = hash.finalize();
    digest[..10]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(labels: &[(&str, &str)]) -> PodSpec {
        PodSpec {
            labels: labels
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            ..Default::default()
        }
    }

    #[test]
    fn the_hash_ignores_the_order_of_labels_and_nothing_else() {
        let many: Vec<_> = ["a", "b", "c", "d", "e", "f"].map(|k| (k, "1")).to_vec();
        let turned: Vec<_> = many.iter().copied().rev().collect();
        assert_eq!(pod_hash(&pod(&many)), pod_hash(&pod(&turned)));
        assert_ne!(
            pod_hash(&pod(&[("a", "bc")])),
            pod_hash(&pod(&[("ab", "c")]))
        );
        let mut host = pod(&many);
        host.host_network = true;
        assert_ne!(pod_hash(&pod(&many)), pod_hash(&host));
    }

    #[test]
    fn a_key_survives_labels_and_pods_cannot_hide_it() {
        let key = ReplicaKey {
            namespace: "default".into(),
            workload: "web".into(),
            uid: "u1".into(),
            index: 7,
        };
        let liar = pod(&[(WORKLOAD, "other"), ("app", "web")]);
        let labels = of_replica("n1", &key, &liar, "h");
        assert_eq!(replica_of(&labels), Some(key));
        assert_eq!(labels["app"], "web");
        assert_eq!(replica_of(&HashMap::new()), None);
    }
}
