//! What `hyperion-train` prints.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::stats::Mean;

/// One measurement: conditions in words, figures as numbers (none where one could not be taken,
/// with the reason in the conditions).
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// What was measured.
    pub bench: String,
    /// `git describe` of the build, or the crate's version.
    pub version: String,
    /// Seed of the first episode.
    pub seed: u64,
    /// Under what conditions.
    pub conditions: BTreeMap<String, serde_json::Value>,
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
        let value = value.into().filter(|v| v.is_finite());
        self.figures.insert(name.to_owned(), value);
    }

    /// Notes a mean, and its interval under the name with `_ci95`.
    pub fn mean(&mut self, name: &str, mean: Option<Mean>) {
        self.figure(name, mean.map(|m| m.value));
        self.figure(&format!("{name}_ci95"), mean.map(|m| m.ci95));
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} ({}, seed {})", self.bench, self.version, self.seed)?;
        for (name, value) in &self.conditions {
            writeln!(f, "  {name}: {value}")?;
        }
        for (name, value) in &self.figures {
            match value {
                Some(value) => writeln!(f, "  {name:44} {value:>14.4}")?,
                None => writeln!(f, "  {name:44} {:>14}", "not measured")?,
            }
        }
        Ok(())
    }
}

/// A Markdown table; cells are padded so that the text reads as a table too.
#[must_use]
pub fn markdown(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter()
            .filter_map(|r| r.get(column))
            .map(|c| c.chars().count())
            .chain([head[column].chars().count()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &[String]| {
        let padded: Vec<String> = cells
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(i, (cell, width))| {
                if i == 0 {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                }
            })
            .collect();
        format!("| {} |\n", padded.join(" | "))
    };
    let head: Vec<String> = head.iter().map(|h| (*h).to_owned()).collect();
    let rule: Vec<String> = widths
        .iter()
        .enumerate()
        .map(|(i, w)| {
            if i == 0 {
                "-".repeat(*w)
            } else {
                format!("{}:", "-".repeat(w.saturating_sub(1)))
            }
        })
        .collect();
    let mut text = line(&head) + &line(&rule);
    for row in rows {
        text += &line(row);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_one_flat_object_without_infinities() {
        let mut report = Report::new("eval", 1);
        report.figure("ppo_reward", f64::INFINITY);
        report.mean(
            "rules_reward",
            Some(Mean {
                value: 2.0,
                ci95: 0.5,
            }),
        );
        let value = serde_json::to_value(&report).unwrap();
        assert!(value["figures"]["ppo_reward"].is_null());
        assert_eq!(value["figures"]["rules_reward_ci95"], 0.5);
    }

    #[test]
    fn tables_line_up() {
        let text = markdown(&["name", "x"], &[vec!["a".to_owned(), "10".to_owned()]]);
        assert_eq!(text, "| name |  x |\n| ---- | -: |\n| a    | 10 |\n");
    }
}
