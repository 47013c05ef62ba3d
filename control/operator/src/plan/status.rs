//! What people read: status of placements and workloads.

use std::collections::BTreeSet;
use std::time::Duration;

use hyperion_api::conditions as words;
use hyperion_api::placement::{HyperionPlacementStatus, PlacementPhase};
use hyperion_api::workload::{HyperionWorkloadStatus, WorkloadPhase};
use hyperion_api::{Invalid, LABEL_WORKLOAD};
use hyperion_proto::domain::Report;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::moves::FIRST_CONTACT;
use super::why::rejections;
use super::{Action, Pass};
use crate::index::{PlacementEntry, Template, WorkloadEntry, phase_of};

/// A stream that is down for a moment changes no status.
const BLINK: Duration = Duration::from_secs(2);
/// Node names listed in a workload's status.
const NODES_SHOWN: usize = 8;

/// A report's phase; a node that stopped a replica which it should run has not ended it.
pub(super) fn phase(report: &Report) -> PlacementPhase {
    phase_of(report.phase)
}

/// Status of an object that can't be read at all.
pub(super) fn refused(error: &str, clock: Timestamp) -> HyperionWorkloadStatus {
    let mut status = HyperionWorkloadStatus::default();
    let text = format!("the object can't be read: {error}");
    let verdict = Verdict(false, words::REASON_INVALID_SPEC, text);
    set(
        &mut status.conditions,
        words::ACCEPTED,
        verdict,
        None,
        clock,
    );
    status
}

struct Verdict(bool, &'static str, String);

fn set(
    conditions: &mut Vec<Condition>,
    type_: &str,
    verdict: Verdict,
    generation: Option<i64>,
    clock: Timestamp,
) {
    let Verdict(holds, reason, message) = verdict;
    let status = if holds { "True" } else { "False" };
    let held = conditions.iter().find(|c| c.type_ == type_);
    let since = held
        .filter(|c| c.status == status)
        .map_or(Time(clock), |c| c.last_transition_time.clone());
    let fresh = Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        last_transition_time: since,
        observed_generation: generation,
    };
    match conditions.iter_mut().find(|c| c.type_ == type_) {
        Some(held) => *held = fresh,
        None => conditions.push(fresh),
    }
}

