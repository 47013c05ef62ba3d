//! What orders of the control plane do to the store. Decisions only: the caller writes the changes
//! and answers.

use std::collections::BTreeSet;
use std::time::Duration;

use hyperion_proto::agent_v1::{
    CommandResult, ReplicaPhase, ReplicaReport, RestartPolicy, StartReplica, StopReplica, Welcome,
};
use hyperion_proto::convert;
use hyperion_proto::domain::{ReplicaKey, Start};

use crate::store::{Change, Store};
use crate::supervisor::{Desired, Finished};

/// Orders that are taken together: one write to the disk, then all their answers.
#[derive(Default)]
pub struct Batch {
    /// To be applied.
    pub changes: Vec<Change>,
    /// Answers, to be sent when the changes are on disk.
    pub results: Vec<CommandResult>,
    /// Refusals as events: replica, where it is known, and why.
    pub refused: Vec<(Option<ReplicaKey>, String)>,
    /// Replicas to be stopped that this node does not hold, with the order's generation.
    pub absent: Vec<(ReplicaKey, u64)>,
    /// Replicas to be stopped that get at most so much time for it.
    pub hurried: Vec<(ReplicaKey, Duration)>,
    /// What the site is to be told, in order.
    pub told: Vec<Told>,
    keys: BTreeSet<ReplicaKey>,
}

/// An order that was taken, for the site.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// Run here.
    Start(Box<StartReplica>),
    /// Not to be run here with this generation or a lower one.
    Stop(ReplicaKey, u64),
}

impl Batch {
    /// True where the batch already changes this order's replica: it has to be applied first.
    pub fn touches(&self, key: Option<&hyperion_proto::agent_v1::ReplicaKey>) -> bool {
        convert::replica_key("", key).is_ok_and(|key| self.keys.contains(&key))
    }

    /// Takes an order to start.
    pub fn start(&mut self, store: &Store, order: &StartReplica, draining: bool) {
        let verdict = judge(store, order).and_then(|verdict| match verdict {
            Verdict::Take(d) if draining && store.held(&d.start.key).is_none() => {
                Err("start_replica.key: this node is drained and takes no new replicas".to_owned())
            }
            verdict => Ok(verdict),
        });
        let verdict = self.answer(order.key.as_ref(), order.command_id, verdict);
        let Some(verdict) = verdict else { return };
        self.told.push(Told::Start(Box::new(order.clone())));
        if let Verdict::Take(desired) = verdict {
            self.keys.insert(desired.start.key.clone());
            self.changes.push(Change::Put(*desired));
        }
    }

    /// Takes an order to stop.
    pub fn stop(&mut self, store: &Store, order: &StopReplica) {
        let key = stoppable(store, order);
        let Some(key) = self.answer(order.key.as_ref(), order.command_id, key) else {
            return;
        };
        if store.held(&key).is_none() {
            self.absent.push((key.clone(), order.generation));
        } else if order.grace_seconds > 0 {
            let grace = Duration::from_secs(u64::from(order.grace_seconds));
            self.hurried.push((key.clone(), grace));
        }
        self.told.push(Told::Stop(key.clone(), order.generation));
        if store.held(&key).is_some() || order.generation > store.highest(&key) {
            self.keys.insert(key.clone());
            self.changes.push(Change::Remove(key, order.generation));
        }
    }

    /// Takes a welcome; true where it was the whole, and what is held beyond it has to go, but for
    /// `decided`: what the site decided and the control plane has not taken.
    pub fn welcome(
        &mut self,
        store: &Store,
        welcome: &Welcome,
        decided: &BTreeSet<ReplicaKey>,
    ) -> bool {
        let mut listed = BTreeSet::new();
        let mut whole = welcome.replicas_complete;
        for order in &welcome.replicas {
            match convert::replica_key("welcome.replicas.key", order.key.as_ref()) {
                Ok(key) => drop(listed.insert(key)),
                // Which replica is meant is not known, so none may be taken for unlisted.
                Err(_) => whole = false,
            }
            self.start(store, order, false);
        }
        if whole {
            let gone = |key: &&ReplicaKey| !listed.contains(*key) && !decided.contains(*key);
            for key in store.keys().filter(gone) {
                let generation = store.highest(key);
                self.told.push(Told::Stop(key.clone(), generation));
                self.changes.push(Change::Remove(key.clone(), generation));
            }
        }
        whole
    }

