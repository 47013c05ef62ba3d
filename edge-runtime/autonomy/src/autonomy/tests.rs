use hyperion_placement::model::{Request, Snapshot};
use hyperion_wire::agent_v1::{
    RecordState, ReplicaPhase, RestartPolicy, SiteExplanation, SiteMember,
};
use hyperion_wire::peer_v1::{Entries, NodeRecord, Summary, frame};

use super::*;
use crate::decide::Decided;

struct Nobody;

impl Decide for Nobody {
    fn decide(&self, _: &Snapshot, _: &Request) -> Decided {
        Decided {
            node: None,
            gpus: Vec::new(),
            explanation: SiteExplanation::default(),
        }
    }

    fn policy_hash(&self) -> &'static str {
        "abc"
    }
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn core(revoked: &[&str]) -> Autonomy {
    Autonomy::new(start(revoked), at(0)).0
}

fn start(revoked: &[&str]) -> Start {
    Start {
        node_id: "edge-1".into(),
        boot_id: "b".into(),
        boot: 1,
        seed: 1,
        profile: Profile::standard(),
        records: Vec::new(),
        site_info: Some(SiteInfo {
            version: 1,
            members: ["edge-1", "edge-2"]
                .map(|id| SiteMember {
                    node_id: id.into(),
                    ..SiteMember::default()
                })
                .into(),
            revoked: revoked.iter().map(ToString::to_string).collect(),
            site: "lab".into(),
            ..SiteInfo::default()
        }),
        me: Me {
            capabilities: NodeCapabilities {
                cpu_arch: "arm64".into(),
                ..NodeCapabilities::default()
            },
            ..Me::default()
        },
    }
}

/// An order of the control plane for replica 0 of `web` on this node.
fn order(intent: hyperion_wire::agent_v1::Intent, policy: RestartPolicy) -> ReplicaRecord {
    ReplicaRecord {
        key: Some((&web()).into()),
        generation: 1,
        state: RecordState::Placed.into(),
        node: "edge-1".into(),
        pod: Some(hyperion_wire::agent_v1::PodSpec {
            containers: vec![hyperion_wire::agent_v1::Container {
                name: "main".into(),
                image: "i".into(),
                ..Default::default()
            }],
            restart_policy: policy.into(),
            ..Default::default()
        }),
        intent: Some(intent),
        taken: true,
        ..ReplicaRecord::default()
    }
}

fn web() -> ReplicaKey {
    ReplicaKey {
        namespace: "default".into(),
        workload: "web".into(),
        uid: "uid-1".into(),
        index: 0,
    }
}

fn holds(core: &Autonomy, phase: ReplicaPhase) -> Me {
    Me {
        held: vec![HeldReplica {
            key: Some((&web()).into()),
            generation: 1,
            phase: phase.into(),
            ready: phase == ReplicaPhase::Running,
        }],
        ..core.me.clone()
    }
}

fn is_run(out: &[Output]) -> bool {
    out.iter().any(|o| matches!(o, Output::Run(_)))
}

fn is_stop(out: &[Output]) -> bool {
    out.iter().any(|o| matches!(o, Output::Stop { .. }))
}

#[test]
fn a_copy_on_its_way_down_does_not_come_back_where_it_is_not_wanted_any_more() {
    let mut core = core(&[]);
    core.link_up(at(1));
    core.welcomed(true, at(1));
    let intent = hyperion_wire::agent_v1::Intent {
        workload_type: "service".into(),
        goal: "cost".into(),
        stop_after_ms: 10_000,
        ..Default::default()
    };
    core.ordered(order(intent, RestartPolicy::Always), at(2));
    core.set_me(holds(&core, ReplicaPhase::Running), at(3));
    core.link_down(at(4));
    assert!(is_stop(&core.tick(at(15), &Nobody)), "stopAfter");
    core.set_me(holds(&core, ReplicaPhase::Stopping), at(15));
    // The control plane has it elsewhere by now.
    let mut out = core.link_up(at(16));
    out.extend(core.welcomed(true, at(16)));
    out.extend(core.set_me(Me::default(), at(17)));
    out.extend(core.tick(at(18), &Nobody));
    assert!(!is_run(&out), "{out:?}");
    let entry = core.site().replica(&web()).unwrap();
    assert_eq!(entry.state(), RecordState::Removed);
    assert_eq!(core.status(at(18)).held_back, 0);
}

