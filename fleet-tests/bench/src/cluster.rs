//! Scheduling through a real Kubernetes API server: as many Pods by the real kube-scheduler, then as
//! many workloads by Hyperion, on the same cluster of nodes that kwok runs.

pub mod check;
pub mod control;
mod hyperion;
mod requests;
mod seen;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use hyperion_api::workload::HyperionWorkload;
use hyperion_cluster::nodes::{Service, nodes};
use hyperion_lab::proc::{cpu_model, cpu_seconds, rss_bytes};
use hyperion_lab::process::Process;
use hyperion_lab::workload_cluster::{self, Options, WorkloadCluster};
use hyperion_lab::{needs, wait, watch};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, PostParams};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::report::Report;
use hyperion::Hyperion;
pub(crate) use hyperion_lab::faults::say;
pub(crate) use hyperion_lab::join::{join, wait_nodes};
use requests::Requests;
use seen::Pods;

/// Requests that are under way at once.
const PARALLEL: usize = 16;
/// Leases of nodes are renewed after a quarter of this: with Kubernetes' 40 s, 5,000 nodes would make
/// 500 requests per second, beside which nothing could be measured on one machine.
const LEASE: Duration = Duration::from_secs(1200);

/// Compare placements per second with kube-scheduler's.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Nodes of the cluster.
    #[arg(long, default_value_t = 5000)]
    pub nodes: usize,
    /// Pods, and workloads with one replica each.
    #[arg(long, default_value_t = 2000)]
    pub workloads: usize,
    /// Longest time for either, seconds.
    #[arg(long, default_value_t = 600)]
    pub patience: u64,
    /// Leave the other one out: `kube-scheduler` or `hyperion`.
    #[arg(long)]
    pub only: Option<Who>,
}

/// Who places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Who {
    /// The real kube-scheduler.
    KubeScheduler,
    /// Hyperion.
    Hyperion,
}

/// Runs `cluster`.
///
/// # Errors
/// The programs are not built, or something was not placed in time.
pub fn run(args: &Args) -> Result<Report> {
    if let Some(reason) = workload_cluster::missing() {
        bail!("can't measure here: {reason}");
    }
    ensure!(
        args.nodes > 0 && args.workloads > 0,
        "--nodes and --workloads: at least 1"
    );
    let mut report = Report::new("cluster", 0);
    let dir = tempfile::tempdir()?;
    let options = Options {
        scheduler: args.only != Some(Who::Hyperion),
        lease: LEASE,
    };
    let mut cluster = WorkloadCluster::start(&dir.path().join("cluster"), &options)?;
    let made = nodes(Service::Eks, Service::Eks.region(), args.nodes);
    let begin = Instant::now();
    cluster.add_nodes(&made)?;
    report.figure("nodes_ready_s", begin.elapsed().as_secs_f64());
    say(&format!(
        "{} nodes are ready after {:?}",
        args.nodes,
        begin.elapsed()
    ));

    if args.only != Some(Who::Hyperion) {
        by_kube_scheduler(args, &mut cluster, &mut report)?;
    }
    if args.only != Some(Who::KubeScheduler) {
        by_hyperion(args, &mut cluster, dir.path(), &mut report)?;
    }
    let per_s = |name: &str| report.figures.get(name).copied().flatten();
    if let (Some(ours), Some(theirs)) = (per_s("hyperion_per_s"), per_s("kube_scheduler_per_s")) {
        report.figure("hyperion_of_kube_scheduler", ours / theirs);
    }
    report.condition("nodes", args.nodes);
    report.condition("workloads", args.workloads);
    report.condition(
        "what",
        "from the first request that creates to the last Pod with a node (per_s) or running (running_s) \
         in a watch of Pods; the other scheduler does not run meanwhile",
    );
    report.condition("node_lease_s", LEASE.as_secs());
    report.condition("requests_at_once", PARALLEL);
    report.condition(
        "cores",
        std::thread::available_parallelism().map_or(1, usize::from),
    );
    report.condition("cpu", cpu_model());
    report.condition("programs", needs::programs().display().to_string());
    Ok(report)
}

