//! A thread that may hang: it says what it is about to touch, and whoever waits for it gives it up
//! when that takes too long.
//!
//! A read of sysfs asks a driver, and a driver may wait for a chip that does not answer; nothing can
//! end such a read. So the thread is left behind, what it hung at is left out, and another goes on.
//! Should the read come back after all, the thread ends and the sensor is tried again.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What threads hang at now, by name.
#[derive(Debug, Clone, Default)]
pub struct Hung(Arc<Mutex<BTreeSet<String>>>);

impl Hung {
    /// Names, in order. As many threads hang.
    pub fn names(&self) -> Vec<String> {
        lock(&self.0).iter().cloned().collect()
    }
}

/// What one thread does now.
#[derive(Debug, Default)]
pub struct Step {
    hung: Hung,
    now: Mutex<Now>,
}

#[derive(Debug, Default)]
struct Now {
    doing: Option<(String, Instant)>,
    abandoned: bool,
}

impl Step {
    /// For a thread beside those that hang.
    pub fn beside(hung: Hung) -> Self {
        Self {
            hung,
            now: Mutex::default(),
        }
    }

    /// Does something that may hang; none where a thread hangs at it already, or where this thread
    /// was given up meanwhile.
    pub fn run<T>(&self, what: &str, work: impl FnOnce() -> T) -> Option<T> {
        if lock(&self.hung.0).contains(what) {
            return None;
        }
        {
            let mut now = lock(&self.now);
            if now.abandoned {
                return None;
            }
            now.doing = Some((what.to_owned(), Instant::now()));
        }
        let done = work();
        let mut now = lock(&self.now);
        now.doing = None;
        if now.abandoned {
            lock(&self.hung.0).remove(what);
            return None;
        }
        Some(done)
    }

    /// What this thread and those beside it hang at.
    pub fn hanging(&self) -> Vec<String> {
        self.hung.names()
    }

    /// Since when the thread is at what it does; none where it does nothing that may hang.
    pub fn since(&self) -> Option<Instant> {
        lock(&self.now).doing.as_ref().map(|(_, since)| *since)
    }

    /// Gives the thread up where it has been at one thing for `limit`, and says at what.
    pub fn abandon_after(&self, limit: Duration) -> Option<String> {
        let mut now = lock(&self.now);
        let (what, since) = now.doing.as_ref()?;
        if since.elapsed() < limit {
            return None;
        }
        let what = what.clone();
        lock(&self.hung.0).insert(what.clone());
        now.abandoned = true;
        Some(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_is_left_out_until_it_comes_back() {
        let hung = Hung::default();
        let (stuck, other) = (Step::beside(hung.clone()), Step::beside(hung.clone()));
        let done = stuck.run("a", || {
            assert_eq!(stuck.abandon_after(Duration::MAX), None);
            assert_eq!(stuck.abandon_after(Duration::ZERO).as_deref(), Some("a"));
            assert_eq!(hung.names(), ["a"]);
            assert_eq!(other.run("a", || 1), None);
            assert_eq!(other.run("b", || 2), Some(2));
        });
        assert_eq!(done, None);
        assert_eq!(stuck.run("b", || 3), None, "it was given up");
        assert_eq!(other.run("a", || 4), Some(4), "it came back");
        assert!(hung.names().is_empty() && other.since().is_none());
    }
}