#[test]
fn what_stop_after_stopped_waits_for_the_whole_list_or_an_order() {
    let intent = hyperion_wire::agent_v1::Intent {
        workload_type: "service".into(),
        goal: "cost".into(),
        stop_after_ms: 10_000,
        ..Default::default()
    };
    let order = order(intent, RestartPolicy::Always);
    let stopped = || {
        let mut core = core(&[]);
        core.link_up(at(1));
        core.welcomed(true, at(1));
        core.ordered(order.clone(), at(2));
        core.set_me(holds(&core, ReplicaPhase::Running), at(3));
        core.link_down(at(4));
        assert!(is_stop(&core.tick(at(15), &Nobody)));
        core.set_me(Me::default(), at(16));
        // The site has decided something that the control plane has to look at first.
        let mut out = core.link_up(at(17));
        out.extend(core.welcomed(false, at(17)));
        out.extend(core.tick(at(18), &Nobody));
        assert!(!is_run(&out), "{out:?}");
        core
    };
    let mut core = stopped();
    let mut out = core.welcomed(true, at(19));
    out.extend(core.tick(at(20), &Nobody));
    assert!(!is_run(&out), "the list lacks it");
    // The list has it: the agent stores that as an order, and nothing stops it again.
    let mut core = stopped();
    let mut out = core.ordered(order.clone(), at(19));
    out.extend(core.welcomed(true, at(19)));
    out.extend(core.tick(at(20), &Nobody));
    assert!(!is_stop(&out), "{out:?}");
    assert_eq!(core.status(at(20)).held_back, 0);
}

#[test]
fn an_exclusive_job_that_ended_while_the_agent_was_away_is_not_held_back() {
    let job = |policy| {
        let intent = hyperion_wire::agent_v1::Intent {
            workload_type: "job".into(),
            goal: "cost".into(),
            exclusive: true,
            ..Default::default()
        };
        order(intent, policy)
    };
    for (policy, phase, over) in [
        (RestartPolicy::OnFailure, ReplicaPhase::Succeeded, true),
        (RestartPolicy::Never, ReplicaPhase::Failed, true),
        (RestartPolicy::OnFailure, ReplicaPhase::Failed, false),
        (RestartPolicy::Never, ReplicaPhase::Starting, false),
    ] {
        let (idle, _) = Autonomy::new(start(&[]), at(0));
        let (mut core, mut out) = Autonomy::new(
            Start {
                records: vec![job(policy)],
                me: holds(&idle, phase),
                ..start(&[])
            },
            at(0),
        );
        if over {
            out.extend(core.ended(&web(), 1, phase, 0, at(0)));
            out.extend(core.tick(at(1), &Nobody));
        }
        assert_eq!(is_stop(&out), !over, "{policy:?} {phase:?}");
    }
}

fn entries(entries: Entries) -> Frame {
    Frame {
        body: Some(frame::Body::Entries(entries)),
    }
}

fn events(out: &[Output], wanted: &str) -> Vec<String> {
    out.iter()
        .filter_map(|o| match o {
            Output::Event {
                reason, message, ..
            } if *reason == wanted => Some(message.clone()),
            _ => None,
        })
        .collect()
}

#[test]
fn a_peer_that_lies_is_named_once_and_counted_always() {
    let mut core = core(&[]);
    let lie = || {
        entries(Entries {
            replicas: vec![ReplicaRecord {
                generation: u64::MAX,
                ..ReplicaRecord::default()
            }],
            ..Entries::default()
        })
    };
    let out = core.frame("edge-2", lie(), at(1));
    let told = events(&out, "PeerRefused");
    assert_eq!(told.len(), 1);
    assert!(
        told[0].starts_with("dropped what peer edge-2 sent: "),
        "{told:?}"
    );
    for _ in 0..10 {
        let out = core.frame("edge-2", lie(), at(2));
        assert!(events(&out, "PeerRefused").is_empty());
    }
    let status = core.status(at(2));
    let peer = status.members.iter().find(|m| m.node == "edge-2").unwrap();
    assert_eq!(peer.refused, 11);
    assert!(!peer.last_refused.is_empty());
    assert_eq!(core.counts().refused, 11);
    assert_eq!(core.site().replicas().count(), 0);
}

