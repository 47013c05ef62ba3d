use std::collections::BTreeMap;

use hyperion_placement::model::*;
use hyperion_placement::reward::{JOB_P99_MS, RewardWeights};

use super::*;
use crate::scenario::{Device, Path, Pool, Workload};

pub(super) const GIB: u64 = 1 << 30;

fn location(provider: Provider) -> Location {
    let edge = provider == Provider::Edge;
    Location {
        tier: if edge { Tier::Edge } else { Tier::Cloud },
        provider,
        region: if edge {
            String::new()
        } else {
            "us-east-1".to_owned()
        },
        zone: String::new(),
        site: if edge {
            "lab".to_owned()
        } else {
            String::new()
        },
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

const SHAPE: Resources = Resources {
    cpu_millis: 4000,
    memory_bytes: 16 * GIB,
};

pub(super) fn device(price: f64) -> Device {
    Device {
        node: Node {
            id: "edge-0".to_owned(),
            location: location(Provider::Edge),
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
            price_per_hour: price,
            cpu_utilization: 0.0,
            images: Vec::new(),
            supply: Supply::default(),
        },
        up: Path::constant(1.0),
        network_gbps: 1.0,
    }
}

pub(super) fn pool(id: &str, price: Path, obtainable: Path) -> Pool {
    Pool {
        offer: Offer {
            id: id.to_owned(),
            location: location(Provider::Aws),
            arch: "amd64".to_owned(),
            capacity_type: CapacityType::Spot,
            instance_type: "g4dn.xlarge".to_owned(),
            allocatable: SHAPE,
            gpus: vec![gpu()],
            price_per_hour: price.at(0.0),
            supply: Supply::default(),
            startup_s: 0.0,
        },
        price,
        list_price: 0.526,
        quote: 0.526,
        published: true,
        obtainable,
        limit: 100,
        boot_hours: 0.05,
        network_gbps: 1.0,
    }
}

pub(super) fn job(name: &str, hours: f64) -> Workload {
    Workload {
        request: Request {
            workload_type: WorkloadType::Job,
            goal: Goal::Cost,
            resources: Resources {
                cpu_millis: 1000,
                memory_bytes: GIB,
            },
            gpu: GpuRequest {
                count: 1,
                millis: 1000,
            },
            ..Request::new(name)
        },
        arrival: 0.0,
        end: 10.0,
        work_hours: hours,
        checkpoint_hours: 1.0,
        load: Path::constant(0.0),
        image_gib: 0.0,
        load_hours: 0.0,
    }
}

pub(super) fn scenario(
    pools: Vec<Pool>,
    devices: Vec<Device>,
    workloads: Vec<Workload>,
) -> Scenario {
    Scenario {
        seed: 1,
        unseen: false,
        horizon: 10.0,
        pools,
        devices,
        workloads,
        latency: LatencyMatrix::default(),
        throughput: BTreeMap::new(),
    }
}

/// Reward per hour of a cost-goal job at a price.
pub(super) fn rate(price: f64) -> f64 {
    0.2 / price + 5.0 / JOB_P99_MS - 0.1 * price
}

pub(super) fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 0.01 * b.abs().max(1.0)
}

#[test]
fn a_job_on_one_pool_earns_its_rate_for_its_hours() {
    let pools = vec![pool("a", Path::constant(0.5), Path::constant(1.0))];
    let s = scenario(pools, Vec::new(), vec![job("j", 4.0)]);
    let b = bound(&s, &RewardWeights::default(), 5);
    assert!(close(b.reward, 4.0 * rate(0.5)), "{b:?}");
    assert!(close(b.mean_reward, rate(0.5)), "{b:?}");
}

#[test]
fn waiting_for_a_price_that_falls_is_weighed_against_the_wait() {
    // From hour 1 on at a tenth of the price: the gain of 4 hours outweighs an hour's wait.
    let price = Path {
        points: vec![(0.0, 0.5), (1.0, 0.05)],
    };
    let pools = vec![pool("a", price, Path::constant(1.0))];
    let s = scenario(pools, Vec::new(), vec![job("j", 4.0)]);
    let b = bound(&s, &RewardWeights::default(), 0);
    assert!(close(b.reward, 4.0 * rate(0.05) - 1.0), "{b:?}");
}

#[test]
fn prices_for_room_find_that_one_device_holds_one_of_two_jobs() {
    let pools = vec![pool("a", Path::constant(0.5), Path::constant(1.0))];
    let jobs = vec![job("i", 10.0), job("j", 10.0)];
    let s = scenario(pools, vec![device(0.05)], jobs);
    let b = bound(&s, &RewardWeights::default(), 200);
    let optimum = 10.0 * (rate(0.05) + rate(0.5));
    assert!(b.reward >= optimum - 1e-6, "{b:?} {optimum}");
    assert!(close(b.reward, optimum), "{b:?} {optimum}");
    assert!(close(b.mean_reward_alone, rate(0.05)), "{b:?}");
}

#[test]
fn a_pool_holds_no_more_instances_than_its_limit() {
    let mut only = pool("a", Path::constant(0.1), Path::constant(1.0));
    only.limit = 1;
    let jobs = vec![job("i", 10.0), job("j", 10.0)];
    let b = bound(
        &scenario(vec![only], Vec::new(), jobs),
        &RewardWeights::default(),
        200,
    );
    // One works all the time, the other waits.
    let optimum = 10.0 * (rate(0.1) - 1.0);
    assert!(b.reward >= optimum - 1e-6, "{b:?} {optimum}");
    assert!(close(b.reward, optimum), "{b:?} {optimum}");
}

#[test]
fn memory_is_room_too() {
    // By their cores both fit on the device, by their memory one and a third do.
    let large = |name: &str| {
        let mut job = job(name, 10.0);
        job.request.gpu = GpuRequest::default();
        job.request.resources.memory_bytes = 12 * GIB;
        job
    };
    let pools = vec![pool("a", Path::constant(0.5), Path::constant(1.0))];
    let jobs = vec![large("i"), large("j")];
    let s = scenario(pools, vec![device(0.1)], jobs);
    let b = bound(&s, &RewardWeights::default(), 200);
    let (there, elsewhere) = (rate(0.075), rate(0.375));
    let optimum = 10.0 * (there + elsewhere);
    assert!(b.reward >= optimum - 1e-6, "{b:?} {optimum}");
    let cut = 10.0 * (4.0 * there + 2.0 * elsewhere) / 3.0;
    assert!(close(b.reward, cut), "{b:?} {cut}");
    assert!(close(b.mean_reward_alone, there), "{b:?}");
}

#[test]
fn a_pool_that_closes_ends_the_work_there() {
    let open = Path {
        points: vec![(0.0, 1.0), (1.9, 0.0)],
    };
    let pools = vec![pool("a", Path::constant(0.1), open)];
    let s = scenario(pools, Vec::new(), vec![job("j", 4.0)]);
    let b = bound(&s, &RewardWeights::default(), 0);
    // Two hours of work, as steps are counted, then eight of waiting.
    assert!(close(b.reward, 2.0 * rate(0.1) - 8.0), "{b:?}");
}

#[test]
fn without_any_place_all_that_is_left_is_waiting() {
    let s = scenario(Vec::new(), Vec::new(), vec![job("j", 4.0)]);
    assert!(close(bound(&s, &RewardWeights::default(), 3).reward, -10.0));
    let none = scenario(Vec::new(), Vec::new(), Vec::new());
    assert_eq!(bound(&none, &RewardWeights::default(), 3).mean_reward, 0.0);
}
