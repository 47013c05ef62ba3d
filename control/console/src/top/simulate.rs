//! A simulated fleet for `hyperion top --simulate`, the golden screens and the bench: as large as
//! wanted, the same for the same seed, changing every second. No part of the real program.

use hyperion_api::fleet::ScorerStatus;
use hyperion_api::placement::{
    Explanation, OtherChoice, PlacementPhase, Ranked, RunnerUp, ScoreTerm,
};
use hyperion_api::workload::{Rejection, WorkloadPhase};

use crate::fleet::live::LiveSample;
use crate::fleet::{Change, Condition, Happening, Node, NodeState, Placement, Workload};

/// Provider, region, geography, zone, instance type, GPU, price per hour, round trip.
type Cloud = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    f64,
    f32,
);

const CLOUDS: [Cloud; 8] = [
    (
        "aws",
        "us-east-1",
        "US",
        "g5.xlarge",
        "NVIDIA A10G",
        1.006,
        11.0,
    ),
    (
        "aws",
        "eu-west-1",
        "EU",
        "g6.xlarge",
        "NVIDIA L4",
        0.891,
        24.0,
    ),
    (
        "aws",
        "ap-northeast-1",
        "AP",
        "g5.xlarge",
        "NVIDIA A10G",
        1.459,
        148.0,
    ),
    (
        "gcp",
        "us-central1",
        "US",
        "g2-standard-4",
        "NVIDIA L4",
        0.707,
        31.0,
    ),
    (
        "gcp",
        "europe-west1",
        "EU",
        "a2-highgpu-1g",
        "NVIDIA A100",
        3.673,
        17.0,
    ),
    (
        "azure",
        "westeurope",
        "EU",
        "NC4as_T4_v3",
        "NVIDIA T4",
        0.592,
        19.0,
    ),
    (
        "azure",
        "eastus",
        "US",
        "NC24ads_A100_v4",
        "NVIDIA A100",
        3.673,
        14.0,
    ),
    (
        "azure",
        "uksouth",
        "UK",
        "NC4as_T4_v3",
        "NVIDIA T4",
        0.619,
        21.0,
    ),
];

const CITIES: [&str; 20] = [
    "austin", "berlin", "chiba", "delft", "essen", "fargo", "ghent", "hull", "izmir", "jena",
    "kyoto", "lyon", "malmo", "nice", "osaka", "porto", "quito", "reno", "split", "turin",
];
const KINDS: [&str; 5] = ["depot", "plant", "store", "farm", "clinic"];
/// Edge nodes per site.
const SITE_SIZE: usize = 50;

const MODELS: [&str; 12] = [
    "llm-chat",
    "detect-defects",
    "speech-to-text",
    "ocr",
    "embed",
    "rerank",
    "segment",
    "pose",
    "translate",
    "forecast",
    "upscale",
    "moderate",
];

/// A small generator of numbers (splitmix64), so that seeds mean the same for ever.
#[derive(Debug, Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// From 0 to 1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1_u64 << 24) as f32
    }

    fn chance(&mut self, share: f32) -> bool {
        self.unit() < share
    }
}

/// The fleet.
#[derive(Debug, Clone)]
pub struct Simulation {
    random: Random,
    nodes: Vec<Node>,
    samples: Vec<LiveSample>,
    workloads: Vec<Workload>,
    placements: Vec<Placement>,
    events: u64,
}

impl Simulation {
    /// A fleet with `count` nodes at `now_ms`.
    #[must_use]
    pub fn new(seed: u64, count: usize, now_ms: i64) -> Self {
        let mut made = Self {
            random: Random(seed),
            nodes: Vec::with_capacity(count),
            samples: Vec::with_capacity(count),
            workloads: Vec::new(),
            placements: Vec::new(),
            events: 0,
        };
        for i in 0..count {
            // Half of the fleet is at the edge.
            let node = if i % 2 == 0 {
                made.edge_node(i / 2)
            } else {
                made.cloud_node(i / 2)
            };
            made.add_node(node, now_ms);
        }
        if count > 0 {
            for i in 0..(count / 70).clamp(3, 200) {
                made.add_workload(i, now_ms);
            }
        }
        made
    }

