//! What an agent that starts finds of the one before, before it wants anything itself.

use std::collections::BTreeMap;

use hyperion_proto::agent_v1::{PodSpec, ReplicaPhase, RestartPolicy};
use hyperion_proto::domain::ReplicaKey;

use super::model::{Container, Sandbox, State};
use super::observe::{Cache, observe};
use super::{Desired, Finished};
use crate::runtime::{Cri, RuntimeError, labels};

/// What containerd has of this node's replicas.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Replicas with a container that runs.
    pub running: Vec<ReplicaKey>,
    /// Replicas whose containers have all exited.
    pub exits: Vec<Exits>,
}

/// The exits of a replica's containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exits {
    key: ReplicaKey,
    pod_hash: String,
    /// Of each container.
    codes: Vec<i32>,
}

impl Exits {
    /// Of the containers of this pod.
    #[must_use]
    pub fn of(key: &ReplicaKey, pod: &PodSpec, codes: Vec<i32>) -> Self {
        Self {
            key: key.clone(),
            pod_hash: labels::pod_hash(pod),
            codes,
        }
    }

    /// Replica.
    #[must_use]
    pub fn key(&self) -> &ReplicaKey {
        &self.key
    }

    /// How the job's replica ended, where it is this one's and is over.
    #[must_use]
    pub fn end_of(&self, desired: &Desired) -> Option<Finished> {
        let pod = &desired.start.pod;
        let same = desired.start.key == self.key
            && desired.finished.is_none()
            && self.codes.len() == pod.containers.len()
            && labels::pod_hash(pod) == self.pod_hash;
        let failed = self.codes.iter().copied().find(|code| *code != 0);
        let phase = match (pod.restart_policy(), failed) {
            (RestartPolicy::Never | RestartPolicy::OnFailure, None) => ReplicaPhase::Succeeded,
            (RestartPolicy::Never, Some(_)) => ReplicaPhase::Failed,
            _ => return None,
        };
        let reason = if failed.is_none() {
            "Completed"
        } else {
            "Error"
        };
        same.then(|| Finished {
            phase,
            exit_code: failed.unwrap_or(0),
            reason: reason.to_owned(),
            message: String::new(),
        })
    }
}

/// Asks containerd.
///
/// # Errors
/// When it does not answer.
pub async fn find(cri: &Cri, node_id: &str) -> Result<Found, RuntimeError> {
    let seen = observe(cri, node_id, Cache::default()).await?;
    let mut found = Found::default();
    for (key, sandboxes) in seen.sandboxes {
        let mut containers = sandboxes.iter().flat_map(|s| &s.containers);
        if containers.any(|c| c.state == State::Running) {
            found.running.push(key);
        } else if let Some(exits) = exits(&key, &sandboxes) {
            found.exits.push(exits);
        }
    }
    Ok(found)
}

/// The last starts of the containers of the newest sandbox; none where one of them may run.
fn exits(key: &ReplicaKey, sandboxes: &[Sandbox]) -> Option<Exits> {
    if sandboxes
        .iter()
        .any(|s| s.containers.iter().any(Container::live))
    {
        return None;
    }
    let newest = sandboxes.iter().max_by_key(|s| s.attempt)?;
    let mut last = BTreeMap::new();
    for container in &newest.containers {
        let held = last.entry(&container.name).or_insert(container);
        if held.attempt < container.attempt {
            *held = container;
        }
    }
    let code = |state: &State| match state {
        State::Exited(ended) => Some(ended.code),
        _ => None,
    };
    Some(Exits {
        key: key.clone(),
        pod_hash: newest.hash.clone(),
        codes: last
            .values()
            .map(|c| code(&c.state))
            .collect::<Option<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::model::Ended;
    use super::*;
    use crate::testing::desired;
    use std::time::{Duration, Instant};

    fn container(name: &str, attempt: u32, code: Option<i32>) -> Container {
        let state = code.map_or(State::Running, |code| {
            State::Exited(Ended {
                code,
                reason: "Completed".to_owned(),
                message: String::new(),
                ran: Duration::ZERO,
                at: Instant::now(),
            })
        });
        Container {
            id: format!("{name}-{attempt}"),
            name: name.to_owned(),
            attempt,
            restarts: attempt,
            state,
            started: Instant::now(),
        }
    }

    fn sandbox(attempt: u32, hash: &str, containers: Vec<Container>) -> Sandbox {
        Sandbox {
            id: attempt.to_string(),
            attempt,
            hash: hash.to_owned(),
            ready: false,
            ip: String::new(),
            grace: Duration::ZERO,
            containers,
        }
    }

    fn job(policy: RestartPolicy) -> Desired {
        let mut job = desired("job", 0, 1);
        job.start.pod.restart_policy = policy.into();
        job
    }

    #[test]
    fn the_last_starts_in_the_newest_sandbox_say_how_a_job_ended() {
        let want = job(RestartPolicy::OnFailure);
        let (key, hash) = (&want.start.key, labels::pod_hash(&want.start.pod));
        let name = want.start.pod.containers[0].name.as_str();
        let old = sandbox(0, &hash, vec![container(name, 0, Some(3))]);
        let tries = vec![container(name, 2, Some(0)), container(name, 1, Some(1))];
        let found = exits(key, &[old.clone(), sandbox(1, &hash, tries)]).unwrap();
        assert_eq!(found.end_of(&want).unwrap().phase, ReplicaPhase::Succeeded);
        let runs = sandbox(1, &hash, vec![container(name, 1, None)]);
        assert_eq!(exits(key, &[old, runs]), None);
    }

    #[test]
    fn only_what_is_over_for_good_is_an_end() {
        let never = job(RestartPolicy::Never);
        let (key, pod) = (&never.start.key, &never.start.pod);
        let of = |codes: &[i32]| Exits::of(key, pod, codes.to_vec());
        let failed = of(&[4]).end_of(&never).unwrap();
        assert_eq!((failed.phase, failed.exit_code), (ReplicaPhase::Failed, 4));
        assert_eq!(of(&[]).end_of(&never), None, "it never ran");
        let again = job(RestartPolicy::OnFailure);
        let tried = Exits::of(key, &again.start.pod, vec![4]);
        assert_eq!(tried.end_of(&again), None, "it is tried again");
        assert_eq!(tried.end_of(&never), None, "of another pod");
        let service = job(RestartPolicy::Always);
        let ended = Exits::of(key, &service.start.pod, vec![0]);
        assert_eq!(ended.end_of(&service), None, "a service has no end");
        let known = Desired {
            finished: Some(failed),
            ..never.clone()
        };
        assert_eq!(of(&[0]).end_of(&known), None, "known already");
    }
}
