//! Temperatures from `/sys/class/thermal` and `/sys/class/hwmon`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::text;

/// Sensors come and go with modules and hot plugging, seldom: the list is made anew this often.
const RESCAN: Duration = Duration::from_secs(60);
/// Most sensors that are read; servers show hundreds.
const MOST: usize = 32;

/// One temperature.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Name from sysfs.
    pub sensor: String,
    /// Degrees.
    pub celsius: f32,
}

/// The sensors that a node has.
#[derive(Default)]
pub struct Sensors {
    found: Vec<(String, PathBuf)>,
    scanned: Option<Instant>,
}

impl Sensors {
    /// Reads all; a sensor that can't be read or shows nonsense is left out.
    pub fn read(&mut self, class: &Path, now: Instant) -> Vec<Reading> {
        if self
            .scanned
            .is_none_or(|at| now.saturating_duration_since(at) >= RESCAN)
        {
            self.found = scan(class);
            self.scanned = Some(now);
        }
        self.found
            .iter()
            .filter_map(|(sensor, path)| {
                let celsius = parse_millidegrees(&text(path)?)?;
                Some(Reading {
                    sensor: sensor.clone(),
                    celsius,
                })
            })
            .collect()
    }
}

/// Thousandths of a degree. Sensors without power show the ends of their range (-274, 65535):
/// not taken.
fn parse_millidegrees(text: &str) -> Option<f32> {
    let millis: i32 = text.trim().parse().ok()?;
    #[expect(clippy::cast_precision_loss, reason = "bounded before the division")]
    (-60_000..=250_000)
        .contains(&millis)
        .then(|| millis as f32 / 1000.0)
}

fn scan(class: &Path) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    for zone in entries(&class.join("thermal"), "thermal_zone") {
        let name = text(zone.join("type")).unwrap_or_default();
        found.push((named(&name, "thermal"), zone.join("temp")));
    }
    for chip in entries(&class.join("hwmon"), "hwmon") {
        let name = named(&text(chip.join("name")).unwrap_or_default(), "hwmon");
        for input in entries(&chip, "temp") {
            let file = input.file_name().and_then(|f| f.to_str()).unwrap_or("");
            let Some(number) = file.strip_suffix("_input") else {
                continue;
            };
            let label = text(chip.join(format!("{number}_label"))).unwrap_or_default();
            found.push((format!("{name}/{}", named(&label, number)), input));
        }
    }
    found.truncate(MOST);
    found
}

fn named(text: &str, otherwise: &str) -> String {
    let text = text.trim();
    if text.is_empty() {
        otherwise.to_owned()
    } else {
        text.chars().take(64).collect()
    }
}

/// Entries of a folder with a prefix, in order.
fn entries(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|e| e.path())
        .filter(|p| {
            p.file_name()
                .and_then(|f| f.to_str())
                .is_some_and(|f| f.starts_with(prefix))
        })
        .collect();
    found.sort_unstable();
    found
}
