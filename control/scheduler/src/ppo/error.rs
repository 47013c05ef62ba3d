//! What can go wrong while learning.

use std::path::PathBuf;

/// Why the learner gave up. The policy is as it was before the call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting makes no sense.
    #[error("setting {field}: {problem}")]
    Config {
        /// Its name in [`super::Config`].
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// An environment broke the contract of [`super::Environment`].
    #[error("the environment broke its contract in the episode of seed {seed}: {problem}")]
    Environment {
        /// The episode.
        seed: u64,
        /// What it did.
        problem: String,
    },
    /// A chooser chose what is not there.
    #[error("candidate {choice} of {candidates} was chosen in the episode of seed {seed}")]
    Choice {
        /// The episode.
        seed: u64,
        /// Index of the choice.
        choice: usize,
        /// How many candidates there were.
        candidates: usize,
    },
    /// An example to imitate makes no sense.
    #[error("example {index} to imitate: {problem}")]
    Example {
        /// Its index.
        index: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// The numbers got out of hand.
    #[error("{what} is not a finite number in iteration {iteration}: lower the learning rate")]
    Diverged {
        /// What.
        what: &'static str,
        /// When.
        iteration: u32,
    },
    /// Arithmetic on tensors failed.
    #[error("tensor arithmetic")]
    Tensor(#[from] candle_core::Error),
    /// A checkpoint could not be read or written.
    #[error("checkpoint {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A checkpoint is not one, is damaged, or is of another network.
    #[error("checkpoint {}: {problem}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}
