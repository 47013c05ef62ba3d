//! Behaviour of passes, without an API server and without a clock.

mod better;
mod cost;
mod handover;
mod notice;
mod offer;
mod packing;
mod preempt;
mod prices;
mod quota;
mod site;

use std::collections::BTreeMap;

use hyperion_api::node::HyperionNode;
use hyperion_api::placement::PlacementPhase;
use hyperion_api::workload::{HyperionWorkload, WorkloadPhase};
use hyperion_placement::model::{GpuDevice, LatencyMatrix};
use hyperion_proto::agent_v1::ReplicaPhase;
use hyperion_proto::domain::{Capabilities, Report};
use kube::core::DeserializeGuard;
use serde_json::{Value, json};

use super::*;
use crate::index::Priority;
use crate::queue::Queue;

const REPLACE_AFTER: Duration = Duration::from_secs(30);

/// An index, the objects as the API would hold them, and what nodes were told.
struct World {
    index: Index,
    decider: Decider,
    now: Instant,
    clock: Timestamp,
    objects: BTreeMap<String, Value>,
    started: Vec<(String, u32, i64)>,
    stopped: Vec<(String, u32, i64)>,
    events: Vec<(&'static str, String)>,
    finalizers: BTreeMap<String, bool>,
    experiences: Vec<Experience>,
    intents: Vec<Arc<Intent>>,
    made: Vec<HyperionWorkload>,
    /// What is stored is not answered.
    slow_api: bool,
}

impl World {
    fn new() -> Self {
        Self {
            index: Index::new(REPLACE_AFTER, LatencyMatrix::default()),
            decider: Decider::new(false),
            now: Instant::now(),
            clock: Timestamp::from_second(1_767_225_600).unwrap(),
            objects: BTreeMap::new(),
            started: Vec::new(),
            stopped: Vec::new(),
            events: Vec::new(),
            finalizers: BTreeMap::new(),
            experiences: Vec::new(),
            intents: Vec::new(),
            made: Vec::new(),
            slow_api: false,
        }
    }

    fn name() -> Name {
        Name::new("default", "w")
    }

    fn node(&mut self, id: &str, labels: Value, gpus: usize) {
        self.node_spec(id, json!({ "site": "lab" }));
        self.connect(id, labels, gpus);
    }

    fn node_spec(&mut self, id: &str, spec: Value) {
        self.node_object(id, spec, Value::Null);
    }

    fn node_object(&mut self, id: &str, spec: Value, status: Value) {
        let object = json!({ "apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionNode",
            "metadata": { "name": id }, "spec": spec, "status": status });
        let object: HyperionNode = serde_json::from_value(object).unwrap();
        self.index
            .apply_node(DeserializeGuard(Ok(object)), self.now);
    }

    fn connect(&mut self, id: &str, labels: Value, gpus: usize) {
        let capabilities = Capabilities {
            arch: "amd64".to_owned(),
            cpu_millis: 4000,
            memory_bytes: 8 << 30,
            disk_bytes: 0,
            gpus: (0..gpus)
                .map(|i| GpuDevice {
                    uuid: format!("{id}-gpu-{i}"),
                    model: "T4".to_owned(),
                    memory_bytes: 16 << 30,
                    free_millis: 1000,
                })
                .collect(),
            labels: serde_json::from_value(labels).unwrap(),
        };
        self.index.node_up(id, &capabilities, String::new());
        self.settle();
    }

    fn workload(&mut self, spec: Value) {
        self.workload_with(spec, json!({}));
    }

    fn workload_with(&mut self, spec: Value, metadata: Value) {
        let name = Self::name();
        let mut full = json!({ "name": name.name, "namespace": name.namespace, "uid": "uid-1", "generation": 1 });
        full.as_object_mut()
            .unwrap()
            .extend(metadata.as_object().unwrap().clone());
        let object = json!({ "apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionWorkload",
            "metadata": full, "spec": spec });
        let object: HyperionWorkload = serde_json::from_value(object).unwrap();
        self.index.apply_workload(DeserializeGuard(Ok(object)));
        self.settle();
    }

    /// The object as somebody left it whom no check held back.
    fn unreadable(&mut self, metadata: Value) {
        let mut full = json!({ "name": "w", "namespace": "default", "uid": "uid-1",
            "finalizers": [FINALIZER] });
        full.as_object_mut()
            .unwrap()
            .extend(metadata.as_object().unwrap().clone());
        let object = json!({ "apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionWorkload",
            "metadata": full, "spec": { "replicas": "many" } });
        let object: DeserializeGuard<HyperionWorkload> = serde_json::from_value(object).unwrap();
        assert!(object.0.is_err());
        self.index.apply_workload(object);
        self.settle();
    }

    /// A control plane that has read nodes and placements from the API and nothing else yet.
    fn restart(&self) -> Self {
        let mut fresh = Self::new();
        fresh.now = self.now;
        for (id, node) in &self.index.nodes {
            fresh.node_spec(id, json!(node.spec));
        }
        for placement in self.index.placements() {
            let mut object = self.objects[&placement.object_name()].clone();
            object["status"] = json!(placement.status);
            fresh.index.apply_placement(guard(&object), fresh.now);
        }
        fresh
    }

    fn key(&self, replica: u32) -> ReplicaKey {
        let placement = self.index.placement(&Self::name(), replica);
        placement.unwrap().key.clone()
    }

    fn held_back(&self) -> Vec<String> {
        self.index.undescribed().into_iter().collect()
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        let name = Self::name();
        self.index.touch(&name, Priority::Normal);
        self.settle();
    }

