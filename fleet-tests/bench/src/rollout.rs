//! A fleet update in waves: the real control plane, and simulated devices on the real link that follow
//! its orders, some of which roll back.

mod device;
mod watcher;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use hyperion_api::rollout::{HyperionRollout, HyperionRolloutStatus, RolloutPhase};
use hyperion_lab::proc;
use hyperion_link::{EnrolRequest, Identity};
use kube::api::{Api, Patch, PatchParams, PostParams};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::link::{self, raise_file_limit};
use crate::link_server::{ServeArgs, Server};
use crate::report::Report;
use device::{Device, Times};
use watcher::{Bounds, Watcher};

/// Measure a fleet update in waves.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Devices.
    #[arg(long, default_value_t = 1000)]
    pub nodes: usize,
    /// Devices that roll back, per cent.
    #[arg(long, default_value_t = 3)]
    pub failures: usize,
    /// Failures that the rollout allows before it stops, per cent.
    #[arg(long, default_value_t = 1)]
    pub max_failures: usize,
    /// Devices that may be out at a time, per cent.
    #[arg(long, default_value_t = 10)]
    pub max_unavailable: usize,
    /// Seed of which devices roll back, and of the times that they take.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Longest time in which all is to be done, seconds.
    #[arg(long, default_value_t = 900)]
    pub patience: u64,
    /// UDP sockets that the devices share.
    #[arg(long, default_value_t = 32)]
    pub sockets: usize,
    /// Control plane to start; by default `hyperion-control` beside this program.
    #[arg(long)]
    pub control_bin: Option<PathBuf>,
    /// Print the control plane's kubeconfig, for `hyperion top` beside it, and wait so many seconds
    /// before the rollout begins.
    #[arg(long, default_value_t = 0)]
    pub look: u64,
}

/// Name of the rollout.
const NAME: &str = "fleet";
/// Version that it brings.
const VERSION: &str = "2.0.0";
/// Devices that enrol at the same time.
const AT_ONCE: usize = 32;
/// Attempts of each.
const ENROL: u32 = 30;
/// Telemetry interval of the devices.
const INTERVAL: Duration = Duration::from_secs(5);
/// Time for all devices to be connected.
const CONNECT_ALL: Duration = Duration::from_secs(300);
/// How long a rollout that has stopped is watched: nothing may begin.
const STOPPED: Duration = Duration::from_secs(5);

/// Runs `rollout`.
///
/// # Errors
/// The control plane does not start, or the rollout does not end in time.
pub fn run(args: &Args) -> Result<Report> {
    ensure!(args.nodes > 0, "--nodes: at least 1");
    ensure!(args.failures <= 100, "--failures: per cent");
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(measure(args))
}

async fn measure(args: &Args) -> Result<Report> {
    raise_file_limit();
    let dir = tempfile::tempdir()?;
    let fleet = link::Args {
        agents: args.nodes,
        interval: INTERVAL,
        seconds: 0,
        sockets: args.sockets,
        control_bin: args.control_bin.clone(),
        gateway_only: false,
        serve: ServeArgs {
            serve: None,
            link_addr: ([127, 0, 0, 1], 0).into(),
            http_addr: ([127, 0, 0, 1], 0).into(),
        },
    };
    let mut server = Server::start(&fleet, dir.path()).await?;
    let kubeconfig = dir.path().join("kubeconfig");
    let identities = enrol_all(args.nodes, &server).await?;
    let bad = bad_devices(args);
    let bounds = Bounds::new(args.nodes, args.max_unavailable);
    let watcher = Arc::new(Watcher::new(bounds));
    let stop = CancellationToken::new();
    let endpoints = link::endpoints(args.sockets)?;
    for (n, identity) in identities.into_iter().enumerate() {
        let mut config = hyperion_link::LinkConfig::new(server.target.clone());
        config.endpoint = Some(endpoints[n % endpoints.len()].clone());
        config.backoff_max = Duration::from_secs(2);
        config.describe = link::describe(n);
        let rng = StdRng::seed_from_u64(args.seed ^ (n as u64).rotate_left(32));
        let device = Device::new(n, !bad.contains(&n), Times::DEFAULT, rng, watcher.clone());
        tokio::spawn(device.run(config, identity, stop.clone()));
    }
    watcher
        .connected(args.nodes, CONNECT_ALL)
        .await
        .context("devices")?;
    let client = hyperion_lab::watch::client(&kubeconfig).await?;
    if args.look > 0 {
        crate::cluster::say(&format!("kubeconfig: {}", kubeconfig.display()));
        tokio::time::sleep(Duration::from_secs(args.look)).await;
    }
    let mut report = conditions(args, bad.len());
    let cpu = server.cpu_seconds()?;
    let begin = Instant::now();
    let api: Api<HyperionRollout> = Api::all(client);
    api.create(&PostParams::default(), &rollout(args)?).await?;
    let ended = follow(args, &api, &watcher, &mut report).await;
    report.figure("seconds", begin.elapsed().as_secs_f64());
    report.figure("server_cpu_s", server.cpu_seconds()? - cpu);
    report.figure("server_rss_mb", server.rss_bytes()? as f64 / 1e6);
    let status = ended?;
    let seen = watcher.seen();
    let (done, failed) = (count(status.done), count(status.failed));
    report.figure("done", done as f64);
    report.figure("failed", failed as f64);
    report.figure("unavailable_max", seen.most_out as f64);
    let mut violations = seen.violations;
    // What the rollout says against what the devices are.
    if (done, failed) != (seen.good, seen.bad) {
        violations.push(format!(
            "the rollout says {done} done and {failed} failed; {} are and {} have",
            seen.good, seen.bad
        ));
    }
    report.figure("violations", violations.len() as f64);
    for violation in violations.iter().take(20) {
        crate::cluster::say(&format!("violation: {violation}"));
    }
    stop.cancel();
    server.stop(false).await?;
    Ok(report)
}

