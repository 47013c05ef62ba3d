//! Faults drawn by seed; the harness checks after each step that no exclusive replica runs twice.

use hyperion_autonomy::Mode;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};

use super::harness::{World, exclusive, job, key, ms, s, service};

fn name(n: usize) -> hyperion_wire::domain::ReplicaKey {
    key(&format!("w{n}"))
}

fn trouble(world: &mut World, rng: &mut ChaCha8Rng) {
    let ids = world.ids();
    let any = |rng: &mut ChaCha8Rng| ids[rng.random_range(0..ids.len())].clone();
    match rng.random_range(0..12) {
        0 => world.cloud(false),
        1 => world.cloud(true),
        2 | 3 => {
            let id = any(rng);
            if world.nodes[&id].core.is_some() {
                world.kill(&id);
            }
        }
        4 | 5 => {
            let id = any(rng);
            if world.nodes[&id].core.is_none() {
                world.boot(&id);
            }
        }
        6 => {
            let (from, to) = (any(rng), any(rng));
            world.cut_one_way(&from, &to);
        }
        7 => {
            let split = rng.random_range(1..ids.len());
            let (left, right) = ids.split_at(split);
            let names = |side: &[String]| side.to_vec();
            let (left, right) = (names(left), names(right));
            let left: Vec<&str> = left.iter().map(String::as_str).collect();
            let right: Vec<&str> = right.iter().map(String::as_str).collect();
            world.cut(&left, &right);
        }
        8 => world.heal(),
        9 => {
            let id = any(rng);
            let up = rng.random_bool(0.5);
            world.uplink(&id, up);
        }
        10 => world.loss = rng.random_range(0.0..0.2),
        _ => {
            let id = any(rng);
            let node = world.nodes.get_mut(&id).unwrap();
            node.me.load.throttled = !node.me.load.throttled;
            world.said(&id);
        }
    }
}

fn one_seed(seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let count = 5;
    let mut world = World::new(count, seed);
    world.run_for(s(5));
    for n in 0..9 {
        let intent = match n % 3 {
            0 => service(),
            1 => exclusive(),
            _ => job(),
        };
        world.order(&name(n), 1, &format!("edge-{}", n % count + 1), &intent);
    }
    world.run_for(s(5));
    world.cloud(false);
    for _ in 0..25 {
        trouble(&mut world, &mut rng);
        let pause = rng.random_range(100..15_000);
        world.run_for(ms(pause));
    }
    world.heal();
    world.loss = 0.0;
    world.cloud(false);
    for id in world.ids() {
        world.uplink(&id, true);
        world.nodes.get_mut(&id).unwrap().me.load.throttled = false;
        world.said(&id);
        if world.nodes[&id].core.is_none() {
            world.boot(&id);
        }
    }
    let once = |w: &World| (0..9).all(|n| w.runs(&name(n)).len() == 1);
    world.until(s(300), "each runs once", once);
    world.until(s(60), "all know the same", |w| {
        let ids = w.ids();
        ids.windows(2).all(|p| w.knows(&p[0]) == w.knows(&p[1]))
    });
    world.run_for(s(60));
    assert!(once(&world), "seed {seed}\n{}", world.story());
    let starts = |w: &World| -> u32 { w.nodes.values().flat_map(|n| n.starts.values()).sum() };
    let before = starts(&world);
    world.cloud(true);
    world.until(s(30), "connected", |w| {
        w.ids().iter().all(|id| w.mode(id) == Mode::Connected)
    });
    world.run_for(s(60));
    assert!(once(&world), "seed {seed}\n{}", world.story());
    assert_eq!(
        starts(&world),
        before,
        "seed {seed}: the return restarts nothing"
    );
}

#[test]
fn whatever_happens_it_ends_with_one_copy_of_each() {
    let seeds = std::env::var("CHAOS_SEEDS")
        .ok()
        .and_then(|n| n.parse().ok());
    for seed in 0..seeds.unwrap_or(6) {
        one_seed(seed);
    }
}
