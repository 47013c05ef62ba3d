//! Hand-made scenarios whose right answers can be computed by hand.

mod bounded;
mod invariants;
mod neighbours;
mod rules;

pub(crate) mod support {
    pub use super::mixed;
}

use std::collections::BTreeMap;
use std::sync::Arc;

use hyperion_placement::choose::Considered;
use hyperion_placement::model::*;

use super::*;
use crate::scenario::{Device, Path, Pool, Scenario, Workload};

const GIB: u64 = 1 << 30;

/// Four cores, 16 GiB, one GPU.
const SHAPE: Resources = Resources {
    cpu_millis: 4000,
    memory_bytes: 16 * GIB,
};

pub(super) fn path(points: Vec<(f64, f64)>) -> Path {
    Path { points }
}

fn location(provider: Provider, region: &str) -> Location {
    let edge = provider == Provider::Edge;
    Location {
        tier: if edge { Tier::Edge } else { Tier::Cloud },
        provider,
        region: if edge { "" } else { region }.to_owned(),
        zone: String::new(),
        site: if edge { region } else { "" }.to_owned(),
        geography: Some(Geography::Us),
    }
}

fn gpu() -> GpuDevice {
    GpuDevice {
        uuid: "GPU-0".to_owned(),
        model: "T4".to_owned(),
        memory_bytes: 16 * GIB,
        free_millis: 1000,
    }
}

/// A device at a site that costs 0.10 USD/h.
fn device(site: &str, id: &str, up: Path) -> Device {
    Device {
        node: Node {
            id: id.to_owned(),
            location: location(Provider::Edge, site),
            arch: "arm64".to_owned(),
            capacity_type: CapacityType::Owned,
            instance_type: "orin".to_owned(),
            allocatable: SHAPE,
            free: SHAPE,
            gpus: vec![gpu()],
            labels: BTreeMap::new(),
            taints: Vec::new(),
            schedulable: true,
            ready: true,
            price_per_hour: 0.1,
            cpu_utilization: 0.0,
            images: Vec::new(),
            supply: Supply::default(),
        },
        up,
        network_gbps: 1.0,
    }
}

/// A pool by offer id, `provider/region/zone/type/capacity type`, that boots in about 0.05 h.
pub(super) fn pool(id: &str, price: f64, obtainable: Vec<(f64, f64)>) -> Pool {
    let words: Vec<&str> = id.split('/').collect();
    Pool {
        offer: Offer {
            id: id.to_owned(),
            location: location(words[0].parse().unwrap(), words[1]),
            arch: "amd64".to_owned(),
            capacity_type: words[4].parse().unwrap(),
            instance_type: words[3].to_owned(),
            allocatable: SHAPE,
            gpus: vec![gpu()],
            price_per_hour: price,
            supply: Supply::default(),
            startup_s: 0.0,
        },
        price: Path::constant(price),
        list_price: price,
        quote: 0.526,
        published: true,
        obtainable: path(obtainable),
        limit: 100,
        boot_hours: 0.05,
        network_gbps: 1.0,
    }
}

fn request(name: &str, workload_type: WorkloadType, goal: Goal) -> Request {
    Request {
        workload_type,
        goal,
        resources: Resources {
            cpu_millis: 1000,
            memory_bytes: 2 * GIB,
        },
        service_ms: Some(5.0),
        images: vec!["image".to_owned()],
        ..Request::new(name)
    }
}

/// A service that asks for a quarter of a machine, is asked from `geo:US`, keeps half of its CPU
/// busy and starts at once.
fn service(name: &str, arrival: f64, end: f64) -> Workload {
    Workload {
        request: Request {
            clients: vec![Client {
                place: Place("geo:US".to_owned()),
                weight: 1.0,
            }],
            ..request(name, WorkloadType::Service, Goal::Default)
        },
        arrival,
        end,
        work_hours: 0.0,
        checkpoint_hours: 0.0,
        load: Path::constant(0.5),
        image_gib: 0.0,
        load_hours: 0.0,
    }
}

