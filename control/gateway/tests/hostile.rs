//! What a peer may send that no agent would. After each the gateway serves others as before, and
//! no task has panicked.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use common::{Fleet, Raw, eventually, grpc_frame, hello, message, telemetry, welcome};
use hyperion_link::{Identity, Link};
use hyperion_proto::agent_v1::stream_message::Body;
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Counts panics anywhere in this process; tasks swallow them otherwise.
fn count_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // A failing assertion of a test is on the test's own thread.
            let text = info.to_string();
            if !text.contains("tests/hostile.rs") && !text.contains("tests/common") {
                PANICS.fetch_add(1, Ordering::SeqCst);
            }
            usual(info);
        }));
    });
}

fn panics() -> usize {
    PANICS.load(Ordering::SeqCst)
}

struct Scene {
    fleet: Fleet,
    healthy: Link,
    enemy: Identity,
}

impl Scene {
    async fn start() -> Self {
        count_panics();
        let fleet = Fleet::start().await;
        let good = fleet.enrol().await;
        let enemy = fleet.enrol().await;
        let mut healthy = fleet.link(&good);
        welcome(&mut healthy).await;
        Self {
            fleet,
            healthy,
            enemy,
        }
    }

    /// A stream of the enemy after a proper hello.
    async fn greeted(&self) -> Raw {
        let mut raw = self.fleet.raw(Some(&self.enemy)).await;
        let first = hello(&self.enemy.node_id, "boot-1");
        raw.message(&message(Body::Hello(first))).await;
        eventually("connected", || {
            self.fleet.gateway.connected(&self.enemy.node_id)
        })
        .await;
        raw
    }

    async fn unharmed(&self) {
        self.fleet.serves(&self.healthy).await;
        assert_eq!(panics(), 0);
    }

    async fn cut_off(&self) {
        eventually("the enemy's session ends", || {
            !self.fleet.gateway.connected(&self.enemy.node_id)
        })
        .await;
    }
}

#[tokio::test]
async fn a_message_that_is_too_large_ends_its_stream_only() {
    let scene = Scene::start().await;
    let mut raw = scene.greeted().await;
    // Says that two megabytes follow, and sends some.
    let mut frame = vec![0];
    frame.extend_from_slice(&(2_u32 << 20).to_be_bytes());
    frame.extend_from_slice(&[0; 1000]);
    raw.bytes(&frame).await;
    let (code, text) = raw.status().await;
    scene.cut_off().await;
    assert!(
        code.is_empty() || code == "0" || code == "11",
        "{code} {text}"
    );
    scene.unharmed().await;
}

#[tokio::test]
async fn a_message_that_breaks_off_ends_its_stream_only() {
    let scene = Scene::start().await;
    let mut raw = scene.greeted().await;
    let whole = grpc_frame(&telemetry(1.0).encode_to_vec());
    raw.bytes(&whole[..whole.len() - 3]).await;
    raw.send.finish().await.unwrap();
    scene.cut_off().await;
    scene.unharmed().await;
}

#[tokio::test]
async fn random_messages_end_their_stream_only() {
    let scene = Scene::start().await;
    let mut rng = StdRng::seed_from_u64(1);
    for _ in 0..20 {
        let mut raw = scene.fleet.raw(Some(&scene.enemy)).await;
        let mut junk = vec![0; 200];
        rng.fill_bytes(&mut junk);
        raw.bytes(&grpc_frame(&junk)).await;
        raw.bytes(&junk).await;
        let _ = raw.send.finish().await;
        raw.status().await;
        raw.quic.close(0_u32.into(), b"next");
    }
    scene.unharmed().await;
}

#[tokio::test]
async fn empty_and_compressed_messages_are_refused_in_words() {
    let scene = Scene::start().await;
    let mut raw = scene.fleet.raw(Some(&scene.enemy)).await;
    raw.bytes(&grpc_frame(&[])).await;
    let (code, text) = raw.status().await;
    assert_eq!(code, "3", "{text}");
    let mut raw = scene.fleet.raw(Some(&scene.enemy)).await;
    raw.bytes(&[1, 0, 0, 0, 1, 7]).await;
    let (code, text) = raw.status().await;
    assert!(code == "12" || code == "13", "{code} {text}");
    let mut raw = scene.fleet.raw(Some(&scene.enemy)).await;
    raw.send.finish().await.unwrap();
    let (code, text) = raw.status().await;
    assert_eq!(code, "3", "{text}");
    scene.unharmed().await;
}

