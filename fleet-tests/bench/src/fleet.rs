//! What is measured on a whole fleet with real containers: `hyperion-lab` starts it and looks.

use anyhow::{Context, Result};
use hyperion_lab::measure::{self, Measured};
use hyperion_lab::metadata::Cloud;

use crate::report::Report;

/// Measure the time from apply to running.
#[derive(Debug, Clone, clap::Args)]
pub struct StartArgs {
    /// Workloads, applied one after the other.
    #[arg(long, default_value_t = 100)]
    pub workloads: u32,
    /// Edge nodes that they spread over.
    #[arg(long, default_value_t = 3)]
    pub nodes: u32,
}

/// Measure what one agent costs.
#[derive(Debug, Clone, clap::Args)]
pub struct AgentArgs {
    /// Length of the measurement, seconds.
    #[arg(long, default_value_t = 60)]
    pub seconds: u64,
    /// Containers on the node.
    #[arg(long, default_value_t = 0)]
    pub containers: u32,
    /// Without its control plane.
    #[arg(long)]
    pub offline: bool,
}

/// Measure what a site does alone, or what a spot machine that is taken back costs, with real
/// containers.
#[derive(Debug, Clone, clap::Args)]
pub struct LabArgs {
    /// takeover, reboot, uplink, one-way, partial, split or spot.
    pub scenario: String,
    /// Whose notices, for spot: aws, gcp or azure.
    #[arg(long, default_value = "aws")]
    pub cloud: String,
    /// Times of the site: default or fast.
    #[arg(long, default_value = "default")]
    pub profile: String,
    /// Repetitions, each with a fleet of its own; figures are medians.
    #[arg(long, default_value_t = 5)]
    pub runs: u32,
}

/// Runs `start`.
///
/// # Errors
/// A fleet can't run here, or a workload did not run in time.
pub fn start(args: &StartArgs) -> Result<Report> {
    let options = measure::start::Options {
        workloads: args.workloads,
        nodes: args.nodes,
    };
    Ok(report("start", measure::start::run(&options)?))
}

/// Runs `agent`.
///
/// # Errors
/// A fleet can't run here, or the containers did not run in time.
pub fn agent(args: &AgentArgs) -> Result<Report> {
    let options = measure::agent::Options {
        seconds: args.seconds,
        containers: args.containers,
        offline: args.offline,
    };
    Ok(report("agent", measure::agent::run(&options)?))
}

/// Runs `lab`.
///
/// # Errors
/// The scenario is not known, a fleet can't run here, or what had to happen did not.
pub fn lab(args: &LabArgs) -> Result<Report> {
    if args.scenario == "spot" {
        let mut clouds = Cloud::ALL.into_iter();
        let cloud = clouds.find(|cloud| cloud.as_str() == args.cloud);
        let options = measure::spot::Options {
            cloud: cloud.with_context(|| format!("--cloud {:?} is none", args.cloud))?,
            runs: args.runs,
        };
        return Ok(report("lab-spot", measure::spot::run(&options)?));
    }
    let options = measure::site::Options {
        scenario: args.scenario.clone(),
        profile: args.profile.clone(),
        runs: args.runs,
    };
    Ok(report("lab", measure::site::run(&options)?))
}

fn report(bench: &str, measured: Measured) -> Report {
    let mut report = Report::new(bench, 0);
    for (name, value) in measured.conditions {
        report.condition(&name, value);
    }
    for (name, value) in measured.figures {
        report.figure(&name, value.as_f64());
    }
    report
}
