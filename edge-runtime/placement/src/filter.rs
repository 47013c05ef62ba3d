//! Hard constraints. Each candidate that fails counts once, under the first constraint in the
//! order of [`Constraint`] that ruled it out.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cost;
use crate::gpu;
use crate::model::{
    CapacityType, GpuDevice, Location, Node, Offer, Request, Resources, Supply, Taint, Tier,
    Toleration,
};

/// A hard constraint, named in the word that a user wrote for it. The order is the order in which
/// they are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Constraint {
    /// The node's agent is out of reach.
    NotReady,
    /// Cordoned, draining or revoked.
    Cordoned,
    /// `policy.constraints.geographies`.
    Geographies,
    /// `policy.constraints.clouds`.
    Clouds,
    /// `policy.constraints.tiers`.
    Tiers,
    /// `kubernetes.io/arch`.
    Architecture,
    /// `template.spec.nodeSelector`.
    NodeSelector,
    /// Taints without a toleration.
    Taints,
    /// Fields of the template that an agent's own runtime can't carry out.
    ClusterOnly,
    /// GPUs.
    Gpu,
    /// CPU.
    Cpu,
    /// Memory.
    Memory,
    /// `policy.maxHourlyCost`.
    MaxHourlyCost,
    /// The replica failed there a moment ago.
    RecentFailure,
}

impl Constraint {
    /// Every constraint, in the order in which they are tried.
    pub const ALL: [Self; 14] = [
        Self::NotReady,
        Self::Cordoned,
        Self::Geographies,
        Self::Clouds,
        Self::Tiers,
        Self::Architecture,
        Self::NodeSelector,
        Self::Taints,
        Self::ClusterOnly,
        Self::Gpu,
        Self::Cpu,
        Self::Memory,
        Self::MaxHourlyCost,
        Self::RecentFailure,
    ];

    /// The word shown to people and written to status.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotReady => "notReady",
            Self::Cordoned => "cordoned",
            Self::Geographies => "geographies",
            Self::Clouds => "clouds",
            Self::Tiers => "tiers",
            Self::Architecture => "architecture",
            Self::NodeSelector => "nodeSelector",
            Self::Taints => "taints",
            Self::ClusterOnly => "clusterOnlyFields",
            Self::Gpu => "nvidia.com/gpu",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::MaxHourlyCost => "maxHourlyCost",
            Self::RecentFailure => "recentFailure",
        }
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A node or an offer, in the common form that filter, features and score read.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Node or offer id.
    pub id: &'a str,
    /// Where it is.
    pub location: &'a Location,
    /// Architecture.
    pub arch: &'a str,
    /// How it is paid for.
    pub capacity_type: CapacityType,
    /// All it has.
    pub allocatable: Resources,
    /// What is left.
    pub free: Resources,
    /// GPUs.
    pub gpus: &'a [GpuDevice],
    /// US dollars per hour for the whole machine; not finite or negative counts as unknown.
    pub price_per_hour: f64,
    /// How sure it is to be had and kept.
    pub supply: Supply,
    /// Seconds until a replica can start there; 0 for a node.
    pub startup_s: f32,
    /// The node, unless it is an offer.
    pub node: Option<&'a Node>,
}

impl<'a> From<&'a Node> for Candidate<'a> {
    fn from(node: &'a Node) -> Self {
        Self {
            id: &node.id,
            location: &node.location,
            arch: &node.arch,
            capacity_type: node.capacity_type,
            allocatable: node.allocatable,
            free: node.free,
            gpus: &node.gpus,
            price_per_hour: node.price_per_hour,
            supply: node.supply,
            startup_s: 0.0,
            node: Some(node),
        }
    }
}

impl<'a> From<&'a Offer> for Candidate<'a> {
    fn from(offer: &'a Offer) -> Self {
        Self {
            id: &offer.id,
            location: &offer.location,
            arch: &offer.arch,
            capacity_type: offer.capacity_type,
            allocatable: offer.allocatable,
            free: offer.allocatable,
            gpus: &offer.gpus,
            price_per_hour: offer.price_per_hour,
            supply: offer.supply,
            startup_s: offer.startup_s,
            node: None,
        }
    }
}

