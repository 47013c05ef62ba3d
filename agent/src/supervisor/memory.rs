//! What the supervisor remembers of one replica between two looks at it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::Tuning;
use super::model::{Container, Ended, Sandbox, State, Step, Want};

/// Wait where containerd still works on an order of the agent that ran before.
const TAKEN_WAIT: Duration = Duration::from_millis(500);

/// Memory of one replica. All of it can be lost: the next agent finds its way without.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Pod that the rest is about.
    hash: String,
    /// Images known to be on this machine.
    pub images: BTreeSet<String>,
    /// The last step failed.
    pub failure: Option<Failure>,
    failures: u32,
    crashes: BTreeMap<String, Crash>,
    next: BTreeMap<String, Next>,
    next_sandbox: u32,
    /// Sandboxes below are of a try that ended for good.
    first_sandbox: u32,
    /// All sandboxes that the next look shows are of such a try.
    over: bool,
    health: BTreeMap<String, Health>,
    /// Containers seen running by this process of the agent: the end of another is old news.
    alive: BTreeSet<String>,
    news: Vec<(&'static str, String, bool)>,
}

/// A step that failed and waits to be tried again.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Failure {
    pub reason: String,
    pub message: String,
    pub until: Instant,
}

/// Ends of one container in a row.
#[derive(Debug, Clone)]
pub(super) struct Crash {
    /// Ends since it last ran long enough.
    pub count: u32,
    /// The last that was counted.
    id: String,
    pub ended: Ended,
    /// What the liveness probe said, where that is why it ended.
    pub liveness: Option<String>,
    /// Not started again before.
    pub until: Instant,
}

/// Numbers of the next start of a container.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Next {
    pub attempt: u32,
    pub restarts: u32,
}

/// What the probes of one container say.
#[derive(Debug, Clone, Default)]
pub(super) struct Health {
    pub ready: bool,
    /// Why it is not ready.
    pub message: String,
    /// The liveness probe failed often enough.
    pub dead: Option<String>,
}

/// Wait before the start after `count` ends in a row: none after the first, then the base,
/// doubling.
pub(super) fn crash_delay(tuning: &Tuning, count: u32) -> Duration {
    match count {
        0 | 1 => Duration::ZERO,
        n => doubled(tuning, n - 2),
    }
}

fn doubled(tuning: &Tuning, times: u32) -> Duration {
    let factor = 1u32.checked_shl(times.min(31)).unwrap_or(u32::MAX);
    tuning
        .backoff_base
        .saturating_mul(factor)
        .min(tuning.backoff_max)
}

impl Memory {
    /// Takes in what is seen now.
    pub(super) fn note(&mut self, want: Option<&Want>, seen: &[Sandbox], now: Instant, t: &Tuning) {
        if let Some(want) = want
            && want.hash != self.hash
        {
            self.hash.clone_from(&want.hash);
            self.images.clear();
            self.failure = None;
            self.failures = 0;
            self.crashes.clear();
            for next in self.next.values_mut() {
                next.restarts = 0;
            }
        }
        if std::mem::take(&mut self.over) {
            let after = seen.iter().map(|s| s.attempt.saturating_add(1)).max();
            self.next_sandbox = self.next_sandbox.max(after.unwrap_or(0));
            self.first_sandbox = self.next_sandbox;
        }
        for sandbox in seen {
            self.next_sandbox = self.next_sandbox.max(sandbox.attempt + 1);
            for container in &sandbox.containers {
                self.note_container(sandbox, container, now, t);
            }
        }
        let ids: BTreeSet<_> = seen
            .iter()
            .flat_map(|s| &s.containers)
            .map(|c| c.id.as_str())
            .collect();
        self.health.retain(|id, _| ids.contains(id.as_str()));
        self.alive.retain(|id| ids.contains(id.as_str()));
    }

    fn note_container(&mut self, sandbox: &Sandbox, c: &Container, now: Instant, t: &Tuning) {
        let same_pod = sandbox.hash == self.hash && sandbox.attempt >= self.first_sandbox;
        let next = self.next.entry(c.name.clone()).or_default();
        next.attempt = next.attempt.max(c.attempt + 1);
        if same_pod {
            // One that was made and never started is no start.
            let started = u32::from(c.state != State::Created);
            next.restarts = next.restarts.max(c.restarts + started);
        }
        if c.state == State::Running {
            self.alive.insert(c.id.clone());
        }
        let latest = sandbox.latest(&c.name).is_some_and(|l| l.id == c.id);
        if let State::Exited(ended) = &c.state
            && same_pod
            && latest
        {
            self.note_end(c, ended, now, t);
        }
    }

