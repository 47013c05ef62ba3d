//! Decisions that sites made while they were cut off.

use hyperion_api::workload::HyperionWorkloadSpec;
use hyperion_api::{SITE_UID, agent_pod, intent};
use hyperion_proto::agent_v1::{
    RankedNode, RecordState, ReplicaRecord, ScoreTerm, SiteExplanation,
};

use super::*;
use crate::index::Answer;
use crate::plan::site::RETURN;

const DECIDED: i64 = 1_764_331_390_000;

/// What a site says of replica 0 of a workload with this spec.
fn record(spec: &Value, state: RecordState, node: &str, generation: u64) -> ReplicaRecord {
    let read: HyperionWorkloadSpec = serde_json::from_value(spec.clone()).unwrap();
    ReplicaRecord {
        key: Some(hyperion_proto::agent_v1::ReplicaKey {
            namespace: "default".to_owned(),
            workload: "w".to_owned(),
            workload_uid: "uid-1".to_owned(),
            index: 0,
        }),
        generation,
        decider: "edge-2".to_owned(),
        state: state.into(),
        node: node.to_owned(),
        pod: Some(agent_pod::pod_spec(&read, &[]).unwrap()),
        intent: Some(intent::intent(&read).unwrap()),
        explanation: Some(SiteExplanation {
            cause: "node edge-1 is dead".to_owned(),
            scorer: "ppo-q8".to_owned(),
            candidates: 2,
            terms: vec![ScoreTerm {
                name: "latency".to_owned(),
                value: 0.5,
            }],
            score: 1.5,
            top: ["edge-2", "edge-3"]
                .map(|node| RankedNode {
                    node: node.to_owned(),
                    score: 1.5,
                })
                .to_vec(),
            ..SiteExplanation::default()
        }),
        unix_ms: DECIDED,
        ..ReplicaRecord::default()
    }
}

impl World {
    fn brings(&mut self, node: &str, record: ReplicaRecord) {
        self.index.site_decided(node, vec![record], self.now);
        self.settle();
    }

    /// Node, generation, taken.
    fn answers(&mut self) -> Vec<(String, u64, bool)> {
        let flat = |a: Answer| {
            let (node, taken) = (a.node, a.taken);
            a.decisions
                .into_iter()
                .map(move |(_, generation, _)| (node.clone(), generation, taken))
        };
        self.index
            .take_answers()
            .into_iter()
            .flat_map(flat)
            .collect()
    }

    fn says(&mut self, node: &str, generation: i64, phase: ReplicaPhase) {
        let key = ReplicaKey {
            namespace: "default".to_owned(),
            workload: "w".to_owned(),
            uid: "uid-1".to_owned(),
            index: 0,
        };
        self.report_of(node, key, generation, phase, "", 0);
    }

    fn far(&mut self) {
        self.node_spec("far", json!({ "site": "other" }));
        self.connect("far", json!({}), 0);
    }

    fn event(&self, reason: &str) -> Option<&str> {
        let found = self.events.iter().find(|(r, _)| *r == reason);
        found.map(|(_, note)| note.as_str())
    }

    fn was_stopped(&self, node: &str, generation: i64) -> bool {
        self.stopped.contains(&(node.to_owned(), 0, generation))
    }
}

fn at(node: &str, generation: i64) -> Option<(String, i64)> {
    Some((node.to_owned(), generation))
}

/// Replica 0 ran on edge-1; the whole site is out of reach for a moment.
fn cut_off(spec: &Value) -> World {
    let mut w = World::new();
    w.node("edge-1", json!({}), 0);
    w.workload(spec.clone());
    w.run_all();
    w.node("edge-2", json!({}), 0);
    w.down("edge-1");
    w.down("edge-2");
    w.wait(Duration::from_secs(10));
    w
}

/// The site took replica 0 over on edge-2, which is back.
fn returned(spec: &Value) -> World {
    let mut w = cut_off(spec);
    w.connect("edge-2", json!({}), 0);
    w.says("edge-2", 2, ReplicaPhase::Running);
    w
}

/// The control plane has replica 0 on `far` meanwhile, in generation 2, and edge-2 is back.
fn both(spec: &Value) -> World {
    let mut w = cut_off(spec);
    w.far();
    w.wait(REPLACE_AFTER);
    assert_eq!(w.on(0), at("far", 2));
    w.run_all();
    w.connect("edge-2", json!({}), 0);
    w
}

fn reconciled(by: &str) -> Value {
    with_policy(
        service(1, "i"),
        json!({ "disconnect": { "reconcile": by } }),
    )
}

