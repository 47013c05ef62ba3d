//! One decision: filter and score by whoever [`Decide`]s, then a check by other code.

use std::collections::{BTreeMap, BTreeSet};

use hyperion_placement::model::{Request, Snapshot};
use hyperion_placement::{CandidateRef, Choice, check};
use hyperion_wire::agent_v1::{PodSpec, SiteExplanation};
use hyperion_wire::domain::{Intent, ReplicaKey};

use super::{Decide, Decided, Room, share_of};

/// A replica that wants a place.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// Replica.
    pub key: &'a ReplicaKey,
    /// What its workload wants.
    pub intent: &'a Intent,
    /// What is to run.
    pub pod: &'a PodSpec,
    /// Nodes with other replicas of the workload.
    pub siblings: BTreeSet<String>,
    /// Nodes not to use, with the reason.
    pub avoid: BTreeMap<String, String>,
}

/// Chooses a node. A live node that runs a copy already is taken where it fits: nothing has to start
/// there.
#[must_use]
pub fn choose(room: &Room, wanted: &Wanted<'_>, decide: &dyn Decide) -> Decided {
    let request = Request {
        images: wanted
            .pod
            .containers
            .iter()
            .map(|c| c.image.clone())
            .collect(),
        siblings: wanted.siblings.clone(),
        avoid: wanted.avoid.clone(),
        ..wanted.intent.request(wanted.key)
    };
    let held = share_of(Some(wanted.intent), Some(wanted.pod));
    for stray in room.strays(wanted.key) {
        let Some(alone) = room.only(stray, &held) else {
            continue;
        };
        let decided = checked(&alone, &request, decide);
        if decided.node.is_some() {
            return decided;
        }
    }
    checked(room.snapshot(), &request, decide)
}

/// What breaks a hard constraint is not carried out, whoever chose it.
fn checked(snapshot: &Snapshot, request: &Request, decide: &dyn Decide) -> Decided {
    let decided = decide.decide(snapshot, request);
    let Some(node) = &decided.node else {
        return decided;
    };
    let choice = Choice {
        candidate: CandidateRef::Node(node.clone()),
        gpus: decided.gpus.clone(),
        hourly_cost: hourly_cost(snapshot, request, node),
        p99_latency_ms: None,
        score: decided.explanation.score,
    };
    match check(snapshot, request, &choice) {
        Ok(()) => decided,
        Err(broken) => Decided {
            node: None,
            gpus: Vec::new(),
            explanation: SiteExplanation {
                fallback: broken
                    .first()
                    .map_or_else(String::new, |b| format!("{node} was chosen, but {b}")),
                ..decided.explanation
            },
        },
    }
}

fn hourly_cost(snapshot: &Snapshot, request: &Request, node: &str) -> f64 {
    snapshot
        .node(node)
        .and_then(|n| hyperion_placement::cost::replica_share(request, &n.into()))
        .unwrap_or(0.0)
}
