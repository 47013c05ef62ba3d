//! Nodes that their cloud is about to take back.

use hyperion_gateway::notices::{Notice, NoticeKind};

use super::*;

const WHOLE: Duration = Duration::from_secs(120);

/// A spot machine of this provider and zone.
fn spot(provider: &str, zone: &str) -> Value {
    machine(provider, zone, "spot")
}

fn machine(provider: &str, zone: &str, capacity: &str) -> Value {
    json!({ "hyperion.io/provider": provider, "topology.kubernetes.io/region": "us-east-1",
        "topology.kubernetes.io/zone": zone, "node.kubernetes.io/instance-type": "m5.xlarge",
        "hyperion.io/capacity-type": capacity, "hyperion.io/price-per-hour": "0.1" })
}

impl World {
    fn notice(&mut self, node: &str, kind: NoticeKind, left: Option<Duration>) {
        let clock = Timestamp::UNIX_EPOCH;
        let notice = Notice {
            kind,
            deadline: left.map(|left| clock + left),
            id: format!("{kind:?} {left:?}"),
            detail: "terminate".to_owned(),
        };
        self.index.node_notices(node, &[notice], self.now, clock);
        self.settle();
    }

    fn withdraw(&mut self, node: &str) {
        let clock = Timestamp::UNIX_EPOCH;
        self.index.node_notices(node, &[], self.now, clock);
        self.settle();
    }

    fn node_of(&self, replica: u32) -> String {
        self.on(replica).map(|(node, _)| node).unwrap_or_default()
    }

    /// Passes, and time for pools to be used again.
    fn later(&mut self, time: Duration) {
        self.now += time;
        self.index.warm(self.now);
        self.wait(Duration::ZERO);
    }
}

#[test]
fn a_service_gets_its_new_copy_at_once_and_the_old_one_serves_until_it_is_ready() {
    let mut w = World::new();
    w.node("a", spot("aws", "a"), 0);
    w.workload(service(1, "i"));
    w.run_all();
    w.node("same-pool", spot("aws", "a"), 0);
    w.node("b", spot("aws", "b"), 0);
    w.notice("a", NoticeKind::Spot, Some(WHOLE));
    assert_eq!(w.started.last(), Some(&("b".to_owned(), 0, 2)));
    assert_eq!(w.stopped, []);
    w.wait(WHOLE - Duration::from_secs(6));
    assert_eq!(w.stopped, [], "the new one is slow, and there is time");
    w.run_all();
    assert_eq!(w.stopped, [("a".to_owned(), 0, 1)]);
    let (reason, note) = w.events.last().unwrap();
    assert_eq!(*reason, "Replaced");
    assert!(
        note.contains("node a is about to be taken away: terminate"),
        "{note}"
    );
    // The same word again changes nothing.
    w.notice("a", NoticeKind::Spot, Some(WHOLE));
    assert_eq!((w.started.len(), w.stopped.len()), (2, 1));
}

#[test]
fn the_old_copy_ends_before_its_node_does() {
    let mut w = World::new();
    w.node("a", spot("aws", "a"), 0);
    w.workload(service(1, "i"));
    w.run_all();
    w.node("b", spot("aws", "b"), 0);
    w.notice("a", NoticeKind::Spot, Some(Duration::from_secs(30)));
    w.wait(Duration::from_secs(24));
    assert_eq!(w.stopped, []);
    w.wait(Duration::from_secs(2));
    assert_eq!(w.stopped, [("a".to_owned(), 0, 1)]);
    assert_eq!(
        w.index.time_to_stop("a", w.now),
        Some(Duration::from_secs(1)),
        "what is left of 30 s after 26 s, and 3 s for words"
    );
}

#[test]
fn a_job_stops_at_once_and_goes_on_elsewhere() {
    let mut w = World::new();
    w.node("a", spot("aws", "a"), 0);
    w.workload(job(1));
    w.run_all();
    w.node("b", spot("aws", "b"), 0);
    let key = w.key(0);
    w.notice("a", NoticeKind::Spot, Some(WHOLE));
    assert_eq!(w.stopped, [("a".to_owned(), 0, 1)]);
    assert_eq!(w.started.len(), 1, "not before the old copy has stopped");
    w.report_of("a", key, 1, ReplicaPhase::Stopped, "", 0);
    assert_eq!(w.started.last(), Some(&("b".to_owned(), 0, 2)));
}

