//! Karpenter's NodeClaims: machines that are launched in a cluster for replicas that fit nowhere.
//!
//! - here: what is asked for and what is seen, in the words of the fleet;
//! - [`object`]: NodeClaims as objects. No I/O;
//! - [`task`]: makes those that are wanted, gives back those that are not, and tells what it sees.
//!
//! Which are wanted is the index's to say ([`crate::index::capacity`]), as the whole and never as a
//! step: an order that is told twice, or late, launches nothing twice.

pub mod object;
mod task;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hyperion_api::capacity::Capacity;
use hyperion_placement::model::{CapacityType, GpuRequest, Resources};

pub use task::{Claims, Said};

/// A claim to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct Make {
    /// What may be launched in the cluster.
    pub capacity: Arc<Capacity>,
    /// What the nodes of the cluster that are ours carry.
    pub selector: BTreeMap<String, String>,
    /// Instance type.
    pub instance_type: String,
    /// Region.
    pub region: String,
    /// Zone; empty for whichever.
    pub zone: String,
    /// Spot or on demand.
    pub capacity_type: CapacityType,
    /// CPU and memory that have to fit.
    pub resources: Resources,
    /// GPUs that have to fit.
    pub gpu: GpuRequest,
    /// Why it is made.
    pub purpose: Purpose,
}

/// Why a claim was made: it says so itself, for whoever leads next.
#[derive(Debug, Clone, PartialEq)]
pub struct Purpose {
    /// Id of the offer.
    pub offer: String,
    /// US dollars per hour that it cost when it was taken.
    pub price_per_hour: f64,
    /// Namespace of the workload.
    pub namespace: String,
    /// The workload.
    pub workload: String,
    /// Its uid.
    pub uid: String,
    /// The replica that it was made for.
    pub replica: u32,
}

/// What is wanted in a cluster, the whole.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wants {
    /// Claims to be made, by name. One that was made once is not made again.
    pub make: BTreeMap<String, Arc<Make>>,
    /// Claims to be deleted.
    pub give_back: BTreeSet<String>,
}

/// How far a machine is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It is asked for.
    #[default]
    Asked,
    /// The cloud has given one.
    Launched,
    /// Its node has joined the cluster.
    Registered,
    /// Its node can take Pods.
    Ready,
}

impl Stage {
    /// For people and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Launched => "launched",
            Self::Registered => "registered",
            Self::Ready => "ready",
        }
    }
}

/// A claim of ours, as it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
    /// Why it was made; none where it does not say so in a form that can be read.
    pub purpose: Option<Purpose>,
    /// How far it is.
    pub stage: Stage,
    /// Name of its node; empty while there is none.
    pub node: String,
    /// Instance type that was launched; empty while there is none.
    pub instance_type: String,
    /// Its zone.
    pub zone: String,
    /// `spot`, `on-demand` or `reserved`.
    pub capacity_type: String,
    /// Somebody has deleted it.
    pub deleting: bool,
    /// What keeps it from being ready, in Karpenter's words.
    pub trouble: String,
    /// How old it is.
    pub age: Duration,
}
