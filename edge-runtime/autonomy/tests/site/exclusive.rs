use super::harness::{World, exclusive, key, ms, s};

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
