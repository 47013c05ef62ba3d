//! Replicas that have no place and a class that says so get the room of others of lower priority, where
//! nothing else is left: no node has room, and no machine is launched. The others move, or end and wait.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use hyperion_api::conditions;
use hyperion_placement::filter::{Candidate, first_rejection};
use hyperion_placement::model::Request;

use super::moves::Why;
use super::{DECISIONS, Pass, STOP_MARGIN};
use crate::index::{HANDOVER, Index, Name, PlacementEntry, Template, WorkloadEntry};

/// Replicas that would leave a node, and how bad that is: the highest priority among them, and how many
/// they are.
type Loss = (i32, usize, String);

impl Pass<'_> {
    /// Has others give way to replicas that have no place.
    pub(super) fn preempt(&mut self, workload: &WorkloadEntry, template: &Template) {
        if self.unplaced.is_empty()
            || self.out.more
            || self.no_class.is_some()
            || workload.object.spec.policy.gang
        {
            return;
        }
        let Some(rank) = self.index.preempts(&self.name) else {
            return;
        };
        let wants = self.unplaced.iter().filter(|(_, why, _)| has_none(why));
        let wants: Vec<u32> = wants.map(|(replica, ..)| *replica).collect();
        let mut looks = 0;
        for replica in wants {
            let at = (self.name.clone(), replica);
            if self.is_launching(replica) {
                continue;
            }
            if let Some((text, until)) = self.index.waits_for_way(&at, self.now) {
                self.room = Some(text);
                self.wake_at(until);
                continue;
            }
            if looks == DECISIONS {
                return;
            }
            looks += 1;
            let mut request = self.request(template, replica);
            if !self.within_quota(&mut request, replica) {
                return;
            }
            let Some((node, others)) = least_loss(self.index, &request, rank) else {
                // The others ask for the same.
                return;
            };
            let named: Vec<String> = others
                .iter()
                .map(|(name, r)| format!("{name}/{r}"))
                .collect();
            let note = format!(
                "replica {replica} fits nowhere; with priority {rank} it gets the room of {} on node {node}",
                named.join(", ")
            );
            self.event(workload, false, conditions::EVENT_PREEMPTS, note);
            let until = self.now + self.patience(&others);
            self.index.give_way(&at, &node, others, until);
            let waits = self.index.waits_for_way(&at, self.now);
            self.room = waits.map(|(text, _)| text);
            self.wake_at(until);
        }
    }

    /// How long others may take to give way: they are placed elsewhere first, or stop.
    fn patience(&self, others: &[At]) -> std::time::Duration {
        let grace = |name: &Name| {
            let workload = self.index.workloads.get(name)?;
            Some(workload.template.as_ref().ok()?.grace)
        };
        let longest = others.iter().filter_map(|(name, _)| grace(name)).max();
        longest.unwrap_or_default() + HANDOVER + STOP_MARGIN
    }

    /// Lets a replica go whose room another gets; false where it gives way to nobody.
    pub(super) fn gives_way(
        &mut self,
        workload: &WorkloadEntry,
        template: &Template,
        entry: &PlacementEntry,
    ) -> bool {
        let replica = entry.key.index;
        let at = (self.name.clone(), replica);
        let Some(gives) = self.index.gives_way(&at).cloned() else {
            return false;
        };
        if gives.node != entry.spec.node || entry.moving || entry.ended() {
            return false;
        }
        if !gives.told {
            self.index.told_of_way(&at);
            let note = format!("replica {replica}: {}", gives.text);
            self.event(workload, true, conditions::EVENT_PREEMPTED, note);
        }
        if !workload.runs_alone() {
            if self.out.decisions >= DECISIONS {
                // It may have another place: that is looked for in the next pass.
                self.out.more = true;
                return true;
            }
            let mut request = self.request(template, replica);
            request.avoid.insert(gives.node.clone(), gives.text.clone());
            if let Ok(decided) = self.decide_for(request, replica) {
                let why = Why::GivesWay(gives.text);
                self.carry_over(workload, template, entry, &why, &decided);
                return true;
            }
        }
        self.make_way(replica);
        true
    }

    /// Ends a replica; whoever it gives way to is next.
    pub(super) fn make_way(&mut self, replica: u32) {
        self.retire(replica);
        let at = (self.name.clone(), replica);
        let ended = self
            .index
            .placement(&self.name, replica)
            .is_none_or(|e| e.deleting);
        if ended && let Some(gives) = self.index.gives_way(&at) {
            let to = gives.to.0.clone();
            self.index.touch(&to, crate::index::Priority::High);
        }
    }
}

/// A replica of a workload.
type At = (Name, u32);

/// It has no place now; one that stays where it is until it has a better one can wait.
fn has_none(why: &Why) -> bool {
    matches!(
        why,
        Why::New | Why::GivesWay(_) | Why::Lost(_) | Why::Moving(_)
    )
}

/// The node where the least is lost if replicas of lower priority leave it so that the request fits, and
/// those replicas. Never of `exclusive` workloads, and none that is on its way already.
fn least_loss(index: &Index, request: &Request, rank: i32) -> Option<(String, Vec<At>)> {
    let mut by_node: BTreeMap<&str, Vec<(i32, At)>> = BTreeMap::new();
    for (name, workload) in &index.workloads {
        // One that can't be read can't be placed elsewhere, and nor can one whose class is not there.
        let unsure = workload.template.is_err()
            || index.broken.contains_key(name)
            || index.without_class(name).is_some();
        if unsure || workload.object.spec.policy.exclusive || workload.deleting() {
            continue;
        }
        for entry in index.placements_of(name) {
            let at = (name.clone(), entry.key.index);
            let its = index.rank_of(entry);
            let stays = entry.takes_room() && entry.stopping.is_none() && !entry.moving;
            if stays && its < rank && index.gives_way(&at).is_none() {
                by_node.entry(&entry.spec.node).or_default().push((its, at));
            }
        }
    }
    let mut best: Option<(Loss, Vec<At>)> = None;
    for (node, mut lower) in by_node {
        let fits = |gone: &BTreeSet<At>| {
            let left = index.node_without(node, gone);
            left.is_some_and(|left| first_rejection(request, &Candidate::from(&left)).is_none())
        };
        let mut gone: BTreeSet<At> = lower.iter().map(|(_, at)| at.clone()).collect();
        if !fits(&gone) {
            continue;
        }
        // Those that need not go stay, the highest priority first.
        lower.sort_by_key(|(its, at)| (Reverse(*its), at.clone()));
        for (_, at) in &lower {
            gone.remove(at);
            if !fits(&gone) {
                gone.insert(at.clone());
            }
        }
        let highest = lower.iter().filter(|(_, at)| gone.contains(at));
        let highest = highest.map(|(its, _)| *its).max().unwrap_or(i32::MIN);
        let loss = (highest, gone.len(), node.to_owned());
        if best.as_ref().is_none_or(|(least, _)| loss < *least) {
            best = Some((loss, gone.into_iter().collect()));
        }
    }
    let ((_, _, node), others) = best?;
    Some((node, others))
}
