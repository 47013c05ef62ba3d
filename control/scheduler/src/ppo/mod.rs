//! Proximal policy optimisation (Schulman et al., 2017) for choices among any number of
//! candidates.
//!
//! The learner knows nothing of fleets: an [`Environment`] hands it turns, each with what is known
//! of the request and of every candidate, and takes the index of the chosen one.
//!
//! - [`Trainer`]: plays and learns, iteration by iteration; [`Config`] says how;
//! - [`Trainer::imitate`]: learns from another scheduler's choices first;
//! - [`learn_from_log`]: learns from choices made elsewhere and their outcomes;
//! - [`play`]: one episode with any chooser, [`Actor`]: the chooser that a network is;
//! - [`FeatureStats`]: what the features were like in training, for the guard of a policy file.
//!
//! How it works and what the settings do: `docs/training.md`.

mod act;
mod adam;
mod batch;
mod checkpoint;
mod config;
mod error;
mod imitate;
mod loss;
mod model;
mod offline;
mod parameters;
mod product;
mod random;
mod returns;
mod rollout;
mod samples;
mod stats;
#[cfg(test)]
mod tests;
mod trainer;

pub use act::Actor;
pub use checkpoint::Checkpoint;
pub use config::{Adam, Config, Schedule, Taste};
pub use error::Error;
pub use imitate::{Example, Imitation, ImitationProgress, demonstrate};
pub use model::{CRITIC_HIDDEN, POOLED};
pub use offline::{Logged, MOST_WEIGHT, Offline, OfflineProgress, learn_from_log};
pub use rollout::{Episode, play};
pub use stats::{FeatureStats, SlotStats};
pub use trainer::{Progress, Trainer};

use hyperion_placement::features::{FIT_LEN, NODE_LEN, PAIR_LEN, REQUEST_LEN};

/// What is known of one candidate.
#[derive(Debug, Clone, PartialEq)]
pub struct CandidateFeatures {
    /// By [`hyperion_placement::features::NODE`].
    pub node: [f32; NODE_LEN],
    /// By [`hyperion_placement::features::PAIR`].
    pub pair: [f32; PAIR_LEN],
    /// By [`hyperion_placement::features::FIT`].
    pub fit: [f32; FIT_LEN],
}

/// One decision to make.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// Whose turn it is: turns of one actor (a replica) form a trajectory.
    pub actor: u64,
    /// Virtual time, hours.
    pub hour: f64,
    /// What the actor earned since its turn before; 0 at its first.
    pub earned: f64,
    /// What all actors earned since the episode began.
    pub team: f64,
    /// The request.
    pub request: [f32; REQUEST_LEN],
    /// At least one.
    pub candidates: Vec<CandidateFeatures>,
}

/// How an episode ended for one actor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ending {
    /// Who.
    pub actor: u64,
    /// When it was done or the episode ended, hours.
    pub hour: f64,
    /// What it earned since its last turn.
    pub earned: f64,
    /// What all actors had earned by `hour`.
    pub team: f64,
    /// False where the episode was cut short and it would have gone on.
    pub done: bool,
}

/// Where decisions are made and rewarded.
pub trait Environment: Send {
    /// Begins an episode; the seed decides everything that does not follow from the choices.
    fn reset(&mut self, seed: u64);
    /// The next decision; none at the end of the episode.
    fn turn(&mut self) -> Option<Turn>;
    /// Answers it with an index into its candidates.
    fn act(&mut self, choice: usize);
    /// After the end: one entry for each actor that had a turn.
    fn endings(&mut self) -> Vec<Ending>;
}
