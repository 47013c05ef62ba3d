//! The loop: takes in what changed, asks [`plan`] for each replica, and carries its steps out, one
//! at a time per replica, many replicas at once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyperion_proto::agent_v1::ReplicaPhase;
use hyperion_proto::domain::ReplicaKey;
use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::look::{BLIND_WAIT, Look};
use super::model::{Step, Want};
use super::notice::Notice;
use super::observe::Observation;
use super::outbox::Outbox;
use super::pins;
use super::plan::plan;
use super::replica::{Busy, Replica};
use super::steps::{Did, Hands};
use super::{
    Desired, RuntimeState, Shared, SupervisorConfig, SupervisorEvent, Tuning, connection, lock,
};
use crate::runtime::{Cri, RuntimeError, labels, pod};

/// Wait for steps that are being done when the supervisor stops.
const STOP_WAIT: Duration = Duration::from_secs(3);

/// Result of a task.
#[derive(Debug)]
pub(super) enum Done {
    Step(ReplicaKey, Result<Did, RuntimeError>),
    Look(Result<Observation, RuntimeError>),
    Rotated,
}

/// The loop's state.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) tuning: Tuning,
    shared: Arc<Shared>,
    changes: watch::Receiver<Option<Arc<Vec<Desired>>>>,
    events: mpsc::Sender<SupervisorEvent>,
    notices: mpsc::Receiver<Notice>,
    pub(super) hands: Hands,
    pub(super) tasks: JoinSet<Done>,
    /// Which replica a task works for, for when it is aborted or panics.
    workers: HashMap<Id, ReplicaKey>,
    pub(super) replicas: BTreeMap<ReplicaKey, Replica>,
    pub(super) outbox: Outbox,
    /// Name and version of containerd, while the connection to it stands.
    pub(super) up: Option<(String, String)>,
    /// Why containerd can't be asked; none while it answers.
    pub(super) down: Option<String>,
    /// Whether the desired state was ever set: before that nothing is stopped.
    told: bool,
    /// Grows with every begin and end of a step.
    pub(super) sequence: u64,
    pub(super) look: Look,
    /// Ends that a look has not shown yet, with the looks that were tried.
    pub(super) ends: BTreeMap<String, u32>,
}

