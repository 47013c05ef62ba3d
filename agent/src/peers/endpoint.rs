//! The endpoint: takes calls, and keeps one connection for each peer.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyperion_link::identity::peer_leaf;
use hyperion_link::peer::{self, Circle, NotHeard};
use hyperion_link::server;
use quinn::{IdleTimeout, TransportConfig, VarInt};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::serve::Serve;
use super::state::{Current, Outgoing, Peer, QUEUE, State, canonical};
use super::stats::Counters;
use super::{PeerEvent, PeersConfig, PeersError, PeersHandle};
use super::{connection, dial, mdns};

/// Events that may wait for the agent.
const EVENTS: usize = 256;
/// Handshakes of callers at a time.
const HANDSHAKES: usize = 16;
/// Time for a handshake.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(5);
/// A connection without any packet ends after this. Nothing is sent to keep it: partners are probed
/// every 16 s, and who was asked to help with a probe is likely to be asked again. A handshake costs
/// as many bytes as 70 packets.
const IDLE: Duration = Duration::from_secs(600);
/// Connections of one node, of about 50 KB each; the one not used for the longest time gives way.
const CONNECTIONS: usize = 128;
/// A replaced connection is still read for this long.
const RETIRE: Duration = Duration::from_secs(1);
/// Round-trip time that is assumed before one was measured: peers are near, and a lost packet of
/// the handshake should not cost the second that the internet's default makes of it.
const FIRST_RTT: Duration = Duration::from_millis(50);
/// Receive window of a stream, bytes; of a connection four times that.
const WINDOW: u32 = 128 * 1024;
/// Datagrams that wait to be sent or to be read, bytes.
const DATAGRAMS: usize = 32 * 1024;
/// Connection ids, bytes. A probe has some 30 with QUIC's own parts, three packets a second and
/// node; and of 2^32 ids those of a few hundred connections are told apart.
const CONNECTION_ID: usize = 4;

/// Codes with which connections are closed.
pub(super) mod code {
    use quinn::VarInt;

    pub const STOPS: VarInt = VarInt::from_u32(0);
    pub const REPLACED: VarInt = VarInt::from_u32(1);
    pub const NOT_HEARD: VarInt = VarInt::from_u32(2);
    pub const MALFORMED: VarInt = VarInt::from_u32(3);
    pub const TOO_MANY: VarInt = VarInt::from_u32(4);
}

/// What all tasks of the endpoint share.
pub(super) struct Shared {
    pub endpoint: quinn::Endpoint,
    pub runtime: tokio::runtime::Handle,
    pub transport: Arc<TransportConfig>,
    state: Mutex<State>,
    pub events: mpsc::Sender<PeerEvent>,
    pub counters: Counters,
    /// Somebody was reached, or a call failed.
    pub changed: Notify,
    pub serve: Serve,
    pub stop: CancellationToken,
}

/// Opens the endpoint on the current tokio runtime; it ends when `stop` is cancelled.
///
/// # Errors
/// The address is taken, or the identity's key and certificates do not go together.
pub fn start(
    config: PeersConfig,
    stop: CancellationToken,
) -> Result<(PeersHandle, mpsc::Receiver<PeerEvent>), PeersError> {
    start_with(config, stop, IDLE)
}

/// As [`start`], with another end of connections without packets.
pub(super) fn start_with(
    config: PeersConfig,
    stop: CancellationToken,
    idle: Duration,
) -> Result<(PeersHandle, mpsc::Receiver<PeerEvent>), PeersError> {
    let transport = transport(idle);
    let tls = peer::configs(&config.identity, transport.clone())?;
    let circle = Circle::of(&config.identity).map_err(peer::PeerTlsError::from)?;
    let endpoint = bind(config.listen, tls.server, &config.identity.key_der)?;
    let (events, receiver) = mpsc::channel(EVENTS);
    let shared = Arc::new(Shared {
        endpoint,
        runtime: tokio::runtime::Handle::current(),
        transport,
        state: Mutex::new(State::new(circle, tls.client)),
        events,
        counters: Counters::default(),
        changed: Notify::new(),
        serve: Serve::new(config.control, config.images, config.policies),
        stop,
    });
    let handle = PeersHandle {
        shared: shared.clone(),
    };
    handle.set_revoked(&config.revoked);
    handle.say_if_unheard();
    tokio::spawn(accept(shared.clone()));
    for address in config.static_peers {
        tokio::spawn(dial::always(shared.clone(), address));
    }
    if config.mdns {
        mdns::start(shared, &config.identity);
    }
    Ok((handle, receiver))
}

