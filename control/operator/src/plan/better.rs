//! Reconsideration: replicas that run well are looked at again now and then, and moved where
//! another place has become better by more than a margin.
//!
//! Only services are: a job can't say yet where it would go on from, and an exclusive workload
//! would have to stop first. Prices, load and latencies change by the hour, so that one look in
//! some minutes is enough; looks are spread over the interval, so that their work is, too.

use std::time::{Duration, Instant};

use hyperion_api::workload::WorkloadType;
use hyperion_placement::Choice;
use hyperion_placement::model::Request;

use super::Pass;
use super::moves::Why;
use super::place::{Decided, decide_on};
use crate::decider::View;
use crate::index::{PlacementEntry, Template, WorkloadEntry};

/// Services on their way from one node to another, for whatever reason, beyond which none is moved
/// to a better place: copies run twice meanwhile.
pub const MOVES: usize = 5;
/// Parts that a workload's replicas are looked at in: one part at a time, all in one interval.
const PARTS: u32 = 16;
/// Replicas of one part at most. Of a workload with more, a round takes more than an interval.
const LOOKS: u32 = 16;
/// When a look that was put off is tried again, and when a better place is looked at a second time:
/// one sample of a node's load is no reason to move.
pub(super) const LATER: Duration = Duration::from_secs(30);

/// When a workload is looked at next, and from which replica on.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// When.
    pub at: Instant,
    /// First replica.
    pub from: u32,
    /// It had a better place at the last look, and is moved if it still has.
    pub confirm: bool,
}

/// Intervals for which a workload is left alone after a move. Its load is measured here and guessed
/// elsewhere, so that the place it came from may soon look better again.
const SETTLE: u32 = 6;

/// Which part of a workload is due, or when the next one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Now {
        from: u32,
        count: u32,
        confirm: bool,
    },
    At(Instant),
}

impl Pass<'_> {
    /// Looks at the replicas that are due, and moves at most one of them.
    pub(super) fn reconsider(&mut self, workload: &WorkloadEntry, template: &Template) {
        let Some(interval) = self.index.reconsider else {
            return;
        };
        let policy = &workload.object.spec.policy;
        let replicas = workload.replicas();
        if workload.object.spec.type_ != WorkloadType::Service || policy.exclusive || replicas == 0
        {
            return;
        }
        let (from, count, confirm) = match self.due(interval, replicas) {
            Due::Now {
                from,
                count,
                confirm,
            } => (from, count, confirm),
            Due::At(at) => {
                self.wake_at(at);
                return;
            }
        };
        if self.index.handovers() >= MOVES || self.is_unsettled(workload) {
            self.look_later(LATER, from, false);
            return;
        }
        let parts = replicas.min(PARTS);
        let mut wait = interval / parts;
        for i in 0..count {
            let replica = (from + i) % replicas;
            let Some((entry, decided, why)) = self.look(template, replica) else {
                continue;
            };
            if confirm && i == 0 {
                self.carry_over(workload, template, &entry, &why, &decided);
                wait = interval * SETTLE;
                break;
            }
            self.look_later(LATER, replica, true);
            return;
        }
        self.look_later(wait, (from + count) % replicas, false);
    }

    fn due(&mut self, interval: Duration, replicas: u32) -> Due {
        let parts = replicas.min(PARTS);
        let first = Look {
            at: self.now + stagger(&self.name.to_string(), interval / parts),
            from: 0,
            confirm: false,
        };
        let look = *self.index.looks.entry(self.name.clone()).or_insert(first);
        if look.at > self.now {
            return Due::At(look.at);
        }
        Due::Now {
            from: look.from % replicas,
            count: replicas.div_ceil(parts).min(LOOKS),
            confirm: look.confirm,
        }
    }

    fn look_later(&mut self, wait: Duration, from: u32, confirm: bool) {
        let at = self.now + wait;
        let look = Look { at, from, confirm };
        self.index.looks.insert(self.name.clone(), look);
        self.wake_at(at);
    }

    /// True while some replica of the workload has no place or is not ready: one thing at a time.
    fn is_unsettled(&self, workload: &WorkloadEntry) -> bool {
        let placements = self.index.placements.get(&self.name);
        let ready = placements.into_iter().flatten().filter(|(_, p)| {
            p.ready() && p.stopping.is_none() && !p.deleting && p.stored >= p.spec.generation
        });
        let desired = usize::try_from(workload.replicas()).unwrap_or(usize::MAX);
        ready.count() < desired || self.index.hands_over_any(&self.name)
    }

    /// Looks at one replica; none where it stays.
    fn look(
        &mut self,
        template: &Template,
        replica: u32,
    ) -> Option<(PlacementEntry, Decided, Why)> {
        let entry = self.index.placement(&self.name, replica)?.clone();
        let node = self.index.nodes.get(&entry.spec.node)?;
        if !node.connected || entry.spec.template_hash != template.hash {
            return None;
        }
        let (decided, why) = self.better(template, &entry)?;
        Some((entry, decided, why))
    }

    /// A place that is better than where the replica is by more than the margin, and why.
    fn better(&mut self, template: &Template, entry: &PlacementEntry) -> Option<(Decided, Why)> {
        let here = entry.spec.node.clone();
        let mut request = self.request(template, entry.key.index);
        request.current = Some(here.clone());
        // As if the replica had no place yet: the node is what it would be without it, and staying
        // is one of the choices, also on a node that takes no new replicas.
        let mut without = self.without(entry)?;
        without.taints.retain(|taint| taint.effect == "NoExecute");
        let held = self.index.fleet.node(&here)?.clone();
        self.index.fleet.upsert_node(without);
        self.out.decisions += 1;
        let decided = decide_on(self.decider, View::Fleet(&self.index.fleet), &request);
        let staying = decided.as_ref().ok().and_then(|decided| {
            let fleet = &self.index.fleet;
            self.decider
                .score_of_staying(fleet, &request, &decided.verdict)
        });
        self.index.fleet.upsert_node(held);
        let decided = decided.ok()?;
        // Where the guard keeps the policy out, rules decide what must be decided, and move nothing:
        // the policy would move it back.
        if decided.verdict.fallback.is_some() {
            return None;
        }
        let staying = staying?;
        let gain = decided.choice.score - staying;
        let worth_it = gain > self.decider.margin(&decided.verdict);
        if decided.node.id == here || !worth_it {
            self.outbid(request, entry, &decided.verdict, staying);
            return None;
        }
        let why = Why::Better(here, reasons(&request, entry, &decided.choice, staying));
        Some((decided, why))
    }
}

/// The numbers that speak for a move.
fn reasons(request: &Request, entry: &PlacementEntry, choice: &Choice, staying: f64) -> String {
    let mut text = format!(
        "for goal {} it scores {:.3} there and {staying:.3} here",
        request.goal, choice.score
    );
    let (before, after) = (entry.spec.hourly_cost, choice.hourly_cost);
    text.push_str(&format!(", costs {after:.4} and not {before:.4} USD/h"));
    if let (Some(before), Some(after)) = (entry.spec.p99_latency_ms, choice.p99_latency_ms) {
        text.push_str(&format!(", p99 is {after:.1} and not {before:.1} ms"));
    }
    text
}

/// A part of `wait`, the same for the same name: FNV-1a, as for templates.
fn stagger(name: &str, wait: Duration) -> Duration {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    wait.mul_f64((hash >> 11) as f64 / (1_u64 << 53) as f64)
}
