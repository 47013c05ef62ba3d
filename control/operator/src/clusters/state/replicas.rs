//! Replicas of a workload cluster: what is ordered, the Pods there are, and what has to be made and
//! deleted so that these are the same.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyperion_api::conditions;
use hyperion_api::workload::HyperionWorkload;
use hyperion_gateway::GatewayEvent;
use hyperion_proto::agent_v1::ReplicaPhase;
use hyperion_proto::domain::{ReplicaKey, Report};
use k8s_openapi::api::core::v1::Pod;

use super::super::node::node_id;
use super::super::pod::{self, Ours};
use super::{At, Effect, Event, Order, State, place, warning};

/// First wait before a Pod that could not be made or deleted is tried again.
const BACKOFF: Duration = Duration::from_millis(200);
/// Longest wait.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Attempts that fail before a replica is said to wait, where the API server may only be busy.
const BUSY: u32 = 4;

/// Why a Pod could not be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CreateError {
    /// Somebody else's Pod has the name.
    Taken(String),
    /// The API server refuses it.
    Refused {
        /// CamelCase.
        reason: String,
        /// The API server's word.
        message: String,
    },
    /// No answer, or a busy one.
    Busy(String),
}

/// A replica on a node.
#[derive(Debug, Default)]
pub(super) struct Slot {
    desired: Option<Desired>,
    /// Highest generation that was told to stop.
    removed: u64,
    /// Most time that it has to stop.
    within: Option<Duration>,
    /// Its Pods, by name: several where one takes another's place.
    pods: BTreeMap<String, Held>,
    creating: Option<Creating>,
    failures: u32,
    retry_at: Option<Instant>,
    /// Its end is known: it is not made again.
    done: bool,
}

#[derive(Debug)]
struct Desired {
    generation: u64,
    workload: Arc<HyperionWorkload>,
}

#[derive(Debug)]
struct Held {
    pod: Ours,
    /// We asked for its deletion.
    asked: bool,
    /// It is not what was made.
    changed: bool,
    /// We asked for it to be bound.
    binding: bool,
}

#[derive(Debug)]
struct Creating {
    ticket: u64,
    generation: u64,
    answered: bool,
}

impl Slot {
    /// Pods.
    pub(super) fn pods(&self) -> usize {
        self.pods.len()
    }

    /// What was asked of an API server that is out of reach is not known to have happened.
    pub(super) fn forget_writes(&mut self) {
        self.creating = None;
        (self.failures, self.retry_at) = (0, None);
        for held in self.pods.values_mut() {
            (held.asked, held.binding) = (false, false);
        }
    }

    fn wait(&mut self, now: Instant) -> Instant {
        self.failures = self.failures.saturating_add(1);
        let wait = BACKOFF * 2_u32.pow(self.failures.min(9) - 1);
        let at = now + wait.min(BACKOFF_MAX);
        self.retry_at = Some(at);
        at
    }
}

impl State {
    /// Takes an order.
    pub fn order(&mut self, order: Order, now: Instant) {
        match order {
            Order::Start {
                node,
                key,
                generation,
                workload,
                ended,
            } => {
                if self.left {
                    return;
                }
                let at = (node, key);
                let slot = self.slots.entry(at.clone()).or_default();
                let held = slot.desired.as_ref().map_or(0, |d| d.generation);
                if generation < held || generation <= slot.removed {
                    return;
                }
                if generation > held {
                    (slot.failures, slot.retry_at) = (0, None);
                    slot.done = ended;
                }
                slot.desired = Some(Desired {
                    generation,
                    workload,
                });
                self.reconcile(&at, now);
            }
            Order::Notices { node, notices } => self.told(node, notices, now),
            Order::Stop {
                node,
                key,
                generation,
                within,
            } => {
                let at = (node, key);
                let slot = self.slots.entry(at.clone()).or_default();
                slot.within = within;
                slot.removed = slot.removed.max(generation);
                if slot
                    .desired
                    .as_ref()
                    .is_some_and(|d| d.generation <= generation)
                {
                    slot.desired = None;
                }
                self.reconcile(&at, now);
            }
            Order::HoldBack(nodes) => {
                self.held_back = nodes;
                self.reconcile_all(now);
            }
            Order::Complete => {
                self.complete = true;
                self.reconcile_all(now);
            }
        }
    }

