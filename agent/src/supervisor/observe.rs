//! Looks at all sandboxes and containers of this node: two list calls, and one more for each thing
//! that is new.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hyperion_proto::domain::ReplicaKey;
use k8s_cri::v1 as cri;

use super::model::{Container, Ended, Sandbox, State};
use crate::runtime::{Cri, RuntimeError, labels};

/// Annotation: starts of the container before this one.
pub(super) const RESTARTS: &str = "hyperion.io/restarts";

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Observation {
    pub sandboxes: BTreeMap<ReplicaKey, Vec<Sandbox>>,
    pub cache: Cache,
}

/// What never changes about a sandbox or a dead container.
#[derive(Debug, Default)]
pub(super) struct Cache {
    ips: HashMap<String, String>,
    ends: HashMap<String, Ended>,
}

/// Both clocks at one moment: containerd tells wall time, backoff counts on the steady clock.
#[derive(Debug, Clone, Copy)]
struct Clock {
    steady: Instant,
    wall: Duration,
}

impl Clock {
    fn now() -> Self {
        Self {
            steady: Instant::now(),
            wall: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
        }
    }

    /// Steady time of a wall time in nanoseconds. No time, or one in the future, is now: devices
    /// boot without a clock.
    fn at(self, unix_ns: i64) -> Instant {
        let then = match u64::try_from(unix_ns) {
            Ok(0) | Err(_) => return self.steady,
            Ok(ns) => Duration::from_nanos(ns),
        };
        let age = self.wall.saturating_sub(then);
        self.steady.checked_sub(age).unwrap_or(self.steady)
    }
}

/// Looks.
///
/// # Errors
/// When containerd does not answer.
pub(super) async fn observe(
    cri: &Cri,
    node_id: &str,
    mut known: Cache,
) -> Result<Observation, RuntimeError> {
    // Sandboxes first: a container is never seen without its sandbox.
    let sandboxes = cri.sandboxes(node_id).await?;
    let containers = cri.containers(node_id).await?;
    let clock = Clock::now();
    let mut of_sandbox: HashMap<String, Vec<Container>> = HashMap::new();
    let mut seen = Observation::default();
    for container in containers {
        let sandbox = container.pod_sandbox_id.clone();
        let Some(container) = convert(cri, container, clock, &mut known, &mut seen.cache).await?
        else {
            continue;
        };
        of_sandbox.entry(sandbox).or_default().push(container);
    }
    for sandbox in sandboxes {
        let Some(key) = labels::replica_of(&sandbox.labels) else {
            continue;
        };
        let ready = sandbox.state() == cri::PodSandboxState::SandboxReady;
        let ip = match known.ips.remove(&sandbox.id) {
            Some(ip) => ip,
            None if ready => match cri.sandbox_ip(&sandbox.id).await {
                Ok(ip) => ip,
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error),
            },
            None => String::new(),
        };
        seen.cache.ips.insert(sandbox.id.clone(), ip.clone());
        let number = |name: &str| sandbox.annotations.get(name).and_then(|v| v.parse().ok());
        let sandbox = Sandbox {
            attempt: sandbox.metadata.as_ref().map_or(0, |m| m.attempt),
            hash: sandbox
                .labels
                .get(labels::POD_HASH)
                .cloned()
                .unwrap_or_default(),
            ready,
            ip,
            grace: Duration::from_secs(number(labels::GRACE_SECONDS).unwrap_or(30)),
            containers: of_sandbox.remove(&sandbox.id).unwrap_or_default(),
            id: sandbox.id,
        };
        seen.sandboxes.entry(key).or_default().push(sandbox);
    }
    Ok(seen)
}

/// None where the container was removed meanwhile.
async fn convert(
    cri: &Cri,
    container: cri::Container,
    clock: Clock,
    known: &mut Cache,
    kept: &mut Cache,
) -> Result<Option<Container>, RuntimeError> {
    let state = match container.state() {
        cri::ContainerState::ContainerCreated => State::Created,
        cri::ContainerState::ContainerRunning => State::Running,
        cri::ContainerState::ContainerUnknown => State::Unknown,
        cri::ContainerState::ContainerExited => {
            let end = match known.ends.remove(&container.id) {
                Some(end) => end,
                None => match cri.container_status(&container.id).await {
                    Ok(status) => end(&status, clock),
                    Err(error) if error.is_not_found() => return Ok(None),
                    Err(error) => return Err(error),
                },
            };
            kept.ends.insert(container.id.clone(), end.clone());
            State::Exited(end)
        }
    };
    let metadata = container.metadata.unwrap_or_default();
    Ok(Some(Container {
        name: metadata.name,
        attempt: metadata.attempt,
        restarts: container
            .annotations
            .get(RESTARTS)
            .and_then(|n| n.parse().ok())
            .unwrap_or(0),
        state,
        started: clock.at(container.created_at),
        id: container.id,
    }))
}

fn end(status: &cri::ContainerStatus, clock: Clock) -> Ended {
    let ran = status.finished_at.saturating_sub(status.started_at);
    let ran = if status.started_at > 0 { ran } else { 0 };
    Ended {
        code: status.exit_code,
        reason: status.reason.clone(),
        message: crate::runtime::shorten(&status.message),
        ran: Duration::from_nanos(ran.try_into().unwrap_or(0)),
        at: clock.at(status.finished_at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumped_does_not_move_an_end_into_the_future() {
        let clock = Clock::now();
        let wall = i64::try_from(clock.wall.as_nanos()).unwrap();
        assert_eq!(clock.at(wall + 3_600_000_000_000), clock.steady);
        assert_eq!(clock.at(-1), clock.steady);
        assert_eq!(clock.at(0), clock.steady);
        let second = clock.steady - clock.at(wall - 1_000_000_000);
        assert!((999..=1001).contains(&second.as_millis()), "{second:?}");
    }
}
