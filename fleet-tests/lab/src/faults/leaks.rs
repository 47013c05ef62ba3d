//! Counts what is there that should not be, from nothing but the objects of the API servers; it shares
//! no code with the operator.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};
use serde_json::Value;

use crate::Kubectl;
use crate::truth::Span;

/// Name, Nodes, Pods and NodeClaims of a workload cluster.
type Cluster = (String, Vec<Value>, Vec<Value>, Vec<Value>);

/// What there is.
#[derive(Debug, Clone, Default)]
pub struct World {
    workloads: Vec<Value>,
    placements: Vec<Value>,
    nodes: Vec<Value>,
    hyperion_clusters: Vec<Value>,
    clusters: Vec<Cluster>,
    /// Workload, replica and node of each container on a device.
    containers: Vec<(String, u64, String)>,
}

impl World {
    /// Reads everything; `containers` are those that run on devices.
    ///
    /// # Errors
    /// An API server does not answer.
    pub fn read(
        home: &Kubectl,
        clusters: &[(&str, &Kubectl)],
        containers: &[Span],
    ) -> Result<Self> {
        let mut world = Self {
            workloads: list(home, &["hyperionworkloads", "-A"])?,
            placements: list(home, &["hyperionplacements", "-A"])?,
            nodes: list(home, &["hyperionnodes"])?,
            hyperion_clusters: list(home, &["hyperionclusters"])?,
            ..Self::default()
        };
        for (name, kubectl) in clusters {
            world.clusters.push((
                (*name).to_owned(),
                list(kubectl, &["nodes"])?,
                list(kubectl, &["pods", "-A"])?,
                list(kubectl, &["nodeclaims.karpenter.sh"])?,
            ));
        }
        for span in containers {
            let replica = span.replica.parse().unwrap_or(u64::MAX);
            let of = (span.workload.clone(), replica, span.node.clone());
            world.containers.push(of);
        }
        Ok(world)
    }

