//! What runs: three clusters of real API servers with nodes that kwok runs, and the control plane.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::{StreamExt, stream};
use hyperion_api::workload::HyperionWorkload;
use hyperion_cluster::nodes::Service;
use hyperion_lab::control::Control;
use hyperion_lab::watch;
use hyperion_lab::workload_cluster::{Options, WorkloadCluster};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::day::Kind;
use crate::cluster::check::facts::Machine;
use crate::cluster::{join, wait_nodes};

/// Leases of nodes are renewed after a quarter of this.
const LEASE: Duration = Duration::from_secs(240);
/// Requests that are under way at once.
const PARALLEL: usize = 16;
/// Time for the nodes to be known, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// Something to be done.
#[derive(Debug, Clone)]
pub(super) enum Act {
    /// A machine comes, in the cluster with this number.
    AddNode(usize, Value),
    /// The machine with this name is gone.
    RemoveNode(usize, String),
    /// A user makes a workload.
    Create(Value),
    /// The container of a Pod, by namespace and name, has ended well.
    EndPod(usize, String),
}

/// The stage.
pub(super) struct Stage {
    pub clusters: Vec<(Service, WorkloadCluster)>,
    pub control: Control,
    clients: Vec<Client>,
    home: Client,
    runtime: Runtime,
}

impl Stage {
    /// Starts everything with these nodes, and waits until the control plane knows them.
    pub(super) fn start(
        dir: &Path,
        nodes: &[(Service, Vec<Value>)],
        args: &[String],
    ) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (mut clusters, mut clients) = (Vec::new(), Vec::new());
        let options = Options {
            scheduler: false,
            lease: LEASE,
        };
        for (service, nodes) in nodes {
            let cluster = WorkloadCluster::start(&dir.join(service.name()), &options)?;
            cluster.add_nodes(nodes)?;
            clients.push(runtime.block_on(watch::client(cluster.kubeconfig()))?);
            clusters.push((*service, cluster));
        }
        let logs = dir.join("logs");
        std::fs::create_dir_all(&logs).with_context(|| logs.display().to_string())?;
        let mut control = Control::prepare(dir, "127.0.0.1", "127.0.0.1", args)?;
        control.start()?;
        let home = control.kubectl();
        for (service, cluster) in &clusters {
            join(home, service.name(), *service, Some(cluster.kubeconfig()))?;
        }
        for (service, nodes) in nodes {
            wait_nodes(home, service.name(), nodes.len(), PATIENCE)?;
        }
        let home = runtime.block_on(watch::client(home.kubeconfig()))?;
        Ok(Self {
            clusters,
            control,
            clients,
            home,
            runtime,
        })
    }

    /// Does all of it, much at once; what failed, in words. What is made and removed in one go is made
    /// first.
    pub(super) fn perform(&self, acts: Vec<Act>) -> Vec<String> {
        let (last, first): (Vec<Act>, Vec<Act>) = acts
            .into_iter()
            .partition(|act| matches!(act, Act::RemoveNode(..)));
        let mut failed = self.perform_at_once(first);
        failed.extend(self.perform_at_once(last));
        failed
    }

    fn perform_at_once(&self, acts: Vec<Act>) -> Vec<String> {
        if acts.is_empty() {
            return Vec::new();
        }
        self.runtime.block_on(async {
            stream::iter(acts)
                .map(|act| async move {
                    let done = self.act(&act).await;
                    done.err().map(|e| format!("{act:.80?}: {e:#}"))
                })
                .buffer_unordered(PARALLEL)
                .filter_map(std::future::ready)
                .collect()
                .await
        })
    }

    async fn act(&self, act: &Act) -> Result<()> {
        let client = |at: &usize| self.clients.get(*at).context("no such cluster").cloned();
        match act {
            Act::AddNode(at, node) => {
                let api: Api<Node> = Api::all(client(at)?);
                let node = serde_json::from_value(node.clone())?;
                api.create(&PostParams::default(), &node).await?;
            }
            Act::RemoveNode(at, name) => {
                let api: Api<Node> = Api::all(client(at)?);
                api.delete(name, &DeleteParams::default()).await?;
            }
            Act::Create(object) => {
                let api: Api<HyperionWorkload> = Api::namespaced(self.home.clone(), "default");
                let object = serde_json::from_value(object.clone())?;
                api.create(&PostParams::default(), &object).await?;
            }
            Act::EndPod(at, key) => {
                let (namespace, name) = key.split_once('/').context("no namespace")?;
                let api: Api<Pod> = Api::namespaced(client(at)?, namespace);
                let ended = json!({ "status": { "phase": "Succeeded", "containerStatuses": [{
                    "name": "main", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                    "state": { "terminated": { "exitCode": 0, "reason": "Completed" } },
                }]}});
                let params = PatchParams::default();
                api.patch_status(name, &params, &Patch::Merge(&ended))
                    .await?;
            }
        }
        Ok(())
    }
}

/// What kind of machine a node of a service is.
pub(super) fn kind_of(service: Service, machine: &Machine) -> Kind {
    let label = |key: &str| machine.labels.get(key).cloned().unwrap_or_default();
    Kind {
        provider: service.provider(),
        region: label("topology.kubernetes.io/region"),
        zone: label("topology.kubernetes.io/zone"),
        instance_type: label("node.kubernetes.io/instance-type"),
        spot: machine.spot,
    }
}

/// Another machine like this one: clouds give no machine a second time.
pub(super) fn another(node: &Value, number: u32) -> Value {
    let mut node = node.clone();
    let name = node
        .pointer("/metadata/name")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let new = format!("{name}-{number}");
    for (path, value) in [
        ("/metadata/name", new.clone()),
        ("/metadata/labels/kubernetes.io~1hostname", new.clone()),
    ] {
        if let Some(field) = node.pointer_mut(path) {
            *field = Value::from(value);
        }
    }
    if let Some(id) = node.pointer_mut("/spec/providerID") {
        *id = Value::from(format!("{}-{number}", id.as_str().unwrap_or_default()));
    }
    node
}