#[test]
fn what_the_site_decided_is_adopted_and_nothing_restarts() {
    let spec = service(1, "i");
    let mut w = returned(&spec);
    w.brings("edge-2", record(&spec, RecordState::Placed, "edge-2", 2));
    assert_eq!(w.on(0), at("edge-2", 2), "no new generation");
    let placement = w.index.placement(&World::name(), 0).unwrap();
    assert_eq!(placement.spec.decided_by, "edge-2");
    let why = &placement.spec.explanation;
    assert_eq!(
        (why.cause.as_str(), why.scorer.as_str()),
        ("node edge-1 is dead", "ppo-q8")
    );
    assert_eq!((why.terms.len(), why.top.len(), why.score), (1, 2, 1.5));
    assert_eq!(placement.spec.region, "lab");
    assert!(placement.ready(), "its node has said so already");
    assert_eq!(w.objects["w-0"]["spec"]["decidedBy"], "edge-2");
    assert_eq!(w.status().ready, "1/1");
    assert_eq!(w.stopped, [("edge-1".to_owned(), 0, 1)]);
    assert_eq!(
        w.started.last(),
        Some(&("edge-2".to_owned(), 0, 2)),
        "so that its list has it"
    );
    assert_eq!(w.answers(), [("edge-2".to_owned(), 2, true)]);
    assert_eq!(
        w.event("DecidedBySite"),
        Some(
            "node edge-2 took over replica 0 from node edge-1 at 2025-11-28 12:03:10 UTC, while site lab was cut off, because node edge-1 is dead"
        )
    );
    // It was away and is back on the same node, in a later generation.
    let mut again = returned(&with_policy(
        spec.clone(),
        json!({ "disconnect": { "reconcile": "controlPlane" } }),
    ));
    again.node_spec("edge-3", json!({ "site": "lab" }));
    again.connect("edge-1", json!({}), 0);
    again.says("edge-1", 3, ReplicaPhase::Running);
    again.connect("edge-3", json!({}), 0);
    again.brings("edge-3", record(&spec, RecordState::Placed, "edge-1", 3));
    assert_eq!(again.on(0), at("edge-1", 3));
    assert_eq!(again.stopped, []);

    // Another node of the site brings the same.
    let (started, stopped) = (w.started.len(), w.stopped.len());
    w.connect("edge-1", json!({}), 0);
    w.brings("edge-1", record(&spec, RecordState::Placed, "edge-2", 2));
    assert_eq!(w.answers(), [("edge-1".to_owned(), 2, true)]);
    assert_eq!((w.started.len(), w.stopped.len()), (started, stopped));
    assert_eq!(w.on(0), at("edge-2", 2));
}

#[test]
fn nobody_is_answered_before_the_decision_is_stored() {
    let spec = service(1, "i");
    let mut w = returned(&spec);
    w.slow_api = true;
    w.brings("edge-2", record(&spec, RecordState::Placed, "edge-2", 2));
    assert_eq!(w.on(0), at("edge-2", 2));
    assert_eq!(w.answers(), []);
    assert_eq!(w.started.len(), 1);
    w.index.stored(&World::name(), 0, 2);
    w.settle();
    assert_eq!(w.started.last(), Some(&("edge-2".to_owned(), 0, 2)));
    assert_eq!(w.answers(), [("edge-2".to_owned(), 2, true)]);
}

#[test]
fn a_control_plane_that_ended_between_storing_and_answering_is_told_again() {
    let spec = service(1, "i");
    let mut w = returned(&spec);
    w.brings("edge-2", record(&spec, RecordState::Placed, "edge-2", 2));
    let mut next = w.restart();
    next.workload(spec.clone());
    next.connect("edge-2", json!({}), 0);
    next.says("edge-2", 2, ReplicaPhase::Running);
    next.brings("edge-2", record(&spec, RecordState::Placed, "edge-2", 2));
    assert_eq!(next.answers(), [("edge-2".to_owned(), 2, true)]);
    assert_eq!(next.on(0), at("edge-2", 2));
    assert_eq!(next.stopped, []);
    assert_eq!(next.event("DecidedBySite"), None, "told once");
}

#[test]
fn a_replica_without_a_place_goes_on_where_the_site_has_it() {
    let spec = service(1, "i");
    let mut w = World::new();
    w.node_spec("edge-2", json!({ "site": "lab" }));
    w.workload(spec.clone());
    assert_eq!(w.on(0), None);
    let status = json!({ "tier": "edge", "provider": "edge", "arch": "amd64",
        "allocatable": { "cpu": "4", "memory": "8Gi" } });
    w.node_object("edge-2", json!({ "site": "lab" }), status);
    w.node_spec("edge-1", json!({ "site": "lab" }));
    // edge-1 is back first.
    w.index.workloads.get_mut(&World::name()).unwrap().highest = 4;
    w.brings("edge-1", record(&spec, RecordState::Placed, "edge-2", 7));
    assert_eq!(w.on(0), at("edge-2", 7));
    let mut w = World::new();
    w.node_object(
        "edge-2",
        json!({ "site": "lab" }),
        json!({ "allocatable": { "cpu": "4", "memory": "8Gi" } }),
    );
    w.node_spec("edge-1", json!({ "site": "lab" }));
    w.workload_with(spec.clone(), json!({}));
    w.index.workloads.get_mut(&World::name()).unwrap().highest = 8;
    w.brings("edge-1", record(&spec, RecordState::Placed, "edge-2", 7));
    assert_eq!(w.on(0), at("edge-2", 9), "nodes have seen 8");
    assert_eq!(w.started, [("edge-2".to_owned(), 0, 9)]);
}

