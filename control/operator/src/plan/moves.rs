//! Why a replica leaves its node, and how: a service's new copy is started before the old one is
//! stopped wherever the old one still serves; a job's or an exclusive workload's never runs twice.

use std::fmt;
use std::time::Duration;

use hyperion_api::conditions;
use hyperion_api::placement::PlacementPhase;
use hyperion_placement::Constraint;
use hyperion_placement::filter::{Candidate, first_rejection};
use hyperion_placement::model::Node;

use super::place::Decided;
use super::{Pass, STOP_MARGIN};
use crate::index::{
    Failure, HANDOVER, Leaving, NodeEntry, PlacementEntry, Template, WorkloadEntry,
};

/// Why a replica needs a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// It has none.
    New,
    /// Its node is out of reach for too long, revoked, or gone.
    Lost(String),
    /// Its node is being drained.
    Draining(String),
    /// Its cloud is about to take the node back, in these words.
    Interrupted(String, String),
    /// Its cloud may be about to, in these words.
    AtRisk(String, String),
    /// The node no longer satisfies a hard constraint.
    Constraint(String, Constraint),
    /// The template changed.
    Template,
    /// It fails there, for this reason.
    Failing(String, String),
    /// A replica of higher priority gets its room, in these words.
    GivesWay(String),
    /// It was stopped to be placed elsewhere.
    Moving(String),
    /// It runs well on this node, and would do better elsewhere, by these numbers.
    Better(String, String),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::New => write!(f, "it has no place yet"),
            Self::Lost(node) => write!(f, "node {node} is lost"),
            Self::Draining(node) => write!(f, "node {node} is draining"),
            Self::Interrupted(node, words) => {
                write!(f, "node {node} is about to be taken away: {words}")
            }
            Self::AtRisk(node, words) => write!(f, "node {node} may be taken away: {words}"),
            Self::Constraint(node, constraint) => {
                write!(f, "node {node} no longer satisfies {constraint}")
            }
            Self::Template => write!(f, "the template changed"),
            Self::Failing(node, reason) => write!(f, "it fails on node {node}: {reason}"),
            Self::GivesWay(words) => f.write_str(words),
            Self::Moving(node) => write!(f, "it left node {node}"),
            Self::Better(node, numbers) => write!(f, "it is better than node {node}: {numbers}"),
        }
    }
}

/// Nodes that have not been heard since this control plane began may still be on their way back:
/// agents wait up to 15 s between attempts.
pub const FIRST_CONTACT: Duration = Duration::from_secs(20);
/// What clocks of devices may be apart after `stopAfter`, at least; a fiftieth of the time where that
/// is more.
const CLOCKS_APART: Duration = Duration::from_secs(2);
/// How long a replica may fail to be created (no image, no runtime) before another node is tried.
const CREATE_FAILURES: Duration = Duration::from_secs(10);
/// Restarts before another node is tried.
const CRASHES: u32 = 5;
/// First wait before a replica that failed for good, with nowhere else to go, is tried again.
const RETRY: Duration = Duration::from_secs(30);
/// Reports of a job's own end: no other node would do better.
const OWN_END: &[&str] = &[
    "Completed",
    "Error",
    "LivenessFailed",
    "OOMKilled",
    "StartFailed",
];

