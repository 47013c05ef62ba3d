//! The invariants. They look at what is true (containers, devices, what was said on the wire) and
//! share nothing with the code that decides.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hyperion_api::workload::{HyperionWorkloadSpec, WorkloadType};
use hyperion_operator::index::Name;
use hyperion_proto::agent_v1::{PodSpec, RestartPolicy};
use hyperion_proto::domain::ReplicaKey;

use crate::runtime::{Cause, Happened};

/// Two copies of a replica whose nodes can hear of each other, in calm, for at most this long. A
/// handover goes on until the new copy is ready, and a returning site is compared with the control
/// plane first.
pub(crate) const OVERLAP: Duration = Duration::from_secs(30);
/// A replica that a live node could run, in calm, runs again within this: the control plane hears
/// of a loss after 10 s, knows nodes that it has never seen after 20 s, and `replaceAfter` is at
/// most 15 s.
pub(crate) const WITHIN: Duration = Duration::from_secs(45);

/// Time within which what the control plane hears has come through to what it orders.
const AWARE: Duration = Duration::from_secs(5);

/// Time within which a node hears of the death of another one, and a container ends.
const NEWS: Duration = Duration::from_secs(8);

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Virtual time.
    pub at: Duration,
    /// Which.
    pub invariant: &'static str,
    /// What was seen.
    pub what: String,
}

#[derive(Debug, Clone)]
struct Copy {
    node: usize,
    id: u64,
}

/// A container that the agent ended.
#[derive(Debug)]
struct Dropped {
    pod: PodSpec,
    at: Duration,
    /// Another device had, or has had since, a copy.
    elsewhere: bool,
    /// A person has changed the workload since.
    asked: bool,
}

/// What people want of a workload, as the checker needs it.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub exclusive: bool,
    pub job: bool,
    pub stops_alone: bool,
    pub site: Option<String>,
    /// Of one replica, thousandths of a core.
    pub cpu: u64,
}

impl Wanted {
    pub(crate) fn of(spec: &HyperionWorkloadSpec) -> Self {
        let pod = spec.template.spec.as_ref();
        let selector = pod.and_then(|p| p.node_selector.as_ref());
        let disconnect = spec.policy.disconnect.as_ref();
        Self {
            exclusive: spec.policy.exclusive,
            job: spec.type_ == WorkloadType::Job,
            stops_alone: disconnect.is_some_and(|d| d.stop_after.is_some()),
            site: selector.and_then(|s| s.get("hyperion.io/site")).cloned(),
            cpu: hyperion_api::request::request(spec).map_or(0, |r| r.resources.cpu_millis),
        }
    }
}

/// The checker.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    copies: BTreeMap<ReplicaKey, Vec<Copy>>,
    /// Since when the copies of a replica could have been one.
    overlaps: BTreeMap<ReplicaKey, Duration>,
    dropped: BTreeMap<(usize, ReplicaKey), Dropped>,
    /// When a copy last ended, and where.
    ended_at: BTreeMap<ReplicaKey, (Duration, usize)>,
    wanted: BTreeMap<Name, Wanted>,
    deleted: BTreeSet<Name>,
    /// When a person last changed a workload.
    changed: BTreeMap<Name, Duration>,
    /// Jobs' replicas that ended well, and with which pod: another pod is another job.
    done: BTreeMap<ReplicaKey, PodSpec>,
    /// And the devices that know: their runtime has what ended, until the power goes.
    ended_on: BTreeSet<(usize, ReplicaKey)>,
    /// Those that have it on disk, and know it for good.
    on_disk: BTreeSet<(usize, ReplicaKey)>,
    /// Since when the control plane knows of that.
    told_done: BTreeMap<ReplicaKey, Duration>,
    /// Jobs' replicas that failed and are not to be tried again.
    failed: BTreeSet<ReplicaKey>,
    /// Replicas that have run.
    ever: BTreeSet<(Name, u32)>,
    /// Workloads that were applied at a site, and which.
    pub local: BTreeMap<Name, usize>,
    /// Highest generation that a device's agent has obeyed.
    obeyed: BTreeMap<(usize, ReplicaKey), u64>,
    /// Highest generation that a device's agent has confirmed.
    confirmed: BTreeMap<(usize, ReplicaKey), u64>,
    /// Since when a replica that should run does not.
    absent: BTreeMap<(Name, u32), Duration>,
    /// Container starts, in all.
    pub starts: u64,
    pub violations: Vec<Violation>,
}

