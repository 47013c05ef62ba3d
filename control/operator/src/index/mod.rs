//! What the operator knows, as a plain struct: watches and the gateway call `apply`, `delete`,
//! `reset`, `node_up`, `report` …; [`crate::plan`] reads it and notes what it decided. No I/O, and
//! time is an argument.
//!
//! Every change marks the workloads that it may matter to as dirty; the caller takes them with
//! [`Index::take_dirty`].

mod capacity;
mod classes;
mod handover;
mod measured;
mod nodes;
mod notices;
mod packing;
mod placements;
mod quotas;
mod site;
mod updates;
mod workloads;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hyperion_placement::fleet::Fleet;
use hyperion_placement::model::LatencyMatrix;
use hyperion_placement::policy::Network;
use hyperion_proto::domain::ReplicaKey;
use hyperion_providers::feeds::Prices;

use crate::plan::{Look, Pending};

pub use capacity::{CapacityNote, Heard, Market};
pub use handover::{HANDOVER, LEAVING};
pub use nodes::NodeEntry;
pub use notices::Interruption;
pub(crate) use notices::LAST_WORDS;
pub use placements::{Failure, Leaving, PlacementEntry, phase_of};
pub use quotas::{Left, Quota, Used};
pub use site::{Answer, Claim, Decision, NodeNote, Stage, Verdicts};
pub use updates::Said;
pub use workloads::{Broken, Template, WorkloadEntry, is_site_uid};

/// Namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Name {
    /// Of these two.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A workload that waits for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Waits {
    /// Replicas without a place.
    replicas: u32,
    /// A number that grows with the time at which it began to wait.
    since: u64,
}

/// How soon a dirty workload is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A user changed something, or a node is lost: somebody waits for a decision.
    High,
    /// A report came in: somebody may watch the status.
    Normal,
    /// The fleet changed in a way that may help replicas without a place.
    Low,
}

/// The index.
pub struct Index {
    /// Default of `policy.disconnect.replaceAfter`.
    pub(crate) replace_after: Duration,
    pub(crate) workloads: BTreeMap<Name, WorkloadEntry>,
    /// Workloads that can't be read, and why; what they run stays as it is.
    pub(crate) broken: BTreeMap<Name, Broken>,
    pub(crate) placements: BTreeMap<Name, BTreeMap<u32, PlacementEntry>>,
    pub(crate) nodes: BTreeMap<String, NodeEntry>,
    /// Pools that are left alone for a while.
    pub(crate) pools: notices::Pools,
    /// Machines that can be bought, and those that were.
    pub(crate) machines: capacity::Machines,
    /// Live prices, for nodes whose price no label says.
    prices: Arc<Prices>,
    /// Nodes with what is left of them, kept up to date with every promise: the view on which
    /// decisions are made.
    pub(crate) fleet: Fleet,
    /// Replicas promised to each node.
    by_node: BTreeMap<String, BTreeSet<(Name, u32)>>,
    /// Old copies that go on until their successor is ready.
    pub(crate) leaving: BTreeMap<(Name, u32), Vec<Leaving>>,
    /// Where they are.
    leaving_on: BTreeMap<String, BTreeSet<(Name, u32)>>,
    /// Where replicas failed a moment ago.
    pub(crate) failures: BTreeMap<(Name, u32), BTreeMap<String, Failure>>,
    /// Workloads with replicas that have no place.
    unplaced: BTreeMap<Name, Waits>,
    /// Workloads that began to wait, ever.
    waited: u64,
    pub(crate) classes: classes::Classes,
    /// Replicas that give way to others.
    pub(crate) ways: classes::Ways,
    /// Of namespaces, by name.
    quotas: BTreeMap<String, BTreeMap<String, Quota>>,
    /// How often replicas that run well are looked at again; none for never.
    pub reconsider: Option<Duration>,
    /// When a workload's replicas are looked at again.
    pub(crate) looks: BTreeMap<Name, Look>,
    /// Decisions that wait for their outcome.
    pub(crate) pending: BTreeMap<(Name, u32), Pending>,
    /// Decisions of sites that are not stored yet.
    pub(crate) claims: site::Claims,
    /// Something changed that may help them.
    room: bool,
    dirty: BTreeMap<Name, Priority>,
}

