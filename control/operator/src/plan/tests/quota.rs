//! Quotas, gangs, and who goes first when not all can.

use hyperion_api::quota::HyperionQuota;

use super::*;

/// A node whose four cores cost a dollar an hour each.
fn dear() -> Value {
    json!({ "hyperion.io/provider": "aws", "topology.kubernetes.io/region": "us-east-1",
        "hyperion.io/price-per-hour": "4" })
}

fn quota(w: &mut World, namespace: &str, name: &str, spec: Value) {
    let object = json!({ "apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionQuota",
        "metadata": { "namespace": namespace, "name": name }, "spec": spec });
    let object: DeserializeGuard<HyperionQuota> = serde_json::from_value(object).unwrap();
    w.index.apply_quota(object);
    w.settle();
}

pub(super) fn named(w: &mut World, namespace: &str, name: &str, spec: Value) {
    let metadata = json!({ "namespace": namespace, "name": name, "uid": format!("uid-{name}") });
    w.workload_with(spec, metadata);
}

pub(super) fn placed(w: &World, namespace: &str, name: &str) -> usize {
    w.index.placements_of(&Name::new(namespace, name)).count()
}

/// The condition Placed: its reason and message.
pub(super) fn why(w: &World, namespace: &str, name: &str) -> (String, String) {
    let workload = &w.index.workloads[&Name::new(namespace, name)];
    let mut conditions = workload.status.conditions.iter();
    let placed = conditions.find(|c| c.type_ == "Placed").unwrap();
    (placed.reason.clone(), placed.message.clone())
}

#[test]
fn what_a_namespace_may_spend_bounds_what_is_placed() {
    let mut w = World::new();
    quota(&mut w, "team", "money", json!({ "maxHourlyCost": 2.5 }));
    w.node("cloud", dear(), 0);
    named(&mut w, "team", "a", service(3, "i"));
    assert_eq!(placed(&w, "team", "a"), 2);
    let (reason, text) = why(&w, "team", "a");
    assert_eq!(reason, "QuotaExceeded");
    assert!(
        text.starts_with("replica 2: quota money leaves 0.50 of 2.50 USD/h; 0 of 1 nodes fit"),
        "{text}"
    );
    // Another namespace has none.
    named(&mut w, "other", "b", service(1, "i"));
    assert_eq!(placed(&w, "other", "b"), 1);
    let used = w.index.used("team", None);
    assert!((used.hourly_cost - 2.0).abs() < 1e-9);
    let statuses = w.index.quota_statuses();
    assert_eq!((statuses.len(), statuses[0].1.waiting), (1, 1));
    assert_eq!(w.index.quota_statuses(), []);
    // Hardware of one's own costs nothing.
    w.node("own", json!({}), 0);
    assert_eq!(placed(&w, "team", "a"), 3);
}

#[test]
fn a_quota_that_is_raised_lets_those_in_who_waited_and_one_that_is_lowered_stops_nobody() {
    let mut w = World::new();
    w.node("cloud", dear(), 0);
    quota(&mut w, "team", "money", json!({ "maxHourlyCost": 1 }));
    named(&mut w, "team", "a", service(2, "i"));
    assert_eq!(placed(&w, "team", "a"), 1);
    quota(&mut w, "team", "money", json!({ "maxHourlyCost": 2 }));
    assert_eq!(placed(&w, "team", "a"), 2);
    quota(&mut w, "team", "money", json!({ "maxHourlyCost": 0 }));
    assert_eq!((placed(&w, "team", "a"), w.stopped.len()), (2, 0));
}

