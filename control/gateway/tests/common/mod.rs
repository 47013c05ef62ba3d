//! What the gateway's tests share: a gateway over an API in memory, devices, and raw peers.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "each test binary uses its own part"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::{Bytes, BytesMut};
use hyperion_gateway::testing::MemoryApi;
use hyperion_gateway::{Gateway, GatewayConfig, GatewayEvent, NAMESPACE};
use hyperion_link::{
    ControlTarget, EnrolRequest, Identity, Link, LinkConfig, LinkEvent, tls, transport,
};
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{
    Container, Hello, NodeCapabilities, PodSpec, ReplicaKey, StartReplica, StreamMessage,
    Telemetry, Welcome,
};
use prometheus_client::registry::Registry;
use prost::Message;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

pub const SECRET: &str = "s3cret0of0the0tests";
pub const DEADLINE: Duration = Duration::from_secs(30);

/// A gateway with its API.
pub struct Fleet {
    pub api: MemoryApi,
    pub gateway: Gateway,
    pub events: mpsc::Receiver<GatewayEvent>,
    pub registry: Registry,
}

impl Fleet {
    pub async fn start() -> Self {
        Self::start_with(
            MemoryApi::default(),
            "127.0.0.1:0".parse().unwrap(),
            Duration::from_secs(3600),
        )
        .await
    }

    pub async fn start_with(api: MemoryApi, link_addr: SocketAddr, ttl: Duration) -> Self {
        let mut registry = Registry::default();
        let config = GatewayConfig {
            link_addr,
            link_advertise: None,
            client: api.client(),
            fleet: "hyperion".to_owned(),
            certificate_ttl: ttl,
        };
        let (gateway, events) = hyperion_gateway::start(config, &mut registry)
            .await
            .unwrap();
        Self {
            api,
            gateway,
            events,
            registry,
        }
    }

    /// A control plane after a restart: same objects, same address, nothing in memory.
    pub async fn restart(self) -> Self {
        let addr = self.gateway.local_addr();
        self.gateway.shutdown().await;
        Self::start_with(self.api, addr, Duration::from_secs(3600)).await
    }

    /// Puts a token's Secret there, with other values for some fields; gives the token.
    pub fn token(&self, id: &str, other: &[(&str, &str)]) -> String {
        let hash: String = Sha256::digest(SECRET)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        let mut data = serde_json::Map::new();
        let usual = [
            ("secret-sha256", hash.as_str()),
            ("site", "lab"),
            ("expires", "2100-01-01T00:00:00Z"),
            ("uses-left", "1000"),
        ];
        for (key, value) in usual.iter().chain(other) {
            let value = base64::engine::general_purpose::STANDARD.encode(value);
            data.insert((*key).to_owned(), json!(value));
        }
        self.api.put(
            &secret_path(id),
            json!({ "apiVersion": "v1", "kind": "Secret", "type": "hyperion.io/join-token",
                "metadata": { "name": format!("join-token-{id}"), "namespace": NAMESPACE },
                "data": data }),
        );
        format!("{id}.{SECRET}")
    }

    pub fn target(&self) -> ControlTarget {
        ControlTarget {
            addr: self.gateway.local_addr().to_string(),
            ca_fingerprint: self.gateway.ca_fingerprint(),
        }
    }

    pub async fn enrol(&self) -> Identity {
        let token = self.token("usual", &[]);
        hyperion_link::enrol(&self.target(), request(&token))
            .await
            .unwrap()
    }

    /// A device's link with short waits.
    pub fn link(&self, identity: &Identity) -> Link {
        self.link_with(identity, "boot-1", |_| {})
    }

    pub fn link_with(
        &self,
        identity: &Identity,
        boot: &str,
        change: impl FnOnce(&mut LinkConfig),
    ) -> Link {
        let mut config = LinkConfig::new(self.target());
        config.backoff_min = Duration::from_millis(50);
        config.backoff_max = Duration::from_millis(500);
        config.describe = request("");
        change(&mut config);
        let hello = hello(&identity.node_id, boot);
        hyperion_link::start(config, identity.clone(), Arc::new(move || hello.clone()))
    }

    /// Sets fields of a node's object, as a person would.
    pub fn set_node(&self, node: &str, change: impl FnOnce(&mut serde_json::Value)) {
        let path = node_path(node);
        let mut object = self.api.get(&path).unwrap();
        change(&mut object);
        self.api.put(&path, object);
    }

