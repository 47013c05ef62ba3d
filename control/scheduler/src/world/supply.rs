//! When spot instances could be had: `spot/availability__*.json`, `spot/preemption__*.json`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use hyperion_placement::model::Provider;
use serde::Deserialize;

use super::{DataError, Warning};

/// Folder of the traces and the price history.
pub const SPOT: &str = "spot";

/// Measured supply of one zone and type: whether an instance could be had (availability) or was
/// kept (preemption), tick by tick.
#[derive(Debug, Clone, PartialEq)]
pub struct SpotTrace {
    /// File name without its ending.
    pub name: String,
    /// Where it was measured.
    pub provider: Provider,
    /// In the provider's words, as `us-east-1a`.
    pub zone: String,
    /// Of a machine with a GPU.
    pub accelerated: bool,
    /// Hours of one tick.
    pub gap_hours: f64,
    /// Whether it gave instances.
    pub up: Vec<bool>,
    /// Times per hour of supply that the supply ended.
    pub reclaims_per_hour: f64,
}

impl SpotTrace {
    /// A trace; its rate of reclaims is counted.
    #[must_use]
    pub fn new(
        name: String,
        provider: Provider,
        zone: String,
        accelerated: bool,
        gap_hours: f64,
        up: Vec<bool>,
    ) -> Self {
        let drops = up.windows(2).filter(|w| w[0] && !w[1]).count();
        let hours = up.iter().filter(|up| **up).count() as f64 * gap_hours;
        Self {
            reclaims_per_hour: drops as f64 / hours.max(1.0),
            name,
            provider,
            zone,
            accelerated,
            gap_hours,
            up,
        }
    }

    /// Share of the time in which it gave instances.
    #[must_use]
    pub fn availability(&self) -> f64 {
        self.up.iter().filter(|up| **up).count() as f64 / self.up.len().max(1) as f64
    }
}

#[derive(Deserialize)]
struct File {
    metadata: Metadata,
    data: Vec<f64>,
}

#[derive(Deserialize)]
struct Metadata {
    gap_seconds: f64,
}

/// All traces by name; none where there is none.
pub(super) fn load(
    dir: &Path,
    warnings: &mut Vec<Warning>,
) -> Result<Option<Vec<SpotTrace>>, DataError> {
    let folder = dir.join(SPOT);
    if !folder.is_dir() {
        return Ok(None);
    }
    let mut traces = Vec::new();
    for path in files(&folder)? {
        if path.extension() != Some(OsStr::new("json")) {
            continue;
        }
        let name = path.file_stem().and_then(OsStr::to_str).unwrap_or("");
        if name.starts_with("availability__") || name.starts_with("preemption__") {
            traces.push(trace(&path, name)?);
        } else {
            warnings.push(Warning {
                message: "neither availability__ nor preemption__; left out".to_owned(),
                path,
            });
        }
    }
    Ok((!traces.is_empty()).then_some(traces))
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let failed = |source| DataError::Read {
        path: folder.to_owned(),
        source,
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort();
    Ok(paths)
}

fn trace(path: &Path, name: &str) -> Result<SpotTrace, DataError> {
    let (provider, zone, kind) = words(name).ok_or_else(|| DataError::Whole {
        path: path.to_owned(),
        problem: "its name does not tell the zone; expected \
                  availability__1-node__aws-02-15-2023__us-east-1a_v100_1.json"
            .to_owned(),
    })?;
    let text = super::table::text(path)?.unwrap_or_default();
    let file: File = serde_json::from_str(&text).map_err(|e| DataError::Malformed {
        path: path.to_owned(),
        line: e.line() as u64,
        problem: e.to_string(),
    })?;
    let wrong = |column: &str, problem: String| DataError::Field {
        path: path.to_owned(),
        line: 1,
        column: column.to_owned(),
        problem,
    };
    let gap = file.metadata.gap_seconds;
    if !gap.is_finite() || gap <= 0.0 {
        return Err(wrong(
            "metadata.gap_seconds",
            format!("{gap} is not above zero"),
        ));
    }
    if file.data.len() < 2 {
        return Err(wrong("data", "fewer than two ticks".to_owned()));
    }
    if let Some(i) = file.data.iter().position(|v| !v.is_finite() || *v < 0.0) {
        let value = file.data[i];
        return Err(wrong(
            &format!("data[{i}]"),
            format!("{value} is no count of instances"),
        ));
    }
    let cpu = ["intel", "amd", "c3", "n2"];
    Ok(SpotTrace::new(
        name.to_owned(),
        provider,
        zone.to_owned(),
        !cpu.iter().any(|cpu| kind.starts_with(cpu)),
        gap / 3600.0,
        // At the first tick nothing had been asked for yet.
        file.data[1..].iter().map(|n| *n > 0.0).collect(),
    ))
}

/// Provider, zone and machine of `availability__1-node__aws-02-15-2023__us-east-1a_v100_1`.
fn words(name: &str) -> Option<(Provider, &str, &str)> {
    let mut parts = name.split("__").skip(2);
    let (source, machine) = (parts.next()?, parts.next()?);
    let provider = source.split('-').next()?.parse().ok()?;
    let (zone, kind) = machine.split_once('_')?;
    Some((provider, zone, kind))
}
