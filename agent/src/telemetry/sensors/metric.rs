//! What sensors measure: every metric by name, with its unit and its meaning.
//!
//! Names and base units follow Prometheus; what DCGM's exporter has too is noted beside it. The same
//! names are in the table of `hyperion-agent sensors` and on the agent's /metrics.

/// A metric.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    /// Ends with the unit; a counter's with `_total`.
    pub name: &'static str,
    /// Base unit; empty where the number has none.
    pub unit: &'static str,
    /// Meaning, for people.
    pub help: &'static str,
}

impl Metric {
    /// Whether it only grows.
    #[must_use]
    pub fn is_counter(&self) -> bool {
        self.name.ends_with("_total")
    }
}

macro_rules! metrics {
    ($($id:ident = $name:literal, $unit:literal, $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $id: Metric = Metric { name: $name, unit: $unit, help: $help };
        )*
        /// All of them, in the order of tables.
        pub static ALL: &[&Metric] = &[$(&$id),*];
    };
}

metrics! {
    // DCGM_FI_DEV_GPU_UTIL, as a percentage there.
    GPU_UTILIZATION = "hyperion_gpu_utilization_ratio", "ratio",
        "Time in which the GPU was busy";
    // DCGM_FI_DEV_MEM_COPY_UTIL
    GPU_MEMORY_UTILIZATION = "hyperion_gpu_memory_utilization_ratio", "ratio",
        "Time in which the GPU's memory was read or written";
    // DCGM_FI_DEV_FB_USED
    GPU_MEMORY_USED = "hyperion_gpu_memory_used_bytes", "bytes",
        "Memory that the GPU uses; of a board with unified memory it is part of the node's";
    GPU_MEMORY_TOTAL = "hyperion_gpu_memory_total_bytes", "bytes",
        "Memory of the GPU";
    // DCGM_FI_DEV_GPU_TEMP
    GPU_TEMPERATURE = "hyperion_gpu_temperature_celsius", "celsius",
        "Temperature of the GPU";
    // DCGM_FI_DEV_POWER_USAGE
    GPU_POWER = "hyperion_gpu_power_watts", "watts",
        "Power that the GPU draws";
    GPU_POWER_LIMIT = "hyperion_gpu_power_limit_watts", "watts",
        "Power that the GPU is held to";
    // DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION
    GPU_ENERGY = "hyperion_gpu_energy_joules_total", "joules",
        "Energy that the GPU took since its driver was loaded";
    // DCGM_FI_DEV_SM_CLOCK, DCGM_FI_DEV_MEM_CLOCK
    GPU_CLOCK = "hyperion_gpu_clock_hertz", "hertz",
        "Clock of a part of the GPU";
    GPU_CLOCK_MAX = "hyperion_gpu_clock_max_hertz", "hertz",
        "Highest clock of a part of the GPU";
    GPU_CLOCK_MIN = "hyperion_gpu_clock_min_hertz", "hertz",
        "Lowest clock of a part of the GPU";
    GPU_ECC_ENABLED = "hyperion_gpu_ecc_enabled", "",
        "1 where the GPU's memory corrects errors";
    // DCGM_FI_DEV_ECC_SBE_VOL_TOTAL, DCGM_FI_DEV_ECC_DBE_VOL_TOTAL
    GPU_ECC_ERRORS = "hyperion_gpu_ecc_errors_total", "",
        "Errors of the GPU's memory since its driver was loaded";
    // DCGM_FI_DEV_CLOCK_THROTTLE_REASONS, a bit each there.
    GPU_THROTTLED = "hyperion_gpu_throttled", "",
        "1 while this holds the GPU's clocks down";
    GPU_MIG_ENABLED = "hyperion_gpu_mig_enabled", "",
        "1 where the GPU is divided into instances";
    GPU_MIG_INSTANCES = "hyperion_gpu_mig_instances", "",
        "Instances that the GPU is divided into";
    GPU_PROCESSES = "hyperion_gpu_processes", "",
        "Processes on the GPU";
    GPU_RAILGATE = "hyperion_gpu_railgate_enabled", "",
        "1 where an idle GPU may lose its power";
    GPU_3D_SCALING = "hyperion_gpu_3d_scaling_enabled", "",
        "1 where the GPU's clock follows its load";
    CPUS_ONLINE = "hyperion_node_cpus_online", "",
        "Cores that are switched on";
    CPUS_PRESENT = "hyperion_node_cpus_present", "",
        "Cores that there are";
    CPU_FREQUENCY = "hyperion_node_cpu_frequency_hertz", "hertz",
        "Clock of the cores that share one";
    CPU_FREQUENCY_MAX = "hyperion_node_cpu_frequency_max_hertz", "hertz",
        "Highest clock that these cores may have now";
    CPU_FREQUENCY_MIN = "hyperion_node_cpu_frequency_min_hertz", "hertz",
        "Lowest clock that these cores may have now";
    MEMORY_CLOCK = "hyperion_node_memory_clock_hertz", "hertz",
        "Clock of the memory controller";
    MEMORY_CLOCK_MAX = "hyperion_node_memory_clock_max_hertz", "hertz",
        "Highest clock of the memory controller";
    MEMORY_CLOCK_MIN = "hyperion_node_memory_clock_min_hertz", "hertz",
        "Lowest clock of the memory controller";
    MEMORY_UTILIZATION = "hyperion_node_memory_bandwidth_utilization_ratio", "ratio",
        "Time in which the memory controller was busy";
    // node_hwmon_temp_celsius, node_thermal_zone_temp
    TEMPERATURE = "hyperion_node_temperature_celsius", "celsius",
        "Temperature by sensor";
    // node_cooling_device_cur_state
    COOLING = "hyperion_node_cooling_state", "",
        "How far something is slowed down, or a fan sped up, against heat; 0 for not at all";
    COOLING_MAX = "hyperion_node_cooling_state_max", "",
        "How far it can be";
    OVERCURRENT = "hyperion_node_overcurrent_events_total", "",
        "Times that the board took too much current";
    FAN_SPEED = "hyperion_node_fan_speed_rpm", "rpm",
        "Turns of a fan in a minute";
    FAN_DUTY = "hyperion_node_fan_duty_ratio", "ratio",
        "What a fan is driven with, of all it can be";
    RAIL_VOLTAGE = "hyperion_node_rail_voltage_volts", "volts",
        "Voltage of a power rail";
    RAIL_CURRENT = "hyperion_node_rail_current_amperes", "amperes",
        "Current of a power rail";
    RAIL_POWER = "hyperion_node_rail_power_watts", "watts",
        "Power of a power rail";
    RAIL_LIMIT = "hyperion_node_rail_current_limit_amperes", "amperes",
        "Current at which the board warns or throttles";
    SUPPLY_ONLINE = "hyperion_node_supply_online", "",
        "1 while a power supply is connected";
    SUPPLY_VOLTAGE = "hyperion_node_supply_voltage_volts", "volts",
        "Voltage of a power supply";
    SUPPLY_CURRENT = "hyperion_node_supply_current_amperes", "amperes",
        "Current of a power supply";
    POWER = "hyperion_node_power_watts", "watts",
        "Power that the whole board draws";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_end_with_their_unit() {
        let mut names: Vec<_> = ALL.iter().map(|m| m.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        for metric in ALL {
            let base = metric.name.trim_end_matches("_total");
            assert!(base.ends_with(metric.unit), "{metric:?}");
            assert!(metric.name.starts_with("hyperion_"), "{metric:?}");
        }
    }
}
