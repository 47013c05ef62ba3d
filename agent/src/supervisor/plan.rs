//! Decides the next step for one replica. No clock, no I/O: the same input gives the same step.

use std::time::Instant;

use hyperion_proto::agent_v1::{self, ReplicaPhase, RestartPolicy};

use super::Tuning;
use super::memory::{Crash, Memory};
use super::model::{Ended, Sandbox, State, Status, Step, Want};

/// What to do and to say.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    pub step: Option<Step>,
    pub status: Status,
    /// Nothing happens before, but for events.
    pub wake: Option<Instant>,
    /// Nothing is left of a replica that is not wanted.
    pub gone: bool,
}

impl Plan {
    fn new(step: Option<Step>, status: Status) -> Self {
        Self {
            step,
            status,
            wake: None,
            gone: false,
        }
    }
}

/// Decides.
pub(super) fn plan(
    want: Option<&Want>,
    seen: &[Sandbox],
    memory: &mut Memory,
    now: Instant,
    tuning: &Tuning,
) -> Plan {
    memory.note(want, seen, now, tuning);
    let mut plan = match want {
        None => clear(seen),
        Some(want) if want.finished.is_some() => ended(want, seen),
        Some(want) => pursue(want, seen, memory, now),
    };
    if let Some(failure) = &memory.failure
        && plan.step.is_some()
        && failure.until > now
    {
        plan.step = None;
        plan.wake = Some(failure.until);
        if plan.status.phase != ReplicaPhase::Running {
            if plan.status.phase != ReplicaPhase::Stopping {
                plan.status.phase = ReplicaPhase::Backoff;
            }
            plan.status.reason.clone_from(&failure.reason);
            plan.status.message.clone_from(&failure.message);
        }
    }
    plan
}

fn take_down(sandbox: &Sandbox) -> Step {
    if sandbox.live() {
        return Step::StopSandbox {
            id: sandbox.id.clone(),
            containers: live_ids(sandbox),
            grace: sandbox.grace,
        };
    }
    Step::RemoveSandbox {
        id: sandbox.id.clone(),
    }
}

fn live_ids(sandbox: &Sandbox) -> Vec<String> {
    let live = sandbox.containers.iter().filter(|c| c.live());
    live.map(|c| c.id.clone()).collect()
}

/// Live ones first: what runs and should not is worse than what lies about.
fn first_to_take_down<'a>(sandboxes: impl Iterator<Item = &'a Sandbox>) -> Option<Step> {
    sandboxes
        .min_by_key(|s| (!s.live(), s.attempt))
        .map(take_down)
}

fn clear(seen: &[Sandbox]) -> Plan {
    match first_to_take_down(seen.iter()) {
        Some(step) => Plan::new(Some(step), Status::new(ReplicaPhase::Stopping, "", "")),
        None => Plan {
            gone: true,
            ..Plan::new(None, Status::new(ReplicaPhase::Stopped, "", ""))
        },
    }
}

/// A job that ended: its last sandbox stays, for the logs.
fn ended(want: &Want, seen: &[Sandbox]) -> Plan {
    let newest = seen.iter().map(|s| s.attempt).max();
    let stale = |s: &&Sandbox| s.live() || Some(s.attempt) != newest;
    let step = first_to_take_down(seen.iter().filter(stale));
    let status = want.finished.as_ref().map_or_else(
        || Status::new(ReplicaPhase::Failed, "", ""),
        |f| Status {
            exit_code: f.exit_code,
            ..Status::new(f.phase, &f.reason, f.message.as_str())
        },
    );
    Plan::new(step, status)
}

/// The sandbox to go on with: made from this pod for this try, the one that runs something, the
/// newest.
fn current<'a>(want: &Want, seen: &'a [Sandbox], first: u32) -> Option<&'a Sandbox> {
    let same = seen
        .iter()
        .filter(|s| s.hash == want.hash && s.attempt >= first);
    same.max_by_key(|s| {
        let running = s.containers.iter().any(|c| c.state == State::Running);
        (s.ready && running, s.ready, s.attempt)
    })
}

