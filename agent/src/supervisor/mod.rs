//! Runs what the node should run: takes the whole desired state each time it changes, compares it
//! with the containers that exist, and does the next step for each replica. Containers that the
//! previous process of the agent left running are adopted, never started a second time.

mod connection;
mod driver;
mod found;
mod insecure_tls;
mod logs;
mod look;
mod memory;
mod model;
mod notice;
mod observe;
mod outbox;
mod pins;
mod plan;
mod probe;
mod probing;
mod replica;
mod rotate;
mod steps;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use hyperion_proto::agent_v1::{ReplicaPhase, ReplicaReport};
use hyperion_proto::domain::{ReplicaKey, Start};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::runtime::ImageSource;
use driver::Driver;
pub use found::{Exits, Found, find};

/// Where the supervisor works.
#[derive(Debug, Clone)]
pub struct SupervisorConfig {
    /// containerd's socket.
    pub socket: PathBuf,
    /// Only sandboxes of this node are seen and touched: several agents may share one containerd.
    pub node_id: String,
    /// Folder of container logs; one folder per replica below it.
    pub log_dir: PathBuf,
}

/// One replica that this node should run.
#[derive(Debug, Clone)]
pub struct Desired {
    /// Key, generation and pod.
    pub start: Start,
    /// A job replica that already ended: it is never started again.
    pub finished: Option<Finished>,
}

/// How a job replica ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// `Succeeded` or `Failed`.
    pub phase: ReplicaPhase,
    /// Exit code of the container that decided it.
    pub exit_code: i32,
    /// CamelCase.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// What the supervisor tells.
#[derive(Debug, Clone, PartialEq)]
pub enum SupervisorEvent {
    /// A replica's report changed; complete.
    Report(ReplicaReport),
    /// Something that happened once.
    Event {
        /// CamelCase.
        reason: String,
        /// For people.
        message: String,
        /// Worth someone's attention.
        warning: bool,
        /// Replica that it is about.
        key: Option<ReplicaKey>,
    },
    /// containerd came or went.
    Runtime(RuntimeState),
}

/// Whether containerd answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeState {
    /// It does.
    Available {
        /// For example `containerd`.
        name: String,
        /// Its version.
        version: String,
    },
    /// It does not.
    Unavailable {
        /// Why, naming the socket.
        reason: String,
    },
}

/// Which log to read.
#[derive(Debug, Clone)]
pub struct LogQuery {
    /// Replica.
    pub key: ReplicaKey,
    /// Container name; empty takes the pod's first.
    pub container: String,
    /// Last lines to begin with; 0 means all.
    pub tail_lines: u32,
    /// Goes on as the container writes, over restarts, until dropped or the replica is gone.
    pub follow: bool,
}

/// A log that can't be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The node does not run it.
    #[error("replica {0} has no logs on this node")]
    UnknownReplica(ReplicaKey),
    /// The pod has no such container, or it has not started yet.
    #[error("replica {key}: container {container:?} has no logs")]
    UnknownContainer {
        /// Replica.
        key: ReplicaKey,
        /// What was asked for.
        container: String,
    },
    /// Reading.
    #[error("{path}: {source}")]
    Io {
        /// File.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
}

/// Times that tests shorten. The defaults are Kubernetes' where it has one.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// Wait before the second restart of a container that keeps ending; doubles each time.
    pub backoff_base: Duration,
    /// Longest wait.
    pub backoff_max: Duration,
    /// A container that ran this long is forgiven its earlier ends.
    pub backoff_reset: Duration,
    /// Time between full listings while containerd's event stream stands.
    pub relist: Duration,
    /// First wait before containerd is tried again; doubles up to ten seconds.
    pub reconnect: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            backoff_base: Duration::from_secs(10),
            backoff_max: Duration::from_secs(300),
            backoff_reset: Duration::from_secs(600),
            relist: Duration::from_secs(10),
            reconnect: Duration::from_millis(250),
        }
    }
}

/// Handle of the running supervisor. Dropping it, or cancelling `stop`, leaves containers running.
#[derive(Debug, Clone)]
pub struct Supervisor {
    shared: Arc<Shared>,
}

/// What the handle and the driver share.
#[derive(Debug)]
struct Shared {
    log_dir: PathBuf,
    desired: watch::Sender<Option<Arc<Vec<Desired>>>>,
    reports: Mutex<BTreeMap<ReplicaKey, ReplicaReport>>,
    /// Time to stop of replicas that have less than their own.
    hurried: Mutex<BTreeMap<ReplicaKey, Duration>>,
    runtime: Mutex<RuntimeState>,
    images: Arc<OnceLock<Arc<dyn ImageSource>>>,
}

/// Starts the supervisor on the current tokio runtime.
#[must_use]
pub fn start(
    config: SupervisorConfig,
    events: mpsc::Sender<SupervisorEvent>,
    stop: CancellationToken,
) -> (Supervisor, JoinHandle<()>) {
    start_tuned(config, Tuning::default(), events, stop)
}

/// Like [`start`], with other times.
#[must_use]
pub fn start_tuned(
    config: SupervisorConfig,
    tuning: Tuning,
    events: mpsc::Sender<SupervisorEvent>,
    stop: CancellationToken,
) -> (Supervisor, JoinHandle<()>) {
    let (desired, changes) = watch::channel(None);
    let shared = Arc::new(Shared {
        log_dir: config.log_dir.clone(),
        desired,
        reports: Mutex::default(),
        hurried: Mutex::default(),
        runtime: Mutex::new(RuntimeState::Unavailable {
            reason: format!("{}: not tried yet", config.socket.display()),
        }),
        images: Arc::default(),
    });
    let driver = Driver::new(config, tuning, Arc::clone(&shared), changes, events);
    (Supervisor { shared }, tokio::spawn(driver.run(stop)))
}

impl Supervisor {
    /// Takes what this node should run, complete. Until the first call nothing is stopped or
    /// removed.
    pub fn set_desired(&self, desired: Vec<Desired>) {
        self.shared.desired.send_replace(Some(Arc::new(desired)));
    }

    /// A replica that is to stop gets at most so much time for it. To be said before it is no longer
    /// desired; forgotten when it is gone, or desired again.
    pub fn hurry(&self, key: &ReplicaKey, grace: Duration) {
        lock(&self.shared.hurried).insert(key.clone(), grace);
    }

    /// Gives a second source of images, besides their registries. The first one given stays.
    pub fn set_image_source(&self, source: Arc<dyn ImageSource>) {
        let _ = self.shared.images.set(source);
    }

    /// The last report of each desired replica.
    #[must_use]
    pub fn reports(&self) -> Vec<ReplicaReport> {
        lock(&self.shared.reports).values().cloned().collect()
    }

    /// Whether containerd answers.
    #[must_use]
    pub fn runtime_state(&self) -> RuntimeState {
        lock(&self.shared.runtime).clone()
    }

    /// Output of a container, standard output and error as they were written, in pieces of at most
    /// 64 KiB. Begins with the latest start of the container.
    pub fn logs(
        &self,
        query: LogQuery,
    ) -> impl Stream<Item = Result<Bytes, LogError>> + Send + use<> {
        logs::stream(Arc::clone(&self.shared), query)
    }
}

/// A poisoned lock means that another task panicked between two assignments; the value is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
