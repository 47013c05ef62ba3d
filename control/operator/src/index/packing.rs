//! What free GPU capacity is worth to the workloads of this fleet.

use std::sync::Arc;

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
        let before = self.fleet.packing();
        (!typical.is_empty()).then(|| Lesson::new(typical, self.fleet.nodes(), before.clone()))
    }

    /// Takes what free GPU capacity is worth from now on.
    pub fn set_packing(&mut self, prices: Arc<Prices>) {
        self.fleet.set_packing(prices);
    }
}
