use super::harness::{World, key, s, service};
use hyperion_autonomy::Mode;

fn site(nodes: usize, seed: u64) -> World {
    let mut world = World::new(nodes, seed);
    world.run_for(s(5));
    for n in 1..=nodes {
        world.order(
            &key(&format!("web-{n}")),
            1,
            &format!("edge-{n}"),
            &service(),
        );
    }
    world.run_for(s(3));
    world.cloud(false);
    world.run_for(s(10));
    world
}

fn one_copy_each(world: &World, nodes: usize) -> bool {
    (1..=nodes).all(|n| world.runs(&key(&format!("web-{n}"))).len() == 1)
}

fn all_know_the_same(world: &World) -> bool {
    let ids = world.ids();
    ids.windows(2)
        .all(|pair| world.knows(&pair[0]) == world.knows(&pair[1]))
}

#[test]
fn a_split_site_heals_to_one_copy_and_one_knowledge() {
    for seed in 0..5 {
        let mut world = site(6, seed);
        world.cut(
            &["edge-1", "edge-2"],
            &["edge-3", "edge-4", "edge-5", "edge-6"],
        );
        world.run_for(s(40));
        for n in 1..=6 {
            let runs = world.runs(&key(&format!("web-{n}"))).len();
            assert!((1..=2).contains(&runs), "web-{n} on {runs} nodes");
        }
        world.heal();
        world.until(s(60), "one copy each", |w| one_copy_each(w, 6));
        world.until(s(30), "the same knowledge", all_know_the_same);
        world.run_for(s(60));
        assert!(one_copy_each(&world, 6), "{}", world.story());
    }
}

#[test]
fn cuts_in_one_direction_end_in_one_copy_too() {
    for seed in 0..3 {
        let mut world = site(5, 100 + seed);
        for to in ["edge-2", "edge-3", "edge-4", "edge-5"] {
            world.cut_one_way("edge-1", to);
        }
        world.run_for(s(40));
        world.heal();
        world.until(s(60), "one copy each", |w| one_copy_each(w, 5));
        world.until(s(30), "the same knowledge", all_know_the_same);
    }
}

#[test]
fn a_cut_between_two_nodes_only_moves_nothing() {
    let mut world = site(6, 7);
    world.cut(&["edge-1"], &["edge-2"]);
    world.run_for(s(60));
    assert!(one_copy_each(&world, 6));
    assert_eq!(world.reasons("TakenOver"), 0, "{}", world.story());
}

#[test]
fn a_part_of_the_site_that_has_a_link_does_not_decide() {
    let mut world = World::new(5, 9);
    world.run_for(s(5));
    world.order(&key("web"), 1, "edge-1", &service());
    world.run_for(s(2));
    world.uplink("edge-1", false);
    world.uplink("edge-2", false);
    world.cut(&["edge-1", "edge-2"], &["edge-3", "edge-4", "edge-5"]);
    world.until(s(30), "autonomous", |w| {
        w.mode("edge-2") == Mode::Autonomous
    });
    assert_eq!(world.mode("edge-3"), Mode::Connected);
    world.run_for(s(30));
    assert_eq!(world.runs(&key("web")), ["edge-1"]);
}
