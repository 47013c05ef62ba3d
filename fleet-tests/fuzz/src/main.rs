//! `hyperion-fuzz --target X --seconds 600 [--seed S]`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use hyperion_fuzz::{driver, targets};

/// Feed a decoder with bytes that nobody would send.
#[derive(Parser)]
#[command(name = "hyperion-fuzz")]
struct Cli {
    /// Which decoder; see --list.
    #[arg(long, required_unless_present = "list")]
    target: Option<String>,
    /// Length of the run.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Seed of the mutations; by default another one each time.
    #[arg(long)]
    seed: Option<u64>,
    /// Where failing inputs go.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/regressions"))]
    regressions: PathBuf,
    /// List the targets.
    #[arg(long)]
    list: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    let mut out = std::io::stdout();
    if cli.list {
        for target in targets::ALL {
            writeln!(out, "{:20} {}", target.name, target.about)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let name = cli.target.unwrap_or_default();
    let target = targets::find(&name).with_context(|| format!("no target {name:?}; see --list"))?;
    let seed = cli.seed.unwrap_or_else(rand::random);
    writeln!(out, "target {name} seed {seed} seconds {}", cli.seconds)?;
    out.flush()?;
    let time = Duration::from_secs(cli.seconds);
    let summary = driver::run(target, time, seed, &cli.regressions)?;
    for (what, path) in &summary.failures {
        writeln!(out, "FAILED {}: {what}", path.display())?;
    }
    writeln!(
        out,
        "target {name} seed {seed} executions {} outcomes {} failures {}",
        summary.executions,
        summary.outcomes,
        summary.failures.len()
    )?;
    Ok(if summary.failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
