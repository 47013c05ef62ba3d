//! What a large fleet costs the control plane and the API server: memory, processor time, requests
//! per second, with nodes alone, with placements, and while workloads come and go.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hyperion_api::workload::HyperionWorkload;
use hyperion_cluster::nodes::{Service, nodes};
use hyperion_lab::needs;
use hyperion_lab::proc::{cpu_model, cpu_seconds};
use hyperion_lab::workload_cluster::{self, Options, WorkloadCluster};
use kube::api::{DeleteParams, PostParams};
use serde_json::json;

use super::hyperion::Hyperion;
use super::seen::Pods;
use super::{LEASE, api, create, join, megabytes, say, template, wait_nodes};
use crate::report::Report;

/// Memory and requests of the control plane with a large fleet.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Nodes of the cluster.
    #[arg(long, default_value_t = 10_000)]
    pub nodes: usize,
    /// Placements in all.
    #[arg(long, default_value_t = 20_000)]
    pub placements: usize,
    /// Replicas of a workload.
    #[arg(long, default_value_t = 10)]
    pub replicas: usize,
    /// Length of each look at a fleet that rests, and of the churn, seconds.
    #[arg(long, default_value_t = 60)]
    pub seconds: u64,
    /// Workloads that go, and others that come, per second of churn.
    #[arg(long, default_value_t = 1.0)]
    pub churn: f64,
    /// Longest time for nodes to join, and for placements, seconds.
    #[arg(long, default_value_t = 1800)]
    pub patience: u64,
}

/// Runs `control`.
///
/// # Errors
/// The programs are not built, or something was not placed in time.
pub fn run(args: &Args) -> Result<Report> {
    if let Some(reason) = workload_cluster::missing() {
        bail!("can't measure here: {reason}");
    }
    ensure!(
        args.nodes > 0 && args.replicas > 0 && args.placements >= args.replicas,
        "--nodes, --replicas: at least 1; --placements: at least --replicas"
    );
    ensure!(
        args.churn.is_finite() && args.churn > 0.0,
        "--churn: a positive number"
    );
    let mut report = Report::new("control", 0);
    let dir = tempfile::tempdir()?;
    let options = Options {
        scheduler: false,
        lease: LEASE,
    };
    let mut cluster = WorkloadCluster::start(&dir.path().join("cluster"), &options)?;
    let measured = measure(args, &mut cluster, dir.path(), &mut report);
    measured.with_context(|| cluster.logs_tail())?;
    report.condition("nodes", args.nodes);
    report.condition("placements", args.placements);
    report.condition("replicas", args.replicas);
    report.condition("seconds", args.seconds);
    report.condition("churn_workloads_per_s", args.churn);
    report.condition("node_lease_s", LEASE.as_secs());
    report.condition(
        "what",
        "requests are those of hyperion-control, by its own count; nodes and Pods are kwok's",
    );
    report.condition("cpu", cpu_model());
    report.condition("programs", needs::programs().display().to_string());
    Ok(report)
}

fn measure(
    args: &Args,
    cluster: &mut WorkloadCluster,
    dir: &Path,
    report: &mut Report,
) -> Result<()> {
    cluster.add_nodes(&nodes(Service::Eks, Service::Eks.region(), args.nodes))?;
    say(&format!("{} nodes are ready", args.nodes));
    let hyperion = Hyperion::start(&dir.join("hyperion"), cluster.kubeconfig())?;
    let patience = Duration::from_secs(args.patience);
    let rest = || std::thread::sleep(Duration::from_secs(args.seconds));
    report.figure("empty_rss_mb", hyperion.pid().and_then(megabytes));
    join(cluster.kubectl(), "home", Service::Eks, None)?;
    wait_nodes(cluster.kubectl(), "home", args.nodes, patience)
        .with_context(|| hyperion.log_tail())?;
    hyperion.at_rest(patience)?;
    let look = Look::begin(&hyperion)?;
    rest();
    look.end("nodes", &hyperion, report)?;

    let pods = Pods::watch(cluster.kubeconfig())?;
    let (runtime, api) = api::<HyperionWorkload>(cluster)?;
    let workload = |name: String| -> Result<HyperionWorkload> {
        Ok(serde_json::from_value(json!({
            "apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionWorkload",
            "metadata": { "name": name },
            "spec": { "replicas": args.replicas, "template": { "spec": template() } },
        }))?)
    };
    let workloads = args.placements / args.replicas;
    let all = (0..workloads).map(|n| workload(format!("workload-{n}")));
    let begin = Look::begin(&hyperion)?;
    runtime.block_on(create(&api, &all.collect::<Result<Vec<_>>>()?))?;
    pods.wait(workloads * args.replicas, patience)
        .with_context(|| hyperion.log_tail())?;
    begin.end("placing", &hyperion, report)?;
    say(&format!("{workloads} workloads run"));

    hyperion.at_rest(patience)?;
    let look = Look::begin(&hyperion)?;
    rest();
    look.end("placed", &hyperion, report)?;

    let look = Look::begin(&hyperion)?;
    let begin = Instant::now();
    let mut turns = 0;
    while begin.elapsed() < Duration::from_secs(args.seconds) && turns < workloads {
        runtime.block_on(async {
            let name = format!("workload-{turns}");
            api.delete(&name, &DeleteParams::default()).await?;
            let fresh = workload(format!("fresh-{turns}"))?;
            api.create(&PostParams::default(), &fresh).await?;
            anyhow::Ok(())
        })?;
        turns += 1;
        let next = Duration::from_secs_f64(f64::from(u32::try_from(turns)?) / args.churn);
        std::thread::sleep(next.saturating_sub(begin.elapsed()));
    }
    pods.wait((workloads + turns) * args.replicas, patience)
        .with_context(|| hyperion.log_tail())?;
    report.figure("churn_placements", (turns * args.replicas) as f64);
    look.end("churn", &hyperion, report)
}

/// A stretch of time.
struct Look {
    begin: Instant,
    requests: f64,
    cpu: f64,
}

impl Look {
    fn begin(hyperion: &Hyperion) -> Result<Self> {
        Ok(Self {
            begin: Instant::now(),
            requests: hyperion.requests()?,
            cpu: cpu(hyperion),
        })
    }

    fn end(self, name: &str, hyperion: &Hyperion, report: &mut Report) -> Result<()> {
        let seconds = self.begin.elapsed().as_secs_f64();
        let asked = (hyperion.requests()? - self.requests) / seconds;
        let cores = (cpu(hyperion) - self.cpu) / seconds;
        let held = hyperion.pid().and_then(megabytes);
        report.figure(&format!("{name}_requests_per_s"), asked);
        report.figure(&format!("{name}_cores"), cores);
        report.figure(&format!("{name}_seconds"), seconds);
        report.figure(&format!("{name}_rss_mb"), held);
        say(&format!(
            "{name}: {asked:.2} requests/s, {cores:.3} cores, {held:.1?} MB"
        ));
        Ok(())
    }
}

fn cpu(hyperion: &Hyperion) -> f64 {
    let pid = hyperion.pid();
    pid.and_then(|pid| cpu_seconds(pid).ok())
        .unwrap_or_default()
}
