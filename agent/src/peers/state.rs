//! What is known of each peer: addresses, the connection in use, what waits for it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyperion_link::peer::Circle;
use rand::RngExt;
use tokio::sync::mpsc;

use super::REFUSED_EVERY;

/// Datagrams, and frames, that wait for a call to be answered; the newest stay.
const WAITING: usize = 8;
/// Addresses that are kept of a peer besides those that were set.
const LEARNT: usize = 4;
/// Wait after the first call that failed, and the longest one.
const BACKOFF_MIN: Duration = Duration::from_millis(300);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Calls at a time. A node that starts, or has lost all its connections, has some dozen others to
/// call; all at once, and on all nodes, would be more handshakes than small devices finish in time.
const CALLS: usize = 6;
/// Calls at a time of peers that did not answer the last one: those that do answer must not wait for
/// them.
const CALLS_IN_VAIN: usize = 3;
/// Two connections of a pair that began within this time are two calls that crossed.
const CROSSED: Duration = Duration::from_secs(2);
/// A connection on which nothing came back for this long, or for so many round trips if those are
/// longer, is called anew beside it. Where nodes are too busy to answer in time, handshakes would
/// make it worse.
const UNANSWERED: Duration = Duration::from_secs(1);
const UNANSWERED_RTTS: u32 = 6;
/// Frames that wait for one peer to read.
pub(super) const QUEUE: usize = 64;
/// Bytes of them, unless there is only one.
const QUEUE_BYTES: usize = 1 << 20;
/// Refusals that are remembered, to tell each only once in a while.
const REFUSALS: usize = 256;

/// Frames on their way to one peer.
#[derive(Debug, Clone)]
pub(super) struct Outgoing {
    pub sender: mpsc::Sender<Bytes>,
    pub queued: Arc<AtomicUsize>,
}

impl Outgoing {
    /// Queues a frame; false where the peer does not keep up.
    pub(super) fn push(&self, frame: Bytes) -> bool {
        let length = frame.len();
        let before = self.queued.fetch_add(length, Ordering::Relaxed);
        let fits = before == 0 || before + length <= QUEUE_BYTES;
        if fits && self.sender.try_send(frame).is_ok() {
            return true;
        }
        self.queued.fetch_sub(length, Ordering::Relaxed);
        false
    }
}

/// The connection in use.
#[derive(Debug)]
pub(super) struct Current {
    pub quic: quinn::Connection,
    /// This node made the call.
    pub called: bool,
    pub since: Instant,
    pub used: Instant,
    /// Made when the first frame is sent.
    pub outgoing: Option<Outgoing>,
    /// Packets that had come when something was sent last, and since when no more have.
    heard: u64,
    silent: Option<Instant>,
}

impl Current {
    pub(super) fn new(quic: quinn::Connection, called: bool, now: Instant) -> Self {
        Self {
            quic,
            called,
            since: now,
            used: now,
            outgoing: None,
            heard: 0,
            silent: None,
        }
    }

    pub(super) fn lives(&self) -> bool {
        self.quic.close_reason().is_none()
    }

    /// Something is sent now. True where what was sent before has not been answered in a while:
    /// QUIC confirms everything, so the way is broken or the peer has forgotten the connection.
    pub(super) fn unanswered(&mut self, now: Instant) -> bool {
        self.used = now;
        let heard = self.quic.stats().udp_rx.datagrams;
        if heard != self.heard {
            self.heard = heard;
            self.silent = Some(now);
        }
        let since = *self.silent.get_or_insert(now);
        let patience = UNANSWERED.max(self.quic.rtt() * UNANSWERED_RTTS);
        now.saturating_duration_since(since) > patience
    }
}

/// One other node.
#[derive(Debug, Default)]
pub(super) struct Peer {
    /// `HOST:PORT`, from the control plane's list and the node's own record.
    pub set: Vec<String>,
    /// Where it was met, newest first.
    pub met: VecDeque<SocketAddr>,
    /// What multicast DNS says; anybody may say anything there.
    pub hinted: VecDeque<SocketAddr>,
    pub current: Option<Current>,
    /// Connections that were replaced and end soon.
    pub retired: Vec<quinn::Connection>,
    pub datagrams: VecDeque<Bytes>,
    pub frames: VecDeque<Bytes>,
    /// A call is being made.
    pub calling: bool,
    failures: u32,
    next_call: Option<Instant>,
}

impl Peer {
    /// Keeps a datagram for when the call is answered; how many were dropped for it.
    pub(super) fn wait_datagram(&mut self, bytes: Bytes) -> usize {
        keep_newest(&mut self.datagrams, bytes, WAITING)
    }

    /// Keeps a frame for when the call is answered; how many were dropped for it.
    pub(super) fn wait_frame(&mut self, frame: Bytes) -> usize {
        keep_newest(&mut self.frames, frame, WAITING)
    }