    /// Everything there is.
    #[must_use]
    pub fn all(&self) -> Vec<Change> {
        vec![
            Change::Nodes(self.nodes.clone()),
            Change::Workloads(self.workloads.clone()),
            Change::Placements(self.placements.clone()),
            Change::Scorer(ScorerStatus {
                decides: "ppo".to_owned(),
                policy: "3f9c2a71be04".to_owned(),
                source: "built-in".to_owned(),
                ..ScorerStatus::default()
            }),
        ]
    }

    /// A second goes by: live values of every node in contact, and now and then something
    /// happens.
    pub fn step(&mut self, now_ms: i64) -> Vec<Change> {
        let mut changes = Vec::new();
        for i in 0..(self.nodes.len() / 2500).max(1) {
            if i > 0 || self.random.chance(0.3) {
                self.node_event(now_ms, &mut changes);
            }
        }
        self.placement_event(now_ms, &mut changes);
        changes.push(Change::Live(self.live()));
        changes
    }

    /// Live values of every node in contact, a second later.
    pub fn live(&mut self) -> Vec<LiveSample> {
        let mut live = Vec::with_capacity(self.samples.len());
        for (sample, node) in self.samples.iter_mut().zip(&self.nodes) {
            if node.state == NodeState::Lost {
                continue;
            }
            drift(&mut self.random, sample);
            live.push(sample.clone());
        }
        live
    }

    fn edge_node(&mut self, i: usize) -> Node {
        let site = i / SITE_SIZE;
        let kind = KINDS[site / CITIES.len() % KINDS.len()];
        let site = format!("{}-{kind}", CITIES[site % CITIES.len()]);
        let (board, memory, gpu) = match i % 3 {
            0 => ("orin-nano", 8, "Orin (nvgpu)"),
            1 => ("agx-orin", 64, "Orin (nvgpu)"),
            _ => ("n305-box", 16, ""),
        };
        let arch = if gpu.is_empty() { "amd64" } else { "arm64" };
        let mut node = Node {
            id: format!("{site}-{:03}", i % SITE_SIZE),
            site,
            provider: "edge".to_owned(),
            tier: "edge".to_owned(),
            geography: "EU".to_owned(),
            arch: arch.to_owned(),
            instance_type: board.to_owned(),
            capacity_type: "owned".to_owned(),
            ..Default::default()
        };
        amounts(&mut node, 6, memory, gpu);
        node
    }

    fn cloud_node(&mut self, i: usize) -> Node {
        let (provider, region, geography, machine, gpu, price, _) = CLOUDS[i % CLOUDS.len()];
        let spot = i.is_multiple_of(5);
        let zone = ["a", "b", "c"][i % 3];
        let mut node = Node {
            id: format!("{provider}-{region}-{:04}", i / CLOUDS.len()),
            provider: provider.to_owned(),
            tier: "cloud".to_owned(),
            region: region.to_owned(),
            zone: format!("{region}{zone}"),
            geography: geography.to_owned(),
            arch: "amd64".to_owned(),
            instance_type: machine.to_owned(),
            capacity_type: if spot { "spot" } else { "on-demand" }.to_owned(),
            price: if spot { price * 0.35 } else { price },
            ..Default::default()
        };
        amounts(&mut node, 4, 16, gpu);
        node
    }

    fn add_node(&mut self, mut node: Node, now_ms: i64) {
        let random = &mut self.random;
        node.hostname = node.id.clone();
        node.version = "0.1.0".to_owned();
        node.created_ms = Some(now_ms - (random.below(40 * 86_400) as i64) * 1000 - 60_000);
        set_state(
            &mut node,
            match random.below(1000) {
                0..9 => NodeState::Lost,
                9..13 => NodeState::Draining,
                13..17 => NodeState::Cordoned,
                17 => NodeState::Revoked,
                _ => NodeState::Ready,
            },
        );
        node.labels = [
            ("hyperion.io/provider", &node.provider),
            ("topology.kubernetes.io/region", &node.region),
            ("node.kubernetes.io/instance-type", &node.instance_type),
        ]
        .into_iter()
        .filter(|(_, v)| !v.is_empty())
        .map(|(k, v)| (k.to_owned(), v.clone()))
        .collect();
        let cloud = CLOUDS.iter().find(|c| c.1 == node.region);
        let gib: u64 = match node.instance_type.as_str() {
            "agx-orin" => 64,
            "orin-nano" => 8,
            _ => 16,
        };
        let bytes = gib << 30;
        self.samples.push(LiveSample {
            id: node.id.clone(),
            connected: true,
            cpu_percent: Some(random.unit() * 60.0),
            memory_used_bytes: (bytes as f32 * (0.2 + 0.6 * random.unit())) as u64,
            memory_total_bytes: bytes,
            disk_used_bytes: 20 << 30,
            load1: Some(random.unit() * 4.0),
            rtt_ms: Some(cloud.map_or(35.0, |c| c.6)),
            max_celsius: (node.tier == "edge").then(|| 40.0 + random.unit() * 25.0),
            gpu_percent: node
                .gpus
                .iter()
                .map(|_| Some(random.unit() * 90.0))
                .collect(),
            rx_bytes_per_second: random.below(500_000) as u64,
            tx_bytes_per_second: random.below(300_000) as u64,
            ..Default::default()
        });
        self.nodes.push(node);
    }

