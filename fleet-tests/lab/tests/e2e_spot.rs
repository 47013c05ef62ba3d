//! Spot machines that are taken back, on real parts. Times are measured by `hyperion-bench lab spot`;
//! here only what must happen counts.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

use hyperion_lab::measure::spot::{Options, run};
use hyperion_lab::metadata::Cloud;
use hyperion_lab::needs;

/// The service answers all the time, from another pool in the end; the job goes on there.
fn taken_back(cloud: Cloud) {
    if needs::skip(&format!("spot-{}", cloud.as_str())) {
        return;
    }
    let measured = run(&Options { cloud, runs: 1 }).unwrap();
    assert_eq!(measured.figures["failed"], 0.0, "{measured:?}");
}

#[test]
fn aws_takes_a_machine_back() {
    taken_back(Cloud::Aws);
}

#[test]
fn gcp_takes_a_machine_back() {
    taken_back(Cloud::Gcp);
}

#[test]
fn azure_takes_a_machine_back() {
    taken_back(Cloud::Azure);
}
