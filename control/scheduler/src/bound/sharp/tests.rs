//! Small worlds whose optimum is known, and drawn ones in which nothing that is played exceeds the
//! bound.

use std::sync::Arc;

use hyperion_placement::model::GpuRequest;
use hyperion_placement::reward::RewardWeights;

use super::super::search::improve;
use super::super::tests::{close, device, job, pool, rate};
use super::super::{Foresight, bound, exhaustive, optimum, record};
use super::*;
use crate::baselines::{NAMES, by_name};
use crate::scenario::{Device, Path, Pool, Scenario, Size, Split, Workload};
use crate::sim::{Brain, run};
use crate::world::World as Outside;

/// Hours of the worlds here.
const HOURS: f64 = 2.0;

fn scenario(pools: Vec<Pool>, devices: Vec<Device>, workloads: Vec<Workload>) -> Scenario {
    let mut scenario = super::super::tests::scenario(pools, devices, workloads);
    scenario.horizon = HOURS;
    for workload in &mut scenario.workloads {
        workload.end = HOURS;
    }
    scenario
}

fn always(id: &str, price: f64) -> Pool {
    pool(id, Path::constant(price), Path::constant(1.0))
}

fn sharply(scenario: &Scenario, reached: f64) -> f64 {
    sharp(scenario, &SimConfig::default(), 100, reached).unwrap()
}

#[test]
fn who_is_alone_waits_for_the_boot() {
    let s = scenario(vec![always("a", 0.5)], Vec::new(), vec![job("j", 1.0)]);
    let optimum = exhaustive_of(&s);
    let most = sharply(&s, optimum);
    // Three minutes of boot at the median; the shortest of all takes a third of that.
    assert!(most >= optimum, "{most} {optimum}");
    assert!(most <= rate(0.5) - 0.01, "{most} {optimum}");
    assert!(most - optimum < 0.06, "{most} {optimum}");
}

/// Tries every schedule in which nobody moves.
fn exhaustive_of(s: &Scenario) -> f64 {
    let config = SimConfig {
        reconsider_hours: 0.0,
        ..SimConfig::default()
    };
    exhaustive(&Arc::new(s.clone()), config, 10_000).unwrap()
}

#[test]
fn who_shares_an_instance_pays_half_of_it() {
    let quarter = |name: &str| Workload {
        request: hyperion_placement::model::Request {
            gpu: GpuRequest::default(),
            ..job(name, HOURS).request
        },
        ..job(name, HOURS)
    };
    let s = scenario(
        vec![always("a", 0.5)],
        Vec::new(),
        vec![quarter("i"), quarter("j")],
    );
    let most = sharply(&s, 2.0 * HOURS * rate(0.25) - 0.2);
    let relaxed = bound(&s, &RewardWeights::default(), 50).reward;
    // Each takes a quarter of it; nobody takes the rest, so each pays for a half.
    let halves = 2.0 * HOURS * rate(0.25);
    assert!(most >= halves - 0.2, "{most} {halves}");
    assert!(most <= 1.05 * halves, "{most} {halves}");
    assert!(
        close(relaxed, 2.0 * HOURS * rate(0.125)),
        "{most} {relaxed}"
    );
}

#[test]
fn one_device_holds_one_of_two_jobs() {
    let jobs = vec![job("i", HOURS), job("j", HOURS)];
    let s = scenario(vec![always("a", 0.5)], vec![device(0.05)], jobs);
    let optimum = HOURS * (rate(0.05) + rate(0.5));
    let most = sharply(&s, optimum - 0.2);
    assert!(most >= optimum - 0.2, "{most} {optimum}");
    assert!(most <= 1.05 * optimum, "{most} {optimum}");
}

#[test]
fn nobody_waits_for_less_than_nothing_and_nothing_is_paid_without_a_place() {
    let s = scenario(Vec::new(), Vec::new(), vec![job("j", 1.0)]);
    assert!(close(sharply(&s, -HOURS), -HOURS));
    let none = scenario(Vec::new(), Vec::new(), Vec::new());
    assert_eq!(sharply(&none, 0.0), 0.0);
    let many = (0..=MOST_WORKLOADS).map(|i| job(&format!("{i:03}"), 1.0));
    let many = scenario(Vec::new(), Vec::new(), many.collect());
    assert_eq!(sharp(&many, &SimConfig::default(), 1, 0.0), None);
}

/// A world in which every schedule can be played.
fn tiny(workloads: u32, horizon: f64) -> Size {
    Size {
        horizon,
        regions: (1, 1),
        types: (1, 1),
        devices: (1, 1),
        workloads: (workloads, workloads),
        ..Size::small()
    }
}

#[test]
fn every_schedule_of_tiny_worlds_stays_below_and_the_best_is_near() {
    let config = SimConfig::default();
    let (mut worlds, mut exact, mut most) = (0, 0.0, 0.0);
    let sizes = [tiny(1, 0.75), tiny(2, 0.4)];
    for (seed, size) in (0..10).flat_map(|s| sizes.iter().map(move |size| (s, size))) {
        let s = Scenario::draw(&Outside::builtin(), seed, Split::Unseen, size);
        let s = Arc::new(s);
        let Some(best) = exhaustive(&s, config, 400) else {
            continue;
        };
        let above = sharp(&s, &config, 30, best).unwrap();
        assert!(above >= best - 1e-9, "seed {seed}: {best} of {above}");
        let start = record(&s, config, |point| {
            (!point.candidates.is_empty()).then_some(0)
        });
        let found = improve(&s, config, start, 3).reward;
        assert!(found <= best + 1e-9, "seed {seed}: {found} of {best}");
        let relaxed = bound(&s, &config.weights, 60).reward;
        assert!(relaxed >= best - 1e-9, "seed {seed}: {best} of {relaxed}");
        (worlds, exact, most) = (worlds + 1, exact + best, most + above);
    }
    assert!(worlds >= 10, "only {worlds} were small enough");
    assert!(most < 1.05 * exact, "{most} of {exact}");
}

#[test]
fn nothing_that_is_played_exceeds_the_optimum() {
    let config = SimConfig::default();
    let size = Size {
        horizon: 3.0,
        workloads: (3, 4),
        ..Size::small()
    };
    for seed in 0..4 {
        let s = Scenario::draw(&Outside::builtin(), seed, Split::Unseen, &size);
        let s = Arc::new(s);
        let foresight = Foresight::new(&s, &config, 30);
        let mut starts: Vec<Box<dyn Brain + Send>> = vec![by_name("greedy").unwrap()];
        let within = optimum(&s, config, &foresight, &mut starts, 10).unwrap();
        assert!(within.at_least <= within.at_most, "seed {seed}: {within:?}");
        assert!(within.at_most <= foresight.bound.mean_reward, "seed {seed}");
        for name in NAMES {
            let mean = run(&s, config, &mut *by_name(name).unwrap())
                .all
                .mean_reward();
            assert!(
                mean <= within.at_most,
                "seed {seed}: {name} {mean} {within:?}"
            );
        }
    }
}
