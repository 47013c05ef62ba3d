//! Rollouts as people see them.

use std::cmp::Ordering;

use hyperion_api::rollout::{HyperionRollout, RolloutPhase};
use serde::{Deserialize, Serialize};

use super::column::{Cell, Column, Context, Mark, Row};
use super::explain::sign;
use super::millis_of;
use crate::text::{self, Line, Tone, clean_in_place};

/// Columns of the bar that shows how many nodes are done.
const BAR: usize = 20;

/// A rollout.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rollout {
    /// Name.
    pub name: String,
    /// Version that it brings.
    pub version: String,
    /// Phase.
    pub phase: RolloutPhase,
    /// Reason of the phase.
    pub reason: String,
    /// What it waits for.
    pub message: String,
    /// Wave and number of waves.
    pub wave: String,
    /// Nodes that it is for.
    pub nodes: u32,
    /// Have the version.
    pub done: u32,
    /// Have begun.
    pub updating: u32,
    /// Have not begun.
    pub waiting: u32,
    /// Ended without the version.
    pub failed: u32,
    /// Are not Ready.
    pub unavailable: u32,
    /// Can't have the bundle.
    pub refused: u32,
    /// Nodes that are emptied or restart, and where each is.
    pub moving: Vec<(String, String)>,
    /// Nodes that failed or were refused: node, reason, message.
    pub failures: Vec<(String, String, String)>,
    /// When it was made.
    pub created_ms: Option<i64>,
    #[serde(skip)]
    pub(crate) haystack: String,
}

impl From<&HyperionRollout> for Rollout {
    fn from(object: &HyperionRollout) -> Self {
        let status = object.status.clone().unwrap_or_default();
        let count = |n: i32| u32::try_from(n).unwrap_or(0);
        let moving = status.moving.iter();
        let failures = status.failures.into_iter();
        Self {
            name: object.metadata.name.clone().unwrap_or_default(),
            version: object.spec.bundle.version.clone(),
            phase: status.phase,
            reason: status.reason,
            message: status.message,
            wave: status.wave_of,
            nodes: count(status.nodes),
            done: count(status.done),
            updating: count(status.updating),
            waiting: count(status.waiting),
            failed: count(status.failed),
            unavailable: count(status.unavailable),
            refused: count(status.refused),
            moving: moving
                .map(|m| (m.name.clone(), format!("{:?}", m.stage)))
                .collect(),
            failures: failures.map(|f| (f.node, f.reason, f.message)).collect(),
            created_ms: object.metadata.creation_timestamp.as_ref().map(millis_of),
            haystack: String::new(),
        }
    }
}

impl Rollout {
    /// Cleans every string.
    pub fn prepare(&mut self) {
        for text in [
            &mut self.name,
            &mut self.version,
            &mut self.reason,
            &mut self.message,
            &mut self.wave,
        ] {
            clean_in_place(text);
        }
        for (node, stage) in &mut self.moving {
            clean_in_place(node);
            clean_in_place(stage);
        }
        for (node, reason, message) in &mut self.failures {
            [node, reason, message].into_iter().for_each(clean_in_place);
        }
        self.haystack = format!("{} {} {}", self.name, self.version, self.reason).to_lowercase();
    }

    /// Sign and tone of its phase.
    #[must_use]
    pub fn mark(&self) -> (Mark, Tone) {
        match self.phase {
            RolloutPhase::Progressing => (Mark::Half, Tone::Accent),
            RolloutPhase::Paused => (Mark::Bad, Tone::Warn),
            RolloutPhase::Complete if self.failed > 0 => (Mark::Good, Tone::Warn),
            RolloutPhase::Complete => (Mark::Good, Tone::Good),
            RolloutPhase::Invalid => (Mark::Bad, Tone::Bad),
        }
    }

    /// In one line: how far it is.
    #[must_use]
    pub fn line(&self, ascii: bool) -> Line {
        let (mark, tone) = self.mark();
        let (full, empty) = if ascii { ("#", ".") } else { ("█", "░") };
        let all = self.nodes.max(1) as usize;
        let filled = (self.done as usize * BAR / all).min(BAR);
        let bar = format!("{}{}", full.repeat(filled), empty.repeat(BAR - filled));
        let mut line = vec![
            (Tone::Strong, format!("{} {} ", self.name, self.version)),
            (tone, format!("{} {} ", sign(mark, ascii), self.phase)),
            (Tone::Good, format!("{bar} ")),
            (Tone::Plain, format!("{}/{}", self.done, self.nodes)),
            (Tone::Dim, format!(" wave {}", self.wave)),
        ];
        if self.failed > 0 {
            line.push((Tone::Bad, format!(" {} failed", self.failed)));
        }
        if !matches!(self.reason.as_str(), "Updating" | "") {
            line.push((Tone::Dim, format!(" {}", self.reason)));
        }
        line
    }

