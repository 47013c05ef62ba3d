use super::harness::{World, key, s, service};

#[test]
fn a_hot_node_gives_up_the_least_important_one_at_a_time_and_keeps_the_last() {
    let mut world = World::new(3, 1);
    world.run_for(s(5));
    for (name, priority) in [("high", 10), ("low", -5), ("mid", 0)] {
        let mut intent = service();
        intent.priority = priority;
        world.order(&key(name), 1, "edge-1", &intent);
    }
    world.run_for(s(3));
    world.cloud(false);
    world.run_for(s(10));
    world.nodes.get_mut("edge-1").unwrap().me.load.throttled = true;
    world.said("edge-1");
    world.run_for(s(25));
    assert_ne!(world.runs(&key("low")), ["edge-1"]);
    assert_eq!(world.runs(&key("low")).len(), 1);
    assert_eq!(world.runs(&key("mid")), ["edge-1"]);
    world.run_for(s(200));
    assert_ne!(world.runs(&key("mid")), ["edge-1"]);
    assert_eq!(world.runs(&key("high")), ["edge-1"]);
    assert_eq!(world.reasons("Shed"), 2, "{}", world.story());
}

#[test]
fn without_room_elsewhere_it_waits_and_comes_back_when_there_is_some() {
    let mut world = World::new(2, 2);
    world.run_for(s(5));
    let mut big = service();
    big.wants.resources.cpu_millis = 3000;
    let mut less = big.clone();
    less.priority = -1;
    less.wants.resources.cpu_millis = 1000;
    world.order(&key("other"), 1, "edge-2", &{
        let mut full = service();
        full.wants.resources.cpu_millis = 4000;
        full
    });
    world.order(&key("big"), 1, "edge-1", &big);
    world.order(&key("less"), 1, "edge-1", &less);
    world.run_for(s(3));
    world.cloud(false);
    world.run_for(s(10));
    world.nodes.get_mut("edge-1").unwrap().me.load.throttled = true;
    world.said("edge-1");
    world.run_for(s(30));
    assert!(world.runs(&key("less")).is_empty());
    assert_eq!(world.reasons("NoRoom"), 1, "{}", world.story());
    assert_eq!(world.status("edge-2").pending, 1);
    world.nodes.get_mut("edge-1").unwrap().me.load.throttled = false;
    world.said("edge-1");
    world.until(s(180), "it is back", |w| w.runs(&key("less")) == ["edge-1"]);
}

#[test]
fn a_dead_nodes_work_waits_for_room_and_takes_it_when_it_comes() {
    let mut world = World::new(3, 3);
    world.run_for(s(5));
    let mut big = service();
    big.wants.resources.cpu_millis = 3000;
    for n in 1..=3 {
        world.order(&key(&format!("big-{n}")), 1, &format!("edge-{n}"), &big);
    }
    world.run_for(s(3));
    world.cloud(false);
    world.run_for(s(10));
    world.kill("edge-1");
    world.run_for(s(30));
    assert!(world.runs(&key("big-1")).is_empty());
    world.with("edge-2", |core, at| {
        ((), core.delete("default", "big-2", at).unwrap())
    });
    world.until(s(5), "it takes the room", |w| {
        w.runs(&key("big-1")) == ["edge-2"]
    });
}
