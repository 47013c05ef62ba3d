//! The control plane on a cluster's API, and clusters that join it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use hyperion_api::NAMESPACE;
use hyperion_cluster::nodes::Service;
use hyperion_lab::control::free_port;
use hyperion_lab::process::Process;
use hyperion_lab::{Kubectl, http, needs, wait};
use serde_json::{Value, json};

/// Time to be ready, on a busy machine.
const START: Duration = Duration::from_secs(120);

/// At rest it asks no more than [`FEW`] times in this: for its lease, and a status.
const REST: Duration = Duration::from_secs(3);
/// See [`REST`].
const FEW: f64 = 12.0;

/// `hyperion-control` as a process of ours.
pub(super) struct Hyperion {
    process: Process,
    http_addr: String,
}

impl Hyperion {
    /// Starts it on the API of a kubeconfig, and waits until it leads.
    pub(super) fn start(dir: &Path, kubeconfig: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let http_addr = free_port()?;
        let args = [
            ("--data-dir", dir.join("data").display().to_string()),
            ("--kubeconfig", kubeconfig.display().to_string()),
            ("--link-addr", "127.0.0.1:0".to_owned()),
            ("--http-addr", http_addr.clone()),
        ];
        let args = args
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value]);
        let program = needs::programs().join("hyperion-control");
        let mut process = Process::new("control", &program, args.collect(), dir);
        process.start()?;
        let ready = wait::until("control plane", START, || {
            if let Some(status) = process.ended() {
                return Err(format!("ended: {status}"));
            }
            let said = http::get(&http_addr, "/readyz").map_err(|e| e.to_string())?;
            if said.contains("serving") {
                Ok(())
            } else {
                Err(said)
            }
        });
        ready.with_context(|| process.log_tail(20))?;
        Ok(Self { process, http_addr })
    }

    /// Its process, while it runs.
    pub(super) fn pid(&self) -> Option<u32> {
        self.process.id().map(|id| id.pid)
    }

    /// Requests to the API server so far, by its own count.
    pub(super) fn requests(&self) -> Result<f64> {
        let text = http::get(&self.http_addr, "/metrics")?;
        let counts = text
            .lines()
            .filter(|line| line.starts_with("hyperion_operator_api_requests_total"))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        Ok(counts.sum())
    }

    /// Waits until it has written down what it knows: nodes are known before their objects are
    /// written, and those writes are none of what is measured then.
    pub(super) fn at_rest(&self, deadline: Duration) -> Result<()> {
        wait::until("control plane at rest", deadline, || {
            let count = || self.requests().map_err(|e| e.to_string());
            let before = count()?;
            std::thread::sleep(REST);
            let asked = count()? - before;
            if asked <= FEW {
                Ok(())
            } else {
                Err(format!("{asked} requests in {REST:?}"))
            }
        })
    }

    pub(super) fn log_tail(&self) -> String {
        format!("log of the control plane:\n{}", self.process.log_tail(20))
    }
}

/// Tells the control plane of a cluster; without a kubeconfig it is its own.
pub(crate) fn join(
    home: &Kubectl,
    name: &str,
    service: Service,
    kubeconfig: Option<&Path>,
) -> Result<()> {
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
pub(crate) fn wait_nodes(
    home: &Kubectl,
    name: &str,
    nodes: usize,
    deadline: Duration,
) -> Result<()> {
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
