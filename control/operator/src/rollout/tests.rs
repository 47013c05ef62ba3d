use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use hyperion_api::node::HyperionNode;
use hyperion_api::rollout::{HyperionRollout, Plan, RolloutPhase, RolloutStage};
use hyperion_api::update::{NodeUpdate, UpdatePhase, UpdateProgress};
use jiff::{SignedDuration, Timestamp};
use kube::core::DeserializeGuard;
use serde_json::{Value, json};

use super::node::{Of, State, View};
use super::step::{Moving, Step, step};
use super::*;
use crate::index::Index;

const SHA: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

fn spec(more: Value) -> Value {
    let mut all = json!({ "bundle": {
        "url": "https://updates.example/2.swu", "sha256": SHA, "version": "2",
    } });
    let more = more.as_object().unwrap().clone();
    all.as_object_mut().unwrap().extend(more);
    all
}

fn of(more: Value) -> Of {
    let plan = Plan::read(&serde_json::from_value(spec(more)).unwrap()).unwrap();
    Of::new(plan, "uid-1")
}

/// A device as it is.
#[derive(Clone)]
struct Device {
    name: String,
    version: &'static str,
    machine: &'static str,
    connected: bool,
    ready: bool,
    speaks: bool,
    away: Duration,
    replicas: usize,
    exclusive: bool,
    other: Option<String>,
    progress: Option<UpdateProgress>,
    /// What becomes of the bundle.
    fate: UpdatePhase,
    update: NodeUpdate,
}

impl Device {
    fn new(n: usize) -> Self {
        Self {
            name: format!("node-{n}"),
            version: "1",
            machine: "board",
            connected: true,
            ready: true,
            speaks: true,
            away: Duration::from_secs(3600),
            replicas: 0,
            exclusive: false,
            other: None,
            progress: None,
            fate: UpdatePhase::Done,
            update: NodeUpdate::default(),
        }
    }

    fn said(&mut self) {
        self.update = NodeUpdate {
            machine: self.machine.to_owned(),
            system_version: self.version.to_owned(),
            slots: Vec::new(),
            progress: self.progress.clone(),
        };
    }

    fn view(&self) -> View<'_> {
        View {
            name: &self.name,
            connected: self.connected,
            ready: self.connected && self.ready,
            away: (!self.connected).then_some(self.away),
            agent_version: "1",
            update: self.speaks.then_some(&self.update),
            replicas: self.replicas,
            exclusive: self.exclusive.then(|| "default/press".to_owned()),
            other: self.other.clone(),
        }
    }

    /// Goes one phase on with its order.
    fn go_on(&mut self, order: Option<&step::Order>) {
        let phase = |p: &UpdateProgress| p.phase;
        let Some(order) = order else {
            let keeps = |p: &UpdateProgress| phase(p).between() || phase(p).failed();
            self.progress = self
                .progress
                .take()
                .filter(|p| keeps(p) || phase(p) == UpdatePhase::Done);
            return;
        };
        let held = self.progress.take().filter(|p| p.order == order.id);
        let next = match held.as_ref().map(phase) {
            None => UpdatePhase::Downloading,
            Some(UpdatePhase::Downloading) if self.fate == UpdatePhase::Refused => {
                UpdatePhase::Refused
            }
            Some(UpdatePhase::Downloading) => UpdatePhase::Installed,
            Some(UpdatePhase::Installed) if order.activate => UpdatePhase::Restarting,
            Some(UpdatePhase::Restarting) => self.fate,
            Some(other) => other,
        };
        if next == UpdatePhase::Done {
            self.version = "2";
        }
        self.connected = next != UpdatePhase::Restarting;
        self.progress = Some(UpdateProgress {
            order: order.id.clone(),
            phase: next,
            reason: if next.failed() {
                next.to_string()
            } else {
                String::new()
            },
            ..UpdateProgress::default()
        });
    }
}

/// Devices, and what the API holds of their rollout.
struct World {
    of: Of,
    devices: Vec<Device>,
    stored: BTreeMap<String, Moving>,
    told: BTreeSet<String>,
    now: Timestamp,
    last: Step,
    /// Most devices that were out of use at a time.
    most_out: usize,
    /// Devices that ever restarted.
    restarted: BTreeSet<String>,
}

