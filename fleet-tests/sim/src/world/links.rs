//! Links between agents and the control plane: ordered, reliable while packets get through both
//! ways, and gone some time after they do not.

use std::collections::VecDeque;
use std::time::Duration;

use hyperion_agent::node::Gone;
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{
    ReplicaKey, ReplicaPhase, ReplicaRecord, ReplicaReport, StartReplica, StreamMessage,
};
use hyperion_proto::convert;

use super::{Event, World, note};

/// Time between two looks at all links.
pub(super) const TICK: Duration = Duration::from_millis(250);
/// An agent that has heard nothing for this long takes its link for gone.
const IDLE: Duration = Duration::from_secs(8);
/// How long a second boot of a node waits for the first to be silent; as in the gateway.
const CONTEST: Duration = Duration::from_secs(7);
/// Time before the end in which nobody leaves a way that works for a better one.
const LAST: Duration = Duration::from_secs(5);
/// A device that has had its link for this long knows what the control plane knows.
const SETTLED: Duration = Duration::from_secs(10);
/// Orders kept of a device, to arrive again.
const ORDERS: usize = 64;

/// A connection.
pub(super) struct Session {
    pub node: usize,
    epoch: u64,
    pub leader: u64,
    /// The peer through which it goes.
    pub via: Option<usize>,
    /// The agent has it, and has been welcomed on it.
    agent: bool,
    welcomed: bool,
    made: Duration,
    /// The control plane has it.
    control: bool,
    heard: Duration,
    up_at: Duration,
    down_at: Duration,
    up: VecDeque<Body>,
    down: VecDeque<Body>,
}

impl Session {
    /// The control plane's end is gone.
    pub(super) fn forget_control(&mut self) {
        self.control = false;
    }
}

impl World {
    /// Tries to reach the control plane, directly or through a peer.
    pub(super) fn connect(&mut self, node: usize, epoch: u64) {
        let device = &self.devices[node];
        let Some(agent) = device.node.as_ref().filter(|_| device.epoch == epoch) else {
            return;
        };
        if device.session.is_some() {
            return;
        }
        let relay = agent
            .relay()
            .and_then(|peer| self.numbers.get(peer))
            .copied();
        let via = if self.leader.is_none() {
            None
        } else if self.net.uplink_both(node, None) {
            Some(None)
        } else {
            relay
                .filter(|via| self.devices[*via].node.is_some())
                .filter(|via| self.net.uplink_both(node, Some(*via)))
                .map(Some)
        };
        let Some(via) = via else {
            let wait = self.rng.millis(500, 3000);
            self.after(wait, Event::Connect { node, epoch });
            return;
        };
        let mut wait = self.net.uplink_delay(node, via, &mut self.rng) * 3;
        if via.is_some() {
            // The direct way goes first.
            wait += Duration::from_secs(1);
        }
        if self.devices[node].expired {
            // A new certificate for the old key comes first.
            wait += self.rng.millis(200, 1000);
        }
        self.next_session += 1;
        let id = self.next_session;
        self.sessions.insert(
            id,
            Session {
                node,
                epoch,
                leader: self.leaders,
                via,
                agent: true,
                welcomed: false,
                made: self.now,
                control: false,
                heard: self.now,
                up_at: Duration::ZERO,
                down_at: Duration::ZERO,
                up: VecDeque::new(),
                down: VecDeque::new(),
            },
        );
        self.devices[node].session = Some(id);
        self.after(wait, Event::Hello { session: id });
    }

    /// The connection stands: the agent speaks first.
    pub(super) fn hello(&mut self, id: u64) {
        let Some(session) = self.sessions.get(&id) else {
            return;
        };
        let node = session.node;
        if !session.agent || self.devices[node].epoch != session.epoch || !self.open(id) {
            self.agent_lost(id, "no answer");
            return;
        }
        self.devices[node].expired = false;
        let device = &mut self.devices[node];
        device.containers.set_now(self.now);
        let Some(agent) = &mut device.node else {
            return;
        };
        let hello = agent.hello();
        note!(
            self,
            "{} says hello, {} decisions",
            self.devices[node].id,
            hello.site_decisions.as_ref().map_or(0, |d| d.records.len())
        );
        self.settle(node);
        self.push_up(id, Body::Hello(hello), Duration::ZERO);
    }

    /// Packets of a connection get through both ways, and there is who it was made with.
    fn open(&self, id: u64) -> bool {
        let Some(session) = self.sessions.get(&id) else {
            return false;
        };
        let relayed = session
            .via
            .is_none_or(|via| self.devices[via].node.is_some());
        relayed
            && self.leader.is_some()
            && session.leader == self.leaders
            && self.net.uplink_both(session.node, session.via)
    }

