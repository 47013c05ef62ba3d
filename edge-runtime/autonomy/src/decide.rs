//! Which replicas need a new place, who decides, and where they go.
//!
//! - [`decider`]: one node for each replica, by rendezvous hashing over the live members. Nodes that
//!   see other members alive may disagree for a while; then two records are made, of which the join
//!   keeps one, and everybody obeys that.
//! - [`Room`]: the snapshot a decision is made on.
//! - [`Choice`](choose): filter, score, and a check by other code.

mod choose;
mod room;
mod who;

use hyperion_placement::model::{Request, Snapshot};
use hyperion_wire::agent_v1::SiteExplanation;

pub use choose::{Wanted, choose};
pub use room::{Room, Share, share_of};
pub use who::{decider, first_of};

/// How a place is chosen: on a device by the quantised policy behind its guard, else by rules.
/// Given by the agent, so that this crate needs no model file.
pub trait Decide {
    /// Chooses among the snapshot's nodes.
    fn decide(&self, snapshot: &Snapshot, request: &Request) -> Decided;
    /// SHA-256 of the policy file, hex; empty where rules decide.
    fn policy_hash(&self) -> &str;
}

/// What was chosen and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Decided {
    /// Node id; none where no node fits.
    pub node: Option<String>,
    /// GPUs on it: uuid and thousandths.
    pub gpus: Vec<(String, u32)>,
    /// `cause` is filled in by the caller.
    pub explanation: SiteExplanation,
}

#[cfg(test)]
mod tests;
