//! The agent's conversation with the control plane, the site and the machine: drives a [`Node`],
//! which decides, with a real link and real clocks. One task owns it.
//!
//! Everything is level-based. The supervisor is told the whole desired state from the store,
//! before the first connection is tried and after each change; a reconnect only compares. Reports
//! are sent where they differ from what this connection has. So a lost message, a lost connection
//! and a restart of either end are no special cases, and none of them restarts a container.
//!
//! A node that the control plane refuses (revoked, or its identity in use elsewhere) gets no more
//! orders and keeps what it runs: the agent cannot tell a decision from a fault of the control
//! plane, and stopping work that cannot be started again is the worse mistake. It says so in its
//! log, on /healthz and in its metrics, and tries again slowly. So does one whose key can't be opened.

mod enrol;
mod logs;
mod site;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use hyperion_link::{Link, LinkConfig, LinkEvent, LinkSender};
use hyperion_proto::agent_v1::{StreamMessage, Welcome};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub use self::enrol::{EnrolFailed, Enrolment, enrol};
use self::logs::LogRequests;
use self::site::Net;
pub use self::site::{Holders, PolicyShelf, SiteConfig};
use crate::identity::IdentityFile;
use crate::node::{Effect, Gone, Measured, Node, NodeConfig, Now};
use crate::notice::Notices;
use crate::status::{Mode, Status};
use crate::store::Store;
use crate::supervisor::SupervisorEvent;
use crate::telemetry::sensors::Look;
use crate::telemetry::{Envelope, Sampler, Sensors};
use crate::update::Worker;
use crate::workloads::Workloads;

/// Messages that are taken in one write to the disk, where so many wait.
const TOGETHER: usize = 64;
/// How long the first connection waits for the supervisor's first look at the runtime, so that
/// hello tells how adopted replicas are instead of "starting". Nothing else depends on it.
const FIRST_LOOK: Duration = Duration::from_secs(2);
/// Shortest time between two ticks of the node.
const TICK: Duration = Duration::from_millis(5);

/// What a session needs.
pub struct SessionConfig<W> {
    /// The link; its `describe` is used for enrolling again with the old key.
    pub link: LinkConfig,
    /// Who this node is.
    pub identity: hyperion_link::Identity,
    /// Where a renewed identity is kept.
    pub identity_file: IdentityFile,
    /// How the node is to be.
    pub node: NodeConfig,
    /// What to run.
    pub store: Store,
    /// Who runs it.
    pub workloads: W,
    /// What the node measures.
    pub sampler: Sampler,
    /// What its sensors show.
    pub sensors: Sensors,
    /// Time between telemetry messages.
    pub telemetry_interval: Duration,
    /// For metrics and health.
    pub status: Arc<Status>,
    /// What the machine's cloud says is about to happen to it.
    pub notices: Notices,
    /// Who brings updates and asks root's part for them.
    pub updates: Worker,
    /// Peers and people at the site.
    pub site: SiteConfig,
}

type Shared<W> = Arc<Mutex<Node<W>>>;

