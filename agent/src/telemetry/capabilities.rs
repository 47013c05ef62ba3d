//! What a node has: told at enrolment and at each connection.

use std::collections::BTreeMap;
use std::path::Path;

use hyperion_placement::model::normalize_arch;
use hyperion_proto::agent_v1::NodeCapabilities;

use super::sensors::Look;
use super::{cpu, disk, memory, text};

/// What the node keeps for itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reserved {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    /// Bytes.
    pub memory_bytes: u64,
}

/// Name of the host, for people.
#[must_use]
pub fn hostname(root: &Path) -> String {
    text(root.join("proc/sys/kernel/hostname"))
        .map(|t| t.trim().to_owned())
        .filter(|t| !t.is_empty())
        .unwrap_or_else(|| "unknown".to_owned())
}

/// Reads what the node has. What can't be read is 0 or empty, and attracts no work.
#[must_use]
pub fn capabilities(
    root: &Path,
    data_dir: &Path,
    reserved: Reserved,
    labels: &BTreeMap<String, String>,
    sensors: &Look,
) -> NodeCapabilities {
    let cores = text(root.join("proc/stat")).map_or(0, |t| cpu::count_cores(&t));
    let cpu_millis = u64::try_from(cores).unwrap_or(0).saturating_mul(1000);
    let memory = text(root.join("proc/meminfo"))
        .and_then(|t| memory::parse(&t))
        .map_or(0, |m| m.total);
    let signed = |v: u64| i64::try_from(v).unwrap_or(i64::MAX);
    let mut labels: std::collections::HashMap<String, String> =
        labels.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    labels
        .entry("kubernetes.io/hostname".to_owned())
        .or_insert_with(|| hostname(root));
    for (label, fact) in BOARD_LABELS {
        if let Some(value) = sensors.fact(fact).and_then(label_value) {
            labels.entry(label.to_owned()).or_insert(value);
        }
    }
    NodeCapabilities {
        cpu_arch: normalize_arch(std::env::consts::ARCH).to_owned(),
        memory_bytes: signed(memory.saturating_sub(reserved.memory_bytes)),
        gpus: sensors.gpu_list(),
        labels,
        cpu_millis: signed(cpu_millis.saturating_sub(reserved.cpu_millis)),
        disk_bytes: signed(disk(data_dir).map_or(0, |d| d.total)),
        os: text(root.join("etc/os-release"))
            .and_then(|t| os_name(&t))
            .unwrap_or_else(|| std::env::consts::OS.to_owned()),
        kernel: text(root.join("proc/sys/kernel/osrelease"))
            .map(|t| t.trim().to_owned())
            .unwrap_or_default(),
        container_runtime: String::new(),
    }
}

/// What is told of a board once, as labels that workloads can ask for.
const BOARD_LABELS: [(&str, &str); 4] = [
    ("hyperion.io/board", "board_model"),
    ("hyperion.io/soc", "board_soc"),
    ("hyperion.io/serial", "board_serial"),
    ("hyperion.io/l4t", "l4t_release"),
];

/// A text as the value of a label: at most 63 letters, digits, `-`, `_` and `.`.
fn label_value(text: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let value: String = text
        .chars()
        .map(|c| if plain(c) { c } else { '-' })
        .take(63)
        .collect();
    let value = value.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    (!value.is_empty()).then(|| value.to_owned())
}

/// `PRETTY_NAME` of os-release.
fn os_name(text: &str) -> Option<String> {
    let value = text.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim_matches('"').to_owned())
}