pub(crate) fn name_of(key: &ReplicaKey) -> Name {
    Name::new(&key.namespace, &key.workload)
}

fn is_of(key: &ReplicaKey, name: &Name, index: u32) -> bool {
    key.index == index && key.workload == name.name && key.namespace == name.namespace
}

impl Checker {
    pub(crate) fn violate(&mut self, at: Duration, invariant: &'static str, what: String) {
        self.violations.push(Violation {
            at,
            invariant,
            what,
        });
    }

    pub(crate) fn wants(&mut self, name: &Name, spec: &HyperionWorkloadSpec, now: Duration) {
        self.wanted.insert(name.clone(), Wanted::of(spec));
        self.changes(name, now);
    }

    /// A person changed or deleted a workload.
    pub(crate) fn changes(&mut self, name: &Name, now: Duration) {
        self.changed.insert(name.clone(), now);
        for ((_, key), dropped) in &mut self.dropped {
            dropped.asked |= name_of(key) == *name;
        }
    }

    /// A person deleted it.
    pub(crate) fn deletes(&mut self, name: &Name, now: Duration) {
        self.deleted.insert(name.clone());
        self.changes(name, now);
    }

    pub(crate) fn was_deleted(&self, name: &Name) -> bool {
        self.deleted.contains(name)
    }

    pub(crate) fn changed_at(&self, name: &Name) -> Duration {
        self.changed.get(name).copied().unwrap_or_default()
    }

    pub(crate) fn wanted(&self, name: &Name) -> Option<&Wanted> {
        self.wanted.get(name)
    }

    fn exclusive(&self, key: &ReplicaKey) -> bool {
        self.wanted.get(&name_of(key)).is_some_and(|w| w.exclusive)
    }

    /// Something happened to a container. `settled` says that the device has had its link for a
    /// while.
    pub(crate) fn happened(
        &mut self,
        node: usize,
        happened: &Happened,
        settled: bool,
        now: Duration,
    ) {
        match happened {
            Happened::Started { key, id, pod, .. } => {
                self.started(node, key, *id, pod, settled, now);
            }
            Happened::Ended {
                key,
                id,
                cause,
                pod,
            } => self.ended(node, key, *id, *cause, pod, now),
        }
    }

    fn started(
        &mut self,
        node: usize,
        key: &ReplicaKey,
        id: u64,
        pod: &PodSpec,
        settled: bool,
        now: Duration,
    ) {
        self.starts += 1;
        self.ever.insert((name_of(key), key.index));
        for ((other, k), dropped) in &mut self.dropped {
            dropped.elsewhere |= *other != node && k == key;
        }
        let exclusive = self.exclusive(key);
        let copies = self.copies.entry(key.clone()).or_default();
        copies.push(Copy { node, id });
        if copies.len() > 1 {
            let nodes: Vec<usize> = copies.iter().map(|c| c.node).collect();
            if exclusive {
                let what = format!("{key} runs on nodes {nodes:?}");
                self.violate(now, "exclusive_twice", what);
            }
            self.overlaps.entry(key.clone()).or_insert(now);
        }
        let at = (node, key.clone());
        if let Some(dropped) = self.dropped.remove(&at)
            && dropped.pod == *pod
            && !dropped.elsewhere
            && !dropped.asked
            && !self
                .wanted
                .get(&name_of(key))
                .is_some_and(|w| w.stops_alone || w.exclusive)
        {
            let what = format!(
                "{key} was stopped on node {node} at {:.3} s and started there again, and ran \
                 nowhere else",
                dropped.at.as_secs_f64()
            );
            self.violate(now, "needless_restart", what);
        }
        let job = self.wanted.get(&name_of(key)).is_some_and(|w| w.job);
        let unchanged = self.changed_at(&name_of(key)) + OVERLAP < now;
        if self.done.get(key) == Some(pod) && job && unchanged {
            // Its own device knows; others may go by what they were told before they were away.
            let told = self.told_done.get(key).is_some_and(|t| *t + AWARE < now);
            let own = self.ended_on.contains(&(node, key.clone()));
            if own || (told && settled) {
                let what = format!("{key} had ended well and was started again on node {node}");
                self.violate(now, "job_again", what);
            }
        }
    }

