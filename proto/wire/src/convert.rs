//! Wire -> domain. Every refusal names the field. Sizes are bounded here, so that nothing behind
//! this module has to.

use hyperion_placement::model::{GpuDevice, normalize_arch};

use crate::agent_v1 as wire;
use crate::domain::{Capabilities, ReplicaKey, Report, Start, Telemetry};

mod site;
mod update;

pub use site::{MAX_GENERATION, MAX_RECORD, intent, node_id, node_record, record, site_info};
pub use update::update_order;

/// A field that was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Invalid {
    /// Path from the message's root, for example `telemetry.cpu_utilization_percent`.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

fn invalid<T>(field: impl Into<String>, problem: impl Into<String>) -> Result<T, Invalid> {
    Err(Invalid {
        field: field.into(),
        problem: problem.into(),
    })
}

/// Longest name, label or message part that is accepted, bytes.
const MAX_TEXT: usize = 4096;
/// Longest environment value or argument, bytes (Linux refuses more than 128 KiB per string).
const MAX_ARG: usize = 128 * 1024;
/// Most entries of any list (GPUs, labels, sensors, containers, arguments).
const MAX_ENTRIES: usize = 1024;
/// One exbibyte: no node has more memory or disk.
const MAX_BYTES: i64 = 1 << 60;
/// A million cores in thousandths.
const MAX_CPU_MILLIS: i64 = 1_000_000_000;

fn text(field: &str, value: &str, max: usize) -> Result<String, Invalid> {
    if value.len() > max {
        return invalid(
            field,
            format!("{} bytes, at most {max} are accepted", value.len()),
        );
    }
    if value.contains('\0') {
        return invalid(field, "contains a NUL byte");
    }
    Ok(value.to_owned())
}

fn required(field: &str, value: &str) -> Result<String, Invalid> {
    if value.is_empty() {
        return invalid(field, "empty");
    }
    text(field, value, MAX_TEXT)
}

fn few(field: &str, len: usize) -> Result<(), Invalid> {
    if len > MAX_ENTRIES {
        return invalid(
            field,
            format!("{len} entries, at most {MAX_ENTRIES} are accepted"),
        );
    }
    Ok(())
}

fn bounded(field: &str, value: i64, max: i64) -> Result<u64, Invalid> {
    match u64::try_from(value) {
        Ok(v) if value <= max => Ok(v),
        Ok(_) => invalid(field, format!("{value} is more than {max}")),
        Err(_) => invalid(field, format!("{value} is negative")),
    }
}

fn number(field: &str, value: f32, min: f32, max: f32) -> Result<f32, Invalid> {
    if value.is_finite() && (min..=max).contains(&value) {
        Ok(value)
    } else {
        invalid(field, format!("{value} is not between {min} and {max}"))
    }
}

/// One part of a name (RFC 1123 label): good for a path and a hostname too.
fn is_label(part: &str) -> bool {
    let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    bytes.first().is_some_and(plain)
        && bytes.last().is_some_and(plain)
        && bytes.iter().all(|b| plain(b) || *b == b'-')
}

/// A Kubernetes object name or namespace (RFC 1123 subdomain).
fn object_name(field: &str, value: &str) -> Result<String, Invalid> {
    if value.len() > 253 || !value.split('.').all(is_label) {
        return invalid(
            field,
            format!("{:?} is not a Kubernetes name", start_of(value)),
        );
    }
    Ok(value.to_owned())
}

/// What is shown of a text that may be of any length.
fn start_of(value: &str) -> String {
    value.chars().take(64).collect()
}

/// Replica key.
///
/// # Errors
/// Names the field.
pub fn replica_key(field: &str, key: Option<&wire::ReplicaKey>) -> Result<ReplicaKey, Invalid> {
    let Some(key) = key else {
        return invalid(field, "missing");
    };
    if key.index > 100_000 {
        return invalid(
            format!("{field}.index"),
            format!("{} is more than 100000", key.index),
        );
    }
    Ok(ReplicaKey {
        namespace: object_name(&format!("{field}.namespace"), &key.namespace)?,
        workload: object_name(&format!("{field}.workload"), &key.workload)?,
        uid: object_name(&format!("{field}.workload_uid"), &key.workload_uid)?,
        index: key.index,
    })
}

