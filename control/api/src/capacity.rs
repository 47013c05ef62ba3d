//! What may be launched in a cluster: part of a `HyperionCluster`.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Invalid;
use crate::intent::duration;
use crate::node::NodeTaint;
use crate::workload::CapacityType;

/// Machines that one cluster may have of ours, where nobody says otherwise.
const MAX_NODES: u32 = 10;
/// Karpenter gives up a machine that has not joined after 15 minutes; drivers of GPUs take some of
/// that.
const LAUNCH_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// Clouds ask for a minute of use at least.
const EMPTY_AFTER: Duration = Duration::from_secs(5 * 60);

/// Machines that Karpenter may launch in the cluster when replicas fit nowhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Capacity {
    /// Karpenter's node class: images, networks and rights of the machines.
    pub node_class_ref: NodeClassRef,
    /// Instance types that may be launched: names, or families such as `g6.*`. All that are known
    /// where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instance_types: Vec<String>,
    /// Zones; the cloud's choice where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<String>,
    /// `spot` and `on-demand`; both where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capacity_types: Vec<CapacityType>,
    /// Most machines at a time (default 10).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_nodes: Option<u32>,
    /// Most that these may cost together, US dollars per hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_hourly_cost: Option<f64>,
    /// Another offer is taken when a machine is not ready after this long (default 15m).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launch_timeout: Option<String>,
    /// A machine is given back when it has had no replica for this long (default 5m).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty_after: Option<String>,
    /// Labels that the nodes get.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Taints that the nodes get: they keep others' Pods away.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<NodeTaint>,
}

/// A node class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeClassRef {
    /// API group, such as `karpenter.k8s.aws`.
    pub group: String,
    /// Kind, such as `EC2NodeClass`.
    pub kind: String,
    /// Name.
    pub name: String,
}

/// Bounds of [`Capacity`], read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Most machines at a time.
    pub nodes: usize,
    /// US dollars per hour; none without a bound.
    pub hourly_cost: Option<f64>,
    /// Time for a machine to be ready.
    pub launch: Duration,
    /// Time without a replica.
    pub empty: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            nodes: MAX_NODES as usize,
            hourly_cost: None,
            launch: LAUNCH_TIMEOUT,
            empty: EMPTY_AFTER,
        }
    }
}

impl Capacity {
    /// Bounds, with defaults.
    ///
    /// # Errors
    /// A time that can't be read.
    pub fn limits(&self) -> Result<Limits, Invalid> {
        let time = |name: &str, text: Option<&str>, default: Duration| {
            let read = duration(&format!("spec.capacity.{name}"), text)?;
            Ok::<_, Invalid>(read.unwrap_or(default))
        };
        Ok(Limits {
            nodes: self.max_nodes.unwrap_or(MAX_NODES) as usize,
            hourly_cost: self.max_hourly_cost,
            launch: time(
                "launchTimeout",
                self.launch_timeout.as_deref(),
                LAUNCH_TIMEOUT,
            )?,
            empty: time("emptyAfter", self.empty_after.as_deref(), EMPTY_AFTER)?,
        })
    }

    /// True for an instance type that may be launched. Case does not count.
    #[must_use]
    pub fn takes_type(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        let fits = |wanted: &String| {
            let wanted = wanted.to_ascii_lowercase();
            match wanted.strip_suffix('*') {
                Some(family) => name.starts_with(family),
                None => name == wanted,
            }
        };
        self.instance_types.is_empty() || self.instance_types.iter().any(fits)
    }

    /// True for a way to pay that may be used.
    #[must_use]
    pub fn takes_capacity(&self, type_: CapacityType) -> bool {
        self.capacity_types.is_empty() || self.capacity_types.contains(&type_)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn capacity(more: serde_json::Value) -> Capacity {
        let mut all = json!({ "nodeClassRef": { "group": "g", "kind": "K", "name": "n" } });
        let more = more.as_object().unwrap().clone();
        all.as_object_mut().unwrap().extend(more);
        serde_json::from_value(all).unwrap()
    }

    #[test]
    fn types_and_families_are_told_apart() {
        let some = capacity(json!({ "instanceTypes": ["g6.*", "Standard_NC4as_T4_v3"] }));
        let taken = ["g6.xlarge", "standard_nc4as_t4_v3"];
        assert!(taken.iter().all(|t| some.takes_type(t)));
        assert!(!some.takes_type("g6e.xlarge") && !some.takes_type("Standard_NC4as_T4_v30"));
        assert!(capacity(json!({})).takes_type("anything"));
    }

    #[test]
    fn bounds_have_defaults_and_a_bad_time_is_named() {
        assert_eq!(capacity(json!({})).limits(), Ok(Limits::default()));
        let bounds = json!({ "maxNodes": 2, "launchTimeout": "90s", "emptyAfter": "1m" });
        let limits = capacity(bounds).limits().unwrap();
        assert_eq!((limits.nodes, limits.launch.as_secs()), (2, 90));
        let error = capacity(json!({ "emptyAfter": "soon" }))
            .limits()
            .unwrap_err();
        assert_eq!(error.field, "spec.capacity.emptyAfter");
    }
}
