//! Offers and their prices: `catalog.csv` and `aws_spot_advisor_2025-06.csv`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use hyperion_placement::model::Provider;
use hyperion_providers::geography;

use super::table::{Row, Table};
use super::{DataError, Warning};

/// File of the offers.
pub const CATALOG: &str = "catalog.csv";
/// File of the reclaim bands.
pub const SPOT_ADVISOR: &str = "aws_spot_advisor_2025-06.csv";

/// What one instance type costs in one place.
#[derive(Debug, Clone, PartialEq)]
pub struct Quote {
    /// Who sells it.
    pub provider: Provider,
    /// Region in the provider's words.
    pub region: String,
    /// Zone; empty where the price holds in the whole region.
    pub zone: String,
    /// Instance type; where GPUs are attached to a type by choice, with these (`n1-highmem-4+1xT4`).
    pub instance_type: String,
    /// Kubernetes' word for the architecture.
    pub arch: &'static str,
    /// Virtual cores.
    pub vcpus: f64,
    /// GiB.
    pub memory_gib: f64,
    /// GPU model; empty without GPUs.
    pub accelerator: String,
    /// GPUs.
    pub gpus: u32,
    /// US dollars per hour, on demand.
    pub on_demand: f64,
    /// False where the on-demand price was derived and no quote.
    pub on_demand_published: bool,
    /// US dollars per hour, spot; none where it is not sold so.
    pub spot: Option<f64>,
    /// False where the spot price was derived and no quote.
    pub spot_published: bool,
    /// Monthly share of spot instances that are reclaimed, middle of the published band.
    pub reclaim_rate: Option<f32>,
    /// When it was read; orders quotes for the same thing.
    pub as_of: String,
}

impl Quote {
    /// Several types, told apart by what is attached to them, are named with it.
    fn key(&self) -> (Provider, String, String, String) {
        (
            self.provider,
            self.region.clone(),
            self.zone.clone(),
            self.instance_type.clone(),
        )
    }

    /// Takes over what the other knows better: quotes before derived prices, later before earlier.
    fn merge(&mut self, other: Self) {
        let better = |ours: bool, theirs: bool, ours_at: &str| {
            theirs && (!ours || other.as_of.as_str() > ours_at)
        };
        if better(
            self.on_demand_published,
            other.on_demand_published,
            &self.as_of,
        ) {
            self.on_demand = other.on_demand;
            self.on_demand_published = true;
        }
        let spot_better = other.spot.is_some()
            && (self.spot.is_none()
                || better(self.spot_published, other.spot_published, &self.as_of));
        if spot_better {
            self.spot = other.spot;
            self.spot_published = other.spot_published;
        }
        self.reclaim_rate = self.reclaim_rate.or(other.reclaim_rate);
        if other.as_of > self.as_of {
            self.as_of = other.as_of;
        }
    }
}

const COLUMNS: &[&str] = &[
    "provider",
    "region",
    "zone",
    "instance_type",
    "vcpus",
    "memory_gib",
    "accelerator",
    "accelerator_count",
    "on_demand_usd_h",
    "spot_usd_h",
    "as_of",
    "basis",
    "spot_interruption_band",
];

/// Reads the catalog; none where there is none.
pub(super) fn load(
    dir: &Path,
    warnings: &mut Vec<Warning>,
) -> Result<Option<Vec<Quote>>, DataError> {
    let path = dir.join(CATALOG);
    let Some(table) = Table::open(&path, COLUMNS)? else {
        return Ok(None);
    };
    let mut quotes: BTreeMap<_, Quote> = BTreeMap::new();
    let (mut unknown, mut unusable) = (BTreeSet::new(), 0_u32);
    for row in table.rows() {
        let Some(quote) = quote(&row)? else {
            unusable += 1;
            continue;
        };
        if geography(quote.provider, &quote.region).is_none() {
            unknown.insert(format!("{}:{}", quote.provider, quote.region));
            continue;
        }
        let key = quote.key();
        match quotes.get_mut(&key) {
            Some(known) => known.merge(quote),
            None => {
                quotes.insert(key, quote);
            }
        }
    }
    if !unknown.is_empty() {
        let names: Vec<_> = unknown.into_iter().collect();
        warnings.push(Warning {
            path: path.clone(),
            message: format!("unknown regions left out: {}", names.join(", ")),
        });
    }
    if unusable > 0 {
        warnings.push(Warning {
            path,
            message: format!("{unusable} offers with a part of a GPU or without a price left out"),
        });
    }
    let mut quotes: Vec<Quote> = quotes.into_values().collect();
    advise(dir, &mut quotes, warnings)?;
    Ok(Some(quotes))
}

