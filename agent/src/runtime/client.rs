//! CRI v1 over the unix socket.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use k8s_cri::v1 as cri;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use super::{RuntimeError, labels};

/// For calls that only read.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// For calls that start or remove something; kubelet's value.
const WRITE_TIMEOUT: Duration = Duration::from_secs(120);
/// For pulls: a large image over a slow line.
const PULL_TIMEOUT: Duration = Duration::from_secs(3600);

/// A client of one containerd. It connects on the first call, and again after containerd was
/// restarted; clones share the connection.
#[derive(Debug, Clone)]
pub struct Cri {
    socket: Arc<Path>,
    channel: Channel,
}

/// How a command in a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecResult {
    /// Exit code.
    pub exit_code: i32,
    /// Standard output, then standard error.
    pub output: Bytes,
}

impl Cri {
    /// A client of the containerd behind `socket`; connects later, so it needs a tokio runtime but
    /// no containerd.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        let socket: Arc<Path> = socket.into().into();
        let path = Arc::clone(&socket);
        let connector = tower::service_fn(move |_| {
            let path = Arc::clone(&path);
            async move { UnixStream::connect(&*path).await.map(TokioIo::new) }
        });
        // The address is never looked at; HTTP/2 wants one.
        let channel =
            Endpoint::from_static("http://containerd").connect_with_connector_lazy(connector);
        Self { socket, channel }
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The connection, for containerd's own services.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    fn runtime(&self) -> RuntimeServiceClient<Channel> {
        // A node may hold thousands of dead containers of others; lists are filtered, but a
        // message limit would make the list fail for ever.
        RuntimeServiceClient::new(self.channel()).max_decoding_message_size(16 << 20)
    }

    fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel())
    }

    fn checked<T>(
        &self,
        what: &str,
        answer: Result<Response<T>, Status>,
    ) -> Result<T, RuntimeError> {
        answer
            .map(Response::into_inner)
            .map_err(|status| RuntimeError::from_status(&self.socket, what, &status))
    }

    /// Name and version of the runtime.
    ///
    /// # Errors
    /// Mostly [`RuntimeError::Unavailable`], naming the socket.
    pub async fn version(&self) -> Result<(String, String), RuntimeError> {
        let request = cri::VersionRequest::default();
        let answer = self.runtime().version(within(READ_TIMEOUT, request)).await;
        let version = self.checked("version", answer)?;
        Ok((version.runtime_name, version.runtime_version))
    }

    /// What the runtime says is wrong with itself, for example a missing network configuration.
    ///
    /// # Errors
    /// As [`Self::version`].
    pub async fn problems(&self) -> Result<Vec<String>, RuntimeError> {
        let request = cri::StatusRequest::default();
        let answer = self.runtime().status(within(READ_TIMEOUT, request)).await;
        let status = self.checked("status", answer)?.status.unwrap_or_default();
        let bad = status.conditions.into_iter().filter(|c| !c.status);
        Ok(bad
            .map(|c| format!("{}: {} {}", c.r#type, c.reason, c.message))
            .collect())
    }

    /// Whether the image is on this machine.
    ///
    /// # Errors
    /// Names the image.
    pub async fn image_present(&self, image: &str) -> Result<bool, RuntimeError> {
        let request = cri::ImageStatusRequest {
            image: Some(image_spec(image)),
            verbose: false,
        };
        let answer = self
            .images()
            .image_status(within(READ_TIMEOUT, request))
            .await;
        let status = self.checked(&format!("image {image}"), answer)?;
        Ok(status.image.is_some())
    }

    /// Names of all images on this machine, each as containerd keeps it.
    ///
    /// # Errors
    /// containerd's words.
    pub async fn image_names(&self) -> Result<Vec<String>, RuntimeError> {
        let request = cri::ListImagesRequest::default();
        let answer = self
            .images()
            .max_decoding_message_size(16 << 20)
            .list_images(within(READ_TIMEOUT, request))
            .await;
        let images = self.checked("list images", answer)?.images;
        let mut names: Vec<String> = images
            .into_iter()
            .flat_map(|image| image.repo_tags.into_iter().chain(image.repo_digests))
            .collect();
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// Pulls the image.
    ///
    /// # Errors
    /// Names the image.
    pub async fn pull_image(&self, image: &str) -> Result<(), RuntimeError> {
        let request = cri::PullImageRequest {
            image: Some(image_spec(image)),
            ..Default::default()
        };
        let answer = self
            .images()
            .pull_image(within(PULL_TIMEOUT, request))
            .await;
        self.checked(&format!("pull image {image}"), answer)?;
        Ok(())
    }

    /// Makes and starts a sandbox; its id.
    ///
    /// # Errors
    /// containerd's words.
    pub async fn run_sandbox(&self, config: cri::PodSandboxConfig) -> Result<String, RuntimeError> {
        let request = cri::RunPodSandboxRequest {
            config: Some(config),
            ..Default::default()
        };
        let answer = self
            .runtime()
            .run_pod_sandbox(within(WRITE_TIMEOUT, request))
            .await;
        Ok(self.checked("start sandbox", answer)?.pod_sandbox_id)
    }

    /// Address of a sandbox; empty on the host's network.
    ///
    /// # Errors
    /// Names the sandbox.
    pub async fn sandbox_ip(&self, id: &str) -> Result<String, RuntimeError> {
        let request = cri::PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: false,
        };
        let answer = self
            .runtime()
            .pod_sandbox_status(within(READ_TIMEOUT, request))
            .await;
        let status = self.checked(&format!("sandbox {id}"), answer)?.status;
        Ok(status
            .and_then(|status| status.network)
            .map_or_else(String::new, |network| network.ip))
    }

    /// Kills what is left in the sandbox and takes down its network.
    ///
    /// # Errors
    /// Names the sandbox.
    pub async fn stop_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        let request = cri::StopPodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        let answer = self
            .runtime()
            .stop_pod_sandbox(within(WRITE_TIMEOUT, request))
            .await;
        self.checked(&format!("stop sandbox {id}"), answer)?;
        Ok(())
    }

    /// Removes a sandbox and its containers.
    ///
    /// # Errors
    /// Names the sandbox.
    pub async fn remove_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        let request = cri::RemovePodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        let answer = self
            .runtime()
            .remove_pod_sandbox(within(WRITE_TIMEOUT, request))
            .await;
        self.checked(&format!("remove sandbox {id}"), answer)?;
        Ok(())
    }

    /// Makes a container in a sandbox; its id.
    ///
    /// # Errors
    /// Names the container.
    pub async fn create_container(
        &self,
        sandbox: &str,
        config: cri::ContainerConfig,
        sandbox_config: cri::PodSandboxConfig,
    ) -> Result<String, RuntimeError> {
        let name = config.metadata.as_ref().map_or("", |m| m.name.as_str());
        let what = format!("create container {name}");
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let answer = self
            .runtime()
            .create_container(within(WRITE_TIMEOUT, request))
            .await;
        Ok(self.checked(&what, answer)?.container_id)
    }

    /// Starts a container that was made.
    ///
    /// # Errors
    /// Names the container.
    pub async fn start_container(&self, id: &str) -> Result<(), RuntimeError> {
        let request = cri::StartContainerRequest {
            container_id: id.to_owned(),
        };
        let answer = self
            .runtime()
            .start_container(within(WRITE_TIMEOUT, request))
            .await;
        self.checked(&format!("start container {id}"), answer)?;
        Ok(())
    }

    /// Sends SIGTERM, and SIGKILL after `grace`.
    ///
    /// # Errors
    /// Names the container.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), RuntimeError> {
        let request = cri::StopContainerRequest {
            container_id: id.to_owned(),
            timeout: grace.as_secs().try_into().unwrap_or(i64::MAX),
        };
        let answer = self
            .runtime()
            .stop_container(within(grace + WRITE_TIMEOUT, request))
            .await;
        self.checked(&format!("stop container {id}"), answer)?;
        Ok(())
    }

    /// Removes a container.
    ///
    /// # Errors
    /// Names the container.
    pub async fn remove_container(&self, id: &str) -> Result<(), RuntimeError> {
        let request = cri::RemoveContainerRequest {
            container_id: id.to_owned(),
        };
        let answer = self
            .runtime()
            .remove_container(within(WRITE_TIMEOUT, request))
            .await;
        self.checked(&format!("remove container {id}"), answer)?;
        Ok(())
    }

    /// Status of one container.
    ///
    /// # Errors
    /// Names the container.
    pub async fn container_status(&self, id: &str) -> Result<cri::ContainerStatus, RuntimeError> {
        let request = cri::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let answer = self
            .runtime()
            .container_status(within(READ_TIMEOUT, request))
            .await;
        let status = self.checked(&format!("container {id}"), answer)?.status;
        Ok(status.unwrap_or_default())
    }

    /// All sandboxes of a node.
    ///
    /// # Errors
    /// containerd's words.
    pub async fn sandboxes(&self, node_id: &str) -> Result<Vec<cri::PodSandbox>, RuntimeError> {
        self.sandboxes_of(Some(node_id)).await
    }

    /// All sandboxes of a node; with none, those of whatever node.
    ///
    /// # Errors
    /// containerd's words.
    pub async fn sandboxes_of(
        &self,
        node_id: Option<&str>,
    ) -> Result<Vec<cri::PodSandbox>, RuntimeError> {
        let request = cri::ListPodSandboxRequest {
            filter: Some(cri::PodSandboxFilter {
                label_selector: node_id.map(labels::selector).unwrap_or_default(),
                ..Default::default()
            }),
        };
        let answer = self
            .runtime()
            .list_pod_sandbox(within(READ_TIMEOUT, request))
            .await;
        let mut found = self.checked("list sandboxes", answer)?.items;
        found.retain(|sandbox| sandbox.labels.contains_key(labels::NODE));
        Ok(found)
    }

    /// All containers of a node.
    ///
    /// # Errors
    /// containerd's words.
    pub async fn containers(&self, node_id: &str) -> Result<Vec<cri::Container>, RuntimeError> {
        let request = cri::ListContainersRequest {
            filter: Some(cri::ContainerFilter {
                label_selector: labels::selector(node_id),
                ..Default::default()
            }),
        };
        let answer = self
            .runtime()
            .list_containers(within(READ_TIMEOUT, request))
            .await;
        Ok(self.checked("list containers", answer)?.containers)
    }

    /// Runs a command in a container.
    ///
    /// # Errors
    /// When it can't be run, or not within `timeout`.
    pub async fn exec(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecResult, RuntimeError> {
        let request = cri::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.to_vec(),
            timeout: timeout.as_secs().max(1).try_into().unwrap_or(i64::MAX),
        };
        let answer = self
            .runtime()
            .exec_sync(within(timeout + READ_TIMEOUT, request))
            .await;
        let done = self.checked(&format!("run {command:?}"), answer)?;
        let mut output = done.stdout;
        output.extend_from_slice(&done.stderr);
        Ok(ExecResult {
            exit_code: done.exit_code,
            output: output.into(),
        })
    }

    /// Makes containerd write to a new log file, after the old one was moved away.
    ///
    /// # Errors
    /// Names the container.
    pub async fn reopen_log(&self, id: &str) -> Result<(), RuntimeError> {
        let request = cri::ReopenContainerLogRequest {
            container_id: id.to_owned(),
        };
        let answer = self
            .runtime()
            .reopen_container_log(within(READ_TIMEOUT, request))
            .await;
        self.checked(&format!("reopen log of container {id}"), answer)?;
        Ok(())
    }
}

fn image_spec(image: &str) -> cri::ImageSpec {
    cri::ImageSpec {
        image: image.to_owned(),
        ..Default::default()
    }
}

/// containerd sees the deadline and gives up too.
fn within<T>(timeout: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}
