//! The fleet as a struct of arrays that is updated in place: the fast way to decisions.
//!
//! A [`Snapshot`] is made for one decision and walked machine by machine; a [`Fleet`] lives as long
//! as the control plane and takes changes one at a time, each in constant time. It decides what
//! [`decide`](crate::decide) would decide on [`Fleet::snapshot`], to the last bit, but
//!
//! - machines that differ only in what is left of them are a kind, which is filtered and encoded
//!   once a decision;
//! - within a kind, sixteen machines at a time are filtered, and scored roughly with a bound on the
//!   error (`rough`), the kinds that may score most first, and those not at all that can't come
//!   among the best any more; the few that may be the best are then scored exactly;
//! - what a network makes of a node is kept and made anew when that node changes;
//! - what a decision needs for itself is kept in a [`Scratch`] from one to the next.
//!
//! [`Fleet::reserve`] promises what was chosen, or refuses where somebody else was faster: so
//! decisions can be made together and can't collide.

mod change;
mod decide;
mod embeddings;
mod interned;
mod kinds;
mod many;
mod pass;
mod places;
mod rough;

pub use decide::{Scratch, Work};

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::check::{self, Violation, check_place};
use crate::choose::{CandidateRef, Choice};
use crate::features::Summary;
use crate::filter::Candidate;
use crate::model::{LatencyMatrix, Node, Offer, Request, Snapshot};
use crate::packing::Prices;
use crate::policy::Network;
use embeddings::Embeddings;
use interned::{Images, Labels};
use kinds::{Block, Key, Kind};
use places::Places;
use rough::Layout;

/// What can't be done to a fleet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FleetError {
    /// There is no such node.
    #[error("node {0:?} is not in the fleet")]
    NoNode(String),
    /// There is no such offer.
    #[error("offer {0:?} is not in the fleet")]
    NoOffer(String),
    /// The node has no such device.
    #[error("node {node:?} has no GPU {uuid:?}")]
    NoGpu {
        /// The node.
        node: String,
        /// The device.
        uuid: String,
    },
    /// More is asked for than is left.
    #[error("node {node:?} has less {what} left than is to be reserved")]
    Short {
        /// The node.
        node: String,
        /// `cpu`, `memory` or a device's uuid.
        what: String,
    },
}

#[derive(Debug, Clone)]
enum Machine {
    Node(Box<Node>),
    Offer(Box<Offer>),
}

impl Machine {
    fn candidate(&self) -> Candidate<'_> {
        match self {
            Self::Node(node) => Candidate::from(&**node),
            Self::Offer(offer) => Candidate::from(&**offer),
        }
    }

    const fn is_offer(&self) -> bool {
        matches!(self, Self::Offer(_))
    }
}

#[derive(Debug, Clone)]
struct Entry {
    machine: Machine,
    id: Arc<str>,
    block: u32,
    lane: u32,
    place: u32,
    images: u32,
    labels: Box<[u32]>,
    /// Grows with the id, so that ids are compared as numbers.
    order: u64,
}

#[derive(Debug, Clone)]
struct Embedder {
    network: Arc<Network>,
    layout: Layout,
}

/// Nodes, offers, latencies and queue, kept up to date in place.
#[derive(Debug, Clone)]
pub struct Fleet {
    version: u64,
    summary: Summary,
    latency: LatencyMatrix,
    packing: Arc<Prices>,
    places: Places,
    labels: Labels,
    images: Images,
    entries: Vec<Option<Entry>>,
    unused_entries: Vec<u32>,
    nodes: HashMap<Arc<str>, u32>,
    offers: HashMap<Arc<str>, u32>,
    /// By id; the node before the offer where both have the same.
    sorted: BTreeMap<(Arc<str>, bool), u32>,
    kinds: Vec<Option<Kind>>,
    kind_ids: HashMap<Key, u32>,
    unused_kinds: Vec<u32>,
    blocks: Vec<Block>,
    unused_blocks: Vec<u32>,
    /// Empty without a network.
    embeddings: Embeddings,
    embedder: Option<Embedder>,
}

impl Default for Fleet {
    fn default() -> Self {
        Self::new()
    }
}

