//! One workload cluster as a plain struct: watches, orders and answers go in through its methods, and
//! what follows comes out of [`State::take`]. No I/O, and time is an argument.
//!
//! - here: nodes, and what is told of them;
//! - [`replicas`]: Pods, orders and what has to be made and deleted.

mod replicas;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyperion_api::node::HyperionNodeStatus;
use hyperion_api::workload::HyperionWorkload;
use hyperion_gateway::GatewayEvent;
use hyperion_gateway::nodes::set_ready;
use hyperion_gateway::notices::{self, Notice};
use hyperion_proto::agent_v1;
use hyperion_proto::domain::ReplicaKey;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;

use super::node::{self, Identity, Machine, Reach, Unusable};
use super::usage::Usage;
use crate::index::Heard;

pub use replicas::CreateError;
use replicas::Slot;

/// What the leader's loop hears.
#[derive(Debug, Clone)]
pub enum Event {
    /// A node is in reach; one report per Pod that it has follows.
    Up {
        /// Node id.
        node: String,
        /// What it is and has.
        facts: Box<HyperionNodeStatus>,
        /// Why it can start nothing now; empty where it can.
        problem: String,
    },
    /// A node in reach is or has something else than before.
    Facts {
        /// Node id.
        node: String,
        /// What it is and has.
        facts: Box<HyperionNodeStatus>,
    },
    /// The cluster answers.
    Heard,
    /// What a cluster says of machines that can be launched in it.
    Machines(String, Heard),
    /// What agents' nodes say, too.
    Said(Box<GatewayEvent>),
}

/// What the leader's loop asks of a cluster.
#[derive(Debug, Clone)]
pub enum Order {
    /// The node should run this replica.
    Start {
        /// Node id.
        node: String,
        /// Replica.
        key: ReplicaKey,
        /// Generation.
        generation: u64,
        /// What to run.
        workload: Arc<HyperionWorkload>,
        /// It has ended, and is not to be made again.
        ended: bool,
    },
    /// The node should not run the replica with this generation or a lower one.
    Stop {
        /// Node id.
        node: String,
        /// Replica.
        key: ReplicaKey,
        /// Generation.
        generation: u64,
        /// Most time between SIGTERM and SIGKILL; none for the template's own.
        within: Option<Duration>,
    },
    /// What the node's cloud is about to do to it, the whole.
    Notices {
        /// Node id.
        node: String,
        /// Sane; empty where nothing is.
        notices: Vec<Notice>,
    },
    /// Nodes that may run what can't be described now: nothing stops there for not being ordered.
    HoldBack(BTreeSet<String>),
    /// All that should run has been ordered.
    Complete,
}

/// Node id and replica.
pub type At = (String, ReplicaKey);

/// Something to do.
#[derive(Debug, Clone)]
pub enum Effect {
    /// To the leader's loop.
    Tell(Event),
    /// To be answered with [`State::created`].
    Create {
        /// Tells attempts apart.
        ticket: u64,
        /// Of which replica.
        at: At,
        /// What to make.
        pod: Box<Pod>,
    },
    /// To be answered with [`State::not_done`] where it fails.
    Delete {
        /// Of which replica.
        at: At,
        /// Name of the Pod.
        name: String,
        /// Its uid.
        uid: String,
        /// Seconds between SIGTERM and SIGKILL; none for the template's own.
        grace: Option<u32>,
    },
    /// To be answered with [`State::not_done`] where it fails.
    Bind {
        /// Of which replica.
        at: At,
        /// Name of the Pod.
        name: String,
        /// Its uid.
        uid: String,
        /// Name of the node in its cluster.
        machine: String,
    },
    /// There is to be a HyperionNode with this status.
    Object {
        /// Node id.
        node: String,
        /// Status.
        status: Box<HyperionNodeStatus>,
    },
    /// There is to be no such HyperionNode.
    Forget {
        /// Node id.
        node: String,
    },
}

