//! Power: monitors of rails on the I2C bus, and supplies.

use crate::telemetry::sensors::board::{Found, Parse};
use crate::telemetry::sensors::files::{Files, scaled, switch};
use crate::telemetry::sensors::metric as m;

const I2C: &str = "/sys/bus/i2c/devices";
const SUPPLIES: &str = "/sys/class/power_supply";
/// Rails that all of the board's power goes through. AGX boards have none.
const WHOLE: [&str; 2] = ["VDD_IN", "POM_5V_IN"];
/// Rails that are the GPU's alone.
const OF_GPU: [&str; 4] = ["GPU", "POM_5V_GPU", "VDD_GPU", "VDD_SYS_GPU"];
/// A channel with nothing on it.
const NOT_CONNECTED: &str = "NC";
/// The channel of an INA3221 that is the sum of the others.
const SUM: u32 = 7;
/// Channels that are looked for; an INA3221 has three and the sum.
const CHANNELS: std::ops::RangeInclusive<u32> = 0..=8;
/// What a limit is where nobody set one: the end of the chip's range, amperes.
const NO_LIMIT: f64 = 32.0;

pub fn find(files: &Files, found: &mut Found) {
    for device in files.entries(I2C, "") {
        let folder = format!("{I2C}/{device}");
        for chip in files.entries(&format!("{folder}/hwmon"), "hwmon") {
            monitor(files, found, &device, &format!("{folder}/hwmon/{chip}"));
        }
        for chip in files.entries(&folder, "iio:device") {
            old_monitor(files, found, &format!("{folder}/{chip}"));
        }
    }
    supplies(files, found);
}

/// A rail and its files.
struct Rail<'a> {
    name: &'a str,
    named_by: &'a [&'a str],
    volts: String,
    amperes: String,
    /// Watts and what they are read from: a file of their own, or the two above.
    watts: (Vec<String>, Parse),
    limits: [(&'static str, String); 2],
}

impl Rail<'_> {
    fn add(&self, found: &mut Found) {
        let rail = ("rail", self.name);
        let mut add = |metric, labels: &[_], sources: &[String], parse: Parse| {
            let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
            found.add(metric, labels, self.named_by, &sources, parse);
        };
        let one = std::slice::from_ref;
        add(&m::RAIL_VOLTAGE, &[rail], one(&self.volts), |t| {
            volts(&t[0])
        });
        add(&m::RAIL_CURRENT, &[rail], one(&self.amperes), |t| {
            amperes(&t[0])
        });
        for (limit, path) in &self.limits {
            let labels = [rail, ("limit", *limit)];
            add(&m::RAIL_LIMIT, &labels, one(path), |t| {
                amperes(&t[0]).filter(|a| *a < NO_LIMIT)
            });
        }
        let (sources, parse) = &self.watts;
        add(&m::RAIL_POWER, &[rail], sources, *parse);
        if WHOLE.contains(&self.name) {
            add(&m::POWER, &[], sources, *parse);
        }
        let gpu = found.gpu.clone();
        if let Some(gpu) = gpu.filter(|_| OF_GPU.contains(&self.name)) {
            let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
            let labels = [("gpu", gpu.as_str())];
            found.add(&m::GPU_POWER, &labels, self.named_by, &sources, *parse);
        }
    }
}

/// Volts times amperes.
const PRODUCT: Parse = |t| Some(volts(&t[0])? * amperes(&t[1])?);

/// The channels of a chip that has a driver of hwmon: INA3221 from L4T r34 on, INA238 of Thor.
fn monitor(files: &Files, found: &mut Found, device: &str, folder: &str) {
    let label = |n: u32| format!("{folder}/in{n}_label");
    // A chip of one channel says nothing of names, and goes by its place on the bus.
    let labelled = CHANNELS.into_iter().any(|n| files.exists(&label(n)));
    for n in CHANNELS.filter(|n| *n != SUM) {
        let label = label(n);
        let amperes = format!("{folder}/curr{n}_input");
        let volts = format!("{folder}/in{n}_input");
        let own = format!("{folder}/power{n}_input");
        let name = match files.name(&label) {
            Some(name) if name != NOT_CONNECTED => name,
            // A voltage alone is that of the shunt.
            None if !labelled && [&amperes, &own].iter().any(|path| files.exists(path)) => {
                device.to_owned()
            }
            _ => continue,
        };
        let watts: (Vec<String>, Parse) = if files.exists(&own) {
            (vec![own], |t| microwatts(&t[0]))
        } else {
            (vec![volts.clone(), amperes.clone()], PRODUCT)
        };
        let rail = Rail {
            name: &name,
            named_by: &[&label],
            volts,
            amperes,
            watts,
            limits: [
                ("max", format!("{folder}/curr{n}_max")),
                ("critical", format!("{folder}/curr{n}_crit")),
            ],
        };
        rail.add(found);
    }
}

/// The channels of an INA3221 with the driver of L4T r32.
fn old_monitor(files: &Files, found: &mut Found, folder: &str) {
    for label in files.entries(folder, "rail_name_") {
        let n = &label["rail_name_".len()..];
        let label = format!("{folder}/{label}");
        let Some(name) = files.name(&label).filter(|name| name != NOT_CONNECTED) else {
            continue;
        };
        let rail = Rail {
            name: &name,
            named_by: &[&label],
            volts: format!("{folder}/in_voltage{n}_input"),
            amperes: format!("{folder}/in_current{n}_input"),
            watts: (vec![format!("{folder}/in_power{n}_input")], |t| {
                milliwatts(&t[0])
            }),
            limits: [
                ("max", format!("{folder}/warn_current_limit_{n}")),
                ("critical", format!("{folder}/crit_current_limit_{n}")),
            ],
        };
        rail.add(found);
    }
}

fn supplies(files: &Files, found: &mut Found) {
    for entry in files.entries(SUPPLIES, "") {
        let name = entry.strip_prefix("ucsi-source-psy-").unwrap_or(&entry);
        let mut add = |metric, file: &str, parse: Parse| {
            let path = format!("{SUPPLIES}/{entry}/{file}");
            found.add(metric, &[("supply", name)], &[], &[&path], parse);
        };
        add(&m::SUPPLY_ONLINE, "online", |t| switch(&t[0]));
        add(&m::SUPPLY_VOLTAGE, "voltage_now", |t| {
            scaled(&t[0], 1e-6, 0.0, 1e3)
        });
        add(&m::SUPPLY_CURRENT, "current_now", |t| {
            scaled(&t[0], 1e-6, -1e3, 1e3)
        });
    }
}

/// Of millivolts. A rail of a board has at most some twenty.
fn volts(text: &str) -> Option<f64> {
    scaled(text, 1e-3, 0.0, 100.0)
}

/// Of milliamperes; a little below nothing where a chip is not quite at zero.
fn amperes(text: &str) -> Option<f64> {
    scaled(text, 1e-3, -1.0, 1000.0)
}

fn milliwatts(text: &str) -> Option<f64> {
    scaled(text, 1e-3, 0.0, 10_000.0)
}

fn microwatts(text: &str) -> Option<f64> {
    scaled(text, 1e-6, 0.0, 10_000.0)
}
