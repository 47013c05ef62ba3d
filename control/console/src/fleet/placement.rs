//! Placements as people see them.

use std::cmp::Ordering;

use hyperion_api::placement::{Explanation, HyperionPlacement, PlacementPhase};
use serde::{Deserialize, Serialize};

use super::column::{Cell, Column, Context, Mark, Row, float_order};
use super::{millis_of, word};
use crate::text::{self, Tone, clean_in_place};

/// A placement.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Placement {
    /// `namespace/name`.
    pub key: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Name of its workload, in the same namespace.
    pub workload: String,
    /// Replica number.
    pub replica: i32,
    /// Node.
    pub node: String,
    /// Provider.
    pub provider: String,
    /// Region or site.
    pub region: String,
    /// Capacity type.
    pub capacity_type: String,
    /// Generation.
    pub generation: i64,
    /// Who decided.
    pub decided_by: String,
    /// US dollars per hour.
    pub hourly_cost: f64,
    /// Milliseconds.
    pub p99_ms: Option<f64>,
    /// Phase.
    pub phase: PlacementPhase,
    /// Readiness.
    pub ready: bool,
    /// Reason of the phase.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Restarts.
    pub restarts: i32,
    /// Since when the phase.
    pub since_ms: Option<i64>,
    /// When it was decided.
    pub created_ms: Option<i64>,
    /// Why there.
    pub explanation: Explanation,
    #[serde(skip)]
    pub(crate) haystack: String,
}

impl From<&HyperionPlacement> for Placement {
    fn from(object: &HyperionPlacement) -> Self {
        let status = object.status.clone().unwrap_or_default();
        let spec = object.spec.clone();
        let namespace = object.metadata.namespace.clone().unwrap_or_default();
        let name = object.metadata.name.clone().unwrap_or_default();
        Self {
            key: format!("{namespace}/{name}"),
            namespace,
            name,
            workload: spec.workload,
            replica: spec.replica,
            node: spec.node,
            provider: word(&spec.provider),
            region: spec.region,
            capacity_type: word(&spec.capacity_type),
            generation: spec.generation,
            decided_by: spec.decided_by,
            hourly_cost: spec.hourly_cost,
            p99_ms: spec.p99_latency_ms,
            phase: status.phase,
            ready: status.ready,
            reason: status.reason,
            message: status.message,
            restarts: status.restarts,
            since_ms: status.since.as_ref().map(millis_of),
            created_ms: object.metadata.creation_timestamp.as_ref().map(millis_of),
            explanation: spec.explanation,
            haystack: String::new(),
        }
    }
}

impl Placement {
    /// Cleans every string and prepares the filter's text.
    pub fn prepare(&mut self) {
        for text in [
            &mut self.key,
            &mut self.namespace,
            &mut self.name,
            &mut self.workload,
            &mut self.node,
            &mut self.provider,
            &mut self.region,
            &mut self.capacity_type,
            &mut self.decided_by,
            &mut self.reason,
            &mut self.message,
        ] {
            clean_in_place(text);
        }
        clean_explanation(&mut self.explanation);
        let mut hay = format!("{} {} {:?}", self.key, self.node, self.phase);
        if self.by_site() {
            hay.push(' ');
            hay.push_str(&decider(&self.decided_by));
        }
        self.haystack = hay.to_lowercase();
    }

    /// Its site decided, while it was cut off.
    #[must_use]
    pub fn by_site(&self) -> bool {
        !["", CONTROL_PLANE].contains(&&*self.decided_by)
    }

    /// `namespace/workload`.
    #[must_use]
    pub fn workload_key(&self) -> String {
        format!("{}/{}", self.namespace, self.workload)
    }

    /// Belongs to the workload with this key.
    #[must_use]
    pub fn is_of(&self, workload_key: &str) -> bool {
        workload_key
            .split_once('/')
            .is_some_and(|(ns, name)| ns == self.namespace && name == self.workload)
    }
}

fn clean_explanation(why: &mut Explanation) {
    for text in [
        &mut why.cause,
        &mut why.scorer,
        &mut why.policy,
        &mut why.fallback,
        &mut why.tried,
        &mut why.second_wins,
    ] {
        clean_in_place(text);
    }
    let rejected = why.rejected.iter_mut().map(|r| &mut r.constraint);
    let ranked = why.top.iter_mut().map(|r| &mut r.id);
    let others = [&mut why.rules_choice, &mut why.policy_choice];
    let others = others.into_iter().flatten().map(|c| &mut c.id);
    let second = why.runner_up.iter_mut().map(|r| &mut r.id);
    let texts = rejected.chain(ranked).chain(others).chain(second);
    texts.for_each(clean_in_place);
    let terms = why.top.iter_mut().flat_map(|r| &mut r.terms);
    let terms = terms.chain(&mut why.terms);
    terms.for_each(|t| clean_in_place(&mut t.name));
}

