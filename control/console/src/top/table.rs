//! A table's state: what is shown, in which order, where the cursor is. The order is an index of
//! slots, made anew only when rows or the values sorted by have changed, and never for a table
//! that is not on the screen.

use serde::Serialize;

use crate::fleet::Store;
use crate::fleet::column::{Column, Row};

/// State of a table.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Table {
    /// Column sorted by.
    pub sort: usize,
    /// Largest first.
    pub reversed: bool,
    /// What a person typed; see [`Filter`].
    pub filter: String,
    /// Line of the cursor, from 0.
    pub cursor: usize,
    /// First line on screen.
    pub offset: usize,
    /// Id of the row under the cursor.
    pub selected: Option<String>,
    /// Slots in the order shown.
    #[serde(skip)]
    order: Vec<u32>,
    #[serde(skip)]
    dirty: Dirty,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Dirty {
    Clean,
    /// Values changed that the table is sorted by.
    Order,
    /// Rows came, went, or may pass the filter now.
    #[default]
    Rows,
}

impl Table {
    /// A table sorted as its rows like it.
    #[must_use]
    pub fn of<T: Row>() -> Self {
        let (sort, reversed) = T::FIRST_SORT;
        Self {
            sort,
            reversed,
            ..Self::default()
        }
    }

    /// Rows came, went or changed.
    pub fn rows_changed(&mut self) {
        self.dirty = Dirty::Rows;
    }

    /// Live values changed.
    pub fn live_changed(&mut self, columns: &[Column]) {
        if columns.get(self.sort).is_some_and(|c| c.live) {
            self.dirty = self.dirty.max(Dirty::Order);
        }
    }

    /// Sorts by a column; by the same one again, the other way round.
    pub fn sort_by(&mut self, columns: &[Column], column: usize) {
        if column >= columns.len() {
            return;
        }
        if self.sort == column {
            self.reversed = !self.reversed;
        } else {
            self.sort = column;
            // Of numbers the large ones are interesting, of ages the small ones.
            self.reversed = columns[column].right && columns[column].title != "AGE";
        }
        self.dirty = self.dirty.max(Dirty::Order);
        self.cursor = 0;
    }

    /// Shows only what passes.
    pub fn set_filter(&mut self, filter: String) {
        if self.filter != filter {
            self.filter = filter;
            self.dirty = Dirty::Rows;
        }
    }

    /// Lines that pass the filter.
    #[must_use]
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// No line passes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Slots of the lines on screen.
    #[must_use]
    pub fn visible(&self, height: usize) -> &[u32] {
        let from = self.offset.min(self.order.len());
        let to = from.saturating_add(height).min(self.order.len());
        &self.order[from..to]
    }

    /// Moves the cursor.
    pub fn move_by<T: Row>(&mut self, lines: isize, store: &Store<T>, height: usize) {
        self.move_to(self.cursor.saturating_add_signed(lines), store, height);
    }

    /// Puts the cursor on a line.
    pub fn move_to<T: Row>(&mut self, line: usize, store: &Store<T>, height: usize) {
        self.cursor = line.min(self.order.len().saturating_sub(1));
        self.select_cursor(store);
        self.show_cursor(height);
    }

    /// Scrolls by lines and takes the cursor along where it would leave the screen.
    pub fn scroll_by<T: Row>(&mut self, lines: isize, store: &Store<T>, height: usize) {
        let last = self.order.len().saturating_sub(height.max(1));
        self.offset = self.offset.saturating_add_signed(lines).min(last);
        let bottom = self.offset + height.max(1) - 1;
        let line = self.cursor.clamp(self.offset, bottom.max(self.offset));
        self.move_to(line, store, height);
    }

    /// Brings order, cursor and offset up to date before drawing `height` lines.
    pub fn settle<T: Row>(
        &mut self,
        store: &Store<T>,
        height: usize,
        belongs: impl Fn(&T) -> bool,
    ) {
        if self.dirty == Dirty::Rows {
            self.collect(store, belongs);
        }
        if self.dirty != Dirty::Clean {
            self.dirty = Dirty::Clean;
            self.order_rows(store);
            self.find_cursor(store);
        }
        self.show_cursor(height);
    }

    /// Keeps the old order as far as it goes: sorting what is nearly sorted is cheap.
    fn collect<T: Row>(&mut self, store: &Store<T>, belongs: impl Fn(&T) -> bool) {
        let filter = Filter::parse(&self.filter);
        let passes = |row: &T| belongs(row) && filter.passes(row.haystack());
        let mut known = vec![false; store.slots()];
        self.order.retain(|&slot| {
            let stays = store.at(slot).is_some_and(&passes);
            if let (true, Some(known)) = (stays, known.get_mut(slot as usize)) {
                *known = true;
            }
            stays
        });
        let new = store
            .iter()
            .filter(|(slot, row)| !known[*slot as usize] && passes(row))
            .map(|(slot, _)| slot);
        self.order.extend(new);
    }

