//! What users ask for.

use hyperion_placement::filter::{Candidate, first_rejection};
use hyperion_placement::model::{
    Client, Geography, Goal, GpuRequest, LatencyMatrix, Place, Provider, Request, Resources, Tier,
    WorkloadType,
};

use super::draw::Draw;
use super::edge::Site;
use super::{Device, Dice, Path, Pool, Workload};
use crate::world::Region;

/// Names of workloads that no machine of the world may run begin with this.
pub const IMPOSSIBLE: &str = "default/impossible-";
/// How many of all workloads are such.
const IMPOSSIBLE_SHARE: f64 = 0.01;
/// Share of services among workloads that arrive, and among those that run from hour 0, where what
/// runs long is met more often.
const SERVICES: (f64, f64) = (0.55, 0.8);
/// Share of services that outlast the episode, and mean hours of the others beyond the first.
const FOR_GOOD: f64 = 0.35;
const SERVICE_HOURS: f64 = 22.0;
/// Hours of a step of a service's load.
const LOAD_STEP: f64 = 0.5;
/// How much of a minute's burst is left in the mean of half an hour.
const BURST: f64 = 0.3;
/// Shortest and longest job, hours. Shorter ones are over before a move pays; a longer one that is
/// cut at the end of the episode would be no different.
const RUNTIME: (f64, f64) = (0.2, 24.0);

/// What workloads are drawn from.
struct Setting<'a> {
    draw: &'a Draw<'a>,
    regions: &'a [&'a Region],
    sites: &'a [Site<'a>],
    /// Geographies with clients whose round trips are known, with weights.
    geographies: Vec<(Geography, f64)>,
    /// Images with sizes, GiB.
    images: Vec<(String, f64)>,
    /// UTC hour of day at hour 0.
    midnight: f64,
    runtimes: &'a [f64],
}

