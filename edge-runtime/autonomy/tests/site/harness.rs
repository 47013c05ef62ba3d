//! The site. Every node has its own clock, which starts with its agent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use hyperion_autonomy::{Autonomy, Decide, Decided, Me, Mode, Output, Profile, Start};
use hyperion_placement::RulesScorer;
use hyperion_placement::model::{Request, Resources, Snapshot, WorkloadType};
use hyperion_wire::agent_v1::{
    Container, CountedConstraint, Intent as WireIntent, NodeCapabilities, PodSpec, RecordState,
    ReplicaPhase, ReplicaRecord, SiteExplanation, SiteInfo, SiteMember, TakenRecord,
};
use hyperion_wire::convert;
use hyperion_wire::domain::{Intent, ReplicaKey};
use hyperion_wire::peer_v1::{Frame, HeldReplica};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};

pub fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub struct Rules;

impl Decide for Rules {
    fn decide(&self, snapshot: &Snapshot, request: &Request) -> Decided {
        let decision = hyperion_placement::decide(snapshot, request, &RulesScorer);
        let explanation = SiteExplanation {
            scorer: "rules".into(),
            candidates: u32::try_from(decision.explanation.candidates).unwrap(),
            rejected: decision
                .explanation
                .rejected
                .iter()
                .map(|(constraint, count)| CountedConstraint {
                    constraint: constraint.to_string(),
                    count: u32::try_from(*count).unwrap(),
                })
                .collect(),
            ..SiteExplanation::default()
        };
        let choice = decision.choice;
        Decided {
            node: choice.as_ref().map(|c| c.candidate.id().to_owned()),
            gpus: choice.map_or_else(Vec::new, |c| c.gpus),
            explanation,
        }
    }

    fn policy_hash(&self) -> &str {
        ""
    }
}

pub fn key(name: &str) -> ReplicaKey {
    ReplicaKey {
        namespace: "default".into(),
        workload: name.into(),
        uid: format!("uid-{name}"),
        index: 0,
    }
}

pub fn service() -> Intent {
    Intent::new(Request {
        resources: Resources {
            cpu_millis: 100,
            memory_bytes: 1 << 20,
        },
        ..Request::new("")
    })
}

pub fn job() -> Intent {
    let mut intent = service();
    intent.wants.workload_type = WorkloadType::Job;
    intent
}

pub fn exclusive() -> Intent {
    Intent {
        exclusive: true,
        ..service()
    }
}

pub fn record(key: &ReplicaKey, generation: u64, node: &str, intent: &Intent) -> ReplicaRecord {
    ReplicaRecord {
        key: Some(key.into()),
        generation,
        state: RecordState::Placed.into(),
        node: node.into(),
        pod: Some(PodSpec {
            containers: vec![Container {
                name: "main".into(),
                image: "i".into(),
                ..Container::default()
            }],
            termination_grace_period_seconds: 1,
            ..PodSpec::default()
        }),
        intent: Some(WireIntent::from(intent)),
        taken: true,
        ..ReplicaRecord::default()
    }
}

#[derive(Debug, Clone)]
pub struct Event {
    pub at: Duration,
    pub node: String,
    pub reason: &'static str,
    pub message: String,
    pub key: Option<ReplicaKey>,
}

pub struct Node {
    pub core: Option<Autonomy>,
    born: Duration,
    boots: u32,
    records: BTreeMap<ReplicaKey, ReplicaRecord>,
    info: Option<SiteInfo>,
    /// Replica -> generation and when it started.
    pub running: BTreeMap<ReplicaKey, (u64, Duration)>,
    pub starts: BTreeMap<ReplicaKey, u32>,
    seen: BTreeMap<ReplicaKey, u64>,
    pub me: Me,
    /// Its link to the control plane can stand.
    uplink: bool,
    linked: bool,
    phase: ReplicaPhase,
}

enum Happens {
    Datagram {
        from: String,
        to: String,
        bytes: Bytes,
    },
    Frame {
        from: String,
        to: String,
        frame: Frame,
    },
    Report(String),
    Link(String),
}

