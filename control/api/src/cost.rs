//! What replicas cost: the price at which each was placed, counted up. A catalogue that changes later
//! changes nothing of what was.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::placement::{HyperionPlacementSpec, HyperionPlacementStatus, PlacementPhase};
use crate::workload::Provider;

/// Days that are kept one by one.
const DAYS: usize = 14;

/// What was known of prices when a replica was placed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Launch {
    /// When it was placed: its cost counts from then.
    pub at: Time,
    /// US dollars per hour of the same share of the same machine, on demand; none where not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_demand: Option<f64>,
    /// US dollars per hour of the replica on demand in AWS us-east-1, on the machine of its type
    /// there or the cheapest that it fits on; none where not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<f64>,
}

/// Hours and US dollars, of placements that are over or until now.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Spent {
    /// Hours of all replicas.
    pub hours: f64,
    /// Of these, hours whose price is not known: they are in no sum.
    #[serde(default)]
    pub unknown_hours: f64,
    /// At the prices at which replicas were placed.
    pub usd: f64,
    /// The same on demand. Where that is not known, what was paid: no saving is claimed.
    pub on_demand_usd: f64,
    /// The same on demand in AWS us-east-1. Where that is not known, as on demand.
    pub baseline_usd: f64,
    /// What was paid by day (UTC, "2026-01-31"), of the last 14 days on which something was.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub days: BTreeMap<String, f64>,
}

impl Spent {
    /// Counts a placement from its launch on until `now`, or its end where it has ended. One that
    /// does not say when it was placed counts for nothing.
    pub fn count(
        &mut self,
        spec: &HyperionPlacementSpec,
        status: &HyperionPlacementStatus,
        now: Timestamp,
    ) {
        let Some(launch) = &spec.launch else { return };
        let ended = matches!(
            status.phase,
            PlacementPhase::Succeeded | PlacementPhase::Failed
        );
        let end = status.since.as_ref().filter(|_| ended).map_or(now, |t| t.0);
        let hours = hours(launch.at.0, end);
        self.hours += hours;
        let paid = spec.hourly_cost;
        if paid <= 0.0 && spec.provider != Provider::Edge {
            self.unknown_hours += hours;
            return;
        }
        let on_demand = launch.on_demand.unwrap_or(paid);
        self.usd += hours * paid;
        self.on_demand_usd += hours * on_demand;
        self.baseline_usd += hours * launch.baseline.unwrap_or(on_demand);
        if paid > 0.0 {
            self.by_day(launch.at.0, end, paid);
        }
    }

    /// Adds what another sum has.
    pub fn add(&mut self, other: &Self) {
        self.hours += other.hours;
        self.unknown_hours += other.unknown_hours;
        self.usd += other.usd;
        self.on_demand_usd += other.on_demand_usd;
        self.baseline_usd += other.baseline_usd;
        for (day, usd) in &other.days {
            *self.days.entry(day.clone()).or_default() += usd;
        }
        self.forget();
    }

    fn by_day(&mut self, from: Timestamp, to: Timestamp, per_hour: f64) {
        let mut end = to;
        // From the last day back: of those before nothing is kept.
        for _ in 0..DAYS {
            if end <= from {
                break;
            }
            // The moment before, so that midnight belongs to the day that it ends.
            let last = Timestamp::from_nanosecond(end.as_nanosecond() - 1).unwrap_or(end);
            let date = TimeZone::UTC.to_datetime(last).date();
            let begin = midnight(date).unwrap_or(from).max(from);
            *self.days.entry(date.to_string()).or_default() += hours(begin, end) * per_hour;
            end = begin;
        }
        self.forget();
    }

    fn forget(&mut self) {
        while self.days.len() > DAYS {
            self.days.pop_first();
        }
    }
}

fn midnight(date: Date) -> Option<Timestamp> {
    TimeZone::UTC.to_timestamp(date.at(0, 0, 0, 0)).ok()
}

