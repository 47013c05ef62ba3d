use hyperion_wire::agent_v1::{Container, Intent, PodSpec, SiteMember};
use proptest::prelude::*;

use super::*;

const NOW: Duration = Duration::from_secs(1);

fn key(n: u32) -> ReplicaKey {
    ReplicaKey {
        namespace: "default".into(),
        workload: "web".into(),
        uid: "u".into(),
        index: n,
    }
}

fn record(n: u32, generation: u64, state: RecordState, decider: &str, node: &str) -> ReplicaRecord {
    ReplicaRecord {
        key: Some((&key(n)).into()),
        generation,
        state: state.into(),
        decider: decider.into(),
        node: match state {
            RecordState::Placed => node.into(),
            _ => String::new(),
        },
        pod: Some(PodSpec {
            containers: vec![Container {
                name: "main".into(),
                image: "i".into(),
                ..Container::default()
            }],
            labels: (0..4).map(|n| (format!("l{n}"), node.to_owned())).collect(),
            ..PodSpec::default()
        }),
        intent: Some(Intent {
            workload_type: "service".into(),
            goal: "cost".into(),
            node_selector: (0..4).map(|n| (format!("s{n}"), "v".to_owned())).collect(),
            ..Intent::default()
        }),
        outcome: hyperion_wire::agent_v1::ReplicaPhase::Succeeded.into(),
        taken: decider.is_empty(),
        ..ReplicaRecord::default()
    }
}

fn placed(n: u32, generation: u64, decider: &str, node: &str) -> ReplicaRecord {
    record(n, generation, RecordState::Placed, decider, node)
}

fn removed(n: u32, generation: u64) -> ReplicaRecord {
    ReplicaRecord {
        pod: None,
        intent: None,
        ..record(n, generation, RecordState::Removed, "", "")
    }
}

fn node(id: &str, version: u64) -> NodeRecord {
    NodeRecord {
        node_id: id.into(),
        version,
        capabilities: Some(hyperion_wire::agent_v1::NodeCapabilities {
            cpu_arch: "arm64".into(),
            ..Default::default()
        }),
        ..NodeRecord::default()
    }
}

fn known(site: &Site) -> Vec<(ReplicaKey, ReplicaRecord)> {
    site.replicas()
        .map(|(key, entry)| (key.clone(), entry.record.clone()))
        .collect()
}

fn merged(records: &[ReplicaRecord]) -> Site {
    let mut site = Site::new("me");
    for record in records {
        site.merge_replica("peer", record.clone(), NOW).unwrap();
    }
    site
}

