//! Synthetic requests, candidates and weights, the same on every machine: drawn from integers,
//! with nothing but exact operations.

use std::collections::{BTreeMap, BTreeSet};

use hyperion_placement::features::{self, Features, REQUEST_LEN, Summary, encode_request};
use hyperion_placement::filter::Candidate;
use hyperion_placement::model::*;
use hyperion_placement::policy::Network;

/// SplitMix64 (Steele, Lea and Flood, 2014).
pub struct Draw(pub u64);

impl Draw {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to under `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// From 0 to under 1, a multiple of 2^-24.
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// A network as training leaves them: weights of the size that Xavier's rule gives, some units
/// much stronger than others.
pub fn network(seed: u64) -> Network {
    let mut draw = Draw(seed);
    let mut network = Network::zeros();
    for (_, linear) in network.layers_mut() {
        let bound = (6.0 / (linear.rows() + linear.columns) as f32).sqrt();
        let columns = linear.columns;
        for row in linear.weight.chunks_exact_mut(columns) {
            let strength = if draw.chance(10) { 3.0 } else { 1.0 };
            for weight in row {
                *weight = (draw.unit() * 2.0 - 1.0) * bound * strength;
            }
        }
        for bias in &mut linear.bias {
            *bias = (draw.unit() - 0.5) * 0.2;
        }
    }
    network
}

/// A request and a fleet.
pub struct Case {
    pub snapshot: Snapshot,
    pub request: Request,
}

impl Case {
    /// The request's vector.
    pub fn request_vector(&self) -> [f32; REQUEST_LEN] {
        encode_request(&self.request, &Summary::of(&self.snapshot))
    }

    /// Vectors of every candidate, whether it passes the filter or not.
    pub fn features(&self) -> Vec<Features> {
        let nodes = self.snapshot.nodes.iter().map(Candidate::from);
        let offers = self.snapshot.offers.iter().map(Candidate::from);
        nodes
            .chain(offers)
            .map(|c| features::encode(&self.snapshot.latency, &self.request, &c))
            .collect()
    }
}

const REGIONS: [(Provider, &str); 4] = [
    (Provider::Aws, "us-east-1"),
    (Provider::Gcp, "europe-west4"),
    (Provider::Azure, "eastus"),
    (Provider::Edge, "lab"),
];

fn place(provider: Provider, region: &str) -> Place {
    Place(if provider == Provider::Edge {
        format!("site:{region}")
    } else {
        format!("{provider}:{region}")
    })
}

fn matrix(draw: &mut Draw) -> LatencyMatrix {
    let mut places: Vec<Place> = REGIONS.iter().map(|(p, r)| place(*p, r)).collect();
    places.push(Place("geo:EU".to_owned()));
    places.sort();
    let mut matrix = LatencyMatrix::default();
    for (i, a) in places.iter().enumerate() {
        for b in &places[i + 1..] {
            let rtt = 0.5 + draw.below(2000) as f32 / 8.0;
            matrix.rtt_ms.insert((a.clone(), b.clone()), rtt);
        }
    }
    matrix
}

fn location(provider: Provider, region: &str) -> Location {
    let edge = provider == Provider::Edge;
    let name = region.to_owned();
    let (region, site) = if edge {
        (String::new(), name)
    } else {
        (name, String::new())
    };
    Location {
        tier: if edge { Tier::Edge } else { Tier::Cloud },
        provider,
        region,
        zone: String::new(),
        site,
        geography: Some(Geography::Eu),
    }
}

fn gpus(draw: &mut Draw, free: bool) -> Vec<GpuDevice> {
    let count = draw.pick(&[0, 0, 1, 2, 8]);
    let device = |i: u64, draw: &mut Draw| GpuDevice {
        uuid: format!("gpu-{i}"),
        model: "T4".to_owned(),
        memory_bytes: 16 << 30,
        free_millis: if free {
            1000
        } else {
            draw.pick(&[0, 250, 500, 1000])
        },
    };
    (0..count).map(|i| device(i, draw)).collect()
}

fn supply(draw: &mut Draw) -> Supply {
    Supply {
        reclaim_rate: draw.unit(),
        reclaims_per_hour: draw.unit() / 4.0,
        obtainable: draw.unit(),
    }
}

/// A node.
pub fn node(draw: &mut Draw, id: u64) -> Node {
    let (provider, region) = draw.pick(&REGIONS);
    let edge = provider == Provider::Edge;
    let cores = draw.pick(&[4, 8, 32, 96]);
    let allocatable = Resources {
        cpu_millis: cores * 1000,
        memory_bytes: (cores * 4) << 30,
    };
    let free = Resources {
        cpu_millis: draw.below(allocatable.cpu_millis + 1),
        memory_bytes: draw.below(allocatable.memory_bytes + 1),
    };
    Node {
        id: format!("node-{id:03}"),
        location: location(provider, region),
        arch: "amd64".to_owned(),
        capacity_type: if edge {
            CapacityType::Owned
        } else {
            draw.pick(&[CapacityType::OnDemand, CapacityType::Spot])
        },
        instance_type: "m".to_owned(),
        allocatable,
        free,
        gpus: gpus(draw, false),
        labels: BTreeMap::new(),
        taints: Vec::new(),
        schedulable: true,
        ready: true,
        price_per_hour: if edge {
            0.0
        } else {
            draw.below(4000) as f64 / 512.0
        },
        cpu_utilization: draw.unit(),
        images: if draw.chance(50) {
            vec!["image-0".to_owned()]
        } else {
            Vec::new()
        },
        supply: supply(draw),
    }
}

fn offer(draw: &mut Draw, id: u64) -> Offer {
    let (provider, region) = draw.pick(&REGIONS[..3]);
    let cores = draw.pick(&[4, 16, 64]);
    Offer {
        id: format!("offer-{id:03}"),
        location: location(provider, region),
        arch: "amd64".to_owned(),
        capacity_type: draw.pick(&[CapacityType::OnDemand, CapacityType::Spot]),
        instance_type: "m".to_owned(),
        allocatable: Resources {
            cpu_millis: cores * 1000,
            memory_bytes: (cores * 4) << 30,
        },
        gpus: gpus(draw, true),
        price_per_hour: draw.below(4000) as f64 / 512.0,
        supply: supply(draw),
        startup_s: draw.below(600) as f32,
    }
}

fn request(draw: &mut Draw) -> Request {
    let service = draw.chance(50);
    let gpu = draw.pick(&[(0, 0), (0, 0), (1, 1000), (1, 500), (2, 1000)]);
    let (provider, region) = draw.pick(&REGIONS);
    Request {
        workload_type: if service {
            WorkloadType::Service
        } else {
            WorkloadType::Job
        },
        goal: draw.pick(Goal::ALL),
        resources: Resources {
            cpu_millis: draw.pick(&[250, 1000, 4000]),
            memory_bytes: draw.pick(&[1, 4, 16]) << 30,
        },
        gpu: GpuRequest {
            count: gpu.0,
            millis: gpu.1,
        },
        max_hourly_cost: draw.chance(20).then_some(4.0),
        prefer_spot: draw.chance(30),
        latency_target_ms: service.then(|| 10.0 + draw.below(200) as f64),
        clients: if service {
            vec![Client {
                place: Place("geo:EU".to_owned()),
                weight: 1.0,
            }]
        } else {
            Vec::new()
        },
        data_locality: draw.chance(50).then(|| place(provider, region)),
        data_gib: draw.below(64) as f64,
        service_ms: draw.chance(50).then(|| draw.below(320) as f64 / 8.0),
        expected_hours: (!service).then(|| 0.25 + draw.below(96) as f64 / 4.0),
        at_risk_hours: draw.below(8) as f64 / 8.0,
        current: draw.chance(20).then(|| "node-000".to_owned()),
        images: vec!["image-0".to_owned(), "image-1".to_owned()],
        siblings: BTreeSet::from(["node-001".to_owned()]),
        ..Request::new("default/w/0")
    }
}

/// A request on a fleet of so many nodes and half as many offers.
pub fn case(seed: u64, nodes: u64) -> Case {
    let mut draw = Draw(seed);
    let snapshot = Snapshot {
        version: 1,
        nodes: (0..nodes).map(|i| node(&mut draw, i)).collect(),
        offers: (0..nodes / 2).map(|i| offer(&mut draw, i)).collect(),
        latency: matrix(&mut draw),
        queue: draw.below(50) as u32,
        ..Snapshot::default()
    };
    Case {
        request: request(&mut draw),
        snapshot,
    }
}
