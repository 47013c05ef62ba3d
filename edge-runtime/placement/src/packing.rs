//! How well GPUs are packed: what is left of a node, what requests usually look like, and what a
//! placement costs those that come later.
//!
//! Two measures. [`fragmentation`] is the published one (FGD: Weng and others, "Beware of
//! Fragmentation", USENIX ATC 2023): GPU capacity that a typical request could not use.
//! [`Prices`] is ours: it prices capacity by what the requests expected from now on can make of it.
//! Both work on plain numbers, and neither allocates while candidates are compared.

mod lesson;
mod prices;
mod rates;
mod term;

use crate::gpu::WHOLE;
use crate::model::{GpuRequest, Resources};

pub use lesson::Lesson;
pub(crate) use prices::Left;
pub use prices::Prices;
pub use term::{Packed, TERM, class, demand_of};
pub(crate) use term::{Packing, assign};

/// A set of at most 64 GPU models; which bit stands for which model is up to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Models(pub u64);

impl Models {
    /// Every model.
    pub const ANY: Self = Self(u64::MAX);

    /// True where the two have a model in common.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// What is not yet promised on one node.
#[derive(Debug, Clone, Copy)]
pub struct Free<'a> {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    /// Bytes.
    pub memory_bytes: u64,
    /// Per device, thousandths of it, 0 to 1000.
    pub gpus: &'a [u32],
    /// The devices' model, as a set of one; [`Models::ANY`] where nobody asks for models.
    pub model: Models,
}

/// What one replica asks for, as far as packing is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Demand {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    /// Bytes.
    pub memory_bytes: u64,
    /// Devices; 0 means none.
    pub gpu_count: u32,
    /// Thousandths of each device, 1 to 1000; 0 where no device is asked for.
    pub gpu_millis: u32,
    /// Models that will do.
    pub models: Models,
}

impl Demand {
    /// A demand that takes any GPU model.
    #[must_use]
    pub fn new(resources: Resources, gpu: GpuRequest) -> Self {
        Self {
            cpu_millis: resources.cpu_millis,
            memory_bytes: resources.memory_bytes,
            gpu_count: gpu.count,
            gpu_millis: if gpu.count == 0 {
                0
            } else {
                gpu.millis.clamp(1, WHOLE)
            },
            models: Models::ANY,
        }
    }

    /// GPUs in all, in whole devices.
    #[must_use]
    pub fn gpus(&self) -> f64 {
        f64::from(self.gpu_count) * f64::from(self.gpu_millis) / f64::from(WHOLE)
    }
}

/// True where the demand has room.
#[must_use]
pub fn fits(free: &Free<'_>, demand: &Demand) -> bool {
    if free.cpu_millis < demand.cpu_millis || free.memory_bytes < demand.memory_bytes {
        return false;
    }
    if demand.gpu_count == 0 {
        return true;
    }
    let wanted = demand.gpu_count as usize;
    free.model.overlaps(demand.models)
        && free
            .gpus
            .iter()
            .filter(|&&left| left >= demand.gpu_millis)
            .take(wanted)
            .count()
            == wanted
}

/// How often which demand was seen.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TypicalRequests {
    /// Sorted by demand.
    seen: Vec<(Demand, f64)>,
}

impl TypicalRequests {
    /// Counts one more request.
    pub fn observe(&mut self, demand: Demand) {
        self.observe_many(demand, 1);
    }

    /// Counts so many more that ask for the same.
    pub fn observe_many(&mut self, demand: Demand, requests: u32) {
        let requests = f64::from(requests);
        match self.seen.binary_search_by(|(known, _)| known.cmp(&demand)) {
            Ok(at) => self.seen[at].1 += requests,
            Err(at) => self.seen.insert(at, (demand, requests)),
        }
    }

    /// The most frequent ones that together make up `share` (0 to 1) of all, memory left out, as
    /// the published measure has it.
    #[must_use]
    pub fn popular(&self, share: f64) -> Self {
        let mut merged = Self::default();
        for &(demand, count) in &self.seen {
            let demand = Demand {
                memory_bytes: 0,
                ..demand
            };
            match merged.seen.binary_search_by(|(k, _)| k.cmp(&demand)) {
                Ok(at) => merged.seen[at].1 += count,
                Err(at) => merged.seen.insert(at, (demand, count)),
            }
        }
        let wanted = share.clamp(0.0, 1.0) * merged.total();
        // The more frequent first; among equals the larger demand, so that the cut is certain.
        merged
            .seen
            .sort_by(|a, b| b.1.total_cmp(&a.1).then(b.0.cmp(&a.0)));
        let mut kept = 0.0;
        let enough = merged
            .seen
            .iter()
            .position(|(_, count)| {
                let reached = kept >= wanted;
                kept += count;
                reached
            })
            .unwrap_or(merged.seen.len());
        merged.seen.truncate(enough);
        merged.seen.sort_by_key(|(demand, _)| *demand);
        merged
    }

