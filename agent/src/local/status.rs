//! The site as one of its nodes knows it, for people and programs.

use std::collections::BTreeMap;
use std::time::Duration;

use hyperion_autonomy::Mode;
use hyperion_proto::agent_v1::{
    RecordState, ReplicaKey, ReplicaPhase, ReplicaRecord, ReplicaReport,
};
use hyperion_proto::peer_v1::NodeRecord;
use serde::Serialize;

/// What the status is made from.
#[derive(Debug, Clone)]
pub struct SiteView {
    /// This node.
    pub node: String,
    /// Site.
    pub site: String,
    /// Mode.
    pub mode: Mode,
    /// Since when.
    pub mode_for: Duration,
    /// Why it went there.
    pub why: String,
    /// SHA-256 of the policy file, hex; empty where rules decide.
    pub policy: String,
    /// Decisions of the site that the control plane has not taken.
    pub untaken: usize,
    /// Every node that is known of the site, this one too.
    pub members: Vec<MemberView>,
    /// What is known of replicas.
    pub records: Vec<ReplicaRecord>,
    /// This node's own word on its replicas.
    pub reports: Vec<ReplicaReport>,
    /// What else a person should know: no container runtime, a store that is not on disk.
    pub problems: Vec<String>,
}

/// What is known of one node.
#[derive(Debug, Clone)]
pub struct MemberView {
    /// Node id.
    pub id: String,
    /// Its own word; none before it was heard.
    pub record: Option<NodeRecord>,
    /// By membership.
    pub state: MemberState,
    /// Since its last word; none for never.
    pub heard: Option<Duration>,
}

/// Whether a node is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// Answers.
    Alive,
    /// Did not answer, and may still object.
    Suspect,
    /// Gone.
    Dead,
    /// Enrolled, and never heard by this node.
    Unknown,
    /// Not to be heard any more, by the control plane's word.
    Revoked,
}

impl MemberState {
    fn is_gone(self) -> bool {
        matches!(self, Self::Dead | Self::Revoked)
    }
}

/// Body of `GET /v1/site`. Fields are only ever added.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SiteStatus {
    /// This node.
    pub node: String,
    /// Site; empty for none.
    pub site: String,
    /// Version of the agent.
    pub agent_version: String,
    /// `connected`, `suspect`, `autonomous` or `reconciling`.
    pub mode: String,
    /// Milliseconds in this mode.
    pub mode_for_ms: u64,
    /// Why it went there; may be empty.
    pub why: String,
    /// SHA-256 of the policy file, hex; empty where rules decide.
    pub policy: String,
    /// Decisions of the site that the control plane has not taken.
    pub untaken: usize,
    /// What else a person should know.
    pub problems: Vec<String>,
    /// By id.
    pub members: Vec<Member>,
    /// By namespace, workload and index.
    pub replicas: Vec<Replica>,
}

/// A node of the site.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// Id.
    pub node: String,
    /// Whether it is there.
    pub state: MemberState,
    /// Milliseconds since its last word; null for never.
    pub heard_ms: Option<u64>,
    /// Its mode by its own word; empty where it was never heard.
    pub mode: String,
    /// Its own link to the control plane stands.
    pub linked: bool,
    /// It reaches the control plane through a peer.
    pub relayed: bool,
    /// Takes new replicas.
    pub accepts: bool,
    /// Percent of all cores.
    pub cpu_percent: u32,
    /// Bytes.
    pub memory_used_bytes: u64,
    /// Bytes.
    pub memory_bytes: u64,
    /// The hottest sensor; null where there is none.
    pub max_celsius: Option<f32>,
    /// Too hot to take more.
    pub throttled: bool,
    /// SHA-256 of its policy file, hex; empty where rules decide.
    pub policy: String,
    /// "HOST:PORT" of its peer port.
    pub addresses: Vec<String>,
    /// Version of its agent.
    pub agent_version: String,
}

/// A replica.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
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
    pub state: &'static str,
    /// Node; empty where it has no place.
    pub node: String,
    /// What its node says: `Running`, `Pulling` …; empty where it said nothing.
    pub phase: String,
    /// What its node says.
    pub ready: bool,
    /// `control-plane`, or the id of the node that decided.
    pub decided_by: String,
    /// Why the site decided; empty where the control plane did.
    pub cause: String,
    /// `rules`, or the policy's name; empty where the control plane decided.
    pub scorer: String,
    /// Why it has no place, by constraint.
    pub rejected: BTreeMap<String, u32>,
    /// The control plane knows of this decision.
    pub taken: bool,
    /// Was applied at the site; the control plane does not know the workload yet.
    pub applied_here: bool,
    /// At most one copy may run.
    pub exclusive: bool,
    /// `service` or `job`; empty where it is not known.
    #[serde(rename = "type")]
    pub workload_type: String,
}

