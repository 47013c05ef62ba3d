//! `HyperionQuota`: what the workloads of a namespace may have at a time.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Limits of a namespace. Of several in one namespace each holds. They bound what is placed from
/// now on: a limit that is lowered stops nothing that runs.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "hyperion.io",
    version = "v1alpha1",
    kind = "HyperionQuota",
    plural = "hyperionquotas",
    shortname = "hq",
    namespaced,
    status = "HyperionQuotaStatus",
    printcolumn(name = "USD/h", type_ = "number", json_path = ".status.hourlyCost"),
    printcolumn(
        name = "Max-USD/h",
        type_ = "number",
        json_path = ".spec.maxHourlyCost"
    ),
    printcolumn(name = "GPUs", type_ = "number", json_path = ".status.gpus"),
    printcolumn(name = "Max-GPUs", type_ = "number", json_path = ".spec.maxGpus"),
    printcolumn(name = "Waiting", type_ = "integer", json_path = ".status.waiting"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct HyperionQuotaSpec {
    /// Most that all replicas together may cost, US dollars per hour, at the prices at which they
    /// were placed. Owned hardware costs nothing, and takes replicas also when this is used up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_hourly_cost: Option<f64>,
    /// Most GPUs of all replicas together; half a device counts 0.5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_gpus: Option<f64>,
}

/// What a namespace has now.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HyperionQuotaStatus {
    /// US dollars per hour.
    #[serde(default)]
    pub hourly_cost: f64,
    /// GPUs.
    #[serde(default)]
    pub gpus: f64,
    /// Workloads of the namespace with replicas that have no place, whatever keeps them from it.
    #[serde(default)]
    pub waiting: i32,
}
