//! Handovers that a restart interrupts. The placement names the old copies that go on until the new
//! one is ready, in one write with the decision: whoever leads next knows that they may run, and
//! that no node is to stop them yet.
//!
//! What agents report can't tell that: a node that connects after lists are complete has stopped
//! the old copy before its report is looked at.

use std::time::{Duration, Instant};

use hyperion_api::placement::GpuAssignment;
use hyperion_placement::model::Resources;
use hyperion_proto::domain::ReplicaKey;
use kube::core::ObjectMeta;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{Index, Leaving, Name};

/// Annotation of a placement with its [`Copy`]s, as JSON.
pub const LEAVING: &str = "hyperion.io/leaving";
/// How long an old copy may wait for its successor to be ready. It begins anew with each leader:
/// the successor's node may not have been told of it before.
pub const HANDOVER: Duration = Duration::from_secs(60);
/// Old copies of one replica that are believed.
const COPIES: usize = 8;

/// An old copy, as stored.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Copy {
    node: String,
    generation: i64,
    #[serde(default)]
    cpu_millis: u64,
    #[serde(default)]
    memory_bytes: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    gpus: Vec<GpuAssignment>,
}

impl Leaving {
    /// It goes on until its successor is ready.
    fn serves(&self) -> bool {
        self.stopping.is_none() && self.until.is_some()
    }
}

impl Index {
    /// True while old copies of the replica go on.
    #[must_use]
    pub fn hands_over(&self, at: &(Name, u32)) -> bool {
        self.leaving
            .get(at)
            .is_some_and(|c| c.iter().any(Leaving::serves))
    }

    /// Replicas whose old copies go on until the new ones are ready.
    pub(crate) fn handovers(&self) -> usize {
        let serving = |copies: &&Vec<Leaving>| copies.iter().any(Leaving::serves);
        self.leaving.values().filter(serving).count()
    }

    /// True while old copies of any replica of the workload are there.
    pub(crate) fn hands_over_any(&self, workload: &Name) -> bool {
        let all = (workload.clone(), 0)..=(workload.clone(), u32::MAX);
        self.leaving.range(all).next().is_some()
    }

    /// What a placement on `node` says of the replica's old copies elsewhere; none where there are
    /// none.
    #[must_use]
    pub fn leaving_annotation(&self, at: &(Name, u32), node: &str) -> Option<String> {
        let copies = self.leaving.get(at).into_iter().flatten();
        let copies: Vec<Copy> = copies
            .filter(|c| c.serves() && c.node != node)
            .map(|c| Copy {
                node: c.node.clone(),
                generation: c.generation,
                cpu_millis: c.resources.cpu_millis,
                memory_bytes: c.resources.memory_bytes,
                gpus: c.gpus.clone(),
            })
            .collect();
        if copies.is_empty() {
            return None;
        }
        serde_json::to_string(&copies).ok()
    }

    /// Takes up the handovers that a placement read from the API names; true where there are some.
    pub(super) fn take_up(
        &mut self,
        key: &ReplicaKey,
        node: &str,
        generation: i64,
        metadata: &ObjectMeta,
        now: Instant,
    ) -> bool {
        let Some(text) = metadata.annotations.as_ref().and_then(|a| a.get(LEAVING)) else {
            return false;
        };
        let copies: Vec<Copy> = match serde_json::from_str(text) {
            Ok(copies) => copies,
            Err(e) => {
                let placement = metadata.name.as_deref().unwrap_or_default();
                warn!(placement, annotation = LEAVING, error = %e, "ignored");
                return false;
            }
        };
        let older = copies
            .into_iter()
            .filter(|c| c.generation < generation && c.node != node);
        let mut some = false;
        for copy in older.take(COPIES) {
            some = true;
            self.leave(Leaving {
                node: copy.node,
                key: key.clone(),
                generation: copy.generation,
                resources: Resources {
                    cpu_millis: copy.cpu_millis,
                    memory_bytes: copy.memory_bytes,
                },
                gpus: copy.gpus,
                stopping: None,
                until: Some(now + HANDOVER),
            });
        }
        some
    }
}
