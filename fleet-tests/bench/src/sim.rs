//! The fleet on virtual time: invariants over many seeds.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use clap::ValueEnum;
use hyperion_sim::{Outcome, Scenario, Summary};

use crate::report::Report;

/// Play whole fleets on virtual time, with faults, and look at what must always hold.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// What is played.
    #[arg(long, value_enum, default_value_t = Play::Faults)]
    pub scenario: Play,
    /// Seeds that are played.
    #[arg(long, default_value_t = 100)]
    pub seeds: u64,
    /// The first seed; the others follow it.
    #[arg(long, default_value_t = 1)]
    pub first_seed: u64,
    /// Devices.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub nodes: u32,
    /// Sites that they are spread over.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub sites: u32,
    /// Faults: all, none, or names with commas between them.
    #[arg(long, default_value = "all")]
    pub faults: String,
    /// Ends after so many seeds have failed.
    #[arg(long, default_value_t = 20)]
    pub enough: usize,
    /// Plants a bug that the invariants must catch; needs a build with the feature `planted-bugs`.
    #[arg(long, value_enum)]
    pub planted_bug: Option<Bug>,
}

/// What is played.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Play {
    /// A fleet with faults.
    Faults,
    /// A device without a link for 24 hours.
    OfflineDay,
}

/// A bug to plant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Bug {
    /// Agents obey orders with a lower generation.
    GenerationCheck,
}

/// Variable by which agents are told of the bug to have.
const PLANTED: &str = "HYPERION_PLANTED_BUG";

/// Plays. None where the program has started itself again, with a bug.
///
/// # Errors
/// A fault that there is not, or a bug that this build does not have.
pub fn run(args: &Args) -> anyhow::Result<Option<Report>> {
    if plant(args)? {
        return Ok(None);
    }
    match args.scenario {
        Play::Faults => faults(args).map(Some),
        Play::OfflineDay => Ok(Some(offline_day(args))),
    }
}

/// Agents read the variable of the bug that they are to have: where it is not set yet, the program
/// starts itself again with it, and there is nothing left to do.
fn plant(args: &Args) -> anyhow::Result<bool> {
    let Some(Bug::GenerationCheck) = args.planted_bug else {
        return Ok(false);
    };
    anyhow::ensure!(
        cfg!(any(debug_assertions, feature = "planted-bugs")),
        "--planted-bug: this build has no bugs to plant; build with --features planted-bugs"
    );
    if std::env::var_os(PLANTED).is_some() {
        return Ok(false);
    }
    let program = std::env::current_exe().context("this program")?;
    let status = Command::new(program)
        .args(std::env::args_os().skip(1))
        .env(PLANTED, "generation")
        .status()
        .context("this program again")?;
    anyhow::ensure!(status.success(), "with the bug: {status}");
    Ok(true)
}

fn faults(args: &Args) -> anyhow::Result<Report> {
    let kinds =
        hyperion_sim::parse_faults(&args.faults).map_err(|e| anyhow::anyhow!("--faults: {e}"))?;
    let scenario = Scenario {
        seed: args.first_seed,
        nodes: args.nodes as usize,
        sites: args.sites as usize,
        faults: kinds,
        watched: false,
    };
    let summary = hyperion_sim::seeds(
        &scenario,
        args.first_seed,
        args.seeds,
        args.enough,
        |seed, outcome| {
            // Long runs are watched. What can't be said here is in the report.
            let text = told(args, seed, outcome);
            let _ = std::io::stderr().lock().write_all(text.as_bytes());
        },
    );
    if let Some((seed, _)) = summary.failed.first() {
        // The first is played again with its trace: it is the same run.
        let watched = quietly(|| {
            hyperion_sim::run(&Scenario {
                seed: *seed,
                watched: true,
                ..scenario.clone()
            })
        });
        let mut err = std::io::stderr().lock();
        for line in &watched.trace {
            writeln!(err, "    {line}")?;
        }
    }
    Ok(report(args, &summary))
}

