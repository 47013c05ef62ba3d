//! A whole fleet on virtual time in one process: any number of devices, sites and people; one seed
//! decides everything, and a seed that fails is played again exactly.
//!
//! Real are the agent's node core with its store and the core of autonomy, and the operator's index
//! and plan. Simulated are networks, disks, clocks, containers, the API and who uses all that.
//! [`run`] plays one seed; [`check`](Violation) is what must never be seen.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, clippy::expect_used))]

mod agent;
mod check;
mod control;
mod disk;
mod faults;
mod net;
mod rng;
mod runtime;
mod seeds;
mod trace;
mod users;
mod world;

pub use check::Violation;
pub use faults::{Counts, Kind, parse as parse_faults};
pub use seeds::{Summary, seeds};
pub use world::{OfflineDay, Outcome, Scenario, offline_day, run};
