//! What the demo prints.

use std::io::Write;
use std::time::{Duration, Instant};

/// Prints one line. A closed pipe is no reason to stop before cleaning up.
pub fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _closed = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Prints a block of output, indented.
pub fn block(text: &str) {
    for text in text.trim_end().lines() {
        line(&format!("             {text}"));
    }
}

/// Prints steps with the time since the demo began.
#[derive(Debug)]
pub struct Steps {
    start: Instant,
}

impl Steps {
    /// The demo begins now.
    pub fn begin() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    /// Prints what happens now.
    pub fn step(&self, text: &str) {
        line(&format!(
            "[{:7.2} s]  {text}",
            self.start.elapsed().as_secs_f64()
        ));
    }

    /// Prints a command and what it printed.
    pub fn command(&self, command: &str, output: &str) {
        self.step(&format!("$ {command}"));
        block(output);
    }
}

/// A table with a heading, columns as wide as they need to be.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|r| r.get(column));
        cells.map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(cells.join("   ").trim_end());
        text.push('\n');
    }
    text
}

/// Seconds, for people.
pub fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