#[test]
fn gpus_are_counted_by_thousandths_and_the_tightest_quota_counts() {
    let mut w = World::new();
    w.node("cloud", dear(), 4);
    quota(&mut w, "team", "wide", json!({ "maxGpus": 8 }));
    quota(&mut w, "team", "gpus", json!({ "maxGpus": 1.5 }));
    let mut spec = service(2, "i");
    spec["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] = json!("1");
    named(&mut w, "team", "a", spec);
    assert_eq!(placed(&w, "team", "a"), 1);
    let (reason, text) = why(&w, "team", "a");
    assert_eq!(reason, "QuotaExceeded");
    assert_eq!(
        text,
        "replica 1: quota gpus leaves 0.5 of 1.5 GPUs, a replica asks for 1"
    );
}

#[test]
fn a_quota_that_cant_be_read_holds_its_namespace_and_no_other() {
    let mut w = World::new();
    w.node("cloud", dear(), 0);
    quota(&mut w, "team", "money", json!({ "maxHourlyCost": "much" }));
    named(&mut w, "team", "a", service(1, "i"));
    named(&mut w, "other", "b", service(1, "i"));
    assert_eq!((placed(&w, "team", "a"), placed(&w, "other", "b")), (0, 1));
    let (_, text) = why(&w, "team", "a");
    assert!(text.contains("quota money can't be read"), "{text}");
    quota(&mut w, "team", "money", json!({ "maxHourlyCost": 5 }));
    assert_eq!(placed(&w, "team", "a"), 1);
}

#[test]
fn what_is_moved_does_not_count_twice() {
    let mut w = World::new();
    w.node("cloud", dear(), 0);
    quota(&mut w, "team", "money", json!({ "maxHourlyCost": 1 }));
    named(&mut w, "team", "a", service(1, "i"));
    w.node("cloud-2", dear(), 0);
    w.node_spec("cloud", json!({ "site": "lab", "draining": true }));
    w.settle();
    let moved = w.index.placement(&Name::new("team", "a"), 0).unwrap();
    assert_eq!(moved.spec.node, "cloud-2");
}

#[test]
fn what_a_quota_keeps_from_a_new_replica_it_does_not_keep_from_one_that_moves() {
    let mut w = World::new();
    w.node("cloud", dear(), 0);
    quota(&mut w, "team", "money", json!({ "maxHourlyCost": 2 }));
    named(&mut w, "team", "a", service(2, "i"));
    // The first has lost its place by hand, and another workload has taken what it cost.
    let name = Name::new("team", "a");
    w.index.take_back(&name, 0);
    named(&mut w, "team", "b", service(1, "i"));
    w.node("cloud-2", dear(), 0);
    w.node_spec("cloud", json!({ "site": "lab", "draining": true }));
    w.settle();
    let second = w.index.placement(&name, 1).unwrap();
    assert_eq!(second.spec.node, "cloud-2");
    assert!(w.index.placement(&name, 0).is_none());
}

#[test]
fn a_gang_gets_all_its_places_or_none() {
    let mut w = World::new();
    w.node("one", json!({}), 0);
    let gang = with_policy(job(6), json!({ "gang": true }));
    named(&mut w, "team", "g", gang);
    assert_eq!(placed(&w, "team", "g"), 0);
    assert_eq!(w.index.fleet.node("one").unwrap().free.cpu_millis, 4000);
    assert!(w.started.is_empty() && w.objects.is_empty());
    let (reason, text) = why(&w, "team", "g");
    assert_eq!(reason, "Unplaceable");
    assert!(text.ends_with("(all 6 get a place, or none)"), "{text}");
    // Who needs less is not kept waiting.
    named(&mut w, "team", "small", service(1, "i"));
    assert_eq!(placed(&w, "team", "small"), 1);
    w.node("two", json!({}), 0);
    assert_eq!(placed(&w, "team", "g"), 6);
    assert_eq!(w.started.len(), 7);
}

#[test]
fn a_gang_larger_than_a_turn_is_placed_in_one() {
    let mut w = World::new();
    for i in 0..10 {
        w.node(&format!("n{i}"), json!({}), 0);
    }
    let gang = with_policy(job(40), json!({ "gang": true }));
    named(&mut w, "team", "g", gang);
    assert_eq!(placed(&w, "team", "g"), 40);
}

#[test]
fn a_gang_waits_for_a_quota_as_a_whole() {
    let mut w = World::new();
    w.node("cloud", dear(), 0);
    quota(&mut w, "team", "money", json!({ "maxHourlyCost": 2 }));
    named(
        &mut w,
        "team",
        "g",
        with_policy(job(3), json!({ "gang": true })),
    );
    assert_eq!(placed(&w, "team", "g"), 0);
    assert_eq!(why(&w, "team", "g").0, "QuotaExceeded");
    quota(&mut w, "team", "money", json!({ "maxHourlyCost": 3 }));
    assert_eq!(placed(&w, "team", "g"), 3);
}

#[test]
fn the_higher_priority_goes_first_where_not_all_find_room() {
    let mut w = World::new();
    named(&mut w, "team", "a", service(4, "i"));
    let urgent = with_policy(service(4, "i"), json!({ "priority": 10 }));
    named(&mut w, "team", "z", urgent);
    w.node("one", json!({}), 0);
    assert_eq!((placed(&w, "team", "a"), placed(&w, "team", "z")), (0, 4));
}

#[test]
fn namespaces_take_turns_by_what_they_have() {
    let mut w = World::new();
    // The greedy one came first with many.
    for i in 0..6 {
        named(&mut w, "greedy", &format!("g{i}"), service(1, "i"));
    }
    for i in 0..2 {
        named(&mut w, "modest", &format!("m{i}"), service(1, "i"));
    }
    let order =
        |w: &World| -> Vec<String> { w.index.fair_order().into_iter().map(|n| n.name).collect() };
    w.node("one", json!({}), 0);
    let of = |namespace: &str| {
        let placements = w.index.placements();
        placements.filter(|p| p.key.namespace == namespace).count()
    };
    assert_eq!((of("greedy"), of("modest")), (2, 2));
    // Who waited longest goes first in a namespace.
    assert_eq!(order(&w), ["g2", "g3", "g4", "g5"]);
}
