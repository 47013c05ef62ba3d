//! What a site does while it is cut off.

use hyperion_proto::agent_v1::RestartPolicy;
use hyperion_proto::convert;

use super::*;
use crate::store::Change;
use crate::supervisor::Exits;
use crate::testing::key;

const IDS: [&str; 3] = ["edge-1", "edge-2", "edge-3"];

#[test]
fn a_dead_nodes_service_is_taken_over_by_one_peer_and_is_on_its_disk() {
    let mut world = World::cut_off(&IDS, &[("edge-1", placed("web", 4))]);
    world.pass(Duration::from_secs(5));
    assert_eq!(world.node("edge-2").mode(), Mode::Autonomous);
    assert_eq!(world.runs("web"), [("edge-1".to_owned(), 4)]);
    world.kill("edge-1");
    world.until("taken over", Duration::from_secs(10), |w| {
        w.runs("web").len() == 1
    });
    let (winner, generation) = world.runs("web").remove(0);
    assert_eq!(generation, 5);
    world.pass(Duration::from_secs(5));
    assert_eq!(world.runs("web").len(), 1);
    let node = world.node(&winner);
    let held = node.store().held(&key("web", 0)).unwrap();
    assert_eq!(held.start.generation, 5);
    let record = node.store().record(&key("web", 0)).unwrap();
    assert_eq!(record.node, winner);
    assert!(!record.taken && !record.explanation.unwrap().cause.is_empty());

    // The dead one comes back, starts what its store says, and hears that it is another's now.
    world.boot("edge-1");
    assert_eq!(world.members["edge-1"].fake.runs(), [("web".to_owned(), 4)]);
    world.until("one copy", Duration::from_secs(30), |w| {
        w.runs("web") == [(winner.clone(), 5)]
    });
    world.pass(Duration::from_secs(20));
    assert_eq!(world.runs("web"), [(winner, 5)]);
}

#[test]
fn a_reboot_offline_starts_replicas_of_the_control_plane_and_of_the_site() {
    let mut world = World::cut_off(&IDS, &[("edge-1", placed("web", 1))]);
    world.pass(Duration::from_secs(5));
    world.kill("edge-1");
    world.until("taken over", Duration::from_secs(10), |w| {
        w.runs("web").len() == 1
    });
    let (winner, _) = world.runs("web").remove(0);
    for id in IDS.into_iter().filter(|id| *id != "edge-1") {
        world.kill(id);
    }
    world.boot(&winner);
    // At once: before time passes, and before anybody is heard.
    assert_eq!(world.members[&winner].fake.runs(), [("web".to_owned(), 2)]);
    assert_eq!(world.node(&winner).untaken_count(), 1);
}

#[test]
fn a_record_with_a_lower_generation_than_was_seen_is_not_obeyed() {
    let mut alone = Alone::fresh("edge-1");
    alone.connect(&welcome(vec![placed("web", 9)], &["edge-1"]));
    alone.connect(&welcome(Vec::new(), &["edge-1"]));
    assert!(alone.fake.runs().is_empty());
    let stale = ReplicaRecord {
        key: placed("web", 8).key,
        generation: 8,
        decider: "edge-2".to_owned(),
        state: hyperion_proto::agent_v1::RecordState::Placed.into(),
        node: "edge-1".to_owned(),
        pod: placed("web", 8).pod,
        ..Default::default()
    };
    let now = alone.now();
    let run = hyperion_autonomy::Output::Run(Box::new(stale));
    alone.node.carry_out(glue::Work::of(vec![run]), now);
    assert!(alone.fake.runs().is_empty());
    assert_eq!(alone.node.counts().records_refused, 1);
    assert!(alone.events().contains(&"RecordRefused".to_owned()));
}

#[test]
fn a_record_that_can_not_be_run_is_refused_and_nothing_else_is_affected() {
    let mut alone = Alone::fresh("edge-1");
    alone.connect(&welcome(vec![placed("web", 1)], &["edge-1"]));
    let now = alone.now();
    let bad = ReplicaRecord {
        key: placed("other", 8).key,
        generation: 8,
        ..Default::default()
    };
    let run = hyperion_autonomy::Output::Run(Box::new(bad));
    alone.node.carry_out(glue::Work::of(vec![run]), now);
    assert_eq!(alone.fake.runs(), [("web".to_owned(), 1)]);
    assert_eq!(alone.node.counts().records_refused, 1);
}

