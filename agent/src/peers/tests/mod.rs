//! Peers on real QUIC over loopback.

mod bad;
mod change;
mod relay;
mod talk;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyperion_link::Identity;
use hyperion_link::identity::{new_key, site_uri, spiffe_uri};
use hyperion_link::peer::{PeerTls, SERVER_NAME, configs};
use hyperion_proto::peer_v1::frame::Body;
use hyperion_proto::peer_v1::{Frame, Summary};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::endpoint::start_with;
use super::{PeerEvent, PeersConfig, PeersHandle, PolicyFile, start};

/// Longest wait for anything.
const DEADLINE: Duration = Duration::from_secs(20);

/// A CA.
struct Fleet {
    name: &'static str,
    ca: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

/// Years of validity; all of them are over, or have not begun, on some clock.
type Years = (i32, i32);
const NOW: Years = (2020, 2090);

impl Fleet {
    fn new(name: &'static str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_before = date_time_ymd(1975, 1, 1);
        params.not_after = date_time_ymd(2099, 1, 1);
        let ca = params.self_signed(&key).unwrap();
        Self {
            name,
            ca: ca.der().to_vec(),
            issuer: Issuer::new(params, key),
        }
    }

    fn identity(&self, node: &str, site: &str) -> Identity {
        self.identity_of(node, site, NOW, &new_key().unwrap())
    }

    /// As the gateway makes it; without a site where that is empty.
    fn identity_of(&self, node: &str, site: &str, years: Years, key_der: &[u8]) -> Identity {
        let key = KeyPair::try_from(key_der).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, node);
        let mut uris = vec![spiffe_uri(self.name, node)];
        if !site.is_empty() {
            uris.push(site_uri(self.name, site));
        }
        params.subject_alt_names = uris
            .into_iter()
            .map(|uri| SanType::URI(uri.try_into().unwrap()))
            .collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = date_time_ymd(years.0, 1, 1);
        params.not_after = date_time_ymd(years.1, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity {
            node_id: node.to_owned(),
            site: site.to_owned(),
            key_der: key_der.to_vec(),
            chain_der: vec![certificate.der().to_vec(), self.ca.clone()],
        }
    }
}

/// A node among its peers.
struct Node {
    id: String,
    peers: PeersHandle,
    events: mpsc::Receiver<PeerEvent>,
    stop: CancellationToken,
}

fn config(identity: Identity) -> PeersConfig {
    PeersConfig {
        identity,
        listen: "127.0.0.1:0".parse().unwrap(),
        static_peers: Vec::new(),
        mdns: false,
        revoked: Vec::new(),
        control: "127.0.0.1:9".to_owned(),
        images: None,
        policies: Arc::new(|_| None::<PolicyFile>),
    }
}

impl Node {
    fn start(identity: Identity) -> Self {
        Self::with(config(identity))
    }

    fn with(config: PeersConfig) -> Self {
        Self::idle_after(config, Duration::from_secs(600))
    }

    /// One whose connections end after so long without packets.
    fn idle_after(config: PeersConfig, idle: Duration) -> Self {
        let id = config.identity.node_id.clone();
        let stop = CancellationToken::new();
        let (peers, events) = start_with(config, stop.clone(), idle).unwrap();
        Self {
            id,
            peers,
            events,
            stop,
        }
    }

    fn addr(&self) -> SocketAddr {
        self.peers.local_addr().unwrap()
    }

    fn knows(&self, other: &Self) {
        self.knows_at(&other.id, other.addr());
    }

    fn knows_at(&self, id: &str, addr: SocketAddr) {
        self.peers.set_addresses(id, vec![addr.to_string()]);
    }

    /// The first event that is wanted; others before it are dropped.
    async fn until<T>(&mut self, mut wanted: impl FnMut(PeerEvent) -> Option<T>) -> T {
        let next = async {
            loop {
                let event = self.events.recv().await.unwrap();
                if let Some(found) = wanted(event) {
                    return found;
                }
            }
        };
        tokio::time::timeout(DEADLINE, next)
            .await
            .expect("what is waited for does not happen")
    }

    /// Next datagram: sender and text.
    async fn datagram(&mut self) -> (String, String) {
        self.until(|event| match event {
            PeerEvent::Datagram { from, bytes } => {
                Some((from, String::from_utf8_lossy(&bytes).into_owned()))
            }
            _ => None,
        })
        .await
    }

    /// Next frame: sender and number.
    async fn frame(&mut self) -> (String, u64) {
        self.until(|event| match event {
            PeerEvent::Frame { from, frame } => match frame.body {
                Some(Body::Summary(summary)) => Some((from, summary.buckets[0])),
                other => panic!("{other:?}"),
            },
            _ => None,
        })
        .await
    }

    /// Next refusal: of whom and why.
    async fn refusal(&mut self) -> (String, String) {
        self.until(|event| match event {
            PeerEvent::Refused { peer, why } => Some((peer, why)),
            _ => None,
        })
        .await
    }

    async fn found(&mut self) -> String {
        self.until(|event| match event {
            PeerEvent::Found { node, .. } => Some(node),
            _ => None,
        })
        .await
    }

    fn say(&self, to: &Self, text: &str) {
        self.peers
            .datagram(&to.id, Bytes::copy_from_slice(text.as_bytes()));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn frame(number: u64) -> Frame {
    padded_frame(number, 0)
}

/// A frame of about this many bytes.
fn padded_frame(number: u64, bytes: usize) -> Frame {
    let mut buckets = vec![number];
    buckets.resize(1 + bytes / 8, 0);
    Frame {
        body: Some(Body::Summary(Summary { buckets })),
    }
}

/// Sends text again and again until it comes: for ways that have to be found anew.
async fn until_heard(from: &Node, to: &mut Node, text: &str) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    let mut again = tokio::time::interval(Duration::from_millis(100));
    loop {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{text} is not heard"
        );
        tokio::select! {
            _ = again.tick() => from.say(to, text),
            event = to.events.recv() => {
                if let Some(PeerEvent::Datagram { bytes, .. }) = event
                    && bytes == text.as_bytes()
                {
                    return;
                }
            }
        }
    }
}

async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A peer without manners: a bare QUIC connection with the identity's certificate.
async fn raw(identity: &Identity, to: SocketAddr) -> (quinn::Endpoint, quinn::Connection) {
    let transport = Arc::new(quinn::TransportConfig::default());
    let PeerTls { server, client } = configs(identity, transport).unwrap();
    let endpoint = quinn::Endpoint::server(server, "127.0.0.1:0".parse().unwrap()).unwrap();
    let connection = endpoint
        .connect_with(client, to, SERVER_NAME)
        .unwrap()
        .await
        .unwrap();
    (endpoint, connection)
}

/// Words with which the other end closed a connection.
async fn closed(connection: &quinn::Connection) -> String {
    let closed = tokio::time::timeout(DEADLINE, connection.closed()).await;
    closed.expect("not closed").to_string()
}
