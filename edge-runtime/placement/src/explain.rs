//! Why a decision came out as it did, in words.

use std::collections::BTreeMap;

use crate::filter::Constraint;

/// The candidates' count, the rejected ones by reason, and the winner's score by term.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Explanation {
    /// Scorer's name.
    pub scorer: String,
    /// Nodes and offers that passed the filter.
    pub candidates: usize,
    /// Those that did not, each under the first constraint that ruled it out.
    pub rejected: BTreeMap<Constraint, usize>,
    /// Winner's score, term by term.
    pub terms: Vec<(String, f64)>,
    /// Best other candidate.
    pub runner_up: Option<(String, f64)>,
}

impl Explanation {
    /// One line, for example `0 of 6 nodes fit: 4 ruled out by clouds, 2 by nvidia.com/gpu`.
    #[must_use]
    pub fn summary(&self) -> String {
        let all = self.candidates + self.rejected.values().sum::<usize>();
        if all == 0 {
            return "the fleet has no nodes yet".to_owned();
        }
        let mut rows: Vec<(&Constraint, &usize)> = self.rejected.iter().collect();
        rows.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
        let parts: Vec<String> = rows
            .iter()
            .enumerate()
            .map(|(i, (c, n))| {
                if i == 0 {
                    format!("{n} ruled out by {c}")
                } else {
                    format!("{n} by {c}")
                }
            })
            .collect();
        let head = format!("{} of {all} nodes fit", self.candidates);
        if parts.is_empty() {
            head
        } else {
            format!("{head}: {}", parts.join(", "))
        }
    }
}