    /// A device has on disk that a job's replica has ended well there.
    pub(crate) fn end_kept(&mut self, node: usize, key: &ReplicaKey) {
        if self.done.contains_key(key) {
            self.on_disk.insert((node, key.clone()));
        }
    }

    /// A device has lost its power.
    pub(crate) fn power_lost(&mut self, node: usize) {
        let on_disk = &self.on_disk;
        self.ended_on
            .retain(|at| at.0 != node || on_disk.contains(at));
    }

    /// The control plane hears that a job's replica has ended well.
    pub(crate) fn told_done(&mut self, key: &ReplicaKey, now: Duration) {
        if self.done.contains_key(key) {
            self.told_done.entry(key.clone()).or_insert(now);
        }
    }

    fn ended(
        &mut self,
        node: usize,
        key: &ReplicaKey,
        id: u64,
        cause: Cause,
        pod: &PodSpec,
        now: Duration,
    ) {
        let mut elsewhere = false;
        if let Some(copies) = self.copies.get_mut(key) {
            copies.retain(|c| c.id != id);
            elsewhere = !copies.is_empty();
            if copies.len() < 2 {
                self.overlaps.remove(key);
            }
            if copies.is_empty() {
                self.copies.remove(key);
            }
        }
        let before = self.ended_at.insert(key.clone(), (now, node));
        // One that ended a moment ago was there when this end was decided.
        elsewhere |= before.is_some_and(|(at, other)| other != node && at + NEWS > now);
        match cause {
            Cause::Unwanted => {
                let dropped = Dropped {
                    pod: pod.clone(),
                    at: now,
                    elsewhere,
                    // At a site, also where the control plane wants it later all the same.
                    asked: self.was_deleted(&name_of(key)),
                };
                self.dropped.insert((node, key.clone()), dropped);
            }
            Cause::Exit(0) => {
                self.done.insert(key.clone(), pod.clone());
                self.ended_on.insert((node, key.clone()));
            }
            Cause::Exit(_) if pod.restart_policy() == RestartPolicy::Never => {
                self.failed.insert(key.clone());
            }
            _ => {}
        }
    }

    /// True where the replica has run at some time.
    pub(crate) fn has_run(&self, name: &Name, index: u32) -> bool {
        self.ever.contains(&(name.clone(), index))
    }

    /// True where a job's replica has ended for good somewhere.
    pub(crate) fn is_done(&self, name: &Name, index: u32) -> bool {
        let ended = self.done.keys().chain(&self.failed);
        ended.into_iter().any(|key| is_of(key, name, index))
    }

    /// What an agent wants to run now: never with a lower generation than before.
    pub(crate) fn desired<'a>(
        &mut self,
        node: usize,
        desired: impl Iterator<Item = (&'a ReplicaKey, u64)>,
        now: Duration,
    ) {
        for (key, generation) in desired {
            let held = self.obeyed.entry((node, key.clone())).or_default();
            let before = *held;
            *held = before.max(generation);
            if generation < before {
                let what = format!(
                    "node {node} obeys generation {generation} of {key} after generation {before}"
                );
                self.violate(now, "stale_order", what);
            }
        }
    }

    /// An order not to run a replica has been obeyed.
    pub(crate) fn stopped(&mut self, node: usize, key: &ReplicaKey, generation: u64) {
        let held = self.obeyed.entry((node, key.clone())).or_default();
        *held = (*held).max(generation);
    }

