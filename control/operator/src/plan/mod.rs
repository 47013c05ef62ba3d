//! One pass over one workload: what must change, as data.
//!
//! [`pass`] decides and notes its decisions in the index, so that the next decision counts on
//! them; it does no I/O. What has to happen comes back as [`Action`]s, in order.
//!
//! - here: the course of a pass, and how replicas end;
//! - [`place`]: where a replica goes;
//! - [`notice`]: what is done where a node is about to be taken back;
//! - [`offer`]: machines that are launched for replicas that fit nowhere;
//! - [`preempt`]: room that replicas of lower priority make;
//! - [`quota`]: what namespaces may have, and replicas that are placed together;
//! - [`moves`]: why a replica leaves its node;
//! - [`better`]: whether one that runs well would do better elsewhere;
//! - [`site`]: what sites decided while they were cut off;
//! - [`cost`]: what placements cost;
//! - [`outcome`]: what became of placements;
//! - [`status`] and [`why`]: what people read.

mod better;
mod cost;
mod moves;
mod notice;
mod offer;
mod outcome;
mod place;
mod preempt;
mod quota;
mod site;
mod status;
#[cfg(test)]
mod tests;
mod why;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyperion_api::placement::{HyperionPlacement, HyperionPlacementStatus, PlacementPhase};
use hyperion_api::quota::HyperionQuotaStatus;
use hyperion_api::workload::{HyperionWorkload, HyperionWorkloadStatus};
use hyperion_api::{FINALIZER, Invalid, agent_pod, conditions};
use hyperion_placement::Explanation;
use hyperion_policy::Experience;
use hyperion_proto::agent_v1::{Intent, PodSpec};
use hyperion_proto::domain::ReplicaKey;
use jiff::Timestamp;

use crate::decider::Decider;
use crate::index::{Index, Name, PlacementEntry, Template, WorkloadEntry};

pub use better::Look;
pub use moves::{FIRST_CONTACT, Why};
pub use outcome::Pending;
pub use site::told_at;

/// Something to do. Actions on one object are to be done in order; of two writes of the same part
/// of an object the later one counts.
#[derive(Debug, Clone)]
pub enum Action {
    /// Store a decision.
    Store(Box<HyperionPlacement>),
    /// Delete a placement's object: its replica has stopped.
    Delete {
        /// Workload.
        workload: Name,
        /// Replica.
        replica: u32,
    },
    /// Write a placement's status.
    PlacementStatus {
        /// Workload.
        workload: Name,
        /// Replica.
        replica: u32,
        /// Status.
        status: Box<HyperionPlacementStatus>,
    },
    /// Write a workload's status.
    WorkloadStatus {
        /// Workload.
        workload: Name,
        /// Status.
        status: Box<HyperionWorkloadStatus>,
    },
    /// Write a quota's status.
    QuotaStatus {
        /// Quota.
        quota: Name,
        /// Status.
        status: HyperionQuotaStatus,
    },
    /// Put the finalizer on a workload or take it off.
    Finalizer {
        /// Workload.
        workload: Name,
        /// Its uid: a namesake made since then is not touched.
        uid: String,
        /// On or off.
        present: bool,
    },
    /// Tell a node to run a replica.
    Start {
        /// Node.
        node: String,
        /// Replica.
        key: ReplicaKey,
        /// Generation.
        generation: i64,
        /// What to run.
        pod: Box<PodSpec>,
        /// What its site has to know to place it again.
        intent: Arc<Intent>,
    },
    /// Make a workload that was applied at a site.
    Make(Box<HyperionWorkload>),
    /// Tell a node not to run a replica with this generation or a lower one.
    Stop {
        /// Node.
        node: String,
        /// Replica.
        key: ReplicaKey,
        /// Generation.
        generation: i64,
    },
    /// Publish an event on the workload.
    Event {
        /// Workload.
        workload: Name,
        /// Its uid.
        uid: String,
        /// Needs a person's attention.
        warning: bool,
        /// CamelCase.
        reason: &'static str,
        /// For people.
        note: String,
        /// When it happened, where that was not now.
        at: Option<Timestamp>,
    },
    /// Keep what became of a placement, to learn from.
    Experience(Box<Experience>),
}

