//! Where things are on the screen: a function of the state, for drawing and for the mouse alike.

use ratatui::layout::Rect;

use super::state::{State, Subject, Tab};

/// Least columns and rows.
pub const LEAST: (u16, u16) = (40, 10);
/// From this width on, detail views and the overview have two halves.
pub const WIDE: u16 = 120;

/// Places of everything; what is not on the screen is empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Areas {
    /// Title line.
    pub title: Rect,
    /// Tabs.
    pub tabs: Rect,
    /// Warning about old data.
    pub notice: Rect,
    /// Between tabs and footer.
    pub body: Rect,
    /// Keys, filter.
    pub footer: Rect,
    /// Headline of a detail view.
    pub head: Rect,
    /// Counts of the overview.
    pub cards: Rect,
    /// Rollouts; nothing where there are none.
    pub rollouts: Rect,
    /// Charts.
    pub charts: Rect,
    /// Providers.
    pub providers: Rect,
    /// The table, with its heading.
    pub table: Rect,
    /// Text of a detail view, warnings of a wide overview, the message of an event.
    pub text: Rect,
}

/// Rows of the whole message of the event under the cursor, with a blank one above it.
const EVENT_ROWS: u16 = 5;

/// Takes rows from the top of `rest`.
fn take(rest: &mut Rect, rows: u16) -> Rect {
    let rows = rows.min(rest.height);
    let taken = Rect {
        height: rows,
        ..*rest
    };
    rest.y += rows;
    rest.height -= rows;
    taken
}

/// Two halves with a blank between.
fn halves(area: Rect) -> (Rect, Rect) {
    let left = area.width.saturating_sub(2) / 2;
    let right = Rect {
        x: area.x + left + 2.min(area.width),
        width: area.width.saturating_sub(left + 2),
        ..area
    };
    (
        Rect {
            width: left,
            ..area
        },
        right,
    )
}

impl Areas {
    /// For a state.
    #[must_use]
    pub fn of(state: &State) -> Self {
        let mut rest = Rect::new(0, 0, state.size.0, state.size.1);
        let mut areas = Self {
            title: take(&mut rest, 1),
            tabs: take(&mut rest, 1),
            ..Self::default()
        };
        if state.notice().is_some() {
            areas.notice = take(&mut rest, 1);
        }
        areas.footer = Rect {
            y: rest.bottom().saturating_sub(1),
            height: rest.height.min(1),
            ..rest
        };
        rest.height = rest.height.saturating_sub(1);
        areas.body = rest;
        match (state.details.last(), state.tab) {
            (Some(detail), _) => {
                let node = matches!(detail.subject, Subject::Node(_));
                areas.detail(rest, node, detail.table.len());
            }
            (None, Tab::Overview) => {
                let rollouts = state.fleet.rollouts.len();
                areas.overview(rest, state.summary.providers.len(), rollouts);
            }
            (None, Tab::Events) => {
                let text = EVENT_ROWS.min(rest.height / 3);
                let table = rest.height - text;
                areas.table = take(&mut rest, table);
                areas.text = rest;
            }
            (None, _) => areas.table = rest,
        }
        areas
    }

    fn detail(&mut self, mut rest: Rect, node: bool, rows: usize) {
        self.head = take(&mut rest, 2);
        let rows = u16::try_from(rows).unwrap_or(u16::MAX).saturating_add(1);
        if rest.width >= WIDE {
            take(&mut rest, 1);
            let (mut left, right) = halves(rest);
            self.text = right;
            if node {
                self.charts = take(&mut left, 7);
                take(&mut left, 1);
            }
            self.table = left;
            return;
        }
        if node {
            let rows = if rest.height >= 16 { 4 } else { 2 };
            self.charts = take(&mut rest, rows);
        }
        take(&mut rest, 1);
        let most = (rest.height / 2).max(3);
        self.table = take(&mut rest, rows.clamp(2, most));
        take(&mut rest, 1);
        self.text = rest;
    }

    fn overview(&mut self, mut rest: Rect, providers: usize, rollouts: usize) {
        let providers = u16::try_from(providers).unwrap_or(0).clamp(1, 6) + 1;
        // With a heading.
        let rollouts = match u16::try_from(rollouts).unwrap_or(u16::MAX).min(3) {
            0 => 0,
            rows => rows + 1,
        };
        if rest.width >= WIDE {
            let (mut left, right) = halves(rest);
            self.table = right;
            self.cards = take(&mut left, 5);
            take(&mut left, 1);
            if rollouts > 0 {
                self.rollouts = take(&mut left, rollouts);
                take(&mut left, 1);
            }
            let rows = if rest.height >= 30 { 8 } else { 4 };
            self.charts = take(&mut left, rows);
            take(&mut left, 1);
            self.providers = take(&mut left, providers);
            take(&mut left, 1);
            self.text = left;
            return;
        }
        self.cards = take(&mut rest, 5);
        if rest.height >= rollouts + 6 {
            self.rollouts = take(&mut rest, rollouts);
        }
        if rest.height >= 12 {
            self.charts = take(&mut rest, 3);
        }
        if rest.height >= providers + 5 {
            take(&mut rest, 1);
            self.providers = take(&mut rest, providers);
        }
        if rest.height >= 5 {
            take(&mut rest, 1);
        }
        self.table = rest;
    }

    /// The terminal is too small for anything but saying so.
    #[must_use]
    pub fn too_small(size: (u16, u16)) -> bool {
        size.0 < LEAST.0 || size.1 < LEAST.1
    }
}

/// Columns that a tab takes on the tab line: from, to.
#[must_use]
pub fn tab_spans() -> [(u16, u16); 5] {
    let mut x = 1;
    Tab::ALL.map(|tab| {
        let from = x;
        // " 1 Overview "
        x += tab.title().len() as u16 + 4;
        (from, x)
    })
}