pub struct World {
    pub now: Duration,
    pub nodes: BTreeMap<String, Node>,
    queue: BTreeMap<(Duration, u64), Happens>,
    nth: u64,
    rng: ChaCha8Rng,
    /// Share of datagrams that are lost.
    pub loss: f64,
    pub delay: (Duration, Duration),
    /// From, to.
    cut: BTreeSet<(String, String)>,
    pub cloud: bool,
    pub events: Vec<Event>,
    pub modes: Vec<(Duration, String, Mode)>,
    /// Site decisions that the control plane has taken.
    pub adopted: BTreeMap<ReplicaKey, ReplicaRecord>,
    /// The control plane also takes exclusive replicas that wait for a place. It then answers for
    /// them; here it places nothing.
    pub takes_waiting: bool,
    /// The control plane's own orders.
    pub orders: BTreeMap<ReplicaKey, ReplicaRecord>,
    pub profile: Profile,
    pub seed: u64,
}

impl World {
    pub fn new(nodes: usize, seed: u64) -> Self {
        Self::with_profile(nodes, seed, Profile::standard())
    }

    pub fn with_profile(nodes: usize, seed: u64, profile: Profile) -> Self {
        let mut world = Self {
            now: s(1),
            nodes: BTreeMap::new(),
            queue: BTreeMap::new(),
            nth: 0,
            rng: ChaCha8Rng::seed_from_u64(seed),
            loss: 0.0,
            delay: (ms(1), ms(5)),
            cut: BTreeSet::new(),
            cloud: true,
            events: Vec::new(),
            modes: Vec::new(),
            adopted: BTreeMap::new(),
            takes_waiting: false,
            orders: BTreeMap::new(),
            profile,
            seed,
        };
        let ids: Vec<String> = (1..=nodes).map(|n| format!("edge-{n}")).collect();
        let info = SiteInfo {
            version: 1,
            members: ids
                .iter()
                .map(|id| SiteMember {
                    node_id: id.clone(),
                    schedulable: true,
                    ..SiteMember::default()
                })
                .collect(),
            site: "lab".into(),
            ..SiteInfo::default()
        };
        for id in &ids {
            let node = Node {
                core: None,
                born: Duration::ZERO,
                boots: 0,
                records: BTreeMap::new(),
                info: Some(info.clone()),
                running: BTreeMap::new(),
                starts: BTreeMap::new(),
                seen: BTreeMap::new(),
                me: Me {
                    capabilities: NodeCapabilities {
                        cpu_arch: "arm64".into(),
                        cpu_millis: 4000,
                        memory_bytes: 8 << 30,
                        ..NodeCapabilities::default()
                    },
                    accepts: true,
                    ..Me::default()
                },
                uplink: true,
                linked: false,
                phase: ReplicaPhase::Running,
            };
            world.nodes.insert(id.clone(), node);
        }
        for id in ids {
            world.boot(&id);
        }
        world
    }

    pub fn ids(&self) -> Vec<String> {
        self.nodes.keys().cloned().collect()
    }

    fn later(&mut self, after: Duration, what: Happens) {
        self.nth += 1;
        self.queue.insert((self.now + after, self.nth), what);
    }

    pub fn boot(&mut self, id: &str) {
        let seed = self.rng.random();
        let profile = self.profile.clone();
        let node = self.nodes.get_mut(id).unwrap();
        node.boots += 1;
        node.born = self.now;
        node.linked = false;
        node.running.clear();
        node.me.held.clear();
        let (core, out) = Autonomy::new(
            Start {
                node_id: id.into(),
                boot_id: format!("{id}-{}", node.boots),
                boot: node.boots,
                seed,
                profile,
                records: node.records.values().cloned().collect(),
                site_info: node.info.clone(),
                me: node.me.clone(),
            },
            Duration::ZERO,
        );
        node.core = Some(core);
        self.carry_out(id, out);
        self.later(ms(500), Happens::Link(id.into()));
    }

    /// Power is lost.
    pub fn kill(&mut self, id: &str) {
        let node = self.nodes.get_mut(id).unwrap();
        node.core = None;
        node.running.clear();
        node.linked = false;
    }

    /// The store is lost.
    pub fn wipe(&mut self, id: &str) {
        let node = self.nodes.get_mut(id).unwrap();
        node.records.clear();
        node.seen.clear();
        node.boots = 0;
    }

    pub fn cut_one_way(&mut self, from: &str, to: &str) {
        self.cut.insert((from.into(), to.into()));
    }

    pub fn cut(&mut self, side: &[&str], other: &[&str]) {
        for a in side {
            for b in other {
                self.cut_one_way(a, b);
                self.cut_one_way(b, a);
            }
        }
    }

