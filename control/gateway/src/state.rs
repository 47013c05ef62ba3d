//! What the gateway holds in memory. Work per message is constant; every lock is held for a few
//! map operations and never across an await.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::channel::mpsc;
use hyperion_api::fleet::{LiveNode, LiveNodes};
use hyperion_link::transport::{self, CLOSE_REVOKED};
use hyperion_placement::model::LatencyMatrix;
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{
    DecisionsTaken, FetchLogs, FetchPolicy, LogChunk, PolicyChunk, PolicyOffer, StartReplica,
    StopReplica, StreamMessage, TakenRecord, UpdateOrder, Welcome,
};
use hyperion_proto::domain::{ReplicaKey, Telemetry};
use jiff::Timestamp;
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::logs::{LogChunks, LogSinks};
use crate::measuring::AGED;
use crate::notices::{Notice, Noticed};
use crate::policies::{self, DevicePolicy};
use crate::sites::{Member, Sites};

/// Messages that may wait for one agent. An agent that does not keep up is disconnected: it gets
/// everything again with its next welcome.
pub const OUTGOING: usize = 256;
/// Replicas' bytes in a welcome; half of what an agent takes.
const MAX_WELCOME: usize = transport::MAX_TO_AGENT / 2;

/// Outgoing half of a session. Not tokio's channel: that sets memory for 32 messages aside, for each
/// of ten thousand sessions that rarely have one waiting.
pub type Outgoing = mpsc::Sender<Box<Result<StreamMessage, tonic::Status>>>;

/// A stream that wants to be a session.
pub struct NewSession {
    /// Boot id of the agent.
    pub boot_id: String,
    /// Memory of the node, bytes.
    pub memory_total: u64,
    /// To the agent.
    pub outgoing: Outgoing,
    /// To end it.
    pub connection: quinn::Connection,
    /// Another boot of this node may take over when this one was silent so long.
    pub silence: Duration,
    /// Decisions of its site that it brings.
    pub untaken: BTreeSet<Decision>,
    /// Version of what it knows of its site.
    pub site_version: u64,
}

/// A decision of a site: replica, generation and the node that decided.
pub type Decision = (ReplicaKey, u64, String);

/// An open stream.
struct Session {
    /// Tells this session from a later one of the same node.
    id: u64,
    boot_id: String,
    outgoing: Outgoing,
    connection: quinn::Connection,
    silence: Duration,
    last_seen: Instant,
    /// Decisions of its site that the operator has not looked at. Its list is not complete until it
    /// has: what the site decided would be stopped for missing in it.
    untaken: BTreeSet<Decision>,
    /// Version of what it knows of its site.
    site_version: u64,
}

struct Live {
    version: u64,
    connected: bool,
    last: Instant,
    memory_total: u64,
    telemetry: Telemetry,
}

#[derive(Default)]
struct Inner {
    sessions: HashMap<String, Session>,
    live: BTreeMap<String, Live>,
    version: u64,
    /// Share of CPU in use that came in since it was taken, by node.
    measured: HashMap<String, f32>,
    next_id: u64,
    desired: HashMap<String, BTreeMap<ReplicaKey, StartReplica>>,
    complete: bool,
    /// Nodes whose lists are not complete although the others' are.
    held_back: BTreeSet<String>,
    logs: LogSinks,
    /// Nodes that have an object; true for the revoked ones.
    nodes: HashMap<String, bool>,
    /// Those of them that are of a cluster, and that an agent may measure.
    of_clusters: HashSet<String>,
    /// Nodes of clusters whose agent has gone silent, and when.
    silent: HashMap<String, Instant>,
    /// What their agents said of interruptions.
    notices: Noticed,
    sites: Sites,
    /// The first list of all nodes has been read: sites are known as a whole.
    listed: bool,
    /// What nodes are to be updated with.
    updates: HashMap<String, UpdateOrder>,
    /// Those are all there are.
    updates_known: bool,
    policy: Option<DevicePolicy>,
    /// Whether there is one was decided.
    policy_known: bool,
}