impl Pass<'_> {
    pub(super) fn placement_statuses(&mut self) {
        for replica in self.known() {
            let Some(entry) = self.index.placement(&self.name, replica).cloned() else {
                continue;
            };
            if entry.deleting {
                continue;
            }
            let status = self.placement_status(&entry);
            if status == entry.status && entry.status.since.is_some() {
                continue;
            }
            let ended = entry.ended();
            if let Some(held) = self.index.entry_mut(&self.name, replica) {
                held.status = status.clone();
                if held.ended() != ended {
                    let succeeded = status.phase == PlacementPhase::Succeeded;
                    if !ended {
                        self.outcome(replica, succeeded, 0);
                    }
                    self.spread = None;
                    self.index.room_changed(&entry.spec.node);
                }
            }
            self.out.actions.push(Action::PlacementStatus {
                workload: self.name.clone(),
                replica,
                status: Box::new(status),
            });
        }
    }

    fn placement_status(&mut self, entry: &PlacementEntry) -> HyperionPlacementStatus {
        let mut status = entry.status.clone();
        let generation = entry.spec.generation;
        if entry.ended() && entry.report.is_none() && status.observed_generation == generation {
            return status;
        }
        status.ready = false;
        let phase = if entry.stopping.is_some() {
            let at = (self.name.clone(), entry.key.index);
            if let Some(gives) = self.index.gives_way(&at) {
                status.reason = words::REASON_PREEMPTED.to_owned();
                status.message.clone_from(&gives.text);
            }
            PlacementPhase::Stopping
        } else if let Some(text) = self.unreachable(entry) {
            status.reason = words::REASON_NODE_UNREACHABLE.to_owned();
            status.message = text;
            PlacementPhase::Unknown
        } else if let Some(report) = &entry.report {
            status.ready = report.ready && phase(report) == PlacementPhase::Running;
            status.reason.clone_from(&report.reason);
            status.message.clone_from(&report.message);
            status.restarts = i32::try_from(report.restarts).unwrap_or(i32::MAX);
            status.pod_ip.clone_from(&report.pod_ip);
            status.observed_generation = generation;
            phase(report)
        } else if status.observed_generation == generation
            && status.phase != PlacementPhase::Unknown
        {
            // Read from the API; the node is about to say what became of it.
            return entry.status.clone();
        } else {
            status = HyperionPlacementStatus {
                since: status.since,
                phase: status.phase,
                observed_generation: status.observed_generation,
                ..HyperionPlacementStatus::default()
            };
            PlacementPhase::Pending
        };
        if phase != status.phase || status.since.is_none() {
            (status.phase, status.since) = (phase, Some(Time(self.clock)));
        }
        status
    }

    /// Text for a replica whose node is out of reach; none while it is in reach or only blinked.
    fn unreachable(&mut self, entry: &PlacementEntry) -> Option<String> {
        let id = &entry.spec.node;
        let Some(node) = self.index.nodes.get(id) else {
            return Some(format!("node {id} is gone"));
        };
        let down = node.down_for(self.now)?;
        let patience = if node.seen { BLINK } else { FIRST_CONTACT };
        if down < patience {
            let at = self.now + (patience - down);
            self.wake_at(at);
            return None;
        }
        if entry.ended() {
            return None;
        }
        Some(format!("node {id} is out of reach"))
    }

    pub(super) fn workload_status(
        &mut self,
        workload: &WorkloadEntry,
        template: Result<&Template, &Invalid>,
    ) {
        let generation = workload.object.metadata.generation;
        let count = self.count(workload);
        let mut status = HyperionWorkloadStatus {
            phase: count.phase(),
            conditions: workload.status.conditions.clone(),
            replicas: count.placed,
            ready_replicas: count.ready,
            ready: format!("{}/{}", count.ready + count.succeeded, count.desired),
            nodes: shown(&count.nodes),
            selector: format!("{LABEL_WORKLOAD}={}", self.name.name),
            hourly_cost: (count.placed > 0).then_some(round(count.cost)),
            p99_latency_ms: count.p99,
            observed_generation: generation,
            highest_generation: self
                .index
                .workloads
                .get(&self.name)
                .map(|w| w.highest)
                .filter(|h| *h > 0),
            spent: self
                .index
                .workloads
                .get(&self.name)
                .and_then(|w| w.spent.clone()),
            rejected: Vec::new(),
        };
        let accepted = match template {
            Ok(_) => Verdict(true, words::REASON_VALID, String::new()),
            Err(e) => Verdict(false, words::REASON_INVALID_SPEC, e.to_string()),
        };
        let placed = if workload.deleting() {
            Verdict(false, words::REASON_DELETING, String::new())
        } else {
            self.placed(workload, &count, template)
        };
        if let Some((_, _, explanation)) = self.unplaced.first() {
            status.rejected = rejections(explanation);
        }
        let ready = match (count.readiness(workload), &placed) {
            // What keeps a replica from starting is that it has no place.
            (Verdict(false, words::REASON_STARTING, text), Verdict(false, reason, _))
                if text.is_empty() && !workload.deleting() =>
            {
                Verdict(false, reason, text)
            }
            (ready, _) => ready,
        };
        let mut verdicts = vec![
            (words::ACCEPTED, accepted),
            (words::PLACED, placed),
            (words::READY, ready),
        ];
        if count.job {
            verdicts.push((words::COMPLETE, count.completion()));
        }
        for (type_, verdict) in verdicts {
            set(
                &mut status.conditions,
                type_,
                verdict,
                generation,
                self.clock,
            );
        }
        if status != workload.status {
            self.index.wrote_status(&self.name, status.clone());
            self.out.actions.push(Action::WorkloadStatus {
                workload: self.name.clone(),
                status: Box::new(status),
            });
        }
    }

    fn placed(
        &mut self,
        workload: &WorkloadEntry,
        count: &Count,
        template: Result<&Template, &Invalid>,
    ) -> Verdict {
        if let Some(text) = self.launching() {
            return Verdict(false, words::REASON_LAUNCHING, text);
        }
        let first = self.unplaced.iter().find(|(r, ..)| !self.is_launching(*r));
        if let Some((replica, why, explanation)) = first {
            let others = self.unplaced.len() - 1;
            // What a quota rules out was not held against any node.
            let asked = explanation.candidates > 0 || !explanation.rejected.is_empty();
            let mut stands = match (&self.no_class, &self.quota) {
                (Some(no_class), _) => no_class.clone(),
                (None, Some(quota)) if asked => format!("{quota}; {}", explanation.summary()),
                (None, Some(quota)) => quota.clone(),
                (None, None) => explanation.summary(),
            };
            let room = self.room.as_deref().unwrap_or_default();
            for more in [&self.no_offer, room] {
                if !more.is_empty() {
                    stands = format!("{stands}; {more}");
                }
            }
            let mut text = format!("replica {replica}: {stands}");
            if *why != super::Why::New {
                text = format!("replica {replica} must be placed again, because {why}: {stands}");
            }
            if workload.object.spec.policy.gang && *why == super::Why::New {
                text = format!("{text} (all {} get a place, or none)", others + 1);
            } else if others > 0 {
                text = format!("{text} (and {others} more)");
            }
            let reason = if self.no_class.is_some() {
                words::REASON_PRIORITY_CLASS
            } else if self.room.is_some() {
                words::REASON_PREEMPTING
            } else if self.quota.is_some() {
                words::REASON_QUOTA
            } else if let super::Why::GivesWay(_) = why {
                words::REASON_PREEMPTED
            } else {
                words::REASON_UNPLACEABLE
            };
            self.say(workload, words::EVENT_UNPLACEABLE, &text);
            return Verdict(false, reason, text);
        }
        if let Some((replica, why)) = self.open.first_key_value() {
            return Verdict(
                false,
                words::REASON_PLACING,
                format!("replica {replica}: {why}"),
            );
        }
        if let Some(node) = &count.unreachable {
            let stops = template.is_ok_and(|t| t.stop_after.is_some());
            let text = match (workload.object.spec.policy.exclusive, stops) {
                (true, true) => format!(
                    "node {node} is out of reach; the workload is exclusive and waits for it, or until its site has stopped it"
                ),
                (true, false) => format!(
                    "node {node} is out of reach; the workload is exclusive and waits for it"
                ),
                _ => format!("node {node} is out of reach"),
            };
            return Verdict(false, words::REASON_NODE_LOST, text);
        }
        if template.is_err() || count.placed + count.succeeded + count.failed < count.desired {
            return Verdict(false, words::REASON_PLACING, String::new());
        }
        if let Some(entry) = self.index.workloads.get_mut(&self.name) {
            entry.said = None;
        }
        Verdict(true, words::REASON_ALL_PLACED, String::new())
    }

    fn count(&self, workload: &WorkloadEntry) -> Count {
        let mut count = Count {
            desired: workload.object.spec.replicas,
            job: workload.is_job(),
            ..Count::default()
        };
        let placements = self.index.placements.get(&self.name).into_iter().flatten();
        for (_, p) in placements.filter(|(_, p)| !p.deleting && p.stopping.is_none()) {
            count.add(p);
        }
        count
    }
}

