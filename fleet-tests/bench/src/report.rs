//! What a measuring command prints.

use std::collections::BTreeMap;

use serde::Serialize;

/// One measurement: conditions in words, figures as numbers (none where one could not be taken,
/// with the reason in the conditions).
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Which bench.
    pub bench: String,
    /// `git describe` of the build, or the crate's version.
    pub version: String,
    /// Seed of everything random that matters to the result.
    pub seed: u64,
    /// Under what conditions.
    pub conditions: serde_json::Map<String, serde_json::Value>,
    /// Name with unit, to number.
    pub figures: BTreeMap<String, Option<f64>>,
}

impl Report {
    /// An empty report.
    #[must_use]
    pub fn new(bench: &str, seed: u64) -> Self {
        Self {
            bench: bench.to_owned(),
            version: option_env!("HYPERION_VERSION")
                .unwrap_or(env!("CARGO_PKG_VERSION"))
                .to_owned(),
            seed,
            ..Self::default()
        }
    }

    /// Notes a condition.
    pub fn condition(&mut self, name: &str, value: impl Into<serde_json::Value>) {
        self.conditions.insert(name.to_owned(), value.into());
    }

    /// Notes a figure.
    pub fn figure(&mut self, name: &str, value: impl Into<Option<f64>>) {
        self.figures.insert(name.to_owned(), value.into());
    }
}
