//! A node without its I/O: what orders, peers, containers and time do to what it runs and knows.
//!
//! It owns the store and the core of autonomy, and joins them: an order of the control plane is
//! told to the site, a decision of the site becomes an order to the supervisor, and both are on
//! disk before anything is done about them or said of them. The session drives it with a real link
//! and real peers; a simulation drives many on virtual time.
//!
//! How to drive it:
//! - [`Node::new`], then what [`Node::take_effects`] gives is to be done: after each call of any
//!   method that takes [`Now`], in order.
//! - [`Node::tick`] at [`Node::next_wake`] at the latest.
//! - For each connection of the link: [`Node::hello`] makes the first message, then
//!   [`Node::connected`] with the answer, [`Node::messages`], and [`Node::disconnected`].
//! - Messages to the control plane go out through [`Outgoing`] during the call.
//! - A crash is dropping it, a restart is [`Node::new`] with a store opened anew on the same file;
//!   [`Node::stop`] before is a clean end.
//!
//! Nothing here reads a clock, draws a random number or touches a socket: [`Now`] and the seed are
//! given.

mod clock;
mod decisions;
mod effects;
mod glue;
mod link;
mod me;
mod orders;
mod peers;
mod policy;
mod reports;
mod telemetry;
#[cfg(test)]
mod tests;
mod update;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use hyperion_autonomy::{Autonomy, Me, Mode, Profile, Start};
use hyperion_proto::agent_v1::{
    Interruptions, NodeCapabilities, NodeState, ReplicaReport, SiteInfo,
};
use hyperion_proto::domain::ReplicaKey;
use tracing::info;

pub use self::clock::Now;
pub use self::effects::{Effect, Outgoing};
pub use self::link::Gone;
pub use self::policy::{Fetched, PolicyRefused};
pub use self::telemetry::Measured;
use crate::decider::Decider;
use crate::store::{RingCounts, Store};
use crate::supervisor::Exits;
use crate::update::Updates;
use crate::workloads::Workloads;

/// Time between two looks at what is not told of by anybody: events to disk, reports that the link
/// did not take.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// Facts of this start of the agent.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// From the certificate.
    pub node_id: String,
    /// Random per start.
    pub boot_id: String,
    /// What the node has.
    pub capabilities: NodeCapabilities,
    /// Milliseconds.
    pub telemetry_interval_ms: u32,
}

/// How a node is to be.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Of this start.
    pub facts: NodeFacts,
    /// Times of the site.
    pub profile: Profile,
    /// Seed of all that is drawn.
    pub seed: u64,
    /// "HOST:PORT" of its peer port, as others reach it.
    pub addresses: Vec<String>,
    /// Certificate of the fleet's CA, DER: policies are signed with its key. Without it none is
    /// taken.
    pub ca_der: Vec<u8>,
    /// At this temperature the node gives work away, and takes none until it is 5 degrees cooler;
    /// none for never.
    pub throttle_celsius: Option<f32>,
    /// Replicas whose containers went on while the agent was away, where that is known: exclusive
    /// ones among them are not held back.
    pub running: Vec<ReplicaKey>,
    /// Replicas whose containers have ended meanwhile: jobs among them are over, and not to be
    /// started again because nobody saw it.
    pub exits: Vec<Exits>,
}

impl NodeConfig {
    /// Defaults for a node.
    #[must_use]
    pub fn new(facts: NodeFacts) -> Self {
        Self {
            facts,
            profile: Profile::standard(),
            seed: 0,
            addresses: Vec::new(),
            ca_der: Vec::new(),
            throttle_celsius: Some(90.0),
            running: Vec::new(),
            exits: Vec::new(),
        }
    }
}

/// What a node counts, for metrics and status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Orders of the control plane that were refused.
    pub orders_refused: u64,
    /// Decisions of the site that were refused here.
    pub records_refused: u64,
    /// Telemetry messages handed to the link.
    pub telemetry_sent: u64,
    /// Telemetry messages kept for later.
    pub telemetry_kept: u64,
    /// Batches that the control plane has acknowledged.
    pub batches_acknowledged: u64,
    /// Policies that were refused.
    pub policies_refused: u64,
    /// Strangers that were turned away.
    pub peers_refused: u64,
}

