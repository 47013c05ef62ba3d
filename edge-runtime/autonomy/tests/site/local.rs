use super::harness::{Rules, World, job, key, record, s, service};
use hyperion_autonomy::Mode;
use hyperion_wire::agent_v1::{RecordState, ReplicaPhase, ReplicaRecord};

fn applied(name: &str, index: u32) -> ReplicaRecord {
    let mut key = key(name);
    key.uid = format!("site-{name}");
    key.index = index;
    let mut intent = service();
    intent.manifest = "{}".into();
    ReplicaRecord {
        generation: 0,
        node: String::new(),
        state: 0,
        taken: false,
        ..record(&key, 0, "", &intent)
    }
}

fn autonomous(seed: u64) -> World {
    let mut world = World::new(4, seed);
    world.run_for(s(5));
    world.cloud(false);
    world.until(s(10), "autonomous", |w| {
        w.ids().iter().all(|id| w.mode(id) == Mode::Autonomous)
    });
    world
}

fn apply(world: &mut World, id: &str, records: Vec<ReplicaRecord>) -> Result<(), String> {
    world.with(id, |core, at| match core.apply(records, at, &Rules) {
        Ok(out) => (Ok(()), out),
        Err(e) => (Err(e), Vec::new()),
    })
}

fn site_key(name: &str, index: u32) -> hyperion_wire::domain::ReplicaKey {
    let mut key = key(name);
    key.uid = format!("site-{name}");
    key.index = index;
    key
}

#[test]
fn what_is_applied_at_the_site_runs_spread_and_is_told_later() {
    let mut world = autonomous(1);
    apply(
        &mut world,
        "edge-2",
        vec![applied("cam", 0), applied("cam", 1)],
    )
    .unwrap();
    world.until(s(5), "both run", |w| {
        (0..2).all(|n| w.runs(&site_key("cam", n)).len() == 1)
    });
    assert_ne!(
        world.runs(&site_key("cam", 0)),
        world.runs(&site_key("cam", 1))
    );
    world.cloud(true);
    world.run_for(s(5));
    assert_eq!(world.adopted.len(), 2);
    assert_eq!(world.runs(&site_key("cam", 0)).len(), 1);
}

#[test]
fn applying_again_changes_it_in_place_and_ends_what_is_too_much() {
    let mut world = autonomous(2);
    apply(
        &mut world,
        "edge-2",
        vec![applied("cam", 0), applied("cam", 1)],
    )
    .unwrap();
    world.run_for(s(5));
    let before = world.runs(&site_key("cam", 0));
    let mut again = applied("cam", 0);
    // Another uid of the same name is the same workload.
    again.key.as_mut().unwrap().workload_uid = "site-new".into();
    again.pod.as_mut().unwrap().containers[0].image = "j".into();
    apply(&mut world, "edge-3", vec![again]).unwrap();
    world.run_for(s(10));
    assert_eq!(world.runs(&site_key("cam", 0)), before);
    assert!(world.runs(&site_key("cam", 1)).is_empty());
    let core = world.nodes["edge-1"].core.as_ref().unwrap();
    let pod = core
        .site()
        .replica(&site_key("cam", 0))
        .unwrap()
        .record
        .pod
        .clone();
    assert_eq!(pod.unwrap().containers[0].image, "j");
}

#[test]
fn a_workload_that_is_deleted_at_the_site_ends_everywhere() {
    let mut world = autonomous(3);
    apply(&mut world, "edge-2", vec![applied("cam", 0)]).unwrap();
    world.run_for(s(5));
    world.with("edge-4", |core, at| {
        ((), core.delete("default", "cam", at).unwrap())
    });
    world.until(s(5), "gone", |w| w.runs(&site_key("cam", 0)).is_empty());
    world.run_for(s(30));
    assert!(world.runs(&site_key("cam", 0)).is_empty());
    let missing = world.with("edge-4", |core, at| {
        (core.delete("default", "no", at), vec![])
    });
    assert_eq!(missing.unwrap_err(), "default/no is not known at this site");
}

#[test]
fn a_job_that_is_deleted_at_the_site_after_it_ended_keeps_how_it_ended() {
    let mut world = World::new(4, 5);
    world.run_for(s(5));
    world.order(&key("job"), 1, "edge-1", &job());
    world.run_for(s(2));
    world.cloud(false);
    world.until(s(20), "autonomous", |w| {
        w.ids().iter().all(|id| w.mode(id) == Mode::Autonomous)
    });
    world.with("edge-1", |core, at| {
        let out = core.ended(&key("job"), 1, ReplicaPhase::Succeeded, 0, at);
        ((), out)
    });
    world.run_for(s(5));
    world.with("edge-3", |core, at| {
        ((), core.delete("default", "job", at).unwrap())
    });
    let untaken = world.with("edge-3", |core, _| (core.untaken(), Vec::new()));
    assert_eq!(untaken.len(), 1);
    assert_eq!(untaken[0].state(), RecordState::Removed);
    assert_eq!(untaken[0].outcome(), ReplicaPhase::Succeeded);
}

#[test]
fn what_can_not_be_taken_says_why_and_changes_nothing() {
    let mut world = World::new(3, 4);
    world.run_for(s(5));
    let refused = apply(&mut world, "edge-1", vec![applied("cam", 0)]).unwrap_err();
    assert!(refused.contains("use kubectl"), "{refused}");
    world.order(&key("web"), 1, "edge-1", &service());
    world.run_for(s(2));
    world.cloud(false);
    world.run_for(s(10));
    let mut wrong = applied("cam", 0);
    wrong.intent.as_mut().unwrap().goal = "fun".into();
    let refused = apply(&mut world, "edge-1", vec![applied("ok", 0), wrong]).unwrap_err();
    assert!(refused.starts_with("intent.goal"), "{refused}");
    let refused = apply(&mut world, "edge-1", vec![applied("web", 0)]).unwrap_err();
    assert!(
        refused.contains("workload of the control plane"),
        "{refused}"
    );
    world.run_for(s(5));
    assert!(world.runs(&site_key("ok", 0)).is_empty());
}