    fn answer<T>(
        &mut self,
        key: Option<&hyperion_proto::agent_v1::ReplicaKey>,
        command_id: u64,
        verdict: Result<T, String>,
    ) -> Option<T> {
        match verdict {
            Ok(taken) => {
                if command_id != 0 {
                    self.results.push(CommandResult {
                        command_id,
                        ok: true,
                        error: String::new(),
                    });
                }
                Some(taken)
            }
            Err(error) => {
                let key = convert::replica_key("", key).ok();
                self.refused.push((key, error.clone()));
                self.results.push(CommandResult {
                    command_id,
                    ok: false,
                    error,
                });
                None
            }
        }
    }
}

/// What becomes of an order to start.
#[derive(Debug)]
enum Verdict {
    /// Holds already.
    Same,
    /// To be stored.
    Take(Box<Desired>),
}

fn judge(store: &Store, order: &StartReplica) -> Result<Verdict, String> {
    let start = convert::start(order).map_err(|e| e.to_string())?;
    let held = store.held(&start.key);
    if held.is_some_and(|held| held.start == start) {
        // Also where a later copy is known elsewhere: the two may overlap.
        return Ok(Verdict::Same);
    }
    let highest = store
        .highest(&start.key)
        .max(store.recorded_generation(&start.key));
    if start.generation < highest && !planted_bug() {
        return Err(format!(
            "start_replica.generation: {} is lower than {highest}, which this node has seen for {}",
            start.generation, start.key
        ));
    }
    let finished = held.and_then(|held| still_finished(held, &start));
    Ok(Verdict::Take(Box::new(Desired { start, finished })))
}

/// True where a test planted the bug that a check of generations is for. There is no such switch
/// in a released agent.
#[cfg(any(debug_assertions, feature = "planted-bugs"))]
pub fn planted_bug() -> bool {
    use std::sync::OnceLock;
    static PLANTED: OnceLock<bool> = OnceLock::new();
    *PLANTED.get_or_init(|| {
        std::env::var_os("HYPERION_PLANTED_BUG").is_some_and(|bug| bug == "generation")
    })
}

/// See above.
#[cfg(not(any(debug_assertions, feature = "planted-bugs")))]
pub const fn planted_bug() -> bool {
    false
}

/// A job that succeeded here is done, whichever generation asks for it again: after a partition
/// the control plane may not know yet. One that failed is tried again by a new generation.
pub fn still_finished(held: &Desired, start: &Start) -> Option<Finished> {
    let outcome = held.finished.as_ref()?;
    let same = held.start.pod == start.pod;
    let stands =
        outcome.phase == ReplicaPhase::Succeeded || held.start.generation == start.generation;
    (same && stands).then(|| outcome.clone())
}

fn stoppable(store: &Store, order: &StopReplica) -> Result<ReplicaKey, String> {
    let key =
        convert::replica_key("stop_replica.key", order.key.as_ref()).map_err(|e| e.to_string())?;
    let held = store.held(&key).map_or(0, |held| held.start.generation);
    if order.generation < held {
        return Err(format!(
            "stop_replica.generation: {} is lower than {held}, with which {key} runs",
            order.generation
        ));
    }
    Ok(key)
}