impl World {
    fn new(count: usize, more: Value) -> Self {
        Self {
            of: of(more),
            devices: (0..count).map(Device::new).collect(),
            stored: BTreeMap::new(),
            told: BTreeSet::new(),
            now: "2026-11-28T12:00:00Z".parse().unwrap(),
            last: Step::default(),
            most_out: 0,
            restarted: BTreeSet::new(),
        }
    }

    fn step(&mut self) -> &Step {
        self.devices.iter_mut().for_each(Device::said);
        let views: Vec<View<'_>> = self.devices.iter().map(Device::view).collect();
        self.last = step(&self.of, &views, &self.stored, &self.told, self.now);
        self.told = self.last.orders.keys().cloned().collect();
        &self.last
    }

    /// A step, stored, and what devices make of it.
    fn round(&mut self) {
        self.step();
        // A node is not told to restart before that is stored.
        for (name, order) in &self.last.orders {
            let stage = self.stored.get(name).map(|m| m.stage);
            assert_eq!(
                order.activate,
                stage == Some(RolloutStage::Restarting),
                "{name}"
            );
        }
        self.stored = self.last.moving.clone();
        self.now += SignedDuration::from_secs(10);
        for device in &mut self.devices {
            if !device.connected && device.progress.as_ref().is_none_or(|p| !p.phase.between()) {
                continue;
            }
            let moving = self.stored.get(&device.name);
            if moving.is_some_and(|m| m.stage == RolloutStage::Emptying) && !device.exclusive {
                device.replicas = 0;
            }
            device.go_on(self.last.orders.get(&device.name));
            if device.progress.as_ref().is_some_and(|p| p.phase.between()) {
                assert!(
                    device.replicas == 0 || device.exclusive,
                    "{} runs something",
                    device.name
                );
                self.restarted.insert(device.name.clone());
            }
        }
        let out = |d: &&Device| !(d.connected && d.ready) || self.stored.contains_key(&d.name);
        self.most_out = self.most_out.max(self.devices.iter().filter(out).count());
    }

    fn rounds(&mut self, most: usize) -> &step::Tally {
        for _ in 0..most {
            self.round();
            if self.last.tally.phase != RolloutPhase::Progressing {
                break;
            }
        }
        &self.last.tally
    }

    fn done(&self) -> usize {
        self.devices.iter().filter(|d| d.version == "2").count()
    }

    fn reason(&self) -> &str {
        self.last.tally.reason
    }
}

#[test]
fn waves_come_one_after_the_other_and_few_nodes_are_out_at_a_time() {
    let mut world = World::new(50, json!({ "maxUnavailable": 3 }));
    world.devices.iter_mut().for_each(|d| d.replicas = 2);
    let mut waves = Vec::new();
    for _ in 0..300 {
        world.round();
        let (wave, done) = (world.last.tally.wave, world.done());
        if waves.last().is_none_or(|(w, _)| *w != wave) {
            waves.push((wave, done));
        }
        // Nothing of a later wave begins before the one before has ended.
        let begun = world.restarted.len();
        assert!(begun <= [1, 5, 50][wave], "wave {wave}: {begun} restarted");
        if world.last.tally.phase == RolloutPhase::Complete {
            break;
        }
    }
    assert_eq!(waves, [(0, 0), (1, 1), (2, 5)]);
    assert_eq!((world.done(), world.most_out), (50, 3));
    assert_eq!(world.reason(), "AllUpdated");
    assert!(world.last.orders.is_empty() && world.last.moving.is_empty());
}

