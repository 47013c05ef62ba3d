//! Drawing: from the state to the screen, and nothing else.

mod detail;
mod help;
mod overview;
pub mod pen;
mod table;

use hyperion_api::fleet::ScorerStatus;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};

use super::layout::{Areas, LEAST, tab_spans};
use super::state::{State, Subject, Tab};
use crate::fleet::column::Context;
use crate::text::{self, Line, Tone};
use pen::Pen;

/// Draws the whole screen. The state must be settled.
pub fn draw(state: &State, buffer: &mut Buffer) {
    let mut pen = Pen::new(buffer, state.options.colour, state.options.ascii);
    if Areas::too_small(state.size) {
        too_small(&mut pen, state.size);
        return;
    }
    let areas = Areas::of(state);
    title(&mut pen, areas.title, state);
    tabs(&mut pen, areas.tabs, state);
    notice(&mut pen, areas.notice, state);
    body(&mut pen, &areas, state);
    footer(&mut pen, areas.footer, state);
    if state.help {
        help::draw(&mut pen, areas.body, state);
    }
}

/// The text beside or below the table of a detail view, wrapped to `width`.
#[must_use]
pub fn text_lines(state: &State, width: u16) -> Vec<Line> {
    let lines = match state.details.last() {
        Some(detail) => detail::text(state, detail),
        None if state.tab == Tab::Events => event_text(state),
        None => overview::warnings(state),
    };
    lines
        .iter()
        .flat_map(|line| pen::wrap_line(line, width, 4))
        .collect()
}

fn too_small(pen: &mut Pen<'_>, (width, height): (u16, u16)) {
    let said = format!(
        "Too small: {width}x{height}. hyperion top needs {}x{}.",
        LEAST.0, LEAST.1
    );
    let style = pen.style(Tone::Warn);
    for (y, line) in text::wrap(&said, usize::from(width)).iter().enumerate() {
        pen.text(0, y as u16, width, line, style);
    }
}

fn context(state: &State) -> Context {
    Context {
        now_ms: state.now_ms,
    }
}

fn title(pen: &mut Pen<'_>, area: Rect, state: &State) {
    let options = &state.options;
    let mut left: Line = vec![(Tone::Strong, " hyperion ".to_owned())];
    match options.simulated {
        Some(count) => left.push((
            Tone::Warn,
            format!(" SIMULATED {} nodes", text::grouped(count as u64)),
        )),
        None => {
            let server = options.server.trim_start_matches("https://");
            left.push((Tone::Dim, format!(" {}", server.trim_end_matches('/'))));
        }
    }
    let used = pen.line(area.x, area.y, area.width, &left);
    pen.restyle(
        Rect::new(area.x, area.y, 10.min(area.width), 1),
        Style::new().add_modifier(Modifier::REVERSED),
    );

    let sum = &state.summary;
    let mut right: Line = Vec::new();
    if state.loaded.nodes {
        right.push((Tone::Plain, format!("{}/h", text::dollars(sum.all.price))));
        right.push((Tone::Dim, " · ".to_owned()));
        let (ready, all) = (sum.all.ready as u64, sum.all.nodes as u64);
        let ready = format!("{}/{} ready", text::grouped(ready), text::grouped(all));
        right.push((Tone::Plain, ready));
        right.push((Tone::Dim, " · ".to_owned()));
    }
    if let Some((tone, who)) = scorer(&state.fleet.scorer) {
        right.push((tone, who));
        right.push((Tone::Dim, " · ".to_owned()));
    }
    if options.simulated.is_some() {
        right.push((Tone::Warn, "not real ".to_owned()));
    } else {
        let (mark, tone, status) = state.contact.status(state.now_ms);
        right.push((tone, format!("{}{status} ", pen.sign(mark))));
    }
    let width = |line: &[(Tone, String)]| -> u16 {
        let columns: usize = line.iter().map(|(_, t)| text::width(t)).sum();
        u16::try_from(columns).unwrap_or(u16::MAX)
    };
    // Contact matters most: numbers leave first.
    let mut rest = &right[..];
    while rest.len() > 1 && width(rest) + used + 2 > area.width {
        rest = &rest[2..];
    }
    let x = area.right().saturating_sub(width(rest));
    pen.line(x, area.y, area.right().saturating_sub(x), rest);
}

/// Who decides, in a word or two; none where nobody has said.
fn scorer(scorer: &ScorerStatus) -> Option<(Tone, String)> {
    let decides = scorer.decides.clone();
    match () {
        () if decides.is_empty() => None,
        () if !scorer.refused.is_empty() => Some((Tone::Warn, format!("{decides}!"))),
        () if scorer.shadow => Some((Tone::Plain, format!("{decides}, shadow"))),
        () => Some((Tone::Plain, decides)),
    }
}

fn tabs(pen: &mut Pen<'_>, area: Rect, state: &State) {
    for (tab, (from, to)) in Tab::ALL.into_iter().zip(tab_spans()) {
        let current = tab == state.tab;
        let tone = if current { Tone::Accent } else { Tone::Dim };
        let width = to.min(area.right()).saturating_sub(from);
        let style = pen.style(tone);
        let label = format!(" {} {}", tab.index() + 1, tab.title());
        pen.text(from, area.y, width, &label, style);
        if current {
            pen.restyle(
                Rect::new(from, area.y, width, 1),
                Style::new().add_modifier(Modifier::REVERSED),
            );
        }
    }
    let (_, end) = tab_spans()[4];
    let mut trail = String::new();
    for detail in &state.details {
        let (Subject::Node(name) | Subject::Workload(name)) = &detail.subject;
        trail.push_str(" › ");
        trail.push_str(name);
    }
    let width = area.width.saturating_sub(end);
    let style = pen.style(Tone::Strong);
    pen.text(end, area.y, width, &trail, style);
}

