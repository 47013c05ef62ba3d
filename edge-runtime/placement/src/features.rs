//! The feature table: what a scorer may know of a (request, candidate) pair. One table names each
//! slot, its unit and scale; its hash travels with a trained policy, and a loader refuses a
//! mismatch.

use sha2::{Digest, Sha256};

use crate::cost;
use crate::filter::Candidate;
use crate::latency;
use crate::model::{CapacityType, Goal, LatencyMatrix, Request, Tier, WorkloadType};

/// Grows with every change of meaning that the table's text does not show.
pub const SCHEMA: u32 = 1;

/// One slot of the vector.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slot {
    /// Name.
    pub name: &'static str,
    /// Unit before scaling.
    pub unit: &'static str,
    /// The raw value is divided by this.
    pub scale: f32,
}

macro_rules! table {
    ($($index:ident = $name:literal, $unit:literal, $scale:literal;)+) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms, reason = "slot indices")]
        #[derive(Clone, Copy)]
        #[repr(usize)]
        enum Index { $($index),+ }
        /// The table, in order of the vector.
        pub const TABLE: &[Slot] = &[$(Slot { name: $name, unit: $unit, scale: $scale }),+];
    };
}

table! {
    GoalCost = "goal_cost", "0 or 1", 1.0;
    GoalLatency = "goal_latency", "0 or 1", 1.0;
    IsService = "is_service", "0 or 1", 1.0;
    Cost = "replica_cost", "ln(1 + USD/h)", 1.0;
    CostKnown = "replica_cost_known", "0 or 1", 1.0;
    P99 = "p99", "ln(1 + ms)", 6.0;
    P99Known = "p99_known", "0 or 1", 1.0;
    TargetMissed = "p99_over_target", "ratio, at most 4", 4.0;
    FreeCpu = "free_cpu_after", "share", 1.0;
    FreeMemory = "free_memory_after", "share", 1.0;
    FreeGpu = "free_gpu", "share", 1.0;
    CpuUse = "cpu_utilization", "share", 1.0;
    IsEdge = "is_edge", "0 or 1", 1.0;
    IsSpot = "is_spot", "0 or 1", 1.0;
    PreferSpot = "spot_preferred", "0 or 1", 1.0;
    Reclaim = "reclaim_rate", "share per month", 1.0;
    Sibling = "holds_sibling", "0 or 1", 1.0;
    HasImages = "images_present", "share", 1.0;
    DataRtt = "data_rtt", "ln(1 + ms)", 6.0;
    DataKnown = "data_rtt_known", "0 or 1", 1.0;
    IsOffer = "is_offer", "0 or 1", 1.0;
}

/// Length of a feature vector.
pub const LEN: usize = TABLE.len();

