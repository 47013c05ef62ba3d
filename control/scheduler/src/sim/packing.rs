//! Prices of free GPU capacity, learned as the control plane learns them.

use std::sync::Arc;

use hyperion_placement::packing::{Lesson, TypicalRequests, demand_of};

use super::Simulator;
use super::replica::Life;

/// Hours between two lessons. Production learns once a minute; dozens of workloads that are decided
/// anew every half hour change too little in a minute for what sixty lessons an hour would cost.
const LESSON_HOURS: f64 = 0.5;

impl Simulator {
    /// Schedulers see from now on what free GPU capacity is worth, and devices are chosen by it.
    #[must_use]
    pub fn packing(mut self) -> Self {
        self.lesson_at = Some(self.now);
        self
    }

    /// Learns prices where it is time: from what is in the system, placed or not, and from what is
    /// left of nodes that take replicas.
    pub(super) fn learn_prices(&mut self) {
        if self.lesson_at.is_none_or(|hour| self.now < hour) {
            return;
        }
        self.lesson_at = Some(self.now + LESSON_HOURS);
        let mut typical = TypicalRequests::default();
        for replica in self.replicas.iter().filter(|r| r.life == Life::Here) {
            if replica.request.gpu.count > 0 {
                typical.observe(demand_of(&replica.request));
            }
        }
        let snapshot = &mut self.view.snapshot;
        let lesson = Lesson::new(
            typical,
            snapshot.nodes.iter(),
            Arc::clone(&snapshot.packing),
        );
        snapshot.packing = Arc::new(lesson.prices());
    }
}
