//! Measured prices, latencies and traces, from a data directory or built in.
//!
//! A directory has the layout that `docs/simulator.md` describes. Each file may be missing: what
//! [`World::builtin`] has stands in for it, and a [`Warning`] says so. Wrong content is a
//! [`DataError`] that names file, line and column.

mod builtin;
mod catalog;
mod error;
mod history;
mod network;
mod requests;
mod supply;
mod table;

use std::path::Path;

use hyperion_placement::model::{Geography, LatencyMatrix, Place, Provider};
use hyperion_providers::geography;

pub use catalog::Quote;
pub use error::{DataError, Warning};
pub use history::{Change, History, PricePoint};
pub use network::Throughput;
pub use supply::SpotTrace;

/// The region of the control group, "static AWS us-east-1 on-demand". It is part of every world.
pub const CONTROL_REGION: &str = "aws:us-east-1";
/// Hours of a day.
const DAY: f64 = 24.0;

/// A region that offers machines and whose round trips are known.
#[derive(Debug, Clone, PartialEq)]
pub struct Region {
    /// `aws:us-east-1`.
    pub place: Place,
    /// Who owns it.
    pub provider: Provider,
    /// In the provider's words.
    pub name: String,
    /// Where it is.
    pub geography: Geography,
    /// Its rows of [`World::quotes`].
    pub quotes: Vec<usize>,
    /// Training never sees it. By its name alone, so that other data do not change it.
    pub held_out: bool,
}

/// All that is known of the outside, before anything is drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct World {
    /// Prices of machines, sorted by provider, region, zone and type.
    pub quotes: Vec<Quote>,
    /// Regions that can be drawn, sorted by place.
    pub regions: Vec<Region>,
    /// Round trips between regions and from each geography's clients.
    pub latency: LatencyMatrix,
    /// Gigabits per second between regions.
    pub throughput: Throughput,
    /// Spot supply, by name.
    pub traces: Vec<SpotTrace>,
    /// Price history; empty where there is none.
    pub history: History,
    /// Changes of spot prices in order of time, at least one.
    pub changes: Vec<Change>,
    /// Hour (since 1970) that parts training's price windows from unseen ones.
    pub cut: f64,
    /// Requests per minute over their mean, at least one.
    pub bursts: Vec<f64>,
    /// Runtimes of jobs, hours, shortest first, at least one.
    pub runtimes: Vec<f64>,
}

impl World {
    /// Reads a data directory.
    ///
    /// # Errors
    /// Where the directory or a file in it can't be read, holds no known file, or a file has wrong
    /// content.
    pub fn load(dir: &Path) -> Result<(Self, Vec<Warning>), DataError> {
        known_files(dir)?;
        let mut warnings = Vec::new();
        let mut missing = |file: &str, instead: &str| {
            warnings.push(Warning {
                path: dir.join(file),
                message: format!("missing; {instead}"),
            });
        };
        let mut notes = Vec::new();
        let quotes = catalog::load(dir, &mut notes)?.unwrap_or_else(|| {
            missing(catalog::CATALOG, "the built-in price table is used");
            builtin::quotes()
        });
        let latency = network::load_rtt(dir, &mut notes)?.unwrap_or_else(|| {
            missing(network::RTT, "built-in round trips are used");
            hyperion_providers::latency_matrix()
        });
        let throughput = network::load_throughput(dir, &mut notes)?.unwrap_or_else(|| {
            missing(network::THROUGHPUT, "4.4 Gb/s between all regions");
            builtin::throughput(&latency)
        });
        let traces = supply::load(dir, &mut notes)?.unwrap_or_else(|| {
            missing(
                supply::SPOT,
                "spot supply is made up from published figures",
            );
            builtin::traces()
        });
        let history = history::load(dir, &mut notes)?.unwrap_or_else(|| {
            missing(history::HISTORY, "prices move by published figures");
            History::new()
        });
        let bursts = requests::load_bursts(dir)?.unwrap_or_else(|| {
            missing(requests::ARRIVALS, "load varies by published figures");
            builtin::bursts()
        });
        let runtimes = requests::load_runtimes(dir)?.unwrap_or_else(|| {
            missing(requests::RUNTIMES, "runtimes follow published figures");
            builtin::runtimes()
        });
        warnings.append(&mut notes);
        let world = Self::of(
            quotes, latency, throughput, traces, history, bursts, runtimes,
        );
        world.check(dir, &mut warnings)?;
        Ok((world, warnings))
    }

