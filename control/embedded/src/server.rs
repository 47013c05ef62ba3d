//! Sockets, TLS, tokens: everything between the network and [`route`](crate::route).

use std::convert::Infallible;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use subtle::ConstantTimeEq;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use crate::api::{Api, Call, Reply, value_reply};
use crate::query::Query;
use crate::route::route;
use crate::status::{Result, Status};

/// As etcd and the real API server limit it.
const BODY: usize = 3 << 20;
/// Connections at once; more wait in the kernel's queue.
const CONNECTIONS: usize = 2048;
const HANDSHAKE: Duration = Duration::from_secs(10);
/// For the head of a request on a connection that is open.
const HEAD: Duration = Duration::from_secs(90);
const BODY_TIME: Duration = Duration::from_secs(60);
const PING: Duration = Duration::from_secs(30);
/// Pause after a failed accept: out of file descriptors, most likely.
const PAUSE: Duration = Duration::from_millis(100);

/// What every connection needs.
pub(crate) struct Shared {
    pub api: Arc<Api>,
    pub token: String,
}

/// Accepts connections until the server stops.
pub(crate) async fn run(
    listener: TcpListener,
    tls: TlsAcceptor,
    shared: Arc<Shared>,
    connections: TaskTracker,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let stopping = shared.api.stopping.clone();
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopping.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (tls, shared) = (tls.clone(), Arc::clone(&shared));
                connections.spawn(async move {
                    serve(stream, peer, tls, shared).await;
                    drop(slot);
                });
            }
            Err(e) => {
                tracing::warn!(error = %e, "API: accept failed");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, peer: SocketAddr, tls: TlsAcceptor, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let stopping = shared.api.stopping.clone();
    let stream = match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => return tracing::debug!(%peer, error = %e, "API: TLS failed"),
        Err(_) => return tracing::debug!(%peer, "API: TLS timed out"),
    };
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(answer(&shared, request).await) }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .max_concurrent_streams(1000);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = result {
        tracing::debug!(%peer, error = %e, "API: connection ended");
    }
}

/// Answers; whatever goes wrong becomes a `Status`.
async fn answer(shared: &Shared, request: Request<Incoming>) -> Reply {
    let guarded = AssertUnwindSafe(handle(shared, request))
        .catch_unwind()
        .await;
    let result = guarded.unwrap_or_else(|_| {
        tracing::error!("API: a handler panicked");
        Err(Status::internal("a handler failed"))
    });
    result.unwrap_or_else(|status| {
        let mut reply = value_reply(status.code(), &status.to_json());
        if status.code() == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            reply.headers_mut().insert(WWW_AUTHENTICATE, scheme);
        }
        reply
    })
}

async fn handle(shared: &Shared, request: Request<Incoming>) -> Result<Reply> {
    let path = request.uri().path();
    let open = matches!(path, "/healthz" | "/livez" | "/readyz" | "/version");
    if !open {
        check_token(shared, &request)?;
    }
    let (head, body) = request.into_parts();
    let query = Query::parse(head.uri.query().unwrap_or_default())?;
    let body = read_body(body).await?;
    let path = head.uri.path().to_owned();
    let uri = head
        .uri
        .path_and_query()
        .map_or(path.clone(), ToString::to_string);
    let call = Call {
        method: head.method,
        headers: head.headers,
        query,
        body,
    };
    route(&shared.api, &path, &uri, call).await
}

fn check_token(shared: &Shared, request: &Request<Incoming>) -> Result<()> {
    let header = request.headers().get(AUTHORIZATION);
    let given = header
        .and_then(|h| h.to_str().ok())
        .and_then(|h| h.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map_or("", |(_, token)| token.trim());
    if bool::from(given.as_bytes().ct_eq(shared.token.as_bytes())) {
        return Ok(());
    }
    Err(Status::new(
        StatusCode::UNAUTHORIZED,
        "Unauthorized",
        "Unauthorized",
    ))
}

async fn read_body(body: Incoming) -> Result<Bytes> {
    let collected = tokio::time::timeout(BODY_TIME, Limited::new(body, BODY).collect()).await;
    match collected {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(e)) if e.is::<LengthLimitError>() => Err(Status::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestEntityTooLarge",
            format!("Request entity too large: limit is {BODY}"),
        )),
        Ok(Err(e)) => Err(Status::bad_request(format!("read the body: {e}"))),
        Err(_) => Err(Status::new(
            StatusCode::REQUEST_TIMEOUT,
            "Timeout",
            "the body of the request did not arrive in time",
        )),
    }
}
