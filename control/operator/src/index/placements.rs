//! Placements of the index, and what nodes say of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use hyperion_api::placement::{
    GpuAssignment, HyperionPlacement, HyperionPlacementSpec, HyperionPlacementStatus,
    PlacementPhase,
};
use hyperion_api::workload::WorkloadType;
use hyperion_placement::model::Resources;
use hyperion_proto::agent_v1::{Intent, PodSpec, ReplicaPhase};
use hyperion_proto::domain::{ReplicaKey, Report};
use kube::ResourceExt;
use kube::core::DeserializeGuard;
use tracing::warn;

use super::{Index, Name, Priority};

/// Replicas of one node's reports that are kept in mind. No node runs so many; one that says so
/// must not fill the memory.
const HELD: usize = 10_000;

/// A placement.
#[derive(Debug, Clone)]
pub struct PlacementEntry {
    /// Replica.
    pub key: ReplicaKey,
    /// As decided; perhaps not stored yet.
    pub spec: HyperionPlacementSpec,
    /// As last read or written.
    pub status: HyperionPlacementStatus,
    /// What the replica was promised.
    pub resources: Resources,
    /// Generation that the API holds; 0 where it holds none. A node is told only what is stored.
    pub stored: i64,
    /// The watch has shown it with this generation: a list that lacks it says that it is gone.
    pub seen: bool,
    /// Last report of this generation by this node.
    pub report: Option<Report>,
    /// When its reports turned bad.
    pub failing_since: Option<Instant>,
    /// When a failing replica may be given another chance.
    pub retry_at: Option<Instant>,
    /// Chances given so far without success.
    pub retries: u32,
    /// Generation that the gateway was told; 0 for none.
    pub told: i64,
    /// What the gateway was told that the workload wants.
    pub told_intent: Option<Arc<Intent>>,
    /// A node that had an older generation of it says that it ended well there.
    pub ended_on: Option<String>,
    /// It was ready by the last word on it, of its node or of an earlier control plane.
    pub served: bool,
    /// What runs, where its site decided and the template may have changed since.
    pub site_pod: Option<Arc<PodSpec>>,
    /// The node was told to stop it, then.
    pub stopping: Option<Instant>,
    /// It is stopped to be placed elsewhere, and not for good.
    pub moving: bool,
    /// Its node has returned since it was told to stop: it is to be told again.
    pub returned: bool,
    /// The object is being deleted.
    pub deleting: bool,
    /// The object names old copies that go on until this one is ready.
    pub names_leaving: bool,
}

impl PlacementEntry {
    /// A decision that is not stored yet.
    #[must_use]
    pub fn decided(key: ReplicaKey, spec: HyperionPlacementSpec, resources: Resources) -> Self {
        Self {
            key,
            spec,
            status: HyperionPlacementStatus::default(),
            resources,
            stored: 0,
            seen: false,
            report: None,
            failing_since: None,
            retry_at: None,
            retries: 0,
            told: 0,
            told_intent: None,
            ended_on: None,
            served: false,
            site_pod: None,
            stopping: None,
            moving: false,
            returned: false,
            deleting: false,
            names_leaving: false,
        }
    }

    /// Workload.
    #[must_use]
    pub fn workload(&self) -> Name {
        Name::new(&self.key.namespace, &self.key.workload)
    }

    /// Name of the object.
    #[must_use]
    pub fn object_name(&self) -> String {
        format!("{}-{}", self.key.workload, self.key.index)
    }

    /// A job's replica that ended, well or for good.
    #[must_use]
    pub fn ended(&self) -> bool {
        match self.status.phase {
            PlacementPhase::Succeeded => true,
            PlacementPhase::Failed => self.stopping.is_none(),
            _ => false,
        }
    }

