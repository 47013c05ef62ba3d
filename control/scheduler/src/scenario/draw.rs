//! Draws an episode from a world.

use hyperion_placement::model::{LatencyMatrix, Place, Provider};

use super::{Dice, Scenario, Size, Split, edge, pools, workloads};
use crate::world::{CONTROL_REGION, Region, World};

/// What all parts of an episode are drawn with.
pub(super) struct Draw<'a> {
    pub(super) world: &'a World,
    pub(super) seed: u64,
    pub(super) split: Split,
    pub(super) size: &'a Size,
}

impl Draw<'_> {
    /// The random numbers of one thing. The split is part of the name, so the same seed gives
    /// unrelated episodes in training and on unseen worlds.
    pub(super) fn dice(&self, stream: &str) -> Dice {
        Dice::new(&format!("{}/{stream}", self.split), self.seed)
    }

    /// What of a measured series this split may use: training its first 70 %.
    pub(super) fn part<'b, T>(&self, series: &'b [T]) -> &'b [T] {
        let cut = series.len() * 7 / 10;
        let (train, unseen) = series.split_at(cut);
        match self.split {
            // A series of one or two values has no second part worth the name.
            _ if train.is_empty() || unseen.is_empty() => series,
            Split::Train => train,
            Split::Unseen => unseen,
        }
    }
}

impl Scenario {
    /// Draws an episode; `world`, `seed`, `split` and `size` decide everything.
    #[must_use]
    pub fn draw(world: &World, seed: u64, split: Split, size: &Size) -> Self {
        let draw = Draw {
            world,
            seed,
            split,
            size,
        };
        let regions = draw.regions();
        let pools = pools::draw(&draw, &regions);
        let sites = edge::sites(&draw, &regions);
        let latency = latency(world, &regions, &sites);
        let mut workloads = workloads::draw(&draw, &regions, &sites, &latency);
        let devices = edge::devices(&draw, &sites, &workloads);
        workloads::relax(&mut workloads, &pools, &devices);
        Self {
            seed,
            unseen: split == Split::Unseen,
            horizon: size.horizon,
            throughput: throughput(world, &regions, &sites),
            pools,
            devices,
            workloads,
            latency,
        }
    }
}

impl<'a> Draw<'a> {
    /// Regions of this split that an episode may use, beside the control group's.
    pub(super) fn eligible(&self) -> Vec<&'a Region> {
        let others = || {
            self.world
                .regions
                .iter()
                .filter(|r| r.place.0 != CONTROL_REGION)
        };
        let own: Vec<_> = others()
            .filter(|r| r.held_out == (self.split == Split::Unseen))
            .collect();
        // World::load has warned of a world as small as this.
        if own.len() < 2 {
            others().collect()
        } else {
            own
        }
    }

    /// The control group's region and others, one provider after the other.
    fn regions(&self) -> Vec<&'a Region> {
        let mut dice = self.dice("regions");
        let count = dice.whole(self.size.regions.0, self.size.regions.1) as usize;
        let mut left = self.eligible();
        dice.shuffle(&mut left);
        let control = self
            .world
            .regions
            .iter()
            .find(|r| r.place.0 == CONTROL_REGION);
        let mut chosen: Vec<&Region> = control.into_iter().collect();
        let mut turn = vec![Provider::Gcp, Provider::Azure, Provider::Aws];
        dice.shuffle(&mut turn);
        for provider in turn.into_iter().cycle().take(3 * count) {
            if chosen.len() >= count {
                break;
            }
            if let Some(i) = left.iter().position(|r| r.provider == provider) {
                chosen.push(left.remove(i));
            }
        }
        chosen
    }
}

/// The part of the world's round trips that the episode needs, with its sites.
fn latency(world: &World, regions: &[&Region], sites: &[edge::Site]) -> LatencyMatrix {
    let mut matrix = LatencyMatrix::default();
    let known =
        |place: &Place| place.0.starts_with("geo:") || regions.iter().any(|r| r.place == *place);
    for ((a, b), ms) in &world.latency.rtt_ms {
        if known(a) && known(b) {
            matrix.insert(a, b, *ms);
        }
    }
    let mut places: Vec<Place> = regions.iter().map(|r| r.place.clone()).collect();
    places.extend(
        hyperion_placement::model::Geography::ALL
            .iter()
            .map(|g| Place(format!("geo:{g}"))),
    );
    for (i, site) in sites.iter().enumerate() {
        for place in &places {
            if let Some(ms) = world.latency.rtt(&site.anchor.place, place) {
                matrix.insert(&site.place, place, (ms + site.access_ms) as f32);
            }
        }
        for other in &sites[..i] {
            if let Some(ms) = world.latency.rtt(&site.anchor.place, &other.anchor.place) {
                let ms = ms + site.access_ms + other.access_ms;
                matrix.insert(&site.place, &other.place, ms as f32);
            }
        }
    }
    matrix
}

/// Throughput between the regions, and from sites through their uplinks.
fn throughput(
    world: &World,
    regions: &[&Region],
    sites: &[edge::Site],
) -> crate::world::Throughput {
    let drawn = |place: &Place| regions.iter().any(|r| r.place == *place);
    let mut map: crate::world::Throughput = world
        .throughput
        .iter()
        .filter(|((a, b), _)| drawn(a) && drawn(b))
        .map(|(key, gbps)| (key.clone(), *gbps))
        .collect();
    let mut insert = |a: &Place, b: &Place, gbps: f64| {
        let key = if a <= b { (a, b) } else { (b, a) };
        map.insert((key.0.clone(), key.1.clone()), gbps);
    };
    for (i, site) in sites.iter().enumerate() {
        for region in regions {
            insert(&site.place, &region.place, site.uplink_gbps);
        }
        for other in &sites[..i] {
            insert(
                &site.place,
                &other.place,
                site.uplink_gbps.min(other.uplink_gbps),
            );
        }
    }
    map
}
