//! Between the site's decisions and what this node runs: all of one step goes to disk in one
//! write, then the supervisor is told, then peers are.

use hyperion_autonomy::Output;
use hyperion_proto::agent_v1::{RecordState, ReplicaRecord, StartReplica};
use hyperion_proto::convert;
use hyperion_proto::domain::ReplicaKey;
use tracing::{info, warn};

use super::{Effect, Node, Now};
use crate::store::{Change, Store};
use crate::supervisor::Desired;
use crate::workloads::Workloads;

/// One step: changes that an order or a report brings, and what autonomy makes of it.
#[derive(Default)]
pub(super) struct Work {
    pub changes: Vec<Change>,
    /// What is held now is all that should run.
    pub whole: bool,
    pub outputs: Vec<Output>,
}

impl Work {
    pub(super) fn of(outputs: Vec<Output>) -> Self {
        Self {
            outputs,
            ..Self::default()
        }
    }
}

/// What autonomy starts with. Replicas that are held without a record, as an older agent left them,
/// get one: the site is to know of them, and without an intent they stay where they are.
pub(super) fn known(store: &Store, node_id: &str) -> Vec<ReplicaRecord> {
    let mut records = store.records();
    for desired in store.desired() {
        if store.recorded_generation(&desired.start.key) == 0 {
            let start = StartReplica {
                key: Some((&desired.start.key).into()),
                generation: desired.start.generation,
                pod: Some(desired.start.pod),
                ..StartReplica::default()
            };
            let mut record = ordered(&start, node_id, 0);
            if let Some(finished) = desired.finished {
                record.state = RecordState::Ended.into();
                record.outcome = finished.phase.into();
                record.exit_code = finished.exit_code;
            }
            records.push(record);
        }
    }
    records
}

/// The record that an order of the control plane makes.
pub(super) fn ordered(order: &StartReplica, node_id: &str, unix_ms: i64) -> ReplicaRecord {
    ReplicaRecord {
        key: order.key.clone(),
        generation: order.generation,
        state: RecordState::Placed.into(),
        node: node_id.to_owned(),
        pod: order.pod.clone(),
        intent: order.intent.clone(),
        unix_ms,
        taken: true,
        ..ReplicaRecord::default()
    }
}

impl<W: Workloads> Node<W> {
    /// Tells the supervisor what should run, unless that is not known.
    pub(super) fn push_desired(&self) {
        if !self.store.partial() {
            self.workloads.set_desired(self.store.desired());
        }
    }

    /// Writes all of a step, then acts on it, then speaks of it.
    pub(super) fn carry_out(&mut self, work: Work, now: Now) {
        let Work {
            mut changes,
            whole,
            outputs,
        } = work;
        let mut later = Vec::new();
        for output in outputs {
            match output {
                Output::Store(record) => {
                    self.decisions_due |= !record.taken;
                    changes.push(Change::Record(record));
                }
                Output::StoreSite(info) => {
                    later.push(Output::StoreSite(info.clone()));
                    changes.push(Change::Site(info));
                }
                Output::Forget(key) => changes.push(Change::Forget(key)),
                Output::Run(record) => match self.obey(&record, &changes) {
                    Ok(desired) => changes.extend(desired.map(Change::Put)),
                    Err(why) => later.push(refusal(&record, why)),
                },
                Output::Stop {
                    key,
                    generation,
                    why,
                } => {
                    if self.store.held(&key).is_some() {
                        info!(replica = %key, generation, %why, "stopped by the site");
                    }
                    changes.push(Change::Remove(key, generation));
                }
                other => later.push(other),
            }
        }
        if !changes.is_empty() || (whole && self.store.partial()) {
            let runs = |c: &Change| matches!(c, Change::Put(_) | Change::Remove(..));
            let pushed = whole || changes.iter().any(runs);
            self.store.apply(&changes, whole);
            if pushed {
                self.push_desired();
            }
        }
        for output in later {
            self.speak(output, now);
        }
    }

    /// What a decision of the site is to this node; none where it holds already.
    fn obey(&self, record: &ReplicaRecord, pending: &[Change]) -> Result<Option<Desired>, String> {
        let start = convert::start(&StartReplica {
            key: record.key.clone(),
            generation: record.generation,
            pod: record.pod.clone(),
            ..StartReplica::default()
        })
        .map_err(|e| e.to_string())?;
        let highest = self.highest(&start.key, pending);
        if start.generation < highest && !super::orders::planted_bug() {
            return Err(format!(
                "generation {} is lower than {highest}, which this node has seen for {}",
                start.generation, start.key
            ));
        }
        let held = self.store.held(&start.key);
        if held.is_some_and(|held| held.start == start) {
            // Unless the same step takes it away first.
            let removed = pending
                .iter()
                .any(|c| matches!(c, Change::Remove(key, _) if *key == start.key));
            if !removed {
                return Ok(None);
            }
        }
        let finished = held.and_then(|held| super::orders::still_finished(held, &start));
        Ok(Some(Desired { start, finished }))
    }

    fn highest(&self, key: &ReplicaKey, pending: &[Change]) -> u64 {
        let seen = pending.iter().filter_map(|change| match change {
            Change::Put(d) if d.start.key == *key => Some(d.start.generation),
            Change::Remove(k, generation) if k == key => Some(*generation),
            _ => None,
        });
        seen.max().unwrap_or(0).max(self.store.highest(key))
    }

    fn speak(&mut self, output: Output, now: Now) {
        match output {
            Output::Datagram { to, bytes } => self.effects.push(Effect::Datagram { to, bytes }),
            Output::Frame { to, frame } => self.effects.push(Effect::Frame {
                to,
                frame: Box::new(frame),
            }),
            Output::Mode { mode, why } => {
                info!(%mode, %why, "mode");
                self.decisions_due = true;
                self.effects.push(Effect::Mode { mode, why });
            }
            Output::Event {
                reason,
                message,
                warning,
                key,
            } => {
                if reason == REFUSED {
                    self.counts.records_refused += 1;
                }
                if warning {
                    warn!(%reason, %message, "site");
                } else {
                    info!(%reason, %message, "site");
                }
                self.event(reason, message, warning, key.as_ref(), now);
            }
            Output::StoreSite(info) => self.effects.push(Effect::Site(info)),
            // Stored or run already.
            Output::Store(_) | Output::Forget(_) | Output::Run(_) | Output::Stop { .. } => {}
        }
    }
}

/// Reason of the event of a decision that this node does not obey.
const REFUSED: &str = "RecordRefused";

fn refusal(record: &ReplicaRecord, why: String) -> Output {
    Output::Event {
        reason: REFUSED,
        message: format!("decision of {}: {why}", record.decider),
        warning: true,
        key: convert::replica_key("", record.key.as_ref()).ok(),
    }
}
