//! What an agent costs: its own memory and CPU, and what it writes to the device's disk, with containers
//! that it looks after.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{Measured, build_profile, cores};
use crate::proc::{cpu_model, cpu_seconds, rss_bytes, written_bytes};
use crate::scene::service;
use crate::{AgentSpec, Fleet, FleetOptions, needs};

/// How to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long to look, seconds.
    pub seconds: u64,
    /// Containers on the node, each with a readiness probe.
    pub containers: u32,
    /// Whether its control plane is gone meanwhile.
    pub offline: bool,
}

/// Measures `rss_mb` (the largest seen, 10^6 bytes), `cpu_percent_of_core` and `written_mb_per_day` (10^6
/// bytes that go to the disk, see [`written_bytes`]) of one agent that takes its telemetry every second and
/// runs real containers: connected to a control plane, or without.
///
/// # Errors
/// A fleet can't run here, or the containers did not run in time.
pub fn run(options: &Options) -> Result<Measured> {
    if let Some(reason) = needs::missing(&needs::OURS) {
        anyhow::bail!("can't measure here: {reason}");
    }
    let mut fleet = Fleet::start(&FleetOptions::new("measure-agent"))?;
    fleet.add(&AgentSpec::edge("edge-0").flag("--telemetry-interval", "1s"))?;
    if options.containers > 0 {
        fleet.apply(&service("bench", options.containers, None))?;
        fleet.wait_all_running("bench", usize::try_from(options.containers)?)?;
    }
    if options.offline {
        fleet.control.kill();
        fleet.wait_log(0, "mode=autonomous")?;
    }
    let agent = fleet.agent(0)?;
    let pid = agent.process().id().context("the agent has ended")?.pid;
    let begin = Instant::now();
    let cpu_before = cpu_seconds(pid)?;
    let written_before = written_bytes(pid)?;
    let span = Duration::from_secs(options.seconds.max(1));
    let mut most_bytes = 0;
    while begin.elapsed() < span {
        most_bytes = most_bytes.max(rss_bytes(pid)?);
        std::thread::sleep(Duration::from_millis(500).min(span));
    }
    let elapsed = begin.elapsed().as_secs_f64();
    let seconds = cpu_seconds(pid)? - cpu_before;
    let written = written_bytes(pid)?.saturating_sub(written_before);
    let mut measured = Measured::default();
    #[expect(clippy::cast_precision_loss, reason = "bytes of one process")]
    measured.figure("rss_mb", most_bytes as f64 / 1e6);
    measured.figure("cpu_percent_of_core", seconds / elapsed * 100.0);
    #[expect(clippy::cast_precision_loss, reason = "bytes of one process")]
    measured.figure(
        "written_mb_per_day",
        written as f64 / 1e6 / elapsed * 86_400.0,
    );
    let program = needs::programs().join("hyperion-agent");
    #[expect(clippy::cast_precision_loss, reason = "bytes of one file")]
    measured.figure("binary_mb", std::fs::metadata(&program)?.len() as f64 / 1e6);
    measured.condition("seconds", elapsed);
    measured.condition("containers", options.containers);
    measured.condition("offline", options.offline);
    measured.condition("telemetry_interval_s", 1);
    measured.condition("programs", build_profile());
    measured.condition("cores", cores());
    measured.condition("cpu", cpu_model());
    Ok(measured)
}