#[tokio::test]
async fn unknown_messages_are_ignored_as_those_of_a_newer_agent() {
    let scene = Scene::start().await;
    let mut raw = scene.greeted().await;
    // Field 200, a string; field 201, a varint.
    raw.bytes(&grpc_frame(&[0xc2, 0x0c, 0x01, b'x', 0xc8, 0x0c, 0x05]))
        .await;
    let before = scene.fleet.telemetry_received();
    raw.message(&telemetry(1.0)).await;
    eventually("telemetry after it", || {
        scene.fleet.telemetry_received() > before
    })
    .await;
    scene.unharmed().await;
}

#[tokio::test]
async fn bytes_that_are_not_http3_end_their_connection_only() {
    let scene = Scene::start().await;
    let mut rng = StdRng::seed_from_u64(2);
    for round in 0..40_usize {
        let quic = scene.fleet.quic(Some(&scene.enemy)).await;
        let mut junk = vec![0; [0, 1, 2, 3, 9, 64, 1000, 60_000][round % 8]];
        rng.fill_bytes(&mut junk);
        let bidi = quic.open_bi().await;
        if let Ok((mut send, mut receive)) = bidi {
            let _ = send.write_all(&junk).await;
            let _ = send.finish();
            let read = receive.read_to_end(100_000);
            let _ = tokio::time::timeout(Duration::from_millis(50), read).await;
        }
        if let Ok(mut send) = quic.open_uni().await {
            let _ = send.write_all(&junk).await;
            if round % 2 == 0 {
                let _ = send.reset(7_u32.into());
            }
        }
        let _ = quic.send_datagram(Bytes::from(junk));
        quic.close(0_u32.into(), b"next");
    }
    scene.unharmed().await;
}

#[tokio::test]
async fn frames_that_break_off_or_promise_too_much_end_their_connection_only() {
    let scene = Scene::start().await;
    let frames: [&[u8]; 8] = [
        // HEADERS of 2^62-1 bytes.
        &[0x01, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x00],
        // HEADERS of 16 bytes, 3 sent.
        &[0x01, 0x10, 0x00, 0x00, 0xd1],
        // HEADERS whose header block is rubbish.
        &[0x01, 0x04, 0xff, 0xff, 0xff, 0xff],
        // DATA before HEADERS.
        &[0x00, 0x02, 0x00, 0x00],
        // A length that breaks off.
        &[0x01, 0xff],
        // SETTINGS on a request stream.
        &[0x04, 0x00],
        // CANCEL_PUSH, GOAWAY.
        &[0x03, 0x01, 0x00, 0x07, 0x01, 0x00],
        // An empty HEADERS.
        &[0x01, 0x00],
    ];
    for frame in frames {
        let quic = scene.fleet.quic(Some(&scene.enemy)).await;
        // A control stream with settings, so that only the request is wrong.
        let mut control = quic.open_uni().await.unwrap();
        control.write_all(&[0x00, 0x04, 0x00]).await.unwrap();
        let (mut send, mut receive) = quic.open_bi().await.unwrap();
        send.write_all(frame).await.unwrap();
        let _ = send.finish();
        let read = receive.read_to_end(100_000);
        let _ = tokio::time::timeout(Duration::from_millis(200), read).await;
        quic.close(0_u32.into(), b"next");
    }
    scene.unharmed().await;
}

#[tokio::test]
async fn headers_that_are_too_large_are_refused() {
    let scene = Scene::start().await;
    let quic = scene.fleet.quic(Some(&scene.enemy)).await;
    let connection = h3_quinn::Connection::new(quic.clone());
    let (mut driver, mut requests) = h3::client::new(connection).await.unwrap();
    tokio::spawn(async move { std::future::poll_fn(|cx| driver.poll_close(cx)).await });
    let request = http::Request::post("https://hyperion-control/agent.v1.AgentService/Stream")
        .header("content-type", "application/grpc")
        .header("x-large", "x".repeat(64 * 1024))
        .body(())
        .unwrap();
    if let Ok(mut stream) = requests.send_request(request).await {
        let answer = tokio::time::timeout(Duration::from_secs(10), stream.recv_response()).await;
        if let Ok(Ok(answer)) = answer {
            assert_eq!(answer.status(), 431);
        }
    }
    scene.unharmed().await;
}