fn lock<W>(node: &Mutex<Node<W>>) -> MutexGuard<'_, Node<W>> {
    node.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now() -> Now {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH);
    Now {
        at: Instant::now(),
        unix_ms: unix.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(0)),
    }
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
        identity_file,
        node,
        store,
        workloads,
        sampler,
        sensors,
        telemetry_interval,
        status,
        mut notices,
        updates,
        site,
    } = config;
    let node = Node::new(node, store, workloads.clone(), now());
    let node: Shared<W> = Arc::new(Mutex::new(node));
    let mut session = Session {
        node: node.clone(),
        workloads,
        sender: LinkSender::default(),
        logs: LogRequests::default(),
        identity_file,
        sampler,
        sensors,
        status,
        updates,
        net: Net::new(site, &node),
        look_at: None,
        mode_why: String::new(),
    };
    session.look_around();
    session.look_at_update();
    session.perform();
    session.first_look(&mut supervisor, &stop).await;
    let hello = Arc::new(move || lock(&node).hello());
    let mut link = hyperion_link::start(link, identity, hello);
    session.sender = link.sender();
    let mut telemetry = tokio::time::interval(telemetry_interval);
    telemetry.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let wake = lock(&session.node).next_wake().max(Instant::now() + TICK);
        tokio::select! {
            () = stop.cancelled() => break,
            event = link.next_event() => match event {
                Some(event) => session.link_event(event, &mut link),
                None => break,
            },
            Some(event) = supervisor.recv() => session.supervisor_event(event, &mut supervisor),
            Some(event) = session.net.events.recv() => session.peer_events(event),
            Some(request) = session.net.local.recv() => session.local_request(request),
            Some(done) = session.net.done.recv() => session.done(done, &link),
            Some(told) = session.updates.told() => {
                lock(&session.node).update_told(told, now(), &session.sender);
            }
            // Of a cloud that nobody asks there is never one.
            Ok(()) = notices.changed() => session.notices(&mut notices),
            _ = telemetry.tick() => session.sensors.begin(),
            look = session.sensors.done() => session.telemetry(look),
            () = tokio::time::sleep_until(wake.into()) => session.tick(),
        }
        session.perform();
        session.follow_update();
        session.follow_way(&link);
    }
    session.logs.clear();
    lock(&session.node).stop(now());
    link.close().await;
}

struct Session<W> {
    node: Shared<W>,
    workloads: W,
    sender: LinkSender,
    logs: LogRequests,
    identity_file: IdentityFile,
    sampler: Sampler,
    sensors: Sensors,
    status: Arc<Status>,
    updates: Worker,
    net: Net,
    look_at: Option<Instant>,
    /// Why the node is in its mode.
    mode_why: String,
}

