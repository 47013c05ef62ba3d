//! The leader's loop: watches and agents' words go into the index, dirty workloads are passed one
//! by one, and what follows goes to the gateway and to the API. One task owns the index.

mod away;
mod machines;
mod packing;
mod rollouts;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyperion_api::conditions;
use hyperion_api::rollout::HyperionRolloutStatus;
use hyperion_gateway::{Gateway, GatewayEvent};
use hyperion_placement::packing::Lesson;
use hyperion_proto::agent_v1::StartReplica;
use hyperion_providers::feeds::Prices;
use hyperion_providers::prometheus::Sample;
use tokio::sync::{mpsc, watch as latest};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::apply::{self, Applied};
use crate::clusters::plugins::Plugins;
use crate::clusters::{self, Clusters, proof};
use crate::cost::Meter;
use crate::decider::source::{self, Asked, Chosen, Map};
use crate::decider::{Decider, Policy, Sums};
use crate::directory::Directory;
use crate::events::{self, Note, Publisher};
use crate::experience::Recorder;
use crate::index::{Index, Name, Priority, Said};
use crate::measured::{self, Measured};
use crate::metrics::Metrics;
use crate::plan::{self, Action, Outcome};
use crate::queue::Queue;
use crate::rollout::{self, Rollouts};
use crate::watch::{self, Change, Seen};

/// Passes before inputs are looked at again.
const PASSES: usize = 16;
/// Time for them: a pass over a large workload takes a while, and agents wait.
const TURN: Duration = Duration::from_millis(20);
/// How old measured CPU use may be when a decision is made.
const MEASURED: Duration = Duration::from_secs(1);
/// How often placements are counted for `/metrics`.
const COUNTED: Duration = Duration::from_secs(1);
/// Workloads without a place that are looked at whenever there may be room.
const FEW: usize = 16;
/// How often more than [`FEW`] of them are: nodes come up by the thousand.
const HOPE: Duration = Duration::from_millis(500);
/// How long the first decisions wait for the ConfigMap of the policy to be read.
const MAP_PATIENCE: Duration = Duration::from_secs(2);
/// Time for decisions that were due at the start to be stored. After that nodes are told that
/// their lists are complete, and stop what is not in them.
const SETTLE: Duration = Duration::from_secs(15);

/// What the loop works with.
pub struct Leader {
    /// Kubernetes.
    pub client: kube::Client,
    /// Agents.
    pub gateway: Gateway,
    /// For the HTTP server.
    pub directory: Arc<Directory>,
    /// Counters.
    pub metrics: Metrics,
    /// Default of `replaceAfter`.
    pub replace_after: Duration,
    /// This process, for events.
    pub identity: String,
    /// The policy that was asked for.
    pub policy: Asked,
    /// Rules decide, and the policy watches.
    pub shadow: bool,
    /// Share of the policy's new placements that are left to chance.
    pub explore: f64,
    /// How often replicas that run well are looked at again; none for never.
    pub reconsider: Option<Duration>,
    /// Where outcomes of placements go.
    pub recorder: Recorder,
    /// Credential plugins for clusters that ClusterProfiles name.
    pub plugins: Arc<Plugins>,
    /// Live prices, where there are feeds.
    pub prices: Option<latest::Receiver<Arc<Prices>>>,
    /// Measurements of nodes without an agent, where somebody makes them.
    pub measured: Option<Elsewhere>,
}

/// What others measure, and how much of it is of this fleet.
#[derive(Debug, Clone)]
pub struct Elsewhere {
    /// The last answer.
    pub values: latest::Receiver<Measured>,
    /// Of the last answer.
    pub counts: measured::Metrics,
}

/// To what writes decisions and statuses.
type Actions = mpsc::UnboundedSender<Vec<Action>>;
/// To what writes the statuses of rollouts, by name.
type RolloutStatuses = mpsc::UnboundedSender<Vec<(String, HyperionRolloutStatus)>>;

