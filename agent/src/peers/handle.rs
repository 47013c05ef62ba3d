//! The handle through which the agent uses the endpoint.

use std::collections::HashSet;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use hyperion_link::Identity;
use hyperion_link::peer::{self, Circle};
use hyperion_proto::peer_v1::Frame;
use prost::Message;
use tracing::warn;

use super::endpoint::{Shared, code};
use super::state::{Peer, State};
use super::stats::PeerStats;
use super::{MAX_DATAGRAM, MAX_FRAME, message};

/// Sends to peers and asks them. Clones share the endpoint.
#[derive(Clone)]
pub struct PeersHandle {
    pub(super) shared: Arc<Shared>,
}

impl fmt::Debug for PeersHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeersHandle({:?})", self.local_addr())
    }
}

impl PeersHandle {
    /// Where the endpoint is bound.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.shared.endpoint.local_addr().ok()
    }

    /// Sends a datagram of at most [`MAX_DATAGRAM`] bytes, and calls the peer first where that is
    /// needed. May be lost; returns at once.
    pub fn datagram(&self, to: &str, bytes: Bytes) {
        let shared = &self.shared;
        let mut state = shared.lock();
        if bytes.len() > MAX_DATAGRAM || state.revoked.contains(to) {
            return shared.counters.datagrams_dropped.add();
        }
        let Some(peer) = state.peers.get_mut(to) else {
            return shared.counters.datagrams_dropped.add();
        };
        let answers = match peer.live() {
            Some(current) => {
                let unanswered = current.unanswered(Instant::now());
                shared.send_datagram(&current.quic, bytes.clone());
                !unanswered
            }
            None => false,
        };
        if !answers {
            for _ in 0..peer.wait_datagram(bytes) {
                shared.counters.datagrams_dropped.add();
            }
            shared.call(&mut state, to);
            self.drop_waiting(&mut state, to);
        }
    }

    /// Sends a frame of at most [`MAX_FRAME`] bytes; dropped, and counted, where the peer can't be
    /// reached or does not keep up. Returns at once.
    pub fn frame(&self, to: &str, frame: &Frame) {
        let shared = &self.shared;
        let length = frame.encoded_len();
        let mut state = shared.lock();
        let known = !state.revoked.contains(to) && state.peers.contains_key(to);
        if length > MAX_FRAME || !known {
            if length > MAX_FRAME {
                warn!(peer = %to, length, "frame is too long to be sent");
            }
            return shared.counters.frames_dropped.add();
        }
        let Some(peer) = state.peers.get_mut(to) else {
            return;
        };
        let bytes = message::framed(frame);
        if let Some(current) = peer.live()
            && !current.unanswered(Instant::now())
        {
            return shared.send_frame(to, current, bytes);
        }
        for _ in 0..peer.wait_frame(bytes) {
            shared.counters.frames_dropped.add();
        }
        shared.call(&mut state, to);
        self.drop_waiting(&mut state, to);
    }

    /// What waits for no call is dropped.
    fn drop_waiting(&self, state: &mut State, to: &str) {
        if let Some(peer) = state.peers.get_mut(to)
            && !peer.calling
        {
            for _ in peer.datagrams.drain(..) {
                self.shared.counters.datagrams_dropped.add();
            }
            for _ in peer.frames.drain(..) {
                self.shared.counters.frames_dropped.add();
            }
        }
    }

    /// Takes a peer's addresses, `HOST:PORT`, in the place of those before. Where it was met is
    /// remembered besides.
    pub fn set_addresses(&self, node: &str, addresses: Vec<String>) {
        let mut state = self.shared.lock();
        if state.circle.as_ref().is_some_and(|c| c.node == node) {
            return;
        }
        let peer = state.peers.entry(node.to_owned()).or_default();
        if peer.set != addresses {
            peer.set = addresses;
            peer.reached();
        }
    }

    /// Takes a renewed certificate for the connections from now on.
    pub fn set_identity(&self, identity: &Identity) {
        let shared = &self.shared;
        let made = peer::configs(identity, shared.transport.clone())
            .and_then(|tls| Ok((tls, Circle::of(identity)?)));
        match made {
            Ok((tls, circle)) => {
                shared.endpoint.set_server_config(Some(tls.server));
                let mut state = shared.lock();
                let moved = state.circle != circle;
                (state.client, state.circle) = (tls.client, circle);
                let all = state.peers.values().flat_map(Peer::connections);
                for quic in all.filter(|_| moved) {
                    quic.close(code::NOT_HEARD, b"of another site now");
                }
            }
            Err(e) => warn!(error = %e, "renewed certificate is of no use among peers"),
        }
        self.say_if_unheard();
    }

    pub(super) fn say_if_unheard(&self) {
        let unheard = self.shared.lock().circle.is_none();
        if unheard {
            let why = "this node's certificate names no site: no peer hears it until it is renewed";
            self.shared.tell("self", why);
        }
    }

    /// Takes the whole list of nodes that are not heard; their connections end.
    pub fn set_revoked(&self, nodes: &[String]) {
        let mut state = self.shared.lock();
        state.revoked = nodes.iter().cloned().collect::<HashSet<_>>();
        for node in nodes {
            let peer = state.peers.get(node);
            for quic in peer.into_iter().flat_map(Peer::connections) {
                quic.close(code::NOT_HEARD, b"revoked");
            }
        }
    }

    /// Numbers since the start.
    #[must_use]
    pub fn stats(&self) -> PeerStats {
        let live = self.shared.lock().live();
        self.shared.counters.read(live)
    }
}
