//! Replicas that run well and are looked at again, and what is learnt from placements.

use super::*;
use crate::decider::tests::spendthrift;
use crate::plan::better::{LATER, MOVES};

const INTERVAL: Duration = Duration::from_secs(600);

fn priced(price: &str) -> Value {
    json!({ "hyperion.io/provider": "aws", "topology.kubernetes.io/region": "us-east-1",
        "hyperion.io/price-per-hour": price })
}

fn world() -> World {
    let mut w = World::new();
    w.index.reconsider = Some(INTERVAL);
    w
}

/// A service that runs on a dear node, and a cheap one that came later.
fn on_a_dear_node(spec: Value) -> World {
    let mut w = world();
    w.node("dear", priced("8.0"), 0);
    w.workload(with_policy(spec, json!({ "goal": "cost" })));
    w.run_all();
    w.node("cheap", priced("0.1"), 0);
    w
}

/// An interval goes by, and the time for a second look.
fn look(w: &mut World) {
    w.wait(INTERVAL);
    w.wait(LATER);
}

#[test]
fn a_service_moves_to_a_much_better_place_and_is_never_without_a_copy() {
    let mut w = on_a_dear_node(service(1, "i"));
    assert_eq!(w.on(0), Some(("dear".to_owned(), 1)));
    look(&mut w);
    assert_eq!(w.on(0), Some(("cheap".to_owned(), 2)));
    assert_eq!(w.stopped, [], "the old copy serves until the new one does");
    let (reason, note) = w.events.last().unwrap();
    assert_eq!(*reason, "Moved");
    assert!(
        note.contains("to node cheap") && note.contains("USD/h"),
        "{note}"
    );
    w.run_all();
    assert_eq!(w.stopped, [("dear".to_owned(), 0, 1)]);
}

#[test]
fn a_place_that_is_hardly_better_is_not_worth_a_move() {
    let mut w = world();
    w.node("a", priced("1.0"), 0);
    w.workload(with_policy(service(1, "i"), json!({ "goal": "cost" })));
    w.run_all();
    w.node("b", priced("0.9"), 0);
    for _ in 0..5 {
        look(&mut w);
    }
    assert_eq!(w.on(0), Some(("a".to_owned(), 1)));
}

#[test]
fn a_place_that_is_better_for_a_moment_is_not_moved_to() {
    let mut w = on_a_dear_node(service(1, "i"));
    w.wait(INTERVAL);
    assert_eq!(w.on(0), Some(("dear".to_owned(), 1)), "seen once");
    w.node_spec("cheap", json!({ "unschedulable": true }));
    w.wait(LATER);
    w.node_spec("cheap", json!({ "site": "lab" }));
    w.settle();
    assert_eq!(w.on(0), Some(("dear".to_owned(), 1)));
    w.wait(INTERVAL);
    assert_eq!(w.on(0), Some(("dear".to_owned(), 1)), "seen once again");
    w.wait(LATER);
    assert_eq!(w.on(0), Some(("cheap".to_owned(), 2)));
}

#[test]
fn jobs_and_exclusive_workloads_stay_where_they_are() {
    let mut w = on_a_dear_node(job(1));
    look(&mut w);
    assert_eq!(w.on(0), Some(("dear".to_owned(), 1)));
    let mut w = world();
    w.node("dear", priced("8.0"), 0);
    let policy = json!({ "goal": "cost", "exclusive": true });
    w.workload(with_policy(service(1, "i"), policy));
    w.run_all();
    w.node("cheap", priced("0.1"), 0);
    look(&mut w);
    assert_eq!(w.on(0), Some(("dear".to_owned(), 1)));
}

#[test]
fn one_replica_of_a_workload_moves_at_a_time() {
    let mut w = on_a_dear_node(service(3, "i"));
    let moved = |w: &World| {
        let all = (0..3).filter_map(|r| w.on(r));
        all.filter(|(node, _)| node == "cheap").count()
    };
    for _ in 0..4 {
        look(&mut w);
    }
    assert_eq!(moved(&w), 1, "the first has not come up yet");
    w.run_all();
    for _ in 0..6 {
        look(&mut w);
        w.run_all();
    }
    assert!(moved(&w) > 1);
}

#[test]
fn with_many_on_their_way_no_further_one_is_sent() {
    let mut w = on_a_dear_node(service(1, "i"));
    for i in 0..MOVES as u32 {
        let mut entry = w.index.placement(&World::name(), 0).unwrap().clone();
        entry.key.workload = format!("other-{i}");
        let until = Some(w.now + INTERVAL * 3);
        let copy = crate::index::Leaving::of(&entry, until);
        w.index.leave(copy);
    }
    look(&mut w);
    assert_eq!(w.on(0), Some(("dear".to_owned(), 1)));
}

#[test]
fn a_cordoned_node_keeps_what_runs_well_on_it() {
    let mut w = world();
    w.node("a", priced("1.0"), 0);
    w.workload(with_policy(service(1, "i"), json!({ "goal": "cost" })));
    w.run_all();
    w.node_spec("a", json!({ "unschedulable": true }));
    w.node("b", priced("1.0"), 0);
    look(&mut w);
    assert_eq!(w.on(0), Some(("a".to_owned(), 1)));
}

