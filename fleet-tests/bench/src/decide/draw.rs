//! Synthetic fleets and requests.

use hyperion_placement::model::{
    CapacityType, Client, Geography, Goal, GpuDevice, GpuRequest, Location, Node, Offer, Place,
    Provider, Request, Resources, Supply, Tier, WorkloadType,
};
use hyperion_placement::policy::Network;
use hyperion_providers::prices::PRICES;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Different requests that take turns.
pub const REQUESTS: usize = 64;
const GIB: u64 = 1 << 30;
const EDGE_GEOGRAPHIES: [Geography; 5] = [
    Geography::Us,
    Geography::Eu,
    Geography::Uk,
    Geography::Ap,
    Geography::In,
];

/// A fleet of which two fifths are edge boards in sites of about twenty, the rest instances of the
/// price table; some full, some unreachable, some without what a request asks for.
#[must_use]
pub fn nodes(count: usize, seed: u64) -> Vec<Node> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut nodes: Vec<Node> = (0..count)
        .map(|n| {
            if rng.random_bool(0.4) {
                board(n, count, &mut rng)
            } else {
                instance(n, &mut rng)
            }
        })
        .collect();
    nodes.sort_by(|a, b| a.id.cmp(&b.id));
    nodes
}

fn board(n: usize, count: usize, rng: &mut StdRng) -> Node {
    let site = rng.random_range(0..=count / 20);
    let allocatable = Resources {
        cpu_millis: [4000, 6000, 12_000][rng.random_range(0..3)],
        memory_bytes: [4, 8, 64][rng.random_range(0..3)] * GIB,
    };
    let gpus = gpus(
        &format!("edge-{n}"),
        1,
        "Orin",
        allocatable.memory_bytes,
        rng,
    );
    Node {
        id: format!("site-{site}-{n:06}"),
        location: Location {
            tier: Tier::Edge,
            provider: Provider::Edge,
            region: String::new(),
            zone: String::new(),
            site: format!("site-{site}"),
            geography: Some(EDGE_GEOGRAPHIES[site % EDGE_GEOGRAPHIES.len()]),
        },
        arch: "arm64".to_owned(),
        capacity_type: CapacityType::Owned,
        instance_type: "jetson-orin".to_owned(),
        price_per_hour: 0.02,
        ..usual(allocatable, gpus, rng)
    }
}

fn instance(n: usize, rng: &mut StdRng) -> Node {
    let (location, row, capacity_type, price) = bought(rng);
    let allocatable = size_of(row.2);
    let gpus = gpus(
        &format!("cloud-{n}"),
        gpu_count(row.2),
        "A100",
        40 * GIB,
        rng,
    );
    Node {
        id: format!("{}-{n:06}", location.region),
        location,
        arch: "amd64".to_owned(),
        capacity_type,
        instance_type: row.2.to_owned(),
        price_per_hour: price,
        ..usual(allocatable, gpus, rng)
    }
}

/// What boards and instances have in common.
fn usual(allocatable: Resources, gpus: Vec<GpuDevice>, rng: &mut StdRng) -> Node {
    let used = rng.random_range(0.0..1.0);
    let left = |all: u64| (all as f64 * (1.0 - used)) as u64;
    let labels = [
        ("kubernetes.io/os", "linux"),
        ("hyperion.io/rack", ["a", "b", "c"][rng.random_range(0..3)]),
    ];
    let pair = |(k, v): (&str, &str)| (k.to_owned(), v.to_owned());
    Node {
        id: String::new(),
        location: Location {
            tier: Tier::Edge,
            provider: Provider::Edge,
            region: String::new(),
            zone: String::new(),
            site: String::new(),
            geography: None,
        },
        arch: String::new(),
        capacity_type: CapacityType::Owned,
        instance_type: String::new(),
        allocatable,
        free: Resources {
            cpu_millis: left(allocatable.cpu_millis),
            memory_bytes: left(allocatable.memory_bytes),
        },
        gpus,
        labels: labels.into_iter().map(pair).collect(),
        taints: Vec::new(),
        schedulable: rng.random_bool(0.98),
        ready: rng.random_bool(0.97),
        price_per_hour: 0.0,
        cpu_utilization: used as f32,
        images: (0..rng.random_range(0..5))
            .map(|i| format!("registry.example/app-{i}:1"))
            .collect(),
        supply: Supply::default(),
    }
}

fn bought(
    rng: &mut StdRng,
) -> (
    Location,
    &'static hyperion_providers::prices::Row,
    CapacityType,
    f64,
) {
    let row = &PRICES[rng.random_range(0..PRICES.len())];
    let (capacity_type, price) = match row.4 {
        Some(spot) if rng.random_bool(0.5) => (CapacityType::Spot, spot),
        _ => (CapacityType::OnDemand, row.3),
    };
    let location = Location {
        tier: Tier::Cloud,
        provider: row.0,
        region: row.1.to_owned(),
        zone: format!("{}{}", row.1, ["a", "b", "c"][rng.random_range(0..3)]),
        site: String::new(),
        geography: hyperion_providers::geography(row.0, row.1),
    };
    (location, row, capacity_type, price)
}

