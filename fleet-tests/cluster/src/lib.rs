//! A real Kubernetes API server for tests: builds and keeps it, and tells which API tests run on.
//! The lab starts and stops it (`hyperion_lab::apiserver`).
//!
//! The program is Go, in the folder `apiserver` beside this crate: kube-apiserver's and etcd's own
//! packages in one process. It is built once and kept in the user's cache under a name that is made
//! of its sources. Nothing here needs Go as long as nobody asks for a real API server.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, clippy::expect_used))]

pub mod build;
pub mod choice;

pub use choice::{Choice, chosen};
