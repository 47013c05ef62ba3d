//! What free GPU capacity is worth, and what that changes.

use hyperion_placement::model::{GpuRequest, Resources};
use hyperion_placement::packing::{Demand, Free, Models, Prices, TypicalRequests};

use super::*;

fn wants(resource: &str, amount: &str) -> Value {
    let mut spec = service(1, "i");
    spec["template"]["spec"]["containers"][0]["resources"] =
        json!({ "limits": { resource: amount } });
    spec
}

/// A pair of GPUs on one node and a single one on another.
fn world() -> World {
    let mut w = World::new();
    w.node("a-pair", json!({}), 2);
    w.node("b-single", json!({}), 1);
    w
}

fn prices_where_pairs_are_wanted() -> Arc<Prices> {
    let mut typical = TypicalRequests::default();
    for count in [1, 2] {
        let none = Resources::default();
        let gpu = GpuRequest {
            count,
            millis: 1000,
        };
        typical.observe_many(Demand::new(none, gpu), 10);
    }
    let free = Free {
        cpu_millis: 4000,
        memory_bytes: 8 << 30,
        gpus: &[1000, 1000],
        model: Models::ANY,
    };
    Arc::new(Prices::refresh(&typical, &[free], &Prices::default()))
}

#[test]
fn a_pair_of_gpus_is_kept_whole_where_pairs_are_known_to_be_wanted() {
    let mut w = world();
    w.workload(wants("nvidia.com/gpu", "1"));
    assert_eq!(w.on(0), Some(("a-pair".to_owned(), 1)));

    let mut w = world();
    w.index.set_packing(prices_where_pairs_are_wanted());
    w.workload(wants("nvidia.com/gpu", "1"));
    assert_eq!(w.on(0), Some(("b-single".to_owned(), 1)));
    let terms = &w.objects["w-0"]["spec"]["explanation"]["terms"];
    let packing = terms
        .as_array()
        .unwrap()
        .iter()
        .find(|t| t["name"] == "packing");
    assert!(packing.unwrap()["value"].as_f64().unwrap() < 0.0, "{terms}");
}

#[test]
fn prices_are_learned_from_what_workloads_want() {
    let mut w = world();
    w.workload(service(1, "i"));
    assert!(w.index.packing_lesson().is_none(), "nobody wants GPUs");
    w.workload(wants("hyperion.io/gpu-millis", "300"));
    let prices = w.index.packing_lesson().unwrap().prices();
    assert!(prices.known());
    w.index.set_packing(Arc::new(prices));
    assert!(w.index.fleet().packing().known());
}
