//! Where workloads of mixed goals go in a fleet of three clouds' clusters and edge devices: real API
//! servers with nodes that kwok runs, real agents with real containers, and the real control plane.

mod mix;
mod table;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use hyperion_api::placement::{HyperionPlacement, PlacementPhase};
use hyperion_api::workload::HyperionWorkload;
use hyperion_cluster::nodes::{Service, nodes};
use hyperion_lab::proc::{cpu_model, rss_bytes};
use hyperion_lab::watch::{self, Watch};
use hyperion_lab::workload_cluster::{self, Options, WorkloadCluster};
use hyperion_lab::{AgentSpec, Fleet, FleetOptions, needs, wait};
use kube::api::{Api, PostParams};
use serde_json::Value;

use crate::cluster::{check, join, say, wait_nodes};
use crate::report::Report;

/// Leases of nodes are renewed after a quarter of this.
const LEASE: Duration = Duration::from_secs(240);
/// Requests that are under way at once.
const PARALLEL: usize = 16;

/// Place mixed workloads over three clusters and edge devices.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Nodes of each cluster.
    #[arg(long, default_value_t = 300)]
    pub nodes: usize,
    /// Edge devices: real agents on this machine.
    #[arg(long, default_value_t = 10)]
    pub agents: usize,
    /// Workloads.
    #[arg(long, default_value_t = 1000)]
    pub workloads: usize,
    /// Workloads that are made each second; 0 for all at once.
    #[arg(long, default_value_t = 20)]
    pub per_second: u32,
    /// Seed of the workloads.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Longest time until all of them run, seconds.
    #[arg(long, default_value_t = 600)]
    pub patience: u64,
}

/// Runs `clusters`. The management cluster is the one that `HYPERION_TEST_API` chooses.
///
/// # Errors
/// Clusters or a fleet can't run here, or something was not placed in time.
pub fn run(args: &Args) -> Result<Report> {
    if let Some(reason) = needs::missing(&needs::OURS).or_else(workload_cluster::missing) {
        bail!("can't measure here: {reason}");
    }
    ensure!(
        args.nodes > 0 && args.workloads > 0,
        "--nodes and --workloads: at least 1"
    );
    let patience = Duration::from_secs(args.patience);
    let dir = tempfile::tempdir()?;
    let clusters = start_clusters(args, dir.path())?;
    let mut fleet = Fleet::start(&FleetOptions::new("bench-clusters"))?;
    for n in 0..args.agents {
        fleet.add_only(&AgentSpec::edge(&format!("edge-{n}")))?;
    }
    for at in 0..fleet.agents.len() {
        fleet.wait_agent(at)?;
    }
    let home = fleet.kubectl().clone();
    let begin = Instant::now();
    for (service, cluster) in &clusters {
        join(&home, service.name(), *service, Some(cluster.kubeconfig()))?;
    }
    for (service, _) in &clusters {
        wait_nodes(&home, service.name(), args.nodes, patience).with_context(|| fleet.logs(20))?;
    }
    say(&format!("all nodes are known after {:?}", begin.elapsed()));
    let mut report = Report::new("clusters", args.seed);
    report.figure("nodes_known_s", begin.elapsed().as_secs_f64());

    let watch = Watch::start(home.kubeconfig())?;
    let made = create(args, home.kubeconfig()).with_context(|| fleet.logs(30))?;
    times(&made, &watch, patience, &mut report).with_context(|| fleet.logs(30))?;

    let with: Vec<_> = clusters
        .iter()
        .map(|(s, c)| (s.name(), c.kubectl()))
        .collect();
    let world = check::World::read(&home, &with)?;
    let violations = check::violations(&world);
    report.figure("violations", violations.len() as f64);
    for violation in violations.iter().take(50) {
        say(&format!("violation: {violation}"));
    }
    let placements: Vec<HyperionPlacement> = world
        .placements
        .iter()
        .map(|p| serde_json::from_value(p.clone()))
        .collect::<Result<_, _>>()?;
    let table = table::of(&world.workloads, &placements);
    say(&table.to_string());
    for (place, count) in &table.by_place {
        report.figure(&format!("placed_{place}"), *count as f64);
    }
    report.condition("table", table.lines());
    if let Some(id) = fleet.control.process().id() {
        report.figure(
            "control_rss_mb",
            rss_bytes(id.pid).ok().map(|bytes| bytes as f64 / 1e6),
        );
    }
    report.condition("nodes_of_each_cluster", args.nodes);
    report.condition(
        "agents",
        format!("{}, real, with real containers", args.agents),
    );
    report.condition("workloads", args.workloads);
    report.condition("made_per_second", args.per_second);
    let management = if hyperion_cluster::chosen().is_real() {
        "real"
    } else {
        "embedded"
    };
    report.condition("management_api", management);
    report.condition(
        "what",
        "from the request that creates a workload to the first time that a watch tells of its placement \
         (placed) or that it runs (running)",
    );
    report.condition(
        "cores",
        std::thread::available_parallelism().map_or(1, usize::from),
    );
    report.condition("cpu", cpu_model());
    report.condition("programs", needs::programs().display().to_string());
    fleet.no_panics()?;
    Ok(report)
}

