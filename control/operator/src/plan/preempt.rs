//! Replicas that have no place and a class that says so get the room of others of lower priority, where
//! nothing else is left: no node has room, and no machine is launched. The others move, or end and wait.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use hyperion_api::conditions;
use hyperion_placement::filter::{Candidate, Constraint, first_rejection};
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
        let mut all: Option<Lower> = None;
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
            let all = all.get_or_insert_with(|| lower(self.index, rank));
            let Some((node, others)) = least_loss(self.index, &request, all) else {
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
            if let Some(there) = all.get_mut(&node) {
                there.retain(|lesser| !others.contains(&lesser.at));
            }
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

/// A replica of lower priority.
#[derive(Debug, Clone)]
struct Lesser {
    priority: i32,
    at: At,
    has: Amounts,
}

/// Thousandths of cores, bytes of memory, and thousandths of GPUs.
type Amounts = [u64; 3];

/// Replicas of lower priority that may give way, by node.
type Lower = BTreeMap<String, Vec<Lesser>>;

/// All that may give way to this priority. Never those of `exclusive` workloads, and none that is on its way
/// already. It looks at every placement there is, and so is made once a pass.
fn lower(index: &Index, rank: i32) -> Lower {
    let mut by_node = Lower::new();
    for (name, workload) in &index.workloads {
        // One that can't be read can't be placed elsewhere, and nor can one whose class is not there.
        let unsure = workload.template.is_err()
            || index.broken.contains_key(name)
            || index.without_class(name).is_some();
        if unsure || workload.object.spec.policy.exclusive || workload.deleting() {
            continue;
        }
        for entry in index.placements_of(name) {
            let its = index.rank_of(entry);
            let stays = entry.takes_room() && entry.stopping.is_none() && !entry.moving;
            if !stays || its >= rank {
                continue;
            }
            let at = (name.clone(), entry.key.index);
            if index.gives_way(&at).is_some() {
                continue;
            }
            let gpus = entry.spec.gpus.iter();
            let gpus = gpus.map(|g| u64::try_from(g.millis).unwrap_or(0)).sum();
            let asked = &entry.resources;
            let lesser = Lesser {
                priority: its,
                at,
                has: [asked.cpu_millis, asked.memory_bytes, gpus],
            };
            match by_node.get_mut(&entry.spec.node) {
                Some(held) => held.push(lesser),
                None => {
                    by_node.insert(entry.spec.node.clone(), vec![lesser]);
                }
            }
        }
    }
    by_node
}

/// The node where the least is lost if replicas of lower priority leave it so that the request fits, and
/// those replicas.
fn least_loss(index: &Index, request: &Request, lower: &Lower) -> Option<(String, Vec<At>)> {
    let mut best: Option<(Loss, Vec<At>)> = None;
    for (node, lower) in lower {
        let Some(bound) = least_of(index, request, node, lower) else {
            continue;
        };
        // Most nodes are not looked at any closer.
        if best.as_ref().is_some_and(|(best, _)| bound >= *best) {
            continue;
        }
        let fits = |gone: &BTreeSet<At>| {
            let left = index.node_without(node, gone);
            left.is_some_and(|left| first_rejection(request, &Candidate::from(&left)).is_none())
        };
        let mut gone: BTreeSet<At> = lower.iter().map(|l| l.at.clone()).collect();
        if !fits(&gone) {
            continue;
        }
        // Those that need not go stay, the highest priority first.
        let mut lower = lower.clone();
        lower.sort_by(|a, b| (Reverse(a.priority), &a.at).cmp(&(Reverse(b.priority), &b.at)));
        for lesser in &lower {
            gone.remove(&lesser.at);
            if !fits(&gone) {
                gone.insert(lesser.at.clone());
            }
        }
        let highest = lower.iter().filter(|l| gone.contains(&l.at));
        let highest = highest.map(|l| l.priority).max().unwrap_or(i32::MIN);
        let loss = (highest, gone.len(), node.clone());
        if best.as_ref().is_none_or(|(least, _)| loss < *least) {
            best = Some((loss, gone.into_iter().collect()));
        }
    }
    let ((_, _, node), others) = best?;
    Some((node, others))
}

/// No less than this is lost on a node, by what is missing there; none where the request can't be there
/// whoever leaves.
fn least_of(index: &Index, request: &Request, node: &str, lower: &[Lesser]) -> Option<Loss> {
    let left = index.fleet.node(node)?;
    match first_rejection(request, &Candidate::from(left)) {
        // Room is missing; and pools that are left alone, which count as cordoned, are taken all the same.
        None
        | Some(
            Constraint::Cordoned
            | Constraint::Gpu
            | Constraint::Cpu
            | Constraint::Memory
            | Constraint::MaxHourlyCost,
        ) => {}
        Some(_) => return None,
    }
    let free_gpus = left.gpus.iter().map(|gpu| u64::from(gpu.free_millis)).sum();
    let free = [left.free.cpu_millis, left.free.memory_bytes, free_gpus];
    let asked = &request.resources;
    let wants = [
        asked.cpu_millis,
        asked.memory_bytes,
        request.gpu.total_millis(),
    ];
    let mut fewest = 1;
    for (i, (wants, mut has)) in wants.into_iter().zip(free).enumerate() {
        let mut amounts: Vec<u64> = lower.iter().map(|l| l.has[i]).collect();
        amounts.sort_unstable_by_key(|amount| Reverse(*amount));
        let mut leave = 0;
        while has < wants {
            has = has.saturating_add(*amounts.get(leave)?);
            leave += 1;
        }
        fewest = fewest.max(leave);
    }
    let mut priorities: Vec<i32> = lower.iter().map(|l| l.priority).collect();
    priorities.sort_unstable();
    Some((*priorities.get(fewest - 1)?, fewest, node.to_owned()))
}
