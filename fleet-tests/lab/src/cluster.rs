//! The Kubernetes API of a fleet where it is not the control plane's own: a real API server that
//! the fleet starts, or a cluster that somebody gave. `HYPERION_TEST_API` and
//! `HYPERION_TEST_KUBECONFIG` choose, see [`hyperion_cluster::choice`].

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hyperion_api::NAMESPACE;
use hyperion_cluster::Choice;
use serde_json::{Value, json};

use crate::apiserver::ApiServer;
use crate::process::ProcessId;
use crate::{Kubectl, wait};

/// Label of a namespace that tests may delete, with all that goes with it.
const OURS: &str = "hyperion.io/made-by-tests";
/// Name of the control plane's Service, and of what stands behind it.
const CONTROL: &str = "hyperion-control";
/// Time for a cluster to do what it is asked.
const PATIENCE: Duration = Duration::from_secs(60);

/// An API that others than the control plane serve.
#[derive(Debug)]
pub enum Cluster {
    /// A real API server of this fleet's own.
    Own(Box<ApiServer>),
    /// A cluster that tests use in turn.
    Given,
}

impl Cluster {
    /// What the environment chooses for a control plane in `dir`; none where that serves its API.
    /// The kubeconfig is, or will be, at `kubeconfig`.
    ///
    /// # Errors
    /// The API server is not built, or there is no such kubeconfig.
    pub fn prepare(dir: &Path, kubeconfig: &Path) -> Result<Option<Self>> {
        match hyperion_cluster::chosen() {
            Choice::Embedded => Ok(None),
            Choice::Real => {
                let server = ApiServer::prepare(&dir.join("api"), kubeconfig, &dir.join("logs"))?;
                Ok(Some(Self::Own(Box::new(server))))
            }
            Choice::Given(path) => {
                std::fs::copy(&path, kubeconfig).with_context(|| path.display().to_string())?;
                Ok(Some(Self::Given))
            }
            Choice::Unknown(other) => {
                bail!("{} is {other:?}", hyperion_cluster::choice::API)
            }
        }
    }

    /// Removes from a given cluster what an earlier fleet of tests left there.
    ///
    /// # Errors
    /// It does not answer, or runs a Hyperion that is not the tests'.
    pub fn clear(&self, kubectl: &Kubectl) -> Result<()> {
        match self {
            Self::Own(_) => Ok(()),
            Self::Given => take(kubectl).context("the given cluster"),
        }
    }

    /// Starts it without waiting, where it is the fleet's own and does not run; gives its process
    /// then.
    ///
    /// # Errors
    /// It can't be run.
    pub fn start_only(&mut self) -> Result<Option<ProcessId>> {
        match self {
            Self::Own(server) if !server.running() => server.start_only().map(Some),
            Self::Own(_) | Self::Given => Ok(None),
        }
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// It is not in time: the error has the end of its log.
    pub fn wait_ready(&mut self) -> Result<()> {
        match self {
            Self::Own(server) => server.wait_ready(),
            Self::Given => Ok(()),
        }
    }

    /// Leaves it running; it is no longer ours to stop.
    pub fn release(&mut self) {
        if let Self::Own(server) = self {
            server.process().release();
        }
    }

    /// Lets the API server's proxy find the control plane at `http`, as the endpoints of its Pod
    /// would: there is no kubelet here. The address may not be of loopback.
    ///
    /// # Errors
    /// The API refuses.
    pub fn publish(&self, kubectl: &Kubectl, http: SocketAddr) -> Result<()> {
        if !matches!(self, Self::Own(_)) {
            return Ok(());
        }
        let (ip, port) = (http.ip().to_string(), http.port());
        let meta = json!({ "name": CONTROL, "namespace": NAMESPACE });
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": meta,
            "spec": {
                "nodeName": "lab",
                "automountServiceAccountToken": false,
                "containers": [{ "name": "control", "image": "localhost/hyperion-control" }],
            },
        });
        let endpoints = json!({
            "apiVersion": "v1", "kind": "Endpoints", "metadata": meta,
            "subsets": [{
                "addresses": [{
                    "ip": ip,
                    "targetRef": { "kind": "Pod", "name": CONTROL, "namespace": NAMESPACE },
                }],
                "ports": [{ "name": "http", "port": port, "protocol": "TCP" }],
            }],
        });
        // The namespace is new: its service account comes in a moment.
        wait::until("a Pod for the control plane", PATIENCE, || {
            let made = kubectl.apply(&pod.to_string());
            made.map(drop).map_err(|e| format!("{e:#}"))
        })?;
        let status = json!({ "status": {
            "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }],
        }});
        kubectl.run(&[
            "patch",
            "pod",
            CONTROL,
            "--namespace",
            NAMESPACE,
            "--subresource=status",
            "--type=merge",
            "--patch",
            &status.to_string(),
        ])?;
        kubectl.apply(&endpoints.to_string()).map(drop)
    }
}

/// Makes a given cluster ready for the next fleet: nothing of an earlier test's is left.
fn take(kubectl: &Kubectl) -> Result<()> {
    let labels = namespace_labels(kubectl)?;
    let kinds = kubectl.run(&["get", "customresourcedefinitions", "-o", "name"])?;
    let kinds: Vec<&str> = kinds
        .lines()
        .filter(|name| name.ends_with(".hyperion.io"))
        .collect();
    let ours = labels.as_ref().is_some_and(|l| l.get(OURS).is_some());
    if !ours && (labels.is_some() || !kinds.is_empty()) {
        bail!("it runs Hyperion already, which these tests would delete");
    }
    if ours {
        release_workloads(kubectl)?;
        for kind in kinds {
            kubectl.run(&["delete", kind, "--timeout=60s"])?;
        }
        kubectl.run(&["delete", "namespace", NAMESPACE, "--timeout=60s"])?;
    }
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": NAMESPACE, "labels": { OURS: "true" } },
    });
    kubectl.apply(&namespace.to_string()).map(drop)
}

/// Labels of Hyperion's namespace; none where there is no such namespace.
fn namespace_labels(kubectl: &Kubectl) -> Result<Option<Value>> {
    let list = kubectl.get(&["namespaces"])?;
    let items = list.get("items").and_then(Value::as_array);
    let found = items
        .into_iter()
        .flatten()
        .find(|item| item.pointer("/metadata/name").and_then(Value::as_str) == Some(NAMESPACE));
    Ok(found.map(|item| {
        let labels = item.pointer("/metadata/labels").cloned();
        labels.unwrap_or_default()
    }))
}

/// Workloads wait for a control plane to let them go, and theirs is gone.
fn release_workloads(kubectl: &Kubectl) -> Result<()> {
    let out = kubectl.output(&["get", "hyperionworkloads", "-A", "-o", "json"], None)?;
    let Ok(list) = serde_json::from_str::<Value>(&out.stdout) else {
        // The kind is gone already.
        return Ok(());
    };
    let items = list.get("items").and_then(Value::as_array);
    for item in items.into_iter().flatten() {
        let text = |path| item.pointer(path).and_then(Value::as_str);
        let (Some(name), Some(namespace)) = (text("/metadata/name"), text("/metadata/namespace"))
        else {
            continue;
        };
        kubectl.run(&[
            "patch",
            "hyperionworkload",
            name,
            "--namespace",
            namespace,
            "--type=merge",
            "--patch",
            r#"{"metadata":{"finalizers":null}}"#,
        ])?;
    }
    Ok(())
}