/// How long a kubelet has been silent when its node's condition says so: the default of Kubernetes'
/// `node-monitor-grace-period` up to 1.31, and less than that of later releases.
const KUBELET_SILENT: Duration = Duration::from_secs(40);
/// Nodes of one list that events are published for; the others' objects tell the same.
const EVENTS: usize = 16;

#[derive(Debug, Clone, Default)]
struct Entry {
    /// Name in its cluster.
    name: String,
    /// As it was last when it could be used.
    machine: Option<Machine>,
    /// Why it can't be used now.
    problem: Option<Unusable>,
    told: Told,
    /// What its object says.
    shown: Option<Shown>,
    status: HyperionNodeStatus,
}

#[derive(Debug, Clone, Default, PartialEq)]
enum Told {
    #[default]
    Nothing,
    Up(Box<HyperionNodeStatus>, String),
    Down,
}

#[derive(Debug, Clone, PartialEq)]
struct Shown {
    facts: HyperionNodeStatus,
    ready: bool,
    reason: String,
    message: String,
}

/// A workload cluster.
pub struct State {
    of: Identity,
    entries: BTreeMap<String, Entry>,
    /// Nodes that are there and are not ours to use.
    unused: BTreeSet<String>,
    /// What clouds are about to do to nodes.
    notices: HashMap<String, Vec<Notice>>,
    slots: BTreeMap<At, Slot>,
    /// Our Pods, by namespace and name.
    by_pod: HashMap<(String, String), At>,
    /// Pods of others: their node, and what they take.
    others: HashMap<(String, String), (String, Usage)>,
    /// What Pods of others take, by node.
    taken: HashMap<String, Usage>,
    timers: BTreeSet<(Instant, At)>,
    held_back: BTreeSet<String>,
    complete: bool,
    /// The lists are read, and the API server answers.
    connected: bool,
    /// Why it is not.
    away: String,
    /// Why nothing new may be placed on any node.
    closed: Option<String>,
    /// Nothing is made any more.
    left: bool,
    /// Nodes that have more or less left than was told.
    dirty: BTreeSet<String>,
    events: usize,
    ticket: u64,
    out: Vec<Effect>,
}

impl State {
    /// A cluster of which nothing is known yet.
    #[must_use]
    pub fn new(of: Identity) -> Self {
        Self {
            of,
            entries: BTreeMap::new(),
            unused: BTreeSet::new(),
            notices: HashMap::new(),
            slots: BTreeMap::new(),
            by_pod: HashMap::new(),
            others: HashMap::new(),
            taken: HashMap::new(),
            timers: BTreeSet::new(),
            held_back: BTreeSet::new(),
            complete: false,
            connected: false,
            away: "its cluster has not been read yet".to_owned(),
            closed: None,
            left: false,
            dirty: BTreeSet::new(),
            events: 0,
            ticket: 0,
            out: Vec::new(),
        }
    }

    /// The cluster's description has changed; nodes are read with it from the next list on.
    pub fn describe(&mut self, of: Identity) {
        self.of = of;
    }