    /// A small world from the providers' tables and published figures; needs no file.
    #[must_use]
    pub fn builtin() -> Self {
        let latency = hyperion_providers::latency_matrix();
        let throughput = builtin::throughput(&latency);
        Self::of(
            builtin::quotes(),
            latency,
            throughput,
            builtin::traces(),
            History::new(),
            builtin::bursts(),
            builtin::runtimes(),
        )
    }

    fn of(
        quotes: Vec<Quote>,
        latency: LatencyMatrix,
        throughput: Throughput,
        traces: Vec<SpotTrace>,
        history: History,
        bursts: Vec<f64>,
        runtimes: Vec<f64>,
    ) -> Self {
        let mut changes = history::changes(&history);
        if changes.is_empty() {
            changes = builtin::changes();
        }
        let cut = cut(&changes);
        Self {
            regions: regions(&quotes, &latency),
            quotes,
            latency,
            throughput,
            traces,
            history,
            changes,
            cut,
            bursts,
            runtimes,
        }
    }

    /// What makes a world unfit to draw from, though each file is right on its own.
    fn check(&self, dir: &Path, warnings: &mut Vec<Warning>) -> Result<(), DataError> {
        if self.regions.is_empty() {
            return Err(DataError::Whole {
                path: dir.to_owned(),
                problem: format!(
                    "no region has both offers ({}) and round trips ({})",
                    catalog::CATALOG,
                    network::RTT
                ),
            });
        }
        let mut note = |message: String| {
            warnings.push(Warning {
                path: dir.to_owned(),
                message,
            });
        };
        for held_out in [false, true] {
            let count = self
                .regions
                .iter()
                .filter(|r| r.held_out == held_out)
                .count();
            if count < 2 {
                note(format!(
                    "only {count} regions are {}: those of the other kind are used too, so unseen \
                     worlds share regions with training",
                    if held_out { "held out" } else { "for training" }
                ));
            }
        }
        let unmeasured: std::collections::BTreeSet<String> = self
            .quotes
            .iter()
            .map(|q| format!("{}:{}", q.provider, q.region))
            .filter(|place| !self.regions.iter().any(|r| r.place.0 == *place))
            .collect();
        if !unmeasured.is_empty() {
            let names: Vec<_> = unmeasured.into_iter().collect();
            note(format!(
                "offers of regions without round trips left out: {}",
                names.join(", ")
            ));
        }
        Ok(())
    }
}

/// Refuses a directory that can't be read or holds nothing that is known.
fn known_files(dir: &Path) -> Result<(), DataError> {
    const KNOWN: &[&str] = &[
        catalog::CATALOG,
        catalog::SPOT_ADVISOR,
        network::RTT,
        network::THROUGHPUT,
        supply::SPOT,
        requests::ARRIVALS,
        requests::RUNTIMES,
    ];
    std::fs::read_dir(dir).map_err(|source| DataError::Read {
        path: dir.to_owned(),
        source,
    })?;
    if KNOWN.iter().any(|file| dir.join(file).exists()) {
        return Ok(());
    }
    Err(DataError::Empty {
        path: dir.to_owned(),
        expected: KNOWN.join(", "),
    })
}

/// The hour at which 70 % of the time that the changes span is over; whole days.
fn cut(changes: &[Change]) -> f64 {
    let (first, last) = match (changes.first(), changes.last()) {
        (Some(first), Some(last)) => (first.hour, last.hour),
        _ => (0.0, 0.0),
    };
    ((first + 0.7 * (last - first)) / DAY).floor() * DAY
}

/// Regions that offer machines and whose round trips to others are known.
fn regions(quotes: &[Quote], latency: &LatencyMatrix) -> Vec<Region> {
    let measured: std::collections::BTreeSet<&Place> =
        latency.rtt_ms.keys().flat_map(|(a, b)| [a, b]).collect();
    let mut regions = std::collections::BTreeMap::<Place, Region>::new();
    for (i, quote) in quotes.iter().enumerate() {
        let place = Place(format!("{}:{}", quote.provider, quote.region));
        let Some(geography) = geography(quote.provider, &quote.region) else {
            continue;
        };
        if !measured.contains(&place) {
            continue;
        }
        regions
            .entry(place.clone())
            .or_insert_with(|| Region {
                held_out: held_out(&place),
                place,
                provider: quote.provider,
                name: quote.region.clone(),
                geography,
                quotes: Vec::new(),
            })
            .quotes
            .push(i);
    }
    regions.into_values().collect()
}

/// About three of ten, by a hash of the name (FNV-1a, folded).
fn held_out(place: &Place) -> bool {
    let hash = place
        .0
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
    (hash ^ (hash >> 32)) % 10 < 3
}

#[cfg(test)]
mod tests;
