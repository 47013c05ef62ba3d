//! One episode: everything that happens whatever the scheduler does. The simulator plays it and
//! the bound looks into its future; both read the same paths.
//!
//! Times are hours of virtual time since the episode began; paths also cover the history before
//! it (negative times), from which schedulers see what a pool did of late.

mod check;
mod dice;
mod draw;
mod edge;
mod pools;
mod size;
mod workloads;

use hyperion_placement::model::{LatencyMatrix, Node, Offer, Request, WorkloadType};

pub use dice::Dice;
pub use size::{Size, Split};

/// A value that changes at given times. Sorted by time; the first value also holds before it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Path {
    /// Hours, value.
    pub points: Vec<(f64, f64)>,
}

impl Path {
    /// The same value at all times.
    #[must_use]
    pub fn constant(value: f64) -> Self {
        Self {
            points: vec![(0.0, value)],
        }
    }

    /// The value at a time; 0 for an empty path.
    #[must_use]
    pub fn at(&self, hour: f64) -> f64 {
        let after = self.points.partition_point(|(t, _)| *t <= hour);
        self.points
            .get(after.saturating_sub(1))
            .map_or(0.0, |(_, v)| *v)
    }

    /// When it changes next after a time.
    #[must_use]
    pub fn next_change(&self, hour: f64) -> Option<f64> {
        let after = self.points.partition_point(|(t, _)| *t <= hour);
        self.points.get(after).map(|(t, _)| *t)
    }

    /// Integral of the value from `from` to `to`, value hours.
    #[must_use]
    pub fn integral(&self, from: f64, to: f64) -> f64 {
        let (mut at, mut sum) = (from, 0.0);
        while at < to {
            let next = self.next_change(at).map_or(to, |t| t.min(to));
            sum += self.at(at) * (next - at);
            at = next;
        }
        sum
    }
}

/// Capacity that may be bought: one provider, zone, instance type and capacity type.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    /// What the scheduler is offered. Its price and supply are filled in from the paths below at
    /// the time of the decision.
    pub offer: Offer,
    /// US dollars per hour of an instance.
    pub price: Path,
    /// Published on-demand price of the same machine, US dollars per hour.
    pub list_price: f64,
    /// The quote that `price` moves around, US dollars per hour of an instance.
    pub quote: f64,
    /// True where `quote` and `list_price` are published quotes, false where derived.
    pub published: bool,
    /// 1 while the pool gives instances, 0 while it does not. When spot turns to 0, the instances
    /// that run are reclaimed, with two minutes' notice.
    pub obtainable: Path,
    /// Most instances at once.
    pub limit: u32,
    /// Median hours from asking to a node that is ready; launches scatter around it.
    pub boot_hours: f64,
    /// Gigabits per second at which images and data arrive from the same region.
    pub network_gbps: f64,
}

/// A machine that is owned.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// The node, with its amortised price.
    pub node: Node,
    /// 0 while it is down, 1 while it is up.
    pub up: Path,
    /// Gigabits per second at which images and data arrive.
    pub network_gbps: f64,
}

/// A workload: one replica, to keep accounts simple.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// What the scheduler is asked. `current`, `avoid`, `expected_hours` and `siblings` are filled
    /// in at the time of the decision.
    pub request: Request,
    /// When it is applied, hours.
    pub arrival: f64,
    /// For services: when it is deleted, hours. For jobs: the end of the episode.
    pub end: f64,
    /// For jobs: hours of work; 0 for services.
    pub work_hours: f64,
    /// For jobs: hours of work between checkpoints.
    pub checkpoint_hours: f64,
    /// Share of the CPU that it asked for that it keeps busy.
    pub load: Path,
    /// Size of its image, GiB.
    pub image_gib: f64,
    /// Hours to load its model or restore its checkpoint once the image is there.
    pub load_hours: f64,
}

impl Workload {
    /// Hours of service or of work that it asks for: what rewards are divided by.
    #[must_use]
    pub fn demanded_hours(&self) -> f64 {
        match self.request.workload_type {
            WorkloadType::Service => self.end - self.arrival,
            WorkloadType::Job => self.work_hours,
        }
    }
}

/// One episode.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    /// It was drawn with this seed.
    pub seed: u64,
    /// Training never draws its regions, its price window and its seed.
    pub unseen: bool,
    /// Hours.
    pub horizon: f64,
    /// What may be bought, sorted by offer id.
    pub pools: Vec<Pool>,
    /// What is owned, sorted by node id.
    pub devices: Vec<Device>,
    /// Sorted by arrival; each has its own name in `request.replica`.
    pub workloads: Vec<Workload>,
    /// Round-trip times.
    pub latency: LatencyMatrix,
    /// Gigabits per second between two places, by the smaller place first.
    pub throughput: std::collections::BTreeMap<
        (
            hyperion_placement::model::Place,
            hyperion_placement::model::Place,
        ),
        f64,
    >,
}

impl Scenario {
    /// Hours that all its workloads ask for until its end.
    #[must_use]
    pub fn demanded_hours(&self) -> f64 {
        let hours = |w: &Workload| w.demanded_hours().min(self.horizon - w.arrival);
        self.workloads.iter().map(hours).sum()
    }
}

#[cfg(test)]
mod draw_tests;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_a_staircase() {
        let path = Path {
            points: vec![(-1.0, 2.0), (1.0, 4.0)],
        };
        assert_eq!((path.at(-5.0), path.at(0.0), path.at(1.0)), (2.0, 2.0, 4.0));
        assert_eq!(path.next_change(0.0), Some(1.0));
        assert_eq!(path.integral(0.0, 2.0), 6.0);
        assert_eq!(Path::default().at(0.0), 0.0);
    }
}
