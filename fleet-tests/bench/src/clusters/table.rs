//! Where workloads went, and why: by goal and place.

use std::collections::BTreeMap;
use std::fmt;

use hyperion_api::placement::HyperionPlacement;
use hyperion_api::workload::{CapacityType, Tier};
use serde_json::Value;

use super::{place_of, text};

/// The table.
#[derive(Debug, Clone, Default)]
pub(super) struct Table {
    /// Workloads by cluster, or `edge`; `nowhere` for those without a place.
    pub by_place: BTreeMap<String, usize>,
    rows: BTreeMap<(String, String), Row>,
}

#[derive(Debug, Clone, Default)]
struct Row {
    count: usize,
    spot: usize,
    cost: f64,
    /// Sum of p99 and of how many that is.
    p99: (f64, usize),
    /// How often each term was the one that spoke most for the place.
    terms: BTreeMap<String, usize>,
    /// How often each scorer decided.
    scorers: BTreeMap<String, usize>,
}

/// The table of these objects.
pub(super) fn of(workloads: &[Value], placements: &[HyperionPlacement]) -> Table {
    let goals: BTreeMap<&str, &str> = workloads
        .iter()
        .map(|w| (text(w, "/metadata/name"), text(w, "/spec/policy/goal")))
        .collect();
    let mut table = Table::default();
    let mut placed: BTreeMap<&str, usize> = BTreeMap::new();
    for placement in placements {
        let spec = &placement.spec;
        *placed.entry(&spec.workload).or_default() += 1;
        let place = place_of(&spec.node, spec.tier == Tier::Edge).to_owned();
        *table.by_place.entry(place.clone()).or_default() += 1;
        let goal = goals.get(&*spec.workload).copied().unwrap_or_default();
        let row = table.rows.entry((goal.to_owned(), place)).or_default();
        row.count += 1;
        row.spot += usize::from(spec.capacity_type == CapacityType::Spot);
        row.cost += spec.hourly_cost;
        if let Some(p99) = spec.p99_latency_ms {
            row.p99 = (row.p99.0 + p99, row.p99.1 + 1);
        }
        let terms = spec.explanation.terms.iter();
        // The bias is the same everywhere.
        let most = terms
            .filter(|term| term.name != "base")
            .max_by(|a, b| a.value.total_cmp(&b.value));
        if let Some(most) = most {
            *row.terms.entry(most.name.clone()).or_default() += 1;
        }
        *row.scorers
            .entry(spec.explanation.scorer.clone())
            .or_default() += 1;
    }
    let nowhere = goals
        .keys()
        .filter(|name| !placed.contains_key(*name))
        .count();
    if nowhere > 0 {
        table.by_place.insert("nowhere".to_owned(), nowhere);
    }
    table
}

impl Table {
    /// Each line of it.
    pub(super) fn lines(&self) -> Vec<String> {
        self.to_string().lines().map(str::to_owned).collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:8} {:6} {:>9} {:>5} {:>12} {:>8}  {:32} decided by",
            "goal",
            "where",
            "workloads",
            "spot",
            "USD/h (mean)",
            "p99 ms",
            "what spoke most for it"
        )?;
        for ((goal, place), row) in &self.rows {
            let mean = |sum: f64, of: usize| if of == 0 { f64::NAN } else { sum / of as f64 };
            writeln!(
                f,
                "{goal:8} {place:6} {:>9} {:>5} {:>12.4} {:>8.1}  {:32} {}",
                row.count,
                row.spot,
                mean(row.cost, row.count),
                mean(row.p99.0, row.p99.1),
                counts(&row.terms),
                counts(&row.scorers),
            )?;
        }
        Ok(())
    }
}

/// The most frequent first.
fn counts(of: &BTreeMap<String, usize>) -> String {
    let mut all: Vec<(&String, &usize)> = of.iter().collect();
    all.sort_by(|a, b| b.1.cmp(a.1));
    let words: Vec<String> = all
        .iter()
        .take(3)
        .map(|(name, n)| format!("{name} {n}"))
        .collect();
    words.join(", ")
}
