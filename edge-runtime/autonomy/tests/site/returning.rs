use super::harness::{World, key, s, service};
use hyperion_autonomy::Mode;

fn taken_over(seed: u64) -> (World, String) {
    let mut world = World::new(5, seed);
    world.run_for(s(5));
    world.order(&key("web"), 1, "edge-1", &service());
    world.order(&key("other"), 1, "edge-2", &service());
    world.run_for(s(3));
    world.cloud(false);
    world.run_for(s(10));
    world.kill("edge-1");
    world.until(s(10), "taken over", |w| w.runs(&key("web")).len() == 1);
    let winner = world.runs(&key("web"))[0].clone();
    world.run_for(s(5));
    (world, winner)
}

#[test]
fn the_control_plane_takes_what_the_site_decided_and_nothing_restarts() {
    let (mut world, winner) = taken_over(1);
    let starts = |w: &World| -> u32 { w.nodes.values().flat_map(|n| n.starts.values()).sum() };
    let before = starts(&world);
    world.cloud(true);
    world.until(s(10), "connected", |w| {
        w.nodes
            .iter()
            .filter(|(_, n)| n.core.is_some())
            .all(|(id, _)| w.mode(id) == Mode::Connected)
    });
    world.run_for(s(30));
    let adopted = &world.adopted[&key("web")];
    assert_eq!(
        (adopted.generation, adopted.node.as_str()),
        (2, winner.as_str())
    );
    assert!(!adopted.decider.is_empty());
    let why = adopted.explanation.as_ref().unwrap();
    assert_eq!(why.cause, "node edge-1 is dead");
    assert!(why.candidates > 0);
    assert_eq!(world.runs(&key("web")), [winner]);
    assert_eq!(world.runs(&key("other")), ["edge-2"]);
    assert_eq!(starts(&world), before);
    for (id, node) in &world.nodes {
        if let Some(core) = &node.core {
            assert!(core.untaken().is_empty(), "{id}");
        }
    }
    assert_eq!(world.reasons("SiteConnected"), 1, "{}", world.story());
}

#[test]
fn a_device_that_comes_back_gives_way_to_the_copy_that_serves() {
    let (mut world, winner) = taken_over(2);
    world.boot("edge-1");
    world.until(s(20), "one copy", |w| {
        w.runs(&key("web")) == [winner.clone()]
    });
    world.run_for(s(30));
    assert_eq!(world.runs(&key("web")), std::slice::from_ref(&winner));
    assert_eq!(world.nodes[&winner].starts[&key("web")], 1);
    assert_eq!(world.reasons("PeerBack"), 1, "{}", world.story());
}

#[test]
fn records_of_a_node_that_lost_its_store_come_back() {
    let mut world = World::new(4, 3);
    world.run_for(s(5));
    world.order(&key("web"), 1, "edge-1", &service());
    world.run_for(s(3));
    world.cloud(false);
    world.run_for(s(10));
    world.kill("edge-1");
    world.wipe("edge-1");
    world.boot("edge-1");
    world.until(s(3), "it runs again", |w| w.runs(&key("web")) == ["edge-1"]);
    world.run_for(s(30));
    assert_eq!(world.runs(&key("web")), ["edge-1"]);
    assert_eq!(world.reasons("TakenOver"), 0, "{}", world.story());
    // What it says of itself is heard although it has lost count of its starts.
    let said = |w: &World| {
        let core = w.nodes["edge-2"].core.as_ref().unwrap();
        core.site().node("edge-1").unwrap().record.boot_id.clone()
    };
    assert_eq!(said(&world), "edge-1-1");
}

#[test]
fn a_reboot_offline_starts_what_it_ran() {
    let mut world = World::new(4, 4);
    world.run_for(s(5));
    world.order(&key("web"), 1, "edge-1", &service());
    world.run_for(s(3));
    world.cloud(false);
    world.run_for(s(10));
    world.kill("edge-1");
    world.boot("edge-1");
    assert_eq!(world.runs(&key("web")), ["edge-1"]);
    world.run_for(s(30));
    assert_eq!(world.runs(&key("web")), ["edge-1"]);
    assert_eq!(world.reasons("TakenOver"), 0);
}

