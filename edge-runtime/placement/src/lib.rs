//! The placement core, shared by cloud and edge: snapshot -> filter -> encode -> score -> choose
//! -> check -> explain. Pure: no clock, no randomness, no I/O, so that the same inputs give the
//! same decision on every machine.
//!
//! [`decide`] is the way in. It walks the candidates once, in order of id, so its work grows with
//! their number and nothing else.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod check;
pub mod choose;
pub mod cost;
pub mod explain;
pub mod features;
pub mod filter;
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
pub use score::{PolicyScorer, RulesScorer, Scorer};
