//! What a policy says of itself: the metadata of its file.

use std::collections::BTreeMap;

use hyperion_placement::features::{FIT_LEN, NODE_LEN, PAIR_LEN, REQUEST_LEN, SCHEMA, table_hash};
use hyperion_placement::policy::network::{DIRECT, EMBED, HIDDEN};
use hyperion_placement::reward::{RewardWeights, Weights};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::PolicyError;

/// Value of [`FORMAT`].
pub(crate) const OURS: &str = "hyperion-policy";
pub(crate) const FORMAT: &str = "hyperion.format";
const SCHEMA_KEY: &str = "hyperion.schema";
const FEATURES: &str = "hyperion.features";
const NETWORK: &str = "hyperion.network";
const DATA: &str = "hyperion.data";
const SEED: &str = "hyperion.seed";
const STEPS: &str = "hyperion.steps";
const REWARD: &str = "hyperion.reward";
const STATISTICS: &str = "hyperion.statistics";
const EVALUATION: &str = "hyperion.evaluation";

/// The network's form, so that a program with another one says so and does not blame a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Form {
    /// Slots of a node.
    pub node: usize,
    /// Slots of a request.
    pub request: usize,
    /// Slots of a pair.
    pub pair: usize,
    /// Slots of a fit.
    pub fit: usize,
    /// Width of the hidden layers.
    pub hidden: usize,
    /// Length of an embedding.
    pub embed: usize,
    /// Length of `[p; f]`.
    pub direct: usize,
}

impl Form {
    /// The form that this program executes.
    pub const OURS: Self = Self {
        node: NODE_LEN,
        request: REQUEST_LEN,
        pair: PAIR_LEN,
        fit: FIT_LEN,
        hidden: HIDDEN,
        embed: EMBED,
        direct: DIRECT,
    };
}

/// What a policy was trained on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainingData {
    /// Files or sets, in words.
    pub names: Vec<String>,
    /// SHA-256 over their content, hexadecimal.
    pub hash: String,
}

/// What one slot was like in the decisions of training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SlotStats {
    /// Mean.
    pub mean: f32,
    /// Standard deviation.
    pub deviation: f32,
    /// Smallest value.
    pub min: f32,
    /// Largest value.
    pub max: f32,
}

impl SlotStats {
    fn is_sound(&self) -> bool {
        let all = [self.mean, self.deviation, self.min, self.max];
        all.iter().all(|v| v.is_finite()) && self.deviation >= 0.0 && self.min <= self.max
    }
}

/// What the features were like in training, slot by slot, for the guard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    /// [`REQUEST_LEN`] slots.
    pub request: Vec<SlotStats>,
    /// [`NODE_LEN`] slots.
    pub node: Vec<SlotStats>,
    /// [`PAIR_LEN`] slots.
    pub pair: Vec<SlotStats>,
    /// [`FIT_LEN`] slots.
    pub fit: Vec<SlotStats>,
}

impl Statistics {
    /// What is wrong with them, if anything.
    fn fault(&self) -> Option<String> {
        let groups = [
            ("request", &self.request, REQUEST_LEN),
            ("node", &self.node, NODE_LEN),
            ("pair", &self.pair, PAIR_LEN),
            ("fit", &self.fit, FIT_LEN),
        ];
        for (name, slots, length) in groups {
            if slots.len() != length {
                let found = slots.len();
                return Some(format!("{name} has {found} slots, expected {length}"));
            }
            if let Some(i) = slots.iter().position(|s| !s.is_sound()) {
                return Some(format!(
                    "slot {i} of {name} is not finite, or its bounds are crossed"
                ));
            }
        }
        None
    }
}

/// Everything a policy file says besides its weights. Schema, feature table and form of the
/// network are not here: a file is read only where they are this program's.
#[derive(Debug, Clone, PartialEq)]
pub struct Card {
    /// What it was trained on.
    pub data: TrainingData,
    /// Seed of the training.
    pub seed: u64,
    /// Decisions it was trained on.
    pub steps: u64,
    /// Weights of the reward that it maximises.
    pub reward: RewardWeights,
    /// What the features were like in training.
    pub statistics: Statistics,
    /// The evaluation it passed, as the evaluation reports it; null where there was none.
    pub evaluation: serde_json::Value,
}

