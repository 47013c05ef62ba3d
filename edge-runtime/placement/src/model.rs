//! The words of placement: nodes, offers, requests and the snapshot on which one decision is made.
//!
//! Everything is owned, ordered (`BTreeMap`, sorted vectors) and plain, so that the same inputs
//! give the same decision on every machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A value of a closed vocabulary that is not in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown {kind} {value:?}; expected one of {expected}")]
pub struct UnknownWord {
    /// What was being read: "goal", "provider", …
    pub kind: &'static str,
    /// What was found.
    pub value: String,
    /// The allowed words, comma-separated.
    pub expected: String,
}

macro_rules! vocabulary {
    ($(#[$meta:meta])* $name:ident, $kind:literal { $($(#[$vmeta:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vmeta])* #[doc = concat!("`", $word, "`.")] #[serde(rename = $word)] $variant),+ }

        impl $name {
            /// Every value, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word used in CRDs, labels, logs and docs.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.pad(self.as_str()) }
        }

        impl FromStr for $name {
            type Err = UnknownWord;
            fn from_str(value: &str) -> Result<Self, UnknownWord> {
                Self::ALL.iter().copied().find(|v| v.as_str() == value).ok_or_else(|| UnknownWord {
                    kind: $kind,
                    value: value.to_owned(),
                    expected: Self::ALL.iter().map(|v| v.as_str()).collect::<Vec<_>>().join(", "),
                })
            }
        }
    };
}

vocabulary! {
    /// What a workload wants most.
    Goal, "goal" { Cost = "cost", Latency = "latency", Default = "default" }
}
vocabulary! {
    /// Who owns the machine.
    Provider, "provider" { Aws = "aws", Gcp = "gcp", Azure = "azure", Edge = "edge" }
}
vocabulary! {
    /// Cloud or edge.
    Tier, "tier" { Cloud = "cloud", Edge = "edge" }
}
vocabulary! {
    /// How capacity is paid for; `owned` is edge hardware.
    CapacityType, "capacity type" { OnDemand = "on-demand", Spot = "spot", Owned = "owned" }
}
vocabulary! {
    /// A service runs until deleted, a job to completion.
    WorkloadType, "workload type" { Service = "service", Job = "job" }
}
vocabulary! {
    /// Where a node stands, for data sovereignty.
    Geography, "geography" {
        /// United States.
        Us = "US",
        /// Canada.
        Ca = "CA",
        /// South and Central America, with Mexico.
        Sa = "SA",
        /// European Union.
        Eu = "EU",
        /// United Kingdom.
        Uk = "UK",
        /// Switzerland.
        Ch = "CH",
        /// Norway.
        No = "NO",
        /// Middle East, with Israel.
        Me = "ME",
        /// Africa.
        Af = "AF",
        /// India.
        In = "IN",
        /// Mainland China.
        Cn = "CN",
        /// Hong Kong, Taiwan, Japan, Korea and South-East Asia.
        Ap = "AP",
        /// Australia and New Zealand.
        Au = "AU",
    }
}

/// CPU architecture in Kubernetes' words (`amd64`, `arm64`); [`normalize_arch`] takes uname's.
#[must_use]
pub fn normalize_arch(arch: &str) -> &str {
    match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// CPU and memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    /// Bytes.
    pub memory_bytes: u64,
}

/// One GPU of a node and what is left of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuDevice {
    /// NVML's uuid, or a stable name where there is none.
    pub uuid: String,
    /// Model as the driver names it.
    pub model: String,
    /// Bytes; unified memory counts as the node's memory too.
    pub memory_bytes: u64,
    /// Thousandths not yet promised to a replica, 0 to 1000.
    pub free_millis: u32,
}

/// What a replica asks of GPUs. Whole GPUs (`millis == 1000`) are given `count` devices of their
/// own; a share (`millis < 1000`, `count == 1`) goes on one device with that much left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuRequest {
    /// Devices; 0 means none.
    pub count: u32,
    /// Thousandths of each, 1 to 1000.
    pub millis: u32,
}

impl GpuRequest {
    /// Thousandths of GPUs in all.
    #[must_use]
    pub fn total_millis(&self) -> u64 {
        u64::from(self.count) * u64::from(self.millis)
    }

    /// True where less than whole devices are asked for.
    #[must_use]
    pub fn is_share(&self) -> bool {
        self.count > 0 && self.millis < crate::gpu::WHOLE
    }
}

/// A node's repellent, with Kubernetes' meaning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taint {
    /// Key.
    pub key: String,
    /// Value, may be empty.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

/// A replica's permission to ignore a taint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Toleration {
    /// Key; empty with `Exists` tolerates everything.
    pub key: String,
    /// `Equal` or `Exists`.
    pub operator: String,
    /// Value for `Equal`.
    pub value: String,
    /// Effect; empty matches all.
    pub effect: String,
}