impl From<SiteView> for SiteStatus {
    fn from(view: SiteView) -> Self {
        let mut members: Vec<Member> = view.members.iter().map(Member::from).collect();
        members.sort_by(|a, b| a.node.cmp(&b.node));
        let mut replicas: Vec<Replica> = view
            .records
            .iter()
            .filter_map(|record| replica(record, &view))
            .collect();
        let order = |r: &Replica| (r.namespace.clone(), r.workload.clone(), r.index);
        replicas.sort_by_cached_key(order);
        Self {
            node: view.node,
            site: view.site,
            agent_version: crate::version().to_owned(),
            mode: view.mode.as_str().to_owned(),
            mode_for_ms: millis(view.mode_for),
            why: view.why,
            policy: view.policy,
            untaken: view.untaken,
            problems: view.problems,
            members,
            replicas,
        }
    }
}

impl From<&MemberView> for Member {
    fn from(view: &MemberView) -> Self {
        let record = view.record.clone().unwrap_or_default();
        let load = record.load.unwrap_or_default();
        let memory = record.capabilities.map_or(0, |c| c.memory_bytes);
        Self {
            node: view.id.clone(),
            state: view.state,
            heard_ms: view.heard.map(millis),
            mode: record.mode,
            linked: record.linked,
            relayed: record.relayed,
            accepts: record.accepts,
            cpu_percent: load.cpu_percent,
            memory_used_bytes: u64::try_from(load.memory_used_bytes).unwrap_or(0),
            memory_bytes: u64::try_from(memory).unwrap_or(0),
            // A wire 0 stands for no sensor.
            max_celsius: Some(load.max_celsius).filter(|c| *c != 0.0 && c.is_finite()),
            throttled: load.throttled,
            policy: record.policy_hash,
            addresses: record.addresses,
            agent_version: record.agent_version,
        }
    }
}

/// None for replicas that are not to run any more.
fn replica(record: &ReplicaRecord, view: &SiteView) -> Option<Replica> {
    let state = match record.state() {
        RecordState::Placed => "placed",
        RecordState::Pending => "pending",
        RecordState::Ended => "ended",
        RecordState::Unspecified | RecordState::Removed => return None,
    };
    let key = record.key.as_ref()?;
    let (phase, ready) = match record.state() {
        RecordState::Ended => (record.outcome(), false),
        _ => said(key, record.generation, &record.node, view),
    };
    let intent = record.intent.clone().unwrap_or_default();
    let why = record.explanation.clone().unwrap_or_default();
    Some(Replica {
        namespace: key.namespace.clone(),
        workload: key.workload.clone(),
        uid: key.workload_uid.clone(),
        index: key.index,
        generation: record.generation,
        state,
        node: record.node.clone(),
        phase: phase_word(phase).to_owned(),
        ready,
        decided_by: if record.decider.is_empty() {
            "control-plane".to_owned()
        } else {
            record.decider.clone()
        },
        cause: why.cause,
        scorer: why.scorer,
        rejected: why
            .rejected
            .into_iter()
            .map(|r| (r.constraint, r.count))
            .collect(),
        taken: record.taken,
        applied_here: !intent.manifest.is_empty(),
        exclusive: intent.exclusive,
        workload_type: intent.workload_type,
    })
}

/// What the replica's node says of it: this node by its own reports, another by its record.
fn said(key: &ReplicaKey, generation: u64, node: &str, view: &SiteView) -> (ReplicaPhase, bool) {
    let silent = (ReplicaPhase::Unspecified, false);
    if node.is_empty() {
        return silent;
    }
    if node == view.node {
        let mut own = view.reports.iter();
        let report = own.find(|r| r.key.as_ref() == Some(key));
        return report.map_or(silent, |r| (r.phase(), r.ready));
    }
    let member = view.members.iter().find(|m| m.id == node);
    let Some(member) = member.filter(|m| !m.state.is_gone()) else {
        return silent;
    };
    let mut held = member.record.iter().flat_map(|r| &r.held);
    held.find(|h| h.key.as_ref() == Some(key) && h.generation >= generation)
        .map_or(silent, |h| (h.phase(), h.ready))
}

fn phase_word(phase: ReplicaPhase) -> &'static str {
    match phase {
        ReplicaPhase::Unspecified => "",
        ReplicaPhase::Pulling => "Pulling",
        ReplicaPhase::Starting => "Starting",
        ReplicaPhase::Running => "Running",
        ReplicaPhase::Backoff => "Backoff",
        ReplicaPhase::Succeeded => "Succeeded",
        ReplicaPhase::Failed => "Failed",
        ReplicaPhase::Stopping => "Stopping",
        ReplicaPhase::Stopped => "Stopped",
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