/// See the module.
pub struct Node<W> {
    store: Store,
    autonomy: Autonomy,
    workloads: W,
    decider: Decider,
    config: NodeConfig,
    clock: clock::Clock,
    me: Me,
    /// Temperature is above the limit.
    hot: bool,
    /// Since when clocks are held down for heat; none while they are not.
    slowed_since: Option<Instant>,
    effects: Vec<Effect>,
    counts: Counts,
    housekeeping_at: Instant,
    /// What the disk's failure was when it was last told.
    store_failed: bool,

    /// The control plane has answered hello on this connection.
    linked: bool,
    draining: bool,
    /// What the machine's cloud says is about to happen to it; none where nothing is known.
    interruptions: Option<Interruptions>,
    /// The container runtime has answered, and still does as far as is known.
    runtime_answers: bool,
    updates: Updates,
    /// Why the container runtime does not answer; empty where it does.
    runtime_problem: String,
    /// What this connection knows of that.
    reported_problem: String,
    /// Last report that was handed to this connection, per replica.
    reported: BTreeMap<ReplicaKey, ReplicaReport>,
    /// Last words of replicas that are gone.
    stopped: VecDeque<ReplicaReport>,
    /// Last event that was handed to this connection.
    sent_event: u64,
    /// What this connection knows of mode, policy and addresses.
    sent_state: Option<NodeState>,
    /// Decisions of the site that this connection was told.
    sent_decisions: BTreeSet<decisions::Told>,
    /// There may be some that it was not told.
    decisions_due: bool,
    telemetry: telemetry::Live,
    rollout: policy::Rollout,
}

impl<W: Workloads> Node<W> {
    /// Starts with what the store says: the supervisor is told what to run before anything else.
    pub fn new(config: NodeConfig, store: Store, workloads: W, now: Now) -> Self {
        let (decider, problems) = policy::decider_of(&store, &config.ca_der);
        let me = me::first(&config, &store, workloads.reports());
        let (autonomy, outputs) = Autonomy::new(
            Start {
                node_id: config.facts.node_id.clone(),
                boot_id: config.facts.boot_id.clone(),
                boot: u32::try_from(store.boot()).unwrap_or(u32::MAX),
                seed: config.seed,
                profile: config.profile.clone(),
                records: glue::known(&store, &config.facts.node_id),
                site_info: store.site().cloned(),
                me: me.clone(),
            },
            Duration::ZERO,
        );
        let updates = Updates::new(store.update().clone());
        let mut node = Self {
            store,
            autonomy,
            workloads,
            decider,
            clock: clock::Clock::starting(now),
            me,
            hot: false,
            slowed_since: None,
            effects: Vec::new(),
            counts: Counts::default(),
            housekeeping_at: now.at,
            store_failed: false,
            linked: false,
            draining: false,
            interruptions: None,
            runtime_answers: false,
            updates,
            runtime_problem: String::new(),
            reported_problem: String::new(),
            reported: BTreeMap::new(),
            stopped: VecDeque::new(),
            sent_event: 0,
            sent_state: None,
            sent_decisions: BTreeSet::new(),
            decisions_due: false,
            telemetry: telemetry::Live::default(),
            rollout: policy::Rollout::default(),
            config,
        };
        node.begin(problems, outputs, now);
        node
    }

    fn begin(&mut self, problems: Vec<String>, outputs: Vec<hyperion_autonomy::Output>, now: Now) {
        self.tell_clock(now);
        if self.store.is_fresh() {
            self.store.raise_batch_ids(self.clock.seconds(now) << 20);
        }
        if let Some(problem) = self.store.take_moved_aside() {
            self.event("StoreRebuilt", problem, true, None, now);
        }
        for problem in problems {
            self.event("PolicyRefused", problem, true, None, now);
        }
        if self.store.partial() {
            info!("the store was lost: waiting for the control plane before anything is stopped");
        }
        self.push_desired();
        self.carry_out(glue::Work::of(outputs), now);
        for report in me::ends(&self.config, &self.store) {
            self.take_report(report, now);
        }
        self.refresh(now);
    }