/// How a job's replica ended, where this report says that it did.
pub fn outcome(report: &ReplicaReport, desired: &Desired) -> Option<Finished> {
    if report.generation != desired.start.generation || desired.finished.is_some() {
        return None;
    }
    let phase = report.phase();
    let ended = match desired.start.pod.restart_policy() {
        RestartPolicy::Never => matches!(phase, ReplicaPhase::Succeeded | ReplicaPhase::Failed),
        RestartPolicy::OnFailure => phase == ReplicaPhase::Succeeded,
        RestartPolicy::Always | RestartPolicy::Unspecified => false,
    };
    ended.then(|| Finished {
        phase,
        exit_code: report.exit_code,
        reason: report.reason.clone(),
        message: report.message.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{desired, key, order};
    use hyperion_proto::agent_v1::ReplicaRecord;

    fn store(held: &[Desired]) -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path(), false).unwrap();
        let changes: Vec<Change> = held.iter().cloned().map(Change::Put).collect();
        store.apply(&changes, true);
        (dir, store)
    }

    fn succeeded() -> Finished {
        Finished {
            phase: ReplicaPhase::Succeeded,
            exit_code: 0,
            reason: "Completed".to_owned(),
            message: String::new(),
        }
    }

    #[test]
    fn a_lower_generation_is_refused_by_name() {
        let (_dir, store) = store(&[desired("web", 0, 5)]);
        let mut batch = Batch::default();
        batch.start(&store, &order("web", 0, 4), false);
        assert!(batch.changes.is_empty());
        assert!(!batch.results[0].ok);
        assert!(
            batch.results[0]
                .error
                .starts_with("start_replica.generation: 4 is lower than 5"),
            "{}",
            batch.results[0].error
        );
    }

    #[test]
    fn what_is_held_goes_on_beside_a_later_copy_elsewhere() {
        let (_dir, mut store) = store(&[desired("web", 0, 5)]);
        let elsewhere = ReplicaRecord {
            key: Some((&key("web", 0)).into()),
            generation: 6,
            node: "edge-2".to_owned(),
            ..ReplicaRecord::default()
        };
        store.apply(&[Change::Record(Box::new(elsewhere))], false);
        let mut batch = Batch::default();
        batch.start(&store, &order("web", 0, 5), false);
        assert!(batch.results.is_empty() && batch.refused.is_empty());
        assert!(batch.changes.is_empty());
        // Another pod of that generation is something else.
        let mut other = order("web", 0, 5);
        other.pod.as_mut().unwrap().containers[0].image = "other:1".to_owned();
        batch.start(&store, &other, false);
        assert_eq!(batch.refused.len(), 1);
    }

    #[test]
    fn a_removed_replica_still_refuses_lower_generations() {
        let (_dir, mut store) = store(&[desired("web", 0, 5)]);
        store.apply(&[Change::Remove(key("web", 0), 7)], false);
        let mut batch = Batch::default();
        batch.start(&store, &order("web", 0, 6), false);
        batch.start(&store, &order("web", 0, 7), false);
        assert!(!batch.results[0].ok);
        assert_eq!(batch.changes.len(), 1, "generation 7 is not lower");
    }

    #[test]
    fn a_welcome_removes_only_what_a_complete_list_leaves_out() {
        let (_dir, store) = store(&[desired("a", 0, 1), desired("b", 0, 1)]);
        let mut welcome = Welcome {
            replicas: vec![order("a", 0, 1)],
            replicas_complete: false,
            wall_clock_unix_ms: 0,
            ..Default::default()
        };
        let mut batch = Batch::default();
        assert!(!batch.welcome(&store, &welcome, &BTreeSet::new()));
        assert!(batch.changes.is_empty());
        welcome.replicas_complete = true;
        assert!(batch.welcome(&store, &welcome, &BTreeSet::new()));
        assert!(matches!(&batch.changes[..], [Change::Remove(k, 1)] if *k == key("b", 0)));
    }

    #[test]
    fn a_welcome_with_an_unreadable_key_removes_nothing() {
        let (_dir, store) = store(&[desired("a", 0, 1)]);
        let mut bad = order("a", 0, 1);
        bad.key.as_mut().unwrap().workload = "Not A Name".to_owned();
        let welcome = Welcome {
            replicas: vec![bad],
            replicas_complete: true,
            wall_clock_unix_ms: 0,
            ..Default::default()
        };
        let mut batch = Batch::default();
        assert!(!batch.welcome(&store, &welcome, &BTreeSet::new()));
        assert!(batch.changes.is_empty());
        assert!(batch.refused[0].1.contains("start_replica.key.workload"));
    }

    #[test]
    fn a_welcome_with_a_stale_generation_keeps_what_runs() {
        let (_dir, store) = store(&[desired("a", 0, 9)]);
        let welcome = Welcome {
            replicas: vec![order("a", 0, 3)],
            replicas_complete: true,
            wall_clock_unix_ms: 0,
            ..Default::default()
        };
        let mut batch = Batch::default();
        assert!(batch.welcome(&store, &welcome, &BTreeSet::new()));
        assert!(batch.changes.is_empty());
        assert!(!batch.results[0].ok);
    }

    #[test]
    fn a_job_that_succeeded_is_not_run_again_by_a_new_generation() {
        let done = Desired {
            finished: Some(succeeded()),
            ..desired("job", 0, 1)
        };
        let (_dir, store) = store(&[done]);
        let mut batch = Batch::default();
        batch.start(&store, &order("job", 0, 2), false);
        let [Change::Put(put)] = &batch.changes[..] else {
            panic!("no change");
        };
        assert_eq!(put.start.generation, 2);
        assert_eq!(put.finished, Some(succeeded()));
        let mut other = order("job", 0, 3);
        other.pod.as_mut().unwrap().containers[0].image = "other".to_owned();
        batch = Batch::default();
        batch.start(&store, &other, false);
        let [Change::Put(put)] = &batch.changes[..] else {
            panic!("no change");
        };
        assert_eq!(put.finished, None, "another pod is another job");
    }

    #[test]
    fn a_stop_of_an_older_generation_is_refused() {
        let (_dir, store) = store(&[desired("web", 0, 5)]);
        let mut stop = StopReplica {
            key: Some((&key("web", 0)).into()),
            generation: 4,
            grace_seconds: 9,
            command_id: 1,
        };
        let mut batch = Batch::default();
        batch.stop(&store, &stop);
        assert!(batch.changes.is_empty() && !batch.results[0].ok);
        assert!(batch.hurried.is_empty());
        stop.generation = 5;
        batch.stop(&store, &stop);
        assert_eq!(batch.hurried, [(key("web", 0), Duration::from_secs(9))]);
        assert!(matches!(&batch.changes[..], [Change::Remove(_, 5)]));
    }

    #[test]
    fn a_stop_of_what_is_not_here_is_answered() {
        let (_dir, store) = store(&[]);
        let stop = StopReplica {
            key: Some((&key("web", 0)).into()),
            generation: 4,
            grace_seconds: 0,
            command_id: 1,
        };
        let mut batch = Batch::default();
        batch.stop(&store, &stop);
        assert_eq!(batch.absent, [(key("web", 0), 4)]);
        assert!(batch.results[0].ok);
    }

    #[test]
    fn a_drained_node_takes_no_new_replicas_but_keeps_its_own() {
        let (_dir, store) = store(&[desired("web", 0, 5)]);
        let mut batch = Batch::default();
        batch.start(&store, &order("web", 0, 6), true);
        batch.start(&store, &order("new", 0, 1), true);
        assert_eq!(batch.changes.len(), 1);
        assert!(batch.results[0].error.contains("drained"));
    }

    #[test]
    fn only_a_job_of_the_held_generation_ends() {
        let mut held = desired("job", 0, 2);
        held.start.pod.restart_policy = RestartPolicy::Never.into();
        let mut report = ReplicaReport {
            generation: 2,
            phase: ReplicaPhase::Failed.into(),
            exit_code: 3,
            ..Default::default()
        };
        assert_eq!(outcome(&report, &held).unwrap().exit_code, 3);
        report.generation = 1;
        assert_eq!(outcome(&report, &held), None);
        report.generation = 2;
        held.start.pod.restart_policy = RestartPolicy::Always.into();
        assert_eq!(outcome(&report, &held), None);
    }
}