    /// Ready by its node's word on this generation: a status in the API may be of the one before.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.status.ready && self.status.observed_generation == self.spec.generation
    }

    /// True while its node keeps room for it.
    #[must_use]
    pub fn takes_room(&self) -> bool {
        !self.deleting && !self.ended()
    }

    /// This control plane has told its node of it, or one before this may have.
    #[must_use]
    pub fn may_be_told(&self) -> bool {
        self.told > 0 || self.stored >= self.spec.generation
    }

    /// It is stopped where it is, to be placed elsewhere when that is done.
    #[must_use]
    pub fn moves_away(&self) -> bool {
        self.moving && self.stopping.is_some() && !self.deleting
    }
}

/// An old copy that goes on until its successor is ready.
#[derive(Debug, Clone)]
pub struct Leaving {
    /// Where it runs.
    pub node: String,
    /// Replica.
    pub key: ReplicaKey,
    /// Its generation.
    pub generation: i64,
    /// What it was promised: its node keeps that until it is gone.
    pub resources: Resources,
    /// GPUs that it was promised.
    pub gpus: Vec<GpuAssignment>,
    /// The node was told to stop it, then.
    pub stopping: Option<Instant>,
    /// When it is stopped whatever the successor does; none means as soon as the successor has
    /// been decided.
    pub until: Option<Instant>,
}

impl Leaving {
    /// The copy that a placement describes.
    #[must_use]
    pub fn of(entry: &PlacementEntry, until: Option<Instant>) -> Self {
        Self {
            node: entry.spec.node.clone(),
            key: entry.key.clone(),
            generation: entry.spec.generation,
            resources: entry.resources,
            gpus: entry.spec.gpus.clone(),
            stopping: None,
            until,
        }
    }

    /// True while its node keeps room for it. One that its successor may take over where it is
    /// must not stand in that one's way.
    #[must_use]
    pub fn takes_room(&self) -> bool {
        self.until.is_some() || self.stopping.is_some()
    }
}

/// A failure to run a replica on a node.
#[derive(Debug, Clone)]
pub struct Failure {
    /// When.
    pub at: Instant,
    /// The node's reason.
    pub reason: String,
}

/// A report's phase in the words of a placement.
#[must_use]
pub fn phase_of(phase: ReplicaPhase) -> PlacementPhase {
    match phase {
        ReplicaPhase::Unspecified => PlacementPhase::Pending,
        ReplicaPhase::Pulling | ReplicaPhase::Starting => PlacementPhase::Starting,
        ReplicaPhase::Running => PlacementPhase::Running,
        ReplicaPhase::Backoff => PlacementPhase::Backoff,
        ReplicaPhase::Succeeded => PlacementPhase::Succeeded,
        ReplicaPhase::Failed => PlacementPhase::Failed,
        ReplicaPhase::Stopping | ReplicaPhase::Stopped => PlacementPhase::Stopping,
    }
}

/// What a placement takes of its node.
fn promise_of(entry: &PlacementEntry) -> (Resources, Vec<(String, u32)>) {
    let share = |gpu: &GpuAssignment| (gpu.uuid.clone(), u32::try_from(gpu.millis).unwrap_or(0));
    (entry.resources, entry.spec.gpus.iter().map(share).collect())
}

impl Index {
    /// A placement as the API holds it. An echo of an older decision changes nothing.
    pub fn apply_placement(&mut self, object: DeserializeGuard<HyperionPlacement>, now: Instant) {
        let object = match object.0 {
            Ok(object) => object,
            Err(e) => {
                let (namespace, name) = (e.metadata.namespace, e.metadata.name);
                warn!(?namespace, ?name, error = %e.error, "bad HyperionPlacement");
                return;
            }
        };
        let Ok(replica) = u32::try_from(object.spec.replica) else {
            return;
        };
        let name = Name::new(
            &object.namespace().unwrap_or_default(),
            &object.spec.workload,
        );
        if object.name_any() != format!("{}-{replica}", name.name) {
            let placement = object.name_any();
            warn!(%placement, "spec.workload and spec.replica do not match the name: ignored");
            return;
        }
        if let Some(held) = self.placement(&name, replica)
            && held.spec.generation >= object.spec.generation
        {
            let generation = object.spec.generation;
            if held.spec.generation == generation {
                if let Some(held) = self.entry_mut(&name, replica) {
                    held.seen = true;
                }
                self.stored(&name, replica, generation);
            }
            return;
        }
        let key = ReplicaKey {
            namespace: name.namespace.clone(),
            workload: name.name.clone(),
            uid: object.spec.workload_uid.clone(),
            index: replica,
        };
        let (node, generation) = (&object.spec.node, object.spec.generation);
        let names_leaving = self.take_up(&key, node, generation, &object.metadata, now);
        let mut entry = PlacementEntry::decided(key, object.spec, self.resources(&name));
        entry.names_leaving = names_leaving;
        (entry.stored, entry.seen) = (entry.spec.generation, true);
        entry.status = object.status.unwrap_or_default();
        entry.served = entry.ready();
        self.put(entry);
        self.touch(&name, Priority::High);
    }