    fn add_workload(&mut self, i: usize, now_ms: i64) {
        let name = match i / MODELS.len() {
            0 => MODELS[i].to_owned(),
            n => format!("{}-{n}", MODELS[i % MODELS.len()]),
        };
        let job = i % 5 == 4;
        let goal = ["latency", "cost", "default"][i % 3];
        let pending = i % 9 == 8;
        let replicas = 1 + self.random.below(40).min(self.nodes.len() / 2);
        let placed = if pending { replicas / 3 } else { replicas };
        let namespace = ["prod", "prod", "lab", "batch"][i % 4];
        let mut nodes = Vec::new();
        let mut cost = 0.0;
        for replica in 0..placed {
            let node = self.random.below(self.nodes.len());
            let placement = self.placement(namespace, &name, replica, node, now_ms);
            cost += placement.hourly_cost;
            nodes.push(placement.node.clone());
            self.placements.push(placement);
        }
        let rejected = [("nvidia.com/gpu", 2), ("geographies", 3), ("memory", 9)];
        let rejected = rejected.map(|(c, share)| (c.to_owned(), (self.nodes.len() / share) as i32));
        let message = format!("no node fits: {} nodes were ruled out", self.nodes.len());
        self.workloads.push(Workload {
            key: format!("{namespace}/{name}"),
            namespace: namespace.to_owned(),
            images: vec![format!(
                "registry.example/{}:1.{i}",
                MODELS[i % MODELS.len()]
            )],
            name,
            kind: if job { "job" } else { "service" }.to_owned(),
            goal: goal.to_owned(),
            phase: match (pending, placed) {
                (false, _) => WorkloadPhase::Running,
                (true, 0) => WorkloadPhase::Pending,
                (true, _) => WorkloadPhase::Degraded,
            },
            desired: replicas as i32,
            ready: placed as i32,
            nodes: nodes.join(","),
            hourly_cost: Some(cost),
            p99_ms: (!job).then(|| 20.0 + f64::from(self.random.unit()) * 180.0),
            constraints: if i.is_multiple_of(2) {
                vec!["geographies US, EU".to_owned(), "prefers spot".to_owned()]
            } else {
                Vec::new()
            },
            conditions: vec![Condition {
                name: "Ready".to_owned(),
                status: if pending { "False" } else { "True" }.to_owned(),
                reason: if pending { "NoCandidate" } else { "AllReady" }.to_owned(),
                message: if pending { message } else { String::new() },
            }],
            rejected: if pending {
                rejected.to_vec()
            } else {
                Vec::new()
            },
            created_ms: Some(now_ms - (self.random.below(20 * 86_400) as i64) * 1000 - 300_000),
            ..Default::default()
        });
    }

