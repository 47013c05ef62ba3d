//! Agents that only measure. Each is on a node of a workload cluster and has no node of its own: it
//! enrols as the cluster's node, by the word of the cluster, and what it says is of that node. It is
//! told nothing, and nothing that it says of replicas counts: what runs there is the cluster's word.

use std::time::Duration;

use hyperion_api::node::HyperionNode;
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{Interruptions, RegisterNodeRequest};
use kube::api::Api;
use tokio::sync::oneshot;
use tonic::Status;

use crate::nodes;
use crate::service::Shared;

/// Audience that the token of an agent's Pod is for.
pub const AUDIENCE: &str = "hyperion";
/// Proofs that may wait to be looked at.
pub const WAITING: usize = 256;
/// Time for a cluster to say what a proof is worth: two answers of its API server, and some.
const WITHIN: Duration = Duration::from_secs(12);
/// Tokens of service accounts have some 1.5 KB.
const LONGEST: usize = 16 * 1024;
/// Measurements of a node whose agent is silent are forgotten after so long: what it does then is not
/// known.
pub const AGED: Duration = Duration::from_secs(300);

/// A Pod's token, to be shown to the cluster that gave it. The answer is the id of the node that the
/// Pod is on.
#[derive(Debug)]
pub struct Proof {
    /// Name of the HyperionCluster.
    pub cluster: String,
    /// The token.
    pub token: String,
    /// What the cluster says.
    pub answer: oneshot::Sender<Result<String, Doubt>>,
}

/// Why a proof proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    /// It may do so later: the cluster is not known yet, or out of reach.
    #[error("{0}")]
    Yet(String),
    /// The cluster says that it is not true.
    #[error("{0}")]
    Ever(String),
}

/// Enrols an agent as the node that its cluster says it is on; gives the node id.
///
/// # Errors
/// In words that name cluster and node.
pub async fn enrol(shared: &Shared, request: &RegisterNodeRequest) -> Result<String, Status> {
    let cluster = &request.cluster;
    let token = &request.cluster_token;
    if token.is_empty() || token.len() > LONGEST {
        return Err(Status::invalid_argument(
            "cluster_token: empty, or too long for the token of a service account",
        ));
    }
    let (answer, answered) = oneshot::channel();
    let proof = Proof {
        cluster: cluster.clone(),
        token: token.clone(),
        answer,
    };
    let busy = || Status::unavailable("more agents enrol than can be looked at now");
    shared.proofs.try_send(proof).map_err(|_| busy())?;
    let answered = tokio::time::timeout(WITHIN, answered).await;
    let Ok(Ok(answered)) = answered else {
        let text = format!("cluster {cluster:?} did not say in time which node this is");
        return Err(Status::unavailable(text));
    };
    let node_id = answered.map_err(|doubt| match doubt {
        Doubt::Yet(text) => Status::unavailable(text),
        Doubt::Ever(text) => Status::permission_denied(text),
    })?;
    let api: Api<HyperionNode> = Api::all(shared.client.clone());
    let object = api.get_opt(&node_id).await;
    let object = object.map_err(|e| Status::unavailable(format!("HyperionNode {node_id}: {e}")))?;
    let Some(object) = object.filter(|o| o.spec.cluster.as_ref() == Some(cluster)) else {
        let text = format!("cluster {cluster} has no node {node_id} that is used (yet)");
        return Err(Status::unavailable(text));
    };
    if object.spec.revoked {
        let text = format!("node {node_id} is revoked");
        return Err(Status::permission_denied(text));
    }
    nodes::note(&shared.state, &node_id, &object.spec, None);
    Ok(node_id)
}

/// What a message of such an agent is.
#[derive(Debug, PartialEq)]
pub enum Said {
    /// What the node's cloud is about to do to it, where that is known.
    Notices(Option<Interruptions>),
    /// To be taken like any agent's.
    Usual(Box<Body>),
    /// Not for it to say.
    Refused(&'static str),
}

/// What a message of such an agent is.
#[must_use]
pub fn said(body: Body) -> Said {
    match body {
        Body::NodeState(state) => Said::Notices(state.interruptions),
        Body::Event(mut event) => {
            // It runs none.
            event.replica = None;
            Said::Usual(Box::new(Body::Event(event)))
        }
        Body::Telemetry(_) | Body::TelemetryBatch(_) | Body::RenewCertificate(_) => {
            Said::Usual(Box::new(body))
        }
        Body::ReplicaReport(_) => Said::Refused("replica_report"),
        Body::SiteDecisions(_) => Said::Refused("site_decision"),
        // It has no runtime, asks for no policy and carries nothing out.
        _ => Said::Refused("measuring"),
    }
}

#[cfg(test)]
mod tests {
    use hyperion_proto::agent_v1::{Event, NodeState, ReplicaKey, ReplicaReport, Telemetry};

    use super::*;

    #[test]
    fn it_speaks_for_the_machine_and_not_for_what_runs_there() {
        let telemetry = Body::Telemetry(Telemetry::default());
        assert_eq!(said(telemetry.clone()), Said::Usual(Box::new(telemetry)));
        let state = NodeState {
            mode: "connected".to_owned(),
            ..NodeState::default()
        };
        assert_eq!(said(Body::NodeState(state)), Said::Notices(None));
        let report = Body::ReplicaReport(ReplicaReport::default());
        assert_eq!(said(report), Said::Refused("replica_report"));
        let event = Event {
            replica: Some(ReplicaKey::default()),
            ..Event::default()
        };
        let plain = Body::Event(Event::default());
        assert_eq!(said(Body::Event(event)), Said::Usual(Box::new(plain)));
    }
}
