//! A policy that may decide, or why it may not.

use std::sync::Arc;

use hyperion_placement::PolicyScorer;
use hyperion_placement::policy::Network;
use hyperion_placement::reward::RewardWeights;
use hyperion_policy::{Guard, Limits, PolicyError, PolicyFile, Precision};
use sha2::{Digest, Sha256};

/// Digits of a hash that are shown: enough to tell policies apart.
const DIGITS: usize = 12;

/// A policy that was read.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Scores; its name tells the precision.
    pub scorer: PolicyScorer,
    /// First digits of the SHA-256 of its file.
    pub hash: String,
    /// When it is not to be trusted.
    pub guard: Guard,
    /// Weights of the reward that it was trained for.
    pub weights: RewardWeights,
}

/// Why there is no policy although one was asked for.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refused {
    /// The file can't be read.
    #[error("cannot read {path}: {error}")]
    File {
        /// Which.
        path: String,
        /// The system's word.
        error: String,
    },
    /// The ConfigMap holds none.
    #[error(
        "the ConfigMap has no key `policy` in binaryData; make it with `kubectl create configmap hyperion-policy -n hyperion-system --from-file=policy=FILE`"
    )]
    NoKey,
    /// A device would not run it in its memory and time.
    #[error("key `device-policy` holds a policy in full precision; devices take quantised ones")]
    NotQuantised,
    /// It is not a policy for this program.
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

impl Policy {
    /// Reads one.
    ///
    /// # Errors
    /// A file that is damaged, or a policy of another schema.
    pub fn read(bytes: &[u8]) -> Result<Self, Refused> {
        let file = PolicyFile::read(bytes)?;
        let name = match file.precision {
            Precision::Full => "ppo",
            Precision::Quantised(quantisation) => quantisation.scorer_name(),
        };
        let hash = Sha256::digest(bytes);
        let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self {
            scorer: PolicyScorer::named(name, Arc::new(file.network)),
            hash: hash[..DIGITS].to_owned(),
            guard: Guard::new(&file.card.statistics, Limits::default()),
            weights: file.card.reward,
        })
    }

    /// Its network, for [`Index::set_network`](crate::index::Index::set_network).
    #[must_use]
    pub fn network(&self) -> Arc<Network> {
        self.scorer.network().clone()
    }
}