    /// A counter's or gauge's value, 0 where it has not been counted yet.
    pub fn metric(&self, line: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text.lines()
            .find_map(|l| l.strip_prefix(line)?.strip_prefix(' '))
            .map_or(0, |v| v.parse().unwrap())
    }

    pub fn refused(&self, what: &str) -> u64 {
        self.metric(&format!(
            "hyperion_gateway_refused_total{{what=\"{what}\"}}"
        ))
    }

    pub fn telemetry_received(&self) -> u64 {
        self.metric("hyperion_gateway_telemetry_received_total")
    }

    pub async fn next_event(&mut self) -> GatewayEvent {
        tokio::time::timeout(DEADLINE, self.events.recv())
            .await
            .expect("no event in time")
            .expect("the gateway's events ended")
    }

    pub async fn node_up(&mut self) -> String {
        loop {
            if let GatewayEvent::NodeUp { node, .. } = self.next_event().await {
                return node;
            }
        }
    }

    pub async fn node_down(&mut self) -> (String, String) {
        loop {
            if let GatewayEvent::NodeDown { node, reason, .. } = self.next_event().await {
                return (node, reason);
            }
        }
    }

    /// A QUIC connection without anything of ours on top.
    pub async fn quic(&self, identity: Option<&Identity>) -> quinn::Connection {
        let transport = transport::config(Some(Duration::from_secs(1)), transport::IDLE);
        let config =
            tls::client_config(&self.gateway.ca_fingerprint(), identity, transport).unwrap();
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        endpoint
            .connect_with(config, self.gateway.local_addr(), transport::SERVER_NAME)
            .unwrap()
            .await
            .unwrap()
    }

    /// A gRPC stream with nothing between the test and the frames.
    pub async fn raw(&self, identity: Option<&Identity>) -> Raw {
        Raw::open(self.quic(identity).await).await
    }

    /// Begins so many handshakes whose senders never answer: what a flood looks like.
    pub async fn half_open(&self, handshakes: usize) -> tokio::task::JoinSet<()> {
        let sink = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let relay = sink.local_addr().unwrap();
        let transport = transport::config(None, Duration::from_secs(30));
        let config = tls::client_config(&self.gateway.ca_fingerprint(), None, transport).unwrap();
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut attempts = tokio::task::JoinSet::new();
        for _ in 0..handshakes {
            let name = transport::SERVER_NAME;
            let attempt = endpoint.connect_with(config.clone(), relay, name).unwrap();
            attempts.spawn(async { drop(attempt.await) });
        }
        let gateway = self.gateway.local_addr();
        let mut datagram = [0; 2048];
        for _ in 0..handshakes {
            let (len, _) = sink.recv_from(&mut datagram).await.unwrap();
            sink.send_to(&datagram[..len], gateway).await.unwrap();
        }
        attempts
    }

    /// Proves that a healthy device is served: its telemetry arrives.
    pub async fn serves(&self, link: &Link) {
        let before = self.telemetry_received();
        eventually("telemetry of a healthy device arrives", || {
            let _ = link.sender().try_send(telemetry(1.0));
            self.telemetry_received() > before
        })
        .await;
    }
}

pub fn secret_path(id: &str) -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/secrets/join-token-{id}")
}

pub fn node_path(node: &str) -> String {
    format!("/apis/hyperion.io/v1alpha1/hyperionnodes/{node}")
}

pub fn request(token: &str) -> EnrolRequest {
    EnrolRequest {
        token: token.to_owned(),
        capabilities: capabilities(),
        hostname: "board-1".to_owned(),
        ..EnrolRequest::default()
    }
}

pub fn capabilities() -> NodeCapabilities {
    NodeCapabilities {
        cpu_arch: "aarch64".to_owned(),
        memory_bytes: 8 << 30,
        cpu_millis: 6000,
        ..NodeCapabilities::default()
    }
}

pub fn hello(node: &str, boot: &str) -> Hello {
    Hello {
        node_id: node.to_owned(),
        boot_id: boot.to_owned(),
        capabilities: Some(capabilities()),
        telemetry_interval_ms: 1000,
        ..Hello::default()
    }
}

pub fn message(body: Body) -> StreamMessage {
    StreamMessage { body: Some(body) }
}

