//! Temperatures, and what is done against them.

use crate::telemetry::sensors::board::Found;
use crate::telemetry::sensors::files::{Files, count, scaled};
use crate::telemetry::sensors::metric as m;

const THERMAL: &str = "/sys/class/thermal";
const HWMON: &str = "/sys/class/hwmon";
/// A constant of 100 degrees on boards with old kernels.
const CONSTANT: &str = "PMIC-Die";

pub fn find(files: &Files, found: &mut Found) {
    zones(files, found);
    chips(files, found);
    cooling(files, found);
    overcurrent(files, found);
}

/// Zones have an order that changes with each release: they go by their names, and one without is
/// nothing.
fn zones(files: &Files, found: &mut Found) {
    for zone in files.entries(THERMAL, "thermal_zone") {
        let kind = format!("{THERMAL}/{zone}/type");
        let path = format!("{THERMAL}/{zone}/temp");
        let Some(name) = files.name(&kind).filter(|name| name != CONSTANT) else {
            continue;
        };
        let add = |found: &mut Found, metric, labels: &[_]| {
            found.add(metric, labels, &[&kind], &[&path], |t| celsius(&t[0]));
        };
        add(found, &m::TEMPERATURE, &[("sensor", name.as_str())]);
        if let Some(gpu) = found.gpu.clone()
            && ["gpu-therm", "gpu-thermal"].contains(&name.to_ascii_lowercase().as_str())
        {
            add(found, &m::GPU_TEMPERATURE, &[("gpu", gpu.as_str())]);
        }
    }
}

fn chips(files: &Files, found: &mut Found) {
    for chip in files.entries(HWMON, "hwmon") {
        let folder = format!("{HWMON}/{chip}");
        // The kernel shows each zone a second time as a chip.
        let of_zone = ["policy", "available_policies"];
        if of_zone
            .iter()
            .any(|file| files.exists(&format!("{folder}/device/{file}")))
        {
            continue;
        }
        let named_by = format!("{folder}/name");
        let Some(name) = files.name(&named_by) else {
            continue;
        };
        for input in files.entries(&folder, "temp") {
            let Some(number) = input.strip_suffix("_input") else {
                continue;
            };
            let label = format!("{folder}/{number}_label");
            let word = files.name(&label).unwrap_or_else(|| number.to_owned());
            let sensor = format!("{name}/{word}");
            let path = format!("{folder}/{input}");
            let labels = [("sensor", sensor.as_str())];
            found.add(
                &m::TEMPERATURE,
                &labels,
                &[&named_by, &label],
                &[&path],
                |t| celsius(&t[0]),
            );
        }
    }
}

fn cooling(files: &Files, found: &mut Found) {
    for device in files.entries(THERMAL, "cooling_device") {
        let folder = format!("{THERMAL}/{device}");
        let kind = format!("{folder}/type");
        let Some(name) = files.name(&kind) else {
            continue;
        };
        for (metric, file) in [(&m::COOLING, "cur_state"), (&m::COOLING_MAX, "max_state")] {
            let path = format!("{folder}/{file}");
            let labels = [("device", name.as_str())];
            found.add(metric, &labels, &[&kind], &[&path], |t| count(&t[0]));
        }
    }
}

fn overcurrent(files: &Files, found: &mut Found) {
    for chip in files.entries(HWMON, "hwmon") {
        let folder = format!("{HWMON}/{chip}");
        for file in files.entries(&folder, "oc") {
            let Some(event) = file.strip_suffix("_event_cnt") else {
                continue;
            };
            let path = format!("{folder}/{file}");
            found.add(&m::OVERCURRENT, &[("event", event)], &[], &[&path], |t| {
                count(&t[0])
            });
        }
    }
}

/// Thousandths of a degree. Sensors without power show the ends of their range (-256, -274, 65535):
/// not taken.
fn celsius(text: &str) -> Option<f64> {
    scaled(text, 1e-3, -60.0, 250.0)
}
