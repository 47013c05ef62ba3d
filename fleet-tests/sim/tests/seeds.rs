//! Whole fleets on virtual time. A seed that broke an invariant once is kept here.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

use hyperion_sim::{Scenario, Summary, parse_faults, run, seeds};

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
    let summary = seeds(&scenario, first, count, 1, |_, _| {});
    assert_clean(&scenario, faults, &summary);
    summary
}

#[test]
fn a_fleet_without_faults_does_what_people_ask() {
    let summary = play(6, 2, "none", 1, 1);
    assert!(summary.starts > 0 && summary.requests > 0);
}

#[test]
fn a_fleet_with_all_faults_keeps_its_promises() {
    let summary = play(6, 2, "all", 1, 10);
    let injected: u64 = summary.faults.values().sum();
    assert!(injected > 50, "{:?}", summary.faults);
}

#[test]
fn a_seed_plays_the_same_each_time() {
    let scenario = Scenario {
        seed: 7,
        ..scenario(4, 1, "all")
    };
    let (first, second) = (run(&scenario), run(&scenario));
    assert_eq!(first.digest, second.digest);
    assert_eq!(first.events, second.events);
}

/// Each found something once.
#[test]
fn seeds_that_found_something_stay_good() {
    for (nodes, sites, faults, seed) in [
        // A job that had ended ran again after a reboot, then after its `stopAfter`.
        (6, 2, "site_cut,device_dead", 2),
        (6, 2, "control_stop,control_failover", 1),
        // An exclusive job that ended while its agent was away was held back, forgotten and run
        // again.
        (30, 3, "all", 100),
        // An exclusive replica was placed in another site while a majority of its own placed it, and
        // while its node, out of reach, still ran what had been scaled away.
        (30, 3, "all", 915),
        (30, 3, "all", 1678),
        // What was to end on a node out of reach stayed in its list.
        (30, 3, "all", 201),
        // A copy was stopped for one that a dead node had, and for one that could not start.
        (30, 3, "all", 1170),
        (30, 3, "all", 1797),
    ] {
        play(nodes, sites, faults, seed, 1);
    }
}
