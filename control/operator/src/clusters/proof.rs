//! Which node of a cluster an agent is on, by the word of that cluster: it says whose token the agent
//! shows, and where that Pod is. An agent has no other way to say so, and no node can be claimed from
//! another machine.

use hyperion_gateway::measuring::{AUDIENCE, Doubt, Proof};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::Clusters;
use super::connect::{self, ANSWER};
use super::node::node_id;
use crate::events::{Note, Publisher};

/// Account that agents run as, where the chart puts them. Whoever may make Pods in that namespace may
/// measure the nodes that they are put on.
const ACCOUNT: &str = "system:serviceaccount:hyperion-agent:hyperion-agent";
/// Their namespace.
const NAMESPACE: &str = "hyperion-agent";
/// What API servers say of a token that is bound to a Pod.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
/// The Pod's uid: one of that name may have come after it.
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// Proofs that are looked at at once: anybody may send one.
const PARALLEL: usize = 16;
/// Event on a cluster: an agent says that it is on one of its nodes, and the cluster does not.
const EVENT_REFUSED: &str = "AgentRefused";

/// Answers proofs until `stop`.
pub async fn serve(
    clusters: Clusters,
    mut proofs: mpsc::Receiver<Proof>,
    publisher: Publisher,
    stop: CancellationToken,
) {
    let mut looks = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = looks.join_next(), if !looks.is_empty() => {}
            proof = proofs.recv(), if looks.len() < PARALLEL => {
                let Some(proof) = proof else { return };
                looks.spawn(look(clusters.clone(), proof, publisher.clone()));
            }
        }
    }
}

async fn look(clusters: Clusters, proof: Proof, publisher: Publisher) {
    let Proof {
        cluster,
        token,
        answer,
    } = proof;
    // It waited for longer than the agent did.
    if answer.is_closed() {
        return;
    }
    let said = match clusters.client(&cluster) {
        Ok(client) => node_of(&client, &token).await,
        Err(why) => Err(Doubt::Yet(why)),
    };
    let said = said.map_err(|doubt| match doubt {
        Doubt::Ever(text) => Doubt::Ever(format!("cluster {cluster}: {text}")),
        Doubt::Yet(text) => Doubt::Yet(text),
    });
    match &said {
        Ok(node) => debug!(cluster, node, "an agent measures"),
        Err(doubt) => {
            info!(cluster, %doubt, "an agent is refused");
            if let (Doubt::Ever(text), Some(about)) = (doubt, clusters.about(&cluster)) {
                publisher.publish(Note {
                    about,
                    warning: true,
                    reason: EVENT_REFUSED.to_owned(),
                    text: format!("an agent that says it is on one of its nodes: {text}"),
                    past: None,
                });
            }
        }
    }
    let said = said.map(|node| node_id(&cluster, &node));
    // Whoever asked may have gone.
    let _ = answer.send(said);
}

/// The node that the Pod is on whose token this is.
async fn node_of(client: &kube::Client, token: &str) -> Result<String, Doubt> {
    let review = TokenReview {
        spec: TokenReviewSpec {
            token: Some(token.to_owned()),
            audiences: Some(vec![AUDIENCE.to_owned()]),
        },
        ..TokenReview::default()
    };
    let api: Api<TokenReview> = Api::all(client.clone());
    let params = PostParams::default();
    let asked = tokio::time::timeout(ANSWER, api.create(&params, &review)).await;
    let reviewed = answered("review tokens", asked)?;
    let pod = pod_of(&reviewed)?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let asked = tokio::time::timeout(ANSWER, pods.get_opt(&pod.name)).await;
    let held = answered("get pods", asked)?;
    let held = held.filter(|held| held.metadata.uid.as_deref() == Some(&pod.uid));
    let node = held.and_then(|held| held.spec?.node_name);
    node.ok_or_else(|| {
        // It is being deleted, and the next one comes with a token of its own.
        Doubt::Yet(format!("Pod {NAMESPACE}/{} is on no node", pod.name))
    })
}

fn answered<T>(
    what: &str,
    asked: Result<Result<T, kube::Error>, tokio::time::error::Elapsed>,
) -> Result<T, Doubt> {
    match asked {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(e)) => {
            let text = format!("we can't {what} there: {}", connect::trouble(&e).message);
            match e {
                kube::Error::Api(status) if status.code == 403 => Err(Doubt::Ever(text)),
                _ => Err(Doubt::Yet(text)),
            }
        }
        Err(_) => Err(Doubt::Yet(format!("no answer within {ANSWER:?}"))),
    }
}

#[derive(Debug, PartialEq)]
struct BoundTo {
    name: String,
    uid: String,
}

/// The Pod that a token is bound to, where it is one of an agent's Pods.
fn pod_of(review: &TokenReview) -> Result<BoundTo, Doubt> {
    let ever = |text: String| Err(Doubt::Ever(text));
    let status = review.status.clone().unwrap_or_default();
    if status.authenticated != Some(true) {
        return ever("its API server does not know the token of the agent's Pod".to_owned());
    }
    let audiences = status.audiences.unwrap_or_default();
    if !audiences.iter().any(|a| a == AUDIENCE) {
        return ever(format!("the token is not for audience {AUDIENCE}"));
    }
    let user = status.user.unwrap_or_default();
    let account = user.username.clone().unwrap_or_default();
    if account != ACCOUNT {
        return ever(format!("the token is of {account:?}, not of {ACCOUNT}"));
    }
    match (extra(&user, POD_NAME), extra(&user, POD_UID)) {
        (Some(name), Some(uid)) => Ok(BoundTo { name, uid }),
        _ => ever("the token is bound to no Pod".to_owned()),
    }
}

/// The one value of a key.
fn extra(user: &UserInfo, key: &str) -> Option<String> {
    match user.extra.as_ref()?.get(key)?.as_slice() {
        [one] => Some(one.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
