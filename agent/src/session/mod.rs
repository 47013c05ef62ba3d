//! The agent's conversation with the control plane. One task owns it: orders come down, reports,
//! telemetry and events go up, and the store is written before anything is acted on.
//!
//! Everything is level-based. The supervisor is told the whole desired state from the store,
//! before the first connection is tried and after each change; a reconnect only compares. Reports
//! are sent where they differ from what this connection has. So a lost message, a lost connection
//! and a restart of either end are no special cases, and none of them restarts a container.
//!
//! A node that the control plane refuses (revoked, or its identity in use elsewhere) gets no more
//! orders and keeps what it runs: the agent cannot tell a decision from a fault of the control
//! plane, and stopping work that cannot be started again is the worse mistake. It says so in its
//! log, on /healthz and in its metrics, and tries again slowly.

mod core;
mod enrol;
mod logs;
mod orders;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use hyperion_link::{Link, LinkConfig, LinkEvent, LinkSender};
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{ReplicaPhase, ReplicaReport, StreamMessage, Welcome};
use hyperion_proto::convert;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub use self::core::NodeFacts;
use self::core::{Core, Outgoing};
pub use self::enrol::{EnrolFailed, Enrolment, enrol};
use self::logs::LogRequests;
use self::orders::Batch;
use crate::identity;
use crate::status::{Mode, Status};
use crate::store::Store;
use crate::supervisor::{RuntimeState, SupervisorEvent};
use crate::telemetry::{Envelope, Sampler};
use crate::workloads::Workloads;

/// Orders that are taken in one write to the disk, where so many wait.
const TOGETHER: usize = 64;
/// How long the first connection waits for the supervisor's first look at the runtime, so that
/// hello tells how adopted replicas are instead of "starting". Nothing else depends on it.
const FIRST_LOOK: Duration = Duration::from_secs(2);
/// Events to disk, reports that the link did not take.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// What a session needs.
pub struct SessionConfig<W> {
    /// The link; its `describe` is used for enrolling again with the old key.
    pub link: LinkConfig,
    /// Who this node is.
    pub identity: hyperion_link::Identity,
    /// Where a renewed identity is kept.
    pub data_dir: PathBuf,
    /// Of this start.
    pub facts: NodeFacts,
    /// What to run.
    pub store: Store,
    /// Who runs it.
    pub workloads: W,
    /// What the node measures.
    pub sampler: Sampler,
    /// Time between telemetry messages.
    pub telemetry_interval: Duration,
    /// For metrics and health.
    pub status: Arc<Status>,
}

type Shared<W> = Arc<Mutex<Core<W>>>;

fn lock<W>(core: &Mutex<Core<W>>) -> MutexGuard<'_, Core<W>> {
    core.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs until `stop`; then the store is flushed and the link closed. Containers keep running.
pub async fn run<W: Workloads>(
    config: SessionConfig<W>,
    mut supervisor: mpsc::Receiver<SupervisorEvent>,
    stop: CancellationToken,
) {
    let SessionConfig {
        link,
        identity,
        data_dir,
        facts,
        store,
        workloads,
        sampler,
        telemetry_interval,
        status,
    } = config;
    let mut core = Core::new(store, workloads, facts);
    if let Some(problem) = core.store.take_moved_aside() {
        core.event("StoreRebuilt", problem, true, None);
    }
    if core.store.partial() {
        info!("the store was lost: waiting for the control plane before anything is stopped");
    }
    core.push_desired();
    let core: Shared<W> = Arc::new(Mutex::new(core));
    let mut session = Session {
        core: core.clone(),
        sender: LinkSender::default(),
        logs: LogRequests::default(),
        data_dir,
        sampler,
        status,
        started: Instant::now(),
        sequence: 0,
        dropped: 0,
        draining: false,
        store_failed: false,
    };
    session.first_look(&mut supervisor, &stop).await;
    let hello = Arc::new(move || lock(&core).hello());
    let mut link = hyperion_link::start(link, identity, hello);
    session.sender = link.sender();
    let mut telemetry = tokio::time::interval(telemetry_interval);
    telemetry.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
    housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            event = link.next_event() => match event {
                Some(event) => session.link_event(event, &mut link),
                None => break,
            },
            Some(event) = supervisor.recv() => session.supervisor_event(event, &mut supervisor),
            _ = telemetry.tick() => session.telemetry(),
            _ = housekeeping.tick() => session.housekeeping(),
        }
    }
    session.logs.clear();
    lock(&session.core).store.sync(Instant::now());
    link.close().await;
}

struct Session<W> {
    core: Shared<W>,
    sender: LinkSender,
    logs: LogRequests,
    data_dir: PathBuf,
    sampler: Sampler,
    status: Arc<Status>,
    started: Instant,
    sequence: u64,
    /// Telemetry messages that could not be sent.
    dropped: u64,
    draining: bool,
    store_failed: bool,
}

