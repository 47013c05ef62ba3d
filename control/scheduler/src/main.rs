//! `hyperion-train`: trains, evaluates and exports placement policies.

mod cli;

use clap::Parser;

fn main() -> anyhow::Result<()> {
    cli::run(cli::Cli::parse())
}