#[test]
fn nodes_that_are_not_ready_for_another_reason_count() {
    let mut world = World::new(10, json!({ "waves": ["100%"], "maxUnavailable": 2 }));
    for device in &mut world.devices[..2] {
        device.ready = false;
    }
    for device in &mut world.devices[..2] {
        device.connected = false;
    }
    for _ in 0..30 {
        world.round();
    }
    assert_eq!((world.done(), world.restarted.len()), (0, 0));
    assert_eq!(world.reason(), "MaxUnavailable");
    assert!(
        world
            .last
            .tally
            .message
            .contains("2 nodes are unavailable, and 2 may be")
    );
    // One of them is back: there is room for one.
    world.devices[0].connected = true;
    world.devices[0].ready = true;
    world.rounds(200);
    assert_eq!(world.done(), 9);
    assert_eq!(world.reason(), "NodesOffline");
    assert!(
        world.last.tally.message.contains("node-1"),
        "{}",
        world.last.tally.message
    );
    world.devices[1].connected = true;
    assert_eq!(world.rounds(100).phase, RolloutPhase::Complete);
    assert_eq!((world.done(), world.most_out), (10, 2));
}

#[test]
fn failures_pause_it_until_somebody_has_looked() {
    let more = json!({ "waves": ["100%"], "maxUnavailable": 2, "maxFailures": 1 });
    let mut world = World::new(20, more);
    for device in world.devices.iter_mut().step_by(4) {
        device.fate = UpdatePhase::RolledBack;
    }
    assert_eq!(world.rounds(500).phase, RolloutPhase::Paused);
    let stopped = world.restarted.len();
    let failed = world.last.tally.failed;
    // Two may be out at a time: more than one beyond the limit can't be on its way.
    assert!((2..=3).contains(&failed), "{failed}");
    assert_eq!(world.reason(), "TooManyFailures");
    for _ in 0..20 {
        world.round();
    }
    assert!(
        world.restarted.len() <= stopped + 1,
        "nothing more is begun"
    );
    assert_eq!(world.last.tally.failures[0].reason, "RolledBack");
    world.of.plan.accepted = 5;
    assert_eq!(world.rounds(500).phase, RolloutPhase::Complete);
    assert_eq!(
        (world.done(), world.last.tally.failed, world.most_out),
        (15, 5, 2)
    );
    assert_eq!(world.reason(), "CompleteWithFailures");
    // Another try.
    world
        .devices
        .iter_mut()
        .for_each(|d| d.fate = UpdatePhase::Done);
    world.of.plan.attempt = 1;
    world.rounds(500);
    assert_eq!((world.done(), world.last.tally.failed), (20, 0));
}

#[test]
fn a_refusal_is_a_failure_and_costs_no_restart() {
    let mut world = World::new(5, json!({}));
    world
        .devices
        .iter_mut()
        .for_each(|d| d.fate = UpdatePhase::Refused);
    assert_eq!(world.rounds(50).phase, RolloutPhase::Paused);
    assert_eq!((world.last.tally.failed, world.restarted.len()), (1, 0));
}

#[test]
fn nodes_are_emptied_and_restarted_in_a_window_only() {
    let windows = json!([{ "start": "13:00", "duration": "1h" }]);
    let mut world = World::new(4, json!({ "waves": ["100%"], "windows": windows }));
    world.devices.iter_mut().for_each(|d| d.replicas = 1);
    for _ in 0..20 {
        world.round();
    }
    assert_eq!(world.reason(), "WindowClosed");
    assert!(
        world
            .last
            .tally
            .message
            .contains("until 2026-11-28T13:00:00Z")
    );
    let installed = |d: &Device| {
        d.progress
            .as_ref()
            .is_some_and(|p| p.phase == UpdatePhase::Installed)
    };
    // As many as may be restarted at once, and another.
    assert_eq!(world.devices.iter().filter(|d| installed(d)).count(), 2);
    assert!(world.last.moving.is_empty());
    world.now = "2026-11-28T13:30:00Z".parse().unwrap();
    world.step();
    let emptied = world.last.moving.keys().next().unwrap().clone();
    assert_eq!(world.last.moving[&emptied].stage, RolloutStage::Emptying);
    world.stored = world.last.moving.clone();
    // It closes before the node is empty.
    world.now = "2026-11-28T14:00:00Z".parse().unwrap();
    assert!(world.step().moving.is_empty(), "released");
    assert!(!world.last.orders[&emptied].activate);
    // One that restarts goes on.
    world.stored.get_mut(&emptied).unwrap().stage = RolloutStage::Restarting;
    assert!(world.step().orders[&emptied].activate);
}