impl<W: Workloads> Session<W> {
    async fn first_look(
        &mut self,
        supervisor: &mut mpsc::Receiver<SupervisorEvent>,
        stop: &CancellationToken,
    ) {
        let deadline = tokio::time::Instant::now() + FIRST_LOOK;
        while !lock(&self.core).all_reported() {
            tokio::select! {
                Some(event) = supervisor.recv() => self.supervisor_event(event, supervisor),
                () = tokio::time::sleep_until(deadline) => return,
                () = stop.cancelled() => return,
            }
        }
    }

    fn link_event(&mut self, event: LinkEvent, link: &mut Link) {
        match event {
            LinkEvent::Connected(welcome) => self.welcome(&welcome),
            LinkEvent::Message(message) => self.messages(message, link),
            LinkEvent::Disconnected { reason, retry_in } => self.disconnected(&reason, retry_in),
            LinkEvent::Renewed(renewed) => self.renewed(&renewed),
            LinkEvent::Refused { reason } => self.refused(&reason),
        }
    }

    fn refused(&mut self, reason: &str) {
        // Once: the attempts that follow are answered the same.
        if self.status.mode() != Mode::Refused {
            warn!(%reason, "the control plane refuses this node; its containers keep running, no orders are taken");
        }
        self.status.set_mode(Mode::Refused, reason);
    }

    fn welcome(&mut self, welcome: &Welcome) {
        self.draining = false;
        self.status.set_mode(Mode::Connected, "");
        let mut core = lock(&self.core);
        core.set_wall_clock(welcome.wall_clock_unix_ms);
        let mut batch = Batch::default();
        let whole = batch.welcome(&core.store, welcome);
        info!(
            replicas = welcome.replicas.len(),
            complete = welcome.replicas_complete,
            changes = batch.changes.len(),
            "connected"
        );
        core.store.apply(&batch.changes, whole);
        core.push_desired();
        drop(core);
        self.answer(batch);
    }

    /// Takes a message and those that wait behind it.
    fn messages(&mut self, first: StreamMessage, link: &mut Link) {
        let mut batch = Batch::default();
        let mut next = Some(first);
        let mut taken = 0;
        let mut other = None;
        while let Some(message) = next.take() {
            batch = self.message(message, batch);
            taken += 1;
            if taken < TOGETHER {
                match link.next_event().now_or_never().flatten() {
                    Some(LinkEvent::Message(message)) => next = Some(message),
                    event => other = event,
                }
            }
        }
        self.commit(batch);
        if let Some(event) = other {
            // Not a message, so this goes no deeper.
            self.link_event(event, link);
        }
    }

    fn message(&mut self, message: StreamMessage, mut batch: Batch) -> Batch {
        match message.body {
            Some(Body::StartReplica(order)) => {
                batch = self.in_order(order.key.as_ref(), batch);
                batch.start(&lock(&self.core).store, &order, self.draining);
            }
            Some(Body::StopReplica(order)) => {
                batch = self.in_order(order.key.as_ref(), batch);
                batch.stop(&lock(&self.core).store, &order);
            }
            Some(Body::EventAck(ack)) => {
                let mut core = lock(&self.core);
                core.store.ack(ack.id);
                core.send_events(&self.sender);
            }
            Some(Body::FetchLogs(fetch)) => {
                let workloads = lock(&self.core).workloads.clone();
                self.logs.handle(&fetch, &workloads, &self.sender);
            }
            Some(Body::Drain(drain)) => {
                // What runs is moved by the control plane, replica by replica; until its next
                // welcome nothing new comes here.
                self.draining = true;
                info!("drained: no new replicas are taken");
                batch.results.push(hyperion_proto::agent_v1::CommandResult {
                    command_id: drain.command_id,
                    ok: true,
                    error: String::new(),
                });
            }
            // Made by a newer control plane, or not for an agent.
            _ => debug!("message ignored"),
        }
        batch
    }

    /// Orders for one replica are taken one after the other.
    fn in_order(
        &mut self,
        key: Option<&hyperion_proto::agent_v1::ReplicaKey>,
        batch: Batch,
    ) -> Batch {
        if !batch.touches(key) {
            return batch;
        }
        self.commit(batch);
        Batch::default()
    }

    /// Writes, then acts, then answers.
    fn commit(&mut self, batch: Batch) {
        let mut core = lock(&self.core);
        if !batch.changes.is_empty() {
            core.store.apply(&batch.changes, false);
            core.push_desired();
        }
        drop(core);
        self.answer(batch);
    }

