//! What quotas leave for a replica, and gangs: replicas that get their places together.

use hyperion_placement::Explanation;
use hyperion_placement::model::Request;

use super::Pass;
use super::moves::Why;
use crate::index::{Left, Template, WorkloadEntry};

impl Pass<'_> {
    /// Bounds a request by what the namespace's quotas leave; false where that rules it out, wherever
    /// it would go. Notes the quota in words.
    pub(super) fn within_quota(&mut self, request: &mut Request, replica: u32) -> bool {
        let Some(Left {
            hourly_cost,
            gpu_millis,
        }) = self.index.left(&self.name, replica)
        else {
            return true;
        };
        if let Some((left, text)) = gpu_millis {
            let asked = request.gpu.total_millis();
            if asked > left {
                let gpus = asked as f64 / 1000.0;
                self.quota = Some(format!("{text}, a replica asks for {gpus}"));
                return false;
            }
        }
        if let Some((left, text)) = hourly_cost
            && request.max_hourly_cost.is_none_or(|most| left < most)
        {
            request.max_hourly_cost = Some(left);
            self.quota = Some(text);
        }
        true
    }

    /// Places all replicas of a gang that have no place, or none of them.
    pub(super) fn place_together(
        &mut self,
        workload: &WorkloadEntry,
        template: &Template,
        missing: &[u32],
    ) {
        let mark = self.out.actions.len();
        for (placed, replica) in missing.iter().enumerate() {
            let request = self.request(template, *replica);
            match self.decide_for(request, *replica) {
                Ok(decided) => self.place(workload, template, *replica, &decided),
                Err(explanation) => {
                    self.out.actions.truncate(mark);
                    for replica in &missing[..placed] {
                        self.index.take_back(&self.name, *replica);
                    }
                    self.spread = None;
                    self.hopeless = None;
                    self.unplaced.push((*replica, Why::New, explanation));
                    let others = missing.iter().filter(|other| *other != replica);
                    let others = others.map(|r| (*r, Why::New, Explanation::default()));
                    self.unplaced.extend(others);
                    return;
                }
            }
        }
    }
}