    pub fn heal(&mut self) {
        self.cut.clear();
    }

    pub fn cloud(&mut self, up: bool) {
        self.cloud = up;
        for id in self.ids() {
            self.later(ms(100), Happens::Link(id));
        }
    }

    pub fn uplink(&mut self, id: &str, up: bool) {
        self.nodes.get_mut(id).unwrap().uplink = up;
        self.later(ms(100), Happens::Link(id.into()));
    }

    /// What all containers of a node are said to be.
    pub fn phase(&mut self, id: &str, phase: ReplicaPhase) {
        self.nodes.get_mut(id).unwrap().phase = phase;
        self.later(ms(100), Happens::Report(id.into()));
    }

    pub fn with<T>(
        &mut self,
        id: &str,
        f: impl FnOnce(&mut Autonomy, Duration) -> (T, Vec<Output>),
    ) -> T {
        let now = self.now;
        let node = self.nodes.get_mut(id).unwrap();
        let at = now - node.born;
        let (value, out) = f(node.core.as_mut().unwrap(), at);
        self.carry_out(id, out);
        value
    }

    /// The control plane places a replica.
    pub fn order(&mut self, key: &ReplicaKey, generation: u64, id: &str, intent: &Intent) {
        let record = record(key, generation, id, intent);
        self.orders.insert(key.clone(), record.clone());
        self.deliver(id, &record);
    }

    fn deliver(&mut self, id: &str, record: &ReplicaRecord) {
        let key = convert::replica_key("", record.key.as_ref()).unwrap();
        let now = self.now;
        let node = self.nodes.get_mut(id).unwrap();
        if node.seen.get(&key).is_some_and(|g| *g > record.generation) {
            return;
        }
        start(node, &key, record.generation, now);
        self.later(ms(500), Happens::Report(id.into()));
        let record = record.clone();
        self.with(id, |core, at| ((), core.ordered(record, at)));
    }

    pub fn mode(&self, id: &str) -> Mode {
        self.nodes[id].core.as_ref().unwrap().mode()
    }

    pub fn status(&self, id: &str) -> hyperion_autonomy::Status {
        let node = &self.nodes[id];
        node.core.as_ref().unwrap().status(self.now - node.born)
    }

    /// Nodes that run a replica.
    pub fn runs(&self, key: &ReplicaKey) -> Vec<String> {
        let nodes = self.nodes.iter();
        nodes
            .filter(|(_, n)| n.core.is_some() && n.running.contains_key(key))
            .map(|(id, _)| id.clone())
            .collect()
    }

    pub fn reasons(&self, reason: &str) -> usize {
        self.events.iter().filter(|e| e.reason == reason).count()
    }

