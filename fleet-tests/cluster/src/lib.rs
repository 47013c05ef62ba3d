//! Real Kubernetes clusters for tests: builds and keeps the programs, makes nodes as the clouds make
//! them, and tells which API tests run on. The lab starts and stops clusters (`hyperion_lab::apiserver`,
//! `hyperion_lab::workload_cluster`).
//!
//! The programs are Go, in folders beside this crate: `apiserver` is kube-apiserver's and etcd's own
//! packages in one process, and kube-scheduler; `kwok` is kwok's controller; `karpenter` is
//! Karpenter with its own kwok provider. Each is built once and
//! kept in the user's cache under a name that is made of its sources. Nothing here needs Go as long
//! as nobody asks for a real API server.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, clippy::expect_used))]

pub mod build;
pub mod choice;
pub mod nodes;

pub use build::Program;
pub use choice::{Choice, chosen};