/// Capabilities of a node.
///
/// # Errors
/// Names the field.
pub fn capabilities(caps: Option<&wire::NodeCapabilities>) -> Result<Capabilities, Invalid> {
    let Some(caps) = caps else {
        return invalid("capabilities", "missing");
    };
    few("capabilities.gpus", caps.gpus.len())?;
    few("capabilities.labels", caps.labels.len())?;
    let mut gpus = Vec::with_capacity(caps.gpus.len());
    for (i, gpu) in caps.gpus.iter().enumerate() {
        let field = |name: &str| format!("capabilities.gpus[{i}].{name}");
        gpus.push(GpuDevice {
            uuid: required(&field("uuid"), &gpu.uuid)?,
            model: text(&field("model"), &gpu.model, MAX_TEXT)?,
            memory_bytes: bounded(&field("memory_bytes"), gpu.memory_bytes, MAX_BYTES)?,
            free_millis: 1000,
        });
    }
    gpus.sort_by(|a, b| a.uuid.cmp(&b.uuid));
    if let Some(pair) = gpus.windows(2).find(|p| p[0].uuid == p[1].uuid) {
        return invalid(
            "capabilities.gpus",
            format!("uuid {:?} twice", start_of(&pair[0].uuid)),
        );
    }
    let mut labels = std::collections::BTreeMap::new();
    for (key, value) in &caps.labels {
        labels.insert(
            required("capabilities.labels key", key)?,
            text(
                &format!("capabilities.labels[{:?}]", start_of(key)),
                value,
                MAX_TEXT,
            )?,
        );
    }
    Ok(Capabilities {
        arch: normalize_arch(&required("capabilities.cpu_arch", &caps.cpu_arch)?).to_owned(),
        cpu_millis: bounded("capabilities.cpu_millis", caps.cpu_millis, MAX_CPU_MILLIS)?,
        memory_bytes: bounded("capabilities.memory_bytes", caps.memory_bytes, MAX_BYTES)?,
        disk_bytes: bounded("capabilities.disk_bytes", caps.disk_bytes, MAX_BYTES)?,
        gpus,
        labels,
    })
}

/// Telemetry.
///
/// # Errors
/// Names the field; the whole message is then to be dropped.
pub fn telemetry(t: &wire::Telemetry) -> Result<Telemetry, Invalid> {
    few("telemetry.gpu_status", t.gpu_status.len())?;
    few("telemetry.temperatures", t.temperatures.len())?;
    let mut gpu_percent = Vec::with_capacity(t.gpu_status.len());
    for (i, gpu) in t.gpu_status.iter().enumerate() {
        let field = format!("telemetry.gpu_status[{i}].utilization_percent");
        gpu_percent.push(number(&field, gpu.utilization_percent, 0.0, 100.0)?);
    }
    let mut max_celsius: Option<f32> = None;
    for (i, sensor) in t.temperatures.iter().enumerate() {
        let c = number(
            &format!("telemetry.temperatures[{i}].celsius"),
            sensor.celsius,
            -100.0,
            300.0,
        )?;
        max_celsius = Some(max_celsius.map_or(c, |m| m.max(c)));
    }
    let network = t.network_status.unwrap_or_default();
    let field = |name: &str| format!("telemetry.network_status.{name}");
    Ok(Telemetry {
        cpu_percent: number(
            "telemetry.cpu_utilization_percent",
            t.cpu_utilization_percent,
            0.0,
            100.0,
        )?,
        memory_used_bytes: bounded(
            "telemetry.memory_used_bytes",
            t.memory_used_bytes,
            MAX_BYTES,
        )?,
        disk_used_bytes: bounded("telemetry.disk_used_bytes", t.disk_used_bytes, MAX_BYTES)?,
        load1: number("telemetry.load1", t.load1, 0.0, 1e6)?,
        rx_bytes_per_second: bounded(
            &field("rx_bytes_per_second"),
            network.rx_bytes_per_second,
            MAX_BYTES,
        )?,
        tx_bytes_per_second: bounded(
            &field("tx_bytes_per_second"),
            network.tx_bytes_per_second,
            MAX_BYTES,
        )?,
        rtt_ms: number(&field("control_rtt_ms"), network.control_rtt_ms, 0.0, 1e6)?,
        max_celsius,
        gpu_percent,
        sequence: t.sequence,
        dropped_total: t.dropped_total,
    })
}