    pub fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        self.run(until, |_| false);
    }

    /// Time until `done`, or a panic with what happened.
    pub fn until(
        &mut self,
        within: Duration,
        what: &str,
        done: impl Fn(&Self) -> bool,
    ) -> Duration {
        let began = self.now;
        let until = began + within;
        assert!(
            self.run(until, &done),
            "seed {}: {what} not within {within:?}\n{}",
            self.seed,
            self.story()
        );
        self.now - began
    }

    pub fn story(&self) -> String {
        let events = self.events.iter().map(|e| {
            let key = e.key.as_ref().map(ToString::to_string);
            format!(
                "{:>8.2} {} {} {} {}",
                e.at.as_secs_f64(),
                e.node,
                e.reason,
                key.unwrap_or_default(),
                e.message
            )
        });
        let modes = self
            .modes
            .iter()
            .map(|(at, id, mode)| format!("{:>8.2} {id} is {mode}", at.as_secs_f64()));
        let mut all: Vec<String> = events.chain(modes).collect();
        all.sort();
        all.join("\n")
    }

    fn run(&mut self, until: Duration, done: impl Fn(&Self) -> bool) -> bool {
        loop {
            if done(self) {
                return true;
            }
            let wake = self
                .nodes
                .iter()
                .filter_map(|(id, n)| {
                    let at = n.core.as_ref()?.next_wake().saturating_add(n.born);
                    Some((at.max(self.now), id.clone()))
                })
                .min();
            let queued = self.queue.keys().next().map(|(at, _)| *at);
            let next = match (&wake, queued) {
                (Some((at, _)), Some(queued)) => (*at).min(queued),
                (Some((at, _)), None) => *at,
                (None, Some(queued)) => queued,
                (None, None) => until,
            };
            if next >= until {
                self.now = until;
                return done(self);
            }
            self.now = next;
            if queued.is_some_and(|at| at <= next) {
                let (_, what) = self.queue.pop_first().unwrap();
                self.happen(what);
            } else if let Some((_, id)) = wake {
                // A tick takes time, so that a core that always wants to be woken is noticed.
                self.now += Duration::from_micros(100);
                self.with(&id, |core, at| ((), core.tick(at, &Rules)));
            }
            self.check();
        }
    }

    fn check(&self) {
        let mut running: BTreeMap<&ReplicaKey, Vec<&str>> = BTreeMap::new();
        for (id, node) in &self.nodes {
            for key in node.running.keys() {
                running.entry(key).or_default().push(id);
            }
        }
        for (key, nodes) in running {
            let exclusive = self.nodes.values().any(|n| {
                n.records
                    .get(key)
                    .and_then(|r| r.intent.as_ref())
                    .is_some_and(|i| i.exclusive)
            });
            assert!(
                !exclusive || nodes.len() < 2,
                "seed {}, {:?}: {key} runs on {nodes:?}\n{}",
                self.seed,
                self.now,
                self.story()
            );
        }
    }

    fn happen(&mut self, what: Happens) {
        match what {
            Happens::Datagram { from, to, bytes } => {
                if self.nodes[&to].core.is_some() {
                    self.with(&to, |core, at| ((), core.datagram(&from, bytes, at)));
                }
            }
            Happens::Frame { from, to, frame } => {
                if self.nodes[&to].core.is_some() {
                    self.with(&to, |core, at| ((), core.frame(&from, frame, at)));
                }
            }
            Happens::Report(id) => self.report(&id),
            Happens::Link(id) => self.link(&id),
        }
    }

    fn report(&mut self, id: &str) {
        let node = self.nodes.get_mut(id).unwrap();
        let phase = node.phase;
        node.me.held = node
            .running
            .iter()
            .map(|(key, (generation, _))| HeldReplica {
                key: Some(key.into()),
                generation: *generation,
                phase: phase.into(),
                ready: phase == ReplicaPhase::Running,
            })
            .collect();
        let me = node.me.clone();
        if node.core.is_some() {
            self.with(id, |core, at| ((), core.set_me(me, at)));
        }
    }

    /// What the node says of itself has changed.
    pub fn said(&mut self, id: &str) {
        self.later(ms(10), Happens::Report(id.into()));
    }

    fn link(&mut self, id: &str) {
        let node = self.nodes.get_mut(id).unwrap();
        let up = self.cloud && node.uplink;
        if node.core.is_none() || node.linked == up {
            return;
        }
        node.linked = up;
        if !up {
            self.with(id, |core, at| ((), core.link_down(at)));
            return;
        }
        self.with(id, |core, at| ((), core.link_up(at)));
        self.with(id, |core, at| ((), core.welcomed(false, at)));
        self.adopt(id);
        // The whole, as far as the control plane knows now.
        let orders: Vec<ReplicaRecord> = self
            .orders
            .values()
            .filter(|r| r.node == id)
            .cloned()
            .collect();
        for order in orders {
            self.deliver(id, &order);
        }
        let strangers: Vec<(ReplicaKey, u64)> = self.nodes[id]
            .running
            .iter()
            .filter(|(key, _)| self.orders.get(*key).is_none_or(|o| o.node != id))
            .map(|(key, (generation, _))| (key.clone(), *generation))
            .collect();
        for (key, generation) in strangers {
            let own = self.nodes[id].core.as_ref().unwrap().untaken();
            if own
                .iter()
                .any(|r| convert::replica_key("", r.key.as_ref()).unwrap() == key)
            {
                continue;
            }
            self.nodes.get_mut(id).unwrap().running.remove(&key);
            self.with(id, |core, at| ((), core.removed(&key, generation, at)));
        }
        self.with(id, |core, at| ((), core.welcomed(true, at)));
    }

    /// The control plane takes what the site decided.
    fn adopt(&mut self, id: &str) {
        let untaken = self.nodes[id].core.as_ref().unwrap().untaken();
        let mut taken = Vec::new();
        for record in untaken {
            let key = convert::replica_key("", record.key.as_ref()).unwrap();
            let waits = record.state == i32::from(RecordState::Pending);
            if waits && record.intent.as_ref().unwrap().exclusive && !self.takes_waiting {
                // The rest of the site may be about to place it.
                continue;
            }
            let known = self.orders.get(&key);
            let known = known.map_or((0, ""), |o| (o.generation, o.decider.as_str()));
            if (record.generation, record.decider.as_str()) > known {
                self.adopted.insert(key.clone(), record.clone());
                if record.state == i32::from(RecordState::Removed) {
                    self.orders.remove(&key);
                } else {
                    self.orders.insert(key, record.clone());
                }
            }
            taken.push(TakenRecord {
                key: record.key,
                generation: record.generation,
                decider: record.decider,
            });
        }
        if !taken.is_empty() {
            self.with(id, |core, at| ((), core.taken(&taken, at)));
        }
    }

    fn carry_out(&mut self, id: &str, out: Vec<Output>) {
        for output in out {
            match output {
                Output::Datagram { to, bytes } => {
                    if self.passes(id, &to) && !self.rng.random_bool(self.loss) {
                        let after = self.some_delay();
                        let from = id.to_owned();
                        self.later(after, Happens::Datagram { from, to, bytes });
                    }
                }
                Output::Frame { to, frame } => {
                    if self.passes(id, &to) {
                        let after = self.some_delay();
                        let from = id.to_owned();
                        self.later(after, Happens::Frame { from, to, frame });
                    }
                }
                Output::Store(record) => {
                    let key = convert::replica_key("", record.key.as_ref()).unwrap();
                    self.nodes.get_mut(id).unwrap().records.insert(key, *record);
                    if self.nodes[id].linked {
                        self.adopt_later(id);
                    }
                }
                Output::StoreSite(info) => self.nodes.get_mut(id).unwrap().info = Some(*info),
                Output::Forget(key) => {
                    self.nodes.get_mut(id).unwrap().records.remove(&key);
                }
                Output::Run(record) => {
                    let key = convert::replica_key("", record.key.as_ref()).unwrap();
                    let now = self.now;
                    let node = self.nodes.get_mut(id).unwrap();
                    let seen = node.seen.get(&key).copied().unwrap_or(0);
                    assert!(
                        record.generation >= seen,
                        "{id} was told to run {key} with generation {} after {seen}",
                        record.generation
                    );
                    start(node, &key, record.generation, now);
                    self.later(ms(500), Happens::Report(id.into()));
                }
                Output::Stop {
                    key, generation, ..
                } => {
                    let node = self.nodes.get_mut(id).unwrap();
                    let held = node.running.get(&key).map(|(g, _)| *g);
                    if held.is_some_and(|held| held <= generation) {
                        node.running.remove(&key);
                    }
                    self.later(ms(100), Happens::Report(id.into()));
                }
                Output::Mode { mode, .. } => self.modes.push((self.now, id.into(), mode)),
                Output::Event {
                    reason,
                    message,
                    key,
                    ..
                } => self.events.push(Event {
                    at: self.now,
                    node: id.into(),
                    reason,
                    message,
                    key,
                }),
            }
        }
    }

    fn adopt_later(&mut self, id: &str) {
        // The link comes up anew for the harness' sake: what is untaken is told then.
        let id = id.to_owned();
        self.later(ms(50), Happens::Link(id.clone()));
        self.later(ms(60), Happens::Report(id));
    }

    fn passes(&self, from: &str, to: &str) -> bool {
        !self.cut.contains(&(from.to_owned(), to.to_owned()))
    }

    fn some_delay(&mut self) -> Duration {
        let (least, most) = self.delay;
        self.rng.random_range(least..=most)
    }

    /// Digest of what a node knows of replicas.
    pub fn knows(&self, id: &str) -> [u64; hyperion_autonomy::site::BUCKETS] {
        *self.nodes[id].core.as_ref().unwrap().site().buckets()
    }
}

fn start(node: &mut Node, key: &ReplicaKey, generation: u64, now: Duration) {
    node.seen.insert(key.clone(), generation);
    match node.running.get_mut(key) {
        // The same pod with a higher generation restarts nothing.
        Some(running) => running.0 = generation,
        None => {
            node.running.insert(key.clone(), (generation, now));
            *node.starts.entry(key.clone()).or_default() += 1;
        }
    }
}
