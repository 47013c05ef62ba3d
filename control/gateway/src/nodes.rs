//! `HyperionNode` objects: made at enrolment, their status written at most every
//! [`MIN_INTERVAL`] per node and only when something changed that a person would care about.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use hyperion_api::node::{AgentMode, HyperionNode, HyperionNodeSpec, HyperionNodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{Api, Patch, PatchParams};
use kube::core::DeserializeGuard;
use kube::runtime::watcher;
use kube::{Resource, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::service::Shared;
use crate::sites::{self, Member};
use crate::state::State;

/// Field manager of node status.
pub const MANAGER: &str = "hyperion-gateway";
/// Two writes of one node's status are at least this far apart.
pub const MIN_INTERVAL: Duration = Duration::from_secs(10);
/// Writes in flight, so that 10,000 nodes coming up at once do not swamp the API server.
const PARALLEL: usize = 16;
/// A write that is not answered in this time has failed: it must not take a place for ever.
const ANSWER: Duration = Duration::from_secs(5);

/// Queue to the writer; the newest status of a node wins.
#[derive(Clone)]
pub struct NodeWriter {
    queue: mpsc::UnboundedSender<(String, Box<HyperionNodeStatus>)>,
}

impl NodeWriter {
    /// Asks for a node's status to be written.
    pub fn write(&self, node: &str, status: HyperionNodeStatus) {
        // A closed queue means that the process stops.
        let _ = self.queue.send((node.to_owned(), Box::new(status)));
    }
}

/// The writer's handle and its task.
pub fn writer(
    client: kube::Client,
    stop: CancellationToken,
) -> (NodeWriter, impl Future<Output = ()> + Send) {
    let (queue, receiver) = mpsc::unbounded_channel();
    (NodeWriter { queue }, run(client, receiver, stop))
}

/// What is still to be written, by node and by time.
#[derive(Default)]
struct Pending {
    nodes: HashMap<String, Entry>,
    due: BTreeSet<(Instant, String)>,
}

struct Entry {
    /// Earliest time of the next write.
    due: Instant,
    status: Option<Box<HyperionNodeStatus>>,
}

impl Pending {
    fn add(&mut self, node: String, status: Box<HyperionNodeStatus>, now: Instant) {
        let entry = self.nodes.entry(node.clone()).or_insert(Entry {
            due: now,
            status: None,
        });
        entry.status = Some(status);
        self.due.insert((entry.due, node));
    }

    /// A write that failed is tried again later, unless there is something newer to write.
    fn failed(&mut self, node: String, status: Box<HyperionNodeStatus>, now: Instant) {
        if self.nodes.get(&node).is_none_or(|e| e.status.is_none()) {
            self.add(node, status, now);
        }
    }

    fn next(&mut self, now: Instant) -> Option<(String, Box<HyperionNodeStatus>)> {
        if self.due.first().is_none_or(|(due, _)| *due > now) {
            return None;
        }
        let (_, node) = self.due.pop_first()?;
        let entry = self.nodes.get_mut(&node)?;
        entry.due = now + MIN_INTERVAL;
        let status = entry.status.take()?;
        Some((node, status))
    }

    /// Drops what only says that nothing is to be written.
    fn forget_idle(&mut self, now: Instant) {
        self.nodes.retain(|_, e| e.status.is_some() || e.due > now);
    }
}

async fn run(
    client: kube::Client,
    mut queue: mpsc::UnboundedReceiver<(String, Box<HyperionNodeStatus>)>,
    stop: CancellationToken,
) {
    let nodes: Api<HyperionNode> = Api::all(client);
    let mut pending = Pending::default();
    let mut writes = tokio::task::JoinSet::new();
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            asked = queue.recv() => {
                let Some((node, status)) = asked else { return };
                pending.add(node, status, Instant::now());
            }
            _ = tick.tick() => pending.forget_idle(Instant::now()),
            Some(written) = writes.join_next(), if !writes.is_empty() => {
                if let Ok(Some((node, status))) = written {
                    pending.failed(node, status, Instant::now());
                }
            }
        }
        while writes.len() < PARALLEL
            && let Some((node, status)) = pending.next(Instant::now())
        {
            let nodes = nodes.clone();
            writes.spawn(async move {
                let write = write_status(&nodes, &node, &status);
                let error = match tokio::time::timeout(ANSWER, write).await {
                    Ok(written) => written.err()?.to_string(),
                    Err(_) => "no answer".to_owned(),
                };
                warn!(node, error, "cannot write node status");
                Some((node, status))
            });
        }
    }
}

