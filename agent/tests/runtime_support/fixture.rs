//! A supervisor on a private containerd, and pods for it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hyperion_agent::runtime::Cri;
use hyperion_agent::supervisor::{
    Desired, RuntimeState, Supervisor, SupervisorConfig, SupervisorEvent, Tuning, start_tuned,
};
use hyperion_proto::agent_v1::{Container, PodSpec, ReplicaPhase, ReplicaReport, RestartPolicy};
use hyperion_proto::domain::{ReplicaKey, Start};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::runtime_support::{BUSYBOX, Containerd};

/// A running supervisor.
pub struct Fixture {
    pub containerd: Arc<Containerd>,
    pub node: String,
    pub supervisor: Supervisor,
    pub cri: Cri,
    pub told: Arc<Mutex<Vec<SupervisorEvent>>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Fixture {
    pub fn new(containerd: Arc<Containerd>, node: &str) -> Self {
        let (events, mut receiver) = mpsc::channel(16);
        let stop = CancellationToken::new();
        let config = SupervisorConfig {
            socket: containerd.socket(),
            node_id: node.to_owned(),
            log_dir: containerd.dir.join("pods").join(node),
        };
        let tuning = Tuning {
            backoff_base: Duration::from_millis(400),
            backoff_max: Duration::from_secs(2),
            relist: Duration::from_secs(3),
            ..Tuning::default()
        };
        let (supervisor, task) = start_tuned(config, tuning, events, stop.clone());
        let told = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&told);
        tokio::spawn(async move {
            while let Some(event) = receiver.recv().await {
                sink.lock().unwrap().push(event);
            }
        });
        Self {
            cri: Cri::new(containerd.socket()),
            containerd,
            node: node.to_owned(),
            supervisor,
            told,
            stop,
            task,
        }
    }

    /// Ends the supervisor as `kill -9` does: at once, in the middle of anything.
    pub async fn crash(self) -> Arc<Containerd> {
        self.task.abort();
        let _ = self.task.await;
        self.containerd
    }

    /// Stops everything that the node runs, then the supervisor.
    pub async fn finish(self) {
        self.supervisor.set_desired(Vec::new());
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.cri.sandboxes(&self.node).await.unwrap().is_empty() {
            assert!(Instant::now() < deadline, "sandboxes are left");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.stop.cancel();
        self.task.await.unwrap();
    }

    pub fn report(&self, key: &ReplicaKey) -> Option<ReplicaReport> {
        let reports = self.supervisor.reports();
        let wire = hyperion_proto::agent_v1::ReplicaKey::from(key);
        reports.into_iter().find(|r| r.key.as_ref() == Some(&wire))
    }

    /// Waits until the report is as wanted.
    pub async fn until(
        &self,
        key: &ReplicaKey,
        what: &str,
        wanted: impl Fn(&ReplicaReport) -> bool,
    ) -> ReplicaReport {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let report = self.report(key);
            if let Some(report) = report.clone().filter(&wanted) {
                return report;
            }
            assert!(
                Instant::now() < deadline,
                "{what}: {report:#?}\n{}",
                self.containerd.log()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn until_running(&self, key: &ReplicaKey) -> ReplicaReport {
        self.until(key, "running and ready", |r| {
            r.phase() == ReplicaPhase::Running && r.ready
        })
        .await
    }

    pub async fn until_runtime(&self, what: &str, wanted: impl Fn(&RuntimeState) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !wanted(&self.supervisor.runtime_state()) {
            assert!(Instant::now() < deadline, "{what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Phases that were told of a replica, without repetitions.
    pub fn phases(&self, key: &ReplicaKey) -> Vec<ReplicaPhase> {
        let wire = hyperion_proto::agent_v1::ReplicaKey::from(key);
        let told = self.told.lock().unwrap();
        let mut phases: Vec<_> = told
            .iter()
            .filter_map(|e| match e {
                SupervisorEvent::Report(r) if r.key.as_ref() == Some(&wire) => Some(r.phase()),
                _ => None,
            })
            .collect();
        phases.dedup();
        phases
    }

    /// Reasons of the events that were told.
    pub fn reasons(&self) -> Vec<String> {
        let told = self.told.lock().unwrap();
        told.iter()
            .filter_map(|e| match e {
                SupervisorEvent::Event { reason, .. } => Some(reason.clone()),
                _ => None,
            })
            .collect()
    }
}

pub fn key(workload: &str) -> ReplicaKey {
    ReplicaKey {
        namespace: "default".into(),
        workload: workload.into(),
        uid: format!("uid-{workload}"),
        index: 0,
    }
}

pub fn shell(script: &str) -> Container {
    Container {
        name: "main".into(),
        image: BUSYBOX.into(),
        command: vec!["/bin/sh".into(), "-c".into(), script.into()],
        ..Default::default()
    }
}

/// A shell that goes at SIGTERM.
pub fn forever() -> Container {
    shell("trap 'exit 0' TERM; while :; do sleep 1 & wait; done")
}

pub fn pod(container: Container) -> PodSpec {
    PodSpec {
        containers: vec![container],
        restart_policy: RestartPolicy::Always.into(),
        termination_grace_period_seconds: 2,
        ..Default::default()
    }
}

pub fn desired(key: &ReplicaKey, generation: u64, pod: PodSpec) -> Desired {
    Desired {
        start: Start {
            key: key.clone(),
            generation,
            pod,
        },
        finished: None,
    }
}
