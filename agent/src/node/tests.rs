//! The node with a supervisor that runs whatever it is told, and a network that delivers.

mod policy;
mod returns;
mod site;
mod telemetry;
mod update;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex as StdMutex};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{
    Intent, ReplicaPhase, ReplicaRecord, SiteMember, StartReplica, StreamMessage, Welcome,
};

use super::*;
use crate::store::tests::Disk;
use crate::supervisor::{Desired, LogError, LogQuery};
use crate::testing::order;

/// 2026-01-01.
const WALL: i64 = 1_767_225_600_000;

/// Runs what it is told, at once.
#[derive(Clone, Default)]
struct Fake {
    desired: Arc<StdMutex<Vec<Desired>>>,
    told: Arc<StdMutex<u64>>,
}

impl Fake {
    fn runs(&self) -> Vec<(String, u64)> {
        let desired = self.desired.lock().unwrap();
        desired
            .iter()
            .filter(|d| d.finished.is_none())
            .map(|d| (d.start.key.workload.clone(), d.start.generation))
            .collect()
    }
}

impl Workloads for Fake {
    fn set_desired(&self, desired: Vec<Desired>) {
        *self.desired.lock().unwrap() = desired;
        *self.told.lock().unwrap() += 1;
    }

    fn reports(&self) -> Vec<ReplicaReport> {
        let desired = self.desired.lock().unwrap();
        desired
            .iter()
            .map(|d| ReplicaReport {
                key: Some((&d.start.key).into()),
                generation: d.start.generation,
                phase: d
                    .finished
                    .as_ref()
                    .map_or(ReplicaPhase::Running, |f| f.phase)
                    .into(),
                ready: d.finished.is_none(),
                ..ReplicaReport::default()
            })
            .collect()
    }

    fn logs(&self, _: LogQuery) -> BoxStream<'static, Result<Bytes, LogError>> {
        futures::stream::empty().boxed()
    }
}

/// Where messages to the control plane go.
#[derive(Default)]
struct Outbox {
    open: Cell<bool>,
    sent: RefCell<Vec<Body>>,
}

impl Outbox {
    fn take(&self) -> Vec<Body> {
        self.sent.take()
    }
}

impl Outgoing for Outbox {
    fn send(&self, body: Body) -> bool {
        if self.open.get() {
            self.sent.borrow_mut().push(body);
        }
        self.open.get()
    }
}

fn config(id: &str) -> NodeConfig {
    NodeConfig {
        profile: Profile::fast(),
        seed: id.bytes().map(u64::from).sum(),
        addresses: vec![format!("{id}:7445")],
        ..NodeConfig::new(NodeFacts {
            node_id: id.to_owned(),
            boot_id: format!("boot of {id}"),
            capabilities: NodeCapabilities {
                cpu_arch: "amd64".to_owned(),
                cpu_millis: 4000,
                memory_bytes: 8 << 30,
                disk_bytes: 64 << 30,
                container_runtime: "fake 1".to_owned(),
                ..NodeCapabilities::default()
            },
            telemetry_interval_ms: 1000,
        })
    }
}

/// One node, by itself.
struct Alone {
    node: Node<Fake>,
    fake: Fake,
    out: Outbox,
    at: Instant,
}

impl Alone {
    fn new(config: NodeConfig, store: Store) -> Self {
        let (fake, at) = (Fake::default(), Instant::now());
        let now = Now { at, unix_ms: WALL };
        Self {
            node: Node::new(config, store, fake.clone(), now),
            fake,
            out: Outbox::default(),
            at,
        }
    }

    fn fresh(id: &str) -> Self {
        Self::new(config(id), Disk::default().store())
    }

    fn now(&self) -> Now {
        Now {
            at: self.at,
            unix_ms: WALL,
        }
    }

    /// Time passes in small steps.
    fn pass(&mut self, time: Duration) {
        let end = self.at + time;
        while self.at < end {
            self.at += Duration::from_millis(100);
            let now = self.now();
            self.node.tick(now, &self.out);
        }
    }

    fn connect(&mut self, welcome: &Welcome) -> Hello {
        let hello = self.node.hello();
        self.out.open.set(true);
        let now = self.now();
        self.node.connected(welcome, now, &self.out);
        hello
    }

    fn disconnect(&mut self) {
        self.out.open.set(false);
        let now = self.now();
        self.node.disconnected(Gone::Lost, now);
    }

    fn hear(&mut self, body: Body) {
        let message = StreamMessage { body: Some(body) };
        let now = self.now();
        self.node.messages([message], now, &self.out);
    }

    fn events(&self) -> Vec<String> {
        let events = self.node.store().events_after(0, 1000);
        events.into_iter().map(|e| e.reason).collect()
    }
}

use hyperion_proto::agent_v1::Hello;

fn intent() -> Intent {
    Intent {
        workload_type: "service".to_owned(),
        goal: "default".to_owned(),
        cpu_millis: 100,
        memory_bytes: 64 << 20,
        ..Intent::default()
    }
}

/// Replica 0 of a workload as a person applies it at the site.
fn applied(workload: &str, uid: &str) -> ReplicaRecord {
    let StartReplica { mut key, pod, .. } = placed(workload, 1);
    key.as_mut().unwrap().workload_uid = uid.to_owned();
    ReplicaRecord {
        key,
        pod,
        intent: Some(Intent {
            manifest: "{}".to_owned(),
            ..intent()
        }),
        ..Default::default()
    }
}

fn placed(workload: &str, generation: u64) -> StartReplica {
    StartReplica {
        intent: Some(intent()),
        ..order(workload, 0, generation)
    }
}

