//! What one look at all sensors gave.

use std::sync::Arc;

use hyperion_proto::agent_v1::{Gpu, GpuStatus};

use super::metric::{self, Metric};

/// Where a number comes from, and what it is called.
#[derive(Debug, PartialEq)]
pub struct Sensor {
    /// What is measured.
    pub metric: &'static Metric,
    /// Label and value.
    pub labels: Vec<(&'static str, String)>,
    /// Files that it is read from, or calls of NVML.
    pub source: Vec<String>,
    /// Files that name it, where some do.
    pub named_by: Vec<String>,
}

impl Sensor {
    /// Value of a label; empty where there is none.
    #[must_use]
    pub fn label(&self, name: &str) -> &str {
        let mut labels = self.labels.iter();
        labels.find(|(n, _)| *n == name).map_or("", |(_, v)| v)
    }
}

/// A number of a sensor; finite.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Whose.
    pub sensor: Arc<Sensor>,
    /// In the metric's unit.
    pub value: f64,
}

/// Something that is no number and seldom changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// What.
    pub name: &'static str,
    /// For people and labels; printable.
    pub value: String,
    /// Files that it is read from.
    pub source: Vec<String>,
}

/// A process on a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// The GPU's uuid.
    pub gpu: String,
    /// Process id, as the driver sees it.
    pub pid: u32,
    /// Bytes of the GPU's memory; none where the driver does not tell.
    pub memory_bytes: Option<u64>,
}

/// Why a part is left out that may answer the next time.
pub const LATE: &str = "takes too long";

/// Something that should be there and is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// File or part.
    pub what: String,
    /// For people.
    pub why: String,
}

/// A GPU that replicas can be given, and its state.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GpuNow {
    /// Names it in placements.
    pub uuid: String,
    /// For people.
    pub model: String,
    /// Bytes; none where it is not known.
    pub memory_bytes: Option<u64>,
    /// The GPU whose numbers are its own: itself, or the one that it is an instance of.
    pub measured_as: String,
}

/// All that sensors showed at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Look {
    /// Numbers.
    pub readings: Vec<Reading>,
    /// What is no number.
    pub facts: Vec<Fact>,
    /// Processes on GPUs.
    pub processes: Vec<Process>,
    /// GPUs.
    pub gpus: Vec<GpuNow>,
    /// What could not be read and should have been.
    pub left_out: Vec<LeftOut>,
}

/// Most temperatures of one message; servers show hundreds.
const MOST_TEMPERATURES: usize = 32;

impl Look {
    /// Adds another part of the same look. Where files show a GPU on the board, and NVML shows one, they
    /// are the same: its name is the one that is there without a driver too.
    pub fn add(&mut self, other: Self) {
        self.readings.extend(other.readings);
        self.facts.extend(other.facts);
        self.processes.extend(other.processes);
        self.left_out.extend(other.left_out);
        match (self.gpus.as_mut_slice(), other.gpus.as_slice()) {
            (_, []) => {}
            ([board], [gpu]) => board.measured_as.clone_from(&gpu.measured_as),
            _ => self.gpus = other.gpus,
        }
    }

    /// Whether a part has not answered in time.
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.left_out.iter().any(|left| left.why == LATE)
    }

    /// Value of a fact.
    #[must_use]
    pub fn fact(&self, name: &str) -> Option<&str> {
        let mut facts = self.facts.iter();
        facts.find(|f| f.name == name).map(|f| f.value.as_str())
    }

    /// Numbers of a metric.
    pub fn of<'a>(&'a self, metric: &'static Metric) -> impl Iterator<Item = &'a Reading> {
        self.readings
            .iter()
            .filter(move |r| std::ptr::eq(r.sensor.metric, metric))
    }

    /// Sensor and degrees, GPUs' too: what a node tells of its temperatures.
    #[must_use]
    pub fn temperatures(&self) -> Vec<(String, f32)> {
        let node = self.of(&metric::TEMPERATURE);
        let node = node.map(|r| (r.sensor.label("sensor").to_owned(), r.value));
        let gpus = self.of(&metric::GPU_TEMPERATURE);
        // A board's GPU has its zone among the node's.
        let own = gpus.filter(|r| r.sensor.named_by.is_empty());
        let own = own.map(|r| (format!("gpu/{}", r.sensor.label("gpu")), r.value));
        node.chain(own)
            .take(MOST_TEMPERATURES)
            .map(|(sensor, celsius)| (sensor, single(celsius)))
            .collect()
    }

    /// The whole board's power, watts.
    #[must_use]
    pub fn power_watts(&self) -> Option<f32> {
        self.of(&metric::POWER).next().map(|r| single(r.value))
    }

    /// Whether heat holds clocks down now, by the word of kernel or driver.
    #[must_use]
    pub fn throttled_by_heat(&self) -> bool {
        let gpus = self.of(&metric::GPU_THROTTLED);
        let mut gpus = gpus.filter(|r| r.sensor.label("reason").contains("thermal"));
        let mut cooling = self
            .of(&metric::COOLING)
            .filter(|r| slows_down(r.sensor.label("device")));
        gpus.any(|r| r.value > 0.0) || cooling.any(|r| r.value > 0.0)
    }

    /// GPUs as the control plane is told of them.
    #[must_use]
    pub fn gpu_list(&self) -> Vec<Gpu> {
        let gpus = self.gpus.iter().map(|gpu| Gpu {
            uuid: gpu.uuid.clone(),
            model: gpu.model.clone(),
            memory_bytes: gpu.memory_bytes.map_or(0, signed),
        });
        gpus.collect()
    }

    /// Their state; what is not known is 0, as the wire has it.
    #[must_use]
    pub fn gpu_status(&self) -> Vec<GpuStatus> {
        let statuses = self.gpus.iter().map(|gpu| {
            let value = |metric: &'static Metric| {
                let mut of = self.of(metric);
                let own = |r: &&Reading| r.sensor.label("gpu") == gpu.measured_as;
                of.find(own).map_or(0.0, |r| r.value)
            };
            #[expect(
                clippy::cast_possible_truncation,
                reason = "bytes of a GPU; the cast saturates"
            )]
            let memory_used_bytes = value(&metric::GPU_MEMORY_USED) as i64;
            GpuStatus {
                uuid: gpu.uuid.clone(),
                utilization_percent: single(value(&metric::GPU_UTILIZATION) * 100.0),
                memory_used_bytes,
                temperature_celsius: single(value(&metric::GPU_TEMPERATURE)),
                power_watts: single(value(&metric::GPU_POWER)),
            }
        });
        statuses.collect()
    }
}

/// Cooling devices that slow something down. Fans are cooling devices too.
fn slows_down(device: &str) -> bool {
    ["cpufreq", "devfreq", "throttle-alert"]
        .iter()
        .any(|word| device.contains(word))
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn single(value: f64) -> f32 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "bounded where it was read; the wire has single precision"
    )]
    {
        value as f32
    }
}
