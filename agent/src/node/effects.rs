//! What a node wants done, and where its messages to the control plane go.

use bytes::Bytes;
use hyperion_autonomy::Mode;
use hyperion_link::{LinkSender, SendError};
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{FetchLogs, SiteInfo, StreamMessage};
use hyperion_proto::peer_v1::Frame;

/// Where messages to the control plane go; a trait of one method so that nodes run without a
/// connection.
pub trait Outgoing {
    /// Queues a message; false where it was not taken.
    fn send(&self, body: Body) -> bool;
}

impl Outgoing for LinkSender {
    fn send(&self, body: Body) -> bool {
        match self.try_send(StreamMessage { body: Some(body) }) {
            Ok(()) => true,
            Err(SendError::NotConnected(_) | SendError::Full(_)) => false,
        }
    }
}

/// Something to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Send a probe to a peer; may be lost.
    Datagram {
        /// Node id.
        to: String,
        /// foca's message.
        bytes: Bytes,
    },
    /// Send records to a peer; may fail.
    Frame {
        /// Node id.
        to: String,
        /// Message.
        frame: Box<Frame>,
    },
    /// Read, follow or no longer follow a container's output.
    Logs(Box<FetchLogs>),
    /// Fetch a policy file from a peer that has it, and give it to
    /// [`Node::policy_fetched`](super::Node::policy_fetched).
    FetchPolicy {
        /// SHA-256, hex.
        sha256: String,
    },
    /// What the control plane says of the site has changed: addresses, and who is not heard.
    Site(Box<SiteInfo>),
    /// The mode changed.
    Mode {
        /// Now.
        mode: Mode,
        /// For people.
        why: String,
    },
}
