//! Devices and the agents on them.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use hyperion_agent::node::{Effect, Node, NodeConfig, NodeFacts};
use hyperion_agent::store::Store;
use hyperion_agent::supervisor::{RuntimeState, SupervisorEvent};
use hyperion_proto::agent_v1::{
    NodeCapabilities, ReplicaPhase, ReplicaReport, Telemetry, Temperature,
};
use hyperion_proto::domain::ReplicaKey;
use hyperion_proto::peer_v1::Frame;

use super::{Event, World, note};
use crate::agent::{Containers, Outbox};
use crate::disk::Disk;
use crate::rng::Rng;
use crate::runtime::Runtime;
use crate::users::IMAGES;

/// CPU of a device, thousandths.
pub(super) const CPU: u64 = 4000;
/// Memory of a device, bytes.
pub(super) const MEMORY: u64 = 8 << 30;

/// A device.
pub(super) struct Device {
    pub id: String,
    pub site: usize,
    site_name: String,
    pub disk: Disk,
    pub containers: Containers,
    pub node: Option<Node<Containers>>,
    pub outbox: Outbox,
    /// Grows with every start and end of the agent: what was meant for another is not for this one.
    pub epoch: u64,
    pub powered: bool,
    /// Faults that keep it down.
    pub down: u32,
    /// The agent takes nothing before: it waits for its disk.
    pub busy_until: Duration,
    /// What a sync of the disk takes.
    pub slow: Duration,
    pub disk_full: bool,
    /// Once full, the store may be behind what was acknowledged until it is written again.
    pub store_behind: bool,
    pub clock_error_ms: i64,
    pub expired: bool,
    pub wake_at: Duration,
    pub runtime_at: Duration,
    telling: bool,
    boots: u64,
    /// Last report that the agent was told, by replica.
    reported: BTreeMap<ReplicaKey, ReplicaReport>,
    pub session: Option<u64>,
    rng: Rng,
}

impl Device {
    pub(super) fn new(number: usize, site: usize, site_name: &str, seed: u64) -> Self {
        let stream = |what: &str| Rng::new(seed, &format!("{what}-{number}"));
        let mut rng = stream("device");
        let mut runtime = Runtime::new(number, stream("runtime"));
        runtime.add_image(IMAGES[0]);
        runtime.add_image(IMAGES[1]);
        if rng.chance(0.5) {
            runtime.add_image(IMAGES[2]);
        }
        Self {
            id: format!("edge-{number}"),
            site,
            site_name: site_name.to_owned(),
            disk: Disk::new(stream("disk")),
            containers: Containers::new(runtime),
            node: None,
            outbox: Outbox::default(),
            epoch: 0,
            powered: true,
            down: 0,
            busy_until: Duration::ZERO,
            slow: Duration::ZERO,
            disk_full: false,
            store_behind: false,
            clock_error_ms: 0,
            expired: false,
            wake_at: Duration::MAX,
            runtime_at: Duration::MAX,
            telling: false,
            boots: 0,
            reported: BTreeMap::new(),
            session: None,
            rng,
        }
    }

    pub(super) fn capabilities(&self) -> NodeCapabilities {
        NodeCapabilities {
            cpu_arch: "arm64".to_owned(),
            memory_bytes: MEMORY as i64,
            labels: [
                ("kubernetes.io/arch", "arm64"),
                ("kubernetes.io/os", "linux"),
                ("hyperion.io/node", self.id.as_str()),
                ("hyperion.io/site", self.site_name.as_str()),
            ]
            .into_iter()
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect(),
            cpu_millis: CPU as i64,
            disk_bytes: 64 << 30,
            os: "linux".to_owned(),
            ..NodeCapabilities::default()
        }
    }
}

