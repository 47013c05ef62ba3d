//! GPUs with NVIDIA's driver, through its management library.
//!
//! The library is loaded at run time and comes and goes with the driver: that it is not there, or
//! does not work, is a state that is told, and it is tried again. What it says is not believed
//! blindly: a number that can't be is left out, and each call stands for itself.

mod driver;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::driver::load;
use super::files::name_of;
use super::look::{GpuNow, LeftOut, Look, Process, Reading, Sensor};
use super::metric::{self as m, Metric};

/// Time between two tries to load the library: a driver is reloaded within seconds, seldom.
const AGAIN: Duration = Duration::from_secs(30);
/// Time between two reads of what changes slowly.
const SLOW: Duration = Duration::from_secs(5);
/// Most GPUs of a machine.
const MOST: usize = 64;
/// Most processes of a GPU that are told one by one.
const MOST_PROCESSES: usize = 64;

/// Why a GPU's clocks are held down: NVML's bit, and DCGM's word.
pub const THROTTLE_REASONS: [(u64, &str); 6] = [
    (0x04, "sw_power_cap"),
    (0x08, "hw_slowdown"),
    (0x10, "sync_boost"),
    (0x20, "sw_thermal"),
    (0x40, "hw_thermal"),
    (0x80, "hw_power_brake"),
];

/// One GPU as the library tells of it, unchecked; none where a call failed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Raw {
    /// Names it for good.
    pub uuid: Option<String>,
    /// Model.
    pub name: Option<String>,
    /// Percent.
    pub busy: Option<u32>,
    /// Percent.
    pub memory_busy: Option<u32>,
    /// Bytes, in use and all.
    pub memory: Option<(u64, u64)>,
    /// Degrees.
    pub celsius: Option<u32>,
    /// Milliwatts.
    pub power: Option<u32>,
    /// Bits.
    pub throttle: Option<u64>,
    /// What is asked for seldom; none where it was not.
    pub slow: Option<Slow>,
}

/// What changes slowly.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slow {
    /// Milliwatts.
    pub power_limit: Option<u32>,
    /// Millijoules.
    pub energy: Option<u64>,
    /// Part, megahertz now, megahertz at most.
    pub clocks: Vec<(&'static str, Option<u32>, Option<u32>)>,
    /// Whether errors are corrected.
    pub ecc: Option<bool>,
    /// Since the driver was loaded.
    pub ecc_corrected: Option<u64>,
    /// Since the driver was loaded.
    pub ecc_uncorrected: Option<u64>,
    /// Whether the GPU is divided.
    pub mig: Option<bool>,
    /// What it is divided into: uuid, model, bytes.
    pub instances: Vec<(Option<String>, Option<String>, Option<u64>)>,
    /// Process id and bytes.
    pub processes: Option<Vec<(u32, Option<u64>)>>,
}

/// The library, loaded.
pub trait Driver {
    /// Asks for all GPUs, `slow` for everything.
    ///
    /// # Errors
    /// The library or the driver behind it is gone: it is to be loaded anew. For people.
    fn read(&mut self, slow: bool) -> Result<Vec<Raw>, String>;
}

/// A way to load the library; fails with a reason for people.
pub type Load = fn() -> Result<Box<dyn Driver>, String>;

/// The GPUs of a machine.
pub struct Gpus {
    load: Box<dyn FnMut() -> Result<Box<dyn Driver>, String>>,
    driver: Option<Box<dyn Driver>>,
    tried: Option<Instant>,
    why: String,
    read_slow: Option<Instant>,
    slow: Look,
}

impl Gpus {
    /// With a library that is loaded by `load`, at the first look.
    pub fn new(load: impl FnMut() -> Result<Box<dyn Driver>, String> + 'static) -> Self {
        Self {
            load: Box::new(load),
            driver: None,
            tried: None,
            why: String::new(),
            read_slow: None,
            slow: Look::default(),
        }
    }