fn start_clusters(args: &Args, dir: &std::path::Path) -> Result<Vec<(Service, WorkloadCluster)>> {
    let options = Options {
        scheduler: false,
        lease: LEASE,
    };
    let mut clusters = Vec::new();
    for service in Service::ALL {
        let cluster = WorkloadCluster::start(&dir.join(service.name()), &options)?;
        let begin = Instant::now();
        cluster.add_nodes(&nodes(service, service.region(), args.nodes))?;
        say(&format!(
            "{}: {} nodes after {:?}",
            service.name(),
            args.nodes,
            begin.elapsed()
        ));
        clusters.push((service, cluster));
    }
    Ok(clusters)
}

/// Makes the workloads; when each was asked for.
fn create(args: &Args, kubeconfig: &std::path::Path) -> Result<BTreeMap<String, Instant>> {
    let objects = mix::workloads(args.workloads, args.seed);
    let typed: Vec<HyperionWorkload> = objects
        .into_iter()
        .map(serde_json::from_value)
        .collect::<Result<_, _>>()
        .context("a workload of the mix")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        use futures::{StreamExt, TryStreamExt, stream};
        let client = watch::client(kubeconfig).await?;
        let api: Api<HyperionWorkload> = Api::namespaced(client, "default");
        let begin = Instant::now();
        let gap = Duration::from_secs(1)
            .checked_div(args.per_second)
            .unwrap_or_default();
        let mut due = begin;
        let made = stream::iter(typed)
            .then(|object| {
                due += gap;
                let at = due;
                async move {
                    tokio::time::sleep_until(at.into()).await;
                    object
                }
            })
            .map(|object| {
                let api = api.clone();
                async move {
                    let asked = Instant::now();
                    let made = api.create(&PostParams::default(), &object).await;
                    made.map(|o| (o.metadata.name.unwrap_or_default(), asked))
                }
            })
            .buffer_unordered(PARALLEL);
        let mut made = std::pin::pin!(made);
        let mut all = BTreeMap::new();
        while let Some((name, asked)) = made.try_next().await? {
            all.insert(name, asked);
        }
        say(&format!(
            "{} workloads made in {:?}",
            all.len(),
            begin.elapsed()
        ));
        Ok(all)
    })
}

/// Notes times from the request to the placement and to running.
fn times(
    made: &BTreeMap<String, Instant>,
    watch: &Watch,
    patience: Duration,
    report: &mut Report,
) -> Result<()> {
    let first = |which: &dyn Fn(&watch::Change) -> bool| {
        let mut first: BTreeMap<String, Instant> = BTreeMap::new();
        for change in watch.changes().into_iter().filter(|change| which(change)) {
            first.entry(change.name).or_insert(change.at);
        }
        first
    };
    let runs = |change: &watch::Change| {
        matches!(
            change.phase,
            PlacementPhase::Running | PlacementPhase::Succeeded
        )
    };
    let mut placed = BTreeMap::new();
    let mut running = BTreeMap::new();
    let all = wait::until("workloads that run", patience, || {
        // The list of changes is long.
        std::thread::sleep(Duration::from_millis(500));
        (placed, running) = (first(&|_| true), first(&runs));
        if running.len() >= made.len() {
            Ok(())
        } else {
            let some: Vec<&str> = made
                .keys()
                .filter(|name| !running.contains_key(&format!("{name}-0")))
                .take(5)
                .map(String::as_str)
                .collect();
            Err(format!(
                "of {}, {} have a place and {} run; not yet: {some:?}",
                made.len(),
                placed.len(),
                running.len()
            ))
        }
    });
    for (name, when) in [("placed", &placed), ("running", &running)] {
        let mut took = Histogram::<u64>::new(3)?;
        for (workload, asked) in made {
            if let Some(at) = when.get(&format!("{workload}-0")) {
                let time = at.saturating_duration_since(*asked);
                took.record(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))?;
            }
        }
        report.figure(name, took.len() as f64);
        for (percentile, word) in [(50.0, "p50"), (99.0, "p99"), (100.0, "max")] {
            let time = took.value_at_percentile(percentile) as f64 / 1000.0;
            report.figure(&format!("apply_to_{name}_{word}_ms"), time);
        }
    }
    // What was not placed shows in the table and among the violations; the run went to its end.
    if let Err(late) = all {
        say(&format!("{late:#}"));
    }
    Ok(())
}

/// Name and provider of a place, as the table has it: a cluster, or `edge`.
fn place_of(node: &str, tier_is_edge: bool) -> &str {
    if tier_is_edge {
        "edge"
    } else {
        node.split('.').next().unwrap_or(node)
    }
}

/// Text at a path; empty where there is none.
fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or("")
}