/// Runs until `stop`.
pub async fn run(
    leader: Leader,
    mut agents: mpsc::Receiver<GatewayEvent>,
    stop: CancellationToken,
) {
    let mut seen = watch::start(&leader.client, &stop);
    let (actions, waiting) = mpsc::unbounded_channel();
    let (results, mut applied) = mpsc::unbounded_channel();
    let applier = tokio::spawn(apply::run(
        leader.client.clone(),
        waiting,
        results,
        leader.metrics.clone(),
        stop.clone(),
    ));
    let (statuses, waiting) = mpsc::unbounded_channel();
    let (results, mut stored) = mpsc::unbounded_channel();
    tokio::spawn(rollout::write::run(
        leader.client.clone(),
        waiting,
        results,
        stop.clone(),
    ));
    let mut prices = leader.prices.clone();
    let mut measured = leader.measured.as_ref().map(|m| m.values.clone());
    let mut maps = source::watch(&leader.client, stop.clone());
    let publisher = events::start(leader.client.clone(), &leader.identity, stop.clone());
    let home = leader.client.clone();
    let plugins = leader.plugins.clone();
    let (clusters, mut machines) = clusters::start(home, plugins, publisher.clone(), stop.clone());
    leader.directory.set_clusters(clusters.clone());
    if let Some(proofs) = leader.gateway.proofs() {
        let (clusters, publisher) = (clusters.clone(), publisher.clone());
        tokio::spawn(proof::serve(clusters, proofs, publisher, stop.clone()));
    }
    let (lessons, learned) = packing::start();
    let mut learned = Some(learned);
    let mut work = Work::new(leader, clusters, (actions, statuses), lessons, publisher);
    if let Some(prices) = &mut prices {
        work.prices(prices.borrow_and_update().clone());
    }
    loop {
        while let Ok(change) = seen.try_recv() {
            work.seen(change);
        }
        while let Ok(result) = applied.try_recv() {
            work.applied(result);
        }
        while let Ok(result) = stored.try_recv() {
            work.rollout_stored(result);
        }
        while let Ok(map) = maps.try_recv() {
            work.map_read(map);
        }
        // A report of a placement that is not read yet would be lost: agents wait until then.
        while work.listed_at.is_some()
            && let Ok(event) = agents.try_recv()
        {
            work.agent(event);
        }
        while work.listed_at.is_some()
            && let Ok(event) = machines.try_recv()
        {
            work.machine(event);
        }
        let busy = work.passes();
        if busy {
            tokio::task::yield_now().await;
            if stop.is_cancelled() {
                break;
            }
            continue;
        }
        let timer = tokio::time::sleep_until(work.next_timer().into());
        tokio::select! {
            () = stop.cancelled() => break,
            change = seen.recv() => match change {
                Some(change) => work.seen(change),
                None => break,
            },
            Some(result) = applied.recv() => work.applied(result),
            Some(result) = stored.recv() => work.rollout_stored(result),
            Some(map) = maps.recv() => work.map_read(map),
            now = changed(&mut prices) => work.prices(now),
            now = changed(&mut learned) => work.packing_learned(now),
            now = changed(&mut measured) => work.measured_elsewhere(&now),
            event = agents.recv(), if work.listed_at.is_some() => match event {
                Some(event) => work.agent(event),
                None => break,
            },
            Some(event) = machines.recv(), if work.listed_at.is_some() => work.machine(event),
            () = timer => {}
        }
    }
    drop(work);
    if applier.await.is_err() {
        warn!("the applier ended badly");
    }
}

/// The newest value, when there is another.
async fn changed<T>(values: &mut Option<latest::Receiver<Arc<T>>>) -> Arc<T> {
    if let Some(values) = values
        && values.changed().await.is_ok()
    {
        return values.borrow_and_update().clone();
    }
    // Nobody asked for any, or they have ended with the process.
    std::future::pending().await
}

struct Work {
    leader: Leader,
    clusters: Clusters,
    index: Index,
    decider: Decider,
    /// What was loaded last; none before the first.
    chosen: Option<Chosen>,
    /// The ConfigMap of the policy.
    map: Map,
    /// It was read.
    map_known: bool,
    /// What `/metrics` has of the decider's sums.
    counted_sums: Sums,
    /// When a node was last heard.
    heard: Instant,
    queue: Queue,
    actions: Actions,
    publisher: Publisher,
    timers: BTreeSet<(Instant, Name)>,
    due: HashMap<Name, Instant>,
    rollouts: Rollouts,
    /// To be written.
    statuses: RolloutStatuses,
    /// When rollouts were looked at last; none before the first time.
    round: Option<Instant>,
    listed: [bool; 5],
    listed_at: Option<Instant>,
    complete: bool,
    /// Nodes that do not get complete lists yet.
    held_back: BTreeSet<String>,
    released: Instant,
    measured: Option<Instant>,
    /// To what learns what GPU capacity is worth.
    lessons: mpsc::Sender<Lesson>,
    /// When it is asked next.
    pack_at: Instant,
    hope_at: Instant,
    counted: Instant,
    meter: Meter,
    stale_counts: bool,
}

