//! Workloads as people see them.

use std::cmp::Ordering;

use hyperion_api::workload::{HyperionWorkload, WorkloadPhase};
use serde::{Deserialize, Serialize};

use super::column::{Cell, Column, Context, Mark, Row, float_order};
use super::{Condition, millis_of, word};
use crate::text::{self, Tone, clean_in_place};

/// A workload.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Workload {
    /// `namespace/name`.
    pub key: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Service or job.
    pub kind: String,
    /// Goal.
    pub goal: String,
    /// Phase.
    pub phase: WorkloadPhase,
    /// Replicas wanted.
    pub desired: i32,
    /// Replicas ready.
    pub ready: i32,
    /// Nodes, comma-separated.
    pub nodes: String,
    /// US dollars per hour.
    pub hourly_cost: Option<f64>,
    /// Milliseconds.
    pub p99_ms: Option<f64>,
    /// Images of its containers.
    pub images: Vec<String>,
    /// Hard and soft constraints, one phrase each.
    pub constraints: Vec<String>,
    /// Conditions.
    pub conditions: Vec<Condition>,
    /// Rejected by constraint, for replicas without a place.
    pub rejected: Vec<(String, i32)>,
    /// When it was made.
    pub created_ms: Option<i64>,
    #[serde(skip)]
    pub(crate) haystack: String,
}

impl From<&HyperionWorkload> for Workload {
    fn from(object: &HyperionWorkload) -> Self {
        let status = object.status.clone().unwrap_or_default();
        let namespace = object.metadata.namespace.clone().unwrap_or_default();
        let name = object.metadata.name.clone().unwrap_or_default();
        let containers = object.spec.template.spec.iter().flat_map(|s| &s.containers);
        Self {
            key: format!("{namespace}/{name}"),
            namespace,
            name,
            kind: word(&object.spec.type_),
            goal: word(&object.spec.policy.goal),
            phase: status.phase,
            desired: object.spec.replicas,
            ready: status.ready_replicas,
            nodes: status.nodes,
            hourly_cost: status.hourly_cost,
            p99_ms: status.p99_latency_ms,
            images: containers.filter_map(|c| c.image.clone()).collect(),
            constraints: constraints(object),
            conditions: status.conditions.iter().map(Condition::from).collect(),
            rejected: status
                .rejected
                .into_iter()
                .map(|r| (r.constraint, r.count))
                .collect(),
            created_ms: object.metadata.creation_timestamp.as_ref().map(millis_of),
            haystack: String::new(),
        }
    }
}

