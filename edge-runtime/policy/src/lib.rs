//! Policies outside of the program that trained them: files, execution in 8 or 4 bits, guard
//! rails, and what is learnt from decisions that were carried out. The network itself is
//! [`hyperion_placement::policy`]. No files, no clock, no network: bytes in, bytes out.
//!
//! - [`PolicyFile`]: reads and writes safetensors (full precision) and GGUF (quantised);
//! - [`Quantised`]: executes a network with candle's quantised tensors;
//! - [`Guard`], [`Guarded`]: when a decision is left to the rules;
//! - [`Shadow`]: the rules' decisions beside the policy's;
//! - [`Experience`]: a decision and its outcome, to learn from.
//!
//! Formats and limits: `docs/policy.md`.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, clippy::expect_used))]

mod card;
mod error;
mod experience;
mod file;
mod guard;
mod quantised;
mod shadow;

pub use card::{Card, Form, SlotStats, Statistics, TrainingData};
pub use error::PolicyError;
pub use experience::{Encoded, Experience, ExperienceError, MOST_OTHERS, Outcome, log_probability};
pub use file::{MAX_BYTES, PolicyFile, Precision, Quantisation};
pub use guard::{Counts, Guard, Guarded, Limits, Reason, sample};
pub use quantised::{Quantised, ReadyQuantised};
pub use shadow::{Estimate, Shadow, Side};

/// The policy that is part of the program, in full precision: trained by `hyperion-train`, as its
/// card `default/CARD.md` says.
pub const BUILT_IN: &[u8] = include_bytes!("../default/policy.safetensors");
/// The same in 8 bits, for devices.
pub const BUILT_IN_QUANTISED: &[u8] = include_bytes!("../default/policy-q8.gguf");
