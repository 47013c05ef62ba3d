//! Live telemetry: the last values of a node, and a short history for sparklines.

use std::collections::VecDeque;

use hyperion_api::fleet::ScorerStatus;
use serde::{Deserialize, Serialize};

/// Samples kept per node, one a second: two minutes, the width of a wide terminal.
pub const HISTORY: usize = 120;

/// GPUs of one node that are kept.
const MAX_GPUS: usize = 64;

/// Values older than this are shown as stale.
pub const STALE_MS: i64 = 10_000;

/// Answer of the fleet API, read leniently: JSON has no NaN, so a sensor that reports nonsense
/// arrives as null and must not cost the other nodes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LiveAnswer {
    /// Ask with this the next time.
    pub version: u64,
    /// Nodes that changed.
    pub nodes: Vec<LiveSample>,
    /// Who decides.
    pub scorer: ScorerStatus,
}

/// One node's values as they arrive.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LiveSample {
    /// Node id.
    pub id: String,
    /// Its stream is open.
    pub connected: bool,
    /// Milliseconds since its last message.
    pub age_ms: u64,
    /// Percent of all cores.
    pub cpu_percent: Option<f32>,
    /// Bytes.
    pub memory_used_bytes: u64,
    /// Bytes.
    pub memory_total_bytes: u64,
    /// Bytes.
    pub disk_used_bytes: u64,
    /// One-minute load average.
    pub load1: Option<f32>,
    /// Bytes per second.
    pub rx_bytes_per_second: u64,
    /// Bytes per second.
    pub tx_bytes_per_second: u64,
    /// Round trip to the control plane.
    pub rtt_ms: Option<f32>,
    /// Hottest sensor.
    pub max_celsius: Option<f32>,
    /// Per GPU, percent.
    pub gpu_percent: Vec<Option<f32>>,
    /// Telemetry and events that the agent had to drop.
    pub dropped_total: u64,
}

/// Last values of a node. Nonsense is NaN, which everything downstream shows as a dash.
#[derive(Debug, Clone, PartialEq)]
pub struct Live {
    /// Its stream is open.
    pub connected: bool,
    /// Time of its last message.
    pub at_ms: i64,
    /// Percent of all cores.
    pub cpu: f32,
    /// Bytes.
    pub memory_used: u64,
    /// Bytes.
    pub memory_total: u64,
    /// Bytes.
    pub disk_used: u64,
    /// One-minute load average.
    pub load1: f32,
    /// Bytes per second.
    pub rx: u64,
    /// Bytes per second.
    pub tx: u64,
    /// Milliseconds.
    pub rtt_ms: f32,
    /// Hottest sensor.
    pub celsius: Option<f32>,
    /// Per GPU, percent.
    pub gpus: Vec<f32>,
    /// Dropped by the agent.
    pub dropped: u64,
    /// What sparklines show, oldest first.
    pub history: VecDeque<Sample>,
}

/// One second of history.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Percent, 0 to 100; 255 for unknown.
    pub cpu: u8,
    /// Percent, 0 to 100; 255 for unknown.
    pub memory: u8,
    /// Percent, 0 to 100; 255 for unknown.
    pub gpu: u8,
    /// Bytes per second, received.
    pub rx: f32,
    /// Bytes per second, sent.
    pub tx: f32,
}

/// Nonsense (absent, NaN, infinite, negative) as NaN.
fn sane(value: Option<f32>) -> f32 {
    match value {
        Some(v) if v.is_finite() && v >= 0.0 => v,
        _ => f32::NAN,
    }
}

fn whole_percent(value: f32) -> u8 {
    if value.is_finite() {
        value.clamp(0.0, 100.0) as u8
    } else {
        u8::MAX
    }
}

impl Default for Live {
    fn default() -> Self {
        Self {
            connected: false,
            at_ms: 0,
            cpu: f32::NAN,
            memory_used: 0,
            memory_total: 0,
            disk_used: 0,
            load1: f32::NAN,
            rx: 0,
            tx: 0,
            rtt_ms: f32::NAN,
            celsius: None,
            gpus: Vec::new(),
            dropped: 0,
            history: VecDeque::new(),
        }
    }
}

