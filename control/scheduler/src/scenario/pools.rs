//! Pools of cloud capacity: which machines, at which prices, and when they can be had.

use std::collections::BTreeSet;

use hyperion_placement::model::{
    CapacityType, GpuDevice, Location, Offer, Provider, Resources, Supply, Tier,
};

use super::draw::Draw;
use super::{Dice, Path, Pool, Split};
use crate::world::{CONTROL_REGION, Quote, Region, SpotTrace};

/// GPUs of the size of a Jetson's to twenty times that, which most inference runs on.
const SMALL: &[&str] = &["T4", "L4", "A10G", "A10", "V100", "P100"];
/// The others that `nvidia.com/gpu` can mean.
const LARGE: &[&str] = &[
    "A100",
    "A100-80GB",
    "H100",
    "H100-MEGA",
    "H200",
    "L40S",
    "V100-32GB",
];

/// What a type is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Small,
    Large,
    Many,
    Cpu,
}

/// In this order types are given to a region: mostly one small GPU.
const ORDER: &[Class] = &[
    Class::Small,
    Class::Cpu,
    Class::Many,
    Class::Small,
    Class::Small,
    Class::Large,
    Class::Cpu,
];

fn class(quote: &Quote) -> Option<Class> {
    let small = SMALL.contains(&quote.accelerator.as_str());
    let large = LARGE.contains(&quote.accelerator.as_str());
    match quote.gpus {
        0 => Some(Class::Cpu),
        1 if small => (quote.vcpus <= 16.0).then_some(Class::Small),
        1 if large => Some(Class::Large),
        2.. if small || large => Some(Class::Many),
        _ => None,
    }
}

/// All pools, sorted by offer id.
pub(super) fn draw(draw: &Draw<'_>, regions: &[&Region]) -> Vec<Pool> {
    let window = window(draw);
    let mut pools: Vec<Pool> = regions
        .iter()
        .flat_map(|region| of_region(draw, region, window))
        .collect();
    pools.sort_by(|a, b| a.offer.id.cmp(&b.offer.id));
    pools
}

/// The hour of the price history at which the episode begins: training before the cut, unseen
/// worlds so far behind it that their history does not reach back over it.
pub(super) fn window(draw: &Draw<'_>) -> f64 {
    let (world, size) = (draw.world, draw.size);
    let hours = || world.changes.iter().map(|c| c.hour);
    let (first, last) = (
        hours().fold(f64::INFINITY, f64::min),
        hours().fold(f64::NEG_INFINITY, f64::max),
    );
    let (low, high) = match draw.split {
        Split::Train => {
            let high = world.cut - size.horizon;
            ((first + size.history).min(high), high)
        }
        Split::Unseen => (world.cut + size.history, last),
    };
    draw.dice("window").range(low, high.max(low))
}

fn of_region(draw: &Draw<'_>, region: &Region, window: f64) -> Vec<Pool> {
    let mut dice = draw.dice(&format!("region/{}", region.place.0));
    let count = dice.whole(draw.size.types.0, draw.size.types.1) as usize;
    let mut zones: Vec<String> = Vec::new();
    let mut taken: Vec<&str> = Vec::new();
    let mut pools = Vec::new();
    for wanted in ORDER.iter().cycle().take(2 * ORDER.len()) {
        if taken.len() >= count {
            break;
        }
        let Some(quotes) = choose(draw, region, *wanted, &taken, &mut dice) else {
            continue;
        };
        taken.push(&quotes[0].instance_type);
        let choice = zones_of(draw, region, &quotes, &mut zones, &mut dice);
        for (i, (zone, quote)) in choice.iter().enumerate() {
            // On-demand prices hold in the whole region: one pool is enough.
            if i == 0 {
                pools.push(on_demand(draw, region, quote, zone, window, &mut dice));
            }
            pools.extend(spot(draw, region, quote, zone, window));
        }
    }
    pools
}