fn pursue(want: &Want, seen: &[Sandbox], memory: &Memory, now: Instant) -> Plan {
    let current = current(want, seen, memory.first_sandbox());
    let others = || {
        let rest = seen
            .iter()
            .filter(|s| current.is_none_or(|current| current.id != s.id));
        first_to_take_down(rest)
    };
    let Some(current) = current else {
        // Images first: the old pod goes on while the new one's image is fetched, and for good
        // where there is none.
        let step = missing_image(want, memory).or_else(others);
        return match (step, &want.behind) {
            (Some(step), _) => Plan::new(Some(step), fresh(seen)),
            (None, Some(other)) => Plan::new(None, behind(&other.to_string(), &other.uid)),
            (None, None) => Plan::new(
                Some(Step::RunSandbox {
                    attempt: memory.next_sandbox(),
                }),
                fresh(seen),
            ),
        };
    };
    let mut plan = containers(want, current, memory, now);
    let over =
        plan.status.phase == ReplicaPhase::Succeeded || plan.status.phase == ReplicaPhase::Failed;
    if !current.ready && !over {
        // The device was restarted, or somebody killed the sandbox.
        plan.wake = None;
        plan.step = missing_image(want, memory).or_else(|| Some(take_down(current)));
        plan.status.phase = ReplicaPhase::Starting;
        plan.status.ready = false;
        "SandboxLost".clone_into(&mut plan.status.reason);
        plan.status.message.clear();
        return plan;
    }
    if let Some(step) = others() {
        plan.step = Some(step);
    }
    plan
}

fn fresh(seen: &[Sandbox]) -> Status {
    let reason = if seen.is_empty() { "" } else { "Replacing" };
    Status::new(ReplicaPhase::Starting, reason, "")
}

fn behind(key: &str, uid: &str) -> Status {
    Status::new(
        ReplicaPhase::Starting,
        "WaitingForPredecessor",
        format!("{key} of the deleted workload {uid} is still stopping"),
    )
}

fn image_step(container: &agent_v1::Container) -> Step {
    Step::EnsureImage {
        image: container.image.clone(),
        policy: container.pull_policy(),
    }
}

fn missing_image(want: &Want, memory: &Memory) -> Option<Step> {
    let containers = &want.start.pod.containers;
    let missing = containers
        .iter()
        .find(|c| !memory.images.contains(&c.image));
    missing.map(image_step)
}

fn starts_again(policy: RestartPolicy, ended: &Ended) -> bool {
    match policy {
        RestartPolicy::Unspecified | RestartPolicy::Always => true,
        RestartPolicy::OnFailure => ended.code != 0,
        RestartPolicy::Never => false,
    }
}

/// What the containers of one sandbox add up to.
#[derive(Default)]
struct Sum<'a> {
    step: Option<Step>,
    wake: Option<Instant>,
    ids: Vec<String>,
    restarts: u32,
    /// Not running yet, or about to be started again.
    starting: bool,
    /// Waits out its backoff.
    waiting: Option<(&'a str, &'a Crash)>,
    /// Ended for good.
    over: Vec<(&'a str, &'a Ended)>,
    unready: Option<String>,
}

/// Goes through the containers in order; each is started when those before it have been.
fn containers(want: &Want, sandbox: &Sandbox, memory: &Memory, now: Instant) -> Plan {
    let mut sum = Sum::default();
    for container in &want.start.pod.containers {
        look(&mut sum, want, container, sandbox, memory, now);
    }
    let missing = want.start.pod.containers.len() - sum.over.len();
    // Of a pod that must not start again nothing is, also where only a part of it had ended.
    let once = want.start.pod.restart_policy() == RestartPolicy::Never;
    let cut_off = once && !sandbox.ready && !sum.over.is_empty();
    if missing == 0 || cut_off {
        let status = outcome(&sum, missing, memory);
        let step = sandbox.live().then(|| take_down(sandbox));
        return Plan::new(step, status);
    }
    let status = status(&sum, want, sandbox, memory);
    let mut plan = Plan::new(sum.step.or_else(|| oldest_dead(sandbox)), status);
    plan.wake = sum.wake;
    plan
}