#[test]
fn replicas_of_an_older_agent_get_records_without_an_intent() {
    let disk = Disk::default();
    let mut store = disk.store();
    let put = Change::Put(crate::testing::desired("web", 0, 5));
    store.apply(&[put], true);
    let alone = Alone::new(config("edge-1"), store);
    assert_eq!(alone.fake.runs(), [("web".to_owned(), 5)]);
    let site = alone.node.autonomy().site();
    let entry = site.replica(&key("web", 0)).unwrap();
    assert_eq!(entry.record.generation, 5);
    assert!(entry.placed_on("edge-1") && entry.record.intent.is_none());
}

#[test]
fn heat_is_told_with_room_for_noise() {
    let mut alone = Alone::fresh("edge-1");
    let mut measure = |celsius: f32| {
        let now = alone.now();
        let sample = hyperion_proto::agent_v1::Telemetry {
            temperatures: vec![hyperion_proto::agent_v1::Temperature {
                sensor: "cpu".to_owned(),
                celsius,
            }],
            ..Default::default()
        };
        alone.node.measured(sample, now, &alone.out);
        alone.node.me.load.throttled
    };
    assert!(!measure(89.0));
    assert!(measure(91.0));
    assert!(measure(86.0), "not cool enough yet");
    assert!(!measure(84.0));
    assert!(!measure(f32::NAN));
}

#[test]
fn clocks_that_stay_down_for_heat_are_heat() {
    let mut alone = Alone::fresh("edge-1");
    let mut measure = |seconds, slowed| {
        alone.at += Duration::from_secs(seconds);
        let now = alone.now();
        alone.node.set_slowed(slowed, now);
        alone.node.measured(Default::default(), now, &alone.out);
        alone.node.me.load.throttled
    };
    assert!(!measure(0, true));
    assert!(!measure(9, true), "governors do so for a moment");
    assert!(measure(1, true));
    assert!(!measure(1, false));
    assert!(!measure(60, true), "counted anew");
}

#[test]
fn a_workload_is_applied_and_deleted_at_the_site_and_survives_a_reboot() {
    let mut world = World::cut_off(&IDS, &[]);
    world.pass(Duration::from_secs(5));
    let record = applied("local", "site-1");
    let now = world.now();
    let member = world.members.get_mut("edge-2").unwrap();
    let node = member.node.as_mut().unwrap();
    node.apply(vec![record.clone()], now, &member.out).unwrap();
    world.until("runs", Duration::from_secs(10), |w| {
        w.runs("local").len() == 1
    });
    let (runner, _) = world.runs("local").remove(0);
    world.kill(&runner);
    world.boot(&runner);
    assert_eq!(world.runs("local").len(), 1, "started by its store");
    world.pass(Duration::from_secs(5));
    let now = world.now();
    let member = world.members.get_mut("edge-3").unwrap();
    let node = member.node.as_mut().unwrap();
    let unknown = node.delete("default", "other", now, &member.out);
    assert!(unknown.unwrap_err().contains("other"));
    node.delete("default", "local", now, &member.out).unwrap();
    world.until("gone", Duration::from_secs(10), |w| {
        w.runs("local").is_empty()
    });
}

#[test]
fn an_idle_node_sleeps() {
    for ids in [&["edge-1"][..], &IDS] {
        let mut alone = Alone::fresh("edge-1");
        alone.connect(&welcome(vec![placed("web", 1)], ids));
        let wakes = |alone: &mut Alone| {
            let (begin, mut count) = (alone.at, 0);
            while alone.at - begin < Duration::from_secs(60) {
                let soon = alone.at + Duration::from_millis(5);
                alone.at = alone.node.next_wake().max(soon);
                let now = alone.now();
                alone.node.tick(now, &alone.out);
                alone.node.take_effects();
                count += 1;
            }
            count
        };
        let connected = wakes(&mut alone);
        alone.disconnect();
        let cut_off = wakes(&mut alone);
        println!(
            "{} nodes: {connected} and {cut_off} wakes a minute",
            ids.len()
        );
        assert!(connected < 60 * 30, "{connected}");
        assert!(cut_off < 60 * 30, "{cut_off}");
    }
}

