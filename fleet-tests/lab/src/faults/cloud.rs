//! A workload cluster of the stage: one region of a cloud, with nodes of one type, on the embedded API
//! or on a real one with kwok.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use hyperion_cluster::nodes::{Service, nodes};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api as Objects, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::api::Api;
use super::kubelet;
use crate::workload_cluster::{Options, WorkloadCluster};
use crate::{Kubectl, watch};

/// From the making of a Pod to its readiness, on the embedded API; kwok's are ready at once.
pub const POD_START: Duration = Duration::from_secs(1);
/// Enough nodes of a service to find all its types among them.
const ALL_TYPES: usize = 400;

/// A cluster.
pub struct Cloud {
    /// Whose.
    pub service: Service,
    kind: Kind,
}

enum Kind {
    Embedded {
        api: Box<Api>,
        kubelets: JoinHandle<()>,
    },
    Real(Box<WorkloadCluster>),
}

/// On-demand machines with eight cores.
#[must_use]
pub fn instance_type(service: Service) -> &'static str {
    match service {
        Service::Eks => "m5.2xlarge",
        Service::Gke => "n2-standard-8",
        Service::Aks => "Standard_D8s_v5",
    }
}

/// The first `count` nodes of that type.
fn machines(service: Service, count: usize) -> Vec<Value> {
    let label = |node: &Value, key: &str| {
        let labels = node.pointer("/metadata/labels");
        let value = labels.and_then(|l| l.get(key)).and_then(Value::as_str);
        value.unwrap_or_default().to_owned()
    };
    let wanted = |node: &Value| {
        let spot = label(node, "eks.amazonaws.com/capacityType") == "SPOT"
            || label(node, "cloud.google.com/gke-spot") == "true"
            || label(node, "kubernetes.azure.com/scalesetpriority") == "spot";
        !spot && label(node, "node.kubernetes.io/instance-type") == instance_type(service)
    };
    let all = nodes(service, service.region(), ALL_TYPES);
    all.into_iter().filter(wanted).take(count).collect()
}

impl Cloud {
    /// Starts one with so many nodes that take Pods.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(
        runtime: &Runtime,
        dir: &Path,
        service: Service,
        count: usize,
        real: bool,
    ) -> Result<Self> {
        let made = machines(service, count);
        let kind = if real {
            let cluster = WorkloadCluster::start(dir, &Options::default())?;
            cluster.add_nodes(&made)?;
            Kind::Real(Box::new(cluster))
        } else {
            std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
            let api = Api::start(runtime, &dir.join("api"), &dir.join("kubeconfig"), false)?;
            let kubelets = runtime.block_on(async {
                let client = watch::client(api.kubectl().kubeconfig()).await?;
                add(client.clone(), made).await?;
                anyhow::Ok(tokio::spawn(kubelet::run(client, POD_START)))
            })?;
            Kind::Embedded {
                api: Box::new(api),
                kubelets,
            }
        };
        Ok(Self { service, kind })
    }

    /// Its name in Hyperion.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.service.name()
    }

    /// `kubectl` for its administrator.
    #[must_use]
    pub fn kubectl(&self) -> &Kubectl {
        match &self.kind {
            Kind::Embedded { api, .. } => api.kubectl(),
            Kind::Real(cluster) => cluster.kubectl(),
        }
    }

    /// Its API server dies; its nodes run on.
    pub fn lose_api(&mut self, runtime: &Runtime) {
        match &mut self.kind {
            Kind::Embedded { api, .. } => api.kill(runtime),
            Kind::Real(cluster) => cluster.server.kill(),
        }
    }

    /// Everything of it is silent: API server and nodes.
    pub fn go_dark(&mut self, runtime: &Runtime) {
        match &mut self.kind {
            // Kubelets that reach no API server say nothing to anybody.
            Kind::Embedded { api, .. } => api.kill(runtime),
            Kind::Real(cluster) => cluster.kill(),
        }
    }

    /// Everything of it is back as it was.
    ///
    /// # Errors
    /// It does not start.
    pub fn come_back(&mut self, runtime: &Runtime) -> Result<()> {
        match &mut self.kind {
            Kind::Embedded { api, .. } => api.start_again(runtime),
            Kind::Real(cluster) => cluster.start_all(),
        }
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        if let Kind::Embedded { kubelets, .. } = &self.kind {
            kubelets.abort();
        }
    }
}

/// Makes nodes that are ready.
async fn add(client: kube::Client, made: Vec<Value>) -> Result<()> {
    let api: Objects<Node> = Objects::all(client);
    for mut node in made {
        let name = node
            .pointer("/metadata/name")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        node["status"]["conditions"] = json!([{
            "type": "Ready", "status": "True", "reason": "KubeletReady",
            "message": "kubelet is posting ready status",
        }]);
        let status = json!({ "status": node["status"] });
        let node: Node = serde_json::from_value(node).with_context(|| name.clone())?;
        api.create(&PostParams::default(), &node).await?;
        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(status))
            .await?;
    }
    Ok(())
}
