//! A control plane in this process, as far as an agent can see one, and a recording supervisor.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    reason = "shared by test programs that use parts of it"
)]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use hyperion_agent::supervisor::{Desired, LogError, LogQuery};
use hyperion_agent::workloads::Workloads;
use hyperion_link::identity::{fingerprint, site_uri, spiffe_uri};
use hyperion_link::server::{self, Peer};
use hyperion_link::{ControlTarget, tls, transport};
use hyperion_proto::agent_v1::agent_service_server::{AgentService, AgentServiceServer};
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{
    Container, EventAck, Hello, PodSpec, RegisterNodeRequest, RegisterNodeResponse, ReplicaKey,
    ReplicaReport, RestartPolicy, StartReplica, StreamMessage, Welcome,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

pub const TOKEN: &str = "abc.secret0";
pub const NODE: &str = "lab-1";

pub struct Control {
    pub addr: SocketAddr,
    pub fingerprint: String,
    pub state: Arc<State>,
    stop: CancellationToken,
}

pub struct State {
    issuer: Issuer<'static, KeyPair>,
    ca: CertificateDer<'static>,
    pub enrolments: Mutex<Vec<RegisterNodeRequest>>,
    pub hellos: Mutex<Vec<Hello>>,
    pub received: Mutex<Vec<Body>>,
    pub welcome: Mutex<Welcome>,
    pub ack_events: AtomicBool,
    /// Id of the next node that enrols.
    pub node: Mutex<String>,
    /// Enrolments that are answered with UNAVAILABLE first.
    pub unavailable: AtomicU32,
    outgoing: Mutex<Option<mpsc::Sender<Result<StreamMessage, Status>>>>,
    connection: Mutex<Option<quinn::Connection>>,
}

impl Control {
    pub fn start() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca = params.self_signed(&key).unwrap().der().clone();
        let issuer = Issuer::new(params, key);
        let server_key = KeyPair::generate().unwrap();
        let server = CertificateParams::new(vec![transport::SERVER_NAME.to_owned()])
            .unwrap()
            .signed_by(&server_key, &issuer)
            .unwrap();
        let tls = tls::server_config(
            vec![server.der().clone(), ca.clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(server_key.serialize_der())),
            ca.clone(),
            transport::config(None, transport::IDLE),
        )
        .unwrap();
        let endpoint = server::bind("127.0.0.1:0".parse().unwrap(), tls, b"test").unwrap();
        let addr = endpoint.local_addr().unwrap();
        let fingerprint = fingerprint(&ca);
        let state = Arc::new(State {
            issuer,
            ca,
            enrolments: Mutex::default(),
            hellos: Mutex::default(),
            received: Mutex::default(),
            welcome: Mutex::new(Welcome {
                replicas_complete: true,
                ..Welcome::default()
            }),
            ack_events: AtomicBool::new(true),
            node: Mutex::new(NODE.to_owned()),
            unavailable: AtomicU32::new(0),
            outgoing: Mutex::default(),
            connection: Mutex::default(),
        });
        let stop = CancellationToken::new();
        let service = AgentServiceServer::new(Endpoint(state.clone()));
        tokio::spawn(server::serve(endpoint, service, stop.clone()));
        Self {
            addr,
            fingerprint,
            state,
            stop,
        }
    }

    pub fn target(&self) -> ControlTarget {
        ControlTarget {
            addr: self.addr.to_string(),
            ca_fingerprint: self.fingerprint.clone(),
        }
    }

    pub fn set_welcome(&self, replicas: Vec<StartReplica>, complete: bool) {
        *self.state.welcome.lock().unwrap() = Welcome {
            replicas,
            replicas_complete: complete,
            wall_clock_unix_ms: 0,
            ..Default::default()
        };
    }

    pub async fn send(&self, body: Body) {
        self.send_message(StreamMessage { body: Some(body) }).await;
    }

    pub async fn send_message(&self, message: StreamMessage) {
        let outgoing = self.state.outgoing.lock().unwrap().clone().unwrap();
        outgoing.send(Ok(message)).await.unwrap();
    }

    /// Cuts the connection and waits until the agent is back.
    pub async fn cut(&self) {
        let before = self.hellos();
        if let Some(connection) = self.state.connection.lock().unwrap().take() {
            connection.close(0_u32.into(), b"cut");
        }
        until("the agent is back", || self.hellos() > before).await;
    }

    pub fn hellos(&self) -> usize {
        self.state.hellos.lock().unwrap().len()
    }

    pub fn last_hello(&self) -> Hello {
        self.state.hellos.lock().unwrap().last().unwrap().clone()
    }

    /// What came of one kind.
    pub fn received<T>(&self, pick: impl Fn(&Body) -> Option<T>) -> Vec<T> {
        self.state
            .received
            .lock()
            .unwrap()
            .iter()
            .filter_map(pick)
            .collect()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Endpoint(Arc<State>);

#[tonic::async_trait]
impl AgentService for Endpoint {
    async fn register_node(
        &self,
        request: Request<RegisterNodeRequest>,
    ) -> Result<Response<RegisterNodeResponse>, Status> {
        let state = &self.0;
        if state.unavailable.load(Ordering::SeqCst) > 0 {
            state.unavailable.fetch_sub(1, Ordering::SeqCst);
            return Err(Status::unavailable("not yet"));
        }
        let request = request.into_inner();
        if request.token != TOKEN {
            return Err(Status::permission_denied("join token is not known"));
        }
        let der = CertificateSigningRequestDer::from(request.csr_der.as_slice());
        let mut csr = CertificateSigningRequestParams::from_der(&der).unwrap();
        let node = state.node.lock().unwrap().clone();
        csr.params.subject_alt_names = [spiffe_uri("test", &node), site_uri("test", "lab")]
            .map(|uri| SanType::URI(uri.try_into().unwrap()))
            .into();
        let certificate = csr.signed_by(&state.issuer).unwrap();
        state.enrolments.lock().unwrap().push(request);
        Ok(Response::new(RegisterNodeResponse {
            node_id: node,
            certificate_chain_der: vec![certificate.der().to_vec(), state.ca.to_vec()],
            site: "lab".to_owned(),
        }))
    }

    type StreamStream = BoxStream<'static, Result<StreamMessage, Status>>;

    async fn stream(
        &self,
        request: Request<Streaming<StreamMessage>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let state = self.0.clone();
        let peer = request.extensions().get::<Peer>().unwrap().clone();
        assert!(peer.certificate.is_some(), "mutual TLS");
        let mut incoming = request.into_inner();
        let (outgoing, receiver) = mpsc::channel(64);
        tokio::spawn(async move {
            let Ok(Some(StreamMessage {
                body: Some(Body::Hello(hello)),
            })) = incoming.message().await
            else {
                return;
            };
            let welcome = state.welcome.lock().unwrap().clone();
            let welcome = StreamMessage {
                body: Some(Body::Welcome(welcome)),
            };
            let _ = outgoing.send(Ok(welcome)).await;
            *state.outgoing.lock().unwrap() = Some(outgoing.clone());
            *state.connection.lock().unwrap() = Some(peer.connection);
            state.hellos.lock().unwrap().push(hello);
            while let Ok(Some(message)) = incoming.message().await {
                let Some(body) = message.body else { continue };
                if let Body::Event(event) = &body
                    && state.ack_events.load(Ordering::SeqCst)
                {
                    let ack = Body::EventAck(EventAck { id: event.id });
                    let message = StreamMessage { body: Some(ack) };
                    let _ = outgoing.send(Ok(message)).await;
                }
                state.received.lock().unwrap().push(body);
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver).boxed()))
    }
}

/// Waits for a condition; ten seconds are an eternity for two tasks on one machine.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn key(workload: &str) -> ReplicaKey {
    ReplicaKey {
        namespace: "default".to_owned(),
        workload: workload.to_owned(),
        workload_uid: format!("uid-{workload}"),
        index: 0,
    }
}

pub fn order(workload: &str, generation: u64, command_id: u64) -> StartReplica {
    StartReplica {
        key: Some(key(workload)),
        generation,
        pod: Some(PodSpec {
            containers: vec![Container {
                name: "main".to_owned(),
                image: "demo:1".to_owned(),
                ..Container::default()
            }],
            restart_policy: RestartPolicy::OnFailure.into(),
            ..PodSpec::default()
        }),
        command_id,
        ..Default::default()
    }
}

/// Workload, generation, ended.
pub type Told = (String, u64, bool);

/// A supervisor that writes down what it is told.
#[derive(Clone, Default)]
pub struct Recording {
    pub calls: Arc<Mutex<Vec<Vec<Told>>>>,
    pub reports: Arc<Mutex<Vec<ReplicaReport>>>,
    pub log: Arc<Mutex<Vec<u8>>>,
}

impl Recording {
    pub fn calls(&self) -> Vec<Vec<Told>> {
        self.calls.lock().unwrap().clone()
    }

    pub fn last(&self) -> Option<Vec<Told>> {
        self.calls.lock().unwrap().last().cloned()
    }
}

impl Workloads for Recording {
    fn set_desired(&self, desired: Vec<Desired>) {
        let told = desired
            .iter()
            .map(|d| {
                let workload = d.start.key.workload.clone();
                (workload, d.start.generation, d.finished.is_some())
            })
            .collect();
        self.calls.lock().unwrap().push(told);
    }

    fn reports(&self) -> Vec<ReplicaReport> {
        self.reports.lock().unwrap().clone()
    }

    fn logs(&self, query: LogQuery) -> BoxStream<'static, Result<Bytes, LogError>> {
        if query.key.workload == "none" {
            return stream::iter([Err(LogError::UnknownReplica(query.key))]).boxed();
        }
        let data = Bytes::from(self.log.lock().unwrap().clone());
        let head = stream::iter([Ok(data)]);
        if query.follow {
            head.chain(stream::pending()).boxed()
        } else {
            head.boxed()
        }
    }
}