#[test]
fn connected_nodes_take_no_local_orders() {
    let mut alone = Alone::fresh("edge-1");
    alone.connect(&welcome(Vec::new(), &["edge-1"]));
    let now = alone.now();
    let refused = alone.node.apply(Vec::new(), now, &alone.out);
    assert!(refused.unwrap_err().contains("kubectl"));
}
#[test]
fn a_crash_at_any_write_of_a_takeover_leads_to_the_same_end() {
    let mut cuts = 0;
    for cut in 1_u64.. {
        let mut world = World::cut_off(&IDS, &[("edge-1", placed("web", 1))]);
        world.pass(Duration::from_secs(4));
        world.kill("edge-1");
        // The power of both others goes at the same write after that: one of them decides.
        for id in ["edge-2", "edge-3"] {
            let member = &world.members[id];
            let mut image = member.disk.image();
            let at = image.operations + cut;
            image.cut_at = Some(at);
        }
        let begin = world.at;
        let mut cut_off = Vec::new();
        while world.at - begin < Duration::from_secs(6) {
            world.step();
            for id in ["edge-2", "edge-3"] {
                if !cut_off.contains(&id) && world.members[id].disk.cut() {
                    world.kill(id);
                    world.boot(id);
                    cut_off.push(id);
                }
            }
        }
        for member in world.members.values() {
            member.disk.image().cut_at = None;
        }
        world.until("taken over", Duration::from_secs(40), |w| {
            w.runs("web").len() == 1
        });
        world.pass(Duration::from_secs(5));
        // Where both decided before they heard of each other, one copy gives way.
        world.until("one copy", Duration::from_secs(60), |w| {
            w.runs("web").len() == 1
        });
        world.pass(Duration::from_secs(5));
        let runs = world.runs("web");
        assert_eq!(runs.len(), 1, "cut at write {cut}: {runs:?}");
        let (winner, generation) = &runs[0];
        let held = world.node(winner).store().held(&key("web", 0));
        assert_eq!(held.unwrap().start.generation, *generation);
        cuts += cut_off.len();
        if cut_off.is_empty() {
            break;
        }
    }
    assert!(cuts > 10, "only {cuts} cuts");
}

#[test]
fn a_job_that_ended_while_the_agent_was_away_is_not_started_again() {
    let mut job = placed("job", 1);
    let intent = job.intent.as_mut().unwrap();
    (intent.workload_type, intent.exclusive) = ("job".to_owned(), true);
    let pod = job.pod.as_mut().unwrap();
    pod.restart_policy = RestartPolicy::OnFailure.into();
    let (pod, key) = (pod.clone(), key("job", 0));
    for (codes, phase) in [
        (vec![0], Some(ReplicaPhase::Succeeded)),
        (vec![1], None),
        (vec![], None),
    ] {
        let disk = Disk::default();
        let start = convert::start(&job).unwrap();
        let ran = [
            Change::Put(Desired {
                start,
                finished: None,
            }),
            Change::Record(Box::new(glue::ordered(&job, "edge-1", WALL))),
            Change::Site(Box::new(welcome(Vec::new(), &IDS).site.unwrap())),
        ];
        disk.store().apply(&ran, true);
        let found = NodeConfig {
            exits: vec![Exits::of(&key, &pod, codes)],
            ..config("edge-1")
        };
        let mut node = Alone::new(found, disk.store());
        node.pass(Duration::from_secs(30));
        let held = node.node.store().held(&key);
        let finished = held.and_then(|held| held.finished.as_ref());
        assert_eq!(finished.map(|f| f.phase), phase);
        assert_eq!(node.fake.runs(), [], "it ended, or is held back");
        let report = node.node.hello().replicas.pop();
        assert_eq!(
            report.map(|r| r.phase()),
            phase,
            "the control plane is told"
        );
    }
}
