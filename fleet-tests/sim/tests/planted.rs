//! The invariants catch a bug that is planted: agents without their check of generations. Only test
//! builds have the switch.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

use std::process::Command;

use hyperion_sim::{Scenario, parse_faults, seeds};

/// Agents that read this have the bug.
const PLANTED: &str = "HYPERION_PLANTED_BUG";
const NAME: &str = "a_planted_bug_is_caught_and_only_that";
/// What is broken within so many seeds.
const SEEDS: u64 = 4;

/// Invariants that were broken.
fn broken() -> Vec<&'static str> {
    let scenario = Scenario {
        seed: 0,
        nodes: 6,
        sites: 2,
        faults: parse_faults("stale_orders,site_cut,device_dead").unwrap(),
        watched: false,
    };
    let summary = seeds(&scenario, 1, SEEDS, 1, |_, _| {});
    let outcomes = summary.failed.iter().map(|(_, outcome)| outcome);
    let violations = outcomes.flat_map(|outcome| &outcome.violations);
    violations.map(|v| v.invariant).collect()
}

#[test]
#[cfg_attr(not(debug_assertions), ignore = "this build has no bug to plant")]
fn a_planted_bug_is_caught_and_only_that() {
    if std::env::var_os(PLANTED).is_some() {
        assert!(broken().contains(&"stale_order"), "the bug was not caught");
        return;
    }
    assert!(broken().is_empty(), "without the bug nothing is broken");
    // Agents read the variable once: this program again, with it.
    let again = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME])
        .env(PLANTED, "generation")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&again.stdout);
    assert!(said.contains("1 passed"), "{said}");
}