impl Fleet {
    /// A fleet of nothing.
    #[must_use]
    pub fn new() -> Self {
        let latency = LatencyMatrix::default();
        let mut places = Places::default();
        places.set_latency(&latency);
        Self {
            version: 0,
            summary: Summary::default(),
            latency,
            packing: Arc::default(),
            places,
            labels: Labels::default(),
            images: Images::default(),
            entries: Vec::new(),
            unused_entries: Vec::new(),
            nodes: HashMap::new(),
            offers: HashMap::new(),
            sorted: BTreeMap::new(),
            kinds: Vec::new(),
            kind_ids: HashMap::new(),
            unused_kinds: Vec::new(),
            blocks: Vec::new(),
            unused_blocks: Vec::new(),
            embeddings: Embeddings::default(),
            embedder: None,
        }
    }

    /// The fleet of a snapshot. Of machines with the same id, the last one counts.
    #[must_use]
    pub fn of(snapshot: &Snapshot) -> Self {
        let mut fleet = Self::new();
        fleet.set_latency(snapshot.latency.clone());
        for node in &snapshot.nodes {
            fleet.upsert_node(node.clone());
        }
        for offer in &snapshot.offers {
            fleet.upsert_offer(offer.clone());
        }
        fleet.set_queue(snapshot.queue);
        fleet.set_packing(snapshot.packing.clone());
        fleet.version = snapshot.version;
        fleet
    }

    /// The same as a snapshot: for the reference path, and for those who look at one for long.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            version: self.version,
            nodes: self.nodes().cloned().collect(),
            offers: self.offers().cloned().collect(),
            latency: self.latency.clone(),
            queue: self.summary.queue,
            packing: self.packing.clone(),
        }
    }

    /// Grows with every change.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// Counts and sums over all nodes, kept up to date.
    #[must_use]
    pub const fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Round-trip times.
    #[must_use]
    pub const fn latency(&self) -> &LatencyMatrix {
        &self.latency
    }

    /// What free GPU capacity is worth.
    #[must_use]
    pub const fn packing(&self) -> &Arc<Prices> {
        &self.packing
    }

    /// Nodes, sorted by id.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.machines().filter_map(|m| match m {
            Machine::Node(node) => Some(&**node),
            Machine::Offer(_) => None,
        })
    }

    /// Offers, sorted by id.
    pub fn offers(&self) -> impl Iterator<Item = &Offer> {
        self.machines().filter_map(|m| match m {
            Machine::Offer(offer) => Some(&**offer),
            Machine::Node(_) => None,
        })
    }

    /// Number of nodes and offers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    /// True without any node or offer.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// Kinds of machines at present.
    #[must_use]
    pub fn kinds(&self) -> usize {
        self.kind_ids.len()
    }

    /// A node by id.
    #[must_use]
    pub fn node(&self, id: &str) -> Option<&Node> {
        match self.machine(*self.nodes.get(id)?) {
            Machine::Node(node) => Some(node),
            Machine::Offer(_) => None,
        }
    }

    /// An offer by id.
    #[must_use]
    pub fn offer(&self, id: &str) -> Option<&Offer> {
        match self.machine(*self.offers.get(id)?) {
            Machine::Offer(offer) => Some(offer),
            Machine::Node(_) => None,
        }
    }

    /// [`check`](crate::check::check), on the fleet as it is now.
    ///
    /// # Errors
    /// The violations, never empty.
    pub fn check(&self, request: &Request, choice: &Choice) -> Result<(), Vec<Violation>> {
        let place = match &choice.candidate {
            CandidateRef::Node(id) => self.node(id).map(check::Place::Node).ok_or(("node", id)),
            CandidateRef::Offer(id) => self.offer(id).map(check::Place::Offer).ok_or(("offer", id)),
        };
        match place {
            Ok(place) => check_place(place, request, choice),
            Err((constraint, id)) => Err(vec![Violation {
                constraint,
                detail: format!("{id} is not in the fleet"),
            }]),
        }
    }

    fn machines(&self) -> impl Iterator<Item = &Machine> {
        self.sorted.values().map(|handle| self.machine(*handle))
    }

    fn entry(&self, handle: u32) -> &Entry {
        self.entries[handle as usize]
            .as_ref()
            .expect("handles name machines that are there")
    }

    fn entry_mut(&mut self, handle: u32) -> &mut Entry {
        self.entries[handle as usize]
            .as_mut()
            .expect("handles name machines that are there")
    }

    fn machine(&self, handle: u32) -> &Machine {
        &self.entry(handle).machine
    }

    fn kind(&self, id: u32) -> &Kind {
        self.kinds[id as usize]
            .as_ref()
            .expect("blocks name kinds that are there")
    }
}