    fn placement(
        &mut self,
        namespace: &str,
        workload: &str,
        replica: usize,
        node: usize,
        now_ms: i64,
    ) -> Placement {
        let total = self.nodes.len();
        let second = self.nodes[self.random.below(total)].id.clone();
        let node = &self.nodes[node];
        let cost = f64::from(self.random.unit()) * 0.6;
        let latency = f64::from(self.random.unit());
        let name = format!("{workload}-{replica}");
        let created = now_ms - (self.random.below(3 * 86_400) as i64) * 1000;
        let phase = match (node.state, self.random.below(100)) {
            (NodeState::Lost | NodeState::Revoked, _) => PlacementPhase::Unknown,
            (_, 0) => PlacementPhase::Starting,
            (_, 1) => PlacementPhase::Backoff,
            _ => PlacementPhase::Running,
        };
        let backoff = phase == PlacementPhase::Backoff;
        let by_site = node.provider == "edge" && (created / 1000) % 11 == 0;
        let mut explanation = why(total, &node.id, second, latency, cost);
        if by_site {
            explanation.cause = "a device of the site was dead for 6.2 s".to_owned();
        }
        Placement {
            key: format!("{namespace}/{name}"),
            namespace: namespace.to_owned(),
            name,
            workload: workload.to_owned(),
            replica: replica as i32,
            node: node.id.clone(),
            provider: node.provider.clone(),
            region: node.place().to_owned(),
            capacity_type: node.capacity_type.clone(),
            generation: 1 + self.random.below(4) as i64,
            decided_by: if by_site {
                node.id.clone()
            } else {
                "control-plane".to_owned()
            },
            hourly_cost: node.price,
            p99_ms: Some(20.0 + latency * 100.0),
            phase,
            ready: phase == PlacementPhase::Running,
            reason: if backoff { "CrashLoop" } else { "" }.to_owned(),
            message: if backoff {
                "container main exited with status 1"
            } else {
                ""
            }
            .to_owned(),
            restarts: if backoff { 5 } else { 0 },
            since_ms: Some(created + 2000),
            created_ms: Some(created),
            explanation,
            ..Default::default()
        }
    }

    /// A node is lost, or one that was lost is back.
    fn node_event(&mut self, now_ms: i64, changes: &mut Vec<Change>) {
        // A little under one in a hundred is lost at any time.
        let lost = |n: &Node| n.state == NodeState::Lost;
        let count = self.nodes.iter().filter(|n| lost(n)).count();
        let i = if count * 110 > self.nodes.len() {
            let nth = self.random.below(count);
            let found = self.nodes.iter().enumerate().filter(|(_, n)| lost(n));
            found.map(|(i, _)| i).nth(nth).unwrap_or(0)
        } else {
            self.random.below(self.nodes.len())
        };
        let Some(node) = self.nodes.get_mut(i) else {
            return;
        };
        let (state, reason, message) = match node.state {
            NodeState::Ready => (NodeState::Lost, "NodeLost", "no message for 10 s"),
            NodeState::Lost => (NodeState::Ready, "NodeReady", "the stream is open again"),
            _ => return,
        };
        set_state(node, state);
        let node = node.clone();
        let warning = state == NodeState::Lost;
        let event = self.event(now_ms, ("node", "", &node.id), warning, reason, message);
        changes.push(Change::Node(Box::new(node)));
        changes.push(Change::Happenings(vec![event]));
    }

    /// A container ends and comes back.
    fn placement_event(&mut self, now_ms: i64, changes: &mut Vec<Change>) {
        let i = self.random.below(self.placements.len());
        let Some(placement) = self.placements.get_mut(i) else {
            return;
        };
        use PlacementPhase as P;
        let (phase, reason, message) = match placement.phase {
            P::Running if self.random.chance(0.2) => {
                placement.restarts += 1;
                (
                    P::Backoff,
                    "CrashLoop",
                    "container main exited with status 1",
                )
            }
            P::Backoff => (P::Starting, "", ""),
            P::Starting => (P::Running, "", ""),
            _ => return,
        };
        placement.phase = phase;
        placement.ready = phase == P::Running;
        placement.reason = reason.to_owned();
        placement.message = message.to_owned();
        let placement = placement.clone();
        if phase == P::Backoff {
            let about = (
                "placement",
                placement.namespace.as_str(),
                placement.name.as_str(),
            );
            let event = self.event(now_ms, about, true, reason, message);
            changes.push(Change::Happenings(vec![event]));
        }
        changes.push(Change::Placement(Box::new(placement)));
    }

    fn event(
        &mut self,
        now_ms: i64,
        (kind, namespace, object): (&str, &str, &str),
        warning: bool,
        reason: &str,
        message: &str,
    ) -> Happening {
        self.events += 1;
        Happening {
            key: format!("default/e{}", self.events),
            at_ms: now_ms,
            warning,
            kind: kind.to_owned(),
            namespace: namespace.to_owned(),
            object: object.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            count: 1,
            ..Default::default()
        }
    }
}