    /// Passes until nothing is dirty, with an API that stores at once.
    fn settle(&mut self) {
        let mut queue = Queue::default();
        for _ in 0..1000 {
            for name in self.index.wake_unplaced() {
                queue.push(name.clone(), Priority::Low, self.index.rank(&name));
            }
            for (name, priority) in self.index.take_dirty() {
                queue.push(name.clone(), priority, self.index.rank(&name));
            }
            let Some(name) = queue.pop() else {
                return;
            };
            let (now, clock) = (self.now, self.clock);
            let outcome = pass(&mut self.index, &name, now, clock, &mut self.decider);
            if outcome.more {
                self.index.touch(&name, Priority::Low);
            }
            outcome.actions.into_iter().for_each(|a| self.carry_out(a));
            self.assert_promises_add_up();
        }
        panic!("the passes do not settle");
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Store(object) => {
                let replica = u32::try_from(object.spec.replica).unwrap();
                let generation = object.spec.generation;
                self.objects.insert(
                    object.metadata.name.clone().unwrap(),
                    serde_json::to_value(&object).unwrap(),
                );
                if !self.slow_api {
                    let namespace = object.metadata.namespace.as_deref().unwrap();
                    let workload = Name::new(namespace, &object.spec.workload);
                    self.index.stored(&workload, replica, generation);
                }
            }
            Action::Make(workload) => self.made.push(*workload),
            Action::Delete { workload, replica } => {
                self.objects.remove(&format!("{}-{replica}", workload.name));
                self.index.gone(&workload, replica, i64::MAX);
            }
            Action::Start {
                node,
                key,
                generation,
                intent,
                ..
            } => {
                self.started.push((node, key.index, generation));
                self.intents.push(intent);
            }
            Action::Stop {
                node,
                key,
                generation,
            } => {
                self.stopped.push((node, key.index, generation));
            }
            Action::Event { reason, note, .. } => self.events.push((reason, note)),
            Action::Finalizer {
                workload, present, ..
            } => {
                self.finalizers.insert(workload.name, present);
            }
            Action::Experience(experience) => self.experiences.push(*experience),
            Action::PlacementStatus { .. }
            | Action::WorkloadStatus { .. }
            | Action::QuotaStatus { .. } => {}
        }
    }

    /// What was taken off in place is what all promises add up to.
    fn assert_promises_add_up(&mut self) {
        let before: Vec<_> = self.index.fleet.nodes().cloned().collect();
        for node in &before {
            self.index.refresh_node(&node.id);
        }
        let after: Vec<_> = self.index.fleet.nodes().cloned().collect();
        assert_eq!(before, after);
    }

    fn first_node(&self) -> &hyperion_placement::model::Node {
        self.index.fleet.nodes().next().unwrap()
    }

    fn status(&self) -> &HyperionWorkloadStatus {
        &self.index.workloads[&Self::name()].status
    }

    fn condition(&self, type_: &str) -> (String, String, String) {
        let found = self
            .status()
            .conditions
            .iter()
            .find(|c| c.type_ == type_)
            .unwrap();
        (
            found.status.clone(),
            found.reason.clone(),
            found.message.clone(),
        )
    }

    fn on(&self, replica: u32) -> Option<(String, i64)> {
        let p = self.index.placement(&Self::name(), replica)?;
        Some((p.spec.node.clone(), p.spec.generation))
    }

    fn phase(&self, replica: u32) -> PlacementPhase {
        self.index
            .placement(&Self::name(), replica)
            .unwrap()
            .status
            .phase
    }

    fn report(&mut self, replica: u32, phase: ReplicaPhase, reason: &str, restarts: u32) {
        let p = self.index.placement(&Self::name(), replica).unwrap();
        let (node, key, generation) = (p.spec.node.clone(), p.key.clone(), p.spec.generation);
        self.report_of(&node, key, generation, phase, reason, restarts);
    }

    fn report_of(
        &mut self,
        node: &str,
        key: ReplicaKey,
        generation: i64,
        phase: ReplicaPhase,
        reason: &str,
        restarts: u32,
    ) {
        let report = Report {
            key,
            generation: u64::try_from(generation).unwrap(),
            phase,
            ready: phase == ReplicaPhase::Running,
            reason: reason.to_owned(),
            message: String::new(),
            restarts,
            pod_ip: String::new(),
        };
        self.index.report(node, &report, self.now);
        self.settle();
    }

    fn run_all(&mut self) {
        let replicas: Vec<u32> = self
            .index
            .placements_of(&Self::name())
            .map(|p| p.key.index)
            .collect();
        for replica in replicas {
            self.report(replica, ReplicaPhase::Running, "", 0);
        }
    }

    fn down(&mut self, id: &str) {
        self.index.node_down(id, self.now);
        self.settle();
    }
}

fn guard<T: serde::de::DeserializeOwned>(object: &Value) -> DeserializeGuard<T> {
    DeserializeGuard(Ok(serde_json::from_value(object.clone()).unwrap()))
}

fn aws() -> Value {
    json!({ "hyperion.io/provider": "aws", "topology.kubernetes.io/region": "us-east-1",
        "node.kubernetes.io/instance-type": "g4dn.xlarge" })
}

fn service(replicas: i32, image: &str) -> Value {
    json!({ "replicas": replicas, "template": { "spec": { "containers": [
        { "name": "c", "image": image, "resources": { "limits": { "cpu": "1", "memory": "1Gi" } } }] } } })
}

fn with_policy(mut spec: Value, policy: Value) -> Value {
    spec["policy"] = policy;
    spec
}

fn job(replicas: i32) -> Value {
    let mut spec = service(replicas, "i");
    spec["type"] = json!("job");
    spec
}