#[test]
fn where_both_have_decided_the_healthy_copy_of_the_site_stays() {
    let spec = service(1, "i");
    let mut w = both(&spec);
    w.says("edge-2", 2, ReplicaPhase::Running);
    w.brings("edge-2", record(&spec, RecordState::Placed, "edge-2", 2));
    assert_eq!(w.on(0), at("edge-2", 3), "an order above both");
    assert!(!w.was_stopped("far", 2), "make before break");
    assert_eq!(w.started.last(), Some(&("edge-2".to_owned(), 0, 3)));
    assert_eq!(w.answers(), [("edge-2".to_owned(), 2, true)]);
    w.says("edge-2", 3, ReplicaPhase::Running);
    assert!(w.was_stopped("far", 2));
    assert!(!w.was_stopped("edge-2", 2) && !w.was_stopped("edge-2", 3));
}

#[test]
fn where_the_user_wants_it_the_control_plane_s_copy_stays() {
    let spec = reconciled("controlPlane");
    let mut w = both(&spec);
    w.says("edge-2", 2, ReplicaPhase::Running);
    w.brings("edge-2", record(&spec, RecordState::Placed, "edge-2", 2));
    assert_eq!(w.on(0), at("far", 2), "nothing moves, so no new generation");
    assert!(w.was_stopped("edge-2", 2));
    assert_eq!(w.answers(), [("edge-2".to_owned(), 2, true)]);
    assert!(
        w.event("SiteOverruled")
            .unwrap()
            .contains("the control plane has it on node far")
    );
}

#[test]
fn a_copy_that_does_badly_is_no_reason_to_stop_one_that_does_well() {
    let spec = service(1, "i");
    let mut w = both(&spec);
    w.says("edge-2", 2, ReplicaPhase::Backoff);
    w.brings("edge-2", record(&spec, RecordState::Placed, "edge-2", 2));
    assert_eq!(w.on(0), at("far", 2));
    assert!(w.was_stopped("edge-2", 2));

    let spec = reconciled("controlPlane");
    let mut w = both(&spec);
    w.down("far");
    w.says("edge-2", 2, ReplicaPhase::Running);
    w.brings("edge-2", record(&spec, RecordState::Placed, "edge-2", 2));
    assert_eq!(w.on(0), at("edge-2", 3));
    assert!(!w.was_stopped("edge-2", 2));
}

#[test]
fn the_control_plane_s_copy_is_waited_for_where_it_starts() {
    let spec = reconciled("controlPlane");
    let mut w = both(&spec);
    w.says("far", 2, ReplicaPhase::Starting);
    w.says("edge-2", 2, ReplicaPhase::Running);
    w.brings("edge-2", record(&spec, RecordState::Placed, "edge-2", 2));
    assert_eq!(w.on(0), at("far", 3), "above the one that it replaces");
    assert!(!w.was_stopped("edge-2", 2));
    assert!(
        w.started.contains(&("edge-2".to_owned(), 0, 2)),
        "its list has it meanwhile"
    );
    assert!(
        w.objects["w-0"]["metadata"]["annotations"].is_object(),
        "a restart knows of it"
    );
    w.says("far", 3, ReplicaPhase::Running);
    assert!(w.was_stopped("edge-2", 2));
}

#[test]
fn a_node_that_is_on_its_way_back_is_waited_for_and_not_for_ever() {
    let spec = service(1, "i");
    let about_3 = || ReplicaRecord {
        node: "edge-3".to_owned(),
        ..record(&spec, RecordState::Placed, "edge-3", 2)
    };
    for back in [true, false] {
        let mut w = both(&spec);
        w.node_spec("edge-3", json!({ "site": "lab" }));
        w.brings("edge-2", about_3());
        assert_eq!((w.on(0), w.answers()), (at("far", 2), vec![]));
        if back {
            w.connect("edge-3", json!({}), 0);
            w.says("edge-3", 2, ReplicaPhase::Running);
            assert_eq!(w.on(0), at("edge-3", 3));
        } else {
            w.wait(RETURN);
            assert_eq!(w.on(0), at("far", 2));
            assert!(w.was_stopped("edge-3", 2));
        }
        assert_eq!(w.answers(), [("edge-2".to_owned(), 2, true)]);
    }
}

