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
    started(Nvml::init())
}

fn started(nvml: Result<Nvml, NvmlError>) -> Result<Box<dyn Driver>, String> {
    match nvml {
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
    use std::path::Path;
    use std::process::Command;

    use nvml_wrapper::bitmasks::device::ThrottleReasons as R;

    use super::super::THROTTLE_REASONS;
    use super::*;

    /// A library that stands in for NVIDIA's, compiled with these settings (testdata/nvml.c); none for
    /// programs of another machine, as there is no compiler for them here.
    fn library(settings: &[&str]) -> Option<(Box<dyn Driver>, tempfile::TempDir)> {
        let native = Command::new("uname").arg("-m").output().unwrap().stdout;
        if String::from_utf8_lossy(&native).trim() != std::env::consts::ARCH {
            println!(
                "SKIPPED: nvml: it needs a C compiler for {}",
                std::env::consts::ARCH
            );
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("libnvidia-ml.so.1");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/nvml.c");
        // What links Rust's programs.
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"])
            .args([&path, &source])
            .args(settings)
            .status();
        assert!(compiled.unwrap().success());
        let nvml = Nvml::builder().lib_path(path.as_os_str()).init();
        Some((started(nvml).unwrap(), dir))
    }

    #[test]
    fn what_a_library_says_arrives_with_its_units() {
        let Some((mut driver, _dir)) = library(&[]) else {
            return;
        };
        let gpus = driver.read(true).unwrap();
        let [whole, mute] = &gpus[..] else {
            panic!("{gpus:?}");
        };
        let gib = |n: u64| n << 30;
        let clock = |part, n: u32| (part, Some(1000 + n), Some(2000 + n));
        let part = "MIG-11111111-2222-3333-4444-555555555555";
        let expected = Raw {
            uuid: Some("GPU-11111111-2222-3333-4444-555555555555".to_owned()),
            name: Some("NVIDIA A100-SXM4-80GB".to_owned()),
            busy: Some(97),
            memory_busy: Some(41),
            memory: Some((gib(1), gib(80))),
            celsius: Some(64),
            power: Some(311_250),
            throttle: Some(0x44),
            slow: Some(Slow {
                power_limit: Some(400_000),
                energy: Some(5_000_000_000),
                clocks: vec![
                    clock("graphics", 0),
                    clock("sm", 1),
                    clock("memory", 2),
                    clock("video", 3),
                ],
                ecc: Some(true),
                ecc_corrected: Some(17),
                ecc_uncorrected: Some(0),
                mig: Some(true),
                instances: vec![(
                    Some(part.to_owned()),
                    Some("NVIDIA A100-SXM4-80GB MIG 1g.10gb".to_owned()),
                    Some(gib(10)),
                )],
                processes: Some(vec![(4711, Some(gib(1) / 2)), (4712, None)]),
            }),
        };
        assert_eq!(*whole, expected);
        let nothing = Raw {
            slow: mute.slow.clone(),
            ..Raw::default()
        };
        assert_eq!(*mute, nothing, "each call stands for itself");
        let slow = mute.slow.as_ref().unwrap();
        assert_eq!(
            (slow.energy, slow.mig, &slow.processes),
            (None, None, &None)
        );
        let gpus = driver.read(false).unwrap();
        assert!(gpus[0].busy == Some(97) && gpus[0].slow.is_none());
    }

    #[test]
    fn an_old_library_tells_what_it_knows() {
        let Some((mut driver, _dir)) = library(&["-DOLD"]) else {
            return;
        };
        let gpus = driver.read(true).unwrap();
        assert_eq!((gpus[0].memory, gpus[0].busy), (None, Some(97)));
        let slow = gpus[0].slow.as_ref().unwrap();
        assert_eq!((&slow.processes, slow.energy), (&None, Some(5_000_000_000)));
    }

    #[test]
    fn a_driver_that_has_gone_is_an_error_so_that_the_library_is_loaded_anew() {
        // NVML_ERROR_UNINITIALIZED, _DRIVER_NOT_LOADED, _LIB_RM_VERSION_MISMATCH.
        for gone in ["-DGONE=1", "-DGONE=9", "-DGONE=18"] {
            let Some((mut driver, _dir)) = library(&[gone]) else {
                return;
            };
            assert!(driver.read(false).is_err(), "{gone}");
        }
    }

    #[test]
    fn no_room_is_made_for_more_processes_than_there_can_be() {
        let Some((mut driver, _dir)) = library(&["-DCROWD"]) else {
            return;
        };
        let gpus = driver.read(true).unwrap();
        assert_eq!(gpus[0].slow.as_ref().unwrap().processes, None);
    }

    #[test]
    fn a_library_that_is_none_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("libnvidia-ml.so.1");
        for content in ["", "not a library"] {
            std::fs::write(&path, content).unwrap();
            let nvml = Nvml::builder().lib_path(path.as_os_str()).init();
            assert!(started(nvml).is_err());
        }
    }

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
