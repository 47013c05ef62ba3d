//! How a person operates a site from one of its devices while the control plane is out of reach:
//! HTTP/1 on a unix socket that only root may open.
//!
//! | request | does |
//! |---|---|
//! | `GET /v1/site` | the site as this node knows it: mode, members, replicas ([`SiteStatus`], JSON) |
//! | `POST /v1/apply` | takes a workload: `peer.v1.Apply`, one record a replica (protobuf) |
//! | `DELETE /v1/workloads/NAMESPACE/NAME` | deletes a workload that was applied at the site |
//! | `GET /v1/update` | slots, versions, and how far an update is (JSON) |
//! | `POST /v1/update` | installs a bundle that is a file here: `{"file": …, "kind": …, "readySeconds": …}` |
//!
//! Errors are JSON: `error`, a sentence that names the field, and `field`. What a request asks for
//! goes to the node as a [`LocalRequest`]; this module decides nothing.

mod answer;
mod check;
mod listen;
mod serve;
mod status;
mod update;

use std::path::PathBuf;

use hyperion_proto::agent_v1::{ReplicaRecord, UpdateOrder, UpdateState};
use tokio::sync::oneshot;

pub use listen::{LocalListener, bind};
pub use serve::serve;
pub use status::{Member, MemberState, MemberView, Replica, SiteStatus, SiteView};
pub use update::{Install, Kind, UpdateSlot, UpdateStatus};

/// Where the socket is unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/hyperion/agent.sock";

/// Where the local API is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalSocket {
    /// Nowhere.
    Off,
    /// On this unix socket.
    At(PathBuf),
}

/// Value of `--local-socket`: a path, or `off`.
///
/// # Errors
/// Not an absolute path, or longer than a socket's name may be.
pub fn parse_socket(text: &str) -> Result<LocalSocket, String> {
    if text == "off" {
        return Ok(LocalSocket::Off);
    }
    if !text.starts_with('/') || text.ends_with('/') {
        return Err("an absolute path of a socket, or off, is expected".to_owned());
    }
    if text.len() > MAX_PATH {
        return Err(format!(
            "{} bytes; the name of a socket has at most {MAX_PATH}",
            text.len()
        ));
    }
    Ok(LocalSocket::At(PathBuf::from(text)))
}

/// Linux' `sun_path` has 108 bytes, one of them the NUL at its end.
const MAX_PATH: usize = 107;

/// What a person at the site asks of the node. An answer that is dropped says that the node is
/// ending.
#[derive(Debug)]
pub enum LocalRequest {
    /// The site as the node knows it.
    Status(oneshot::Sender<SiteStatus>),
    /// Run this workload: checked records, one a replica, without node, decider and generation.
    Apply {
        /// Replicas 0 to n-1 of one workload.
        records: Vec<ReplicaRecord>,
        /// Taken, or why not.
        answer: oneshot::Sender<Result<(), String>>,
    },
    /// Slots, versions and the last update; none where this node can't be updated.
    Update(oneshot::Sender<Option<UpdateState>>),
    /// Update the device with a bundle that is here.
    Install {
        /// With a `file:` address.
        order: Box<UpdateOrder>,
        /// Taken, or why not.
        answer: oneshot::Sender<Result<(), String>>,
    },
    /// Do not run this workload any more.
    Delete {
        /// Namespace.
        namespace: String,
        /// Name.
        workload: String,
        /// Taken, or why not.
        answer: oneshot::Sender<Result<(), String>>,
    },
}

/// Checks the records of one workload that a person applied, here or at another node of the site.
///
/// # Errors
/// The first field that is wrong.
pub fn check_records(records: &[ReplicaRecord]) -> Result<(), String> {
    check::records(records).map_err(|refused| refused.sentence())
}

#[cfg(test)]
mod tests;
