//! Karpenter in a cluster whose nodes kwok runs: the real controller with its own kwok provider. It
//! launches NodeClaims, and takes them back.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hyperion_cluster::Program;
use hyperion_cluster::nodes::{Service, instance_types};
use serde_json::json;

use crate::process::Process;
use crate::wait;
use crate::workload_cluster::{self, WorkloadCluster};

/// Name of the node class that there is: `KWOKNodeClass` of group `karpenter.kwok.sh`.
pub const NODE_CLASS: &str = "default";
/// Time to be ready, on a busy machine.
const START: Duration = Duration::from_secs(120);

/// Why it can't run here, or none if it can.
#[must_use]
pub fn missing() -> Option<String> {
    workload_cluster::missing().or_else(|| Program::Karpenter.missing())
}

/// Installs Karpenter's definitions and a node class in a cluster and starts the controller, which
/// offers the instance types that a service has in its region. Its files go to `dir`.
///
/// # Errors
/// It is not built, the cluster refuses its definitions, or it ends.
pub fn start(cluster: &WorkloadCluster, service: Service, dir: &Path) -> Result<Process> {
    let program = Program::Karpenter
        .kept()?
        .context("karpenter is not built")?;
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let definitions = Command::new(&program).arg("crds").output()?;
    ensure!(
        definitions.status.success(),
        "karpenter crds: {}",
        definitions.status
    );
    let kubectl = cluster.kubectl();
    kubectl.apply(&String::from_utf8_lossy(&definitions.stdout))?;
    kubectl.run(&[
        "wait",
        "crd",
        "--all",
        "--for=condition=Established",
        "--timeout=60s",
    ])?;
    let class = json!({
        "apiVersion": "karpenter.kwok.sh/v1alpha1", "kind": "KWOKNodeClass",
        "metadata": { "name": NODE_CLASS },
    });
    wait::until("a node class", START, || {
        kubectl
            .apply(&class.to_string())
            .map_err(|e| format!("{e:#}"))
    })?;
    let types = dir.join("instance-types.json");
    std::fs::write(
        &types,
        instance_types(service, service.region()).to_string(),
    )?;
    let args = [
        format!("--instance-types-file-path={}", types.display()),
        "--disable-leader-election".to_owned(),
        // Any that are free.
        "--metrics-port=0".to_owned(),
        "--health-probe-port=0".to_owned(),
    ];
    let mut process = Process::new("karpenter", &program, args.to_vec(), dir);
    process.env("KUBECONFIG", &cluster.kubeconfig().display().to_string());
    process.env("END_WITH_PARENT", "1");
    process.start()?;
    let running = wait::until("Karpenter", START, || {
        if let Some(status) = process.ended() {
            return Err(format!("ended: {status}"));
        }
        let log = process.log();
        if log.contains("nodeclaim.lifecycle") && log.contains("Starting workers") {
            Ok(())
        } else {
            Err("it does not work yet".to_owned())
        }
    });
    running.with_context(|| process.log_tail(20))?;
    Ok(process)
}
