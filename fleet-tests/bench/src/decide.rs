//! How long one decision takes, by the number of nodes and offers.

use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;
use hyperion_placement::model::{
    CapacityType, Client, Geography, Goal, GpuDevice, GpuRequest, Location, Node, Offer, Place,
    Provider, Request, Resources, Snapshot, Supply, Tier, WorkloadType,
};
use hyperion_placement::{RulesScorer, decide};
use hyperion_providers::prices::PRICES;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::report::Report;
use hyperion_lab::proc;

/// Measure placement decisions on synthetic fleets.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Nodes.
    #[arg(long, default_value_t = 10_000)]
    pub nodes: usize,
    /// Offers.
    #[arg(long, default_value_t = 0)]
    pub offers: usize,
    /// Seed of fleet and requests.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Length of the measurement, seconds; at least a hundred decisions are made.
    #[arg(long, default_value_t = 5)]
    pub seconds: u64,
}

/// Different requests that take turns.
const REQUESTS: usize = 64;
/// Nodes that are held in memory at least, so that the memory of one can be told.
const HELD: usize = 20_000;
const GIB: u64 = 1 << 30;
const EDGE_GEOGRAPHIES: [Geography; 5] = [
    Geography::Us,
    Geography::Eu,
    Geography::Uk,
    Geography::Ap,
    Geography::In,
];

/// Runs the bench on one core.
///
/// # Errors
/// The histogram can't be made, or /proc can't be read.
pub fn run(args: &Args) -> anyhow::Result<Report> {
    let mut report = Report::new("decide", args.seed);
    report.condition("nodes", args.nodes);
    report.condition("offers", args.offers);
    report.condition("cores", 1);
    report.condition("cpu", proc::cpu_model());
    report.condition("scorer", "rules");
    report.condition("requests", REQUESTS);

    let own = std::process::id();
    let before = proc::rss_bytes(own)?;
    let copies = HELD.div_ceil(args.nodes.max(1)).max(1);
    let held: Vec<Vec<Node>> = (0..copies)
        .map(|copy| nodes(args.nodes, args.seed ^ copy as u64))
        .collect();
    let grown = proc::rss_bytes(own)?.saturating_sub(before);
    let count = held.iter().map(Vec::len).sum::<usize>();
    let per_node = (count > 0).then(|| grown as f64 / count as f64);
    report.figure("bytes_per_node", per_node);
    drop(held);

    let snapshot = Snapshot {
        version: 1,
        nodes: nodes(args.nodes, args.seed),
        offers: offers(args.offers, args.seed),
        latency: hyperion_providers::latency_matrix(),
        queue: 0,
    };
    let requests = requests(args.seed);
    let mut times = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3)?;
    let (mut placed, mut candidates) = (0_u64, 0_u64);
    for request in &requests {
        let _ = decide(&snapshot, request, &RulesScorer);
    }
    let began = Instant::now();
    let until = Duration::from_secs(args.seconds);
    while began.elapsed() < until || times.len() < 100 {
        let turn = usize::try_from(times.len())? % requests.len();
        let request = requests.get(turn).context("requests")?;
        let start = Instant::now();
        let decision = decide(&snapshot, request, &RulesScorer);
        times.saturating_record(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
        placed += u64::from(decision.choice.is_some());
        candidates += decision.explanation.candidates as u64;
    }
    let total = began.elapsed().as_secs_f64();
    let decisions = times.len() as f64;
    report.figure("p50_us", times.value_at_quantile(0.5) as f64 / 1e3);
    report.figure("p99_us", times.value_at_quantile(0.99) as f64 / 1e3);
    report.figure("max_us", times.max() as f64 / 1e3);
    report.figure("decisions_per_s", decisions / total);
    report.figure("decisions", decisions);
    report.figure("placed_percent", 100.0 * placed as f64 / decisions);
    report.figure("candidates_mean", candidates as f64 / decisions);
    Ok(report)
}

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
        replica: format!("default/bench/{n}"),
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
        archs: Vec::new(),
        node_selector: Default::default(),
        tolerations: Vec::new(),
        max_hourly_cost: None,
        prefer_spot: n.is_multiple_of(2),
        latency_target_ms: Some(100.0),
        clients,
        data_locality: None,
        data_gib: 0.0,
        service_ms: None,
        expected_hours: None,
        at_risk_hours: 0.0,
        current: None,
        images: vec!["registry.example/app-1:1".to_owned()],
        cluster_only_fields: Vec::new(),
        siblings: Default::default(),
        avoid: Default::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_fleet() {
        assert_eq!(nodes(100, 7), nodes(100, 7));
        assert_ne!(nodes(100, 7), nodes(100, 8));
        assert_eq!(requests(3), requests(3));
    }

    #[test]
    fn most_requests_find_a_place_in_a_fleet_of_a_thousand() {
        let snapshot = Snapshot {
            nodes: nodes(1000, 1),
            offers: offers(50, 1),
            latency: hyperion_providers::latency_matrix(),
            ..Snapshot::default()
        };
        let placed = requests(1)
            .iter()
            .filter(|r| decide(&snapshot, r, &RulesScorer).choice.is_some())
            .count();
        assert!(placed > REQUESTS * 3 / 4, "{placed} of {REQUESTS}");
    }
}