fn constraints(object: &HyperionWorkload) -> Vec<String> {
    fn words<T: Serialize>(name: &str, values: &[T]) -> Option<String> {
        let list: Vec<_> = values.iter().map(word).collect();
        (!list.is_empty()).then(|| format!("{name} {}", list.join(", ")))
    }
    let policy = &object.spec.policy;
    let hard = &policy.constraints;
    [
        words("geographies", &hard.geographies),
        words("clouds", &hard.clouds),
        words("tiers", &hard.tiers),
        hard.prefer_spot.then(|| "prefers spot".to_owned()),
        policy
            .max_hourly_cost
            .map(|c| format!("at most {}/h", text::dollars(c))),
        policy
            .latency_target_ms
            .map(|t| format!("p99 target {}", text::millis(t))),
        policy.exclusive.then(|| "exclusive".to_owned()),
        policy
            .data
            .as_ref()
            .and_then(|d| d.locality.as_ref())
            .map(|l| format!("data near {l}")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The cell of a workload's phase.
#[must_use]
pub fn phase_cell(phase: WorkloadPhase) -> Cell {
    let (mark, tone) = match phase {
        WorkloadPhase::Running => (Mark::Good, Tone::Good),
        WorkloadPhase::Succeeded => (Mark::Good, Tone::Dim),
        WorkloadPhase::Pending => (Mark::Unknown, Tone::Warn),
        WorkloadPhase::Degraded => (Mark::Half, Tone::Warn),
        WorkloadPhase::Failed => (Mark::Bad, Tone::Bad),
    };
    Cell::marked(mark, format!("{phase:?}"), tone)
}

impl Workload {
    /// Cleans every string and prepares the filter's text.
    pub fn prepare(&mut self) {
        for text in [
            &mut self.key,
            &mut self.namespace,
            &mut self.name,
            &mut self.kind,
            &mut self.goal,
            &mut self.nodes,
        ] {
            clean_in_place(text);
        }
        self.images.iter_mut().for_each(clean_in_place);
        self.constraints.iter_mut().for_each(clean_in_place);
        self.rejected
            .iter_mut()
            .for_each(|(name, _)| clean_in_place(name));
        self.conditions.iter_mut().for_each(Condition::prepare);
        self.haystack = format!(
            "{} {} {} {:?} {} {} {}",
            self.key,
            self.kind,
            self.goal,
            self.phase,
            self.nodes,
            self.images.join(" "),
            self.constraints.join(" ")
        )
        .to_lowercase();
    }

    /// How urgent it is to look at: failed first.
    fn urgency(&self) -> u8 {
        match self.phase {
            WorkloadPhase::Failed => 0,
            WorkloadPhase::Degraded => 1,
            WorkloadPhase::Pending => 2,
            WorkloadPhase::Running => 3,
            WorkloadPhase::Succeeded => 4,
        }
    }
}

impl Row for Workload {
    const COLUMNS: &'static [Column] = &[
        Column::text("WORKLOAD", 'n', 18, 36, 0),
        Column::text("NAMESPACE", 'e', 10, 16, 5),
        Column::text("TYPE", 'y', 7, 7, 4),
        Column::text("GOAL", 'o', 7, 7, 2),
        Column::text("PHASE", 't', 11, 11, 0),
        Column::number("READY", 'a', 6, 7, 0),
        Column::text("NODES", 'w', 12, 48, 6),
        Column::number("P99", 'l', 7, 7, 3),
        Column::number("$/h", 'd', 8, 10, 1),
        Column::number("AGE", 'u', 5, 6, 2),
    ];
    const FIRST_SORT: (usize, bool) = (0, false);

    fn id(&self) -> &str {
        &self.key
    }

    fn haystack(&self) -> &str {
        &self.haystack
    }

    fn cell(&self, column: usize, context: Context) -> Cell {
        match column {
            0 => Cell::toned(&*self.name, Tone::Strong),
            1 => Cell::plain(&*self.namespace),
            2 => Cell::plain(&*self.kind),
            3 => Cell::plain(&*self.goal),
            4 => phase_cell(self.phase),
            5 => Cell::toned(
                format!("{}/{}", self.ready, self.desired),
                if self.ready < self.desired {
                    Tone::Warn
                } else {
                    Tone::Plain
                },
            ),
            6 if self.nodes.is_empty() => Cell::unknown(),
            6 => Cell::plain(&*self.nodes),
            7 => self
                .p99_ms
                .map_or_else(Cell::unknown, |ms| Cell::plain(text::millis(ms))),
            8 => self
                .hourly_cost
                .map_or_else(Cell::unknown, |c| Cell::plain(text::dollars(c))),
            _ => context.age(self.created_ms),
        }
    }

    fn order(&self, other: &Self, column: usize) -> Ordering {
        let float = |a: Option<f64>, b: Option<f64>| {
            float_order(a.unwrap_or(f64::NAN), b.unwrap_or(f64::NAN))
        };
        match column {
            0 => self.name.cmp(&other.name),
            1 => self.namespace.cmp(&other.namespace),
            2 => self.kind.cmp(&other.kind),
            3 => self.goal.cmp(&other.goal),
            4 => self.urgency().cmp(&other.urgency()),
            5 => (self.ready - self.desired).cmp(&(other.ready - other.desired)),
            6 => self.nodes.cmp(&other.nodes),
            7 => float(self.p99_ms, other.p99_ms),
            8 => float(self.hourly_cost, other.hourly_cost),
            _ => other.created_ms.cmp(&self.created_ms),
        }
    }
}
