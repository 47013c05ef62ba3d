//! Columns and cells, shared by the command line's tables and the TUI's.

use std::cmp::Ordering;

use crate::text::Tone;

/// A column of a table.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Heading.
    pub title: &'static str,
    /// Key that sorts by it in the TUI.
    pub key: char,
    /// Least columns on screen.
    pub min: u16,
    /// Most columns on screen.
    pub max: u16,
    /// Numbers go to the right.
    pub right: bool,
    /// Columns with the highest number leave first when the screen is narrow.
    pub rank: u8,
    /// Changes with every telemetry message.
    pub live: bool,
}

impl Column {
    /// A text column.
    pub const fn text(title: &'static str, key: char, min: u16, max: u16, rank: u8) -> Self {
        Self {
            title,
            key,
            min,
            max,
            right: false,
            rank,
            live: false,
        }
    }

    /// A column of numbers.
    pub const fn number(title: &'static str, key: char, min: u16, max: u16, rank: u8) -> Self {
        Self {
            right: true,
            ..Self::text(title, key, min, max, rank)
        }
    }

    /// A column of numbers that live telemetry changes.
    pub const fn live(title: &'static str, key: char, min: u16, max: u16, rank: u8) -> Self {
        Self {
            live: true,
            ..Self::number(title, key, min, max, rank)
        }
    }
}

/// A sign before a word, so that colour is never the only carrier of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Healthy.
    Good,
    /// On its way, or held back on purpose.
    Half,
    /// Broken.
    Bad,
    /// Not known.
    Unknown,
}

/// What one row shows in one column.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cell {
    /// Text, clean.
    pub text: String,
    /// Its tone.
    pub tone: Tone,
    /// Sign in front.
    pub mark: Option<Mark>,
    /// Share of a bar that is drawn where there is room, 0 to 1.
    pub bar: Option<f32>,
}

impl Cell {
    /// Plain text.
    pub fn plain(text: impl Into<String>) -> Self {
        Self::toned(text, Tone::Plain)
    }

    /// Text with a tone.
    pub fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self {
            text: text.into(),
            tone,
            ..Self::default()
        }
    }

    /// Text with a sign.
    pub fn marked(mark: Mark, text: impl Into<String>, tone: Tone) -> Self {
        Self {
            mark: Some(mark),
            ..Self::toned(text, tone)
        }
    }

    /// A value of which nothing is known.
    #[must_use]
    pub fn unknown() -> Self {
        Self::toned("–", Tone::Dim)
    }

    /// A utilisation in percent, with a bar, toned by how full it is.
    #[must_use]
    pub fn load(percent: f32, stale: bool) -> Self {
        if !percent.is_finite() || percent < 0.0 {
            return Self::unknown();
        }
        let tone = match percent {
            _ if stale => Tone::Dim,
            p if p >= 90.0 => Tone::Bad,
            p if p >= 75.0 => Tone::Warn,
            _ => Tone::Plain,
        };
        Self {
            bar: Some((percent / 100.0).min(1.0)),
            ..Self::toned(crate::text::percent(percent), tone)
        }
    }
}

/// What cells need to know besides their row.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    /// Now, milliseconds since 1970.
    pub now_ms: i64,
}

impl Context {
    /// Age of a moment, as text.
    #[must_use]
    pub fn age(self, since_ms: Option<i64>) -> Cell {
        since_ms.map_or_else(Cell::unknown, |ms| {
            Cell::plain(crate::text::age(self.now_ms.saturating_sub(ms) / 1000))
        })
    }
}

/// A row of a table.
pub trait Row {
    /// Columns, from left to right.
    const COLUMNS: &'static [Column];
    /// Column and direction (reversed?) to sort by at first.
    const FIRST_SORT: (usize, bool);

    /// Identity, unique in its table.
    fn id(&self) -> &str;
    /// Lower-case text in which the filter looks.
    fn haystack(&self) -> &str;
    /// What column `column` shows.
    fn cell(&self, column: usize, context: Context) -> Cell;
    /// Order by column `column`, ascending. What is not known comes first.
    fn order(&self, other: &Self, column: usize) -> Ordering;
}

/// Order of floats in which nonsense comes before every number.
#[must_use]
pub fn float_order(a: f64, b: f64) -> Ordering {
    let key = |v: f64| if v.is_nan() { f64::NEG_INFINITY } else { v };
    key(a).total_cmp(&key(b))
}
