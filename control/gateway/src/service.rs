//! The gRPC service. One task owns each session.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use hyperion_api::node::{HyperionNode, HyperionNodeStatus};
use hyperion_link::identity::CertificateFacts;
use hyperion_link::server::Peer;
use hyperion_proto::agent_v1::agent_service_server::AgentService;
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{
    EventAck, Hello, RegisterNodeRequest, RegisterNodeResponse, RenewedCertificate, StreamMessage,
};
use hyperion_proto::{convert, domain};
use kube::api::Api;
use rand::RngExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info, warn};

use crate::GatewayEvent;
use crate::facts;
use crate::metrics::Metrics;
use crate::nodes::{self, NodeWriter};
use crate::pki::{self, Authority};
use crate::state::{Admission, OUTGOING, Outgoing, State};
use crate::tokens;

/// Largest message that is taken from an agent, bytes.
pub const MAX_MESSAGE: usize = 1024 * 1024;
/// Time for hello after the stream was opened.
const HELLO: Duration = Duration::from_secs(10);
/// Another boot of a node that is silent this long has died: agents send telemetry every second by
/// default, and never less often than their own interval.
const SILENCE: Duration = Duration::from_secs(3);

/// What the service's tasks share.
pub struct Shared {
    /// CA.
    pub authority: Authority,
    /// Lifetime of node certificates.
    pub certificate_ttl: Duration,
    /// Kubernetes.
    pub client: kube::Client,
    /// In memory.
    pub state: State,
    /// To the operator.
    pub events: mpsc::Sender<GatewayEvent>,
    /// Counters.
    pub metrics: Metrics,
    /// Node status.
    pub nodes: NodeWriter,
    /// One enrolment at a time takes a use of a token: the compare-and-swap on its Secret would
    /// sort out a race, at the price of a retry each.
    pub token_use: tokio::sync::Mutex<()>,
}

/// The service.
pub struct AgentEndpoint {
    shared: Arc<Shared>,
}

impl AgentEndpoint {
    /// A service on shared state.
    #[must_use]
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    async fn first_enrolment(
        &self,
        request: &RegisterNodeRequest,
    ) -> Result<(String, String), Status> {
        let site = {
            let _turn = self.shared.token_use.lock().await;
            tokens::redeem(&self.shared.client, &request.token, &request.site).await
        };
        let site = site.map_err(|e| match e {
            tokens::TokenError::Malformed => Status::invalid_argument(e.to_string()),
            tokens::TokenError::Api(..) => Status::unavailable(e.to_string()),
            _ => Status::permission_denied(e.to_string()),
        })?;
        let node_id = format!("{site}-{:08x}", rand::rng().random::<u32>());
        let api: Api<HyperionNode> = Api::all(self.shared.client.clone());
        nodes::create(&api, &node_id, &site)
            .await
            .map_err(|e| Status::unavailable(format!("HyperionNode {node_id}: {e}")))?;
        Ok((node_id, site))
    }

    async fn re_enrolment(
        &self,
        request: &RegisterNodeRequest,
    ) -> Result<(String, String), Status> {
        let deny = |e: pki::PkiError| Status::permission_denied(e.to_string());
        let facts = self
            .shared
            .authority
            .verify_own(&request.expired_certificate_der)
            .map_err(deny)?;
        if facts.public_key != pki::request_key(&request.csr_der).map_err(deny)? {
            return Err(Status::permission_denied(
                "the request is not signed by the old key",
            ));
        }
        let node_id = facts
            .node_id
            .ok_or_else(|| Status::permission_denied("the old certificate names no node"))?;
        let api: Api<HyperionNode> = Api::all(self.shared.client.clone());
        let node = api.get_opt(&node_id).await;
        match node.map_err(|e| Status::unavailable(e.to_string()))? {
            Some(node) if !node.spec.revoked => Ok((node_id, node.spec.site)),
            Some(_) => Err(Status::permission_denied(format!(
                "node {node_id} is revoked"
            ))),
            None => Err(Status::permission_denied(format!(
                "node {node_id} is not known"
            ))),
        }
    }
}

#[tonic::async_trait]
impl AgentService for AgentEndpoint {
    async fn register_node(
        &self,
        request: Request<RegisterNodeRequest>,
    ) -> Result<Response<RegisterNodeResponse>, Status> {
        let request = request.into_inner();
        let refuse = |status: Status| {
            self.shared.metrics.refuse("enrolment");
            info!(hostname = %request.hostname, error = status.message(), "enrolment refused");
            status
        };
        convert::capabilities(request.capabilities.as_ref())
            .map_err(|e| refuse(Status::invalid_argument(e.to_string())))?;
        pki::request_key(&request.csr_der)
            .map_err(|e| refuse(Status::invalid_argument(e.to_string())))?;
        let (node_id, site) = if request.expired_certificate_der.is_empty() {
            self.first_enrolment(&request).await.map_err(refuse)?
        } else {
            self.re_enrolment(&request).await.map_err(refuse)?
        };
        let chain = self
            .shared
            .authority
            .sign_node(&request.csr_der, &node_id, self.shared.certificate_ttl)
            .map_err(|e| refuse(Status::invalid_argument(e.to_string())))?;
        self.shared.metrics.enrolled.inc();
        info!(node = %node_id, %site, hostname = %request.hostname, "enrolled");
        Ok(Response::new(RegisterNodeResponse {
            node_id,
            certificate_chain_der: chain,
            site,
        }))
    }