    /// All of it.
    #[must_use]
    pub fn lines(&self, ascii: bool) -> Vec<Line> {
        let fact = |name: &str, value: String| {
            vec![
                (Tone::Dim, text::pad(name, 12, false)),
                (Tone::Plain, value),
            ]
        };
        let mut lines = vec![self.line(ascii)];
        lines.push(fact("reason", self.reason.clone()));
        if !self.message.is_empty() {
            lines.push(fact("", self.message.clone()));
        }
        let counts = [
            (self.done, "done"),
            (self.updating, "updating"),
            (self.waiting, "waiting"),
            (self.failed, "failed"),
            (self.refused, "can't have it"),
            (self.unavailable, "unavailable"),
        ];
        let counts = counts.map(|(n, what)| format!("{n} {what}"));
        lines.push(fact("nodes", counts.join(" · ")));
        for (n, (node, stage)) in self.moving.iter().enumerate() {
            let name = if n == 0 { "moving" } else { "" };
            lines.push(fact(name, format!("{node} {stage}")));
        }
        for (n, (node, reason, message)) in self.failures.iter().enumerate() {
            let mut line = fact(if n == 0 { "failures" } else { "" }, format!("{node} "));
            line.push((Tone::Bad, reason.clone()));
            line.push((Tone::Dim, format!(" {message}")));
            lines.push(line);
        }
        lines
    }
}

impl Row for Rollout {
    const COLUMNS: &'static [Column] = &[
        Column::text("ROLLOUT", 'n', 10, 40, 0),
        Column::text("VERSION", 'v', 7, 24, 2),
        Column::text("PHASE", 'p', 12, 13, 0),
        Column::text("WAVE", 'w', 4, 5, 3),
        Column::number("NODES", 'o', 5, 7, 0),
        Column::number("DONE", 'd', 5, 7, 0),
        Column::number("UPDATING", 'u', 8, 8, 4),
        Column::number("WAITING", 'i', 7, 7, 5),
        Column::number("FAILED", 'f', 6, 7, 1),
        Column::text("REASON", 'r', 10, 24, 6),
        Column::number("AGE", 'a', 5, 6, 7),
    ];
    const FIRST_SORT: (usize, bool) = (0, false);

    fn id(&self) -> &str {
        &self.name
    }

    fn haystack(&self) -> &str {
        &self.haystack
    }

    fn cell(&self, column: usize, context: Context) -> Cell {
        let count = |n: u32, tone| {
            let tone = if n == 0 { Tone::Dim } else { tone };
            Cell::toned(n.to_string(), tone)
        };
        match column {
            0 => Cell::toned(&*self.name, Tone::Strong),
            1 => Cell::plain(&*self.version),
            2 => {
                let (mark, tone) = self.mark();
                Cell::marked(mark, self.phase.to_string(), tone)
            }
            3 => Cell::plain(&*self.wave),
            4 => count(self.nodes, Tone::Plain),
            5 => count(self.done, Tone::Good),
            6 => count(self.updating, Tone::Accent),
            7 => count(self.waiting, Tone::Plain),
            8 => count(self.failed, Tone::Bad),
            9 => Cell::plain(&*self.reason),
            _ => context.age(self.created_ms),
        }
    }

    fn order(&self, other: &Self, column: usize) -> Ordering {
        match column {
            1 => self.version.cmp(&other.version),
            2 => self.phase.to_string().cmp(&other.phase.to_string()),
            3 => self.wave.cmp(&other.wave),
            4 => self.nodes.cmp(&other.nodes),
            5 => self.done.cmp(&other.done),
            6 => self.updating.cmp(&other.updating),
            7 => self.waiting.cmp(&other.waiting),
            8 => self.failed.cmp(&other.failed),
            9 => self.reason.cmp(&other.reason),
            10 => other.created_ms.cmp(&self.created_ms),
            _ => self.name.cmp(&other.name),
        }
    }
}