/// All of it, behind one lock.
#[derive(Default)]
pub struct State {
    inner: Mutex<Inner>,
    /// True after the first list of all nodes.
    listed: watch::Sender<bool>,
}

/// What stands in the way of a new session.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is open, and its welcome is on the way.
    Open(u64),
    /// Another boot of the same node id is there.
    Contested {
        /// Time since it was heard.
        heard: Duration,
        /// Time after which it will be taken for dead.
        silence: Duration,
    },
    /// The node was revoked or deleted a moment ago.
    CutOff,
}

/// What is known of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It has an object.
    Known,
    /// Its object says that it is revoked.
    Revoked,
    /// It has no object, as far as this process has heard.
    Unknown,
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a session, unless another boot of the node was heard a moment ago. `opened` is called
    /// with the lock held, so that what it says of the node comes after what a session before this
    /// one said.
    pub fn open(&self, node: &str, new: NewSession, opened: impl FnOnce()) -> Admission {
        let mut inner = self.lock();
        if inner.nodes.get(node) != Some(&false) {
            return Admission::CutOff;
        }
        let now = Instant::now();
        if let Some(old) = inner.sessions.get(node)
            && old.boot_id != new.boot_id
            && old.connection.close_reason().is_none()
            && now.duration_since(old.last_seen) < old.silence
        {
            return Admission::Contested {
                heard: now.duration_since(old.last_seen),
                silence: old.silence,
            };
        }
        inner.next_id += 1;
        let id = inner.next_id;
        let session = Session {
            id,
            boot_id: new.boot_id,
            outgoing: new.outgoing,
            connection: new.connection,
            silence: new.silence,
            last_seen: now,
            untaken: new.untaken,
            site_version: new.site_version,
        };
        if let Some(old) = inner.sessions.insert(node.to_owned(), session) {
            old.connection
                .close(1_u32.into(), b"replaced by a newer session");
            inner.logs.node_down(node);
        }
        inner.version += 1;
        let version = inner.version;
        let live = inner.live.entry(node.to_owned()).or_insert_with(|| Live {
            version,
            connected: true,
            last: now,
            memory_total: 0,
            telemetry: Telemetry::default(),
        });
        (live.version, live.connected, live.last, live.memory_total) =
            (version, true, now, new.memory_total);
        inner.silent.remove(node);
        inner.notices.heard(node);
        opened();
        inner.greet(node);
        Admission::Open(id)
    }

    /// Ends a session; false where a newer one of the node is open. `closed` is called with the
    /// lock held, see [`State::open`].
    pub fn close(&self, node: &str, id: u64, closed: impl FnOnce()) -> bool {
        let mut inner = self.lock();
        if inner.sessions.get(node).is_none_or(|s| s.id != id) {
            return false;
        }
        inner.sessions.remove(node);
        if inner.of_clusters.contains(node) {
            let now = Instant::now();
            inner.silent.insert(node.to_owned(), now);
            inner.notices.silent(node, now);
        }
        inner.logs.node_down(node);
        inner.version += 1;
        let version = inner.version;
        if let Some(live) = inner.live.get_mut(node) {
            (live.connected, live.version) = (false, version);
        }
        closed();
        true
    }

    /// Notes that the session was heard.
    pub fn heard(&self, node: &str, id: u64) {
        if let Some(session) = self.lock().session(node, id) {
            session.last_seen = Instant::now();
        }
    }

    /// Takes telemetry of a session.
    pub fn telemetry(&self, node: &str, id: u64, telemetry: Telemetry) {
        let mut inner = self.lock();
        if inner.session(node, id).is_none() {
            return;
        }
        inner.version += 1;
        let version = inner.version;
        let utilization = telemetry.cpu_percent / 100.0;
        if let Some(live) = inner.live.get_mut(node) {
            (live.version, live.last, live.telemetry) = (version, Instant::now(), telemetry);
        }
        match inner.measured.get_mut(node) {
            Some(held) => *held = utilization,
            None => {
                inner.measured.insert(node.to_owned(), utilization);
            }
        }
    }

    /// Takes what an agent that measures a cluster's node said of interruptions.
    pub fn notices(&self, node: &str, id: u64, notices: &[Notice]) {
        let mut inner = self.lock();
        if inner.session(node, id).is_some() {
            let (now, clock) = (Instant::now(), Timestamp::now());
            inner.notices.said(node, notices, now, clock);
        }
    }

    /// Tells of a node whose notices hold no longer; false where there is none. `tell` is called with the
    /// lock held, see [`State::open`]: what its next session says comes after it.
    pub fn lapse_notices(&self, now: Instant, tell: impl FnOnce(String)) -> bool {
        let mut inner = self.lock();
        let lapsed = inner.notices.take_lapsed(now);
        lapsed.map(tell).is_some()
    }

    /// See [`crate::Gateway::live_since`].
    pub fn live_since(&self, version: u64) -> LiveNodes {
        let inner = self.lock();
        let nodes = inner.live.iter().filter(|(_, l)| l.version > version);
        LiveNodes {
            version: inner.version,
            nodes: nodes.map(|(id, l)| l.public(id)).collect(),
        }
    }

    /// Share of CPU in use.
    pub fn cpu_utilization(&self, node: &str) -> Option<f32> {
        let inner = self.lock();
        inner
            .live
            .get(node)
            .filter(|l| l.connected)
            .map(|l| l.telemetry.cpu_percent / 100.0)
    }

    /// See [`crate::Gateway::take_measured`].
    pub fn take_measured(&self) -> HashMap<String, f32> {
        self.take_measured_at(Instant::now())
    }

    fn take_measured_at(&self, now: Instant) -> HashMap<String, f32> {
        let mut inner = self.lock();
        let mut measured = std::mem::take(&mut inner.measured);
        inner.silent.retain(|node, since| {
            let aged = now.saturating_duration_since(*since) >= AGED;
            if aged {
                // As if nobody had ever measured it.
                measured.insert(node.clone(), 0.0);
            }
            !aged
        });
        measured
    }

    /// True while a session is open.
    pub fn connected(&self, node: &str) -> bool {
        self.lock().sessions.contains_key(node)
    }

    /// Sends to a node; false where that is not possible now.
    pub fn send(&self, node: &str, body: Body) -> bool {
        self.lock().send(node, body)
    }

    /// See [`crate::Gateway::set_desired`].
    pub fn set_desired(&self, node: &str, start: StartReplica) {
        let key = hyperion_proto::convert::replica_key("start_replica.key", start.key.as_ref());
        let key = match key {
            Ok(key) => key,
            Err(e) => return warn!(node, error = %e, "order not taken"),
        };
        let mut inner = self.lock();
        let wanted = inner.desired.entry(node.to_owned()).or_default();
        // The same generation again brings a policy that has changed.
        if wanted
            .get(&key)
            .is_some_and(|held| held.generation > start.generation || *held == start)
        {
            return;
        }
        wanted.insert(key, start.clone());
        inner.send(node, Body::StartReplica(start));
    }

    /// See [`crate::Gateway::stop_within`].
    pub fn remove_desired(&self, node: &str, key: &ReplicaKey, generation: u64, grace: u32) {
        let mut inner = self.lock();
        if let Some(wanted) = inner.desired.get_mut(node) {
            if wanted
                .get(key)
                .is_some_and(|held| held.generation > generation)
            {
                return;
            }
            wanted.remove(key);
            if wanted.is_empty() {
                inner.desired.remove(node);
            }
        }
        // Sent even where nothing was desired: the node may hold what an earlier control plane
        // started, and to stop what does not run is nothing.
        let stop = StopReplica {
            key: Some(key.into()),
            generation,
            grace_seconds: grace,
            command_id: generation,
        };
        inner.send(node, Body::StopReplica(stop));
    }

    /// See [`crate::Gateway::mark_desired_complete`].
    pub fn mark_complete(&self) {
        let mut inner = self.lock();
        inner.complete = true;
        let connected: Vec<String> = inner.sessions.keys().cloned().collect();
        for node in connected {
            inner.greet(&node);
        }
    }

    /// See [`crate::Gateway::hold_back`].
    pub fn hold_back(&self, nodes: BTreeSet<String>) {
        let mut inner = self.lock();
        let before = std::mem::replace(&mut inner.held_back, nodes);
        if !inner.complete {
            return;
        }
        let released: Vec<String> = before
            .difference(&inner.held_back)
            .filter(|node| inner.sessions.contains_key(*node))
            .cloned()
            .collect();
        for node in released {
            inner.greet(&node);
        }
    }

    /// Round trips that sites are told of.
    pub fn set_latency(&self, latency: LatencyMatrix) {
        self.lock().sites.set_latency(latency);
    }

    /// What a node says of its addresses.
    pub fn set_addresses(&self, node: &str, addresses: &[String]) {
        self.lock().sites.set_addresses(node, addresses);
    }

    /// Tells sites what has changed of them.
    pub fn tell_sites(&self) {
        let mut inner = self.lock();
        if !inner.listed {
            return;
        }
        for (info, nodes) in inner.sites.due(Instant::now(), unix_ms()) {
            debug!(
                site = info.site,
                version = info.version,
                members = info.members.len(),
                "site"
            );
            for node in nodes {
                let session = inner.sessions.get_mut(&node);
                let Some(session) = session.filter(|s| s.site_version != info.version) else {
                    continue;
                };
                session.site_version = info.version;
                inner.send(&node, Body::SiteInfo(info.as_ref().clone()));
            }
        }
    }

    /// Notes decisions of a site that a node brings in the middle of a session.
    pub fn add_untaken(&self, node: &str, id: u64, decisions: impl IntoIterator<Item = Decision>) {
        if let Some(session) = self.lock().session(node, id) {
            session.untaken.extend(decisions);
        }
    }

    /// See [`crate::Gateway::decisions_taken`] and [`crate::Gateway::decisions_kept`].
    pub fn decided(&self, node: &str, decisions: &[Decision], taken: bool) {
        let mut inner = self.lock();
        if !inner.sessions.contains_key(node) {
            return;
        }
        if taken {
            let record = |(key, generation, decider): &Decision| TakenRecord {
                key: Some(key.into()),
                generation: *generation,
                decider: decider.clone(),
            };
            let records = decisions.iter().map(record).collect();
            inner.send(node, Body::DecisionsTaken(DecisionsTaken { records }));
        }
        let Some(session) = inner.sessions.get_mut(node) else {
            return;
        };
        let waited = !session.untaken.is_empty();
        for decision in decisions {
            session.untaken.remove(decision);
        }
        if waited && session.untaken.is_empty() {
            inner.greet(node);
        }
    }

    /// Offers a policy to all nodes, or takes back what was offered.
    pub fn set_policy(&self, policy: Option<DevicePolicy>) {
        let mut inner = self.lock();
        (inner.policy, inner.policy_known) = (policy, true);
        let offer = inner.offer();
        let connected = inner.sessions.keys();
        let decide = connected.filter(|node| !inner.of_clusters.contains(*node));
        let decide: Vec<String> = decide.cloned().collect();
        for node in decide {
            inner.send(&node, Body::PolicyOffer(offer.clone()));
        }
    }

    /// See [`crate::Gateway::set_update`].
    pub fn set_update(&self, node: &str, order: UpdateOrder) {
        let mut inner = self.lock();
        if order.id.is_empty() {
            inner.updates.remove(node);
        } else {
            inner.updates.insert(node.to_owned(), order.clone());
        }
        inner.send(node, Body::UpdateOrder(order));
    }

    /// See [`crate::Gateway::mark_updates_known`].
    pub fn mark_updates_known(&self) {
        let mut inner = self.lock();
        inner.updates_known = true;
        // Those that came before were not told that nothing is wanted of them.
        let connected = inner.sessions.keys();
        let idle = connected.filter(|node| {
            !inner.updates.contains_key(*node) && !inner.of_clusters.contains(*node)
        });
        let idle: Vec<String> = idle.cloned().collect();
        for node in idle {
            inner.send(&node, Body::UpdateOrder(UpdateOrder::default()));
        }
    }

    /// A piece of the policy that is offered.
    pub fn policy_chunk(&self, asked: &FetchPolicy) -> PolicyChunk {
        // Cheap to clone, and copying a piece needs no lock.
        let policy = self.lock().policy.clone();
        policies::chunk(policy.as_ref(), asked)
    }

    /// Opens a log request to a node.
    pub fn open_log(&self, node: &str) -> (u64, LogChunks) {
        let mut inner = self.lock();
        inner.next_id += 1;
        let id = inner.next_id;
        (id, inner.logs.open(id, node))
    }

    /// Ends a log request, and tells the node where it had not ended it itself.
    pub fn close_log(&self, node: &str, id: u64) {
        let mut inner = self.lock();
        if inner.logs.close(id) {
            inner.cancel_log(node, id);
        }
    }

    /// Takes a chunk of logs from a node.
    pub fn log_chunk(&self, node: &str, chunk: LogChunk) {
        let mut inner = self.lock();
        let id = chunk.request_id;
        if !inner.logs.chunk(node, chunk) {
            inner.cancel_log(node, id);
        }
    }

    /// What is known of a node.
    pub fn standing(&self, node: &str) -> Standing {
        match self.lock().nodes.get(node) {
            Some(false) => Standing::Known,
            Some(true) => Standing::Revoked,
            None => Standing::Unknown,
        }
    }

    /// Notes a node's object; a node that becomes revoked is cut off at once.
    pub fn set_node(&self, node: &str, site: &str, member: Member) {
        let mut inner = self.lock();
        let revoked = member.revoked;
        inner.sites.set(node, site, member);
        let before = inner.nodes.insert(node.to_owned(), revoked);
        if revoked && before != Some(true) {
            inner.cut_off(node, &format!("node {node} is revoked"));
        }
    }

    /// Notes the object of a cluster's node, which an agent may measure.
    pub fn set_measured(&self, node: &str, revoked: bool) {
        let mut inner = self.lock();
        inner.of_clusters.insert(node.to_owned());
        let before = inner.nodes.insert(node.to_owned(), revoked);
        if revoked && before != Some(true) {
            inner.cut_off(node, &format!("node {node} is revoked"));
        }
    }

    /// True for a cluster's node.
    pub fn in_cluster(&self, node: &str) -> bool {
        self.lock().of_clusters.contains(node)
    }

    /// A node's object is gone: the node is cut off and nothing is kept of it.
    pub fn forget_node(&self, node: &str) {
        let mut inner = self.lock();
        inner.nodes.remove(node);
        inner.of_clusters.remove(node);
        inner.silent.remove(node);
        inner.notices.forget(node);
        inner.sites.remove(node);
        inner.live.remove(node);
        inner.desired.remove(node);
        inner.updates.remove(node);
        inner.cut_off(node, &format!("node {node} is not known any more"));
    }

    /// Nodes that have an object, as far as this process has heard.
    pub fn nodes(&self) -> Vec<String> {
        self.lock().nodes.keys().cloned().collect()
    }

    /// All nodes' objects have been read once.
    pub fn set_listed(&self) {
        self.lock().listed = true;
        self.listed.send_replace(true);
    }

    /// Waits for [`State::set_listed`]; false where it did not come in time.
    pub async fn listed(&self, patience: Duration) -> bool {
        let mut listed = self.listed.subscribe();
        matches!(
            tokio::time::timeout(patience, listed.wait_for(|l| *l)).await,
            Ok(Ok(_))
        )
    }
}