    type StreamStream = BoxStream<'static, Result<StreamMessage, Status>>;

    async fn stream(
        &self,
        request: Request<Streaming<StreamMessage>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let peer = request
            .extensions()
            .get::<Peer>()
            .cloned()
            .ok_or_else(|| Status::internal("no peer information"))?;
        let node = self.authenticate(&peer)?;
        let (outgoing, receiver) = mpsc::channel(OUTGOING);
        let session = Session {
            shared: self.shared.clone(),
            node,
            peer,
            outgoing,
        };
        tokio::spawn(session.run(request.into_inner()));
        Ok(Response::new(
            ReceiverStream::new(receiver)
                .map(|message| *message)
                .boxed(),
        ))
    }
}

impl AgentEndpoint {
    fn authenticate(&self, peer: &Peer) -> Result<String, Status> {
        let certificate = peer.certificate.as_deref().ok_or_else(|| {
            Status::unauthenticated("a node certificate is needed; enrol with a join token first")
        })?;
        let facts = CertificateFacts::parse(certificate)
            .map_err(|e| Status::unauthenticated(e.to_string()))?;
        if facts.fleet.as_deref() != Some(self.shared.authority.fleet()) {
            return Err(Status::unauthenticated(
                "the certificate is of another fleet",
            ));
        }
        let node = facts
            .node_id
            .ok_or_else(|| Status::unauthenticated("the certificate names no node"))?;
        if self.shared.state.is_revoked(&node) {
            return Err(Status::permission_denied(format!("node {node} is revoked")));
        }
        Ok(node)
    }
}

struct Session {
    shared: Arc<Shared>,
    node: String,
    peer: Peer,
    outgoing: Outgoing,
}

impl Session {
    async fn run(self, mut incoming: Streaming<StreamMessage>) {
        let (id, status) = match Box::pin(self.open(&mut incoming)).await {
            Ok(opened) => opened,
            Err(status) => {
                info!(node = %self.node, peer = %self.peer.address, error = status.message(), "stream refused");
                self.shared.metrics.refuse("hello");
                let _ = self.outgoing.send(Box::new(Err(status))).await;
                return;
            }
        };
        self.shared.metrics.sessions.inc();
        let reason = self.messages(&mut incoming, id).await;
        self.shared.metrics.sessions.dec();
        if self.shared.state.close(&self.node, id) {
            debug!(node = %self.node, %reason, "stream ended");
            let mut status = status;
            nodes::set_ready(&mut status, false, "AgentUnreachable", &reason);
            self.shared.nodes.write(&self.node, *status);
            self.tell(GatewayEvent::NodeDown {
                node: self.node.clone(),
                reason,
            })
            .await;
        }
    }

