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
    /// is said as the one node of that name. An agent's own stream counts before it. Returns for how
    /// many nodes there was a value, and how many samples are of no node, or of one of several.
    pub fn measure_elsewhere(&mut self, samples: &[Sample]) -> (usize, usize) {
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
                    let streamed = self
                        .nodes
                        .get(&id)
                        .is_some_and(|n| n.connected && !n.in_cluster());
                    if !streamed {
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
