//! `cost`: what workloads have cost, and what they would have elsewhere, from what the API holds: the
//! price at which each replica was placed stays with its placement, and with the workload when that is
//! over. Workloads that were deleted are not in it.

use std::collections::{BTreeMap, BTreeSet};

use hyperion_api::cost::Spent;
use hyperion_api::placement::{HyperionPlacement, PlacementPhase};
use hyperion_api::workload::HyperionWorkload;
use jiff::Timestamp;
use kube::ResourceExt;
use kube::api::ListParams;
use serde::Serialize;
use serde_json::json;

use super::OutputArgs;
use super::lists::{ListArgs, list_all, scoped};
use super::output::Out;
use super::table;
use crate::connect::Connection;
use crate::error::CliError;
use crate::fleet::column::{Cell, Column};

/// Flags.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// All namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// US dollars by day (UTC), of the last 14 days
    #[arg(long)]
    pub daily: bool,
    /// Output.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// A workload's.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Cost {
    #[serde(flatten)]
    spent: Spent,
    /// Of what runs now, US dollars.
    usd_per_hour: f64,
    /// Replicas that do not say since when they cost something: an older control plane placed them.
    uncounted_replicas: u32,
}

impl Cost {
    fn count(&mut self, placement: &HyperionPlacement, now: Timestamp) {
        let status = placement.status.clone().unwrap_or_default();
        self.spent.count(&placement.spec, &status, now);
        self.uncounted_replicas += u32::from(placement.spec.launch.is_none());
        let ended = matches!(
            status.phase,
            PlacementPhase::Succeeded | PlacementPhase::Failed
        );
        if !ended {
            self.usd_per_hour += placement.spec.hourly_cost;
        }
    }

    fn add(&mut self, other: &Self) {
        self.spent.add(&other.spent);
        self.usd_per_hour += other.usd_per_hour;
        self.uncounted_replicas += other.uncounted_replicas;
    }
}

type Costs = BTreeMap<(String, String), Cost>;

fn sum(workloads: &[HyperionWorkload], placements: &[HyperionPlacement], now: Timestamp) -> Costs {
    let mut costs = Costs::new();
    for workload in workloads {
        let key = (
            workload.namespace().unwrap_or_default(),
            workload.name_any(),
        );
        let over = workload.status.as_ref().and_then(|s| s.spent.clone());
        costs.entry(key).or_default().spent = over.unwrap_or_default();
    }
    for placement in placements {
        let key = (
            placement.namespace().unwrap_or_default(),
            placement.spec.workload.clone(),
        );
        costs.entry(key).or_default().count(placement, now);
    }
    costs
}

/// Runs it.
///
/// # Errors
/// Workloads or placements cannot be listed.
pub async fn run(connection: &Connection, args: &Args, out: &Out) -> Result<(), CliError> {
    let scope = ListArgs {
        all_namespaces: args.all_namespaces,
        output: OutputArgs::default(),
    };
    let workloads = scoped::<HyperionWorkload>(connection, &scope);
    let workloads = list_all(&workloads, ListParams::default(), "list workloads").await?;
    let placements = scoped::<HyperionPlacement>(connection, &scope);
    let placements = list_all(&placements, ListParams::default(), "list placements").await?;
    let costs = sum(&workloads, &placements, Timestamp::now());
    if let Some(format) = args.output.output {
        let items: Vec<_> = costs
            .iter()
            .map(|((namespace, workload), cost)| {
                json!({ "namespace": namespace, "workload": workload, "cost": cost })
            })
            .collect();
        return out.value(format, &items);
    }
    if costs.is_empty() && out.width.is_some() {
        return out.line("no workloads");
    }
    let mut all = Cost::default();
    costs.values().for_each(|cost| all.add(cost));
    let mut rows: Vec<(String, &Cost)> = costs
        .iter()
        .map(|((namespace, workload), cost)| {
            let name = if args.all_namespaces {
                format!("{namespace}/{workload}")
            } else {
                workload.clone()
            };
            (name, cost)
        })
        .collect();
    rows.push(("(all)".to_owned(), &all));
    let text = if args.daily {
        daily(&rows, out)
    } else {
        totals(&rows, out)
    };
    out.write(text.as_bytes())?;
    notes(&all, out)
}

/// Hours and sums.
const TOTALS: [Column; 8] = [
    Column::text("WORKLOAD", 'w', 10, 60, 0),
    Column::number("HOURS", 'h', 6, 12, 3),
    Column::number("USD", 'u', 6, 14, 0),
    Column::number("USD/H", 'r', 6, 12, 1),
    Column::number("ON-DEMAND", 'o', 8, 14, 4),
    Column::number("US-EAST-1", 'b', 8, 14, 5),
    Column::number("SAVED-SPOT", 's', 8, 14, 2),
    Column::number("SAVED-PLACE", 'p', 8, 14, 2),
];

fn totals(rows: &[(String, &Cost)], out: &Out) -> String {
    let cells = rows.iter().map(|(name, cost)| {
        let spent = &cost.spent;
        let mut cells = vec![Cell::plain(name.clone())];
        let numbers = [
            (spent.hours, 1),
            (spent.usd, 2),
            (cost.usd_per_hour, 4),
            (spent.on_demand_usd, 2),
            (spent.baseline_usd, 2),
            (spent.on_demand_usd - spent.usd, 2),
            (spent.baseline_usd - spent.on_demand_usd, 2),
        ];
        cells.extend(numbers.map(|(n, digits)| number(n, digits)));
        cells
    });
    table::render_cells(&TOTALS, cells.collect(), out)
}

/// US dollars of a day.
const DAILY: [Column; 3] = [
    Column::text("DAY", 'd', 10, 10, 0),
    Column::text("WORKLOAD", 'w', 10, 60, 0),
    Column::number("USD", 'u', 6, 14, 0),
];

fn daily(rows: &[(String, &Cost)], out: &Out) -> String {
    let days: BTreeSet<&String> = rows.iter().flat_map(|(_, c)| c.spent.days.keys()).collect();
    let mut cells = Vec::new();
    for day in days.into_iter().rev() {
        for (name, cost) in rows {
            if let Some(usd) = cost.spent.days.get(day) {
                cells.push(vec![
                    Cell::plain(day.clone()),
                    Cell::plain(name.clone()),
                    number(*usd, 2),
                ]);
            }
        }
    }
    table::render_cells(&DAILY, cells, out)
}

fn number(value: f64, digits: usize) -> Cell {
    // No "-0.00".
    let value = if value.abs() < 0.5 * 10_f64.powi(-i32::try_from(digits).unwrap_or(0)) {
        0.0
    } else {
        value
    };
    Cell::plain(format!("{value:.digits$}"))
}

/// What the sums leave out, where they do.
fn notes(all: &Cost, out: &Out) -> Result<(), CliError> {
    if out.width.is_none() {
        return Ok(());
    }
    if all.spent.unknown_hours > 0.0 {
        out.line(&format!(
            "{:.1} hours have no known price and are in no sum",
            all.spent.unknown_hours
        ))?;
    }
    if all.uncounted_replicas > 0 {
        out.line(&format!(
            "{} replicas were placed by a control plane that did not write down when",
            all.uncounted_replicas
        ))?;
    }
    Ok(())
}