    /// True where a device has had its link for a while.
    pub(super) fn settled(&self, node: usize) -> bool {
        let session = self.devices[node]
            .session
            .and_then(|id| self.sessions.get(&id));
        session.is_some_and(|s| s.welcomed && s.made + SETTLED < self.now)
    }

    /// A message of an agent, on the connection that it has.
    pub(super) fn send_up(&mut self, node: usize, body: Body, cost: Duration) {
        if let Some(id) = self.devices[node].session {
            self.push_up(id, body, cost);
        }
    }

    fn push_up(&mut self, id: u64, body: Body, cost: Duration) {
        let open = self.open(id);
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if !open || !session.up.is_empty() {
            session.up.push_back(body);
            return;
        }
        let delay = self
            .net
            .uplink_delay(session.node, session.via, &mut self.rng);
        let at = (self.now + cost + delay).max(session.up_at);
        session.up_at = at;
        let body = Box::new(body);
        self.at(at, Event::ToControl { session: id, body });
    }

    /// A message to an agent.
    pub(super) fn send_down(&mut self, id: u64, body: Body) {
        let open = self.open(id);
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if !open || !session.down.is_empty() {
            session.down.push_back(body);
            return;
        }
        let delay = self
            .net
            .uplink_delay(session.node, session.via, &mut self.rng);
        let at = (self.now + delay).max(session.down_at);
        session.down_at = at;
        let body = Box::new(body);
        self.at(at, Event::ToNode { session: id, body });
    }

