//! Carries out one step.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hyperion_proto::agent_v1::PullPolicy;
use hyperion_proto::domain::ReplicaKey;
use tokio::sync::{Notify, Semaphore, mpsc};

use super::model::{Container, Sandbox, State, Step, Want};
use super::notice::Notice;
use super::observe::RESTARTS;
use crate::runtime::{Cri, ImageSource, RuntimeError, pod};

/// Sandboxes and containers that are started at once: more only makes each of them slower.
const STARTS: usize = 6;
/// Images that are pulled at once; kubelet pulls one.
const PULLS: usize = 2;

/// What a step did.
#[derive(Debug)]
pub(super) enum Did {
    /// The image is here; `pulled` says how long that took.
    Image {
        image: String,
        pulled: Option<Duration>,
        /// A pull was asked for and failed, but an older copy is here.
        stale: Option<String>,
    },
    Sandbox(Sandbox),
    Started {
        sandbox: String,
        container: Container,
    },
    /// Something that needs another look.
    Other,
}

/// What every step needs.
#[derive(Debug, Clone)]
pub(super) struct Hands {
    pub cri: Cri,
    pub node_id: Arc<str>,
    pub log_dir: Arc<PathBuf>,
    pub notices: mpsc::Sender<Notice>,
    /// Told of each image that has come.
    pub came: Arc<Notify>,
    images: Arc<OnceLock<Arc<dyn ImageSource>>>,
    starts: Arc<Semaphore>,
    pulls: Arc<Semaphore>,
}

impl Hands {
    pub(super) fn new(
        cri: Cri,
        node_id: String,
        log_dir: PathBuf,
        notices: mpsc::Sender<Notice>,
        images: Arc<OnceLock<Arc<dyn ImageSource>>>,
    ) -> Self {
        Self {
            cri,
            node_id: node_id.into(),
            log_dir: Arc::new(log_dir),
            notices,
            came: Arc::default(),
            images,
            starts: Arc::new(Semaphore::new(STARTS)),
            pulls: Arc::new(Semaphore::new(PULLS)),
        }
    }

    /// Does `step` for a replica.
    pub(super) async fn act(
        self,
        key: ReplicaKey,
        want: Option<Want>,
        step: Step,
    ) -> Result<Did, RuntimeError> {
        match (step, want) {
            (Step::EnsureImage { image, policy }, _) => self.image(key, image, policy).await,
            (Step::RunSandbox { attempt }, Some(want)) => self.sandbox(&want, attempt).await,
            (
                Step::StartContainer {
                    sandbox,
                    name,
                    attempt,
                    restarts,
                },
                Some(want),
            ) => self.start(&want, sandbox, &name, attempt, restarts).await,
            (Step::StopContainer { id, grace }, _) => {
                done(self.cri.stop_container(&id, grace).await)
            }
            (Step::RemoveContainer { id, name, attempt }, _) => {
                self.cri.remove_container(&id).await.or_else(gone)?;
                self.remove_log(&key, &name, attempt);
                Ok(Did::Other)
            }
            (
                Step::StopSandbox {
                    id,
                    containers,
                    grace,
                },
                _,
            ) => self.stop(&id, &containers, grace).await,
            (Step::RemoveSandbox { id }, _) => done(self.cri.remove_sandbox(&id).await),
            // The replica stopped being wanted between the decision and now.
            (Step::RunSandbox { .. } | Step::StartContainer { .. }, None) => Ok(Did::Other),
        }
    }

