//! Help over the view.

use ratatui::layout::Rect;

use super::pen::Pen;
use crate::text::{self, Line, Tone};
use crate::top::state::State;

const KEYS: [(&str, &str); 13] = [
    ("1-5, Tab", "views"),
    ("Up Down j k", "move"),
    ("PgUp PgDn Space", "page; in a detail view, scroll its text"),
    ("Home End g G", "first, last"),
    ("Enter Right", "open a node, a workload, a site"),
    ("Esc Left", "back; clear the filter"),
    ("/", "filter: all words must match, !word must not"),
    ("s S", "sort by the next, the previous column"),
    ("r", "reverse"),
    ("letters", "sort by a column (below); again: reverse"),
    (
        "mouse",
        "wheel; click rows, tabs, headings; Shift selects text",
    ),
    ("Ctrl-L", "draw anew"),
    ("q Ctrl-C", "quit"),
];

fn lines(state: &State, width: usize) -> Vec<Line> {
    let mut lines: Vec<Line> = KEYS
        .iter()
        .map(|(key, does)| {
            vec![
                (Tone::Accent, text::pad(key, 17, false)),
                (Tone::Plain, (*does).to_owned()),
            ]
        })
        .collect();
    lines.push(Vec::new());
    let mut line: Line = Vec::new();
    let mut used = 0;
    for column in state.columns() {
        let columns = 4 + text::width(column.title);
        if used + columns > width {
            lines.push(std::mem::take(&mut line));
            used = 0;
        }
        line.push((Tone::Accent, format!("{} ", column.key)));
        line.push((Tone::Plain, format!("{}  ", column.title)));
        used += columns;
    }
    lines.push(line);
    lines
}

/// Draws it in the middle of `area`.
pub fn draw(pen: &mut Pen<'_>, area: Rect, state: &State) {
    let width = 74.min(area.width);
    let inner = width.saturating_sub(4);
    let lines = lines(state, usize::from(inner));
    let height = (lines.len() as u16 + 2).min(area.height);
    let frame = Rect::new(
        area.x + (area.width - width) / 2,
        area.y + (area.height - height) / 2,
        width,
        height,
    );
    pen.clear(frame);
    let dim = pen.style(Tone::Dim);
    let (side, edge) = if pen.ascii() {
        ("|", "-")
    } else {
        ("│", "─")
    };
    let edge = edge.repeat(usize::from(width));
    for y in [frame.y, frame.bottom().saturating_sub(1)] {
        pen.text(frame.x, y, width, &edge, dim);
    }
    for y in frame.y + 1..frame.bottom().saturating_sub(1) {
        pen.text(frame.x, y, 1, side, dim);
        pen.text(frame.right().saturating_sub(1), y, 1, side, dim);
    }
    let style = pen.style(Tone::Strong);
    pen.text(
        frame.x + 2,
        frame.y,
        inner,
        " Help: any key closes it ",
        style,
    );
    let text = Rect::new(
        frame.x + 2,
        frame.y + 1,
        inner,
        frame.height.saturating_sub(2),
    );
    pen.lines(text, &lines, 0);
}
