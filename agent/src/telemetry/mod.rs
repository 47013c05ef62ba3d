//! What a node measures of itself, from procfs and sysfs under a root path.
//!
//! A file that is missing or does not parse is a missing number, never an error: boards differ in
//! what they show, and each kernel release moves something. Counters that wrap or start anew give
//! no rate for one interval, never a negative or absurd one.

mod capabilities;
mod cpu;
mod memory;
mod network;
pub mod sensors;

use std::path::{Path, PathBuf};
use std::time::Instant;

use hyperion_proto::agent_v1::{NetworkStatus, Telemetry, Temperature};

pub use self::capabilities::{Reserved, capabilities, hostname};
use self::cpu::CpuTimes;
pub use self::memory::Memory;
use self::network::Counters;
use self::sensors::Look;
pub use self::sensors::Sensors;

/// Reads a small text file; none where that is not possible.
fn text(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// Size of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Bytes.
    pub total: u64,
    /// Bytes, without what is kept for root.
    pub used: u64,
}

/// File system that holds a path.
#[must_use]
pub fn disk(path: &Path) -> Option<Disk> {
    let s = rustix::fs::statvfs(path).ok()?;
    let total = s.f_blocks.checked_mul(s.f_frsize)?;
    let free = s.f_bfree.checked_mul(s.f_frsize)?;
    Some(Disk {
        total,
        used: total.saturating_sub(free),
    })
}

/// Bytes that a user may still write on the file system that holds a path.
pub(crate) fn free(path: &Path) -> Option<u64> {
    let s = rustix::fs::statvfs(path).ok()?;
    Some(s.f_bavail.saturating_mul(s.f_frsize))
}

/// One look at the node; what could not be read is none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// Percent of all cores since the sample before, 0 to 100.
    pub cpu_percent: Option<f32>,
    /// Memory.
    pub memory: Option<Memory>,
    /// File system of the data directory.
    pub disk: Option<Disk>,
    /// Bytes per second since the sample before, received and sent.
    pub network: Option<(u64, u64)>,
    /// One-minute load average.
    pub load1: Option<f32>,
    /// What sensors show.
    pub sensors: Look,
}

/// What goes into a message beside the sample.
#[derive(Debug, Clone, Copy, Default)]
pub struct Envelope {
    /// Grows by one per message.
    pub sequence: u64,
    /// Since the agent started, milliseconds.
    pub uptime_ms: u64,
    /// Messages and events dropped.
    pub dropped_total: u64,
    /// Round trip to the control plane, milliseconds.
    pub rtt_ms: Option<f32>,
}

impl Sample {
    /// The message; missing numbers are 0, as the wire has it.
    #[must_use]
    pub fn message(&self, envelope: Envelope) -> Telemetry {
        let bytes = |v: Option<u64>| {
            let sane = v.filter(|v| *v <= memory::MOST_BYTES);
            sane.and_then(|v| i64::try_from(v).ok()).unwrap_or(0)
        };
        let (rx, tx) = self.network.unzip();
        Telemetry {
            cpu_utilization_percent: self.cpu_percent.unwrap_or(0.0),
            gpu_status: self.sensors.gpu_status(),
            network_status: Some(NetworkStatus {
                rx_bytes_per_second: bytes(rx),
                tx_bytes_per_second: bytes(tx),
                control_rtt_ms: envelope.rtt_ms.filter(|r| r.is_finite()).unwrap_or(0.0),
            }),
            memory_used_bytes: bytes(self.memory.map(|m| m.used)),
            disk_used_bytes: bytes(self.disk.map(|d| d.used)),
            load1: self.load1.unwrap_or(0.0),
            temperatures: self
                .sensors
                .temperatures()
                .into_iter()
                .map(|(sensor, celsius)| Temperature { sensor, celsius })
                .collect(),
            uptime_ms: envelope.uptime_ms,
            sequence: envelope.sequence,
            dropped_total: envelope.dropped_total,
        }
    }
}

/// Takes samples; keeps what rates are computed from.
pub struct Sampler {
    root: PathBuf,
    data_dir: PathBuf,
    cpu: Option<CpuTimes>,
    network: Option<(Counters, Instant)>,
}

impl Sampler {
    /// Reads procfs under `root`, and the size of `data_dir`'s file system.
    #[must_use]
    pub fn new(root: &Path, data_dir: &Path) -> Self {
        Self {
            root: root.to_owned(),
            data_dir: data_dir.to_owned(),
            cpu: None,
            network: None,
        }
    }

    /// Looks at the node, beside what its sensors show. Rates are over the time since the call before;
    /// the first has none.
    pub fn sample(&mut self, now: Instant, sensors: Look) -> Sample {
        let proc = self.root.join("proc");
        Sample {
            cpu_percent: self.cpu_percent(&proc),
            memory: text(proc.join("meminfo")).and_then(|t| memory::parse(&t)),
            disk: disk(&self.data_dir),
            network: self.network_rates(&proc, now),
            load1: text(proc.join("loadavg")).and_then(|t| cpu::parse_load1(&t)),
            sensors,
        }
    }

    fn cpu_percent(&mut self, proc: &Path) -> Option<f32> {
        let now = text(proc.join("stat")).and_then(|t| cpu::parse_stat(&t))?;
        let before = self.cpu.replace(now)?;
        now.percent_since(before)
    }

    fn network_rates(&mut self, proc: &Path, now: Instant) -> Option<(u64, u64)> {
        let counters = network::parse(&text(proc.join("net/dev"))?);
        let before = self.network.replace((counters.clone(), now));
        let (before, then) = before?;
        network::rates(&before, &counters, now.saturating_duration_since(then))
    }
}

#[cfg(test)]
mod tests;
