//! Measuring: one subcommand per figure that the project promises. Each prints what it did under
//! which conditions, as text or as one JSON object.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, clippy::expect_used))]

pub mod cluster;
pub mod clusters;
pub mod decide;
pub mod faults;
pub mod fleet;
pub mod gossip;
pub mod link;
pub mod link_server;
pub mod offline;
pub mod packing;
pub mod replay;
pub mod report;
pub mod rollout;
pub mod sim;
pub mod tui;
