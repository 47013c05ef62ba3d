//! State of one replica in the driver.

use std::collections::BTreeMap;
use std::time::Instant;

use hyperion_proto::agent_v1::{ReplicaPhase, ReplicaReport};
use hyperion_proto::domain::ReplicaKey;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::memory::Memory;
use super::model::{Sandbox, State, Status, Step, Want};
use super::notice::Notice;
use super::probe::{Kind, Spec};
use super::probing::{self, Target};
use crate::runtime::{Cri, shorten};

/// One replica.
#[derive(Debug, Default)]
pub(super) struct Replica {
    pub want: Option<Want>,
    pub seen: Vec<Sandbox>,
    pub memory: Memory,
    /// The step that is being done. Never more than one: that is what keeps two sandboxes of one
    /// replica from running at once.
    pub busy: Option<Busy>,
    /// What is seen is out of date: nothing is decided before the next look.
    pub stale: bool,
    /// A look was missed because a step was being done.
    pub missed: bool,
    /// Number of the last begin or end of a step; a look that began before says nothing.
    pub changed: u64,
    /// Earliest time at which the plan changes by itself.
    pub wake: Option<Instant>,
    pub reported: Option<ReplicaReport>,
    probes: BTreeMap<(String, Kind), Probing>,
}

/// A step that is being done.
#[derive(Debug)]
pub(super) struct Busy {
    pub step: Step,
    pub abort: AbortHandle,
}

/// Ends its task when dropped.
#[derive(Debug)]
struct Probing(AbortHandle);

impl Drop for Probing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Replica {
    /// Whether a container or sandbox of this id belongs to it.
    pub(super) fn owns(&self, id: &str) -> bool {
        self.seen
            .iter()
            .any(|s| s.id == id || s.containers.iter().any(|c| c.id == id))
    }

    /// A plan may be made: no step is being done, and what is seen is how it is.
    pub(super) fn idle(&self) -> bool {
        self.busy.is_none() && !self.stale
    }

    /// A pull has no effect that must be waited for: it ends when what it is for changes.
    pub(super) fn abort_pull(&self) {
        if let Some(busy) = &self.busy
            && matches!(busy.step, Step::EnsureImage { .. })
        {
            busy.abort.abort();
        }
    }

    /// Starts the probes of containers that run, ends those of the others.
    pub(super) fn tend_probes(
        &mut self,
        key: &ReplicaKey,
        cri: &Cri,
        notices: &mpsc::Sender<Notice>,
    ) {
        let mut wanted = BTreeMap::new();
        if let Some(want) = &self.want {
            let same = self.seen.iter().filter(|s| s.hash == want.hash);
            for sandbox in same {
                for container in &sandbox.containers {
                    let spec = want.start.pod.containers.iter();
                    let spec = spec.clone().find(|c| c.name == container.name);
                    let (State::Running, Some(spec)) = (&container.state, spec) else {
                        continue;
                    };
                    for (kind, probe) in [
                        (Kind::Liveness, &spec.liveness),
                        (Kind::Readiness, &spec.readiness),
                    ] {
                        if let Some(spec) = probe.as_ref().and_then(|p| Spec::new(kind, p)) {
                            let host = if want.start.pod.host_network {
                                "127.0.0.1"
                            } else {
                                sandbox.ip.as_str()
                            };
                            wanted.insert(
                                (container.id.clone(), kind),
                                (spec, host.to_owned(), container.started),
                            );
                        }
                    }
                }
            }
        }
        self.probes.retain(|id, _| wanted.contains_key(id));
        for ((container, kind), (spec, host, started)) in wanted {
            self.probes
                .entry((container.clone(), kind))
                .or_insert_with(|| {
                    let target = Target {
                        key: key.clone(),
                        container,
                        host,
                        started,
                    };
                    let probe = probing::run(cri.clone(), target, kind, spec, notices.clone());
                    Probing(tokio::spawn(probe).abort_handle())
                });
        }
    }

    /// The report that a status makes.
    pub(super) fn report(&self, key: &ReplicaKey, status: &Status) -> ReplicaReport {
        let before = self.reported.as_ref();
        let generation = self.want.as_ref().map(|w| w.start.generation);
        ReplicaReport {
            key: Some(key.into()),
            generation: generation
                .or(before.map(|b| b.generation))
                .unwrap_or_default(),
            phase: status.phase.into(),
            ready: status.ready,
            reason: status.reason.clone(),
            message: shorten(&status.message),
            restarts: status.restarts,
            pod_ip: status.pod_ip.clone(),
            exit_code: status.exit_code,
            container_ids: status.container_ids.clone(),
        }
    }

    /// The last report, for when containerd can't be asked: the phase stays as it was known, as
    /// long as it is that of what is wanted.
    pub(super) fn blind_report(&self, key: &ReplicaKey, why: &str) -> ReplicaReport {
        let last = self.reported.as_ref().filter(|r| !self.outdates(r));
        let mut report = last.cloned().unwrap_or_else(|| {
            let status = Status::new(ReplicaPhase::Starting, "", "");
            self.report(key, &status)
        });
        if let Some(want) = &self.want {
            report.generation = want.start.generation;
        }
        if self.absent()
            && matches!(
                report.phase(),
                ReplicaPhase::Starting | ReplicaPhase::Pulling
            )
        {
            // Another node may take it.
            report.phase = ReplicaPhase::Backoff.into();
        }
        "RuntimeUnavailable".clone_into(&mut report.reason);
        report.message = shorten(why);
        report
    }

