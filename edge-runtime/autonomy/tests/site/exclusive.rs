use super::harness::{Rules, World, exclusive, key, ms, record, s};
use hyperion_wire::agent_v1::ReplicaRecord;

fn site(nodes: usize, seed: u64) -> World {
    let mut world = World::new(nodes, seed);
    world.run_for(s(10));
    world.order(&key("one"), 1, "edge-1", &exclusive());
    world.run_for(s(5));
    assert_eq!(world.runs(&key("one")), ["edge-1"]);
    world.cloud(false);
    world.run_for(s(15));
    assert_eq!(world.runs(&key("one")), ["edge-1"], "{}", world.story());
    world
}

#[test]
fn a_majority_places_it_again() {
    let mut world = site(5, 1);
    world.kill("edge-1");
    world.until(s(60), "taken over", |w| w.runs(&key("one")).len() == 1);
    assert_eq!(world.reasons("TakenOver"), 1);
}

#[test]
fn a_minority_waits_and_says_so_once() {
    let mut world = site(5, 2);
    world.kill("edge-1");
    world.kill("edge-2");
    world.kill("edge-3");
    world.run_for(s(120));
    assert!(world.runs(&key("one")).is_empty());
    assert_eq!(world.reasons("NoMajority"), 1, "{}", world.story());
    world.boot("edge-2");
    world.until(s(60), "a majority is back", |w| {
        w.runs(&key("one")).len() == 1
    });
}

/// The harness checks after each step that it never runs twice.
#[test]
fn it_never_runs_twice_whatever_is_cut() {
    for seed in 0..8 {
        let mut world = site(5, 10 + seed);
        world.loss = 0.05;
        world.cut(&["edge-1"], &["edge-2", "edge-3", "edge-4", "edge-5"]);
        world.until(s(90), "the majority runs it", |w| {
            w.runs(&key("one")).first().is_some_and(|n| n != "edge-1")
        });
        world.heal();
        world.run_for(s(60));
        assert_eq!(world.runs(&key("one")).len(), 1, "{}", world.story());
        world.cut(&["edge-1", "edge-2"], &["edge-3", "edge-4", "edge-5"]);
        world.run_for(s(90));
        world.heal();
        world.run_for(s(60));
        assert_eq!(world.runs(&key("one")).len(), 1, "{}", world.story());
    }
}

#[test]
fn a_node_that_starts_again_waits_until_it_knows() {
    for seed in 0..4 {
        let mut world = site(5, 20 + seed);
        world.kill("edge-1");
        world.run_for(s(60));
        assert_eq!(world.runs(&key("one")).len(), 1);
        world.boot("edge-1");
        world.run_for(s(60));
        assert_eq!(world.runs(&key("one")).len(), 1);
        // And alone it never starts it.
        let holder = world.runs(&key("one"))[0].clone();
        world.kill(&holder);
        world.boot(&holder);
        world.run_for(ms(300));
        assert!(!world.runs(&key("one")).contains(&holder));
    }
}

#[test]
fn a_link_that_comes_back_to_the_lonely_one_is_no_leave_to_run_it() {
    let mut world = site(5, 30);
    world.cut(&["edge-1"], &["edge-2", "edge-3", "edge-4", "edge-5"]);
    world.until(s(90), "the majority runs it", |w| {
        w.runs(&key("one")).first().is_some_and(|n| n != "edge-1")
    });
    for id in ["edge-2", "edge-3", "edge-4", "edge-5"] {
        world.uplink(id, false);
    }
    world.cloud(true);
    world.run_for(s(50));
    assert_eq!(world.runs(&key("one")).len(), 1, "{}", world.story());
}

#[test]
fn a_node_with_a_link_keeps_it_when_its_peers_fall_silent() {
    let mut world = World::new(5, 31);
    world.run_for(s(10));
    world.order(&key("one"), 1, "edge-1", &exclusive());
    world.run_for(s(60));
    world.cut(&["edge-1"], &["edge-2", "edge-3", "edge-4", "edge-5"]);
    world.run_for(s(90));
    assert_eq!(world.runs(&key("one")), ["edge-1"]);
    assert_eq!(world.nodes["edge-1"].starts[&key("one")], 1);
    // And the others leave it alone even when they are cut off later.
    world.cloud(false);
    world.run_for(s(120));
    assert_eq!(world.runs(&key("one")), ["edge-1"], "{}", world.story());
}

/// Applied where there is no majority, it waits; the control plane takes it, and may run it anywhere.
#[test]
fn what_the_control_plane_has_taken_is_not_placed_by_the_site() {
    let mut world = World::new(5, 32);
    world.run_for(s(10));
    world.cloud(false);
    for id in ["edge-3", "edge-4", "edge-5"] {
        world.kill(id);
    }
    world.run_for(s(30));
    let one = key("one");
    let applied = ReplicaRecord {
        generation: 0,
        state: 0,
        taken: false,
        ..record(&one, 0, "", &exclusive())
    };
    world.with("edge-1", |core, at| {
        let out = core.apply(vec![applied], at, &Rules);
        ((), out.expect("it makes sense"))
    });
    world.run_for(s(10));
    assert!(world.runs(&one).is_empty(), "{}", world.story());
    world.takes_waiting = true;
    world.cloud(true);
    world.until(s(30), "taken", |w| w.adopted.contains_key(&one));
    world.run_for(s(10));
    world.cloud(false);
    for id in ["edge-3", "edge-4", "edge-5"] {
        world.boot(id);
    }
    world.run_for(s(120));
    assert!(world.runs(&one).is_empty(), "{}", world.story());
    assert!(world.reasons("NoMajority") > 0);
}
