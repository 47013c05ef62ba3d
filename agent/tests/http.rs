//! /metrics and /healthz as a scraper sees them.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

use std::net::SocketAddr;
use std::sync::Arc;

use hyperion_agent::http;
use hyperion_agent::status::{Mode, Status};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

async fn serve(status: Arc<Status>) -> (SocketAddr, CancellationToken) {
    let listener = http::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(http::serve(listener, status, stop.clone()));
    (address, stop)
}

async fn ask(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

async fn get(address: SocketAddr, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    ask(address, request.as_bytes()).await
}

#[tokio::test]
async fn metrics_and_health_are_served_and_nothing_else() {
    let status = Arc::new(Status::default());
    let (address, stop) = serve(status.clone()).await;
    status.set_node("lab-1");
    status.set_mode(Mode::Refused, "node lab-1 is revoked");
    let metrics = get(address, "/metrics").await;
    assert!(metrics.starts_with("HTTP/1.1 200"), "{metrics}");
    assert!(metrics.contains("hyperion_agent_link_connected 0"));
    assert!(metrics.contains("process_resident_memory_bytes "));
    assert!(metrics.ends_with("# EOF\n"));
    let health = get(address, "/healthz").await;
    assert!(health.contains("\"link\":\"refused\""), "{health}");
    assert!(health.contains("node lab-1 is revoked"), "{health}");
    assert!(get(address, "/").await.starts_with("HTTP/1.1 404"));
    let post =
        b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    assert!(ask(address, post).await.starts_with("HTTP/1.1 405"));
    stop.cancel();
}

#[tokio::test]
async fn garbage_gets_an_error_and_the_next_scraper_an_answer() {
    let (address, stop) = serve(Arc::new(Status::default())).await;
    for garbage in [
        &b"\x16\x03\x01\x02\x00\r\n\r\n"[..],
        b"GET\r\n\r\n",
        &[b'A'; 20_000],
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let _ = stream.write_all(garbage).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.contains("200 OK"), "{answer}");
    }
    assert!(get(address, "/healthz").await.contains("\"status\":\"ok\""));
    stop.cancel();
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = http::bind(address).await.unwrap_err();
    assert!(error.contains(&format!("--http-addr {address}")), "{error}");
}