    /// An agent has confirmed an order.
    pub(crate) fn confirmed(&mut self, node: usize, key: ReplicaKey, generation: u64) {
        let held = self.confirmed.entry((node, key)).or_default();
        *held = (*held).max(generation);
    }

    /// An agent has started: what it had confirmed before is known to its store.
    pub(crate) fn restarted(
        &mut self,
        node: usize,
        highest: impl Fn(&ReplicaKey) -> u64,
        excused: bool,
        now: Duration,
    ) {
        if excused {
            self.confirmed.retain(|(at, _), _| *at != node);
            self.obeyed.retain(|(at, _), _| *at != node);
            self.on_disk.retain(|(at, _)| *at != node);
            self.ended_on.retain(|(at, _)| *at != node);
            return;
        }
        let mut lost = Vec::new();
        for ((at, key), generation) in &self.confirmed {
            let known = highest(key);
            if *at == node && known < *generation {
                lost.push(format!(
                    "node {node} had confirmed generation {generation} of {key} and knows {known} \
                     after its start"
                ));
            }
        }
        for what in lost {
            self.violate(now, "lost", what);
        }
    }

    /// Highest generation that a device has obeyed for a replica.
    pub(crate) fn highest(&self, node: usize, key: &ReplicaKey) -> u64 {
        let at = (node, key.clone());
        self.obeyed.get(&at).copied().unwrap_or_default()
    }

    /// Live copies of a replica by name.
    pub(crate) fn copies_of(&self, name: &Name, index: u32) -> Vec<(ReplicaKey, Vec<usize>)> {
        self.copies
            .iter()
            .filter(|(key, _)| is_of(key, name, index))
            .map(|(key, copies)| (key.clone(), copies.iter().map(|c| c.node).collect()))
            .collect()
    }

    /// All live copies.
    pub(crate) fn copies(&self) -> impl Iterator<Item = (&ReplicaKey, Vec<usize>)> {
        self.copies
            .iter()
            .map(|(key, copies)| (key, copies.iter().map(|c| c.node).collect()))
    }

    /// Copies that could have been one for too long. `calm_since` is since when the nodes of the
    /// copies have been able to hear of each other; none where they are not.
    pub(crate) fn overlaps(
        &mut self,
        now: Duration,
        calm_since: impl Fn(&[usize]) -> Option<Duration>,
    ) {
        let mut late = Vec::new();
        for (key, since) in &self.overlaps {
            let nodes: Vec<usize> = self
                .copies
                .get(key)
                .into_iter()
                .flatten()
                .map(|c| c.node)
                .collect();
            let Some(calm) = calm_since(&nodes) else {
                continue;
            };
            let from = calm.max(*since).max(self.changed_at(&name_of(key)));
            if now.saturating_sub(from) > OVERLAP {
                late.push((key.clone(), nodes, *since));
            }
        }
        for (key, nodes, since) in late {
            self.overlaps.remove(&key);
            let what = format!(
                "{key} has run on nodes {nodes:?} since {:.3} s",
                since.as_secs_f64()
            );
            self.violate(now, "copies", what);
        }
    }

    /// A replica that should run and could: `calm` is since when. Tells whether it is late.
    pub(crate) fn should_run(
        &mut self,
        name: &Name,
        index: u32,
        runs: bool,
        calm: Option<Duration>,
        now: Duration,
    ) {
        let at = (name.clone(), index);
        if runs {
            self.absent.remove(&at);
            return;
        }
        let since = *self.absent.entry(at.clone()).or_insert(now);
        let Some(calm) = calm else { return };
        let from = since.max(calm).max(self.changed_at(name));
        if now.saturating_sub(from) > WITHIN {
            self.absent.insert(at, Duration::MAX);
            let what = format!(
                "{name}/{index} has not run since {:.3} s and could",
                since.as_secs_f64()
            );
            self.violate(now, "not_running", what);
        }
    }
}
