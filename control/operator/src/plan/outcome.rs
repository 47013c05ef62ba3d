//! What became of placements, to learn from.

use std::time::Instant;

use hyperion_placement::filter::Candidate;
use hyperion_placement::latency;
use hyperion_placement::model::Goal;
use hyperion_policy::{Experience, Outcome};

use super::place::Decided;
use super::{Action, Pass};
use crate::decider::Memory;
use crate::index::{Template, WorkloadEntry};

/// Decisions that are remembered until their outcome is known: about 25 MB. Of those beyond, no
/// experience is kept.
const REMEMBERED: usize = 20_000;

/// A decision that waits for its outcome.
#[derive(Debug, Clone)]
pub struct Pending {
    goal: Goal,
    generation: i64,
    since: Instant,
    memory: Memory,
}

impl Pass<'_> {
    /// Remembers a decision until its outcome is known.
    pub(super) fn remember(
        &mut self,
        template: &Template,
        replica: u32,
        generation: i64,
        decided: &Decided,
    ) {
        let Some(memory) = decided.verdict.memory.clone() else {
            return;
        };
        if self.index.pending.len() >= REMEMBERED {
            return;
        }
        let pending = Pending {
            goal: template.request.goal,
            generation,
            since: self.now,
            memory,
        };
        let at = (self.name.clone(), replica);
        self.index.pending.insert(at, pending);
    }

    /// The replica's time at its place is over. `completed`: for a job, that it ran to its end; for
    /// a service, that its place was not lost.
    pub(super) fn outcome(&mut self, replica: u32, completed: bool, violations: u32) {
        self.ended(replica, completed, false, violations);
    }

    /// Its time there is over since it goes elsewhere. `lost`: the place was lost, or it failed there.
    pub(super) fn leaves(&mut self, replica: u32, lost: bool, violations: u32) {
        let workload = self.index.workloads.get(&self.name);
        let job = workload.is_some_and(WorkloadEntry::is_job);
        self.ended(replica, !(lost || job), !lost, violations);
    }

    fn ended(&mut self, replica: u32, completed: bool, moved: bool, violations: u32) {
        let at = (self.name.clone(), replica);
        let Some(pending) = self.index.pending.remove(&at) else {
            return;
        };
        let Some(entry) = self.index.placement(&self.name, replica) else {
            return;
        };
        if entry.spec.generation != pending.generation {
            return;
        }
        let hours = self.now.duration_since(pending.since).as_secs_f64() / 3600.0;
        let outcome = Outcome {
            cost_per_hour: entry.spec.hourly_cost,
            p99_ms: self.p99_now(replica),
            completed,
            moved,
            violations,
            hours,
        };
        let experience = Experience {
            goal: pending.goal,
            request: pending.memory.request,
            candidates: pending.memory.candidates,
            chosen: pending.memory.chosen,
            log_probability: pending.memory.log_probability,
            outcome,
        };
        self.out
            .actions
            .push(Action::Experience(Box::new(experience)));
    }

    /// Of a service: what its clients see by the load that is measured on its node now; where the
    /// node is gone, what was expected.
    fn p99_now(&self, replica: u32) -> Option<f64> {
        let entry = self.index.placement(&self.name, replica)?;
        let workload = self.index.workloads.get(&self.name)?;
        if workload.is_job() {
            return None;
        }
        let measured = workload.template.as_ref().ok().and_then(|template| {
            let node = self.without(entry)?;
            let matrix = self.index.fleet.latency();
            let mut request = template.request.clone();
            // Its own load is in what is measured.
            request.current = Some(entry.spec.node.clone());
            latency::p99_ms(matrix, &request, &Candidate::from(&node))
        });
        measured.or(entry.spec.p99_latency_ms)
    }
}