    fn order_rows<T: Row>(&mut self, store: &Store<T>) {
        let (sort, reversed) = (self.sort, self.reversed);
        self.order.sort_by(|&a, &b| {
            let (Some(a), Some(b)) = (store.at(a), store.at(b)) else {
                return a.cmp(&b);
            };
            let order = a.order(b, sort);
            let order = if reversed { order.reverse() } else { order };
            order.then_with(|| a.id().cmp(b.id()))
        });
    }

    /// The cursor stays with its row, and the row at its height on the screen: the lines around it
    /// move. On the first line it stays there, because somebody looks at what is first.
    fn find_cursor<T: Row>(&mut self, store: &Store<T>) {
        let slot = self.selected.as_deref().and_then(|id| store.slot(id));
        let line = slot.and_then(|slot| self.order.iter().position(|&s| s == slot));
        match line {
            Some(line) if self.cursor > 0 => {
                let height_on_screen = self.cursor.saturating_sub(self.offset);
                self.offset = line.saturating_sub(height_on_screen);
                self.cursor = line;
            }
            _ => self.cursor = self.cursor.min(self.order.len().saturating_sub(1)),
        }
        self.select_cursor(store);
    }

    fn select_cursor<T: Row>(&mut self, store: &Store<T>) {
        let row = self.order.get(self.cursor).and_then(|&s| store.at(s));
        self.selected = row.map(|r| r.id().to_owned());
    }

    fn show_cursor(&mut self, height: usize) {
        let height = height.max(1);
        self.offset = self
            .offset
            .min(self.order.len().saturating_sub(height))
            .min(self.cursor)
            .max((self.cursor + 1).saturating_sub(height));
    }
}

/// Words of which all must be found; a word after `!` must not.
#[derive(Debug, Default)]
pub struct Filter {
    words: Vec<(bool, String)>,
}

impl Filter {
    /// Reads what a person typed.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let words = text
            .to_lowercase()
            .split_whitespace()
            .map(|word| match word.strip_prefix('!') {
                Some(rest) => (false, rest.to_owned()),
                None => (true, word.to_owned()),
            })
            // A lone `!` is somebody about to type more.
            .filter(|(_, word)| !word.is_empty())
            .collect();
        Self { words }
    }

    /// The lower-case text passes.
    #[must_use]
    pub fn passes(&self, haystack: &str) -> bool {
        self.words
            .iter()
            .all(|(wanted, word)| haystack.contains(word.as_str()) == *wanted)
    }
}

/// Columns that fit into a table of `width` columns, with their widths: those of high rank leave
/// first, and what is left over widens the others up to their most. The `hidden` ones are left
/// out, and there is room for a scroll bar.
#[must_use]
pub fn fit_columns(columns: &[Column], hidden: &[usize], width: u16) -> Vec<(usize, u16)> {
    let width = width.saturating_sub(SCROLL_BAR);
    let mut shown: Vec<(usize, u16)> = columns
        .iter()
        .map(|c| c.min)
        .enumerate()
        .filter(|(i, _)| !hidden.contains(i))
        .collect();
    let total = |shown: &[(usize, u16)]| -> u16 {
        let sum: u16 = shown.iter().map(|(_, w)| w + GAP).sum();
        sum.saturating_sub(GAP)
    };
    while shown.len() > 1 && total(&shown) > width {
        let worst = shown.iter().map(|&(i, _)| (columns[i].rank, i)).max();
        shown.retain(|&(i, _)| worst.is_none_or(|(_, w)| w != i));
    }
    let mut left = width.saturating_sub(total(&shown));
    while left > 0 {
        let before = left;
        for (i, w) in &mut shown {
            if left > 0 && *w < columns[*i].max {
                *w += 1;
                left -= 1;
            }
        }
        if left == before {
            break;
        }
    }
    shown
}

/// Blank between columns.
pub const GAP: u16 = 1;

