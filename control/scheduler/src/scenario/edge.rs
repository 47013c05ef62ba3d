//! Edge sites and their devices.

use std::collections::BTreeMap;

use hyperion_placement::model::{
    CapacityType, GpuDevice, Location, Node, Place, Provider, Resources, Supply, Tier,
};

use super::draw::Draw;
use super::{Device, Dice, Path, Workload, workloads};
use crate::world::Region;

/// A Jetson module. Prices, assumed: about 250, 700 and 1,800 USD for the module (2025) over three
/// years, half of its rated 15, 25 and 60 W at 0.20 USD/kWh, and 0.011 USD/h (290 USD over three
/// years) for carrier, housing and care. Cores and memory by NVIDIA's data sheets.
struct Kind {
    name: &'static str,
    model: &'static str,
    cores: u64,
    memory_gib: u64,
    usd_per_hour: f64,
    /// How many of a hundred devices are of this kind.
    share: f64,
}

const KINDS: &[Kind] = &[
    Kind {
        name: "orin-nano-8gb",
        model: "Orin Nano",
        cores: 6,
        memory_gib: 8,
        usd_per_hour: 0.022,
        share: 50.0,
    },
    Kind {
        name: "orin-nx-16gb",
        model: "Orin NX",
        cores: 8,
        memory_gib: 16,
        usd_per_hour: 0.040,
        share: 30.0,
    },
    Kind {
        name: "agx-orin-64gb",
        model: "AGX Orin",
        cores: 12,
        memory_gib: 64,
        usd_per_hour: 0.085,
        share: 20.0,
    },
];

impl Kind {
    /// What is left beside the system: half a core and 15 % of memory.
    fn allocatable(&self) -> Resources {
        Resources {
            cpu_millis: self.cores * 1000 - 500,
            memory_bytes: (self.memory_gib << 30) / 100 * 85,
        }
    }
}

/// Edge nodes on one local network. It stands near a measured region, whose round trips it has,
/// plus those of its access network.
pub(super) struct Site<'a> {
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) anchor: &'a Region,
    pub(super) access_ms: f64,
    pub(super) uplink_gbps: f64,
}

/// Two of three sites stand in a geography where a cloud region of the episode is too.
pub(super) fn sites<'a>(draw: &Draw<'a>, regions: &[&'a Region]) -> Vec<Site<'a>> {
    let mut dice = draw.dice("sites");
    // Two dozen workloads keep about five devices busy: with more sites than this, each with its least
    // number of devices, the edge would not be scarce.
    let (least, most) = draw.size.sites;
    let most = most.min(workloads::count(draw) / 24).max(least);
    let count = dice.whole(least, most);
    let mut all = draw.eligible();
    if all.is_empty() {
        all = regions.to_vec();
    }
    let near: Vec<&Region> = all
        .iter()
        .copied()
        .filter(|r| regions.iter().any(|c| c.geography == r.geography))
        .collect();
    (1..=count)
        .filter_map(|i| {
            let from = if dice.chance(0.67) && !near.is_empty() {
                &near
            } else {
                &all
            };
            let anchor = *dice.pick(from)?;
            let name = format!("site-{i}");
            Some(Site {
                place: Place(format!("site:{name}")),
                name,
                anchor,
                access_ms: dice.range(4.0, 20.0),
                uplink_gbps: dice.log_uniform(0.1, 1.0),
            })
        })
        .collect()
}

/// As many devices as make what is asked of them 1.5 to 3 times what there is, within the size.
pub(super) fn devices(draw: &Draw<'_>, sites: &[Site<'_>], workloads: &[Workload]) -> Vec<Device> {
    let mut dice = draw.dice("devices");
    let scarcity = dice.range(1.6, 2.9);
    let wanted = demand(workloads, draw.size.horizon) / scarcity;
    let (least, most) = draw.size.devices;
    let wanted = wanted.round() as u32;
    let mut counts = vec![least; sites.len()];
    let mut left = wanted.saturating_sub(least * sites.len() as u32);
    while left > 0 && counts.iter().any(|c| *c < most) {
        let i = dice.below(counts.len());
        if counts[i] < most {
            counts[i] += 1;
            left -= 1;
        }
    }
    let mut devices: Vec<Device> = sites
        .iter()
        .zip(counts)
        .flat_map(|(site, count)| at_site(draw, site, count))
        .collect();
    devices.sort_by(|a, b| a.node.id.cmp(&b.node.id));
    devices
}