    /// Time passes: to be called at [`Node::next_wake`] at the latest.
    pub fn tick(&mut self, now: Now, out: &dyn Outgoing) {
        let outputs = self.autonomy.tick(self.clock.since(now), &self.decider);
        self.carry_out(glue::Work::of(outputs), now);
        if now.at >= self.housekeeping_at {
            self.housekeeping_at = now.at + HOUSEKEEPING;
            self.store.sync(now.at);
            self.store.sync_telemetry(now.at);
            self.tell_of_the_store(now);
            self.refresh(now);
            self.rollout_tick(now, out);
            self.backfill(now, out);
        }
        self.report(out);
    }

    /// When to call [`Node::tick`] at the latest.
    #[must_use]
    pub fn next_wake(&self) -> Instant {
        let autonomy = self.clock.at(self.autonomy.next_wake());
        autonomy.map_or(self.housekeeping_at, |at| at.min(self.housekeeping_at))
    }

    /// Tells autonomy the wall clock, where there is one: it stamps what people read.
    fn tell_clock(&mut self, now: Now) {
        let unix_ms = self.clock.unix_ms(now);
        if unix_ms > 0 {
            self.autonomy.set_wall_clock(unix_ms, self.clock.since(now));
        }
    }

    /// What is to be done now, in order.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Puts everything on disk: the agent ends.
    pub fn stop(&mut self, now: Now) {
        self.store.seal_telemetry();
        self.store.sync(now.at);
    }

    fn tell_of_the_store(&mut self, now: Now) {
        let failure = self.store.failure().map(str::to_owned);
        if failure.is_some() == self.store_failed {
            return;
        }
        self.store_failed = failure.is_some();
        match failure {
            Some(why) => self.event("StoreNotOnDisk", why, true, None, now),
            None => self.event("StoreOnDisk", "written again".to_owned(), false, None, now),
        }
    }

    /// Mode of the site as this node sees it.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.autonomy.mode()
    }

    /// True while the control plane answers on the link.
    #[must_use]
    pub fn linked(&self) -> bool {
        self.linked
    }

    /// A live peer whose link stands, through which this node may reach the control plane; none
    /// while its own stands.
    #[must_use]
    pub fn relay(&self) -> Option<&str> {
        self.autonomy.relay()
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The core of autonomy, for what it knows of nodes and replicas.
    #[must_use]
    pub fn autonomy(&self) -> &Autonomy {
        &self.autonomy
    }

    /// Who decides while the site is cut off.
    #[must_use]
    pub fn decider(&self) -> &Decider {
        &self.decider
    }

    /// Who runs containers.
    #[must_use]
    pub fn workloads(&self) -> &W {
        &self.workloads
    }

    /// What the control plane said of the site.
    #[must_use]
    pub fn site_info(&self) -> Option<&SiteInfo> {
        self.store.site()
    }

    /// Of this start.
    #[must_use]
    pub fn facts(&self) -> &NodeFacts {
        &self.config.facts
    }

    /// What the node counts.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Decisions of the site that the control plane has not taken.
    #[must_use]
    pub fn untaken_count(&self) -> usize {
        let replicas = self.autonomy.site().replicas();
        replicas.filter(|(_, entry)| entry.untaken()).count()
    }

    /// State of each node of the site, this one included, in words.
    pub fn member_states(&self) -> impl Iterator<Item = &'static str> {
        let site = self.autonomy.site();
        let own = &self.config.facts.node_id;
        let mut ids: BTreeSet<&str> = site.nodes().map(|(id, _)| id).collect();
        ids.extend(site.info().members.iter().map(|m| m.node_id.as_str()));
        ids.insert(own);
        ids.into_iter().map(|id| self.member_state(id))
    }

    fn member_state(&self, id: &str) -> &'static str {
        use hyperion_autonomy::membership::State;
        match self.autonomy.membership().state(id) {
            _ if id == self.config.facts.node_id => "own",
            _ if self.autonomy.site().is_revoked(id) => "revoked",
            Some((State::Alive, _)) => "alive",
            Some((State::Suspect, _)) => "suspect",
            Some((State::Down, _)) => "dead",
            None => "unseen",
        }
    }

    /// Telemetry that waits for the control plane.
    #[must_use]
    pub fn ring(&self) -> RingCounts {
        self.store.ring()
    }
}