    /// What is to be done since the last call, in order.
    #[must_use]
    pub fn take(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.out)
    }

    /// Nodes that can be used, and nodes that can't.
    #[must_use]
    pub fn nodes(&self) -> (usize, usize) {
        let unusable = self
            .entries
            .values()
            .filter(|e| e.problem.is_some())
            .count();
        (self.entries.len() - unusable, unusable)
    }

    /// All nodes, after a watch began anew.
    pub fn reset_nodes(&mut self, nodes: Vec<Node>, now: Instant) {
        self.events = EVENTS;
        self.unused.clear();
        let mut gone: BTreeSet<String> = self.entries.values().map(|e| e.name.clone()).collect();
        for node in nodes {
            gone.remove(&node.name_any());
            self.apply_node(&node, now);
        }
        for name in gone {
            self.delete_node(&name, now);
        }
        self.events = EVENTS;
    }

    /// A node was made or changed.
    pub fn apply_node(&mut self, node: &Node, now: Instant) {
        let name = node.name_any();
        if self.left {
            return;
        }
        let id = node::node_id(&self.of.name, &name);
        if !node::selected(node, &self.of) {
            self.unused.insert(id.clone());
            self.drop_node(&id, "it is not selected any more");
            return;
        }
        self.unused.remove(&id);
        let entry = self.entries.entry(id.clone()).or_default();
        entry.name = name;
        match node::machine(node, &self.of) {
            Ok(machine) => {
                entry.machine = Some(machine);
                entry.problem = None;
            }
            Err(problem) => {
                let known = entry
                    .problem
                    .as_ref()
                    .is_some_and(|p| p.reason == problem.reason);
                if !known && self.events > 0 {
                    self.events -= 1;
                    self.out
                        .push(warning(&id, problem.reason, &problem.message, None));
                }
                entry.problem = Some(problem);
            }
        }
        self.tell(&id, None, now);
    }

    /// A node is gone, and its machine with it: nothing runs there any more.
    pub fn delete_node(&mut self, name: &str, now: Instant) {
        let id = node::node_id(&self.of.name, name);
        self.unused.remove(&id);
        self.drop_node(&id, "its Node object is gone");
        self.reconcile_node(&id, now);
    }

    fn drop_node(&mut self, id: &str, why: &str) {
        self.notices.remove(id);
        if let Some(entry) = self.entries.remove(id) {
            self.dirty.remove(id);
            self.forget(id, &entry.told, why);
        }
    }

    /// All Pods of others, after a watch began anew.
    pub fn reset_others(&mut self, pods: &[Pod]) {
        self.dirty.extend(self.entries.keys().cloned());
        self.others.clear();
        self.taken.clear();
        for pod in pods {
            self.apply_other(pod);
        }
    }

    /// A Pod of somebody else was made or changed.
    pub fn apply_other(&mut self, pod: &Pod) {
        let at = place(pod);
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        let spec = pod.spec.as_ref();
        let node = spec.and_then(|s| s.node_name.clone()).unwrap_or_default();
        let ended = matches!(phase, Some("Succeeded" | "Failed"));
        let (Some(spec), false, false) = (spec, ended, node.is_empty()) else {
            self.delete_other(&at);
            return;
        };
        let usage = Usage::of(spec);
        if self
            .others
            .get(&at)
            .is_some_and(|held| held.0 == node && held.1 == usage)
        {
            return;
        }
        self.delete_other(&at);
        let taken = self.taken.entry(node.clone()).or_default();
        *taken = taken.plus(usage);
        self.dirty.insert(node::node_id(&self.of.name, &node));
        self.others.insert(at, (node, usage));
    }

    /// A Pod of somebody else has ended or is gone.
    pub fn delete_other(&mut self, at: &(String, String)) {
        let Some((node, usage)) = self.others.remove(at) else {
            return;
        };
        if let Some(taken) = self.taken.get_mut(&node) {
            *taken = taken.minus(usage);
        }
        self.dirty.insert(node::node_id(&self.of.name, &node));
    }

    /// Tells what is left of nodes where that has changed. Not after each Pod of others: they come
    /// and go by the hundred.
    pub fn flush(&mut self, now: Instant) {
        if !self.connected {
            return;
        }
        for id in std::mem::take(&mut self.dirty) {
            self.tell(&id, None, now);
        }
    }

    /// All lists are read: what is known is what is.
    pub fn connected(&mut self, now: Instant) {
        self.connected = true;
        self.dirty.clear();
        let up = self
            .entries
            .iter()
            .filter(|(_, e)| matches!(e.told, Told::Up(..)));
        let up: Vec<String> = up.map(|(id, _)| id.clone()).collect();
        self.tell_all(None, now);
        // What was not told while the lists were read anew.
        for id in up {
            self.report_all(&id, now);
        }
        // Also of nodes that are gone, or silent.
        for at in self.slots.keys().cloned().collect::<Vec<_>>() {
            self.reconcile(&at, now);
        }
    }

    /// The lists are read anew: what is told of nodes stands until then.
    pub fn pause(&mut self) {
        self.connected = false;
        for slot in self.slots.values_mut() {
            slot.forget_writes();
        }
    }

    /// The API server does not answer, or tells us nothing, for so long now.
    pub fn disconnected(&mut self, why: &str, silent_for: Duration, now: Instant) {
        self.pause();
        self.away = format!("its cluster is out of reach: {why}");
        self.tell_all(Some(silent_for), now);
    }

    /// Whether anything new may be placed on the nodes, and why not.
    pub fn close(&mut self, why: Option<String>, now: Instant) {
        if self.closed != why {
            self.closed = why;
            self.tell_all(None, now);
        }
    }

    /// Nothing new may be placed on the nodes.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.is_some()
    }

    /// What a node's cloud is about to do to it, the whole, by the word of the agent that measures it.
    pub(super) fn told(&mut self, id: String, notices: Vec<Notice>, now: Instant) {
        if self.left {
            return;
        }
        if notices.is_empty() {
            self.notices.remove(&id);
        } else {
            self.notices.insert(id.clone(), notices);
        }
        self.tell(&id, None, now);
    }

    /// Ends everything of ours: the cluster is to be left.
    pub fn leave(&mut self, now: Instant) {
        for (id, entry) in std::mem::take(&mut self.entries) {
            self.forget(&id, &entry.told, "its cluster is not used any more");
        }
        self.left = true;
        self.drop_slots(now);
    }

    /// Nodes with Pods of ours.
    #[must_use]
    pub fn occupied(&self) -> BTreeSet<String> {
        let with = self.slots.iter().filter(|(_, slot)| slot.pods() > 0);
        with.map(|((node, _), _)| node.clone()).collect()
    }

    /// Pods of ours, as "namespace/name".
    #[must_use]
    pub fn pods(&self) -> Vec<String> {
        let names = self.by_pod.keys();
        let mut names: Vec<String> = names.map(|(ns, name)| format!("{ns}/{name}")).collect();
        names.sort();
        names
    }

    fn forget(&mut self, id: &str, told: &Told, reason: &str) {
        if matches!(told, Told::Up(..)) {
            self.out.push(down(id, reason, Duration::ZERO));
        }
        let node = id.to_owned();
        self.out.push(Effect::Forget { node });
    }

    fn tell_all(&mut self, silent_for: Option<Duration>, now: Instant) {
        for id in self.entries.keys().cloned().collect::<Vec<_>>() {
            self.tell(&id, silent_for, now);
        }
    }

    /// Tells what has changed of a node, to the loop and to its object. While the cluster is not
    /// followed that is only for how long it has been silent.
    fn tell(&mut self, id: &str, silent_for: Option<Duration>, now: Instant) {
        if !self.connected && silent_for.is_none() {
            return;
        }
        let ours = self.pods_on(id);
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        let others = self.taken.get(&entry.name).copied().unwrap_or_default();
        let mut after = Told::Nothing;
        if let Some(machine) = &entry.machine {
            let mut facts = machine.beside(&others, ours);
            facts.cordoned |= entry.problem.is_some() || self.closed.is_some();
            after = match &machine.reach {
                _ if !self.connected => Told::Down,
                Reach::Up => Told::Up(Box::new(facts), String::new()),
                Reach::Runtime(problem) => Told::Up(Box::new(facts), problem.clone()),
                Reach::Silent(_) => Told::Down,
            };
        }
        let shown = shown(entry, self.connected, &self.away, self.closed.as_deref());
        let said = self.notices.get(id).map_or(&[][..], Vec::as_slice);
        let news = notices::note(&mut entry.status, said);
        if news || entry.shown.as_ref() != Some(&shown) {
            let mut status = shown.facts.clone();
            status.conditions.clone_from(&entry.status.conditions);
            set_ready(&mut status, shown.ready, &shown.reason, &shown.message);
            entry.status = status.clone();
            entry.shown = Some(shown);
            self.out.push(Effect::Object {
                node: id.to_owned(),
                status: Box::new(status),
            });
        }
        let before = std::mem::replace(&mut entry.told, after.clone());
        let silent = entry.machine.as_ref().and_then(|m| match &m.reach {
            Reach::Silent(text) if self.connected => Some(text.clone()),
            _ => None,
        });
        match (before, after) {
            (Told::Up(old, was), Told::Up(facts, problem)) => {
                let node = id.to_owned();
                if was != problem {
                    let said = GatewayEvent::Runtime {
                        node: node.clone(),
                        problem,
                    };
                    self.out.push(Effect::Tell(Event::Said(Box::new(said))));
                }
                if old != facts {
                    self.out.push(Effect::Tell(Event::Facts { node, facts }));
                }
            }
            (_, Told::Up(facts, problem)) => {
                self.out.push(Effect::Tell(Event::Up {
                    node: id.to_owned(),
                    facts,
                    problem,
                }));
                self.report_all(id, now);
            }
            (Told::Up(..), Told::Down | Told::Nothing) => {
                let (reason, silent_for) = match silent {
                    Some(text) => (text, KUBELET_SILENT),
                    None => (self.away.clone(), silent_for.unwrap_or_default()),
                };
                self.out.push(down(id, &reason, silent_for));
            }
            _ => {}
        }
    }

    fn is_up(&self, id: &str) -> bool {
        let entry = self.entries.get(id);
        entry.is_some_and(|e| matches!(e.told, Told::Up(..)))
    }

    /// Cordoned in its cluster, as `kubectl drain` does.
    fn is_cordoned(&self, id: &str) -> bool {
        let machine = self.entries.get(id).and_then(|e| e.machine.as_ref());
        machine.is_some_and(|m| m.facts.cordoned)
    }
}

