//! What a rollout says of itself.

use std::collections::BTreeMap;

use hyperion_api::conditions;
use hyperion_api::rollout::{HyperionRollout, HyperionRolloutStatus, RolloutNode, RolloutPhase};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::step::{Moving, Step};

/// Nodes between the versions, as a status has them.
#[must_use]
pub fn moving(status: &HyperionRolloutStatus) -> BTreeMap<String, Moving> {
    let entry = |node: &RolloutNode| {
        let moving = Moving {
            stage: node.stage,
            since: node.since.0,
            order: node.order.clone(),
        };
        (node.name.clone(), moving)
    };
    status.moving.iter().map(entry).collect()
}

/// The status after a step.
#[must_use]
pub fn status(
    rollout: &HyperionRollout,
    step: &Step,
    before: &HyperionRolloutStatus,
    now: Timestamp,
) -> HyperionRolloutStatus {
    let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let tally = &step.tally;
    let ended = tally.done + tally.failed;
    let node = |(name, moving): (&String, &Moving)| RolloutNode {
        name: name.clone(),
        stage: moving.stage,
        since: Time(moving.since),
        order: moving.order.clone(),
    };
    let mut status = HyperionRolloutStatus {
        phase: tally.phase,
        reason: tally.reason.to_owned(),
        message: tally.message.clone(),
        wave: number(tally.wave + 1),
        wave_of: format!("{}/{}", tally.wave + 1, tally.waves),
        nodes: number(tally.total),
        done: number(tally.done),
        updating: number(tally.updating),
        waiting: number(tally.total.saturating_sub(ended + tally.updating)),
        failed: number(tally.failed),
        unavailable: number(tally.unavailable),
        refused: number(tally.refused),
        conditions: Vec::new(),
        moving: step.moving.iter().map(node).collect(),
        failures: tally.failures.clone(),
        observed_generation: rollout.metadata.generation,
    };
    status.conditions = conditions_of(&status, before, now);
    status
}

/// The status of a rollout whose spec can't be carried out.
#[must_use]
pub fn invalid(
    rollout: &HyperionRollout,
    problem: &str,
    before: &HyperionRolloutStatus,
    now: Timestamp,
) -> HyperionRolloutStatus {
    let mut status = HyperionRolloutStatus {
        phase: RolloutPhase::Invalid,
        reason: conditions::REASON_INVALID_SPEC.to_owned(),
        message: problem.to_owned(),
        observed_generation: rollout.metadata.generation,
        ..HyperionRolloutStatus::default()
    };
    status.conditions = conditions_of(&status, before, now);
    status
}

fn conditions_of(
    status: &HyperionRolloutStatus,
    before: &HyperionRolloutStatus,
    now: Timestamp,
) -> Vec<Condition> {
    let valid = status.phase != RolloutPhase::Invalid;
    let word = |yes: bool| if yes { "True" } else { "False" };
    let all = [
        (
            conditions::ACCEPTED,
            valid,
            if valid {
                conditions::REASON_VALID
            } else {
                &status.reason
            },
        ),
        (
            conditions::PAUSED,
            status.phase == RolloutPhase::Paused,
            &status.reason,
        ),
        (
            conditions::COMPLETE,
            status.phase == RolloutPhase::Complete,
            &status.reason,
        ),
    ];
    let condition = |(type_, yes, reason): (&str, bool, &str)| {
        let held = before.conditions.iter().find(|c| c.type_ == type_);
        let held = held.filter(|c| c.status == word(yes));
        let since = held.map_or(Time(now), |c| c.last_transition_time.clone());
        // What explains a True one is said in its message; a False one of these needs none.
        let explained = yes != (type_ == conditions::ACCEPTED);
        Condition {
            type_: type_.to_owned(),
            status: word(yes).to_owned(),
            reason: reason.to_owned(),
            message: if explained {
                status.message.clone()
            } else {
                String::new()
            },
            last_transition_time: since,
            observed_generation: status.observed_generation,
        }
    };
    all.into_iter().map(condition).collect()
}