fn example() -> Value {
    json!({ "template": { "spec": { "containers": [{ "name": "inference-server",
        "image": "pytorch/torchserve:latest-gpu",
        "resources": { "limits": { "cpu": "2", "memory": "4Gi", "nvidia.com/gpu": "1" } } }] } },
        "policy": { "goal": "latency", "constraints": { "geographies": ["US", "EU"],
            "clouds": ["aws", "gcp"], "preferSpot": true },
            "data": { "source": "s3://b/d", "locality": "aws:us-east-1" } } })
}

#[test]
fn without_a_node_that_fits_the_status_says_why() {
    let mut w = World::new();
    w.node("edge-1", json!({}), 0);
    w.node("edge-2", json!({}), 0);
    w.node("aws-1", aws(), 0);
    w.workload(example());
    assert_eq!(w.on(0), None);
    assert_eq!(w.status().phase, WorkloadPhase::Pending);
    let (status, reason, message) = w.condition(conditions::PLACED);
    assert_eq!((status.as_str(), reason.as_str()), ("False", "Unplaceable"));
    assert_eq!(
        message,
        "replica 0: 0 of 3 nodes fit: 2 ruled out by geographies, 1 by nvidia.com/gpu"
    );
    let counts: Vec<(String, i32)> = w
        .status()
        .rejected
        .iter()
        .map(|r| (r.constraint.clone(), r.count))
        .collect();
    assert_eq!(
        counts,
        [
            ("geographies".to_owned(), 2),
            ("nvidia.com/gpu".to_owned(), 1)
        ]
    );
    assert_eq!(
        w.events.iter().filter(|(r, _)| *r == "Unplaceable").count(),
        1
    );
}

#[test]
fn a_node_that_comes_up_is_used_at_once() {
    let mut w = World::new();
    w.workload(example());
    assert_eq!(w.on(0), None);
    w.node("aws-1", aws(), 1);
    assert_eq!(w.on(0), Some(("aws-1".to_owned(), 1)));
    assert_eq!(w.started, [("aws-1".to_owned(), 0, 1)]);
    assert_eq!(w.finalizers.get("w"), Some(&true));
    w.run_all();
    assert_eq!(w.status().phase, WorkloadPhase::Running);
    assert_eq!(w.status().ready, "1/1");
    assert_eq!(w.condition(conditions::READY).0, "True");
    assert!(w.status().hourly_cost.unwrap() > 0.0);
    assert_eq!(w.status().rejected, []);
}

#[test]
fn a_node_without_container_runtime_keeps_what_it_has_and_takes_nothing_new() {
    let mut w = World::new();
    w.node("a", json!({}), 0);
    w.workload(service(1, "i"));
    w.run_all();
    w.index.node_runtime("a", "containerd is gone".to_owned());
    w.wait(REPLACE_AFTER * 2);
    w.workload_with(service(2, "i"), json!({ "generation": 2 }));
    assert_eq!(w.on(0), Some(("a".to_owned(), 1)));
    assert_eq!(w.on(1), None);
    assert_eq!(w.status().rejected[0].constraint, "notReady");
    w.index.node_runtime("a", String::new());
    w.settle();
    assert_eq!(w.on(1).map(|(node, _)| node), Some("a".to_owned()));
}

#[test]
fn many_replicas_of_one_pass_do_not_overcommit() {
    let mut w = World::new();
    w.node("a", json!({}), 0);
    w.node("b", json!({}), 0);
    // Four cores each, one per replica.
    w.workload(service(200, "i"));
    let placed = w.index.placements().count();
    assert_eq!(placed, 8);
    assert_eq!(w.index.fleet().summary().queue, 192);
    assert!(w.index.fleet.nodes().all(|n| n.free.cpu_millis == 0));
    let (_, _, message) = w.condition(conditions::PLACED);
    assert!(
        message.ends_with("2 ruled out by cpu (and 191 more)"),
        "{message}"
    );
}

#[test]
fn telemetry_that_makes_no_sense_changes_nothing() {
    let mut w = World::new();
    w.node("a", json!({}), 0);
    w.index.measure([("a".to_owned(), 0.25)]);
    let version = w.index.fleet().version();
    w.index
        .measure([("a".to_owned(), f32::NAN), ("gone".to_owned(), 0.5)]);
    assert_eq!(w.first_node().cpu_utilization, 0.25);
    assert_eq!(w.index.fleet().version(), version);
    w.node_spec("a", json!({ "site": "other" }));
    assert_eq!(
        w.first_node().cpu_utilization,
        0.25,
        "a new object has no load of its own"
    );
}

#[test]
fn gpus_are_shared_in_thousandths_and_counted() {
    let mut w = World::new();
    w.node("a", json!({}), 1);
    let mut spec = service(5, "i");
    spec["template"]["spec"]["containers"][0]["resources"] =
        json!({ "limits": { "hyperion.io/gpu-millis": "300" } });
    w.workload(spec);
    assert_eq!(w.index.placements().count(), 3);
    assert_eq!(w.first_node().gpus[0].free_millis, 100);
}

#[test]
fn a_healthy_replica_keeps_its_place() {
    let mut w = World::new();
    w.node("a", json!({}), 0);
    w.workload(service(2, "i"));
    w.run_all();
    let before = (w.on(0), w.on(1));
    w.node("b", json!({}), 0);
    w.workload_with(service(2, "i"), json!({ "labels": { "x": "y" } }));
    w.wait(Duration::from_secs(3600));
    assert_eq!((w.on(0), w.on(1)), before);
    assert_eq!(w.started.len(), 2);
}

