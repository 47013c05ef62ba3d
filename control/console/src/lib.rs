//! `hyperion`: the command line and the fleet's terminal UI.
//!
//! Everything goes through the Kubernetes API, and through the fleet API behind the API server's
//! service proxy, so a laptop needs a kubeconfig and nothing else.
//!
//! - [`cli`] parses the command line and runs one command.
//! - [`fleet`] is what a person sees of nodes, workloads, placements and events: plain rows made
//!   from API objects, with every string cleaned of what could drive a terminal.
//! - [`top`] is the TUI: events in, state changes, pure drawing.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, clippy::expect_used))]

pub mod cli;
pub mod connect;
pub mod error;
pub mod fleet;
pub mod text;
pub mod top;
