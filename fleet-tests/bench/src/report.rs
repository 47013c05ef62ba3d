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

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{} ({}, seed {})", self.bench, self.version, self.seed)?;
        for (name, value) in &self.conditions {
            writeln!(f, "  {name}: {value}")?;
        }
        for (name, value) in &self.figures {
            match value {
                Some(value) => writeln!(f, "  {name:32} {value:>14.3}")?,
                None => writeln!(f, "  {name:32} {:>14}", "not measured")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_one_flat_object() {
        let mut report = Report::new("link", 1);
        report.condition("agents", 10);
        report.figure("sent", 5.0);
        report.figure("lost", None);
        let value = serde_json::to_value(&report).unwrap();
        assert_eq!(value["figures"]["sent"], 5.0);
        assert!(value["figures"]["lost"].is_null());
        assert_eq!(value["bench"], "link");
        assert!(!value["version"].as_str().unwrap().is_empty());
    }
}
