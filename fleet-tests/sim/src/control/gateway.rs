//! Sessions and orders, by the rules of `control/gateway`, without its connections.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use hyperion_gateway::sites::Sites;
use hyperion_gateway::state::Decision;
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{DecisionsTaken, StartReplica, StopReplica, TakenRecord, Welcome};
use hyperion_proto::convert;
use hyperion_proto::domain::ReplicaKey;

/// Another boot of a node that is silent this long has died: three telemetry intervals, as in the
/// gateway.
pub(crate) const SILENCE: Duration = Duration::from_secs(6);
/// A node that is silent this long is out of reach; as in the gateway.
pub(crate) const LOST: Duration = Duration::from_secs(10);

/// An open stream.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub id: u64,
    pub boot_id: String,
    pub last_seen: Duration,
    /// Decisions of its site that the operator has not looked at.
    pub untaken: BTreeSet<Decision>,
    /// Version of what it knows of its site.
    pub site_version: u64,
}

/// A message to a node, on a session.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub session: u64,
    pub body: Body,
}

/// The gateway.
#[derive(Default)]
pub(crate) struct Gateway {
    sessions: BTreeMap<String, Session>,
    desired: BTreeMap<String, BTreeMap<ReplicaKey, StartReplica>>,
    complete: bool,
    held_back: BTreeSet<String>,
    pub sites: Sites,
    pub out: Vec<Outgoing>,
    /// Unix milliseconds at the start of the run.
    epoch_ms: i64,
}

impl Gateway {
    pub(crate) fn new(epoch_ms: i64) -> Self {
        Self {
            epoch_ms,
            ..Self::default()
        }
    }

    /// Opens a session, unless another boot of the node was heard a moment ago.
    pub(crate) fn open(&mut self, node: &str, session: Session) -> bool {
        let now = session.last_seen;
        if let Some(old) = self.sessions.get(node)
            && old.boot_id != session.boot_id
            && now.saturating_sub(old.last_seen) < SILENCE
        {
            return false;
        }
        self.sessions.insert(node.to_owned(), session);
        true
    }

    pub(crate) fn heard(&mut self, node: &str, id: u64, now: Duration) -> bool {
        match self.sessions.get_mut(node) {
            Some(session) if session.id == id => {
                session.last_seen = now;
                true
            }
            _ => false,
        }
    }

    /// Takes out a session; false where a newer one is open.
    pub(crate) fn close(&mut self, node: &str, id: u64) -> bool {
        let held = self.sessions.get(node).is_some_and(|s| s.id == id);
        if held {
            self.sessions.remove(node);
        }
        held
    }

    /// Nodes that have been silent for too long, and since when.
    pub(crate) fn lost(&self, now: Duration) -> Vec<(String, u64, Duration)> {
        self.sessions
            .iter()
            .filter(|(_, s)| now.saturating_sub(s.last_seen) >= LOST)
            .map(|(node, s)| (node.clone(), s.id, s.last_seen))
            .collect()
    }

    /// When the next node would be lost.
    pub(crate) fn next_loss(&self) -> Duration {
        let times = self.sessions.values().map(|s| s.last_seen + LOST);
        times.min().unwrap_or(Duration::MAX)
    }

    pub(crate) fn send(&mut self, node: &str, body: Body) {
        if let Some(session) = self.sessions.get(node) {
            self.out.push(Outgoing {
                session: session.id,
                body,
            });
        }
    }

    pub(crate) fn set_desired(&mut self, node: &str, start: StartReplica) {
        let Ok(key) = convert::replica_key("start_replica.key", start.key.as_ref()) else {
            return;
        };
        let wanted = self.desired.entry(node.to_owned()).or_default();
        if wanted
            .get(&key)
            .is_some_and(|held| held.generation > start.generation || *held == start)
        {
            return;
        }
        wanted.insert(key, start.clone());
        self.send(node, Body::StartReplica(start));
    }