/// What a pass gives.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What to do.
    pub actions: Vec<Action>,
    /// When to pass again although nothing happened.
    pub wake: Option<Instant>,
    /// More decisions are left; they were put off so that others get a turn.
    pub more: bool,
    /// Decisions made.
    pub decisions: u32,
}

/// Decisions of one pass.
const DECISIONS: u32 = 16;
/// Time over the pod's grace for a node to say that a replica has stopped.
const STOP_MARGIN: Duration = Duration::from_secs(15);

/// Looks at one workload. `now` only grows; `clock` is for timestamps that people read.
pub fn pass(
    index: &mut Index,
    name: &Name,
    now: Instant,
    clock: Timestamp,
    decider: &mut Decider,
) -> Outcome {
    let kept = index.kept_for_others(name, now).into_iter().collect();
    let mut pass = Pass {
        index,
        name: name.clone(),
        now,
        clock,
        decider,
        out: Outcome::default(),
        unplaced: Vec::new(),
        open: BTreeMap::new(),
        hopeless: None,
        kept,
        quota: None,
        no_class: None,
        room: None,
        spread: None,
        no_offer: String::new(),
    };
    pass.run();
    pass.out
}

struct Pass<'a> {
    index: &'a mut Index,
    name: Name,
    now: Instant,
    clock: Timestamp,
    decider: &'a mut Decider,
    out: Outcome,
    /// Replicas that need a place and have none: why, and what stands in the way.
    unplaced: Vec<(u32, Why, Explanation)>,
    /// Replicas that a site may be about to place, and what is waited for: nothing is decided about
    /// them before that is known.
    open: BTreeMap<u32, String>,
    /// A decision of this pass that found nothing, for a replica with nothing of its own to avoid:
    /// the other replicas ask for the same.
    hopeless: Option<Explanation>,
    /// Nodes where room is made for others of higher priority, and for whom.
    kept: BTreeMap<String, String>,
    /// The quota that bounded a decision of this pass, and what it leaves.
    quota: Option<String>,
    /// Why its PriorityClass does not say what its priority is.
    no_class: Option<String>,
    /// Who makes room for a replica that has no place.
    room: Option<String>,
    /// Why no machine is launched for replicas that have no place; empty where none could be.
    no_offer: String,
    /// How many replicas of the workload each node has; none until asked for.
    spread: Option<BTreeMap<String, usize>>,
}