impl Driver {
    pub(super) fn new(
        config: SupervisorConfig,
        tuning: Tuning,
        shared: Arc<Shared>,
        changes: watch::Receiver<Option<Arc<Vec<Desired>>>>,
        events: mpsc::Sender<SupervisorEvent>,
    ) -> Self {
        let (sender, notices) = mpsc::channel(64);
        let down = format!("{}: not tried yet", config.socket.display());
        let cri = Cri::new(config.socket);
        let images = shared.images.clone();
        Self {
            tuning,
            shared,
            changes,
            events,
            notices,
            hands: Hands::new(cri, config.node_id, config.log_dir, sender, images),
            tasks: JoinSet::new(),
            workers: HashMap::new(),
            replicas: BTreeMap::new(),
            outbox: Outbox::default(),
            up: None,
            down: Some(down),
            told: false,
            sequence: 0,
            look: Look::default(),
            ends: BTreeMap::new(),
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        let watcher = tokio::spawn(connection::watch(
            self.hands.cri.clone(),
            self.hands.node_id.to_string(),
            self.tuning.reconnect,
            self.hands.notices.clone(),
        ));
        let pins = tokio::spawn(pins::keep(
            self.hands.cri.clone(),
            self.changes.clone(),
            self.hands.came.clone(),
        ));
        self.changes.mark_changed();
        let events = self.events.clone();
        let mut open = true;
        loop {
            let wake = self.advance();
            tokio::select! {
                () = stop.cancelled() => break,
                changed = self.changes.changed(), if open => {
                    // Every handle is gone: what runs goes on, nothing new comes.
                    open = changed.is_ok();
                    let desired = self.changes.borrow_and_update().clone();
                    self.take_desired(desired.as_deref());
                }
                Some(notice) = self.notices.recv() => self.take_notice(notice),
                Some(done) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => {
                    self.take_done(done);
                }
                permit = events.reserve(), if !self.outbox.is_empty() => {
                    self.tell(permit.ok());
                }
                () = sleep_until(wake) => {}
            }
        }
        watcher.abort();
        pins.abort();
        // A step that is cut off leaves half a container, which the next agent has to clear away.
        for replica in self.replicas.values() {
            replica.abort_pull();
        }
        let rest = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(STOP_WAIT, rest).await;
    }

    fn tell(&mut self, permit: Option<mpsc::Permit<'_, SupervisorEvent>>) {
        match (permit, self.outbox.pop()) {
            (Some(permit), Some(event)) => permit.send(event),
            // Nobody listens: reports can still be read from the handle.
            (None, _) => while self.outbox.pop().is_some() {},
            (Some(_), None) => {}
        }
    }

    /// Does everything that can be done now; returns when to wake at the latest.
    fn advance(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let due = self.look.at.is_some_and(|at| at <= now);
        if due && self.up.is_some() && self.look.running.is_none() {
            self.begin_look(now);
        }
        let keys: Vec<_> = self.replicas.keys().cloned().collect();
        for key in &keys {
            self.advance_replica(key, now);
        }
        let can_look = self.up.is_some() && self.look.running.is_none();
        let look = self.look.at.filter(|_| can_look);
        // Of the others a wake in the past would make this loop spin: a step or a look ends that.
        let idle = self.replicas.values().filter(|r| r.idle());
        let wakes = idle.filter_map(|r| r.wake);
        wakes.filter(|_| self.down.is_none()).chain(look).min()
    }

    fn advance_replica(&mut self, key: &ReplicaKey, now: Instant) {
        let behind = self.predecessor(key);
        let Some(replica) = self.replicas.get_mut(key) else {
            return;
        };
        if replica.busy.is_some() {
            return;
        }
        if let Some(why) = &self.down {
            if replica.want.is_some() {
                let report = replica.blind_report(key, why);
                self.say(key, report);
            }
            return;
        }
        if !self.told || replica.stale {
            return;
        }
        if let Some(want) = &mut replica.want {
            want.behind = behind;
        }
        let want = replica.want.as_ref();
        let plan = plan(want, &replica.seen, &mut replica.memory, now, &self.tuning);
        replica.wake = plan.wake;
        if plan.status.phase == ReplicaPhase::Running {
            replica.memory.forgive();
        }
        replica.tend_probes(key, &self.hands.cri, &self.hands.notices);
        let report = replica.report(key, &plan.status);
        for (reason, message, warning) in replica.memory.news() {
            self.event(reason, message, warning, key);
        }
        if plan.gone {
            lock(&self.shared.hurried).remove(key);
            self.forget(key);
        } else if let Some(step) = plan.step {
            self.begin_step(key, step);
        }
        self.say(key, report);
    }

    /// Another replica of the same name and number, of a workload that was deleted.
    fn predecessor(&self, key: &ReplicaKey) -> Option<ReplicaKey> {
        let from = ReplicaKey {
            uid: String::new(),
            ..key.clone()
        };
        let alike = |other: &&ReplicaKey| {
            other.namespace == key.namespace && other.workload == key.workload
        };
        self.replicas
            .range(from..)
            .take_while(|(other, _)| alike(other))
            .find(|(other, replica)| {
                other.index == key.index && other.uid != key.uid && replica.want.is_none()
            })
            .map(|(other, _)| other.clone())
    }

    fn begin_step(&mut self, key: &ReplicaKey, mut step: Step) {
        if let Step::StopSandbox { grace, .. } = &mut step
            && let Some(most) = lock(&self.shared.hurried).get(key)
        {
            *grace = (*grace).min(*most);
        }
        let Some(replica) = self.replicas.get_mut(key) else {
            return;
        };
        tracing::debug!(replica = %key, ?step, "step");
        self.sequence += 1;
        replica.changed = self.sequence;
        let hands = self.hands.clone();
        let (of, want, doing) = (key.clone(), replica.want.clone(), step.clone());
        let abort = self.tasks.spawn(async move {
            let result = hands.act(of.clone(), want, doing).await;
            Done::Step(of, result)
        });
        self.workers.insert(abort.id(), key.clone());
        replica.busy = Some(Busy { step, abort });
    }

    fn take_done(&mut self, done: Result<(Id, Done), JoinError>) {
        let now = Instant::now();
        match done {
            Ok((id, Done::Step(key, result))) => {
                self.workers.remove(&id);
                self.end_step(&key, result, now);
            }
            Ok((_, Done::Look(result))) => self.end_look(result, now),
            Ok((_, Done::Rotated)) => {}
            Err(error) => {
                if error.is_panic() {
                    tracing::error!(%error, "a step panicked");
                }
                let Some(key) = self.workers.remove(&error.id()) else {
                    // A look; the next one starts afresh.
                    self.look.running = None;
                    self.look.soon(now);
                    return;
                };
                if let Some(replica) = self.replicas.get_mut(&key) {
                    replica.busy = None;
                    replica.stale = true;
                    self.look.soon(now);
                }
            }
        }
    }

    fn end_step(&mut self, key: &ReplicaKey, result: Result<Did, RuntimeError>, now: Instant) {
        self.sequence += 1;
        let Some(replica) = self.replicas.get_mut(key) else {
            return;
        };
        replica.changed = self.sequence;
        let Some(Busy { step, .. }) = replica.busy.take() else {
            return;
        };
        if std::mem::take(&mut replica.missed) {
            self.look.soon(now);
        }
        let did = match result {
            Ok(did) => did,
            Err(error) => return self.step_failed(key, &step, &error, now),
        };
        replica.memory.succeed();
        match did {
            Did::Image {
                image,
                pulled,
                stale,
            } => {
                replica.memory.images.insert(image.clone());
                if let Some(took) = pulled {
                    let text = format!("image {image} pulled in {:.1} s", took.as_secs_f64());
                    self.event("Pulled", text, false, key);
                } else if let Some(error) = stale {
                    let text = format!("{error}; the copy on this node is used");
                    self.event("ImagePullFailed", text, true, key);
                }
            }
            Did::Sandbox(sandbox) => replica.seen.push(sandbox),
            Did::Started { sandbox, container } => {
                let text = format!("container {} started", container.name);
                let sandbox = replica.seen.iter_mut().find(|s| s.id == sandbox);
                if let Some(sandbox) = sandbox {
                    sandbox.containers.push(container);
                }
                self.event("Started", text, false, key);
            }
            Did::Other => {
                replica.stale = true;
                self.look.soon(now);
            }
        }
    }

    fn step_failed(&mut self, key: &ReplicaKey, step: &Step, error: &RuntimeError, now: Instant) {
        let Some(replica) = self.replicas.get_mut(key) else {
            return;
        };
        // What the step did before it failed is unknown.
        replica.stale = true;
        self.look.soon(now);
        let message = error.to_string();
        if error.is_unavailable() {
            let until = now + BLIND_WAIT;
            replica.memory.pause("RuntimeUnavailable", message, until);
            return;
        }
        replica
            .memory
            .fail(step, message.clone(), now, &self.tuning);
        tracing::warn!(replica = %key, %error, "step failed");
        self.event(step.failure_reason(), message, true, key);
    }

    fn take_desired(&mut self, desired: Option<&Vec<Desired>>) {
        let Some(desired) = desired else { return };
        self.told = true;
        let mut wanted: BTreeSet<&ReplicaKey> = BTreeSet::new();
        for one in desired {
            wanted.insert(&one.start.key);
            lock(&self.shared.hurried).remove(&one.start.key);
            self.want(one);
        }
        for (key, replica) in &mut self.replicas {
            if !wanted.contains(key) && replica.want.take().is_some() {
                replica.abort_pull();
                // The failure was one of starting; stopping is not held up by it.
                replica.memory.succeed();
            }
        }
    }

    fn want(&mut self, desired: &Desired) {
        let known = self.replicas.contains_key(&desired.start.key);
        let replica = self.replicas.entry(desired.start.key.clone()).or_default();
        if !known {
            // Before the first look nothing is known of it; after that, a replica that was not
            // seen is not there.
            replica.stale = !self.look.done;
        }
        let hash = match &replica.want {
            Some(old) if old.start.pod == desired.start.pod => old.hash.clone(),
            _ => labels::pod_hash(&desired.start.pod),
        };
        if replica.want.as_ref().is_some_and(|old| old.hash != hash) {
            replica.abort_pull();
        }
        let again = desired.finished.is_none()
            && replica
                .want
                .as_ref()
                .is_some_and(|old| old.finished.is_some() && old.hash == hash);
        if again {
            replica.memory.start_over();
        }
        replica.want = Some(Want {
            start: desired.start.clone(),
            hash,
            finished: desired.finished.clone(),
            behind: None,
        });
    }

    /// Nothing is left of a replica that is not wanted.
    fn forget(&mut self, key: &ReplicaKey) {
        self.replicas.remove(key);
        let logs = pod::log_dir(&self.hands.log_dir, key);
        if let Err(error) = std::fs::remove_dir_all(&logs)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %logs.display(), %error, "logs not removed");
        }
    }

    /// Tells a report where it differs from the last.
    pub(super) fn say(
        &mut self,
        key: &ReplicaKey,
        report: hyperion_proto::agent_v1::ReplicaReport,
    ) {
        let kept = self.replicas.get_mut(key);
        let Some(replica) = kept else {
            lock(&self.shared.reports).remove(key);
            self.outbox.report(report);
            return;
        };
        if replica.reported.as_ref() == Some(&report) {
            return;
        }
        lock(&self.shared.reports).insert(key.clone(), report.clone());
        self.outbox.report(report.clone());
        if let Some(replica) = self.replicas.get_mut(key) {
            replica.reported = Some(report);
        }
    }

    pub(super) fn event(&mut self, reason: &str, message: String, warning: bool, key: &ReplicaKey) {
        self.outbox.event(SupervisorEvent::Event {
            reason: reason.to_owned(),
            message,
            warning,
            key: Some(key.clone()),
        });
    }

    pub(super) fn set_runtime(&mut self, state: RuntimeState) {
        let mut known = lock(&self.shared.runtime);
        if *known != state {
            match &state {
                RuntimeState::Available { name, version } => {
                    tracing::info!(name, version, "containerd answers");
                }
                RuntimeState::Unavailable { reason } => tracing::warn!(reason, "no containerd"),
            }
            known.clone_from(&state);
            self.outbox.event(SupervisorEvent::Runtime(state));
        }
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
