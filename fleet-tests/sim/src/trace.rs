//! What happened, for people: kept only where a run is watched.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

/// Lines kept.
const LINES: usize = 4000;

/// The trace of a run.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    lines: Option<VecDeque<String>>,
    /// Changes with everything that happens, in order: two runs with the same digest were the same.
    digest: u64,
}

impl Trace {
    pub(crate) fn new(watched: bool) -> Self {
        Self {
            lines: watched.then(VecDeque::new),
            digest: 0xcbf2_9ce4_8422_2325,
        }
    }

    /// True where somebody reads it.
    pub(crate) fn is_kept(&self) -> bool {
        self.lines.is_some()
    }

    /// Notes something.
    pub(crate) fn note(&mut self, now: Duration, what: fmt::Arguments<'_>) {
        if let Some(lines) = &mut self.lines {
            if lines.len() == LINES {
                lines.pop_front();
            }
            lines.push_back(format!("{:9.3} {what}", now.as_secs_f64()));
        }
    }

    pub(crate) fn mix(&mut self, value: u64) {
        self.digest = (self.digest.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }

    pub(crate) fn into_lines(self) -> Vec<String> {
        self.lines.unwrap_or_default().into()
    }
}
