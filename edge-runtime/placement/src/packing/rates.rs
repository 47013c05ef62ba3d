//! How much of a node's GPU value its CPU or memory can carry.

/// Requests by how many GPUs they use per unit of another resource, ready for [`Self::usable`]:
/// the mean, over requests, of the smaller of a ratio and theirs, as chords of its curve. The ends
/// of the chords are eight to each doubling of the ratio, so that finding one takes no search.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Rates {
    /// Number of the first cell.
    first: u64,
    /// By cell, what units and GPUs are worth in it.
    cells: Vec<(f64, f64)>,
}

/// Bits of a double that don't tell cells apart: all of the mantissa but three.
const WITHIN: u32 = 52 - 3;

const fn cell(ratio: f64) -> u64 {
    ratio.to_bits() >> WITHIN
}

const fn start(cell: u64) -> f64 {
    f64::from_bits(cell << WITHIN)
}

impl Rates {
    /// From (GPUs, units of the other resource, weight); the weights are scaled to sum to 1.
    pub(super) fn new(requests: impl Iterator<Item = (f64, u64, f64)>) -> Self {
        let mut pairs: Vec<(f64, f64)> = requests
            .map(|(gpus, units, weight)| (gpus / (units as f64).max(1.0), weight))
            .filter(|(ratio, weight)| ratio.is_normal() && *ratio > 0.0 && *weight > 0.0)
            .collect();
        pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (Some((least, _)), Some((most, _))) = (pairs.first(), pairs.last()) else {
            return Self::default();
        };
        let (first, last) = (cell(*least), cell(*most));
        let total: f64 = pairs.iter().map(|(_, weight)| weight).sum();
        let mean = |ratio: f64| -> f64 {
            let smaller = pairs.iter().map(|(own, weight)| own.min(ratio) * weight);
            smaller.sum::<f64>() / total
        };
        // Below the first all of a request's GPUs are carried; beyond the last no more are.
        let mut cells = vec![(0.0, 1.0)];
        for cell in first..=last {
            let (low, high) = (start(cell), start(cell + 1));
            let slope = (mean(high) - mean(low)) / (high - low);
            cells.push((mean(low) - slope * low, slope));
        }
        cells.push((mean(*most), 0.0));
        Self { first, cells }
    }

    /// The GPU value that `units` can carry where `gpus` is free: the mean, over requests, of the
    /// smaller of `gpus` and what that many units would bring with this request alone. Neither is
    /// below 0.
    pub(super) fn usable(&self, gpus: f64, units: f64) -> f64 {
        let Some(last) = self.cells.len().checked_sub(1) else {
            return gpus;
        };
        // Without units the ratio is infinite or no number, whose bits are those of large ones.
        let at = (cell((gpus / units).abs()) + 1).saturating_sub(self.first) as usize;
        let (per_unit, per_gpu) = self.cells[at.min(last)];
        (per_unit * units + per_gpu * gpus).min(gpus)
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
        assert!((rates.usable(3.0, 8.0) - expected).abs() < 1e-12);
        assert!((rates.usable(3.0, 1000.0) - 3.0).abs() < 1e-12);
        assert!(rates.usable(3.0, 0.0).abs() < 1e-12);
        assert!(rates.usable(0.0, 0.0).abs() < 1e-12);
        assert!((Rates::default().usable(3.0, 0.0) - 3.0).abs() < 1e-12);
    }

    #[test]
    fn chords_stay_within_an_eighth_of_the_curve_and_below_it() {
        let requests = [(1.0, 12_000, 2.0), (0.47, 7000, 1.0), (0.81, 300, 1.0)];
        let rates = Rates::new(requests.into_iter());
        let total: f64 = requests.iter().map(|(.., weight)| weight).sum();
        for gpus in [0.01_f64, 0.2, 0.81, 1.0, 3.3, 8.0] {
            for units in [1, 100, 2900, 8000, 31_000, 96_000] {
                let units = f64::from(units);
                let smaller = |(own, per, weight): &(f64, u64, f64)| {
                    gpus.min(own * units / *per as f64) * weight / total
                };
                let exact: f64 = requests.iter().map(smaller).sum();
                let told = rates.usable(gpus, units);
                assert!(told <= exact + 1e-9, "{gpus} {units}: {told} {exact}");
                assert!(told >= exact * 7.0 / 8.0, "{gpus} {units}: {told} {exact}");
            }
        }
    }
}