    /// Reads all GPUs.
    pub fn look(&mut self, now: Instant) -> Look {
        let due = |since: Option<Instant>, time| {
            since.is_none_or(|at| now.saturating_duration_since(at) >= time)
        };
        if self.driver.is_none() && due(self.tried, AGAIN) {
            self.tried = Some(now);
            match (self.load)() {
                Ok(driver) => {
                    self.driver = Some(driver);
                    self.read_slow = None;
                }
                Err(why) => self.why = why,
            }
        }
        let slow = due(self.read_slow, SLOW);
        match self.driver.as_mut().map(|driver| driver.read(slow)) {
            Some(Ok(raw)) => {
                if slow {
                    self.read_slow = Some(now);
                    self.slow = Look::default();
                }
                self.take(&raw)
            }
            Some(Err(why)) => {
                // Loaded anew not at once: a driver that is being replaced needs a while.
                self.driver = None;
                self.tried = Some(now);
                self.slow = Look::default();
                self.why = why;
                self.nothing()
            }
            None => self.nothing(),
        }
    }

    fn nothing(&self) -> Look {
        Look {
            left_out: vec![LeftOut {
                what: "nvml".to_owned(),
                why: self.why.clone(),
            }],
            ..Look::default()
        }
    }

    fn take(&mut self, raw: &[Raw]) -> Look {
        let mut look = Look::default();
        let mut seen = BTreeSet::new();
        for (number, raw) in raw.iter().take(MOST).enumerate() {
            let uuid = raw.uuid.as_deref().and_then(name_of);
            let Some(uuid) = uuid.filter(|uuid| seen.insert(uuid.clone())) else {
                look.left_out.push(LeftOut {
                    what: format!("nvml: GPU {number}"),
                    why: "it does not answer, or not with a uuid of its own".to_owned(),
                });
                continue;
            };
            fast(raw, &uuid, &mut look);
            if let Some(slow) = &raw.slow {
                slowly(raw, slow, &uuid, &mut self.slow);
            }
        }
        look.add(self.slow.clone());
        look
    }
}

/// Sensible numbers of one call each.
struct Numbers<'a> {
    gpu: &'a str,
    look: &'a mut Look,
}

impl Numbers<'_> {
    /// In the metric's unit; left out where it is beyond `most`.
    fn add(
        &mut self,
        metric: &'static Metric,
        more: Option<(&'static str, &str)>,
        call: &str,
        value: Option<f64>,
        most: f64,
    ) {
        let Some(value) = value.filter(|v| (0.0..=most).contains(v)) else {
            return;
        };
        let mut labels = vec![("gpu", self.gpu.to_owned())];
        labels.extend(more.map(|(name, value)| (name, value.to_owned())));
        self.look.readings.push(Reading {
            sensor: Arc::new(Sensor {
                metric,
                labels,
                source: vec![format!("nvmlDeviceGet{call}")],
                named_by: Vec::new(),
            }),
            value,
        });
    }
}

/// Most that a number of NVML can be: a tebibyte of memory is near, a petabyte is not.
const MOST_BYTES: f64 = 1e15;
const MOST_WATTS: f64 = 10_000.0;
const MOST_HERTZ: f64 = 1e11;
const MOST_COUNT: f64 = 1e15;

fn fast(raw: &Raw, gpu: &str, look: &mut Look) {
    let mut n = Numbers { gpu, look };
    let percent = |p: Option<u32>| p.map(|p| f64::from(p) / 100.0);
    let rates = "UtilizationRates";
    n.add(&m::GPU_UTILIZATION, None, rates, percent(raw.busy), 1.0);
    let memory_busy = percent(raw.memory_busy);
    n.add(&m::GPU_MEMORY_UTILIZATION, None, rates, memory_busy, 1.0);
    if let Some((used, total)) = raw.memory.filter(|(used, total)| used <= total) {
        let call = "MemoryInfo_v2";
        n.add(
            &m::GPU_MEMORY_USED,
            None,
            call,
            Some(float(used)),
            MOST_BYTES,
        );
        n.add(
            &m::GPU_MEMORY_TOTAL,
            None,
            call,
            Some(float(total)),
            MOST_BYTES,
        );
    }
    let celsius = raw.celsius.map(f64::from);
    n.add(&m::GPU_TEMPERATURE, None, "Temperature", celsius, 250.0);
    let watts = raw.power.map(|mw| f64::from(mw) / 1e3);
    n.add(&m::GPU_POWER, None, "PowerUsage", watts, MOST_WATTS);
    // A bit that nobody knows makes no number.
    for (bit, reason) in THROTTLE_REASONS {
        let on = raw
            .throttle
            .map(|bits| f64::from(u8::from(bits & bit != 0)));
        let label = Some(("reason", reason));
        n.add(
            &m::GPU_THROTTLED,
            label,
            "CurrentClocksThrottleReasons",
            on,
            1.0,
        );
    }
}

