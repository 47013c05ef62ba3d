//! The library itself. Nothing here judges what it says.

use nvml_wrapper::enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use super::{Driver, Raw, Slow};

/// More processes than that on one GPU are a count that can't be trusted: the library would make
/// room for them.
const MOST_PROCESSES: u32 = 16_384;
/// Most parts that a GPU can be divided into, several times over.
const MOST_INSTANCES: u32 = 64;

/// Loads the library (`libnvidia-ml.so.1`), which starts the driver.
///
/// # Errors
/// It is not there, or the driver does not work. For people.
pub fn load() -> Result<Box<dyn Driver>, String> {
    match Nvml::init() {
        Ok(nvml) => Ok(Box::new(Loaded(nvml))),
        Err(e) => Err(e.to_string()),
    }
}

struct Loaded(Nvml);

impl Driver for Loaded {
    fn read(&mut self, slow: bool) -> Result<Vec<Raw>, String> {
        let count = self.0.device_count().map_err(|e| e.to_string())?;
        let mut gpus = Vec::new();
        for index in 0..count.min(1024) {
            let device = match self.0.device_by_index(index) {
                Ok(device) => device,
                Err(e) if is_gone(&e) => return Err(e.to_string()),
                Err(_) => {
                    gpus.push(Raw::default());
                    continue;
                }
            };
            let mut raw = read(&device);
            raw.slow = slow.then(|| read_slow(&device));
            gpus.push(raw);
        }
        Ok(gpus)
    }
}

/// The driver was unloaded or replaced under the library, which will not notice by itself.
fn is_gone(e: &NvmlError) -> bool {
    matches!(
        e,
        NvmlError::Uninitialized | NvmlError::DriverNotLoaded | NvmlError::LibRmVersionMismatch
    )
}

fn read(device: &Device<'_>) -> Raw {
    let rates = device.utilization_rates().ok();
    let memory = device.memory_info().ok();
    Raw {
        uuid: device.uuid().ok(),
        name: device.name().ok(),
        busy: rates.as_ref().map(|r| r.gpu),
        memory_busy: rates.as_ref().map(|r| r.memory),
        memory: memory.map(|m| (m.used, m.total)),
        celsius: device.temperature(TemperatureSensor::Gpu).ok(),
        power: device.power_usage().ok(),
        throttle: device.current_throttle_reasons().ok().map(|r| r.bits()),
        slow: None,
    }
}

fn read_slow(device: &Device<'_>) -> Slow {
    let clocks = [
        ("graphics", Clock::Graphics),
        ("sm", Clock::SM),
        ("memory", Clock::Memory),
        ("video", Clock::Video),
    ];
    let ecc = |kind| device.total_ecc_errors(kind, EccCounter::Volatile).ok();
    let mig = device.mig_mode().ok().map(|mode| mode.current == 1);
    Slow {
        power_limit: device.enforced_power_limit().ok(),
        energy: device.total_energy_consumption().ok(),
        clocks: clocks
            .map(|(part, clock)| {
                let now = device.clock_info(clock).ok();
                (part, now, device.max_clock_info(clock).ok())
            })
            .to_vec(),
        ecc: device
            .is_ecc_enabled()
            .ok()
            .map(|ecc| ecc.currently_enabled),
        ecc_corrected: ecc(MemoryError::Corrected),
        ecc_uncorrected: ecc(MemoryError::Uncorrected),
        mig,
        instances: if mig == Some(true) {
            instances(device)
        } else {
            Vec::new()
        },
        processes: processes(device),
    }
}

fn instances(device: &Device<'_>) -> Vec<(Option<String>, Option<String>, Option<u64>)> {
    let most = device.mig_device_count().unwrap_or(0).min(MOST_INSTANCES);
    let instances = (0..most).filter_map(|index| {
        let part = device.mig_device_by_index(index).ok()?;
        let memory = part.memory_info().ok().map(|m| m.total);
        Some((part.uuid().ok(), part.name().ok(), memory))
    });
    instances.collect()
}

fn processes(device: &Device<'_>) -> Option<Vec<(u32, Option<u64>)>> {
    let count = device.running_compute_processes_count().ok()?;
    if count > MOST_PROCESSES {
        return None;
    }
    let processes = device.running_compute_processes().ok()?;
    let processes = processes.into_iter().map(|p| {
        let bytes = match p.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        };
        (p.pid, bytes)
    });
    Some(processes.collect())
}

#[cfg(test)]
mod tests {
    use nvml_wrapper::bitmasks::device::ThrottleReasons as R;

    use super::super::THROTTLE_REASONS;

    #[test]
    fn the_bits_of_throttling_are_those_of_the_library() {
        let bits = [
            R::SW_POWER_CAP,
            R::HW_SLOWDOWN,
            R::SYNC_BOOST,
            R::SW_THERMAL_SLOWDOWN,
            R::HW_THERMAL_SLOWDOWN,
            R::HW_POWER_BRAKE_SLOWDOWN,
        ];
        assert_eq!(THROTTLE_REASONS.map(|(bit, _)| bit), bits.map(|r| r.bits()));
    }
}
