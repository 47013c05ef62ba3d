//! What placements cost, and what stays known of it.

use super::*;

/// A machine of this type in this region.
fn machine(provider: &str, region: &str, kind: &str, capacity: &str) -> Value {
    json!({ "hyperion.io/provider": provider, "topology.kubernetes.io/region": region,
        "node.kubernetes.io/instance-type": kind, "hyperion.io/capacity-type": capacity })
}

fn launch(w: &World) -> (f64, Option<f64>, Option<f64>) {
    let spec = &w.index.placement(&World::name(), 0).unwrap().spec;
    let launch = spec.launch.as_ref().unwrap();
    (spec.hourly_cost, launch.on_demand, launch.baseline)
}

fn near(a: Option<f64>, b: f64) -> bool {
    a.is_some_and(|a| (a - b).abs() < 1e-4)
}

#[test]
fn prices_at_the_launch_stay_with_the_placement() {
    // A quarter of the machine's four cores in each case; the table's prices.
    let mut w = World::new();
    w.node(
        "a",
        machine("azure", "westeurope", "Standard_D8s_v5", "spot"),
        0,
    );
    w.workload(service(1, "i"));
    let (paid, on_demand, baseline) = launch(&w);
    assert!(near(Some(paid), 0.085_008 / 4.0) && near(on_demand, 0.46 / 4.0));
    // The cheapest machine in us-east-1 that it fits on is a c5.2xlarge with eight cores.
    assert!(near(baseline, 0.34 / 8.0), "{baseline:?}");
    // Of AWS the same type, whatever else is cheaper.
    let mut w = World::new();
    w.node(
        "a",
        machine("aws", "eu-west-1", "m5.2xlarge", "on-demand"),
        0,
    );
    w.workload(service(1, "i"));
    let (paid, on_demand, baseline) = launch(&w);
    assert!(near(Some(paid), 0.428 / 4.0) && near(on_demand, paid));
    assert!(near(baseline, 0.384 / 8.0), "{baseline:?}");
    // An owned device costs nothing, and would elsewhere.
    let mut w = World::new();
    w.node("a", json!({}), 0);
    w.workload(service(1, "i"));
    let (paid, on_demand, baseline) = launch(&w);
    assert!(paid == 0.0 && near(on_demand, 0.0) && near(baseline, 0.34 / 8.0));
}

#[test]
fn what_nobody_knows_is_not_made_up() {
    let mut w = World::new();
    w.node("a", machine("gcp", "us-central1", "x9-mega", "spot"), 0);
    w.workload(service(1, "i"));
    let (paid, on_demand, _) = launch(&w);
    assert_eq!((paid, on_demand), (0.0, None));
}

#[test]
fn what_a_placement_has_cost_stays_when_it_is_over() {
    let mut w = World::new();
    w.node(
        "a",
        machine("aws", "us-east-1", "m5.2xlarge", "on-demand"),
        0,
    );
    w.workload(service(1, "i"));
    w.run_all();
    let began = w.clock;
    assert_eq!(w.status().spent, None);
    w.clock = began + Duration::from_secs(7200);
    w.node("b", json!({}), 0);
    w.node_spec("a", json!({ "draining": true }));
    w.settle();
    assert_eq!(w.on(0).unwrap().0, "b");
    let spent = w.status().spent.clone().unwrap();
    assert!((spent.hours - 2.0).abs() < 1e-9);
    assert!(near(Some(spent.usd), 2.0 * 0.384 / 4.0), "{spent:?}");
    // The next one counts from its own beginning.
    let launch = w
        .index
        .placement(&World::name(), 0)
        .unwrap()
        .spec
        .launch
        .clone();
    assert_eq!(launch.unwrap().at.0, w.clock);
}

#[test]
fn the_meter_counts_by_namespace_what_is_placed() {
    use crate::cost::{Meter, Metrics};
    use prometheus_client::registry::Registry;

    let mut w = World::new();
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let mut meter = Meter::new(w.now);
    w.node(
        "a",
        machine("aws", "us-east-1", "m5.2xlarge", "on-demand"),
        0,
    );
    w.workload(service(1, "i"));
    w.run_all();
    let mut text = |w: &World, now: Instant| {
        meter.count(&w.index, now, &metrics);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    };
    let first = text(&w, w.now);
    assert!(
        first.contains("hyperion_cost_usd_per_hour{namespace=\"default\"} 0.096"),
        "{first}"
    );
    let later = text(&w, w.now + Duration::from_secs(7200));
    assert!(
        later.contains("hyperion_cost_usd_total{namespace=\"default\"} 0.192"),
        "{later}"
    );
}