    pub(super) fn arrive_up(&mut self, id: u64, body: Body) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if session.leader != self.leaders || self.leader.is_none() {
            return;
        }
        self.hear_of_ends(&body);
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        if let Body::Hello(_) = &body {
            let until = self.now + CONTEST;
            let body = Box::new(body);
            self.admit(id, body, until);
            return;
        }
        if !session.control {
            return;
        }
        let node = self.devices[session.node].id.clone();
        if !matches!(body, Body::Telemetry(_)) {
            note!(self, "{node} -> {}", told(&body));
        }
        self.hear(&node, id, body);
    }

    /// Notes which jobs the control plane hears to have ended well.
    fn hear_of_ends(&mut self, body: &Body) {
        let reports = match body {
            Body::ReplicaReport(report) => std::slice::from_ref(report),
            Body::Hello(hello) => hello.replicas.as_slice(),
            _ => return,
        };
        for report in reports {
            if report.phase() == ReplicaPhase::Succeeded
                && let Ok(key) = convert::replica_key("", report.key.as_ref())
            {
                self.checker.told_done(&key, self.now);
            }
        }
    }

    /// Hello at the control plane: another boot of the node may have to be silent first.
    pub(super) fn admit(&mut self, id: u64, body: Box<Body>, until: Duration) {
        let now = self.now;
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let Some(leader) = self
            .leader
            .as_mut()
            .filter(|_| session.leader == self.leaders)
        else {
            return;
        };
        let Body::Hello(hello) = body.as_ref() else {
            return;
        };
        if leader.hello(id, hello, now) {
            self.api.describe(hello);
            session.control = true;
            // A session of the node that this one takes the place of is closed.
            let node = session.node;
            for (other, session) in &mut self.sessions {
                if session.node == node && *other != id {
                    session.control = false;
                }
            }
            self.control_soon();
        } else if now < until {
            let wait = Duration::from_millis(200);
            self.after(
                wait,
                Event::Admit {
                    session: id,
                    body,
                    until,
                },
            );
        } else {
            note!(self, "{} is refused: its identity is in use", hello.node_id);
            self.after(Duration::from_millis(20), Event::Goodbye { session: id });
        }
    }

    pub(super) fn arrive_down(&mut self, id: u64, body: Body) {
        let Some(session) = self.sessions.get(&id) else {
            return;
        };
        let (node, epoch, via) = (session.node, session.epoch, session.via);
        if !session.agent || self.devices[node].epoch != epoch {
            return;
        }
        let busy = self.devices[node].busy_until;
        if busy > self.now {
            let body = Box::new(body);
            self.at(busy, Event::ToNode { session: id, body });
            return;
        }
        self.remember(node, &body);
        note!(self, "{} <- {}", self.devices[node].id, told(&body));
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        session.heard = self.now;
        let first = !std::mem::replace(&mut session.welcomed, true);
        let now = self.instant(node);
        let device = &mut self.devices[node];
        device.containers.set_now(self.now);
        device.outbox.set_open(true);
        let orders = orders_of(&body);
        let stop = match &body {
            Body::StopReplica(stop) => convert::replica_key("", stop.key.as_ref())
                .ok()
                .map(|key| (key, stop.generation)),
            _ => None,
        };
        let peer = via.map(|via| format!("edge-{via}"));
        if let Some(agent) = &mut device.node {
            let held = stop
                .as_ref()
                .is_some_and(|(key, _)| agent.store().held(key).is_some());
            match (body, peer) {
                (Body::Welcome(welcome), None) if first => {
                    agent.connected(&welcome, now, &device.outbox);
                }
                (Body::Welcome(welcome), Some(peer)) if first => {
                    agent.connected_through(&peer, &welcome, now, &device.outbox);
                }
                (body, _) => {
                    agent.messages([StreamMessage { body: Some(body) }], now, &device.outbox);
                }
            }
            if let Some((key, generation)) = stop
                && held
                && agent.store().held(&key).is_none()
            {
                self.checker.stopped(node, &key, generation);
            }
        }
        // Where the power went in the middle of this, nobody hears the answers.
        let heard = !self.devices[node].disk.is_cut();
        let confirmed = self.devices[node].outbox.confirmed();
        for (key, generation, command) in orders {
            if heard && command != 0 && confirmed.contains(&command) {
                self.checker.confirmed(node, key, generation);
            }
        }
        self.settle(node);
    }

    /// Keeps orders that may arrive again.
    fn remember(&mut self, node: usize, body: &Body) {
        let list: &[StartReplica] = match body {
            Body::StartReplica(start) => std::slice::from_ref(start),
            Body::Welcome(welcome) => &welcome.replicas,
            _ => return,
        };
        for start in list {
            if let Ok(key) = convert::replica_key("", start.key.as_ref()) {
                let held = &mut self.orders[node];
                if held
                    .iter()
                    .any(|(k, s)| *k == key && s.generation == start.generation)
                {
                    continue;
                }
                if held.len() == ORDERS {
                    held.pop_front();
                }
                held.push_back((key, start.clone()));
            }
        }
    }

    /// The agent's end of a connection is gone.
    fn agent_lost(&mut self, id: u64, why: &str) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let node = session.node;
        let was = std::mem::replace(&mut session.agent, false);
        session.up.clear();
        session.down.clear();
        if !session.control {
            self.sessions.remove(&id);
        }
        if !was || self.devices[node].session != Some(id) {
            return;
        }
        let now = self.instant(node);
        let device = &mut self.devices[node];
        device.session = None;
        device.outbox.set_open(false);
        device.containers.set_now(self.now);
        let epoch = device.epoch;
        if let Some(agent) = &mut device.node {
            agent.disconnected(Gone::Lost, now);
        }
        note!(self, "{} has no link: {why}", self.devices[node].id);
        self.settle(node);
        let wait = self.rng.millis(150, 1000);
        self.after(wait, Event::Connect { node, epoch });
    }

    /// The agent is gone, or goes: what becomes of its connection.
    pub(super) fn drop_session(&mut self, node: usize, orderly: bool) {
        let mine: Vec<u64> = self
            .sessions
            .iter()
            .filter(|(_, s)| s.node == node && s.agent)
            .map(|(id, _)| *id)
            .collect();
        for id in mine {
            let open = self.open(id);
            let Some(session) = self.sessions.get_mut(&id) else {
                continue;
            };
            session.agent = false;
            session.up.clear();
            session.down.clear();
            if !session.control {
                self.sessions.remove(&id);
            } else if orderly && open {
                let name = self.devices[node].id.clone();
                self.close(&name, id);
            }
        }
    }

    /// The control plane closes a connection, and the agent hears of it.
    pub(super) fn goodbye(&mut self, id: u64) {
        if self.open(id) {
            self.agent_lost(id, "closed by the control plane");
        }
    }

    /// The control plane is gone: its ends of connections are.
    pub(super) fn control_gone(&mut self, orderly: bool) {
        let ids: Vec<u64> = self.sessions.keys().copied().collect();
        for id in ids {
            let Some(session) = self.sessions.get_mut(&id) else {
                continue;
            };
            session.control = false;
            let (node, via, agent) = (session.node, session.via, session.agent);
            if !agent {
                self.sessions.remove(&id);
            } else if orderly && self.net.uplink_both(node, via) {
                self.agent_lost(id, "the control plane stops");
            }
        }
    }

    /// The control plane takes a node for lost.
    pub(super) fn control_closed(&mut self, id: u64) {
        let open = self.open(id);
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        session.control = false;
        if !session.agent {
            self.sessions.remove(&id);
        } else if open {
            self.after(Duration::from_millis(20), Event::Goodbye { session: id });
        }
    }

    /// Looks at all connections.
    pub(super) fn links(&mut self) {
        self.after(TICK, Event::Links);
        let ids: Vec<u64> = self.sessions.keys().copied().collect();
        for id in ids {
            let open = self.open(id);
            let Some(session) = self.sessions.get_mut(&id) else {
                continue;
            };
            if !session.agent {
                continue;
            }
            let (node, via) = (session.node, session.via);
            if !open {
                if self.now.saturating_sub(session.heard) > IDLE {
                    self.agent_lost(id, "nothing heard");
                }
                continue;
            }
            session.heard = self.now;
            if !session.control && session.welcomed {
                // The control plane has given this one up.
                self.agent_lost(id, "closed by the control plane");
                continue;
            }
            let up = std::mem::take(&mut session.up);
            let down = std::mem::take(&mut session.down);
            for body in up {
                self.push_up(id, body, Duration::ZERO);
            }
            for body in down {
                self.send_down(id, body);
            }
            // Not at the very end: the moment between the two ways would pass for a failure.
            let looked_at_soon = self.now + LAST > self.plan.end;
            if via.is_some()
                && !looked_at_soon
                && self.net.uplink_both(node, None)
                && self.rng.chance(0.02)
            {
                let name = self.devices[node].id.clone();
                self.close(&name, id);
                self.agent_lost(id, "the direct way works again");
            }
        }
    }
}

