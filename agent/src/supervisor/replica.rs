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
use crate::runtime::Cri;

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
            message: status.message.clone(),
            restarts: status.restarts,
            pod_ip: status.pod_ip.clone(),
            exit_code: status.exit_code,
            container_ids: status.container_ids.clone(),
        }
    }

    /// The last report, for when containerd can't be asked: the phase stays as it was known.
    pub(super) fn blind_report(&self, key: &ReplicaKey, why: &str) -> ReplicaReport {
        let mut report = self.reported.clone().unwrap_or_else(|| {
            let status = Status::new(ReplicaPhase::Starting, "", "");
            self.report(key, &status)
        });
        if let Some(want) = &self.want {
            report.generation = want.start.generation;
        }
        "RuntimeUnavailable".clone_into(&mut report.reason);
        why.clone_into(&mut report.message);
        report
    }
}
