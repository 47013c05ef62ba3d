//! What machines cost hour by hour in the window that is replayed, from a data directory.
//!
//! The data have a price for each zone, and how Google's prices changed from day to day. Nobody
//! publishes how prices move within a day for all three clouds, so that others jump around their
//! quote as often as `docs/simulator.md` takes them to, by ratios that were measured at Google's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Result, anyhow, ensure};
use hyperion_placement::model::Provider;
use hyperion_scheduler::world::{PricePoint, Quote, World};
use jiff::civil::Date;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

/// File of the history, for messages.
const HISTORY: &str = "spot/gcp_price_history.csv";
/// Mean hours between two changes of a drawn price, as in the simulator.
const AWS_AZURE_EVERY: f64 = 48.0;
const GCP_EVERY: f64 = 720.0;

/// Machines that are sold alike.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kind {
    pub provider: Provider,
    pub region: String,
    pub zone: String,
    pub instance_type: String,
    pub spot: bool,
}

/// Where a price comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The list price.
    List,
    /// The history's prices at their time.
    History,
    /// A quote, and jumps around it that are drawn.
    Drawn,
}

/// Prices of one kind of machine.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Price {
    pub origin: Origin,
    /// Hour from the beginning of the window, US dollars per hour from then on. The first is at 0.
    pub points: Vec<(f64, f64)>,
    /// What the same machine costs on demand at the beginning.
    pub on_demand: f64,
    pub gpus: u32,
}

impl Price {
    /// US dollars per hour at an hour of the window.
    pub(super) fn at(&self, hour: f64) -> f64 {
        let after = self.points.partition_point(|(from, _)| *from <= hour);
        let point = self.points.get(after.saturating_sub(1));
        point.map_or(f64::NAN, |(_, usd)| *usd)
    }

    /// Lowest and highest between two hours.
    pub(super) fn between(&self, from: f64, to: f64) -> (f64, f64) {
        let inside = self
            .points
            .iter()
            .filter(|(at, _)| (from..=to).contains(at));
        let all = inside.map(|(_, usd)| *usd).chain([self.at(from)]);
        all.fold((f64::INFINITY, 0.0), |(low, high), usd| {
            (low.min(usd), high.max(usd))
        })
    }
}

/// The window.
#[derive(Debug, Clone, Default)]
pub(super) struct Day {
    pub hours: f64,
    /// The day whose beginning is its middle; none where there is no history.
    pub date: Option<Date>,
    pub prices: BTreeMap<Kind, Price>,
    /// Kinds of which the data have no price.
    pub unknown: Vec<Kind>,
}

impl Day {
    /// Prices of these kinds. The middle of the window is the beginning of `date`, or of the day on
    /// which most of them changed.
    ///
    /// # Errors
    /// The data have no price of any of them, or none of the day.
    pub(super) fn new(
        world: &World,
        dir: &Path,
        kinds: &BTreeSet<Kind>,
        date: Option<Date>,
        hours: f64,
        seed: u64,
    ) -> Result<Self> {
        let date = choose(world, dir, kinds, date)?;
        let mut day = Self {
            hours,
            date,
            ..Self::default()
        };
        let begin = date.map(|date| hour_of(date) - hours / 2.0);
        for kind in kinds {
            match price(world, kind, begin, hours, seed) {
                Some(price) => drop(day.prices.insert(kind.clone(), price)),
                None => day.unknown.push(kind.clone()),
            }
        }
        ensure!(
            !day.prices.is_empty(),
            "--data {}: catalog.csv has no prices of the clusters' machines",
            dir.display()
        );
        Ok(day)
    }

    /// How many kinds have prices of this origin.
    pub(super) fn count(&self, origin: Origin) -> usize {
        self.prices.values().filter(|p| p.origin == origin).count()
    }

    /// Every change, in order of time.
    pub(super) fn changes(&self) -> Vec<(f64, &Kind)> {
        let mut all: Vec<(f64, &Kind)> = self
            .prices
            .iter()
            .flat_map(|(kind, price)| price.points.iter().skip(1).map(move |p| (p.0, kind)))
            .collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(b.1)));
        all
    }

    /// All prices of an hour, in the form of the operator's price file.
    pub(super) fn file(&self, hour: f64) -> String {
        let mut text =
            "provider,region,zone,instance_type,capacity_type,price_per_hour\n".to_owned();
        for (kind, price) in &self.prices {
            let how = if kind.spot { "spot" } else { "on-demand" };
            text.push_str(&format!(
                "{},{},{},{},{how},{}\n",
                kind.provider,
                kind.region,
                kind.zone,
                kind.instance_type,
                price.at(hour)
            ));
        }
        text
    }
}

/// The day that is asked for, or else that on which most prices of these kinds changed.
fn choose(
    world: &World,
    dir: &Path,
    kinds: &BTreeSet<Kind>,
    asked: Option<Date>,
) -> Result<Option<Date>> {
    let mut changed: BTreeMap<i64, usize> = BTreeMap::new();
    let (mut first, mut last) = (f64::INFINITY, f64::NEG_INFINITY);
    for points in kinds.iter().filter_map(|kind| history(world, kind)) {
        for point in points {
            *changed.entry(point.hour as i64).or_default() += 1;
            (first, last) = (first.min(point.hour), last.max(point.hour));
        }
        // From its first point on there is a price, which is no change.
        if let Some(point) = points.first()
            && let Some(count) = changed.get_mut(&(point.hour as i64))
        {
            *count -= 1;
        }
    }
    let Some(asked) = asked else {
        let most = changed.iter().max_by_key(|(hour, count)| (**count, **hour));
        return Ok(most.map(|(hour, _)| date_of(*hour as f64)));
    };
    let has = first <= last && (first..=last).contains(&hour_of(asked));
    ensure!(
        has,
        "--day {asked}: {} has no prices of that day{}",
        dir.join(HISTORY).display(),
        if first <= last {
            format!(": it has {} to {}", date_of(first), date_of(last))
        } else {
            " for the clusters' machines".to_owned()
        }
    );
    Ok(Some(asked))
}

