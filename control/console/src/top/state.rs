//! The TUI's state. It changes in `handle` (events) and `settle` (indexes and totals,
//! before drawing), and nowhere else; drawing only reads it.

use std::collections::VecDeque;

use serde::Serialize;

use super::contact::Contact;
use super::layout::Areas;
use super::table::Table;
use crate::fleet::column::{Mark, Row};
use crate::fleet::placement;
use crate::fleet::summary::{Place, Summary};
use crate::fleet::{Fleet, Happening, Node, Placement, Store, Touched, Workload};
use crate::text::Tone;

/// Totals kept for the overview's charts, one a second.
pub const HISTORY: usize = 240;
/// Fleets up to this size are added up at every change; larger ones at most once a second.
const SMALL: usize = 500;
const SUMMARY_EVERY_MS: i64 = 1000;

/// What does not change while it runs.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Options {
    /// Colours.
    pub colour: bool,
    /// No Unicode.
    pub ascii: bool,
    /// Address of the API server.
    pub server: String,
    /// A simulation with this many nodes.
    pub simulated: Option<usize>,
}

/// Main views.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub enum Tab {
    /// Totals, sites, providers.
    #[default]
    Overview,
    /// Nodes.
    Nodes,
    /// Workloads.
    Workloads,
    /// Placements.
    Placements,
    /// Events.
    Events,
}

impl Tab {
    /// From left to right.
    pub const ALL: [Self; 5] = [
        Self::Overview,
        Self::Nodes,
        Self::Workloads,
        Self::Placements,
        Self::Events,
    ];

    /// For people.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Overview => "Overview",
            Self::Nodes => "Nodes",
            Self::Workloads => "Workloads",
            Self::Placements => "Placements",
            Self::Events => "Events",
        }
    }

    /// Position, from 0.
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }
}

/// What a detail view is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Subject {
    /// A node, by id.
    Node(String),
    /// A workload, by `namespace/name`.
    Workload(String),
}

impl Subject {
    /// The placement belongs to it.
    #[must_use]
    pub fn has(&self, placement: &Placement) -> bool {
        match self {
            Self::Node(id) => placement.node == *id,
            Self::Workload(key) => placement.is_of(key),
        }
    }

    /// The event is about it.
    #[must_use]
    pub fn concerns(&self, happening: &Happening) -> bool {
        match self {
            Self::Node(id) => happening.kind == "node" && happening.object == *id,
            Self::Workload(key) => {
                let Some((namespace, name)) = key.split_once('/') else {
                    return false;
                };
                let replica = || {
                    let rest = happening.object.strip_prefix(name)?.strip_prefix('-')?;
                    (!rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit())).then_some(())
                };
                happening.namespace == namespace
                    && match happening.kind.as_str() {
                        "workload" => happening.object == name,
                        "placement" => replica().is_some(),
                        _ => false,
                    }
            }
        }
    }
}

/// One node or one workload.
#[derive(Debug, Clone, Serialize)]
pub struct Detail {
    /// About what.
    pub subject: Subject,
    /// Its placements.
    pub table: Table,
    /// First line of the text.
    pub scroll: usize,
}

/// Tables of the main views.
#[derive(Debug, Clone, Serialize)]
pub struct Tables {
    /// Sites and regions.
    pub places: Table,
    /// Nodes.
    pub nodes: Table,
    /// Workloads.
    pub workloads: Table,
    /// Placements.
    pub placements: Table,
    /// Events.
    pub happenings: Table,
}

/// The whole fleet at one moment, for charts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Total {
    /// Mean, percent.
    pub cpu: f32,
    /// Percent.
    pub memory: f32,
    /// Bytes per second.
    pub network: f32,
}

/// Which lists arrived at least once.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Loaded {
    /// Nodes.
    pub nodes: bool,
    /// Workloads.
    pub workloads: bool,
    /// Placements.
    pub placements: bool,
}

/// All of it.
#[derive(Debug, Clone, Serialize)]
pub struct State {
    /// Options.
    pub options: Options,
    /// Columns and rows of the terminal.
    pub size: (u16, u16),
    /// Time of the last event, milliseconds since 1970.
    pub now_ms: i64,
    /// Rows.
    pub fleet: Fleet,
    /// Sites and regions, from the summary.
    pub places: Store<Place>,
    /// Main view.
    pub tab: Tab,
    /// Detail views opened on top of it.
    pub details: Vec<Detail>,
    /// Tables of the main views.
    pub tables: Tables,
    /// While a filter is typed: what it was before.
    pub typing: Option<String>,
    /// Help is shown.
    pub help: bool,
    /// Contact with the control plane.
    pub contact: Contact,
    /// What arrived.
    pub loaded: Loaded,
    /// Totals.
    pub summary: Summary,
    /// Totals over time, oldest first.
    pub history: VecDeque<Total>,
    #[serde(skip)]
    totals: Totals,
}

