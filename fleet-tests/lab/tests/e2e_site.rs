//! A site that is cut off, on real parts: devices with networks of their own, real containers. Times
//! are measured by `hyperion-bench lab`; here only what must happen counts.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

use hyperion_lab::measure::site::{Options, run};
use hyperion_lab::needs;

/// One run of a scenario with the fast profile; nothing that runs may be started a second time.
fn scenario(name: &str) {
    if needs::skip_devices(name) {
        return;
    }
    let options = Options {
        scenario: name.to_owned(),
        profile: "fast".to_owned(),
        runs: 1,
    };
    let measured = run(&options).unwrap();
    assert_eq!(measured.figures["restarts"], 0.0, "{measured:?}");
}

#[test]
fn a_peer_takes_over_from_a_dead_device_and_the_control_plane_adopts_it() {
    scenario("takeover");
}

#[test]
fn a_device_that_reboots_offline_starts_its_services_again() {
    scenario("reboot");
}

#[test]
fn one_broken_uplink_moves_nothing_and_is_gone_around() {
    scenario("uplink");
}

#[test]
fn who_is_not_heard_does_not_cost_an_exclusive_service_its_only_copy() {
    scenario("one-way");
}

#[test]
fn a_pair_that_can_not_talk_moves_nothing_twice() {
    scenario("partial");
}

#[test]
fn a_site_that_falls_in_two_has_one_copy_of_each_when_it_is_mended() {
    scenario("split");
}