#[test]
fn the_node_of_an_adopted_decision_counts_as_heard_by_its_site() {
    let spec = service(1, "i");
    let mut w = cut_off(&spec);
    w.wait(REPLACE_AFTER * 10);
    w.connect("edge-1", json!({}), 0);
    assert_eq!(w.on(0), at("edge-1", 1));
    // edge-1 says that the site has it on edge-2, which has no link of its own.
    w.brings("edge-1", record(&spec, RecordState::Placed, "edge-2", 2));
    assert_eq!(w.on(0), at("edge-2", 2));
    w.wait(REPLACE_AFTER / 2);
    assert_eq!(w.on(0), at("edge-2", 2));
    w.wait(REPLACE_AFTER);
    assert_eq!(w.on(0), at("edge-1", 3), "given up as any other");
}

#[test]
fn a_newer_decision_of_the_site_replaces_an_older_and_never_the_reverse() {
    let spec = service(1, "i");
    let mut w = returned(&spec);
    w.node_spec("edge-3", json!({ "site": "lab" }));
    w.connect("edge-3", json!({}), 0);
    w.brings("edge-3", record(&spec, RecordState::Placed, "edge-3", 3));
    assert_eq!(w.on(0), at("edge-3", 3));
    w.brings("edge-2", record(&spec, RecordState::Placed, "edge-2", 2));
    assert_eq!(w.on(0), at("edge-3", 3), "old news");
    w.brings("edge-2", record(&spec, RecordState::Placed, "edge-2", 4));
    assert_eq!(w.on(0), at("edge-2", 4));
    assert_eq!(w.answers().len(), 3);
}

#[test]
fn a_copy_that_is_not_wanted_any_more_is_told_to_stop() {
    let spec = service(1, "i");
    let mut w = returned(&spec);
    w.workload_with(service(0, "i"), json!({ "generation": 2 }));
    w.brings("edge-2", record(&spec, RecordState::Placed, "edge-2", 2));
    assert!(w.was_stopped("edge-2", 2));
    assert_eq!(w.answers(), [("edge-2".to_owned(), 2, true)]);
    assert!(
        w.event("SiteOverruled")
            .unwrap()
            .ends_with("the workload has 0 replicas")
    );

    let mut w = World::new();
    w.node("edge-2", json!({}), 0);
    w.brings("edge-2", record(&spec, RecordState::Placed, "edge-2", 2));
    assert!(w.was_stopped("edge-2", 2), "the workload was deleted");
    assert_eq!(w.answers(), [("edge-2".to_owned(), 2, true)]);
    let notes = w.index.take_node_notes();
    assert_eq!((notes.len(), notes[0].reason), (1, "SiteOverruled"));
    assert!(
        notes[0].text.ends_with("the workload was deleted"),
        "{}",
        notes[0].text
    );
}

#[test]
fn a_place_that_breaks_a_constraint_now_is_left_again() {
    let spec = service(1, "i");
    let mut w = returned(&spec);
    let aws = with_policy(
        spec.clone(),
        json!({ "constraints": { "clouds": ["aws"] } }),
    );
    w.workload_with(aws, json!({ "generation": 2 }));
    w.brings("edge-2", record(&spec, RecordState::Placed, "edge-2", 2));
    assert!(w.was_stopped("edge-2", 2));
    let (_, reason, message) = w.condition(conditions::PLACED);
    assert_eq!(reason, "Unplaceable");
    assert!(message.contains("1 by clouds"), "{message}");
    assert_eq!(w.answers(), [("edge-2".to_owned(), 2, true)]);
}

#[test]
fn a_job_that_ended_at_the_site_is_not_run_again() {
    let spec = job(1);
    let ended = |generation, outcome: ReplicaPhase| ReplicaRecord {
        outcome: outcome.into(),
        ..record(&spec, RecordState::Ended, "edge-2", generation)
    };
    let mut w = returned(&spec);
    w.brings("edge-2", ended(2, ReplicaPhase::Succeeded));
    assert_eq!(w.on(0), at("edge-2", 2));
    assert_eq!(w.status().phase, WorkloadPhase::Succeeded);
    w.wait(REPLACE_AFTER * 10);
    assert_eq!(w.on(0), at("edge-2", 2));
    assert_eq!(w.answers(), [("edge-2".to_owned(), 2, true)]);

    // The control plane runs it elsewhere already: its copy stops, the result stands.
    let mut w = both(&spec);
    w.brings("edge-2", ended(1, ReplicaPhase::Succeeded));
    assert_eq!(w.status().phase, WorkloadPhase::Succeeded);
    assert!(w.was_stopped("far", 2));
    w.says("far", 2, ReplicaPhase::Running);
    assert_eq!(w.status().phase, WorkloadPhase::Succeeded);
    let mut next = w.restart();
    next.workload(spec.clone());
    assert_eq!(next.status().phase, WorkloadPhase::Succeeded);
    assert_eq!(next.started, [], "a restart does not begin it anew");

    // A failure does not end another try.
    let mut w = both(&spec);
    w.brings("edge-2", ended(1, ReplicaPhase::Failed));
    assert_eq!(w.status().phase, WorkloadPhase::Running);
    let mut w = returned(&spec);
    w.brings("edge-2", ended(2, ReplicaPhase::Failed));
    assert_eq!(w.status().phase, WorkloadPhase::Failed);
}