#[derive(Default)]
struct Count {
    desired: i32,
    job: bool,
    placed: i32,
    ready: i32,
    running: i32,
    succeeded: i32,
    failed: i32,
    cost: f64,
    p99: Option<f64>,
    nodes: BTreeSet<String>,
    unreachable: Option<String>,
    trouble: Option<String>,
    starting: Option<String>,
}

impl Count {
    fn add(&mut self, p: &PlacementEntry) {
        let status = &p.status;
        let told = |what: &str| {
            let mut text = format!("replica {} on node {}: {what}", p.key.index, p.spec.node);
            if !status.message.is_empty() {
                text = format!("{text}: {}", status.message);
            }
            text
        };
        match status.phase {
            PlacementPhase::Succeeded if self.job => {
                self.succeeded += 1;
                self.nodes.insert(p.spec.node.clone());
                return;
            }
            PlacementPhase::Failed if self.job => {
                self.failed += 1;
                self.trouble.get_or_insert_with(|| told(&status.reason));
            }
            PlacementPhase::Failed | PlacementPhase::Backoff | PlacementPhase::Succeeded => {
                let what = if status.reason.is_empty() {
                    "it ended"
                } else {
                    &status.reason
                };
                self.trouble.get_or_insert_with(|| told(what));
            }
            PlacementPhase::Unknown => {
                self.unreachable.get_or_insert_with(|| p.spec.node.clone());
            }
            PlacementPhase::Running => self.running += 1,
            PlacementPhase::Pending | PlacementPhase::Starting | PlacementPhase::Stopping => {
                let what = if status.reason.is_empty() {
                    "starting"
                } else {
                    &status.reason
                };
                self.starting.get_or_insert_with(|| told(what));
            }
        }
        if status.phase == PlacementPhase::Failed && self.job {
            return;
        }
        self.placed += 1;
        self.ready += i32::from(status.ready);
        self.cost += p.spec.hourly_cost;
        self.nodes.insert(p.spec.node.clone());
        if let Some(p99) = p.spec.p99_latency_ms {
            self.p99 = Some(round(self.p99.map_or(p99, |held| held.max(p99))));
        }
    }