fn hours(from: Timestamp, to: Timestamp) -> f64 {
    (to.as_millisecond().saturating_sub(from.as_millisecond())).max(0) as f64 / 3_600_000.0
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(provider: &str, hourly: f64, launch: Value) -> HyperionPlacementSpec {
        serde_json::from_value(json!({ "workload": "w", "workloadUid": "u", "replica": 0,
            "node": "n", "provider": provider, "region": "r", "tier": "cloud",
            "capacityType": "spot", "generation": 1, "decidedBy": "control-plane",
            "templateHash": "h", "hourlyCost": hourly, "launch": launch,
            "explanation": { "scorer": "rules", "candidates": 1, "score": 1.0 } }))
        .unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn savings_by_spot_and_by_place_are_told_apart() {
        let launch = json!({ "at": "2026-01-01T22:00:00Z", "onDemand": 0.4, "baseline": 0.5 });
        let mut spent = Spent::default();
        let status = HyperionPlacementStatus::default();
        let now = at("2026-01-03T01:00:00Z");
        spent.count(&spec("aws", 0.1, launch), &status, now);
        assert!((spent.hours - 27.0).abs() < 1e-9);
        assert!((spent.usd - 2.7).abs() < 1e-9);
        assert!((spent.on_demand_usd - 10.8).abs() < 1e-9);
        assert!((spent.baseline_usd - 13.5).abs() < 1e-9);
        let days: Vec<(String, f64)> = spent
            .days
            .iter()
            .map(|(day, usd)| (day.clone(), (usd * 100.0).round() / 100.0))
            .collect();
        let want = [
            ("2026-01-01", 0.2),
            ("2026-01-02", 2.4),
            ("2026-01-03", 0.1),
        ];
        assert_eq!(days, want.map(|(d, u)| (d.to_owned(), u)));
    }

    #[test]
    fn what_is_not_known_is_no_saving_and_no_cost() {
        let began = json!({ "at": "2026-01-01T00:00:00Z" });
        let now = at("2026-01-01T10:00:00Z");
        let status = HyperionPlacementStatus::default();
        let mut spent = Spent::default();
        spent.count(&spec("gcp", 0.1, began.clone()), &status, now);
        assert!((spent.baseline_usd - spent.usd).abs() < 1e-9);
        // A machine of a cloud that costs nothing: nobody knows its price.
        spent.count(&spec("gcp", 0.0, began.clone()), &status, now);
        assert_eq!((spent.hours, spent.unknown_hours), (20.0, 10.0));
        assert!((spent.usd - 1.0).abs() < 1e-9);
        // An owned device is free.
        spent.count(&spec("edge", 0.0, began), &status, now);
        assert_eq!((spent.hours, spent.unknown_hours), (30.0, 10.0));
        // Of an older control plane.
        spent.count(&spec("aws", 0.1, Value::Null), &status, now);
        assert_eq!(spent.hours, 30.0);
    }

    #[test]
    fn what_has_ended_costs_no_more_and_days_are_bounded() {
        let launch = json!({ "at": "2026-01-01T00:00:00Z" });
        let status = HyperionPlacementStatus {
            phase: PlacementPhase::Succeeded,
            since: Some(Time(at("2026-01-01T01:00:00Z"))),
            ..HyperionPlacementStatus::default()
        };
        let mut spent = Spent::default();
        spent.count(
            &spec("aws", 1.0, launch.clone()),
            &status,
            at("2026-06-01T00:00:00Z"),
        );
        assert!((spent.usd - 1.0).abs() < 1e-9);
        let running = HyperionPlacementStatus::default();
        let mut long = Spent::default();
        long.count(
            &spec("aws", 1.0, launch),
            &running,
            at("2026-06-01T00:00:00Z"),
        );
        assert_eq!(long.days.len(), DAYS);
        assert_eq!(long.days.first_key_value().unwrap().0, "2026-05-18");
        spent.add(&long);
        assert_eq!(spent.days.len(), DAYS);
        // A clock that went back.
        let mut back = Spent::default();
        let launch = json!({ "at": "2026-01-02T00:00:00Z" });
        back.count(
            &spec("aws", 1.0, launch),
            &running,
            at("2026-01-01T00:00:00Z"),
        );
        assert_eq!(back, Spent::default());
    }
}