#[test]
fn scaling_down_stops_the_highest_and_waits_for_the_node() {
    let mut w = World::new();
    w.node("a", json!({}), 0);
    w.workload(service(3, "i"));
    w.run_all();
    let last = w.index.placement(&World::name(), 2).unwrap().key.clone();
    w.workload(service(2, "i"));
    assert_eq!(w.stopped, [("a".to_owned(), 2, 1)]);
    assert_eq!(w.phase(2), PlacementPhase::Stopping);
    assert_eq!(w.status().ready, "2/2");
    w.report_of("a", last, 1, ReplicaPhase::Stopped, "", 0);
    assert_eq!(w.on(2), None);
    // And up again: nodes refuse generations that they have seen.
    w.workload(service(3, "i"));
    assert_eq!(w.on(2), Some(("a".to_owned(), 2)));
}

#[test]
fn a_lost_node_s_replica_is_placed_again_with_a_higher_generation() {
    let mut w = World::new();
    w.node("a", json!({}), 0);
    w.workload(service(1, "i"));
    w.run_all();
    w.node("b", json!({}), 0);
    w.down("a");
    w.wait(Duration::from_secs(5));
    assert_eq!(w.phase(0), PlacementPhase::Unknown);
    assert_eq!(w.condition(conditions::READY).1, "NodeUnreachable");
    assert_eq!(w.on(0), Some(("a".to_owned(), 1)));
    w.wait(REPLACE_AFTER);
    assert_eq!(w.on(0), Some(("b".to_owned(), 2)));
    assert_eq!(w.started.last(), Some(&("b".to_owned(), 0, 2)));
    assert_eq!(
        w.stopped,
        [],
        "the old copy may be back before the new one is ready"
    );
    w.run_all();
    w.connect("a", json!({}), 0);
    assert_eq!(w.stopped, [("a".to_owned(), 0, 1)]);
}

#[test]
fn a_node_that_returns_in_time_keeps_its_replica() {
    let mut w = World::new();
    w.node("a", json!({}), 0);
    w.workload(service(1, "i"));
    w.run_all();
    w.node("b", json!({}), 0);
    w.down("a");
    w.wait(Duration::from_secs(20));
    w.connect("a", json!({}), 0);
    w.run_all();
    w.wait(Duration::from_secs(60));
    assert_eq!(w.on(0), Some(("a".to_owned(), 1)));
    assert_eq!(w.status().phase, WorkloadPhase::Running);
    assert_eq!(w.started.len(), 1);
}

#[test]
fn a_workload_may_be_more_patient_than_the_default() {
    let mut w = World::new();
    w.node("a", json!({}), 0);
    let policy = json!({ "disconnect": { "replaceAfter": "5m" } });
    w.workload(with_policy(service(1, "i"), policy));
    w.run_all();
    w.node("b", json!({}), 0);
    w.down("a");
    w.wait(Duration::from_secs(299));
    assert_eq!(w.on(0).unwrap().0, "a");
    w.wait(Duration::from_secs(2));
    assert_eq!(w.on(0).unwrap().0, "b");
}

#[test]
fn an_exclusive_replica_waits_for_its_node_until_that_is_revoked() {
    let mut w = World::new();
    w.node("a", json!({}), 0);
    w.workload(with_policy(service(1, "i"), json!({ "exclusive": true })));
    w.run_all();
    w.node("b", json!({}), 0);
    w.down("a");
    w.wait(Duration::from_secs(3600));
    assert_eq!(w.on(0), Some(("a".to_owned(), 1)));
    assert_eq!(w.condition(conditions::PLACED).1, "NodeLost");
    w.node_spec("a", json!({ "revoked": true }));
    w.settle();
    assert_eq!(w.on(0), Some(("b".to_owned(), 2)));
}

#[test]
fn an_exclusive_replica_that_nobody_wants_ends_before_it_is_placed_again() {
    let spec = |replicas| with_policy(service(replicas, "i"), json!({ "exclusive": true }));
    let mut w = World::new();
    w.node("a", json!({}), 0);
    w.workload(spec(1));
    w.run_all();
    w.node("b", json!({}), 0);
    w.down("a");
    w.workload_with(spec(0), json!({ "generation": 2 }));
    w.wait(Duration::from_secs(600));
    assert_eq!(w.phase(0), PlacementPhase::Stopping, "a may run it");
    assert_eq!(w.stopped, [("a".to_owned(), 0, 1)], "no list names it");
    let (_, said) = w.events.last().unwrap();
    assert!(said.contains("node a is out of reach"), "{said}");
    w.workload_with(spec(1), json!({ "generation": 3 }));
    w.wait(Duration::from_secs(600));
    assert_eq!(w.on(0), Some(("a".to_owned(), 1)));
    let key = w.key(0);
    w.connect("a", json!({}), 0);
    assert_eq!(w.stopped, vec![("a".to_owned(), 0, 1); 2]);
    assert_eq!(w.on(0), Some(("a".to_owned(), 1)), "it has not ended yet");
    w.report_of("a", key, 1, ReplicaPhase::Stopped, "", 0);
    assert_eq!(w.on(0).unwrap().1, 2);

    // Nobody waits for it where it is not wanted any more.
    for ends in ["revoked", "deleted"] {
        let mut w = World::new();
        w.node("a", json!({}), 0);
        w.workload(spec(1));
        w.run_all();
        w.down("a");
        w.workload_with(spec(0), json!({ "generation": 2 }));
        assert!(w.objects.contains_key("w-0"));
        if ends == "revoked" {
            w.node_spec("a", json!({ "revoked": true }));
            w.settle();
        } else {
            let deletion = json!({ "deletionTimestamp": "2026-01-01T00:00:00Z" });
            w.workload_with(spec(0), deletion);
        }
        assert!(w.objects.is_empty(), "{ends}");
    }
}