    fn answer(&mut self, batch: Batch) {
        let mut core = lock(&self.core);
        for (key, why) in &batch.refused {
            warn!(error = %why, "order refused");
            core.event("OrderRefused", why.clone(), true, key.as_ref());
        }
        for (key, generation) in &batch.absent {
            core.note_absent(key, *generation);
        }
        self.status
            .metrics
            .orders_refused
            .inc_by(batch.refused.len() as u64);
        for result in batch.results {
            // An answer that is not taken is made up for by the next welcome.
            self.sender.send(Body::CommandResult(result));
        }
        core.send_reports(&self.sender);
        core.send_events(&self.sender);
    }

    fn disconnected(&mut self, reason: &str, retry_in: Duration) {
        self.logs.clear();
        if self.status.mode() == Mode::Connected {
            info!(%reason, ?retry_in, "disconnected; containers keep running");
        } else if self.status.reason() != reason {
            // Once per reason: the attempts that follow mostly fail in the same way.
            info!(%reason, ?retry_in, "no connection");
        } else {
            debug!(%reason, ?retry_in, "no connection");
        }
        if self.status.mode() != Mode::Refused {
            self.status.set_mode(Mode::Suspect, reason);
        }
    }

    fn renewed(&mut self, renewed: &hyperion_link::Identity) {
        match identity::save(&self.data_dir, renewed) {
            Ok(()) => info!("certificate renewed"),
            Err(e) => {
                warn!(error = %e, "the renewed certificate is not on disk");
                let mut core = lock(&self.core);
                core.event("IdentityNotSaved", e.to_string(), true, None);
            }
        }
    }

    /// Takes an event of the supervisor and those that wait behind it.
    fn supervisor_event(
        &mut self,
        first: SupervisorEvent,
        more: &mut mpsc::Receiver<SupervisorEvent>,
    ) {
        let mut core = lock(&self.core);
        let mut next = Some(first);
        let mut left = TOGETHER;
        while let Some(event) = next {
            match event {
                SupervisorEvent::Report(report) => take_report(&mut core, report),
                SupervisorEvent::Event {
                    reason,
                    message,
                    warning,
                    key,
                } => core.event(&reason, message, warning, key.as_ref()),
                SupervisorEvent::Runtime(state) => {
                    self.status.set_runtime(&state);
                    take_runtime(&mut core, state);
                }
            }
            left -= 1;
            next = if left > 0 { more.try_recv().ok() } else { None };
        }
        core.send_reports(&self.sender);
        core.send_events(&self.sender);
    }

    fn telemetry(&mut self) {
        let sample = self.sampler.sample(Instant::now());
        self.sequence += 1;
        let dropped_events = lock(&self.core).store.dropped();
        let message = sample.message(Envelope {
            sequence: self.sequence,
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            dropped_total: self.dropped + dropped_events,
            rtt_ms: self.sender.rtt_ms(),
        });
        self.status.metrics.set_sample(&sample);
        // Old telemetry helps nobody: what can't be sent now is counted and gone.
        if self.sender.send(Body::Telemetry(message)) {
            self.status.metrics.telemetry_sent.inc();
        } else {
            self.dropped += 1;
            self.status.metrics.telemetry_dropped.inc();
        }
    }

    fn housekeeping(&mut self) {
        let mut core = lock(&self.core);
        core.store.sync(Instant::now());
        let failure = core.store.failure().map(str::to_owned);
        if failure.is_some() != self.store_failed {
            self.store_failed = failure.is_some();
            match &failure {
                Some(why) => core.event("StoreNotOnDisk", why.clone(), true, None),
                None => core.event("StoreOnDisk", "written again".to_owned(), false, None),
            }
        }
        core.send_reports(&self.sender);
        core.send_events(&self.sender);
        self.status.set_store(failure.as_deref());
        let reports = core.workloads.reports();
        self.status.metrics.set_replicas(&reports);
    }
}

fn take_runtime<W: Workloads>(core: &mut Core<W>, state: RuntimeState) {
    match state {
        RuntimeState::Available { name, version } => core.set_runtime(format!("{name} {version}")),
        RuntimeState::Unavailable { reason } => {
            core.set_runtime_problem(&reason);
            core.event("RuntimeUnavailable", reason, true, None);
        }
    }
}

fn take_report<W: Workloads>(core: &mut Core<W>, report: ReplicaReport) {
    let Ok(key) = convert::replica_key("", report.key.as_ref()) else {
        return;
    };
    let ended = core
        .store
        .held(&key)
        .and_then(|held| orders::outcome(&report, held));
    if let Some(outcome) = ended {
        core.store.finish(&key, outcome);
        core.push_desired();
    }
    if report.phase() == ReplicaPhase::Stopped {
        core.note_stopped(report);
    }
}
