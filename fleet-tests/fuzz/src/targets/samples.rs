//! Valid messages with every field set.

use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::*;

/// A replica's key.
#[must_use]
pub fn key() -> ReplicaKey {
    ReplicaKey {
        namespace: "default".to_owned(),
        workload: "web".to_owned(),
        workload_uid: "8d3f0a2c-1111-2222-3333-444455556666".to_owned(),
        index: 3,
    }
}

/// Capabilities.
#[must_use]
pub fn capabilities() -> NodeCapabilities {
    let labels = [
        ("hyperion.io/provider", "aws"),
        ("hyperion.io/geography", "EU"),
        ("hyperion.io/price-per-hour", "0.25"),
        ("hyperion.io/capacity-type", "spot"),
        ("topology.kubernetes.io/region", "us-east-1"),
        ("topology.kubernetes.io/zone", "us-east-1a"),
        ("node.kubernetes.io/instance-type", "g5.xlarge"),
    ];
    NodeCapabilities {
        cpu_arch: "aarch64".to_owned(),
        memory_bytes: 8 << 30,
        gpus: vec![Gpu {
            uuid: "GPU-1".to_owned(),
            model: "Orin".to_owned(),
            memory_bytes: 8 << 30,
        }],
        labels: labels
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into_iter()
            .collect(),
        cpu_millis: 6000,
        disk_bytes: 64 << 30,
        os: "linux".to_owned(),
        kernel: "6.1".to_owned(),
        container_runtime: "containerd".to_owned(),
    }
}

/// A report.
#[must_use]
pub fn report() -> ReplicaReport {
    ReplicaReport {
        key: Some(key()),
        generation: 7,
        phase: ReplicaPhase::Running.into(),
        ready: true,
        reason: "Started".to_owned(),
        message: "runs".to_owned(),
        restarts: 1,
        pod_ip: "198.18.0.7".to_owned(),
        exit_code: 137,
        container_ids: vec!["abc".to_owned()],
    }
}

/// An order to start.
#[must_use]
pub fn start() -> StartReplica {
    let probe = |handler| Probe {
        handler: Some(handler),
        initial_delay_seconds: 1,
        period_seconds: 2,
        timeout_seconds: 3,
        success_threshold: 1,
        failure_threshold: 3,
    };
    let variable = EnvVar {
        name: "A".to_owned(),
        value: "b".to_owned(),
    };
    StartReplica {
        key: Some(key()),
        generation: 7,
        pod: Some(PodSpec {
            containers: vec![Container {
                name: "main".to_owned(),
                image: "localhost/demo:1".to_owned(),
                command: vec!["/demo".to_owned()],
                args: vec!["--x".to_owned()],
                env: vec![variable.clone()],
                ports: vec![Port {
                    name: "http".to_owned(),
                    container_port: 8080,
                    host_port: 18080,
                    protocol: "TCP".to_owned(),
                }],
                cpu_limit_millis: 2000,
                memory_limit_bytes: 4 << 30,
                cpu_request_millis: 500,
                working_dir: "/".to_owned(),
                liveness: Some(probe(probe::Handler::HttpGet(HttpGet {
                    path: "/healthz".to_owned(),
                    port: 8080,
                    scheme: "http".to_owned(),
                    headers: vec![variable],
                }))),
                readiness: Some(probe(probe::Handler::Exec(ExecAction {
                    command: vec!["true".to_owned()],
                }))),
                pull_policy: PullPolicy::IfNotPresent.into(),
            }],
            restart_policy: RestartPolicy::Always.into(),
            termination_grace_period_seconds: 30,
            host_network: true,
            labels: [("a".to_owned(), "b".to_owned())].into_iter().collect(),
            gpus: vec![GpuShare {
                uuid: "GPU-1".to_owned(),
                millis: 500,
            }],
        }),
        command_id: 9,
        ..Default::default()
    }
}