impl Card {
    /// Keys and values, in order of keys.
    ///
    /// # Errors
    /// Statistics or weights of the reward that a reader would refuse.
    pub(crate) fn to_metadata(&self) -> Result<BTreeMap<&'static str, String>, PolicyError> {
        self.check()?;
        Ok(BTreeMap::from([
            (FORMAT, OURS.to_owned()),
            (SCHEMA_KEY, SCHEMA.to_string()),
            (FEATURES, table_hash()),
            (NETWORK, json(NETWORK, &Form::OURS)?),
            (DATA, json(DATA, &self.data)?),
            (SEED, self.seed.to_string()),
            (STEPS, self.steps.to_string()),
            (REWARD, json(REWARD, &self.reward)?),
            (STATISTICS, json(STATISTICS, &self.statistics)?),
            (EVALUATION, json(EVALUATION, &self.evaluation)?),
        ]))
    }

    /// Reads it from metadata by key.
    ///
    /// # Errors
    /// Another program's file, another schema, table or form, and keys that are missing or can't
    /// be read.
    pub(crate) fn from_metadata<'a>(
        format: &'static str,
        get: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<Self, PolicyError> {
        if get(FORMAT) != Some(OURS) {
            return Err(PolicyError::NotPolicy { format });
        }
        let text = |key: &'static str| get(key).ok_or(PolicyError::MissingKey { key });
        let schema: u32 = number(SCHEMA_KEY, text(SCHEMA_KEY)?)?;
        if schema != SCHEMA {
            return Err(PolicyError::Schema {
                found: schema,
                expected: SCHEMA,
            });
        }
        let (found, expected) = (shortened(text(FEATURES)?), table_hash());
        if found != expected {
            return Err(PolicyError::Features { found, expected });
        }
        let form: Form = parsed(NETWORK, text(NETWORK)?)?;
        if form != Form::OURS {
            return Err(PolicyError::Form {
                found: format!("{form:?}"),
                expected: format!("{:?}", Form::OURS),
            });
        }
        let card = Self {
            data: parsed(DATA, text(DATA)?)?,
            seed: number(SEED, text(SEED)?)?,
            steps: number(STEPS, text(STEPS)?)?,
            reward: parsed(REWARD, text(REWARD)?)?,
            statistics: parsed(STATISTICS, text(STATISTICS)?)?,
            evaluation: parsed(EVALUATION, text(EVALUATION)?)?,
        };
        card.check()?;
        Ok(card)
    }

    fn check(&self) -> Result<(), PolicyError> {
        if let Some(what) = self.statistics.fault() {
            return Err(PolicyError::BadKey {
                key: STATISTICS,
                what,
            });
        }
        let sound = |w: &Weights| {
            [w.cost, w.latency]
                .iter()
                .all(|v| v.is_finite() && *v >= 0.0)
        };
        let all = [
            &self.reward.cost,
            &self.reward.latency,
            &self.reward.default,
        ];
        if !all.into_iter().all(sound) {
            return Err(PolicyError::BadKey {
                key: REWARD,
                what: "a weight is negative or not finite".to_owned(),
            });
        }
        Ok(())
    }
}

/// What of a foreign string goes into a message.
pub(crate) fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

fn json<T: Serialize>(key: &'static str, value: &T) -> Result<String, PolicyError> {
    serde_json::to_string(value).map_err(|e| PolicyError::BadKey {
        key,
        what: e.to_string(),
    })
}

fn parsed<T: DeserializeOwned>(key: &'static str, text: &str) -> Result<T, PolicyError> {
    serde_json::from_str(text).map_err(|e| PolicyError::BadKey {
        key,
        what: e.to_string(),
    })
}

fn number<T: std::str::FromStr>(key: &'static str, text: &str) -> Result<T, PolicyError> {
    text.parse().map_err(|_| PolicyError::BadKey {
        key,
        what: format!("{:?} is not a number in range", shortened(text)),
    })
}
