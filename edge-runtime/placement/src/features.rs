//! The feature table: what a scorer may know of a request and a candidate, in four groups by what
//! a slot depends on, so that each is computed only when that changes.
//!
//! | group | depends on | computed |
//! |---|---|---|
//! | [`NODE`] | the candidate | when telemetry or placements of that node change |
//! | [`REQUEST`] | the request and the fleet as a whole | once a decision |
//! | [`PAIR`] | the request and the candidate's kind (place, shape, price) | once a decision and kind |
//! | [`FIT`] | the request and this very candidate | for every candidate |
//!
//! The table's hash travels with a trained policy, and a loader refuses another. Logarithms are
//! libm's, so that x86-64 and aarch64 give the same bits.

use sha2::{Digest, Sha256};

use crate::cost;
use crate::filter::Candidate;
use crate::latency;
use crate::model::{
    CapacityType, Goal, GpuDevice, LatencyMatrix, Node, Request, Snapshot, Tier, WorkloadType,
};
use crate::reward::{RewardWeights, Weights};

/// Grows with every change of meaning that the table's text does not show.
pub const SCHEMA: u32 = 3;

/// One slot of a vector.
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
    ($(#[$meta:meta])* $table:ident, $len:ident = $size:literal, $index:ident { $($slot:ident = $name:literal, $unit:literal, $scale:literal;)+ }) => {
        #[doc = concat!("Slots of [`", stringify!($table), "`].")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(usize)]
        pub enum $index { $(#[doc = concat!("`", $name, "`, ", $unit, ".")] $slot),+ }
        $(#[$meta])*
        pub const $table: &[Slot] = &[$(Slot { name: $name, unit: $unit, scale: $scale }),+];
        #[doc = concat!("Length of a vector of [`", stringify!($table), "`]; slots behind the table are 0.")]
        pub const $len: usize = $size;
        const _: () = assert!($table.len() <= $len);
    };
}

table! {
    /// What a candidate is and how it is doing.
    NODE, NODE_LEN = 32, NodeSlot {
        Edge = "is_edge", "0 or 1", 1.0;
        Spot = "is_spot", "0 or 1", 1.0;
        Offer = "is_offer", "0 or 1", 1.0;
        Price = "price", "ln(1 + USD/h)", 1.0;
        PriceKnown = "price_known", "0 or 1", 1.0;
        FreeCpu = "free_cpu", "share", 1.0;
        FreeMemory = "free_memory", "share", 1.0;
        FreeGpu = "free_gpu", "share", 1.0;
        HasGpu = "has_gpu", "0 or 1", 1.0;
        Gpus = "gpus", "ln(1 + devices)", 1.0;
        PartGpus = "gpus_in_part_used", "share", 1.0;
        Cores = "cores", "ln(1 + cores)", 4.0;
        Memory = "memory", "ln(1 + GiB)", 4.0;
        CpuUse = "cpu_utilization", "share", 1.0;
        Reclaim = "reclaim_rate", "share per month", 1.0;
        Reclaims = "reclaims_seen", "ln(1 + 10 per hour)", 1.0;
        Obtainable = "obtainable", "share", 1.0;
        Startup = "startup", "ln(1 + s)", 6.0;
        Used = "in_use", "0 or 1", 1.0;
    }
}

table! {
    /// What is asked for, and how the fleet is doing.
    REQUEST, REQUEST_LEN = 32, RequestSlot {
        GoalCost = "goal_cost", "0 or 1", 1.0;
        GoalLatency = "goal_latency", "0 or 1", 1.0;
        Service = "is_service", "0 or 1", 1.0;
        Cpu = "cpu_asked", "ln(1 + cores)", 3.0;
        Memory = "memory_asked", "ln(1 + GiB)", 4.0;
        Gpus = "gpus_asked", "ln(1 + devices)", 1.0;
        GpuShare = "gpu_share_asked", "share", 1.0;
        PreferSpot = "spot_preferred", "0 or 1", 1.0;
        Target = "latency_target", "ln(1 + ms)", 6.0;
        TargetKnown = "latency_target_known", "0 or 1", 1.0;
        Clients = "clients_known", "0 or 1", 1.0;
        Data = "data", "ln(1 + GiB)", 6.0;
        Hours = "expected_hours", "ln(1 + h)", 3.0;
        HoursKnown = "expected_hours_known", "0 or 1", 1.0;
        AtRisk = "work_at_risk", "ln(1 + h)", 1.0;
        Running = "is_running", "0 or 1", 1.0;
        Bounded = "cost_bounded", "0 or 1", 1.0;
        ServiceTime = "service_time", "ln(1 + ms)", 4.0;
        Queue = "queue", "ln(1 + replicas)", 4.0;
        EdgeShare = "edge_share_of_nodes", "share", 1.0;
        EdgeFreeCpu = "edge_free_cpu", "share", 1.0;
        EdgeFreeGpu = "edge_free_gpu", "share", 1.0;
        CloudFreeCpu = "cloud_free_cpu", "share", 1.0;
        CloudFreeGpu = "cloud_free_gpu", "share", 1.0;
    }
}

table! {
    /// The request on a machine of this kind that is otherwise idle.
    PAIR, PAIR_LEN = 32, PairSlot {
        Cost = "replica_cost", "ln(1 + USD/h)", 1.0;
        CostKnown = "replica_cost_known", "0 or 1", 1.0;
        CostTerm = "cost_reward", "ln(1 + w1 / cost - cost / 10), at least 0", 1.0;
        P99 = "idle_p99", "ln(1 + ms)", 6.0;
        P99Known = "p99_known", "0 or 1", 1.0;
        LatencyTerm = "latency_reward", "ln(1 + w2 / p99)", 1.0;
        Target = "idle_p99_over_target", "ratio, at most 4", 4.0;
        DataRtt = "data_rtt", "ln(1 + ms)", 6.0;
        DataKnown = "data_rtt_known", "0 or 1", 1.0;
        Egress = "egress", "ln(1 + USD)", 2.0;
        SpotWanted = "spot_as_preferred", "0 or 1", 1.0;
        WorkLost = "work_expected_lost", "hours per hour, at most 4", 1.0;
        TimeLost = "start_expected_lost", "hours per hour, at most 4", 1.0;
        Reward = "idle_reward", "w1 / cost + w2 / p99 - cost / 10, -20 to 20", 4.0;
    }
}

table! {
    /// The request on this very candidate, as it is now.
    FIT, FIT_LEN = 16, FitSlot {
        CpuAfter = "free_cpu_after", "share", 1.0;
        MemoryAfter = "free_memory_after", "share", 1.0;
        GpuAfter = "free_gpu_after", "share", 1.0;
        GpuExact = "fills_gpu_exactly", "0 or 1", 1.0;
        Sibling = "holds_sibling", "0 or 1", 1.0;
        Images = "images_present", "share", 1.0;
        Here = "runs_here", "0 or 1", 1.0;
        P99 = "p99", "ln(1 + ms)", 6.0;
        Target = "p99_over_target", "ratio, at most 4", 4.0;
        LatencyLost = "latency_reward_lost_to_load", "w2 / p99", 1.0;
    }
}

/// SHA-256 of the table's text, hexadecimal.
#[must_use]
pub fn table_hash() -> String {
    let mut hash = Sha256::new();
    hash.update(SCHEMA.to_le_bytes());
    for (group, table, len) in [
        ("node", NODE, NODE_LEN),
        ("request", REQUEST, REQUEST_LEN),
        ("pair", PAIR, PAIR_LEN),
        ("fit", FIT, FIT_LEN),
    ] {
        hash.update(format!("{group}|{len}\n"));
        for slot in table {
            hash.update(format!("{}|{}|{}\n", slot.name, slot.unit, slot.scale));
        }
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// The fleet as a whole, for [`REQUEST`].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Summary {
    /// Replicas that wait for a place.
    pub queue: u32,
    /// What edge nodes have and have left.
    pub edge: Capacity,
    /// What cloud nodes have and have left.
    pub cloud: Capacity,
}

/// What nodes of one tier have and have left. Only those that are ready and take replicas count.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Capacity {
    /// Nodes.
    pub nodes: u64,
    /// Thousandths of cores.
    pub cpu: u64,
    /// Thousandths of cores not promised.
    pub free_cpu: u64,
    /// Thousandths of GPUs.
    pub gpu: u64,
    /// Thousandths of GPUs not promised.
    pub free_gpu: u64,
}

impl Summary {
    /// Counts a snapshot.
    #[must_use]
    pub fn of(snapshot: &Snapshot) -> Self {
        let mut summary = Self {
            queue: snapshot.queue,
            ..Self::default()
        };
        for node in &snapshot.nodes {
            summary.add(node);
        }
        summary
    }

    /// Counts a node.
    pub fn add(&mut self, node: &Node) {
        self.count(node, u64::wrapping_add);
    }

    /// Takes back what [`Self::add`] counted of the same node.
    pub fn remove(&mut self, node: &Node) {
        self.count(node, u64::wrapping_sub);
    }

    fn count(&mut self, node: &Node, with: fn(u64, u64) -> u64) {
        if !(node.ready && node.schedulable) {
            return;
        }
        let tier = match node.location.tier {
            Tier::Edge => &mut self.edge,
            Tier::Cloud => &mut self.cloud,
        };
        let free = |g: &GpuDevice| u64::from(g.free_millis.min(1000));
        let put = |sum: &mut u64, value: u64| *sum = with(*sum, value);
        put(&mut tier.nodes, 1);
        put(&mut tier.cpu, node.allocatable.cpu_millis);
        put(&mut tier.free_cpu, node.free.cpu_millis);
        put(&mut tier.gpu, node.gpus.len() as u64 * 1000);
        put(&mut tier.free_gpu, node.gpus.iter().map(free).sum());
    }
}

/// What is known of one pair, scaled, and the numbers in it that people ask for, unscaled.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    /// By [`NODE`]; every value finite, here and below.
    pub node: [f32; NODE_LEN],
    /// By [`PAIR`].
    pub pair: [f32; PAIR_LEN],
    /// By [`FIT`].
    pub fit: [f32; FIT_LEN],
    /// US dollars per hour of the replica's share.
    pub hourly_cost: Option<f64>,
    /// Estimated p99 seen by clients.
    pub p99_ms: Option<f64>,
    /// Round trip to the workload's data.
    pub data_rtt_ms: Option<f64>,
}

struct Writer<'a> {
    values: &'a mut [f32],
    table: &'static [Slot],
}

impl Writer<'_> {
    fn set(&mut self, slot: usize, raw: f64) {
        let scaled = raw as f32 / self.table[slot].scale;
        self.values[slot] = if scaled.is_finite() { scaled } else { 0.0 };
    }
}