/// Devices that workloads which would fit on one keep busy on average, were there enough.
pub(super) fn demand(workloads: &[Workload], horizon: f64) -> f64 {
    workloads
        .iter()
        .map(|w| {
            let share = KINDS
                .iter()
                .filter_map(|kind| device_share(w, kind))
                .fold(f64::INFINITY, f64::min);
            let hours = w.demanded_hours().min(horizon - w.arrival);
            if share.is_finite() {
                share * hours / horizon
            } else {
                0.0
            }
        })
        .sum()
}

/// Dominant share of a device; none where it does not fit or may not run there.
fn device_share(workload: &Workload, kind: &Kind) -> Option<f64> {
    let request = &workload.request;
    let has = kind.allocatable();
    let asked = request.resources;
    let refused = request.gpu.count > 1
        || asked.cpu_millis > has.cpu_millis
        || asked.memory_bytes > has.memory_bytes
        || !(request.tiers.is_empty() || request.tiers.contains(&Tier::Edge))
        || !(request.clouds.is_empty() || request.clouds.contains(&Provider::Edge))
        || !(request.archs.is_empty() || request.archs.iter().any(|a| a == "arm64"));
    if refused {
        return None;
    }
    let gpu = f64::from(request.gpu.count * request.gpu.millis) / 1000.0;
    let cpu = asked.cpu_millis as f64 / has.cpu_millis as f64;
    let memory = asked.memory_bytes as f64 / has.memory_bytes as f64;
    Some(gpu.max(cpu).max(memory))
}

fn at_site(draw: &Draw<'_>, site: &Site<'_>, count: u32) -> Vec<Device> {
    let mut dice = draw.dice(&format!("site/{}", site.name));
    let (from, to) = (-draw.size.history, draw.size.horizon);
    // A site loses power or its line once in 20 days on average.
    let site_down = outages(&mut dice, from, to, 480.0, (0.2, 2.0));
    let shares: Vec<f64> = KINDS.iter().map(|k| k.share).collect();
    (1..=count)
        .map(|i| {
            let kind = &KINDS[dice.weighted(&shares)];
            // A device fails on its own once in ten days on average, and stays down until somebody
            // restarts it; one in 25 breaks for good.
            let mut down = outages(&mut dice, from, to, 240.0, (0.1, 4.0));
            if dice.chance(0.04) {
                down.push((dice.range(0.0, to), to));
            }
            down.extend(&site_down);
            Device {
                node: node(site, kind, i, &mut dice),
                up: up(from, down),
                network_gbps: site.uplink_gbps,
            }
        })
        .collect()
}

fn node(site: &Site<'_>, kind: &Kind, number: u32, dice: &mut Dice) -> Node {
    let id = format!("{}-{}-{number}", site.name, kind.name);
    let allocatable = kind.allocatable();
    Node {
        location: Location {
            tier: Tier::Edge,
            provider: Provider::Edge,
            region: String::new(),
            zone: String::new(),
            site: site.name.clone(),
            geography: Some(site.anchor.geography),
        },
        arch: "arm64".to_owned(),
        capacity_type: CapacityType::Owned,
        instance_type: kind.name.to_owned(),
        allocatable,
        free: allocatable,
        gpus: vec![GpuDevice {
            uuid: format!("{id}-gpu0"),
            model: kind.model.to_owned(),
            memory_bytes: kind.memory_gib << 30,
            free_millis: 1000,
        }],
        labels: BTreeMap::new(),
        taints: Vec::new(),
        schedulable: true,
        ready: true,
        price_per_hour: kind.usd_per_hour * dice.range(0.93, 1.05),
        cpu_utilization: 0.0,
        images: Vec::new(),
        supply: Supply::default(),
        id,
    }
}

/// Outages as a Poisson process: mean hours between them, least and most hours that one takes.
fn outages(dice: &mut Dice, from: f64, to: f64, every: f64, takes: (f64, f64)) -> Vec<(f64, f64)> {
    let mut list = Vec::new();
    let mut at = from + dice.exponential(every);
    while at < to {
        let end = at + dice.log_uniform(takes.0, takes.1);
        list.push((at, end));
        at = end + dice.exponential(every);
    }
    list
}

/// 1, and 0 while any of the outages lasts.
fn up(from: f64, mut down: Vec<(f64, f64)>) -> Path {
    down.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut points = vec![(from, 1.0)];
    let mut until = f64::NEG_INFINITY;
    for (start, end) in down {
        if start > until {
            points.extend([(start, 0.0), (end, 1.0)]);
            until = end;
        } else if end > until {
            // It began before the last one was over, and outlasts it.
            points.pop();
            points.push((end, 1.0));
            until = end;
        }
    }
    Path { points }
}