    /// Requests counted.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.seen.iter().map(|(_, count)| count).sum()
    }

    /// True before the first request.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }

    /// Demands and how often each was seen, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (&Demand, f64)> {
        self.seen.iter().map(|(demand, count)| (demand, *count))
    }
}

/// GPUs (in whole devices) of the node that a request drawn from `typical` is expected to find
/// useless: all that is free where the request does not fit (or wants no GPU), and otherwise
/// what is free on devices too full for it. 0 where nothing is free or nothing is typical.
///
/// Formulas (2) to (4) of "Beware of Fragmentation" (USENIX ATC 2023), without memory, as in the
/// simulator that its authors published.
#[must_use]
pub fn fragmentation(free: &Free<'_>, typical: &TypicalRequests) -> f64 {
    fragmentation_after(free, 0, Taken::Nothing, typical)
}

/// By how much placing the demand raises [`fragmentation`], in whole devices (below 0 where it
/// uses up fragments), and the device where a share would raise it least. None where it does not
/// fit. Whole devices are taken in their order.
#[must_use]
pub fn fragmentation_delta(
    free: &Free<'_>,
    demand: &Demand,
    typical: &TypicalRequests,
) -> Option<(f64, Option<usize>)> {
    if !fits(free, demand) {
        return None;
    }
    let before = fragmentation(free, typical);
    let after = |taken| fragmentation_after(free, demand.cpu_millis, taken, typical) - before;
    if demand.gpu_count == 0 {
        return Some((after(Taken::Nothing), None));
    }
    if demand.gpu_count > 1 || demand.gpu_millis >= WHOLE {
        return Some((after(Taken::First(demand)), None));
    }
    let mut best: Option<(f64, usize)> = None;
    for (device, &left) in free.gpus.iter().enumerate() {
        let same_before = free.gpus.iter().take(device).any(|&other| other == left);
        if left < demand.gpu_millis || same_before {
            continue;
        }
        let delta = after(Taken::One(device, demand.gpu_millis));
        if best.is_none_or(|(least, _)| delta < least) {
            best = Some((delta, device));
        }
    }
    best.map(|(delta, device)| (delta, Some(device)))
}

/// What a placement takes from the devices, told without building the node after it.
#[derive(Clone, Copy)]
enum Taken<'a> {
    Nothing,
    One(usize, u32),
    First(&'a Demand),
}

fn fragmentation_after(
    free: &Free<'_>,
    cpu_taken: u64,
    taken: Taken<'_>,
    typical: &TypicalRequests,
) -> f64 {
    let cpu = free.cpu_millis.saturating_sub(cpu_taken);
    // Up to here, devices with room lose what `First` asks for.
    let until = match taken {
        Taken::First(demand) => nth_fitting(free.gpus, demand),
        _ => 0,
    };
    let left = |device: usize, now: u32| match taken {
        Taken::One(at, millis) if at == device => now.saturating_sub(millis),
        Taken::First(demand) if device < until && now >= demand.gpu_millis => {
            now - demand.gpu_millis
        }
        _ => now,
    };
    let devices = || free.gpus.iter().enumerate().map(|(d, &now)| left(d, now));
    let all: u32 = devices().sum();
    if all == 0 {
        return 0.0;
    }
    let (mut useless, mut weight) = (0.0, 0.0);
    for (demand, count) in typical.iter() {
        weight += count;
        let (mut room, mut too_full) = (0_u32, 0_u32);
        for left in devices() {
            if left >= demand.gpu_millis {
                room += 1;
            } else {
                too_full += left;
            }
        }
        let served = demand.gpu_count > 0
            && cpu >= demand.cpu_millis
            && room >= demand.gpu_count
            && free.model.overlaps(demand.models);
        useless += count * f64::from(if served { too_full } else { all });
    }
    if weight > 0.0 {
        useless / weight / f64::from(WHOLE)
    } else {
        0.0
    }
}