#[test]
fn a_revoked_or_deleted_node_is_lost_at_once() {
    let mut w = World::new();
    w.node("a", json!({}), 0);
    w.workload(service(1, "i"));
    w.run_all();
    w.node("b", json!({}), 0);
    w.node_spec("a", json!({ "revoked": true }));
    w.settle();
    assert_eq!(w.on(0), Some(("b".to_owned(), 2)));
    w.run_all();
    w.node("c", json!({}), 0);
    w.index.delete_node("b");
    w.settle();
    assert_eq!(w.on(0), Some(("c".to_owned(), 3)));
}

#[test]
fn draining_starts_the_new_copy_before_the_old_one_is_stopped() {
    let mut w = World::new();
    w.node("a", json!({}), 0);
    w.workload(service(1, "i"));
    w.run_all();
    w.node("b", json!({}), 0);
    w.node_spec("a", json!({ "draining": true }));
    w.settle();
    assert_eq!(w.started.last(), Some(&("b".to_owned(), 0, 2)));
    assert_eq!(w.stopped, []);
    w.run_all();
    assert_eq!(w.stopped, [("a".to_owned(), 0, 1)]);
}

#[test]
fn a_drained_copy_is_stopped_in_the_end_even_if_the_new_one_does_not_start() {
    let mut w = World::new();
    w.node("a", json!({}), 0);
    w.workload(service(1, "i"));
    w.run_all();
    w.node("b", json!({}), 0);
    w.node_spec("a", json!({ "draining": true }));
    w.settle();
    w.wait(Duration::from_secs(59));
    assert_eq!(w.stopped, []);
    w.wait(Duration::from_secs(2));
    assert_eq!(w.stopped, [("a".to_owned(), 0, 1)]);
}

#[test]
fn a_job_on_a_draining_node_never_runs_twice() {
    let mut w = World::new();
    w.node("a", json!({}), 0);
    w.workload(job(1));
    w.run_all();
    w.node("b", json!({}), 0);
    let key = w.index.placement(&World::name(), 0).unwrap().key.clone();
    w.node_spec("a", json!({ "draining": true }));
    w.settle();
    assert_eq!(w.stopped, [("a".to_owned(), 0, 1)]);
    assert_eq!(w.started.len(), 1, "not before the old copy has stopped");
    w.report_of("a", key, 1, ReplicaPhase::Stopped, "", 0);
    assert_eq!(w.started.last(), Some(&("b".to_owned(), 0, 2)));
}

#[test]
fn a_draining_node_without_an_alternative_keeps_its_replica() {
    let mut w = World::new();
    w.node("a", json!({}), 0);
    w.workload(service(1, "i"));
    w.run_all();
    w.node_spec("a", json!({ "draining": true }));
    w.wait(Duration::from_secs(300));
    assert_eq!((w.on(0), w.stopped.len()), (Some(("a".to_owned(), 1)), 0));
    let (_, reason, message) = w.condition(conditions::PLACED);
    assert_eq!(reason, "Unplaceable");
    assert!(message.contains("because node a is draining"), "{message}");
}

#[test]
fn a_cordoned_node_takes_nothing_new() {
    let mut w = World::new();
    w.node("a", json!({}), 0);
    w.workload(service(1, "i"));
    w.node_spec("a", json!({ "unschedulable": true }));
    w.workload(service(2, "i"));
    assert_eq!(w.on(0).unwrap().0, "a");
    assert_eq!(w.on(1), None);
    assert_eq!(w.status().rejected[0].constraint, "cordoned");
}

#[test]
fn a_no_execute_taint_moves_replicas_that_do_not_tolerate_it() {
    let mut w = World::new();
    w.node("a", json!({}), 0);
    w.workload(service(1, "i"));
    w.run_all();
    w.node("b", json!({}), 0);
    w.node_spec(
        "a",
        json!({ "taints": [{ "key": "k", "effect": "NoSchedule" }] }),
    );
    w.settle();
    assert_eq!(w.on(0).unwrap().0, "a");
    w.node_spec(
        "a",
        json!({ "taints": [{ "key": "k", "effect": "NoExecute" }] }),
    );
    w.settle();
    assert_eq!(w.on(0).unwrap().0, "b");
}

#[test]
fn a_template_change_goes_to_the_same_node_a_few_at_a_time() {
    let mut w = World::new();
    w.node("a", json!({}), 0);
    w.workload(service(4, "i:1"));
    w.run_all();
    w.node("b", json!({}), 0);
    w.workload(service(4, "i:2"));
    assert_eq!(w.on(0), Some(("a".to_owned(), 2)));
    assert_eq!(w.on(1), Some(("a".to_owned(), 1)), "one of four at a time");
    assert_eq!(w.stopped, []);
    for _ in 0..4 {
        w.run_all();
    }
    let generations: Vec<i64> = (0..4).map(|r| w.on(r).unwrap().1).collect();
    assert_eq!(generations.len(), 4);
    assert!((0..4).all(|r| w.on(r).unwrap().0 == "a"));
    let hash = |r| {
        w.index
            .placement(&World::name(), r)
            .unwrap()
            .spec
            .template_hash
            .clone()
    };
    assert!((1..4).all(|r| hash(r) == hash(0)));
}

#[test]
fn a_replica_that_cant_start_is_tried_on_another_node() {
    let mut w = World::new();
    w.node("a", json!({}), 0);
    w.workload(service(1, "i"));
    w.node("b", json!({}), 0);
    w.report(0, ReplicaPhase::Backoff, "ImagePullFailed", 0);
    assert_eq!(w.on(0).unwrap().0, "a", "a moment of trouble moves nothing");
    w.wait(Duration::from_secs(11));
    assert_eq!(w.on(0), Some(("b".to_owned(), 2)));
    w.report(0, ReplicaPhase::Backoff, "ImagePullFailed", 0);
    w.wait(Duration::from_secs(11));
    assert_eq!(
        w.on(0).unwrap().0,
        "b",
        "both nodes failed: it stays and says why"
    );
    let (_, reason, message) = w.condition(conditions::READY);
    assert_eq!(reason, "ReplicaFailing");
    assert!(message.contains("ImagePullFailed"), "{message}");
    assert_eq!(w.status().rejected[0].constraint, "recentFailure");
    w.wait(Duration::from_secs(700));
    assert_eq!(
        w.on(0).unwrap().0,
        "a",
        "after a while the first is tried again"
    );
}

