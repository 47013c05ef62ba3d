//! Events in, changes of the state, actions out.

use super::draw::text_lines;
use super::event::{Action, Channel, Event, Key};
use super::layout::{Areas, tab_spans};
use super::state::{Act, Detail, State, Subject, Tab};
use super::table::{GAP, Table, fit_columns};
use crate::fleet::{Change, Placement};

/// Lines per turn of the wheel.
const WHEEL: isize = 3;
/// Longest filter.
const MAX_FILTER: usize = 200;
/// Detail views on top of each other; the oldest goes when somebody wanders on and on.
const MAX_DETAILS: usize = 20;

impl State {
    /// Takes an event that happened at `now_ms`.
    pub fn handle(&mut self, event: Event, now_ms: i64) -> Action {
        self.now_ms = now_ms;
        match event {
            Event::Key(key) => self.key(key),
            Event::Click { x, y } => self.click(x, y),
            Event::Wheel { x, y, up } => self.wheel(x, y, if up { -WHEEL } else { WHEEL }),
            Event::Resize { width, height } => {
                self.size = (width, height);
                Action::Repaint
            }
            Event::Clock => Action::Draw,
            Event::Change(change) => {
                self.note_loaded(&change);
                let touched = self.fleet.apply(change, now_ms);
                self.touch(touched);
                Action::Draw
            }
            Event::Reached(channel) => {
                self.contact.reached(channel, now_ms);
                Action::Draw
            }
            Event::Failed { channel, cause } => {
                self.contact.failed(channel, &cause);
                Action::Draw
            }
        }
    }

    fn note_loaded(&mut self, change: &Change) {
        let channel = match change {
            Change::Nodes(_) => {
                self.loaded.nodes = true;
                Channel::Nodes
            }
            Change::Workloads(_) => {
                self.loaded.workloads = true;
                Channel::Workloads
            }
            Change::Placements(_) => {
                self.loaded.placements = true;
                Channel::Placements
            }
            Change::Node(_) | Change::NodeGone(_) => Channel::Nodes,
            Change::Workload(_) | Change::WorkloadGone(_) => Channel::Workloads,
            Change::Placement(_) | Change::PlacementGone(_) => Channel::Placements,
            Change::Happenings(_) => Channel::Events,
            // Older control planes have no rollouts: nobody waits for them.
            Change::Rollouts(_) | Change::Rollout(_) | Change::RolloutGone(_) => return,
            Change::Live(_) | Change::Scorer(_) => return,
        };
        self.contact.reached(channel, self.now_ms);
    }

    fn key(&mut self, key: Key) -> Action {
        if key == Key::Interrupt {
            return Action::Quit;
        }
        if key == Key::Refresh {
            return Action::Repaint;
        }
        if self.help {
            self.help = false;
            return Action::DrawNow;
        }
        if self.typing.is_some() {
            return self.type_filter(key);
        }
        match key {
            Key::Char('q') => return Action::Quit,
            Key::Char('?') => self.help = true,
            Key::Char('/') => self.typing = Some(self.table().filter.clone()),
            Key::Char(digit @ '1'..='5') => {
                let index = digit as usize - '1' as usize;
                self.show(Tab::ALL[index]);
            }
            Key::Tab => self.show_next(1),
            Key::BackTab => self.show_next(-1),
            Key::Esc | Key::Backspace | Key::Left => self.back(),
            Key::Enter | Key::Right => self.open(),
            Key::PageUp | Key::PageDown if !self.details.is_empty() => {
                let page = isize::from(Areas::of(self).text.height as i16).max(2) - 1;
                self.scroll_text(if key == Key::PageUp { -page } else { page });
            }
            _ => return self.table_key(key),
        }
        Action::DrawNow
    }

    fn table_key(&mut self, key: Key) -> Action {
        let page = (self.table_height() as isize).max(2) - 1;
        match key {
            Key::Up | Key::Char('k') => self.act(Act::Move(-1)),
            Key::Down | Key::Char('j') => self.act(Act::Move(1)),
            Key::PageUp => self.act(Act::Move(-page)),
            Key::PageDown | Key::Char(' ') => self.act(Act::Move(page)),
            Key::Home | Key::Char('g') => self.act(Act::To(0)),
            Key::End | Key::Char('G') => self.act(Act::To(usize::MAX)),
            Key::Char('s') => self.act(Act::SortNext(1)),
            Key::Char('S') => self.act(Act::SortNext(-1)),
            Key::Char('r') => self.act(Act::Reverse),
            Key::Char(c) => match self.columns().iter().position(|col| col.key == c) {
                Some(column) => self.act(Act::Sort(column)),
                None => return Action::Nothing,
            },
            _ => return Action::Nothing,
        }
        Action::DrawNow
    }

    fn type_filter(&mut self, key: Key) -> Action {
        let mut filter = self.table().filter.clone();
        match key {
            Key::Enter | Key::Down | Key::Up => {
                self.typing = None;
                return if key == Key::Enter {
                    Action::DrawNow
                } else {
                    self.table_key(key)
                };
            }
            Key::Esc => filter = self.typing.take().unwrap_or_default(),
            Key::Backspace if filter.is_empty() => self.typing = None,
            Key::Backspace => {
                filter.pop();
            }
            Key::Clear => filter.clear(),
            Key::Char(c) if filter.chars().count() < MAX_FILTER && !c.is_control() => {
                filter.push(c);
            }
            _ => return Action::Nothing,
        }
        self.table_mut().set_filter(filter);
        Action::DrawNow
    }