/// Where a node stands in the network and the market. Shared by nodes and offers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Location {
    /// Cloud or edge.
    pub tier: Tier,
    /// Owner of the machine.
    pub provider: Provider,
    /// Region in the provider's words; for edge nodes, empty.
    pub region: String,
    /// Zone; may be empty.
    pub zone: String,
    /// Site of an edge node; empty in the cloud.
    pub site: String,
    /// For data sovereignty; unknown where neither region nor label tells.
    pub geography: Option<Geography>,
}

/// How sure one can be of getting and keeping a machine of this kind.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Supply {
    /// Monthly probability of reclaim as published, 0 to 1; 0 for what is never reclaimed.
    pub reclaim_rate: f32,
    /// Reclaims per running hour that were seen of late in this pool (zone and type).
    pub reclaims_per_hour: f32,
    /// Share of the last hours in which the pool could give a machine, 0 to 1; 1 where unknown.
    pub obtainable: f32,
}

impl Default for Supply {
    fn default() -> Self {
        Self {
            reclaim_rate: 0.0,
            reclaims_per_hour: 0.0,
            obtainable: 1.0,
        }
    }
}

/// Label of nodes of a workload cluster, with its name: they run Pods, and have no agent.
pub const CLUSTER_LABEL: &str = "hyperion.io/cluster";

/// A machine of the fleet, as one decision sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Unique id.
    pub id: String,
    /// Where it is.
    pub location: Location,
    /// Kubernetes' word for the CPU architecture.
    pub arch: String,
    /// How it is paid for.
    pub capacity_type: CapacityType,
    /// Instance type or board; may be empty.
    pub instance_type: String,
    /// All it has for replicas.
    pub allocatable: Resources,
    /// What is not yet promised.
    pub free: Resources,
    /// GPUs, by uuid.
    pub gpus: Vec<GpuDevice>,
    /// Labels, for node selectors.
    pub labels: BTreeMap<String, String>,
    /// Taints.
    pub taints: Vec<Taint>,
    /// False when cordoned, draining or revoked.
    pub schedulable: bool,
    /// False when its agent is out of reach.
    pub ready: bool,
    /// US dollars per hour for the whole node.
    pub price_per_hour: f64,
    /// Share of CPU in use by measurement, 0 to 1.
    pub cpu_utilization: f32,
    /// Ids of images known to be on the node.
    pub images: Vec<String>,
    /// How long it can be expected to stay.
    #[serde(default)]
    pub supply: Supply,
}

impl Node {
    /// True for a node of a workload cluster.
    #[must_use]
    pub fn in_cluster(&self) -> bool {
        self.labels.contains_key(CLUSTER_LABEL)
    }
}

/// Capacity that does not exist yet but can be bought.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// Unique id: provider/region/zone/type/capacity type.
    pub id: String,
    /// Where it would be.
    pub location: Location,
    /// Architecture.
    pub arch: String,
    /// Spot or on-demand.
    pub capacity_type: CapacityType,
    /// Instance type.
    pub instance_type: String,
    /// What it would have.
    pub allocatable: Resources,
    /// GPUs it would have (uuids made up from the index).
    pub gpus: Vec<GpuDevice>,
    /// US dollars per hour for the whole instance.
    pub price_per_hour: f64,
    /// How sure it is to be had and kept.
    #[serde(default)]
    pub supply: Supply,
    /// Seconds from asking for it until a replica can start there; 0 where unknown.
    #[serde(default)]
    pub startup_s: f32,
}

impl Offer {
    /// The node that it would be: ready and empty, without labels and taints.
    #[must_use]
    pub fn node(&self, id: String) -> Node {
        Node {
            id,
            location: self.location.clone(),
            arch: self.arch.clone(),
            capacity_type: self.capacity_type,
            instance_type: self.instance_type.clone(),
            allocatable: self.allocatable,
            free: self.allocatable,
            gpus: self.gpus.clone(),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            schedulable: true,
            ready: true,
            price_per_hour: self.price_per_hour,
            cpu_utilization: 0.0,
            images: Vec::new(),
            supply: self.supply,
        }
    }
}

/// A place of the latency matrix: `aws:us-east-1`, `site:lab`, or a geography's clients `geo:EU`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place(pub String);

/// Round-trip times between places.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencyMatrix {
    /// Milliseconds; symmetric, stored once with the smaller place first.
    pub rtt_ms: BTreeMap<(Place, Place), f32>,
}

/// Where a workload's requests come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Client {
    /// `geo:EU` or `site:lab`.
    pub place: Place,
    /// Share of the requests; weights need not sum to 1.
    pub weight: f32,
}

