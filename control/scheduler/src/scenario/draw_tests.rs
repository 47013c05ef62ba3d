use std::collections::BTreeSet;

use hyperion_placement::filter::{Candidate, first_rejection};
use hyperion_placement::model::{CapacityType, Provider};

use super::draw::Draw;
use super::workloads::IMPOSSIBLE;
use super::{Scenario, Size, Split, edge, pools};
use crate::world::{CONTROL_REGION, World};

fn episodes(size: &Size) -> impl Iterator<Item = Scenario> {
    let world = World::builtin();
    let size = size.clone();
    [Split::Train, Split::Unseen]
        .into_iter()
        .flat_map(|split| (0..20).map(move |seed| (split, seed)))
        .map(move |(split, seed)| Scenario::draw(&world, seed, split, &size))
}

fn regions(scenario: &Scenario) -> BTreeSet<String> {
    let place =
        |p: &super::Pool| format!("{}:{}", p.offer.location.provider, p.offer.location.region);
    scenario.pools.iter().map(place).collect()
}

#[test]
fn every_episode_passes_its_check() {
    for size in [Size::default(), Size::medium(), Size::small()] {
        for scenario in episodes(&size) {
            assert_eq!(scenario.check(), Ok(()), "seed {}", scenario.seed);
        }
    }
}

#[test]
fn the_optimum_of_small_and_medium_episodes_can_be_bounded() {
    for size in [Size::small(), Size::medium()] {
        let most = episodes(&size).map(|s| s.workloads.len()).max();
        assert_eq!(most, Some(size.workloads.1 as usize));
        assert!(most.is_some_and(|m| m <= crate::bound::MOST_WORKLOADS));
    }
}

