//! Means with confidence intervals, and quantiles.

/// A mean and half the width of its 95 % confidence interval.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Mean {
    /// Mean.
    pub value: f64,
    /// Half width; 0 for fewer than two samples.
    pub ci95: f64,
}

/// Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom.
const T95: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
];

/// Mean of samples that are independent, as episodes with different seeds are; those that are not
/// finite are left out. None where no sample is left.
#[must_use]
pub fn mean(samples: impl IntoIterator<Item = f64>) -> Option<Mean> {
    let samples: Vec<f64> = samples.into_iter().filter(|s| s.is_finite()).collect();
    let n = samples.len();
    if n == 0 {
        return None;
    }
    let value = samples.iter().sum::<f64>() / n as f64;
    if n < 2 {
        return Some(Mean { value, ci95: 0.0 });
    }
    let squares: f64 = samples.iter().map(|s| (s - value) * (s - value)).sum();
    let error = (squares / (n - 1) as f64 / n as f64).sqrt();
    let t = T95.get(n - 2).copied().unwrap_or(1.96);
    Some(Mean {
        value,
        ci95: t * error,
    })
}

/// Quantile by linear interpolation between order statistics (Hyndman and Fan's type 7); none for
/// no finite samples.
#[must_use]
pub fn quantile(samples: &[f64], q: f64) -> Option<f64> {
    let mut sorted: Vec<f64> = samples.iter().copied().filter(|s| s.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let at = q.clamp(0.0, 1.0) * sorted.len().checked_sub(1)? as f64;
    let low = at.floor() as usize;
    let high = sorted.get(low + 1).unwrap_or(&sorted[low]);
    Some(sorted[low] + (high - sorted[low]) * (at - at.floor()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_students() {
        let m = mean([1.0, 2.0, 3.0]).unwrap();
        assert_eq!(m.value, 2.0);
        // s = 1, n = 3, t(2) = 4.303.
        assert!((m.ci95 - 4.303 / 3.0_f64.sqrt()).abs() < 1e-9);
        assert_eq!(mean([f64::NAN]), None);
        assert_eq!(mean([5.0]).unwrap().ci95, 0.0);
    }

    #[test]
    fn quantiles_interpolate() {
        assert_eq!(quantile(&[3.0, 1.0, 2.0], 0.5), Some(2.0));
        assert_eq!(quantile(&[0.0, 1.0], 0.25), Some(0.25));
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[7.0], 1.0), Some(7.0));
    }
}
