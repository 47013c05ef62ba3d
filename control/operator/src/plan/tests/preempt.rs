//! PriorityClasses: who goes first, and who gives way to whom.

use k8s_openapi::api::scheduling::v1::PriorityClass;

use super::quota::{named, placed, why};
use super::*;

fn class(w: &mut World, name: &str, value: i32, more: Value) {
    let mut object = json!({ "metadata": { "name": name }, "value": value });
    let more = more.as_object().unwrap().clone();
    object.as_object_mut().unwrap().extend(more);
    let object: PriorityClass = serde_json::from_value(object).unwrap();
    w.index.apply_class(DeserializeGuard(Ok(object)));
    w.settle();
}

fn with_class(mut spec: Value, class: &str) -> Value {
    spec["template"]["spec"]["priorityClassName"] = json!(class);
    spec
}

/// One replica that wants so many cores.
fn large(cores: u32, class: &str) -> Value {
    let mut spec = with_class(service(1, "i"), class);
    let limits = &mut spec["template"]["spec"]["containers"][0]["resources"]["limits"];
    limits["cpu"] = json!(cores.to_string());
    spec
}

/// A world with classes: `high`, `polite`, which waits, and `low`.
fn world() -> World {
    let mut w = World::new();
    w.index.reset_classes(Vec::new());
    class(&mut w, "high", 1000, json!({}));
    class(
        &mut w,
        "polite",
        1000,
        json!({ "preemptionPolicy": "Never" }),
    );
    class(&mut w, "low", -10, json!({}));
    w
}

/// Every replica of a workload runs; where it was told to stop it has stopped.
fn obey(w: &mut World, name: &str) {
    let name = Name::new("team", name);
    let all: Vec<_> = w.index.placements_of(&name).cloned().collect();
    for p in all {
        let phase = if p.stopping.is_some() {
            ReplicaPhase::Stopped
        } else {
            ReplicaPhase::Running
        };
        w.report_of(&p.spec.node, p.key, p.spec.generation, phase, "", 0);
    }
}

fn on(w: &World, name: &str) -> Vec<String> {
    let name = Name::new("team", name);
    let nodes = w.index.placements_of(&name);
    nodes.map(|p| p.spec.node.clone()).collect()
}

fn said(w: &World, reason: &str) -> usize {
    w.events.iter().filter(|(r, _)| *r == reason).count()
}

#[test]
fn what_becomes_free_goes_to_the_higher_class() {
    let mut w = world();
    class(&mut w, "usual", 5, json!({ "globalDefault": true }));
    named(&mut w, "team", "low", with_class(service(4, "i"), "low"));
    named(&mut w, "team", "none", service(1, "i"));
    named(
        &mut w,
        "team",
        "polite",
        with_class(service(2, "i"), "polite"),
    );
    let ranks = ["low", "none", "polite"].map(|name| w.index.rank(&Name::new("team", name)));
    assert_eq!(ranks, [-10, 5, 1000]);
    // Its own priority counts where it has no class, and the class where it has one.
    named(
        &mut w,
        "team",
        "own",
        with_policy(service(0, "i"), json!({ "priority": 7 })),
    );
    let both = with_policy(large(1, "low"), json!({ "priority": 7 }));
    named(&mut w, "team", "both", both);
    let ranks = ["own", "both"].map(|name| w.index.rank(&Name::new("team", name)));
    assert_eq!(ranks, [7, -10]);
    w.node("n1", json!({}), 0);
    let all = ["polite", "none", "low", "both"].map(|name| placed(&w, "team", name));
    assert_eq!(all, [2, 1, 1, 0]);
}

#[test]
fn a_class_that_is_not_there_holds_back_and_is_named() {
    let mut w = World::new();
    w.node("n1", json!({}), 0);
    named(&mut w, "team", "a", large(1, "gold"));
    assert_eq!(placed(&w, "team", "a"), 0);
    let (reason, text) = why(&w, "team", "a");
    assert_eq!(reason, "PriorityClassMissing");
    assert!(text.contains("have not been read"), "{text}");
    w.index.reset_classes(Vec::new());
    w.settle();
    assert!(why(&w, "team", "a").1.contains("no PriorityClass \"gold\""));
    class(&mut w, "gold", 1, json!({}));
    assert_eq!(placed(&w, "team", "a"), 1);
    // One that goes away stops nobody.
    let gone = json!({ "metadata": { "name": "gold" }, "value": 1 });
    w.index.delete_class(&guard(&gone));
    w.settle();
    assert_eq!((placed(&w, "team", "a"), w.stopped.len()), (1, 0));
    named(
        &mut w,
        "team",
        "system",
        large(1, "system-cluster-critical"),
    );
    assert_eq!(placed(&w, "team", "system"), 1);
}