impl Inner {
    fn session(&mut self, node: &str, id: u64) -> Option<&mut Session> {
        self.sessions.get_mut(node).filter(|s| s.id == id)
    }

    fn cut_off(&self, node: &str, reason: &str) {
        if let Some(session) = self.sessions.get(node) {
            session.connection.close(CLOSE_REVOKED, reason.as_bytes());
        }
    }

    fn cancel_log(&mut self, node: &str, request_id: u64) {
        let cancel = FetchLogs {
            request_id,
            cancel: true,
            ..Default::default()
        };
        self.send(node, Body::FetchLogs(cancel));
    }

    /// Sends the welcome. What does not fit in one message follows as single orders, and the node
    /// then does not learn that the list is complete: it keeps too much rather than too little.
    fn greet(&mut self, node: &str) {
        let Some(session) = self.sessions.get(node) else {
            return;
        };
        let undecided = !session.untaken.is_empty();
        let known = session.site_version;
        let now = unix_ms();
        // A part of a site would make a minority look like a majority.
        let site = if self.listed {
            self.sites.info(node, now)
        } else {
            None
        };
        let site = site.filter(|info| info.version != known);
        let mut welcome = Welcome {
            replicas: Vec::new(),
            replicas_complete: self.complete && !undecided && !self.held_back.contains(node),
            wall_clock_unix_ms: i64::try_from(now).unwrap_or(0),
            site: site.as_deref().cloned(),
            policy: (self.policy_known && !self.of_clusters.contains(node)).then(|| self.offer()),
            update: (self.updates_known && !self.of_clusters.contains(node))
                .then(|| self.updates.get(node).cloned().unwrap_or_default()),
        };
        if let (Some(info), Some(session)) = (site, self.sessions.get_mut(node)) {
            session.site_version = info.version;
        }
        let (mut bytes, mut rest) = (0, Vec::new());
        for start in self.desired.get(node).into_iter().flat_map(|w| w.values()) {
            bytes += prost::Message::encoded_len(start);
            if bytes <= MAX_WELCOME {
                welcome.replicas.push(start.clone());
            } else {
                rest.push(start.clone());
            }
        }
        if !rest.is_empty() {
            warn!(node, bytes, "the node's replicas do not fit in one welcome");
            welcome.replicas_complete = false;
        }
        self.send(node, Body::Welcome(welcome));
        for start in rest {
            self.send(node, Body::StartReplica(start));
        }
    }