/// What runs in each of them.
fn template() -> Value {
    json!({
        "terminationGracePeriodSeconds": 0,
        "containers": [{
            "name": "main",
            "image": "localhost/any",
            "resources": { "requests": { "cpu": "500m", "memory": "1Gi" } },
        }],
    })
}

fn by_kube_scheduler(
    args: &Args,
    cluster: &mut WorkloadCluster,
    report: &mut Report,
) -> Result<()> {
    let objects = (0..args.workloads).map(|n| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": format!("pod-{n}") },
            "spec": template(),
        })
    });
    let before = cpu(cluster, None);
    let asked = Requests::read(cluster.kubectl())?;
    let took = place::<Pod>(args, cluster, objects.collect())?;
    took.note("kube_scheduler", args.workloads, report);
    note_requests("kube_scheduler", cluster, &asked, args, report)?;
    note_cpu("kube_scheduler", &before, &cpu(cluster, None), report);
    let scheduler = cluster.scheduler.as_ref().and_then(Process::id);
    if let Some(id) = scheduler {
        report.figure("kube_scheduler_rss_mb", megabytes(id.pid));
    }
    if let Some(scheduler) = &mut cluster.scheduler {
        scheduler.kill();
    }
    delete_pods(cluster)?;
    say(&format!("kube-scheduler: {took:?}"));
    Ok(())
}

fn by_hyperion(
    args: &Args,
    cluster: &mut WorkloadCluster,
    dir: &Path,
    report: &mut Report,
) -> Result<()> {
    let begin = Instant::now();
    let hyperion = Hyperion::start(&dir.join("hyperion"), cluster.kubeconfig())?;
    let patience = Duration::from_secs(args.patience);
    join(cluster.kubectl(), "home", Service::Eks, None)?;
    wait_nodes(cluster.kubectl(), "home", args.nodes, patience)
        .with_context(|| hyperion.log_tail())?;
    report.figure("hyperion_knows_nodes_s", begin.elapsed().as_secs_f64());
    say(&format!(
        "Hyperion knows the nodes after {:?}",
        begin.elapsed()
    ));
    hyperion.at_rest(patience)?;
    let objects = (0..args.workloads).map(|n| {
        json!({
            "apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionWorkload",
            "metadata": { "name": format!("workload-{n}") },
            "spec": { "replicas": 1, "template": { "spec": template() } },
        })
    });
    let before = cpu(cluster, hyperion.pid());
    let asked = Requests::read(cluster.kubectl())?;
    let took = place::<HyperionWorkload>(args, cluster, objects.collect())
        .with_context(|| hyperion.log_tail())?;
    took.note("hyperion", args.workloads, report);
    note_requests("hyperion", cluster, &asked, args, report)?;
    note_cpu("hyperion", &before, &cpu(cluster, hyperion.pid()), report);
    if let Some(pid) = hyperion.pid() {
        report.figure("hyperion_rss_mb", megabytes(pid));
    }
    say(&format!("Hyperion: {took:?}"));
    let world = check::World::read(cluster.kubectl(), &[("home", cluster.kubectl())])?;
    let violations = check::violations(&world);
    report.figure("violations", violations.len() as f64);
    for violation in violations.iter().take(20) {
        say(&format!("violation: {violation}"));
    }
    Ok(())
}

/// How long it took from the first request.
#[derive(Debug, Clone, Copy)]
struct Took {
    /// Until the last was created.
    created: Duration,
    /// Until the last Pod had a node.
    bound: Duration,
    /// Until the last Pod ran.
    running: Duration,
}

impl Took {
    fn note(&self, who: &str, count: usize, report: &mut Report) {
        let per_s = |time: Duration| count as f64 / time.as_secs_f64();
        report.figure(&format!("{who}_per_s"), per_s(self.bound));
        report.figure(&format!("{who}_created_s"), self.created.as_secs_f64());
        report.figure(&format!("{who}_bound_s"), self.bound.as_secs_f64());
        report.figure(&format!("{who}_running_s"), self.running.as_secs_f64());
    }
}