    pub(crate) fn remove_desired(&mut self, node: &str, key: &ReplicaKey, generation: u64) {
        if let Some(wanted) = self.desired.get_mut(node) {
            if wanted
                .get(key)
                .is_some_and(|held| held.generation > generation)
            {
                return;
            }
            wanted.remove(key);
        }
        let stop = StopReplica {
            key: Some(key.into()),
            generation,
            grace_seconds: 0,
            command_id: generation,
        };
        self.send(node, Body::StopReplica(stop));
    }

    pub(crate) fn mark_complete(&mut self, now: Duration) {
        self.complete = true;
        let connected: Vec<String> = self.sessions.keys().cloned().collect();
        for node in connected {
            self.greet(&node, now);
        }
    }

    pub(crate) fn hold_back(&mut self, nodes: BTreeSet<String>, now: Duration) {
        let before = std::mem::replace(&mut self.held_back, nodes);
        if !self.complete {
            return;
        }
        let released: Vec<String> = before
            .difference(&self.held_back)
            .filter(|node| self.sessions.contains_key(*node))
            .cloned()
            .collect();
        for node in released {
            self.greet(&node, now);
        }
    }

    fn unix_ms(&self, now: Duration) -> u64 {
        (self.epoch_ms + now.as_millis() as i64).unsigned_abs()
    }

    /// Sends the welcome.
    pub(crate) fn greet(&mut self, node: &str, now: Duration) {
        let unix_ms = self.unix_ms(now);
        let site = self.sites.info(node, unix_ms);
        let Some(session) = self.sessions.get_mut(node) else {
            return;
        };
        let site = site.filter(|info| info.version != session.site_version);
        if let Some(info) = &site {
            session.site_version = info.version;
        }
        let undecided = !session.untaken.is_empty();
        let wanted = self.desired.get(node);
        let welcome = Welcome {
            replicas: wanted
                .into_iter()
                .flatten()
                .map(|(_, s)| s.clone())
                .collect(),
            replicas_complete: self.complete && !undecided && !self.held_back.contains(node),
            wall_clock_unix_ms: unix_ms as i64,
            site: site.as_deref().cloned(),
            ..Welcome::default()
        };
        self.send(node, Body::Welcome(welcome));
    }

    /// Tells sites what has changed of them.
    pub(crate) fn tell_sites(&mut self, base: Instant, now: Duration) {
        let unix_ms = self.unix_ms(now);
        for (info, nodes) in self.sites.due(base + now, unix_ms) {
            for node in nodes {
                let session = self.sessions.get_mut(&node);
                let Some(session) = session.filter(|s| s.site_version != info.version) else {
                    continue;
                };
                session.site_version = info.version;
                self.send(&node, Body::SiteInfo(info.as_ref().clone()));
            }
        }
    }

    /// Notes decisions of a site that a node brings in the middle of a session.
    pub(crate) fn add_untaken(&mut self, node: &str, decisions: Vec<Decision>) {
        if let Some(session) = self.sessions.get_mut(node) {
            session.untaken.extend(decisions);
        }
    }

    /// The operator has looked at these; `taken` says that the node is to be told so.
    pub(crate) fn decided(
        &mut self,
        node: &str,
        decisions: &[Decision],
        taken: bool,
        now: Duration,
    ) {
        if !self.sessions.contains_key(node) {
            return;
        }
        if taken {
            let record = |(key, generation, decider): &Decision| TakenRecord {
                key: Some(key.into()),
                generation: *generation,
                decider: decider.clone(),
            };
            let records = decisions.iter().map(record).collect();
            self.send(node, Body::DecisionsTaken(DecisionsTaken { records }));
        }
        let Some(session) = self.sessions.get_mut(node) else {
            return;
        };
        let waited = !session.untaken.is_empty();
        for decision in decisions {
            session.untaken.remove(decision);
        }
        if waited && session.untaken.is_empty() {
            self.greet(node, now);
        }
    }
}
