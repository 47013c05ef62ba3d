//! Numbers that follow from a seed, the same on every machine.

use candle_core::{Device, Result, Tensor};

/// `SplitMix64`: small, and good enough for weights and synthetic images.
#[derive(Debug)]
pub struct Seeded(u64);

impl Seeded {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f32 {
        #[expect(clippy::cast_precision_loss, reason = "24 bits fit an f32 exactly")]
        let bits = (self.next() >> 40) as f32;
        bits / 16_777_216.0
    }

    /// Uniform in [0, below).
    pub fn below(&mut self, below: u32) -> u32 {
        u32::try_from(((self.next() >> 32) * u64::from(below)) >> 32).unwrap_or(0)
    }

    /// Roughly normal, mean 0 and deviation 1 (the sum of twelve uniform numbers).
    pub fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.unit()).sum::<f32>() - 6.0
    }

    /// Weights of a layer with `inputs` inputs per output, scaled for ReLU (He).
    pub fn weights(&mut self, shape: &[usize], inputs: usize) -> Result<Tensor> {
        #[expect(clippy::cast_precision_loss, reason = "layer sizes are small")]
        let scale = (2.0 / inputs as f32).sqrt();
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| self.normal() * scale).collect();
        Tensor::from_vec(values, shape, &Device::Cpu)
    }
}
