//! The session's state between messages, without the connection: what to say in hello, which
//! reports and events the control plane has not got yet.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use hyperion_link::{LinkSender, SendError};
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{
    Event, Hello, NodeCapabilities, ReplicaPhase, ReplicaReport, RuntimeState, StreamMessage,
};
use hyperion_proto::convert;
use hyperion_proto::domain::ReplicaKey;

use crate::store::Store;
use crate::workloads::Workloads;

/// Events that may be on their way without an acknowledgement.
const WINDOW: usize = 32;
/// Reports of stopped replicas that wait for a connection.
const STOPPED: usize = 256;
/// Reason of reports that the supervisor makes without having seen the runtime.
const UNKNOWN: &str = "RuntimeUnavailable";
/// 2025-01-01: a device whose clock says less has none.
const CLOCK_FLOOR_MS: i64 = 1_735_689_600_000;

/// Facts of this start of the agent.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// From the certificate.
    pub node_id: String,
    /// Random per start.
    pub boot_id: String,
    /// What the node has.
    pub capabilities: NodeCapabilities,
    /// Milliseconds.
    pub telemetry_interval_ms: u32,
}

/// Where messages go; a trait of one method so that this module is tested without a connection.
pub trait Outgoing {
    /// Queues a message; false where it was not taken.
    fn send(&self, body: Body) -> bool;
}

impl Outgoing for LinkSender {
    fn send(&self, body: Body) -> bool {
        match self.try_send(StreamMessage { body: Some(body) }) {
            Ok(()) => true,
            Err(SendError::NotConnected(_) | SendError::Full(_)) => false,
        }
    }
}

/// See the module.
pub struct Core<W> {
    /// What to run.
    pub store: Store,
    /// Who runs it.
    pub workloads: W,
    facts: NodeFacts,
    /// Why the container runtime does not answer; empty where it does.
    runtime_problem: String,
    /// What this connection knows of that.
    reported_problem: String,
    /// Last report that was handed to this connection, per replica.
    reported: BTreeMap<ReplicaKey, ReplicaReport>,
    /// Last words of replicas that are gone.
    stopped: VecDeque<ReplicaReport>,
    /// Last event that was handed to this connection.
    sent_event: u64,
    /// The control plane's wall clock and when it said so.
    reference: Option<(i64, Instant)>,
}

impl<W: Workloads> Core<W> {
    /// Starts with what the store says.
    pub fn new(store: Store, workloads: W, facts: NodeFacts) -> Self {
        Self {
            store,
            workloads,
            facts,
            runtime_problem: String::new(),
            reported_problem: String::new(),
            reported: BTreeMap::new(),
            stopped: VecDeque::new(),
            sent_event: 0,
            reference: None,
        }
    }

    /// Tells the supervisor what should run, unless that is not known.
    pub fn push_desired(&self) {
        if !self.store.partial() {
            self.workloads.set_desired(self.store.desired());
        }
    }

    /// Notes which container runtime there is, for the next hello.
    pub fn set_runtime(&mut self, runtime: String) {
        self.facts.capabilities.container_runtime = runtime;
        self.runtime_problem.clear();
    }

    /// Notes that the container runtime does not answer.
    pub fn set_runtime_problem(&mut self, problem: &str) {
        problem.clone_into(&mut self.runtime_problem);
    }

    /// First message of a connection.
    pub fn hello(&mut self) -> Hello {
        let reports = self.reports();
        self.sent_event = 0;
        self.reported = reports.clone();
        self.reported_problem.clone_from(&self.runtime_problem);
        Hello {
            node_id: self.facts.node_id.clone(),
            boot_id: self.facts.boot_id.clone(),
            capabilities: Some(self.facts.capabilities.clone()),
            replicas: reports.into_values().collect(),
            agent_version: crate::VERSION.to_owned(),
            telemetry_interval_ms: self.facts.telemetry_interval_ms,
            runtime_problem: self.runtime_problem.clone(),
            ..Default::default()
        }
    }

    /// True where the supervisor has looked at the runtime: each replica that is held has a report
    /// of how it is, and not only that this is not known.
    pub fn all_reported(&self) -> bool {
        let own = keyed(self.workloads.reports());
        let known = |key| {
            own.get(key)
                .is_some_and(|report: &ReplicaReport| report.reason != UNKNOWN)
        };
        self.store.partial() || self.store.keys().all(known)
    }

