//! `demo-inference`: serves the classifier, or runs the training job.

use std::io::Write;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use hyperion_demo_inference::model::Model;
use hyperion_demo_inference::serve::{Shared, router};
use hyperion_demo_inference::train::train;
use tokio::signal::unix::{SignalKind, signal};

/// The demo workload: image classification over HTTP, or a training job.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Address that one datagram is sent to at start, so that a test can count starts.
    #[arg(long, env = "HYPERION_BEACON", global = true)]
    beacon: Option<SocketAddr>,
    /// Name told in answers and to the beacon.
    #[arg(long, env = "HOSTNAME", default_value = "unnamed", global = true)]
    name: String,
    /// Address to serve on.
    #[arg(
        long,
        env = "HYPERION_LISTEN",
        default_value = "0.0.0.0:8080",
        global = true
    )]
    listen: SocketAddr,
    /// Seed of the weights and of the training data.
    #[arg(long, env = "HYPERION_SEED", default_value_t = 1, global = true)]
    seed: u64,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer inference requests until SIGTERM (the default).
    Serve,
    /// Train a small network, print progress, exit.
    Job {
        /// Steps to train.
        #[arg(long, env = "HYPERION_STEPS", default_value_t = 300)]
        steps: u32,
        /// Pause after each step, milliseconds.
        #[arg(long, env = "HYPERION_STEP_PAUSE_MS", default_value_t = 0)]
        pause_ms: u64,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    say(&format!("started {}", arguments.name));
    if let Some(beacon) = arguments.beacon {
        // A lost beacon must not keep the workload from its work.
        if let Err(e) = send_beacon(beacon, &arguments.name) {
            say(&format!("beacon {beacon}: {e}"));
        }
    }
    match arguments.command {
        Some(Command::Job { steps, pause_ms }) => {
            job(arguments.seed, steps, Duration::from_millis(pause_ms)).await
        }
        Some(Command::Serve) | None => {
            serve(arguments.listen, arguments.seed, arguments.name).await
        }
    }
}

async fn serve(listen: SocketAddr, seed: u64, served_by: String) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener = tokio::net::TcpListener::bind(listen)
        .await
        .with_context(|| format!("listen on {listen}"))?;
    let shared = Arc::new(Shared {
        served_by,
        ..Shared::default()
    });
    let making = Arc::clone(&shared);
    tokio::task::spawn_blocking(move || match Model::seeded(seed) {
        Ok(model) => {
            say("ready: weights made");
            let _first = making.model.set(model);
        }
        Err(e) => say(&format!("weights: {e}")),
    });
    say(&format!("listening on {listen}"));
    axum::serve(listener, router(shared))
        .with_graceful_shutdown(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await?;
    say("stopped");
    Ok(())
}

async fn job(seed: u64, steps: u32, pause: Duration) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let (sender, mut done) = tokio::sync::mpsc::channel(1);
    tokio::task::spawn_blocking(move || {
        let result = train(seed, steps, |at| {
            if at.step == 1 || at.step % 50 == 0 || at.step == steps {
                say(&format!(
                    "step {}/{steps} loss {:.4} accuracy {:.3}",
                    at.step, at.loss, at.accuracy
                ));
            }
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
        });
        let _gone = sender.blocking_send(result);
    });
    tokio::select! {
        result = done.recv() => {
            result.context("the training thread ended without a result")??;
            say("done");
            Ok(())
        }
        _ = terminate.recv() => {
            say("stopped before the end");
            // The training thread has no place to be told; the process ends with it.
            std::process::exit(143);
        }
    }
}

fn send_beacon(beacon: SocketAddr, name: &str) -> std::io::Result<()> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.send_to(format!("started {name}").as_bytes(), beacon)?;
    Ok(())
}

/// One line on standard output; a closed pipe is no reason to stop serving.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _closed = writeln!(out, "{line}").and_then(|()| out.flush());
}