#[test]
fn a_job_is_done_when_all_its_replicas_ended_well() {
    let mut w = World::new();
    w.node("a", json!({}), 0);
    w.workload(job(2));
    w.run_all();
    w.report(0, ReplicaPhase::Succeeded, "Completed", 0);
    assert_eq!(w.status().phase, WorkloadPhase::Running);
    assert_eq!(
        w.first_node().free.cpu_millis,
        3000,
        "what ended takes no room"
    );
    w.report(1, ReplicaPhase::Succeeded, "Completed", 0);
    assert_eq!(w.status().phase, WorkloadPhase::Succeeded);
    assert_eq!(w.condition(conditions::COMPLETE).0, "True");
    w.node("b", json!({}), 0);
    w.down("a");
    w.wait(Duration::from_secs(3600));
    assert_eq!(w.status().phase, WorkloadPhase::Succeeded);
    assert_eq!(w.started.len(), 2, "never started again");
}

#[test]
fn a_job_whose_replica_failed_for_good_has_failed() {
    let mut w = World::new();
    w.node("a", json!({}), 0);
    w.node("b", json!({}), 0);
    w.workload(job(1));
    w.report(0, ReplicaPhase::Failed, "Error", 0);
    w.wait(Duration::from_secs(600));
    assert_eq!(w.status().phase, WorkloadPhase::Failed);
    assert_eq!(w.started.len(), 1);
}

