//! How many bytes may be sent.

use std::time::Duration;

/// A token bucket: in any time t at most rate * (t + 1 s) bytes and one frame more are sent. What is
/// sent may be more than there is, and is paid back before anything else.
#[derive(Debug)]
pub(super) struct Budget {
    /// Bytes a second.
    rate: f64,
    /// At most a second's worth; below zero what was spent ahead.
    bytes: f64,
    at: Duration,
}

impl Budget {
    pub(super) fn new(rate: u32, now: Duration) -> Self {
        let rate = f64::from(rate.max(1));
        Self {
            rate,
            bytes: rate,
            at: now,
        }
    }

    /// Whether something may be sent now.
    pub(super) fn open(&mut self, now: Duration) -> bool {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.bytes = (self.bytes + passed * self.rate).min(self.rate);
        self.bytes > 0.0
    }

    pub(super) fn spend(&mut self, bytes: usize) {
        self.bytes -= bytes as f64;
    }

    /// When something may be sent again.
    pub(super) fn opens_at(&self) -> Duration {
        if self.bytes > 0.0 {
            return self.at;
        }
        // A byte more than what is owed, and never at once: the clock may be coarser than this.
        let wait = (1.0 - self.bytes) / self.rate;
        self.at + Duration::from_secs_f64(wait.max(1e-3))
    }
}
