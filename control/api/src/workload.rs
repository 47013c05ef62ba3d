//! `HyperionWorkload`: what a user wants to run and what matters about where.

use hyperion_placement::model as domain;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cost::Spent;

/// A workload: what to run, and the goal and constraints that decide where.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "hyperion.io",
    version = "v1alpha1",
    kind = "HyperionWorkload",
    plural = "hyperionworkloads",
    shortname = "hw",
    namespaced,
    status = "HyperionWorkloadStatus",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.type"),
    printcolumn(name = "Goal", type_ = "string", json_path = ".spec.policy.goal"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.ready"),
    printcolumn(name = "Nodes", type_ = "string", json_path = ".status.nodes"),
    printcolumn(name = "Cost/h", type_ = "number", json_path = ".status.hourlyCost"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct HyperionWorkloadSpec {
    /// Pod template of one replica, as in a Deployment.
    #[schemars(schema_with = "crate::template::schema")]
    pub template: PodTemplateSpec,
    /// Service (runs until deleted) or job (runs to completion).
    #[serde(rename = "type", default)]
    pub type_: WorkloadType,
    /// Number of replicas.
    #[serde(default = "one")]
    pub replicas: i32,
    /// Goal and constraints.
    #[serde(default)]
    pub policy: Policy,
}

fn one() -> i32 {
    1
}

macro_rules! api_enum {
    ($(#[$meta:meta])* $name:ident => $domain:ty { $($(#[$vmeta:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[expect(missing_docs, reason = "each variant is its word")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        pub enum $name { $($(#[$vmeta])* #[serde(rename = $word)] $variant),+ }
        impl From<$name> for $domain {
            fn from(value: $name) -> Self { match value { $($name::$variant => <$domain>::$variant),+ } }
        }
        impl From<$domain> for $name {
            fn from(value: $domain) -> Self { match value { $(<$domain>::$variant => $name::$variant),+ } }
        }
    };
}

api_enum! {
    /// Service or job.
    #[derive(Default)]
    WorkloadType => domain::WorkloadType { #[default] Service = "service", Job = "job" }
}
api_enum! {
    /// What the scheduler optimises.
    #[derive(Default)]
    Goal => domain::Goal { Cost = "cost", Latency = "latency", #[default] Default = "default" }
}
api_enum! {
    /// Provider of a node.
    Provider => domain::Provider { Aws = "aws", Gcp = "gcp", Azure = "azure", Edge = "edge" }
}
api_enum! {
    /// Cloud or edge.
    Tier => domain::Tier { Cloud = "cloud", Edge = "edge" }
}
api_enum! {
    /// How capacity is paid for; edge hardware is owned.
    CapacityType => domain::CapacityType { OnDemand = "on-demand", Spot = "spot", Owned = "owned" }
}
api_enum! {
    /// Part of the world, for data sovereignty.
    Geography => domain::Geography {
        Us = "US", Ca = "CA", Sa = "SA", Eu = "EU", Uk = "UK", Ch = "CH", No = "NO", Me = "ME",
        Af = "AF", In = "IN", Cn = "CN", Ap = "AP", Au = "AU",
    }
}

/// The scheduling policy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// Goal: "cost", "latency", or a balanced "default".
    #[serde(default)]
    pub goal: Goal,
    /// Where the workload may and should run.
    #[serde(default)]
    pub constraints: Constraints,
    /// Where its data is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Data>,
    /// Most that one replica may cost, US dollars per hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_hourly_cost: Option<f64>,
    /// Wanted p99 latency seen by clients, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_target_ms: Option<f64>,
    /// Where requests come from; where nobody says, from all geographies of the constraints alike.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clients: Vec<Client>,
    /// What happens while a node or the control plane is out of reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disconnect: Option<Disconnect>,
    /// At most one copy of a replica may ever run, even if that means none for a while.
    #[serde(default)]
    pub exclusive: bool,
    /// Who is placed first where there is not room for all that wait: the higher number. What runs is
    /// not stopped for it. A template that names a PriorityClass has the priority of that.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i32,
    /// Replicas that have no place get one together or not at all, as distributed jobs need it. At
    /// most 256 replicas.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gang: bool,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature that serde asks for"
)]
fn is_zero(number: &i32) -> bool {
    *number == 0
}

/// Placement constraints.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Constraints {
    /// Hard: only in these geographies; none listed means anywhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub geographies: Vec<Geography>,
    /// Hard: only on these providers; none listed means any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clouds: Vec<Provider>,
    /// Hard: only on these tiers; none listed means both.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tiers: Vec<Tier>,
    /// Soft: prefer cheaper spot capacity.
    #[serde(default)]
    pub prefer_spot: bool,
}

/// Data locality.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Data {
    /// Where the data is, as a URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// `provider:region` that the data is close to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locality: Option<String>,
}

/// A source of requests: exactly one of `geography` and `site`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Client {
    /// Geography of the clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub geography: Option<Geography>,
    /// Site of the clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// Share of requests relative to the other entries.
    #[serde(default = "unit_weight")]
    pub weight: f32,
}

fn unit_weight() -> f32 {
    1.0
}

/// Behaviour on lost contact. Durations are written `30s`, `5m`, `1h30m`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Disconnect {
    /// Re-place a replica after its node has been out of reach this long (default 30s; 4s at a site
    /// that is cut off and decides for itself).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replace_after: Option<String>,
    /// A node that is itself cut off stops the replica after this long (default: never). An exclusive
    /// replica is placed again elsewhere once its whole site must have stopped it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_after: Option<String>,
    /// Which copy stays when both sides are in contact again: the site's (default) or the control
    /// plane's. A copy that does well is never stopped for one that does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconcile: Option<Reconcile>,
}

/// Which copy stays after a partition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Reconcile {
    /// Adopt what the site decided, also where the control plane has placed the replica elsewhere.
    #[default]
    Site,
    /// Keep what the control plane decided where it has placed the replica elsewhere.
    ControlPlane,
}

/// Phase of a workload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WorkloadPhase {
    /// Some replica has no place or has not started.
    #[default]
    Pending,
    /// All desired replicas run and are ready.
    Running,
    /// Some replicas run, not all.
    Degraded,
    /// All replicas of a job ended well.
    Succeeded,
    /// A replica of a job failed for good.
    Failed,
}

/// Status of a workload.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HyperionWorkloadStatus {
    /// Summary of the conditions.
    #[serde(default)]
    pub phase: WorkloadPhase,
    /// Conditions: see the `conditions` module of this crate for types and reasons.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// Replicas with a live placement.
    #[serde(default)]
    pub replicas: i32,
    /// Ready replicas.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Ready and desired, as "1/2".
    #[serde(default)]
    pub ready: String,
    /// Nodes of the replicas, comma-separated.
    #[serde(default)]
    pub nodes: String,
    /// Label selector of the replicas, for the scale subresource.
    #[serde(default)]
    pub selector: String,
    /// US dollars per hour of all placed replicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hourly_cost: Option<f64>,
    /// Estimated p99 latency seen by clients, milliseconds, of the worst replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_latency_ms: Option<f64>,
    /// Generation of the spec that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Highest generation of a replica whose placement is gone: one that is made again goes on from
    /// here, because nodes refuse a generation that they have seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub highest_generation: Option<i64>,
    /// What placements that are over have cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spent: Option<Spent>,
    /// Why replicas without a place have none: nodes rejected, by constraint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rejected: Vec<Rejection>,
}

/// Nodes and offers that one constraint ruled out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rejection {
    /// The constraint, for example `geographies` or `nvidia.com/gpu`.
    pub constraint: String,
    /// How many it ruled out.
    pub count: i32,
}