    fn note_end(&mut self, c: &Container, ended: &Ended, now: Instant, t: &Tuning) {
        let before = self.crashes.get(&c.name);
        if before.is_some_and(|crash| crash.id == c.id) {
            return;
        }
        // After a start of the agent the count is guessed from the restarts.
        let in_a_row = before.map_or(c.restarts, |crash| crash.count);
        let count = if ended.ran >= t.backoff_reset {
            1
        } else {
            in_a_row.saturating_add(1)
        };
        // A device that lost power is no fault of the container.
        let until = if ended.unseen() {
            now
        } else {
            ended.at + crash_delay(t, count)
        };
        let crash = Crash {
            count,
            id: c.id.clone(),
            ended: ended.clone(),
            liveness: self.health.get(&c.id).and_then(|h| h.dead.clone()),
            until,
        };
        if self.alive.remove(&c.id) || ended.reason == "StartError" {
            let probe = crash.liveness.as_deref();
            let reason = if ended.code == 0 {
                "Completed"
            } else {
                "Crashed"
            };
            let reason = ended.told_reason(probe, reason);
            let text = ended.told(&c.name, probe);
            self.news.push((reason, text, ended.code != 0));
        }
        self.crashes.insert(c.name.clone(), crash);
    }

    /// Whether it is of a pod.
    pub(super) fn is_about(&self, hash: &str) -> bool {
        self.hash == hash
    }

    /// A job that ended for good is to be tried again with the same pod: what is there now is not
    /// that try. To be called before any step for it.
    pub(super) fn start_over(&mut self) {
        self.over = true;
        self.crashes.clear();
        for next in self.next.values_mut() {
            next.restarts = 0;
        }
    }

    /// Ends that were counted since the last call: reason, message, warning.
    pub(super) fn news(&mut self) -> Vec<(&'static str, String, bool)> {
        std::mem::take(&mut self.news)
    }

    /// The last end of a container.
    pub(super) fn crash(&self, name: &str) -> Option<&Crash> {
        self.crashes.get(name)
    }

    /// Numbers of the next start of a container.
    pub(super) fn next(&self, name: &str) -> Next {
        self.next.get(name).copied().unwrap_or_default()
    }

    /// Number of the next sandbox.
    pub(super) fn next_sandbox(&self) -> u32 {
        self.next_sandbox
    }

    /// Number of the first sandbox that counts; those below are of an earlier try.
    pub(super) fn first_sandbox(&self) -> u32 {
        self.first_sandbox
    }

    /// What the probes of a container said; without any it is neither ready nor dead.
    pub(super) fn health(&self, id: &str) -> Option<&Health> {
        self.health.get(id)
    }

    /// For what a probe found.
    pub(super) fn health_mut(&mut self, id: &str) -> &mut Health {
        self.health.entry(id.to_owned()).or_default()
    }

    /// A step failed. Every further failure doubles the wait.
    pub(super) fn fail(&mut self, step: &Step, message: String, now: Instant, t: &Tuning) {
        let mut reason = step.failure_reason();
        if message.contains("no space left on device") {
            reason = "DiskFull";
        }
        // A call that the agent before us did not see through still holds the name.
        let taken = message.contains("is reserved for");
        match step {
            Step::StartContainer { name, .. } => {
                // The image may be what is missing.
                self.images.clear();
                if taken {
                    self.next.entry(name.clone()).or_default().attempt += 1;
                }
            }
            Step::RunSandbox { .. } if taken => self.next_sandbox += 1,
            _ => {}
        }
        if taken {
            return self.pause(reason, message, now + TAKEN_WAIT);
        }
        let until = now + doubled(t, self.failures);
        self.failures = self.failures.saturating_add(1);
        self.pause(reason, message, until);
    }

    /// Waits without counting a failure of the replica.
    pub(super) fn pause(&mut self, reason: &str, message: String, until: Instant) {
        self.failure = Some(Failure {
            reason: reason.to_owned(),
            message,
            until,
        });
    }

    /// A step succeeded.
    pub(super) fn succeed(&mut self) {
        self.failure = None;
    }

    /// The replica runs: earlier failures are forgiven.
    pub(super) fn forgive(&mut self) {
        self.failures = 0;
    }
}
