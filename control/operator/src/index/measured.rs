//! Measured CPU use: what agents stream, and what others measure of nodes without one.

use std::collections::BTreeSet;

use hyperion_providers::prometheus::Sample;

use super::Index;
use crate::clusters::node::node_id;

impl Index {
    /// Takes measured CPU use, 0 to 1, by node. What is no number, or of a node that is not known,
    /// changes nothing.
    pub fn measure(&mut self, measured: impl IntoIterator<Item = (String, f32)>) {
        for (node, utilization) in measured {
            if utilization.is_finite() {
                // Telemetry of a node that was just deleted.
                let _ = self.fleet.set_telemetry(&node, utilization);
            }
        }
    }

    /// Takes what others measured: of nodes in clusters by the name of their cluster, or where none
    /// is said as the one node of that name. An agent's own stream counts before it: `streams` says
    /// of which nodes there is one. Returns for how many nodes there was a value, and how many samples
    /// are of no node, or of one of several.
    pub fn measure_elsewhere(
        &mut self,
        samples: &[Sample],
        streams: impl Fn(&str) -> bool,
    ) -> (usize, usize) {
        let specs = self.nodes.values().filter_map(|n| n.spec.as_ref());
        let clusters: BTreeSet<String> = specs.filter_map(|s| s.cluster.clone()).collect();
        let (mut measured, mut unknown) = (BTreeSet::new(), 0);
        for sample in samples {
            let of_cluster = |cluster: &str| Some(node_id(cluster, &sample.node));
            let ids: Vec<String> = match &sample.cluster {
                Some(cluster) => of_cluster(cluster).into_iter().collect(),
                None => {
                    let inside = clusters.iter().filter_map(|c| of_cluster(c));
                    inside.chain([sample.node.clone()]).collect()
                }
            };
            let mut known = ids.into_iter().filter(|id| self.nodes.contains_key(id));
            match (known.next(), known.next()) {
                (Some(id), None) => {
                    measured.insert(id.clone());
                    if !streams(&id) {
                        #[allow(clippy::cast_possible_truncation)]
                        self.measure([(id, sample.value as f32)]);
                    }
                }
                _ => unknown += 1,
            }
        }
        (measured.len(), unknown)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use hyperion_api::node::HyperionNode;
    use hyperion_placement::model::LatencyMatrix;
    use hyperion_proto::domain::Capabilities;
    use kube::core::DeserializeGuard;
    use serde_json::json;

    use super::*;

    fn index() -> Index {
        let mut index = Index::new(Duration::from_secs(60), LatencyMatrix::default());
        let nodes = [
            ("press", None),
            ("away", None),
            ("eks.n1", Some("eks")),
            ("eks.both", Some("eks")),
            ("gke.both", Some("gke")),
        ];
        for (id, cluster) in nodes {
            let object = json!({ "apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionNode",
                "metadata": { "name": id }, "spec": { "cluster": cluster },
                "status": { "tier": "edge", "arch": "amd64",
                    "allocatable": { "cpu": "4", "memory": "8Gi" } } });
            let object: HyperionNode = serde_json::from_value(object).unwrap();
            index.apply_node(DeserializeGuard(Ok(object)), Instant::now());
        }
        let capabilities = Capabilities {
            arch: "amd64".to_owned(),
            cpu_millis: 4000,
            memory_bytes: 8 << 30,
            disk_bytes: 0,
            gpus: Vec::new(),
            labels: Default::default(),
        };
        index.node_up("press", &capabilities, String::new());
        index
    }

    fn sample(cluster: Option<&str>, node: &str, value: f64) -> Sample {
        Sample {
            cluster: cluster.map(str::to_owned),
            node: node.to_owned(),
            value,
        }
    }

    fn used(index: &Index, id: &str) -> f32 {
        index.fleet.node(id).unwrap().cpu_utilization
    }

    #[test]
    fn samples_are_of_the_one_node_that_they_name() {
        let mut index = index();
        let samples = [
            sample(None, "n1", 0.5),
            sample(Some("gke"), "both", 0.75),
            // Of one of two nodes, of a cluster that is not of the fleet, and of no node.
            sample(None, "both", 0.25),
            sample(Some("aks"), "n1", 0.25),
            sample(None, "somebody", 0.25),
        ];
        assert_eq!(index.measure_elsewhere(&samples, |_| false), (2, 3));
        assert_eq!(used(&index, "eks.n1"), 0.5);
        assert_eq!(used(&index, "gke.both"), 0.75);
        assert_eq!(used(&index, "eks.both"), 0.0);
    }

    #[test]
    fn an_agent_that_streams_counts_before_others() {
        let mut index = index();
        // The second on a node of a cluster, which it only measures.
        index.measure(["press", "eks.n1"].map(|id| (id.to_owned(), 0.1)));
        let samples = ["press", "n1", "away"].map(|name| sample(None, name, 0.9));
        let streams = |id: &str| id != "away";
        assert_eq!(index.measure_elsewhere(&samples, streams), (3, 0));
        assert_eq!(used(&index, "press"), 0.1);
        assert_eq!(used(&index, "eks.n1"), 0.1);
        assert_eq!(used(&index, "away"), 0.9);
        index.measure([("away".to_owned(), f32::NAN)]);
        assert_eq!(used(&index, "away"), 0.9);
    }
}