/// All workloads, sorted by arrival.
pub(super) fn draw(
    draw: &Draw<'_>,
    regions: &[&Region],
    sites: &[Site<'_>],
    latency: &LatencyMatrix,
) -> Vec<Workload> {
    let count = count(draw);
    let mut dice = draw.dice("workloads");
    let runtimes = &draw.world.runtimes;
    let setting = Setting {
        draw,
        regions,
        sites,
        geographies: geographies(regions, sites, latency),
        images: (1..=12)
            .map(|i| {
                (
                    format!("registry.example/app-{i}"),
                    dice.log_uniform(1.0, 8.0),
                )
            })
            .collect(),
        midnight: dice.range(0.0, 24.0),
        runtimes: &runtimes[runtimes.partition_point(|h| *h < RUNTIME.0)..],
    };
    let mut workloads: Vec<Workload> = (0..count)
        .map(|i| {
            let mut dice = draw.dice(&format!("workload/{i}"));
            // A third runs from hour 0.
            let arrival = if i % 3 == 0 {
                0.0
            } else {
                setting.arrival(&mut dice)
            };
            setting.workload(i, arrival, &mut dice)
        })
        .collect();
    workloads.sort_by(|a, b| {
        a.arrival
            .total_cmp(&b.arrival)
            .then_with(|| a.request.replica.cmp(&b.request.replica))
    });
    workloads
}

/// How many workloads the episode has.
pub(super) fn count(draw: &Draw<'_>) -> u32 {
    let (least, most) = draw.size.workloads;
    draw.dice("workload count").whole(least, most)
}

/// Takes demands back from workloads that no machine could meet at its list price and empty, save
/// those that are meant to be impossible.
pub(super) fn relax(workloads: &mut [Workload], pools: &[Pool], devices: &[Device]) {
    let possible = |request: &Request| {
        pools.iter().any(|pool| {
            let mut offer = pool.offer.clone();
            offer.price_per_hour = pool.list_price;
            first_rejection(request, &Candidate::from(&offer)).is_none()
        }) || devices
            .iter()
            .any(|d| first_rejection(request, &Candidate::from(&d.node)).is_none())
    };
    const STEPS: &[fn(&mut Request)] = &[
        |r| r.max_hourly_cost = None,
        |r| r.tiers.clear(),
        |r| r.clouds.clear(),
        |r| r.geographies.clear(),
        |r| r.archs.clear(),
        |r| r.gpu.count = r.gpu.count.min(1),
        |r| {
            r.resources = Resources {
                cpu_millis: r.resources.cpu_millis.min(2000),
                memory_bytes: r.resources.memory_bytes.min(4 << 30),
            };
        },
        |r| r.gpu = GpuRequest::default(),
    ];
    for workload in workloads {
        let request = &mut workload.request;
        if request.replica.starts_with(IMPOSSIBLE) {
            continue;
        }
        for step in STEPS {
            if possible(request) {
                break;
            }
            step(request);
        }
    }
}

/// Where clients are: mostly where the regions and sites are, some elsewhere.
fn geographies(
    regions: &[&Region],
    sites: &[Site<'_>],
    latency: &LatencyMatrix,
) -> Vec<(Geography, f64)> {
    let here: Vec<Geography> = regions
        .iter()
        .map(|r| r.geography)
        .chain(sites.iter().map(|s| s.anchor.geography))
        .collect();
    Geography::ALL
        .iter()
        .filter(|g| {
            let clients = Place(format!("geo:{g}"));
            regions
                .iter()
                .all(|r| latency.rtt(&clients, &r.place).is_some())
        })
        .map(|g| {
            let count = here.iter().filter(|h| *h == g).count() as f64;
            (*g, 0.2 + count)
        })
        .collect()
}

/// Activity of a population, 0.1 to 1: highest at three in the afternoon, local time, lowest at
/// three in the morning.
fn activity(utc_hour: f64, offset: f64) -> f64 {
    let angle = (utc_hour + offset - 15.0) / 24.0 * std::f64::consts::TAU;
    0.55 + 0.45 * libm::cos(angle)
}

/// Hours by which most of a geography's clocks are ahead of UTC.
fn utc_offset(geography: Geography) -> f64 {
    match geography {
        Geography::Us => -6.0,
        Geography::Ca => -5.0,
        Geography::Sa => -3.0,
        Geography::Uk => 0.0,
        Geography::Eu | Geography::Ch | Geography::No => 1.0,
        Geography::Af => 2.0,
        Geography::Me => 3.0,
        Geography::In => 5.5,
        Geography::Cn => 8.0,
        Geography::Ap => 9.0,
        Geography::Au => 10.0,
    }
}

impl Setting<'_> {
    /// A Poisson process with a daily cycle, given how many there are: independent times whose
    /// density follows the cycle, found by rejection.
    fn arrival(&self, dice: &mut Dice) -> f64 {
        let last = (self.draw.size.horizon - 1.0).max(0.0);
        // The first geography's working day stands for that of all who apply workloads.
        let offset = self
            .regions
            .first()
            .map_or(0.0, |r| utc_offset(r.geography));
        loop {
            let at = dice.range(0.0, last);
            if dice.chance(activity(self.midnight + at, offset)) {
                return at;
            }
        }
    }

    fn workload(&self, number: u32, arrival: f64, dice: &mut Dice) -> Workload {
        let service = dice.chance(if arrival > 0.0 {
            SERVICES.0
        } else {
            SERVICES.1
        });
        let horizon = self.draw.size.horizon;
        let (image, image_gib) = dice.pick(&self.images).cloned().unwrap_or_default();
        let mut request = self.request(number, service, image, dice);
        if service {
            let (clients, populations) = self.clients(dice);
            request.clients = clients;
            let service_ms = dice.log_uniform(3.0, 60.0);
            request.service_ms = Some(service_ms);
            if request.goal == Goal::Latency || dice.chance(0.6) {
                // Nobody asks for less than three times what one request takes.
                let least = (3.0 * service_ms).max(30.0);
                request.latency_target_ms = Some(dice.log_uniform(least, 300.0));
            }
            let hours = 1.0 + dice.exponential(SERVICE_HOURS);
            let end = if dice.chance(FOR_GOOD) {
                horizon
            } else {
                (arrival + hours).min(horizon)
            };
            return Workload {
                load: self.load(&populations, arrival, end, dice),
                request,
                arrival,
                end,
                work_hours: 0.0,
                checkpoint_hours: 0.0,
                image_gib,
                load_hours: dice.range(0.0, 0.1),
            };
        }
        let runtime = dice.pick(self.runtimes).copied().unwrap_or(1.0);
        let checkpoint_hours = dice.log_uniform(0.25, 2.0);
        request.at_risk_hours = checkpoint_hours / 2.0;
        Workload {
            request,
            arrival,
            end: horizon,
            work_hours: runtime.clamp(RUNTIME.0, RUNTIME.1),
            checkpoint_hours,
            load: Path {
                points: vec![(arrival, dice.range(0.5, 0.95))],
            },
            image_gib,
            load_hours: dice.range(0.0, 0.1),
        }
    }

    fn request(&self, number: u32, service: bool, image: String, dice: &mut Dice) -> Request {
        let gpu = gpu(service, dice);
        let impossible = dice.chance(IMPOSSIBLE_SHARE);
        let goal = [Goal::Cost, Goal::Latency, Goal::Default][dice.weighted(&[40.0, 40.0, 20.0])];
        let mut request = Request {
            workload_type: if service {
                WorkloadType::Service
            } else {
                WorkloadType::Job
            },
            goal,
            resources: resources(gpu, dice),
            gpu,
            archs: if dice.chance(0.1) {
                vec!["amd64".to_owned()]
            } else {
                Vec::new()
            },
            max_hourly_cost: dice.chance(0.15).then(|| dice.log_uniform(0.3, 4.0)),
            prefer_spot: goal != Goal::Latency && dice.chance(0.3),
            images: vec![image],
            ..Request::new(if impossible {
                format!("{IMPOSSIBLE}{number:03}/0")
            } else {
                format!("default/w-{number:03}/0")
            })
        };
        self.data(&mut request, service, dice);
        self.constrain(&mut request, dice);
        if impossible {
            request.geographies = self.nowhere();
            request.clouds = vec![Provider::Edge];
            request.archs = vec!["riscv64".to_owned()];
        }
        request
    }

    /// Data that a job reads before it works, or a service's model store.
    fn data(&self, request: &mut Request, service: bool, dice: &mut Dice) {
        if !dice.chance(if service { 0.3 } else { 0.7 }) {
            return;
        }
        let at_site = dice.chance(0.25);
        let place = if at_site {
            dice.pick(self.sites).map(|s| s.place.clone())
        } else {
            dice.pick(self.regions).map(|r| r.place.clone())
        };
        let most = match (service, at_site) {
            (true, _) => 10.0,
            (false, true) => 20.0,
            (false, false) => 200.0,
        };
        request.data_gib = if place.is_some() {
            dice.log_uniform(0.5, most)
        } else {
            0.0
        };
        request.data_locality = place;
    }

    /// Geographies, clouds and tiers, each demanded by some.
    fn constrain(&self, request: &mut Request, dice: &mut Dice) {
        if dice.chance(0.15) {
            let mut here: Vec<Geography> = self.regions.iter().map(|r| r.geography).collect();
            here.extend(self.sites.iter().map(|s| s.anchor.geography));
            dice.shuffle(&mut here);
            here.truncate(dice.whole(1, 2) as usize);
            here.sort_unstable();
            here.dedup();
            request.geographies = here;
        }
        if dice.chance(0.12) {
            let mut clouds: Vec<Provider> = self.regions.iter().map(|r| r.provider).collect();
            dice.shuffle(&mut clouds);
            clouds.truncate(dice.whole(1, 2) as usize);
            if dice.chance(0.5) {
                clouds.push(Provider::Edge);
            }
            clouds.sort_unstable();
            clouds.dedup();
            request.clouds = clouds;
        }
        match dice.unit() {
            x if x < 0.05 => request.tiers = vec![Tier::Cloud],
            x if x < 0.07 && request.clouds.is_empty() => request.tiers = vec![Tier::Edge],
            _ => {}
        }
    }

    /// A geography where nothing stands; empty where there is something everywhere.
    fn nowhere(&self) -> Vec<Geography> {
        let used = |g: &Geography| {
            self.regions.iter().any(|r| r.geography == *g)
                || self.sites.iter().any(|s| s.anchor.geography == *g)
        };
        Geography::ALL
            .iter()
            .copied()
            .filter(|g| !used(g))
            .take(1)
            .collect()
    }

    /// Where a service's requests come from, and with what weights by clock.
    fn clients(&self, dice: &mut Dice) -> (Vec<Client>, Vec<(f64, f64)>) {
        let mut clients: Vec<(Place, f64, f64)> = Vec::new();
        let local = dice.chance(0.4);
        if let (true, Some(site)) = (local, dice.pick(self.sites)) {
            let offset = utc_offset(site.anchor.geography);
            clients.push((site.place.clone(), dice.range(0.7, 1.0), offset));
        }
        let more = match (clients.is_empty(), dice.unit()) {
            (true, x) => 1 + u32::from(x < 0.5) + u32::from(x < 0.2),
            (false, x) => u32::from(x < 0.35),
        };
        for _ in 0..more {
            let weights: Vec<f64> = self.geographies.iter().map(|(_, w)| *w).collect();
            let Some((geography, _)) = self.geographies.get(dice.weighted(&weights)) else {
                break;
            };
            let place = Place(format!("geo:{geography}"));
            let weight = dice.range(0.2, 1.0) * if local { 0.3 } else { 1.0 };
            if clients.iter().all(|(p, _, _)| *p != place) {
                clients.push((place, weight, utc_offset(*geography)));
            }
        }
        let populations = clients.iter().map(|(_, w, offset)| (*w, *offset)).collect();
        let clients = clients
            .into_iter()
            .map(|(place, weight, _)| Client {
                place,
                weight: weight as f32,
            })
            .collect();
        (clients, populations)
    }

    /// The share of its CPU that a service keeps busy: its peak, times how awake its clients are,
    /// times the bursts of a measured trace from a random minute on.
    fn load(&self, populations: &[(f64, f64)], from: f64, to: f64, dice: &mut Dice) -> Path {
        let peak = dice.range(0.4, 0.9);
        let bursts = self.draw.part(&self.draw.world.bursts);
        let start = dice.below(bursts.len());
        let all: f64 = populations.iter().map(|(w, _)| w).sum();
        let mut points = Vec::new();
        let mut at = from;
        for step in 0_usize.. {
            if at >= to && step > 0 {
                break;
            }
            let awake: f64 = populations
                .iter()
                .map(|(w, offset)| w * activity(self.midnight + at, *offset))
                .sum();
            let share = if all > 0.0 { awake / all } else { 0.55 };
            let burst = bursts.get((start + step) % bursts.len().max(1));
            let jitter = 1.0 - BURST + BURST * burst.copied().unwrap_or(1.0);
            points.push((at, (peak * share * jitter).clamp(0.02, 0.98)));
            // Steps stand on whole half hours, so that many services change at once.
            at = ((at / LOAD_STEP).floor() + 1.0) * LOAD_STEP;
        }
        Path { points }
    }
}

/// About 70 % one whole GPU, 14 % a share, 11 % none, 5 % (jobs mostly) two to four.
fn gpu(service: bool, dice: &mut Dice) -> GpuRequest {
    let several = if service { 1.0 } else { 9.0 };
    let whole = |count| GpuRequest {
        count,
        millis: 1000,
    };
    match dice.weighted(&[70.0, 14.0, 11.0, several]) {
        0 => whole(1),
        1 => GpuRequest {
            count: 1,
            millis: if dice.chance(0.5) { 250 } else { 500 },
        },
        2 => GpuRequest::default(),
        _ => whole(dice.whole(2, 4)),
    }
}

/// CPU and memory: most fits the smallest device, some only the largest, what asks for several GPUs
/// none.
fn resources(gpu: GpuRequest, dice: &mut Dice) -> Resources {
    let each = f64::from(gpu.count.max(1));
    let cores = dice.range(0.75, 3.5) * each;
    let gib = match dice.weighted(&[60.0, 30.0, 10.0]) {
        0 => dice.range(1.0, 6.0),
        1 => dice.range(4.0, 13.0),
        _ => dice.range(12.0, 28.0),
    };
    Resources {
        // In steps of 50 millicores and 256 MiB, as people write them.
        cpu_millis: (cores * 20.0).round() as u64 * 50,
        memory_bytes: (gib * each * 4.0).round() as u64 * (256 << 20),
    }
}