const fn flag(b: bool) -> f64 {
    if b { 1.0 } else { 0.0 }
}

fn ln_1p(raw: f64) -> f64 {
    libm::log1p(raw.max(0.0))
}

fn share(part: u64, all: u64) -> f64 {
    if all == 0 {
        0.0
    } else {
        part as f64 / all as f64
    }
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

/// Encodes a candidate by [`NODE`].
#[must_use]
pub fn encode_node(candidate: &Candidate<'_>) -> [f32; NODE_LEN] {
    let mut values = [0.0; NODE_LEN];
    let mut w = Writer {
        values: &mut values,
        table: NODE,
    };
    let mut set = |slot: NodeSlot, raw: f64| w.set(slot as usize, raw);
    let price = candidate.price_per_hour;
    let known = price.is_finite() && price >= 0.0;
    set(NodeSlot::Edge, flag(candidate.location.tier == Tier::Edge));
    set(
        NodeSlot::Spot,
        flag(candidate.capacity_type == CapacityType::Spot),
    );
    set(NodeSlot::Offer, flag(candidate.node.is_none()));
    set(NodeSlot::Price, if known { ln_1p(price) } else { 0.0 });
    set(NodeSlot::PriceKnown, flag(known));
    let (all, free) = (candidate.allocatable, candidate.free);
    set(NodeSlot::FreeCpu, share(free.cpu_millis, all.cpu_millis));
    set(
        NodeSlot::FreeMemory,
        share(free.memory_bytes, all.memory_bytes),
    );
    let devices = candidate.gpus.len() as u64;
    let left = candidate.gpus.iter().map(|g| g.free_millis.min(1000));
    set(
        NodeSlot::FreeGpu,
        share(left.clone().map(u64::from).sum(), devices * 1000),
    );
    set(NodeSlot::HasGpu, flag(devices > 0));
    set(NodeSlot::Gpus, ln_1p(devices as f64));
    let part = left.clone().filter(|m| (1..1000).contains(m)).count() as u64;
    set(NodeSlot::PartGpus, share(part, devices));
    set(NodeSlot::Cores, ln_1p(all.cpu_millis as f64 / 1000.0));
    set(NodeSlot::Memory, ln_1p(gib(all.memory_bytes)));
    let used = candidate.node.map_or(0.0, |n| f64::from(n.cpu_utilization));
    set(NodeSlot::CpuUse, used.clamp(0.0, 1.0));
    let supply = candidate.supply;
    let rate = f64::from(supply.reclaim_rate).clamp(0.0, 1.0);
    set(NodeSlot::Reclaim, rate);
    let seen = f64::from(supply.reclaims_per_hour).clamp(0.0, 100.0);
    set(NodeSlot::Reclaims, ln_1p(10.0 * seen));
    set(
        NodeSlot::Obtainable,
        f64::from(supply.obtainable).clamp(0.0, 1.0),
    );
    set(NodeSlot::Startup, ln_1p(f64::from(candidate.startup_s)));
    let in_use = free.cpu_millis < all.cpu_millis || left.clone().any(|m| m < 1000);
    set(NodeSlot::Used, flag(in_use));
    values
}

/// Encodes a request by [`REQUEST`].
#[must_use]
pub fn encode_request(request: &Request, summary: &Summary) -> [f32; REQUEST_LEN] {
    let mut values = [0.0; REQUEST_LEN];
    let mut w = Writer {
        values: &mut values,
        table: REQUEST,
    };
    let mut set = |slot: RequestSlot, raw: f64| w.set(slot as usize, raw);
    set(RequestSlot::GoalCost, flag(request.goal == Goal::Cost));
    set(
        RequestSlot::GoalLatency,
        flag(request.goal == Goal::Latency),
    );
    set(
        RequestSlot::Service,
        flag(request.workload_type == WorkloadType::Service),
    );
    set(
        RequestSlot::Cpu,
        ln_1p(request.resources.cpu_millis as f64 / 1000.0),
    );
    set(
        RequestSlot::Memory,
        ln_1p(gib(request.resources.memory_bytes)),
    );
    set(RequestSlot::Gpus, ln_1p(f64::from(request.gpu.count)));
    if request.gpu.count > 0 {
        set(
            RequestSlot::GpuShare,
            f64::from(request.gpu.millis.min(1000)) / 1000.0,
        );
    }
    set(RequestSlot::PreferSpot, flag(request.prefer_spot));
    if let Some(target) = request.latency_target_ms {
        set(RequestSlot::Target, ln_1p(target));
        set(RequestSlot::TargetKnown, 1.0);
    }
    set(RequestSlot::Clients, flag(!request.clients.is_empty()));
    set(RequestSlot::Data, ln_1p(request.data_gib));
    if let Some(hours) = request.expected_hours {
        set(RequestSlot::Hours, ln_1p(hours));
        set(RequestSlot::HoursKnown, 1.0);
    }
    set(RequestSlot::AtRisk, ln_1p(request.at_risk_hours));
    set(RequestSlot::Running, flag(request.current.is_some()));
    set(
        RequestSlot::Bounded,
        flag(request.max_hourly_cost.is_some()),
    );
    set(
        RequestSlot::ServiceTime,
        ln_1p(latency::service_ms(request)),
    );
    set(RequestSlot::Queue, ln_1p(f64::from(summary.queue)));
    let (edge, cloud) = (&summary.edge, &summary.cloud);
    set(
        RequestSlot::EdgeShare,
        share(edge.nodes, edge.nodes + cloud.nodes),
    );
    set(RequestSlot::EdgeFreeCpu, share(edge.free_cpu, edge.cpu));
    set(RequestSlot::EdgeFreeGpu, share(edge.free_gpu, edge.gpu));
    set(RequestSlot::CloudFreeCpu, share(cloud.free_cpu, cloud.cpu));
    set(RequestSlot::CloudFreeGpu, share(cloud.free_gpu, cloud.gpu));
    values
}

/// What [`PAIR`] encodes, before scaling, for those that need the numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kind {
    /// US dollars per hour of the replica's share.
    pub hourly_cost: Option<f64>,
    /// Weighted round trip from the clients, milliseconds.
    pub client_rtt_ms: Option<f64>,
    /// Round trip to the data, milliseconds.
    pub data_rtt_ms: Option<f64>,
    /// US dollars to bring the data there.
    pub egress_usd: f64,
}

