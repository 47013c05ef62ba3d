//! The other nodes of the site: one QUIC endpoint that calls and is called, with node certificates
//! on both ends.
//!
//! ```text
//!   node core --datagram, frame--> PeersHandle --> one connection per pair --> peer
//!   node core <---- PeerEvent ---- tasks of each connection <----------------- peer
//! ```
//!
//! - Only nodes of this node's fleet and site are heard ([`hyperion_link::peer`] says why dates of
//!   certificates are not looked at); revoked ones are cut off.
//! - Connections are made when something is to be sent, and end when nothing was for a while. Where
//!   both ends call at the same time, the call of the lower node id stays. A connection that does
//!   not answer is called anew beside it, so a roaming or restarted peer is back after one probe.
//! - Datagrams carry membership probes and may be lost; frames go in order on one stream and are
//!   dropped when a peer does not keep up. What is asked of a peer (an image, a policy, the way to
//!   the control plane) has a stream of its own.
//! - A peer that sends nonsense loses its connection, and [`PeerEvent::Refused`] names it; nothing
//!   else is affected.
//!
//! The way in is [`start`].

mod connection;
mod dial;
mod endpoint;
mod handle;
mod images;
mod mdns;
mod message;
mod relay;
mod request;
mod serve;
mod state;
mod stats;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyperion_link::Identity;
use hyperion_link::peer::PeerTlsError;
use hyperion_proto::peer_v1::{Apply, ApplyAnswer, Frame};
use tokio::sync::oneshot;

pub use endpoint::start;
pub use handle::PeersHandle;
pub use images::PeerImages;
pub use relay::Relay;
pub use stats::PeerStats;

use crate::runtime::Cri;

/// Longest datagram, bytes: what fits, with QUIC's own parts, into the 1,200 bytes that every path
/// carries.
pub const MAX_DATAGRAM: usize = 1100;
/// Longest frame, bytes. One record with its pod has to fit; Kubernetes keeps objects below 1.5 MiB.
pub const MAX_FRAME: usize = 2 << 20;

/// A policy file and its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyFile {
    /// The file.
    pub bytes: Bytes,
    /// Signature of the CA's key over the SHA-256; see `PolicyOffer`.
    pub signature: Vec<u8>,
}

/// Gives the policy file with this SHA-256 (hex), where this node has it.
pub type PolicyFiles = Arc<dyn Fn(&str) -> Option<PolicyFile> + Send + Sync>;

/// What the endpoint needs to start.
#[derive(Clone)]
pub struct PeersConfig {
    /// The node's identity. Where its certificate names no site, nobody is called or heard until
    /// [`PeersHandle::set_identity`] brings one that does.
    pub identity: Identity,
    /// UDP address; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Addresses that are always tried, `HOST:PORT`.
    pub static_peers: Vec<String>,
    /// Find peers, and be found, by multicast DNS.
    pub mdns: bool,
    /// Nodes that are not heard; the list that the store holds.
    pub revoked: Vec<String>,
    /// The control plane's address, `HOST:PORT`: where packets go that peers want passed on.
    pub control: String,
    /// Whose images peers may have; none gives none.
    pub images: Option<Cri>,
    /// Whose policy files peers may have.
    pub policies: PolicyFiles,
}

/// What happens among the peers.
#[derive(Debug)]
pub enum PeerEvent {
    /// A connection with this node stands. Comes again with each one.
    Found {
        /// Node id.
        node: String,
        /// Its address.
        addr: SocketAddr,
    },
    /// A membership probe.
    Datagram {
        /// Node id.
        from: String,
        /// At most [`MAX_DATAGRAM`] where the peer is as it should be; at most a packet.
        bytes: Bytes,
    },
    /// Records.
    Frame {
        /// Node id.
        from: String,
        /// Message.
        frame: Box<Frame>,
    },
    /// A local order that a peer hands over.
    Apply {
        /// Node id.
        from: String,
        /// Order.
        apply: Apply,
        /// Where the answer goes.
        answer: oneshot::Sender<ApplyAnswer>,
    },
    /// Somebody was refused. At most one for each of them in [`REFUSED_EVERY`].
    Refused {
        /// Node id, or the address where no node is known.
        peer: String,
        /// For people.
        why: String,
    },
}

/// Shortest time between two [`PeerEvent::Refused`] about the same peer.
pub const REFUSED_EVERY: Duration = Duration::from_secs(10);

/// The endpoint could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum PeersError {
    /// The address is taken, most often.
    #[error("peer address {address}: {source}")]
    Bind {
        /// Address.
        address: SocketAddr,
        /// Cause.
        source: std::io::Error,
    },
    /// Key or certificates.
    #[error("peer TLS: {0}")]
    Tls(#[from] PeerTlsError),
}

/// A peer could not be asked, or said no.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PeerError {
    /// No address, or nobody answers there.
    #[error("peer {0} can't be reached")]
    Unreachable(String),
    /// The connection ended in between.
    #[error("peer {peer}: {problem}")]
    Lost {
        /// Node id.
        peer: String,
        /// What happened.
        problem: String,
    },
    /// It does not have it, or does not want to.
    #[error("peer {peer} says: {why}")]
    Refused {
        /// Node id.
        peer: String,
        /// In its words.
        why: String,
    },
    /// Something here.
    #[error("{0}")]
    Local(String),
}