fn welcome(replicas: Vec<StartReplica>, site: &[&str]) -> Welcome {
    Welcome {
        replicas,
        replicas_complete: true,
        wall_clock_unix_ms: WALL,
        site: Some(SiteInfo {
            version: 1,
            site: "lab".to_owned(),
            members: site
                .iter()
                .map(|id| SiteMember {
                    node_id: (*id).to_owned(),
                    addresses: vec![format!("{id}:7445")],
                    schedulable: true,
                    price_per_hour: 0.0,
                })
                .collect(),
            ..SiteInfo::default()
        }),
        ..Welcome::default()
    }
}

/// Nodes of one site, each with a disk of its own, on one clock.
struct World {
    at: Instant,
    members: BTreeMap<String, Member>,
    dead: BTreeSet<String>,
    boots: u64,
}

struct Member {
    node: Option<Node<Fake>>,
    fake: Fake,
    disk: Disk,
    out: Outbox,
}

impl World {
    /// All connected once, with these replicas, and cut off since.
    fn cut_off(ids: &[&str], orders: &[(&str, StartReplica)]) -> Self {
        let mut world = Self {
            at: Instant::now(),
            members: BTreeMap::new(),
            dead: BTreeSet::new(),
            boots: 0,
        };
        for id in ids {
            let member = Member {
                node: None,
                fake: Fake::default(),
                disk: Disk::default(),
                out: Outbox::default(),
            };
            world.members.insert((*id).to_owned(), member);
            world.boot(id);
        }
        for id in ids {
            let own = orders.iter().filter(|(node, _)| node == id);
            let own = own.map(|(_, order)| order.clone()).collect();
            world.connect(id, &welcome(own, ids));
        }
        world.pass(Duration::from_secs(5));
        for id in ids {
            world.disconnect(id);
        }
        world
    }

    fn now(&self) -> Now {
        Now {
            at: self.at,
            unix_ms: WALL,
        }
    }

    fn boot(&mut self, id: &str) {
        self.boots += 1;
        let now = self.now();
        let mut config = config(id);
        config.facts.boot_id = format!("boot {}", self.boots);
        config.seed += self.boots;
        self.dead.remove(id);
        let member = self.members.get_mut(id).unwrap();
        let store = member.disk.store();
        member.node = Some(Node::new(config, store, member.fake.clone(), now));
    }

    /// The power goes: what was synced is left, and nothing runs.
    fn kill(&mut self, id: &str) {
        self.dead.insert(id.to_owned());
        let member = self.members.get_mut(id).unwrap();
        // As a power cut: nothing is flushed on the way out.
        std::mem::forget(member.node.take());
        let left = member.disk.image().left();
        member.disk = Disk::of(left);
        member.fake = Fake::default();
    }

    fn connect(&mut self, id: &str, welcome: &Welcome) -> Hello {
        let now = self.now();
        let member = self.members.get_mut(id).unwrap();
        let node = member.node.as_mut().unwrap();
        let hello = node.hello();
        member.out.open.set(true);
        node.connected(welcome, now, &member.out);
        hello
    }

    fn hear(&mut self, id: &str, body: Body) {
        let now = self.now();
        let member = self.members.get_mut(id).unwrap();
        let node = member.node.as_mut().unwrap();
        node.messages([StreamMessage { body: Some(body) }], now, &member.out);
    }

    fn disconnect(&mut self, id: &str) {
        let now = self.now();
        let member = self.members.get_mut(id).unwrap();
        member.out.open.set(false);
        let node = member.node.as_mut().unwrap();
        node.disconnected(Gone::Lost, now);
    }

    fn node(&self, id: &str) -> &Node<Fake> {
        self.members[id].node.as_ref().unwrap()
    }

    /// Time passes, and everything that is sent arrives.
    fn pass(&mut self, time: Duration) {
        let end = self.at + time;
        while self.at < end {
            self.step();
        }
    }

    fn step(&mut self) {
        self.at += Duration::from_millis(50);
        let now = self.now();
        for member in self.members.values_mut() {
            if let Some(node) = &mut member.node
                && node.next_wake() <= now.at
            {
                node.tick(now, &member.out);
            }
        }
        // Answers to answers, within reason.
        for _ in 0..8 {
            if !self.deliver(now) {
                break;
            }
        }
    }

    fn deliver(&mut self, now: Now) -> bool {
        let mut sent = Vec::new();
        for (from, member) in &mut self.members {
            if let Some(node) = &mut member.node {
                let effects = node.take_effects().into_iter();
                // Whose power went says nothing more.
                let effects = effects.filter(|_| !member.disk.cut());
                sent.extend(effects.map(|effect| (from.clone(), effect)));
            }
        }
        let any = !sent.is_empty();
        for (from, effect) in sent {
            let (to, frame, bytes) = match effect {
                Effect::Datagram { to, bytes } => (to, None, bytes),
                Effect::Frame { to, frame } => (to, Some(frame), Bytes::new()),
                _ => continue,
            };
            let Some(node) = self.members.get_mut(&to).and_then(|m| m.node.as_mut()) else {
                continue;
            };
            match frame {
                Some(frame) => node.frame(&from, *frame, now),
                None => node.datagram(&from, bytes, now),
            }
        }
        any
    }

    /// Who runs a workload.
    fn runs(&self, workload: &str) -> Vec<(String, u64)> {
        self.members
            .iter()
            .flat_map(|(id, member)| {
                let runs = member.fake.runs().into_iter();
                let runs = runs.filter(|(name, _)| name == workload);
                runs.map(|(_, generation)| (id.clone(), generation))
            })
            .collect()
    }

    /// Waits until something holds.
    fn until(&mut self, what: &str, most: Duration, holds: impl Fn(&Self) -> bool) -> Duration {
        let begin = self.at;
        while !holds(self) {
            assert!(self.at - begin < most, "{what}: not within {most:?}");
            self.step();
        }
        self.at - begin
    }
}