/// The scroll bar, with a blank before it.
const SCROLL_BAR: u16 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::live::LiveSample;
    use crate::fleet::node::columns;
    use crate::fleet::{Change, Fleet, Happening, Node, Placement, Workload};

    fn fleet(count: usize) -> Fleet {
        let mut fleet = Fleet::default();
        let rows = (0..count)
            .map(|i| Node {
                id: format!("n{i:03}"),
                site: if i % 2 == 0 { "lab" } else { "attic" }.to_owned(),
                price: i as f64,
                ..Default::default()
            })
            .collect();
        fleet.apply(Change::Nodes(rows), 0);
        fleet
    }

    fn ids(table: &Table, fleet: &Fleet, height: usize) -> Vec<String> {
        let row = |&slot: &u32| fleet.nodes.at(slot).unwrap().id.clone();
        table.visible(height).iter().map(row).collect()
    }

    fn settled(fleet: &Fleet, height: usize) -> Table {
        let mut table = Table::of::<Node>();
        table.settle(&fleet.nodes, height, |_| true);
        table
    }

    #[test]
    fn sorting_twice_by_a_column_reverses_it() {
        let fleet = fleet(5);
        let mut table = settled(&fleet, 3);
        assert_eq!(ids(&table, &fleet, 3), ["n000", "n001", "n002"]);
        table.sort_by(Node::COLUMNS, columns::COST);
        table.settle(&fleet.nodes, 3, |_| true);
        assert_eq!(ids(&table, &fleet, 3), ["n004", "n003", "n002"]);
        table.sort_by(Node::COLUMNS, columns::COST);
        table.settle(&fleet.nodes, 3, |_| true);
        assert_eq!(ids(&table, &fleet, 3), ["n000", "n001", "n002"]);
    }

    #[test]
    fn the_cursor_stays_with_its_row_at_its_height() {
        let mut fleet = fleet(100);
        let mut table = settled(&fleet, 10);
        table.move_to(50, &fleet.nodes, 10);
        let height = table.cursor - table.offset;
        for i in 0..20 {
            fleet.apply(Change::NodeGone(format!("n{i:03}")), 0);
        }
        table.rows_changed();
        table.settle(&fleet.nodes, 10, |_| true);
        assert_eq!(table.selected.as_deref(), Some("n050"));
        assert_eq!((table.cursor, table.cursor - table.offset), (30, height));
    }

    #[test]
    fn a_cursor_on_the_first_line_stays_there() {
        let mut fleet = fleet(10);
        let mut table = settled(&fleet, 5);
        table.sort_by(Node::COLUMNS, columns::CPU);
        table.settle(&fleet.nodes, 5, |_| true);
        let busy = LiveSample {
            id: "n007".to_owned(),
            cpu_percent: Some(99.0),
            ..Default::default()
        };
        fleet.apply(Change::Live(vec![busy]), 0);
        table.live_changed(Node::COLUMNS);
        table.settle(&fleet.nodes, 5, |_| true);
        assert_eq!((table.cursor, table.selected.as_deref()), (0, Some("n007")));
    }

    #[test]
    fn a_row_that_goes_leaves_the_cursor_on_its_neighbour() {
        let mut fleet = fleet(3);
        let mut table = settled(&fleet, 5);
        table.move_to(2, &fleet.nodes, 5);
        fleet.apply(Change::NodeGone("n002".to_owned()), 0);
        table.rows_changed();
        table.settle(&fleet.nodes, 5, |_| true);
        assert_eq!(table.selected.as_deref(), Some("n001"));
        fleet.apply(Change::Nodes(Vec::new()), 0);
        table.rows_changed();
        table.settle(&fleet.nodes, 5, |_| true);
        assert!(table.selected.is_none() && table.is_empty());
        table.move_by(5, &fleet.nodes, 5);
    }

    #[test]
    fn filters_want_all_words_and_refuse_those_after_an_exclamation_mark() {
        let fleet = fleet(10);
        let mut table = settled(&fleet, 20);
        for (filter, count) in [
            ("lab", 5),
            ("LAB n00", 5),
            ("!lab", 5),
            ("lab !n004", 4),
            ("!", 10),
            ("x", 0),
        ] {
            table.set_filter(filter.to_owned());
            table.settle(&fleet.nodes, 20, |_| true);
            assert_eq!(table.len(), count, "{filter}");
        }
    }

    #[test]
    fn the_kept_order_equals_an_order_made_anew() {
        let mut fleet = fleet(50);
        let mut kept = settled(&fleet, 50);
        for round in 0..5 {
            for i in (0..50).step_by(7 + round) {
                fleet.apply(Change::NodeGone(format!("n{i:03}")), 0);
            }
            let row = Node {
                id: format!("m{round}"),
                ..Default::default()
            };
            fleet.apply(Change::Node(Box::new(row)), 0);
            kept.rows_changed();
            kept.settle(&fleet.nodes, 50, |_| true);
            assert_eq!(
                ids(&kept, &fleet, 50),
                ids(&settled(&fleet, 50), &fleet, 50)
            );
        }
    }

    #[test]
    fn columns_fit_at_every_width() {
        for columns in [
            Node::COLUMNS,
            Workload::COLUMNS,
            Placement::COLUMNS,
            Happening::COLUMNS,
        ] {
            for width in 0..300 {
                let shown = fit_columns(columns, &[], width);
                let total: u16 = shown.iter().map(|(_, w)| w + GAP).sum::<u16>() - GAP;
                assert!(
                    !shown.is_empty() && (total <= width || shown.len() == 1),
                    "{width}"
                );
            }
        }
    }
}