    fn offer(&self) -> PolicyOffer {
        self.policy
            .as_ref()
            .map_or_else(PolicyOffer::default, |p| p.offer().clone())
    }

    fn send(&mut self, node: &str, body: Body) -> bool {
        let Some(session) = self.sessions.get_mut(node) else {
            return false;
        };
        let sent = session
            .outgoing
            .try_send(Box::new(Ok(StreamMessage { body: Some(body) })))
            .is_ok();
        if !sent {
            session.connection.close(3_u32.into(), b"does not keep up");
        }
        sent
    }
}

/// Milliseconds since 1970.
fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(0))
}

impl Live {
    fn public(&self, id: &str) -> LiveNode {
        let t = &self.telemetry;
        LiveNode {
            id: id.to_owned(),
            connected: self.connected,
            age_ms: u64::try_from(self.last.elapsed().as_millis()).unwrap_or(u64::MAX),
            cpu_percent: t.cpu_percent,
            memory_used_bytes: t.memory_used_bytes,
            memory_total_bytes: self.memory_total,
            disk_used_bytes: t.disk_used_bytes,
            load1: t.load1,
            rx_bytes_per_second: t.rx_bytes_per_second,
            tx_bytes_per_second: t.tx_bytes_per_second,
            rtt_ms: t.rtt_ms,
            max_celsius: t.max_celsius,
            gpu_percent: t.gpu_percent.clone(),
            dropped_total: t.dropped_total,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_silent_agent_measured_of_a_cluster_s_node_ages() {
        let state = State::default();
        state.set_measured("east.n1", false);
        let since = Instant::now();
        state.lock().silent.insert("east.n1".to_owned(), since);
        assert!(state.take_measured_at(since + AGED / 2).is_empty());
        let aged = state.take_measured_at(since + AGED);
        assert_eq!(aged.get("east.n1"), Some(&0.0));
        // Once: then others may measure it.
        assert!(state.take_measured_at(since + AGED * 2).is_empty());
    }
}