/// A replica report.
///
/// # Errors
/// Names the field.
pub fn report(r: &wire::ReplicaReport) -> Result<Report, Invalid> {
    let phase = wire::ReplicaPhase::try_from(r.phase).unwrap_or_default();
    if phase == wire::ReplicaPhase::Unspecified {
        return invalid(
            "replica_report.phase",
            format!("{} is not a known phase", r.phase),
        );
    }
    if !r.pod_ip.is_empty() && r.pod_ip.parse::<std::net::IpAddr>().is_err() {
        return invalid(
            "replica_report.pod_ip",
            format!("{:?} is not an IP address", start_of(&r.pod_ip)),
        );
    }
    Ok(Report {
        key: replica_key("replica_report.key", r.key.as_ref())?,
        generation: r.generation,
        phase,
        ready: r.ready,
        reason: text("replica_report.reason", &r.reason, 128)?,
        message: text("replica_report.message", &r.message, MAX_TEXT)?,
        restarts: r.restarts,
        pod_ip: r.pod_ip.clone(),
    })
}

/// An event.
///
/// # Errors
/// Names the field.
pub fn event(e: &wire::Event) -> Result<(), Invalid> {
    if e.reason.is_empty() || e.reason.len() > 128 {
        return invalid(
            "event.reason",
            format!("{} bytes, 1 to 128 are accepted", e.reason.len()),
        );
    }
    text("event.message", &e.message, MAX_TEXT)?;
    if e.replica.is_some() {
        replica_key("event.replica", e.replica.as_ref())?;
    }
    Ok(())
}

/// An order to start a replica.
///
/// # Errors
/// Names the field.
pub fn start(s: &wire::StartReplica) -> Result<Start, Invalid> {
    if s.generation == 0 {
        return invalid("start_replica.generation", "0");
    }
    let Some(pod) = &s.pod else {
        return invalid("start_replica.pod", "missing");
    };
    pod_spec("start_replica.pod", pod)?;
    Ok(Start {
        key: replica_key("start_replica.key", s.key.as_ref())?,
        generation: s.generation,
        pod: pod.clone(),
    })
}

/// A pod that a node can run.
fn pod_spec(field: &str, pod: &wire::PodSpec) -> Result<(), Invalid> {
    if pod.containers.is_empty() {
        return invalid(format!("{field}.containers"), "empty");
    }
    few(&format!("{field}.containers"), pod.containers.len())?;
    let mut names = std::collections::BTreeSet::new();
    for (i, c) in pod.containers.iter().enumerate() {
        container(&format!("{field}.containers[{i}]"), c)?;
        if !names.insert(&c.name) {
            return invalid(
                format!("{field}.containers[{i}].name"),
                format!("{:?} twice", c.name),
            );
        }
    }
    few(&format!("{field}.labels"), pod.labels.len())?;
    few(&format!("{field}.gpus"), pod.gpus.len())?;
    for (i, gpu) in pod.gpus.iter().enumerate() {
        let field = |name: &str| format!("{field}.gpus[{i}].{name}");
        required(&field("uuid"), &gpu.uuid)?;
        if gpu.millis > 1000 {
            return invalid(field("millis"), format!("{} is more than 1000", gpu.millis));
        }
    }
    Ok(())
}

