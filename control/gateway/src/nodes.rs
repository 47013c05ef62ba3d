//! `HyperionNode` objects: made at enrolment, their status written at most every
//! [`MIN_INTERVAL`] per node and only when something changed that a person would care about.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use hyperion_api::node::{AgentMode, HyperionNode, HyperionNodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{Api, Patch, PatchParams};
use kube::core::DeserializeGuard;
use kube::runtime::watcher;
use kube::{Resource, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::service::Shared;

/// Field manager of node status.
pub const MANAGER: &str = "hyperion-gateway";
/// Two writes of one node's status are at least this far apart.
pub const MIN_INTERVAL: Duration = Duration::from_secs(10);
/// Writes in flight, so that 10,000 nodes coming up at once do not swamp the API server.
const PARALLEL: usize = 16;

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

struct Pending {
    due: Instant,
    status: Option<Box<HyperionNodeStatus>>,
}

async fn run(
    client: kube::Client,
    mut queue: mpsc::UnboundedReceiver<(String, Box<HyperionNodeStatus>)>,
    stop: CancellationToken,
) {
    let nodes: Api<HyperionNode> = Api::all(client);
    let mut pending: HashMap<String, Pending> = HashMap::new();
    let mut writes = tokio::task::JoinSet::new();
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    loop {
        let scan;
        tokio::select! {
            () = stop.cancelled() => return,
            asked = queue.recv() => {
                let Some((node, status)) = asked else { return };
                let entry = pending
                    .entry(node)
                    .or_insert_with(|| Pending { due: Instant::now(), status: None });
                entry.status = Some(status);
                scan = entry.due <= Instant::now();
            }
            _ = tick.tick() => scan = true,
            Some(_) = writes.join_next(), if !writes.is_empty() => scan = true,
        }
        if scan && writes.len() < PARALLEL {
            let now = Instant::now();
            let room = PARALLEL - writes.len();
            let due = pending
                .iter_mut()
                .filter(|(_, p)| p.status.is_some() && p.due <= now);
            for (node, entry) in due.take(room) {
                entry.due = now + MIN_INTERVAL;
                if let Some(status) = entry.status.take() {
                    let (nodes, node) = (nodes.clone(), node.clone());
                    writes.spawn(async move {
                        if let Err(e) = write_status(&nodes, &node, &status).await {
                            warn!(node, error = %e, "cannot write node status");
                        }
                    });
                }
            }
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
        // The object was deleted by hand while its agent lives on: it comes back.
        Err(kube::Error::Api(e)) if e.code == 404 => {
            create(nodes, node, "").await?;
            nodes
                .patch_status(node, &params, &Patch::Apply(&patch))
                .await
                .map(drop)
        }
        other => other.map(drop),
    }
}

/// Makes the object of a node that enrols; it may be there already.
///
/// # Errors
/// The API server's.
pub async fn create(nodes: &Api<HyperionNode>, node: &str, site: &str) -> Result<(), kube::Error> {
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
        Err(kube::Error::Api(e)) if e.code != 409 => Err(kube::Error::Api(e)),
        Err(e) if !matches!(e, kube::Error::Api(_)) => Err(e),
        _ => Ok(()),
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
    status.last_transition = Some(now.clone());
    status.conditions = vec![Condition {
        type_: "Ready".to_owned(),
        status: word.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: now,
        observed_generation: None,
    }];
}

/// Cuts off nodes whose `spec.revoked` becomes true.
pub async fn watch_revocations(client: kube::Client, shared: Arc<Shared>, stop: CancellationToken) {
    let nodes: Api<DeserializeGuard<HyperionNode>> = Api::all(client);
    let mut events = std::pin::pin!(watcher(nodes, watcher::Config::default()));
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = stop.cancelled() => return,
        };
        match event {
            Some(Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object))) => {
                match &object.0 {
                    Ok(node) => shared
                        .state
                        .set_revoked(&node.name_any(), node.spec.revoked),
                    Err(e) => warn!(object = e.metadata.name, error = %e.error, "bad HyperionNode"),
                }
            }
            // A deleted node is not known any more: its certificate is refused as a revoked one.
            Some(Ok(watcher::Event::Delete(object))) => {
                if let Ok(node) = &object.0 {
                    shared
                        .state
                        .set_revoked(&node.name_any(), node.spec.revoked);
                }
            }
            Some(Ok(_)) => {}
            Some(Err(e)) => {
                warn!(error = %e, "watch of HyperionNodes");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            None => return,
        }
    }
}
