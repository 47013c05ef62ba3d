//! Apply to running: from the request that creates a workload to the first moment at which a
//! watch of the API tells that its replica runs. The image is present.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hyperion_api::placement::PlacementPhase;
use hyperion_api::workload::HyperionWorkload;
use kube::api::{Api, Patch, PatchParams};

use super::{Measured, build_profile, cores, percentile};
use crate::proc::cpu_model;
use crate::scene::workload;
use crate::watch::{Watch, client};
use crate::{AgentSpec, Fleet, FleetOptions, needs};

/// Time that one workload may take.
const LIMIT: Duration = Duration::from_secs(60);

/// How to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Workloads, applied one after the other.
    pub workloads: u32,
    /// Edge nodes that they spread over.
    pub nodes: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            workloads: 100,
            nodes: 3,
        }
    }
}

/// Measures `apply_to_running_p50_ms` and `apply_to_running_p99_ms`. Each workload is applied when
/// the one before it runs, and all of them go on running, so that the last is placed beside all
/// the others.
///
/// # Errors
/// A fleet can't run here, or a workload did not run in time.
pub fn run(options: &Options) -> Result<Measured> {
    if let Some(reason) = needs::missing(&needs::OURS) {
        anyhow::bail!("can't measure here: {reason}");
    }
    ensure!(options.workloads > 0, "--workloads: at least 1");
    let mut fleet = Fleet::start(&FleetOptions::new("measure-start"))?;
    for n in 0..options.nodes {
        fleet.add_only(&AgentSpec::edge(&format!("edge-{n}")))?;
    }
    for at in 0..fleet.agents.len() {
        fleet.wait_agent(at)?;
    }
    let times = measure(&fleet, options.workloads).inspect_err(|_| report(&fleet))?;
    let mut measured = Measured::default();
    for (name, share) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)] {
        let time = percentile(&times, share).context("no times")?;
        measured.figure(
            &format!("apply_to_running_{name}_ms"),
            time.as_secs_f64() * 1000.0,
        );
    }
    measured.condition("workloads", options.workloads);
    measured.condition("nodes", options.nodes);
    measured.condition(
        "what",
        "server-side apply of each workload when the one before runs, to the first Running in a watch of its placement; image present, real containerd",
    );
    measured.condition("programs", build_profile());
    measured.condition("cores", cores());
    measured.condition("cpu", cpu_model());
    Ok(measured)
}

/// Sorted times from apply to running.
fn measure(fleet: &Fleet, workloads: u32) -> Result<Vec<Duration>> {
    let watch = Watch::start(fleet.kubectl().kubeconfig())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let client = runtime.block_on(client(fleet.kubectl().kubeconfig()))?;
    let api: Api<HyperionWorkload> = Api::namespaced(client, "default");
    let manager = PatchParams::apply("hyperion-bench");
    let mut times = BTreeMap::new();
    for n in 0..workloads {
        let name = format!("bench-{n}");
        let mut object = workload(&name, "service", &["serve"], None);
        // A hundred of them must fit one machine, on any two cores.
        crate::scene::set(
            &mut object,
            "/spec/template/spec/containers/0/resources",
            serde_json::json!({ "requests": { "cpu": "1m", "memory": "8Mi" } }),
        );
        let begin = Instant::now();
        runtime.block_on(api.patch(&name, &manager, &Patch::Apply(&object)))?;
        let replica = format!("{name}-0");
        let running = watch.first(&replica, begin, LIMIT, |c| {
            c.name == replica && c.phase == PlacementPhase::Running
        })?;
        times.insert(name, running.at - begin);
    }
    let mut sorted: Vec<Duration> = times.into_values().collect();
    sorted.sort_unstable();
    Ok(sorted)
}

#[expect(
    clippy::print_stderr,
    reason = "figures go to standard output, the rest here"
)]
fn report(fleet: &Fleet) {
    eprintln!("{}", fleet.logs(30));
}