    /// Whether a report tells of something else than what is wanted now: of another pod, or of a
    /// try that ended before this one.
    fn outdates(&self, report: &ReplicaReport) -> bool {
        let Some(want) = self.want.as_ref().filter(|want| want.finished.is_none()) else {
            return false;
        };
        let over = matches!(
            report.phase(),
            ReplicaPhase::Succeeded | ReplicaPhase::Failed
        );
        let earlier = report.generation != want.start.generation;
        (over && earlier) || !self.memory.is_about(&want.hash)
    }

    /// A replica to be started of which nothing is here, and that is known.
    fn absent(&self) -> bool {
        let pending = self.want.as_ref().is_some_and(|w| w.finished.is_none());
        pending && self.idle() && self.seen.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Finished, Tuning};
    use super::*;
    use crate::runtime::labels;
    use crate::testing::{key, start};

    fn want(generation: u64) -> Want {
        let start = start("web", 0, generation);
        Want {
            hash: labels::pod_hash(&start.pod),
            start,
            finished: None,
            behind: None,
        }
    }

    fn sandbox(hash: &str) -> Sandbox {
        Sandbox {
            id: "s0".to_owned(),
            attempt: 0,
            hash: hash.to_owned(),
            ready: true,
            ip: String::new(),
            grace: Duration::ZERO,
            containers: Vec::new(),
        }
    }

    /// One that was planned with generation 1, and reported.
    fn replica(phase: ReplicaPhase) -> Replica {
        let want = want(1);
        let mut replica = Replica {
            seen: vec![sandbox(&want.hash)],
            ..Replica::default()
        };
        let (now, tuning) = (Instant::now(), Tuning::default());
        replica
            .memory
            .note(Some(&want), &replica.seen, now, &tuning);
        replica.want = Some(want);
        let status = Status {
            ready: phase == ReplicaPhase::Running,
            ..Status::new(phase, "", "")
        };
        replica.reported = Some(replica.report(&key("web", 0), &status));
        replica
    }

    fn blind(replica: &Replica) -> ReplicaReport {
        let report = replica.blind_report(&key("web", 0), "no answer");
        assert_eq!(report.reason, "RuntimeUnavailable");
        let want = replica.want.as_ref().unwrap();
        assert_eq!(report.generation, want.start.generation);
        report
    }

    #[test]
    fn without_containerd_a_new_try_of_a_job_has_not_ended_yet() {
        for phase in [ReplicaPhase::Succeeded, ReplicaPhase::Failed] {
            let mut replica = replica(phase);
            assert_eq!(blind(&replica).phase(), phase);
            replica.want = Some(want(2));
            assert_eq!(blind(&replica).phase(), ReplicaPhase::Starting);
            // One that is done stays so, whichever generation asks for it.
            replica.want.as_mut().unwrap().finished = Some(Finished {
                phase,
                exit_code: 0,
                reason: String::new(),
                message: String::new(),
            });
            assert_eq!(blind(&replica).phase(), phase);
        }
    }

    #[test]
    fn without_containerd_another_pod_is_not_ready_and_the_same_one_still_is() {
        let mut replica = replica(ReplicaPhase::Running);
        replica.want = Some(want(2));
        let report = blind(&replica);
        assert_eq!(
            (report.phase(), report.ready),
            (ReplicaPhase::Running, true)
        );
        let mut other = want(2);
        other.start.pod.containers[0].image = "other:1".to_owned();
        other.hash = labels::pod_hash(&other.start.pod);
        replica.want = Some(other);
        let report = blind(&replica);
        assert_eq!(
            (report.phase(), report.ready),
            (ReplicaPhase::Starting, false)
        );
        // The plan of the old pod does not come back with the report of the new one.
        replica.reported = Some(report.clone());
        assert_eq!(blind(&replica), report);
    }

    #[test]
    fn without_containerd_a_replica_that_is_not_here_may_be_taken_elsewhere() {
        for phase in [ReplicaPhase::Starting, ReplicaPhase::Pulling] {
            let mut replica = replica(phase);
            assert_eq!(blind(&replica).phase(), phase, "its sandbox is here");
            replica.seen.clear();
            replica.stale = true;
            assert_eq!(blind(&replica).phase(), phase, "that is not known");
            replica.stale = false;
            let report = blind(&replica);
            assert_eq!(report.phase(), ReplicaPhase::Backoff);
            replica.reported = Some(report.clone());
            assert_eq!(blind(&replica), report);
        }
        let never_planned = Replica {
            want: Some(want(1)),
            ..Replica::default()
        };
        assert_eq!(blind(&never_planned).phase(), ReplicaPhase::Backoff);
    }

    #[test]
    fn what_a_probe_says_fits_a_report() {
        let words = format!("readiness probe: \0\u{1b}{}", "x".repeat(100_000));
        let status = Status::new(ReplicaPhase::Running, "NotReady", words);
        let report = Replica::default().report(&key("web", 0), &status);
        assert!(hyperion_proto::convert::report(&report).is_ok());
        assert!(!report.message.contains(char::is_control));
    }
}
