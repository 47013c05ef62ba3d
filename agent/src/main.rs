//! `hyperion-agent`: see the crate's documentation.

use std::process::ExitCode;

use hyperion_agent::command::{self, Command};
use hyperion_agent::config::LogFormat;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

fn main() -> ExitCode {
    let command = Command::read(std::env::args_os()).unwrap_or_else(|e| e.exit());
    log_to_stderr(match &command {
        Command::Run(config) => config.log_format,
        Command::Image(_) | Command::Sensors(_) | Command::Reset(_) | Command::Update(_) => {
            LogFormat::Text
        }
    });
    // One thread: the agent waits most of its life, and a second thread costs a stack and an
    // arena of the allocator.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .thread_stack_size(512 * 1024)
        .build();
    let ended = match runtime {
        Ok(runtime) => match command {
            Command::Run(config) => runtime.block_on(hyperion_agent::run(*config)),
            Command::Image(image) => {
                runtime.block_on(command::image(image, &mut std::io::stdout().lock()))
            }
            Command::Sensors(flags) => {
                runtime.block_on(command::sensors(flags, &mut std::io::stdout().lock()))
            }
            Command::Reset(flags) => {
                let out = &mut std::io::stdout().lock();
                runtime.block_on(hyperion_agent::reset::command(flags, out))
            }
            Command::Update(update) => {
                let out = &mut std::io::stdout().lock();
                runtime.block_on(hyperion_agent::update::command(update, out))
            }
        },
        Err(e) => Err(e.into()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Levels come from `HYPERION_LOG`, as in `info,hyperion_agent=debug`. A filter with regular
/// expressions would cost more memory than the rest of logging.
fn log_to_stderr(format: LogFormat) {
    let levels = std::env::var("HYPERION_LOG").unwrap_or_default();
    let parsed = levels.parse::<Targets>();
    let bad = parsed.is_err();
    let targets = match parsed {
        Ok(targets) if !levels.is_empty() => targets,
        _ => Targets::new().with_default(tracing::Level::INFO),
    };
    let registry = tracing_subscriber::registry().with(targets);
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    match format {
        LogFormat::Text => registry.with(layer).init(),
        LogFormat::Json => registry.with(layer.json()).init(),
    }
    if bad {
        tracing::warn!("HYPERION_LOG is not understood; logging at info");
    }
}
