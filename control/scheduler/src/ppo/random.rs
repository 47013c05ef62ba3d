//! Random numbers. Every use draws from a stream of its own, named by what it is for, so that
//! neither threads nor a resumed run change what is drawn.

use rand::{Rng as _, SeedableRng as _, rngs::Xoshiro256PlusPlus};

/// What a stream is for.
#[derive(Debug, Clone, Copy)]
#[repr(u64)]
pub(super) enum Purpose {
    Weights = 1,
    Episode,
    Choices,
    Order,
    Imitation,
}

/// A number that stands for seed, purpose and the numbers of iteration and item.
pub(super) fn derive(seed: u64, purpose: Purpose, iteration: u64, item: u64) -> u64 {
    [purpose as u64, iteration, item]
        .into_iter()
        .fold(mix(seed), |state, part| mix(state ^ mix(part)))
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014), a bijection.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A stream.
pub(super) struct Stream(Xoshiro256PlusPlus);

impl Stream {
    pub(super) fn new(seed: u64, purpose: Purpose, iteration: u64, item: u64) -> Self {
        let seed = derive(seed, purpose, iteration, item);
        Self(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    /// In [0, 1).
    pub(super) fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal, by Box and Muller.
    pub(super) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * libm::log(1.0 - self.uniform())).sqrt();
        radius * libm::cos(std::f64::consts::TAU * self.uniform())
    }

    /// Puts items in random order (Fisher and Yates).
    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = (self.uniform() * (i + 1) as f64) as usize;
            items.swap(i, j.min(i));
        }
    }
}
