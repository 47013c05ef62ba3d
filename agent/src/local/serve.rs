//! The server.

use std::task::Context;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyperion_proto::peer_v1::Apply;
use prost::Message;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::answer::{Refused, json_answer, refusal};
use super::{LocalListener, LocalRequest, SiteStatus, check, update};
use crate::http;

/// How long the node may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Largest request, bytes: 1000 replicas with pods and manifests of some 16 KiB.
const MAX_BODY: usize = 16 << 20;

/// Serves until `stop`.
pub async fn serve(
    listener: LocalListener,
    node: mpsc::Sender<LocalRequest>,
    stop: CancellationToken,
) {
    let accept = |cx: &mut Context<'_>| {
        let accepted = listener.listener.poll_accept(cx);
        accepted.map_ok(|(stream, _)| stream)
    };
    let service = move |request| {
        let node = node.clone();
        async move { answer(request, &node).await }
    };
    http::serve_connections(accept, service, stop).await;
}

async fn answer(
    request: Request<Incoming>,
    node: &mpsc::Sender<LocalRequest>,
) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let allow = match path.as_str() {
        "/v1/site" => "GET, HEAD",
        "/v1/apply" => "POST",
        "/v1/update" => "GET, HEAD, POST",
        p if p.starts_with("/v1/workloads/") => "DELETE",
        _ => {
            let known =
                "only /v1/site, /v1/apply, /v1/update and /v1/workloads/NAMESPACE/NAME are here";
            return refusal(&Refused::new(StatusCode::NOT_FOUND, known), None);
        }
    };
    if !allow.split(", ").any(|m| m == request.method().as_str()) {
        let problem = format!("{} {path}: only {allow}", request.method());
        return refusal(
            &Refused::new(StatusCode::METHOD_NOT_ALLOWED, problem),
            Some(allow),
        );
    }
    let done = match *request.method() {
        Method::POST if path == "/v1/update" => update::install(request, node).await,
        Method::POST => apply(request, node).await,
        Method::DELETE => delete(&path, node).await,
        _ if path == "/v1/update" => update::status(node).await,
        _ => site(node).await,
    };
    match done {
        Ok(body) => json_answer(StatusCode::OK, body),
        Err(refused) => refusal(&refused, None),
    }
}

async fn site(node: &mpsc::Sender<LocalRequest>) -> Result<String, Refused> {
    let status = status(node).await?;
    serde_json::to_string(&status)
        .map_err(|e| Refused::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))
}

async fn status(node: &mpsc::Sender<LocalRequest>) -> Result<SiteStatus, Refused> {
    ask(node, LocalRequest::Status).await
}

async fn apply(
    request: Request<Incoming>,
    node: &mpsc::Sender<LocalRequest>,
) -> Result<String, Refused> {
    let body = read(request, MAX_BODY).await?;
    let Apply { records } = Apply::decode(body).map_err(|e| {
        let problem = format!("body is no peer.v1.Apply: {e}");
        Refused::new(StatusCode::BAD_REQUEST, problem)
    })?;
    check::records(&records)?;
    check::mode(&status(node).await?.mode)?;
    let key = records[0].key.clone().unwrap_or_default();
    let replicas = records.len();
    ask(node, |answer| LocalRequest::Apply { records, answer })
        .await?
        .map_err(|problem| Refused::new(StatusCode::CONFLICT, problem))?;
    info!(
        workload = format!("{}/{}", key.namespace, key.workload),
        replicas, "applied at the site"
    );
    Ok(
        json!({ "namespace": key.namespace, "workload": key.workload, "replicas": replicas })
            .to_string(),
    )
}

/// Body of a request: at most `most` bytes.
pub(super) async fn read(request: Request<Incoming>, most: usize) -> Result<Bytes, Refused> {
    let too_large = || {
        let problem = format!("body: larger than {} KiB", most >> 10);
        Refused::new(StatusCode::PAYLOAD_TOO_LARGE, problem)
    };
    let body = request.into_body();
    if body.size_hint().lower() > most as u64 {
        return Err(too_large());
    }
    let body = Limited::new(body, most).collect().await.map_err(|e| {
        if e.is::<LengthLimitError>() {
            too_large()
        } else {
            Refused::new(StatusCode::BAD_REQUEST, format!("body: {e}"))
        }
    })?;
    Ok(body.to_bytes())
}

async fn delete(path: &str, node: &mpsc::Sender<LocalRequest>) -> Result<String, Refused> {
    let name = path.strip_prefix("/v1/workloads/").unwrap_or_default();
    let (namespace, workload) = name
        .split_once('/')
        .filter(|(namespace, workload)| is_name(namespace) && is_name(workload))
        .ok_or_else(|| {
            let problem = "two Kubernetes names are expected: /v1/workloads/NAMESPACE/NAME";
            Refused::new(StatusCode::BAD_REQUEST, problem)
        })?;
    let status = status(node).await?;
    check::mode(&status.mode)?;
    let known = |r: &&super::Replica| r.namespace == namespace && r.workload == workload;
    if !status.replicas.iter().any(|r| known(&r)) {
        let problem = format!("this site knows no workload {namespace}/{workload}");
        return Err(Refused::new(StatusCode::NOT_FOUND, problem));
    }
    ask(node, |answer| LocalRequest::Delete {
        namespace: namespace.to_owned(),
        workload: workload.to_owned(),
        answer,
    })
    .await?
    .map_err(|problem| Refused::new(StatusCode::CONFLICT, problem))?;
    info!(workload = name, "deleted at the site");
    Ok(json!({ "namespace": namespace, "workload": workload }).to_string())
}

fn is_name(text: &str) -> bool {
    // The rule for node ids is that for names of objects.
    hyperion_proto::convert::node_id("name", text).is_ok()
}

/// Asks the node.
pub(super) async fn ask<T>(
    node: &mpsc::Sender<LocalRequest>,
    request: impl FnOnce(oneshot::Sender<T>) -> LocalRequest,
) -> Result<T, Refused> {
    let away = |problem: &str| Refused::new(StatusCode::SERVICE_UNAVAILABLE, problem);
    let (sender, receiver) = oneshot::channel();
    let asked = async {
        node.send(request(sender)).await.ok()?;
        receiver.await.ok()
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => Err(away("the agent is ending")),
        Err(_) => Err(away("the agent is busy: try again")),
    }
}
