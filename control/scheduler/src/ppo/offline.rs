//! Learning from choices that somebody else made long ago, with what came of each.

use candle_nn::ops::log_softmax;
use hyperion_placement::policy::Network;
use serde::{Deserialize, Serialize};

use super::adam::{Adam, Rates};
use super::batch::{Batch, batches};
use super::config;
use super::loss::{column, probabilities};
use super::model::Model;
use super::parameters::{self, total_len};
use super::random::{Purpose, Stream};
use super::trainer::{add, even_chunk};
use super::{Config, Error, Turn};
use crate::parallel::in_parallel;

/// A choice and how much better than usual its outcome was.
#[derive(Debug, Clone, Copy)]
pub struct Logged<'a> {
    /// The decision.
    pub turn: &'a Turn,
    /// Index of the chosen candidate.
    pub choice: usize,
    /// Logarithm of the probability with which it was chosen.
    pub log_probability: f64,
    /// Reward over what is usual, in any unit.
    pub advantage: f64,
}

/// Settings of [`learn_from_log`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Offline {
    /// Decides the order of the choices.
    pub seed: u64,
    /// Threads. The result does not depend on it.
    pub threads: usize,
    /// Passes over the choices, at most.
    pub epochs: u32,
    /// Choices a step of the optimiser.
    pub minibatch: usize,
    /// Learning rate.
    pub learning_rate: f64,
    /// The probability of a choice is not pushed beyond 1 ± this times what it was.
    pub clip: f64,
    /// Weight of the divergence from the policy at the beginning in the loss, in deviations of the
    /// advantage a nat.
    pub kl_weight: f64,
    /// The policy does not go further than this from the one at the beginning, nats a choice.
    pub max_kl: f64,
}

impl Default for Offline {
    /// Carefully: the choices are not renewed as the policy moves away from who made them.
    fn default() -> Self {
        Self {
            seed: 1,
            threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            epochs: 30,
            minibatch: 256,
            learning_rate: 3e-3,
            clip: 0.2,
            kl_weight: 0.1,
            max_kl: 0.1,
        }
    }
}

/// What learning from a log did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct OfflineProgress {
    /// Choices learnt from.
    pub choices: usize,
    /// Passes.
    pub epochs: u32,
    /// How far the policy went, nats a choice.
    pub kl: f64,
}

/// The least of a logarithm of a probability that counts: e^20 is finite in 32 bits.
const LEAST_LOG: f64 = -20.0;
/// A bad choice that has become likely is not pushed away harder than by this many times its
/// advantage (Ye et al., "Mastering complex control in MOBA games", 2020, "dual clip").
const WORST: f64 = 3.0;
/// Importance weights are cut here: one choice never counts as much as all others. It biases what is
/// learnt and estimated towards who decided, and only where a policy wants what was hardly ever tried.
pub const MOST_WEIGHT: f64 = 20.0;
/// Halvings of a pass that went too far.
const HALVINGS: u32 = 12;

/// A better policy by the clipped objective, close to `network`; each choice counts by how much
/// more probable it is by `network` than it was by who made it (Hilton et al., "Batch
/// size-invariance for policy optimization", 2022: the policy that drew and the one that the clip
/// is about are two).
/// The same settings and choices give the same policy.
///
/// # Errors
/// [`Error::Config`] for a setting that makes no sense, [`Error::Example`] for a choice that is not
/// among its candidates, [`Error::Diverged`] where numbers got out of hand.
pub fn learn_from_log(
    network: &Network,
    logged: &[Logged<'_>],
    settings: &Offline,
) -> Result<(Network, OfflineProgress), Error> {
    check(logged, settings)?;
    let mut values = vec![0.0; total_len()];
    parameters::set_network(&mut values, network);
    let before = Model::new(&values)?;
    let mut adam = Adam::new(values);
    let mut order = normalised(logged);
    let mut random = Stream::new(settings.seed, Purpose::Order, 0, 0);
    let mut progress = OfflineProgress {
        choices: order.len(),
        ..OfflineProgress::default()
    };
    for epoch in 0..settings.epochs {
        random.shuffle(&mut order);
        let begun = adam.values.clone();
        pass(&mut adam, &before, &order, settings, epoch)?;
        let kl = divergence(&before, &adam.values, &order, settings.threads)?;
        progress.epochs = epoch + 1;
        if kl <= settings.max_kl {
            progress.kl = kl;
            continue;
        }
        progress.kl = step_back(&begun, &mut adam.values, settings.max_kl, |values| {
            divergence(&before, values, &order, settings.threads)
        })?;
        break;
    }
    Ok((parameters::network(&adam.values), progress))
}

fn check(logged: &[Logged<'_>], settings: &Offline) -> Result<(), Error> {
    let positive = |v: f64| v.is_finite() && v > 0.0;
    for (field, ok) in [
        ("threads", settings.threads > 0),
        ("minibatch", settings.minibatch > 0),
        ("learning_rate", positive(settings.learning_rate)),
        ("clip", positive(settings.clip)),
        ("max_kl", positive(settings.max_kl)),
    ] {
        if !ok {
            let problem = "must be more than 0".to_owned();
            return Err(Error::Config { field, problem });
        }
    }
    if !(settings.kl_weight.is_finite() && settings.kl_weight >= 0.0) {
        return Err(Error::Config {
            field: "kl_weight",
            problem: "must be finite and at least 0".to_owned(),
        });
    }
    for (index, entry) in logged.iter().enumerate() {
        let (choice, count) = (entry.choice, entry.turn.candidates.len());
        if choice >= count {
            let problem = format!("choice {choice} of {count} candidates");
            return Err(Error::Example { index, problem });
        }
    }
    Ok(())
}

/// Advantages with deviation 1. Their mean stays: 0 is what is usual. A choice without an
/// alternative teaches nothing.
fn normalised<'a>(logged: &[Logged<'a>]) -> Vec<Logged<'a>> {
    let mut kept: Vec<Logged<'a>> = logged.to_vec();
    kept.retain(|l| l.turn.candidates.len() > 1);
    let squares: f64 = kept.iter().map(|l| l.advantage * l.advantage).sum();
    let deviation = (squares / kept.len().max(1) as f64).sqrt().max(1e-8);
    for entry in &mut kept {
        entry.advantage /= deviation;
    }
    kept
}