/// Looks up what [`encode_pair`] needs.
#[must_use]
pub fn kind(matrix: &LatencyMatrix, request: &Request, candidate: &Candidate<'_>) -> Kind {
    Kind {
        hourly_cost: cost::replica_share(request, candidate),
        client_rtt_ms: latency::client_rtt_ms(matrix, request, candidate.location),
        data_rtt_ms: request
            .data_locality
            .as_ref()
            .and_then(|place| matrix.rtt(place, &latency::place_of(candidate.location))),
        egress_usd: cost::egress_usd(request, candidate.location),
    }
}

/// Encodes a request on a kind of machine by [`PAIR`].
#[must_use]
pub fn encode_pair(
    kind: &Kind,
    weights: &Weights,
    request: &Request,
    candidate: &Candidate<'_>,
) -> [f32; PAIR_LEN] {
    let mut values = [0.0; PAIR_LEN];
    let mut w = Writer {
        values: &mut values,
        table: PAIR,
    };
    let mut set = |slot: PairSlot, raw: f64| w.set(slot as usize, raw);
    let mut reward = 0.0;
    if let Some(cost) = kind.hourly_cost {
        let term = weights.cost_term(cost);
        reward += term;
        set(PairSlot::Cost, ln_1p(cost));
        set(PairSlot::CostKnown, 1.0);
        set(PairSlot::CostTerm, ln_1p(term));
    }
    if let Some(p99) = idle_p99(kind, request) {
        let term = weights.latency_term(p99);
        reward += term;
        set(PairSlot::P99, ln_1p(p99));
        set(PairSlot::P99Known, 1.0);
        set(PairSlot::LatencyTerm, ln_1p(term));
        set(PairSlot::Target, over_target(p99, request));
    }
    if let Some(rtt) = kind.data_rtt_ms {
        set(PairSlot::DataRtt, ln_1p(rtt));
        set(PairSlot::DataKnown, 1.0);
    }
    set(PairSlot::Egress, ln_1p(kind.egress_usd));
    let spot = candidate.capacity_type == CapacityType::Spot;
    set(PairSlot::SpotWanted, flag(spot && request.prefer_spot));
    let reclaims = f64::from(candidate.supply.reclaims_per_hour).clamp(0.0, 100.0);
    set(
        PairSlot::WorkLost,
        (reclaims * request.at_risk_hours.max(0.0)).min(4.0),
    );
    // A reclaimed replica starts anew on a machine of its kind, or of one like it.
    let start_hours = f64::from(candidate.startup_s.max(120.0)) / 3600.0;
    set(PairSlot::TimeLost, (reclaims * start_hours).min(4.0));
    set(PairSlot::Reward, reward.clamp(-20.0, 20.0));
    values
}