    /// The connection, where it lives.
    pub(super) fn live(&mut self) -> Option<&mut Current> {
        self.current.as_mut().filter(|c| c.lives())
    }

    /// Whether a call may begin now; it counts as begun then.
    pub(super) fn begin_call(&mut self, now: Instant) -> bool {
        let may = !self.calling
            && self.next_call.is_none_or(|at| at <= now)
            && !(self.set.is_empty() && self.met.is_empty() && self.hinted.is_empty());
        self.calling |= may;
        may
    }

    /// A call ended. What waited for it is dropped where it failed: an old probe tells nothing. How
    /// many datagrams and frames that were.
    pub(super) fn end_call(&mut self, answered: bool, now: Instant) -> (usize, usize) {
        self.calling = false;
        if answered || self.live().is_some_and(|c| now - c.since < CROSSED) {
            self.reached();
            return (0, 0);
        }
        let wait = (BACKOFF_MIN * 2_u32.saturating_pow(self.failures.min(8))).min(BACKOFF_MAX);
        let wait = wait.mul_f64(rand::rng().random_range(0.5..1.0));
        self.failures = self.failures.saturating_add(1);
        self.next_call = Some(now + wait);
        let dropped = (self.datagrams.len(), self.frames.len());
        self.datagrams.clear();
        self.frames.clear();
        dropped
    }

    /// Whether the last call was not answered.
    pub(super) fn in_vain(&self) -> bool {
        self.failures > 0
    }

    /// It answers: the next call need not wait.
    pub(super) fn reached(&mut self) {
        self.failures = 0;
        self.next_call = None;
    }

    pub(super) fn meet(&mut self, address: SocketAddr) {
        move_to_front(&mut self.met, canonical(address));
    }

    pub(super) fn hint(&mut self, address: SocketAddr) {
        move_to_front(&mut self.hinted, canonical(address));
    }

    /// Everything to try, the likeliest first.
    pub(super) fn addresses(&self) -> Vec<String> {
        let met = self.met.iter().map(ToString::to_string);
        let hinted = self.hinted.iter().map(ToString::to_string);
        let mut all: Vec<String> = Vec::new();
        for address in met.chain(self.set.iter().cloned()).chain(hinted) {
            if !all.contains(&address) {
                all.push(address);
            }
        }
        all
    }

    /// Takes a new connection, and gives the one that is to end for it. Where one stands already,
    /// the new one replaces it, unless the two are calls that crossed: then both ends keep the one
    /// that the lower id made.
    ///
    /// A peer that calls while it has a connection has lost it: it restarted, or moved.
    pub(super) fn take(&mut self, new: Current, own_is_lower: bool) -> Option<quinn::Connection> {
        let now = new.since;
        self.retired.retain(|c| c.close_reason().is_none());
        let keep = match self.live() {
            Some(old) if old.called != new.called && now - old.since < CROSSED => {
                new.called == own_is_lower
            }
            _ => true,
        };
        self.reached();
        let beside = if keep {
            self.current.replace(new).map(|old| old.quic)
        } else {
            Some(new.quic)
        };
        let beside = beside.filter(|c| c.close_reason().is_none());
        self.retired.extend(beside.clone());
        beside
    }

    /// Every connection with it.
    pub(super) fn connections(&self) -> impl Iterator<Item = &quinn::Connection> {
        let current = self.current.iter().map(|c| &c.quic);
        current.chain(&self.retired)
    }
}

/// Everything that the tasks share.
pub(super) struct State {
    /// None while the own certificate names no site.
    pub circle: Option<Circle>,
    pub client: quinn::ClientConfig,
    pub revoked: HashSet<String>,
    pub peers: HashMap<String, Peer>,
    refusals: HashMap<String, Instant>,
}

impl State {
    pub(super) fn new(circle: Option<Circle>, client: quinn::ClientConfig) -> Self {
        Self {
            circle,
            client,
            revoked: HashSet::new(),
            peers: HashMap::new(),
            refusals: HashMap::new(),
        }
    }

    /// Whether a refusal of this peer is to be told.
    pub(super) fn tell_refusal(&mut self, peer: &str, now: Instant) -> bool {
        self.refusals
            .retain(|_, told| now.saturating_duration_since(*told) < REFUSED_EVERY);
        if self.refusals.contains_key(peer) || self.refusals.len() >= REFUSALS {
            return false;
        }
        self.refusals.insert(peer.to_owned(), now);
        true
    }

    /// Whether there is room for one more call: of a peer, by what became of the last one.
    pub(super) fn may_call(&self, in_vain: bool) -> bool {
        room_for_call(self.peers.values(), in_vain)
    }

    pub(super) fn live(&self) -> usize {
        let live = |peer: &&Peer| peer.current.as_ref().is_some_and(Current::lives);
        self.peers.values().filter(live).count()
    }

    /// The peer whose connection was not used for the longest time.
    pub(super) fn least_used(&self) -> Option<&Current> {
        let live = self.peers.values().filter_map(|p| p.current.as_ref());
        live.filter(|c| c.lives()).min_by_key(|c| c.used)
    }
}

