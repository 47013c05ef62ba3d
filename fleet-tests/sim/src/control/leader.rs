//! A control plane process: the real index and plan in the leader's loop, on virtual time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use hyperion_api::node::HyperionNode;
use hyperion_gateway::sites::{self, Member};
use hyperion_gateway::state::Decision;
use hyperion_operator::apply::Applied;
use hyperion_operator::decider::Decider;
use hyperion_operator::index::{Index, Name, Priority};
use hyperion_operator::plan::{self, Action};
use hyperion_operator::queue::Queue;
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{
    Event, EventAck, Hello, ReplicaRecord, SiteDecisions, StartReplica, TelemetryAck,
};
use hyperion_proto::convert;
use kube::core::DeserializeGuard;

use super::api::{Api, Change};
use super::gateway::{Gateway, Session};

/// As in the leader's loop.
const COUNTED: Duration = Duration::from_secs(1);
const SETTLE: Duration = Duration::from_secs(15);
/// Passes at one instant: more means that they do not settle.
const PASSES: usize = 20_000;

/// What the fleet has got through to a control plane; it outlives the process, as what is written
/// to the API and the log does.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// Events that were acknowledged, by node and id.
    events: BTreeMap<String, BTreeMap<u64, Event>>,
    /// Ids of telemetry batches that were acknowledged, by node.
    batches: BTreeMap<String, BTreeSet<u64>>,
    /// What came twice with one id and was not the same, or came out of order.
    pub wrong: Vec<String>,
    /// Samples in those batches.
    pub samples: BTreeMap<String, u64>,
    /// Orders that nodes refused.
    pub refused: u64,
}

impl Heard {
    /// A store that was behind has been opened: the ids that the agent gave meanwhile are on no
    /// disk, and it may give them again. Nothing is told apart by them alone: an event is
    /// acknowledged on the connection that brought it, and batches are compared by digest.
    pub(crate) fn ids_begin_anew(&mut self, node: &str) {
        self.events.remove(node);
        self.batches.remove(node);
    }
}

/// The process.
pub(crate) struct Leader {
    index: Index,
    decider: Decider,
    queue: Queue,
    timers: BTreeSet<(Instant, Name)>,
    due: BTreeMap<Name, Instant>,
    listed_at: Instant,
    complete: bool,
    held_back: BTreeSet<String>,
    released: Instant,
    pub gateway: Gateway,
    base: Instant,
    /// Writes on their way to the API.
    pub writes: Vec<Action>,
    /// True where passes did not settle.
    pub endless: bool,
    pub decisions: u64,
    /// Decisions of sites that nodes brought; the same one counts once for each.
    pub site_decisions: u64,
    pub adopted: u64,
    pub overruled: u64,
}

impl Leader {
    /// A process that has read the API and nothing else.
    pub(crate) fn new(
        api: &Api,
        base: Instant,
        now: Duration,
        replace_after: Duration,
        epoch_ms: i64,
    ) -> Self {
        let at = base + now;
        let mut index = Index::new(replace_after, hyperion_providers::latency_matrix());
        index.reset_workloads(api.workloads.values().cloned().map(guard).collect());
        index.reset_placements(api.placements.values().cloned().map(guard).collect(), at);
        index.reset_nodes(api.nodes.values().cloned().map(guard).collect(), at);
        let mut gateway = Gateway::new(epoch_ms);
        for (id, node) in &api.nodes {
            gateway.sites.set(id, &node.spec.site, member(node));
        }
        Self {
            index,
            decider: Decider::new(false),
            queue: Queue::default(),
            timers: BTreeSet::new(),
            due: BTreeMap::new(),
            listed_at: at,
            complete: false,
            held_back: BTreeSet::new(),
            released: at,
            gateway,
            base,
            writes: Vec::new(),
            endless: false,
            decisions: 0,
            site_decisions: 0,
            adopted: 0,
            overruled: 0,
        }
    }

    pub(crate) fn change(&mut self, change: Change, now: Duration) {
        let at = self.base + now;
        match change {
            Change::Workload(w) => self.index.apply_workload(guard(*w)),
            Change::WorkloadGone(w) => self.index.delete_workload(&guard(*w)),
            Change::Placement(p) => self.index.apply_placement(guard(*p), at),
            Change::PlacementGone(p) => self.index.delete_placement(&guard(*p)),
            Change::Node(n) => {
                let id = n.metadata.name.clone().unwrap_or_default();
                self.gateway.sites.set(&id, &n.spec.site, member(&n));
                self.index.apply_node(guard(*n), at);
            }
        }
    }

