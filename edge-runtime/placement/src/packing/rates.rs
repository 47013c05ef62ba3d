//! How much of a node's GPU value its CPU or memory can carry.

/// Requests by how many GPUs they use per unit of another resource, ready for [`Self::usable`].
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Rates {
    /// GPUs per unit, ascending.
    ratios: Vec<f64>,
    /// Sum of weight × ratio of those before.
    carried: Vec<f64>,
    /// Sum of the weights from here on.
    rest: Vec<f64>,
}

impl Rates {
    /// From (GPUs, units of the other resource, weight); the weights are scaled to sum to 1.
    pub(super) fn new(requests: impl Iterator<Item = (f64, u64, f64)>) -> Self {
        let mut pairs: Vec<(f64, f64)> = requests
            .map(|(gpus, units, weight)| (gpus / (units as f64).max(1.0), weight))
            .collect();
        pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
        let total: f64 = pairs.iter().map(|(_, weight)| weight).sum();
        let mut rates = Self {
            carried: vec![0.0],
            ..Self::default()
        };
        let (mut carried, mut before) = (0.0, 0.0);
        for (ratio, weight) in pairs {
            rates.ratios.push(ratio);
            rates.rest.push(1.0 - before);
            carried += ratio * weight / total;
            before += weight / total;
            rates.carried.push(carried);
        }
        rates.rest.push(0.0);
        rates
    }

    /// The GPU value that `units` can carry where `gpus` is free: the mean, over requests, of the
    /// smaller of `gpus` and what that many units would bring with this request alone.
    pub(super) fn usable(&self, gpus: f64, units: u64) -> f64 {
        if self.ratios.is_empty() {
            return gpus;
        }
        let units = units as f64;
        let at = self.ratios.partition_point(|ratio| ratio * units < gpus);
        let part = |of: &[f64]| of.get(at).copied().unwrap_or(0.0);
        part(&self.carried) * units + part(&self.rest) * gpus
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scarcer_of_gpu_and_cpu_bounds_each_request() {
        // One GPU per 4 cores with weight 3, one per 16 with weight 1.
        let rates = Rates::new([(1.0, 16, 1.0), (1.0, 4, 3.0)].into_iter());
        // 8 cores carry 2 GPUs of the one kind and half a GPU of the other.
        let expected = 0.75 * 2.0 + 0.25 * 0.5;
        assert!((rates.usable(3.0, 8) - expected).abs() < 1e-12);
        assert!((rates.usable(3.0, 1000) - 3.0).abs() < 1e-12);
        assert!(rates.usable(3.0, 0).abs() < 1e-12);
        assert!((Rates::default().usable(3.0, 0) - 3.0).abs() < 1e-12);
    }
}