/// A job that asks for a quarter of a machine, saves its work every hour and starts at once.
fn job(name: &str, arrival: f64, work_hours: f64) -> Workload {
    Workload {
        request: request(name, WorkloadType::Job, Goal::Cost),
        arrival,
        end: 100.0,
        work_hours,
        checkpoint_hours: 1.0,
        load: Path::constant(1.0),
        image_gib: 0.0,
        load_hours: 0.0,
    }
}

fn scenario(
    horizon: f64,
    pools: Vec<Pool>,
    devices: Vec<Device>,
    workloads: Vec<Workload>,
) -> Arc<Scenario> {
    let mut latency = LatencyMatrix::default();
    let place = |p: &str| Place(p.to_owned());
    latency.insert(&place("geo:US"), &place("aws:us-east-1"), 20.0);
    latency.insert(&place("geo:US"), &place("aws:us-west-2"), 60.0);
    latency.insert(&place("geo:US"), &place("site:lab"), 10.0);
    latency.insert(&place("aws:us-west-2"), &place("aws:us-east-1"), 60.0);
    Arc::new(Scenario {
        seed: 1,
        unseen: false,
        horizon,
        pools,
        devices,
        workloads,
        latency,
        throughput: BTreeMap::new(),
    })
}

/// Never reconsiders.
fn stay_put() -> SimConfig {
    SimConfig {
        reconsider_hours: 0.0,
        ..SimConfig::default()
    }
}

/// Takes the candidates in the order of a list of beginnings of ids; waits where none is there.
struct Wish(Vec<&'static str>);

impl Brain for Wish {
    fn name(&self) -> &str {
        "wish"
    }

    fn decide(
        &mut self,
        _: &Snapshot,
        _: &Request,
        candidates: &[Considered<'_>],
        _: &dyn Truth,
    ) -> Option<usize> {
        let find = |start: &&str| {
            candidates
                .iter()
                .position(|c| c.candidate.id.starts_with(*start))
        };
        self.0.iter().find_map(find)
    }
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0)
}

macro_rules! assert_close {
    ($a:expr, $b:expr) => {{
        let (a, b): (f64, f64) = ($a, $b);
        assert!(close(a, b), "{a} is not {b}");
    }};
}
use assert_close;

/// A day of services and jobs with devices at a site, and a cloud on demand and spot.
pub fn mixed() -> Arc<Scenario> {
    let pools = vec![
        pool("aws/us-east-1/a/m/on-demand", 0.5, vec![(0.0, 1.0)]),
        pool(
            "aws/us-east-1/a/m/spot",
            0.15,
            vec![(0.0, 1.0), (7.0, 0.0), (9.0, 1.0)],
        ),
        pool("aws/us-west-2/a/m/on-demand", 0.45, vec![(0.0, 1.0)]),
        pool("aws/us-west-2/a/m/spot", 0.12, vec![(0.0, 1.0)]),
    ];
    let devices = vec![
        device("lab", "edge-0", Path::constant(1.0)),
        device(
            "lab",
            "edge-1",
            path(vec![(0.0, 1.0), (5.0, 0.0), (6.0, 1.0)]),
        ),
    ];
    let workloads = (0..24).map(|n| {
        let name = format!("mixed/{n:02}");
        let arrival = f64::from(n) * 0.5;
        let mut workload = if n % 2 == 0 {
            service(&name, arrival, arrival + 8.0)
        } else {
            job(&name, arrival, 4.0)
        };
        let goals = [Goal::Latency, Goal::Cost, Goal::Default, Goal::Cost];
        workload.request.goal = goals[n as usize % 4];
        workload.load_hours = 0.02;
        workload
    });
    let workloads = workloads.collect();
    scenario(24.0, pools, devices, workloads)
}