pub fn telemetry(cpu: f32) -> StreamMessage {
    message(Body::Telemetry(Telemetry {
        cpu_utilization_percent: cpu,
        ..Telemetry::default()
    }))
}

pub fn key(workload: &str, index: u32) -> ReplicaKey {
    ReplicaKey {
        namespace: "default".to_owned(),
        workload: workload.to_owned(),
        workload_uid: "8d3f".to_owned(),
        index,
    }
}

/// An order whose pod has an argument of this many bytes.
pub fn start(workload: &str, index: u32, generation: u64, bytes: usize) -> StartReplica {
    StartReplica {
        key: Some(key(workload, index)),
        generation,
        pod: Some(PodSpec {
            containers: vec![Container {
                name: "main".to_owned(),
                image: "localhost/demo:1".to_owned(),
                args: vec!["x".repeat(bytes)],
                ..Container::default()
            }],
            ..PodSpec::default()
        }),
        command_id: generation,
        ..Default::default()
    }
}

/// Waits for a condition.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !condition() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "not in time: {what}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub async fn next(link: &mut Link) -> LinkEvent {
    tokio::time::timeout(DEADLINE, link.next_event())
        .await
        .expect("no link event in time")
        .expect("the link ended")
}

/// The next welcome, whatever comes before it.
pub async fn welcome(link: &mut Link) -> Welcome {
    loop {
        if let LinkEvent::Connected(welcome) = next(link).await {
            return welcome;
        }
    }
}

/// The next refusal.
pub async fn refusal(link: &mut Link) -> String {
    loop {
        if let LinkEvent::Refused { reason } = next(link).await {
            return reason;
        }
    }
}

/// The next disconnect.
pub async fn disconnect(link: &mut Link) -> String {
    loop {
        if let LinkEvent::Disconnected { reason, .. } = next(link).await {
            return reason;
        }
    }
}

/// A gRPC request by hand.
pub struct Raw {
    pub quic: quinn::Connection,
    pub send: h3::client::RequestStream<h3_quinn::SendStream<Bytes>, Bytes>,
    pub receive: h3::client::RequestStream<h3_quinn::RecvStream, Bytes>,
    _requests: h3::client::SendRequest<h3_quinn::OpenStreams, Bytes>,
}

impl Raw {
    pub async fn open(quic: quinn::Connection) -> Self {
        let connection = h3_quinn::Connection::new(quic.clone());
        let (mut driver, mut requests) = h3::client::new(connection).await.unwrap();
        tokio::spawn(async move { std::future::poll_fn(|cx| driver.poll_close(cx)).await });
        let request = http::Request::post("https://hyperion-control/agent.v1.AgentService/Stream")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let (send, receive) = requests.send_request(request).await.unwrap().split();
        Self {
            quic,
            send,
            receive,
            _requests: requests,
        }
    }

    /// One message in gRPC's framing.
    pub async fn message(&mut self, message: &StreamMessage) {
        let data = grpc_frame(&message.encode_to_vec());
        self.send.send_data(data).await.unwrap();
    }

    pub async fn bytes(&mut self, data: &[u8]) {
        // The peer may have ended already: that is what the tests look at.
        let _ = self.send.send_data(Bytes::copy_from_slice(data)).await;
    }

    /// The gRPC status that ends the stream: from the header or the trailer.
    pub async fn status(&mut self) -> (String, String) {
        let read = async {
            let head = self.receive.recv_response().await.ok()?;
            if head.headers().contains_key("grpc-status") {
                return Some(head.headers().clone());
            }
            while self.receive.recv_data().await.ok()?.is_some() {}
            self.receive.recv_trailers().await.ok()?
        };
        let headers = tokio::time::timeout(DEADLINE, read)
            .await
            .expect("no status in time")
            .unwrap_or_default();
        let text = |name: &str| {
            headers
                .get(name)
                .map_or_else(String::new, |v| v.to_str().unwrap().to_owned())
        };
        (text("grpc-status"), text("grpc-message"))
    }

    /// Waits until the gateway closes the connection; gives its words.
    pub async fn closed(&self) -> String {
        let closed = tokio::time::timeout(DEADLINE, self.quic.closed()).await;
        closed.expect("not closed in time").to_string()
    }
}

pub fn grpc_frame(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.extend_from_slice(&[0]);
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend_from_slice(message);
    frame.freeze()
}