fn room_for_call<'a>(peers: impl Iterator<Item = &'a Peer>, in_vain: bool) -> bool {
    let (mut all, mut vain) = (0, 0);
    for peer in peers.filter(|peer| peer.calling) {
        all += 1;
        vain += usize::from(peer.in_vain());
    }
    all < CALLS && (!in_vain || vain < CALLS_IN_VAIN)
}

/// IPv4 addresses as such, also where a socket of the other family saw them.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        // The scope of a link-local address is kept.
        IpAddr::V6(_) => address,
    }
}

fn keep_newest(queue: &mut VecDeque<Bytes>, bytes: Bytes, most: usize) -> usize {
    queue.push_back(bytes);
    let over = queue.len().saturating_sub(most);
    queue.drain(..over);
    over
}

fn move_to_front(addresses: &mut VecDeque<SocketAddr>, address: SocketAddr) {
    addresses.retain(|known| *known != address);
    addresses.push_front(address);
    addresses.truncate(LEARNT);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_addresses_are_kept_and_the_one_met_is_tried_first() {
        let mut peer = Peer {
            set: vec!["edge-1:7447".to_owned(), "10.0.0.5:1".to_owned()],
            ..Peer::default()
        };
        for port in 1..=6 {
            peer.meet(SocketAddr::from(([10, 0, 0, 5], port)));
        }
        peer.meet("[::ffff:10.0.0.5]:4".parse().unwrap());
        peer.hint("10.9.9.9:1".parse().unwrap());
        assert_eq!(
            peer.addresses(),
            [
                "10.0.0.5:4",
                "10.0.0.5:6",
                "10.0.0.5:5",
                "10.0.0.5:3",
                "edge-1:7447",
                "10.0.0.5:1",
                "10.9.9.9:1"
            ]
        );
    }

    #[test]
    fn a_peer_without_addresses_is_not_called_and_a_failed_call_is_not_repeated_at_once() {
        let now = Instant::now();
        let mut peer = Peer::default();
        assert!(!peer.begin_call(now));
        peer.hint("10.9.9.9:1".parse().unwrap());
        assert!(peer.begin_call(now));
        assert!(!peer.begin_call(now), "a call is being made");
        peer.wait_datagram(Bytes::from_static(b"probe"));
        assert_eq!(peer.end_call(false, now), (1, 0));
        assert!(!peer.begin_call(now));
        let mut waits = Vec::new();
        let mut at = now;
        for _ in 0..12 {
            let next = peer.next_call.unwrap();
            waits.push(next - at);
            at = next;
            assert!(peer.begin_call(at));
            peer.end_call(false, at);
        }
        assert!(
            waits[0] <= BACKOFF_MIN && waits[11] >= BACKOFF_MAX / 2,
            "{waits:?}"
        );
        peer.reached();
        assert!(peer.begin_call(at));
    }

    #[test]
    fn calls_that_nobody_answers_leave_room_for_others() {
        let now = Instant::now();
        let mut peers = Vec::new();
        let begin = |failures: u32, peers: &mut Vec<Peer>| {
            let mut peer = Peer {
                failures,
                ..Peer::default()
            };
            peer.hint("10.9.9.9:1".parse().unwrap());
            let begun = room_for_call(peers.iter(), peer.in_vain()) && peer.begin_call(now);
            peers.push(peer);
            begun
        };
        let in_vain = (0..10).filter(|_| begin(1, &mut peers)).count();
        assert_eq!(in_vain, CALLS_IN_VAIN);
        let new = (0..10).filter(|_| begin(0, &mut peers)).count();
        assert_eq!(new, CALLS - CALLS_IN_VAIN);
        peers.clear();
        let new = (0..10).filter(|_| begin(0, &mut peers)).count();
        assert_eq!(new, CALLS);
    }

    #[test]
    fn only_the_newest_datagrams_wait() {
        let mut peer = Peer::default();
        let dropped: usize = (0..20_u8)
            .map(|i| peer.wait_datagram(Bytes::copy_from_slice(&[i])))
            .sum();
        assert_eq!(dropped, 12);
        assert_eq!(peer.datagrams.front().unwrap()[0], 12);
        assert_eq!(peer.datagrams.back().unwrap()[0], 19);
    }

    #[test]
    fn a_queue_holds_one_large_frame_or_a_megabyte() {
        let (sender, _receiver) = mpsc::channel(QUEUE);
        let outgoing = Outgoing {
            sender,
            queued: Arc::default(),
        };
        assert!(outgoing.push(Bytes::from(vec![0; 2 << 20])));
        assert!(!outgoing.push(Bytes::from_static(b"x")));
        outgoing.queued.store(0, Ordering::Relaxed);
        let pushed = (0..100).filter(|_| outgoing.push(Bytes::from_static(b"x")));
        assert_eq!(pushed.count(), QUEUE - 1);
    }
}
