//! The whole system on one machine, on real parts: a private containerd, the control plane with
//! its embedded API (or a real one), agents and `kubectl`. The demo, the end-to-end tests and the
//! benchmarks all start their fleet here.
//!
//! Everything listens on loopback; containers live in a bridge network of 198.18.0.0/16. Whatever
//! a fleet starts, it writes down first, so that it can be stopped by [`state::clean_up`] even
//! after the process that started it was killed.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, clippy::expect_used))]

pub mod agent;
pub mod apiserver;
pub mod beacon;
pub mod cluster;
pub mod containerd;
pub mod control;
pub mod device;
pub mod faults;
pub mod fleet;
pub mod http;
pub mod join;
pub mod karpenter;
pub mod kubectl;
pub mod measure;
pub mod metadata;
pub mod needs;
pub mod proc;
pub mod process;
pub mod scene;
pub mod site;
pub mod state;
pub mod truth;
pub mod wait;
pub mod watch;
pub mod workload_cluster;

pub use agent::{Agent, AgentSpec};
pub use fleet::{Fleet, FleetOptions};
pub use kubectl::Kubectl;