impl Index {
    /// An empty index. `replace_after` is the default for workloads that name none.
    #[must_use]
    pub fn new(replace_after: Duration, latency: LatencyMatrix) -> Self {
        let mut fleet = Fleet::new();
        fleet.set_latency(latency);
        Self {
            replace_after,
            workloads: BTreeMap::new(),
            broken: BTreeMap::new(),
            placements: BTreeMap::new(),
            nodes: BTreeMap::new(),
            pools: notices::Pools::default(),
            machines: capacity::Machines::default(),
            prices: Arc::default(),
            fleet,
            by_node: BTreeMap::new(),
            leaving: BTreeMap::new(),
            leaving_on: BTreeMap::new(),
            failures: BTreeMap::new(),
            unplaced: BTreeMap::new(),
            waited: 0,
            classes: classes::Classes::default(),
            ways: classes::Ways::default(),
            quotas: BTreeMap::new(),
            reconsider: None,
            looks: BTreeMap::new(),
            pending: BTreeMap::new(),
            claims: site::Claims::default(),
            room: false,
            dirty: BTreeMap::new(),
        }
    }

    /// Workloads that something changed for since the last call.
    pub fn take_dirty(&mut self) -> BTreeMap<Name, Priority> {
        std::mem::take(&mut self.dirty)
    }

    /// Live prices.
    pub(crate) fn prices(&self) -> &Prices {
        &self.prices
    }

    /// The view on which decisions are made.
    #[must_use]
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// Keeps what this network makes of each node ready for decisions, or forgets it.
    pub fn set_network(&mut self, network: Option<Arc<Network>>) {
        self.fleet.set_network(network);
    }

    /// Workloads, for counting.
    #[must_use]
    pub fn workloads(&self) -> usize {
        self.workloads.len()
    }

    /// Every placement.
    pub fn placements(&self) -> impl Iterator<Item = &PlacementEntry> {
        self.placements.values().flat_map(BTreeMap::values)
    }

    /// A workload's placements, by replica.
    pub fn placements_of(&self, workload: &Name) -> impl Iterator<Item = &PlacementEntry> {
        self.placements
            .get(workload)
            .into_iter()
            .flat_map(BTreeMap::values)
    }

    /// One placement.
    #[must_use]
    pub fn placement(&self, workload: &Name, replica: u32) -> Option<&PlacementEntry> {
        self.placements.get(workload)?.get(&replica)
    }

    /// Notes how many replicas of a workload have no place.
    pub(crate) fn set_unplaced(&mut self, workload: &Name, replicas: usize) {
        let replicas = u32::try_from(replicas).unwrap_or(u32::MAX);
        let held = self.unplaced.get(workload).copied();
        if replicas == 0 {
            self.unplaced.remove(workload);
        } else {
            let since = held.map_or_else(
                || {
                    self.waited += 1;
                    self.waited
                },
                |held| held.since,
            );
            let waits = Waits { replicas, since };
            self.unplaced.insert(workload.clone(), waits);
        }
        let before = held.map_or(0, |held| held.replicas);
        if before != replicas {
            let waiting = self.fleet.summary().queue;
            let waiting = waiting.saturating_sub(before);
            self.fleet.set_queue(waiting.saturating_add(replicas));
        }
    }

    /// Marks a workload to be looked at.
    pub fn touch(&mut self, workload: &Name, priority: Priority) {
        let held = self.dirty.entry(workload.clone()).or_insert(priority);
        *held = (*held).min(priority);
    }

    /// Marks the workloads with replicas on a node.
    fn touch_node(&mut self, node: &str, priority: Priority) {
        let names: BTreeSet<Name> = self
            .by_node
            .get(node)
            .into_iter()
            .flatten()
            .chain(self.leaving_on.get(node).into_iter().flatten())
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            self.touch(&name, priority);
        }
    }

    /// Notes that there may be room where there was none.
    fn touch_unplaced(&mut self) {
        self.room = true;
    }

    /// Workloads that wait for room, where there may be some since the last call of
    /// [`Index::wake_unplaced`].
    #[must_use]
    pub fn hopeful(&self) -> usize {
        if self.room { self.unplaced.len() } else { 0 }
    }

    /// The workloads that wait for room, in the order in which they are to be looked at; none where
    /// there is no more room than at the last call.
    #[must_use]
    pub fn wake_unplaced(&mut self) -> Vec<Name> {
        if std::mem::take(&mut self.room) {
            self.fair_order()
        } else {
            Vec::new()
        }
    }

    /// True where the node says that it holds the replica with this generation or a lower one, or
    /// may still be told to start it.
    #[must_use]
    pub fn held(&self, node: &str, key: &ReplicaKey, generation: i64) -> bool {
        let generation = u64::try_from(generation).unwrap_or(0);
        self.nodes
            .get(node)
            .is_some_and(|n| n.connected && n.held.get(key).is_some_and(|held| *held <= generation))
    }
}
