//! What a site knows of a workload and its replicas.

use std::time::Duration;

use hyperion_placement::model::{Client, Place, Request, Toleration};

use super::ReplicaKey;
use crate::agent_v1::{self as wire, RecordState};

/// Which copy stays after a partition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reconcile {
    /// What the site decided.
    #[default]
    Site,
    /// What the control plane decided.
    ControlPlane,
}

/// What a workload wants of its place, and what is to happen while its node or the control plane is
/// out of reach.
#[derive(Debug, Clone, PartialEq)]
pub struct Intent {
    /// The workload's demands; what is of one replica (its name, siblings, nodes to avoid) and its
    /// images are empty: [`Intent::request`] and the caller fill them in.
    pub wants: Request,
    /// At most one copy may ever run.
    pub exclusive: bool,
    /// Placed again after its node has been out of reach this long; none where the user said
    /// nothing.
    pub replace_after: Option<Duration>,
    /// A node that is cut off stops it after this long; none for never.
    pub stop_after: Option<Duration>,
    /// Which copy stays after a partition.
    pub reconcile: Reconcile,
    /// Kubernetes' pod priority; the least important is shed first.
    pub priority: i32,
    /// The object as it was applied at the site, JSON; empty where the control plane knows it.
    pub manifest: String,
}

impl Intent {
    /// The intent of a workload with these demands and the usual behaviour.
    #[must_use]
    pub fn new(wants: Request) -> Self {
        Self {
            wants,
            exclusive: false,
            replace_after: None,
            stop_after: None,
            reconcile: Reconcile::Site,
            priority: 0,
            manifest: String::new(),
        }
    }

    /// The request for one replica; siblings, nodes to avoid and images are left to the caller.
    #[must_use]
    pub fn request(&self, key: &ReplicaKey) -> Request {
        Request {
            replica: key.to_string(),
            ..self.wants.clone()
        }
    }
}

impl From<&Intent> for wire::Intent {
    fn from(intent: &Intent) -> Self {
        let wants = &intent.wants;
        let words = |list: &[String]| list.to_vec();
        Self {
            workload_type: wants.workload_type.to_string(),
            goal: wants.goal.to_string(),
            exclusive: intent.exclusive,
            replace_after_ms: millis(intent.replace_after),
            stop_after_ms: millis(intent.stop_after),
            reconcile: match intent.reconcile {
                Reconcile::Site => wire::Reconcile::Site,
                Reconcile::ControlPlane => wire::Reconcile::ControlPlane,
            }
            .into(),
            priority: intent.priority,
            cpu_millis: signed(wants.resources.cpu_millis),
            memory_bytes: signed(wants.resources.memory_bytes),
            gpu_count: wants.gpu.count,
            gpu_millis: wants.gpu.millis,
            geographies: wants.geographies.iter().map(ToString::to_string).collect(),
            clouds: wants.clouds.iter().map(ToString::to_string).collect(),
            tiers: wants.tiers.iter().map(ToString::to_string).collect(),
            archs: words(&wants.archs),
            node_selector: wants.node_selector.clone().into_iter().collect(),
            tolerations: wants.tolerations.iter().map(toleration).collect(),
            max_hourly_cost: wants.max_hourly_cost,
            prefer_spot: wants.prefer_spot,
            latency_target_ms: wants.latency_target_ms,
            clients: wants.clients.iter().map(client).collect(),
            data_locality: wants
                .data_locality
                .as_ref()
                .map_or_else(String::new, |Place(place)| place.clone()),
            data_gib: wants.data_gib,
            cluster_only_fields: words(&wants.cluster_only_fields),
            manifest: intent.manifest.clone(),
        }
    }
}

/// At least 1 where there is one: 0 means none on the wire.
fn millis(duration: Option<Duration>) -> u64 {
    duration.map_or(0, |d| {
        u64::try_from(d.as_millis()).unwrap_or(u64::MAX).max(1)
    })
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn toleration(t: &Toleration) -> wire::Toleration {
    wire::Toleration {
        key: t.key.clone(),
        operator: t.operator.clone(),
        value: t.value.clone(),
        effect: t.effect.clone(),
    }
}

fn client(c: &Client) -> wire::ClientShare {
    wire::ClientShare {
        place: c.place.0.clone(),
        weight: c.weight,
    }
}

/// What was read of a [`wire::ReplicaRecord`]: the parts that a site decides by.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Replica.
    pub key: ReplicaKey,
    /// At least 1.
    pub generation: u64,
    /// Node that decided; empty for the control plane.
    pub decider: String,
    /// Never `Unspecified`.
    pub state: RecordState,
    /// Where it runs or ran; empty where it has no place.
    pub node: String,
    /// What the workload wants; without it the replica stays where it is.
    pub intent: Option<Intent>,
    /// Why there is no intent although the record has one.
    pub intent_problem: Option<String>,
}