    /// Hello, admission, welcome.
    async fn open(
        &self,
        incoming: &mut Streaming<StreamMessage>,
    ) -> Result<(u64, Box<HyperionNodeStatus>), Status> {
        let first = tokio::time::timeout(HELLO, incoming.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello"))??;
        let Some(StreamMessage {
            body: Some(Body::Hello(hello)),
        }) = first
        else {
            return Err(Status::invalid_argument("the first message is not hello"));
        };
        if hello.node_id != self.node {
            let text = format!(
                "hello.node_id {:?} is not the certificate's {:?}",
                hello.node_id, self.node
            );
            return Err(Status::permission_denied(text));
        }
        if hello.boot_id.is_empty() || hello.boot_id.len() > 64 {
            return Err(Status::invalid_argument("hello.boot_id: empty or too long"));
        }
        let capabilities = convert::capabilities(hello.capabilities.as_ref())
            .map_err(|e| Status::invalid_argument(format!("hello.{e}")))?;
        let mut reports = Vec::with_capacity(hello.replicas.len());
        for report in &hello.replicas {
            reports.push(
                convert::report(report)
                    .map_err(|e| Status::invalid_argument(format!("hello.replicas: {e}")))?,
            );
        }
        let (mut status, problems) = facts::describe(&capabilities);
        for problem in problems {
            warn!(node = %self.node, %problem, "node label");
        }
        status.boot_id.clone_from(&hello.boot_id);
        status.agent_version.clone_from(&hello.agent_version);
        status.hostname = capabilities
            .labels
            .get("kubernetes.io/hostname")
            .cloned()
            .unwrap_or_default();
        let id = self.admit(&hello, capabilities.memory_bytes).await?;
        nodes::set_ready(&mut status, true, "AgentConnected", "");
        self.shared.nodes.write(&self.node, status.clone());
        let (node, boot_id) = (self.node.clone(), hello.boot_id);
        self.tell(GatewayEvent::NodeUp {
            node,
            boot_id,
            capabilities,
        })
        .await;
        for report in reports {
            self.tell(GatewayEvent::Report {
                node: self.node.clone(),
                report,
            })
            .await;
        }
        Ok((id, Box::new(status)))
    }

    /// Two devices with one identity (a cloned disk) must not take turns. A second boot of a node
    /// waits until the first has been silent for [`SILENCE`]; if it is not, the newcomer is
    /// refused. A crashed agent that is back at once pays that wait.
    async fn admit(&self, hello: &Hello, memory: u64) -> Result<u64, Status> {
        let silence =
            SILENCE.max(Duration::from_millis(u64::from(hello.telemetry_interval_ms)) * 3);
        let silence = silence.min(Duration::from_secs(30));
        let deadline = tokio::time::Instant::now() + silence + Duration::from_secs(1);
        loop {
            let admission = self.shared.state.open(
                &self.node,
                &hello.boot_id,
                memory,
                self.outgoing.clone(),
                self.peer.connection.clone(),
                silence,
            );
            match admission {
                Admission::Open(id, welcome) => {
                    let welcome = StreamMessage {
                        body: Some(Body::Welcome(*welcome)),
                    };
                    let sent = self.outgoing.send(Box::new(Ok(welcome))).await;
                    return sent
                        .map(|()| id)
                        .map_err(|_| Status::cancelled("agent left"));
                }
                Admission::Contested(heard) if tokio::time::Instant::now() >= deadline => {
                    warn!(node = %self.node, peer = %self.peer.address, ?heard, "DuplicateIdentity");
                    return Err(Status::already_exists(format!(
                        "node id {} is in use by another device, heard {} ms ago; enrol this one with a token of its own",
                        self.node,
                        heard.as_millis()
                    )));
                }
                Admission::Contested(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }

    /// Takes messages until the stream ends; gives the reason.
    async fn messages(&self, incoming: &mut Streaming<StreamMessage>, id: u64) -> String {
        loop {
            match incoming.message().await {
                Ok(Some(message)) => {
                    self.shared.state.heard(&self.node, id);
                    // Unknown bodies come from newer agents: ignored.
                    if let Some(body) = message.body
                        && let Err(refused) = Box::pin(self.message(body)).await
                    {
                        debug!(node = %self.node, error = %refused, "message refused");
                    }
                }
                Ok(None) => return "the agent ended the stream".to_owned(),
                Err(status) => return status.message().to_owned(),
            }
        }
    }

    async fn message(&self, body: Body) -> Result<(), convert::Invalid> {
        let refuse = |what: &'static str| {
            move |e: convert::Invalid| {
                self.shared.metrics.refuse(what);
                e
            }
        };
        match body {
            Body::Telemetry(t) => {
                let t: domain::Telemetry = convert::telemetry(&t).map_err(refuse("telemetry"))?;
                self.shared.metrics.telemetry_received.inc();
                self.shared.state.telemetry(&self.node, t);
            }
            Body::ReplicaReport(r) => {
                let report = convert::report(&r).map_err(refuse("replica_report"))?;
                self.tell(GatewayEvent::Report {
                    node: self.node.clone(),
                    report,
                })
                .await;
            }
            Body::Event(event) => {
                let ack = Body::EventAck(EventAck { id: event.id });
                self.tell(GatewayEvent::Event {
                    node: self.node.clone(),
                    event,
                })
                .await;
                self.shared.state.send(&self.node, ack);
            }
            Body::RenewCertificate(renew) => {
                let answer = Body::RenewedCertificate(self.renew(&renew.csr_der));
                self.shared.state.send(&self.node, answer);
            }
            Body::LogChunk(chunk) => {
                if let Some(sink) = self.shared.state.log_sink(chunk.request_id) {
                    // A reader that went away: its guard cancels the request at the node.
                    let _ = sink.send(chunk).await;
                }
            }
            Body::CommandResult(result) if !result.ok => {
                warn!(node = %self.node, error = %result.error, "command refused");
            }
            _ => {}
        }
        Ok(())
    }

    fn renew(&self, csr_der: &[u8]) -> RenewedCertificate {
        let refused = |error: String| RenewedCertificate {
            error,
            ..Default::default()
        };
        let held = self
            .peer
            .certificate
            .as_deref()
            .map(CertificateFacts::parse);
        let same_key = match (held, pki::request_key(csr_der)) {
            (Some(Ok(facts)), Ok(key)) => facts.public_key == key,
            _ => false,
        };
        if !same_key || self.shared.state.is_revoked(&self.node) {
            return refused("the request is not signed by this node's key".to_owned());
        }
        match self
            .shared
            .authority
            .sign_node(csr_der, &self.node, self.shared.certificate_ttl)
        {
            Ok(certificate_chain_der) => RenewedCertificate {
                certificate_chain_der,
                error: String::new(),
            },
            Err(e) => refused(e.to_string()),
        }
    }

    async fn tell(&self, event: GatewayEvent) {
        // A closed channel means that the operator stops.
        let _ = self.shared.events.send(event).await;
    }
}