/// The first hard constraint that rules `candidate` out for `request`, or none.
#[must_use]
pub fn first_rejection(request: &Request, candidate: &Candidate<'_>) -> Option<Constraint> {
    let fails: [(Constraint, bool); 14] = [
        (
            Constraint::NotReady,
            candidate.node.is_some_and(|n| !n.ready),
        ),
        (
            Constraint::Cordoned,
            candidate.node.is_some_and(|n| !n.schedulable),
        ),
        (
            Constraint::Geographies,
            !geography_allowed(request, candidate.location),
        ),
        (
            Constraint::Clouds,
            !allowed(&request.clouds, &candidate.location.provider),
        ),
        (
            Constraint::Tiers,
            !allowed(&request.tiers, &candidate.location.tier),
        ),
        (
            Constraint::Architecture,
            !request.archs.is_empty() && !request.archs.iter().any(|a| a == candidate.arch),
        ),
        (
            Constraint::NodeSelector,
            !selector_matches(request, candidate),
        ),
        (Constraint::Taints, !taints_tolerated(request, candidate)),
        (
            Constraint::ClusterOnly,
            !request.cluster_only_fields.is_empty()
                && candidate.node.is_some_and(|n| !n.in_cluster()),
        ),
        (
            Constraint::Gpu,
            // Clusters hand out whole devices.
            (request.gpu.is_share() && candidate.node.is_some_and(Node::in_cluster))
                || !gpu::fits(&request.gpu, candidate.gpus),
        ),
        (
            Constraint::Cpu,
            request.resources.cpu_millis > candidate.free.cpu_millis,
        ),
        (
            Constraint::Memory,
            request.resources.memory_bytes > candidate.free.memory_bytes,
        ),
        (Constraint::MaxHourlyCost, !within_cost(request, candidate)),
        (
            Constraint::RecentFailure,
            request.avoid.contains_key(candidate.id),
        ),
    ];
    fails
        .iter()
        .find(|(_, failed)| *failed)
        .map(|(constraint, _)| *constraint)
}

pub(crate) fn allowed<T: PartialEq>(list: &[T], value: &T) -> bool {
    list.is_empty() || list.contains(value)
}

/// A node whose geography is unknown is refused where geographies are demanded: sovereignty is
/// never assumed.
pub(crate) fn geography_allowed(request: &Request, location: &Location) -> bool {
    request.geographies.is_empty()
        || location
            .geography
            .is_some_and(|g| request.geographies.contains(&g))
}

fn selector_matches(request: &Request, candidate: &Candidate<'_>) -> bool {
    request.node_selector.iter().all(|(key, value)| {
        candidate
            .node
            .is_some_and(|n| n.labels.get(key) == Some(value))
    })
}

fn taints_tolerated(request: &Request, candidate: &Candidate<'_>) -> bool {
    let Some(node) = candidate.node else {
        return true;
    };
    node.taints
        .iter()
        .filter(|t| t.effect != "PreferNoSchedule")
        .all(|taint| tolerated(request, taint))
}

pub(crate) fn tolerated(request: &Request, taint: &Taint) -> bool {
    request.tolerations.iter().any(|t| tolerates(t, taint))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.is_empty() || toleration.effect == taint.effect;
    let key = toleration.key.is_empty() || toleration.key == taint.key;
    let exists = toleration.operator == "Exists";
    effect && key && (exists || (!toleration.key.is_empty() && toleration.value == taint.value))
}

fn within_cost(request: &Request, candidate: &Candidate<'_>) -> bool {
    match request.max_hourly_cost {
        None => true,
        Some(most) => cost::replica_share(request, candidate).is_some_and(|c| c <= most),
    }
}

/// Edge nodes are owned: no price means free. In the cloud no price means unknown.
#[must_use]
pub fn is_owned(candidate: &Candidate<'_>) -> bool {
    candidate.location.tier == Tier::Edge && candidate.capacity_type == CapacityType::Owned
}