fn size_of(instance_type: &str) -> Resources {
    let cores = if instance_type.contains("24xlarge") || instance_type.contains("96") {
        96
    } else if instance_type.contains("12xlarge") || instance_type.contains("32") {
        48
    } else {
        8
    };
    Resources {
        cpu_millis: cores * 1000,
        memory_bytes: cores * 4 * GIB,
    }
}

fn gpu_count(instance_type: &str) -> usize {
    let many = ["p4d", "8g", "ND96"];
    let one = ["g4dn", "g5", "g6", "p3", "a2-", "g2-", "NC"];
    if many.iter().any(|t| instance_type.contains(t)) {
        8
    } else {
        usize::from(one.iter().any(|t| instance_type.contains(t)))
    }
}

fn gpus(owner: &str, count: usize, model: &str, memory: u64, rng: &mut StdRng) -> Vec<GpuDevice> {
    (0..count)
        .map(|i| GpuDevice {
            uuid: format!("GPU-{owner}-{i}"),
            model: model.to_owned(),
            memory_bytes: memory,
            free_millis: [0, 500, 1000, 1000][rng.random_range(0..4)],
        })
        .collect()
}

/// Offers from the price table.
#[must_use]
pub fn offers(count: usize, seed: u64) -> Vec<Offer> {
    let mut rng = StdRng::seed_from_u64(seed.wrapping_add(1));
    let mut offers: Vec<Offer> = (0..count)
        .map(|n| {
            let (location, row, capacity_type, price) = bought(&mut rng);
            let gpus = gpus(
                &format!("offer-{n}"),
                gpu_count(row.2),
                "A100",
                40 * GIB,
                &mut rng,
            );
            Offer {
                id: format!("{}/{}/{}/{n}", row.0, location.zone, row.2),
                location,
                arch: "amd64".to_owned(),
                capacity_type,
                instance_type: row.2.to_owned(),
                allocatable: size_of(row.2),
                gpus,
                price_per_hour: price,
                supply: Supply {
                    reclaim_rate: if capacity_type == CapacityType::Spot {
                        0.1
                    } else {
                        0.0
                    },
                    ..Supply::default()
                },
                startup_s: 90.0,
            }
        })
        .collect();
    offers.sort_by(|a, b| a.id.cmp(&b.id));
    offers
}

/// Requests of all goals, with and without constraints, clients and GPUs.
#[must_use]
pub fn requests(seed: u64) -> Vec<Request> {
    let mut rng = StdRng::seed_from_u64(seed.wrapping_add(2));
    (0..REQUESTS).map(|n| request(n, &mut rng)).collect()
}

fn request(n: usize, rng: &mut StdRng) -> Request {
    let gpu = match n % 4 {
        0 => GpuRequest {
            count: 1,
            millis: 1000,
        },
        1 => GpuRequest {
            count: 1,
            millis: 250,
        },
        _ => GpuRequest::default(),
    };
    let clients = if n.is_multiple_of(2) {
        let place = ["geo:EU", "geo:US", "geo:AP"][rng.random_range(0..3)];
        vec![Client {
            place: Place(place.to_owned()),
            weight: 1.0,
        }]
    } else {
        Vec::new()
    };
    Request {
        workload_type: if n.is_multiple_of(3) {
            WorkloadType::Job
        } else {
            WorkloadType::Service
        },
        goal: Goal::ALL[n % Goal::ALL.len()],
        resources: Resources {
            cpu_millis: [250, 1000, 4000][rng.random_range(0..3)],
            memory_bytes: [1, 2, 8][rng.random_range(0..3)] * GIB,
        },
        gpu,
        geographies: match n % 5 {
            0 => vec![Geography::Eu],
            1 => vec![Geography::Us, Geography::Eu],
            _ => Vec::new(),
        },
        clouds: if n.is_multiple_of(7) {
            vec![Provider::Aws, Provider::Gcp]
        } else {
            Vec::new()
        },
        tiers: if n.is_multiple_of(11) {
            vec![Tier::Edge]
        } else {
            Vec::new()
        },
        prefer_spot: n.is_multiple_of(2),
        latency_target_ms: Some(100.0),
        clients,
        images: vec!["registry.example/app-1:1".to_owned()],
        ..Request::new(format!("default/bench/{n}"))
    }
}

/// A network with weights of the size that layers begin to learn with. Work does not depend on
/// what the weights are.
#[must_use]
pub fn network(seed: u64) -> Network {
    let mut rng = StdRng::seed_from_u64(seed.wrapping_add(3));
    let mut network = Network::zeros();
    for (_, layer) in network.layers_mut() {
        let scale = 1.0 / (layer.columns as f32).sqrt();
        for weight in layer.weight.iter_mut().chain(&mut layer.bias) {
            *weight = rng.random_range(-scale..scale);
        }
    }
    network
}
