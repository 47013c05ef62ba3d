//! `hyperion-train`: trains, evaluates and exports placement policies.

mod cli;

/// Learning allocates and frees large batches all the time.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

use clap::Parser;

fn main() -> anyhow::Result<std::process::ExitCode> {
    cli::run(cli::Cli::parse())
}
