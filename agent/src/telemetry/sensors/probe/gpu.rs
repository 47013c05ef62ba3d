//! The GPU of a board: load, clock, and its share of the unified memory.

use crate::telemetry::memory;
use crate::telemetry::sensors::board::{Found, Parse};
use crate::telemetry::sensors::files::{Files, hertz, scaled, switch};
use crate::telemetry::sensors::look::{GpuNow, Process};
use crate::telemetry::sensors::metric as m;

const DEVFREQ: &str = "/sys/class/devfreq";
/// What the driver calls the GPUs of Xavier, TX2 and Orin where it does not say `gpu`.
const CHIPS: [&str; 3] = ["gv11b", "gp10b", "ga10b"];
/// What Thor calls the parts of its GPU that have clocks of their own.
const DOMAIN: [&str; 2] = ["gpu-gpc", "gpu-nvd"];
/// Where the GPU is where it has no entry in devfreq: Nano and Xavier with old kernels.
const ALIASES: [&str; 2] = ["/sys/devices/gpu.0", "/sys/devices/platform/gpu.0"];
/// Who has mapped memory for the GPU. For root alone.
const CLIENTS: &str = "/sys/kernel/debug/nvmap/iovmm/clients";
const MEMINFO: &str = "/proc/meminfo";
/// Most processes that are told.
const MOST_PROCESSES: usize = 64;

/// GPUs without a bus have no uuid of their own; these words make one that is the same after each
/// start.
pub const UUID_PREFIX: &str = "tegra-";

pub fn find(files: &Files, found: &mut Found) {
    let entries = files.entries(DEVFREQ, "");
    let gpus = entries.iter().filter(|entry| is_gpu(files, entry));
    let mut names: Vec<&str> = gpus.map(String::as_str).collect();
    for name in &names {
        let folder = format!("{DEVFREQ}/{name}");
        device(found, name, &format!("{folder}/device"));
        for (metric, file) in [
            (&m::GPU_CLOCK, "cur_freq"),
            (&m::GPU_CLOCK_MAX, "max_freq"),
            (&m::GPU_CLOCK_MIN, "min_freq"),
        ] {
            let path = format!("{folder}/{file}");
            let labels = [("gpu", *name), ("clock", "graphics")];
            found.add(metric, &labels, &[], &[&path], |t| hertz(&t[0]));
        }
    }
    if names.is_empty()
        && let Some(alias) = ALIASES.iter().find(|a| files.exists(&format!("{a}/load")))
    {
        device(found, "gpu.0", alias);
        names.push("gpu.0");
    }
    // Thor shows its domains one by one: they are one GPU.
    let Some(first) = names.first() else { return };
    found.gpu = Some((*first).to_owned());
    // Chosen by what they hold: many kernels have no such line.
    let used: [(&str, Parse); 2] = [
        (CLIENTS, |t| mapped(&t[0]).map(bytes)),
        (MEMINFO, |t| memory::field(&t[0], "NvMapMemUsed").map(bytes)),
    ];
    let used = used.into_iter().find(|(path, parse)| {
        let text = files.text(path);
        text.is_some_and(|text| parse(&[text]).is_some())
    });
    if let Some((path, parse)) = used {
        let labels = [("gpu", *first)];
        found.add(&m::GPU_MEMORY_USED, &labels, &[], &[path], parse);
    }
    if !is_nvidia(files, first) {
        return;
    }
    let memory = files.text(MEMINFO).and_then(|t| memory::parse(&t));
    found.gpus.push(GpuNow {
        uuid: format!("{UUID_PREFIX}{first}"),
        model: files
            .name("/proc/device-tree/model")
            .unwrap_or_else(|| "Tegra".to_owned()),
        memory_bytes: memory.map(|m| m.total),
        measured_as: (*first).to_owned(),
    });
}

/// By its own name, or by what the device tree calls it.
fn is_gpu(files: &Files, entry: &str) -> bool {
    let named = |text: &str| text.contains("gpu") || CHIPS.iter().any(|chip| text.contains(chip));
    named(entry)
        || files
            .name(&format!("{DEVFREQ}/{entry}/device/of_node/name"))
            .is_some_and(|name| named(&name))
}

/// Others' boards have a GPU too, which no container of ours could use: NVIDIA's driver is known by
/// its files.
fn is_nvidia(files: &Files, entry: &str) -> bool {
    let files_of_driver = [
        "load",
        "railgate_enable",
        "enable_3d_scaling",
        "tpc_pg_mask",
    ];
    let mut there = files_of_driver.iter();
    DOMAIN.iter().any(|domain| entry.starts_with(domain))
        || ALIASES.iter().any(|alias| alias.ends_with(entry))
        || there.any(|file| files.exists(&format!("{DEVFREQ}/{entry}/device/{file}")))
}

fn device(found: &mut Found, name: &str, folder: &str) {
    let load = format!("{folder}/load");
    // Of Thor's domains some tell percent, and no file says which: nothing is better than a tenth of
    // the truth, and there NVML tells the load.
    if !DOMAIN.iter().any(|domain| name.starts_with(domain)) {
        found.add(&m::GPU_UTILIZATION, &[("gpu", name)], &[], &[&load], |t| {
            scaled(&t[0], 1e-3, 0.0, 1.0)
        });
    }
    for (metric, file) in [
        (&m::GPU_RAILGATE, "railgate_enable"),
        (&m::GPU_3D_SCALING, "enable_3d_scaling"),
    ] {
        let path = format!("{folder}/{file}");
        found.add(metric, &[("gpu", name)], &[], &[&path], |t| switch(&t[0]));
    }
}

/// Processes that have mapped memory for the GPU.
pub fn processes(files: &Files, gpu: &str) -> Vec<Process> {
    let text = files.text(CLIENTS).unwrap_or_default();
    let clients = text.lines().filter_map(|line| {
        // CLIENT PROCESS PID SIZE; a name may hold blanks.
        let mut words = line.split_ascii_whitespace().rev();
        let (size, pid) = (words.next()?, words.next()?);
        Some(Process {
            gpu: gpu.to_owned(),
            pid: pid.parse().ok()?,
            memory_bytes: Some(size_of(size)?),
        })
    });
    clients.take(MOST_PROCESSES).collect()
}

/// The line of all clients together, bytes.
fn mapped(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.trim().strip_prefix("total"))?;
    size_of(line.trim())
}

/// `4904K` or a plain number of bytes.
fn size_of(text: &str) -> Option<u64> {
    match text.strip_suffix('K') {
        Some(kib) => kib.parse::<u64>().ok()?.checked_mul(1024),
        None => text.parse().ok(),
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "bytes of memory: exact up to 8 PiB"
)]
fn bytes(bytes: u64) -> f64 {
    bytes as f64
}