#[test]
fn a_move_by_the_control_plane_is_not_cut_short() {
    let mut world = World::new(4, 5);
    world.run_for(s(5));
    world.order(&key("web"), 1, "edge-1", &service());
    world.run_for(s(3));
    // Make before break: the new copy needs long, the old one is stopped by an order.
    world.phase("edge-2", hyperion_wire::agent_v1::ReplicaPhase::Pulling);
    world.order(&key("web"), 2, "edge-2", &service());
    world.run_for(s(100));
    assert_eq!(world.runs(&key("web")), ["edge-1", "edge-2"]);
    world
        .nodes
        .get_mut("edge-1")
        .unwrap()
        .running
        .remove(&key("web"));
    // Whichever generation the order names, the new copy's record holds.
    world.with("edge-1", |core, at| ((), core.removed(&key("web"), 2, at)));
    world.run_for(s(30));
    assert_eq!(world.runs(&key("web")), ["edge-2"]);
    for id in world.ids() {
        let core = world.nodes[&id].core.as_ref().unwrap();
        assert!(
            core.site()
                .replica(&key("web"))
                .unwrap()
                .placed_on("edge-2"),
            "{id}"
        );
    }
}

#[test]
fn a_lower_generation_never_wins() {
    let (mut world, winner) = taken_over(6);
    let stale = super::harness::record(&key("web"), 1, "edge-3", &service());
    for id in world.ids() {
        if world.nodes[&id].core.is_some() {
            let stale = stale.clone();
            world.with(&id, |core, at| {
                let frame = hyperion_wire::peer_v1::Frame {
                    body: Some(hyperion_wire::peer_v1::frame::Body::Entries(
                        hyperion_wire::peer_v1::Entries {
                            replicas: vec![stale],
                            ..Default::default()
                        },
                    )),
                };
                ((), core.frame("edge-5", frame, at))
            });
        }
    }
    world.run_for(s(30));
    assert_eq!(world.runs(&key("web")), [winner]);
}

#[test]
fn stop_after_stops_what_is_cut_off_and_starts_it_again() {
    let mut world = World::new(3, 7);
    world.run_for(s(5));
    let mut intent = service();
    intent.stop_after = Some(s(60));
    world.order(&key("web"), 1, "edge-1", &intent);
    world.run_for(s(3));
    world.cloud(false);
    world.run_for(s(50));
    assert_eq!(world.runs(&key("web")), ["edge-1"]);
    world.run_for(s(20));
    assert!(world.runs(&key("web")).is_empty(), "nor anywhere else");
    assert_eq!(world.reasons("StoppedCutOff"), 1);
    world.run_for(s(60));
    assert!(world.runs(&key("web")).is_empty());
    world.cloud(true);
    world.until(s(5), "it runs again", |w| w.runs(&key("web")) == ["edge-1"]);
}

/// The control plane had placed it on another node, which died after it was ready.
#[test]
fn a_copy_that_is_back_goes_on_where_the_node_after_it_is_dead() {
    let mut world = World::new(4, 40);
    world.run_for(s(10));
    let cam = key("cam");
    world.order(&cam, 1, "edge-1", &service());
    world.run_for(s(10));
    world.kill("edge-1");
    world.order(&cam, 2, "edge-2", &service());
    world.run_for(s(10));
    world.kill("edge-2");
    world.run_for(s(10));
    world.uplink("edge-1", false);
    world.boot("edge-1");
    world.run_for(s(20));
    assert_eq!(world.runs(&cam), ["edge-1"], "{}", world.story());
    assert_eq!(world.reasons("Superseded"), 0);
    world.boot("edge-2");
    world.until(s(20), "the older copy ends", |w| {
        w.runs(&cam) == ["edge-2"] && w.reasons("Superseded") == 1
    });
}