impl Work {
    fn new(
        leader: Leader,
        clusters: Clusters,
        (actions, statuses): (Actions, RolloutStatuses),
        lessons: mpsc::Sender<Lesson>,
        publisher: Publisher,
    ) -> Self {
        let latency = hyperion_providers::latency_matrix();
        let mut index = Index::new(leader.replace_after, latency);
        index.reconsider = leader.reconsider;
        let mut decider = Decider::new(leader.shadow);
        decider.explore = leader.explore;
        let mut work = Self {
            index,
            decider,
            chosen: None,
            map: None,
            map_known: false,
            counted_sums: Sums::default(),
            heard: Instant::now(),
            leader,
            clusters,
            queue: Queue::default(),
            actions,
            publisher,
            timers: BTreeSet::new(),
            due: HashMap::new(),
            rollouts: Rollouts::default(),
            statuses,
            round: None,
            listed: [false; 5],
            listed_at: None,
            complete: false,
            held_back: BTreeSet::new(),
            released: Instant::now(),
            measured: None,
            lessons,
            pack_at: Instant::now(),
            hope_at: Instant::now(),
            counted: Instant::now(),
            meter: Meter::new(Instant::now()),
            stale_counts: true,
        };
        work.policy(None);
        work
    }

    fn prices(&mut self, prices: Arc<Prices>) {
        let changed = self.index.set_prices(prices);
        if changed > 0 {
            info!(nodes = changed, "nodes have other prices");
        }
    }

    fn map_read(&mut self, map: Map) {
        let first = !std::mem::replace(&mut self.map_known, true);
        let device = |map: &Map| map.as_ref().and_then(|held| held.device.clone());
        let changed = device(&map) != device(&self.map);
        self.policy(map);
        // Not before the ConfigMap is known: devices would change to another policy and back.
        if first || changed {
            self.device_policy();
        }
    }

    /// Loads the policy that counts now. One that is refused is said in the log, in an event, in
    /// the metrics and to the fleet API, and rules decide.
    fn policy(&mut self, map: Map) {
        if self.chosen.is_some() && self.map == map {
            return;
        }
        self.map = map;
        let map = &self.map;
        let mut chosen = source::choose(&self.leader.policy, map);
        let metrics = &self.leader.metrics;
        let before = self.chosen.as_ref();
        if let Some(refused) = &chosen.refused {
            metrics.policy_refused.inc();
            if before.is_none_or(|b| b.refused != chosen.refused || b.source != chosen.source) {
                let source = &chosen.source;
                warn!(source, error = %refused, "the policy is refused: rules decide");
                self.publisher.publish(Note {
                    about: events::policy(),
                    warning: true,
                    reason: conditions::EVENT_POLICY_REFUSED.to_owned(),
                    text: format!("{source}: {refused}; rules decide"),
                    past: None,
                });
            }
        }
        let policy = chosen.policy.take();
        self.index.set_network(policy.as_ref().map(Policy::network));
        self.decider.set_policy(policy);
        let refused = chosen.refused.as_ref();
        let refused = refused.map_or_else(String::new, ToString::to_string);
        let status = self.decider.status(&chosen.source, &refused);
        if before.is_none_or(|b| b.source != chosen.source)
            || self.leader.directory.scorer().policy != status.policy
        {
            info!(
                decides = status.decides,
                policy = status.policy,
                source = status.source,
                shadow = status.shadow,
                "policy"
            );
        }
        metrics.set_policy(&status);
        self.leader.directory.set_scorer(status);
        self.chosen = Some(chosen);
    }

    /// Hands on what the decider has counted since.
    fn count_decisions(&mut self) {
        let (now, before) = (self.decider.sums, self.counted_sums);
        if now == before {
            return;
        }
        self.counted_sums = now;
        self.leader.metrics.count_decider(&now, &before);
        if now.fallbacks != before.fallbacks
            && let Some(chosen) = &self.chosen
        {
            let refused = chosen.refused.as_ref();
            let refused = refused.map_or_else(String::new, ToString::to_string);
            let status = self.decider.status(&chosen.source, &refused);
            self.leader.directory.set_scorer(status);
        }
    }

