//! Where one node is in a rollout.

use std::time::Duration;

use hyperion_api::rollout::{BundleKind, Plan, RolloutStage};
use hyperion_api::update::{NodeUpdate, SlotState, UpdatePhase, UpdateProgress};
use hyperion_proto::agent_v1::UpdateOrder;
use jiff::Timestamp;

use super::step::{Moving, Order};
use crate::events;

/// Time for a node to restart and to be heard, beside the time that it has to be Ready.
const RESTART: Duration = Duration::from_secs(10 * 60);

/// What a rollout brings, and by what name.
#[derive(Debug, Clone)]
pub struct Of {
    /// The spec.
    pub plan: Plan,
    /// What order ids begin with: this rollout and this bundle.
    prefix: String,
    uid: String,
}

/// What is known of a node.
#[derive(Debug, Clone, Default)]
pub struct View<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its stream is open.
    pub connected: bool,
    /// It is connected and its container runtime answers.
    pub ready: bool,
    /// How long it has been out of reach; none while it is connected.
    pub away: Option<Duration>,
    /// Version of its agent.
    pub agent_version: &'a str,
    /// What it says of its update.
    pub update: Option<&'a NodeUpdate>,
    /// Replicas that it has or may have.
    pub replicas: usize,
    /// A workload of them that is `exclusive`.
    pub exclusive: Option<String>,
    /// The older rollout that has it.
    pub other: Option<String>,
}

/// Where a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// An older rollout has it.
    Taken(String),
    /// It can't have the bundle, for this reason and in these words.
    Refused(&'static str, String),
    /// It has the version.
    Done,
    /// It ended without the version, for this reason and in these words.
    Failed(String, String),
    /// Its replicas move away.
    Emptying,
    /// It was told to restart, and is not back.
    Restarting,
    /// The bundle is installed beside what runs.
    Installed,
    /// The bundle is on its way.
    Preparing,
    /// It has not begun.
    Waiting,
}

impl Of {
    /// A rollout of this uid.
    #[must_use]
    pub fn new(plan: Plan, uid: &str) -> Self {
        let bundle = &plan.bundle.wire;
        let sha256: String = bundle.sha256.iter().map(|b| format!("{b:02x}")).collect();
        let parts = [uid, &bundle.url, &sha256, &bundle.version];
        let mark = events::mark(&parts, u64::try_from(bundle.kind).unwrap_or(0));
        Self {
            prefix: format!("{mark:016x}-"),
            uid: uid.to_owned(),
            plan,
        }
    }