    pub(crate) fn applied(&mut self, applied: &Applied) {
        match applied {
            Applied::Stored {
                workload,
                replica,
                generation,
            } => self.index.stored(workload, *replica, *generation),
            Applied::Gone {
                workload,
                replica,
                generation,
            } => self.index.gone(workload, *replica, *generation),
            Applied::NotMade { workload, error } => self.index.not_made(workload, error),
        }
    }

    /// A node's first message; false where it has to wait for another boot of it.
    pub(crate) fn hello(&mut self, id: u64, hello: &Hello, now: Duration) -> bool {
        let node = hello.node_id.as_str();
        let mut session = Session {
            id,
            boot_id: hello.boot_id.clone(),
            last_seen: now,
            untaken: BTreeSet::new(),
            site_version: hello.site_info_version,
        };
        let (untaken, records) = decisions(hello.site_decisions.as_ref());
        session.untaken.extend(untaken);
        let Ok(capabilities) = convert::capabilities(hello.capabilities.as_ref()) else {
            return false;
        };
        if !self.gateway.open(node, session) {
            return false;
        }
        let addresses = sites::addresses(&hello.peer_addresses);
        self.gateway.sites.set_addresses(node, &addresses);
        self.index
            .node_up(node, &capabilities, hello.runtime_problem.clone());
        self.gateway.greet(node, now);
        for report in &hello.replicas {
            if let Ok(report) = convert::report(report) {
                self.index.report(node, &report, self.base + now);
            }
        }
        // Behind the reports, which say how the copies do that were decided about.
        self.decided(node, records, now);
        true
    }

    fn decided(&mut self, node: &str, records: Vec<ReplicaRecord>, now: Duration) {
        if !records.is_empty() {
            self.site_decisions += records.len() as u64;
            self.index.site_decided(node, records, self.base + now);
        }
    }

    /// A message of an open session.
    pub(crate) fn message(
        &mut self,
        node: &str,
        id: u64,
        body: Body,
        now: Duration,
        heard: &mut Heard,
    ) {
        if !self.gateway.heard(node, id, now) {
            return;
        }
        match body {
            Body::ReplicaReport(report) => {
                if let Ok(report) = convert::report(&report) {
                    self.index.report(node, &report, self.base + now);
                }
            }
            Body::Event(event) => {
                let id = event.id;
                let seen = heard.events.entry(node.to_owned()).or_default();
                if let Some(before) = seen.insert(id, event.clone())
                    && before != event
                {
                    let what = format!("{node} gives event id {id} twice: {before:?}, {event:?}");
                    heard.wrong.push(what);
                }
                self.gateway.send(node, Body::EventAck(EventAck { id }));
            }
            Body::TelemetryBatch(batch) => {
                let seen = heard.batches.entry(node.to_owned()).or_default();
                let last = seen.last().copied().unwrap_or_default();
                if seen.insert(batch.id) {
                    let samples = batch.samples.len() as u64;
                    *heard.samples.entry(node.to_owned()).or_default() += samples;
                    if batch.id < last {
                        let what = format!("{node} sends batch {} after {last}", batch.id);
                        heard.wrong.push(what);
                    }
                }
                self.gateway
                    .send(node, Body::TelemetryAck(TelemetryAck { id: batch.id }));
            }
            Body::SiteDecisions(said) => {
                let (untaken, records) = decisions(Some(&said));
                self.gateway.add_untaken(node, untaken);
                self.decided(node, records, now);
            }
            Body::NodeState(said) => {
                let addresses = sites::addresses(&said.peer_addresses);
                self.gateway.sites.set_addresses(node, &addresses);
            }
            Body::RuntimeState(state) => self.index.node_runtime(node, state.problem),
            Body::CommandResult(result) if !result.ok => heard.refused += 1,
            _ => {}
        }
    }

    /// A session ended; `since` is when it was last heard.
    pub(crate) fn closed(&mut self, node: &str, id: u64, since: Duration) {
        if self.gateway.close(node, id) {
            self.index.node_down(node, self.base + since);
        }
    }

    /// Takes nodes for lost that have been silent for too long; gives them and their sessions.
    pub(crate) fn lost(&mut self, now: Duration) -> Vec<(String, u64)> {
        let lost = self.gateway.lost(now);
        let each = lost.into_iter().map(|(node, id, since)| {
            self.closed(&node, id, since);
            (node, id)
        });
        each.collect()
    }

    fn push(&mut self, name: Name, priority: Priority) {
        let rank = self.index.rank(&name);
        self.queue.push(name, priority, rank);
    }