#[test]
fn a_job_with_nowhere_to_go_is_stopped_in_time_and_a_service_is_not() {
    let mut w = World::new();
    w.node("a", spot("aws", "a"), 0);
    w.workload(job(1));
    w.run_all();
    let key = w.key(0);
    w.notice("a", NoticeKind::Spot, Some(WHOLE));
    // The pod's grace is 30 s, and words take 3.
    w.wait(Duration::from_secs(86));
    assert_eq!(w.stopped, []);
    w.wait(Duration::from_secs(2));
    assert_eq!(w.stopped, [("a".to_owned(), 0, 1)]);
    w.report_of("a", key, 1, ReplicaPhase::Stopped, "", 0);
    w.node("b", spot("aws", "b"), 0);
    assert_eq!(w.started.last(), Some(&("b".to_owned(), 0, 2)));

    let mut w = World::new();
    w.node("a", spot("aws", "a"), 0);
    w.workload(service(1, "i"));
    w.run_all();
    w.notice("a", NoticeKind::Spot, Some(WHOLE));
    w.wait(WHOLE * 2);
    assert_eq!(w.stopped, [], "it serves as long as it can");
    let (_, reason, message) = w.condition(conditions::PLACED);
    assert_eq!(reason, "Unplaceable");
    assert!(message.contains("about to be taken away"), "{message}");
}

#[test]
fn an_exclusive_workload_stops_before_it_starts() {
    let mut w = World::new();
    w.node("a", spot("aws", "a"), 0);
    w.workload(with_policy(service(1, "i"), json!({ "exclusive": true })));
    w.run_all();
    w.node("b", spot("aws", "b"), 0);
    let key = w.key(0);
    w.notice("a", NoticeKind::Spot, Some(WHOLE));
    assert_eq!((w.stopped.len(), w.started.len()), (1, 1));
    w.report_of("a", key, 1, ReplicaPhase::Stopped, "", 0);
    assert_eq!(w.node_of(0), "b");
}

#[test]
fn a_recommendation_moves_services_where_there_is_room_and_leaves_jobs() {
    let mut w = World::new();
    w.node("a", spot("aws", "a"), 0);
    w.workload(service(1, "i"));
    w.run_all();
    w.notice("a", NoticeKind::Rebalance, None);
    w.wait(Duration::from_secs(600));
    assert_eq!((w.node_of(0).as_str(), w.stopped.len()), ("a", 0));
    assert_eq!(
        w.condition(conditions::PLACED).0,
        "True",
        "nothing is wrong"
    );
    w.node("b", spot("aws", "a"), 0);
    w.wait(Duration::from_secs(31));
    assert_eq!((w.node_of(0).as_str(), w.stopped.len()), ("b", 0));
    w.run_all();
    assert_eq!(w.stopped, [("a".to_owned(), 0, 1)]);

    let mut w = World::new();
    w.node("a", spot("aws", "a"), 0);
    w.workload(job(1));
    w.run_all();
    w.node("b", spot("aws", "b"), 0);
    w.notice("a", NoticeKind::Rebalance, None);
    w.wait(Duration::from_secs(600));
    assert_eq!(w.node_of(0), "a");
    w.notice("a", NoticeKind::Spot, Some(WHOLE));
    assert_eq!(w.stopped, [("a".to_owned(), 0, 1)]);
}

#[test]
fn a_node_with_a_notice_takes_nothing_new_until_it_is_withdrawn() {
    let mut w = World::new();
    w.node("a", spot("azure", "1"), 0);
    for kind in [
        NoticeKind::Spot,
        NoticeKind::Maintenance,
        NoticeKind::Rebalance,
    ] {
        w.notice("a", kind, None);
        w.workload(service(1, "i"));
        assert_eq!(w.on(0), None, "{kind:?}");
        assert_eq!(w.status().rejected[0].constraint, "cordoned");
        w.withdraw("a");
        assert_eq!(w.node_of(0), "a", "{kind:?}");
        w.index
            .delete_workload(&guard(&json!({ "apiVersion": "hyperion.io/v1alpha1",
            "kind": "HyperionWorkload", "spec": service(1, "i"),
            "metadata": { "name": "w", "namespace": "default", "uid": "uid-1" } })));
        w.settle();
        let key = ReplicaKey {
            namespace: "default".to_owned(),
            workload: "w".to_owned(),
            uid: "uid-1".to_owned(),
            index: 0,
        };
        w.report_of("a", key, 100, ReplicaPhase::Stopped, "", 0);
    }
    assert_eq!(
        w.index.warm_at(),
        None,
        "a notice that was withdrawn cools nothing"
    );
}