impl Pass<'_> {
    /// Looks at every desired replica.
    pub(super) fn replicas(&mut self, workload: &WorkloadEntry, template: &Template) {
        let desired = workload.replicas();
        let mut updating = self.updating(template, desired);
        let at_once = (desired as usize / 4).max(1);
        let gang = workload.object.spec.policy.gang;
        if gang {
            let known = self.index.placements.get(&self.name);
            let has = |replica: &u32| known.is_some_and(|p| p.contains_key(replica));
            let missing = (0..desired).filter(|r| !has(r) && !self.open.contains_key(r));
            let missing: Vec<u32> = missing.collect();
            self.place_together(workload, template, &missing);
        }
        for replica in 0..desired {
            if self.open.contains_key(&replica) {
                continue;
            }
            let Some(entry) = self.index.placement(&self.name, replica).cloned() else {
                if !gang {
                    self.place_new(workload, template, replica);
                }
                continue;
            };
            if entry.deleting || (entry.stopping.is_some() && !entry.moving) {
                self.make_way(replica);
                continue;
            }
            if self.gives_way(workload, template, &entry) {
                continue;
            }
            let Some(why) = self.why_move(workload, template, &entry) else {
                continue;
            };
            if why == Why::Template && entry.status.ready {
                if updating >= at_once {
                    continue;
                }
                updating += 1;
            }
            self.relocate(workload, template, &entry, why);
        }
    }

    /// Replicas on their way to the current template: the rest waits for them.
    fn updating(&self, template: &Template, desired: u32) -> usize {
        let placements = self.index.placements.get(&self.name).into_iter().flatten();
        placements
            .filter(|(index, p)| {
                **index < desired
                    && p.spec.template_hash == template.hash
                    && !p.status.ready
                    && !p.ended()
            })
            .count()
    }

    fn place_new(&mut self, workload: &WorkloadEntry, template: &Template, replica: u32) {
        match self.decide(template, replica) {
            None => {}
            Some(Ok(decided)) => self.place(workload, template, replica, &decided),
            Some(Err(explanation)) => {
                let why = self.why_new(replica);
                self.unplaced.push((replica, why, explanation));
            }
        }
    }

    /// Why a replica without a placement needs a place.
    fn why_new(&self, replica: u32) -> Why {
        let gives = self.index.gives_way(&(self.name.clone(), replica));
        gives.map_or(Why::New, |gives| Why::GivesWay(gives.text.clone()))
    }

    /// Notes a decision about a replica that has no place, and says so.
    pub(super) fn place(
        &mut self,
        workload: &WorkloadEntry,
        template: &Template,
        replica: u32,
        decided: &Decided,
    ) {
        let why = self.why_new(replica);
        self.commit(workload, template, replica, decided);
        self.announce(workload, replica, &why, decided);
    }

    /// Why this replica can't stay as it is; none while it can.
    pub(super) fn why_move(
        &mut self,
        workload: &WorkloadEntry,
        template: &Template,
        entry: &PlacementEntry,
    ) -> Option<Why> {
        let node = entry.spec.node.clone();
        let job = workload.is_job();
        let own_end = OWN_END.contains(&entry.status.reason.as_str());
        match entry.status.phase {
            PlacementPhase::Succeeded if job => return None,
            PlacementPhase::Failed if job && own_end => return None,
            _ => {}
        }
        if self.lost(workload, template, &node) {
            return Some(Why::Lost(node));
        }
        if entry.moving {
            return Some(Why::Moving(node));
        }
        if let Some(why) = self.interrupted(workload, &node) {
            return Some(why);
        }
        if let Some(why) = self.failing(job, entry) {
            return Some(why);
        }
        if entry.spec.template_hash != template.hash {
            return Some(Why::Template);
        }
        let held = self.index.nodes.get(&node)?;
        let leaves = held.given_back || held.emptied;
        if leaves || held.spec.as_ref().is_some_and(|s| s.draining) {
            return Some(Why::Draining(node));
        }
        let mut here = self.without(entry)?;
        // Other effects only keep new replicas away.
        here.taints.retain(|t| t.effect == "NoExecute");
        broken_constraint(template, &here).map(|c| Why::Constraint(node, c))
    }

    /// True where the node is to be given up.
    fn lost(&mut self, workload: &WorkloadEntry, template: &Template, node: &str) -> bool {
        let Some(entry) = self.index.nodes.get(node) else {
            return true;
        };
        if entry.spec.as_ref().is_none_or(|s| s.revoked) {
            return true;
        }
        let Some(down) = entry.down_for(self.now) else {
            return false;
        };
        let mut after = if entry.seen {
            template.replace_after
        } else {
            template.replace_after.max(FIRST_CONTACT)
        };
        let mut down = down;
        if let Some(end) = entry.ends_at() {
            // It went when its cloud said that it would: it does not come back.
            after = after.min((end + down).saturating_duration_since(self.now));
        }
        if workload.object.spec.policy.exclusive {
            // At most one copy: nobody can tell what a node that is out of reach still runs, unless
            // it stops by itself. Its site may have moved the replica to any node that was cut off
            // later, and that one stops it later.
            let Some(stop_after) = template.stop_after else {
                return false;
            };
            let cut_off = stop_after + template.grace + STOP_MARGIN;
            after = after.max(cut_off + CLOCKS_APART.max(cut_off / 50));
            let site = entry.spec.as_ref().map_or("", |s| s.site.as_str());
            let of_site = |n: &&NodeEntry| n.spec.as_ref().is_some_and(|s| s.site == site);
            if !site.is_empty() {
                let others = self.index.nodes.values().filter(of_site);
                let last = others.filter_map(|n| n.down_for(self.now)).min();
                down = last.map_or(down, |last| last.min(down));
            }
        }
        if down < after {
            let at = self.now + (after - down);
            self.wake_at(at);
        }
        down >= after
    }

    /// A copy that was ready when it was last heard of, on a node that may come back with it.
    fn may_return(&self, entry: &PlacementEntry) -> bool {
        let node = self.index.nodes.get(&entry.spec.node);
        let back = |n: &NodeEntry| !n.connected && n.spec.as_ref().is_some_and(|s| !s.revoked);
        entry.served && node.is_some_and(back)
    }

    /// True for a replica of an exclusive workload that is to end on a node out of reach: it may run
    /// there until the node is back, or lost. Forgotten before that, it would run twice when it is
    /// wanted again.
    pub(super) fn may_go_on_unseen(&mut self, replica: u32) -> bool {
        let workload = self.index.workloads.get(&self.name);
        // Asked first: most are not.
        let exclusive = |w: &&WorkloadEntry| w.object.spec.policy.exclusive && !w.deleting();
        let Some(workload) = workload.filter(exclusive).cloned() else {
            return false;
        };
        let entry = self.index.placement(&self.name, replica);
        let there = |e: &&PlacementEntry| !e.ended() && !e.deleting && e.key.uid == workload.uid();
        let Some(node) = entry.filter(there).map(|e| e.spec.node.clone()) else {
            return false;
        };
        if !self.unseen(&workload, &node) {
            return false;
        }
        // As one that moves it is waited for when its node is back.
        self.stopped(replica, true);
        let note = format!(
            "node {node} is out of reach; replica {replica} may run there, and ends when it is back"
        );
        self.say(&workload, conditions::EVENT_STOP_UNCONFIRMED, &note);
        true
    }

    /// True where nobody can tell whether the node runs a copy of this exclusive workload.
    pub(super) fn unseen(&mut self, workload: &WorkloadEntry, node: &str) -> bool {
        let Ok(template) = workload.template.clone() else {
            return false;
        };
        workload.object.spec.policy.exclusive
            && self.away(node)
            && !self.lost(workload, &template, node)
    }

    /// A replica that another node may run better.
    fn failing(&mut self, job: bool, entry: &PlacementEntry) -> Option<Why> {
        let report = entry.report.as_ref()?;
        let since = entry.failing_since?;
        let own_end = OWN_END.contains(&report.reason.as_str());
        let due = match super::status::phase(report) {
            PlacementPhase::Failed if job && own_end => return None,
            PlacementPhase::Failed => since,
            PlacementPhase::Backoff if report.restarts == 0 => since + CREATE_FAILURES,
            PlacementPhase::Backoff if report.restarts >= CRASHES => since,
            _ => return None,
        };
        let due = entry.retry_at.map_or(due, |retry| due.max(retry));
        if due > self.now {
            self.wake_at(due);
            return None;
        }
        let reason = if report.message.is_empty() {
            report.reason.clone()
        } else {
            format!("{}: {}", report.reason, report.message)
        };
        Some(Why::Failing(entry.spec.node.clone(), reason))
    }

    fn relocate(
        &mut self,
        workload: &WorkloadEntry,
        template: &Template,
        entry: &PlacementEntry,
        why: Why,
    ) {
        let replica = entry.key.index;
        if let Why::Failing(node, reason) = &why {
            let failure = Failure {
                at: self.now,
                reason: reason.clone(),
            };
            let at = (self.name.clone(), replica);
            self.index
                .failures
                .entry(at)
                .or_default()
                .insert(node.clone(), failure);
        }
        // The same node, where it still can: images are there, and room is.
        let stays = why == Why::Template && self.fits_here(workload, template, entry);
        let here = if stays {
            self.decide_here(template, entry)
        } else {
            None
        };
        let decided = match here {
            Some(decided) => Ok(decided),
            None => match self.decide(template, replica) {
                None => return,
                Some(decided) => decided,
            },
        };
        match decided {
            Ok(decided) => self.carry_over(workload, template, entry, &why, &decided),
            Err(explanation) => {
                if let Why::Failing(..) = &why {
                    self.try_again(workload, template, entry);
                } else if let Why::AtRisk(..) = &why {
                    self.stays_at_risk();
                    return;
                } else if must_stop(&why) || self.runs_out(workload, entry, &why) {
                    self.stopped(replica, true);
                }
                self.unplaced.push((replica, why, explanation));
            }
        }
    }

    fn fits_here(
        &mut self,
        workload: &WorkloadEntry,
        template: &Template,
        entry: &PlacementEntry,
    ) -> bool {
        let node = self.index.nodes.get(&entry.spec.node).cloned();
        let open = node.is_some_and(|n| {
            n.connected && !n.emptied && n.spec.is_some_and(|s| !s.draining && !s.revoked)
        });
        open && !self.lost(workload, template, &entry.spec.node)
    }

    pub(super) fn carry_over(
        &mut self,
        workload: &WorkloadEntry,
        template: &Template,
        entry: &PlacementEntry,
        why: &Why,
        decided: &Decided,
    ) {
        let replica = entry.key.index;
        let same_node = decided.node.id == entry.spec.node;
        let serves = !matches!(why, Why::Lost(_) | Why::Failing(..) | Why::Moving(_));
        let alone = workload.runs_alone();
        if alone && !same_node && self.away(&entry.spec.node) && !matches!(why, Why::Lost(_)) {
            // Nobody can tell whether it still runs there: it waits for its node, or its loss.
            return;
        }
        if serves && alone && !same_node && !self.stopped(replica, true) {
            // Placed when the old copy has stopped.
            return;
        }
        if matches!(why, Why::Moving(_)) && !self.stopped(replica, true) {
            return;
        }
        if !same_node {
            // Nothing presses a move to a better place: a slow start must not cost the service. Nor
            // is a copy on a node that is back to be stopped for one that is not ready.
            let patience = match why {
                Why::Better(..) | Why::AtRisk(..) | Why::Lost(_) => HANDOVER * 15,
                _ => HANDOVER,
            };
            let patience = match why {
                Why::Interrupted(node, _) => self.serves_until(node, patience) - self.now,
                _ => patience,
            };
            let may_return = matches!(why, Why::Lost(_)) && self.may_return(entry);
            let until = ((serves || may_return) && !alone).then(|| self.now + patience);
            self.index.leave(Leaving::of(entry, until));
        }
        let lost = matches!(why, Why::Lost(_) | Why::Failing(..));
        let violations = u32::from(matches!(why, Why::Constraint(..)));
        self.leaves(replica, lost, violations);
        // Names what leaves.
        self.commit(workload, template, replica, decided);
        self.announce(workload, replica, why, decided);
    }

    /// Nowhere else to go. One that is retried by its node is left to it; one that failed for good
    /// is given another chance on the same node, later each time.
    fn try_again(&mut self, workload: &WorkloadEntry, template: &Template, entry: &PlacementEntry) {
        let replica = entry.key.index;
        let wait = RETRY * 2_u32.pow(entry.retries.min(4));
        let next = self.now + wait;
        let failed = entry
            .report
            .as_ref()
            .is_some_and(|r| super::status::phase(r) == PlacementPhase::Failed);
        let waited = entry.retry_at.is_some();
        if failed
            && waited
            && let Some(decided) = self.decide_here(template, entry)
        {
            self.outcome(replica, false, 0);
            self.commit(workload, template, replica, &decided);
        }
        if let Some(held) = self.index.entry_mut(&self.name, replica) {
            held.retry_at = Some(next);
            held.retries = entry.retries + 1;
        }
        self.wake_at(next);
    }

    fn announce(&mut self, workload: &WorkloadEntry, replica: u32, why: &Why, decided: &Decided) {
        let at = &decided.node.location;
        let region = if at.site.is_empty() {
            &at.region
        } else {
            &at.site
        };
        let fit = decided.verdict.decision.explanation.summary();
        let place = format!("node {} ({} {region}): {fit}", decided.node.id, at.provider);
        if let Why::Better(..) = why {
            let note = format!("Moved: replica {replica} goes to {place}, because {why}");
            self.event(workload, false, conditions::EVENT_MOVED, note);
        } else if *why == Why::New {
            let note = format!("replica {replica} goes to {place}");
            self.event(workload, false, conditions::EVENT_PLACED, note);
        } else {
            let note = format!("replica {replica} goes to {place}, because {why}");
            self.event(workload, false, conditions::EVENT_REPLACED, note);
        }
    }
}

/// Sovereignty: better nowhere than in the wrong place.
fn must_stop(why: &Why) -> bool {
    matches!(
        why,
        Why::Constraint(
            _,
            Constraint::Geographies | Constraint::Clouds | Constraint::Tiers | Constraint::Taints
        )
    )
}

/// The constraint on the place itself that a node breaks; room and price do not count, since the
/// replica is there already.
fn broken_constraint(template: &Template, node: &Node) -> Option<Constraint> {
    let mut request = template.request.clone();
    request.max_hourly_cost = None;
    match first_rejection(&request, &Candidate::from(node)) {
        Some(
            c @ (Constraint::Geographies
            | Constraint::Clouds
            | Constraint::Tiers
            | Constraint::Architecture
            | Constraint::NodeSelector
            | Constraint::Taints),
        ) => Some(c),
        _ => None,
    }
}
