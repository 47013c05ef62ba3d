//! Random fleets, changes, requests and networks, each from a seed.

#![allow(dead_code, reason = "each test takes what it needs")]

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use hyperion_placement::Fleet;
use hyperion_placement::model::*;
use hyperion_placement::packing::{self, Lesson, Prices, TypicalRequests};
use hyperion_placement::policy::Network;

/// SplitMix64 (Steele et al., 2014).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    pub fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }
}

const REGIONS: [(Provider, &str, Geography); 4] = [
    (Provider::Aws, "us-east-1", Geography::Us),
    (Provider::Aws, "eu-west-1", Geography::Eu),
    (Provider::Gcp, "europe-west1", Geography::Eu),
    (Provider::Azure, "uksouth", Geography::Uk),
];
const SITES: [&str; 5] = ["lab", "dock", "mill", "farm", "port"];
const PLACES: [&str; 10] = [
    "aws:us-east-1",
    "aws:eu-west-1",
    "gcp:europe-west1",
    "geo:EU",
    "geo:US",
    "geo:UK",
    "site:lab",
    "site:dock",
    "site:mill",
    "moon:base",
];

pub fn place(r: &mut Random) -> Place {
    Place(r.of(&PLACES).to_owned())
}

fn location(r: &mut Random) -> Location {
    let geography = |r: &mut Random, known: Geography| (!r.chance(0.2)).then_some(known);
    if r.chance(0.5) {
        let known = r.of(&[Geography::Us, Geography::Eu, Geography::Uk]);
        Location {
            tier: Tier::Edge,
            provider: Provider::Edge,
            region: String::new(),
            zone: String::new(),
            site: r.of(&SITES).to_owned(),
            geography: geography(r, known),
        }
    } else {
        let (provider, region, known) = r.of(&REGIONS);
        Location {
            tier: if r.chance(0.95) {
                Tier::Cloud
            } else {
                Tier::Edge
            },
            provider,
            region: region.to_owned(),
            zone: r.of(&["a", "b"]).to_owned(),
            site: String::new(),
            geography: geography(r, known),
        }
    }
}

fn price(r: &mut Random) -> f64 {
    r.of(&[
        0.0,
        0.02,
        0.1,
        0.1,
        0.5,
        3.0,
        f64::NAN,
        -1.0,
        f64::INFINITY,
        0.1 + r.0 as f64 / u64::MAX as f64,
    ])
}

fn supply(r: &mut Random) -> Supply {
    r.of(&[
        Supply::default(),
        Supply::default(),
        Supply {
            reclaim_rate: 0.2,
            reclaims_per_hour: 0.1,
            obtainable: 0.4,
        },
        Supply {
            reclaim_rate: f32::NAN,
            reclaims_per_hour: -1.0,
            obtainable: 7.0,
        },
    ])
}

fn gpus(r: &mut Random, owner: &str) -> Vec<GpuDevice> {
    let count = r.of(&[0, 0, 0, 1, 1, 2, 4, 8, 12]);
    (0..count)
        .map(|i| GpuDevice {
            uuid: format!("{owner}-{i}"),
            model: "L4".to_owned(),
            memory_bytes: 24 << 30,
            free_millis: r.of(&[0, 250, 500, 750, 1000, 1000, 1000, 1500]),
        })
        .collect()
}

fn arch(r: &mut Random) -> String {
    r.of(&["amd64", "amd64", "arm64"]).to_owned()
}

fn resources(r: &mut Random) -> Resources {
    Resources {
        cpu_millis: r.of(&[0, 4000, 4000, 8000, 64_000]),
        memory_bytes: r.of(&[0, 8 << 30, 8 << 30, 64 << 30]),
    }
}

fn taint(r: &mut Random) -> Taint {
    Taint {
        key: r.of(&["k", "gpu"]).to_owned(),
        value: r.of(&["v", ""]).to_owned(),
        effect: r
            .of(&["NoSchedule", "NoExecute", "PreferNoSchedule"])
            .to_owned(),
    }
}

