//! Nodes as the Kubernetes services of the clouds make them: their names, labels, taints, providerIDs,
//! and what they have left for Pods. Instance types and capacity types are those of the region in the
//! table of published prices, more of the cheap ones.
//!
//! Sources: the services' documentation of reserved resources and of labels, and NVIDIA's GPU feature
//! discovery. What runs on every node of a real cluster (network, storage, metrics) takes nothing here.

mod aks;
mod eks;
mod gke;
mod gpu;
mod types;

use hyperion_placement::model::Provider;
use hyperion_providers::prices::PRICES;
use hyperion_providers::shapes::{Shape, shape};
use serde_json::{Map, Value, json};
pub use types::instance_types;

/// A Kubernetes service of a cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Amazon's, with managed node groups.
    Eks,
    /// Google's, with node pools.
    Gke,
    /// Microsoft's, with scale sets.
    Aks,
}

impl Service {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Eks, Self::Gke, Self::Aks];

    /// Its name in lower case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Eks => "eks",
            Self::Gke => "gke",
            Self::Aks => "aks",
        }
    }

    /// Whose it is.
    #[must_use]
    pub fn provider(self) -> Provider {
        match self {
            Self::Eks => Provider::Aws,
            Self::Gke => Provider::Gcp,
            Self::Aks => Provider::Azure,
        }
    }

    /// A region of it that has prices: the United States for Amazon and Microsoft, the European Union
    /// for Google.
    #[must_use]
    pub fn region(self) -> &'static str {
        match self {
            Self::Eks => "us-east-1",
            Self::Gke => "europe-west4",
            Self::Aks => "eastus",
        }
    }
}

/// Nodes of one instance type and one capacity type.
#[derive(Debug, Clone, Copy)]
struct Pool {
    shape: &'static Shape,
    spot: bool,
    /// How many nodes it has, against the others.
    weight: u32,
}

/// One node to be made.
#[derive(Debug, Clone, Copy)]
struct Place<'a> {
    pool: Pool,
    region: &'a str,
    /// Of three.
    zone: u32,
    /// Number among all nodes of the cluster.
    number: u32,
    /// Number in its pool.
    in_pool: u32,
}

/// What tells nodes of one service from those of another.
struct Parts {
    name: String,
    provider_id: String,
    zone: String,
    labels: Vec<(&'static str, String)>,
    /// Key, value; all of them keep Pods away that do not tolerate them.
    taints: Vec<(&'static str, &'static str)>,
    allocatable: Allocatable,
}

/// What a node has left for Pods.
struct Allocatable {
    milli_cpu: u64,
    memory_mib: u64,
    pods: u32,
}

/// The first `count` nodes of a cluster in a region, always the same ones. Each is a whole object for
/// a POST, with its status; none of it says that the node is ready.
///
/// No nodes for a region without prices.
#[must_use]
pub fn nodes(service: Service, region: &str, count: usize) -> Vec<Value> {
    let pools = pools(service.provider(), region);
    let mut made = vec![0_u32; pools.len()];
    let total: u32 = pools.iter().map(|pool| pool.weight).sum();
    // The pool that is furthest behind its share gets the next node.
    let behind = |made: &[u32], at: usize, number: u32| {
        let share = pools.get(at).map_or(0, |pool| pool.weight);
        let has = made.get(at).copied().unwrap_or_default();
        i64::from(share) * i64::from(number + 1) - i64::from(has) * i64::from(total)
    };
    (0..u32::try_from(count).unwrap_or(u32::MAX))
        .map_while(|number| {
            let next = (0..pools.len())
                .rev()
                .max_by_key(|&at| behind(&made, at, number))?;
            let in_pool = made.get_mut(next)?;
            let place = Place {
                pool: *pools.get(next)?,
                region,
                zone: *in_pool % 3,
                number,
                in_pool: *in_pool,
            };
            *in_pool += 1;
            Some(object(service, &place))
        })
        .collect()
}

fn pools(provider: Provider, region: &str) -> Vec<Pool> {
    let rows = PRICES
        .iter()
        .filter(|row| row.0 == provider && row.1 == region);
    let mut pools = Vec::new();
    for row in rows {
        let Some(shape) = shape(provider, row.2) else {
            continue;
        };
        // A cluster has few of its dear machines.
        let weight = match shape.gpus {
            0 => 12,
            1 => 6,
            2..=4 => 2,
            _ => 1,
        };
        pools.push(Pool {
            shape,
            spot: false,
            weight,
        });
        if row.4.is_some() {
            pools.push(Pool {
                shape,
                spot: true,
                weight,
            });
        }
    }
    pools
}

fn object(service: Service, place: &Place<'_>) -> Value {
    let shape = place.pool.shape;
    let parts = match service {
        Service::Eks => eks::node(place),
        Service::Gke => gke::node(place),
        Service::Aks => aks::node(place),
    };
    let mut labels = Map::new();
    let mut label = |key: &str, value: &str| {
        labels.insert(key.to_owned(), Value::from(value));
    };
    // What kubelet and the cloud's controller say of every node, old names too.
    for key in ["kubernetes.io/arch", "beta.kubernetes.io/arch"] {
        label(key, shape.arch());
    }
    for key in ["kubernetes.io/os", "beta.kubernetes.io/os"] {
        label(key, "linux");
    }
    for key in [
        "node.kubernetes.io/instance-type",
        "beta.kubernetes.io/instance-type",
    ] {
        label(key, shape.instance_type);
    }
    for prefix in [
        "topology.kubernetes.io",
        "failure-domain.beta.kubernetes.io",
    ] {
        label(&format!("{prefix}/region"), place.region);
        label(&format!("{prefix}/zone"), &parts.zone);
    }
    label("kubernetes.io/hostname", &parts.name);
    for (key, value) in &parts.labels {
        label(key, value);
    }
    let taints: Vec<Value> = parts
        .taints
        .iter()
        .map(|(key, value)| json!({ "key": key, "value": value, "effect": "NoSchedule" }))
        .collect();
    let mib = u64::from(shape.memory_gib) * 1024;
    let resources = |milli_cpu: u64, mib: u64| {
        let mut all = json!({
            "cpu": format!("{milli_cpu}m"),
            "memory": format!("{}Ki", mib * 1024),
            "pods": parts.allocatable.pods.to_string(),
            "ephemeral-storage": "95491281146",
            "hugepages-1Gi": "0",
            "hugepages-2Mi": "0",
        });
        if shape.gpus > 0 {
            all["nvidia.com/gpu"] = json!(shape.gpus.to_string());
        }
        all
    };
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": parts.name, "labels": labels },
        "spec": { "providerID": parts.provider_id, "taints": taints },
        "status": {
            "capacity": resources(u64::from(shape.vcpus) * 1000, seen_by_kernel(mib)),
            "allocatable": resources(parts.allocatable.milli_cpu, parts.allocatable.memory_mib),
            "addresses": [
                { "type": "InternalIP", "address": address(place.number) },
                { "type": "Hostname", "address": parts.name },
            ],
            "nodeInfo": {
                "architecture": shape.arch(),
                "operatingSystem": "linux",
                "bootID": "",
                "machineID": "",
                "systemUUID": "",
                "kernelVersion": "6.12.0",
                "osImage": "",
                "containerRuntimeVersion": "containerd://2.1.5",
                "kubeletVersion": "v1.36.3",
                "kubeProxyVersion": "",
            },
        },
    })
}

