//! The agent: runs the replicas that the control plane places on this node, and goes on without
//! the control plane.
//!
//! ```text
//!   link (QUIC) <-> session -> store (redb)
//!                     |  ^
//!         set_desired v  | reports, events
//!                  supervisor -> runtime (CRI) -> containerd
//! ```
//!
//! One thread. Tasks: the session ([`session::run`]) owns the store and all decisions; the link
//! owns the connection; the supervisor owns the containers; one task serves /metrics and /healthz.
//! The way in is [`run`].

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, clippy::expect_used))]

pub mod command;
pub mod config;
pub mod decider;
pub mod http;
pub mod identity;
pub mod local;
pub mod node;
pub mod notice;
pub mod peers;
pub mod reset;
mod run;
pub mod runtime;
pub mod session;
pub mod status;
pub mod store;
pub mod supervisor;
pub mod systemd;
pub mod telemetry;
#[cfg(test)]
mod testing;
pub mod update;
pub mod workloads;

pub use run::run;

/// Version of the agent, wherever it is told: of the bundle that brought it by itself, which
/// `hyperion-agent-start` says, else the one it was built as.
#[must_use]
pub fn version() -> &'static str {
    static OF_BUNDLE: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let of_bundle = OF_BUNDLE.get_or_init(|| {
        let said = std::env::var("HYPERION_AGENT_VERSION").ok()?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._+~".contains(c);
        (!said.is_empty() && said.len() <= 128 && said.chars().all(plain)).then_some(said)
    });
    of_bundle.as_deref().unwrap_or(env!("CARGO_PKG_VERSION"))
}