fn container(field: &str, c: &wire::Container) -> Result<(), Invalid> {
    // Becomes a folder of logs.
    if c.name.len() > 63 || !is_label(&c.name) {
        return invalid(
            format!("{field}.name"),
            format!("{:?} is not a container name", start_of(&c.name)),
        );
    }
    required(&format!("{field}.image"), &c.image)?;
    for (name, list) in [("command", &c.command), ("args", &c.args)] {
        few(&format!("{field}.{name}"), list.len())?;
        for value in list {
            text(&format!("{field}.{name}"), value, MAX_ARG)?;
        }
    }
    few(&format!("{field}.env"), c.env.len())?;
    for var in &c.env {
        if var.name.is_empty() || var.name.contains(['=', '\0']) {
            return invalid(
                format!("{field}.env"),
                format!("{:?} is not a variable name", start_of(&var.name)),
            );
        }
        let name = format!("{field}.env[{}]", start_of(&var.name));
        text(&name, &var.value, MAX_ARG)?;
    }
    few(&format!("{field}.ports"), c.ports.len())?;
    for port in &c.ports {
        if port.container_port == 0 || port.container_port > 65_535 || port.host_port > 65_535 {
            return invalid(
                format!("{field}.ports"),
                format!(
                    "container port {} or host port {} is out of range",
                    port.container_port, port.host_port
                ),
            );
        }
    }
    text(&format!("{field}.working_dir"), &c.working_dir, MAX_TEXT)?;
    for (name, p) in [("liveness", &c.liveness), ("readiness", &c.readiness)] {
        probe(&format!("{field}.{name}"), p.as_ref())?;
    }
    bounded(
        &format!("{field}.cpu_limit_millis"),
        c.cpu_limit_millis,
        MAX_CPU_MILLIS,
    )?;
    bounded(
        &format!("{field}.cpu_request_millis"),
        c.cpu_request_millis,
        MAX_CPU_MILLIS,
    )?;
    bounded(
        &format!("{field}.memory_limit_bytes"),
        c.memory_limit_bytes,
        MAX_BYTES,
    )?;
    Ok(())
}