impl<W: Workloads> Session<W> {
    async fn first_look(
        &mut self,
        supervisor: &mut mpsc::Receiver<SupervisorEvent>,
        stop: &CancellationToken,
    ) {
        let deadline = tokio::time::Instant::now() + FIRST_LOOK;
        while !lock(&self.node).all_reported() {
            tokio::select! {
                Some(event) = supervisor.recv() => {
                    self.supervisor_event(event, supervisor);
                    self.perform();
                }
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
            warn!(%reason, "kept out of the fleet; its containers keep running, no orders are taken");
        }
        self.status.set_mode(Mode::Refused, reason);
        lock(&self.node).disconnected(Gone::Refused(reason.to_owned()), now());
    }

    fn welcome(&mut self, welcome: &Welcome) {
        let mut node = lock(&self.node);
        match self.net.through() {
            Some(peer) if self.sender.relayed() => {
                node.connected_through(peer, welcome, now(), &self.sender);
            }
            _ => node.connected(welcome, now(), &self.sender),
        }
        self.status.set_mode(Mode::of(node.mode(), true), "");
    }

    /// Takes a message and those that wait behind it.
    fn messages(&mut self, first: StreamMessage, link: &mut Link) {
        let mut messages = vec![first];
        let mut other = None;
        while messages.len() < TOGETHER {
            match link.next_event().now_or_never().flatten() {
                Some(LinkEvent::Message(message)) => messages.push(message),
                event => {
                    other = event;
                    break;
                }
            }
        }
        lock(&self.node).messages(messages, now(), &self.sender);
        if let Some(event) = other {
            // In order: logs that were asked for are gone with the connection.
            self.perform();
            // Not a message, so this goes no deeper.
            self.link_event(event, link);
        }
    }

    fn disconnected(&mut self, reason: &str, retry_in: Duration) {
        self.logs.clear();
        let mut node = lock(&self.node);
        if node.linked() {
            info!(%reason, ?retry_in, "disconnected; containers keep running");
        } else if self.status.reason() != reason {
            // Once per reason: the attempts that follow mostly fail in the same way.
            info!(%reason, ?retry_in, "no connection");
        } else {
            debug!(%reason, ?retry_in, "no connection");
        }
        node.disconnected(Gone::Lost, now());
        if self.status.mode() != Mode::Refused {
            self.status.set_mode(Mode::of(node.mode(), false), reason);
        }
    }

    fn renewed(&mut self, renewed: &hyperion_link::Identity) {
        if let Some(peers) = &self.net.peers {
            peers.set_identity(renewed);
        }
        match self.identity_file.save(renewed) {
            Ok(()) => info!("certificate renewed"),
            Err(e) => {
                warn!(error = %e, "the renewed certificate is not on disk");
                lock(&self.node).identity_not_saved(e.to_string(), now());
            }
        }
    }

    /// Takes an event of the supervisor and those that wait behind it.
    fn supervisor_event(
        &mut self,
        first: SupervisorEvent,
        more: &mut mpsc::Receiver<SupervisorEvent>,
    ) {
        let mut events = vec![first];
        while events.len() < TOGETHER
            && let Ok(event) = more.try_recv()
        {
            events.push(event);
        }
        for event in &events {
            if let SupervisorEvent::Runtime(state) = event {
                self.status.set_runtime(state);
            }
        }
        lock(&self.node).supervisor(events, now(), &self.sender);
    }

    fn notices(&mut self, notices: &mut Notices) {
        let Some(said) = notices.borrow_and_update().clone() else {
            return;
        };
        lock(&self.node).interruptions(said, now(), &self.sender);
    }

    fn telemetry(&mut self, look: Look) {
        {
            let mut node = lock(&self.node);
            node.set_gpus(look.gpu_list());
            node.set_slowed(look.throttled_by_heat(), now());
        }
        let sample = self.sampler.sample(Instant::now(), look);
        let message = sample.message(Envelope {
            rtt_ms: self.sender.rtt_ms(),
            ..Envelope::default()
        });
        self.status.metrics.set_sample(&sample);
        match lock(&self.node).measured(message, now(), &self.sender) {
            Measured::Sent => self.status.metrics.telemetry_sent.inc(),
            Measured::Kept => self.status.metrics.telemetry_kept.inc(),
        };
    }

    fn tick(&mut self) {
        let mut node = lock(&self.node);
        node.tick(now(), &self.sender);
        self.status.set_store(node.store().failure());
        self.status.metrics.set_node(&node);
        drop(node);
        if self.look_at.is_none_or(|at| now().at >= at) {
            self.look_at = Some(now().at + Duration::from_secs(1));
            self.look_around();
            self.look_at_update();
        }
    }

    /// How far an update is.
    fn look_at_update(&mut self) {
        let engine = self.updates.look();
        let mut node = lock(&self.node);
        if let Some((id, percent)) = self.updates.bringing() {
            node.update_percent(id, percent);
        }
        node.update_engine(engine, now(), &self.sender);
    }

    fn follow_update(&mut self) {
        let (task, needed) = {
            let node = lock(&self.node);
            (node.update_task(), node.update_needs_bundle())
        };
        self.updates.follow(task, needed, now().at);
    }

    /// Does what the node wants done.
    fn perform(&mut self) {
        let effects = lock(&self.node).take_effects();
        for effect in effects {
            match effect {
                Effect::Logs(fetch) => self.logs.handle(&fetch, &self.workloads, &self.sender),
                Effect::Mode { mode, why } => {
                    self.mode_why.clone_from(&why);
                    let linked = lock(&self.node).linked();
                    if self.status.mode() != Mode::Refused || linked {
                        self.status.set_mode(Mode::of(mode, linked), &why);
                    }
                }
                Effect::Datagram { to, bytes } => {
                    if let Some(peers) = &self.net.peers {
                        peers.datagram(&to, bytes);
                    }
                }
                Effect::Frame { to, frame } => {
                    if let Some(peers) = &self.net.peers {
                        peers.frame(&to, &frame);
                    }
                }
                Effect::Site(info) => {
                    if let Some(peers) = &self.net.peers {
                        peers.set_revoked(&info.revoked);
                    }
                    self.look_around();
                }
                Effect::FetchPolicy { sha256 } => {
                    let holders = lock(&self.node).policy_holders(&sha256);
                    self.net.fetch_policy(sha256, holders);
                }
            }
        }
    }
}
