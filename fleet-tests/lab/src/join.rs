//! Clusters that join a control plane.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use hyperion_api::NAMESPACE;
use hyperion_cluster::nodes::Service;
use serde_json::{Value, json};

use crate::{Kubectl, wait};

/// Tells the control plane of a cluster; without a kubeconfig it is its own.
///
/// # Errors
/// The kubeconfig can't be read, or the API refuses.
pub fn join(home: &Kubectl, name: &str, service: Service, kubeconfig: Option<&Path>) -> Result<()> {
    let mut spec = json!({
        "provider": service.provider().as_str(),
        "region": service.region(),
    });
    if let Some(file) = kubeconfig {
        let content = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": { "name": name, "namespace": NAMESPACE },
            "stringData": { "kubeconfig": content },
        });
        home.apply(&secret.to_string())?;
        spec["kubeconfigSecret"] = json!(name);
    }
    let cluster = json!({
        "apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionCluster",
        "metadata": { "name": name },
        "spec": spec,
    });
    home.apply(&cluster.to_string()).map(drop)
}

/// Waits until so many nodes of a cluster can take replicas.
///
/// # Errors
/// Not in time: the error has the cluster's status.
pub fn wait_nodes(home: &Kubectl, name: &str, nodes: usize, deadline: Duration) -> Result<()> {
    wait::until(&format!("nodes of cluster {name}"), deadline, || {
        std::thread::sleep(Duration::from_millis(500));
        let cluster = home
            .get(&["hyperioncluster", name])
            .map_err(|e| e.to_string())?;
        let usable = cluster.pointer("/status/nodes").and_then(Value::as_u64);
        if usable == Some(nodes as u64) {
            Ok(())
        } else {
            Err(cluster
                .pointer("/status")
                .map(Value::to_string)
                .unwrap_or_default())
        }
    })
}