    /// The API holds this generation: its node may be told.
    pub fn stored(&mut self, workload: &Name, replica: u32, generation: i64) {
        if let Some(entry) = self.entry_mut(workload, replica)
            && entry.stored < generation
        {
            entry.stored = generation;
            self.touch(workload, Priority::High);
        }
    }

    /// A placement's object is gone.
    pub fn delete_placement(&mut self, object: &DeserializeGuard<HyperionPlacement>) {
        let Ok(object) = &object.0 else { return };
        let name = Name::new(
            &object.namespace().unwrap_or_default(),
            &object.spec.workload,
        );
        if let Ok(replica) = u32::try_from(object.spec.replica) {
            self.gone(&name, replica, object.spec.generation);
        }
    }

    /// The API no longer holds the placement of this generation. A later decision stands.
    pub fn gone(&mut self, workload: &Name, replica: u32, generation: i64) {
        let held = self.placement(workload, replica);
        if held.is_none_or(|h| h.spec.generation > generation) {
            return;
        }
        let Some(entry) = self
            .placements
            .get_mut(workload)
            .and_then(|p| p.remove(&replica))
        else {
            return;
        };
        if self
            .placements
            .get(workload)
            .is_some_and(std::collections::BTreeMap::is_empty)
        {
            self.placements.remove(workload);
        }
        let at = (workload.clone(), replica);
        if let Some(set) = self.by_node.get_mut(&entry.spec.node) {
            set.remove(&at);
        }
        self.pending.remove(&at);
        if !entry.deleting {
            // Deleted by hand: the copy that still runs must end before or when the next begins.
            self.leave(Leaving::of(&entry, None));
        }
        self.remember_generation(&entry.key, entry.spec.generation);
        self.refresh_node(&entry.spec.node);
        self.touch(workload, Priority::High);
        self.touch_unplaced();
    }

    /// Nodes refuse a generation that they have seen, also after the placement is gone.
    pub(crate) fn remember_generation(&mut self, key: &ReplicaKey, generation: i64) {
        let name = Name::new(&key.namespace, &key.workload);
        if let Some(workload) = self.workloads.get_mut(&name)
            && workload.uid() == key.uid
        {
            workload.highest = workload.highest.max(generation);
        }
    }

    /// Notes an old copy.
    pub(crate) fn leave(&mut self, copy: Leaving) {
        let at = (
            Name::new(&copy.key.namespace, &copy.key.workload),
            copy.key.index,
        );
        let node = copy.node.clone();
        self.leaving_on
            .entry(node.clone())
            .or_default()
            .insert(at.clone());
        self.leaving.entry(at).or_default().push(copy);
        self.refresh_node(&node);
    }

    /// Takes a replica's old copies out; those that are still there are to be noted again.
    pub(crate) fn take_leaving(&mut self, at: &(Name, u32)) -> Vec<Leaving> {
        let copies = self.leaving.remove(at).unwrap_or_default();
        for copy in &copies {
            if let Some(set) = self.leaving_on.get_mut(&copy.node) {
                set.remove(at);
                if set.is_empty() {
                    self.leaving_on.remove(&copy.node);
                }
            }
        }
        copies
    }