#[tokio::test]
async fn a_path_that_does_not_exist_is_unimplemented() {
    let scene = Scene::start().await;
    let quic = scene.fleet.quic(Some(&scene.enemy)).await;
    let connection = h3_quinn::Connection::new(quic.clone());
    let (mut driver, mut requests) = h3::client::new(connection).await.unwrap();
    tokio::spawn(async move { std::future::poll_fn(|cx| driver.poll_close(cx)).await });
    for uri in [
        "https://hyperion-control/",
        "https://x/agent.v1.AgentService/Nope",
    ] {
        let request = http::Request::get(uri).body(()).unwrap();
        let mut stream = requests.send_request(request).await.unwrap();
        stream.finish().await.unwrap();
        let answer = stream.recv_response().await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], "12");
    }
    scene.unharmed().await;
}

#[tokio::test]
async fn a_peer_that_opens_a_connection_and_nothing_else_is_let_go() {
    let scene = Scene::start().await;
    let quic = scene.fleet.quic(None).await;
    let closed = tokio::time::timeout(Duration::from_secs(20), quic.closed()).await;
    assert!(closed.unwrap().to_string().contains("no request"));
    scene.unharmed().await;
}

#[tokio::test]
async fn many_half_open_handshakes_do_not_keep_an_agent_out() {
    let scene = Scene::start().await;
    let attempts = scene.fleet.half_open(600).await;
    let began = std::time::Instant::now();
    let identity = scene.fleet.enrol().await;
    let mut link = scene.fleet.link(&identity);
    welcome(&mut link).await;
    assert!(began.elapsed() < Duration::from_secs(20));
    drop(attempts);
    scene.unharmed().await;
}

/// Drops streams in every state that has a read pending, from both sides. In h3-quinn 0.0.10 the
/// usual adapters panic here; ours give each stream to one task that reads to the end.
#[tokio::test]
async fn streams_with_a_pending_read_are_dropped_without_a_panic() {
    let scene = Scene::start().await;
    for round in 0..10 {
        // The client's response is pending; the link goes away.
        let identity = scene.fleet.enrol().await;
        let mut link = scene.fleet.link(&identity);
        welcome(&mut link).await;
        if round % 2 == 0 {
            link.close().await;
        } else {
            drop(link);
        }
        // The server's request is pending; the server refuses the stream.
        let mut refused = scene.fleet.raw(None).await;
        refused.status().await;
        // The client goes away in the middle of a message.
        let mut raw = scene.greeted().await;
        raw.bytes(&[0, 0, 0, 1, 0, 8]).await;
        raw.quic.close(0_u32.into(), b"gone");
        scene.cut_off().await;
        // Request and response are abandoned, the connection stays.
        let raw = scene.greeted().await;
        let quic = raw.quic.clone();
        let keep = tokio::spawn(async move { quic.closed().await });
        drop(raw);
        keep.abort();
        let _ = keep.await;
    }
    // The gateway goes away with streams open on both sides.
    let identity = scene.fleet.enrol().await;
    let mut link = scene.fleet.link(&identity);
    welcome(&mut link).await;
    scene.unharmed().await;
    scene.fleet.gateway.shutdown().await;
    common::disconnect(&mut link).await;
    assert_eq!(panics(), 0);
}

/// The same for a whole process that ends: every task is dropped where it stands.
#[test]
fn a_runtime_that_is_dropped_with_open_streams_does_not_panic() {
    count_panics();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let kept = runtime.block_on(async {
        let fleet = Fleet::start().await;
        let identity = fleet.enrol().await;
        let mut link = fleet.link(&identity);
        welcome(&mut link).await;
        fleet.serves(&link).await;
        (fleet, link)
    });
    drop(runtime);
    drop(kept);
    assert_eq!(panics(), 0);
}
