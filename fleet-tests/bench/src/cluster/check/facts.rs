//! What machines have and Pods ask, read from objects.

use std::collections::BTreeMap;

use hyperion_providers::prices::PRICES;
use serde_json::Value;

use super::World;

/// A machine.
#[derive(Debug, Clone, Default)]
pub(crate) struct Machine {
    /// Name of the HyperionNode.
    pub id: String,
    /// The cluster that it is a node of.
    pub cluster: Option<String>,
    pub provider: String,
    pub geography: String,
    pub tier: String,
    /// It may be taken back.
    pub spot: bool,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Value>,
    pub has: Asked,
    /// US dollars per hour, where the published table has it.
    pub price: Option<f64>,
}

/// Resources: cores, bytes, whole GPUs, Pods.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Asked {
    cpu: f64,
    memory: f64,
    gpus: f64,
    pods: f64,
}

impl Asked {
    /// What a Pod asks: Kubernetes' sum, with limits where requests are missing.
    pub(crate) fn of_pod(spec: &Value) -> Self {
        let mut all = Self {
            pods: 1.0,
            ..Self::default()
        };
        let containers = pointer(spec, "/containers").as_array();
        for container in containers.into_iter().flatten() {
            let one = Self::of_container(container);
            all.cpu += one.cpu;
            all.memory += one.memory;
            all.gpus += one.gpus;
        }
        let first = pointer(spec, "/initContainers").as_array();
        for container in first.into_iter().flatten() {
            let one = Self::of_container(container);
            all.cpu = all.cpu.max(one.cpu);
            all.memory = all.memory.max(one.memory);
            all.gpus = all.gpus.max(one.gpus);
        }
        all
    }

    fn of_container(container: &Value) -> Self {
        let read = |resource: &str| {
            let at = |list: &str| {
                let value = pointer(container, &format!("/resources/{list}/{resource}"));
                (!value.is_null()).then(|| quantity(value))
            };
            at("requests").or_else(|| at("limits")).unwrap_or_default()
        };
        Self {
            cpu: read("cpu"),
            memory: read("memory"),
            gpus: read("nvidia.com~1gpu"),
            pods: 0.0,
        }
    }