/// Both families where the host has them.
fn bind(
    address: SocketAddr,
    config: quinn::ServerConfig,
    key: &[u8],
) -> Result<quinn::Endpoint, PeersError> {
    // The key makes resets that peers believe: they learn at once that this node has forgotten
    // the connections from before its restart.
    let bound = server::bind_with(address, config.clone(), key, CONNECTION_ID);
    let any_v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
    match bound {
        Err(_) if address.is_ipv6() && address.ip().is_unspecified() => {
            server::bind_with(any_v4, config, key, CONNECTION_ID)
        }
        bound => bound,
    }
    .map_err(|source| PeersError::Bind { address, source })
}

fn transport(idle: Duration) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(8))
        .max_concurrent_uni_streams(VarInt::from_u32(2))
        .stream_receive_window(VarInt::from_u32(WINDOW))
        .receive_window(VarInt::from_u32(4 * WINDOW))
        .send_window(u64::from(2 * WINDOW))
        .datagram_receive_buffer_size(Some(DATAGRAMS))
        .datagram_send_buffer_size(DATAGRAMS)
        .initial_rtt(FIRST_RTT)
        .mtu_discovery_config(None)
        // It keeps room for ten packets per connection.
        .enable_segmentation_offload(false)
        .max_idle_timeout(IdleTimeout::try_from(idle).ok());
    Arc::new(config)
}

