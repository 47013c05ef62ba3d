//! What a node brings of the time without a link: decisions of its site, and telemetry.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use hyperion_api::node::{AgentMode, HyperionNodeStatus};
use hyperion_proto::agent_v1::{NodeState, ReplicaRecord, SiteDecisions, TelemetryBatch};
use hyperion_proto::convert::{self, Invalid};
use tracing::{info, warn};

use crate::service::Shared;
use crate::state::Decision;

/// Decisions of one message. A site of 500 nodes has not so many replicas.
const DECISIONS: usize = 20_000;

/// The decisions that make sense, and what tells them apart. One that does not is named in the log,
/// counted and left out: it keeps nothing waiting.
pub fn decisions(
    shared: &Shared,
    node: &str,
    said: &Option<SiteDecisions>,
) -> (BTreeSet<Decision>, Vec<ReplicaRecord>) {
    let (mut untaken, mut records) = (BTreeSet::new(), Vec::new());
    for record in said.iter().flat_map(|d| &d.records).take(DECISIONS) {
        match convert::record(record) {
            Ok(read) => {
                if untaken.insert((read.key, read.generation, read.decider)) {
                    records.push(record.clone());
                }
            }
            Err(e) => {
                shared.metrics.refuse("site_decision");
                warn!(node, error = %e, "site decision");
            }
        }
    }
    if !records.is_empty() {
        let count = records.len();
        shared.metrics.site_decisions.inc_by(count as u64);
        info!(
            node,
            decisions = count,
            "a site has decided while it was cut off"
        );
    }
    (untaken, records)
}

/// Takes telemetry of the time without a link.
///
/// # Errors
/// Names the field; nothing of the batch was taken.
pub fn backfill(shared: &Shared, node: &str, batch: &TelemetryBatch) -> Result<(), Invalid> {
    let histories = &shared.histories;
    let taken = histories
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take(node, batch)?;
    shared.metrics.backfilled.inc_by(taken.samples);
    shared.metrics.dropped.inc_by(taken.dropped);
    for _ in 0..taken.refused {
        shared.metrics.refuse("telemetry_batch");
    }
    Ok(())
}

/// Notes what a node says of itself; true where that is new.
pub fn note(status: &mut HyperionNodeStatus, said: &NodeState, addresses: Vec<String>) -> bool {
    let before = status.clone();
    status.mode = match said.mode.as_str() {
        "connected" => AgentMode::Connected,
        "suspect" => AgentMode::Suspect,
        "autonomous" => AgentMode::Autonomous,
        "reconciling" => AgentMode::Reconciling,
        // A newer agent's word.
        _ => status.mode,
    };
    status.policy = hash(&said.policy_hash);
    if !addresses.is_empty() {
        status.peer_addresses = addresses;
    }
    *status != before
}

/// A policy's hash as a node says it; nothing where it is none.
#[must_use]
pub fn hash(said: &str) -> String {
    let sane = said.len() <= 64 && said.bytes().all(|b| b.is_ascii_hexdigit());
    if sane { said.to_owned() } else { String::new() }
}
