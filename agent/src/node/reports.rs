//! What the control plane is told of replicas and events, and what it has not got yet.

use std::collections::BTreeMap;

use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{
    Event, Interruption, InterruptionKind, Interruptions, NodeState, ReplicaPhase, ReplicaReport,
    RuntimeState,
};
use hyperion_proto::domain::ReplicaKey;

use super::glue::Work;
use super::link::key_of;
use super::{Node, Now, Outgoing, orders};
use crate::store::Change;
use crate::supervisor::{self, Desired, SupervisorEvent};
use crate::workloads::Workloads;

/// Events that may be on their way without an acknowledgement.
const WINDOW: usize = 32;
/// Reports of stopped replicas that wait for a connection.
const STOPPED: usize = 256;
/// Reason of reports that the supervisor makes without having seen the runtime.
const UNKNOWN: &str = "RuntimeUnavailable";

impl<W: Workloads> Node<W> {
    /// Takes what the supervisor tells, in order.
    pub fn supervisor(
        &mut self,
        events: impl IntoIterator<Item = SupervisorEvent>,
        now: Now,
        out: &dyn Outgoing,
    ) {
        for event in events {
            match event {
                SupervisorEvent::Report(report) => self.take_report(report, now),
                SupervisorEvent::Event {
                    reason,
                    message,
                    warning,
                    key,
                } => self.event(&reason, message, warning, key.as_ref(), now),
                SupervisorEvent::Runtime(state) => self.take_runtime(state, now),
            }
        }
        self.refresh(now);
        self.report(out);
    }

    fn take_runtime(&mut self, state: supervisor::RuntimeState, now: Now) {
        match state {
            supervisor::RuntimeState::Available { name, version } => {
                self.config.facts.capabilities.container_runtime = format!("{name} {version}");
                self.runtime_problem.clear();
                self.runtime_answers = true;
            }
            supervisor::RuntimeState::Unavailable { reason } => {
                self.runtime_problem.clone_from(&reason);
                self.runtime_answers = false;
                self.event("RuntimeUnavailable", reason, true, None, now);
            }
        }
    }

    pub(super) fn take_report(&mut self, report: ReplicaReport, now: Now) {
        let Some(key) = key_of(report.key.as_ref()) else {
            return;
        };
        let held = self.store.held(&key);
        let ended = held.and_then(|held| Some((held.clone(), orders::outcome(&report, held)?)));
        if let Some((held, outcome)) = ended {
            let outputs = self.autonomy.ended(
                &key,
                held.start.generation,
                outcome.phase,
                outcome.exit_code,
                self.clock.since(now),
            );
            let finished = Some(outcome);
            let work = Work {
                changes: vec![Change::Put(Desired { finished, ..held })],
                whole: false,
                outputs,
            };
            self.carry_out(work, now);
        }
        if report.phase() == ReplicaPhase::Stopped {
            self.note_stopped(report);
        }
    }

    /// Takes what the machine's cloud says is about to happen to it, the whole.
    pub fn interruptions(&mut self, notices: Vec<Interruption>, now: Now, out: &dyn Outgoing) {
        let before = self.interruptions.take().unwrap_or_default().notices;
        let new = |list: &[Interruption], n: &Interruption| !list.iter().any(|o| o.id == n.id);
        for notice in notices.iter().filter(|n| new(&before, n)) {
            let reason = match notice.kind() {
                InterruptionKind::Rebalance => "RebalanceRecommendation",
                InterruptionKind::Maintenance => "Maintenance",
                InterruptionKind::Spot | InterruptionKind::Unspecified => "SpotInterruption",
            };
            self.event(reason, notice.detail.clone(), true, None, now);
        }
        for notice in before.iter().filter(|n| new(&notices, n)) {
            let detail = notice.detail.clone();
            self.event("InterruptionWithdrawn", detail, false, None, now);
        }
        self.interruptions = Some(Interruptions { notices });
        self.report(out);
    }

    /// True where the supervisor has looked at the runtime: each replica that is held has a report
    /// of how it is, and not only that this is not known.
    #[must_use]
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
    pub(super) fn all_reports(&self) -> BTreeMap<ReplicaKey, ReplicaReport> {
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
    fn note_stopped(&mut self, report: ReplicaReport) {
        self.stopped.retain(|r| r.key != report.key);
        if self.stopped.len() == STOPPED {
            self.stopped.pop_front();
        }
        self.stopped.push_back(report);
    }

    /// A stop of something that is not here: said at once, or the control plane would wait.
    pub(super) fn note_absent(&mut self, key: &ReplicaKey, generation: u64) {
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

    /// Tells the control plane what it has not got.
    pub(super) fn report(&mut self, out: &dyn Outgoing) {
        self.send_state(out);
        self.send_decisions(out);
        self.send_reports(out);
        self.send_events(out);
    }

    /// Sends mode, policy and addresses, where they changed.
    pub(super) fn send_state(&mut self, out: &dyn Outgoing) {
        if !self.linked {
            return;
        }
        let state = NodeState {
            mode: self.mode().as_str().to_owned(),
            policy_hash: self.policy_hash().to_owned(),
            peer_addresses: self.me.addresses.clone(),
            interruptions: self.interruptions.clone(),
            update: self.update_state(),
        };
        if self.sent_state.as_ref() != Some(&state) && out.send(Body::NodeState(state.clone())) {
            self.sent_state = Some(state);
        }
    }

    /// Sends the reports that differ from what this connection has. What is not taken now differs
    /// the next time, too.
    fn send_reports(&mut self, out: &dyn Outgoing) {
        if self.reported_problem != self.runtime_problem {
            let problem = self.runtime_problem.clone();
            if !out.send(Body::RuntimeState(RuntimeState { problem })) {
                return;
            }
            self.reported_problem.clone_from(&self.runtime_problem);
        }
        let reports = self.all_reports();
        self.reported.retain(|key, _| reports.contains_key(key));
        while let Some(last) = self.stopped.front() {
            let started_again = key_of(last.key.as_ref())
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
    pub(super) fn event(
        &mut self,
        reason: &str,
        message: String,
        warning: bool,
        key: Option<&ReplicaKey>,
        now: Now,
    ) {
        let event = Event {
            id: 0,
            unix_ms: self.clock.unix_ms(now),
            reason: reason.to_owned(),
            message,
            warning,
            replica: key.map(Into::into),
        };
        self.store.add_event(event);
    }

    /// Sends events in order, as many as may be on their way.
    pub(super) fn send_events(&mut self, out: &dyn Outgoing) {
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
}

pub(super) fn keyed(reports: Vec<ReplicaReport>) -> BTreeMap<ReplicaKey, ReplicaReport> {
    reports
        .into_iter()
        .filter_map(|r| Some((key_of(r.key.as_ref())?, r)))
        .collect()
}