/// Without the logs of the agents.
fn quietly<T>(act: impl FnOnce() -> T) -> T {
    tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::default(), act)
}

fn told(args: &Args, seed: u64, outcome: &Outcome) -> String {
    let mut text = format!("seed {seed}:\n");
    for violation in &outcome.violations {
        let at = violation.at.as_secs_f64();
        let _ = writeln!(
            text,
            "  at {at:.3} s {}: {}",
            violation.invariant, violation.what
        );
    }
    let bug = match args.planted_bug {
        Some(Bug::GenerationCheck) => " --planted-bug generation-check",
        None => "",
    };
    let _ = writeln!(
        text,
        "  again: hyperion-bench sim --first-seed {seed} --seeds 1 --nodes {} --sites {} \
         --faults {}{bug}",
        args.nodes, args.sites, args.faults
    );
    text
}

fn report(args: &Args, summary: &Summary) -> Report {
    let mut report = Report::new("sim", args.first_seed);
    report.condition("nodes", args.nodes);
    report.condition("sites", args.sites);
    report.condition("faults", args.faults.clone());
    report.condition("first_seed", args.first_seed);
    report.condition("cpu", hyperion_lab::proc::cpu_model());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    report.condition("cores", cores);
    if let Some(Bug::GenerationCheck) = args.planted_bug {
        report.condition("planted_bug", "generation-check");
    }
    if !summary.failed.is_empty() {
        let seeds: Vec<u64> = summary.failed.iter().map(|(seed, _)| *seed).collect();
        report.condition("failed_seeds", seeds);
    }
    let seconds = summary.took.as_secs_f64().max(1e-9);
    let injected: u64 = summary.faults.values().sum();
    for (name, value) in [
        ("runs", summary.runs as f64),
        ("violations", summary.violations() as f64),
        ("failed_seeds", summary.failed.len() as f64),
        ("faults_injected", injected as f64),
        ("seeds_per_s", summary.runs as f64 / seconds),
        ("took_s", seconds),
        ("virtual_s", summary.virtual_time.as_secs_f64()),
        ("events", summary.events as f64),
        ("container_starts", summary.starts as f64),
        ("requests", summary.requests as f64),
        ("requests_unanswered", summary.unanswered as f64),
        ("site_decisions", summary.site_decisions as f64),
        ("control_decisions", summary.decisions as f64),
        ("stale_orders", summary.stale_orders as f64),
    ] {
        report.figure(name, value);
    }
    let first = summary.failed.first();
    let after = first.map(|(seed, _)| (seed - args.first_seed + 1) as f64);
    report.figure("first_failure_after_seeds", after);
    if after.is_none() {
        report.condition("first_failure_after_seeds", "no seed failed");
    }
    for (kind, count) in &summary.faults {
        report.figure(&format!("fault_{kind}"), *count as f64);
    }
    report
}

fn offline_day(args: &Args) -> Report {
    let hours = 24;
    let offline = Duration::from_secs(hours * 3600);
    let interval = Duration::from_secs(1);
    let day = quietly(|| hyperion_sim::offline_day(args.first_seed, offline, interval));
    let mut report = Report::new("sim", args.first_seed);
    report.condition("scenario", "offline-day");
    report.condition("offline_hours", hours);
    report.condition("telemetry_interval_s", interval.as_secs());
    report.condition("in_order", day.in_order);
    report.figure("store_bytes_max", day.store_bytes_max as f64);
    report.figure("kept", day.kept as f64);
    report.figure("backfilled", day.backfilled as f64);
    report.figure("dropped", day.dropped as f64);
    report.figure("lost", day.lost as f64);
    report.figure("drain_s", day.drain.map(|d| d.as_secs_f64()));
    if day.drain.is_none() {
        report.condition("drain_s", "not within an hour");
    }
    report
}