/// Devices enrol as they do in the field: a control plane that is busy is asked again.
async fn enrol_all(nodes: usize, server: &Server) -> Result<Vec<Identity>> {
    let enrolments = stream::iter(0..nodes).map(|n| async move {
        let mut attempt = 1;
        loop {
            let request = EnrolRequest {
                token: server.token.clone(),
                ..link::describe(n)
            };
            match hyperion_link::enrol(&server.target, request).await {
                Ok(identity) => return Ok(identity),
                Err(e) if attempt >= ENROL => return Err(e).context("enrolment"),
                Err(_) => attempt += 1,
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    enrolments.buffer_unordered(AT_ONCE).try_collect().await
}

/// Which devices roll back.
fn bad_devices(args: &Args) -> BTreeSet<usize> {
    let mut all: Vec<usize> = (0..args.nodes).collect();
    all.shuffle(&mut StdRng::seed_from_u64(args.seed));
    all.truncate((args.nodes * args.failures).div_ceil(100));
    all.into_iter().collect()
}

fn rollout(args: &Args) -> Result<HyperionRollout> {
    let object = json!({
        "apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionRollout",
        "metadata": { "name": NAME },
        "spec": {
            "bundle": {
                "url": "https://updates.example/hyperion-2.0.0.swu",
                "sha256": "5e".repeat(32), "version": VERSION, "machines": [device::MACHINE],
            },
            "waves": watcher::WAVES,
            "maxUnavailable": format!("{}%", args.max_unavailable),
            "maxFailures": format!("{}%", args.max_failures),
            "readyWithin": "2m",
        },
    });
    Ok(serde_json::from_value(object)?)
}

fn count(number: i32) -> usize {
    usize::try_from(number).unwrap_or(0)
}

/// Follows the rollout to its end, and resumes it whenever it has stopped for failures.
async fn follow(
    args: &Args,
    api: &Api<HyperionRollout>,
    watcher: &Watcher,
    report: &mut Report,
) -> Result<HyperionRolloutStatus> {
    let deadline = Instant::now() + Duration::from_secs(args.patience);
    let (mut stops, mut stopped_at) = (0_u32, None);
    loop {
        let status = api.get(NAME).await?.status.unwrap_or_default();
        match status.phase {
            RolloutPhase::Complete => {
                report.figure("stops", f64::from(stops));
                report.figure("stopped_at_nodes", stopped_at.map(|n: usize| n as f64));
                return Ok(status);
            }
            // Those that restarted when it stopped come back before it is still.
            RolloutPhase::Paused if status.moving.is_empty() => {
                ensure!(status.reason == "TooManyFailures", "{}", status.message);
                stops += 1;
                let ended = count(status.done + status.failed);
                stopped_at.get_or_insert(ended);
                crate::cluster::say(&format!("stopped after {ended} nodes: {}", status.message));
                watcher.still(true);
                tokio::time::sleep(STOPPED).await;
                watcher.still(false);
                let looked = json!({ "spec": { "acceptedFailures": status.failed } });
                api.patch(NAME, &PatchParams::default(), &Patch::Merge(looked))
                    .await?;
                goes_on(api, deadline).await?;
            }
            RolloutPhase::Invalid => bail!("{}", status.message),
            _ => {}
        }
        if Instant::now() > deadline {
            bail!("not complete in time: {}", status.message);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Waits until a rollout that was resumed says so.
async fn goes_on(api: &Api<HyperionRollout>, deadline: Instant) -> Result<()> {
    loop {
        let object = api.get(NAME).await?;
        let generation = object.metadata.generation;
        let status = object.status.unwrap_or_default();
        if status.observed_generation == generation {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "it was not resumed in time");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn conditions(args: &Args, bad: usize) -> Report {
    let mut report = Report::new("rollout", args.seed);
    report.condition("nodes", args.nodes);
    report.condition("devices_that_roll_back", bad);
    report.condition("waves", json!(watcher::WAVES));
    report.condition("max_unavailable_percent", args.max_unavailable);
    report.condition("max_failures_percent", args.max_failures);
    report.condition("times", Times::DEFAULT.to_string());
    report.condition(
        "what",
        "hyperion-control with the embedded API; devices of this program on QUIC, each with its own \
         identity and stream; resumed whenever it has stopped; violations are counted by the devices",
    );
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    report.condition("cores_shared_by_both", cores);
    report.condition("cpu", proc::cpu_model());
    report
}