/// The quotes (one for each zone) of a type of this class; cheap types are likelier, and so are
/// those with a published price, which savings can be told from.
fn choose<'a>(
    draw: &Draw<'a>,
    region: &Region,
    wanted: Class,
    taken: &[&str],
    dice: &mut Dice,
) -> Option<Vec<&'a Quote>> {
    let quotes = || region.quotes.iter().map(|i| &draw.world.quotes[*i]);
    let weight = |q: &Quote| f64::from(u8::from(q.on_demand_published)) * 3.0 + 1.0;
    let mut types: Vec<(&str, f64)> = quotes()
        .filter(|q| class(q) == Some(wanted) && !taken.contains(&q.instance_type.as_str()))
        .map(|q| (q.instance_type.as_str(), weight(q) / q.on_demand))
        .collect();
    types.sort_by(|a, b| a.0.cmp(b.0).then(a.1.total_cmp(&b.1)));
    types.dedup_by_key(|t| t.0);
    if types.is_empty() {
        return None;
    }
    let weights: Vec<f64> = types.iter().map(|(_, weight)| *weight).collect();
    let (name, _) = types[dice.weighted(&weights)];
    let mut quotes: Vec<&Quote> = quotes().filter(|q| q.instance_type == name).collect();
    if quotes.iter().any(|q| !q.zone.is_empty()) {
        quotes.retain(|q| !q.zone.is_empty());
    }
    Some(quotes)
}

/// Zones for a type, each with its quote: those the region has already, until it has three.
fn zones_of<'a>(
    draw: &Draw<'_>,
    region: &Region,
    quotes: &[&'a Quote],
    zones: &mut Vec<String>,
    dice: &mut Dice,
) -> Vec<(String, &'a Quote)> {
    let mut choice: Vec<(String, &Quote)> = quotes
        .iter()
        .filter(|q| !q.zone.is_empty())
        .map(|q| (q.zone.clone(), *q))
        .collect();
    if choice.is_empty() {
        let names = if zones.is_empty() {
            zone_names(draw, region)
        } else {
            zones.clone()
        };
        choice = names.into_iter().map(|zone| (zone, quotes[0])).collect();
    }
    dice.shuffle(&mut choice);
    choice.sort_by_key(|(zone, _)| !zones.contains(zone));
    let count = dice.whole(draw.size.zones.0, draw.size.zones.1) as usize;
    choice.truncate(count.max(1));
    let known = choice.iter().filter(|(z, _)| zones.contains(z)).count();
    let new = 3_usize.saturating_sub(zones.len());
    choice.truncate((known + new).max(1));
    for (zone, _) in &choice {
        if !zones.contains(zone) {
            zones.push(zone.clone());
        }
    }
    choice
}

/// Zones that quotes of the region name, or three made-up ones where none does.
fn zone_names(draw: &Draw<'_>, region: &Region) -> Vec<String> {
    let quoted: BTreeSet<&str> = region
        .quotes
        .iter()
        .map(|i| draw.world.quotes[*i].zone.as_str())
        .filter(|zone| !zone.is_empty())
        .collect();
    if !quoted.is_empty() {
        return quoted.into_iter().map(str::to_owned).collect();
    }
    let names: [String; 3] = match region.provider {
        Provider::Azure => ["1", "2", "3"].map(str::to_owned),
        Provider::Gcp => ["b", "c", "d"].map(|z| format!("{}-{z}", region.name)),
        Provider::Aws | Provider::Edge => ["a", "b", "c"].map(|z| format!("{}{z}", region.name)),
    };
    names.into()
}

fn on_demand(
    draw: &Draw<'_>,
    region: &Region,
    quote: &Quote,
    zone: &str,
    window: f64,
    dice: &mut Dice,
) -> Pool {
    let historic = historic(draw, quote, window).map(|(list, _)| list);
    let list = historic.unwrap_or(quote.on_demand);
    // A control group that runs into its quota would be a straw man.
    let ample = if region.place.0 == CONTROL_REGION {
        4
    } else {
        1
    };
    let most = ample
        * match class(quote) {
            Some(Class::Cpu) => 6,
            Some(Class::Small) => 4,
            _ => 2,
        };
    let mut pool = pool(region, quote, zone, CapacityType::OnDemand, dice);
    pool.list_price = list;
    pool.price = Path::constant(list);
    pool.quote = list;
    pool.published = quote.on_demand_published || historic.is_some();
    pool.limit = dice.whole(most / 2, most);
    finish(pool)
}