#[test]
fn one_of_lower_priority_gives_way_and_waits_for_room() {
    let mut w = world();
    w.node("n1", json!({}), 0);
    named(&mut w, "team", "low", with_class(service(4, "i"), "low"));
    obey(&mut w, "low");
    named(&mut w, "team", "big", large(1, "high"));
    // One is enough, and no more than that.
    assert_eq!((w.stopped.len(), placed(&w, "team", "big")), (1, 0));
    let (reason, text) = why(&w, "team", "big");
    assert_eq!(reason, "Preempting");
    assert!(
        text.contains("on node n1 a replica of lower priority give way"),
        "{text}"
    );
    let victim = Name::new("team", "low");
    let ending = w
        .index
        .placements_of(&victim)
        .find(|p| p.stopping.is_some())
        .unwrap();
    assert_eq!(ending.status.reason, "Preempted");
    assert!(
        ending.status.message.contains("team/big"),
        "{}",
        ending.status.message
    );
    w.wait(Duration::from_secs(5));
    assert_eq!(w.stopped.len(), 1);
    obey(&mut w, "low");
    assert_eq!(on(&w, "big"), ["n1"]);
    assert_eq!(placed(&w, "team", "low"), 3);
    let (reason, text) = why(&w, "team", "low");
    assert_eq!(reason, "Preempted");
    assert!(
        text.contains(
            "gives way on node n1 to replica 0 of team/big, whose priority is 1000 and not -10"
        ),
        "{text}"
    );
    assert_eq!((said(&w, "Preempts"), said(&w, "Preempted")), (1, 1));
    w.node("n2", json!({}), 0);
    assert_eq!(placed(&w, "team", "low"), 4);
    assert_eq!(why(&w, "team", "low").0, "AllPlaced");
    obey(&mut w, "big");
    assert_eq!(w.stopped.len(), 1);
}

#[test]
fn a_service_that_gives_way_is_started_elsewhere_before_it_stops() {
    let mut w = world();
    for node in ["n1", "n2"] {
        w.node(node, json!({}), 0);
    }
    // They spread: two on each.
    named(&mut w, "team", "low", with_class(service(4, "i"), "low"));
    obey(&mut w, "low");
    named(&mut w, "team", "big", large(4, "high"));
    assert_eq!((placed(&w, "team", "big"), w.stopped.len()), (0, 0));
    let there = on(&w, "low");
    assert_eq!(there.iter().collect::<BTreeSet<_>>().len(), 1, "{there:?}");
    obey(&mut w, "low");
    // The new copies are ready: the old ones end, and their room is the large one's.
    assert_eq!(w.stopped.len(), 2);
    let stopped = w.stopped.clone();
    for (node, replica, generation) in stopped {
        let key = w
            .index
            .placement(&Name::new("team", "low"), replica)
            .unwrap()
            .key
            .clone();
        w.report_of(&node, key, generation, ReplicaPhase::Stopped, "", 0);
    }
    assert_eq!(placed(&w, "team", "big"), 1);
    assert_ne!(on(&w, "big")[0], there[0]);
    assert_eq!((placed(&w, "team", "low"), w.stopped.len()), (4, 2));
}

#[test]
fn nobody_gives_way_to_an_equal_or_to_one_that_waits_and_exclusive_ones_never_do() {
    for (low, high) in [
        (
            with_class(service(4, "i"), "low"),
            with_class(service(1, "i"), "polite"),
        ),
        (
            with_class(service(4, "i"), "high"),
            with_class(service(1, "i"), "high"),
        ),
        // Priority alone is no class.
        (
            service(4, "i"),
            with_policy(service(1, "i"), json!({ "priority": 9 })),
        ),
        (
            with_policy(
                with_class(service(4, "i"), "low"),
                json!({ "exclusive": true }),
            ),
            large(1, "high"),
        ),
        // It would not fit even then.
        (with_class(service(4, "i"), "low"), large(5, "high")),
        (
            with_class(service(4, "i"), "low"),
            with_policy(with_class(service(2, "i"), "high"), json!({ "gang": true })),
        ),
    ] {
        let mut w = world();
        w.node("n1", json!({}), 0);
        named(&mut w, "team", "low", low);
        obey(&mut w, "low");
        named(&mut w, "team", "other", high);
        let now = (placed(&w, "team", "low"), placed(&w, "team", "other"));
        assert_eq!((now, w.stopped.len()), ((4, 0), 0));
        assert_eq!(why(&w, "team", "other").0, "Unplaceable");
    }
}

fn delete_class(w: &mut World, name: &str) {
    let gone = json!({ "metadata": { "name": name }, "value": 0 });
    w.index.delete_class(&guard(&gone));
    w.settle();
}

#[test]
fn what_runs_keeps_the_priority_that_it_was_placed_with() {
    let mut w = world();
    class(&mut w, "usual", 5000, json!({ "globalDefault": true }));
    w.node("n1", json!({}), 0);
    named(&mut w, "default", "w", service(4, "i"));
    // The default goes, and this control plane is one that never knew it.
    delete_class(&mut w, "usual");
    let mut w = w.restart();
    w.index.reset_classes(Vec::new());
    named(&mut w, "default", "w", service(4, "i"));
    w.node("n1", json!({}), 0);
    class(&mut w, "high", 1000, json!({}));
    assert_eq!(w.index.rank(&World::name()), 0);
    named(&mut w, "team", "big", large(1, "high"));
    assert_eq!((w.stopped.len(), placed(&w, "team", "big")), (0, 0));
    assert_eq!(why(&w, "team", "big").0, "Unplaceable");
    // A default that comes later does not lift what runs, either.
    class(&mut w, "highest", 9000, json!({}));
    class(&mut w, "later", 9500, json!({ "globalDefault": true }));
    named(&mut w, "team", "big", large(1, "highest"));
    assert_eq!(w.stopped.len(), 1);
    let note = w.events.iter().find(|(r, _)| *r == "Preempted");
    let note = &note.unwrap().1;
    assert!(note.contains("priority is 9000 and not 5000"), "{note}");
}