    /// Does what is due; gives when the next is.
    pub(crate) fn run(&mut self, now: Duration) -> Duration {
        let at = self.base + now;
        while let Some((due, name)) = self.timers.first().cloned().filter(|(due, _)| *due <= at) {
            self.timers.remove(&(due, name.clone()));
            self.due.remove(&name);
            self.push(name, Priority::Normal);
        }
        let mut passes = 0;
        loop {
            for name in self.index.wake_unplaced() {
                self.push(name, Priority::Low);
            }
            for (name, priority) in self.index.take_dirty() {
                self.push(name, priority);
            }
            let Some(name) = self.queue.pop() else { break };
            self.pass(&name, now);
            passes += 1;
            if passes > PASSES {
                self.endless = true;
                break;
            }
        }
        self.complete(now);
        self.release(now);
        for answer in self.index.take_answers() {
            self.gateway
                .decided(&answer.node, &answer.decisions, answer.taken, now);
        }
        drop(self.index.take_node_notes());
        let verdicts = self.index.take_verdicts();
        self.adopted += verdicts.adopted;
        self.overruled += verdicts.overruled;
        self.gateway.tell_sites(self.base, now);
        self.next(now)
    }

    fn pass(&mut self, name: &Name, now: Duration) {
        let at = self.base + now;
        let clock =
            jiff::Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_millis(now.as_millis() as i64);
        let outcome = plan::pass(&mut self.index, name, at, clock, &mut self.decider);
        self.decisions += u64::from(outcome.decisions);
        if outcome.more {
            self.push(name.clone(), Priority::Low);
        }
        if let Some(old) = self.due.remove(name) {
            self.timers.remove(&(old, name.clone()));
        }
        if let Some(wake) = outcome.wake {
            // A pass that asks to be woken in the past is looked at again at once.
            let wake = wake.max(at + Duration::from_millis(1));
            self.due.insert(name.clone(), wake);
            self.timers.insert((wake, name.clone()));
        }
        for action in outcome.actions {
            match action {
                Action::Start {
                    node,
                    key,
                    generation,
                    pod,
                    intent,
                } => {
                    let generation = u64::try_from(generation).unwrap_or(0);
                    let start = StartReplica {
                        key: Some((&key).into()),
                        generation,
                        pod: Some(*pod),
                        command_id: generation,
                        intent: Some(intent.as_ref().clone()),
                    };
                    self.gateway.set_desired(&node, start);
                }
                Action::Stop {
                    node,
                    key,
                    generation,
                } => {
                    let generation = u64::try_from(generation).unwrap_or(0);
                    self.gateway.remove_desired(&node, &key, generation);
                }
                Action::Event { .. } | Action::Experience(_) => {}
                write => self.writes.push(write),
            }
        }
    }

    fn complete(&mut self, now: Duration) {
        if self.complete {
            return;
        }
        let at = self.base + now;
        let stored = |p: &hyperion_operator::index::PlacementEntry| {
            p.deleting || p.stored >= p.spec.generation
        };
        let settled = self.queue.is_empty() && self.index.placements().all(stored);
        if settled || at - self.listed_at > SETTLE {
            self.complete = true;
            self.held_back = self.index.undescribed();
            self.released = at;
            self.gateway.hold_back(self.held_back.clone(), now);
            self.gateway.mark_complete(now);
        }
    }

    fn release(&mut self, now: Duration) {
        let at = self.base + now;
        if self.held_back.is_empty() || at - self.released < COUNTED {
            return;
        }
        self.released = at;
        let undescribed = self.index.undescribed();
        let before = self.held_back.len();
        self.held_back.retain(|node| undescribed.contains(node));
        if self.held_back.len() < before {
            self.gateway.hold_back(self.held_back.clone(), now);
        }
    }

    fn next(&self, now: Duration) -> Duration {
        let timer = self.timers.first().map(|(at, _)| *at - self.base);
        let waiting = (!self.complete || !self.held_back.is_empty()).then_some(now + COUNTED);
        timer
            .into_iter()
            .chain(waiting)
            .min()
            .unwrap_or(Duration::MAX)
            .min(self.gateway.next_loss())
    }
}

fn member(node: &HyperionNode) -> Member {
    Member {
        schedulable: !(node.spec.unschedulable || node.spec.draining),
        revoked: node.spec.revoked,
        ..Member::default()
    }
}

/// The decisions that make sense, and what tells them apart.
fn decisions(said: Option<&SiteDecisions>) -> (Vec<Decision>, Vec<ReplicaRecord>) {
    let (mut untaken, mut records) = (Vec::new(), Vec::new());
    for record in said.into_iter().flat_map(|d| &d.records) {
        if let Ok(read) = convert::record(record) {
            let decision = (read.key, read.generation, read.decider);
            if !untaken.contains(&decision) {
                untaken.push(decision);
                records.push(record.clone());
            }
        }
    }
    (untaken, records)
}

fn guard<T>(object: T) -> DeserializeGuard<T> {
    DeserializeGuard(Ok(object))
}
