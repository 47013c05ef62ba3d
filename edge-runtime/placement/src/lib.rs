//! The placement core, shared by cloud and edge: snapshot -> filter -> encode -> score -> choose
//! -> check -> explain. Pure: no clock, no randomness, no I/O, so that the same inputs give the
//! same decision on every machine.
//!
//! [`decide`] is the way in, and the reference: it walks a snapshot once, in order of id, so its
//! work grows with the number of candidates and nothing else. [`Fleet`] decides the same on a fleet
//! that is kept up to date in place, and much faster.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod check;
pub mod choose;
pub mod cost;
pub mod explain;
pub mod features;
pub mod filter;
pub mod fleet;
pub mod gpu;
pub mod latency;
pub mod model;
pub mod packing;
pub mod policy;
pub mod reward;
pub mod score;

pub use check::{Violation, check};
pub use choose::{CandidateRef, Choice, Considered, Decision, choice_of, consider, decide};
pub use explain::Explanation;
pub use filter::Constraint;
pub use fleet::{Fleet, FleetError, Scratch, Work};
pub use score::{PolicyScorer, RulesScorer, Scorer};