    /// Id of orders that are given now.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{}{}", self.prefix, self.plan.attempt)
    }

    /// The order in the words of the protocol.
    #[must_use]
    pub fn order(&self, order: &Order) -> UpdateOrder {
        UpdateOrder {
            id: order.id.clone(),
            bundle: Some(self.plan.bundle.wire.clone()),
            activate: order.activate,
            ready_seconds: u32::try_from(self.plan.ready_within.as_secs()).unwrap_or(u32::MAX),
        }
    }

    /// True where nodes are emptied before they restart.
    #[must_use]
    pub fn empties(&self) -> bool {
        self.plan.bundle.kind == BundleKind::System
    }

    /// Where a node comes in the order in which they begin: by chance, and always the same.
    #[must_use]
    pub fn turn(&self, node: &str) -> u64 {
        events::mark(&[&self.uid, node], 0)
    }

    /// What a node says of an order of this rollout.
    #[must_use]
    pub fn progress<'a>(&self, node: &View<'a>) -> Option<&'a UpdateProgress> {
        let progress = node.update?.progress.as_ref()?;
        self.gave(&progress.order).then_some(progress)
    }

    /// True for an order of the bundle as it is now.
    #[must_use]
    pub fn gave(&self, order: &str) -> bool {
        order.starts_with(&self.prefix)
    }

    /// The id of the order that a node has or is to get: one that it began goes on.
    #[must_use]
    pub fn id_for(&self, node: &View<'_>, moving: Option<&Moving>) -> String {
        if let Some(moving) = moving {
            return moving.order.clone();
        }
        let began = self.progress(node).filter(|p| !p.phase.failed());
        began.map_or_else(|| self.id(), |p| p.order.clone())
    }

    /// Why a node can't have the bundle, where that is known before it tries.
    #[must_use]
    pub fn refuses(&self, node: &View<'_>) -> Option<(&'static str, String)> {
        let Some(update) = node.update else {
            let text = "its agent can't be updated by a rollout";
            return node.connected.then(|| ("NotUpdatable", text.to_owned()));
        };
        let machines = &self.plan.bundle.machines;
        if self.empties() && update.machine.is_empty() {
            let text = "it has no engine that updates the whole system";
            return Some(("NoEngine", text.to_owned()));
        }
        // A system without slots does not tell its board; it looks into the bundle itself.
        let untold = !self.empties() && update.machine.is_empty();
        if !machines.is_empty() && !untold && !machines.contains(&update.machine) {
            let machine = if update.machine.is_empty() {
                "no board that is known"
            } else {
                &update.machine
            };
            let text = format!(
                "it is {machine}, and the bundle is for {}",
                machines.join(", ")
            );
            return Some(("WrongMachine", text));
        }
        None
    }

    fn has_version(&self, node: &View<'_>) -> bool {
        let Some(update) = node.update else {
            return false;
        };
        let progress = update.progress.as_ref();
        if progress.is_some_and(|p| p.phase.between()) {
            return false;
        }
        // A node that is done by its own word is done: what it calls its version may differ from
        // what the rollout calls it.
        let own = self.progress(node);
        let said = own.is_some_and(|p| p.phase == UpdatePhase::Done);
        let version = self.plan.bundle.version();
        let same = if self.empties() {
            let tried =
                |s: &&hyperion_api::update::NodeSlot| s.running && s.state == SlotState::Trial;
            update.system_version == version && !update.slots.iter().any(|s| tried(&s))
        } else {
            node.agent_version == version
        };
        said || same
    }

    /// Where a node is.
    #[must_use]
    pub fn state(&self, node: &View<'_>, moving: Option<&Moving>, now: Timestamp) -> State {
        if let Some(other) = &node.other {
            return State::Taken(other.clone());
        }
        let restarting = moving.is_some_and(|m| m.stage == RolloutStage::Restarting);
        if self.has_version(node) && (!restarting || node.connected) {
            return State::Done;
        }
        if let Some(p) = self.progress(node).filter(|p| p.phase.failed()) {
            let of = moving.map_or_else(|| self.id(), |m| m.order.clone());
            if p.order == of {
                let reason = if p.reason.is_empty() {
                    p.phase.to_string()
                } else {
                    p.reason.clone()
                };
                return State::Failed(reason, p.message.clone());
            }
        }
        let phase = self.progress(node).map(|p| p.phase);
        match moving {
            Some(moving) if moving.stage == RolloutStage::Restarting => {
                let busy = matches!(
                    phase,
                    Some(UpdatePhase::Downloading | UpdatePhase::Installing)
                );
                let late = since(moving.since, now) > self.plan.ready_within + RESTART;
                if late && !(busy && node.connected) {
                    let text = format!(
                        "not back since {}",
                        moving.since.strftime("%Y-%m-%dT%H:%M:%SZ")
                    );
                    return State::Failed("NotBack".to_owned(), text);
                }
                return State::Restarting;
            }
            Some(_) => return State::Emptying,
            None => {}
        }
        if let Some((reason, text)) = self.refuses(node) {
            return State::Refused(reason, text);
        }
        match phase {
            Some(UpdatePhase::Installed) => State::Installed,
            // It restarts although this rollout does not know of it: it is to be back in time.
            Some(phase) if !phase.failed() && phase != UpdatePhase::Unknown => State::Preparing,
            _ => State::Waiting,
        }
    }
}

/// Time since then; none where the clock was put back.
#[must_use]
pub fn since(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}
