//! The training job: a two-layer network learns to tell four clusters of points apart.

use candle_core::{Device, Result, Tensor, Var};
use candle_nn::{Optimizer, SGD};

use crate::seeded::Seeded;

const INPUTS: usize = 16;
const HIDDEN: usize = 64;
const CLASSES: u32 = 4;
const BATCH: usize = 64;

/// Progress of the training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Number of the step, from 1.
    pub step: u32,
    /// Cross-entropy of the step's batch before the step.
    pub loss: f32,
    /// Share of the batch that was classified right, in [0, 1].
    pub accuracy: f32,
}

/// Trains for `steps` steps and tells `progress` of each.
///
/// # Errors
/// candle could not make or combine tensors.
pub fn train(seed: u64, steps: u32, mut progress: impl FnMut(Step)) -> Result<()> {
    let mut random = Seeded::new(seed);
    let w1 = Var::from_tensor(&random.weights(&[INPUTS, HIDDEN], INPUTS)?)?;
    let w2 = Var::from_tensor(&random.weights(&[HIDDEN, CLASSES as usize], HIDDEN)?)?;
    let centres: Vec<Vec<f32>> = (0..CLASSES)
        .map(|_| (0..INPUTS).map(|_| random.normal()).collect())
        .collect();
    let mut optimiser = SGD::new(vec![w1.clone(), w2.clone()], 0.05)?;
    for step in 1..=steps {
        let (points, labels) = batch(&mut random, &centres)?;
        let logits = points
            .matmul(w1.as_tensor())?
            .relu()?
            .matmul(w2.as_tensor())?;
        let loss = candle_nn::loss::cross_entropy(&logits, &labels)?;
        let right = logits
            .argmax(1)?
            .eq(&labels)?
            .to_dtype(candle_core::DType::F32)?
            .mean_all()?;
        progress(Step {
            step,
            loss: loss.to_scalar()?,
            accuracy: right.to_scalar()?,
        });
        optimiser.backward_step(&loss)?;
    }
    Ok(())
}

fn batch(random: &mut Seeded, centres: &[Vec<f32>]) -> Result<(Tensor, Tensor)> {
    let mut points = Vec::with_capacity(BATCH * INPUTS);
    let mut labels = Vec::with_capacity(BATCH);
    for _ in 0..BATCH {
        let label = random.below(CLASSES);
        labels.push(label);
        let centre = centres.get(label as usize).map_or(&[][..], Vec::as_slice);
        points.extend(centre.iter().map(|c| c + 0.7 * random.normal()));
    }
    Ok((
        Tensor::from_vec(points, (BATCH, INPUTS), &Device::Cpu)?,
        Tensor::from_vec(labels, BATCH, &Device::Cpu)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn training_lowers_the_loss() {
        let mut seen = Vec::new();
        train(1, 100, |step| seen.push(step)).unwrap();
        assert_eq!(seen.len(), 100);
        let (first, last) = (seen[0], seen[99]);
        assert!(last.loss < first.loss / 2.0, "{first:?} {last:?}");
        assert!(last.accuracy > 0.9, "{last:?}");
    }
}
