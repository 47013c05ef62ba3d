//! Learning from another scheduler's choices, before rewards.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::adam::Rates;
use super::batch::batches;
use super::loss::cross_entropy;
use super::model::Model;
use super::parameters::total_len;
use super::random::{Purpose, Stream};
use super::rollout::play;
use super::trainer::{Trainer, add, even_chunk};
use super::{Environment, Error, Turn};
use crate::parallel::in_parallel;

/// A turn, and what another scheduler chose.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// The turn.
    pub turn: Turn,
    /// Index of the candidate.
    pub choice: usize,
}

/// Settings of [`Trainer::imitate`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Imitation {
    /// Passes over the examples.
    pub epochs: u32,
    /// Examples a step of the optimiser.
    pub minibatch: usize,
    /// Learning rate.
    pub learning_rate: f64,
}

impl Default for Imitation {
    fn default() -> Self {
        Self {
            epochs: 4,
            minibatch: 512,
            learning_rate: 1e-3,
        }
    }
}

/// What imitation achieved, over its last pass.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ImitationProgress {
    /// Examples.
    pub examples: u64,
    /// Mean cross-entropy, nats.
    pub loss: f64,
    /// Share of examples of which the policy's first choice is the given one.
    pub accuracy: f64,
    /// Seconds of wall time.
    pub seconds: f64,
}

/// Plays an episode with another scheduler and keeps its choices among several candidates.
///
/// # Errors
/// [`Error::Environment`] where the environment breaks its contract.
pub fn demonstrate(
    environment: &mut dyn Environment,
    seed: u64,
    choose: impl FnMut(&Turn) -> usize,
) -> Result<Vec<Example>, Error> {
    let episode = play(environment, seed, choose)?;
    let examples = episode.turns.into_iter().zip(episode.choices);
    Ok(examples
        .filter(|(turn, _)| turn.candidates.len() > 1)
        .map(|(turn, choice)| Example { turn, choice })
        .collect())
}

impl Trainer {
    /// Makes the policy choose as the examples do, as far as its form allows. The critic stays as
    /// it is: [`super::Config::critic_warmup`] lets it catch up.
    ///
    /// # Errors
    /// [`Error::Example`] for a choice that is not among the candidates, [`Error::Config`] for
    /// settings that make no sense, [`Error::Diverged`] where numbers got out of hand. The trainer
    /// is then as it was before.
    pub fn imitate(
        &mut self,
        examples: &[Example],
        settings: &Imitation,
    ) -> Result<ImitationProgress, Error> {
        let begun = Instant::now();
        let mut order = checked(examples, settings)?;
        let rates = Rates {
            actor: Some(settings.learning_rate),
            critic: None,
        };
        let iteration = self.state.iteration;
        let mut adam = self.state.adam.clone();
        adam.forget();
        let mut random = Stream::new(self.config.seed, Purpose::Imitation, iteration.into(), 0);
        let chunk = even_chunk(order.len(), settings.minibatch);
        let (mut loss, mut same) = (0.0, 0);
        for _ in 0..settings.epochs {
            random.shuffle(&mut order);
            (loss, same) = (0.0, 0);
            for minibatch in order.chunks(chunk) {
                let model = Model::new(&adam.values)?;
                let groups = batches(minibatch.to_vec(), |(turn, _)| turn.candidates.len());
                let results = in_parallel(self.config.threads, groups.len(), |group| {
                    cross_entropy(&model, &groups[group], 1.0 / minibatch.len() as f64)
                });
                let mut gradient = vec![0.0; total_len()];
                for result in results {
                    let (part, part_loss, part_same) = result?;
                    add(&mut gradient, &part);
                    loss += part_loss;
                    same += part_same;
                }
                adam.step(
                    &gradient,
                    rates,
                    self.config.max_gradient_norm,
                    &self.config.adam,
                );
                if !adam.values.iter().all(|v| v.is_finite()) {
                    let what = "a weight";
                    return Err(Error::Diverged { what, iteration });
                }
            }
        }
        adam.forget();
        self.state.adam = adam;
        let count = examples.len().max(1) as f64;
        Ok(ImitationProgress {
            examples: examples.len() as u64,
            loss: loss / count,
            accuracy: f64::from(same) / count,
            seconds: begun.elapsed().as_secs_f64(),
        })
    }
}

fn checked<'a>(
    examples: &'a [Example],
    settings: &Imitation,
) -> Result<Vec<(&'a Turn, u32)>, Error> {
    let rate = settings.learning_rate;
    for (field, ok) in [
        ("imitation.learning_rate", rate.is_finite() && rate >= 0.0),
        ("imitation.minibatch", settings.minibatch > 0),
    ] {
        if !ok {
            let problem = "must be a number that makes sense".to_owned();
            return Err(Error::Config { field, problem });
        }
    }
    let pairs = examples.iter().enumerate().map(|(index, example)| {
        let (count, choice) = (example.turn.candidates.len(), example.choice);
        if choice < count {
            return Ok((&example.turn, choice as u32));
        }
        let problem = format!("choice {choice} of {count} candidates");
        Err(Error::Example { index, problem })
    });
    pairs.collect()
}
