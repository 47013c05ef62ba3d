//! How spot prices moved: `spot/gcp_price_history.csv`.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::civil::Date;

use super::table::Table;
use super::{DataError, Warning};

/// File of the price history.
pub const HISTORY: &str = "spot/gcp_price_history.csv";

/// Prices of one instance type in one region from a day on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PricePoint {
    /// Hours since 1970 in UTC.
    pub hour: f64,
    /// US dollars per hour, on demand.
    pub on_demand: f64,
    /// US dollars per hour, spot.
    pub spot: f64,
}

/// Price points by instance type and region, in order of time.
pub type History = BTreeMap<(String, String), Vec<PricePoint>>;

/// A change of a spot price.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Change {
    /// Hours since 1970 in UTC.
    pub hour: f64,
    /// New price over old.
    pub ratio: f64,
}

const COLUMNS: &[&str] = &[
    "date",
    "instance_type",
    "region",
    "on_demand_usd_h",
    "spot_usd_h",
];

/// Reads the history; none where the file is missing.
pub(super) fn load(dir: &Path, warnings: &mut Vec<Warning>) -> Result<Option<History>, DataError> {
    let path = dir.join(HISTORY);
    let Some(table) = Table::open(&path, COLUMNS)? else {
        return Ok(None);
    };
    let (mut history, mut without) = (History::new(), 0_u32);
    for row in table.rows() {
        let text = row.word(0)?;
        let date: Date = text
            .parse()
            .map_err(|_| row.wrong(0, format!("{text:?} is no date; expected 2024-01-31")))?;
        // How the source writes that a type was not sold there.
        if [3, 4].iter().any(|column| row.text(*column) == "None") {
            without += 1;
            continue;
        }
        let days = (date - Date::constant(1970, 1, 1)).get_days();
        let point = PricePoint {
            hour: f64::from(days) * 24.0,
            on_demand: row.positive(3)?,
            spot: row.positive(4)?,
        };
        let key = (row.word(1)?.to_owned(), row.word(2)?.to_owned());
        let points = history.entry(key).or_default();
        if let Some(last) = points.last()
            && last.hour > point.hour
        {
            return Err(row.wrong(0, format!("{text} is before the date of an earlier row")));
        }
        points.push(point);
    }
    if without > 0 {
        warnings.push(Warning {
            path,
            message: format!("{without} rows without a price left out"),
        });
    }
    Ok(Some(history))
}

/// Every change of a spot price, in order of time.
pub(super) fn changes(history: &History) -> Vec<Change> {
    let mut changes: Vec<Change> = history
        .values()
        .flat_map(|points| points.windows(2))
        .filter(|pair| pair[0].spot != pair[1].spot)
        .map(|pair| Change {
            hour: pair[1].hour,
            ratio: pair[1].spot / pair[0].spot,
        })
        .collect();
    changes.sort_by(|a, b| a.hour.total_cmp(&b.hour).then(a.ratio.total_cmp(&b.ratio)));
    changes
}
