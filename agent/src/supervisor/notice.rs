//! What the tasks of the supervisor tell the loop.

use std::time::Instant;

use hyperion_proto::agent_v1::ReplicaPhase;
use hyperion_proto::domain::ReplicaKey;

use super::driver::Driver;
use super::probe::{Kind, Verdict};

/// Something that a task of the supervisor tells the loop.
#[derive(Debug)]
pub(super) enum Notice {
    Up {
        name: String,
        version: String,
    },
    Down {
        reason: String,
    },
    /// A first process ended.
    Exit {
        id: String,
    },
    Pulling {
        key: ReplicaKey,
        image: String,
    },
    Probe {
        key: ReplicaKey,
        container: String,
        kind: Kind,
        verdict: Verdict,
    },
}

impl Driver {
    pub(super) fn take_notice(&mut self, notice: Notice) {
        let now = Instant::now();
        match notice {
            Notice::Up { name, version } => {
                // Available only once a look has shown what runs.
                self.up = Some((name, version));
                self.look.done = false;
                for replica in self.replicas.values_mut() {
                    replica.stale = true;
                }
                self.look.soon(now);
            }
            Notice::Down { reason } => {
                self.up = None;
                self.lose(reason);
            }
            Notice::Exit { id } => {
                let ours = self
                    .replicas
                    .values()
                    .any(|r| r.busy.is_some() || r.owns(&id));
                if ours {
                    self.ends.insert(id, 0);
                    self.look.soon(now);
                }
            }
            Notice::Pulling { key, image } => self.pulling(&key, &image),
            Notice::Probe {
                key,
                container,
                kind,
                verdict,
            } => self.take_verdict(&key, &container, kind, verdict),
        }
    }

    fn pulling(&mut self, key: &ReplicaKey, image: &str) {
        let Some(replica) = self.replicas.get(key) else {
            return;
        };
        if replica.want.is_none() || replica.busy.is_none() {
            return;
        }
        if let Some(mut report) = replica.reported.clone() {
            report.phase = ReplicaPhase::Pulling.into();
            report.reason = "Pulling".to_owned();
            report.message = format!("image {image}");
            self.say(key, report);
        }
        self.event("Pulling", format!("image {image}"), false, key);
    }

    fn take_verdict(&mut self, key: &ReplicaKey, container: &str, kind: Kind, verdict: Verdict) {
        let Some(replica) = self.replicas.get_mut(key) else {
            return;
        };
        if !replica.owns(container) {
            return;
        }
        let health = replica.memory.health_mut(container);
        match (kind, verdict) {
            (Kind::Readiness, Verdict::Good) => {
                health.ready = true;
                health.message.clear();
            }
            (Kind::Readiness, Verdict::Bad(words)) => {
                let lost = std::mem::replace(&mut health.ready, false);
                health.message = format!("readiness probe: {words}");
                if lost {
                    let text = health.message.clone();
                    self.event("NotReady", text, true, key);
                }
            }
            (Kind::Liveness, Verdict::Bad(words)) => {
                health.dead = Some(words.clone());
                let text = format!("liveness probe: {words}");
                self.event("LivenessFailed", text, true, key);
            }
            // It is being stopped already; it does not come back to life.
            (Kind::Liveness, Verdict::Good) => {}
        }
    }
}
