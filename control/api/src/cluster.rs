//! `HyperionCluster`: a Kubernetes cluster that workloads may run on.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::workload::Provider;

/// A cluster of a provider.
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
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct HyperionClusterSpec {
    /// Provider.
    pub provider: Provider,
    /// Region in the provider's words.
    pub region: String,
    /// Name of a Secret in namespace hyperion-system whose key `kubeconfig` reaches the cluster.
    pub kubeconfig_secret: String,
}

/// Status of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HyperionClusterStatus {
    /// "True", "False" or "Unknown": the Ready condition, for the table.
    #[serde(default)]
    pub ready: String,
    /// Conditions.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// Generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}
