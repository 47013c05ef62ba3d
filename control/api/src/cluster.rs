//! `HyperionCluster`: a Kubernetes cluster whose nodes workloads may run on.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::capacity::Capacity;
use crate::workload::Provider;

/// A Kubernetes cluster. Its nodes become nodes of the fleet, named `CLUSTER.NODE`, and replicas that
/// are placed on them run as Pods.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "hyperion.io",
    version = "v1alpha1",
    kind = "HyperionCluster",
    plural = "hyperionclusters",
    shortname = "hc",
    status = "HyperionClusterStatus",
    printcolumn(name = "Provider", type_ = "string", json_path = ".spec.provider"),
    printcolumn(name = "Region", type_ = "string", json_path = ".spec.region"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.ready"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes"),
    printcolumn(
        name = "Version",
        type_ = "string",
        json_path = ".status.version",
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct HyperionClusterSpec {
    /// Provider: nodes of another one are not used. `edge` is for clusters on machines of one's own.
    pub provider: Provider,
    /// Region in the provider's words: nodes of another one are not used.
    pub region: String,
    /// Name of a Secret in namespace hyperion-system whose key `kubeconfig` reaches the cluster.
    /// Without one, and without `clusterProfile`, it is the cluster that holds this object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubeconfig_secret: Option<String>,
    /// A ClusterProfile (multicluster.x-k8s.io) that says where the cluster is; a credential plugin
    /// of the control plane reaches it. Not beside `kubeconfigSecret`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_profile: Option<ClusterProfileRef>,
    /// Labels of the nodes that are ours to use; all nodes where there are none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// What Karpenter may launch there; nothing where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Capacity>,
}

/// A ClusterProfile of the management cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ClusterProfileRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Status of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HyperionClusterStatus {
    /// "True", "False" or "Unknown": the Ready condition, for the table.
    #[serde(default)]
    pub ready: String,
    /// The reason of the Ready condition, for the table.
    #[serde(default)]
    pub reason: String,
    /// Conditions.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// Nodes that replicas may be placed on.
    #[serde(default)]
    pub nodes: i32,
    /// Nodes that are selected and can't be used; their objects say why.
    #[serde(default)]
    pub unusable_nodes: i32,
    /// NodeClaims of ours: machines that were asked for, and not given back.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub node_claims: i32,
    /// Version of the API server.
    #[serde(default)]
    pub version: String,
    /// Generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(number: &i32) -> bool {
    *number == 0
}
