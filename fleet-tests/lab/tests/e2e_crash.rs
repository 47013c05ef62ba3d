//! The operator is killed in the middle of moves, before and after a write. All points, and other faults
//! of clouds, are measured by `hyperion-bench faults`; here a few, and only what must hold counts.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

use hyperion_cluster::{Choice, chosen};
use hyperion_lab::faults::crash::{Between, Options, run};
use hyperion_lab::needs;

#[test]
fn a_killed_operator_s_move_is_finished_by_the_next_and_nobody_notices() {
    if needs::skip("crash") || needs::skip_on_given("crash") {
        return;
    }
    let options = Options {
        between: Between::Clusters,
        real: chosen() == Choice::Real,
        points: vec![3, 7],
    };
    let measured = run(&options).unwrap();
    let figure = |name: &str| measured.figures[name].as_f64().unwrap();
    for name in ["failed_requests", "violations", "starts_too_many", "leaked"] {
        assert_eq!(figure(name), 0.0, "{name}: {measured:?}");
    }
    assert_eq!(figure("exclusive_most_at_once"), 1.0, "{measured:?}");
    // Each point, before and after the write, in both directions.
    assert_eq!(figure("killed"), 8.0, "{measured:?}");
}
