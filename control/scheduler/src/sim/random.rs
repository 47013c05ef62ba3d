//! Numbers that follow from the seed and a name alone, so that they do not depend on the order in
//! which schedulers do things.

/// Standard deviation of the logarithm of boot times.
const BOOT_SIGMA: f64 = 0.3;

/// A well-mixed number from another (Steele et al., "Fast splittable pseudorandom number
/// generators", OOPSLA 2014).
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// In [0, 1).
fn unit(z: u64) -> f64 {
    (mix(z) >> 11) as f64 / (1u64 << 53) as f64
}

/// What a pool's median boot time is multiplied by at its launch number `launch`: lognormal, by
/// Box and Muller.
pub fn boot_factor(seed: u64, pool: u64, launch: u64) -> f64 {
    let key = mix(mix(mix(seed) ^ pool) ^ launch);
    let radius = libm::sqrt(-2.0 * libm::log(1.0 - unit(key)));
    let normal = radius * libm::cos(std::f64::consts::TAU * unit(!key));
    libm::exp(BOOT_SIGMA * normal)
}

/// Exponential with mean 1, by seed, stream and number.
pub fn exponential(seed: u64, stream: u64, number: u64) -> f64 {
    -libm::log(1.0 - unit(mix(mix(mix(seed) ^ stream) ^ number)))
}

/// In [0, 1) by name: when in each period a replica is reconsidered.
pub fn phase(name: &str) -> f64 {
    // FNV-1a, 64 bits.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    unit(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_times_scatter_around_their_median() {
        let mut factors: Vec<f64> = (0..2001).map(|n| boot_factor(7, 3, n)).collect();
        factors.sort_by(f64::total_cmp);
        assert!((factors[1000] - 1.0).abs() < 0.03, "{}", factors[1000]);
        let deviation = factors[1682].ln();
        assert!((deviation - BOOT_SIGMA).abs() < 0.03, "{deviation}");
    }
}