async fn write_status(
    nodes: &Api<HyperionNode>,
    node: &str,
    status: &HyperionNodeStatus,
) -> Result<(), kube::Error> {
    let patch = json!({
        "apiVersion": HyperionNode::api_version(&()),
        "kind": HyperionNode::kind(&()),
        "metadata": { "name": node },
        "status": status,
    });
    let params = PatchParams::apply(MANAGER).force();
    match nodes
        .patch_status(node, &params, &Patch::Apply(&patch))
        .await
    {
        // Deleted: its agent is being cut off, and must not bring the object back.
        Err(kube::Error::Api(e)) if e.code == 404 => {
            debug!(node, "status of a node that was deleted");
            Ok(())
        }
        // The API server will not change its mind about this one.
        Err(kube::Error::Api(e)) if e.code == 422 || e.code == 400 => {
            warn!(node, error = e.message, "node status refused");
            Ok(())
        }
        other => other.map(drop),
    }
}

/// Makes the object of a node that enrols; false where there is one of that name.
///
/// # Errors
/// The API server's.
pub async fn create(
    nodes: &Api<HyperionNode>,
    node: &str,
    site: &str,
) -> Result<bool, kube::Error> {
    let object = json!({
        "apiVersion": HyperionNode::api_version(&()),
        "kind": HyperionNode::kind(&()),
        "metadata": { "name": node },
        "spec": { "site": site },
    });
    let object: HyperionNode = serde_json::from_value(object).map_err(kube::Error::SerdeError)?;
    match nodes
        .create(&kube::api::PostParams::default(), &object)
        .await
    {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(e)) if e.code == 409 => Ok(false),
        Err(e) => Err(e),
    }
}

/// The Ready condition in the three forms that a status carries it in.
pub fn set_ready(status: &mut HyperionNodeStatus, ready: bool, reason: &str, message: &str) {
    let word = if ready { "True" } else { "False" };
    let now = Time(jiff::Timestamp::now());
    status.ready = word.to_owned();
    status.mode = if ready {
        AgentMode::Connected
    } else {
        AgentMode::Suspect
    };
    let held = status.conditions.iter().find(|c| c.type_ == "Ready");
    let since = held
        .filter(|c| c.status == word)
        .map_or_else(|| now.clone(), |c| c.last_transition_time.clone());
    status.last_transition = Some(now);
    let condition = Condition {
        type_: "Ready".to_owned(),
        status: word.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: since,
        observed_generation: None,
    };
    status.conditions.retain(|c| c.type_ != "Ready");
    status.conditions.insert(0, condition);
}

/// A node in reach is ready, unless its container runtime does not answer.
pub fn set_runtime(status: &mut HyperionNodeStatus, problem: &str) {
    if problem.is_empty() {
        set_ready(status, true, "AgentConnected", "");
    } else {
        set_ready(status, false, "RuntimeUnavailable", problem);
        status.mode = AgentMode::Connected;
    }
}

/// What a node's object says for its site.
#[must_use]
pub fn member(spec: &HyperionNodeSpec, status: Option<&HyperionNodeStatus>) -> Member {
    let said = status.map_or(&[][..], |s| &s.peer_addresses);
    Member {
        schedulable: !(spec.unschedulable || spec.draining),
        revoked: spec.revoked,
        price_per_hour: status.map_or(0.0, |s| s.price_per_hour).max(0.0),
        addresses: sites::addresses(said),
    }
}

/// Notes that a node has an object, and what that says.
pub fn note(
    state: &State,
    node: &str,
    spec: &HyperionNodeSpec,
    status: Option<&HyperionNodeStatus>,
) {
    if spec.cluster.is_some() {
        // It is of no site; an agent may measure it.
        state.set_measured(node, spec.revoked);
    } else {
        state.set_node(node, &spec.site, member(spec, status));
    }
}

/// Tells sites what has changed of them until `stop`.
pub async fn tell_sites(shared: Arc<Shared>, stop: CancellationToken) {
    // Within a second is soon enough for people, and lets changes come together.
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => shared.state.tell_sites(),
            () = stop.cancelled() => return,
        }
    }
}

/// A node that was up before this process started, and has not come back in this time, is said to
/// be out of reach: nobody else would correct its object.
const UNSEEN: Duration = Duration::from_secs(60);