#[test]
fn a_revoked_node_is_not_heard() {
    let mut core = core(&["edge-2"]);
    let record = NodeRecord {
        node_id: "edge-3".into(),
        version: 1,
        capabilities: Some(NodeCapabilities {
            cpu_arch: "arm64".into(),
            ..NodeCapabilities::default()
        }),
        ..NodeRecord::default()
    };
    let frame = entries(Entries {
        nodes: vec![record],
        ..Entries::default()
    });
    let out = core.frame("edge-2", frame, at(1));
    assert_eq!(events(&out, "PeerRefused").len(), 1);
    assert!(core.site().node("edge-3").is_none());
    let out = core.found("edge-2", at(1));
    assert!(out.is_empty());
}

#[test]
fn a_node_that_is_revoked_itself_decides_nothing() {
    let mut core = core(&["edge-1"]);
    core.tick(at(100), &Nobody);
    assert_eq!(core.mode(), Mode::Autonomous);
    let job = ReplicaRecord {
        key: Some(hyperion_wire::agent_v1::ReplicaKey {
            namespace: "default".into(),
            workload: "web".into(),
            workload_uid: "site-1".into(),
            index: 0,
        }),
        state: RecordState::Pending.into(),
        pod: Some(hyperion_wire::agent_v1::PodSpec {
            containers: vec![hyperion_wire::agent_v1::Container {
                name: "main".into(),
                image: "i".into(),
                ..Default::default()
            }],
            ..Default::default()
        }),
        intent: Some(hyperion_wire::agent_v1::Intent {
            workload_type: "service".into(),
            goal: "cost".into(),
            ..Default::default()
        }),
        ..ReplicaRecord::default()
    };
    core.apply(vec![job], at(101), &Nobody).unwrap();
    assert_eq!(core.counts(), Counts::default());
}

#[test]
fn what_this_node_says_of_itself_goes_out_and_what_is_new_wakes_it() {
    let mut core = core(&[]);
    assert!(core.next_wake() <= at(5));
    core.tick(at(1), &Nobody);
    let said = core.site().node("edge-1").unwrap().record.clone();
    assert_eq!((said.version >> 32, said.mode.as_str()), (1, "suspect"));
    assert_eq!(said.policy_hash, "abc");
    assert!(!said.linked);
    core.link_up(at(2));
    core.welcomed(true, at(2));
    let said = &core.site().node("edge-1").unwrap().record;
    assert_eq!((said.linked, said.mode.as_str()), (true, "connected"));
    assert_eq!(core.status(at(2)).contact, at(2));
}

#[test]
fn a_peer_that_knows_a_later_life_of_this_node_is_outdone() {
    let mut core = core(&[]);
    core.tick(at(1), &Nobody);
    let frame = Frame {
        body: Some(frame::Body::Versions(hyperion_wire::peer_v1::Versions {
            nodes: vec![hyperion_wire::peer_v1::NodeVersion {
                node_id: "edge-1".into(),
                version: 9 << 32,
            }],
            ..Default::default()
        })),
    };
    core.frame("edge-2", frame, at(2));
    assert!(core.site().node("edge-1").unwrap().record.version > 9 << 32);
}

#[test]
fn frames_of_a_newer_agent_and_wrong_sizes_change_nothing() {
    let mut core = core(&[]);
    assert!(
        events(
            &core.frame("edge-2", Frame { body: None }, at(1)),
            "PeerRefused"
        )
        .is_empty()
    );
    let short = Frame {
        body: Some(frame::Body::Summary(Summary { buckets: vec![1] })),
    };
    let out = core.frame("edge-2", short, at(1));
    assert_eq!(events(&out, "PeerRefused").len(), 1);
    core.datagram("edge-2", Bytes::from_static(b"\xff\x00junk"), at(1));
    assert_eq!(core.status(at(1)).members.len(), 2);
}

#[test]
fn a_refused_node_stays_suspect_and_says_so() {
    let mut core = core(&[]);
    core.link_up(at(1));
    core.welcomed(true, at(1));
    let out = core.link_refused("revoked", at(2));
    let why = out.iter().find_map(|o| match o {
        Output::Mode { mode, why } => Some((*mode, why.clone())),
        _ => None,
    });
    let (mode, why) = why.unwrap();
    assert_eq!(mode, Mode::Suspect);
    assert!(why.contains("revoked"));
    core.tick(at(1000), &Nobody);
    assert_eq!(core.mode(), Mode::Suspect);
}

#[test]
fn decisions_carry_the_wall_clock_where_there_is_one() {
    let mut core = core(&[]);
    assert_eq!(core.unix_ms(at(5)), 0);
    core.set_wall_clock(1_000_000, at(5));
    assert_eq!(core.unix_ms(at(7)), 1_002_000);
}
