//! `hyperion-control`.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use hyperion_operator::args::Args;
use hyperion_operator::run;

/// Ten thousand agents are back after 18 s instead of 30 s with the C library's allocator; memory is
/// the same.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let args = Args::parse();
    match start(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // Nobody may read standard error; the exit code tells as well.
            let text = format!("{e:#}").replace('\n', " ");
            let _ = writeln!(std::io::stderr(), "hyperion-control: {text}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: Args) -> anyhow::Result<()> {
    run::logging(args.log_format)?;
    // A second provider can only come from a library's default: ours is in place then.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(async {
        let stop = run::signals()?;
        run::run(args, stop).await
    });
    // Tasks that are left (a watch, a followed log) need not be waited for.
    runtime.shutdown_background();
    result
}
