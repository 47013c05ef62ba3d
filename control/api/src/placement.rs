//! `HyperionPlacement`: one replica on one node, and why.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cost::Launch;
use crate::workload::{CapacityType, Provider, Rejection, Tier};

/// One replica's place. Written by the decider, never by hand.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "hyperion.io",
    version = "v1alpha1",
    kind = "HyperionPlacement",
    plural = "hyperionplacements",
    shortname = "hp",
    namespaced,
    status = "HyperionPlacementStatus",
    printcolumn(name = "Workload", type_ = "string", json_path = ".spec.workload"),
    printcolumn(name = "Replica", type_ = "integer", json_path = ".spec.replica"),
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.node"),
    printcolumn(name = "Provider", type_ = "string", json_path = ".spec.provider"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Gen", type_ = "integer", json_path = ".spec.generation"),
    printcolumn(name = "Cost/h", type_ = "number", json_path = ".spec.hourlyCost"),
    printcolumn(
        name = "Decided-By",
        type_ = "string",
        json_path = ".spec.decidedBy",
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct HyperionPlacementSpec {
    /// Name of the workload.
    pub workload: String,
    /// Uid of the workload.
    pub workload_uid: String,
    /// Replica number, from 0.
    pub replica: i32,
    /// Node id.
    pub node: String,
    /// Provider of the node.
    pub provider: Provider,
    /// Region, or the site of an edge node.
    pub region: String,
    /// Tier of the node.
    pub tier: Tier,
    /// How the node is paid for.
    pub capacity_type: CapacityType,
    /// Grows with every decision about this replica.
    pub generation: i64,
    /// `control-plane`, or the node that decided while the site was cut off.
    pub decided_by: String,
    /// Hash of the pod template that this placement runs.
    pub template_hash: String,
    /// Priority of the replica when it was placed. What its class gave it stays, as a Pod's does; absent
    /// where an older control plane placed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// GPUs promised to the replica.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuAssignment>,
    /// US dollars per hour, at the price when it was placed.
    pub hourly_cost: f64,
    /// When that was, and what else was known of prices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launch: Option<Launch>,
    /// Estimated p99 latency seen by clients, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_latency_ms: Option<f64>,
    /// Why this node.
    pub explanation: Explanation,
}

/// A share of one GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GpuAssignment {
    /// Device.
    pub uuid: String,
    /// Thousandths of it.
    pub millis: i32,
}

/// Why a replica is where it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Why the site decided while it was cut off; empty where the control plane did.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cause: String,
    /// Scorer that ranked the candidates: `rules`, or a policy's name.
    pub scorer: String,
    /// The policy that was loaded: the first digits of its file's hash; empty where none was.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub policy: String,
    /// Why rules decided although a policy was to; empty where it did.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub fallback: String,
    /// Why this is not the best candidate: now and then another is tried, to learn from it. Empty
    /// where it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tried: String,
    /// Candidates left after the filter.
    pub candidates: i32,
    /// Nodes and offers ruled out, by constraint.
    #[serde(default)]
    pub rejected: Vec<Rejection>,
    /// Winner's score, term by term.
    #[serde(default)]
    pub terms: Vec<ScoreTerm>,
    /// Winner's total score.
    pub score: f64,
    /// Best other candidate and its score, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner_up: Option<RunnerUp>,
    /// The best candidates, the winner first, at most five.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<Ranked>,
    /// What would have to change for the second to win; empty where nothing that was tried does.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub second_wins: String,
    /// What rules would have chosen, where a policy decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules_choice: Option<OtherChoice>,
    /// What the policy would have chosen, where rules decided and the policy only watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_choice: Option<OtherChoice>,
}

/// One of the best candidates.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Ranked {
    /// Node or offer.
    pub id: String,
    /// Its total score.
    pub score: f64,
    /// Its score, term by term.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub terms: Vec<ScoreTerm>,
}

/// What another scorer would have chosen.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OtherChoice {
    /// Node or offer.
    pub id: String,
    /// US dollars per hour of the replica's share; 0 where unknown or free.
    pub hourly_cost: f64,
    /// Estimated p99 latency seen by clients, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_latency_ms: Option<f64>,
}

/// One term of a score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScoreTerm {
    /// Name of the term.
    pub name: String,
    /// Contribution to the score.
    pub value: f64,
}

/// The candidate that came second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RunnerUp {
    /// Node or offer.
    pub id: String,
    /// Its score.
    pub score: f64,
}

/// Phase of a placement.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PlacementPhase {
    /// Decided, the node has not reported yet.
    #[default]
    Pending,
    /// The node pulls images or starts containers.
    Starting,
    /// All containers run.
    Running,
    /// Waiting out the restart backoff.
    Backoff,
    /// A job's replica ended well.
    Succeeded,
    /// The replica failed for good on this node.
    Failed,
    /// Being stopped.
    Stopping,
    /// The node is out of reach; its last word was Running.
    Unknown,
}

/// Status of a placement.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HyperionPlacementStatus {
    /// Phase.
    #[serde(default)]
    pub phase: PlacementPhase,
    /// When the phase began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Readiness probe's word.
    #[serde(default)]
    pub ready: bool,
    /// CamelCase reason of the phase.
    #[serde(default)]
    pub reason: String,
    /// For people.
    #[serde(default)]
    pub message: String,
    /// Restarts of the replica's containers on this node.
    #[serde(default)]
    pub restarts: i32,
    /// Address of the replica on its node's network.
    #[serde(default, rename = "podIP")]
    pub pod_ip: String,
    /// Generation that the node reported.
    #[serde(default)]
    pub observed_generation: i64,
}
