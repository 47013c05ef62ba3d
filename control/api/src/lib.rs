//! Kubernetes API types of Hyperion (`hyperion.io/v1alpha1`), their generated CRDs, and the one
//! module for condition types and reasons.
//!
//! - [`workload`], [`placement`], [`node`], [`cluster`], [`quota`]: the kinds.
//! - [`rollout`], [`update`]: which nodes get which version, and what a node says of its own.
//! - [`capacity`]: what may be launched in a cluster.
//! - [`crd`]: their CRDs, with the bounds that a Rust type does not carry.
//! - [`request`]: a workload in the form that placement reads; [`quantity`]: Kubernetes numbers.
//! - [`agent_pod`], [`intent`]: a workload in the form that agents and their sites read.
//! - [`fleet`]: live state, as JSON.

#![allow(
    clippy::duplicated_attributes,
    reason = "kube's printcolumn repeats its keys by design"
)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, clippy::expect_used))]

pub mod agent_pod;
pub mod capacity;
pub mod cluster;
pub mod conditions;
pub mod cost;
pub mod crd;
pub mod fleet;
pub mod intent;
pub mod node;
pub mod placement;
pub mod quantity;
pub mod quota;
pub mod request;
pub mod rollout;
pub mod template;
pub mod update;
pub mod workload;

pub use crd::crds;

/// Namespace of the control plane's own objects.
pub const NAMESPACE: &str = "hyperion-system";
/// The operator's field manager for server-side apply, its finalizer's prefix and its reporter.
pub const MANAGER: &str = "hyperion-control";
/// Holds a deleted workload back until its replicas have stopped.
pub const FINALIZER: &str = "hyperion.io/stop-replicas";
/// Label of placements: the workload's name.
pub const LABEL_WORKLOAD: &str = "hyperion.io/workload";
/// Holds a deleted cluster back until its Pods and nodes are gone.
pub const CLUSTER_FINALIZER: &str = "hyperion.io/leave-cluster";
/// Annotation of a deleted cluster that can't be reached, set to "true" by a person: it may go, and
/// what runs there is left behind.
pub const ABANDON: &str = "hyperion.io/abandon";
/// Label of nodes, and of the Pods of replicas: the HyperionCluster's name.
pub const LABEL_CLUSTER: &str = "hyperion.io/cluster";
/// Label of placements: the node's id.
pub const LABEL_NODE: &str = "hyperion.io/node";

/// Annotation of a workload that was applied at a site first: the uid by which the site and its nodes
/// know it. It is what replicas are keyed by, so that taking it over restarts nothing.
pub const SITE_UID: &str = "hyperion.io/site-uid";

/// A field that was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Invalid {
    /// Path from the object's root, for example `spec.template.spec.containers[0].image`.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

impl Invalid {
    /// A refusal.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            problem: problem.into(),
        }
    }
}