#[test]
fn a_priority_of_its_own_counts_as_it_is_now() {
    let mut w = world();
    w.node("n1", json!({}), 0);
    let own = |priority: i32| with_policy(service(4, "i"), json!({ "priority": priority }));
    named(&mut w, "team", "own", own(7));
    named(&mut w, "team", "own", own(1000));
    named(&mut w, "team", "big", large(1, "high"));
    assert_eq!(w.stopped.len(), 0);
    named(&mut w, "team", "own", own(999));
    named(&mut w, "team", "other", large(1, "high"));
    assert_eq!(w.stopped.len(), 1);
}

#[test]
fn the_least_is_lost() {
    let mut w = world();
    class(&mut w, "middle", 100, json!({}));
    w.node("n1", json!({}), 0);
    named(&mut w, "team", "middle", large(4, "middle"));
    w.node("n2", json!({}), 0);
    named(&mut w, "team", "low", with_class(service(4, "i"), "low"));
    for name in ["middle", "low"] {
        obey(&mut w, name);
    }
    named(&mut w, "team", "big", large(4, "high"));
    // All four of the lowest rather than one that is higher.
    assert_eq!(w.stopped.len(), 4);
    obey(&mut w, "low");
    assert_eq!(
        (on(&w, "big"), on(&w, "middle")),
        (vec!["n2".to_owned()], vec!["n1".to_owned()])
    );
}

#[test]
fn each_replica_gets_the_room_of_others_and_only_where_it_could_be() {
    let mut w = world();
    for (node, zone) in [("n1", "a"), ("n2", "b"), ("n3", "b")] {
        w.node(node, json!({ "zone": zone }), 0);
    }
    named(&mut w, "team", "low", with_class(service(12, "i"), "low"));
    obey(&mut w, "low");
    let mut big = large(2, "high");
    big["replicas"] = json!(3);
    big["template"]["spec"]["nodeSelector"] = json!({ "zone": "b" });
    named(&mut w, "team", "big", big);
    let mut gone: Vec<String> = w.stopped.iter().map(|(node, ..)| node.clone()).collect();
    gone.sort();
    assert_eq!(gone, ["n2", "n2", "n2", "n2", "n3", "n3"]);
    let each: BTreeSet<_> = w.stopped.iter().collect();
    assert_eq!(each.len(), 6, "none of them twice");
    // All have stopped: the three have what was made free for them.
    obey(&mut w, "low");
    let mut got = on(&w, "big");
    got.sort();
    assert_eq!(got, ["n2", "n2", "n3"]);
}

#[test]
fn room_is_made_in_a_pool_that_is_left_alone_where_there_is_no_other() {
    let mut w = world();
    let spot = json!({ "hyperion.io/provider": "aws", "hyperion.io/capacity-type": "spot",
        "topology.kubernetes.io/region": "us-east-1", "topology.kubernetes.io/zone": "us-east-1a",
        "node.kubernetes.io/instance-type": "m5.xlarge" });
    w.node("n1", spot.clone(), 0);
    named(&mut w, "team", "low", with_class(service(4, "i"), "low"));
    obey(&mut w, "low");
    w.node("n2", spot, 0);
    let notice = hyperion_gateway::notices::Notice {
        kind: hyperion_gateway::notices::NoticeKind::Spot,
        deadline: None,
        id: "i".to_owned(),
        detail: "terminate".to_owned(),
    };
    let (now, clock) = (w.now, w.clock);
    w.index.node_notices("n2", &[notice], now, clock);
    w.settle();
    named(&mut w, "team", "big", large(1, "high"));
    assert_eq!(w.stopped.len(), 1);
    obey(&mut w, "low");
    assert_eq!(on(&w, "big"), ["n1"]);
}

#[test]
fn one_that_finds_room_meanwhile_lets_the_others_be() {
    let mut w = world();
    w.node("n1", json!({}), 0);
    let job = with_class(job(4), "low");
    named(&mut w, "team", "low", job);
    obey(&mut w, "low");
    w.slow_api = true;
    named(&mut w, "team", "big", large(2, "high"));
    assert_eq!(w.stopped.len(), 2);
    w.node("n2", json!({}), 0);
    assert_eq!(on(&w, "big"), ["n2"]);
    // Those that were stopped already are placed again.
    obey(&mut w, "low");
    assert_eq!((placed(&w, "team", "low"), w.stopped.len()), (4, 2));
}