    fn seen(&mut self, seen: Seen) {
        let now = Instant::now();
        let index = &mut self.index;
        match seen {
            Seen::Workload(change) => match *change {
                Change::Apply(object) => index.apply_workload(object),
                Change::Delete(object) => index.delete_workload(&object),
                Change::Reset(list) => {
                    index.reset_workloads(list);
                    self.listed[0] = true;
                }
            },
            Seen::Placement(change) => match *change {
                Change::Apply(object) => index.apply_placement(object, now),
                Change::Delete(object) => index.delete_placement(&object),
                Change::Reset(list) => {
                    index.reset_placements(list, now);
                    self.listed[1] = true;
                }
            },
            Seen::Node(change) => match *change {
                Change::Apply(object) => index.apply_node(object, now),
                Change::Delete(object) => {
                    let name = match &object.0 {
                        Ok(node) => node.metadata.name.as_deref(),
                        Err(e) => e.metadata.name.as_deref(),
                    };
                    index.delete_node(name.unwrap_or_default());
                }
                Change::Reset(list) => {
                    index.reset_nodes(list, now);
                    self.listed[2] = true;
                }
            },
            // Nobody waits for them: who names one that is not read yet does.
            Seen::Class(change) => match *change {
                Change::Apply(object) => index.apply_class(object),
                Change::Delete(object) => index.delete_class(&object),
                Change::Reset(list) => index.reset_classes(list),
            },
            Seen::Quota(change) => {
                match *change {
                    Change::Apply(object) => index.apply_quota(object),
                    Change::Delete(object) => index.delete_quota(&object),
                    Change::Reset(list) => {
                        index.reset_quotas(list);
                        self.listed[3] = true;
                    }
                }
                self.stale_counts = true;
            }
            Seen::Rollout(change) => match *change {
                Change::Apply(object) => self.rollouts.apply(object),
                Change::Delete(object) => self.rollouts.delete(&object),
                Change::Reset(list) => {
                    self.rollouts.reset(list);
                    self.listed[4] = true;
                }
            },
        }
        self.rollouts.news();
        if self.listed_at.is_none() && self.listed == [true; 5] {
            self.listed_at = Some(now);
            self.index.launch_from(now + plan::FIRST_CONTACT);
        }
    }

    fn applied(&mut self, applied: Applied) {
        match applied {
            Applied::Stored {
                workload,
                replica,
                generation,
            } => self.index.stored(&workload, replica, generation),
            Applied::Gone {
                workload,
                replica,
                generation,
            } => self.index.gone(&workload, replica, generation),
            Applied::NotMade { workload, error } => self.index.not_made(&workload, &error),
        }
    }

    fn agent(&mut self, event: GatewayEvent) {
        if !matches!(event, GatewayEvent::NodeDown { .. }) {
            self.heard = Instant::now();
        }
        self.rollouts.news();
        match event {
            GatewayEvent::NodeUp {
                node,
                capabilities,
                runtime_problem,
                agent_version,
                update,
                ..
            } => {
                debug!(node, "node is in reach");
                self.index.node_up(&node, &capabilities, runtime_problem);
                let said = Said {
                    agent_version,
                    update,
                };
                self.index.node_said(&node, said);
            }
            GatewayEvent::NodeDown {
                node,
                reason,
                silent_for,
            } => {
                info!(node, reason, "node is out of reach");
                let now = Instant::now();
                // `replaceAfter` counts from its last word.
                let since = now.checked_sub(silent_for).unwrap_or(now);
                self.index.node_down(&node, since);
            }
            GatewayEvent::Runtime { node, problem } => {
                info!(node, problem, "container runtime");
                self.index.node_runtime(&node, problem);
            }
            GatewayEvent::Update { node, update } => self.index.node_updates(&node, update),
            GatewayEvent::Notices { node, notices } => {
                debug!(node, notices = notices.len(), "notices of interruption");
                let clock = jiff::Timestamp::now();
                self.index
                    .node_notices(&node, &notices, Instant::now(), clock);
                if let Some(cluster) = self.cluster_of(&node) {
                    self.clusters.notices(&cluster, &node, notices);
                }
            }
            GatewayEvent::Report { node, report } => {
                debug!(node, replica = %report.key, generation = report.generation, phase = ?report.phase, reason = report.reason, "report");
                self.index.report(&node, &report, Instant::now());
            }
            GatewayEvent::SiteDecisions { node, records } => {
                self.index.site_decided(&node, records, Instant::now());
            }
            GatewayEvent::Event { node, event } => self.device_event(&node, event),
        }
    }