#[test]
fn a_job_that_had_ended_when_its_node_is_back_is_not_run_on() {
    let spec = job(1);
    let mut w = both(&spec);
    w.connect("edge-1", json!({}), 0);
    w.says("edge-1", 1, ReplicaPhase::Succeeded);
    assert_eq!(w.status().phase, WorkloadPhase::Succeeded);
    assert!(w.was_stopped("far", 2));
    w.says("far", 2, ReplicaPhase::Failed);
    w.wait(REPLACE_AFTER * 10);
    assert_eq!(w.status().phase, WorkloadPhase::Succeeded);
    assert_eq!(w.on(0), at("far", 2), "nothing begins anew");
    // A failure there, or a service, says nothing about the copy that runs.
    for (spec, phase) in [
        (job(1), ReplicaPhase::Failed),
        (service(1, "i"), ReplicaPhase::Succeeded),
    ] {
        let mut w = both(&spec);
        w.connect("edge-1", json!({}), 0);
        w.says("edge-1", 1, phase);
        assert_eq!(w.status().phase, WorkloadPhase::Running);
    }
}

#[test]
fn what_the_site_has_no_place_for_is_placed_here() {
    let spec = service(1, "i");
    let mut w = returned(&spec);
    w.stopped.clear();
    w.says("edge-2", 2, ReplicaPhase::Stopped);
    let pending = record(&spec, RecordState::Pending, "", 5);
    w.brings("edge-2", pending.clone());
    assert_eq!(w.on(0), at("edge-2", 6), "above what the site knows");
    assert_eq!(w.answers(), [("edge-2".to_owned(), 5, true)]);
    // Old news.
    w.run_all();
    w.brings("edge-2", pending);
    assert_eq!(w.on(0), at("edge-2", 6));
    assert_eq!(w.answers().len(), 1);

    // The control plane has it at another site: that it has no place at this one is nothing new.
    let mut w = both(&spec);
    for state in [RecordState::Pending, RecordState::Removed] {
        w.brings("edge-2", record(&spec, state, "", 5));
        assert_eq!(w.on(0), at("far", 2));
        assert_eq!(w.answers(), [("edge-2".to_owned(), 5, true)]);
    }
    assert_eq!(w.index.workloads[&World::name()].highest, 5);

    // Nobody has room: it waits without a place.
    let mut w = returned(&spec);
    w.node_spec("edge-2", json!({ "site": "lab", "unschedulable": true }));
    w.brings("edge-2", record(&spec, RecordState::Pending, "", 5));
    assert_eq!(w.on(0), None);
    assert_eq!(w.condition(conditions::PLACED).1, "Unplaceable");
    assert_eq!(w.answers(), [("edge-2".to_owned(), 5, true)]);
    w.node_spec("edge-2", json!({ "site": "lab" }));
    w.settle();
    assert_eq!(w.on(0), at("edge-2", 6));
}

#[test]
fn what_was_removed_at_the_site_goes_on_where_the_workload_wants_it() {
    let spec = service(1, "i");
    let mut w = cut_off(&spec);
    w.connect("edge-1", json!({}), 0);
    w.run_all();
    w.brings("edge-1", record(&spec, RecordState::Removed, "", 3));
    assert_eq!(w.on(0), at("edge-1", 4));
    assert_eq!(w.started.last(), Some(&("edge-1".to_owned(), 0, 4)));
    assert_eq!(w.answers(), [("edge-1".to_owned(), 3, true)]);
}

#[test]
fn a_job_that_was_removed_at_the_site_after_it_had_ended_is_not_run_again() {
    let spec = job(1);
    let removed = |outcome: ReplicaPhase| ReplicaRecord {
        outcome: outcome.into(),
        ..record(&spec, RecordState::Removed, "", 3)
    };
    let mut w = cut_off(&spec);
    w.connect("edge-1", json!({}), 0);
    w.brings("edge-1", removed(ReplicaPhase::Succeeded));
    assert_eq!(w.on(0), at("edge-1", 1));
    assert_eq!(w.status().phase, WorkloadPhase::Succeeded);
    assert_eq!(w.answers(), [("edge-1".to_owned(), 3, true)]);
    let mut next = w.restart();
    next.workload(spec.clone());
    assert_eq!(next.started, [], "a restart does not begin it anew");

    let mut w = cut_off(&spec);
    w.connect("edge-1", json!({}), 0);
    w.brings("edge-1", removed(ReplicaPhase::Failed));
    assert_eq!(w.on(0), at("edge-1", 4), "a failure is tried again");
}