/// A decision as a policy makes it, and every third time rules would have chosen otherwise.
fn why(total: usize, node: &str, second: String, latency: f64, cost: f64) -> Explanation {
    let terms = |lost: f64| {
        let all = [
            ("cost", cost),
            ("latency", latency - lost),
            ("risk", -0.012),
            ("room", 0.021),
            ("data", 0.0),
            ("move", 0.0),
            ("base", -0.04),
        ];
        let term = |(name, value): (&str, f64)| ScoreTerm {
            name: name.to_owned(),
            value,
        };
        all.map(term).to_vec()
    };
    let score = latency + cost - 0.031;
    let ranked = |id: &str, lost: f64| Ranked {
        id: id.to_owned(),
        score: score - lost,
        terms: terms(lost),
    };
    let rules = if total.wrapping_add(second.len()).is_multiple_of(3) {
        &second
    } else {
        node
    };
    Explanation {
        scorer: "ppo".to_owned(),
        policy: "3f9c2a71be04".to_owned(),
        candidates: (total / 3) as i32,
        rejected: [("geographies", 3), ("memory", 9)]
            .map(|(constraint, share)| Rejection {
                constraint: constraint.to_owned(),
                count: (total / share) as i32,
            })
            .to_vec(),
        terms: terms(0.0),
        score,
        runner_up: Some(RunnerUp {
            id: second.clone(),
            score: score - 0.03,
        }),
        top: vec![ranked(node, 0.0), ranked(&second, 0.03)],
        second_wins: format!("{second} would win if its p99 fell by 9.1 ms to 31.4 ms"),
        rules_choice: Some(OtherChoice {
            id: rules.to_owned(),
            hourly_cost: 0.0,
            p99_latency_ms: Some(40.5),
        }),
        ..Explanation::default()
    }
}

fn amounts(node: &mut Node, cpu: u32, memory_gib: u32, gpu: &str) {
    node.allocatable = [
        ("cpu".to_owned(), cpu.to_string()),
        ("memory".to_owned(), format!("{memory_gib}Gi")),
    ]
    .into();
    if !gpu.is_empty() {
        node.gpus.push(gpu.to_owned());
        let amount = "1".to_owned();
        node.allocatable.insert("nvidia.com/gpu".to_owned(), amount);
    }
}

fn set_state(node: &mut Node, state: NodeState) {
    let ready = state != NodeState::Lost && state != NodeState::Revoked;
    node.state = state;
    node.mode = if ready { "connected" } else { "suspect" }.to_owned();
    node.conditions = vec![Condition {
        name: "Ready".to_owned(),
        status: if ready { "True" } else { "False" }.to_owned(),
        reason: if ready { "Connected" } else { "NoContact" }.to_owned(),
        message: if ready { "" } else { "no message for 10 s" }.to_owned(),
    }];
}

/// A step of a walk that stays within bounds.
fn drift(random: &mut Random, sample: &mut LiveSample) {
    let mut walk = |value: Option<f32>, step: f32, most: f32| {
        value.map(|v| (v + (random.unit() - 0.5) * step).clamp(0.0, most))
    };
    sample.cpu_percent = walk(sample.cpu_percent, 12.0, 100.0);
    sample.load1 = walk(sample.load1, 0.4, 16.0);
    sample.rtt_ms = walk(sample.rtt_ms, 2.0, 400.0);
    sample.max_celsius = walk(sample.max_celsius, 1.0, 95.0);
    for gpu in &mut sample.gpu_percent {
        *gpu = walk(*gpu, 20.0, 100.0);
    }
    let total = sample.memory_total_bytes as f32;
    let used = walk(Some(sample.memory_used_bytes as f32), total / 50.0, total);
    sample.memory_used_bytes = used.unwrap_or(0.0) as u64;
    let rx = walk(Some(sample.rx_bytes_per_second as f32), 200_000.0, 4e6);
    sample.rx_bytes_per_second = rx.unwrap_or(0.0) as u64;
    let tx = walk(Some(sample.tx_bytes_per_second as f32), 100_000.0, 2e6);
    sample.tx_bytes_per_second = tx.unwrap_or(0.0) as u64;
}