#[test]
fn a_node_that_went_when_it_was_to_is_not_waited_for() {
    let mut w = World::new();
    w.node("a", spot("aws", "a"), 0);
    let patient = json!({ "disconnect": { "replaceAfter": "1h" } });
    w.workload(with_policy(service(1, "i"), patient));
    w.run_all();
    w.notice("a", NoticeKind::Spot, Some(WHOLE));
    w.wait(Duration::from_secs(100));
    w.down("a");
    // Left alone because it is of the same pool: better there than nowhere.
    w.node("same-pool", spot("aws", "a"), 0);
    w.wait(Duration::from_secs(10));
    assert_eq!(
        w.node_of(0),
        "same-pool",
        "a place is taken before the end, too"
    );
    let mut w = World::new();
    w.node("a", spot("aws", "a"), 0);
    let patient = json!({ "disconnect": { "replaceAfter": "1h" } });
    w.workload(with_policy(job(1), patient));
    w.run_all();
    w.notice("a", NoticeKind::Spot, Some(WHOLE));
    w.down("a");
    w.node("b", spot("aws", "b"), 0);
    w.wait(WHOLE - Duration::from_secs(1));
    assert_eq!(w.node_of(0), "a", "it may still run there");
    w.wait(Duration::from_secs(2));
    assert_eq!(w.node_of(0), "b");
}

#[test]
fn an_exclusive_workload_waits_for_a_silent_node_whatever_was_announced() {
    let mut w = World::new();
    w.node("a", spot("aws", "a"), 0);
    w.workload(with_policy(service(1, "i"), json!({ "exclusive": true })));
    w.run_all();
    w.notice("a", NoticeKind::Spot, Some(WHOLE));
    w.down("a");
    w.node("b", spot("aws", "b"), 0);
    w.wait(WHOLE * 3);
    assert_eq!(w.node_of(0), "a");
}

#[test]
fn a_pool_is_left_alone_for_a_while_and_a_zone_that_churns_for_longer() {
    let mut w = World::new();
    w.node("a", spot("aws", "a"), 0);
    w.notice("a", NoticeKind::Spot, Some(WHOLE));
    w.node("same-pool", spot("aws", "a"), 0);
    let mut other_type = spot("aws", "a");
    other_type["node.kubernetes.io/instance-type"] = json!("c5.xlarge");
    w.node("other-type", other_type.clone(), 0);
    let open = |w: &World, id: &str| w.index.fleet().node(id).unwrap().schedulable;
    assert!(!open(&w, "same-pool") && open(&w, "other-type"));
    w.later(Duration::from_secs(601));
    assert!(open(&w, "same-pool"));
    // One machine of two in the last hour.
    let seen = w.index.fleet().node("same-pool").unwrap().supply;
    assert!((seen.reclaims_per_hour - 0.5).abs() < 1e-6, "{seen:?}");
    // A second one: twice as long. A third: whatever the type, but not what is paid for in full.
    w.notice("same-pool", NoticeKind::Spot, Some(WHOLE));
    w.node("third", spot("aws", "a"), 0);
    w.later(Duration::from_secs(1100));
    assert!(!open(&w, "third") && open(&w, "other-type"));
    w.notice("third", NoticeKind::Spot, Some(WHOLE));
    w.node("on-demand", machine("aws", "a", "on-demand"), 0);
    assert!(!open(&w, "other-type") && open(&w, "on-demand"));
    w.workload(with_policy(
        service(1, "i"),
        json!({ "constraints": { "preferSpot": true } }),
    ));
    assert_eq!(w.node_of(0), "on-demand");
    w.later(Duration::from_secs(3601));
    assert!(open(&w, "other-type"));
    assert_eq!(w.index.warm_at(), None);
}