pub fn node(r: &mut Random, id: &str) -> Node {
    let allocatable = resources(r);
    let share = r.of(&[0.0, 0.25, 0.5, 1.0, 1.0, 1.0]);
    let left = |all: u64| (all as f64 * share) as u64;
    let mut free = Resources {
        cpu_millis: left(allocatable.cpu_millis),
        memory_bytes: left(allocatable.memory_bytes),
    };
    if r.chance(0.02) {
        free.memory_bytes = u64::MAX - r.next() % 3;
    }
    let mut labels = BTreeMap::from([("name".to_owned(), id.to_owned())]);
    if r.chance(0.6) {
        labels.insert("rack".to_owned(), r.of(&["a", "b"]).to_owned());
    }
    if r.chance(0.2) {
        labels.insert(CLUSTER_LABEL.to_owned(), "c".to_owned());
    }
    Node {
        id: id.to_owned(),
        location: location(r),
        arch: arch(r),
        capacity_type: r.of(&[
            CapacityType::Owned,
            CapacityType::OnDemand,
            CapacityType::Spot,
        ]),
        instance_type: String::new(),
        allocatable,
        free,
        gpus: gpus(r, id),
        labels,
        taints: (0..r.of(&[0, 0, 0, 1, 2])).map(|_| taint(r)).collect(),
        schedulable: r.chance(0.93),
        ready: r.chance(0.93),
        price_per_hour: price(r),
        cpu_utilization: usage(r),
        images: (0..r.below(3)).map(|_| image(r)).collect(),
        supply: supply(r),
    }
}

fn usage(r: &mut Random) -> f32 {
    let any = r.unit() as f32;
    r.of(&[0.0, 0.0, 0.5, any, any, any, 1.0, 5.0, -0.3, f32::NAN])
}

fn image(r: &mut Random) -> String {
    r.of(&["app:1", "app:2", "db:1"]).to_owned()
}

pub fn offer(r: &mut Random, id: &str) -> Offer {
    Offer {
        id: id.to_owned(),
        location: location(r),
        arch: arch(r),
        capacity_type: r.of(&[CapacityType::OnDemand, CapacityType::Spot]),
        instance_type: String::new(),
        allocatable: resources(r),
        gpus: gpus(r, id),
        price_per_hour: price(r),
        supply: supply(r),
        startup_s: r.of(&[0.0, 90.0, 300.0, f32::NAN]),
    }
}

/// Nodes and offers may have the same id.
pub fn id(r: &mut Random, most: usize) -> String {
    format!("m-{}", r.below(most))
}

fn some<T: Clone>(r: &mut Random, p: f64, all: &[T]) -> Vec<T> {
    if r.chance(p) {
        (0..=r.below(2)).map(|_| r.of(all)).collect()
    } else {
        Vec::new()
    }
}

pub fn request(r: &mut Random, most: usize) -> Request {
    let any = r.unit() * 300.0;
    let cpu = r.of(&[0, 250, 1000, 1000, 4000, u64::MAX]);
    let memory = r.of(&[0, 1 << 30, 1 << 30, 8 << 30, 1 << 60]);
    let usual = r.chance(0.9);
    Request {
        replica: "default/w/0".to_owned(),
        workload_type: r.of(WorkloadType::ALL),
        goal: r.of(Goal::ALL),
        resources: Resources {
            cpu_millis: if usual { cpu.min(4000) } else { cpu },
            memory_bytes: if usual { memory.min(8 << 30) } else { memory },
        },
        gpu: r.of(&[
            GpuRequest::default(),
            GpuRequest::default(),
            GpuRequest {
                count: 1,
                millis: 1000,
            },
            GpuRequest {
                count: 1,
                millis: 250,
            },
            GpuRequest {
                count: 3,
                millis: 500,
            },
            GpuRequest {
                count: 9,
                millis: 1000,
            },
        ]),
        geographies: some(r, 0.2, &[Geography::Us, Geography::Eu]),
        clouds: some(r, 0.2, Provider::ALL),
        tiers: some(r, 0.2, Tier::ALL),
        archs: some(r, 0.2, &["amd64".to_owned(), "arm64".to_owned()]),
        node_selector: match r.below(8) {
            0 => BTreeMap::from([("rack".to_owned(), "a".to_owned())]),
            1 => BTreeMap::from([
                ("rack".to_owned(), "b".to_owned()),
                ("name".to_owned(), id(r, most)),
            ]),
            2 => BTreeMap::from([("nobody".to_owned(), "has".to_owned())]),
            _ => BTreeMap::new(),
        },
        tolerations: (0..r.of(&[0, 0, 1, 2]))
            .map(|_| Toleration {
                key: r.of(&["k", "gpu", ""]).to_owned(),
                operator: r.of(&["Equal", "Exists"]).to_owned(),
                value: r.of(&["v", ""]).to_owned(),
                effect: r.of(&["", "NoSchedule"]).to_owned(),
            })
            .collect(),
        max_hourly_cost: r.of(&[None, None, None, Some(0.05), Some(1.0), Some(f64::NAN)]),
        prefer_spot: r.chance(0.3),
        latency_target_ms: r.of(&[None, Some(any), Some(40.0), Some(-1.0), Some(f64::NAN)]),
        clients: (0..r.of(&[0, 1, 1, 2]))
            .map(|_| Client {
                place: place(r),
                weight: r.of(&[1.0, 1.0, 0.5, 0.0, f32::NAN]),
            })
            .collect(),
        data_locality: r.chance(0.3).then(|| place(r)),
        data_gib: r.of(&[0.0, 10.0]),
        service_ms: r.of(&[None, Some(0.01), Some(20.0), Some(1e12), Some(f64::NAN)]),
        expected_hours: r.of(&[None, Some(3.0)]),
        at_risk_hours: r.of(&[0.0, 0.5]),
        current: r.chance(0.3).then(|| id(r, most)),
        images: (0..r.below(3)).map(|_| image(r)).collect(),
        cluster_only_fields: some(r, 0.05, &["spec.volumes".to_owned()]),
        siblings: (0..r.of(&[0, 0, 2])).map(|_| id(r, most)).collect(),
        avoid: (0..r.of(&[0, 0, 2]))
            .map(|_| (id(r, most), "failed".to_owned()))
            .collect(),
    }
}

