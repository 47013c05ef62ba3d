//! Round trips and throughput between regions: `latency/*.csv`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use hyperion_placement::model::{LatencyMatrix, Place, Provider};
use hyperion_providers::geography;

use super::table::{Row, Table};
use super::{DataError, Warning};

/// File of the round trips.
pub const RTT: &str = "latency/skyplane_rtt_premium.csv";
/// File of the throughput.
pub const THROUGHPUT: &str = "latency/skyplane_throughput.csv";

/// Gigabits per second between two places, by the smaller place first.
pub type Throughput = BTreeMap<(Place, Place), f64>;

/// Sums and counts by unordered pair: measured both ways, a pair has two rows.
#[derive(Default)]
struct Means(BTreeMap<(Place, Place), (f64, f64)>);

impl Means {
    fn add(&mut self, a: Place, b: Place, value: f64) {
        let key = if a <= b { (a, b) } else { (b, a) };
        let entry = self.0.entry(key).or_default();
        *entry = (entry.0 + value, entry.1 + 1.0);
    }

    fn into_means(self) -> impl Iterator<Item = ((Place, Place), f64)> {
        self.0.into_iter().map(|(key, (sum, n))| (key, sum / n))
    }
}

/// Round trips between regions and from clients; none where the file is missing.
pub(super) fn load_rtt(
    dir: &Path,
    warnings: &mut Vec<Warning>,
) -> Result<Option<LatencyMatrix>, DataError> {
    let path = dir.join(RTT);
    let Some(table) = Table::open(&path, &["src", "dst", "avg_rtt_ms"])? else {
        return Ok(None);
    };
    let (mut means, mut unknown) = (Means::default(), BTreeSet::new());
    for row in table.rows() {
        let ms = row.number(2)?;
        if let Some((a, b)) = pair(&row, 0, 1, &mut unknown)? {
            means.add(a, b, ms);
        }
    }
    warn(&path, unknown, warnings);
    let mut matrix = LatencyMatrix::default();
    for ((a, b), ms) in means.into_means() {
        matrix.insert(&a, &b, ms as f32);
    }
    Ok(Some(hyperion_providers::with_clients(&matrix)))
}

/// Throughput between regions on the premium network; none where the file is missing.
pub(super) fn load_throughput(
    dir: &Path,
    warnings: &mut Vec<Warning>,
) -> Result<Option<Throughput>, DataError> {
    let path = dir.join(THROUGHPUT);
    let columns = &["src", "src_tier", "dst", "dst_tier", "gbps_recv"];
    let Some(table) = Table::open(&path, columns)? else {
        return Ok(None);
    };
    let (mut means, mut unknown) = (Means::default(), BTreeSet::new());
    for row in table.rows() {
        let gbps = row.number(4)?;
        let premium = premium(&row, 1)? & premium(&row, 3)?;
        if let Some((a, b)) = pair(&row, 0, 2, &mut unknown)?
            && premium
            && gbps > 0.0
        {
            means.add(a, b, gbps);
        }
    }
    warn(&path, unknown, warnings);
    Ok(Some(means.into_means().collect()))
}

fn premium(row: &Row<'_>, column: usize) -> Result<bool, DataError> {
    match row.text(column) {
        "PREMIUM" => Ok(true),
        "STANDARD" => Ok(false),
        other => Err(row.wrong(
            column,
            format!("unknown tier {other:?}; expected PREMIUM or STANDARD"),
        )),
    }
}

/// Both ends of a row; none where one is unknown or both are the same.
fn pair(
    row: &Row<'_>,
    a: usize,
    b: usize,
    unknown: &mut BTreeSet<String>,
) -> Result<Option<(Place, Place)>, DataError> {
    let (from, to) = (place(row, a, unknown)?, place(row, b, unknown)?);
    Ok(from.zip(to).filter(|(a, b)| a != b))
}

/// `gcp:us-central1-a` was measured from a zone and stands for its region.
fn place(
    row: &Row<'_>,
    column: usize,
    unknown: &mut BTreeSet<String>,
) -> Result<Option<Place>, DataError> {
    let text = row.word(column)?;
    let (provider, region) = text.split_once(':').ok_or_else(|| {
        row.wrong(
            column,
            format!("{text:?} is no region; expected provider:region"),
        )
    })?;
    let provider: Provider = provider
        .parse()
        .map_err(|e: hyperion_placement::model::UnknownWord| row.wrong(column, e.to_string()))?;
    let region = match (provider, region.rsplit_once('-')) {
        (Provider::Gcp, Some((region, zone))) if zone.len() == 1 => region,
        _ => region,
    };
    if geography(provider, region).is_none() {
        unknown.insert(format!("{provider}:{region}"));
        return Ok(None);
    }
    Ok(Some(Place(format!("{provider}:{region}"))))
}

fn warn(path: &Path, unknown: BTreeSet<String>, warnings: &mut Vec<Warning>) {
    if !unknown.is_empty() {
        let names: Vec<_> = unknown.into_iter().collect();
        warnings.push(Warning {
            path: path.to_owned(),
            message: format!("unknown regions left out: {}", names.join(", ")),
        });
    }
}
