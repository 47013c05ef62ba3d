//! One step of one rollout. Pure: what is known goes in, what is to be done comes out.

use std::collections::{BTreeMap, BTreeSet};

use hyperion_api::rollout::{Exclusive, RolloutFailure, RolloutPhase, RolloutStage};
use jiff::Timestamp;

use super::node::{Of, State, View, since};
use crate::text::listed;

/// Nodes that may have a bundle ready beyond those that may be restarted at once, for each of them.
const AHEAD: usize = 2;
/// Time after which a node out of reach is not emptied any more: it may be back in a moment.
const AWAY: std::time::Duration = std::time::Duration::from_secs(30);
/// Failures that are listed.
const LISTED: usize = 50;
/// Names that are given in a sentence.
const NAMED: usize = 3;

/// A node between the old version and the new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moving {
    /// Where it is.
    pub stage: RolloutStage,
    /// Since when.
    pub since: Timestamp,
    /// The order that it has.
    pub order: String,
}

/// What a node is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Id.
    pub id: String,
    /// To restart into it.
    pub activate: bool,
}

/// How far it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Phase.
    pub phase: RolloutPhase,
    /// Why.
    pub reason: &'static str,
    /// In words.
    pub message: String,
    /// Wave, from 0.
    pub wave: usize,
    /// Number of waves.
    pub waves: usize,
    /// Nodes that it is for.
    pub total: usize,
    /// Have the version.
    pub done: usize,
    /// Ended without it.
    pub failed: usize,
    /// Can't have it.
    pub refused: usize,
    /// Have begun and not ended.
    pub updating: usize,
    /// Are not Ready, or are emptied or restart.
    pub unavailable: usize,
    /// Of those that failed, then those that can't have it, the first.
    pub failures: Vec<RolloutFailure>,
}

/// What follows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// What each node is told; nothing is wanted of the others.
    pub orders: BTreeMap<String, Order>,
    /// Nodes between the versions from now on. It counts when it is stored.
    pub moving: BTreeMap<String, Moving>,
    /// How far it is.
    pub tally: Tally,
}

/// Nodes that something waits for.
#[derive(Default)]
struct Names {
    first: Vec<String>,
    count: usize,
}

impl Names {
    fn add(&mut self, name: &str) {
        self.count += 1;
        if self.first.len() < NAMED {
            self.first.push(name.to_owned());
        }
    }

    fn list(&self) -> String {
        listed(&self.first, self.count)
    }
}

/// What keeps nodes from beginning.
#[derive(Default)]
struct Waits {
    offline: Names,
    locked: Names,
    taken: Names,
    taken_by: String,
    /// As many nodes as may be are not Ready.
    full: bool,
}

struct Work<'a> {
    of: &'a Of,
    nodes: &'a [View<'a>],
    states: Vec<State>,
    stored: &'a BTreeMap<String, Moving>,
    /// Nodes in the order in which they begin.
    turns: Vec<usize>,
    now: Timestamp,
    tally: Tally,
    /// Nodes that have ended, or are emptied or restart.
    started: usize,
    /// Nodes that are to have ended with this wave.
    goal: usize,
    most_unavailable: usize,
    waits: Waits,
    step: Step,
}