/// Objects in namespace default of a cluster, and what their requests run on.
fn api<K>(cluster: &WorkloadCluster) -> Result<(Runtime, Api<K>)>
where
    K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let client = runtime.block_on(watch::client(cluster.kubeconfig()))?;
    Ok((runtime, Api::namespaced(client, "default")))
}

/// Creates objects, many at once.
async fn create<K>(api: &Api<K>, objects: &[K]) -> Result<(), kube::Error>
where
    K: Clone + std::fmt::Debug + DeserializeOwned + Serialize,
{
    let made = stream::iter(objects).map(|object| async {
        let made = api.create(&PostParams::default(), object).await;
        made.map(drop)
    });
    made.buffer_unordered(PARALLEL).try_collect().await
}

/// Creates the objects, and waits until as many Pods have nodes, and run.
fn place<K>(args: &Args, cluster: &WorkloadCluster, objects: Vec<Value>) -> Result<Took>
where
    K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
        + Serialize,
{
    let count = objects.len();
    let typed: Vec<K> = objects
        .into_iter()
        .map(serde_json::from_value)
        .collect::<Result<_, _>>()?;
    let pods = Pods::watch(cluster.kubeconfig())?;
    let (runtime, api) = api::<K>(cluster)?;
    let begin = Instant::now();
    runtime.block_on(create(&api, &typed))?;
    let created = begin.elapsed();
    let patience = Duration::from_secs(args.patience);
    let all = pods
        .wait(count, patience)
        .with_context(|| cluster.logs_tail())?;
    Ok(Took {
        created,
        bound: all.bound.saturating_duration_since(begin),
        running: all.running.saturating_duration_since(begin),
    })
}

fn delete_pods(cluster: &WorkloadCluster) -> Result<()> {
    let (runtime, api) = api::<Pod>(cluster)?;
    let now = DeleteParams::default().grace_period(0);
    runtime.block_on(api.delete_collection(&now, &Default::default()))?;
    wait::until("no Pods", Duration::from_secs(300), || {
        let left = runtime.block_on(api.list_metadata(&Default::default()));
        match left.map_err(|e| e.to_string())?.items.len() {
            0 => Ok(()),
            left => Err(format!("{left} Pods")),
        }
    })
}

/// Processor time so far of everybody, seconds.
fn cpu(cluster: &mut WorkloadCluster, hyperion: Option<u32>) -> Vec<(&'static str, f64)> {
    let of = |pid: Option<u32>| {
        pid.and_then(|pid| cpu_seconds(pid).ok())
            .unwrap_or_default()
    };
    vec![
        (
            "apiserver",
            of(cluster.server.process().id().map(|id| id.pid)),
        ),
        ("kwok", of(cluster.kwok.id().map(|id| id.pid))),
        (
            "scheduler",
            of(cluster
                .scheduler
                .as_ref()
                .and_then(Process::id)
                .map(|id| id.pid)),
        ),
        ("hyperion", of(hyperion)),
        ("bench", of(Some(std::process::id()))),
    ]
}

fn note_cpu(who: &str, before: &[(&str, f64)], after: &[(&str, f64)], report: &mut Report) {
    for ((name, before), (_, after)) in before.iter().zip(after) {
        if after > before {
            report.figure(&format!("{who}_cpu_{name}_s"), after - before);
        }
    }
}

/// Notes how many changes each placement took, and which.
fn note_requests(
    who: &str,
    cluster: &WorkloadCluster,
    before: &Requests,
    args: &Args,
    report: &mut Report,
) -> Result<()> {
    let each = Requests::read(cluster.kubectl())?.since(before, args.workloads);
    let all: f64 = each.iter().map(|(_, n)| n).sum();
    report.figure(&format!("{who}_changes_per_placement"), all);
    let words: Vec<String> = each
        .iter()
        .map(|(what, n)| format!("{what} {n:.1}"))
        .collect();
    report.condition(&format!("{who}_changes"), words.join(", "));
    Ok(())
}

fn megabytes(pid: u32) -> Option<f64> {
    rss_bytes(pid).ok().map(|bytes| bytes as f64 / 1e6)
}