    /// Old copies on a node.
    pub(super) fn leaving_on<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Leaving> {
        let set = self.leaving_on.get(node).into_iter().flatten();
        set.filter_map(|at| self.leaving.get(at))
            .flatten()
            .filter(move |copy| copy.node == node)
    }

    /// Nodes that may run what they can't be told of now: the spec is refused, the template has
    /// changed since, or the decision is not stored yet. A list without it is not complete.
    #[must_use]
    pub fn undescribed(&self) -> BTreeSet<String> {
        let placed = self
            .placements()
            .filter(|p| {
                p.told < p.spec.generation && p.stopping.is_none() && !p.deleting && !p.ended()
            })
            .map(|p| &p.spec.node);
        let leaving = self.leaving.values().flatten();
        let leaving = leaving.filter(|c| c.stopping.is_none()).map(|c| &c.node);
        placed.chain(leaving).cloned().collect()
    }

    /// The complete list, after a watch began anew. It may be older than the last writes.
    pub fn reset_placements(
        &mut self,
        list: Vec<DeserializeGuard<HyperionPlacement>>,
        now: Instant,
    ) {
        let mut gone: std::collections::BTreeMap<(Name, u32), i64> = self
            .placements()
            .filter(|p| p.stored > 0 && p.seen)
            .map(|p| ((p.workload(), p.key.index), p.stored))
            .collect();
        for object in list {
            if let Ok(o) = &object.0
                && let Ok(replica) = u32::try_from(o.spec.replica)
            {
                let namespace = o.namespace().unwrap_or_default();
                gone.remove(&(Name::new(&namespace, &o.spec.workload), replica));
            }
            self.apply_placement(object, now);
        }
        for ((name, replica), generation) in gone {
            self.gone(&name, replica, generation);
        }
    }

    /// Puts a decision into effect in the index.
    pub(crate) fn put(&mut self, entry: PlacementEntry) {
        let (name, replica) = (entry.workload(), entry.key.index);
        let node = entry.spec.node.clone();
        let promise = entry.takes_room().then(|| promise_of(&entry));
        let old = self
            .placements
            .entry(name.clone())
            .or_default()
            .insert(replica, entry);
        let came = old.as_ref().is_none_or(|old| old.spec.node != node);
        if let Some(old) = old.filter(|_| came) {
            if let Some(set) = self.by_node.get_mut(&old.spec.node) {
                set.remove(&(name.clone(), replica));
            }
            self.refresh_node(&old.spec.node);
        }
        self.by_node
            .entry(node.clone())
            .or_default()
            .insert((name, replica));
        // A new promise is taken off what is left, whatever else the node runs. Where that does not
        // go, because more is promised than there is, all of it is added up anew.
        let taken = promise
            .filter(|_| came)
            .is_some_and(|(asked, gpus)| self.fleet.take(&node, asked, &gpus).is_ok());
        if !taken {
            self.refresh_node(&node);
        }
    }

    /// Takes back a decision about a replica that had no place, of which nobody has heard yet.
    pub(crate) fn take_back(&mut self, name: &Name, replica: u32) {
        let Some(replicas) = self.placements.get_mut(name) else {
            return;
        };
        let Some(entry) = replicas.remove(&replica) else {
            return;
        };
        if replicas.is_empty() {
            self.placements.remove(name);
        }
        let at = (name.clone(), replica);
        self.pending.remove(&at);
        if let Some(set) = self.by_node.get_mut(&entry.spec.node) {
            set.remove(&at);
        }
        self.refresh_node(&entry.spec.node);
    }