fn probe(field: &str, probe: Option<&wire::Probe>) -> Result<(), Invalid> {
    use wire::probe::Handler;
    let port = |name: &str, port: u32| match port {
        1..=65_535 => Ok(()),
        _ => invalid(format!("{field}.{name}"), format!("{port} is not a port")),
    };
    match probe.and_then(|p| p.handler.as_ref()) {
        Some(Handler::TcpPort(p)) => port("tcp_port", *p),
        Some(Handler::HttpGet(get)) => {
            port("http_get.port", get.port)?;
            few(&format!("{field}.http_get.headers"), get.headers.len())?;
            text(&format!("{field}.http_get.path"), &get.path, MAX_TEXT).map(drop)
        }
        Some(Handler::Exec(exec)) => {
            few(&format!("{field}.exec.command"), exec.command.len())?;
            for arg in &exec.command {
                text(&format!("{field}.exec.command"), arg, MAX_ARG)?;
            }
            Ok(())
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> wire::ReplicaKey {
        wire::ReplicaKey {
            namespace: "default".into(),
            workload: "web".into(),
            workload_uid: "8d3f".into(),
            index: 0,
        }
    }

    #[test]
    fn telemetry_that_is_not_a_number_names_the_field() {
        for bad in [f32::NAN, f32::INFINITY, -1.0, 101.0] {
            let t = wire::Telemetry {
                cpu_utilization_percent: bad,
                ..Default::default()
            };
            assert_eq!(
                telemetry(&t).unwrap_err().field,
                "telemetry.cpu_utilization_percent"
            );
        }
        let t = wire::Telemetry {
            memory_used_bytes: -1,
            ..Default::default()
        };
        assert_eq!(
            telemetry(&t).unwrap_err().to_string(),
            "telemetry.memory_used_bytes: -1 is negative"
        );
    }

    #[test]
    fn a_report_without_workload_names_the_field() {
        let r = wire::ReplicaReport {
            key: Some(wire::ReplicaKey {
                workload: String::new(),
                ..key()
            }),
            phase: wire::ReplicaPhase::Running.into(),
            ..Default::default()
        };
        assert_eq!(report(&r).unwrap_err().field, "replica_report.key.workload");
    }

    #[test]
    fn names_that_would_leave_their_folder_are_refused() {
        for name in [
            "..",
            ".",
            "a..b",
            "-a",
            "a/b",
            "A",
            "a_b",
            "a.",
            &"a".repeat(254),
        ] {
            assert!(object_name("f", name).is_err(), "{name}");
        }
        for name in ["a", "web-1", "a.b-c.d", "0"] {
            assert!(object_name("f", name).is_ok(), "{name}");
        }
        let mut order = wire::StartReplica {
            key: Some(key()),
            generation: 1,
            pod: Some(wire::PodSpec {
                containers: vec![wire::Container {
                    name: "..".into(),
                    image: "i".into(),
                    ..Default::default()
                }],
                ..Default::default()
            }),
            ..Default::default()
        };
        let refused = start(&order).unwrap_err();
        assert_eq!(refused.field, "start_replica.pod.containers[0].name");
        order.pod.as_mut().unwrap().containers[0].name = "main".into();
        assert!(start(&order).is_ok());
    }

    #[test]
    fn refusals_stay_short_whatever_was_sent() {
        let long = "x".repeat(1 << 20);
        let r = wire::ReplicaReport {
            key: Some(key()),
            phase: 3,
            pod_ip: long.clone(),
            ..Default::default()
        };
        assert!(report(&r).unwrap_err().to_string().len() < 300);
        let e = wire::Event {
            reason: long,
            ..Default::default()
        };
        assert_eq!(event(&e).unwrap_err().field, "event.reason");
    }

    #[test]
    fn probes_and_gpu_shares_out_of_range_name_the_field() {
        let order = |probe: Option<wire::Probe>, millis| wire::StartReplica {
            key: Some(key()),
            generation: 1,
            pod: Some(wire::PodSpec {
                containers: vec![wire::Container {
                    name: "main".into(),
                    image: "i".into(),
                    liveness: probe,
                    ..Default::default()
                }],
                gpus: vec![wire::GpuShare {
                    uuid: "g".into(),
                    millis,
                }],
                ..Default::default()
            }),
            ..Default::default()
        };
        let probe = wire::Probe {
            handler: Some(wire::probe::Handler::TcpPort(70_000)),
            ..Default::default()
        };
        let refused = start(&order(Some(probe), 1000)).unwrap_err();
        assert_eq!(
            refused.field,
            "start_replica.pod.containers[0].liveness.tcp_port"
        );
        let refused = start(&order(None, 1001)).unwrap_err();
        assert_eq!(refused.field, "start_replica.pod.gpus[0].millis");
    }

    #[test]
    fn a_phase_from_the_future_is_refused_not_guessed() {
        let r = wire::ReplicaReport {
            key: Some(key()),
            phase: 99,
            ..Default::default()
        };
        assert_eq!(report(&r).unwrap_err().field, "replica_report.phase");
    }

    #[test]
    fn duplicate_gpus_and_containers_are_refused() {
        let gpu = wire::Gpu {
            uuid: "g".into(),
            ..Default::default()
        };
        let caps = wire::NodeCapabilities {
            cpu_arch: "aarch64".into(),
            gpus: vec![gpu.clone(), gpu],
            ..Default::default()
        };
        assert_eq!(
            capabilities(Some(&caps)).unwrap_err().field,
            "capabilities.gpus"
        );
        let c = wire::Container {
            name: "a".into(),
            image: "i".into(),
            ..Default::default()
        };
        let s = wire::StartReplica {
            key: Some(key()),
            generation: 1,
            pod: Some(wire::PodSpec {
                containers: vec![c.clone(), c],
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(
            start(&s).unwrap_err().field,
            "start_replica.pod.containers[1].name"
        );
    }
}