fn spot(draw: &Draw<'_>, region: &Region, quote: &Quote, zone: &str, window: f64) -> Option<Pool> {
    let base = quote.spot?;
    let name = format!("spot/{}/{zone}/{}", region.place.0, quote.instance_type);
    let mut dice = draw.dice(&name);
    let mut pool = pool(region, quote, zone, CapacityType::Spot, &mut dice);
    match historic(draw, quote, window) {
        Some((list, path)) => {
            pool.list_price = list;
            pool.quote = path.at(0.0);
            pool.price = path;
            pool.published = true;
        }
        None => {
            pool.list_price = quote.on_demand;
            pool.quote = base;
            pool.price = moving(draw, quote, base, &mut dice);
            pool.published = quote.spot_published && quote.on_demand_published;
        }
    }
    pool.limit = match class(quote) {
        Some(Class::Cpu) => dice.whole(2, 5),
        Some(Class::Small) => dice.whole(1, 3),
        _ => dice.whole(1, 2),
    };
    // Where no band is published, the middle of those that are.
    pool.offer.supply.reclaim_rate = quote.reclaim_rate.unwrap_or(0.125);
    pool.obtainable = supply(draw, region, quote, &mut dice);
    Some(finish(pool))
}

fn pool(
    region: &Region,
    quote: &Quote,
    zone: &str,
    capacity_type: CapacityType,
    dice: &mut Dice,
) -> Pool {
    let id = format!(
        "{}/{}/{zone}/{}/{capacity_type}",
        region.provider, region.name, quote.instance_type
    );
    // Medians in minutes; a machine with GPUs has a driver to load. Assumed; measured starts lie
    // between one and six minutes (Mao and Humphrey, "A Performance Study on the VM Startup Time in
    // the Cloud", CLOUD 2012).
    let minutes = match region.provider {
        Provider::Gcp => 1.2,
        Provider::Azure => 2.5,
        Provider::Aws | Provider::Edge => 1.6,
    } + f64::from(u8::from(quote.gpus > 0));
    let uuid = |i: u32| format!("{id}/gpu{i}");
    Pool {
        offer: Offer {
            location: Location {
                tier: Tier::Cloud,
                provider: region.provider,
                region: region.name.clone(),
                zone: zone.to_owned(),
                site: String::new(),
                geography: Some(region.geography),
            },
            arch: quote.arch.to_owned(),
            capacity_type,
            instance_type: quote.instance_type.clone(),
            allocatable: allocatable(quote),
            gpus: (0..quote.gpus)
                .map(|i| GpuDevice {
                    uuid: uuid(i),
                    model: quote.accelerator.clone(),
                    memory_bytes: gpu_memory_gib(&quote.accelerator) << 30,
                    free_millis: 1000,
                })
                .collect(),
            price_per_hour: 0.0,
            supply: Supply::default(),
            startup_s: 0.0,
            id,
        },
        price: Path::default(),
        list_price: 0.0,
        quote: quote.on_demand,
        published: false,
        obtainable: Path::constant(1.0),
        limit: 0,
        boot_hours: minutes / 60.0 * dice.range(0.8, 1.25),
        network_gbps: dice.range(2.0, 8.0),
    }
}

/// Fills in the offer what follows from the paths at hour 0.
fn finish(mut pool: Pool) -> Pool {
    pool.offer.price_per_hour = pool.price.at(0.0);
    pool.offer.startup_s = (pool.boot_hours * 3600.0) as f32;
    pool
}

/// What is left beside system and agent: a fifth of a core and 7 % of memory.
fn allocatable(quote: &Quote) -> Resources {
    Resources {
        cpu_millis: (quote.vcpus * 1000.0) as u64 - 200,
        memory_bytes: (quote.memory_gib * 0.93 * (1_u64 << 30) as f64) as u64,
    }
}

/// Memory of one GPU, GiB, by NVIDIA's data sheets.
fn gpu_memory_gib(model: &str) -> u64 {
    match model {
        "A10G" | "A10" | "L4" => 24,
        "A100" => 40,
        "A100-80GB" | "H100" | "H100-MEGA" => 80,
        "H200" => 141,
        "L40S" => 48,
        "V100-32GB" => 32,
        _ => 16,
    }
}