    fn push(&mut self, name: Name, priority: Priority) {
        let rank = self.index.rank(&name);
        self.queue.push(name, priority, rank);
    }

    /// What a Prometheus server says of nodes.
    fn measured_elsewhere(&mut self, samples: &[Sample]) {
        let gateway = &self.leader.gateway;
        let streams = |node: &str| gateway.connected(node);
        let (nodes, unknown) = self.index.measure_elsewhere(samples, streams);
        if let Some(of) = &self.leader.measured {
            of.counts
                .nodes
                .set(i64::try_from(nodes).unwrap_or(i64::MAX));
            of.counts
                .unknown
                .set(i64::try_from(unknown).unwrap_or(i64::MAX));
        }
    }

    /// Passes over dirty workloads; true while there are more.
    fn passes(&mut self) -> bool {
        let now = Instant::now();
        let Some(listed_at) = self.listed_at else {
            return false;
        };
        self.pack(now);
        if !self.map_known && now - listed_at < MAP_PATIENCE {
            return false;
        }
        // Before decisions are made: nothing goes to a node that is emptied.
        self.rollouts(now);
        while let Some((at, name)) = self.timers.first().cloned().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, name.clone()));
            self.due.remove(&name);
            self.push(name, Priority::Normal);
        }
        if self.index.warm_at().is_some_and(|at| at <= now) {
            self.index.warm(now);
        }
        if self.index.machines_due_at().is_some_and(|at| at <= now) {
            self.index.machines_due(now);
        }
        if now >= self.hope_at && self.index.hopeful() > 0 {
            let many = self.index.hopeful() > FEW;
            self.hope_at = now + if many { HOPE } else { Duration::ZERO };
            for name in self.index.wake_unplaced() {
                self.push(name, Priority::Low);
            }
        }
        for (name, priority) in self.index.take_dirty() {
            self.push(name, priority);
        }
        if !self.queue.is_empty() && self.measured.is_none_or(|at| now - at > MEASURED) {
            self.measured = Some(now);
            let measured = self.leader.gateway.take_measured();
            if !measured.is_empty() {
                self.heard = now;
            }
            self.index.measure(measured);
            self.decider.age = now.saturating_duration_since(self.heard);
        }
        for _ in 0..PASSES {
            let Some(name) = self.queue.pop() else { break };
            self.pass(&name);
            if now.elapsed() >= TURN {
                break;
            }
        }
        for (name, priority) in self.index.take_dirty() {
            self.push(name, priority);
        }
        self.leader
            .metrics
            .queue
            .set(i64::try_from(self.queue.len()).unwrap_or(i64::MAX));
        self.count(now);
        self.launches();
        self.complete(now);
        self.release(now);
        self.answers();
        !self.queue.is_empty()
    }

    fn pass(&mut self, name: &Name) {
        let now = Instant::now();
        let clock = jiff::Timestamp::now();
        let outcome = plan::pass(&mut self.index, name, now, clock, &mut self.decider);
        let Outcome {
            actions,
            wake,
            more,
            decisions,
        } = outcome;
        if decisions > 0 {
            self.leader.metrics.decisions.inc_by(u64::from(decisions));
            self.leader
                .metrics
                .decision_seconds
                .observe(now.elapsed().as_secs_f64());
        }
        if more {
            self.push(name.clone(), Priority::Low);
        }
        if let Some(old) = self.due.remove(name) {
            self.timers.remove(&(old, name.clone()));
        }
        if let Some(at) = wake {
            self.due.insert(name.clone(), at);
            self.timers.insert((at, name.clone()));
        }
        self.count_decisions();
        self.stale_counts |= !actions.is_empty();
        self.leader.directory.update(name, &self.index);
        self.dispatch(actions);
    }

    fn dispatch(&mut self, actions: Vec<Action>) {
        let mut writes = Vec::new();
        for action in actions {
            match action {
                Action::Start {
                    node,
                    key,
                    generation,
                    pod,
                    intent,
                } => {
                    debug!(node, replica = %key, generation, "start");
                    let generation = u64::try_from(generation).unwrap_or(0);
                    if let Some(cluster) = self.cluster_of(&node) {
                        self.start_in(&cluster, &node, &key, generation);
                        continue;
                    }
                    let start = StartReplica {
                        key: Some((&key).into()),
                        generation,
                        pod: Some(*pod),
                        command_id: generation,
                        intent: Some(intent.as_ref().clone()),
                    };
                    self.leader.gateway.set_desired(&node, start);
                }
                Action::Stop {
                    node,
                    key,
                    generation,
                } => {
                    debug!(node, replica = %key, generation, "stop");
                    let generation = u64::try_from(generation).unwrap_or(0);
                    let within = self.index.time_to_stop(&node, Instant::now());
                    match self.cluster_of(&node) {
                        Some(cluster) => {
                            self.clusters
                                .stop(&cluster, &node, &key, generation, within);
                        }
                        None => self
                            .leader
                            .gateway
                            .stop_within(&node, &key, generation, within),
                    }
                }
                Action::Event {
                    workload,
                    uid,
                    warning,
                    reason,
                    note,
                    at,
                } => {
                    info!(workload = %workload, reason, "{note}");
                    self.publisher.publish(Note {
                        about: events::workload(&workload, &uid),
                        warning,
                        reason: reason.to_owned(),
                        past: at.map(|at| (at, events::mark(&[&uid, reason, &note], 0))),
                        text: note,
                    });
                }
                Action::Experience(experience) => self.leader.recorder.record(experience),
                write => writes.push(write),
            }
        }
        if !writes.is_empty() {
            // A closed queue means that the leader stops.
            let _ = self.actions.send(writes);
        }
    }

    /// Tells nodes that their lists are complete, once everything due at the start is stored. Nodes
    /// that may run what can't be described to them are held back.
    fn complete(&mut self, now: Instant) {
        if self.complete {
            return;
        }
        let late = self.listed_at.is_some_and(|at| now - at > SETTLE);
        let settled = self.queue.is_empty()
            && self
                .index
                .placements()
                .all(|p| p.deleting || p.stored >= p.spec.generation);
        if settled || late {
            self.complete = true;
            self.held_back = self.index.undescribed();
            self.released = now;
            self.leader.gateway.hold_back(self.held_back.clone());
            self.leader.gateway.mark_desired_complete();
            self.clusters.hold_back(self.held_back.clone());
            self.clusters.mark_complete();
            let held_back = self.held_back.len();
            info!(
                settled,
                held_back, "state is read; nodes get complete lists"
            );
        }
    }

    /// Lets nodes go that were held back, once everything they may run can be described to them.
    /// None is held back later: it then already has what went before.
    fn release(&mut self, now: Instant) {
        if self.held_back.is_empty() || now - self.released < COUNTED {
            return;
        }
        self.released = now;
        let undescribed = self.index.undescribed();
        let before = self.held_back.len();
        self.held_back.retain(|node| undescribed.contains(node));
        let held_back = self.held_back.len();
        if held_back < before {
            self.leader.gateway.hold_back(self.held_back.clone());
            self.clusters.hold_back(self.held_back.clone());
            info!(held_back, "nodes get complete lists");
        }
    }

    fn count(&mut self, now: Instant) {
        if self.meter.due() <= now || self.stale_counts && now - self.counted >= COUNTED {
            let metrics = &self.leader.metrics.cost;
            self.meter.count(&self.index, now, metrics);
        }
        if !self.stale_counts || now - self.counted < COUNTED {
            return;
        }
        (self.counted, self.stale_counts) = (now, false);
        let metrics = &self.leader.metrics;
        metrics
            .workloads
            .set(i64::try_from(self.index.workloads()).unwrap_or(i64::MAX));
        metrics.count_claims(self.index.claim_states());
        metrics.count_placements(self.index.placements().map(|p| p.status.phase));
        let statuses = self.index.quota_statuses().into_iter();
        let statuses = statuses.map(|(quota, status)| Action::QuotaStatus { quota, status });
        // The applier ends with the leader.
        let _ = self.actions.send(statuses.collect());
    }

    fn next_timer(&self) -> Instant {
        let now = Instant::now();
        let timer = self.timers.first().map(|(at, _)| *at);
        let waiting = !self.complete || self.stale_counts || !self.held_back.is_empty();
        let soon = waiting.then_some(now + COUNTED);
        let hope = (self.index.hopeful() > 0).then_some(self.hope_at);
        let idle = now + Duration::from_secs(3600);
        timer
            .into_iter()
            .chain(soon)
            .chain(hope)
            .chain(self.index.warm_at())
            .chain(self.index.machines_due_at())
            .chain(self.round_at())
            .chain(self.listed_at.map(|_| self.pack_at))
            .chain(Some(self.meter.due()))
            .min()
            .unwrap_or(idle)
    }
}