/// One past the device that completes the demand, devices taken in order.
fn nth_fitting(gpus: &[u32], demand: &Demand) -> usize {
    gpus.iter()
        .enumerate()
        .filter(|(_, left)| **left >= demand.gpu_millis)
        .nth((demand.gpu_count as usize).saturating_sub(1))
        .map_or(gpus.len(), |(device, _)| device + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn demand(cpu: u64, count: u32, millis: u32) -> Demand {
        Demand::new(
            Resources {
                cpu_millis: cpu,
                memory_bytes: GIB,
            },
            GpuRequest { count, millis },
        )
    }

    fn free(cpu: u64, gpus: &[u32]) -> Free<'_> {
        Free {
            cpu_millis: cpu,
            memory_bytes: 64 * GIB,
            gpus,
            model: Models::ANY,
        }
    }

    fn typical(of: &[Demand]) -> TypicalRequests {
        let mut typical = TypicalRequests::default();
        for demand in of {
            typical.observe(*demand);
        }
        typical
    }

    #[test]
    fn fragmentation_is_what_half_of_the_requests_cannot_use() {
        let typical = typical(&[demand(1000, 1, 1000), demand(1000, 1, 300)]);
        // Whole devices cannot use 0.2 + 0.5 of it, shares cannot use 0.2: (0.7 + 0.2) / 2.
        let node = free(8000, &[1000, 500, 200]);
        assert!((fragmentation(&node, &typical) - 0.45).abs() < 1e-12);
    }

    #[test]
    fn without_cpu_all_that_is_free_is_a_fragment() {
        let typical = typical(&[demand(4000, 1, 500)]);
        assert!((fragmentation(&free(3999, &[1000, 600]), &typical) - 1.6).abs() < 1e-12);
        assert!(fragmentation(&free(4000, &[1000, 600]), &typical).abs() < 1e-12);
        assert!(fragmentation(&free(0, &[0, 0]), &typical).abs() < 1e-12);
        assert!(fragmentation(&free(0, &[900]), &TypicalRequests::default()).abs() < 1e-12);
    }

    #[test]
    fn a_share_goes_where_it_leaves_no_fragment() {
        let typical = typical(&[demand(1000, 1, 1000)]);
        let node = free(8000, &[1000, 400]);
        let (delta, device) = fragmentation_delta(&node, &demand(1000, 1, 400), &typical).unwrap();
        assert_eq!(device, Some(1));
        assert!((delta + 0.4).abs() < 1e-12);
    }

    #[test]
    fn whole_devices_are_taken_in_order_and_only_where_they_are_whole() {
        let typical = typical(&[demand(1000, 2, 1000)]);
        let node = free(8000, &[300, 1000, 1000, 1000]);
        let (delta, device) = fragmentation_delta(&node, &demand(1000, 2, 1000), &typical).unwrap();
        // Before: 0.3; after: the pair no longer fits, so 0.3 + 1.
        assert!((delta - 1.0).abs() < 1e-12);
        assert_eq!(device, None);
        assert!(fragmentation_delta(&node, &demand(1000, 4, 1000), &typical).is_none());
    }

    #[test]
    fn popular_requests_are_cut_at_the_share_and_memory_is_left_out() {
        let mut seen = typical(&[demand(1000, 1, 100); 6]);
        let mut larger = demand(1000, 1, 100);
        larger.memory_bytes = 2 * GIB;
        seen.observe(larger);
        seen.observe(demand(2000, 1, 200));
        seen.observe(demand(2000, 1, 200));
        seen.observe(demand(3000, 1, 300));
        let popular = seen.popular(0.9);
        let counts: Vec<f64> = popular.iter().map(|(_, count)| count).collect();
        assert_eq!(counts, [7.0, 2.0]);
        assert!((seen.popular(1.0).total() - 10.0).abs() < 1e-12);
    }

    #[test]
    fn a_model_that_nobody_asks_for_fits_nobody() {
        let mut wanted = demand(1000, 1, 500);
        wanted.models = Models(0b10);
        let mut node = free(8000, &[1000]);
        node.model = Models(0b01);
        assert!(!fits(&node, &wanted));
        assert!((fragmentation(&node, &typical(&[wanted])) - 1.0).abs() < 1e-12);
        node.model = Models(0b10);
        assert!(fits(&node, &wanted));
    }
}
