//! What the core wants done.

use bytes::Bytes;
use hyperion_wire::agent_v1::{ReplicaRecord, SiteInfo};
use hyperion_wire::domain::ReplicaKey;
use hyperion_wire::peer_v1::Frame;

use crate::mode::Mode;

/// Something to do, in the order in which it was given: what is to be stored is on disk before
/// anything behind it is done.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Send a probe; may be lost.
    Datagram {
        /// Node id.
        to: String,
        /// foca's message.
        bytes: Bytes,
    },
    /// Send records; may fail, and is then made up for by the next comparison.
    Frame {
        /// Node id.
        to: String,
        /// Message.
        frame: Frame,
    },
    /// Keep this record, in the place of the one before of its replica.
    Store(Box<ReplicaRecord>),
    /// Keep what is known of the site.
    StoreSite(Box<SiteInfo>),
    /// The record is no longer needed.
    Forget(ReplicaKey),
    /// This node is to run the replica, as its record says; the record was stored before.
    Run(Box<ReplicaRecord>),
    /// This node is not to run the replica with this generation or a lower one, until an
    /// [`Output::Run`] says otherwise: that may come with the same generation, when what held the
    /// replica back is over.
    Stop {
        /// Replica.
        key: ReplicaKey,
        /// Generation.
        generation: u64,
        /// For people.
        why: String,
    },
    /// The mode changed.
    Mode {
        /// Now.
        mode: Mode,
        /// For people.
        why: String,
    },
    /// Something that a person may want to know; goes to the control plane when it is back. What all
    /// nodes of a site see is told by one of them.
    Event {
        /// CamelCase: `PeerDead`, `PeerBack`, `PeerRefused`, `SiteAutonomous`, `SiteConnected`;
        /// of a replica: `Placed`, `TakenOver`, `Shed`, `NoRoom`, `NoMajority`, `StoppedCutOff`,
        /// `RunsAgain`, `Superseded`.
        reason: &'static str,
        /// For people.
        message: String,
        /// Worth someone's attention.
        warning: bool,
        /// Replica that it is about.
        key: Option<ReplicaKey>,
    },
}