/// One message of each kind.
#[must_use]
pub fn messages(node: &str) -> Vec<StreamMessage> {
    let bodies = [
        Body::Hello(Hello {
            node_id: node.to_owned(),
            boot_id: "boot-1".to_owned(),
            capabilities: Some(capabilities()),
            replicas: vec![report()],
            agent_version: "0.1.0".to_owned(),
            telemetry_interval_ms: 1000,
            runtime_problem: "no such file".to_owned(),
            ..Default::default()
        }),
        Body::RuntimeState(RuntimeState {
            problem: "connection refused".to_owned(),
        }),
        Body::Telemetry(telemetry()),
        Body::ReplicaReport(report()),
        Body::Event(Event {
            id: 4,
            unix_ms: 1_700_000_000_000,
            reason: "ImagePulled".to_owned(),
            message: "in 3 s".to_owned(),
            warning: true,
            replica: Some(key()),
        }),
        Body::CommandResult(CommandResult {
            command_id: 9,
            ok: false,
            error: "no such image".to_owned(),
        }),
        Body::RenewCertificate(RenewCertificate {
            csr_der: vec![0x30, 0x03, 0x02, 0x01, 0x00],
        }),
        Body::LogChunk(LogChunk {
            request_id: 1,
            data: b"line\n".to_vec(),
            end: true,
            error: String::new(),
        }),
        Body::Welcome(Welcome {
            replicas: vec![start()],
            replicas_complete: true,
            wall_clock_unix_ms: 1_700_000_000_000,
            ..Default::default()
        }),
        Body::StartReplica(start()),
        Body::StopReplica(StopReplica {
            key: Some(key()),
            generation: 8,
            grace_seconds: 5,
            command_id: 10,
        }),
        Body::FetchLogs(FetchLogs {
            request_id: 2,
            key: Some(key()),
            container: "main".to_owned(),
            tail_lines: 10,
            follow: true,
            cancel: false,
        }),
        Body::Drain(Drain { command_id: 11 }),
        Body::EventAck(EventAck { id: 4 }),
        Body::NodeState(NodeState {
            mode: "connected".to_owned(),
            update: Some(update()),
            ..Default::default()
        }),
        Body::UpdateOrder(UpdateOrder {
            id: "9f86d081884c7d65-0".to_owned(),
            bundle: Some(Bundle {
                url: "https://updates.example/2.swu".to_owned(),
                sha256: vec![7; 32],
                size_bytes: 1 << 30,
                version: "2.0".to_owned(),
                kind: BundleKind::System.into(),
            }),
            activate: true,
            ready_seconds: 300,
        }),
    ];
    bodies
        .into_iter()
        .map(|body| StreamMessage { body: Some(body) })
        .collect()
}

/// What a node says of its slots.
fn update() -> UpdateState {
    UpdateState {
        machine: "board".to_owned(),
        system_version: "1.0".to_owned(),
        slots: vec![Slot {
            name: "a".to_owned(),
            version: "1.0".to_owned(),
            state: SlotState::Good.into(),
            running: true,
        }],
        progress: Some(UpdateProgress {
            order_id: "9f86d081884c7d65-0".to_owned(),
            phase: UpdatePhase::RolledBack.into(),
            percent: 100,
            reason: "NotReadyInTime".to_owned(),
            message: "not Ready after 300 s".to_owned(),
            version: "2.0".to_owned(),
        }),
    }
}

/// Telemetry.
#[must_use]
pub fn telemetry() -> Telemetry {
    Telemetry {
        cpu_utilization_percent: 12.5,
        gpu_status: vec![GpuStatus {
            uuid: "GPU-1".to_owned(),
            utilization_percent: 50.0,
            memory_used_bytes: 1 << 30,
            temperature_celsius: 60.0,
            power_watts: 15.0,
        }],
        network_status: Some(NetworkStatus {
            rx_bytes_per_second: 1000,
            tx_bytes_per_second: 2000,
            control_rtt_ms: 3.5,
        }),
        memory_used_bytes: 1 << 30,
        disk_used_bytes: 1 << 31,
        load1: 0.7,
        temperatures: vec![Temperature {
            sensor: "cpu".to_owned(),
            celsius: 47.0,
        }],
        uptime_ms: 1000,
        sequence: 1,
        dropped_total: 0,
    }
}
