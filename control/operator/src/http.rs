//! The plain HTTP server: health, metrics, and the fleet API that the console reaches through the
//! API server's service proxy.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use futures::{Stream, StreamExt};
use hyperion_api::fleet::{LiveFleet, ScorerStatus};
use hyperion_gateway::{LogError, LogRequest};
use hyperion_providers::feeds::{Feed, Feeds, Known, Offer};
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::clusters::logs::{self as pods, Chunks, NoLogs};
use crate::directory::{Directory, Role};
use crate::fleet_metrics;
use crate::index::Name;

/// How long a node may take to begin its answer.
const FIRST_CHUNK: Duration = Duration::from_secs(10);
/// How long a followed log is waited for before the answer begins without a line.
const FIRST_LINE: Duration = Duration::from_millis(300);

/// What the handlers share.
#[derive(Clone)]
struct Shared {
    directory: Arc<Directory>,
    registry: Arc<Registry>,
    prices: Option<Feeds>,
}

/// Opens the socket.
///
/// # Errors
/// The address is taken, most often; the sentence names it.
pub async fn bind(addr: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addr)
        .await
        .map_err(|e| anyhow::anyhow!("cannot serve HTTP on {addr} (TCP, --http-addr): {e}"))
}

/// Serves until `stop`.
pub async fn serve(
    listener: TcpListener,
    directory: Arc<Directory>,
    registry: Arc<Registry>,
    prices: Option<Feeds>,
    stop: CancellationToken,
) {
    let shared = Shared {
        directory,
        registry,
        prices,
    };
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/metrics/fleet", get(metrics_of_fleet))
        .route("/fleet/v1/nodes", get(nodes))
        .route("/fleet/v1/history", get(history))
        .route("/fleet/v1/logs", get(logs))
        .route("/fleet/v1/prices", get(prices_now))
        .with_state(shared);
    let server = axum::serve(listener, router);
    // Followed logs would hold a graceful shutdown up: connections end with the process.
    tokio::select! {
        result = server.into_future() => if let Err(e) = result {
            warn!(error = %e, "HTTP server");
        },
        () = stop.cancelled() => {}
    }
}