    /// All Pods of ours, after a watch began anew.
    pub fn reset_ours(&mut self, pods: &[Pod], now: Instant) {
        let mut gone: Vec<(String, String)> = self.by_pod.keys().cloned().collect();
        gone.sort();
        let listed: std::collections::HashSet<_> = pods.iter().map(place).collect();
        for slot in self.slots.values_mut() {
            // The list is newer than the answer.
            slot.creating.take_if(|c| c.answered);
        }
        for pod in pods {
            self.apply_ours(pod, now);
        }
        for at in gone.into_iter().filter(|at| !listed.contains(at)) {
            self.delete_ours(&at, now);
        }
    }

    /// A Pod with our label was made or changed.
    pub fn apply_ours(&mut self, object: &Pod, now: Instant) {
        let pod_at = place(object);
        let Some(pod) = pod::ours(object, &self.of.uid) else {
            // Its marks were changed: it is somebody else's now.
            self.delete_ours(&pod_at, now);
            self.apply_other(object);
            return;
        };
        self.delete_other(&pod_at);
        let at = (node_id(&self.of.name, &pod.node), pod.key.clone());
        self.by_pod.insert(pod_at.clone(), at.clone());
        let slot = self.slots.entry(at.clone()).or_default();
        slot.creating.take_if(|c| c.generation == pod.generation);
        let before = slot.pods.remove(&pod_at.1).filter(|h| h.pod.uid == pod.uid);
        let new = before.is_none();
        let mut held = Held {
            asked: before.as_ref().is_some_and(|h| h.asked),
            changed: before.as_ref().is_some_and(|h| h.changed),
            binding: before.as_ref().is_some_and(|h| h.binding),
            pod,
        };
        let said = before.as_ref().map(|h| &h.pod.report);
        let report = (said != Some(&held.pod.report)).then(|| held.pod.report.clone());
        let mut note = None;
        if let Some(before) = &before {
            if before.pod.images != held.pod.images && !held.changed && !held.pod.ending {
                held.changed = true;
                let text = format!("Pod {} was given other images; it is made again", pod_at.1);
                note = Some((conditions::EVENT_POD_CHANGED, text));
            } else if held.pod.ending && !before.pod.ending && !held.asked {
                let text = format!("Pod {} is deleted by others", pod_at.1);
                note = Some((conditions::EVENT_POD_DELETED, text));
            }
        }
        if held.pod.report.ready {
            slot.failures = 0;
        }
        slot.pods.insert(pod_at.1, held);
        if new {
            self.pods_changed(&at.0);
        }
        if self.connected {
            if let Some((reason, text)) = note {
                self.out.push(warning(&at.0, reason, &text, Some(&at.1)));
            }
            if let Some(report) = report {
                self.report(&at.0, report);
            }
        }
        self.reconcile(&at, now);
    }

    /// A Pod of ours is gone.
    pub fn delete_ours(&mut self, pod_at: &(String, String), now: Instant) {
        let Some(at) = self.by_pod.remove(pod_at) else {
            self.delete_other(pod_at);
            return;
        };
        let cordoned = self.is_cordoned(&at.0);
        let connected = self.connected;
        let Some(slot) = self.slots.get_mut(&at) else {
            return;
        };
        let Some(held) = slot.pods.remove(&pod_at.1) else {
            return;
        };
        let generation = held.pod.generation;
        let wanted = slot
            .desired
            .as_ref()
            .is_some_and(|d| d.generation == generation);
        let phase = held.pod.report.phase;
        let ended = matches!(phase, ReplicaPhase::Succeeded | ReplicaPhase::Failed);
        let mut told = None;
        if slot.desired.is_none() {
            slot.removed = slot.removed.max(generation);
        } else if wanted && !held.asked {
            if ended {
                slot.done = true;
            } else if cordoned {
                // As `kubectl drain` does: it would come back where nothing is to run.
                slot.done = true;
                told = Some((
                    ReplicaPhase::Failed,
                    "Evicted",
                    "its Pod was deleted, and its node is cordoned in its cluster",
                ));
            } else {
                let text = "its Pod was deleted by others, and is made again";
                told = Some((ReplicaPhase::Starting, conditions::EVENT_POD_DELETED, text));
                // One that is deleted each time it is made must not cost the API server its peace.
                let again = slot.failures > 0;
                let due = slot.wait(now);
                if again {
                    self.timers.insert((due, at.clone()));
                } else {
                    slot.retry_at = None;
                }
            }
        }
        self.pods_changed(&at.0);
        if connected && let Some((phase, reason, message)) = told {
            if phase == ReplicaPhase::Starting {
                let text = format!("Pod {} was deleted by others; it is made again", pod_at.1);
                self.out.push(warning(&at.0, reason, &text, Some(&at.1)));
            }
            self.say(&at, generation, phase, reason, message);
        }
        self.reconcile(&at, now);
    }