fn notice(pen: &mut Pen<'_>, area: Rect, state: &State) {
    let Some((mark, tone, said)) = state.notice() else {
        return;
    };
    let style = pen.style(tone).add_modifier(Modifier::REVERSED);
    pen.restyle(area, style);
    let said = format!(" {}{said}", pen.sign(mark));
    pen.text(area.x, area.y, area.width, &said, style);
}

fn body(pen: &mut Pen<'_>, areas: &Areas, state: &State) {
    if let Some(detail) = state.details.last() {
        detail::draw(pen, areas, state, detail);
        return;
    }
    let (fleet, tables, context) = (&state.fleet, &state.tables, context(state));
    let empty = empty_text(state);
    match state.tab {
        Tab::Overview => overview::draw(pen, areas, state, &empty),
        Tab::Nodes => table::draw(
            pen,
            areas.table,
            &tables.nodes,
            &fleet.nodes,
            &[],
            context,
            &empty,
        ),
        Tab::Workloads => table::draw(
            pen,
            areas.table,
            &tables.workloads,
            &fleet.workloads,
            &[],
            context,
            &empty,
        ),
        Tab::Placements => table::draw(
            pen,
            areas.table,
            &tables.placements,
            &fleet.placements,
            &[],
            context,
            &empty,
        ),
        Tab::Events => {
            let (table, rows) = (&tables.happenings, &fleet.happenings);
            table::draw(pen, areas.table, table, rows, &[], context, &empty);
            pen.lines(areas.text, &text_lines(state, areas.text.width), 0);
        }
    }
}

/// All of the event under the cursor: its line may be too short for it.
fn event_text(state: &State) -> Vec<Line> {
    let selected = state.tables.happenings.selected.as_deref();
    let Some(event) = selected.and_then(|key| state.fleet.happenings.get(key)) else {
        return Vec::new();
    };
    let about = format!("{} {}", event.kind, event.object);
    vec![
        Vec::new(),
        vec![
            (Tone::Strong, about),
            (Tone::Dim, format!("  {}", event.reason)),
        ],
        vec![(Tone::Plain, event.message.clone())],
    ]
}

/// Why a table has no rows, and what to do.
fn empty_text(state: &State) -> String {
    let filter = &state.table().filter;
    if !filter.is_empty() {
        return format!("Nothing matches the filter {filter:?}. Esc clears it.");
    }
    if state.contact.is_new() {
        return "Waiting for the first answer.".to_owned();
    }
    let (loaded, text) = match state.tab {
        Tab::Overview | Tab::Nodes => (
            state.loaded.nodes,
            "No nodes yet. `hyperion token create --site NAME` makes a join token and prints the command that a device needs.",
        ),
        Tab::Workloads => (
            state.loaded.workloads,
            "No workloads yet. `hyperion apply -f FILE` makes one.",
        ),
        Tab::Placements => (
            state.loaded.placements,
            "No placements: no workload has a replica with a node.",
        ),
        Tab::Events => (true, "No events."),
    };
    if loaded {
        text.to_owned()
    } else {
        "Nothing has arrived yet.".to_owned()
    }
}

fn footer(pen: &mut Pen<'_>, area: Rect, state: &State) {
    let table = state.table();
    let position = position(state);
    let room = area.width.saturating_sub(text::width(&position) as u16 + 2);
    let line: Line = if state.typing.is_some() {
        vec![
            (Tone::Accent, " /".to_owned()),
            (Tone::Strong, table.filter.clone()),
            (Tone::Accent, "█".to_owned()),
            (Tone::Dim, "  words; !word excludes; Enter, Esc".to_owned()),
        ]
    } else if table.filter.is_empty() || !state.details.is_empty() {
        hints(state)
    } else {
        vec![
            (Tone::Dim, " filter ".to_owned()),
            (Tone::Strong, table.filter.clone()),
            (Tone::Dim, "  / edit  Esc clear  ? help".to_owned()),
        ]
    };
    pen.line(area.x, area.y, room, &line);
    let style = pen.style(Tone::Dim);
    pen.text_right(
        area.x,
        area.y,
        area.width.saturating_sub(1),
        &position,
        style,
    );
}

fn position(state: &State) -> String {
    let table = state.table();
    let shown = table.visible(state.table_height()).len();
    match table.len() {
        0 => String::new(),
        total => format!(
            "{}-{} of {}",
            text::grouped(table.offset as u64 + 1),
            text::grouped((table.offset + shown) as u64),
            text::grouped(total as u64)
        ),
    }
}

fn hints(state: &State) -> Line {
    let keys: &[(&str, &str)] = if state.details.is_empty() {
        &[
            ("/", "filter"),
            ("s", "sort"),
            ("r", "reverse"),
            ("Enter", "open"),
            ("?", "help"),
            ("q", "quit"),
        ]
    } else {
        &[
            ("Esc", "back"),
            ("Enter", "open"),
            ("PgDn", "scroll text"),
            ("?", "help"),
            ("q", "quit"),
        ]
    };
    keys.iter()
        .flat_map(|(key, does)| {
            [
                (Tone::Accent, format!(" {key}")),
                (Tone::Dim, format!(" {does} ")),
            ]
        })
        .collect()
}
