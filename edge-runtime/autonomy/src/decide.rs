//! Which replicas need a new place, who decides, and where they go.

use hyperion_placement::model::{Request, Snapshot};
use hyperion_wire::agent_v1::SiteExplanation;

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