/// What the totals miss.
#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    stale: bool,
    live_arrived: bool,
    at_ms: Option<i64>,
}

/// Something to do with the table on screen, whatever it holds.
#[derive(Debug, Clone, Copy)]
pub enum Act {
    /// Move the cursor by lines.
    Move(isize),
    /// Put the cursor on a line.
    To(usize),
    /// Scroll by lines.
    Scroll(isize),
    /// Sort by a column.
    Sort(usize),
    /// Sort by the next (or previous) column.
    SortNext(isize),
    /// The other way round.
    Reverse,
}

impl Act {
    fn apply<T: Row>(self, table: &mut Table, store: &Store<T>, height: usize) {
        match self {
            Self::Move(lines) => table.move_by(lines, store, height),
            Self::To(line) => table.move_to(line, store, height),
            Self::Scroll(lines) => table.scroll_by(lines, store, height),
            Self::Sort(column) => table.sort_by(T::COLUMNS, column),
            Self::SortNext(step) => {
                let count = T::COLUMNS.len() as isize;
                let next = (table.sort as isize + step).rem_euclid(count);
                table.sort_by(T::COLUMNS, usize::try_from(next).unwrap_or(0));
            }
            Self::Reverse => table.sort_by(T::COLUMNS, table.sort),
        }
    }
}

impl State {
    /// What a person must know before believing the screen, or of who decides.
    #[must_use]
    pub fn notice(&self) -> Option<(Mark, Tone, String)> {
        let refused = &self.fleet.scorer.refused;
        let policy = || {
            let said = format!("The policy is refused, rules decide: {refused}");
            (!refused.is_empty()).then_some((Mark::Half, Tone::Warn, said))
        };
        self.contact.notice(self.now_ms).or_else(policy)
    }

    /// An empty fleet.
    #[must_use]
    pub fn new(options: Options, size: (u16, u16), now_ms: i64) -> Self {
        Self {
            options,
            size,
            now_ms,
            fleet: Fleet::default(),
            places: Store::default(),
            tab: Tab::default(),
            details: Vec::new(),
            tables: Tables {
                places: Table::of::<Place>(),
                nodes: Table::of::<Node>(),
                workloads: Table::of::<Workload>(),
                placements: Table::of::<Placement>(),
                happenings: Table::of::<Happening>(),
            },
            typing: None,
            help: false,
            contact: Contact::default(),
            loaded: Loaded::default(),
            summary: Summary::default(),
            history: VecDeque::new(),
            totals: Totals::default(),
        }
    }

    /// The table on screen.
    #[must_use]
    pub fn table(&self) -> &Table {
        match (self.details.last(), self.tab) {
            (Some(detail), _) => &detail.table,
            (None, Tab::Overview) => &self.tables.places,
            (None, Tab::Nodes) => &self.tables.nodes,
            (None, Tab::Workloads) => &self.tables.workloads,
            (None, Tab::Placements) => &self.tables.placements,
            (None, Tab::Events) => &self.tables.happenings,
        }
    }

    /// The table on screen, to change.
    pub fn table_mut(&mut self) -> &mut Table {
        match (self.details.last_mut(), self.tab) {
            (Some(detail), _) => &mut detail.table,
            (None, Tab::Overview) => &mut self.tables.places,
            (None, Tab::Nodes) => &mut self.tables.nodes,
            (None, Tab::Workloads) => &mut self.tables.workloads,
            (None, Tab::Placements) => &mut self.tables.placements,
            (None, Tab::Events) => &mut self.tables.happenings,
        }
    }

