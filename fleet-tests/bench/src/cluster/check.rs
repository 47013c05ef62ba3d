//! Looks for placements that break what their workloads demand. It reads nothing but objects of the
//! APIs, and shares no code with the scheduler: quantities, taints, geographies, prices and shares are
//! worked out here again, from the real Nodes and Pods where there are any.

pub(crate) mod facts;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use hyperion_lab::Kubectl;
use serde_json::Value;

use facts::{Asked, Machine, pointer, text};

/// All that is looked at.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// HyperionWorkloads.
    pub workloads: Vec<Value>,
    /// HyperionPlacements.
    pub placements: Vec<Value>,
    /// HyperionNodes: of these only machines that belong to no cluster are read.
    pub fleet: Vec<Value>,
    /// Name, Nodes and Pods of each workload cluster.
    pub clusters: Vec<(String, Vec<Value>, Vec<Value>)>,
}

impl World {
    /// Reads everything, through `kubectl` of the management cluster and of each workload cluster.
    ///
    /// # Errors
    /// `kubectl` fails.
    pub fn read(home: &Kubectl, clusters: &[(&str, &Kubectl)]) -> Result<Self> {
        let list = |of: &Kubectl, what: &[&str]| -> Result<Vec<Value>> {
            let list = of.get(what)?;
            let items = list.get("items").and_then(Value::as_array);
            Ok(items.cloned().unwrap_or_default())
        };
        let mut world = Self {
            workloads: list(home, &["hyperionworkloads", "-A"])?,
            placements: list(home, &["hyperionplacements", "-A"])?,
            fleet: list(home, &["hyperionnodes"])?,
            clusters: Vec::new(),
        };
        for (name, kubectl) in clusters {
            let nodes = list(kubectl, &["nodes"])?;
            let pods = list(kubectl, &["pods", "-A"])?;
            world.clusters.push(((*name).to_owned(), nodes, pods));
        }
        Ok(world)
    }
}

/// Namespace and name.
type Name = (String, String);

/// Everything that is wrong, one line each.
#[must_use]
pub fn violations(world: &World) -> Vec<String> {
    let mut wrong = Vec::new();
    let machines = facts::machines(world, &mut wrong);
    let mut places: BTreeMap<Name, BTreeSet<u64>> = BTreeMap::new();
    let mut expected: BTreeSet<(String, Name, u64)> = BTreeSet::new();
    let mut promised: BTreeMap<&str, Asked> = BTreeMap::new();
    let workloads: BTreeMap<Name, &Value> = world.workloads.iter().map(|w| (name(w), w)).collect();
    for placement in &world.placements {
        let of = (
            text(placement, "/metadata/namespace").to_owned(),
            text(placement, "/spec/workload").to_owned(),
        );
        let replica = pointer(placement, "/spec/replica")
            .as_u64()
            .unwrap_or_default();
        let label = format!("{}/{} replica {replica}", of.0, of.1);
        let Some(workload) = workloads.get(&of) else {
            wrong.push(format!("{label}: a placement of no workload"));
            continue;
        };
        if !places.entry(of.clone()).or_default().insert(replica) {
            wrong.push(format!("{label}: placed twice"));
        }
        let node = text(placement, "/spec/node");
        let Some(machine) = machines.get(node) else {
            wrong.push(format!("{label}: node {node} does not exist"));
            continue;
        };
        let asked = Asked::of_pod(pointer(workload, "/spec/template/spec"));
        for what in broken(workload, placement, &asked, machine) {
            wrong.push(format!("{label} on {node}: {what}"));
        }
        promised.entry(&machine.id).or_default().add(&asked);
        if let Some(cluster) = &machine.cluster {
            expected.insert((cluster.clone(), of, replica));
        }
    }
    for (of, workload) in &workloads {
        let wanted = pointer(workload, "/spec/replicas").as_u64().unwrap_or(1);
        let has = places.get(of).map_or(0, |p| p.len() as u64);
        if has != wanted {
            wrong.push(format!(
                "{}/{}: {has} of {wanted} replicas have a place",
                of.0, of.1
            ));
        }
    }
    for (id, asked) in &promised {
        if let Some(machine) = machines.get(*id) {
            over(machine, asked, "its placements", &mut wrong);
        }
    }
    pods(world, &machines, expected, &mut wrong);
    wrong
}