/// Orders to start in a message: replica, generation and the id of the order.
fn orders_of(body: &Body) -> Vec<(hyperion_proto::domain::ReplicaKey, u64, u64)> {
    let list: &[StartReplica] = match body {
        Body::StartReplica(start) => std::slice::from_ref(start),
        // One answer for each: the same ids of different replicas can't be told apart.
        _ => return Vec::new(),
    };
    let orders = list.iter().filter_map(|start| {
        let key = convert::replica_key("", start.key.as_ref()).ok()?;
        Some((key, start.generation, start.command_id))
    });
    orders.collect()
}

/// A message in a few words.
fn told(body: &Body) -> String {
    let key = |key: Option<&ReplicaKey>| {
        key.map_or_else(String::new, |k| format!("{}/{}", k.workload, k.index))
    };
    match body {
        Body::StartReplica(s) => format!("start {} gen {}", key(s.key.as_ref()), s.generation),
        Body::StopReplica(s) => format!("stop {} gen {}", key(s.key.as_ref()), s.generation),
        Body::Welcome(w) => {
            let replicas = w.replicas.iter();
            let list: Vec<String> = replicas
                .map(|s| format!("{}:{}", key(s.key.as_ref()), s.generation))
                .collect();
            let whole = if w.replicas_complete {
                "complete"
            } else {
                "not complete"
            };
            format!("welcome, {whole}: {}", list.join(" "))
        }
        Body::DecisionsTaken(d) => {
            let records = d.records.iter();
            let list: Vec<String> = records
                .map(|r| format!("{}:{}:{}", key(r.key.as_ref()), r.generation, r.decider))
                .collect();
            format!("taken {}", list.join(" "))
        }
        Body::SiteDecisions(d) => decided(&d.records),
        Body::Hello(h) => {
            let held: Vec<String> = h.replicas.iter().map(reported).collect();
            let records = h.site_decisions.as_ref().map(|d| decided(&d.records));
            format!("hello: {}; {}", held.join(" "), records.unwrap_or_default())
        }
        Body::ReplicaReport(r) => format!("report {}", reported(r)),
        Body::CommandResult(r) => format!("result {} {} {}", r.command_id, r.ok, r.error),
        Body::Event(e) => format!("event {} {}: {}", e.id, e.reason, e.message),
        Body::SiteInfo(i) => format!("site version {}", i.version),
        Body::EventAck(a) => format!("event ack {}", a.id),
        Body::TelemetryAck(a) => format!("telemetry ack {}", a.id),
        Body::TelemetryBatch(b) => format!("batch {}, {} samples", b.id, b.samples.len()),
        Body::NodeState(_) => "state".to_owned(),
        _ => "something else".to_owned(),
    }
}

fn reported(r: &ReplicaReport) -> String {
    let key = r
        .key
        .as_ref()
        .map_or_else(String::new, |k| format!("{}/{}", k.workload, k.index));
    let ready = if r.ready { " ready" } else { "" };
    format!("{key}:{} {:?}{ready}", r.generation, r.phase())
}

fn decided(records: &[ReplicaRecord]) -> String {
    let list: Vec<String> = records
        .iter()
        .map(|r| {
            let key = r
                .key
                .as_ref()
                .map_or_else(String::new, |k| format!("{}/{}", k.workload, k.index));
            format!(
                "{key}:{} {:?} on {:?} by {:?}",
                r.generation,
                r.state(),
                r.node,
                r.decider
            )
        })
        .collect();
    format!("decided {}", list.join(", "))
}