#[test]
fn an_episode_has_the_size_asked_for() {
    for scenario in episodes(&Size::default()) {
        let candidates = scenario.pools.len() + scenario.devices.len();
        let seed = scenario.seed;
        assert!(
            (40..=120).contains(&candidates),
            "seed {seed}: {candidates}"
        );
        assert!((40..=80).contains(&scenario.workloads.len()), "seed {seed}");
        let regions = regions(&scenario);
        assert!((3..=6).contains(&regions.len()), "seed {seed}: {regions:?}");
        assert!(regions.contains(CONTROL_REGION), "seed {seed}: {regions:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_episode_and_another_seed_another() {
    let world = World::builtin();
    let size = Size::default();
    let draw = |seed, split| Scenario::draw(&world, seed, split, &size);
    assert_eq!(draw(7, Split::Train), draw(7, Split::Train));
    assert_ne!(draw(7, Split::Train), draw(8, Split::Train));
    assert_ne!(
        draw(7, Split::Train).workloads,
        draw(7, Split::Unseen).workloads
    );
}

#[test]
fn unseen_worlds_share_no_region_with_training_but_the_control_groups() {
    let mut seen = [BTreeSet::new(), BTreeSet::new()];
    for scenario in episodes(&Size::default()) {
        seen[usize::from(scenario.unseen)].extend(regions(&scenario));
    }
    let both: Vec<_> = seen[0].intersection(&seen[1]).collect();
    assert_eq!(both, [CONTROL_REGION]);
}

#[test]
fn price_windows_of_training_and_unseen_worlds_do_not_meet() {
    let (world, size) = (World::builtin(), Size::default());
    for seed in 0..200 {
        let window = |split| {
            pools::window(&Draw {
                world: &world,
                seed,
                split,
                size: &size,
            })
        };
        assert!(window(Split::Train) + size.horizon <= world.cut, "{seed}");
        assert!(window(Split::Unseen) - size.history >= world.cut, "{seed}");
    }
}

#[test]
fn series_are_parted_at_seventy_percent() {
    let (world, size) = (World::builtin(), Size::small());
    let series: Vec<u32> = (0..10).collect();
    let part = |split| {
        Draw {
            world: &world,
            seed: 1,
            split,
            size: &size,
        }
        .part(&series)
        .to_vec()
    };
    assert_eq!(part(Split::Train), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(part(Split::Unseen), [7, 8, 9]);
}

#[test]
fn the_control_group_has_room_for_what_it_is_given() {
    for scenario in episodes(&Size::default()) {
        let room: u32 = scenario
            .pools
            .iter()
            .filter(|p| p.offer.location.region == "us-east-1")
            .filter(|p| p.offer.location.provider == Provider::Aws)
            .filter(|p| p.offer.capacity_type == CapacityType::OnDemand)
            .map(|p| p.limit * p.offer.gpus.len() as u32)
            .sum();
        assert!(room >= 16, "seed {}: {room}", scenario.seed);
    }
}

#[test]
fn spot_history_covers_the_hours_before_the_episode() {
    for scenario in episodes(&Size::default()) {
        for pool in &scenario.pools {
            if pool.offer.capacity_type == CapacityType::Spot {
                let first = pool.obtainable.points[0].0;
                assert!(first <= -72.0, "{}: {first}", pool.offer.id);
                assert!(pool.price.points[0].0 <= -72.0, "{}", pool.offer.id);
            }
        }
        for device in &scenario.devices {
            assert!(device.up.points[0].0 <= -72.0, "{}", device.node.id);
        }
    }
}

#[test]
fn supply_is_one_or_zero_and_on_demand_never_ends() {
    for scenario in episodes(&Size::default()) {
        for pool in &scenario.pools {
            let values = || pool.obtainable.points.iter().map(|(_, v)| *v);
            assert!(values().all(|v| v == 0.0 || v == 1.0), "{}", pool.offer.id);
            if pool.offer.capacity_type == CapacityType::OnDemand {
                assert!(values().all(|v| v == 1.0), "{}", pool.offer.id);
            }
        }
    }
}

#[test]
fn only_those_meant_to_be_impossible_have_no_candidate() {
    let (mut impossible, mut all) = (0, 0);
    for scenario in episodes(&Size::default()) {
        for workload in &scenario.workloads {
            let request = &workload.request;
            let fits = |c: Candidate<'_>| first_rejection(request, &c).is_none();
            let possible = scenario.devices.iter().any(|d| fits((&d.node).into()))
                || scenario.pools.iter().any(|p| {
                    let mut offer = p.offer.clone();
                    offer.price_per_hour = p.list_price;
                    fits((&offer).into())
                });
            let meant = request.replica.starts_with(IMPOSSIBLE);
            assert_eq!(possible, !meant, "seed {}: {request:?}", scenario.seed);
            all += 1;
            impossible += usize::from(meant);
        }
    }
    assert!(
        impossible > 0 && impossible * 50 < all,
        "{impossible} of {all}"
    );
}

#[test]
fn the_edge_is_asked_for_more_than_it_has() {
    let mut ratios: Vec<f64> = episodes(&Size::default())
        .map(|s| edge::demand(&s.workloads, s.horizon) / s.devices.len() as f64)
        .collect();
    ratios.sort_by(f64::total_cmp);
    let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
    assert!(least > 1.0 && most < 3.2, "{ratios:?}");
    // The least number of devices at a site keeps some episodes below 1.5.
    assert!(ratios[ratios.len() / 4] > 1.4, "{ratios:?}");
}

#[test]
fn a_third_runs_from_hour_zero_and_goals_are_mixed() {
    let (mut at_zero, mut all) = (0, 0);
    let mut goals = BTreeSet::new();
    for scenario in episodes(&Size::default()) {
        all += scenario.workloads.len();
        at_zero += scenario
            .workloads
            .iter()
            .filter(|w| w.arrival == 0.0)
            .count();
        goals.extend(scenario.workloads.iter().map(|w| w.request.goal));
    }
    let share = at_zero as f64 / all as f64;
    assert!((0.3..0.4).contains(&share), "{share}");
    assert_eq!(goals.len(), 3);
}

#[test]
fn every_client_can_be_reached_from_every_place() {
    for scenario in episodes(&Size::default()) {
        let places = scenario
            .pools
            .iter()
            .map(|p| &p.offer.location)
            .chain(scenario.devices.iter().map(|d| &d.node.location));
        for location in places {
            for workload in &scenario.workloads {
                let request = &workload.request;
                let known = request.clients.is_empty()
                    || hyperion_placement::latency::client_rtt_ms(
                        &scenario.latency,
                        request,
                        location,
                    )
                    .is_some();
                assert!(known, "seed {}: {location:?} {request:?}", scenario.seed);
            }
        }
    }
}

#[test]
fn sites_are_near_to_themselves_and_farther_from_regions() {
    for scenario in episodes(&Size::default()) {
        for device in &scenario.devices {
            let site = hyperion_placement::latency::place_of(&device.node.location);
            for pool in &scenario.pools {
                let region = hyperion_placement::latency::place_of(&pool.offer.location);
                let rtt = scenario.latency.rtt(&site, &region).unwrap();
                assert!(rtt >= 4.0, "{site:?} {region:?}: {rtt}");
                assert!(
                    scenario
                        .throughput
                        .keys()
                        .any(|(a, b)| *a == region && *b == site)
                );
            }
            assert_eq!(device.node.location.provider, Provider::Edge);
        }
    }
}