    /// What a node says of a replica.
    pub fn report(&mut self, node: &str, report: &Report, now: Instant) {
        let Some(held) = self.nodes.get_mut(node).map(|n| &mut n.held) else {
            return;
        };
        let name = Name::new(&report.key.namespace, &report.key.workload);
        if report.phase == ReplicaPhase::Stopped {
            // A start with a higher generation may have been sent since.
            if held
                .get(&report.key)
                .is_some_and(|g| *g <= report.generation)
            {
                held.remove(&report.key);
            }
        } else if held.len() < HELD || held.contains_key(&report.key) {
            let generation = held.entry(report.key.clone()).or_insert(report.generation);
            *generation = (*generation).max(report.generation);
        }
        self.touch(&name, Priority::Normal);
        let known = self.placement(&name, report.key.index).is_some_and(|p| {
            p.spec.node == node
                && p.key == report.key
                && u64::try_from(p.spec.generation) == Ok(report.generation)
        });
        let stopped = report.phase == ReplicaPhase::Stopped;
        self.stray(node, report, known || stopped);
        let service = self
            .workloads
            .get(&name)
            .is_none_or(|w| w.object.spec.type_ == WorkloadType::Service);
        let Some(entry) = self.entry_mut(&name, report.key.index) else {
            return;
        };
        let generation = u64::try_from(entry.spec.generation).unwrap_or(0);
        if entry.spec.node != node || entry.key != report.key || generation != report.generation {
            // A job's result stands, also where it was placed again because nobody could know of it.
            let older = entry.key == report.key && report.generation < generation;
            if older && !service && report.phase == ReplicaPhase::Succeeded && !entry.ended() {
                entry.ended_on = Some(node.to_owned());
            }
            return;
        }
        if entry.ended() && !service {
            // A job's end is final, whatever a node that lost its store says later.
            return;
        }
        match report.phase {
            ReplicaPhase::Failed | ReplicaPhase::Backoff => {
                entry.failing_since.get_or_insert(now);
            }
            ReplicaPhase::Running if report.ready => {
                (entry.failing_since, entry.retry_at, entry.retries) = (None, None, 0);
            }
            _ => {}
        }
        entry.served = report.ready;
        entry.report = Some(report.clone());
    }

    /// The node was told to start it.
    pub(crate) fn told(&mut self, node: &str, key: &ReplicaKey, generation: i64) {
        let generation = u64::try_from(generation).unwrap_or(0);
        if let Some(entry) = self.nodes.get_mut(node).filter(|n| n.connected) {
            let held = entry.held.entry(key.clone()).or_insert(generation);
            *held = (*held).max(generation);
        }
    }

    pub(crate) fn entry_mut(&mut self, name: &Name, replica: u32) -> Option<&mut PlacementEntry> {
        self.placements.get_mut(name)?.get_mut(&replica)
    }

    pub(super) fn promised(&self, node: &str) -> impl Iterator<Item = &PlacementEntry> {
        let set = self.by_node.get(node).into_iter().flatten();
        set.filter_map(|(name, replica)| self.placement(name, *replica))
    }

    /// Recomputes a node's room after something about a placement changed.
    pub(crate) fn room_changed(&mut self, node: &str) {
        self.refresh_node(node);
        self.touch_unplaced();
    }

    fn resources(&self, name: &Name) -> Resources {
        let template = self
            .workloads
            .get(name)
            .and_then(|w| w.template.as_ref().ok());
        template.map_or_else(Resources::default, |t| t.request.resources)
    }

    /// A workload that became known after its placements: what they were promised is known now.
    pub(super) fn refresh_promises(&mut self, name: &Name) {
        let Some(template) = self
            .workloads
            .get(name)
            .and_then(|w| w.template.as_ref().ok())
        else {
            return;
        };
        let (hash, resources) = (template.hash.clone(), template.request.resources);
        let mut nodes = Vec::new();
        for entry in self
            .placements
            .get_mut(name)
            .into_iter()
            .flatten()
            .map(|(_, e)| e)
        {
            if entry.spec.template_hash == hash && entry.resources != resources {
                entry.resources = resources;
                nodes.push(entry.spec.node.clone());
            }
        }
        for node in nodes {
            self.refresh_node(&node);
        }
    }
}