impl World {
    /// Starts the agent of a device that has power.
    pub(super) fn start_agent(&mut self, node: usize, epoch: u64) {
        let now = self.instant(node);
        let device = &mut self.devices[node];
        if device.epoch != epoch || !device.powered || device.node.is_some() {
            return;
        }
        device.boots += 1;
        let disk = device.disk.clone();
        let store = Store::on(move || Ok(disk.open()), device.boots > 1);
        let store = match store {
            Ok(store) => store,
            Err(e) => {
                note!(self, "{} can't open its store: {e}", self.devices[node].id);
                if self.devices[node].disk.is_cut() {
                    self.power_off(node, true);
                    self.boot_later(node);
                    return;
                }
                self.after(Duration::from_secs(1), Event::StartAgent { node, epoch });
                return;
            }
        };
        let device = &mut self.devices[node];
        let excused = std::mem::replace(&mut device.store_behind, device.disk_full);
        if excused {
            self.heard.ids_begin_anew(&device.id);
        }
        let highest = |key: &ReplicaKey| store.highest(key);
        self.checker.restarted(node, highest, excused, self.now);
        let device = &mut self.devices[node];
        let facts = NodeFacts {
            node_id: device.id.clone(),
            boot_id: format!("boot-{node}-{}", device.boots),
            capabilities: device.capabilities(),
            telemetry_interval_ms: self.plan.telemetry.as_millis() as u32,
        };
        let config = NodeConfig {
            seed: device.rng.number(),
            addresses: vec![format!("10.{}.0.{}:7447", device.site, node + 1)],
            exits: device.containers.with(|r| r.exits()),
            ..NodeConfig::new(facts)
        };
        device.containers.set_now(self.now);
        device.outbox.set_open(false);
        device.reported.clear();
        device.session = None;
        device.busy_until = self.now;
        let mut made = Node::new(config, store, device.containers.clone(), now);
        let images = device.containers.with(|r| r.images().cloned().collect());
        made.set_images(images, now);
        let available = SupervisorEvent::Runtime(RuntimeState::Available {
            name: "containerd".to_owned(),
            version: "2".to_owned(),
        });
        made.supervisor([available], now, &device.outbox);
        device.node = Some(made);
        note!(self, "{} agent starts", self.devices[node].id);
        self.note_ends(node);
        self.settle(node);
        let epoch = self.devices[node].epoch;
        let (soon, discover, measure) = (
            self.rng.millis(5, 200),
            self.rng.millis(200, 1200),
            self.rng.between(Duration::ZERO, self.plan.telemetry),
        );
        self.after(soon, Event::Connect { node, epoch });
        self.after(discover, Event::Discover { node, epoch });
        self.after(measure, Event::Measure { node, epoch });
    }

    /// Ends the agent's process; containers go on.
    pub(super) fn end_agent(&mut self, node: usize, orderly: bool) {
        let now = self.instant(node);
        let device = &mut self.devices[node];
        device.epoch += 1;
        device.wake_at = Duration::MAX;
        device.containers.set_now(self.now);
        if let Some(mut ended) = device.node.take() {
            if orderly {
                ended.stop(now);
            }
            // A dead process writes nothing any more.
            device.disk.killed();
            drop(ended);
        }
        device.containers.take_changed();
        device.containers.with(Runtime::agent_gone);
        device.session = None;
        note!(self, "{} agent ends", self.devices[node].id);
        self.drop_session(node, orderly);
    }

    /// The device goes down; `cut` says that nothing was written before.
    pub(super) fn power_off(&mut self, node: usize, cut: bool) {
        if !self.devices[node].powered {
            return;
        }
        self.end_agent(node, !cut);
        let device = &mut self.devices[node];
        device.powered = false;
        if cut {
            device.disk.power_cut();
        }
        device.containers.with(Runtime::power_off);
        self.checker.power_lost(node);
        note!(self, "{} is off", self.devices[node].id);
        self.account(node);
    }

    pub(super) fn boot_later(&mut self, node: usize) {
        let epoch = self.devices[node].epoch;
        let wait = self.rng.millis(2000, 8000);
        self.after(wait, Event::Boot { node, epoch });
    }

    pub(super) fn boot(&mut self, node: usize, epoch: u64) {
        let device = &mut self.devices[node];
        if device.epoch != epoch || device.powered || device.down > 0 {
            return;
        }
        device.powered = true;
        self.disturb(self.devices[node].site);
        let wait = self.rng.millis(300, 2000);
        self.after(wait, Event::StartAgent { node, epoch });
    }

    /// True where the agent can take something now; else what it was about is put off, or dropped.
    fn ready(&mut self, node: usize, epoch: Option<u64>) -> Option<Duration> {
        let device = &self.devices[node];
        if device.node.is_none() || epoch.is_some_and(|e| e != device.epoch) {
            return None;
        }
        Some(device.busy_until)
    }

    pub(super) fn wake(&mut self, node: usize, epoch: u64) {
        let Some(busy) = self.ready(node, Some(epoch)) else {
            return;
        };
        if self.devices[node].wake_at > self.now {
            return;
        }
        if busy > self.now {
            self.devices[node].wake_at = busy;
            self.at(busy, Event::Wake { node, epoch });
            return;
        }
        self.devices[node].wake_at = Duration::MAX;
        let now = self.instant(node);
        let device = &mut self.devices[node];
        device.containers.set_now(self.now);
        if let Some(agent) = &mut device.node {
            agent.tick(now, &device.outbox);
        }
        self.settle(node);
    }

