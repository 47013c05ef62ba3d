//! How far a copy is: a bar for people, nothing for files and pipes.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

const BAR: usize = 24;
/// A terminal is told no more often.
const OFTEN: Duration = Duration::from_millis(200);

/// One pass over an image.
pub struct Progress {
    what: &'static str,
    total: u64,
    begin: Instant,
    told: Option<Instant>,
    terminal: bool,
}

impl Progress {
    /// A pass over `total` bytes.
    #[must_use]
    pub fn new(what: &'static str, total: u64) -> Self {
        Self {
            what,
            total,
            begin: Instant::now(),
            told: None,
            terminal: io::stderr().is_terminal(),
        }
    }

    /// `done` bytes are behind us.
    pub fn at(&mut self, done: u64) {
        let now = Instant::now();
        if !self.terminal || self.told.is_some_and(|told| now - told < OFTEN) {
            return;
        }
        self.told = Some(now);
        let line = line(self.what, done, self.total, now - self.begin);
        // Nobody is harmed by a bar that is not seen.
        let _ = write!(io::stderr(), "\r{line}\x1b[K");
    }

    /// The pass is over, one way or the other. Returns how long it took.
    pub fn end(self) -> Duration {
        if self.told.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
        self.begin.elapsed()
    }
}

fn line(what: &str, done: u64, total: u64, took: Duration) -> String {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let part = if total == 0 {
        1.0
    } else {
        (done as f64 / total as f64).min(1.0)
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "between 0 and the bar's length"
    )]
    let full = (part * BAR as f64) as usize;
    let bar = "#".repeat(full) + &"-".repeat(BAR - full);
    let left = if part > 0.02 {
        let seconds = took.as_secs_f64() / part * (1.0 - part);
        format!("  {seconds:.0} s left")
    } else {
        String::new()
    };
    format!(
        "{what} [{bar}] {:3.0} %  {} of {}  {}{left}",
        part * 100.0,
        size(done),
        size(total),
        rate(done, took),
    )
}

/// Bytes for people, in powers of 1024.
#[must_use]
pub fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}

/// Bytes a second for people, in powers of 1000, as makers of disks count.
#[must_use]
pub fn rate(bytes: u64, took: Duration) -> String {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let rate = bytes as f64 / took.as_secs_f64().max(1e-3) / 1e6;
    format!("{rate:.1} MB/s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_part_amount_rate_and_rest() {
        let seen = line("writing", 1 << 30, 4 << 30, Duration::from_secs(10));
        assert_eq!(
            seen,
            "writing [######------------------]  25 %  1.0 GiB of 4.0 GiB  107.4 MB/s  30 s left"
        );
    }

    #[test]
    fn ends_are_no_special_cases() {
        for (done, total) in [(0, 0), (0, 1), (1, 1), (2, 1), (u64::MAX, u64::MAX)] {
            let seen = line("writing", done, total, Duration::ZERO);
            assert!(seen.contains('%') && !seen.contains("NaN"), "{seen}");
        }
        assert_eq!(size(1023), "1023 B");
    }
}
