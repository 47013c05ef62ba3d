//! Pod of the fleet -> sandbox and container of CRI.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyperion_proto::agent_v1::{Container, PodSpec};
use hyperion_proto::domain::{ReplicaKey, Start};
use k8s_cri::v1 as cri;

use super::labels;
use crate::telemetry::sensors::UUID_PREFIX;

/// Period of the CPU quota, microseconds; Kubernetes' value.
const CPU_PERIOD_US: i64 = 100_000;
/// Smallest quota that Linux takes, microseconds.
const MIN_CPU_QUOTA_US: i64 = 1_000;
/// Fewest shares that Linux takes.
const MIN_CPU_SHARES: i64 = 2;
/// Workloads are killed before containerd and the agent when memory runs out.
const OOM_SCORE_ADJ: i64 = 800;
/// Longest host name that Linux takes, bytes.
const MAX_HOSTNAME: usize = 63;
/// Grace where the pod names none, seconds; Kubernetes' value.
const DEFAULT_GRACE_SECONDS: u32 = 30;

/// Folder of a replica's logs.
#[must_use]
pub fn log_dir(root: &Path, key: &ReplicaKey) -> PathBuf {
    root.join(format!(
        "{}_{}-{}_{}",
        key.namespace, key.workload, key.index, key.uid
    ))
}

/// Log of one start of a container, below [`log_dir`].
#[must_use]
pub fn log_path(container: &str, attempt: u32) -> PathBuf {
    Path::new(container).join(format!("{attempt}.log"))
}

/// Time between SIGTERM and SIGKILL.
#[must_use]
pub fn grace(pod: &PodSpec) -> Duration {
    let seconds = match pod.termination_grace_period_seconds {
        0 => DEFAULT_GRACE_SECONDS,
        n => n,
    };
    Duration::from_secs(seconds.into())
}

