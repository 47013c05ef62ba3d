//! The link: gRPC over HTTP/3 over QUIC with mutual TLS, shared by agent and gateway so that the
//! two cannot drift apart.
//!
//! - [`identity`]: keys, CSRs, SPIFFE ids, fingerprints.
//! - [`tls`]: who trusts whom; [`transport`]: QUIC's numbers.
//! - [`body`]: streams owned by one task each (the fault in h3-quinn that this contains is told in
//!   `docs/link.md`).
//! - [`server`]: accepts connections and feeds a tonic service; [`client`]: one connection as a
//!   tonic channel.
//! - [`peer`]: TLS between the nodes of a site.
//! - [`route`]: whether there is a network to connect over.
//! - [`link`]: the agent's side with reconnect and renewal; the way in is [`start`].

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, clippy::expect_used))]

pub mod body;
pub mod client;
pub mod identity;
pub mod link;
pub mod peer;
pub mod route;
pub mod server;
pub mod tls;
pub mod transport;
mod waiting;
mod ways;

pub use client::{ControlTarget, EnrolError, EnrolRequest, InCluster, enrol, re_enrol};
pub use identity::Identity;
pub use link::{Link, LinkConfig, LinkEvent, LinkSender, SendError, start};