impl Live {
    /// Takes a sample that arrived at `now_ms`. In place: ten thousand nodes send one a second.
    pub fn take(&mut self, sample: &LiveSample, now_ms: i64) {
        let age = i64::try_from(sample.age_ms).unwrap_or(i64::MAX);
        self.connected = sample.connected;
        self.at_ms = now_ms.saturating_sub(age);
        self.cpu = sane(sample.cpu_percent);
        self.memory_used = sample.memory_used_bytes;
        self.memory_total = sample.memory_total_bytes;
        self.disk_used = sample.disk_used_bytes;
        self.load1 = sane(sample.load1);
        self.rx = sample.rx_bytes_per_second;
        self.tx = sample.tx_bytes_per_second;
        self.rtt_ms = sane(sample.rtt_ms);
        self.celsius = sample.max_celsius.filter(|c| c.is_finite());
        self.gpus.clear();
        let gpus = sample.gpu_percent.iter().take(MAX_GPUS);
        self.gpus.extend(gpus.map(|g| sane(*g)));
        self.dropped = sample.dropped_total;
        while self.history.len() >= HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(Sample {
            cpu: whole_percent(self.cpu),
            memory: whole_percent(self.memory_percent()),
            gpu: whole_percent(self.gpu_percent()),
            rx: self.rx as f32,
            tx: self.tx as f32,
        });
    }

    /// Memory in use, percent; NaN where the total is not known.
    #[must_use]
    pub fn memory_percent(&self) -> f32 {
        if self.memory_total == 0 {
            return f32::NAN;
        }
        (self.memory_used as f64 / self.memory_total as f64 * 100.0) as f32
    }

    /// Mean over the GPUs, percent; NaN without one.
    #[must_use]
    pub fn gpu_percent(&self) -> f32 {
        let (sum, count) = self
            .gpus
            .iter()
            .filter(|g| g.is_finite())
            .fold((0.0, 0u16), |(s, n), g| (s + g, n + 1));
        if count == 0 {
            f32::NAN
        } else {
            sum / f32::from(count)
        }
    }

    /// Too old to be believed.
    #[must_use]
    pub fn is_stale(&self, now_ms: i64) -> bool {
        !self.connected || now_ms.saturating_sub(self.at_ms) > STALE_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_fleet_api_says_of_who_decides_is_read() {
        let sent = hyperion_api::fleet::LiveFleet {
            scorer: ScorerStatus {
                decides: "rules".to_owned(),
                refused: "the file is truncated".to_owned(),
                ..ScorerStatus::default()
            },
            ..Default::default()
        };
        let json = serde_json::to_string(&sent).unwrap();
        let read: LiveAnswer = serde_json::from_str(&json).unwrap();
        assert_eq!(read.scorer, sent.scorer);
        // A control plane of an older release says nothing of it.
        let read: LiveAnswer = serde_json::from_str(r#"{"version": 1, "nodes": []}"#).unwrap();
        assert_eq!(read.scorer.decides, "");
    }

    #[test]
    fn nonsense_from_a_sensor_is_unknown_and_costs_nothing_else() {
        let json = r#"{"version":7,"nodes":[{"id":"a","cpuPercent":null,"gpuPercent":[null,50.0],
            "rttMs":-3.0,"memoryUsedBytes":5,"somethingNew":1},{"id":"b","cpuPercent":12.5}]}"#;
        let answer: LiveAnswer = serde_json::from_str(json).unwrap();
        let (mut a, mut b) = (Live::default(), Live::default());
        a.take(&answer.nodes[0], 1000);
        assert!(a.cpu.is_nan() && a.rtt_ms.is_nan() && a.memory_percent().is_nan());
        assert_eq!(a.gpu_percent(), 50.0);
        assert_eq!(a.history[0].cpu, u8::MAX);
        b.take(&answer.nodes[1], 0);
        assert_eq!(b.cpu, 12.5);
    }

    #[test]
    fn history_is_bounded() {
        let mut live = Live::default();
        for i in 0..500 {
            let sample = LiveSample {
                cpu_percent: Some(i as f32),
                ..Default::default()
            };
            live.take(&sample, i64::from(i));
        }
        assert_eq!(live.history.len(), HISTORY);
    }
}