/// Sandbox of a replica.
#[must_use]
pub fn sandbox_config(
    node_id: &str,
    log_root: &Path,
    start: &Start,
    hash: &str,
    attempt: u32,
) -> cri::PodSandboxConfig {
    let key = &start.key;
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            // Several agents share one containerd, and two may run one replica for a moment
            // while it moves: the node is part of the name that CRI holds unique.
            name: format!("{}-{}.{node_id}", key.workload, key.index),
            uid: key.uid.clone(),
            namespace: key.namespace.clone(),
            attempt,
        }),
        hostname: if start.pod.host_network {
            String::new()
        } else {
            hostname(key)
        },
        log_directory: log_dir(log_root, key).display().to_string(),
        port_mappings: port_mappings(&start.pod),
        labels: labels::of_replica(node_id, key, &start.pod, hash),
        annotations: HashMap::from([
            (labels::GENERATION.to_owned(), start.generation.to_string()),
            (
                labels::GRACE_SECONDS.to_owned(),
                grace(&start.pod).as_secs().to_string(),
            ),
        ]),
        linux: Some(cri::LinuxPodSandboxConfig {
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(&start.pod)),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Container of a replica.
#[must_use]
pub fn container_config(
    node_id: &str,
    start: &Start,
    hash: &str,
    container: &Container,
    attempt: u32,
) -> cri::ContainerConfig {
    let text = |parts: &[String]| parts.to_vec();
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata {
            name: container.name.clone(),
            attempt,
        }),
        image: Some(cri::ImageSpec {
            image: container.image.clone(),
            ..Default::default()
        }),
        command: text(&container.command),
        args: text(&container.args),
        working_dir: container.working_dir.clone(),
        envs: environment(&start.pod, container),
        labels: labels::of_replica(node_id, &start.key, &start.pod, hash),
        log_path: log_path(&container.name, attempt).display().to_string(),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources(container)),
            security_context: Some(cri::LinuxContainerSecurityContext {
                namespace_options: Some(namespaces(&start.pod)),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

fn hostname(key: &ReplicaKey) -> String {
    let index = format!("-{}", key.index);
    let room = MAX_HOSTNAME.saturating_sub(index.len());
    // Names are ASCII, checked where the wire was read.
    let name: String = key.workload.chars().take(room).collect();
    let name = name.replace('.', "-");
    format!("{}{index}", name.trim_matches('-'))
}

fn namespaces(pod: &PodSpec) -> cri::NamespaceOption {
    let network = if pod.host_network {
        cri::NamespaceMode::Node
    } else {
        cri::NamespaceMode::Pod
    };
    cri::NamespaceOption {
        network: network.into(),
        pid: cri::NamespaceMode::Container.into(),
        ipc: cri::NamespaceMode::Pod.into(),
        ..Default::default()
    }
}

fn port_mappings(pod: &PodSpec) -> Vec<cri::PortMapping> {
    if pod.host_network {
        return Vec::new();
    }
    let ports = pod.containers.iter().flat_map(|c| &c.ports);
    ports
        .filter(|port| port.host_port != 0)
        .filter_map(|port| {
            let protocol = if port.protocol.eq_ignore_ascii_case("udp") {
                cri::Protocol::Udp
            } else {
                cri::Protocol::Tcp
            };
            Some(cri::PortMapping {
                protocol: protocol.into(),
                container_port: port.container_port.try_into().ok()?,
                host_port: port.host_port.try_into().ok()?,
                host_ip: String::new(),
            })
        })
        .collect()
}

fn environment(pod: &PodSpec, container: &Container) -> Vec<cri::KeyValue> {
    let mut envs: Vec<_> = container
        .env
        .iter()
        .map(|var| cri::KeyValue {
            key: var.name.clone(),
            value: var.value.clone(),
        })
        .collect();
    if !pod.gpus.is_empty() {
        // The scheduler's choice stands over what the pod says.
        envs.retain(|env| env.key != "NVIDIA_VISIBLE_DEVICES");
        let uuids: Vec<_> = pod.gpus.iter().map(|gpu| gpu.uuid.as_str()).collect();
        envs.push(cri::KeyValue {
            key: "NVIDIA_VISIBLE_DEVICES".to_owned(),
            // A board's own GPU is none that NVIDIA's container runtime can be asked for by name.
            value: if uuids.iter().any(|uuid| uuid.starts_with(UUID_PREFIX)) {
                "all".to_owned()
            } else {
                uuids.join(",")
            },
        });
    }
    envs
}

fn resources(container: &Container) -> cri::LinuxContainerResources {
    let limit = container.cpu_limit_millis;
    let request = match container.cpu_request_millis {
        0 => limit,
        n => n,
    };
    cri::LinuxContainerResources {
        cpu_period: CPU_PERIOD_US,
        cpu_quota: match limit {
            0 => -1,
            n => n.saturating_mul(CPU_PERIOD_US / 1000).max(MIN_CPU_QUOTA_US),
        },
        cpu_shares: (request.saturating_mul(1024) / 1000).clamp(MIN_CPU_SHARES, 262_144),
        memory_limit_in_bytes: container.memory_limit_bytes,
        oom_score_adj: OOM_SCORE_ADJ,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyperion_proto::agent_v1::{EnvVar, GpuShare, Port};

    fn start(pod: PodSpec) -> Start {
        Start {
            key: ReplicaKey {
                namespace: "default".into(),
                workload: "a.very-long-name".repeat(8),
                uid: "u".into(),
                index: 12,
            },
            generation: 3,
            pod,
        }
    }

    #[test]
    fn limits_become_quota_shares_and_bytes() {
        let r = resources(&Container {
            cpu_limit_millis: 1500,
            cpu_request_millis: 250,
            memory_limit_bytes: 64 << 20,
            ..Default::default()
        });
        assert_eq!((r.cpu_quota, r.cpu_period), (150_000, 100_000));
        assert_eq!(r.cpu_shares, 256);
        assert_eq!(r.memory_limit_in_bytes, 64 << 20);
    }

    #[test]
    fn no_limit_means_no_quota_and_a_limit_alone_is_the_request() {
        let none = resources(&Container::default());
        assert_eq!((none.cpu_quota, none.cpu_shares), (-1, 2));
        let limit = resources(&Container {
            cpu_limit_millis: 1,
            ..Default::default()
        });
        assert_eq!((limit.cpu_quota, limit.cpu_shares), (1000, 2));
    }

    #[test]
    fn gpus_of_the_scheduler_hide_those_of_the_pod() {
        let pod = PodSpec {
            gpus: ["GPU-1", "GPU-2"]
                .map(|uuid| GpuShare {
                    uuid: uuid.into(),
                    millis: 1000,
                })
                .to_vec(),
            ..Default::default()
        };
        let container = Container {
            env: vec![EnvVar {
                name: "NVIDIA_VISIBLE_DEVICES".into(),
                value: "all".into(),
            }],
            ..Default::default()
        };
        let envs = environment(&pod, &container);
        assert_eq!(envs.len(), 1);
        assert_eq!(envs[0].value, "GPU-1,GPU-2");
    }

    #[test]
    fn the_gpu_of_a_board_goes_by_no_name() {
        let share = GpuShare {
            uuid: "tegra-17000000.gpu".into(),
            millis: 500,
        };
        let pod = PodSpec {
            gpus: vec![share],
            ..Default::default()
        };
        let envs = environment(&pod, &Container::default());
        assert_eq!(envs[0].value, "all");
    }

    #[test]
    fn host_network_needs_no_port_mappings_and_no_host_name() {
        let port = Port {
            container_port: 80,
            host_port: 8080,
            protocol: "udp".into(),
            ..Default::default()
        };
        let mut pod = PodSpec {
            containers: vec![Container {
                ports: vec![port],
                ..Default::default()
            }],
            ..Default::default()
        };
        let own = sandbox_config("n", Path::new("/l"), &start(pod.clone()), "h", 0);
        assert_eq!(own.port_mappings[0].protocol, 1);
        assert!(own.hostname.len() <= MAX_HOSTNAME && own.hostname.ends_with("-12"));
        pod.host_network = true;
        let host = sandbox_config("n", Path::new("/l"), &start(pod), "h", 0);
        assert!(host.port_mappings.is_empty() && host.hostname.is_empty());
    }
}