    /// The last report of each replica. One that is held but of which the supervisor has not said
    /// anything yet is starting.
    fn reports(&self) -> BTreeMap<ReplicaKey, ReplicaReport> {
        let mut reports = keyed(self.workloads.reports());
        for key in self.store.keys() {
            if !reports.contains_key(key)
                && let Some(held) = self.store.held(key)
            {
                let report = ReplicaReport {
                    key: Some(key.into()),
                    generation: held.start.generation,
                    phase: ReplicaPhase::Starting.into(),
                    ..Default::default()
                };
                reports.insert(key.clone(), report);
            }
        }
        reports
    }

    /// Keeps the last word of a replica that is gone until it is sent.
    pub fn note_stopped(&mut self, report: ReplicaReport) {
        self.stopped.retain(|r| r.key != report.key);
        if self.stopped.len() == STOPPED {
            self.stopped.pop_front();
        }
        self.stopped.push_back(report);
    }

    /// A stop of something that is not here: said at once, or the control plane would wait.
    pub fn note_absent(&mut self, key: &ReplicaKey, generation: u64) {
        let reports = keyed(self.workloads.reports());
        if !reports.contains_key(key) {
            self.note_stopped(ReplicaReport {
                key: Some(key.into()),
                generation,
                phase: ReplicaPhase::Stopped.into(),
                ..Default::default()
            });
        }
    }

    /// Sends the reports that differ from what this connection has. What is not taken now differs
    /// the next time, too.
    pub fn send_reports(&mut self, out: &impl Outgoing) {
        if self.reported_problem != self.runtime_problem {
            let problem = self.runtime_problem.clone();
            if !out.send(Body::RuntimeState(RuntimeState { problem })) {
                return;
            }
            self.reported_problem.clone_from(&self.runtime_problem);
        }
        let reports = self.reports();
        self.reported.retain(|key, _| reports.contains_key(key));
        while let Some(last) = self.stopped.front() {
            let started_again = convert::replica_key("", last.key.as_ref())
                .ok()
                .and_then(|key| self.store.held(&key))
                .is_some_and(|held| held.start.generation >= last.generation);
            if !started_again && !out.send(Body::ReplicaReport(last.clone())) {
                return;
            }
            self.stopped.pop_front();
        }
        for (key, report) in reports {
            if self.reported.get(&key) != Some(&report) {
                if !out.send(Body::ReplicaReport(report.clone())) {
                    return;
                }
                self.reported.insert(key, report);
            }
        }
    }

    /// Keeps an event for the control plane.
    pub fn event(
        &mut self,
        reason: &str,
        message: String,
        warning: bool,
        key: Option<&ReplicaKey>,
    ) {
        let event = Event {
            id: 0,
            unix_ms: self.unix_ms(),
            reason: reason.to_owned(),
            message,
            warning,
            replica: key.map(Into::into),
        };
        self.store.add_event(event);
    }

    /// Sends events in order, as many as may be on their way.
    pub fn send_events(&mut self, out: &impl Outgoing) {
        let first = self.store.events_after(0, 1).first().map_or(0, |e| e.id);
        let on_their_way = self
            .store
            .events_after(0, WINDOW)
            .iter()
            .filter(|e| e.id <= self.sent_event)
            .count();
        let from = self.sent_event.max(first.saturating_sub(1));
        for event in self.store.events_after(from, WINDOW - on_their_way) {
            let id = event.id;
            if !out.send(Body::Event(event)) {
                return;
            }
            self.sent_event = id;
        }
    }

    /// Takes the control plane's wall clock; a device may have none of its own.
    pub fn set_wall_clock(&mut self, unix_ms: i64) {
        if unix_ms >= CLOCK_FLOOR_MS {
            self.reference = Some((unix_ms, Instant::now()));
        }
    }

    /// Wall clock: the control plane's where it was told, else the device's, else 0.
    fn unix_ms(&self) -> i64 {
        let millis = |ms: u128| i64::try_from(ms).unwrap_or(0);
        if let Some((then, at)) = self.reference {
            return then.saturating_add(millis(at.elapsed().as_millis()));
        }
        let own = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| millis(d.as_millis()));
        if own >= CLOCK_FLOOR_MS { own } else { 0 }
    }
}

fn keyed(reports: Vec<ReplicaReport>) -> BTreeMap<ReplicaKey, ReplicaReport> {
    reports
        .into_iter()
        .filter_map(|r| Some((convert::replica_key("", r.key.as_ref()).ok()?, r)))
        .collect()
}
