//! Handovers to another node that a restart of the control plane interrupts.

use super::*;
use crate::index::{HANDOVER, LEAVING};

/// Replica 0 ran on a, which is being drained, and has been told to start on b; it is not ready
/// there.
fn moving() -> World {
    let mut w = World::new();
    w.node("a", json!({}), 0);
    w.workload(service(1, "i"));
    w.run_all();
    w.node("b", json!({}), 0);
    w.node_spec("a", json!({ "draining": true }));
    w.settle();
    assert_eq!(w.on(0), Some(("b".to_owned(), 2)));
    w
}

/// Replica 0 ran on a, which is lost, and has been told to start on b.
fn lost() -> World {
    let mut w = World::new();
    w.node("a", json!({}), 0);
    w.workload(service(1, "i"));
    w.run_all();
    w.node("b", json!({}), 0);
    w.down("a");
    w.wait(REPLACE_AFTER);
    assert_eq!(w.on(0), Some(("b".to_owned(), 2)));
    w
}

/// The next control plane; its workload is read, its nodes are not connected.
fn next(w: &World) -> World {
    let mut next = w.restart();
    next.workload(service(1, "i"));
    next
}

fn reports(w: &mut World, node: &str, generation: i64, phase: ReplicaPhase) {
    let key = w.key(0);
    w.report_of(node, key, generation, phase, "", 0);
}

fn named(w: &World) -> Option<&str> {
    w.objects.get("w-0")?["metadata"]["annotations"][LEAVING].as_str()
}

fn over(w: &World) -> bool {
    named(w).is_none() && w.held_back().is_empty() && w.index.leaving.is_empty()
}

#[test]
fn the_old_copy_goes_on_until_the_new_one_is_ready() {
    let mut w = next(&moving());
    assert_eq!(w.started, [("b".to_owned(), 0, 2)]);
    assert_eq!(w.held_back(), ["a"], "a must not stop what its list lacks");
    w.connect("a", json!({}), 0);
    reports(&mut w, "a", 1, ReplicaPhase::Running);
    w.connect("b", json!({}), 0);
    reports(&mut w, "b", 2, ReplicaPhase::Starting);
    w.wait(Duration::from_secs(50));
    assert_eq!(w.stopped, []);
    reports(&mut w, "b", 2, ReplicaPhase::Running);
    assert_eq!(w.stopped, [("a".to_owned(), 0, 1)]);
    reports(&mut w, "a", 1, ReplicaPhase::Stopped);
    assert!(over(&w), "{:?}", named(&w));
}

#[test]
fn the_old_copy_keeps_its_room_on_its_node() {
    let mut first = World::new();
    first.node("a", json!({}), 1);
    let mut spec = service(1, "i");
    spec["template"]["spec"]["containers"][0]["resources"] =
        json!({ "limits": { "cpu": "1", "nvidia.com/gpu": "1" } });
    first.workload(spec.clone());
    first.run_all();
    first.node("b", json!({}), 1);
    first.node_spec("a", json!({ "draining": true }));
    first.settle();
    let mut w = first.restart();
    w.workload(spec);
    w.connect("a", json!({}), 1);
    let a = w.first_node();
    assert_eq!((a.free.cpu_millis, a.gpus[0].free_millis), (3000, 0));
}

#[test]
fn the_old_copy_is_stopped_in_the_end_if_the_new_one_is_never_ready() {
    let mut w = next(&moving());
    w.connect("a", json!({}), 0);
    reports(&mut w, "a", 1, ReplicaPhase::Running);
    w.connect("b", json!({}), 0);
    w.wait(Duration::from_secs(59));
    assert_eq!(w.stopped, []);
    w.wait(Duration::from_secs(2));
    assert_eq!(w.stopped, [("a".to_owned(), 0, 1)]);
    reports(&mut w, "a", 1, ReplicaPhase::Stopped);
    assert!(over(&w), "{:?}", named(&w));
    assert!(over(&next(&w)), "the third control plane knows of nothing");
}

#[test]
fn an_old_node_that_is_gone_holds_nothing_up_for_long() {
    for deleted in [false, true] {
        let mut first = moving();
        if deleted {
            first.index.node_down("a", first.now);
            first.index.delete_node("a");
        }
        let mut w = next(&first);
        w.connect("b", json!({}), 0);
        w.wait(Duration::from_secs(61));
        assert!(over(&w), "deleted: {deleted}; {:?}", named(&w));
    }
}

#[test]
fn a_handover_goes_on_when_the_new_node_is_lost_and_after_a_second_restart() {
    let mut first = moving();
    first.node("c", json!({}), 0);
    let mut second = next(&first);
    second.connect("a", json!({}), 0);
    reports(&mut second, "a", 1, ReplicaPhase::Running);
    second.connect("c", json!({}), 0);
    second.wait(Duration::from_secs(31));
    assert_eq!(second.on(0), Some(("c".to_owned(), 3)));
    assert_eq!(
        second.stopped,
        [("b".to_owned(), 0, 2)],
        "b may not start it any more; a goes on"
    );
    let mut third = next(&second);
    assert_eq!(third.held_back(), ["a"]);
    third.connect("a", json!({}), 0);
    reports(&mut third, "a", 1, ReplicaPhase::Running);
    third.connect("c", json!({}), 0);
    assert_eq!(third.stopped, []);
    reports(&mut third, "c", 3, ReplicaPhase::Running);
    assert_eq!(third.stopped, [("a".to_owned(), 0, 1)]);
}

