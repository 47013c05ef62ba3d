//! /metrics and /healthz.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::status::Status;

/// Connections at a time: a scraper and a few people.
const CONNECTIONS: usize = 8;
/// A connection may stay this long; scrapers come back.
const LIFETIME: Duration = Duration::from_secs(30);

/// Opens the socket.
///
/// # Errors
/// Names the address; most often it is taken.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address)
        .await
        .map_err(|e| format!("--http-addr {address}: {e}"))
}

/// Serves until `stop`.
pub async fn serve(listener: TcpListener, status: Arc<Status>, stop: CancellationToken) {
    let accept = |cx: &mut Context<'_>| listener.poll_accept(cx).map_ok(|(stream, _)| stream);
    let service = move |request: Request<Incoming>| {
        let response = answer(&request, &status);
        std::future::ready(response)
    };
    serve_connections(accept, service, stop).await;
}

/// Accepts until `stop` and answers on a few connections at a time, each for a while only.
pub(crate) async fn serve_connections<S, A, F>(
    mut accept: impl FnMut(&mut Context<'_>) -> Poll<std::io::Result<S>>,
    answer: A,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send,
{
    let turns = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let turn = tokio::select! {
            turn = turns.clone().acquire_owned() => turn,
            () = stop.cancelled() => return,
        };
        let Ok(turn) = turn else { return };
        let accepted = tokio::select! {
            accepted = std::future::poll_fn(&mut accept) => accepted,
            () = stop.cancelled() => return,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(e) => {
                // Out of file descriptors, most often: those in use are let go soon.
                debug!(error = %e, "connection not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let answer = answer.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let answered = answer(request);
                async move { Ok::<_, Infallible>(answered.await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(5))
                .max_buf_size(16 * 1024)
                .serve_connection(TokioIo::new(stream), service);
            let _ = tokio::time::timeout(LIFETIME, connection).await;
            drop(turn);
        });
    }
}

fn answer(request: &Request<Incoming>, status: &Status) -> Response<Full<Bytes>> {
    let (code, kind, body) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => (
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            status.exposition(),
        ),
        (&Method::GET | &Method::HEAD, "/healthz") => {
            (StatusCode::OK, "application/json", status.health())
        }
        (&Method::GET | &Method::HEAD, _) => (
            StatusCode::NOT_FOUND,
            "text/plain",
            "only /metrics and /healthz are here\n".to_owned(),
        ),
        _ => (
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain",
            "only GET is answered\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