#[test]
fn a_pause_releases_what_was_not_activated_and_lets_the_rest_go_on() {
    let mut world = World::new(4, json!({ "waves": ["100%"], "maxUnavailable": 2 }));
    world.devices.iter_mut().for_each(|d| d.replicas = 1);
    while world.last.moving.len() < 2 {
        world.round();
    }
    let names: Vec<String> = world.last.moving.keys().cloned().collect();
    world.stored = world.last.moving.clone();
    world.stored.get_mut(&names[0]).unwrap().stage = RolloutStage::Restarting;
    world.of.plan.paused = true;
    world.step();
    assert_eq!(world.reason(), "PausedByUser");
    assert_eq!(world.last.moving.keys().collect::<Vec<_>>(), [&names[0]]);
    assert!(world.last.orders[&names[0]].activate && !world.last.orders[&names[1]].activate);
}

#[test]
fn exclusive_workloads_hold_their_node_unless_somebody_says_otherwise() {
    let mut world = World::new(3, json!({ "waves": ["100%"] }));
    world.devices[1].exclusive = true;
    world.devices[1].replicas = 1;
    world.rounds(60);
    assert_eq!((world.done(), world.reason()), (2, "ExclusiveWorkloads"));
    assert!(
        world
            .last
            .tally
            .message
            .contains("held by exclusive workloads: node-1")
    );
    // It has ended.
    let mut free = World::new(0, json!({ "waves": ["100%"] }));
    free.devices.clone_from(&world.devices);
    free.devices[1].exclusive = false;
    assert_eq!(free.rounds(30).phase, RolloutPhase::Complete);
    world.of.plan.exclusive = hyperion_api::rollout::Exclusive::Move;
    world.devices[1].replicas = 0;
    assert_eq!(world.rounds(30).phase, RolloutPhase::Complete);
}

#[test]
fn what_can_not_move_is_restarted_with_its_node_after_a_while() {
    let mut world = World::new(1, json!({ "emptyWithin": "1m" }));
    world.devices[0].replicas = 3;
    while world.last.moving.is_empty() {
        world.round();
        world.devices[0].replicas = 3;
    }
    world.stored = world.last.moving.clone();
    let began = world.stored["node-0"].since;
    world.now = began + SignedDuration::from_secs(59);
    assert_eq!(world.step().moving["node-0"].stage, RolloutStage::Emptying);
    world.now = began + SignedDuration::from_secs(60);
    assert_eq!(
        world.step().moving["node-0"].stage,
        RolloutStage::Restarting
    );
    assert!(
        !world.last.orders["node-0"].activate,
        "not before that is stored"
    );
}

#[test]
fn an_offline_node_gives_its_place_in_a_wave_to_another() {
    let mut world = World::new(3, json!({ "waves": [1, "100%"] }));
    world.step();
    let first = world.last.orders.keys().next().unwrap().clone();
    world.round();
    let device = world.devices.iter_mut().find(|d| d.name == first).unwrap();
    device.connected = false;
    device.ready = false;
    // It counts as unavailable, so that another needs room.
    world.of = of(json!({ "waves": [1, "100%"], "maxUnavailable": 2 }));
    let held = world.of.id();
    for _ in 0..60 {
        world.round();
    }
    assert_eq!((world.done(), world.reason()), (2, "NodesOffline"));
    // What it has downloaded is not thrown away.
    assert_eq!(world.last.orders[&first].id, held);
}

#[test]
fn a_leader_that_takes_over_carries_on_with_what_is_stored() {
    let mut world = World::new(30, json!({ "waves": ["100%"], "maxUnavailable": 4 }));
    for n in 0..200 {
        world.round();
        if n % 3 == 0 {
            // All that is not in the API is lost.
            world.told.clear();
        }
        if world.last.tally.phase == RolloutPhase::Complete {
            break;
        }
    }
    assert_eq!((world.done(), world.most_out), (30, 4));
}