fn idle_p99(kind: &Kind, request: &Request) -> Option<f64> {
    let rtt = kind.client_rtt_ms?;
    Some(rtt * latency::P99_FACTOR + latency::sojourn_p99_ms(latency::service_ms(request), 0.0))
}

fn over_target(p99: f64, request: &Request) -> f64 {
    request
        .latency_target_ms
        .map_or(0.0, |target| (p99 / target.max(0.001)).min(4.0))
}

/// Encodes a request on one candidate by [`FIT`], with the p99 that it would have there.
#[must_use]
pub fn encode_fit(
    kind: &Kind,
    weights: &Weights,
    request: &Request,
    candidate: &Candidate<'_>,
) -> ([f32; FIT_LEN], Option<f64>) {
    let mut values = [0.0; FIT_LEN];
    let mut w = Writer {
        values: &mut values,
        table: FIT,
    };
    let mut set = |slot: FitSlot, raw: f64| w.set(slot as usize, raw);
    let (all, free, asked) = (candidate.allocatable, candidate.free, request.resources);
    let here = request.current.as_deref() == Some(candidate.id);
    let after = |free: u64, asked: u64, all: u64| share(free.saturating_sub(asked), all);
    set(
        FitSlot::CpuAfter,
        after(free.cpu_millis, asked.cpu_millis, all.cpu_millis),
    );
    set(
        FitSlot::MemoryAfter,
        after(free.memory_bytes, asked.memory_bytes, all.memory_bytes),
    );
    let millis = request.gpu.millis.clamp(1, 1000);
    let wanted = u64::from(request.gpu.count) * u64::from(millis);
    let left = candidate.gpus.iter().map(|g| g.free_millis.min(1000));
    set(
        FitSlot::GpuAfter,
        after(
            left.clone().map(u64::from).sum(),
            wanted,
            candidate.gpus.len() as u64 * 1000,
        ),
    );
    let exact = request.gpu.count > 0
        && left.clone().filter(|m| *m == millis).count() >= request.gpu.count as usize;
    set(FitSlot::GpuExact, flag(exact));
    set(
        FitSlot::Sibling,
        flag(request.siblings.contains(candidate.id)),
    );
    set(FitSlot::Images, images_present(request, candidate));
    set(FitSlot::Here, flag(here));
    let p99 = kind.client_rtt_ms.map(|rtt| {
        rtt * latency::P99_FACTOR
            + latency::sojourn_p99_ms(
                latency::service_ms(request),
                latency::utilization_with(request, candidate),
            )
    });
    if let Some(p99) = p99 {
        set(FitSlot::P99, ln_1p(p99));
        set(FitSlot::Target, over_target(p99, request));
        if let Some(idle) = idle_p99(kind, request) {
            set(
                FitSlot::LatencyLost,
                weights.latency_term(idle) - weights.latency_term(p99),
            );
        }
    }
    (values, p99)
}

