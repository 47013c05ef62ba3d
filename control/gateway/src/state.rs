//! What the gateway holds in memory. Work per message is constant; every lock is held for a few
//! map operations and never across an await.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyperion_api::fleet::{LiveNode, LiveNodes};
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{LogChunk, StartReplica, StopReplica, StreamMessage, Welcome};
use hyperion_proto::domain::{ReplicaKey, Telemetry};
use tokio::sync::mpsc;

/// Messages that may wait for one agent. An agent that does not keep up is disconnected: it gets
/// everything again with its next welcome.
pub const OUTGOING: usize = 256;

/// Outgoing half of a session.
/// (boxed: a channel sets memory for 32 messages aside, for each of ten thousand sessions).
pub type Outgoing = mpsc::Sender<Box<Result<StreamMessage, tonic::Status>>>;

/// An open stream.
pub struct Session {
    /// Tells this session from a later one of the same node.
    pub id: u64,
    /// Boot id of the agent.
    pub boot_id: String,
    /// To the agent.
    pub outgoing: Outgoing,
    /// To end it.
    pub connection: quinn::Connection,
    /// Last message.
    pub last_seen: Instant,
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
    next_id: u64,
    desired: HashMap<String, BTreeMap<ReplicaKey, StartReplica>>,
    complete: bool,
    logs: HashMap<u64, mpsc::Sender<LogChunk>>,
    revoked: std::collections::HashSet<String>,
}

/// All of it, behind one lock.
#[derive(Default)]
pub struct State {
    inner: Mutex<Inner>,
}

/// What stands in the way of a new session.
pub enum Admission {
    /// It is open; send this first.
    Open(u64, Box<Welcome>),
    /// Another boot of the same node id was heard this long ago.
    Contested(Duration),
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a session, unless another boot of the node was heard within `silence`.
    pub fn open(
        &self,
        node: &str,
        boot_id: &str,
        memory_total: u64,
        outgoing: Outgoing,
        connection: quinn::Connection,
        silence: Duration,
    ) -> Admission {
        let mut inner = self.lock();
        let now = Instant::now();
        if let Some(old) = inner.sessions.get(node)
            && old.boot_id != boot_id
            && old.connection.close_reason().is_none()
            && now.duration_since(old.last_seen) < silence
        {
            return Admission::Contested(now.duration_since(old.last_seen));
        }
        inner.next_id += 1;
        let id = inner.next_id;
        let session = Session {
            id,
            boot_id: boot_id.to_owned(),
            outgoing,
            connection,
            last_seen: now,
        };
        if let Some(old) = inner.sessions.insert(node.to_owned(), session) {
            old.connection
                .close(1_u32.into(), b"replaced by a newer session");
        }
        inner.version += 1;
        let version = inner.version;
        let live = inner.live.entry(node.to_owned()).or_insert_with(|| Live {
            version,
            connected: true,
            last: now,
            memory_total,
            telemetry: Telemetry::default(),
        });
        (live.version, live.connected, live.last, live.memory_total) =
            (version, true, now, memory_total);
        Admission::Open(id, Box::new(inner.welcome(node)))
    }

    /// Ends a session; false where a newer one of the node is open.
    pub fn close(&self, node: &str, id: u64) -> bool {
        let mut inner = self.lock();
        if inner.sessions.get(node).is_none_or(|s| s.id != id) {
            return false;
        }
        inner.sessions.remove(node);
        inner.version += 1;
        let version = inner.version;
        if let Some(live) = inner.live.get_mut(node) {
            (live.connected, live.version) = (false, version);
        }
        true
    }

    /// Notes that the session was heard.
    pub fn heard(&self, node: &str, id: u64) {
        if let Some(session) = self.lock().sessions.get_mut(node)
            && session.id == id
        {
            session.last_seen = Instant::now();
        }
    }

    /// Takes telemetry.
    pub fn telemetry(&self, node: &str, telemetry: Telemetry) {
        let mut inner = self.lock();
        inner.version += 1;
        let version = inner.version;
        if let Some(live) = inner.live.get_mut(node) {
            (live.version, live.last, live.telemetry) = (version, Instant::now(), telemetry);
        }
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
        let Ok(key) = hyperion_proto::convert::replica_key("start_replica.key", start.key.as_ref())
        else {
            return;
        };
        let mut inner = self.lock();
        let wanted = inner.desired.entry(node.to_owned()).or_default();
        if wanted
            .get(&key)
            .is_some_and(|held| held.generation >= start.generation)
        {
            return;
        }
        wanted.insert(key, start.clone());
        inner.send(node, Body::StartReplica(start));
    }

    /// See [`crate::Gateway::remove_desired`].
    pub fn remove_desired(&self, node: &str, key: &ReplicaKey, generation: u64) {
        let mut inner = self.lock();
        if let Some(wanted) = inner.desired.get_mut(node) {
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
        inner.send(node, Body::StopReplica(stop));
    }

    /// See [`crate::Gateway::mark_desired_complete`].
    pub fn mark_complete(&self) {
        let mut inner = self.lock();
        inner.complete = true;
        let connected: Vec<String> = inner.sessions.keys().cloned().collect();
        for node in connected {
            let welcome = inner.welcome(&node);
            inner.send(&node, Body::Welcome(welcome));
        }
    }

    /// Opens a log request.
    pub fn open_log(&self) -> (u64, mpsc::Receiver<LogChunk>) {
        let (tx, rx) = mpsc::channel(64);
        let mut inner = self.lock();
        inner.next_id += 1;
        let id = inner.next_id;
        inner.logs.insert(id, tx);
        (id, rx)
    }

    /// Ends a log request.
    pub fn close_log(&self, id: u64) {
        self.lock().logs.remove(&id);
    }

    /// Where a chunk goes; none where nobody asks any more.
    pub fn log_sink(&self, id: u64) -> Option<mpsc::Sender<LogChunk>> {
        self.lock().logs.get(&id).cloned()
    }

    /// True for a revoked node.
    pub fn is_revoked(&self, node: &str) -> bool {
        self.lock().revoked.contains(node)
    }

    /// Notes whether a node is revoked; a revoked one is cut off at once.
    pub fn set_revoked(&self, node: &str, revoked: bool) {
        let mut inner = self.lock();
        if !revoked {
            inner.revoked.remove(node);
        } else if inner.revoked.insert(node.to_owned())
            && let Some(session) = inner.sessions.get(node)
        {
            let reason = format!("node {node} is revoked");
            session
                .connection
                .close(hyperion_link::transport::CLOSE_REVOKED, reason.as_bytes());
        }
    }
}

impl Inner {
    fn welcome(&self, node: &str) -> Welcome {
        let wanted = self.desired.get(node);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Welcome {
            replicas: wanted.map_or_else(Vec::new, |w| w.values().cloned().collect()),
            replicas_complete: self.complete,
            wall_clock_unix_ms: now.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(0)),
        }
    }

    fn send(&self, node: &str, body: Body) -> bool {
        let Some(session) = self.sessions.get(node) else {
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