#[test]
fn boards_that_the_bundle_is_not_for_refuse_it_unseen() {
    let mut world = World::new(
        4,
        json!({ "waves": ["100%"], "bundle": {
        "url": "https://a/b", "sha256": SHA, "version": "2", "machines": ["board"],
    } }),
    );
    world.devices[0].machine = "other";
    world.devices[1].machine = "";
    world.devices[2].speaks = false;
    let tally = world.rounds(30).clone();
    assert_eq!(
        (tally.phase, tally.refused, tally.total),
        (RolloutPhase::Complete, 3, 1)
    );
    let reasons: Vec<&str> = tally.failures.iter().map(|f| f.reason.as_str()).collect();
    assert_eq!(reasons, ["WrongMachine", "NoEngine", "NotUpdatable"]);
    assert!(
        world.devices[..3].iter().all(|d| d.progress.is_none()),
        "none had an order"
    );
    world.devices.truncate(3);
    world.step();
    assert_eq!(world.reason(), "AllRefused");
    assert!(
        world.last.tally.message.contains("node-0"),
        "{}",
        world.last.tally.message
    );
    world.devices.clear();
    world.step();
    assert_eq!(
        (world.reason(), world.last.tally.phase),
        ("NoNodes", RolloutPhase::Progressing)
    );
}

#[test]
fn a_node_that_does_not_come_back_has_failed_until_it_does() {
    let mut world = World::new(2, json!({ "waves": ["100%"], "maxFailures": 1 }));
    while world.restarted.is_empty() {
        world.round();
    }
    let name = world.restarted.first().unwrap().clone();
    let at = world.devices.iter().position(|d| d.name == name).unwrap();
    world.stored.clone_from(&world.last.moving);
    world.now += SignedDuration::from_secs(16 * 60);
    world.step();
    assert_eq!(world.last.tally.failures[0].reason, "NotBack");
    assert!(world.last.orders[&name].activate, "its order stands");
    assert_eq!(world.last.tally.unavailable, 1);
    world.devices[at].connected = true;
    world.devices[at].version = "2";
    world.devices[at].progress.as_mut().unwrap().phase = UpdatePhase::Done;
    world.step();
    assert_eq!((world.last.tally.failed, world.last.tally.done), (0, 1));
}

#[test]
fn a_node_that_has_the_version_is_done_unless_it_is_on_trial() {
    let of = of(json!({}));
    let mut device = Device::new(0);
    device.version = "2";
    device.said();
    let now = Timestamp::UNIX_EPOCH;
    assert_eq!(of.state(&device.view(), None, now), State::Done);
    device.progress = Some(UpdateProgress {
        order: of.id(),
        phase: UpdatePhase::Trial,
        ..UpdateProgress::default()
    });
    device.said();
    assert_ne!(of.state(&device.view(), None, now), State::Done);
    // What it is called inside may be another word: the node says that it is done.
    device.version = "2.0-r1";
    device.progress.as_mut().unwrap().phase = UpdatePhase::Done;
    device.said();
    assert_eq!(of.state(&device.view(), None, now), State::Done);
    // Of another order that says nothing.
    device.progress.as_mut().unwrap().order = "else".to_owned();
    device.said();
    assert_eq!(of.state(&device.view(), None, now), State::Waiting);
}

#[test]
fn an_agent_is_updated_without_emptying_its_node() {
    let bundle = json!({
        "url": "https://a/b", "sha256": SHA, "version": "2", "kind": "Agent",
    });
    let of = of(json!({ "bundle": bundle }));
    let mut device = Device::new(0);
    device.machine = "";
    (device.replicas, device.exclusive) = (3, true);
    device.progress = Some(UpdateProgress {
        order: of.id(),
        phase: UpdatePhase::Installed,
        ..UpdateProgress::default()
    });
    device.said();
    let views = [device.view()];
    let now = Timestamp::UNIX_EPOCH;
    let out = step(&of, &views, &BTreeMap::new(), &BTreeSet::new(), now);
    assert_eq!(out.moving["node-0"].stage, RolloutStage::Restarting);
    assert!(!of.empties());
    let mut new = device.view();
    new.agent_version = "2";
    assert_eq!(of.state(&new, None, now), State::Done);
}