fn pass(
    adam: &mut Adam,
    before: &Model,
    order: &[Logged<'_>],
    settings: &Offline,
    epoch: u32,
) -> Result<(), Error> {
    let rates = Rates {
        actor: Some(settings.learning_rate),
        critic: None,
    };
    let optimiser: config::Adam = Config::default().adam;
    let norm = Config::default().max_gradient_norm;
    for minibatch in order.chunks(even_chunk(order.len(), settings.minibatch)) {
        let model = Model::new(&adam.values)?;
        let groups = batches(minibatch.to_vec(), |l| l.turn.candidates.len());
        let parts = in_parallel(settings.threads, groups.len(), |group| {
            objective(&model, before, &groups[group], settings, minibatch.len())
        });
        let mut gradient = vec![0.0; total_len()];
        for part in parts {
            add(&mut gradient, &part?);
        }
        adam.step(&gradient, rates, norm, &optimiser);
        if !adam.values.iter().all(|v| v.is_finite()) {
            return Err(Error::Diverged {
                what: "a weight",
                iteration: epoch,
            });
        }
    }
    Ok(())
}

fn turns_of<'a>(logged: &[Logged<'a>]) -> Vec<&'a Turn> {
    logged.iter().map(|l| l.turn).collect()
}

/// Gradient of the clipped objective with a penalty for going far, a share of `count`.
fn objective(
    model: &Model,
    before: &Model,
    logged: &[Logged<'_>],
    settings: &Offline,
    count: usize,
) -> candle_core::Result<Vec<f32>> {
    let batch = Batch::new(&turns_of(logged))?;
    let choices: Vec<u32> = logged.iter().map(|l| l.choice as u32).collect();
    let (chosen, all) = probabilities(&model.scores(&batch)?.scores, choices.clone())?;
    let (was_chosen, was) =
        probabilities(&before.scores(&batch)?.scores.detach(), choices.clone())?;
    // How much each choice counts is by who made it, and how far the policy may go is by what it
    // was: else a choice that was left to chance once in ten times would be beyond the clip at once.
    let made = logged.iter().map(|l| l.log_probability.max(LEAST_LOG));
    let made = column(made.map(|l| l as f32).collect())?;
    let weight = (&was_chosen - made)?.exp()?.minimum(MOST_WEIGHT)?;
    let advantage = column(logged.iter().map(|l| l.advantage as f32).collect())?;
    let advantage = (advantage * weight)?;
    let ratio = (chosen - was_chosen)?.exp()?;
    let clipped = ratio.clamp(1.0 - settings.clip, 1.0 + settings.clip)?;
    let gain = (&ratio * &advantage)?.minimum(&(&clipped * &advantage)?)?;
    let gain = gain.maximum(&(advantage.abs()? * -WORST)?)?;
    let kl = (was.exp()? * (&was - &all)?)?.sum_all()?;
    let loss = ((kl * settings.kl_weight)? - gain.sum_all()?)?;
    model.gradient(&(loss / count as f64)?)
}

/// Mean divergence of a policy from the one before, nats a choice.
fn divergence(
    before: &Model,
    values: &[f32],
    logged: &[Logged<'_>],
    threads: usize,
) -> Result<f64, Error> {
    let model = Model::new(values)?;
    let groups = batches(logged.to_vec(), |l| l.turn.candidates.len());
    let parts = in_parallel(threads, groups.len(), |group| {
        let batch = Batch::new(&turns_of(&groups[group]))?;
        let was = log_softmax(&before.scores(&batch)?.scores.detach(), 1)?;
        let is = log_softmax(&model.scores(&batch)?.scores.detach(), 1)?;
        (was.exp()? * (&was - &is)?)?.sum_all()?.to_scalar::<f32>()
    });
    let mut sum = 0.0;
    for part in parts {
        sum += f64::from(part.map_err(Error::Tensor)?);
    }
    Ok(sum / logged.len().max(1) as f64)
}

/// Goes back towards `begun` until the policy is near enough, and says how far it is then.
fn step_back(
    begun: &[f32],
    values: &mut [f32],
    most: f64,
    divergence: impl Fn(&[f32]) -> Result<f64, Error>,
) -> Result<f64, Error> {
    for _ in 0..HALVINGS {
        for (value, first) in values.iter_mut().zip(begun) {
            *value = f32::midpoint(*value, *first);
        }
        let kl = divergence(values)?;
        if kl <= most {
            return Ok(kl);
        }
    }
    values.copy_from_slice(begun);
    divergence(values)
}
