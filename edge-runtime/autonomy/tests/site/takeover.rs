use super::harness::{World, job, key, ms, s, service};
use hyperion_autonomy::Mode;
use hyperion_wire::agent_v1::ReplicaPhase;

fn autonomous(nodes: usize, seed: u64) -> World {
    let mut world = World::new(nodes, seed);
    world.run_for(s(5));
    world.order(&key("web"), 1, "edge-1", &service());
    world.run_for(s(3));
    world.cloud(false);
    world.until(s(10), "autonomous", |w| {
        w.ids().iter().all(|id| w.mode(id) == Mode::Autonomous)
    });
    world
}

#[test]
fn a_dead_nodes_service_is_taken_over_within_bound_and_once() {
    for seed in 0..5 {
        let mut world = autonomous(5, seed);
        world.kill("edge-1");
        let took = world.until(s(10), "taken over", |w| w.runs(&key("web")).len() == 1);
        assert!(took > s(2), "not before it is dead: {took:?}");
        world.run_for(s(60));
        assert_eq!(world.runs(&key("web")).len(), 1);
        assert_eq!(world.reasons("TakenOver"), 1, "{}", world.story());
        assert_eq!(world.reasons("PeerDead"), 1, "{}", world.story());
        assert_eq!(world.reasons("SiteAutonomous"), 1, "{}", world.story());
    }
}

#[test]
fn while_the_control_plane_is_there_the_site_decides_nothing() {
    let mut world = World::new(5, 1);
    world.run_for(s(5));
    world.order(&key("web"), 1, "edge-1", &service());
    world.run_for(s(3));
    world.kill("edge-1");
    world.run_for(s(60));
    assert!(world.runs(&key("web")).is_empty());
    assert_eq!(world.reasons("TakenOver"), 0);
}

#[test]
fn one_broken_uplink_changes_nothing_and_finds_a_relay() {
    let mut world = World::new(5, 2);
    world.run_for(s(5));
    world.uplink("edge-2", false);
    world.run_for(s(60));
    assert_eq!(world.mode("edge-2"), Mode::Suspect);
    let core = world.nodes["edge-2"].core.as_ref().unwrap();
    assert!(core.relay().is_some());
    assert_eq!(world.reasons("SiteAutonomous"), 0);
}

#[test]
fn replace_after_of_the_user_counts_from_the_last_word() {
    let mut world = World::new(4, 3);
    world.run_for(s(5));
    let mut intent = service();
    intent.replace_after = Some(s(40));
    world.order(&key("web"), 1, "edge-1", &intent);
    world.run_for(s(3));
    world.cloud(false);
    world.run_for(s(10));
    world.kill("edge-1");
    world.run_for(s(38));
    assert!(world.runs(&key("web")).is_empty());
    world.until(s(10), "taken over", |w| w.runs(&key("web")).len() == 1);
}

#[test]
fn all_replicas_of_a_dead_node_find_a_place_with_loss() {
    let mut world = World::new(8, 4);
    world.loss = 0.1;
    world.run_for(s(5));
    for n in 0..20 {
        world.order(&key(&format!("web-{n}")), 1, "edge-1", &service());
    }
    world.run_for(s(3));
    world.cloud(false);
    world.run_for(s(10));
    world.kill("edge-1");
    world.until(s(15), "all taken over", |w| {
        (0..20).all(|n| w.runs(&key(&format!("web-{n}"))).len() == 1)
    });
    world.run_for(s(30));
    for n in 0..20 {
        assert_eq!(world.runs(&key(&format!("web-{n}"))).len(), 1);
    }
}