#[test]
fn without_an_interval_nothing_is_reconsidered() {
    let mut w = on_a_dear_node(service(1, "i"));
    w.index.reconsider = None;
    w.wait(INTERVAL * 10);
    assert_eq!(w.on(0), Some(("dear".to_owned(), 1)));
}

#[test]
fn a_policy_that_likes_to_stay_where_it_runs_stays() {
    for (here, node) in [(0.0, "dear"), (100.0, "cheap")] {
        let mut w = world();
        let policy = spendthrift(here);
        w.index.set_network(Some(policy.network()));
        w.decider.set_policy(Some(policy));
        w.node("cheap", priced("0.1"), 0);
        w.workload(service(1, "i"));
        w.run_all();
        w.node("dear", priced("8.0"), 0);
        look(&mut w);
        assert_eq!(w.on(0).unwrap().0, node);
    }
}

#[test]
fn a_placement_tells_what_the_policy_and_rules_chose() {
    let mut w = world();
    let policy = spendthrift(0.0);
    w.index.set_network(Some(policy.network()));
    let hash = policy.hash.clone();
    w.decider.set_policy(Some(policy));
    w.node("cheap", priced("0.1"), 0);
    w.node("dear", priced("8.0"), 0);
    w.workload(service(1, "i"));
    assert_eq!(w.on(0), Some(("dear".to_owned(), 1)));
    let spec = &w.index.placement(&World::name(), 0).unwrap().spec;
    let why = &spec.explanation;
    assert_eq!((why.scorer.as_str(), &why.policy), ("ppo", &hash));
    assert_eq!(why.rules_choice.as_ref().unwrap().id, "cheap");
    let ids: Vec<&str> = why.top.iter().map(|r| r.id.as_str()).collect();
    assert_eq!(ids, ["dear", "cheap"]);
    assert_eq!(why.fallback, "");
}

// What is learnt.

#[test]
fn a_jobs_end_is_an_experience() {
    let mut w = World::new();
    w.node("a", priced("1.0"), 0);
    w.workload(job(2));
    w.run_all();
    w.wait(Duration::from_secs(1800));
    assert!(w.experiences.is_empty());
    w.report(0, ReplicaPhase::Succeeded, "Completed", 0);
    w.report(1, ReplicaPhase::Failed, "Error", 0);
    let found: Vec<bool> = w.experiences.iter().map(|e| e.outcome.completed).collect();
    assert_eq!(found, [true, false]);
    let first = &w.experiences[0];
    assert!((first.outcome.hours - 0.5).abs() < 1e-9);
    assert!(first.outcome.cost_per_hour > 0.0 && first.outcome.p99_ms.is_none());
    assert!(first.to_line().is_ok());
}

#[test]
fn a_service_that_lost_its_node_or_its_right_to_be_there_says_so() {
    let mut w = World::new();
    w.node("a", priced("1.0"), 0);
    w.workload(service(1, "i"));
    w.run_all();
    w.node("b", priced("2.0"), 0);
    w.down("a");
    w.wait(REPLACE_AFTER);
    assert_eq!(w.on(0), Some(("b".to_owned(), 2)));
    w.run_all();
    let lost = &w.experiences[0].outcome;
    assert!(!lost.completed && !lost.moved && lost.violations == 0);
    w.connect("a", priced("1.0"), 0);
    let taint = json!([{ "key": "k", "value": "v", "effect": "NoExecute" }]);
    w.node_spec("b", json!({ "taints": taint }));
    w.settle();
    assert_eq!(w.on(0).unwrap().0, "a");
    let broken = &w.experiences[1].outcome;
    assert!(broken.completed && broken.moved && broken.violations == 1);
    w.run_all();
    let node = w.on(0).unwrap().0;
    let (key, generation) = (w.key(0), w.on(0).unwrap().1);
    w.workload_with(service(0, "i"), json!({ "generation": 2 }));
    w.report_of(&node, key, generation, ReplicaPhase::Stopped, "", 0);
    let ended = &w.experiences[2].outcome;
    assert!(ended.completed && !ended.moved && ended.violations == 0);
}

#[test]
fn a_job_that_leaves_a_draining_node_was_moved_and_not_lost() {
    let mut w = World::new();
    w.node("a", priced("1.0"), 0);
    w.workload(job(1));
    w.run_all();
    w.node("b", priced("2.0"), 0);
    let key = w.key(0);
    w.node_spec("a", json!({ "draining": true }));
    w.settle();
    assert!(w.experiences.is_empty(), "it has not stopped yet");
    w.report_of("a", key, 1, ReplicaPhase::Stopped, "", 0);
    assert_eq!(w.on(0).unwrap().0, "b");
    let moved = &w.experiences[0].outcome;
    assert!(!moved.completed && moved.moved && moved.violations == 0);
    w.run_all();
    w.report(0, ReplicaPhase::Succeeded, "Completed", 0);
    let ended = &w.experiences[1].outcome;
    assert!(ended.completed && !ended.moved);
}