#[test]
fn deleting_stops_replicas_before_the_object_goes() {
    let mut w = World::new();
    w.node("a", json!({}), 0);
    let finalizers = json!({ "finalizers": [FINALIZER] });
    w.workload_with(service(1, "i"), finalizers.clone());
    w.run_all();
    let key = w.index.placement(&World::name(), 0).unwrap().key.clone();
    let mut marks = finalizers;
    marks["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    w.workload_with(service(1, "i"), marks);
    assert_eq!(w.stopped, [("a".to_owned(), 0, 1)]);
    assert_eq!(w.finalizers.get("w"), None, "not yet");
    w.report_of("a", key, 1, ReplicaPhase::Stopped, "", 0);
    assert_eq!(w.on(0), None);
    assert_eq!(w.finalizers.get("w"), Some(&false));
}

#[test]
fn deleting_does_not_wait_for_a_node_out_of_reach_nor_for_ever() {
    for reachable in [false, true] {
        let mut w = World::new();
        w.node("a", json!({}), 0);
        let finalizers = json!({ "finalizers": [FINALIZER] });
        w.workload_with(service(1, "i"), finalizers.clone());
        w.run_all();
        if !reachable {
            w.down("a");
        }
        let mut marks = finalizers;
        marks["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        w.workload_with(service(1, "i"), marks);
        if reachable {
            assert_eq!(w.finalizers.get("w"), None);
            w.wait(Duration::from_secs(46));
        }
        assert_eq!(
            w.finalizers.get("w"),
            Some(&false),
            "reachable: {reachable}"
        );
    }
}

#[test]
fn a_placement_deleted_by_hand_is_made_again() {
    let mut w = World::new();
    w.node("a", json!({}), 0);
    w.workload(service(1, "i"));
    w.run_all();
    w.index.gone(&World::name(), 0, 1);
    w.settle();
    assert_eq!(w.on(0), Some(("a".to_owned(), 2)));
    assert_eq!(w.stopped, [], "the running copy is taken over");
}

#[test]
fn placements_read_at_the_start_are_told_again_and_not_decided_again() {
    let mut first = World::new();
    first.node("a", json!({}), 0);
    first.workload(service(2, "i"));
    first.run_all();
    let mut second = World::new();
    second.node_spec("a", json!({ "site": "lab" }));
    for object in first.objects.values() {
        let object = serde_json::from_value(object.clone()).unwrap();
        let object = DeserializeGuard(Ok(object));
        second.index.apply_placement(object, second.now);
    }
    let spec = serde_json::to_value(&first.index.workloads[&World::name()].object.spec).unwrap();
    second.workload(spec);
    assert_eq!(
        second.started,
        [("a".to_owned(), 0, 1), ("a".to_owned(), 1, 1)]
    );
    second.connect("a", json!({}), 0);
    second.run_all();
    assert_eq!(second.started.len(), 2);
    assert_eq!(second.events, []);
}

#[test]
fn a_bad_spec_names_the_field_and_leaves_what_runs() {
    let mut w = World::new();
    w.node("a", json!({}), 0);
    w.workload(service(1, "i"));
    w.run_all();
    let mut bad = service(3, "i");
    bad["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] = json!("-1");
    w.workload(bad);
    let (status, reason, message) = w.condition(conditions::ACCEPTED);
    assert_eq!((status.as_str(), reason.as_str()), ("False", "InvalidSpec"));
    assert_eq!(
        message,
        "spec.template.spec.containers[0].resources.limits.cpu: \"-1\" is negative"
    );
    assert_eq!(w.on(0), Some(("a".to_owned(), 1)));
    assert_eq!(w.stopped, []);
    w.workload(service(1, "i"));
    assert_eq!(w.condition(conditions::ACCEPTED).0, "True");
}

#[test]
fn a_forbidden_place_is_left_even_without_another() {
    let mut w = World::new();
    w.node("a", aws(), 0);
    w.workload(service(1, "i"));
    w.run_all();
    let policy = json!({ "constraints": { "geographies": ["EU"] } });
    w.workload(with_policy(service(1, "i"), policy));
    assert_eq!(w.stopped, [("a".to_owned(), 0, 1)]);
    let (_, _, message) = w.condition(conditions::PLACED);
    assert!(message.contains("geographies"), "{message}");
}

#[test]
fn a_namesake_made_after_deletion_is_another_workload() {
    let mut w = World::new();
    w.node("a", json!({}), 0);
    w.workload(service(1, "i"));
    w.run_all();
    let old = w.index.placement(&World::name(), 0).unwrap().key.clone();
    w.workload_with(service(1, "i"), json!({ "uid": "uid-2" }));
    assert_eq!(w.stopped, [("a".to_owned(), 0, 1)]);
    w.report_of("a", old, 1, ReplicaPhase::Stopped, "", 0);
    assert_eq!(
        w.index.placement(&World::name(), 0).unwrap().key.uid,
        "uid-2"
    );
}

#[test]
fn after_a_restart_in_a_rolling_update_nodes_of_old_copies_are_held_back() {
    let mut first = World::new();
    first.node("a", json!({}), 0);
    first.workload(service(4, "i:1"));
    first.run_all();
    first.workload(service(4, "i:2"));
    let generations: Vec<i64> = (0..4).map(|r| first.on(r).unwrap().1).collect();
    assert_eq!(generations, [2, 1, 1, 1]);
    let mut second = first.restart();
    second.workload(service(4, "i:2"));
    assert_eq!(second.started, [("a".to_owned(), 0, 2)]);
    assert_eq!(second.held_back(), ["a"]);
    second.connect("a", json!({}), 0);
    for _ in 0..4 {
        second.run_all();
    }
    assert_eq!(second.held_back(), [""; 0]);
    assert_eq!(second.stopped, []);
}

#[test]
fn after_a_restart_with_a_refused_spec_its_nodes_are_held_back() {
    let mut first = World::new();
    first.node("a", json!({}), 0);
    first.node("b", json!({}), 0);
    first.workload(service(1, "i"));
    first.run_all();
    let nodes = [first.on(0).unwrap().0];
    let mut second = first.restart();
    let mut bad = service(1, "i");
    bad["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] = json!("-1");
    second.workload(bad);
    assert_eq!(second.held_back(), nodes);
    assert_eq!((second.started.len(), second.stopped.len()), (0, 0));
    second.unreadable(json!({}));
    assert_eq!(second.held_back(), nodes);
    second.workload(service(1, "i"));
    assert_eq!(second.held_back(), [""; 0]);
    assert_eq!(second.started.len(), 1);
}

#[test]
fn a_node_is_held_back_for_a_copy_that_waits_for_its_successor() {
    let mut w = World::new();
    w.node("a", json!({}), 0);
    w.workload(service(1, "i"));
    w.run_all();
    w.node("b", json!({}), 0);
    w.node_spec("a", json!({ "draining": true }));
    w.settle();
    assert_eq!(w.held_back(), ["a"]);
    w.run_all();
    assert_eq!(w.held_back(), [""; 0]);
}

#[test]
fn what_must_not_run_twice_waits_for_a_node_that_is_out_of_reach() {
    let exclusive = |image| with_policy(service(1, image), json!({ "exclusive": true }));
    let mut edited = job(1);
    edited["template"]["spec"]["containers"][0]["image"] = json!("i:2");
    for (spec, edited) in [(exclusive("i"), exclusive("i:2")), (job(1), edited)] {
        let mut w = World::new();
        w.node("a", json!({}), 0);
        w.workload(spec);
        w.run_all();
        w.node("b", json!({}), 0);
        let key = w.key(0);
        w.down("a");
        w.wait(Duration::from_secs(5));
        w.node_spec("a", json!({ "draining": true }));
        w.settle();
        w.workload(edited);
        w.wait(Duration::from_secs(5));
        assert_eq!(w.on(0), Some(("a".to_owned(), 1)));
        w.connect("a", json!({}), 0);
        assert_eq!(w.stopped, [("a".to_owned(), 0, 1)]);
        assert_eq!(w.started.len(), 1, "not before the old copy has stopped");
        w.report_of("a", key, 1, ReplicaPhase::Stopped, "", 0);
        assert_eq!(w.started.last(), Some(&("b".to_owned(), 0, 2)));
    }
}

#[test]
fn after_a_restart_a_job_is_not_moved_before_its_node_has_said_what_it_runs() {
    let mut first = World::new();
    first.node("a", json!({}), 0);
    first.workload(job(1));
    first.run_all();
    let mut w = first.restart();
    w.node_spec("a", json!({ "draining": true }));
    let mut edited = job(1);
    edited["template"]["spec"]["containers"][0]["image"] = json!("i:2");
    w.workload(edited);
    w.node("b", json!({}), 0);
    w.connect("a", json!({}), 0);
    assert_eq!((w.started.len(), w.on(0)), (0, Some(("a".to_owned(), 1))));
    let key = w.key(0);
    w.report_of("a", key, 1, ReplicaPhase::Stopped, "", 0);
    assert_eq!(w.started, [("b".to_owned(), 0, 2)]);
}

#[test]
fn after_a_restart_what_was_stopped_to_be_moved_is_not_begun_anew_where_it_was() {
    for elsewhere in [true, false] {
        let mut first = World::new();
        first.node("a", json!({}), 0);
        first.workload(job(1));
        first.run_all();
        let mut w = first.restart();
        let settled = w.now + FIRST_CONTACT;
        w.index.launch_from(settled);
        w.node_spec("a", json!({ "draining": true }));
        w.workload(job(1));
        w.connect("a", json!({}), 0);
        assert_eq!((w.started.len(), w.stopped.len()), (0, 0));
        assert_eq!(w.held_back(), ["a"], "what runs there is left alone");
        if elsewhere {
            w.node("b", json!({}), 0);
            w.connect("b", json!({}), 0);
            let key = w.key(0);
            assert_eq!(w.stopped, [("a".to_owned(), 0, 1)]);
            w.report_of("a", key, 1, ReplicaPhase::Stopped, "", 0);
            assert_eq!(w.started, [("b".to_owned(), 0, 2)]);
        } else {
            w.wait(FIRST_CONTACT);
            assert_eq!(w.started, [("a".to_owned(), 0, 1)]);
            assert_eq!(w.held_back(), Vec::<String>::new());
        }
    }
}

#[test]
fn a_job_whose_node_goes_away_while_it_is_being_stopped_does_not_run_twice() {
    for returns in [true, false] {
        let mut w = World::new();
        w.node("a", json!({}), 0);
        w.workload(job(1));
        w.run_all();
        w.node("b", json!({}), 0);
        let key = w.key(0);
        w.node_spec("a", json!({ "draining": true }));
        w.settle();
        w.down("a");
        w.wait(Duration::from_secs(5));
        assert_eq!((w.stopped.len(), w.started.len()), (1, 1));
        if returns {
            w.connect("a", json!({}), 0);
            assert_eq!(w.stopped.len(), 2, "it is told again");
            assert_eq!(w.started.len(), 1);
            w.report_of("a", key, 1, ReplicaPhase::Stopped, "", 0);
        } else {
            w.wait(REPLACE_AFTER);
        }
        assert_eq!(w.started.last(), Some(&("b".to_owned(), 0, 2)));
    }
}

#[test]
fn a_list_that_is_older_than_a_write_deletes_nothing() {
    let mut w = World::new();
    w.node("a", json!({}), 0);
    w.workload(service(1, "i"));
    w.run_all();
    w.index.reset_placements(Vec::new(), w.now);
    w.settle();
    assert_eq!(w.on(0), Some(("a".to_owned(), 1)));
    // Once the watch has shown it, a list without it says that somebody deleted it.
    let echo = guard(&w.objects["w-0"]);
    w.index.apply_placement(echo, w.now);
    w.index.reset_placements(Vec::new(), w.now);
    w.settle();
    assert_eq!(w.on(0), Some(("a".to_owned(), 2)));
}

#[test]
fn a_gpu_of_an_old_copy_is_not_given_away_before_the_copy_is_gone() {
    let mut w = World::new();
    w.node("a", json!({}), 1);
    let mut spec = service(1, "i");
    spec["template"]["spec"]["containers"][0]["resources"] =
        json!({ "limits": { "nvidia.com/gpu": "1" } });
    w.workload(spec);
    w.run_all();
    w.node("b", json!({}), 1);
    let key = w.key(0);
    let free = |w: &World| w.first_node().gpus[0].free_millis;
    w.node_spec("a", json!({ "draining": true }));
    w.settle();
    assert_eq!(w.on(0), Some(("b".to_owned(), 2)));
    assert_eq!(free(&w), 0, "it serves until the new one is ready");
    w.run_all();
    assert_eq!(w.stopped, [("a".to_owned(), 0, 1)]);
    assert_eq!(free(&w), 0, "it is being stopped");
    w.report_of("a", key, 1, ReplicaPhase::Stopped, "", 0);
    assert_eq!(free(&w), 1000);
    assert_eq!(w.stopped.len(), 1);
}

#[test]
fn a_workload_that_cant_be_read_can_be_deleted() {
    let mut first = World::new();
    first.node("a", json!({}), 0);
    first.workload(service(1, "i"));
    first.run_all();
    let mut w = first.restart();
    w.unreadable(json!({}));
    w.connect("a", json!({}), 0);
    w.run_all();
    assert_eq!(w.stopped, []);
    let key = w.key(0);
    w.unreadable(json!({ "deletionTimestamp": "2026-01-01T00:00:00Z" }));
    assert_eq!(w.stopped, [("a".to_owned(), 0, 1)]);
    assert_eq!(w.finalizers.get("w"), None, "not yet");
    w.report_of("a", key, 1, ReplicaPhase::Stopped, "", 0);
    assert_eq!(w.on(0), None);
    assert_eq!(w.finalizers.get("w"), Some(&false));
}

#[test]
fn numbers_that_people_read_are_round() {
    let mut w = World::new();
    w.node("aws-1", aws(), 1);
    w.node("aws-2", aws(), 1);
    w.workload(example());
    let spec = &w.index.placement(&World::name(), 0).unwrap().spec;
    let why = &spec.explanation;
    let mut numbers = vec![spec.hourly_cost, why.score];
    numbers.extend(spec.p99_latency_ms);
    numbers.extend(why.runner_up.as_ref().map(|r| r.score));
    numbers.extend(why.terms.iter().map(|t| t.value));
    for number in numbers {
        assert!(
            (status::round(number) - number).abs() < f64::EPSILON,
            "{number}"
        );
    }
}

#[test]
fn a_node_that_reports_without_end_does_not_fill_the_memory() {
    let mut w = World::new();
    w.node("a", json!({}), 0);
    for index in 0..10_050 {
        let report = Report {
            key: ReplicaKey {
                namespace: "default".to_owned(),
                workload: "other".to_owned(),
                uid: "u".to_owned(),
                index,
            },
            generation: 1,
            phase: ReplicaPhase::Running,
            ready: true,
            reason: String::new(),
            message: String::new(),
            restarts: 0,
            pod_ip: String::new(),
        };
        w.index.report("a", &report, w.now);
    }
    assert_eq!(w.index.nodes["a"].held.len(), 10_000);
}