/// What a node's object says.
fn shown(entry: &Entry, connected: bool, away: &str, closed: Option<&str>) -> Shown {
    let facts = entry.machine.as_ref().map_or_else(
        || HyperionNodeStatus {
            hostname: entry.name.clone(),
            ..HyperionNodeStatus::default()
        },
        |m| m.facts.clone(),
    );
    let reach = entry.machine.as_ref().map(|m| &m.reach);
    let (ready, reason, message) = match (&entry.problem, reach) {
        _ if !connected => (false, "ClusterUnreachable", away.to_owned()),
        (Some(problem), _) => (false, problem.reason, problem.message.clone()),
        (None, Some(Reach::Silent(text))) => (false, "KubeletSilent", text.clone()),
        (None, Some(Reach::Runtime(text))) => (false, "KubeletNotReady", text.clone()),
        (None, _) => {
            let note = entry.machine.as_ref().map_or("", |m| m.note.as_str());
            (true, "NodeReady", closed.unwrap_or(note).to_owned())
        }
    };
    Shown {
        facts,
        ready,
        reason: reason.to_owned(),
        message,
    }
}

fn down(node: &str, reason: &str, silent_for: Duration) -> Effect {
    Effect::Tell(Event::Said(Box::new(GatewayEvent::NodeDown {
        node: node.to_owned(),
        reason: reason.to_owned(),
        silent_for,
    })))
}

/// Something that a person may want to know of a node, or of a replica on it.
fn warning(node: &str, reason: &str, message: &str, replica: Option<&ReplicaKey>) -> Effect {
    Effect::Tell(Event::Said(Box::new(GatewayEvent::Event {
        node: node.to_owned(),
        event: agent_v1::Event {
            reason: reason.to_owned(),
            message: message.to_owned(),
            warning: true,
            replica: replica.map(Into::into),
            ..agent_v1::Event::default()
        },
    })))
}

/// Namespace and name.
fn place(pod: &Pod) -> (String, String) {
    (pod.namespace().unwrap_or_default(), pod.name_any())
}
