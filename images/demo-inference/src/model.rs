//! A small residual network: 32x32 RGB in, ten class probabilities out.

use candle_core::{Device, Result, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, Linear, Module};

use crate::seeded::Seeded;

/// Values of one image: 3 channels, 32 rows, 32 columns, each in [0, 1].
pub const PIXELS: usize = 3 * 32 * 32;
/// Classes.
pub const CLASSES: usize = 10;

/// The network with its weights.
#[derive(Debug)]
pub struct Model {
    stem: Conv2d,
    blocks: Vec<Block>,
    head: Linear,
}

/// Halves the image, then adds a residual to it.
#[derive(Debug)]
struct Block {
    down: Conv2d,
    first: Conv2d,
    second: Conv2d,
}

impl Model {
    /// Makes the weights from a seed.
    ///
    /// # Errors
    /// candle could not make a tensor.
    pub fn seeded(seed: u64) -> Result<Self> {
        let mut random = Seeded::new(seed);
        let stem = conv(&mut random, 3, 16, 1)?;
        let blocks = [(16, 32), (32, 64)]
            .into_iter()
            .map(|(from, to)| {
                Ok(Block {
                    down: conv(&mut random, from, to, 2)?,
                    first: conv(&mut random, to, to, 1)?,
                    second: conv(&mut random, to, to, 1)?,
                })
            })
            .collect::<Result<_>>()?;
        let head = Linear::new(
            random.weights(&[CLASSES, 64], 64)?,
            Some(Tensor::zeros(
                CLASSES,
                candle_core::DType::F32,
                &Device::Cpu,
            )?),
        );
        Ok(Self { stem, blocks, head })
    }

    /// Class probabilities of one image.
    ///
    /// # Errors
    /// `pixels` is not one image.
    pub fn classify(&self, pixels: &[f32]) -> Result<Vec<f32>> {
        let image = Tensor::from_slice(pixels, (1, 3, 32, 32), &Device::Cpu)?;
        let mut x = self.stem.forward(&image)?.relu()?;
        for block in &self.blocks {
            x = block.down.forward(&x)?.relu()?;
            let residual = block.first.forward(&x)?.relu()?;
            x = (block.second.forward(&residual)? + &x)?.relu()?;
        }
        let features = x.mean((2, 3))?;
        let logits = self.head.forward(&features)?;
        candle_nn::ops::softmax(&logits, 1)?.squeeze(0)?.to_vec1()
    }
}

/// A synthetic image that follows from a seed.
#[must_use]
pub fn image(seed: u64) -> Vec<f32> {
    let mut random = Seeded::new(seed);
    (0..PIXELS).map(|_| random.unit()).collect()
}

fn conv(random: &mut Seeded, from: usize, to: usize, stride: usize) -> Result<Conv2d> {
    let weights = random.weights(&[to, from, 3, 3], from * 9)?;
    let config = Conv2dConfig {
        padding: 1,
        stride,
        ..Conv2dConfig::default()
    };
    Ok(Conv2d::new(weights, None, config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one_and_follow_from_the_seeds() {
        let model = Model::seeded(1).unwrap();
        let answer = model.classify(&image(7)).unwrap();
        assert_eq!(answer.len(), CLASSES);
        assert!((answer.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        assert_eq!(
            answer,
            Model::seeded(1).unwrap().classify(&image(7)).unwrap()
        );
        assert_ne!(answer, model.classify(&image(8)).unwrap());
        assert_ne!(
            answer,
            Model::seeded(2).unwrap().classify(&image(7)).unwrap()
        );
    }
}
