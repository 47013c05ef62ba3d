//! `hyperion-bench`: measures.

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use hyperion_bench::report::Report;
use hyperion_bench::{
    cluster, clusters, decide, faults, fleet, gossip, link, offline, packing, replay, rollout, sim,
    tui,
};

/// Measure Hyperion.
#[derive(Parser)]
#[command(name = "hyperion-bench", version)]
struct Cli {
    /// Print one JSON object on standard output.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    Cluster(cluster::Args),
    Clusters(clusters::Args),
    Control(cluster::control::Args),
    Link(link::Args),
    Start(fleet::StartArgs),
    Agent(fleet::AgentArgs),
    Lab(fleet::LabArgs),
    Decide(decide::Args),
    Faults(faults::Args),
    Gossip(gossip::Args),
    Offline(offline::Args),
    Packing(packing::Args),
    Replay(replay::Args),
    Rollout(rollout::Args),
    Sim(sim::Args),
    Tui(tui::Args),
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let cli = Cli::parse();
    match run(cli.bench).and_then(|report| print(report, cli.json)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "hyperion-bench: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Does it start programs of a fleet or of a cluster, which are not to be left running?
const fn starts_fleets(bench: &Bench) -> bool {
    matches!(
        bench,
        Bench::Cluster(_)
            | Bench::Clusters(_)
            | Bench::Control(_)
            | Bench::Start(_)
            | Bench::Agent(_)
            | Bench::Lab(_)
            | Bench::Faults(_)
            | Bench::Replay(_)
    )
}

/// None where the program was the server of another one.
fn run(bench: Bench) -> anyhow::Result<Option<Report>> {
    if starts_fleets(&bench) {
        hyperion_lab::wait::leave_on_signal()?;
    }
    match bench {
        Bench::Cluster(args) => cluster::run(&args).map(Some),
        Bench::Clusters(args) => clusters::run(&args).map(Some),
        Bench::Control(args) => cluster::control::run(&args).map(Some),
        Bench::Start(args) => fleet::start(&args).map(Some),
        Bench::Agent(args) => fleet::agent(&args).map(Some),
        Bench::Lab(args) => fleet::lab(&args).map(Some),
        Bench::Decide(args) => decide::run(&args).map(Some),
        Bench::Faults(args) => faults::run(&args).map(Some),
        Bench::Gossip(args) => gossip::run(&args),
        Bench::Offline(args) => offline::run(&args).map(Some),
        Bench::Packing(args) => packing::run(&args).map(Some),
        Bench::Replay(args) => replay::run(&args).map(Some),
        Bench::Rollout(args) => rollout::run(&args).map(Some),
        Bench::Sim(args) => sim::run(&args),
        Bench::Tui(args) => {
            let runtime = tokio::runtime::Runtime::new()?;
            runtime.block_on(tui::run(&args)).map(Some)
        }
        Bench::Link(args) => {
            let runtime = tokio::runtime::Runtime::new()?;
            runtime.block_on(link::run(&args))
        }
    }
}

fn print(report: Option<Report>, json: bool) -> anyhow::Result<()> {
    let Some(report) = report else {
        return Ok(());
    };
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    } else {
        write!(out, "{report}")?;
    }
    Ok(())
}
