//! `hyperion-control`: decides where replicas run, and serves the agents that run them.
//!
//! ```text
//! watches ─┐                      ┌─> apply ──> Kubernetes API
//!          ├─> index ─> plan ─────┤
//! agents ──┘   (what   (one pass  └─> gateway ──> agents
//!               is)     over one
//!                       workload)
//! ```
//!
//! - [`index`] and [`plan`] are pure: no I/O, time is an argument.
//! - [`decider`] is who decides: rules, or a policy.
//! - [`clusters`] runs replicas as Pods, as the gateway does through agents.
//! - [`rollout`]: which nodes get which version, and when.
//! - [`lead`] is the one task that owns the index; [`watch`], [`apply`] and [`events`] are its
//!   hands.
//! - [`lease`] says who leads; [`run`] is the program; [`http`] answers people and tools.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, clippy::expect_used))]

pub mod apply;
pub mod args;
pub mod client;
pub mod clusters;
pub mod cost;
pub mod decider;
pub mod directory;
pub mod endpoint;
pub mod events;
pub mod experience;
pub mod fleet_metrics;
pub mod http;
pub mod index;
pub mod install;
pub mod lead;
pub mod lease;
pub mod measured;
pub mod metrics;
pub mod plan;
pub mod queue;
pub mod rollout;
pub mod run;
pub mod text;
pub mod watch;