/// SHA-256 of the table's text, hexadecimal.
#[must_use]
pub fn table_hash() -> String {
    let mut hash = Sha256::new();
    hash.update(SCHEMA.to_le_bytes());
    for slot in TABLE {
        hash.update(format!("{}|{}|{}\n", slot.name, slot.unit, slot.scale));
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// The vector of one pair, and the two numbers in it that people ask for, unscaled.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    /// Scaled values, by [`TABLE`]; every one finite.
    pub values: [f32; LEN],
    /// US dollars per hour of the replica's share.
    pub hourly_cost: Option<f64>,
    /// Estimated p99 seen by clients.
    pub p99_ms: Option<f64>,
    /// Round trip to the workload's data.
    pub data_rtt_ms: Option<f64>,
}

/// Encodes one pair. `candidate` has passed the filter.
#[must_use]
pub fn encode(matrix: &LatencyMatrix, request: &Request, candidate: &Candidate<'_>) -> Features {
    let hourly_cost = cost::replica_share(request, candidate);
    let p99_ms = latency::p99_ms(matrix, request, candidate);
    let data_rtt_ms = request
        .data_locality
        .as_ref()
        .and_then(|place| matrix.rtt(place, &latency::place_of(candidate.location)));
    let mut values = [0.0_f32; LEN];
    let mut set = |index: Index, raw: f64| {
        let scaled = raw as f32 / TABLE[index as usize].scale;
        values[index as usize] = if scaled.is_finite() { scaled } else { 0.0 };
    };
    let flag = |b: bool| if b { 1.0 } else { 0.0 };
    set(Index::GoalCost, flag(request.goal == Goal::Cost));
    set(Index::GoalLatency, flag(request.goal == Goal::Latency));
    set(
        Index::IsService,
        flag(request.workload_type == WorkloadType::Service),
    );
    set(Index::Cost, hourly_cost.unwrap_or(0.0).ln_1p());
    set(Index::CostKnown, flag(hourly_cost.is_some()));
    set(Index::P99, p99_ms.unwrap_or(0.0).ln_1p());
    set(Index::P99Known, flag(p99_ms.is_some()));
    if let (Some(p99), Some(target)) = (p99_ms, request.latency_target_ms) {
        set(Index::TargetMissed, (p99 / target.max(0.001)).min(4.0));
    }
    set(
        Index::FreeCpu,
        share_left(
            candidate.free.cpu_millis,
            request.resources.cpu_millis,
            candidate.allocatable.cpu_millis,
        ),
    );
    set(
        Index::FreeMemory,
        share_left(
            candidate.free.memory_bytes,
            request.resources.memory_bytes,
            candidate.allocatable.memory_bytes,
        ),
    );
    if !candidate.gpus.is_empty() {
        let free: u64 = candidate
            .gpus
            .iter()
            .map(|g| u64::from(g.free_millis.min(1000)))
            .sum();
        set(
            Index::FreeGpu,
            free as f64 / (candidate.gpus.len() as f64 * 1000.0),
        );
    }
    set(
        Index::CpuUse,
        candidate
            .node
            .map_or(0.0, |n| f64::from(n.cpu_utilization).clamp(0.0, 1.0)),
    );
    set(Index::IsEdge, flag(candidate.location.tier == Tier::Edge));
    set(
        Index::IsSpot,
        flag(candidate.capacity_type == CapacityType::Spot),
    );
    set(Index::PreferSpot, flag(request.prefer_spot));
    set(
        Index::Reclaim,
        f64::from(candidate.reclaim_rate).clamp(0.0, 1.0),
    );
    set(
        Index::Sibling,
        flag(request.siblings.contains(candidate.id)),
    );
    set(Index::HasImages, images_present(request, candidate));
    set(Index::DataRtt, data_rtt_ms.unwrap_or(0.0).ln_1p());
    set(Index::DataKnown, flag(data_rtt_ms.is_some()));
    set(Index::IsOffer, flag(candidate.node.is_none()));
    Features {
        values,
        hourly_cost,
        p99_ms,
        data_rtt_ms,
    }
}

impl Features {
    fn get(&self, index: Index) -> f64 {
        f64::from(self.values[index as usize] * TABLE[index as usize].scale)
    }

    /// Smaller of the shares of CPU and memory left after placing.
    #[must_use]
    pub fn free_after(&self) -> f64 {
        self.get(Index::FreeCpu).min(self.get(Index::FreeMemory))
    }

    /// The candidate holds another replica of the workload.
    #[must_use]
    pub fn holds_sibling(&self) -> bool {
        self.get(Index::Sibling) > 0.5
    }

    /// Share of the images already on the node.
    #[must_use]
    pub fn images_present(&self) -> f64 {
        self.get(Index::HasImages)
    }
}

fn share_left(free: u64, asked: u64, all: u64) -> f64 {
    if all == 0 {
        0.0
    } else {
        free.saturating_sub(asked) as f64 / all as f64
    }
}

fn images_present(request: &Request, candidate: &Candidate<'_>) -> f64 {
    let Some(node) = candidate.node else {
        return 0.0;
    };
    if request.images.is_empty() {
        return 1.0;
    }
    let present = request
        .images
        .iter()
        .filter(|i| node.images.contains(i))
        .count();
    present as f64 / request.images.len() as f64
}