#[test]
fn a_decision_about_a_node_that_is_not_described_yet_is_not_overruled() {
    let spec = service(1, "i");
    for back in [true, false] {
        let mut w = cut_off(&spec).restart();
        w.workload(spec.clone());
        w.connect("edge-1", json!({}), 0);
        w.brings("edge-1", record(&spec, RecordState::Placed, "edge-2", 2));
        assert_eq!((w.on(0), w.answers()), (at("edge-1", 1), vec![]));
        if back {
            w.connect("edge-2", json!({}), 0);
            w.says("edge-2", 2, ReplicaPhase::Running);
            assert_eq!(w.on(0), at("edge-2", 2));
        } else {
            w.wait(RETURN);
            assert_eq!(w.on(0), at("edge-1", 3), "not for ever");
        }
        assert_eq!(w.answers(), [("edge-1".to_owned(), 2, true)]);
    }
    // It may run it, and nobody else is to.
    let spec = with_policy(service(1, "i"), json!({ "exclusive": true }));
    let mut w = cut_off(&spec).restart();
    w.workload(spec.clone());
    w.connect("edge-1", json!({}), 0);
    w.brings("edge-1", record(&spec, RecordState::Placed, "edge-2", 2));
    w.wait(RETURN * 100);
    assert_eq!((w.on(0), w.answers()), (at("edge-1", 1), vec![]));
    assert_eq!(w.stopped, []);
    w.connect("edge-2", json!({}), 0);
    w.wait(RETURN);
    assert_eq!(w.on(0), at("edge-2", 2));
}

// Workloads that were applied at the site.

fn local(spec: &Value, manifest: String) -> ReplicaRecord {
    let mut local = record(spec, RecordState::Placed, "edge-2", 1);
    local.key.as_mut().unwrap().workload_uid = "site-0a1b".to_owned();
    local.intent.as_mut().unwrap().manifest = manifest;
    local
}

fn manifest(spec: &Value) -> String {
    json!({ "apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionWorkload",
        "metadata": { "name": "w", "labels": { "a": "b" } }, "spec": spec })
    .to_string()
}

#[test]
fn what_was_applied_at_the_site_becomes_a_workload_and_nothing_restarts() {
    let spec = service(1, "i");
    let mut w = World::new();
    w.node("edge-2", json!({}), 0);
    w.brings("edge-2", local(&spec, manifest(&spec)));
    assert_eq!(w.made.len(), 1);
    let made = w.made[0].clone();
    assert_eq!(
        made.metadata.annotations.as_ref().unwrap()[SITE_UID],
        "site-0a1b"
    );
    assert_eq!(made.metadata.labels.as_ref().unwrap()["a"], "b");
    assert_eq!((w.answers(), w.stopped.len()), (vec![], 0));
    // Brought again, it is not made again.
    w.brings("edge-2", local(&spec, manifest(&spec)));
    assert_eq!(w.made.len(), 1);
    let annotations = json!({ "annotations": made.metadata.annotations });
    w.workload_with(spec.clone(), annotations.clone());
    assert_eq!(w.on(0), at("edge-2", 1));
    assert_eq!(w.key(0).uid, "site-0a1b");
    assert_eq!(w.started, [("edge-2".to_owned(), 0, 1)]);
    assert_eq!(w.stopped, []);
    assert_eq!(w.answers(), [("edge-2".to_owned(), 1, true)]);
    let owner = &w.objects["w-0"]["metadata"]["ownerReferences"][0]["uid"];
    assert_eq!(owner, "uid-1", "the object's own");
    // The next control plane knows it by the same key.
    let mut next = w.restart();
    next.workload_with(spec, annotations);
    assert_eq!(next.on(0), at("edge-2", 1));
    assert_eq!(next.stopped, []);
}