    pub(super) fn datagram(&mut self, from: usize, to: usize, bytes: Bytes) {
        let Some(busy) = self.ready(to, None) else {
            return;
        };
        if busy > self.now {
            self.at(busy, Event::Datagram { from, to, bytes });
            return;
        }
        let now = self.instant(to);
        let sender = self.devices[from].id.clone();
        let device = &mut self.devices[to];
        device.containers.set_now(self.now);
        if let Some(agent) = &mut device.node {
            agent.datagram(&sender, bytes, now);
        }
        self.settle(to);
    }

    pub(super) fn frame(&mut self, from: usize, to: usize, frame: Box<Frame>) {
        let Some(busy) = self.ready(to, None) else {
            return;
        };
        if busy > self.now {
            self.at(busy, Event::Frame { from, to, frame });
            return;
        }
        let now = self.instant(to);
        let sender = self.devices[from].id.clone();
        let device = &mut self.devices[to];
        device.containers.set_now(self.now);
        if let Some(agent) = &mut device.node {
            agent.frame(&sender, *frame, now);
        }
        self.settle(to);
    }

    /// Nodes of a local network find each other, now and again.
    pub(super) fn discover(&mut self, node: usize, epoch: u64) {
        if self.ready(node, Some(epoch)).is_none() {
            return;
        }
        let site = self.devices[node].site;
        for n in 0..self.sites[site].1.len() {
            let peer = self.sites[site].1[n];
            if peer != node && self.devices[peer].node.is_some() && self.net.lan_both(node, peer) {
                self.found(node, peer);
                self.found(peer, node);
            }
        }
        let wait = self.rng.millis(8000, 12_000);
        self.after(wait, Event::Discover { node, epoch });
    }

    fn found(&mut self, node: usize, peer: usize) {
        let now = self.instant(node);
        let id = self.devices[peer].id.clone();
        let device = &mut self.devices[node];
        device.containers.set_now(self.now);
        if let Some(agent) = &mut device.node {
            agent.found(&id, now);
        }
        self.settle(node);
    }

    pub(super) fn measure(&mut self, node: usize, epoch: u64) {
        if self.ready(node, Some(epoch)).is_none() {
            return;
        }
        self.after(self.plan.telemetry, Event::Measure { node, epoch });
        let now = self.instant(node);
        let device = &mut self.devices[node];
        device.containers.set_now(self.now);
        let sample = Telemetry {
            cpu_utilization_percent: 20.0,
            memory_used_bytes: 1 << 30,
            temperatures: vec![Temperature {
                sensor: "cpu".to_owned(),
                celsius: 50.0,
            }],
            ..Telemetry::default()
        };
        if let Some(agent) = &mut device.node {
            agent.measured(sample, now, &device.outbox);
        }
        self.settle(node);
    }

    /// Does what the agent asked for since the last time.
    pub(super) fn settle(&mut self, node: usize) {
        if self.devices[node].disk.is_cut() {
            // Whatever it was about to say or do is lost with it.
            note!(
                self,
                "{} loses its power in the middle of a write",
                self.devices[node].id
            );
            self.power_off(node, true);
            self.boot_later(node);
            return;
        }
        let cost = self.disk_cost(node);
        let device = &mut self.devices[node];
        let Some(agent) = &mut device.node else {
            return;
        };
        let effects = agent.take_effects();
        let wake = agent.next_wake().saturating_duration_since(self.base);
        let sent = device.outbox.take();
        let epoch = device.epoch;
        // Never twice at one instant: time goes on.
        let wake = wake.max(self.now + Duration::from_millis(1));
        if wake < device.wake_at || device.wake_at <= self.now {
            device.wake_at = wake;
            self.at(wake, Event::Wake { node, epoch });
        }
        for body in sent {
            self.send_up(node, body, cost);
        }
        for effect in effects {
            self.effect(node, effect, cost);
        }
        if let Some(desired) = self.devices[node].containers.take_changed() {
            let pairs = desired.iter().map(|d| (&d.start.key, d.start.generation));
            self.checker.desired(node, pairs, self.now);
            self.runtime_advance(node);
            self.tell_soon(node);
        }
    }

    /// What a slow disk made the agent wait for.
    fn disk_cost(&mut self, node: usize) -> Duration {
        let device = &mut self.devices[node];
        let syncs = device.disk.take_syncs();
        let cost = device.slow * u32::try_from(syncs).unwrap_or(u32::MAX);
        if !cost.is_zero() {
            device.busy_until = self.now + cost;
        }
        cost
    }