fn sentence(status: StatusCode, text: impl Into<String>) -> Response {
    let mut text = text.into();
    text.push('\n');
    (status, [(CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

async fn healthz() -> Response {
    sentence(StatusCode::OK, "ok")
}

async fn readyz(State(shared): State<Shared>) -> Response {
    match shared.directory.role() {
        Role::Leader => sentence(StatusCode::OK, leading(&shared.directory.scorer())),
        Role::Standby => sentence(StatusCode::OK, "ok: standing by"),
        Role::Starting => sentence(StatusCode::SERVICE_UNAVAILABLE, "starting"),
        Role::Stopping => sentence(StatusCode::SERVICE_UNAVAILABLE, "stopping"),
    }
}

/// One sentence; a policy that is refused is no reason not to serve.
fn leading(scorer: &ScorerStatus) -> String {
    let mut text = "ok: serving agents".to_owned();
    if !scorer.decides.is_empty() {
        text = format!("{text}; {} decides", scorer.decides);
    }
    if !scorer.refused.is_empty() {
        let refused = scorer.refused.replace(char::is_control, " ");
        text = format!("{text}, the policy is refused: {refused}");
    }
    text
}

async fn metrics(State(shared): State<Shared>) -> Response {
    let mut text = String::new();
    let encoded = prometheus_client::encoding::text::encode_registry(&mut text, &shared.registry)
        .and_then(|()| shared.directory.encode(&mut text))
        .and_then(|()| prometheus_client::encoding::text::encode_eof(&mut text));
    open_metrics(encoded.map(|()| text))
}

/// Telemetry of all nodes. One that stands by knows none, which is no fault of its own.
async fn metrics_of_fleet(State(shared): State<Shared>) -> Response {
    let live = shared.directory.gateway().map(|g| g.live_since(0));
    open_metrics(fleet_metrics::text(live.unwrap_or_default().nodes))
}

fn open_metrics(encoded: Result<String, std::fmt::Error>) -> Response {
    match encoded {
        Ok(text) => (
            [(
                CONTENT_TYPE,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            )],
            text,
        )
            .into_response(),
        Err(e) => sentence(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
    }
}

#[derive(Debug, Deserialize)]
struct Since {
    #[serde(default)]
    since: u64,
}

async fn nodes(
    State(shared): State<Shared>,
    query: Result<Query<Since>, QueryRejection>,
) -> Response {
    let Ok(Query(query)) = query else {
        return sentence(StatusCode::BAD_REQUEST, "since must be a version number");
    };
    match shared.directory.gateway() {
        Some(gateway) => Json(LiveFleet {
            live: gateway.live_since(query.since),
            scorer: shared.directory.scorer(),
        })
        .into_response(),
        None => not_leading(),
    }
}

/// A price as it is shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    #[serde(flatten)]
    offer: Offer,
    feed: Feed,
    age_seconds: u64,
    stale: bool,
}

impl From<Known<'_>> for Shown {
    fn from(known: Known<'_>) -> Self {
        Self {
            offer: known.offer.clone(),
            feed: known.feed,
            age_seconds: known.age.as_secs(),
            stale: known.stale,
        }
    }
}

async fn prices_now(State(shared): State<Shared>) -> Response {
    let Some(feeds) = &shared.prices else {
        return sentence(
            StatusCode::NOT_FOUND,
            "there are no price feeds: --price-feed asks for some",
        );
    };
    let prices = feeds.prices().borrow().clone();
    let shown: Vec<Shown> = prices
        .offers(jiff::Timestamp::now())
        .map(Shown::from)
        .collect();
    Json(shown).into_response()
}

#[derive(Debug, Deserialize)]
struct OfNode {
    node: String,
}

async fn history(
    State(shared): State<Shared>,
    query: Result<Query<OfNode>, QueryRejection>,
) -> Response {
    let query = match query {
        Ok(Query(query)) => query,
        Err(e) => return sentence(StatusCode::BAD_REQUEST, e.body_text()),
    };
    let Some(gateway) = shared.directory.gateway() else {
        return not_leading();
    };
    match gateway.history(&query.node) {
        Some(history) => Json(history).into_response(),
        None => sentence(
            StatusCode::NOT_FOUND,
            format!(
                "node {:?} has brought no telemetry of a time out of reach",
                query.node
            ),
        ),
    }
}

type QueryRejection = axum::extract::rejection::QueryRejection;

fn not_leading() -> Response {
    sentence(
        StatusCode::SERVICE_UNAVAILABLE,
        "this control plane does not serve agents now; ask the one that leads",
    )
}

#[derive(Debug, Deserialize)]
struct LogQuery {
    namespace: String,
    workload: String,
    replica: Option<u32>,
    #[serde(default)]
    container: String,
    #[serde(default)]
    tail: u32,
    #[serde(default)]
    follow: bool,
}

async fn logs(
    State(shared): State<Shared>,
    query: Result<Query<LogQuery>, QueryRejection>,
) -> Response {
    let query = match query {
        Ok(Query(query)) => query,
        Err(e) => return sentence(StatusCode::BAD_REQUEST, e.body_text()),
    };
    let Some(gateway) = shared.directory.gateway() else {
        return not_leading();
    };
    let name = Name::new(&query.namespace, &query.workload);
    let replicas = shared.directory.replicas(&name);
    let place = match query.replica {
        Some(replica) => replicas.get(&replica),
        None => replicas.values().next(),
    };
    let Some(place) = place else {
        let what = query
            .replica
            .map_or_else(|| "no replica".to_owned(), |r| format!("no replica {r}"));
        let text = format!("workload {name} has {what} with a place");
        return sentence(StatusCode::NOT_FOUND, text);
    };
    let request = LogRequest {
        key: place.key.clone(),
        container: query.container,
        tail_lines: query.tail,
        follow: query.follow,
    };
    let clusters = shared.directory.clusters();
    if let Some(cluster) = clusters.of_node(&place.node) {
        let opened = pods::open(&clusters, &cluster, &request, place.generation).await;
        return match opened {
            Ok(chunks) => answer(chunks, query.follow, &place.node).await,
            Err(e @ NoLogs::Missing(_)) => sentence(StatusCode::NOT_FOUND, e.to_string()),
            Err(e @ NoLogs::Refused(_)) => sentence(StatusCode::BAD_GATEWAY, e.to_string()),
            Err(e @ NoLogs::Unreachable(_)) => {
                sentence(StatusCode::SERVICE_UNAVAILABLE, e.to_string())
            }
        };
    }
    match gateway.fetch_logs(&place.node, request) {
        Ok(chunks) => answer(chunks.boxed(), query.follow, &place.node).await,
        Err(e) => sentence(StatusCode::SERVICE_UNAVAILABLE, e.to_string()),
    }
}

/// Waits for the first chunk, so that a refusal gets a status of its own.
async fn answer(mut chunks: Chunks, follow: bool, node: &str) -> Response {
    let patience = if follow { FIRST_LINE } else { FIRST_CHUNK };
    match tokio::time::timeout(patience, chunks.next()).await {
        Ok(Some(Ok(first))) => {
            let first = futures::stream::once(std::future::ready(Ok(first)));
            stream(first.chain(chunks))
        }
        Ok(Some(Err(e))) => sentence(StatusCode::NOT_FOUND, e.to_string()),
        Ok(None) => stream(futures::stream::empty()),
        Err(_) if follow => stream(chunks),
        Err(_) => {
            let text = format!("node {node} did not answer within {FIRST_CHUNK:?}");
            sentence(StatusCode::GATEWAY_TIMEOUT, text)
        }
    }
}

fn stream(chunks: impl Stream<Item = Result<Bytes, LogError>> + Send + 'static) -> Response {
    let body = Body::from_stream(chunks);
    ([(CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response()
}
