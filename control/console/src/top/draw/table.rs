//! Tables: only the rows on screen are made.

use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};

use super::pen::Pen;
use crate::fleet::Store;
use crate::fleet::column::{Cell, Column, Context, Row};
use crate::text::{self, Tone};
use crate::top::table::{GAP, Table, fit_columns};

/// Columns of the number beside a bar, with a blank.
const NUMBER: u16 = 5;
/// Least columns of a bar.
const LEAST_BAR: u16 = 3;

/// Draws a table with its heading, without the `hidden` columns; `empty` is said where it has no rows.
pub fn draw<T: Row>(
    pen: &mut Pen<'_>,
    area: Rect,
    table: &Table,
    store: &Store<T>,
    hidden: &[usize],
    context: Context,
    empty: &str,
) {
    if area.height == 0 {
        return;
    }
    let columns = fit_columns(T::COLUMNS, hidden, area.width);
    heading(pen, area, table, T::COLUMNS, &columns);
    let height = usize::from(area.height - 1);
    if table.is_empty() {
        let dim = pen.style(Tone::Dim);
        let lines = text::wrap(empty, usize::from(area.width.saturating_sub(1)));
        for (line, y) in lines.iter().zip(area.y + 1..area.bottom()) {
            pen.text(area.x, y, area.width, line, dim);
        }
        return;
    }
    for (i, &slot) in table.visible(height).iter().enumerate() {
        let Some(row) = store.at(slot) else { continue };
        let y = area.y + 1 + i as u16;
        let selected = table.offset + i == table.cursor;
        let mut x = area.x;
        for &(column, width) in &columns {
            let width = width.min(area.right().saturating_sub(x));
            let cell = row.cell(column, context);
            draw_cell(pen, (x, y), width, &T::COLUMNS[column], &cell, selected);
            x += width + GAP;
        }
        if selected {
            let line = Rect::new(area.x, y, area.width, 1);
            pen.restyle(line, Style::new().add_modifier(Modifier::REVERSED));
        }
    }
    scrollbar(pen, area, table, height);
}

fn heading(pen: &mut Pen<'_>, area: Rect, table: &Table, all: &[Column], columns: &[(usize, u16)]) {
    let mut x = area.x;
    for &(column, width) in columns {
        let width = width.min(area.right().saturating_sub(x));
        let sorted = column == table.sort;
        let arrow = match (sorted, table.reversed) {
            (false, _) => "",
            (true, false) => "▲",
            (true, true) => "▼",
        };
        let style = pen.style(if sorted { Tone::Accent } else { Tone::Dim });
        let title = all[column].title;
        // Where there is no room for both, the title gives way to the arrow.
        let room = usize::from(width).saturating_sub(text::width(arrow));
        let title = format!("{}{arrow}", text::fit(title, room));
        if all[column].right {
            pen.text_right(x, area.y, width, &title, style);
        } else {
            pen.text(x, area.y, width, &title, style);
        }
        x += width + GAP;
    }
    let line = Rect { height: 1, ..area };
    pen.restyle(line, Style::new().add_modifier(Modifier::UNDERLINED));
}

fn draw_cell(
    pen: &mut Pen<'_>,
    (x, y): (u16, u16),
    width: u16,
    column: &Column,
    cell: &Cell,
    selected: bool,
) {
    // A reversed line with patches of colour is hard to read.
    let tone = if selected { Tone::Strong } else { cell.tone };
    let style = pen.style(tone);
    if let Some(mark) = cell.mark {
        let used = pen.text(x, y, width, &pen.sign(mark), style);
        pen.text(x + used, y, width.saturating_sub(used), &cell.text, style);
    } else if let (Some(share), true) = (cell.bar, width >= NUMBER + LEAST_BAR) {
        let bar_style = match cell.tone {
            Tone::Plain if !selected => pen.style(Tone::Accent),
            _ => style,
        };
        pen.bar(x, y, width - NUMBER, share, bar_style);
        pen.text_right(x + width - NUMBER, y, NUMBER, &cell.text, style);
    } else if column.right {
        pen.text_right(x, y, width, &cell.text, style);
    } else {
        pen.text(x, y, width, &cell.text, style);
    }
}

/// In the last column, which `fit_columns` leaves free.
fn scrollbar(pen: &mut Pen<'_>, area: Rect, table: &Table, height: usize) {
    let total = table.len();
    if total <= height || height < 3 || area.width < 20 {
        return;
    }
    let size = (height * height / total).clamp(1, height);
    let last = total - height;
    let from = (table.offset * (height - size))
        .checked_div(last)
        .unwrap_or(0);
    let style = pen.style(Tone::Dim);
    for i in 0..size {
        let y = area.y + 1 + (from + i) as u16;
        pen.text(area.right() - 1, y, 1, "█", style);
    }
}