    fn show(&mut self, tab: Tab) {
        self.tab = tab;
        self.details.clear();
    }

    fn show_next(&mut self, step: isize) {
        let count = Tab::ALL.len() as isize;
        let next = (self.tab.index() as isize + step).rem_euclid(count);
        self.show(Tab::ALL[usize::try_from(next).unwrap_or(0)]);
    }

    fn back(&mut self) {
        if self.details.pop().is_none() && !self.table().filter.is_empty() {
            self.table_mut().set_filter(String::new());
        }
    }

    /// Opens what is under the cursor.
    fn open(&mut self) {
        let Some(id) = self.table().selected.clone() else {
            return;
        };
        let about = self.details.last().map(|d| d.subject.clone());
        match (about, self.tab) {
            // From a node to the workload of a replica, and from a workload to a node.
            (Some(Subject::Node(_)), _) | (None, Tab::Placements) => {
                if let Some(placement) = self.fleet.placements.get(&id) {
                    let workload = placement.workload_key();
                    self.open_detail(Subject::Workload(workload), Some(id));
                }
            }
            (Some(Subject::Workload(_)), _) => {
                if let Some(placement) = self.fleet.placements.get(&id) {
                    let node = placement.node.clone();
                    self.open_detail(Subject::Node(node), Some(id));
                }
            }
            (None, Tab::Nodes) => self.open_detail(Subject::Node(id), None),
            (None, Tab::Workloads) => self.open_detail(Subject::Workload(id), None),
            (None, Tab::Overview) => self.open_place(&id),
            (None, Tab::Events) => self.open_happening(&id),
        }
    }

    fn open_detail(&mut self, subject: Subject, selected: Option<String>) {
        if self.details.len() >= MAX_DETAILS {
            self.details.remove(0);
        }
        let mut table = Table::of::<Placement>();
        if selected.is_some() {
            // Any line but the first makes the table look for the row.
            table.cursor = 1;
            table.selected = selected;
        }
        self.details.push(Detail {
            subject,
            table,
            scroll: 0,
        });
    }

    fn open_place(&mut self, key: &str) {
        if let Some(place) = self.places.get(key) {
            let name = if place.name == "–" { "" } else { &place.name };
            let filter = format!("{} {name}", place.provider).trim().to_owned();
            self.show(Tab::Nodes);
            self.tables.nodes.set_filter(filter);
        }
    }

    fn open_happening(&mut self, key: &str) {
        let Some(happening) = self.fleet.happenings.get(key) else {
            return;
        };
        let object = format!("{}/{}", happening.namespace, happening.object);
        match happening.kind.as_str() {
            "node" => {
                let id = happening.object.clone();
                self.open_detail(Subject::Node(id), None);
            }
            "workload" => self.open_detail(Subject::Workload(object), None),
            "placement" => {
                if let Some(placement) = self.fleet.placements.get(&object) {
                    let workload = placement.workload_key();
                    self.open_detail(Subject::Workload(workload), Some(object));
                }
            }
            _ => {}
        }
    }

    fn scroll_text(&mut self, lines: isize) {
        let area = Areas::of(self).text;
        let count = text_lines(self, area.width).len();
        let last = count.saturating_sub(usize::from(area.height));
        if let Some(detail) = self.details.last_mut() {
            detail.scroll = detail.scroll.saturating_add_signed(lines).min(last);
        }
    }

    fn wheel(&mut self, x: u16, y: u16, lines: isize) -> Action {
        let areas = Areas::of(self);
        if self.help {
            return Action::Nothing;
        }
        if !self.details.is_empty() && areas.text.contains((x, y).into()) {
            self.scroll_text(lines);
        } else {
            self.act(Act::Scroll(lines));
        }
        Action::DrawNow
    }

    fn click(&mut self, x: u16, y: u16) -> Action {
        if self.help {
            self.help = false;
            return Action::DrawNow;
        }
        self.typing = None;
        let areas = Areas::of(self);
        if areas.tabs.contains((x, y).into()) {
            let hit = tab_spans()
                .iter()
                .position(|&(from, to)| (from..to).contains(&x));
            if let Some(index) = hit {
                self.show(Tab::ALL[index]);
            }
        } else if areas.table.contains((x, y).into()) {
            if y == areas.table.y {
                self.click_heading(x.saturating_sub(areas.table.x), areas.table.width);
            } else {
                self.click_row(usize::from(y - areas.table.y - 1));
            }
        }
        Action::DrawNow
    }

    fn click_heading(&mut self, x: u16, width: u16) {
        let mut from = 0;
        for (column, columns_wide) in fit_columns(self.columns(), self.hidden_columns(), width) {
            let to = from + columns_wide + GAP;
            if (from..to).contains(&x) {
                self.act(Act::Sort(column));
                return;
            }
            from = to;
        }
    }

    /// Selects a row; a click on the selected one opens it.
    fn click_row(&mut self, line: usize) {
        let table = self.table();
        let line = table.offset + line;
        if line >= table.len() {
            return;
        }
        if line == table.cursor {
            self.open();
        } else {
            if let Some(detail) = self.details.last_mut() {
                detail.scroll = 0;
            }
            self.act(Act::To(line));
        }
    }
}
