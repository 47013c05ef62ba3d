//! Which of two records of one replica holds.

use std::cmp::Ordering;

use hyperion_wire::agent_v1::{Intent, PodSpec, RecordState, ReplicaRecord};
use hyperion_wire::peer_v1::ReplicaVersion;
use prost::Message;

use super::hash::Hash;

/// The place of a record among those of its replica: by generation; then what ended holds against
/// what did not; then by decider (the control plane's is empty and the lowest); then by state.
///
/// A removal has the decider of the decision that it removes. So it holds against that one, and not
/// against another of the same generation: where a site was split and both halves decided, the
/// control plane ends one of the two copies, and means just that one.
///
/// The digest comes last: it only tells apart what one decider can't have decided twice unless its
/// store was lost in between, so that all nodes keep the same of the two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// At least 1.
    pub generation: u64,
    /// The replica ended; also of one that was removed after it did.
    pub ended: bool,
    /// Node that decided; empty for the control plane.
    pub decider: String,
    /// What it says.
    pub state: RecordState,
    /// Of all that the record says but for `taken`.
    pub digest: u32,
}

impl Order {
    /// Of a record.
    #[must_use]
    pub fn of(record: &ReplicaRecord) -> Self {
        let state = RecordState::try_from(record.state).unwrap_or_default();
        let ended = match state {
            RecordState::Ended => true,
            RecordState::Removed => record.outcome != 0,
            _ => false,
        };
        Self {
            generation: record.generation,
            ended,
            decider: record.decider.clone(),
            state,
            digest: digest(record),
        }
    }

    /// Of a version that a peer sent.
    #[must_use]
    pub fn of_version(version: &ReplicaVersion) -> Self {
        Self {
            generation: version.generation,
            ended: version.ended,
            decider: version.decider.clone(),
            state: RecordState::try_from(version.state).unwrap_or_default(),
            digest: version.digest,
        }
    }
}

impl Ord for Order {
    fn cmp(&self, other: &Self) -> Ordering {
        self.generation
            .cmp(&other.generation)
            .then_with(|| self.ended.cmp(&other.ended))
            .then_with(|| self.decider.cmp(&other.decider))
            .then_with(|| self.state.cmp(&other.state))
            .then_with(|| self.digest.cmp(&other.digest))
    }
}

impl PartialOrd for Order {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Maps have no order on the wire, so they are hashed sorted.
fn digest(record: &ReplicaRecord) -> u32 {
    let mut hash = Hash::new()
        .text(&record.node)
        .number(u64::from(record.outcome.unsigned_abs()))
        .bytes(&record.exit_code.to_le_bytes())
        .bytes(&record.unix_ms.to_le_bytes());
    if let Some(pod) = &record.pod {
        hash = hash.bytes(
            &PodSpec {
                labels: std::collections::HashMap::new(),
                ..pod.clone()
            }
            .encode_to_vec(),
        );
        hash = pairs(hash, &pod.labels);
    }
    if let Some(intent) = &record.intent {
        hash = hash.bytes(
            &Intent {
                node_selector: std::collections::HashMap::new(),
                ..intent.clone()
            }
            .encode_to_vec(),
        );
        hash = pairs(hash, &intent.node_selector);
    }
    if let Some(why) = &record.explanation {
        hash = hash.bytes(&why.encode_to_vec());
    }
    (hash.finish() >> 32) as u32
}

fn pairs(hash: Hash, map: &std::collections::HashMap<String, String>) -> Hash {
    let mut sorted: Vec<_> = map.iter().collect();
    sorted.sort();
    sorted
        .into_iter()
        .fold(hash, |hash, (key, value)| hash.text(key).text(value))
}