    /// What a list of resources says a machine has.
    fn of_list(list: &Value) -> Self {
        Self {
            cpu: quantity(pointer(list, "/cpu")),
            memory: quantity(pointer(list, "/memory")),
            gpus: quantity(pointer(list, "/nvidia.com~1gpu")),
            pods: quantity(pointer(list, "/pods")),
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.cpu += other.cpu;
        self.memory += other.memory;
        self.gpus += other.gpus;
        self.pods += other.pods;
    }

    /// Each resource by name, beside what there is of it.
    pub(crate) fn beside(&self, has: &Self) -> [(&'static str, f64, f64); 4] {
        [
            ("cpu", self.cpu, has.cpu),
            ("memory", self.memory, has.memory),
            ("nvidia.com/gpu", self.gpus, has.gpus),
            ("pods", self.pods, has.pods),
        ]
    }

    /// The largest share of a machine's cores, memory and GPUs.
    pub(crate) fn share_of(&self, has: &Self) -> f64 {
        let share = |asked: f64, has: f64| if has > 0.0 { asked / has } else { 0.0 };
        share(self.cpu, has.cpu)
            .max(share(self.memory, has.memory))
            .max(share(self.gpus, has.gpus))
            .min(1.0)
    }
}

/// All machines by the name of their HyperionNode.
pub(super) fn machines(world: &World, wrong: &mut Vec<String>) -> BTreeMap<String, Machine> {
    let mut all = BTreeMap::new();
    for (cluster, nodes, _) in &world.clusters {
        for node in nodes {
            let machine = of_cluster(cluster, node);
            if machine.geography.is_empty() {
                wrong.push(format!("{}: its geography is not known here", machine.id));
            }
            all.insert(machine.id.clone(), machine);
        }
    }
    for node in &world.fleet {
        if pointer(node, "/spec/cluster").is_null() {
            let machine = device(node);
            all.insert(machine.id.clone(), machine);
        }
    }
    all
}

/// A node of a cluster.
pub(crate) fn of_cluster(cluster: &str, node: &Value) -> Machine {
    let labels = strings(pointer(node, "/metadata/labels"));
    let get = |key: &str| labels.get(key).map_or("", String::as_str);
    let provider = match text(node, "/spec/providerID").split("://").next() {
        Some("aws") => "aws",
        Some("gce") => "gcp",
        Some("azure") => "azure",
        _ => "",
    };
    let spot = get("eks.amazonaws.com/capacityType") == "SPOT"
        || get("cloud.google.com/gke-spot") == "true"
        || get("kubernetes.azure.com/scalesetpriority") == "spot";
    let region = get("topology.kubernetes.io/region");
    let row = PRICES.iter().find(|row| {
        row.0.as_str() == provider
            && row.1 == region
            && row.2 == get("node.kubernetes.io/instance-type")
    });
    Machine {
        id: format!("{cluster}.{}", text(node, "/metadata/name")),
        cluster: Some(cluster.to_owned()),
        provider: provider.to_owned(),
        geography: geography(region).to_owned(),
        tier: "cloud".to_owned(),
        spot,
        price: row.and_then(|row| if spot { row.4 } else { Some(row.3) }),
        taints: pointer(node, "/spec/taints")
            .as_array()
            .cloned()
            .unwrap_or_default(),
        has: Asked::of_list(pointer(node, "/status/allocatable")),
        labels,
    }
}

/// A device with an agent, as its object describes it: there is nothing else to read.
fn device(node: &Value) -> Machine {
    let mut has = Asked::of_list(pointer(node, "/status/allocatable"));
    // Agents have no limit of their own.
    has.pods = f64::INFINITY;
    let mut labels = strings(pointer(node, "/status/labels"));
    labels.insert(
        "kubernetes.io/arch".to_owned(),
        text(node, "/status/arch").to_owned(),
    );
    Machine {
        id: text(node, "/metadata/name").to_owned(),
        cluster: None,
        provider: text(node, "/status/provider").to_owned(),
        geography: text(node, "/status/geography").to_owned(),
        tier: text(node, "/status/tier").to_owned(),
        spot: false,
        price: None,
        taints: pointer(node, "/spec/taints")
            .as_array()
            .cloned()
            .unwrap_or_default(),
        labels,
        has,
    }
}

/// Part of the world of a region; empty for one that is not known here.
fn geography(region: &str) -> &'static str {
    const AMERICAN: [&str; 6] = [
        "us-",
        "eastus",
        "westus",
        "centralus",
        "northcentralus",
        "southcentralus",
    ];
    const EUROPEAN: [&str; 4] = ["eu-", "europe-", "westeurope", "northeurope"];
    let begins = |with: &[&str]| with.iter().any(|prefix| region.starts_with(prefix));
    // These lie in Europe and outside of the Union.
    let other = ["eu-west-2", "eu-central-2", "europe-west2", "europe-west6"].contains(&region);
    if other {
        ""
    } else if begins(&AMERICAN) {
        "US"
    } else if begins(&EUROPEAN) {
        "EU"
    } else {
        ""
    }
}

/// A quantity of Kubernetes'; not a number for what is none.
pub(super) fn quantity(value: &Value) -> f64 {
    let written = match value {
        Value::Null => return 0.0,
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    const SUFFIXES: [(&str, f64); 12] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("", 1.0),
    ];
    let read = SUFFIXES.iter().find_map(|(suffix, factor)| {
        let number = written.strip_suffix(suffix)?.parse::<f64>().ok()?;
        Some(number * factor)
    });
    read.unwrap_or(f64::NAN)
}

fn strings(map: &Value) -> BTreeMap<String, String> {
    let entries = map.as_object().into_iter().flatten();
    let pair = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
    entries.filter_map(pair).collect()
}

/// What is at a path; null where nothing is.
pub(crate) fn pointer<'a>(object: &'a Value, path: &str) -> &'a Value {
    static NOTHING: Value = Value::Null;
    object.pointer(path).unwrap_or(&NOTHING)
}

/// Text at a path; empty where there is none.
pub(crate) fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    pointer(object, path).as_str().unwrap_or_default()
}