    /// Everything that is too much, missing or stuck when all has come to rest, one line each.
    #[must_use]
    pub fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        self.stuck(&mut wrong);
        let mut wanted: BTreeMap<(&str, u64), (&str, String)> = BTreeMap::new();
        for placement in &self.placements {
            let of = text(placement, "/spec/workload");
            let replica = number(placement, "/spec/replica");
            let label = format!("placement {of}-{replica}");
            if !self
                .workloads
                .iter()
                .any(|w| text(w, "/metadata/name") == of)
            {
                wrong.push(format!("{label}: its workload does not exist"));
            }
            if !text(placement, "/metadata/annotations/hyperion.io~1leaving").is_empty() {
                wrong.push(format!("{label}: an old copy is still said to be leaving"));
            }
            let node = text(placement, "/spec/node");
            let generation = number(placement, "/spec/generation").to_string();
            if wanted.insert((of, replica), (node, generation)).is_some() {
                wrong.push(format!("{label}: placed twice"));
            }
        }
        for workload in &self.workloads {
            let name = text(workload, "/metadata/name");
            let replicas = workload.pointer("/spec/replicas").and_then(Value::as_u64);
            let replicas = replicas.unwrap_or(1);
            for replica in 0..replicas {
                if !wanted.contains_key(&(name, replica)) {
                    wrong.push(format!("{name}-{replica}: it has no place"));
                }
            }
            let more = wanted
                .keys()
                .filter(|(of, n)| *of == name && *n >= replicas);
            wrong.extend(more.map(|(_, n)| format!("{name}-{n}: nobody wants it")));
        }
        self.copies(&wanted, &mut wrong);
        self.machines(&mut wrong);
        wrong
    }

    /// Copies that nobody decided, twice there or not there.
    fn copies(&self, wanted: &BTreeMap<(&str, u64), (&str, String)>, wrong: &mut Vec<String>) {
        let mut found = BTreeSet::new();
        for (cluster, _, pods, _) in &self.clusters {
            for pod in pods {
                let of = text(pod, "/metadata/labels/hyperion.io~1workload");
                if of.is_empty() {
                    continue;
                }
                let replica = text(pod, "/metadata/labels/hyperion.io~1replica");
                let replica = replica.parse().unwrap_or(u64::MAX);
                let label = format!("Pod {} in {cluster}", text(pod, "/metadata/name"));
                let node = format!("{cluster}.{}", text(pod, "/spec/nodeName"));
                let generation = text(pod, "/metadata/labels/hyperion.io~1generation");
                match wanted.get(&(of, replica)) {
                    Some((n, g)) if *n == node && g == generation => {}
                    Some((n, g)) => wrong.push(format!(
                        "{label}: generation {generation} on {node}, decided was {g} on {n}"
                    )),
                    None => wrong.push(format!("{label}: nobody decided it")),
                }
                if !found.insert((of, replica)) {
                    wrong.push(format!("{label}: a second copy"));
                }
            }
        }
        for (of, replica, node) in &self.containers {
            let label = format!("container {of}-{replica} on {node}");
            match wanted.get(&(of.as_str(), *replica)) {
                Some((n, _)) if n == node => {}
                Some((n, _)) => wrong.push(format!("{label}: decided was {n}")),
                None => wrong.push(format!("{label}: nobody decided it")),
            }
            if !found.insert((of, *replica)) {
                wrong.push(format!("{label}: a second copy"));
            }
        }
        for ((of, replica), (node, _)) in wanted {
            if !found.contains(&(*of, *replica)) {
                wrong.push(format!("{of}-{replica}: no copy on {node}"));
            }
        }
    }

    /// HyperionNodes without their machine, machines without their HyperionNode, and what was bought.
    fn machines(&self, wrong: &mut Vec<String>) {
        let mut there = BTreeSet::new();
        for (cluster, nodes, _, claims) in &self.clusters {
            for node in nodes {
                there.insert(format!("{cluster}.{}", text(node, "/metadata/name")));
            }
            for claim in claims {
                wrong.push(format!(
                    "NodeClaim {} in {cluster}",
                    text(claim, "/metadata/name")
                ));
            }
        }
        let mut known = BTreeSet::new();
        for node in &self.nodes {
            let name = text(node, "/metadata/name");
            if !text(node, "/spec/cluster").is_empty() {
                known.insert(name.to_owned());
            }
        }
        let joined = |node: &&String| {
            let cluster = node.split('.').next().unwrap_or_default();
            let names = |c: &Value| text(c, "/metadata/name") == cluster;
            self.hyperion_clusters.iter().any(names)
        };
        wrong.extend(
            known
                .difference(&there)
                .map(|n| format!("HyperionNode {n}: no such machine")),
        );
        let unknown = there.difference(&known).filter(joined);
        wrong.extend(unknown.map(|n| format!("machine {n}: no HyperionNode")));
    }

    /// Objects that somebody deleted and that are still there: a finalizer that nobody takes off.
    fn stuck(&self, wrong: &mut Vec<String>) {
        let ours = [
            &self.workloads,
            &self.placements,
            &self.nodes,
            &self.hyperion_clusters,
        ];
        let all = ours.into_iter().flatten();
        let pods = self
            .clusters
            .iter()
            .flat_map(|(_, nodes, pods, _)| nodes.iter().chain(pods));
        for object in all.chain(pods) {
            if !text(object, "/metadata/deletionTimestamp").is_empty() {
                let kind = text(object, "/kind");
                let finalizers = object.pointer("/metadata/finalizers");
                wrong.push(format!(
                    "{kind} {}: deleted, and held by {}",
                    text(object, "/metadata/name"),
                    finalizers.map_or_else(|| "nobody".to_owned(), Value::to_string)
                ));
            }
        }
    }

    /// What is left although everything was deleted, one line each.
    #[must_use]
    pub fn left(&self) -> Vec<String> {
        let named = |kind: &str, objects: &[Value]| {
            let line = |o: &Value| format!("{kind} {} is left", text(o, "/metadata/name"));
            objects.iter().map(line).collect::<Vec<_>>()
        };
        let mut left = named("HyperionWorkload", &self.workloads);
        left.extend(named("HyperionPlacement", &self.placements));
        left.extend(named("HyperionCluster", &self.hyperion_clusters));
        let of_clusters = self
            .nodes
            .iter()
            .filter(|n| !text(n, "/spec/cluster").is_empty());
        left.extend(named(
            "HyperionNode",
            &of_clusters.cloned().collect::<Vec<_>>(),
        ));
        for (_, _, pods, claims) in &self.clusters {
            let ours = |p: &&Value| !text(p, "/metadata/labels/hyperion.io~1workload").is_empty();
            let ours: Vec<Value> = pods.iter().filter(ours).cloned().collect();
            left.extend(named("Pod", &ours));
            left.extend(named("NodeClaim", claims));
        }
        for (of, replica, node) in &self.containers {
            left.push(format!("container {of}-{replica} on {node} is left"));
        }
        left
    }
}