/// What one placement breaks.
pub(crate) fn broken(
    workload: &Value,
    placement: &Value,
    asked: &Asked,
    machine: &Machine,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let constraint = |what: &str| {
        let list = pointer(workload, &format!("/spec/policy/constraints/{what}")).as_array();
        let words = list.into_iter().flatten().filter_map(Value::as_str);
        words.map(str::to_owned).collect::<Vec<_>>()
    };
    for (what, is) in [
        ("geographies", &machine.geography),
        ("clouds", &machine.provider),
        ("tiers", &machine.tier),
    ] {
        let allowed = constraint(what);
        if !allowed.is_empty() && !allowed.contains(is) {
            wrong.push(format!("{what}: {is:?} is not one of {allowed:?}"));
        }
    }
    let selector = pointer(workload, "/spec/template/spec/nodeSelector").as_object();
    for (key, value) in selector.into_iter().flatten() {
        if machine.labels.get(key) != value.as_str().map(str::to_owned).as_ref() {
            wrong.push(format!("nodeSelector: {key} is not {value}"));
        }
    }
    let tolerations = pointer(workload, "/spec/template/spec/tolerations").as_array();
    for taint in &machine.taints {
        let effect = text(taint, "/effect");
        let hard = effect == "NoSchedule" || effect == "NoExecute";
        let tolerated = tolerations
            .into_iter()
            .flatten()
            .any(|t| tolerates(t, taint));
        if hard && !tolerated {
            wrong.push(format!("taint {taint} is not tolerated"));
        }
    }
    let most = pointer(workload, "/spec/policy/maxHourlyCost").as_f64();
    if let Some(most) = most {
        match machine.price {
            Some(price) => {
                let cost = price * asked.share_of(&machine.has);
                if cost > most + 1e-6 {
                    wrong.push(format!("maxHourlyCost: {cost:.4} is more than {most:.4}"));
                }
                let told = pointer(placement, "/spec/hourlyCost")
                    .as_f64()
                    .unwrap_or(f64::NAN);
                if (told - cost).abs() > 1e-3 + cost * 0.01 || told.is_nan() {
                    wrong.push(format!(
                        "hourlyCost says {told:.4} where {cost:.4} is right"
                    ));
                }
            }
            None if machine.tier == "cloud" => {
                wrong.push("maxHourlyCost: the price of the machine is not known".to_owned());
            }
            // Machines of one's own cost nothing that we know of.
            None => {}
        }
    }
    wrong
}

/// Kubernetes' rule.
fn tolerates(toleration: &Value, taint: &Value) -> bool {
    let effect = text(toleration, "/effect");
    if !effect.is_empty() && effect != text(taint, "/effect") {
        return false;
    }
    let key = text(toleration, "/key");
    match text(toleration, "/operator") {
        "Exists" => key.is_empty() || key == text(taint, "/key"),
        "" | "Equal" => {
            key == text(taint, "/key") && text(toleration, "/value") == text(taint, "/value")
        }
        _ => false,
    }
}

/// Is more asked of a machine than it has?
fn over(machine: &Machine, asked: &Asked, by: &str, wrong: &mut Vec<String>) {
    for (resource, asked, has) in asked.beside(&machine.has) {
        // Quantities are exact to the thousandth; what can't be read is not a number.
        if asked > has + 1e-3 || asked.is_nan() || has.is_nan() {
            wrong.push(format!(
                "{}: {by} ask {asked} {resource} of {has}",
                machine.id
            ));
        }
    }
}

/// Pods of the workload clusters: as the placements say, on nodes that exist and have room.
fn pods(
    world: &World,
    machines: &BTreeMap<String, Machine>,
    mut expected: BTreeSet<(String, Name, u64)>,
    wrong: &mut Vec<String>,
) {
    let decided: BTreeMap<(Name, u64), &str> = world
        .placements
        .iter()
        .map(|p| {
            let of = (
                text(p, "/metadata/namespace").to_owned(),
                text(p, "/spec/workload").to_owned(),
            );
            (
                (of, pointer(p, "/spec/replica").as_u64().unwrap_or_default()),
                text(p, "/spec/node"),
            )
        })
        .collect();
    for (cluster, _, pods) in &world.clusters {
        let mut used: BTreeMap<String, Asked> = BTreeMap::new();
        for pod in pods {
            let node = format!("{cluster}.{}", text(pod, "/spec/nodeName"));
            let phase = text(pod, "/status/phase");
            if phase != "Succeeded" && phase != "Failed" {
                used.entry(node.clone())
                    .or_default()
                    .add(&Asked::of_pod(pointer(pod, "/spec")));
            }
            let of = text(pod, "/metadata/annotations/hyperion.io~1workload");
            if of.is_empty() {
                continue;
            }
            let of = (text(pod, "/metadata/namespace").to_owned(), of.to_owned());
            let replica = text(pod, "/metadata/labels/hyperion.io~1replica")
                .parse()
                .unwrap_or(u64::MAX);
            let label = format!("Pod {}/{} in {cluster}", of.0, text(pod, "/metadata/name"));
            match decided.get(&(of.clone(), replica)) {
                None => wrong.push(format!("{label}: no placement, it has leaked")),
                Some(decided) if *decided != node => {
                    wrong.push(format!("{label}: on {node}, the placement says {decided}"));
                }
                Some(_) if !expected.remove(&(cluster.clone(), of, replica)) => {
                    wrong.push(format!("{label}: a second one of the replica"));
                }
                Some(_) if phase != "Running" && phase != "Succeeded" => {
                    wrong.push(format!("{label}: it is {phase}"));
                }
                Some(_) => {}
            }
        }
        for (node, asked) in &used {
            match machines.get(node) {
                Some(machine) => over(machine, asked, "its Pods", wrong),
                None => wrong.push(format!("Pods are on node {node}, which does not exist")),
            }
        }
    }
    for (cluster, of, replica) in expected {
        wrong.push(format!(
            "{}/{} replica {replica}: no Pod in {cluster}",
            of.0, of.1
        ));
    }
}

fn name(object: &Value) -> Name {
    (
        text(object, "/metadata/namespace").to_owned(),
        text(object, "/metadata/name").to_owned(),
    )
}