/// Takes calls until the endpoint stops.
async fn accept(shared: Arc<Shared>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let incoming = tokio::select! {
            incoming = shared.endpoint.accept() => incoming,
            () = shared.stop.cancelled() => None,
        };
        let Some(incoming) = incoming else { break };
        if shared.lock().circle.is_none() {
            incoming.refuse();
            continue;
        }
        // In a crowd only those get a turn who can be reached at their address.
        let Ok(turn) = handshakes.clone().try_acquire_owned() else {
            if incoming.may_retry() {
                let _ = incoming.retry();
            } else {
                incoming.refuse();
            }
            continue;
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            let from = incoming.remote_address();
            match tokio::time::timeout(HANDSHAKE, async { incoming.await }).await {
                Ok(Ok(quic)) => {
                    let _ = shared.admit(quic, false);
                }
                Ok(Err(e)) => shared.refuse(&from.to_string(), &e.to_string()),
                Err(_) => debug!(peer = %from, "no handshake in time"),
            }
            drop(turn);
        });
    }
    shared.endpoint.close(code::STOPS, b"agent stops");
    let _ = tokio::time::timeout(RETIRE, shared.endpoint.wait_idle()).await;
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an address is that of this endpoint: only the host's own can be bound.
    fn is_here(&self, address: SocketAddr) -> bool {
        let own_port = self
            .endpoint
            .local_addr()
            .is_ok_and(|own| own.port() == address.port());
        own_port && std::net::UdpSocket::bind((canonical(address).ip(), 0)).is_ok()
    }

    /// Takes a connection whose handshake is done, or closes it: the id of the node that answers,
    /// which may be this one.
    pub(super) fn admit(self: &Arc<Self>, quic: quinn::Connection, called: bool) -> Option<String> {
        let address = quic.remote_address();
        let leaf = peer_leaf(&quic);
        let now = Instant::now();
        let mut state = self.lock();
        let circle = state.circle.as_ref();
        let admitted = match (circle, leaf) {
            (Some(circle), Some(leaf)) => circle.admit(&leaf),
            _ => Err(NotHeard::Unreadable),
        };
        let (why, who) = match admitted {
            Ok(node) if state.revoked.contains(&node) => ("revoked".to_owned(), node),
            Ok(node) => {
                let own_is_lower = circle.is_some_and(|c| c.node < node);
                let peer = state.peers.entry(node.clone()).or_default();
                peer.meet(address);
                let beside = peer.take(Current::new(quic.clone(), called, now), own_is_lower);
                if let Some(quic) = beside {
                    self.retire(quic);
                }
                self.flush(&mut state, &node);
                self.make_room(&state);
                drop(state);
                debug!(peer = %node, %address, called, "connected");
                self.runtime
                    .spawn(connection::run(self.clone(), node.clone(), quic));
                self.changed.notify_waiters();
                // Where the queue is full the agent learns of the peer by what it sends.
                let _ = self.events.try_send(PeerEvent::Found {
                    node: node.clone(),
                    addr: canonical(address),
                });
                return Some(node);
            }
            Err(NotHeard::Clone) if self.is_here(address) => {
                // A list of static peers may be the same on every node.
                let own = circle.map(|c| c.node.clone());
                quic.close(code::STOPS, b"this node itself");
                return own;
            }
            Err(why) => (why.to_string(), address.to_string()),
        };
        drop(state);
        quic.close(code::NOT_HEARD, why.as_bytes());
        self.refuse(&who, &why);
        None
    }

    /// Sends what waited for the connection.
    fn flush(&self, state: &mut State, node: &str) {
        let Some(peer) = state.peers.get_mut(node) else {
            return;
        };
        let datagrams = std::mem::take(&mut peer.datagrams);
        let frames = std::mem::take(&mut peer.frames);
        let Some(current) = peer.live() else {
            return;
        };
        for bytes in datagrams {
            self.send_datagram(&current.quic, bytes);
        }
        for frame in frames {
            self.send_frame(node, current, frame);
        }
    }

    pub(super) fn send_datagram(&self, quic: &quinn::Connection, bytes: Bytes) {
        match quic.send_datagram(bytes) {
            Ok(()) => self.counters.datagrams_sent.add(),
            Err(e) => {
                debug!(error = %e, "datagram not sent");
                self.counters.datagrams_dropped.add();
            }
        }
    }

    pub(super) fn send_frame(&self, node: &str, current: &mut Current, frame: Bytes) {
        let outgoing = current.outgoing.get_or_insert_with(|| {
            let (sender, receiver) = mpsc::channel(QUEUE);
            let outgoing = Outgoing {
                sender,
                queued: Arc::default(),
            };
            let (quic, queued) = (current.quic.clone(), outgoing.queued.clone());
            let node = node.to_owned();
            self.runtime.spawn(async move {
                connection::send_frames(&node, &quic, receiver, &queued).await;
            });
            outgoing
        });
        if outgoing.push(frame) {
            self.counters.frames_sent.add();
        } else {
            self.counters.frames_dropped.add();
        }
    }

    /// Ends a replaced connection when what was under way on it has come.
    fn retire(&self, quic: quinn::Connection) {
        self.runtime.spawn(async move {
            tokio::time::sleep(RETIRE).await;
            quic.close(code::REPLACED, b"replaced by another connection");
        });
    }

    fn make_room(&self, state: &State) {
        if state.live() > CONNECTIONS
            && let Some(least) = state.least_used()
        {
            least.quic.close(code::TOO_MANY, b"not used lately");
        }
    }

    /// Calls a peer unless that goes on already, was of no use a moment ago, or many are called.
    pub(super) fn call(self: &Arc<Self>, state: &mut State, node: &str) {
        if state.circle.is_none() || self.stop.is_cancelled() {
            return;
        }
        let Some(in_vain) = state.peers.get(node).map(Peer::in_vain) else {
            return;
        };
        let may = state.may_call(in_vain);
        let Some(peer) = state.peers.get_mut(node).filter(|_| may) else {
            return;
        };
        if peer.begin_call(Instant::now()) {
            let addresses = peer.addresses();
            self.runtime
                .spawn(dial::call(self.clone(), node.to_owned(), addresses));
        }
    }

    /// The connection with a peer, where it stands and answers; else it is called, and false says
    /// that there is nothing to wait for.
    pub(super) fn connected(self: &Arc<Self>, node: &str) -> Result<quinn::Connection, bool> {
        let now = Instant::now();
        let mut state = self.lock();
        if state.revoked.contains(node) {
            return Err(false);
        }
        let Some(peer) = state.peers.get_mut(node) else {
            return Err(false);
        };
        if let Some(current) = peer.live()
            && !current.unanswered(now)
        {
            return Ok(current.quic.clone());
        }
        self.call(&mut state, node);
        Err(state.peers.get(node).is_some_and(|peer| peer.calling))
    }

    /// A refusal: counted, and told once in a while.
    pub(super) fn refuse(&self, peer: &str, why: &str) {
        self.counters.refused.add();
        self.tell(peer, why);
    }

    /// The peer sent what it may not: its connection ends.
    pub(super) fn malformed(&self, node: &str, quic: &quinn::Connection, why: &str) {
        if quic.close_reason().is_none() {
            self.counters.malformed.add();
            quic.close(code::MALFORMED, why.as_bytes());
            self.tell(node, why);
        }
    }

    pub(super) fn tell(&self, peer: &str, why: &str) {
        if self.lock().tell_refusal(peer, Instant::now()) {
            info!(%peer, %why, "peer refused");
            let _ = self.events.try_send(PeerEvent::Refused {
                peer: peer.to_owned(),
                why: why.to_owned(),
            });
        }
    }

    /// The connection's task ended.
    pub(super) fn ended(&self, node: &str, quic: &quinn::Connection) {
        let mut state = self.lock();
        let Some(peer) = state.peers.get_mut(node) else {
            return;
        };
        let id = quic.stable_id();
        if peer
            .current
            .as_ref()
            .is_some_and(|c| c.quic.stable_id() == id)
        {
            peer.current = None;
        }
        peer.retired.retain(|c| c.stable_id() != id);
    }
}