    fn effect(&mut self, node: usize, effect: Effect, cost: Duration) {
        match effect {
            Effect::Datagram { to, bytes } => {
                let Some(&to) = self.numbers.get(&to) else {
                    return;
                };
                if self.devices[to].site != self.devices[node].site {
                    return;
                }
                if self.past.len() == 256 {
                    self.past.pop_front();
                }
                self.past.push_back((node, to, bytes.clone()));
                for wait in self
                    .net
                    .datagram(node, to, &mut self.rng)
                    .into_iter()
                    .flatten()
                {
                    let bytes = bytes.clone();
                    self.after(
                        cost + wait,
                        Event::Datagram {
                            from: node,
                            to,
                            bytes,
                        },
                    );
                }
            }
            Effect::Frame { to, frame } => {
                let Some(&to) = self.numbers.get(&to) else {
                    return;
                };
                if self.devices[to].site != self.devices[node].site {
                    return;
                }
                if let Some(wait) = self.net.stream(node, to, &mut self.rng) {
                    self.after(
                        cost + wait,
                        Event::Frame {
                            from: node,
                            to,
                            frame,
                        },
                    );
                }
            }
            Effect::Mode { mode, why } => {
                note!(self, "{} is {mode}: {why}", self.devices[node].id);
            }
            Effect::Logs(_) | Effect::FetchPolicy { .. } | Effect::Site(_) => {}
        }
    }

    pub(super) fn runtime_wake(&mut self, node: usize) {
        if self.devices[node].runtime_at > self.now {
            return;
        }
        self.devices[node].runtime_at = Duration::MAX;
        self.runtime_advance(node);
        self.tell_reports(node);
    }

    /// Lets the runtime do what is due, and tells the agent what has changed.
    pub(super) fn runtime_advance(&mut self, node: usize) {
        let now = self.now;
        let device = &mut self.devices[node];
        if !device.powered {
            return;
        }
        let next = device.containers.with(|r| r.advance(now));
        if next < device.runtime_at || device.runtime_at <= now {
            device.runtime_at = next;
            if next < Duration::MAX {
                self.at(next, Event::RuntimeWake { node });
            }
        }
        self.account(node);
    }

    /// Tells the agent of its replicas a little later, as a supervisor does.
    pub(super) fn tell_soon(&mut self, node: usize) {
        if !std::mem::replace(&mut self.devices[node].telling, true) {
            self.after(Duration::from_millis(5), Event::Tell { node });
        }
    }

    /// Books what happened to containers.
    pub(super) fn account(&mut self, node: usize) {
        let happened = self.devices[node]
            .containers
            .with(|r| std::mem::take(&mut r.happened));
        for happened in happened {
            note!(self, "{} {happened:?}", self.devices[node].id);
            let settled = self.settled(node);
            self.checker.happened(node, &happened, settled, self.now);
        }
    }

    /// Tells the agent what is new of its replicas.
    pub(super) fn tell_reports(&mut self, node: usize) {
        let now = self.instant(node);
        let device = &mut self.devices[node];
        device.telling = false;
        if device.node.is_none() {
            return;
        }
        if device.busy_until > self.now {
            let at = device.busy_until;
            device.telling = true;
            self.at(at, Event::Tell { node });
            return;
        }
        device.containers.set_now(self.now);
        let stopped = device.containers.with(Runtime::take_stopped);
        let reports = device.containers.with(|r| r.reports(self.now));
        let mut events = Vec::new();
        for report in stopped {
            events.push(SupervisorEvent::Report(report));
        }
        let mut current = BTreeMap::new();
        for report in reports {
            let Ok(key) = hyperion_proto::convert::replica_key("", report.key.as_ref()) else {
                continue;
            };
            if device.reported.get(&key) != Some(&report) {
                events.push(SupervisorEvent::Report(report.clone()));
            }
            current.insert(key, report);
        }
        device.reported = current;
        if events.is_empty() {
            return;
        }
        if let Some(agent) = &mut device.node {
            agent.supervisor(events, now, &device.outbox);
        }
        self.note_ends(node);
        self.settle(node);
    }

    /// Notes which jobs' ends the agent has on disk now.
    fn note_ends(&mut self, node: usize) {
        let device = &self.devices[node];
        let Some(agent) = device.node.as_ref().filter(|_| !device.disk.is_cut()) else {
            return;
        };
        let store = agent.store();
        let finished = |key| store.held(key).and_then(|held| held.finished.as_ref());
        for key in store.keys() {
            if finished(key).is_some_and(|f| f.phase == ReplicaPhase::Succeeded) {
                self.checker.end_kept(node, key);
            }
        }
    }
}