    /// The answer to [`Effect::Create`].
    pub fn created(&mut self, ticket: u64, at: &At, result: Result<(), CreateError>, now: Instant) {
        let Some(slot) = self.slots.get_mut(at) else {
            return;
        };
        // The watch may have shown the Pod before the answer came.
        let Some(creating) = slot.creating.as_mut().filter(|c| c.ticket == ticket) else {
            return;
        };
        let generation = creating.generation;
        let told = match result {
            Ok(()) => {
                creating.answered = true;
                return;
            }
            Err(CreateError::Taken(message)) => {
                slot.done = true;
                Some((ReplicaPhase::Failed, "NameTaken".to_owned(), message))
            }
            Err(CreateError::Refused { reason, message }) => {
                Some((ReplicaPhase::Backoff, reason, message))
            }
            Err(CreateError::Busy(message)) => {
                let waits = slot.failures + 1 >= BUSY;
                waits.then(|| (ReplicaPhase::Backoff, "ClusterBusy".to_owned(), message))
            }
        };
        slot.creating = None;
        if !slot.done {
            let due = slot.wait(now);
            self.timers.insert((due, at.clone()));
        }
        if let Some((phase, reason, message)) = told {
            self.say(at, generation, phase, &reason, &message);
        }
        self.reconcile(at, now);
    }

    /// A Pod could not be deleted, or bound to its node.
    pub fn not_done(&mut self, at: &At, name: &str, now: Instant) {
        let Some(slot) = self.slots.get_mut(at) else {
            return;
        };
        let Some(held) = slot.pods.get_mut(name) else {
            return;
        };
        (held.asked, held.binding) = (false, false);
        let due = slot.wait(now);
        self.timers.insert((due, at.clone()));
    }

    /// When [`State::due`] is to be called.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Tries again what waits until `now`.
    pub fn due(&mut self, now: Instant) {
        while let Some((due, at)) = self.timers.pop_first() {
            if due > now {
                self.timers.insert((due, at));
                return;
            }
            if let Some(slot) = self.slots.get_mut(&at) {
                slot.retry_at.take_if(|until| *until <= now);
            }
            self.reconcile(&at, now);
        }
    }

    /// Nothing is wanted any more.
    pub(super) fn drop_slots(&mut self, now: Instant) {
        for slot in self.slots.values_mut() {
            (slot.desired, slot.removed) = (None, u64::MAX);
        }
        self.reconcile_all(now);
    }

    /// Pods of ours on a node.
    pub(super) fn pods_on(&self, node: &str) -> u64 {
        self.on(node).map(|(_, slot)| slot.pods.len() as u64).sum()
    }

    /// Says what a node's Pods are, after it came into reach.
    pub(super) fn report_all(&mut self, node: &str, now: Instant) {
        let slots: Vec<(At, Vec<Report>)> = self
            .on(node)
            .map(|(at, slot)| {
                let reports = slot.pods.values().map(|h| h.pod.report.clone());
                (at.clone(), reports.collect())
            })
            .collect();
        for (at, reports) in slots {
            for report in reports {
                self.report(&at.0, report);
            }
            self.reconcile(&at, now);
        }
    }

