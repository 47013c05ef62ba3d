use super::*;
use crate::sim::{SimConfig, run, tests_support as world};

fn play(name: &str) -> crate::sim::Outcome {
    run(
        &world::mixed(),
        SimConfig::default(),
        &mut *by_name(name).unwrap(),
    )
}

#[test]
fn every_baseline_has_its_name_and_breaks_no_constraint() {
    for name in NAMES {
        assert_eq!(by_name(name).unwrap().name(), name);
        assert_eq!(play(name).all.violations, 0, "{name}");
    }
    assert!(by_name("other").is_none());
}

#[test]
fn the_control_group_buys_on_demand_in_one_region_and_never_moves() {
    let outcome = play("static");
    assert_eq!((outcome.all.moves, outcome.counts.reclaims), (0, 0));
    let p99 = outcome.goals[1].p99_ms().unwrap();
    assert!(p99 > 26.0, "20 ms of round trip, times 1.3: {p99}");
}

#[test]
fn the_cheapest_pays_least_and_the_nearest_waits_least() {
    let usd = |name: &str| play(name).all.usd;
    let p99 = |name: &str| play(name).goals[1].p99_ms().unwrap();
    for name in ["static", "kube-default", "nearest"] {
        assert!(usd("cheapest") <= usd(name), "{name}");
    }
    for name in ["static", "kube-default", "cheapest"] {
        assert!(p99("nearest") <= p99(name), "{name}");
    }
}

#[test]
fn the_greedy_one_earns_most() {
    let reward = |name: &str| play(name).all.mean_reward();
    let greedy = reward("greedy");
    for name in &NAMES[..5] {
        assert!(
            greedy >= reward(name),
            "{name}: {} > {greedy}",
            reward(name)
        );
    }
}
