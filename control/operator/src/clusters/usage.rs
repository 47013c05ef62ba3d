//! What a Pod takes of its node, as the kubelet counts it.

use std::collections::BTreeMap;

use hyperion_api::quantity;
use hyperion_api::request::GPU;
use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// What Pods take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    /// Bytes.
    pub memory_bytes: u64,
    /// Whole GPUs.
    pub gpus: u64,
    /// Pods.
    pub pods: u64,
}

impl Usage {
    /// Of one Pod: its containers together, or what one of its init containers needs beside the
    /// sidecars before it, whatever is more; and the overhead of its runtime class. A quantity that
    /// can't be read takes nothing: the kubelet has the last word.
    #[must_use]
    pub fn of(pod: &PodSpec) -> Self {
        let mut running = pod
            .containers
            .iter()
            .map(asked)
            .fold(Self::default(), Self::plus);
        let mut sidecars = Self::default();
        let mut starting = Self::default();
        for container in pod.init_containers.iter().flatten() {
            let asked = asked(container);
            if container.restart_policy.as_deref() == Some("Always") {
                sidecars = sidecars.plus(asked);
                starting = starting.most(sidecars);
            } else {
                starting = starting.most(sidecars.plus(asked));
            }
        }
        running = running.plus(sidecars).most(starting);
        // Said for the whole Pod, where it is.
        let whole = pod.resources.as_ref().map(requirements);
        if let Some(whole) = whole {
            running.cpu_millis = whole.0.unwrap_or(running.cpu_millis);
            running.memory_bytes = whole.1.unwrap_or(running.memory_bytes);
        }
        let overhead = read(pod.overhead.as_ref(), None);
        running.plus(Self {
            cpu_millis: overhead.0.unwrap_or(0),
            memory_bytes: overhead.1.unwrap_or(0),
            gpus: 0,
            pods: 1,
        })
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_add(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
            gpus: self.gpus.saturating_add(other.gpus),
            pods: self.pods.saturating_add(other.pods),
        }
    }

    /// Without the other.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_sub(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
            gpus: self.gpus.saturating_sub(other.gpus),
            pods: self.pods.saturating_sub(other.pods),
        }
    }

    fn most(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.max(other.cpu_millis),
            memory_bytes: self.memory_bytes.max(other.memory_bytes),
            gpus: self.gpus.max(other.gpus),
            pods: self.pods.max(other.pods),
        }
    }
}

type Asked = (Option<u64>, Option<u64>, Option<u64>);

fn asked(container: &Container) -> Usage {
    let (cpu, memory, gpus) = container
        .resources
        .as_ref()
        .map_or((None, None, None), requirements);
    Usage {
        cpu_millis: cpu.unwrap_or(0),
        memory_bytes: memory.unwrap_or(0),
        gpus: gpus.unwrap_or(0),
        pods: 0,
    }
}

fn requirements(resources: &ResourceRequirements) -> Asked {
    read(resources.requests.as_ref(), resources.limits.as_ref())
}

/// Cores, bytes and GPUs: the request, or else the limit.
fn read(
    requests: Option<&BTreeMap<String, Quantity>>,
    limits: Option<&BTreeMap<String, Quantity>>,
) -> Asked {
    let find = |name: &str| {
        let of = |list: Option<&BTreeMap<String, Quantity>>| list?.get(name).cloned();
        of(requests).or_else(|| of(limits))
    };
    let gpus = |f: &str, t: &str| quantity::count(f, t, u64::MAX);
    (
        find("cpu").and_then(|q| quantity::cpu_millis("cpu", &q.0).ok()),
        find("memory").and_then(|q| quantity::bytes("memory", &q.0).ok()),
        find(GPU).and_then(|q| gpus(GPU, &q.0).ok()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn of(spec: Value) -> (u64, u64, u64) {
        let u = Usage::of(&serde_json::from_value(spec).unwrap());
        assert_eq!(u.pods, 1);
        (u.cpu_millis, u.memory_bytes >> 20, u.gpus)
    }

    fn container(cpu: &str, memory: &str) -> Value {
        json!({ "name": "c", "resources": { "requests": { "cpu": cpu, "memory": memory } } })
    }

    #[test]
    fn containers_are_added_and_init_containers_are_not() {
        let pod = json!({ "containers": [container("500m", "1Gi"), container("1", "1Gi")],
            "initContainers": [container("2", "512Mi"), container("100m", "3Gi")] });
        assert_eq!(of(pod), (2000, 3072, 0));
    }

    #[test]
    fn a_sidecar_goes_on_beside_what_starts_after_it() {
        let mut sidecar = container("1", "1Gi");
        sidecar["restartPolicy"] = json!("Always");
        let pod = json!({ "containers": [container("1", "1Gi")],
            "initContainers": [sidecar, container("3", "100Mi")] });
        assert_eq!(of(pod), (4000, 2048, 0));
    }

    #[test]
    fn limits_count_without_requests_and_overhead_on_top() {
        let pod = json!({ "overhead": { "cpu": "250m", "memory": "120Mi" },
            "containers": [{ "name": "c", "resources": { "limits": { "cpu": "1", "nvidia.com/gpu": "2" } } }] });
        assert_eq!(of(pod), (1250, 120, 2));
    }

    #[test]
    fn what_is_said_for_the_pod_counts() {
        let pod = json!({ "resources": { "requests": { "cpu": "3" } },
            "containers": [container("1", "1Gi")] });
        assert_eq!(of(pod), (3000, 1024, 0));
    }

    #[test]
    fn a_bad_quantity_takes_nothing() {
        let pod = json!({ "containers": [container("lots", "-1")] });
        assert_eq!(of(pod), (0, 0, 0));
    }
}