impl Pass<'_> {
    fn run(&mut self) {
        let workload = self.index.workloads.get(&self.name).cloned();
        match workload {
            None if self.index.broken.contains_key(&self.name) => {
                self.claims();
                self.broken_unknown();
            }
            None => {
                self.claims();
                self.retire_all();
            }
            Some(workload) if workload.deleting() => self.delete(&workload),
            Some(workload) => self.keep(&workload),
        }
        self.let_go();
        self.settle_claims();
        self.settle_launches();
    }

    /// A workload that stays.
    fn keep(&mut self, workload: &WorkloadEntry) {
        if !(workload.marked || has_finalizer(workload)) {
            self.finalizer(workload, true);
            if let Some(entry) = self.index.workloads.get_mut(&self.name) {
                entry.marked = true;
            }
        }
        self.retire_where(|key, _| key.uid != workload.uid());
        // Decisions are made on what nodes said last.
        self.placement_statuses();
        self.late_ends();
        self.claims();
        let broken = self.index.broken.get(&self.name).cloned();
        let template = match (&workload.template, broken) {
            (_, Some(broken)) => Err(Invalid::new("object", broken.error)),
            (Ok(template), None) => Ok(template.clone()),
            (Err(e), None) => Err(e.clone()),
        };
        match &template {
            Ok(template) => {
                let replicas = workload.replicas();
                self.no_class = self.index.without_class(&self.name);
                self.index.forget_ways(&self.name, replicas);
                self.retire_where(|key, _| key.index >= replicas);
                self.replicas(workload, template);
                self.launches(workload, template);
                self.preempt(workload, template);
                if self.unplaced.is_empty() && !self.out.more {
                    self.reconsider(workload, template);
                }
                self.start(workload, template);
            }
            // What runs goes on; the status says what is wrong.
            Err(e) => self.say(workload, conditions::EVENT_INVALID, &e.to_string()),
        }
        self.index.set_unplaced(&self.name, self.unplaced.len());
        self.placement_statuses();
        self.workload_status(workload, template.as_ref().map(Arc::as_ref));
    }

    fn delete(&mut self, workload: &WorkloadEntry) {
        self.claims();
        self.retire_all();
        if !self.index.placements.contains_key(&self.name) {
            if has_finalizer(workload) {
                self.finalizer(workload, false);
            }
            return;
        }
        self.placement_statuses();
        self.workload_status(workload, workload.template.as_ref().map(Arc::as_ref));
    }

    /// An object that could never be read: say so on the object itself. It can be deleted like any
    /// other.
    fn broken_unknown(&mut self) {
        let Some(broken) = self.index.broken.get(&self.name).cloned() else {
            return;
        };
        if broken.metadata.deletion_timestamp.is_some() {
            self.retire_all();
            self.placement_statuses();
            let mut finalizers = broken.metadata.finalizers.iter().flatten();
            let marked = finalizers.any(|f| f == FINALIZER);
            if marked && !self.index.placements.contains_key(&self.name) {
                self.out.actions.push(Action::Finalizer {
                    workload: self.name.clone(),
                    uid: broken.metadata.uid.unwrap_or_default(),
                    present: false,
                });
            }
            return;
        }
        let status = status::refused(&broken.error, self.clock);
        self.out.actions.push(Action::WorkloadStatus {
            workload: self.name.clone(),
            status: Box::new(status),
        });
    }

    fn finalizer(&mut self, workload: &WorkloadEntry, present: bool) {
        self.out.actions.push(Action::Finalizer {
            workload: self.name.clone(),
            uid: workload.object_uid().to_owned(),
            present,
        });
    }

    /// A warning that is published once until it changes.
    fn say(&mut self, workload: &WorkloadEntry, reason: &'static str, note: &str) {
        if workload.said.as_deref() == Some(note) {
            return;
        }
        if let Some(entry) = self.index.workloads.get_mut(&self.name) {
            entry.said = Some(note.to_owned());
        }
        self.event(workload, true, reason, note.to_owned());
    }

    fn event(
        &mut self,
        workload: &WorkloadEntry,
        warning: bool,
        reason: &'static str,
        note: String,
    ) {
        self.out.actions.push(Action::Event {
            workload: self.name.clone(),
            uid: workload.object_uid().to_owned(),
            warning,
            reason,
            note,
            at: None,
        });
    }

    fn wake_at(&mut self, at: Instant) {
        self.out.wake = Some(self.out.wake.map_or(at, |held| held.min(at)));
    }

    fn known(&self) -> Vec<u32> {
        let placements = self.index.placements.get(&self.name);
        placements.map_or_else(Vec::new, |p| p.keys().copied().collect())
    }

    fn retire_all(&mut self) {
        self.retire_where(|_, _| true);
    }

    fn retire_where(&mut self, ends: impl Fn(&ReplicaKey, i64) -> bool) {
        for replica in self.known() {
            let entry = self.index.placement(&self.name, replica);
            if entry.is_some_and(|e| ends(&e.key, e.spec.generation)) {
                self.retire(replica);
            }
        }
    }

    /// True where a node is not in reach now.
    fn away(&self, node: &str) -> bool {
        self.index.nodes.get(node).is_none_or(|n| !n.connected)
    }

    /// Ends a replica: its node is told, and when it has stopped the placement is deleted.
    fn retire(&mut self, replica: u32) {
        if self.may_go_on_unseen(replica) {
            return;
        }
        let entry = self.index.placement(&self.name, replica);
        if entry.is_some_and(|e| !e.deleting) && self.stopped(replica, false) {
            // A service that is not wanted any more did what it was asked for.
            let workload = self.index.workloads.get(&self.name);
            let completed = !workload.is_some_and(WorkloadEntry::is_job);
            self.outcome(replica, completed, 0);
            self.spend(replica);
            let Some(entry) = self.index.entry_mut(&self.name, replica) else {
                return;
            };
            entry.deleting = true;
            self.spread = None;
            let (node, key, generation) = (
                entry.spec.node.clone(),
                entry.key.clone(),
                entry.spec.generation,
            );
            self.index.room_changed(&node);
            self.index.remember_generation(&key, generation);
            self.index.failures.remove(&(self.name.clone(), replica));
            self.out.actions.push(Action::Delete {
                workload: self.name.clone(),
                replica,
            });
        }
    }

    fn grace(&self) -> Duration {
        let workload = self.index.workloads.get(&self.name);
        workload.and_then(|w| w.template.as_ref().ok()).map_or(
            Duration::from_secs(u64::from(agent_pod::DEFAULT_GRACE)),
            |t| t.grace,
        )
    }

    /// Tells the node to stop a replica, once, and again when it returns from being out of reach; true when it has stopped or nobody can tell.
    fn stopped(&mut self, replica: u32, moving: bool) -> bool {
        let (now, name) = (self.now, self.name.clone());
        let patience = self.grace() + STOP_MARGIN;
        let Some(entry) = self.index.entry_mut(&name, replica) else {
            return true;
        };
        if std::mem::take(&mut entry.returned) {
            entry.stopping = None;
        }
        let first = entry.stopping.is_none();
        let since = *entry.stopping.get_or_insert(now);
        entry.moving = moving;
        let (node, key, generation) = (
            entry.spec.node.clone(),
            entry.key.clone(),
            entry.spec.generation,
        );
        if first {
            self.out.actions.push(Action::Stop {
                node: node.clone(),
                key: key.clone(),
                generation,
            });
        }
        // A node that is out of reach is told when it returns: its list lacks the replica.
        if !self.index.held(&node, &key, generation) {
            return true;
        }
        let until = since + patience;
        if now < until {
            self.wake_at(until);
            return false;
        }
        if let Some(workload) = self.index.workloads.get(&name).cloned() {
            let note = format!("node {node} did not say that replica {replica} has stopped");
            self.say(&workload, conditions::EVENT_STOP_UNCONFIRMED, &note);
        }
        true
    }

    /// Tells nodes what is stored and theirs.
    fn start(&mut self, workload: &WorkloadEntry, template: &Template) {
        for replica in self.known() {
            let Some(entry) = self.index.placement(&self.name, replica) else {
                continue;
            };
            let current = entry.spec.template_hash == template.hash;
            let open = entry.stored >= entry.spec.generation
                && entry.stopping.is_none()
                && !entry.deleting
                && entry.status.reason != conditions::REASON_ENDED_ELSEWHERE
                && (current || entry.site_pod.is_some());
            let new = entry.told < entry.spec.generation;
            // A policy that has changed reaches the node without a new generation: nothing restarts.
            let changed = || {
                let told = entry.told_intent.as_ref();
                told.is_none_or(|t| !Arc::ptr_eq(t, &template.intent) && *t != template.intent)
            };
            if !open || !(new || current && changed()) {
                continue;
            }
            if entry.told == 0
                && workload.runs_alone()
                && self.may_be_stopped(workload, template, replica)
            {
                continue;
            }
            let Some(entry) = self.index.placement(&self.name, replica) else {
                continue;
            };
            let (node, key, generation) = (
                entry.spec.node.clone(),
                entry.key.clone(),
                entry.spec.generation,
            );
            let site_pod = entry.site_pod.clone().filter(|_| !current);
            let pod = match site_pod {
                Some(pod) => pod.as_ref().clone(),
                // Proved when the template was read.
                None => match agent_pod::pod_spec(&workload.object.spec, &entry.spec.gpus) {
                    Ok(pod) => pod,
                    Err(_) => continue,
                },
            };
            if let Some(entry) = self.index.entry_mut(&self.name, replica) {
                entry.told = generation;
                entry.told_intent = Some(template.intent.clone());
            }
            self.index.told(&node, &key, generation);
            self.out.actions.push(Action::Start {
                node,
                key,
                generation,
                pod: Box::new(pod),
                intent: template.intent.clone(),
            });
        }
    }

    /// True where a control plane before this one may have had it stopped to be placed elsewhere, and
    /// ended in between: its node is not told to start it again before other nodes had time to be
    /// heard. What still runs goes on meanwhile.
    fn may_be_stopped(
        &mut self,
        workload: &WorkloadEntry,
        template: &Template,
        replica: u32,
    ) -> bool {
        let Some(until) = self.index.settles_at(self.now) else {
            return false;
        };
        let Some(entry) = self.index.placement(&self.name, replica).cloned() else {
            return false;
        };
        let leaves = matches!(
            self.why_move(workload, template, &entry),
            Some(Why::Draining(_) | Why::Constraint(..) | Why::Interrupted(..))
        );
        if leaves {
            self.wake_at(until);
        }
        leaves
    }

    /// Ends old copies whose successor is ready, or whose time has come. They keep their room until
    /// they are gone.
    fn let_go(&mut self) {
        let patience = self.grace() + STOP_MARGIN;
        let replicas: BTreeSet<u32> = self
            .index
            .leaving
            .range((self.name.clone(), 0)..=(self.name.clone(), u32::MAX))
            .map(|((_, replica), _)| *replica)
            .collect();
        for replica in replicas {
            let at = (self.name.clone(), replica);
            let copies = self.index.take_leaving(&at);
            let successor = self.index.placement(&self.name, replica).cloned();
            for mut copy in copies {
                let taken_over = successor.as_ref().is_some_and(|s| {
                    s.spec.node == copy.node
                        && s.key == copy.key
                        && s.spec.generation > copy.generation
                        && s.stopping.is_none()
                });
                if taken_over {
                    self.index.room_changed(&copy.node);
                    continue;
                }
                let over = successor.as_ref().is_none_or(|s| {
                    s.status.phase == PlacementPhase::Succeeded || s.stopping.is_some()
                });
                // A copy out of reach stops nobody's way. If the successor's node is lost, too, it is
                // what serves when it is back.
                let served = over
                    || !self.away(&copy.node)
                        && successor.as_ref().is_some_and(PlacementEntry::ready);
                let due = copy.until.is_none_or(|until| until <= self.now);
                if let (None, false, false, Some(until)) = (copy.stopping, served, due, copy.until)
                {
                    self.wake_at(until);
                    self.index.leave(copy);
                    continue;
                }
                if copy.stopping.is_none() {
                    self.out.actions.push(Action::Stop {
                        node: copy.node.clone(),
                        key: copy.key.clone(),
                        generation: copy.generation,
                    });
                }
                let until = *copy.stopping.get_or_insert(self.now) + patience;
                if self.now < until && self.index.held(&copy.node, &copy.key, copy.generation) {
                    self.wake_at(until);
                    self.index.leave(copy);
                } else {
                    self.index.room_changed(&copy.node);
                }
            }
            self.end_handover(replica);
        }
    }
}

fn has_finalizer(workload: &WorkloadEntry) -> bool {
    let finalizers = workload.object.metadata.finalizers.iter().flatten();
    finalizers.into_iter().any(|f| f == FINALIZER)
}