/// One step: `nodes` are those that the rollout selects, `stored` what the API holds of those between
/// the versions, `told` those that have an order and may not have answered.
#[must_use]
pub fn step(
    of: &Of,
    nodes: &[View<'_>],
    stored: &BTreeMap<String, Moving>,
    told: &BTreeSet<String>,
    now: Timestamp,
) -> Step {
    let states = nodes.iter().map(|n| of.state(n, stored.get(n.name), now));
    let states: Vec<State> = states.collect();
    let mut turns: Vec<usize> = (0..nodes.len()).collect();
    turns.sort_by_cached_key(|n| nodes.get(*n).map(|v| (of.turn(v.name), v.name)));
    let mut work = Work {
        of,
        nodes,
        states,
        stored,
        turns,
        now,
        tally: Tally::default(),
        started: 0,
        goal: 0,
        most_unavailable: 1,
        waits: Waits::default(),
        step: Step::default(),
    };
    work.count();
    if work.tally.phase != RolloutPhase::Complete {
        let begins = work.tally.phase == RolloutPhase::Progressing;
        let open = of.plan.open(now);
        work.go_on(begins && open);
        work.begin(begins && open);
        work.orders(begins, told);
        work.verdict(open);
    }
    work.step.tally = work.tally;
    work.step
}

impl<'a> Work<'a> {
    fn all(&self) -> impl Iterator<Item = (&'a View<'a>, &State)> {
        self.nodes.iter().zip(&self.states)
    }

    /// In the order in which they begin.
    fn in_turn(&self) -> Vec<(&'a View<'a>, State)> {
        let at = |n: &usize| Some((self.nodes.get(*n)?, self.states.get(*n)?.clone()));
        self.turns.iter().filter_map(at).collect()
    }

    /// It runs something that holds it.
    fn locked(&self, node: &View<'_>) -> bool {
        self.of.empties() && self.of.plan.exclusive == Exclusive::Wait && node.exclusive.is_some()
    }

    /// Counts nodes, and finds the wave and whether the rollout goes on.
    fn count(&mut self) {
        let plan = &self.of.plan;
        let mut tally = Tally::default();
        let (mut failed, mut refused) = (Vec::new(), Vec::new());
        let mut between = 0;
        for (node, state) in self.all() {
            let failure = |reason: &str, message: &str| RolloutFailure {
                node: node.name.to_owned(),
                reason: reason.to_owned(),
                message: message.to_owned(),
            };
            match state {
                State::Refused(reason, message) => {
                    tally.refused += 1;
                    refused.push(failure(reason, message));
                    continue;
                }
                State::Done => tally.done += 1,
                State::Failed(reason, message) => {
                    tally.failed += 1;
                    failed.push(failure(reason, message));
                }
                State::Emptying | State::Restarting => {
                    tally.updating += 1;
                    between += 1;
                }
                State::Installed | State::Preparing => tally.updating += 1,
                State::Waiting | State::Taken(_) => {}
            }
            tally.total += 1;
            let moves = matches!(state, State::Emptying | State::Restarting);
            tally.unavailable += usize::from(!node.ready || moves);
        }
        tally.failures = failed.into_iter().chain(refused).take(LISTED).collect();
        tally.waves = plan.waves();
        let ended = tally.done + tally.failed;
        let last = tally.waves - 1;
        let wave = (0..=last).find(|w| ended < plan.wave(*w, tally.total));
        let over = wave.is_none() && between == 0 && tally.total > 0;
        tally.wave = wave.unwrap_or(last);
        self.goal = plan.wave(tally.wave, tally.total);
        self.most_unavailable = plan.max_unavailable(tally.total);
        self.started = ended + between;
        let most = plan.max_failures(tally.total);
        (tally.phase, tally.reason, tally.message) = if over {
            complete(&tally, self.goal)
        } else if plan.paused {
            let text = "spec.paused is set".to_owned();
            (RolloutPhase::Paused, "PausedByUser", text)
        } else if tally.failed > most {
            let named = tally.failures.iter().take(NAMED);
            let named: Vec<String> = named
                .map(|f| format!("{} ({})", f.node, f.reason))
                .collect();
            let text = format!(
                "{} nodes failed, and {most} may: {}; `hyperion rollout resume` goes on",
                tally.failed,
                named.join(", ")
            );
            (RolloutPhase::Paused, "TooManyFailures", text)
        } else {
            (RolloutPhase::Progressing, "Updating", String::new())
        };
        self.tally = tally;
    }

    /// Nodes that are emptied are restarted when they are, or released where nothing may be begun
    /// any more. Those that restart go on.
    fn go_on(&mut self, may: bool) {
        for (node, state) in self.in_turn() {
            let Some(held) = self.stored.get(node.name) else {
                continue;
            };
            let mut next = held.clone();
            match state {
                State::Restarting => {}
                // It may come back, late as it is.
                State::Failed(reason, _) if reason == "NotBack" => {}
                State::Emptying => {
                    let gone = node.away.is_some_and(|away| away > AWAY);
                    if !may || gone || self.locked(node) {
                        self.started -= 1;
                        self.tally.unavailable -= usize::from(node.ready);
                        continue;
                    }
                    let patience = self.of.plan.empty_within;
                    if node.replicas == 0 || since(held.since, self.now) >= patience {
                        next.stage = RolloutStage::Restarting;
                        next.since = self.now;
                    }
                }
                _ => continue,
            }
            self.step.moving.insert(node.name.to_owned(), next);
        }
    }

    /// Takes nodes that have the bundle out of use, as many as the wave and `maxUnavailable` leave.
    fn begin(&mut self, may: bool) {
        let stage = if self.of.empties() {
            RolloutStage::Emptying
        } else {
            RolloutStage::Restarting
        };
        for (node, state) in self.in_turn() {
            match state {
                State::Installed if node.connected && self.locked(node) => {
                    self.waits.locked.add(node.name);
                    continue;
                }
                State::Installed if node.connected && may && !self.released(node) => {}
                State::Installed | State::Preparing | State::Waiting if node.away.is_some() => {
                    self.waits.offline.add(node.name);
                    continue;
                }
                State::Taken(other) => {
                    self.waits.taken.add(node.name);
                    self.waits.taken_by = other;
                    continue;
                }
                _ => continue,
            }
            if self.started >= self.goal {
                continue;
            }
            // One that is not Ready anyway is no loss.
            let more = usize::from(node.ready);
            if self.tally.unavailable + more > self.most_unavailable {
                self.waits.full = true;
                continue;
            }
            self.started += 1;
            self.tally.unavailable += more;
            let moving = Moving {
                stage,
                since: self.now,
                order: self.of.id_for(node, None),
            };
            self.step.moving.insert(node.name.to_owned(), moving);
        }
    }

    /// It was let go in this step.
    fn released(&self, node: &View<'_>) -> bool {
        self.stored.contains_key(node.name)
    }

    /// What each node is told. Who has begun goes on, also while the rollout is paused: to download
    /// disturbs nobody, and what was downloaded is not thrown away.
    fn orders(&mut self, begins: bool, told: &BTreeSet<String>) {
        let mut ahead = 0;
        let mut fresh = Vec::new();
        for (node, state) in self.in_turn() {
            let moving = self.stored.get(node.name);
            let name = node.name.to_owned();
            let id = self.of.id_for(node, moving);
            let order = |activate| Order {
                id: id.clone(),
                activate,
            };
            match state {
                State::Restarting => drop(self.step.orders.insert(name, order(true))),
                State::Failed(reason, _) if reason == "NotBack" => {
                    self.step.orders.insert(name, order(true));
                }
                State::Emptying => drop(self.step.orders.insert(name, order(false))),
                State::Installed | State::Preparing => {
                    let new = self.step.moving.contains_key(&name);
                    let waits = state == State::Installed && self.locked(node);
                    ahead += usize::from(node.connected && !new && !waits);
                    self.step.orders.insert(name, order(false));
                }
                State::Waiting if told.contains(node.name) => {
                    ahead += usize::from(node.connected);
                    self.step.orders.insert(name, order(false));
                }
                State::Waiting if node.connected => fresh.push((node, id)),
                _ => {}
            }
        }
        if !begins {
            return;
        }
        // Those that could begin at once go first.
        fresh.sort_by_key(|(node, _)| self.locked(node));
        let room = self.goal.saturating_sub(self.started);
        let room = room.min(self.most_unavailable.saturating_mul(AHEAD));
        for (node, id) in fresh.into_iter().take(room.saturating_sub(ahead)) {
            let order = Order {
                id,
                activate: false,
            };
            self.step.orders.insert(node.name.to_owned(), order);
            self.tally.updating += 1;
        }
    }

    /// What it does, or waits for.
    fn verdict(&mut self, open: bool) {
        let tally = &self.tally;
        let plan = &self.of.plan;
        if tally.phase != RolloutPhase::Progressing {
            return;
        }
        let mut parts = vec![format!(
            "wave {} of {}: {} of {} nodes have ended, {} are updated",
            tally.wave + 1,
            tally.waves,
            tally.done + tally.failed,
            self.goal,
            tally.updating
        )];
        let waits = &self.waits;
        let mut reason = "Updating";
        // The later ones keep more from going on.
        if waits.taken.count > 0 {
            let list = waits.taken.list();
            parts.push(format!("the older rollout {} has {list}", waits.taken_by));
            reason = "OtherRollout";
        }
        if waits.offline.count > 0 {
            parts.push(format!("offline: {}", waits.offline.list()));
            reason = "NodesOffline";
        }
        if waits.locked.count > 0 {
            let list = waits.locked.list();
            parts.push(format!("held by exclusive workloads: {list}"));
            reason = "ExclusiveWorkloads";
        }
        if waits.full {
            let (now, most) = (tally.unavailable, self.most_unavailable);
            parts.push(format!("{now} nodes are unavailable, and {most} may be"));
            reason = "MaxUnavailable";
        }
        let installed = self.states.contains(&State::Installed);
        if !open && installed {
            let opens = plan.opens(self.now);
            let opens = opens.map_or_else(String::new, |at| {
                format!(" until {}", at.strftime("%Y-%m-%dT%H:%M:%SZ"))
            });
            parts.push(format!("the window is closed{opens}"));
            reason = "WindowClosed";
        }
        let moves = !self.step.moving.is_empty();
        let mut all = self.all();
        let prepares = all.any(|(node, state)| node.connected && *state == State::Preparing);
        drop(all);
        if moves || prepares {
            reason = "Updating";
        }
        if tally.total == 0 {
            reason = if tally.refused > 0 {
                "AllRefused"
            } else {
                "NoNodes"
            };
            let few = &tally.failures;
            let why = few.first().map_or_else(
                || "no node is selected".to_owned(),
                |f| format!("no node can have the bundle; {}: {}", f.node, f.message),
            );
            parts = vec![why];
        }
        let message = parts.join("; ");
        (self.tally.reason, self.tally.message) = (reason, message);
    }
}

fn complete(tally: &Tally, goal: usize) -> (RolloutPhase, &'static str, String) {
    let reason = if tally.failed > 0 {
        "CompleteWithFailures"
    } else if goal < tally.total {
        "WavesEnded"
    } else {
        "AllUpdated"
    };
    let text = format!(
        "{} of {} nodes have the version, {} failed",
        tally.done, tally.total, tally.failed
    );
    (RolloutPhase::Complete, reason, text)
}
