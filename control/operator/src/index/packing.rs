//! What free GPU capacity is worth to the workloads of this fleet.

use std::sync::Arc;

use hyperion_placement::model::Node;
use hyperion_placement::packing::{self, Lesson, Prices, TypicalRequests};

use super::Index;

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
        if typical.is_empty() {
            return None;
        }
        let takes_replicas = |n: &&Node| n.ready && n.schedulable;
        let nodes = self.fleet.nodes().filter(takes_replicas);
        Some(Lesson::new(typical, nodes, self.fleet.packing().clone()))
    }

    /// Takes what free GPU capacity is worth from now on.
    pub fn set_packing(&mut self, prices: Arc<Prices>) {
        self.fleet.set_packing(prices);
    }
}