/// All objects of a kind; none where the kind does not exist there.
fn list(kubectl: &Kubectl, what: &[&str]) -> Result<Vec<Value>> {
    let args = [&["get"], what, &["-o", "json"]].concat();
    let out = kubectl.output(&args, None)?;
    if !out.success {
        if out.stderr.contains("doesn't have a resource type") {
            return Ok(Vec::new());
        }
        bail!("kubectl {}: {}", args.join(" "), out.stderr.trim());
    }
    let read: Value = serde_json::from_str(&out.stdout)?;
    let items = read.get("items").and_then(Value::as_array);
    Ok(items.cloned().unwrap_or_default())
}

fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object
        .pointer(path)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn number(object: &Value, path: &str) -> u64 {
    object
        .pointer(path)
        .and_then(Value::as_u64)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn world() -> World {
        let pod = json!({ "kind": "Pod",
            "metadata": { "name": "web-0-2", "labels": { "hyperion.io/workload": "web",
                "hyperion.io/replica": "0", "hyperion.io/generation": "2" }},
            "spec": { "nodeName": "one" }});
        let node = json!({ "kind": "Node", "metadata": { "name": "one" }});
        World {
            workloads: vec![json!({ "metadata": { "name": "web" }, "spec": { "replicas": 2 }})],
            placements: vec![
                json!({ "metadata": { "name": "web-0" },
                    "spec": { "workload": "web", "replica": 0, "node": "a.one", "generation": 2 }}),
                json!({ "metadata": { "name": "web-1" },
                    "spec": { "workload": "web", "replica": 1, "node": "device", "generation": 1 }}),
            ],
            nodes: vec![
                json!({ "metadata": { "name": "a.one" }, "spec": { "cluster": "a" }}),
                json!({ "metadata": { "name": "device" }, "spec": {}}),
            ],
            hyperion_clusters: vec![json!({ "metadata": { "name": "a" }})],
            clusters: vec![("a".to_owned(), vec![node], vec![pod], Vec::new())],
            containers: vec![("web".to_owned(), 1, "device".to_owned())],
        }
    }

    #[test]
    fn what_was_decided_and_is_there_once_is_right() {
        assert_eq!(world().wrong(), Vec::<String>::new());
    }

    #[test]
    fn each_thing_too_much_or_missing_is_named() {
        type Change = fn(&mut World);
        let cases: [(Change, &str); 10] = [
            (|w| w.containers.clear(), "web-1: no copy on device"),
            (
                |w| {
                    w.containers
                        .push(("web".to_owned(), 0, "device".to_owned()));
                },
                "decided was a.one",
            ),
            (
                |w| w.clusters[0].2[0]["metadata"]["labels"]["hyperion.io/generation"] = json!("1"),
                "generation 1 on a.one, decided was 2",
            ),
            (|w| w.workloads.clear(), "its workload does not exist"),
            (
                |w| w.workloads[0]["spec"]["replicas"] = json!(1),
                "web-1: nobody wants it",
            ),
            (
                |w| w.workloads[0]["spec"]["replicas"] = json!(3),
                "web-2: it has no place",
            ),
            (
                |w| w.clusters[0].3.push(json!({ "metadata": { "name": "c" }})),
                "NodeClaim c in a",
            ),
            (|w| w.nodes.clear(), "machine a.one: no HyperionNode"),
            (
                |w| w.clusters[0].1.clear(),
                "HyperionNode a.one: no such machine",
            ),
            (
                |w| {
                    w.placements[0]["metadata"]["deletionTimestamp"] = json!("now");
                    w.placements[0]["metadata"]["finalizers"] = json!(["f"]);
                },
                r#"deleted, and held by ["f"]"#,
            ),
        ];
        for (change, expected) in cases {
            let mut world = world();
            change(&mut world);
            let wrong = world.wrong();
            assert!(
                wrong.iter().any(|line| line.contains(expected)),
                "{expected}: {wrong:?}"
            );
        }
    }

    #[test]
    fn after_a_deletion_everything_of_ours_is_left_over() {
        // The device stays; its container does not.
        assert_eq!(world().left().len(), 7);
        assert_eq!(World::default().left(), Vec::<String>::new());
    }
}
