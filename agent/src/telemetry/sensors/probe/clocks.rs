//! Clocks of the cores and of the memory controller.

use crate::telemetry::sensors::board::Found;
use crate::telemetry::sensors::files::{Files, count, hertz, kilohertz, number};
use crate::telemetry::sensors::metric as m;

const CPU: &str = "/sys/devices/system/cpu";
/// Boards have one to six clusters of cores; a server's hundred clocks are no use to anybody.
const MOST_CLUSTERS: usize = 16;

/// Places of the memory controller's clock: now, highest, lowest. Xavier and Orin, then Thor, then
/// kernels of Nano's time. All of them but Thor's are for root alone.
const EMC: [[&str; 3]; 4] = [
    [
        "/sys/kernel/debug/bpmp/debug/clk/emc/rate",
        "/sys/kernel/debug/bpmp/debug/clk/emc/max_rate",
        "/sys/kernel/debug/bpmp/debug/clk/emc/min_rate",
    ],
    [
        "/sys/class/devfreq/bwmgr/cur_freq",
        "/sys/class/devfreq/bwmgr/max_freq",
        "/sys/class/devfreq/bwmgr/min_freq",
    ],
    [
        "/sys/kernel/debug/clk/emc/clk_rate",
        "/sys/kernel/debug/tegra_bwmgr/emc_max_rate",
        "/sys/kernel/debug/tegra_bwmgr/emc_min_rate",
    ],
    ["/sys/kernel/debug/clk/override.emc/clk_rate", "", ""],
];
/// What the controller did, in kilohertz of its clock.
const ACTIVITY: [&str; 3] = [
    "/sys/kernel/debug/cactmon/mc_all",
    "/sys/kernel/debug/bpmp/debug/actmon/mc_all_avg_activity",
    "/sys/kernel/actmon_avg_activity/mc_all",
];

pub fn find(files: &Files, found: &mut Found) {
    for (metric, file) in [(&m::CPUS_ONLINE, "online"), (&m::CPUS_PRESENT, "present")] {
        let path = format!("{CPU}/{file}");
        found.add(metric, &[], &[], &[&path], |t| cores(&t[0]));
    }
    clusters(files, found);
    memory(files, found);
}

fn clusters(files: &Files, found: &mut Found) {
    let policies = files.entries(&format!("{CPU}/cpufreq"), "policy");
    let mut folders: Vec<(String, String)> = policies
        .into_iter()
        .map(|policy| (format!("{CPU}/cpufreq/{policy}"), policy))
        .collect();
    if folders.is_empty() {
        let cores = files.entries(CPU, "cpu").into_iter();
        let cores = cores.map(|core| (format!("{CPU}/{core}/cpufreq"), core));
        folders.extend(cores.filter(|(folder, _)| files.exists(folder)));
    }
    if folders.len() > MOST_CLUSTERS {
        return;
    }
    for (folder, name) in &folders {
        for (metric, file) in [
            (&m::CPU_FREQUENCY, "scaling_cur_freq"),
            (&m::CPU_FREQUENCY_MAX, "scaling_max_freq"),
            (&m::CPU_FREQUENCY_MIN, "scaling_min_freq"),
        ] {
            let path = format!("{folder}/{file}");
            found.add(metric, &[("cluster", name)], &[], &[&path], |t| {
                kilohertz(&t[0])
            });
        }
    }
}

fn memory(files: &Files, found: &mut Found) {
    // Each file for itself: the loss of one is not that of its neighbours.
    let there = |n: usize| {
        let mut places = EMC.iter().map(|places| places[n]);
        places.find(|path| !path.is_empty() && files.exists(path))
    };
    for (n, metric) in [&m::MEMORY_CLOCK, &m::MEMORY_CLOCK_MAX, &m::MEMORY_CLOCK_MIN]
        .into_iter()
        .enumerate()
    {
        if let Some(path) = there(n) {
            found.add(metric, &[], &[], &[path], |t| hertz(&t[0]));
        }
    }
    let activity = ACTIVITY.iter().find(|path| files.exists(path));
    if let (Some(activity), Some(clock)) = (activity, there(0)) {
        let sources = [*activity, clock];
        found.add(&m::MEMORY_UTILIZATION, &[], &[], &sources, |t| {
            busy(&t[0], &t[1])
        });
    }
}

/// Kilohertz of work in hertz of clock.
fn busy(activity: &str, clock: &str) -> Option<f64> {
    let clock = hertz(clock).filter(|hz| *hz > 0.0)?;
    let share = number(activity)? * 1e3 / clock;
    // The two are not of one moment.
    (0.0..=1.1).contains(&share).then(|| share.min(1.0))
}

/// Cores in a list such as `0-3,6`.
fn cores(text: &str) -> Option<f64> {
    let mut cores = 0.0;
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (count(first)?, count(last)?);
        if last < first || last > 65_535.0 {
            return None;
        }
        cores += last - first + 1.0;
    }
    Some(cores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores_are_counted() {
        assert_eq!(cores("0-3,6\n"), Some(5.0));
        assert_eq!(cores("0"), Some(1.0));
        for bad in ["", "3-1", "a", "0-", "0-99999999999", "-1"] {
            assert_eq!(cores(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_memory_controller_is_never_busier_than_wholly() {
        assert_eq!(
            busy("532800", "2133000000").map(|b| (b * 1e4).round()),
            Some(2498.0)
        );
        assert_eq!(busy("2134000", "2133000000"), Some(1.0));
        for (activity, clock) in [
            ("9999999999", "1000"),
            ("1", "0"),
            ("-1", "1000"),
            ("", "1"),
        ] {
            assert_eq!(busy(activity, clock), None);
        }
    }
}