/// Follows the nodes' objects: revoked and deleted nodes are cut off at once.
pub async fn watch(client: kube::Client, shared: Arc<Shared>, stop: CancellationToken) {
    let nodes: Api<DeserializeGuard<HyperionNode>> = Api::all(client.clone());
    let mut events = std::pin::pin!(watcher(nodes, watcher::Config::default()));
    let mut seen = Seen {
        shared,
        nodes: Api::all(client),
        listing: HashSet::new(),
        unseen: Some(HashMap::new()),
    };
    let unseen = tokio::time::sleep(UNSEEN);
    let mut unseen = std::pin::pin!(unseen);
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = &mut unseen, if seen.unseen.is_some() => {
                seen.say_unseen();
                continue;
            }
            () = stop.cancelled() => return,
        };
        match event {
            Some(Ok(event)) => seen.event(event).await,
            Some(Err(e)) => {
                warn!(error = %e, "watch of HyperionNodes");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            None => return,
        }
    }
}

struct Seen {
    shared: Arc<Shared>,
    nodes: Api<HyperionNode>,
    /// Names in the list that is being read.
    listing: HashSet<String>,
    /// Status of those that were up before this process.
    unseen: Option<HashMap<String, Box<HyperionNodeStatus>>>,
}

impl Seen {
    async fn event(&mut self, event: watcher::Event<DeserializeGuard<HyperionNode>>) {
        match event {
            watcher::Event::Init => self.listing.clear(),
            watcher::Event::InitApply(object) => {
                if let Some(name) = self.apply(object, true) {
                    self.listing.insert(name);
                }
            }
            watcher::Event::InitDone => {
                self.drop_missing().await;
                self.shared.state.set_listed();
            }
            watcher::Event::Apply(object) => {
                self.apply(object, false);
            }
            watcher::Event::Delete(object) => {
                let name = match &object.0 {
                    Ok(node) => node.name_any(),
                    Err(e) => e.metadata.name.clone().unwrap_or_default(),
                };
                self.shared.forget(&name);
            }
        }
    }

    fn apply(&mut self, object: DeserializeGuard<HyperionNode>, listed: bool) -> Option<String> {
        let node = match object.0 {
            Ok(node) => node,
            Err(e) => {
                let name = e.metadata.name?;
                warn!(object = name, error = %e.error, "bad HyperionNode");
                return Some(name);
            }
        };
        let name = node.name_any();
        note(&self.shared.state, &name, &node.spec, node.status.as_ref());
        if node.spec.cluster.is_some() {
            // Whether it is up is its cluster's word.
            return Some(name);
        }
        if listed
            && let Some(unseen) = &mut self.unseen
            && let Some(status) = node.status.filter(|s| s.ready == "True")
        {
            unseen.insert(name.clone(), Box::new(status));
        }
        Some(name)
    }

    /// Nodes that were deleted while the watch was down. One that enrolled since the list was made
    /// is not in it either, so each is asked for.
    async fn drop_missing(&mut self) {
        for node in self.shared.state.nodes() {
            if !self.listing.contains(&node) && matches!(self.nodes.get_opt(&node).await, Ok(None))
            {
                self.shared.forget(&node);
            }
        }
        self.listing = HashSet::new();
    }

    fn say_unseen(&mut self) {
        for (node, mut status) in self.unseen.take().into_iter().flatten() {
            if !self.shared.state.connected(&node) {
                let message = "not heard since the control plane started";
                set_ready(&mut status, false, "AgentUnreachable", message);
                self.shared.nodes.write(&node, *status);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(status: &HyperionNodeStatus) -> (&str, &str, &Time) {
        let held = &status.conditions[0];
        (&held.status, &held.reason, &held.last_transition_time)
    }

    #[test]
    fn the_ready_condition_turns_only_when_its_word_changes() {
        let began = Time(jiff::Timestamp::UNIX_EPOCH);
        let mut status = HyperionNodeStatus::default();
        set_runtime(&mut status, "containerd is gone");
        status.conditions[0].last_transition_time = began.clone();
        set_ready(&mut status, false, "AgentUnreachable", "not heard");
        assert_eq!(ready(&status), ("False", "AgentUnreachable", &began));
        set_runtime(&mut status, "");
        let (word, _, since) = ready(&status);
        assert_eq!(word, "True");
        assert_ne!(since, &began);
    }
}
