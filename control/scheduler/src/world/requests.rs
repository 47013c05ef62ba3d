//! What is asked for: burstiness of a request trace, runtimes of jobs: `requests/*.csv.gz`.

use std::path::Path;

use jiff::civil::DateTime;

use super::DataError;
use super::table::Table;

/// File of request arrivals.
pub const ARRIVALS: &str = "requests/AzureLLMInferenceTrace_code.csv.gz";
/// File of job runtimes.
pub const RUNTIMES: &str = "requests/philly_runtime.csv.gz";

/// Requests of each minute over the mean of all minutes; none where the file is missing.
pub(super) fn load_bursts(dir: &Path) -> Result<Option<Vec<f64>>, DataError> {
    let Some(table) = Table::open(&dir.join(ARRIVALS), &["TIMESTAMP"])? else {
        return Ok(None);
    };
    let mut counts: Vec<f64> = Vec::new();
    let mut first: Option<(DateTime, DateTime)> = None;
    for row in table.rows() {
        let text = row.word(0)?;
        let at: DateTime = text.parse().map_err(|_| {
            row.wrong(
                0,
                format!("{text:?} is no time; expected 2023-11-16 18:17:03.97"),
            )
        })?;
        let (start, last) = first.unwrap_or((at, at));
        if at < last {
            return Err(row.wrong(0, format!("{text} is before the time of the row above")));
        }
        first = Some((start, at));
        let minute = (at.duration_since(start).as_secs() / 60) as usize;
        // A trace of more than a year has a wrong date in it.
        if minute > 366 * 24 * 60 {
            return Err(row.wrong(0, format!("{text} is more than a year after the first row")));
        }
        if minute >= counts.len() {
            counts.resize(minute + 1, 0.0);
        }
        counts[minute] += 1.0;
    }
    if counts.is_empty() {
        return Ok(None);
    }
    let mean = counts.iter().sum::<f64>() / counts.len() as f64;
    Ok(Some(counts.into_iter().map(|n| n / mean).collect()))
}

/// Runtimes, hours, shortest first; none where the file is missing.
pub(super) fn load_runtimes(dir: &Path) -> Result<Option<Vec<f64>>, DataError> {
    let Some(table) = Table::open(&dir.join(RUNTIMES), &["runtime"])? else {
        return Ok(None);
    };
    let mut hours = Vec::new();
    for row in table.rows() {
        hours.push(row.number(0)? / 3600.0);
    }
    hours.sort_by(f64::total_cmp);
    Ok((!hours.is_empty()).then_some(hours))
}
