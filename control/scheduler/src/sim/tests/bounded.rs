//! Nothing that is played earns more than the bound, and the same episode goes the same way twice.

use hyperion_policy::PolicyFile;

use super::*;
use crate::baselines::{NAMES, by_name};
use crate::bound::{Foresight, foresee};
use crate::eval::episodes::{PPO, PolicyBrain};
use crate::scenario::{Size, Split};
use crate::world::World;

fn drawn(seed: u64, size: &Size) -> Arc<Scenario> {
    Arc::new(Scenario::draw(&World::builtin(), seed, Split::Train, size))
}

#[test]
fn no_scheduler_earns_more_than_the_bound() {
    let config = SimConfig::default();
    for (seed, split) in (0..16).flat_map(|s| [(s, Split::Train), (s, Split::Unseen)]) {
        let world = World::builtin();
        let scenario = Arc::new(Scenario::draw(&world, seed, split, &Size::small()));
        let foresight = Foresight::new(&scenario, &config, 60);
        let most = foresight.bound.mean_reward + 1e-9;
        let planned = foresee(&scenario, config, &foresight).all.mean_reward();
        assert!(
            planned <= most,
            "seed {seed}: foresight earns {planned} of {most}"
        );
        let policy = PolicyFile::read(hyperion_policy::BUILT_IN).unwrap().network;
        let mut brains: Vec<Box<dyn Brain>> = vec![Box::new(PolicyBrain::new(PPO, policy, None))];
        for name in NAMES {
            brains.push(by_name(name).unwrap());
        }
        for mut brain in brains {
            let mean = run(&scenario, config, &mut *brain).all.mean_reward();
            let name = brain.name();
            assert!(mean <= most, "seed {seed}: {name} earns {mean} of {most}");
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