/// List price and spot path of this type in this region in the episode's window, from the history.
fn historic(draw: &Draw<'_>, quote: &Quote, window: f64) -> Option<(f64, Path)> {
    if quote.provider != Provider::Gcp || quote.spot.is_none() {
        return None;
    }
    let key = (quote.instance_type.clone(), quote.region.clone());
    let points = draw.world.history.get(&key)?;
    let (from, to) = (window - draw.size.history, window + draw.size.horizon);
    let before = points.partition_point(|p| p.hour <= from).saturating_sub(1);
    let first = points.get(before)?;
    let mut path = vec![(-draw.size.history, first.spot)];
    for point in &points[before + 1..] {
        // A change of the on-demand price alone is none of this path's.
        let changed = path.last().is_some_and(|(_, spot)| *spot != point.spot);
        if point.hour > from && point.hour < to && changed {
            path.push((point.hour - window, point.spot));
        }
    }
    Some((first.on_demand, Path { points: path }))
}

/// A spot price that jumps around its quote by measured ratios, never above on-demand. AWS and
/// Azure are taken to change it every two days; GCP promises not to do so more than once in 30 days.
fn moving(draw: &Draw<'_>, quote: &Quote, base: f64, dice: &mut Dice) -> Path {
    let every = if quote.provider == Provider::Gcp {
        720.0
    } else {
        48.0
    };
    let ratios: Vec<f64> = draw
        .world
        .changes
        .iter()
        .filter(|c| (c.hour < draw.world.cut) == (draw.split == Split::Train))
        .map(|c| c.ratio)
        .collect();
    let price = |dice: &mut Dice| {
        let ratio = dice.pick(&ratios).copied().unwrap_or(1.0);
        (base * ratio).min(quote.on_demand.max(base))
    };
    let mut at = -draw.size.history;
    let mut points = vec![(at, price(dice))];
    loop {
        at += dice.exponential(every);
        if at >= draw.size.horizon {
            return Path { points };
        }
        points.push((at, price(dice)));
    }
}

/// When a spot pool gives instances: a stretch of a measured trace.
fn supply(draw: &Draw<'_>, region: &Region, quote: &Quote, dice: &mut Dice) -> Path {
    let traces = &draw.world.traces;
    let from = -draw.size.history;
    if traces.is_empty() {
        return Path {
            points: vec![(from, 1.0)],
        };
    }
    let trace = &traces[dice.weighted(&likeness(traces, region, quote))];
    let ticks = ((draw.size.horizon - from) / trace.gap_hours).ceil() as usize;
    let measured = draw.part(&trace.up);
    let mut up = Vec::with_capacity(ticks);
    while up.len() < ticks {
        // Traces shorter than an episode are put together from blocks of half a day or more (the
        // moving block bootstrap of Künsch, "The Jackknife and the Bootstrap for General Stationary
        // Observations", 1989), so that the history does not give away what follows.
        let block = if measured.len() >= ticks {
            ticks
        } else {
            let half_day = (12.0 / trace.gap_hours) as usize;
            half_day.clamp(1, measured.len())
        };
        let start = dice.below(measured.len() - block + 1);
        up.extend_from_slice(&measured[start..start + block]);
    }
    up.truncate(ticks);
    let mut points: Vec<(f64, f64)> = Vec::new();
    for (i, up) in up.iter().enumerate() {
        let value = f64::from(u8::from(*up));
        if points.last().is_none_or(|(_, last)| *last != value) {
            points.push((from + i as f64 * trace.gap_hours, value));
        }
    }
    Path { points }
}

/// How well each trace stands for a pool: its region, GPU or not, and how often it was reclaimed
/// among all traces against the published band among all bands.
fn likeness(traces: &[SpotTrace], region: &Region, quote: &Quote) -> Vec<f64> {
    let rates: Vec<f64> = traces.iter().map(|t| t.reclaims_per_hour).collect();
    let rank = |rate: f64| {
        let below = rates.iter().filter(|r| **r < rate).count();
        below as f64 / (rates.len() - 1).max(1) as f64
    };
    // Bands 2.5 to 25 % to ranks 0.1 to 0.9; without a band, a little calmer than the middle.
    let wanted = quote
        .reclaim_rate
        .map_or(0.4, |rate| f64::from(rate) * 3.5 + 0.03);
    traces
        .iter()
        .zip(&rates)
        .map(|(trace, rate)| {
            let apart = (rank(*rate) - wanted) / 0.25;
            let mut weight = libm::exp(-apart * apart);
            if trace.accelerated == (quote.gpus > 0) {
                weight *= 3.0;
            }
            if trace.provider == region.provider && trace.zone.starts_with(&region.name) {
                weight *= 4.0;
            }
            weight
        })
        .collect()
}
