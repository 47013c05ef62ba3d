//! What free GPU capacity is worth to the workloads of this fleet.

use std::sync::Arc;

use hyperion_placement::model::Node;
use hyperion_placement::packing::{self, Free, Models, Prices, TypicalRequests};

use super::Index;

/// What prices are learned from.
#[derive(Debug)]
pub struct Lesson {
    typical: TypicalRequests,
    nodes: Vec<Left>,
    before: Arc<Prices>,
}

/// What is left of a node with GPUs.
#[derive(Debug)]
struct Left {
    cpu_millis: u64,
    memory_bytes: u64,
    gpus: Vec<u32>,
    model: Models,
}

impl Lesson {
    /// The prices. Takes milliseconds, and some tenths of a second where workloads ask for a hundred
    /// different sizes of GPU shares.
    #[must_use]
    pub fn prices(&self) -> Prices {
        let free = self.nodes.iter().map(|left| Free {
            cpu_millis: left.cpu_millis,
            memory_bytes: left.memory_bytes,
            gpus: &left.gpus,
            model: left.model,
        });
        let free: Vec<Free<'_>> = free.collect();
        Prices::refresh(&self.typical, &free, &self.before)
    }
}

impl Index {
    /// What is known now. What workloads want, placed or not, stands for what will be wanted; none
    /// where nobody wants GPUs.
    #[must_use]
    pub fn packing_lesson(&self) -> Option<Lesson> {
        let mut typical = TypicalRequests::default();
        for workload in self.workloads.values().filter(|w| !w.deleting()) {
            if let Ok(template) = &workload.template
                && template.request.gpu.count > 0
                && workload.replicas() > 0
            {
                let demand = packing::demand_of(&template.request);
                typical.observe_many(demand, workload.replicas());
            }
        }
        let takes_replicas = |n: &&Node| n.ready && n.schedulable && !n.gpus.is_empty();
        (!typical.is_empty()).then(|| Lesson {
            typical,
            nodes: self
                .fleet
                .nodes()
                .filter(takes_replicas)
                .map(left)
                .collect(),
            before: self.fleet.packing().clone(),
        })
    }

    /// Takes what free GPU capacity is worth from now on.
    pub fn set_packing(&mut self, prices: Arc<Prices>) {
        self.fleet.set_packing(prices);
    }
}

fn left(node: &Node) -> Left {
    let device = |free: u32| free.min(hyperion_placement::gpu::WHOLE);
    Left {
        cpu_millis: node.free.cpu_millis,
        memory_bytes: node.free.memory_bytes,
        gpus: node
            .gpus
            .iter()
            .map(|gpu| device(gpu.free_millis))
            .collect(),
        model: packing::class(node.location.tier, &node.arch, node.in_cluster()),
    }
}