    /// Makes what is wanted and deletes what is not, as far as that can be done now.
    pub(super) fn reconcile(&mut self, at: &At, now: Instant) {
        if !self.connected {
            return;
        }
        let up = self.is_up(&at.0);
        let machine = self.entries.get(&at.0).map(|e| e.name.clone());
        // Nobody is there to confirm that anything has ended.
        let dead = machine.is_none() && !self.unused.contains(&at.0) && !self.left;
        let listed = self.complete && !self.held_back.contains(&at.0);
        let Some(slot) = self.slots.get_mut(at) else {
            return;
        };
        let wanted = slot.desired.as_ref().map(|d| d.generation);
        for (name, held) in &mut slot.pods {
            let generation = held.pod.generation;
            let unwanted = dead
                || held.changed
                || match wanted {
                    Some(wanted) => generation < wanted,
                    None => generation <= slot.removed || listed,
                };
            if unwanted && !held.asked && slot.retry_at.is_none_or(|until| until <= now) {
                held.asked = true;
                self.out.push(Effect::Delete {
                    at: at.clone(),
                    name: name.clone(),
                    uid: held.pod.uid.clone(),
                    grace: match slot.within {
                        _ if dead => Some(0),
                        Some(within) => Some(held.pod.grace_within(within)),
                        None => None,
                    },
                });
            }
            // Without an order it may run elsewhere by now.
            let ordered = wanted == Some(generation);
            let ready =
                ordered && !unwanted && up && slot.retry_at.is_none_or(|until| until <= now);
            if let Some(machine) = &machine
                && ready
                && held.pod.to_bind
                && !held.binding
            {
                held.binding = true;
                self.out.push(Effect::Bind {
                    at: at.clone(),
                    name: name.clone(),
                    uid: held.pod.uid.clone(),
                    machine: machine.clone(),
                });
            }
        }
        if !slot.pods.is_empty() || slot.creating.is_some() {
            return;
        }
        match (&slot.desired, machine) {
            (None, _) => {
                let generation = slot.removed;
                self.slots.remove(at);
                self.say(at, generation, ReplicaPhase::Stopped, "", "");
            }
            (Some(desired), Some(machine))
                if up && !slot.done && slot.retry_at.is_none_or(|until| until <= now) =>
            {
                self.ticket += 1;
                let cluster = (self.of.name.as_str(), self.of.uid.as_str());
                let pod = pod::pod(
                    &desired.workload,
                    &at.1,
                    desired.generation,
                    &machine,
                    cluster,
                );
                slot.creating = Some(Creating {
                    ticket: self.ticket,
                    generation: desired.generation,
                    answered: false,
                });
                self.out.push(Effect::Create {
                    ticket: self.ticket,
                    at: at.clone(),
                    pod: Box::new(pod),
                });
            }
            _ => {}
        }
    }

    pub(super) fn reconcile_node(&mut self, node: &str, now: Instant) {
        let slots: Vec<At> = self.on(node).map(|(at, _)| at.clone()).collect();
        for at in slots {
            self.reconcile(&at, now);
        }
    }

    fn reconcile_all(&mut self, now: Instant) {
        for at in self.slots.keys().cloned().collect::<Vec<_>>() {
            self.reconcile(&at, now);
        }
    }

    fn on<'a>(&'a self, node: &'a str) -> impl Iterator<Item = (&'a At, &'a Slot)> {
        let first = ReplicaKey {
            namespace: String::new(),
            workload: String::new(),
            uid: String::new(),
            index: 0,
        };
        let from = self.slots.range((node.to_owned(), first)..);
        from.take_while(move |((id, _), _)| id == node)
    }

    /// Where the node may be full now, or not any more.
    fn pods_changed(&mut self, node: &str) {
        self.dirty.insert(node.to_owned());
    }

    fn say(&mut self, at: &At, generation: u64, phase: ReplicaPhase, reason: &str, message: &str) {
        let report = Report {
            key: at.1.clone(),
            generation,
            phase,
            ready: false,
            reason: reason.to_owned(),
            message: message.to_owned(),
            restarts: 0,
            pod_ip: String::new(),
        };
        self.report(&at.0, report);
    }

    fn report(&mut self, node: &str, report: Report) {
        self.out
            .push(Effect::Tell(Event::Said(Box::new(GatewayEvent::Report {
                node: node.to_owned(),
                report,
            }))));
    }
}