/// Encodes one pair. `candidate` has passed the filter.
#[must_use]
pub fn encode(matrix: &LatencyMatrix, request: &Request, candidate: &Candidate<'_>) -> Features {
    encode_of(&kind(matrix, request, candidate), request, candidate)
}

/// [`encode`], with what was looked up before.
#[must_use]
pub fn encode_of(kind: &Kind, request: &Request, candidate: &Candidate<'_>) -> Features {
    let weights = RewardWeights::default().of(request.goal);
    let (fit, p99_ms) = encode_fit(kind, &weights, request, candidate);
    Features {
        node: encode_node(candidate),
        pair: encode_pair(kind, &weights, request, candidate),
        fit,
        hourly_cost: kind.hourly_cost,
        p99_ms,
        data_rtt_ms: kind.data_rtt_ms,
    }
}

impl Features {
    fn fit(&self, slot: FitSlot) -> f64 {
        f64::from(self.fit[slot as usize] * FIT[slot as usize].scale)
    }

    /// Smaller of the shares of CPU and memory left after placing.
    #[must_use]
    pub fn free_after(&self) -> f64 {
        self.fit(FitSlot::CpuAfter)
            .min(self.fit(FitSlot::MemoryAfter))
    }

    /// The candidate holds another replica of the workload.
    #[must_use]
    pub fn holds_sibling(&self) -> bool {
        self.fit(FitSlot::Sibling) > 0.5
    }

    /// Share of the images already on the node.
    #[must_use]
    pub fn images_present(&self) -> f64 {
        self.fit(FitSlot::Images)
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
