//! Looks at the containers: when to look, and what is made of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::RuntimeState;
use super::driver::{Done, Driver};
use super::model::State;
use super::observe::{Cache, Observation, observe};
use super::rotate::rotate;
use crate::runtime::{RuntimeError, pod};

/// Time between the starts of two looks.
const LOOK_GAP: Duration = Duration::from_millis(20);
/// CRI may need a moment to see an end that the event stream told; looks are repeated so often.
const LOOKS_FOR_AN_END: u32 = 20;
/// Wait after a step that failed because containerd did not answer it.
pub(super) const BLIND_WAIT: Duration = Duration::from_millis(500);

/// When to look at the containers.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// Number at which the look under way began.
    pub running: Option<u64>,
    /// Time of the next.
    pub at: Option<Instant>,
    last: Option<Instant>,
    /// One has shown everything since containerd came.
    pub done: bool,
    cache: Cache,
}

impl Look {
    pub(super) fn soon(&mut self, now: Instant) {
        let earliest = self.last.map_or(now, |last| last + LOOK_GAP).max(now);
        self.by(earliest);
    }

    pub(super) fn by(&mut self, at: Instant) {
        self.at = Some(self.at.map_or(at, |before| before.min(at)));
    }
}

impl Driver {
    /// containerd can't be asked.
    pub(super) fn lose(&mut self, reason: String) {
        self.down = Some(reason.clone());
        self.set_runtime(RuntimeState::Unavailable { reason });
    }

    pub(super) fn begin_look(&mut self, now: Instant) {
        self.look.running = Some(self.sequence);
        self.look.last = Some(now);
        self.look.at = None;
        let (cri, node_id) = (self.hands.cri.clone(), Arc::clone(&self.hands.node_id));
        let cache = std::mem::take(&mut self.look.cache);
        self.tasks
            .spawn(async move { Done::Look(observe(&cri, &node_id, cache).await) });
    }

    pub(super) fn end_look(&mut self, result: Result<Observation, RuntimeError>, now: Instant) {
        let began = self.look.running.take().unwrap_or(self.sequence);
        let seen = match result {
            Ok(seen) => seen,
            Err(error) => {
                // A containerd that hangs keeps its connection.
                self.lose(error.to_string());
                self.look.by(now + BLIND_WAIT);
                return;
            }
        };
        if let Some((name, version)) = self.up.clone() {
            self.down = None;
            self.set_runtime(RuntimeState::Available { name, version });
        }
        self.look.cache = seen.cache;
        self.look.done = true;
        let mut sandboxes = seen.sandboxes;
        let unknown: Vec<_> = sandboxes.keys().cloned().collect();
        for key in unknown {
            self.replicas.entry(key).or_default();
        }
        for (key, replica) in &mut self.replicas {
            let seen = sandboxes.remove(key).unwrap_or_default();
            if replica.busy.is_some() {
                replica.missed = true;
            } else if replica.changed > began {
                self.look.soon(now);
            } else {
                replica.seen = seen;
                replica.stale = false;
            }
        }
        self.repeat_for_ends(now);
        self.begin_rotation();
        self.look.by(now + self.tuning.relist);
    }

    /// Looks again where an end that was told is not seen yet.
    fn repeat_for_ends(&mut self, now: Instant) {
        let mut running = BTreeSet::new();
        for sandbox in self.replicas.values().flat_map(|r| &r.seen) {
            if sandbox.ready {
                running.insert(sandbox.id.as_str());
            }
            let live = sandbox.containers.iter().filter(|c| c.live());
            running.extend(live.map(|c| c.id.as_str()));
        }
        self.ends.retain(|id, looks| {
            *looks += 1;
            running.contains(id.as_str()) && *looks <= LOOKS_FOR_AN_END
        });
        if let Some(looks) = self.ends.values().min() {
            self.look.by(now + LOOK_GAP * *looks);
        }
    }

    fn begin_rotation(&mut self) {
        let mut logs = Vec::new();
        for (key, replica) in &self.replicas {
            let dir = pod::log_dir(&self.hands.log_dir, key);
            for container in replica.seen.iter().flat_map(|s| &s.containers) {
                if container.state == State::Running {
                    let path = dir.join(pod::log_path(&container.name, container.attempt));
                    logs.push((container.id.clone(), path));
                }
            }
        }
        if !logs.is_empty() {
            let cri = self.hands.cri.clone();
            self.tasks.spawn(async move {
                rotate(&cri, logs).await;
                Done::Rotated
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_keep_their_distance_and_the_earliest_wins() {
        let now = Instant::now();
        let mut look = Look::default();
        look.soon(now);
        assert_eq!(look.at, Some(now));
        look.by(now + Duration::from_secs(10));
        assert_eq!(look.at, Some(now));
        let mut look = Look {
            last: Some(now),
            ..Look::default()
        };
        look.soon(now);
        assert_eq!(look.at, Some(now + LOOK_GAP));
    }
}