/// One row; none where it is no whole machine with a price.
fn quote(row: &Row<'_>) -> Result<Option<Quote>, DataError> {
    let provider: Provider = row
        .word(0)?
        .parse()
        .map_err(|e: hyperion_placement::model::UnknownWord| row.wrong(0, e.to_string()))?;
    if provider == Provider::Edge {
        return Err(row.wrong(0, "edge sells nothing"));
    }
    let published = match row.text(11) {
        "list" => true,
        "derived" => false,
        other => {
            return Err(row.wrong(11, format!("{other:?} is neither \"list\" nor \"derived\"")));
        }
    };
    let count = row.optional(7)?.unwrap_or(0.0);
    let accelerator = row.text(6);
    if count > 0.0 && accelerator.is_empty() {
        return Err(row.wrong(6, "is empty though accelerators are counted"));
    }
    if count > 64.0 {
        return Err(row.wrong(7, format!("{count} is more than any machine has")));
    }
    let (on_demand, spot) = (row.number(8)?, row.optional(9)?);
    let (vcpus, memory_gib) = (row.positive(4)?, row.positive(5)?);
    let reclaim_rate = band(row, 12)?;
    if count.fract() != 0.0 || on_demand == 0.0 {
        return Ok(None);
    }
    let gpus = count as u32;
    let name = row.word(3)?;
    // GCP attaches GPUs to n1 types by choice, so the type alone does not tell the machine.
    let instance_type = if gpus > 0 && name.starts_with("n1-") {
        format!("{name}+{gpus}x{accelerator}")
    } else {
        name.to_owned()
    };
    Ok(Some(Quote {
        provider,
        region: row.word(1)?.to_owned(),
        zone: row.text(2).to_owned(),
        arch: arch(&instance_type),
        instance_type,
        vcpus,
        memory_gib,
        accelerator: accelerator.to_owned(),
        gpus,
        on_demand,
        on_demand_published: published,
        spot: spot.filter(|s| *s > 0.0),
        spot_published: published,
        reclaim_rate,
        as_of: row.text(10).to_owned(),
    }))
}

/// The two types of the catalog that have Arm cores: GCP's t2a and Azure's Dps.
fn arch(instance_type: &str) -> &'static str {
    if instance_type.starts_with("t2a-") || instance_type.starts_with("Standard_D8ps") {
        "arm64"
    } else {
        "amd64"
    }
}

/// The middle of a published band; the last one is open and is taken as 25 %.
fn band(row: &Row<'_>, column: usize) -> Result<Option<f32>, DataError> {
    Ok(Some(match row.text(column) {
        "" => return Ok(None),
        "<5%" => 0.025,
        "5-10%" => 0.075,
        "10-15%" => 0.125,
        "15-20%" => 0.175,
        ">20%" => 0.25,
        other => {
            return Err(row.wrong(
                column,
                format!("unknown band {other:?}; expected one of <5%, 5-10%, 10-15%, 15-20%, >20%"),
            ));
        }
    }))
}

const ADVISOR_COLUMNS: &[&str] = &[
    "region",
    "instance_type",
    "saving_pct_vs_on_demand",
    "interruption_band",
];

/// Fills in reclaim bands, and spot prices where none is quoted (these are marked as derived).
fn advise(dir: &Path, quotes: &mut [Quote], warnings: &mut Vec<Warning>) -> Result<(), DataError> {
    let path = dir.join(SPOT_ADVISOR);
    let Some(table) = Table::open(&path, ADVISOR_COLUMNS)? else {
        warnings.push(Warning {
            path,
            message: "missing; reclaim bands only where the catalog has them".to_owned(),
        });
        return Ok(());
    };
    let mut advice = BTreeMap::new();
    for row in table.rows() {
        // Below zero where spot is dearer than on demand, which happens.
        let saving = row.signed(2)?;
        if saving >= 100.0 {
            return Err(row.wrong(2, format!("{saving} is not below 100")));
        }
        advice.insert((row.word(0)?, row.word(1)?), (saving, band(&row, 3)?));
    }
    for quote in quotes.iter_mut().filter(|q| q.provider == Provider::Aws) {
        let key = (quote.region.as_str(), quote.instance_type.as_str());
        let Some((saving, rate)) = advice.get(&key) else {
            continue;
        };
        quote.reclaim_rate = quote.reclaim_rate.or(*rate);
        if quote.spot.is_none() && *saving > 0.0 {
            quote.spot = Some(quote.on_demand * (1.0 - saving / 100.0));
            quote.spot_published = false;
        }
    }
    Ok(())
}
