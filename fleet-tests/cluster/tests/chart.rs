//! The chart's plain manifests on a real API server: it takes them, the control plane lives with the
//! rights that they give, and each of these rights is needed.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

#[path = "../../../control/operator/tests/common/agent.rs"]
mod agent;
#[path = "chart/cloud.rs"]
mod cloud;
#[path = "chart/install.rs"]
mod install;
#[path = "chart/life.rs"]
mod life;
#[path = "chart/rights.rs"]
mod rights;
#[path = "chart/server.rs"]
mod server;

use hyperion_cluster::{Choice, chosen};
use hyperion_lab::needs;

use install::Installed;

/// An API server with the manifests; none, after a line that says why, where there can't be one.
fn installed(test: &str) -> Option<Installed> {
    let other = chosen() != Choice::Real;
    if needs::say_if(other, test, "it needs a real API: run `make test-cluster`")
        || needs::skip_without(test, &["hyperion-control"])
    {
        return None;
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    Some(Installed::start())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_plane_has_the_rights_that_it_needs_and_its_pods_are_let_in() {
    let Some(mut installed) = installed("chart_is_enough") else {
        return;
    };
    installed.home.takes_it_again();
    installed.cloud.takes_it_again();
    installed.lets_its_pod_in();
    assert_eq!(installed.live(0).await, Vec::<String>::new(), "refused");
}

/// Each in turn is taken away, and the API server refuses just what needs it.
#[tokio::test(flavor = "multi_thread")]
async fn each_right_is_needed() {
    let Some(mut installed) = installed("chart_is_exact") else {
        return;
    };
    let mut idle = Vec::new();
    let mut n = 0;
    for cloud in [false, true] {
        let all = rights::of_manifest(&installed.server(cloud).manifest);
        assert!(all.len() > 5, "{all:?}");
        for right in &all {
            n += 1;
            rights::give(installed.server(cloud), &all, Some(right)).await;
            idle.extend(installed.live_without(n, cloud, right).await.err());
        }
        rights::give(installed.server(cloud), &all, None).await;
    }
    assert_eq!(idle, Vec::<String>::new(), "nobody misses these");
}