fn slowly(raw: &Raw, slow: &Slow, gpu: &str, look: &mut Look) {
    let model = raw.name.as_deref().and_then(name_of);
    let model = model.unwrap_or_else(|| "NVIDIA".to_owned());
    let instances: Vec<_> = slow.instances.iter().take(MOST).collect();
    {
        let mut n = Numbers { gpu, look };
        let limit = slow.power_limit.map(|mw| f64::from(mw) / 1e3);
        n.add(
            &m::GPU_POWER_LIMIT,
            None,
            "EnforcedPowerLimit",
            limit,
            MOST_WATTS,
        );
        let energy = slow.energy.map(|mj| float(mj) / 1e3);
        n.add(
            &m::GPU_ENERGY,
            None,
            "TotalEnergyConsumption",
            energy,
            MOST_COUNT,
        );
        for (part, clock, most) in &slow.clocks {
            let label = Some(("clock", *part));
            let hertz = |mhz: &Option<u32>| mhz.map(|mhz| f64::from(mhz) * 1e6);
            n.add(&m::GPU_CLOCK, label, "ClockInfo", hertz(clock), MOST_HERTZ);
            n.add(
                &m::GPU_CLOCK_MAX,
                label,
                "MaxClockInfo",
                hertz(most),
                MOST_HERTZ,
            );
        }
        let one = |on: Option<bool>| on.map(|on| f64::from(u8::from(on)));
        n.add(&m::GPU_ECC_ENABLED, None, "EccMode", one(slow.ecc), 1.0);
        for (kind, errors) in [
            ("corrected", slow.ecc_corrected),
            ("uncorrected", slow.ecc_uncorrected),
        ] {
            let label = Some(("type", kind));
            let errors = errors.map(float);
            n.add(
                &m::GPU_ECC_ERRORS,
                label,
                "TotalEccErrors",
                errors,
                MOST_COUNT,
            );
        }
        n.add(&m::GPU_MIG_ENABLED, None, "MigMode", one(slow.mig), 1.0);
        if slow.mig == Some(true) {
            let count = Some(float(instances.len() as u64));
            let call = "MigDeviceHandleByIndex";
            n.add(&m::GPU_MIG_INSTANCES, None, call, count, MOST_COUNT);
        }
        let running = slow.processes.as_ref().map(|p| float(p.len() as u64));
        let call = "ComputeRunningProcesses_v3";
        n.add(&m::GPU_PROCESSES, None, call, running, MOST_COUNT);
    }
    let processes = slow.processes.iter().flatten().take(MOST_PROCESSES);
    look.processes.extend(processes.map(|(pid, bytes)| Process {
        gpu: gpu.to_owned(),
        pid: *pid,
        memory_bytes: bytes.filter(|bytes| float(*bytes) <= MOST_BYTES),
    }));
    let sensible = |bytes: &u64| float(*bytes) <= MOST_BYTES;
    // A divided GPU can't be used as a whole: its instances are what replicas get.
    if slow.mig == Some(true) {
        for (uuid, name, bytes) in instances {
            let Some(uuid) = uuid.as_deref().and_then(name_of) else {
                continue;
            };
            if look.gpus.iter().any(|gpu| gpu.uuid == uuid) {
                continue;
            }
            let name = name.as_deref().and_then(name_of);
            look.gpus.push(GpuNow {
                uuid,
                model: name.unwrap_or_else(|| model.clone()),
                memory_bytes: bytes.filter(sensible),
                measured_as: gpu.to_owned(),
            });
        }
    } else {
        look.gpus.push(GpuNow {
            uuid: gpu.to_owned(),
            model,
            memory_bytes: raw.memory.map(|(_, total)| total).filter(sensible),
            measured_as: gpu.to_owned(),
        });
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "what is above fifteen digits is left out"
)]
fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests;