fn look<'a>(
    sum: &mut Sum<'a>,
    want: &Want,
    container: &'a agent_v1::Container,
    sandbox: &'a Sandbox,
    memory: &'a Memory,
    now: Instant,
) {
    let name = container.name.as_str();
    let start = || {
        if !memory.images.contains(&container.image) {
            return image_step(container);
        }
        let next = memory.next(name);
        Step::StartContainer {
            sandbox: sandbox.id.clone(),
            name: name.to_owned(),
            attempt: next.attempt,
            restarts: next.restarts,
        }
    };
    let Some(latest) = sandbox.latest(name) else {
        sum.starting = true;
        sum.step.get_or_insert_with(start);
        return;
    };
    sum.ids.push(latest.id.clone());
    sum.restarts = sum.restarts.saturating_add(latest.restarts);
    let stop = || Step::StopContainer {
        id: latest.id.clone(),
        grace: sandbox.grace,
    };
    match &latest.state {
        State::Created => {
            // The agent died between making and starting it; it never ran.
            sum.starting = true;
            sum.step.get_or_insert_with(|| Step::RemoveContainer {
                id: latest.id.clone(),
                name: latest.name.clone(),
                attempt: latest.attempt,
            });
        }
        State::Unknown => {
            sum.starting = true;
            sum.step.get_or_insert_with(stop);
        }
        State::Running => {
            let health = memory.health(&latest.id);
            if health.is_some_and(|h| h.dead.is_some()) {
                sum.starting = true;
                sum.step.get_or_insert_with(stop);
            } else if container.readiness.is_some() && !health.is_some_and(|h| h.ready) {
                let words = health.map_or("", |h| h.message.as_str());
                sum.unready
                    .get_or_insert_with(|| format!("container {name}: {words}"));
            }
        }
        State::Exited(ended) if !starts_again(want.start.pod.restart_policy(), ended) => {
            sum.over.push((name, ended));
        }
        State::Exited(_) => match memory.crash(name) {
            Some(crash) if crash.until > now => {
                sum.wake = Some(sum.wake.map_or(crash.until, |w| w.min(crash.until)));
                sum.waiting.get_or_insert((name, crash));
            }
            _ => {
                sum.starting = true;
                sum.step.get_or_insert_with(start);
            }
        },
    }
}

/// The last dead start of each container stays, for its logs; older ones go.
fn oldest_dead(sandbox: &Sandbox) -> Option<Step> {
    let dead = sandbox.containers.iter().filter(|c| {
        let newer = sandbox
            .containers
            .iter()
            .filter(|other| other.name == c.name && other.attempt > c.attempt);
        !c.live() && newer.count() >= 2
    });
    dead.min_by_key(|c| c.attempt)
        .map(|c| Step::RemoveContainer {
            id: c.id.clone(),
            name: c.name.clone(),
            attempt: c.attempt,
        })
}

fn liveness<'a>(memory: &'a Memory, name: &str) -> Option<&'a str> {
    memory.crash(name).and_then(|c| c.liveness.as_deref())
}

fn outcome(sum: &Sum<'_>, missing: usize, memory: &Memory) -> Status {
    let failed = sum.over.iter().find(|(_, ended)| ended.code != 0);
    let mut status = match failed {
        Some((name, ended)) => {
            let probe = liveness(memory, name);
            Status {
                exit_code: ended.code,
                ..Status::new(
                    ReplicaPhase::Failed,
                    ended.told_reason(probe, "Error"),
                    ended.told(name, probe),
                )
            }
        }
        None if missing > 0 => Status::new(
            ReplicaPhase::Failed,
            "Interrupted",
            format!("the sandbox was lost before {missing} of its containers had ended"),
        ),
        None => Status::new(ReplicaPhase::Succeeded, "Completed", ""),
    };
    status.restarts = sum.restarts;
    status.container_ids.clone_from(&sum.ids);
    status
}

fn status(sum: &Sum<'_>, want: &Want, sandbox: &Sandbox, memory: &Memory) -> Status {
    let names = want.start.pod.containers.iter().map(|c| c.name.as_str());
    let last = names
        .filter_map(|name| memory.crash(name).map(|crash| (name, crash)))
        .max_by_key(|(_, crash)| crash.ended.at);
    let told = sum.waiting.or(last);
    let (phase, otherwise) = if sum.waiting.is_some() {
        (ReplicaPhase::Backoff, "CrashLoop")
    } else if sum.starting {
        (ReplicaPhase::Starting, "Restarting")
    } else {
        (ReplicaPhase::Running, "Restarted")
    };
    let mut status = match told {
        Some((name, crash)) => {
            let probe = crash.liveness.as_deref();
            Status {
                exit_code: crash.ended.code,
                ..Status::new(
                    phase,
                    crash.ended.told_reason(probe, otherwise),
                    crash.ended.told(name, probe),
                )
            }
        }
        None => Status::new(phase, "", ""),
    };
    status.ready = phase == ReplicaPhase::Running && sum.unready.is_none() && sum.over.is_empty();
    if phase == ReplicaPhase::Running
        && let Some(unready) = &sum.unready
    {
        "NotReady".clone_into(&mut status.reason);
        status.message.clone_from(unready);
    }
    status.restarts = sum.restarts;
    status.pod_ip.clone_from(&sandbox.ip);
    status.container_ids.clone_from(&sum.ids);
    status
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
