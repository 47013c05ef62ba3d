//! `hyperion-demo`: the whole system in one minute, on this machine. `make demo` runs it.

mod away;
mod screen;
mod steps;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use hyperion_lab::{needs, state, wait};

/// Runs the demo.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Leave everything running at the end, and print how to go on and how to stop it.
    #[arg(long)]
    keep: bool,
    /// Policy that decides: a file, or `rules`; by default the one that the control plane brings.
    #[arg(long, value_name = "FILE|rules")]
    policy: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Stop and remove what a demo with --keep, or one that was killed, left running.
    Stop,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // The chain of causes; a backtrace would hide it.
            screen::line(&format!("the demo failed: {e:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(Command::Stop) = arguments.command {
        return stop();
    }
    if let Some(reason) = needs::missing(&needs::OURS) {
        anyhow::bail!("the demo can't run here: {reason}");
    }
    wait::leave_on_signal()?;
    let keep = arguments.keep || std::env::var("KEEP").is_ok_and(|v| v == "1");
    steps::run(keep, arguments.policy.as_deref())
}

fn stop() -> anyhow::Result<()> {
    let mut stopped = 0;
    for left in state::all() {
        if left.keep || left.orphaned() {
            state::clean_up(&left);
            screen::line(&format!("stopped and removed {}", left.dir.display()));
            stopped += 1;
        }
    }
    if stopped == 0 {
        screen::line("nothing was left running");
    }
    Ok(())
}