#[test]
fn a_status_of_the_old_copy_does_not_pass_for_the_new_one_s() {
    let first = moving();
    let mut w = World::new();
    for id in ["a", "b"] {
        w.node_spec(id, json!({ "site": "lab" }));
    }
    // The decision was stored, and what was to be its status was not.
    let mut object = first.objects["w-0"].clone();
    object["status"] = json!({ "phase": "Running", "ready": true, "observedGeneration": 1 });
    w.index.apply_placement(guard(&object), w.now);
    w.workload(service(1, "i"));
    assert_eq!(w.held_back(), ["a"]);
    assert_eq!(w.stopped, []);
}

#[test]
fn what_was_ready_before_the_restart_needs_no_old_copy() {
    let mut first = moving();
    let mut object = first.objects["w-0"].clone();
    first.run_all();
    assert!(named(&first).is_none());
    // What the handover's end changed was not stored any more.
    object["status"] = json!({ "phase": "Running", "ready": true, "observedGeneration": 2 });
    let mut w = World::new();
    for id in ["a", "b"] {
        w.node_spec(id, json!({ "site": "lab" }));
    }
    w.index.apply_placement(guard(&object), w.now);
    w.workload(service(1, "i"));
    w.connect("a", json!({}), 0);
    assert_eq!(w.stopped, [("a".to_owned(), 0, 1)]);
    reports(&mut w, "a", 1, ReplicaPhase::Stopped);
    assert!(over(&w), "{:?}", named(&w));
}

#[test]
fn a_handover_of_a_deleted_workload_ends_everywhere() {
    let mut w = next(&moving());
    w.connect("a", json!({}), 0);
    reports(&mut w, "a", 1, ReplicaPhase::Running);
    w.connect("b", json!({}), 0);
    reports(&mut w, "b", 2, ReplicaPhase::Starting);
    w.workload_with(
        service(1, "i"),
        json!({ "deletionTimestamp": "2030-01-01T00:00:00Z", "finalizers": [FINALIZER] }),
    );
    let mut stopped = w.stopped.clone();
    stopped.sort();
    assert_eq!(stopped, [("a".to_owned(), 0, 1), ("b".to_owned(), 0, 2)]);
    reports(&mut w, "a", 1, ReplicaPhase::Stopped);
    reports(&mut w, "b", 2, ReplicaPhase::Stopped);
    assert!(w.objects.is_empty(), "nothing is stored after the deletion");
}

#[test]
fn an_annotation_that_makes_no_sense_is_ignored() {
    let first = moving();
    for text in [
        "",
        "null",
        r#"[{"node": "a"}]"#,
        r#"[{"node": "a", "generation": 2}]"#,
        r#"[{"node": "b", "generation": 1}]"#,
    ] {
        let mut object = first.objects["w-0"].clone();
        object["metadata"]["annotations"][LEAVING] = json!(text);
        let mut w = World::new();
        w.index.apply_placement(guard(&object), w.now);
        assert!(w.index.leaving.is_empty(), "{text}");
        assert_eq!(w.on(0), Some(("b".to_owned(), 2)), "{text}");
    }
}

#[test]
fn a_copy_on_a_node_that_is_back_goes_on_until_the_one_placed_for_it_is_ready() {
    for back in [true, false] {
        let mut w = lost();
        reports(&mut w, "b", 2, ReplicaPhase::Starting);
        if back {
            w.connect("a", json!({}), 0);
            reports(&mut w, "a", 1, ReplicaPhase::Running);
        }
        w.wait(Duration::from_secs(300));
        assert_eq!(w.stopped, [], "b pulls an image");
        reports(&mut w, "b", 2, ReplicaPhase::Running);
        if !back {
            w.wait(Duration::from_secs(60));
            assert_eq!(w.stopped, [], "nobody is in anybody's way");
            w.connect("a", json!({}), 0);
            reports(&mut w, "a", 1, ReplicaPhase::Running);
        }
        assert_eq!(w.stopped, [("a".to_owned(), 0, 1)]);
        reports(&mut w, "a", 1, ReplicaPhase::Stopped);
        assert!(over(&w), "{:?}", named(&w));
    }
}

#[test]
fn a_copy_on_a_node_that_never_comes_back_is_forgotten() {
    let mut w = lost();
    reports(&mut w, "b", 2, ReplicaPhase::Running);
    w.wait(HANDOVER * 15);
    assert!(over(&w), "{:?}", named(&w));
}

#[test]
fn a_copy_that_is_back_serves_while_the_node_after_it_is_out_of_reach() {
    let mut w = lost();
    reports(&mut w, "b", 2, ReplicaPhase::Running);
    w.down("b");
    w.wait(REPLACE_AFTER / 2);
    w.connect("a", json!({}), 0);
    reports(&mut w, "a", 1, ReplicaPhase::Running);
    assert_eq!(w.stopped, [], "nothing else serves");
    w.wait(REPLACE_AFTER / 2);
    assert_eq!(w.on(0), Some(("a".to_owned(), 3)));
    assert_eq!(w.stopped, [], "a goes on with what it runs");
}

#[test]
fn a_control_plane_that_began_meanwhile_lets_a_copy_go_on_that_it_has_not_heard_of() {
    let mut first = World::new();
    first.node("a", json!({}), 0);
    first.workload(service(1, "i"));
    first.run_all();
    first.node_spec("b", json!({ "site": "lab" }));
    let mut w = next(&first);
    w.connect("b", json!({}), 0);
    w.wait(REPLACE_AFTER);
    assert_eq!(w.on(0), Some(("b".to_owned(), 2)));
    w.connect("a", json!({}), 0);
    reports(&mut w, "a", 1, ReplicaPhase::Running);
    assert_eq!(w.stopped, [], "b is not ready yet");
    reports(&mut w, "b", 2, ReplicaPhase::Running);
    assert_eq!(w.stopped, [("a".to_owned(), 0, 1)]);
}