/// One replica that needs a place: a workload's demands in the form that placement reads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// `namespace/workload/index`.
    pub replica: String,
    /// Service or job.
    pub workload_type: WorkloadType,
    /// Goal.
    pub goal: Goal,
    /// CPU and memory.
    pub resources: Resources,
    /// GPUs.
    pub gpu: GpuRequest,
    /// Hard: allowed geographies; empty allows all.
    pub geographies: Vec<Geography>,
    /// Hard: allowed providers; empty allows all.
    pub clouds: Vec<Provider>,
    /// Hard: allowed tiers; empty allows both.
    pub tiers: Vec<Tier>,
    /// Hard: allowed architectures; empty allows all.
    pub archs: Vec<String>,
    /// Hard: labels the node must carry.
    pub node_selector: BTreeMap<String, String>,
    /// Taints that are tolerated.
    pub tolerations: Vec<Toleration>,
    /// Hard: US dollars per hour of this replica's share; none means no bound.
    pub max_hourly_cost: Option<f64>,
    /// Soft: prefer spot capacity.
    pub prefer_spot: bool,
    /// Soft: p99 that the user wants, milliseconds.
    pub latency_target_ms: Option<f64>,
    /// Where requests come from; empty means nobody said.
    pub clients: Vec<Client>,
    /// Soft: the place its data is close to.
    pub data_locality: Option<Place>,
    /// GiB that it reads from there before it can work; 0 where unknown.
    #[serde(default)]
    pub data_gib: f64,
    /// Mean time that one request keeps the replica busy, milliseconds; none where not measured.
    #[serde(default)]
    pub service_ms: Option<f64>,
    /// Hours of work left, for jobs; none where unknown.
    #[serde(default)]
    pub expected_hours: Option<f64>,
    /// Hours of work that are lost when its machine is reclaimed: half its checkpoint interval.
    #[serde(default)]
    pub at_risk_hours: f64,
    /// The node where the replica runs now; none where it has to be placed.
    #[serde(default)]
    pub current: Option<String>,
    /// Images its containers need.
    pub images: Vec<String>,
    /// Fields of the template that only a Kubernetes cluster can run (`spec.volumes`, …); an
    /// agent's own runtime is rejected for them. Empty for most.
    pub cluster_only_fields: Vec<String>,
    /// Nodes that hold other replicas of this workload, to spread.
    pub siblings: BTreeSet<String>,
    /// Nodes not to use for this decision (just failed there), with the reason.
    pub avoid: BTreeMap<String, String>,
}

impl Request {
    /// A service with the default goal that asks for nothing and may go anywhere.
    #[must_use]
    pub fn new(replica: impl Into<String>) -> Self {
        Self {
            replica: replica.into(),
            workload_type: WorkloadType::Service,
            goal: Goal::Default,
            resources: Resources::default(),
            gpu: GpuRequest::default(),
            geographies: Vec::new(),
            clouds: Vec::new(),
            tiers: Vec::new(),
            archs: Vec::new(),
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            max_hourly_cost: None,
            prefer_spot: false,
            latency_target_ms: None,
            clients: Vec::new(),
            data_locality: None,
            data_gib: 0.0,
            service_ms: None,
            expected_hours: None,
            at_risk_hours: 0.0,
            current: None,
            images: Vec::new(),
            cluster_only_fields: Vec::new(),
            siblings: BTreeSet::new(),
            avoid: BTreeMap::new(),
        }
    }
}

/// The immutable view on which one decision is made.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Grows with every change of the index it was made from.
    pub version: u64,
    /// Sorted by id.
    pub nodes: Vec<Node>,
    /// Sorted by id.
    pub offers: Vec<Offer>,
    /// Round-trip times.
    pub latency: LatencyMatrix,
    /// Replicas that wait for a place.
    #[serde(default)]
    pub queue: u32,
    /// What free GPU capacity is worth; nothing is known of it in a snapshot that was read.
    #[serde(skip)]
    pub packing: Arc<crate::packing::Prices>,
}

impl Snapshot {
    /// The node with this id, by halving where the nodes are sorted as they should be.
    #[must_use]
    pub fn node(&self, id: &str) -> Option<&Node> {
        find(&self.nodes, id, |n| &n.id)
    }

    /// The offer with this id, likewise.
    #[must_use]
    pub fn offer(&self, id: &str) -> Option<&Offer> {
        find(&self.offers, id, |o| &o.id)
    }
}

fn find<'a, T>(all: &'a [T], id: &str, of: impl Fn(&T) -> &str) -> Option<&'a T> {
    match all.binary_search_by(|item| of(item).cmp(id)) {
        Ok(at) => all.get(at),
        Err(_) => all.iter().find(|item| of(item) == id),
    }
}