#[test]
fn what_cant_be_taken_over_goes_on_at_the_site_and_is_named() {
    let spec = service(1, "i");
    // Another workload of the name.
    let mut w = World::new();
    w.node("edge-1", json!({}), 0);
    w.workload(spec.clone());
    w.node("edge-2", json!({}), 0);
    w.brings("edge-2", local(&spec, manifest(&spec)));
    assert_eq!(w.answers(), [("edge-2".to_owned(), 1, false)]);
    assert_eq!((w.made.len(), w.stopped.len()), (0, 0));
    assert!(
        w.event("NotTakenOver")
            .unwrap()
            .contains("another workload of this name")
    );
    assert_eq!(w.index.take_node_notes().len(), 1);
    w.wait(Duration::from_secs(60));
    assert_eq!(w.index.take_node_notes().len(), 0, "said once");
    // Resolved by a person: it is taken over then.
    w.workload_with(
        spec.clone(),
        json!({ "deletionTimestamp": "2026-01-01T00:00:00Z" }),
    );
    let gone: HyperionWorkload = w.index.workloads[&World::name()].object.as_ref().clone();
    w.index.delete_workload(&DeserializeGuard(Ok(gone)));
    w.settle();
    assert_eq!(w.made.len(), 1);

    // Manifests that make no sense.
    let mut odd = spec.clone();
    odd["template"]["spec"]["containers"][0]["resources"] =
        json!({ "limits": { "amd.com/gpu": "1" } });
    for (manifest, expected) in [
        ("nonsense".to_owned(), "can't be read"),
        (manifest(&odd), "amd.com/gpu"),
        (manifest(&spec).replace("\"w\"", "\"x\""), "another name"),
    ] {
        let mut w = World::new();
        w.node("edge-2", json!({}), 0);
        w.brings("edge-2", local(&spec, manifest));
        assert_eq!(w.answers(), [("edge-2".to_owned(), 1, false)]);
        assert_eq!((w.made.len(), w.stopped.len()), (0, 0));
        let notes = w.index.take_node_notes();
        assert_eq!(notes[0].reason, "NotTakenOver");
        assert!(notes[0].text.contains(expected), "{}", notes[0].text);
    }
    // The API refuses it.
    let mut w = World::new();
    w.node("edge-2", json!({}), 0);
    w.brings("edge-2", local(&spec, manifest(&spec)));
    w.index.not_made(&World::name(), "it says no");
    assert_eq!(w.answers(), [("edge-2".to_owned(), 1, false)]);
    assert!(w.index.take_node_notes()[0].text.contains("it says no"));
}

// Nodes that lie.

#[test]
fn a_node_can_only_speak_for_its_own_site() {
    let spec = service(1, "i");
    let mut w = World::new();
    w.node("edge-1", json!({}), 0);
    w.workload(spec.clone());
    w.run_all();
    w.far();
    let before = w.started.len();
    for (lie, expected) in [
        (
            record(&spec, RecordState::Placed, "edge-1", 9),
            "edge-1 is of site \"lab\"",
        ),
        (
            ReplicaRecord {
                decider: "far".to_owned(),
                ..record(&spec, RecordState::Placed, "far", 1 << 30)
            },
            "from the future",
        ),
    ] {
        w.brings("far", lie);
        let notes = w.index.take_node_notes();
        assert_eq!(notes[0].node, "far");
        assert!(notes[0].text.contains(expected), "{}", notes[0].text);
        assert_eq!(w.answers().len(), 1, "its list is not held up");
    }
    assert_eq!(w.on(0), at("edge-1", 1));
    assert_eq!((w.started.len(), w.stopped.len()), (before, 0));
    assert_eq!(w.index.take_verdicts().refused, 2);
}

// What nodes are told to act by themselves.

#[test]
fn a_changed_policy_reaches_the_node_without_a_new_generation() {
    let spec = service(1, "i");
    let mut w = World::new();
    w.node("edge-1", json!({}), 0);
    w.workload(spec.clone());
    w.run_all();
    assert_eq!(
        w.intents.last().unwrap().replace_after_ms,
        0,
        "the user said nothing"
    );
    let changed = with_policy(spec, json!({ "disconnect": { "replaceAfter": "5s" } }));
    w.workload_with(changed, json!({ "generation": 2 }));
    assert_eq!(w.on(0), at("edge-1", 1));
    assert_eq!(w.started, vec![("edge-1".to_owned(), 0, 1); 2]);
    assert_eq!(w.intents.last().unwrap().replace_after_ms, 5000);
    assert!(w.index.placement(&World::name(), 0).unwrap().ready());
    w.wait(Duration::from_secs(5));
    assert_eq!(w.started.len(), 2, "told once");
}

#[test]
fn an_exclusive_replica_is_placed_again_once_its_site_must_have_stopped_it() {
    let exclusive = |disconnect: Value| {
        with_policy(
            service(1, "i"),
            json!({ "exclusive": true, "disconnect": disconnect }),
        )
    };
    let forever = exclusive(json!({}));
    let mut w = cut_off(&forever);
    w.far();
    w.wait(Duration::from_secs(86_400));
    assert_eq!(w.on(0), at("edge-1", 1), "nobody can tell");

    let stops = exclusive(json!({ "stopAfter": "60s" }));
    let mut w = World::new();
    w.node("edge-1", json!({}), 0);
    w.workload(stops);
    w.run_all();
    w.node("edge-2", json!({}), 0);
    w.down("edge-1");
    w.wait(Duration::from_secs(30));
    // The last of its site to go may have it now, and stops it later.
    w.down("edge-2");
    w.far();
    w.wait(Duration::from_secs(60 + 30 + 15));
    assert_eq!(w.on(0), at("edge-1", 1));
    w.wait(Duration::from_secs(3));
    assert_eq!(w.on(0), at("far", 2));
}

