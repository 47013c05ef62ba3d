//! A file of prices: what a contract says, or what stands in for feeds that can't be asked.
//!
//! CSV with a head line. Columns `provider`, `region`, `instance_type`, `capacity_type`
//! (`on-demand` or `spot`) and `price_per_hour` must be there; `zone` and `currency` may.

use std::io::Read;
use std::path::{Path, PathBuf};

use hyperion_placement::model::{CapacityType, Provider};
use jiff::Timestamp;

use super::{Failure, Fetched, Key, Left, Offer, Reason};

/// Bytes of a file. All types in all regions are a tenth of this.
const MOST_BYTES: u64 = 16 << 20;

/// Columns that must be there.
const NEEDED: [&str; 5] = [
    "provider",
    "region",
    "instance_type",
    "capacity_type",
    "price_per_hour",
];

/// The feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    path: PathBuf,
}

impl File {
    /// Of this file.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Reads the file. Blocks.
    #[must_use]
    pub fn fetch(&self, now: Timestamp) -> Fetched {
        let mut fetched = Fetched::default();
        let what = format!("price file {}", self.path.display());
        match read(&self.path) {
            Ok(text) => rows(&text, &what, now, &mut fetched),
            Err(e) => {
                let failure = Failure::new(Reason::File, what, e);
                fetched.failures.push(failure);
            }
        }
        fetched
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    file.take(MOST_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MOST_BYTES {
        return Err(std::io::Error::other(format!(
            "more than {MOST_BYTES} bytes"
        )));
    }
    Ok(text)
}

fn rows(text: &str, what: &str, now: Timestamp, fetched: &mut Fetched) {
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .comment(Some(b'#'))
        .flexible(true)
        .from_reader(text.as_bytes());
    let headers = match reader.headers() {
        Ok(headers) => headers.clone(),
        Err(e) => return fetched.failures.push(Failure::new(Reason::File, what, e)),
    };
    let missing = NEEDED.iter().find(|c| !headers.iter().any(|h| h == **c));
    if let Some(column) = missing {
        let text = format!("no column {column} in the first line");
        return fetched
            .failures
            .push(Failure::new(Reason::File, what, text));
    }
    let mut count = 0_u64;
    for record in reader.records() {
        count += 1;
        let record = match record {
            Ok(record) => record,
            Err(e) => {
                fetched.leave(Left::Malformed, || e.to_string());
                continue;
            }
        };
        let line = record.position().map_or(0, csv::Position::line);
        // Rows may be shorter than the first line: what may be missing stands last.
        let field = |name: &str| {
            let at = headers.iter().position(|h| h == name);
            at.and_then(|at| record.get(at)).unwrap_or_default()
        };
        let offer = offer(field, now);
        fetched.add(offer, || {
            let fields: Vec<&str> = record.iter().collect();
            format!("line {line}: {}", fields.join(","))
        });
    }
    if count == 0 {
        let failure = Failure::new(Reason::Empty, what, "no prices at all");
        fetched.failures.push(failure);
    }
}

fn offer<'a>(field: impl Fn(&str) -> &'a str, now: Timestamp) -> Result<Offer, Left> {
    if NEEDED.iter().any(|name| field(name).is_empty()) {
        return Err(Left::Malformed);
    }
    let word = |name| field(name).to_owned();
    let provider: Provider = field("provider").parse().map_err(|_| Left::Malformed)?;
    let capacity_type: CapacityType = field("capacity_type")
        .parse()
        .map_err(|_| Left::Malformed)?;
    if !["", "USD"].contains(&field("currency")) {
        return Err(Left::Currency);
    }
    let price = field("price_per_hour").parse().map_err(|_| Left::Price)?;
    let key = Key {
        provider,
        instance_type: word("instance_type"),
        region: word("region"),
        zone: word("zone"),
        capacity_type,
    };
    Offer::new(key, price, now)
}