fn any_record() -> impl Strategy<Value = ReplicaRecord> {
    (
        0..2_u32,
        1..4_u64,
        prop_oneof![
            Just(RecordState::Placed),
            Just(RecordState::Pending),
            Just(RecordState::Ended),
            Just(RecordState::Removed)
        ],
        prop_oneof![Just(""), Just("edge-1"), Just("edge-2")],
        prop_oneof![Just("edge-1"), Just("edge-2"), Just("edge-3")],
        any::<bool>(),
    )
        .prop_map(
            |(n, generation, state, decider, node, taken)| ReplicaRecord {
                taken: taken || decider.is_empty(),
                ..record(n, generation, state, decider, node)
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn merging_is_a_join(records in prop::collection::vec(any_record(), 0..12), seed in any::<u64>()) {
        let once = merged(&records);
        // Idempotent.
        let twice: Vec<_> = records.iter().chain(&records).cloned().collect();
        prop_assert_eq!(known(&once), known(&merged(&twice)));
        // Commutative.
        let mut shuffled = records.clone();
        let len = shuffled.len().max(1);
        for at in 0..shuffled.len() {
            let with = (seed.rotate_left(u32::try_from(at).unwrap()) as usize) % len;
            shuffled.swap(at, with);
        }
        let other = merged(&shuffled);
        prop_assert_eq!(known(&once), known(&other));
        prop_assert_eq!(once.buckets(), other.buckets());
        // Associative: what two nodes made of their halves, merged by a third.
        let (left, right) = records.split_at(records.len() / 2);
        let halves: Vec<_> = known(&merged(right))
            .into_iter()
            .chain(known(&merged(left)))
            .map(|(_, record)| record)
            .collect();
        prop_assert_eq!(known(&once), known(&merged(&halves)));
        prop_assert_eq!(once.has_untaken(), once.replicas().any(|(_, e)| e.untaken()));
    }

    #[test]
    fn hashes_are_equal_just_where_knowledge_is(
        a in prop::collection::vec(any_record(), 0..6),
        b in prop::collection::vec(any_record(), 0..6),
    ) {
        let (a, b) = (merged(&a), merged(&b));
        prop_assert_eq!(known(&a) == known(&b), a.buckets() == b.buckets());
    }

    #[test]
    fn what_comparison_calls_newer_is_what_merging_takes(a in any_record(), b in any_record()) {
        let (mut ours, theirs) = (merged(&[a]), merged(std::slice::from_ref(&b)));
        let version = (0..BUCKETS).flat_map(|n| theirs.replica_versions(n)).next().unwrap();
        let side = ours.compare_replica("peer", &version).unwrap();
        let news = ours.merge_replica("peer", b, NOW).unwrap();
        prop_assert_eq!(side == Side::Theirs, news);
    }
}

#[test]
fn the_higher_generation_holds_then_what_ended_then_the_decider_and_a_removal_is_of_one() {
    let without_end = |decider: &str| ReplicaRecord {
        decider: decider.into(),
        outcome: 0,
        ..removed(0, 1)
    };
    let rising = [
        placed(0, 1, "", "edge-1"),
        without_end(""),
        placed(0, 1, "edge-2", "edge-1"),
        without_end("edge-2"),
        placed(0, 1, "edge-3", "edge-1"),
        record(0, 1, RecordState::Ended, "", "edge-1"),
        removed(0, 1),
        placed(0, 2, "", "edge-9"),
    ];
    for pair in rising.windows(2) {
        assert!(Order::of(&pair[0]) < Order::of(&pair[1]));
    }
}

#[test]
fn what_was_taken_stays_taken() {
    let untaken = placed(0, 2, "edge-1", "edge-2");
    let taken = ReplicaRecord {
        taken: true,
        ..untaken.clone()
    };
    let mut site = merged(&[taken]);
    assert!(!site.merge_replica("peer", untaken.clone(), NOW).unwrap());
    assert!(!site.has_untaken());
    let mut site = merged(std::slice::from_ref(&untaken));
    assert!(site.has_untaken());
    let taken = ReplicaRecord {
        taken: true,
        ..untaken
    };
    assert!(site.merge_replica("peer", taken, NOW).unwrap());
    assert!(!site.has_untaken());
}

#[test]
fn a_broken_record_is_dropped_by_name_and_changes_nothing() {
    let mut site = merged(&[placed(0, 1, "", "edge-1")]);
    let _ = site.take_changes();
    let before = *site.buckets();
    let broken = ReplicaRecord {
        state: 77,
        ..placed(0, 5, "", "edge-2")
    };
    let refused = site.merge_replica("edge-9", broken, NOW).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "peer edge-9: replica_record.state: 77 is not known"
    );
    let leap = placed(0, 2_000_000, "", "edge-2");
    let refused = site.merge_replica("edge-9", leap, NOW).unwrap_err();
    assert!(
        refused.problem.contains("leaps from 1 to 2000000"),
        "{refused}"
    );
    let mut strange = node("edge-2", 1);
    strange.node_id = "../edge".into();
    let refused = site.merge_node("edge-9", strange, NOW).unwrap_err();
    assert!(
        refused.problem.starts_with("node_record.node_id"),
        "{refused}"
    );
    assert_eq!(*site.buckets(), before);
    assert!(site.take_changes().is_empty());
}

#[test]
fn nobody_else_speaks_for_this_node_and_nobody_for_a_revoked_one() {
    let mut site = Site::new("edge-1");
    assert!(
        !site
            .merge_node("edge-2", node("edge-1", 1 << 40), NOW)
            .unwrap()
    );
    assert!(site.node("edge-1").is_none());
    site.merge_node("edge-2", node("edge-3", 1), NOW).unwrap();
    let info = SiteInfo {
        version: 1,
        revoked: vec!["edge-3".into()],
        members: vec![SiteMember {
            node_id: "edge-1".into(),
            ..SiteMember::default()
        }],
        ..SiteInfo::default()
    };
    assert!(site.merge_info("edge-2", info.clone()).unwrap());
    assert!(site.node("edge-3").is_none());
    let refused = site
        .merge_node("edge-2", node("edge-3", 2), NOW)
        .unwrap_err();
    assert_eq!(refused.problem, "node_record of revoked node edge-3");
    assert!(!site.merge_info("edge-2", info).unwrap(), "no news twice");
}

#[test]
fn old_tombstones_are_forgotten_and_stay_dead() {
    let mut site = merged(&[
        placed(0, 3, "", "edge-1"),
        removed(0, 3),
        placed(1, 1, "", "edge-1"),
    ]);
    let empty = merged(&[placed(1, 1, "", "edge-1")]);
    let later = NOW + TOMBSTONE_AGE + NOW;
    site.expire(NOW, |_, _| false);
    assert!(site.replica(&key(0)).is_some());
    let _ = site.take_changes();
    site.expire(later, |_, _| false);
    assert!(site.replica(&key(0)).is_none());
    assert_eq!(site.buckets(), empty.buckets());
    assert!(
        site.take_changes().replicas.contains(&key(0)),
        "the store forgets it too"
    );
    // Not even from somebody who has slept all the while.
    assert!(
        !site
            .merge_replica("peer", placed(0, 3, "", "edge-1"), later)
            .unwrap()
    );
    assert!(!site.merge_replica("peer", removed(0, 3), later).unwrap());
    assert!(
        site.merge_replica("peer", placed(0, 4, "", "edge-1"), later)
            .unwrap()
    );
}

#[test]
fn what_the_control_plane_has_not_taken_is_never_forgotten() {
    let mut site = merged(&[ReplicaRecord {
        decider: "edge-2".into(),
        taken: false,
        ..removed(0, 1)
    }]);
    site.expire(NOW + TOMBSTONE_AGE * 3, |_, _| false);
    assert!(site.replica(&key(0)).is_some());
}

#[test]
fn memory_is_bounded_and_removed_replicas_make_room() {
    let mut site = Site::new("me");
    let big = |n: u32, state| {
        let mut record = record(n, 1, state, "", "edge-1");
        if let Some(pod) = &mut record.pod {
            pod.containers[0].args = (0..7).map(|_| "x".repeat(128 * 1024)).collect();
        }
        record
    };
    site.merge_replica("peer", big(0, RecordState::Removed), NOW)
        .unwrap();
    let mut refused = None;
    for n in 1..100 {
        if let Err(e) = site.merge_replica("peer", big(n, RecordState::Placed), NOW) {
            refused = Some(e);
            break;
        }
    }
    assert!(refused.unwrap().problem.contains("no room beside"));
    assert!(
        site.replica(&key(0)).is_none(),
        "the removed one went first"
    );
    assert!(site.replicas().count() > 30);
}

#[test]
fn nodes_that_are_gone_for_good_are_forgotten() {
    let mut site = Site::new("me");
    site.merge_node("edge-2", node("edge-2", 1), NOW).unwrap();
    site.merge_node("edge-2", node("edge-3", 1), NOW).unwrap();
    site.expire(NOW, |id, _| id == "edge-3");
    let ids: Vec<&str> = site.nodes().map(|(id, _)| id).collect();
    assert_eq!(ids, ["edge-2"]);
}

mod own {
    use super::*;
    use hyperion_wire::peer_v1::Load;

    const PERIOD: Duration = Duration::from_secs(5);

    fn loaded(cpu_percent: u32, throttled: bool) -> NodeRecord {
        NodeRecord {
            load: Some(Load {
                cpu_percent,
                throttled,
                ..Load::default()
            }),
            ..node("me", 0)
        }
    }

    #[test]
    fn a_change_of_load_alone_waits_for_its_time() {
        let mut own = Own::new(2, PERIOD);
        let first = own.say(loaded(5, false), NOW).unwrap();
        assert_eq!(first.version, (2 << 32) + 1);
        assert_eq!(own.say(loaded(5, false), NOW), None);
        assert_eq!(own.say(loaded(10, false), NOW), None);
        assert_eq!(own.next_wake(), Some(NOW + PERIOD));
        assert_eq!(own.due(NOW), None);
        let later = own.due(NOW + PERIOD).unwrap();
        assert_eq!(later.version, (2 << 32) + 2);
        assert_eq!(later.load.unwrap().cpu_percent, 10);
        assert_eq!(own.next_wake(), None);
    }

    #[test]
    fn what_decides_about_places_does_not_wait() {
        let mut own = Own::new(1, PERIOD);
        own.say(loaded(5, false), NOW).unwrap();
        assert!(own.say(loaded(5, true), NOW).is_some());
        let mut drained = loaded(5, true);
        drained.accepts = true;
        assert!(own.say(drained, NOW).is_some());
    }

    #[test]
    fn a_node_that_lost_its_store_goes_beyond_what_it_said_before() {
        let mut own = Own::new(1, PERIOD);
        let first = own.say(loaded(5, false), NOW).unwrap();
        assert_eq!(own.surpass(first.version, NOW), None);
        assert_eq!(own.surpass(1, NOW), None);
        let next = own.surpass((7 << 32) + 9, NOW).unwrap();
        assert!(next.version > (7 << 32) + 9);
        assert_eq!(own.surpass(u64::MAX, NOW), None, "nobody started so often");
    }
}

#[test]
fn what_the_control_plane_has_taken_is_not_brought_again() {
    let mut site = Site::new("a");
    let mut applied = placed(0, 1, "a", "a");
    applied.intent.as_mut().unwrap().manifest = "{}".into();
    site.merge_replica("a", applied.clone(), NOW).unwrap();
    let manifest = |site: &Site| {
        let next = site.replica(&key(0)).unwrap().next_record();
        next.intent.unwrap().manifest
    };
    assert_eq!(manifest(&site), "{}", "not told yet");
    applied.taken = true;
    site.merge_replica("a", applied, NOW).unwrap();
    assert_eq!(manifest(&site), "");
}
