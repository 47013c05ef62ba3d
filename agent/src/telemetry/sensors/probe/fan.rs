//! Fans.

use crate::telemetry::sensors::board::Found;
use crate::telemetry::sensors::files::{Files, name_of, scaled};
use crate::telemetry::sensors::metric as m;

const HWMON: &str = "/sys/class/hwmon";
/// Where kernels of Nano's time have the fan.
const OLD: &str = "/sys/devices/pwm-fan";
/// Written by NVIDIA's service for fans.
const PROFILE: &str = "/var/lib/nvfancontrol/status";

pub fn find(files: &Files, found: &mut Found) {
    for chip in files.entries(HWMON, "hwmon") {
        let folder = format!("{HWMON}/{chip}");
        let kind = format!("{folder}/name");
        let name = files.name(&kind).unwrap_or_else(|| chip.clone());
        for file in files.entries(&folder, "fan") {
            if let Some(number) = file.strip_suffix("_input") {
                let fan = format!("{name}/{number}");
                speed(found, &fan, &kind, &format!("{folder}/{file}"));
            }
        }
        // The tachometer of older boards.
        let path = format!("{folder}/rpm");
        speed(found, &format!("{name}/fan1"), &kind, &path);
        for file in files.entries(&folder, "pwm") {
            let number = &file["pwm".len()..];
            if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) {
                let fan = format!("{name}/fan{number}");
                duty(found, &fan, &[&kind], &format!("{folder}/{file}"));
            }
        }
    }
    let path = format!("{OLD}/rpm_measured");
    let labels = [("fan", "pwm-fan/fan1")];
    found.add(&m::FAN_SPEED, &labels, &[], &[&path], |t| turns(&t[0]));
    let path = format!("{OLD}/cur_pwm");
    duty(found, "pwm-fan/fan1", &[], &path);
    let profile = files.text(PROFILE).and_then(|t| profile(&t));
    found.fact("fan_profile", profile, &[PROFILE]);
}

fn speed(found: &mut Found, fan: &str, named_by: &str, path: &str) {
    let labels = [("fan", fan)];
    found.add(&m::FAN_SPEED, &labels, &[named_by], &[path], |t| {
        turns(&t[0])
    });
}

fn duty(found: &mut Found, fan: &str, named_by: &[&str], path: &str) {
    found.add(&m::FAN_DUTY, &[("fan", fan)], named_by, &[path], |t| {
        scaled(&t[0], 1.0, 0.0, 255.0).map(|pwm| pwm / 255.0)
    });
}

fn turns(text: &str) -> Option<f64> {
    scaled(text, 1.0, 0.0, 100_000.0)
}

/// The word behind the first `FAN_PROFILE:`.
fn profile(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("FAN_PROFILE:")?;
    name_of(rest.lines().next()?)
}