#[test]
fn a_job_that_ended_is_not_placed_again() {
    let mut world = World::new(4, 5);
    world.run_for(s(5));
    world.order(&key("done"), 1, "edge-1", &job());
    world.order(&key("busy"), 1, "edge-1", &job());
    world.run_for(s(2));
    world
        .nodes
        .get_mut("edge-1")
        .unwrap()
        .running
        .remove(&key("done"));
    world.with("edge-1", |core, at| {
        let out = core.ended(&key("done"), 1, ReplicaPhase::Succeeded, 0, at);
        ((), out)
    });
    world.run_for(s(3));
    world.cloud(false);
    world.run_for(s(10));
    world.kill("edge-1");
    world.until(s(10), "the other one runs", |w| {
        w.runs(&key("busy")).len() == 1
    });
    world.run_for(s(30));
    assert!(world.runs(&key("done")).is_empty());
}

#[test]
fn a_replica_without_intent_stays_where_it_is() {
    let mut world = World::new(4, 6);
    world.run_for(s(5));
    let mut record = super::harness::record(&key("old"), 1, "edge-1", &service());
    record.intent = None;
    world.with("edge-1", |core, at| ((), core.ordered(record, at)));
    world.run_for(s(3));
    world.cloud(false);
    world.run_for(s(10));
    world.kill("edge-1");
    world.run_for(s(60));
    assert!(world.runs(&key("old")).is_empty());
}

#[test]
fn a_replica_that_its_node_can_not_run_is_tried_elsewhere() {
    let mut world = autonomous(4, 7);
    world.phase("edge-1", ReplicaPhase::Failed);
    world.until(s(20), "elsewhere", |w| {
        let runs = w.runs(&key("web"));
        runs.len() == 1 && runs[0] != "edge-1"
    });
}

#[test]
fn a_whole_site_that_starts_slowly_takes_nothing_over() {
    let mut world = autonomous(4, 8);
    for id in world.ids() {
        world.kill(&id);
    }
    world.run_for(s(5));
    for (n, id) in world.ids().iter().rev().enumerate() {
        world.boot(id);
        world.run_for(s(5) + ms(n as u64));
    }
    world.run_for(s(30));
    assert_eq!(world.runs(&key("web")), ["edge-1"]);
    assert_eq!(world.reasons("TakenOver"), 0, "{}", world.story());
}

#[test]
fn the_fast_profile_takes_over_within_three_seconds() {
    let mut times = Vec::new();
    for seed in 0..7 {
        let mut world = World::with_profile(5, seed, hyperion_autonomy::Profile::fast());
        world.run_for(s(5));
        world.order(&key("web"), 1, "edge-1", &service());
        world.run_for(s(3));
        world.cloud(false);
        world.run_for(s(10));
        world.kill("edge-1");
        times.push(world.until(s(3), "taken over", |w| w.runs(&key("web")).len() == 1));
    }
    times.sort();
    assert!(times[3] < ms(2500), "{times:?}");
}

#[test]
fn what_two_deciders_put_on_one_node_beyond_its_room_goes_elsewhere() {
    let mut world = World::new(3, 11);
    world.run_for(s(5));
    world.cloud(false);
    world.run_for(s(10));
    // Two records that no node would have made knowing of the other.
    for (n, priority) in [(1, 5), (2, 1)] {
        let mut intent = service();
        intent.priority = priority;
        intent.wants.resources.cpu_millis = 3000;
        let mut record = super::harness::record(&key(&format!("big-{n}")), 1, "edge-1", &intent);
        record.decider = format!("edge-{}", n + 1);
        record.taken = false;
        world.with("edge-3", |core, at| {
            let frame = hyperion_wire::peer_v1::Frame {
                body: Some(hyperion_wire::peer_v1::frame::Body::Entries(
                    hyperion_wire::peer_v1::Entries {
                        replicas: vec![record],
                        ..Default::default()
                    },
                )),
            };
            ((), core.frame("edge-2", frame, at))
        });
    }
    world.until(s(10), "both run apart", |w| {
        w.runs(&key("big-1")) == ["edge-1"]
            && w.runs(&key("big-2")).first().is_some_and(|n| n != "edge-1")
    });
}