#[test]
fn an_exclusive_replica_is_not_placed_by_hearsay() {
    let spec = with_policy(service(1, "i"), json!({ "exclusive": true }));
    let mut w = cut_off(&spec);
    w.far();
    w.connect("edge-2", json!({}), 0);
    w.brings("edge-2", record(&spec, RecordState::Pending, "", 2));
    assert_eq!(
        w.on(0),
        at("edge-1", 3),
        "edge-1 may run it; its site has given out 2"
    );
    assert_eq!(w.answers(), [("edge-2".to_owned(), 2, true)]);
    w.wait(REPLACE_AFTER * 10);
    assert_eq!(w.on(0), at("edge-1", 3));
}

/// A majority of the site that is out of reach may place what others of it call pending.
#[test]
fn an_exclusive_replica_that_is_pending_waits_for_the_word_of_a_majority() {
    let spec = with_policy(service(1, "i"), json!({ "exclusive": true }));
    let mut w = cut_off(&spec);
    w.far();
    w.connect("edge-1", json!({}), 0);
    // The node itself says that it does not run it.
    w.says("edge-1", 1, ReplicaPhase::Stopped);
    w.brings("edge-1", record(&spec, RecordState::Pending, "", 2));
    w.wait(Duration::from_secs(3600));
    assert_eq!((w.on(0), w.answers()), (at("edge-1", 1), vec![]));
    let told = w.condition(conditions::PLACED).2;
    assert!(told.contains("1 of its 2 nodes"), "{told}");
    w.connect("edge-2", json!({}), 0);
    w.brings("edge-2", record(&spec, RecordState::Pending, "", 2));
    w.wait(Duration::from_secs(10));
    assert_eq!(w.on(0).map(|(_, generation)| generation), Some(3));
    assert_eq!(w.answers().len(), 2);

    // So does one that was applied at the site.
    let mut w = World::new();
    for id in ["edge-1", "edge-2", "edge-3"] {
        w.node_spec(id, json!({ "site": "lab" }));
    }
    w.far();
    w.connect("edge-2", json!({}), 0);
    let applied = ReplicaRecord {
        state: RecordState::Pending.into(),
        node: String::new(),
        ..local(&spec, manifest(&spec))
    };
    w.brings("edge-2", applied.clone());
    let annotations = w.made[0].metadata.annotations.clone();
    w.workload_with(spec, json!({ "annotations": annotations }));
    w.wait(Duration::from_secs(60));
    assert_eq!(w.on(0), None, "edge-1 and edge-3 may place it");
    w.connect("edge-3", json!({}), 0);
    w.brings("edge-3", applied);
    assert!(w.on(0).is_some());
    assert_eq!(w.answers().len(), 2);
}

#[test]
fn nothing_is_placed_beside_what_a_site_has_placed_on_a_node_that_is_not_back() {
    let spec = with_policy(service(1, "i"), json!({ "exclusive": true }));
    let mut w = World::new();
    for id in ["edge-1", "edge-2"] {
        w.node_spec(id, json!({ "site": "lab" }));
    }
    w.far();
    w.connect("edge-1", json!({}), 0);
    let mut placed = local(&spec, manifest(&spec));
    placed.node = "edge-2".to_owned();
    w.brings("edge-1", placed);
    let annotations = w.made[0].metadata.annotations.clone();
    w.workload_with(spec, json!({ "annotations": annotations }));
    w.wait(Duration::from_secs(600));
    assert_eq!(w.on(0), None);
    let told = w.condition(conditions::PLACED).2;
    assert!(told.contains("on node edge-2"), "{told}");
    w.connect("edge-2", json!({}), 0);
    w.wait(Duration::from_secs(60));
    assert_eq!(w.on(0), at("edge-2", 1));
}

#[test]
fn of_two_exclusive_copies_one_stops_at_once() {
    let spec = with_policy(
        service(1, "i"),
        json!({ "exclusive": true, "disconnect": { "stopAfter": "1s" } }),
    );
    let mut w = cut_off(&spec);
    w.far();
    w.wait(Duration::from_secs(100));
    assert_eq!(w.on(0), at("far", 2));
    w.run_all();
    w.connect("edge-2", json!({}), 0);
    w.says("edge-2", 2, ReplicaPhase::Running);
    w.brings("edge-2", record(&spec, RecordState::Placed, "edge-2", 2));
    assert_eq!(w.on(0), at("edge-2", 3));
    assert!(w.was_stopped("far", 2), "before the other is told anything");
}
