//! Nothing that is played earns more than the bound, and the same episode goes the same way twice.

use super::*;
use crate::baselines::{NAMES, by_name};
use crate::bound::bound;
use crate::scenario::{Size, Split};
use crate::world::World;

fn drawn(seed: u64, size: &Size) -> Arc<Scenario> {
    Arc::new(Scenario::draw(&World::builtin(), seed, Split::Train, size))
}

#[test]
fn no_baseline_earns_more_than_the_bound() {
    for seed in 0..6 {
        let scenario = drawn(seed, &Size::small());
        let most = bound(&scenario, &RewardWeights::default(), 8);
        for name in NAMES {
            let outcome = run(
                &scenario,
                SimConfig::default(),
                &mut *by_name(name).unwrap(),
            );
            let mean = outcome.all.mean_reward();
            assert!(
                mean <= most.mean_reward + 1e-9,
                "seed {seed}: {name} earns {mean}, the bound is {}",
                most.mean_reward
            );
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_outcome() {
    let play = |name: &str| {
        run(
            &drawn(5, &Size::default()),
            SimConfig::default(),
            &mut *by_name(name).unwrap(),
        )
    };
    for name in NAMES {
        assert_eq!(play(name), play(name), "{name}");
        assert_eq!(play(name).all.violations, 0, "{name}");
    }
}