    async fn image(
        &self,
        key: ReplicaKey,
        image: String,
        policy: PullPolicy,
    ) -> Result<Did, RuntimeError> {
        let present = self.cri.image_present(&image).await?;
        let did = |image, pulled, stale| Did::Image {
            image,
            pulled,
            stale,
        };
        match policy {
            PullPolicy::Never if !present => {
                return Err(RuntimeError::Failed {
                    what: format!("image {image}"),
                    code: tonic::Code::NotFound,
                    message: "not on this node, and its pull policy is Never".to_owned(),
                });
            }
            PullPolicy::Always => {}
            _ if present => return Ok(did(image, None, None)),
            _ => {}
        }
        let notice = Notice::Pulling {
            key,
            image: image.clone(),
        };
        // The driver outlives its steps; if it does not, nobody listens.
        let _ = self.notices.send(notice).await;
        // Closed never: the semaphore lives as long as the hands.
        let _permit = self.pulls.acquire().await.ok();
        let begun = Instant::now();
        // A peer's copy first where any copy will do: it is near, and it is there when the registry
        // is not, which a pull finds out slowly.
        let any = policy != PullPolicy::Always;
        if any && self.fetched_from_peer(&image).await {
            return Ok(did(image, Some(begun.elapsed()), None));
        }
        match self.cri.pull_image(&image).await {
            Ok(()) => {
                self.came.notify_one();
                Ok(did(image, Some(begun.elapsed()), None))
            }
            // A device without network starts what it has.
            Err(error) if present => Ok(did(image, None, Some(error.to_string()))),
            Err(_) if !any && self.fetched_from_peer(&image).await => {
                Ok(did(image, Some(begun.elapsed()), None))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether another node gave the image.
    async fn fetched_from_peer(&self, image: &str) -> bool {
        let Some(source) = self.images.get() else {
            return false;
        };
        match source.fetch(image).await {
            Ok(()) => {
                self.came.notify_one();
                true
            }
            Err(why) => {
                tracing::debug!(image, why, "no peer gave the image");
                false
            }
        }
    }

    async fn sandbox(&self, want: &Want, attempt: u32) -> Result<Did, RuntimeError> {
        let _permit = self.starts.acquire().await.ok();
        let config = pod::sandbox_config(
            &self.node_id,
            &self.log_dir,
            &want.start,
            &want.hash,
            attempt,
        );
        let id = self.cri.run_sandbox(config).await?;
        let ip = if want.start.pod.host_network {
            String::new()
        } else {
            self.cri.sandbox_ip(&id).await?
        };
        Ok(Did::Sandbox(Sandbox {
            id,
            attempt,
            hash: want.hash.clone(),
            ready: true,
            ip,
            grace: pod::grace(&want.start.pod),
            containers: Vec::new(),
        }))
    }

    async fn start(
        &self,
        want: &Want,
        sandbox: String,
        name: &str,
        attempt: u32,
        restarts: u32,
    ) -> Result<Did, RuntimeError> {
        let Some(spec) = want.start.pod.containers.iter().find(|c| c.name == name) else {
            return Ok(Did::Other);
        };
        let _permit = self.starts.acquire().await.ok();
        let logs = pod::log_dir(&self.log_dir, &want.start.key).join(name);
        std::fs::create_dir_all(&logs).map_err(|error| RuntimeError::Failed {
            what: format!("log folder {}", logs.display()),
            code: tonic::Code::Internal,
            message: error.to_string().to_lowercase(),
        })?;
        let mut config =
            pod::container_config(&self.node_id, &want.start, &want.hash, spec, attempt);
        config
            .annotations
            .insert(RESTARTS.to_owned(), restarts.to_string());
        let of = pod::sandbox_config(&self.node_id, &self.log_dir, &want.start, &want.hash, 0);
        let id = self.cri.create_container(&sandbox, config, of).await?;
        match self.cri.start_container(&id).await {
            Ok(()) => {}
            Err(error) if error.is_unavailable() => return Err(error),
            // containerd keeps it as ended with the reason StartError: the next look counts it as
            // any other end.
            Err(error) => {
                tracing::warn!(replica = %want.start.key, container = name, %error, "not started");
                return Ok(Did::Other);
            }
        }
        Ok(Did::Started {
            sandbox,
            container: Container {
                id,
                name: name.to_owned(),
                attempt,
                restarts,
                state: State::Running,
                started: Instant::now(),
            },
        })
    }

    async fn stop(
        &self,
        id: &str,
        containers: &[String],
        grace: Duration,
    ) -> Result<Did, RuntimeError> {
        let stops = containers
            .iter()
            .map(|container| self.cri.stop_container(container, grace));
        for result in futures::future::join_all(stops).await {
            // What a container's stop can't do, the sandbox's does without grace.
            if let Err(error) = result {
                tracing::debug!(sandbox = id, %error, "container not stopped");
            }
        }
        done(self.cri.stop_sandbox(id).await)
    }

    fn remove_log(&self, key: &ReplicaKey, name: &str, attempt: u32) {
        let log = pod::log_dir(&self.log_dir, key).join(pod::log_path(name, attempt));
        for path in [log.with_extension("log.old"), log] {
            // Most starts were never rotated.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// What is gone already needs no stop and no removal.
fn gone(error: RuntimeError) -> Result<(), RuntimeError> {
    if error.is_not_found() {
        Ok(())
    } else {
        Err(error)
    }
}

fn done(result: Result<(), RuntimeError>) -> Result<Did, RuntimeError> {
    result.or_else(gone).map(|()| Did::Other)
}