// ---- all rollouts, on an index ----

fn node(name: &str, spec: Value) -> DeserializeGuard<HyperionNode> {
    let object = json!({
        "apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionNode",
        "metadata": { "name": name },
        "spec": spec,
        "status": { "arch": "arm64", "allocatable": { "cpu": "4", "memory": "8Gi" },
            "labels": { "line": "a" },
            "update": { "machine": "board", "systemVersion": "1" } },
    });
    serde_json::from_value(object).unwrap()
}

fn rollout(name: &str, made: &str, more: Value) -> DeserializeGuard<HyperionRollout> {
    let object = json!({
        "apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionRollout",
        "metadata": { "name": name, "uid": format!("uid-{name}"), "generation": 1,
            "creationTimestamp": made },
        "spec": spec(more),
    });
    serde_json::from_value(object).unwrap()
}

fn index(nodes: &[&str]) -> Index {
    let mut index = Index::new(
        Duration::from_secs(30),
        hyperion_providers::latency_matrix(),
    );
    for name in nodes {
        index.apply_node(node(name, json!({ "site": "lab" })), Instant::now());
        let said = index.nodes[*name].said.clone();
        let facts = hyperion_api::node::HyperionNodeStatus {
            labels: [("line".to_owned(), "a".to_owned())].into_iter().collect(),
            ..Default::default()
        };
        index.machine_up(name, facts, String::new());
        index.node_said(name, said);
    }
    index
}

const OLD: &str = "2026-11-01T00:00:00Z";
const NEW: &str = "2026-11-02T00:00:00Z";

#[test]
fn of_two_rollouts_for_a_node_the_older_has_it_until_it_is_over() {
    let index = index(&["a", "b"]);
    let now = Timestamp::now();
    let mut rollouts = Rollouts::default();
    let all = json!({ "waves": ["100%"], "maxUnavailable": 2 });
    rollouts.reset(vec![
        rollout("new", NEW, json!({ "waves": ["100%"] })),
        rollout("old", OLD, all),
    ]);
    let out = rollouts.round(&index, now);
    let ids: BTreeSet<&str> = out.orders.iter().map(|(_, o)| o.id.as_str()).collect();
    assert_eq!(
        (out.orders.len(), ids.len()),
        (2, 1),
        "both are the old one's"
    );
    let statuses: BTreeMap<String, _> = out.statuses.into_iter().collect();
    assert_eq!(statuses["new"].reason, "OtherRollout");
    let message = &statuses["new"].message;
    assert!(message.contains("the older rollout old has "), "{message}");
    // Deleted: what was not activated is withdrawn, and the new one takes over.
    rollouts.delete(&rollout("old", OLD, json!({})));
    let out = rollouts.round(&index, now);
    let fresh = out.orders.iter().filter(|(_, o)| !o.id.is_empty()).count();
    let withdrawn = out.orders.iter().filter(|(_, o)| o.id.is_empty()).count();
    assert!(fresh >= 1 && fresh + withdrawn == 2, "{:?}", out.orders);
    rollouts.delete(&rollout("new", NEW, json!({})));
    let out = rollouts.round(&index, now);
    assert!(out.orders.iter().all(|(_, o)| o.id.is_empty()));
    assert!(!rollouts.active());
}

#[test]
fn selection_is_by_site_and_label_and_never_of_clusters() {
    let mut index = index(&["a"]);
    let in_cluster = node("c.n", json!({ "cluster": "c" }));
    index.apply_node(in_cluster, Instant::now());
    index.apply_node(node("r", json!({ "revoked": true })), Instant::now());
    let chosen = |more: Value| {
        let mut rollouts = Rollouts::default();
        rollouts.apply(rollout("r", OLD, more));
        let out = rollouts.round(&index, Timestamp::now());
        out.statuses[0].1.nodes
    };
    assert_eq!(chosen(json!({})), 1);
    assert_eq!(
        chosen(json!({ "sites": ["lab"], "nodeSelector": { "line": "a" } })),
        1
    );
    assert_eq!(chosen(json!({ "sites": ["other"] })), 0);
    assert_eq!(chosen(json!({ "nodeSelector": { "line": "b" } })), 0);
    assert_eq!(
        chosen(json!({ "nodeSelector": { "hyperion.io/site": "lab" } })),
        1
    );
}