/// Address of a node's number in its network, 10.0.0.0/16 with 254 hosts to a subnet.
fn address(number: u32) -> String {
    format!("10.0.{}.{}", number / 254 % 256, number % 254 + 1)
}

/// Of a machine's memory the kernel keeps some for itself: about 2.5 %.
fn seen_by_kernel(mib: u64) -> u64 {
    mib - mib / 40
}

/// Processor time that EKS and GKE keep: 6 % of the first core, 1 % of the second, 0.5 % of the next
/// two, 0.25 % of all others; thousandths of a core.
fn reserved_cpu(vcpus: u32) -> u64 {
    let cores = u64::from(vcpus);
    let others = cores.saturating_sub(4);
    (600 + 100 * cores.min(2).saturating_sub(1)
        + 50 * cores.clamp(2, 4).saturating_sub(2)
        + 25 * others)
        .div_ceil(10)
}

/// Memory that GKE and AKS keep: 25 % of the first 4 GiB, 20 % of the next 4, 10 % of the next 8, 6 %
/// of the next 112, 2 % of all others; MiB.
fn reserved_memory(mib: u64) -> u64 {
    let mut left = mib;
    let mut kept = 0;
    for (gib, percent) in [(4, 25), (4, 20), (8, 10), (112, 6), (u64::MAX / 1024, 2)] {
        let part = left.min(gib * 1024);
        kept += part * percent / 100;
        left -= part;
    }
    kept
}

/// A number that looks random and is always the same: SplitMix64.
fn hash(of: u64) -> u64 {
    let mut z = of.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `length` digits of the given ones.
fn digits(mut number: u64, alphabet: &[u8], length: usize) -> String {
    let base = alphabet.len() as u64;
    let mut text: Vec<char> = Vec::with_capacity(length);
    for _ in 0..length {
        let digit = usize::try_from(number % base).unwrap_or_default();
        text.push(char::from(alphabet.get(digit).copied().unwrap_or(b'0')));
        number /= base;
    }
    text.iter().rev().collect()
}

const BASE36: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// What a pool is called: its instance type in lower case without what names may not have.
fn pool_name(pool: Pool) -> String {
    let name: String = pool
        .shape
        .instance_type
        .to_ascii_lowercase()
        .replace(['.', '_'], "-");
    if pool.spot {
        format!("{name}-spot")
    } else {
        name
    }
}

#[cfg(test)]
mod tests;
