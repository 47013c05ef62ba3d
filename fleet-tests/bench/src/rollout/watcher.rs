//! Watches the devices of a rollout, and says where its bounds were broken. It knows what devices do
//! and what was asked for, and nothing of how the control plane decides.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// Waves of the rollout.
pub const WAVES: [&str; 3] = ["1", "10%", "100%"];

/// What the rollout promises.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Devices out at a time.
    most_out: usize,
    /// Devices that have ended when each wave has.
    waves: Vec<usize>,
}

impl Bounds {
    /// Of so many devices, of which this percentage may be out.
    pub fn new(nodes: usize, percent: usize) -> Self {
        Self {
            most_out: (nodes * percent / 100).max(1),
            waves: vec![1, nodes.div_ceil(10), nodes],
        }
    }
}

/// What was seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Devices that are connected.
    connected: usize,
    /// Between the order to restart and the return.
    out: usize,
    /// Most at a time.
    pub most_out: usize,
    /// Were told to restart.
    begun: usize,
    /// Have the version.
    pub good: usize,
    /// Rolled back.
    pub bad: usize,
    /// Bounds that were broken.
    pub violations: Vec<String>,
    /// Nothing may begin.
    still: bool,
}

/// All devices tell it what they do.
pub struct Watcher {
    bounds: Bounds,
    seen: Mutex<Seen>,
}

impl Watcher {
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            seen: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn seen(&self) -> Seen {
        self.lock().clone()
    }

    /// From now on nothing may begin, or it may again.
    pub fn still(&self, still: bool) {
        self.lock().still = still;
    }

    /// A device is connected for the first time.
    pub fn came(&self) {
        self.lock().connected += 1;
    }

    /// A device was told to restart.
    pub fn begins(&self, device: usize, installed: bool) {
        let mut seen = self.lock();
        seen.begun += 1;
        seen.out += 1;
        seen.most_out = seen.most_out.max(seen.out);
        let ended = seen.good + seen.bad;
        let broken = [
            (seen.out > self.bounds.most_out).then(|| format!("{} are out", seen.out)),
            (!installed).then(|| "it has nothing to restart into".to_owned()),
            seen.still.then(|| "the rollout has stopped".to_owned()),
            self.before_its_wave(seen.begun, ended),
        ];
        for what in broken.into_iter().flatten() {
            seen.violations
                .push(format!("device {device} restarts: {what}"));
        }
    }

    /// Of the first so many devices the last one is of a wave that may not have begun.
    fn before_its_wave(&self, begun: usize, ended: usize) -> Option<String> {
        let before = self.bounds.waves.iter().rev().find(|wave| begun > **wave)?;
        (ended < *before).then(|| {
            format!(
                "it is number {begun}, and {ended} of the {before} of the wave before have ended"
            )
        })
    }

    /// A device is back.
    pub fn returns(&self) {
        let mut seen = self.lock();
        seen.out = seen.out.saturating_sub(1);
    }

    /// A device has ended.
    pub fn ends(&self, good: bool) {
        let mut seen = self.lock();
        if good {
            seen.good += 1;
        } else {
            seen.bad += 1;
        }
    }

    /// Something that may not happen.
    pub fn violated(&self, device: usize, what: &str) {
        self.lock()
            .violations
            .push(format!("device {device}: {what}"));
    }

    /// Waits until so many are connected.
    ///
    /// # Errors
    /// They are not in time.
    pub async fn connected(&self, all: usize, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let connected = self.lock().connected;
            if connected >= all {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{connected} of {all} are connected after {patience:?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_bounds_are_seen() {
        let watcher = Watcher::new(Bounds::new(20, 10));
        watcher.begins(0, true);
        watcher.returns();
        watcher.ends(true);
        watcher.begins(1, true);
        assert_eq!(watcher.seen().violations, Vec::<String>::new());
        // The wave has two, and one of them has not ended.
        watcher.begins(2, true);
        let seen = watcher.seen();
        assert_eq!((seen.violations.len(), seen.most_out), (1, 2));
        assert!(seen.violations[0].contains("1 of the 2"), "{seen:?}");
        watcher.ends(false);
        watcher.begins(3, true);
        assert!(watcher.seen().violations[1].contains("3 are out"));
        watcher.returns();
        watcher.returns();
        watcher.still(true);
        watcher.begins(4, false);
        assert_eq!(watcher.seen().violations.len(), 4);
    }
}