fn hour_of(date: Date) -> f64 {
    f64::from((date - Date::constant(1970, 1, 1)).get_days()) * 24.0
}

fn date_of(hour: f64) -> Date {
    let days = jiff::Span::new().days((hour / 24.0) as i64);
    Date::constant(1970, 1, 1).saturating_add(days)
}

fn history<'a>(world: &'a World, kind: &Kind) -> Option<&'a [PricePoint]> {
    if kind.provider != Provider::Gcp {
        return None;
    }
    let key = (kind.instance_type.clone(), kind.region.clone());
    world.history.get(&key).map(Vec::as_slice)
}

fn price(world: &World, kind: &Kind, begin: Option<f64>, hours: f64, seed: u64) -> Option<Price> {
    let quote = quote(world, kind)?;
    if let Some(begin) = begin
        && let Some(points) = history(world, kind)
        && let Some((points, on_demand)) = historic(points, begin, hours, kind.spot)
    {
        return Some(Price {
            origin: if kind.spot {
                Origin::History
            } else {
                Origin::List
            },
            points,
            on_demand,
            gpus: quote.gpus,
        });
    }
    let base = if kind.spot {
        quote.spot?
    } else {
        quote.on_demand
    };
    let mut price = Price {
        origin: Origin::List,
        points: vec![(0.0, base)],
        on_demand: quote.on_demand,
        gpus: quote.gpus,
    };
    if kind.spot {
        price.origin = Origin::Drawn;
        let mut rng = dice(seed, kind);
        let every = if kind.provider == Provider::Gcp {
            GCP_EVERY
        } else {
            AWS_AZURE_EVERY
        };
        let mut at = 0.0;
        loop {
            at += -every * (1.0 - rng.random::<f64>()).ln();
            let Some(change) = world.changes.choose(&mut rng).filter(|_| at < hours) else {
                break;
            };
            let usd = (base * change.ratio).min(quote.on_demand.max(base));
            price.points.push((at, usd));
        }
    }
    Some(price)
}

/// Points of a window, and the on-demand price at its beginning.
fn historic(
    points: &[PricePoint],
    begin: f64,
    hours: f64,
    spot: bool,
) -> Option<(Vec<(f64, f64)>, f64)> {
    let of = |point: &PricePoint| if spot { point.spot } else { point.on_demand };
    let before = points
        .partition_point(|p| p.hour <= begin)
        .saturating_sub(1);
    let first = points.get(before)?;
    let mut found = vec![(0.0, of(first))];
    for point in points.get(before + 1..).unwrap_or_default() {
        let changed = found.last().is_some_and(|(_, usd)| *usd != of(point));
        if point.hour > begin && point.hour < begin + hours && changed {
            found.push((point.hour - begin, of(point)));
        }
    }
    Some((found, first.on_demand))
}

/// The quote of a kind's zone, or of its region. Amazon's quotes name zones by ids, which accounts
/// know by different letters: the first id is taken for the first letter.
fn quote<'a>(world: &'a World, kind: &Kind) -> Option<&'a Quote> {
    let mut all: Vec<&Quote> = world
        .quotes
        .iter()
        .filter(|q| {
            q.provider == kind.provider
                && q.region == kind.region
                && q.instance_type.eq_ignore_ascii_case(&kind.instance_type)
                && (!kind.spot || q.spot.is_some())
        })
        .collect();
    all.sort_by(|a, b| a.zone.cmp(&b.zone));
    if let Some(exact) = all.iter().find(|q| q.zone == kind.zone) {
        return Some(exact);
    }
    let of_zones: Vec<&Quote> = all.iter().copied().filter(|q| !q.zone.is_empty()).collect();
    let letter = kind.zone.bytes().last().unwrap_or_default();
    let index =
        usize::from(letter.saturating_sub(if letter.is_ascii_digit() { b'1' } else { b'a' }));
    let by_order = of_zones.get(index % of_zones.len().max(1)).copied();
    by_order.or_else(|| all.first().copied())
}

/// Random numbers of one kind of machine.
pub(super) fn dice(seed: u64, kind: &Kind) -> StdRng {
    let name = format!("{}/{}/{}", kind.zone, kind.instance_type, kind.spot);
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64 ^ seed, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    StdRng::seed_from_u64(hash)
}

/// Reads a data directory; what is missing in it is said.
///
/// # Errors
/// It can't be read, has nothing that is known, or something wrong: the error names file and line.
pub(super) fn read(dir: &Path) -> Result<(World, Vec<String>)> {
    let read = World::load(dir);
    let (world, warnings) = read.map_err(|e| anyhow!("--data: {e}"))?;
    Ok((world, warnings.iter().map(ToString::to_string).collect()))
}
