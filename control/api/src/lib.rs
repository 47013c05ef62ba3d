//! Kubernetes API types of Hyperion (`hyperion.io/v1alpha1`), their generated CRDs, and the one
//! module for condition types and reasons.

pub mod fleet;
pub mod node;
pub mod placement;
pub mod workload;