    fn phase(&self) -> WorkloadPhase {
        if self.job {
            return match () {
                () if self.failed > 0 => WorkloadPhase::Failed,
                () if self.succeeded >= self.desired => WorkloadPhase::Succeeded,
                () if self.running > 0 => WorkloadPhase::Running,
                () => WorkloadPhase::Pending,
            };
        }
        match () {
            () if self.ready >= self.desired => WorkloadPhase::Running,
            () if self.ready > 0 => WorkloadPhase::Degraded,
            () => WorkloadPhase::Pending,
        }
    }

    fn readiness(&self, workload: &WorkloadEntry) -> Verdict {
        let Self { ready, desired, .. } = self;
        if workload.deleting() {
            return Verdict(false, words::REASON_DELETING, String::new());
        }
        if self.job && self.succeeded >= self.desired {
            return Verdict(false, words::REASON_COMPLETED, String::new());
        }
        if self.desired == 0 {
            return Verdict(false, words::REASON_SCALED_TO_ZERO, String::new());
        }
        if ready + self.succeeded >= *desired {
            return Verdict(true, words::REASON_ALL_READY, String::new());
        }
        if let Some(text) = &self.trouble {
            return Verdict(false, words::REASON_REPLICA_FAILING, text.clone());
        }
        if let Some(node) = &self.unreachable {
            let text = format!("node {node} is out of reach");
            return Verdict(false, words::REASON_NODE_UNREACHABLE, text);
        }
        let text = self.starting.clone().unwrap_or_default();
        Verdict(false, words::REASON_STARTING, text)
    }

    fn completion(&self) -> Verdict {
        if self.failed > 0 {
            let text = self.trouble.clone().unwrap_or_default();
            return Verdict(false, words::REASON_REPLICA_FAILED, text);
        }
        if self.succeeded >= self.desired {
            return Verdict(true, words::REASON_COMPLETED, String::new());
        }
        Verdict(false, words::REASON_RUNNING, String::new())
    }
}

fn shown(nodes: &BTreeSet<String>) -> String {
    let names: Vec<&str> = nodes.iter().take(NODES_SHOWN).map(String::as_str).collect();
    let more = nodes.len().saturating_sub(NODES_SHOWN);
    if more == 0 {
        names.join(",")
    } else {
        format!("{},+{more}", names.join(","))
    }
}

/// Six digits are plenty, and keep noise in the last bits from becoming a write.
pub(super) fn round(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}