    /// Columns of the table on screen.
    #[must_use]
    pub fn columns(&self) -> &'static [crate::fleet::column::Column] {
        match (self.details.last(), self.tab) {
            (Some(_), _) | (None, Tab::Placements) => Placement::COLUMNS,
            (None, Tab::Overview) => Place::COLUMNS,
            (None, Tab::Nodes) => Node::COLUMNS,
            (None, Tab::Workloads) => Workload::COLUMNS,
            (None, Tab::Events) => Happening::COLUMNS,
        }
    }

    /// Columns of the table on screen that would say the same in every row.
    #[must_use]
    pub fn hidden_columns(&self) -> &'static [usize] {
        match self.details.last().map(|d| &d.subject) {
            Some(Subject::Node(_)) => placement::ON_ONE_NODE,
            Some(Subject::Workload(_)) => placement::OF_ONE_WORKLOAD,
            None => &[],
        }
    }

    /// Does something with the table on screen.
    pub fn act(&mut self, act: Act) {
        let height = self.table_height();
        let (fleet, tables) = (&self.fleet, &mut self.tables);
        match (self.details.last_mut(), self.tab) {
            (Some(detail), _) => {
                act.apply(&mut detail.table, &fleet.placements, height);
                // The text is about the row under the cursor.
                detail.scroll = 0;
            }
            (None, Tab::Overview) => act.apply(&mut tables.places, &self.places, height),
            (None, Tab::Nodes) => act.apply(&mut tables.nodes, &fleet.nodes, height),
            (None, Tab::Workloads) => act.apply(&mut tables.workloads, &fleet.workloads, height),
            (None, Tab::Placements) => {
                act.apply(&mut tables.placements, &fleet.placements, height);
            }
            (None, Tab::Events) => act.apply(&mut tables.happenings, &fleet.happenings, height),
        }
    }

    /// Lines of the table on screen, without its heading.
    #[must_use]
    pub fn table_height(&self) -> usize {
        usize::from(Areas::of(self).table.height.saturating_sub(1))
    }

    /// Notes what a change touched.
    pub fn touch(&mut self, touched: Touched) {
        if touched.nodes {
            self.tables.nodes.rows_changed();
        }
        if touched.live {
            self.tables.nodes.live_changed(Node::COLUMNS);
            self.totals.live_arrived = true;
        }
        if touched.workloads {
            self.tables.workloads.rows_changed();
        }
        if touched.placements {
            self.tables.placements.rows_changed();
            // Nodes show the number of their replicas.
            self.tables.nodes.rows_changed();
            for detail in &mut self.details {
                detail.table.rows_changed();
            }
        }
        if touched.happenings {
            self.tables.happenings.rows_changed();
        }
        self.totals.stale |=
            touched.nodes || touched.live || touched.workloads || touched.placements;
    }

    /// Brings everything that is derived up to date. Call before drawing.
    pub fn settle(&mut self) {
        self.add_up();
        self.settle_table();
        // How high the table is may depend on how many rows it has.
        self.settle_table();
    }

    fn settle_table(&mut self) {
        let height = self.table_height();
        let (fleet, tables) = (&self.fleet, &mut self.tables);
        match (self.details.last_mut(), self.tab) {
            (Some(Detail { subject, table, .. }), _) => {
                table.settle(&fleet.placements, height, |p| subject.has(p));
            }
            (None, Tab::Overview) => tables.places.settle(&self.places, height, |_| true),
            (None, Tab::Nodes) => tables.nodes.settle(&fleet.nodes, height, |_| true),
            (None, Tab::Workloads) => tables.workloads.settle(&fleet.workloads, height, |_| true),
            (None, Tab::Placements) => {
                tables
                    .placements
                    .settle(&fleet.placements, height, |_| true);
            }
            (None, Tab::Events) => {
                tables
                    .happenings
                    .settle(&fleet.happenings, height, |_| true);
            }
        }
    }

    fn add_up(&mut self) {
        let recent = self
            .totals
            .at_ms
            .is_some_and(|at| (0..SUMMARY_EVERY_MS).contains(&self.now_ms.saturating_sub(at)));
        if !self.totals.stale || (recent && self.fleet.nodes.len() > SMALL) {
            return;
        }
        self.summary = Summary::of(&self.fleet, self.now_ms);
        let mut places = Store::default();
        for place in &self.summary.places {
            places.put(place.clone());
        }
        self.places = places;
        self.tables.places.rows_changed();
        if self.totals.live_arrived {
            if self.history.len() >= HISTORY {
                self.history.pop_front();
            }
            self.history.push_back(self.total());
        }
        self.totals = Totals {
            stale: false,
            live_arrived: false,
            at_ms: Some(self.now_ms),
        };
    }

    fn total(&self) -> Total {
        let sum = &self.summary;
        Total {
            cpu: sum.all.cpu(),
            memory: if sum.memory_total > 0.0 {
                (sum.memory_used / sum.memory_total * 100.0) as f32
            } else {
                f32::NAN
            },
            network: sum.network as f32,
        }
    }
}