/// The control plane's name as a decider.
const CONTROL_PLANE: &str = "control-plane";

/// Who decided, for people: a node that did so for its site is named as that.
#[must_use]
pub fn decider(decided_by: &str) -> String {
    match decided_by {
        "" => String::new(),
        CONTROL_PLANE => CONTROL_PLANE.to_owned(),
        node => format!("site ({node})"),
    }
}

/// The cell of a placement's phase.
#[must_use]
pub fn phase_cell(phase: PlacementPhase, ready: bool) -> Cell {
    use PlacementPhase as P;
    let (mark, tone) = match phase {
        P::Running if ready => (Mark::Good, Tone::Good),
        P::Running | P::Starting | P::Stopping => (Mark::Half, Tone::Warn),
        P::Pending => (Mark::Unknown, Tone::Warn),
        P::Succeeded => (Mark::Good, Tone::Dim),
        P::Backoff | P::Failed => (Mark::Bad, Tone::Bad),
        P::Unknown => (Mark::Unknown, Tone::Bad),
    };
    Cell::marked(mark, format!("{phase:?}"), tone)
}

/// Columns that are the same for all placements on one node: node, provider, region.
pub const ON_ONE_NODE: &[usize] = &[2, 3, 4];
/// Columns that are the same for all placements of one workload: its name.
pub const OF_ONE_WORKLOAD: &[usize] = &[0];

impl Row for Placement {
    const COLUMNS: &'static [Column] = &[
        Column::text("WORKLOAD", 'n', 14, 36, 1),
        Column::number("REPL", 'e', 4, 5, 0),
        Column::text("NODE", 'o', 16, 36, 0),
        Column::text("PROV", 'p', 5, 6, 5),
        Column::text("REGION", 'i', 10, 15, 6),
        Column::text("PHASE", 't', 11, 11, 0),
        Column::number("RESTARTS", 'a', 8, 8, 4),
        Column::number("GEN", 'w', 4, 5, 3),
        Column::number("P99", 'l', 7, 7, 7),
        Column::number("$/h", 'd', 7, 9, 2),
        Column::text("DECIDED-BY", 'b', 13, 24, 8),
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
            0 => Cell::toned(&*self.workload, Tone::Strong),
            1 => Cell::plain(self.replica.to_string()),
            2 => Cell::plain(&*self.node),
            3 => Cell::plain(&*self.provider),
            4 => Cell::plain(&*self.region),
            5 => phase_cell(self.phase, self.ready),
            6 if self.restarts == 0 => Cell::toned("0", Tone::Dim),
            6 => Cell::toned(self.restarts.to_string(), Tone::Warn),
            7 => Cell::plain(self.generation.to_string()),
            8 => self
                .p99_ms
                .map_or_else(Cell::unknown, |ms| Cell::plain(text::millis(ms))),
            9 if self.hourly_cost == 0.0 => Cell::toned("owned", Tone::Dim),
            9 => Cell::plain(text::dollars(self.hourly_cost)),
            // Only the node's name: a blank would end the field for scripts.
            10 if self.by_site() => Cell::toned(&*self.decided_by, Tone::Accent),
            10 => Cell::toned(&*self.decided_by, Tone::Dim),
            _ => context.age(self.created_ms),
        }
    }

    fn order(&self, other: &Self, column: usize) -> Ordering {
        match column {
            0 => (&self.workload, self.replica).cmp(&(&other.workload, other.replica)),
            1 => self.replica.cmp(&other.replica),
            2 => self.node.cmp(&other.node),
            3 => self.provider.cmp(&other.provider),
            4 => self.region.cmp(&other.region),
            5 => format!("{:?}", self.phase).cmp(&format!("{:?}", other.phase)),
            6 => self.restarts.cmp(&other.restarts),
            7 => self.generation.cmp(&other.generation),
            8 => float_order(
                self.p99_ms.unwrap_or(f64::NAN),
                other.p99_ms.unwrap_or(f64::NAN),
            ),
            9 => float_order(self.hourly_cost, other.hourly_cost),
            10 => self.decided_by.cmp(&other.decided_by),
            _ => other.created_ms.cmp(&self.created_ms),
        }
    }
}
