//! A Kubernetes cluster with nodes, as the clouds sell them: a real API server, nodes that kwok runs
//! (see [`hyperion_cluster::nodes`]), and the real kube-scheduler where it is wanted.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt, stream};
use hyperion_cluster::Program;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams, PostParams};
use serde_json::Value;

use crate::apiserver::ApiServer;
use crate::process::Process;
use crate::{Kubectl, wait, watch};

/// Requests that are under way at once while nodes are made.
const PARALLEL: usize = 32;
/// What a node may be late with its lease, beyond the lease itself.
const LATE: Duration = Duration::from_secs(10);
/// Time for controllers to do with one node what they must; they take many at once.
const PER_NODE: Duration = Duration::from_millis(100);
/// Time for a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// What a node has until a controller has seen that it is ready.
const NOT_READY: &str = "node.kubernetes.io/not-ready";

/// How a cluster is started.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// With the real kube-scheduler.
    pub scheduler: bool,
    /// How long the lease of a node is good: it is renewed after a quarter of that. Kubernetes' own
    /// is 40 s, with which thousands of nodes make hundreds of requests per second.
    pub lease: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            scheduler: false,
            lease: Duration::from_secs(40),
        }
    }
}

/// A cluster on loopback. It ends when this is dropped, or when this process has ended.
#[derive(Debug)]
pub struct WorkloadCluster {
    /// Its API server.
    pub server: ApiServer,
    /// Runs its nodes.
    pub kwok: Process,
    /// Its kube-scheduler, where it has one.
    pub scheduler: Option<Process>,
    logs: PathBuf,
}

/// Why no cluster with nodes can run here, or none if one can.
#[must_use]
pub fn missing() -> Option<String> {
    [Program::ApiServer, Program::Kwok]
        .into_iter()
        .find_map(Program::missing)
}

impl WorkloadCluster {
    /// Starts one with its files in `dir`, and waits until it is ready. It has no nodes yet. Its
    /// administrator's kubeconfig is `dir/kubeconfig`.
    ///
    /// # Errors
    /// A program is not built or does not become ready: the error has the end of its log.
    pub fn start(dir: &Path, options: &Options) -> Result<Self> {
        let logs = dir.join("logs");
        std::fs::create_dir_all(&logs).with_context(|| logs.display().to_string())?;
        let kubeconfig = dir.join("kubeconfig");
        let mut server = ApiServer::prepare(&dir.join("api"), &kubeconfig, &logs)?;
        server.look_after_nodes(options.lease + LATE);
        server.end_with_parent();
        let config = format!("--kubeconfig={}", kubeconfig.display());
        let kwok = process(
            Program::Kwok,
            "kwok",
            vec![
                config.clone(),
                format!("--lease-seconds={}", options.lease.as_secs()),
                "--end-with-parent".to_owned(),
            ],
            &logs,
        )?;
        let scheduler = if options.scheduler {
            let args = [
                "scheduler".to_owned(),
                config,
                "--end-with-parent".to_owned(),
            ];
            Some(process(
                Program::ApiServer,
                "scheduler",
                args.to_vec(),
                &logs,
            )?)
        } else {
            None
        };
        let mut cluster = Self {
            server,
            kwok,
            scheduler,
            logs,
        };
        cluster.start_all()?;
        Ok(cluster)
    }

    /// Starts everything that does not run, and waits until the API server is ready.
    ///
    /// # Errors
    /// Something can't be run, or the API server is not ready in time.
    pub fn start_all(&mut self) -> Result<()> {
        if !self.server.running() {
            self.server.start()?;
        }
        for process in [Some(&mut self.kwok), self.scheduler.as_mut()]
            .into_iter()
            .flatten()
        {
            if process.id().is_none() {
                process.start()?;
            }
        }
        Ok(())
    }

    /// Kills everything at once; what was written stays.
    pub fn kill(&mut self) {
        if let Some(scheduler) = &mut self.scheduler {
            scheduler.kill();
        }
        self.kwok.kill();
        self.server.kill();
    }

    /// `kubectl` for its administrator.
    #[must_use]
    pub fn kubectl(&self) -> &Kubectl {
        self.server.kubectl()
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        self.kubectl().kubeconfig()
    }

    /// Makes nodes, many at once, and waits until all nodes of the cluster can take Pods.
    ///
    /// # Errors
    /// A node is refused, or they are not ready in time: the error has the logs' ends.
    pub fn add_nodes(&self, nodes: &[Value]) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let api: Api<Node> = Api::all(watch::client(self.kubeconfig()).await?);
            stream::iter(nodes)
                .map(|node| create(&api, node))
                .buffer_unordered(PARALLEL)
                .try_collect::<()>()
                .await
        })?;
        let patience = PATIENCE + PER_NODE * u32::try_from(nodes.len()).unwrap_or(u32::MAX);
        self.wait_nodes(patience)
    }

    /// Waits until all nodes can take Pods.
    ///
    /// # Errors
    /// Not in time: the error has the logs' ends.
    pub fn wait_nodes(&self, deadline: Duration) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let api: Api<Node> = runtime.block_on(async {
            let client = watch::client(self.kubeconfig()).await?;
            anyhow::Ok(Api::all(client))
        })?;
        let ready = wait::until("nodes that take Pods", deadline, || {
            let nodes = runtime.block_on(api.list(&ListParams::default()));
            let nodes = nodes.map_err(|e| e.to_string())?;
            let waiting: Vec<&Node> = nodes
                .items
                .iter()
                .filter(|node| !takes_pods(node))
                .collect();
            match waiting.first() {
                None => Ok(()),
                Some(node) => {
                    // Many nodes are a long list.
                    std::thread::sleep(
                        Duration::from_micros(200) * u32::try_from(nodes.items.len()).unwrap_or(0),
                    );
                    let name = node.metadata.name.as_deref().unwrap_or_default();
                    Err(format!("{} do not, such as {name}", waiting.len()))
                }
            }
        });
        ready.with_context(|| self.logs_tail())
    }

    /// The last lines of every log.
    #[must_use]
    pub fn logs_tail(&self) -> String {
        let mut text = String::new();
        for name in ["apiserver", "kwok", "scheduler"] {
            let log = std::fs::read_to_string(self.logs.join(format!("{name}.log")));
            if let Ok(log) = log {
                text.push_str(&format!(
                    "log of {name}:\n{}\n",
                    crate::process::tail(&log, 10)
                ));
            }
        }
        text
    }
}

fn process(program: Program, name: &str, args: Vec<String>, logs: &Path) -> Result<Process> {
    let built = program
        .kept()?
        .with_context(|| format!("{} is not built", program.name()))?;
    Ok(Process::new(name, &built, args, logs))
}

async fn create(api: &Api<Node>, node: &Value) -> Result<()> {
    let name = node
        .pointer("/metadata/name")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let typed = serde_json::from_value(node.clone()).with_context(|| format!("node {name}"))?;
    match api.create(&PostParams::default(), &typed).await {
        Ok(_) => Ok(()),
        // An earlier try, whose answer was lost.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(e) => bail!("node {name}: {e}"),
    }
}

/// Is it ready, and has the controller seen it?
fn takes_pods(node: &Node) -> bool {
    let conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let ready = conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    ready
        && !taints
            .into_iter()
            .flatten()
            .any(|taint| taint.key == NOT_READY)
}
