//! Whole fleets on virtual time. A seed that broke an invariant once is kept here.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

use hyperion_sim::{Kind, Scenario, Summary, parse_faults, run, seeds};

fn scenario(nodes: usize, sites: usize, faults: &str) -> Scenario {
    Scenario {
        seed: 0,
        nodes,
        sites,
        faults: parse_faults(faults).unwrap(),
        watched: false,
    }
}

/// Fails with everything that is needed to play the first bad seed again.
fn assert_clean(scenario: &Scenario, faults: &str, summary: &Summary) {
    let Some((seed, outcome)) = summary.failed.first() else {
        return;
    };
    let watched = run(&Scenario {
        seed: *seed,
        watched: true,
        ..scenario.clone()
    });
    panic!(
        "seed {seed} of {} nodes, {} sites, faults {faults}: {:#?}\n{}\nagain: hyperion-bench sim \
         --first-seed {seed} --seeds 1 --nodes {} --sites {} --faults {faults}",
        scenario.nodes,
        scenario.sites,
        outcome.violations,
        watched.trace.join("\n"),
        scenario.nodes,
        scenario.sites,
    );
}

fn play(nodes: usize, sites: usize, faults: &str, first: u64, count: u64) -> Summary {
    let scenario = scenario(nodes, sites, faults);
    let summary = seeds(&scenario, first, count, 1);
    assert_clean(&scenario, faults, &summary);
    summary
}

#[test]
fn a_fleet_without_faults_does_what_people_ask() {
    let summary = play(6, 2, "none", 1, 4);
    assert!(summary.starts > 0 && summary.requests > 0);
}

#[test]
fn a_fleet_with_all_faults_keeps_its_promises() {
    let summary = play(9, 3, "all", 1, 16);
    assert!(
        summary.faults.values().sum::<u64>() > 50,
        "{:?}",
        summary.faults
    );
}

#[test]
fn a_seed_plays_the_same_each_time() {
    let scenario = Scenario {
        seed: 7,
        ..scenario(6, 2, "all")
    };
    let (first, second) = (run(&scenario), run(&scenario));
    assert_eq!(first.digest, second.digest);
    assert_eq!(first.events, second.events);
    let other = run(&Scenario {
        seed: 8,
        ..scenario
    });
    assert_ne!(first.digest, other.digest);
}

#[test]
fn each_fault_alone_breaks_nothing() {
    for kind in Kind::ALL {
        play(5, 1, kind.name(), 100, 1);
    }
}