#[test]
fn a_spec_that_can_not_be_carried_out_says_so_and_orders_nothing() {
    let index = index(&["a"]);
    let mut rollouts = Rollouts::default();
    rollouts.apply(rollout("bad", OLD, json!({ "waves": ["many"] })));
    let out = rollouts.round(&index, Timestamp::now());
    assert!(out.orders.is_empty());
    let status = &out.statuses[0].1;
    assert_eq!(status.phase, RolloutPhase::Invalid);
    assert!(
        status.message.starts_with("spec.waves[0]: "),
        "{}",
        status.message
    );
    let accepted = &status.conditions[0];
    assert_eq!(
        (accepted.type_.as_str(), accepted.status.as_str()),
        ("Accepted", "False")
    );
    assert_eq!((out.words.len(), out.words[0].warning), (1, true));
    // Once is enough.
    assert!(rollouts.round(&index, Timestamp::now()).words.is_empty());
}

#[test]
fn a_person_s_drain_is_left_alone() {
    let mut index = index(&["a"]);
    index.apply_node(
        node("a", json!({ "site": "lab", "draining": true })),
        Instant::now(),
    );
    let open = |index: &Index| index.fleet().node("a").unwrap().schedulable;
    index.set_emptied(&BTreeSet::from(["a".to_owned()]));
    index.set_emptied(&BTreeSet::new());
    assert!(!open(&index), "still drained");
    index.apply_node(node("a", json!({ "site": "lab" })), Instant::now());
    assert!(open(&index));
    index.set_emptied(&BTreeSet::from(["a".to_owned()]));
    assert!(!open(&index));
    index.set_emptied(&BTreeSet::new());
    assert!(open(&index));
}

#[test]
fn a_node_is_emptied_when_that_is_stored_and_told_to_restart_after_that() {
    let mut index = index(&["a"]);
    let now = Timestamp::now();
    let mut rollouts = Rollouts::default();
    rollouts.apply(rollout("r", OLD, json!({})));
    let store = |rollouts: &mut Rollouts, out: &Outcome| {
        let (name, status) = out.statuses.last().unwrap().clone();
        rollouts.stored(&name, Some("uid-r"), status);
    };
    let out = rollouts.round(&index, now);
    store(&mut rollouts, &out);
    let order = out.orders[0].1.clone();
    assert!(!order.activate && order.bundle.is_some());
    // It has the bundle.
    let mut said = index.nodes["a"].said.clone();
    said.update.as_mut().unwrap().progress = Some(UpdateProgress {
        order: order.id.clone(),
        phase: UpdatePhase::Installed,
        ..UpdateProgress::default()
    });
    index.node_said("a", said);
    let out = rollouts.round(&index, now);
    assert!(out.emptied.is_empty(), "not stored yet");
    let early = rollouts.round(&index, now + jiff::Span::new().seconds(1));
    assert!(early.statuses.is_empty(), "one is written at a time");
    store(&mut rollouts, &out);
    let out = rollouts.round(&index, now);
    assert_eq!(out.emptied, BTreeSet::from(["a".to_owned()]));
    assert!(out.orders.is_empty());
    store(&mut rollouts, &out);
    let out = rollouts.round(&index, now);
    assert!(out.orders[0].1.activate && out.orders[0].1.id == order.id);
    assert_eq!(out.emptied.len(), 1, "it stays empty until it is back");
    // Another object of the name is another rollout.
    let mut status = rollouts.counts().next().unwrap().1.clone();
    status.done = 77;
    rollouts.stored("r", Some("uid-else"), status);
    assert_eq!(rollouts.counts().next().unwrap().1.done, 0);
}
