use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures::StreamExt;
use futures::stream::BoxStream;
use hyperion_link::identity::fingerprint;
use hyperion_link::{ControlTarget, Link, LinkConfig, LinkEvent, server, tls, transport};
use hyperion_proto::agent_v1::agent_service_server::{AgentService, AgentServiceServer};
use hyperion_proto::agent_v1::stream_message::Body as Message;
use hyperion_proto::agent_v1::{
    Hello, RegisterNodeRequest, RegisterNodeResponse, StreamMessage, Telemetry, Welcome,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::UdpSocket;
use tonic::{Request, Response, Status, Streaming};

use super::*;
use crate::peers::PeerError;

/// The control plane's end of links: says welcome and notes what comes.
#[derive(Clone, Default)]
struct Control {
    hellos: Arc<AtomicUsize>,
    came: Arc<Mutex<Vec<f32>>>,
}

#[tonic::async_trait]
impl AgentService for Control {
    async fn register_node(
        &self,
        _request: Request<RegisterNodeRequest>,
    ) -> Result<Response<RegisterNodeResponse>, Status> {
        Err(Status::permission_denied("not here"))
    }

    type StreamStream = BoxStream<'static, Result<StreamMessage, Status>>;

    async fn stream(
        &self,
        request: Request<Streaming<StreamMessage>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let control = self.clone();
        let answers = request.into_inner().filter_map(move |message| {
            let answer = match message.ok().and_then(|m| m.body) {
                Some(Message::Hello(_)) => {
                    control.hellos.fetch_add(1, Ordering::SeqCst);
                    let body = Some(Message::Welcome(Welcome::default()));
                    Some(Ok(StreamMessage { body }))
                }
                Some(Message::Telemetry(telemetry)) => {
                    let mut came = control.came.lock().unwrap();
                    came.push(telemetry.cpu_utilization_percent);
                    None
                }
                _ => None,
            };
            std::future::ready(answer)
        });
        Ok(Response::new(answers.boxed()))
    }
}

impl Control {
    fn start(&self, fleet: &Fleet, stop: &CancellationToken) -> SocketAddr {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![transport::SERVER_NAME.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &fleet.issuer).unwrap();
        let ca = CertificateDer::from(fleet.ca.clone());
        let config = tls::server_config(
            vec![certificate.der().clone(), ca.clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            ca,
            transport::of_gateway(),
        )
        .unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        let endpoint = server::bind(any, config, b"secret").unwrap();
        let addr = endpoint.local_addr().unwrap();
        let service = AgentServiceServer::new(self.clone());
        tokio::spawn(server::serve(endpoint, service, stop.clone()));
        addr
    }
}

/// The direct way, which can be shut.
async fn way(to: SocketAddr, open: Arc<AtomicBool>) -> SocketAddr {
    let near = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let far = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    far.connect(to).await.unwrap();
    let addr = near.local_addr().unwrap();
    tokio::spawn(async move {
        let mut client = None;
        let (mut up, mut down) = ([0; 2000], [0; 2000]);
        loop {
            tokio::select! {
                Ok((n, from)) = near.recv_from(&mut up) => {
                    client = Some(from);
                    if open.load(Ordering::SeqCst) {
                        let _ = far.send(&up[..n]).await;
                    }
                }
                Ok(n) = far.recv(&mut down) => {
                    if let (true, Some(client)) = (open.load(Ordering::SeqCst), client) {
                        let _ = near.send_to(&down[..n], client).await;
                    }
                }
            }
        }
    });
    addr
}

async fn connected(link: &mut Link) {
    let next = async {
        loop {
            match link.next_event().await.unwrap() {
                LinkEvent::Connected(_) => return,
                LinkEvent::Disconnected { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    };
    tokio::time::timeout(DEADLINE, next).await.expect("no link");
}

async fn disconnected(link: &mut Link) -> String {
    let event = tokio::time::timeout(DEADLINE, link.next_event()).await;
    match event.expect("the link stays").unwrap() {
        LinkEvent::Disconnected { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

fn telemetry(cpu: f32) -> StreamMessage {
    let telemetry = Telemetry {
        cpu_utilization_percent: cpu,
        ..Default::default()
    };
    StreamMessage {
        body: Some(Message::Telemetry(telemetry)),
    }
}

#[tokio::test]
async fn a_node_whose_way_is_shut_reaches_the_control_plane_through_a_peer() {
    let fleet = Fleet::new("f");
    let (control, stop) = (Control::default(), CancellationToken::new());
    let server = control.start(&fleet, &stop);
    let open = Arc::new(AtomicBool::new(false));
    let b = Node::with(PeersConfig {
        control: server.to_string(),
        ..config(fleet.identity("b", "lab"))
    });
    let identity = fleet.identity("a", "lab");
    let a = Node::start(identity.clone());
    a.knows(&b);
    let mut settings = LinkConfig::new(ControlTarget {
        addr: way(server, open.clone()).await.to_string(),
        ca_fingerprint: fingerprint(&fleet.ca),
    });
    settings.direct_again = Duration::from_millis(100);
    settings.backoff_max = Duration::from_millis(500);
    let hello = Arc::new(|| Hello {
        node_id: "a".to_owned(),
        ..Hello::default()
    });
    let mut link = hyperion_link::start(settings, identity, hello);

    // Through the peer, while the direct way is tried and says nothing.
    let relay = a.peers.relay("b").await.unwrap();
    link.set_via(Some(relay.address()));
    connected(&mut link).await;
    assert!(link.sender().relayed());
    for cpu in 0..50_u8 {
        link.sender().try_send(telemetry(f32::from(cpu))).unwrap();
    }
    let came = control.came.clone();
    eventually("all has come", || came.lock().unwrap().len() == 50).await;
    assert!(b.peers.stats().relayed > 5);

    // The connection of the peers ends: the next one carries on, and the link notices nothing.
    for quic in [&a, &b].map(|node| {
        let state = node.peers.shared.lock();
        let all: Vec<_> = state
            .peers
            .values()
            .flat_map(crate::peers::state::Peer::connections)
            .collect();
        all[0].clone()
    }) {
        quic.close(0_u32.into(), b"test");
    }
    link.sender().try_send(telemetry(99.0)).unwrap();
    eventually("it goes on", || came.lock().unwrap().contains(&99.0)).await;
    assert_eq!(control.hellos.load(Ordering::SeqCst), 1);

    // The direct way opens, and is taken.
    open.store(true, Ordering::SeqCst);
    assert!(disconnected(&mut link).await.contains("direct way"));
    connected(&mut link).await;
    assert!(!link.sender().relayed());
    link.sender().try_send(telemetry(101.0)).unwrap();
    eventually("directly", || came.lock().unwrap().contains(&101.0)).await;
    link.close().await;
    stop.cancel();
}

#[tokio::test]
async fn a_way_through_a_peer_that_is_taken_back_ends_the_link() {
    let fleet = Fleet::new("f");
    let (control, stop) = (Control::default(), CancellationToken::new());
    let server = control.start(&fleet, &stop);
    let b = Node::with(PeersConfig {
        control: server.to_string(),
        ..config(fleet.identity("b", "lab"))
    });
    let identity = fleet.identity("a", "lab");
    let a = Node::start(identity.clone());
    a.knows(&b);
    let mut settings = LinkConfig::new(ControlTarget {
        // Nobody is there, and the host says so.
        addr: "127.0.0.1:9".to_owned(),
        ca_fingerprint: fingerprint(&fleet.ca),
    });
    settings.backoff_max = Duration::from_millis(500);
    let mut link = hyperion_link::start(settings, identity, Arc::new(Hello::default));
    let relay = a.peers.relay("b").await.unwrap();
    link.set_via(Some(relay.address()));
    connected(&mut link).await;
    link.set_via(None);
    assert!(disconnected(&mut link).await.contains("through the peer"));
    assert!(!link.sender().relayed());
    link.close().await;

    // The peer goes: who holds the relay is told when it is used next.
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    drop(b);
    eventually("it is gone", || a.peers.stats().connections == 0).await;
    let told = async {
        loop {
            let _ = socket.send_to(b"packet", relay.address()).await;
            let ended = tokio::time::timeout(Duration::from_millis(50), relay.ended());
            if ended.await.is_ok() {
                return;
            }
        }
    };
    tokio::time::timeout(DEADLINE, told)
        .await
        .expect("not told");
    stop.cancel();
}

#[tokio::test]
async fn a_relay_needs_a_peer_and_has_limits() {
    let fleet = Fleet::new("f");
    let sink = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let b = Node::with(PeersConfig {
        control: sink.local_addr().unwrap().to_string(),
        ..config(fleet.identity("b", "lab"))
    });
    let a = Node::start(fleet.identity("a", "lab"));
    let nobody = a.peers.relay("b").await.unwrap_err();
    assert!(matches!(nobody, PeerError::Unreachable(_)), "{nobody}");
    a.knows(&b);
    let relay = a.peers.relay("b").await.unwrap();
    // A flood of local senders, and packets that are too long: some get through, nothing breaks.
    let mut sockets = Vec::new();
    for _ in 0..20 {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let _ = socket.send_to(&[1; 3000], relay.address()).await;
        let _ = socket.send_to(&[2; 1500], relay.address()).await;
        sockets.push(socket);
    }
    let mut buffer = [0; 4000];
    for _ in 0..4 {
        let received = tokio::time::timeout(DEADLINE, sink.recv_from(&mut buffer)).await;
        let (length, from) = received.unwrap().unwrap();
        assert_eq!((length, buffer[0]), (1500, 2));
        sink.send_to(b"answer", from).await.unwrap();
    }
    let mut answered = 0;
    for socket in &sockets {
        let wait = Duration::from_millis(if answered < 4 { 500 } else { 1 });
        if tokio::time::timeout(wait, socket.recv(&mut buffer))
            .await
            .is_ok()
        {
            answered += 1;
        }
    }
    assert_eq!(answered, 4);
}
