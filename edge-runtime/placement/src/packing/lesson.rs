//! What prices are learned from: requests, and what is left of nodes.

use std::sync::Arc;

use super::term::{class, left_of};
use super::{Free, Models, Prices, TypicalRequests};
use crate::model::Node;

/// What prices are learned from. It holds nothing of the fleet, so they can be learned elsewhere.
#[derive(Debug)]
pub struct Lesson {
    typical: TypicalRequests,
    nodes: Vec<Spare>,
    before: Arc<Prices>,
}

/// What is left of a node with GPUs.
#[derive(Debug)]
struct Spare {
    cpu_millis: u64,
    memory_bytes: u64,
    gpus: Vec<u32>,
    model: Models,
}

impl Lesson {
    /// On requests like these and those of the nodes that take replicas; `before` as in
    /// [`Prices::refresh`].
    pub fn new<'a>(
        typical: TypicalRequests,
        nodes: impl Iterator<Item = &'a Node>,
        before: Arc<Prices>,
    ) -> Self {
        let spare = |node: &Node| Spare {
            cpu_millis: node.free.cpu_millis,
            memory_bytes: node.free.memory_bytes,
            gpus: left_of(&node.gpus).collect(),
            model: class(node.location.tier, &node.arch, node.in_cluster()),
        };
        let counts = |node: &&Node| !node.gpus.is_empty() && node.ready && node.schedulable;
        Self {
            typical,
            nodes: nodes.filter(counts).map(spare).collect(),
            before,
        }
    }

    /// The prices. Takes milliseconds, and some tenths of a second where requests ask for a hundred
    /// different sizes of GPU shares.
    #[must_use]
    pub fn prices(&self) -> Prices {
        let free = self.nodes.iter().map(|spare| Free {
            cpu_millis: spare.cpu_millis,
            memory_bytes: spare.memory_bytes,
            gpus: &spare.gpus,
            model: spare.model,
        });
        let free: Vec<Free<'_>> = free.collect();
        Prices::refresh(&self.typical, &free, &self.before)
    }
}
