//! What `hyperion-bench` measures on a whole fleet: real containers, real agents.

pub mod agent;
pub mod site;
pub mod spot;
pub mod start;

use std::time::Duration;

use serde_json::{Map, Value};

/// Figures by name (with the unit in the name), and the conditions they were taken under.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// Name to number; null where it could not be measured.
    pub figures: Map<String, Value>,
    /// In words.
    pub conditions: Map<String, Value>,
}

impl Measured {
    pub(crate) fn figure(&mut self, name: &str, value: f64) {
        self.figures.insert(name.to_owned(), Value::from(value));
    }

    pub(crate) fn condition(&mut self, name: &str, value: impl Into<Value>) {
        self.conditions.insert(name.to_owned(), value.into());
    }
}

/// The value below which `share` of the sorted values lie (nearest rank).
fn percentile(sorted: &[Duration], share: f64) -> Option<Duration> {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank among at most some thousands"
    )]
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Debug or release, by the folder that the programs are in.
pub(crate) fn build_profile() -> String {
    let dir = crate::needs::programs();
    let name = dir.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let sorted: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(percentile(&sorted, 0.5), Some(Duration::from_millis(50)));
        assert_eq!(percentile(&sorted, 0.99), Some(Duration::from_millis(99)));
        assert_eq!(
            percentile(&sorted[..1], 0.99),
            Some(Duration::from_millis(1))
        );
        assert_eq!(percentile(&[], 0.5), None);
    }
}
