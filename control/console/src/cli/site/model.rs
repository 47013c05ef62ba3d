//! The site as the agent shows it. Whatever an older or newer agent leaves out is empty.

use serde::Deserialize;
use std::collections::BTreeMap;

use crate::text::clean_in_place;

/// The answer to `GET /v1/site`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SiteStatus {
    /// The node that answers.
    pub node: String,
    /// Site.
    pub site: String,
    /// `connected`, `suspect`, `autonomous` or `reconciling`.
    pub mode: String,
    /// Milliseconds in this mode.
    pub mode_for_ms: u64,
    /// Why it went there.
    pub why: String,
    /// SHA-256 of the policy file, hex; empty where rules decide.
    pub policy: String,
    /// Decisions that the control plane does not know.
    pub untaken: u64,
    /// What else a person should know.
    pub problems: Vec<String>,
    /// Nodes.
    pub members: Vec<Member>,
    /// Replicas.
    pub replicas: Vec<Replica>,
}

/// A node of the site.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Member {
    /// Id.
    pub node: String,
    /// `alive`, `suspect`, `dead`, `revoked` or `unknown`.
    pub state: String,
    /// Milliseconds since its last word.
    pub heard_ms: Option<u64>,
    /// Its own link to the control plane stands.
    pub linked: bool,
    /// It reaches the control plane through another.
    pub relayed: bool,
    /// Takes new replicas.
    pub accepts: bool,
    /// Percent of all cores.
    pub cpu_percent: u32,
    /// Bytes.
    pub memory_used_bytes: u64,
    /// Bytes.
    pub memory_bytes: u64,
    /// Hottest sensor.
    pub max_celsius: Option<f32>,
    /// Too hot to take more.
    pub throttled: bool,
}

/// A replica.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Replica {
    /// Namespace.
    pub namespace: String,
    /// Workload.
    pub workload: String,
    /// Uid of the workload.
    pub uid: String,
    /// From 0.
    pub index: u32,
    /// Generation.
    pub generation: u64,
    /// `placed`, `pending` or `ended`.
    pub state: String,
    /// Node; empty where it has no place.
    pub node: String,
    /// What its node says.
    pub phase: String,
    /// What its node says.
    pub ready: bool,
    /// `control-plane`, or the node that decided.
    pub decided_by: String,
    /// Why the site decided.
    pub cause: String,
    /// Why it has no place.
    pub rejected: BTreeMap<String, u32>,
    /// The control plane does not know the workload yet.
    pub applied_here: bool,
    /// `service` or `job`.
    #[serde(rename = "type")]
    pub workload_type: String,
}

impl SiteStatus {
    /// Cleans every string.
    pub(super) fn prepare(&mut self) {
        let own = [
            &mut self.node,
            &mut self.site,
            &mut self.mode,
            &mut self.why,
            &mut self.policy,
        ];
        own.into_iter()
            .chain(&mut self.problems)
            .for_each(clean_in_place);
        for member in &mut self.members {
            [&mut member.node, &mut member.state]
                .into_iter()
                .for_each(clean_in_place);
        }
        for r in &mut self.replicas {
            [
                &mut r.namespace,
                &mut r.workload,
                &mut r.uid,
                &mut r.state,
                &mut r.node,
                &mut r.phase,
                &mut r.decided_by,
                &mut r.cause,
                &mut r.workload_type,
            ]
            .into_iter()
            .for_each(clean_in_place);
            r.rejected = std::mem::take(&mut r.rejected)
                .into_iter()
                .map(|(name, count)| (crate::text::clean(&name).into_owned(), count))
                .collect();
        }
    }

    /// Replicas on a node.
    #[must_use]
    pub fn replicas_on(&self, node: &str) -> usize {
        let placed = |r: &&Replica| r.node == node && r.state == "placed";
        self.replicas.iter().filter(placed).count()
    }
}

impl Replica {
    /// `namespace/workload/index`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}/{}", self.namespace, self.workload, self.index)
    }
}