pub fn latency(r: &mut Random) -> LatencyMatrix {
    let mut matrix = LatencyMatrix::default();
    for _ in 0..r.below(12) {
        let (a, b) = (place(r), place(r));
        matrix.insert(&a, &b, rtt(r));
    }
    matrix
}

pub fn rtt(r: &mut Random) -> f32 {
    let any = r.unit() as f32 * 200.0;
    r.of(&[any, any, any, any, 0.0, -1.0, f32::NAN, 1e30])
}

/// One change, on the fleet as it is.
pub fn change(r: &mut Random, fleet: &mut Fleet, most: usize) {
    let id = id(r, most);
    match r.below(16) {
        0..=2 => fleet.upsert_node(node(r, &id)),
        3 => fleet.upsert_offer(offer(r, &id)),
        4 => {
            fleet.remove_node(&id);
        }
        5 => {
            fleet.remove_offer(&id);
        }
        6..=8 => {
            let _ = fleet.set_telemetry(&id, usage(r));
        }
        9 => {
            let _ = fleet.set_ready(&id, r.chance(0.7));
        }
        10 => {
            let _ = fleet.set_schedulable(&id, r.chance(0.7));
        }
        11 => {
            let _ = fleet.set_price(&id, price(r));
        }
        12 => fleet.set_queue(r.below(9) as u32),
        13 => {
            let (a, b) = (place(r), place(r));
            fleet.set_rtt(&a, &b, rtt(r));
        }
        14 => {
            let asked = Resources {
                cpu_millis: 500,
                memory_bytes: 1 << 30,
            };
            let _ = fleet.take(&id, asked, &[(format!("{id}-0"), 250)]);
        }
        _ => {
            let given = Resources {
                cpu_millis: 500,
                memory_bytes: 1 << 30,
            };
            let _ = fleet.release(&id, given, &[(format!("{id}-0"), 250)]);
        }
    }
}

/// Prices of free GPU capacity, learned on random requests and what is left of random nodes.
pub fn prices(r: &mut Random) -> Arc<Prices> {
    static SOME: LazyLock<Vec<Arc<Prices>>> = LazyLock::new(|| (0..12).map(learned).collect());
    r.of(&SOME)
}

fn learned(seed: u64) -> Arc<Prices> {
    let mut r = Random(seed);
    let mut typical = TypicalRequests::default();
    for _ in 0..1 + r.below(8) {
        let mut asked = request(&mut r, 3);
        if r.chance(0.3) {
            asked.gpu.count = 1 + r.below(8) as u32;
        }
        typical.observe_many(packing::demand_of(&asked), 1 + r.below(50) as u32);
    }
    let nodes: Vec<Node> = (0..8).map(|n| node(&mut r, &format!("n-{n}"))).collect();
    Arc::new(Lesson::new(typical, nodes.iter(), Arc::default()).prices())
}

/// Weights of the size that layers begin to learn with.
pub fn network(r: &mut Random) -> Network {
    let mut network = Network::zeros();
    for (_, layer) in network.layers_mut() {
        let scale = 1.5 / (layer.columns as f64).sqrt();
        for weight in layer.weight.iter_mut().chain(&mut layer.bias) {
            *weight = ((2.0 * r.unit() - 1.0) * scale) as f32;
        }
    }
    network
}
