//! What is minimised, as sums over the turns of a batch.

use candle_core::{Device, Tensor};
use candle_nn::ops::log_softmax;

use super::Turn;
use super::batch::Batch;
use super::model::Model;

/// A turn to learn from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample<'a> {
    pub turn: &'a Turn,
    /// The index of the chosen candidate.
    pub choice: u32,
    /// Logarithm of the probability with which it was chosen.
    pub log_probability: f32,
    /// Normalised.
    pub advantage: f32,
    /// What the critic should say, normalised.
    pub target: f32,
}

/// Weights of the parts of the loss, and the share of one turn in the mean.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weights {
    pub clip: f64,
    pub entropy: f64,
    pub share_trunk: bool,
    pub per_turn: f64,
}

/// Sums over the turns of a batch.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sums {
    pub entropy: f64,
    pub kl: f64,
    pub clipped: f64,
    pub value_loss: f64,
}

impl Sums {
    /// Means over a number of turns.
    pub(super) fn over(self, turns: usize) -> Self {
        let turns = turns.max(1) as f64;
        Self {
            entropy: self.entropy / turns,
            kl: self.kl / turns,
            clipped: self.clipped / turns,
            value_loss: self.value_loss / turns,
        }
    }
}

impl std::ops::AddAssign for Sums {
    fn add_assign(&mut self, other: Self) {
        self.entropy += other.entropy;
        self.kl += other.kl;
        self.clipped += other.clipped;
        self.value_loss += other.value_loss;
    }
}

/// What is known of a turn before learning from it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Judged {
    /// Logarithm of the probability of the choice.
    pub log_probability: f32,
    /// What the critic expects, normalised.
    pub value: f32,
}

pub(super) fn column<T: candle_core::WithDType>(values: Vec<T>) -> candle_core::Result<Tensor> {
    let count = values.len();
    Tensor::from_vec(values, count, &Device::Cpu)
}

fn turns_of<'a>(samples: &[Sample<'a>]) -> Vec<&'a Turn> {
    samples.iter().map(|s| s.turn).collect()
}

/// Logarithms of the probabilities of the choices, and of all candidates.
pub(super) fn probabilities(
    scores: &Tensor,
    choices: Vec<u32>,
) -> candle_core::Result<(Tensor, Tensor)> {
    let all = log_softmax(scores, 1)?;
    let chosen = all.gather(&column(choices)?.unsqueeze(1)?, 1)?.squeeze(1)?;
    Ok((chosen, all))
}

/// Judges turns and choices without learning.
pub(super) fn judge(
    model: &Model,
    turns: &[&Turn],
    choices: Vec<u32>,
) -> candle_core::Result<Vec<Judged>> {
    let batch = Batch::new(turns)?;
    let output = model.scores(&batch)?;
    let (chosen, _) = probabilities(&output.scores.detach(), choices)?;
    let values = model.values(&batch, &output, false)?;
    let (chosen, values) = (chosen.to_vec1::<f32>()?, values.to_vec1::<f32>()?);
    let judged = |(log_probability, value)| Judged {
        log_probability,
        value,
    };
    Ok(chosen.into_iter().zip(values).map(judged).collect())
}

/// Gradient of the clipped objective with entropy bonus, and of the critic's squared error.
pub(super) fn objective(
    model: &Model,
    samples: &[Sample<'_>],
    weights: Weights,
) -> candle_core::Result<(Vec<f32>, Sums)> {
    let batch = Batch::new(&turns_of(samples))?;
    let output = model.scores(&batch)?;
    let choices = samples.iter().map(|s| s.choice).collect();
    let (chosen, all) = probabilities(&output.scores, choices)?;
    let old = column(samples.iter().map(|s| s.log_probability).collect())?;
    let advantage = column(samples.iter().map(|s| s.advantage).collect())?;
    let change = (chosen - old)?;
    let ratio = change.exp()?;
    let clipped = ratio.clamp(1.0 - weights.clip, 1.0 + weights.clip)?;
    let gain = (&ratio * &advantage)?.minimum(&(&clipped * &advantage)?)?;
    let entropy = (all.exp()? * &all)?.sum_all()?.neg()?;
    let values = model.values(&batch, &output, weights.share_trunk)?;
    let target = column(samples.iter().map(|s| s.target).collect())?;
    let error = (values - target)?.sqr()?.sum_all()?;
    let loss = ((gain.sum_all()?.neg()? - (&entropy * weights.entropy)?)? + (&error * 0.5)?)?;
    let gradient = model.gradient(&(loss * weights.per_turn)?)?;

    let mut sums = Sums {
        entropy: f64::from(entropy.to_scalar::<f32>()?),
        value_loss: f64::from(error.to_scalar::<f32>()?),
        ..Sums::default()
    };
    for change in change.to_vec1::<f32>()? {
        let change = f64::from(change);
        // Never negative, and of little variance (Schulman, "Approximating KL divergence", 2020).
        sums.kl += change.exp_m1() - change;
        sums.clipped += f64::from(u8::from(change.exp_m1().abs() > weights.clip));
    }
    Ok((gradient, sums))
}

/// Gradient of the cross-entropy with the choices, its sum, and how often the policy's first
/// choice is the given one.
pub(super) fn cross_entropy(
    model: &Model,
    examples: &[(&Turn, u32)],
    per_turn: f64,
) -> candle_core::Result<(Vec<f32>, f64, u32)> {
    let turns: Vec<&Turn> = examples.iter().map(|e| e.0).collect();
    let choices: Vec<u32> = examples.iter().map(|e| e.1).collect();
    let output = model.scores(&Batch::new(&turns)?)?;
    let (chosen, _) = probabilities(&output.scores, choices.clone())?;
    let loss = chosen.sum_all()?.neg()?;
    let gradient = model.gradient(&(&loss * per_turn)?)?;
    let first = output.scores.argmax(1)?.to_vec1::<u32>()?;
    let same = first.iter().zip(&choices).filter(|(a, b)| a == b).count();
    Ok((gradient, f64::from(loss.to_scalar::<f32>()?), same as u32))
}
