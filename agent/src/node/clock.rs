//! Time as it is given.

use std::time::{Duration, Instant};

/// 2025-01-01: a device whose clock says less has none.
const FLOOR_MS: i64 = 1_735_689_600_000;

/// The present.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Monotonic.
    pub at: Instant,
    /// The device's own wall clock, Unix milliseconds. Nothing is decided by it: it stamps events
    /// and telemetry, and only where it says at least 2025.
    pub unix_ms: i64,
}

/// Where times are counted from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    start: Instant,
    /// The control plane's wall clock and when it said so.
    reference: Option<(i64, Instant)>,
}

impl Clock {
    pub(super) fn starting(now: Now) -> Self {
        Self {
            start: now.at,
            reference: None,
        }
    }

    /// Since the start.
    pub(super) fn since(&self, now: Now) -> Duration {
        now.at.saturating_duration_since(self.start)
    }

    /// The other way; none where that is beyond all time.
    pub(super) fn at(&self, since: Duration) -> Option<Instant> {
        self.start.checked_add(since)
    }

    /// Takes the control plane's wall clock; a device may have none of its own.
    pub(super) fn hear(&mut self, unix_ms: i64, now: Now) {
        if unix_ms >= FLOOR_MS {
            self.reference = Some((unix_ms, now.at));
        }
    }

    /// Wall clock: the control plane's where it was told, else the device's, else 0.
    pub(super) fn unix_ms(&self, now: Now) -> i64 {
        if let Some((then, at)) = self.reference {
            let passed = now.at.saturating_duration_since(at).as_millis();
            return then.saturating_add(i64::try_from(passed).unwrap_or(0));
        }
        if now.unix_ms >= FLOOR_MS {
            now.unix_ms
        } else {
            0
        }
    }

    /// The same in seconds.
    pub(super) fn seconds(&self, now: Now) -> u64 {
        u64::try_from(self.unix_ms(now) / 1000).unwrap_or(0)
    }
}
