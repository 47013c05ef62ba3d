//! The gRPC service. One task owns each session.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::channel::mpsc as queue;
use futures::stream::BoxStream;
use futures::{SinkExt, StreamExt};
use hyperion_api::node::{HyperionNode, HyperionNodeSpec, HyperionNodeStatus};
use hyperion_link::identity::CertificateFacts;
use hyperion_link::server::Peer;
use hyperion_link::{tls, transport};
use hyperion_proto::agent_v1::agent_service_server::AgentService;
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{
    self, EventAck, Hello, Interruptions, RegisterNodeRequest, RegisterNodeResponse,
    RenewedCertificate, ReplicaRecord, StreamMessage, TelemetryAck,
};
use hyperion_proto::{convert, domain};
use kube::api::Api;
use rand::RngExt;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info, warn};

use crate::GatewayEvent;
use crate::away;
use crate::facts;
use crate::history::Histories;
use crate::measuring::{self, Proof, Said};
use crate::metrics::Metrics;
use crate::nodes::{self, NodeWriter};
use crate::notices;
use crate::pki::{self, Authority};
use crate::sites;
use crate::state::{Admission, Decision, NewSession, OUTGOING, Outgoing, Standing, State};
use crate::tokens;
use crate::updates;

/// Time for hello after the stream was opened.
const HELLO: Duration = Duration::from_secs(10);
/// Another boot of a node that is silent this long has died: agents send telemetry every second by
/// default, and never less often than their own interval.
const SILENCE: Duration = Duration::from_secs(3);
/// The same for agents with long intervals: at most this.
const MAX_SILENCE: Duration = Duration::from_secs(30);
/// A node that is silent for this many of its telemetry intervals is out of reach. QUIC's own idle
/// timeout is sized for NATs and agents with long intervals, and would notice much later.
const LOST_INTERVALS: u32 = 5;
/// The same at least: ten thousand agents that reconnect at once may be late with a message.
const LOST: Duration = Duration::from_secs(10);
/// The same at most: five of the longest interval that an agent can be given.
const MAX_LOST: Duration = Duration::from_secs(300);
/// Time for the first list of all nodes after a start.
const LISTED: Duration = Duration::from_secs(10);
/// How long a renewal waits for the node's object; the session hears nothing else meanwhile.
const SITE_WITHIN: Duration = Duration::from_secs(2);
/// Longest text of a stranger that goes to a log, characters.
const SHOWN: usize = 64;
/// Longest reason that goes to a node's status, characters.
const PROBLEM: usize = 512;

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
    /// What nodes measured while they were out of reach.
    pub histories: Mutex<Histories>,
    /// One enrolment at a time takes a use of a token: the compare-and-swap on its Secret would
    /// sort out a race, at the price of a retry each.
    pub token_use: tokio::sync::Mutex<()>,
    /// What agents on clusters' nodes show, for their clusters to look at.
    pub proofs: mpsc::Sender<Proof>,
}

impl Shared {
    /// A node's object is gone: the node is cut off and nothing is kept of it.
    pub fn forget(&self, node: &str) {
        self.state.forget_node(node);
        let mut histories = self
            .histories
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        histories.forget(node);
    }
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
        match self.new_node(&site).await {
            Ok(node_id) => Ok((node_id, site)),
            Err(e) => {
                // The device will come again with the same token.
                tokens::give_back(&self.shared.client, &request.token).await;
                Err(Status::unavailable(format!("HyperionNode: {e}")))
            }
        }
    }

    /// Makes a node with an id that nobody has.
    async fn new_node(&self, site: &str) -> Result<String, kube::Error> {
        let api: Api<HyperionNode> = Api::all(self.shared.client.clone());
        loop {
            let node_id = format!("{site}-{:08x}", rand::rng().random::<u32>());
            if nodes::create(&api, &node_id, site).await? {
                let spec = HyperionNodeSpec {
                    site: site.to_owned(),
                    ..HyperionNodeSpec::default()
                };
                let member = nodes::member(&spec, None);
                self.shared.state.set_node(&node_id, site, member);
                return Ok(node_id);
            }
        }
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
            Some(node) if node.spec.cluster.is_some() => Err(Status::permission_denied(format!(
                "node {node_id} is of a cluster: its agent enrols by the cluster's word"
            ))),
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
            info!(
                hostname = shown(&request.hostname),
                error = status.message(),
                "enrolment refused"
            );
            status
        };
        convert::capabilities(request.capabilities.as_ref())
            .map_err(|e| refuse(Status::invalid_argument(e.to_string())))?;
        pki::request_key(&request.csr_der)
            .map_err(|e| refuse(Status::invalid_argument(e.to_string())))?;
        let (node_id, site) = if !request.cluster.is_empty() {
            let enrolled = measuring::enrol(&self.shared, &request).await;
            (enrolled.map_err(refuse)?, String::new())
        } else if request.expired_certificate_der.is_empty() {
            self.first_enrolment(&request).await.map_err(refuse)?
        } else {
            self.re_enrolment(&request).await.map_err(refuse)?
        };
        let chain = self
            .shared
            .authority
            .sign_node(
                &request.csr_der,
                &node_id,
                &site,
                self.shared.certificate_ttl,
            )
            .map_err(|e| refuse(Status::invalid_argument(e.to_string())))?;
        self.shared.metrics.enrolled.inc();
        info!(node = %node_id, %site, hostname = shown(&request.hostname), "enrolled");
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
        let (node, expires) = self.authenticate(&peer).await.inspect_err(|status| {
            self.shared.metrics.refuse("stream");
            info!(peer = %peer.address, error = status.message(), "stream refused");
        })?;
        let (outgoing, receiver) = queue::channel(OUTGOING);
        let session = Box::new(Session {
            shared: self.shared.clone(),
            measures: self.shared.state.in_cluster(&node),
            node,
            peer,
            outgoing,
            expires: AtomicU64::new(expires),
        });
        tokio::spawn(session.run(Box::new(request.into_inner())));
        Ok(Response::new(receiver.map(|message| *message).boxed()))
    }
}

impl AgentEndpoint {
    /// Node id of the peer's certificate, and when it runs out.
    async fn authenticate(&self, peer: &Peer) -> Result<(String, u64), Status> {
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
        match self.standing(&node).await? {
            Standing::Known => Ok((node, facts.not_after)),
            Standing::Revoked => Err(Status::permission_denied(format!("node {node} is revoked"))),
            Standing::Unknown => Err(Status::permission_denied(format!(
                "node {node} is not known; enrol it with a join token"
            ))),
        }
    }

    /// What is known of a node. One that enrolled through another replica of the control plane a
    /// moment ago may not have come with the watch yet: then its object is asked for.
    async fn standing(&self, node: &str) -> Result<Standing, Status> {
        let state = &self.shared.state;
        if state.standing(node) != Standing::Unknown {
            return Ok(state.standing(node));
        }
        state.listed(LISTED).await;
        if state.standing(node) != Standing::Unknown {
            return Ok(state.standing(node));
        }
        let api: Api<HyperionNode> = Api::all(self.shared.client.clone());
        let object = api.get_opt(node).await;
        if let Some(object) =
            object.map_err(|e| Status::unavailable(format!("HyperionNode {node}: {e}")))?
        {
            nodes::note(state, node, &object.spec, object.status.as_ref());
        }
        Ok(state.standing(node))
    }
}

/// What a stranger says, fit for a log line.
fn shown(text: &str) -> String {
    printable(text, SHOWN)
}

/// Without what no screen should show, and not longer than that.
pub(crate) fn printable(text: &str, most: usize) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(most)
        .collect()
}

struct Session {
    shared: Arc<Shared>,
    node: String,
    /// The agent only measures: see [`measuring`].
    measures: bool,
    peer: Peer,
    outgoing: Outgoing,
    /// When the peer's newest certificate runs out, seconds since the epoch.
    expires: AtomicU64,
}

/// Takes a session out of the state however its task ends.
struct OpenSession {
    shared: Arc<Shared>,
    node: String,
    id: u64,
    /// Silence after which the node is out of reach.
    lost: Duration,
    /// The agent only measures: whether its node is in reach is not its word.
    measures: bool,
}

impl OpenSession {
    /// Ends the session and tells the operator, unless a newer one of the node is open.
    async fn close(self, reason: &str, silent_for: Duration) -> bool {
        if self.measures {
            return self.shared.state.close(&self.node, self.id, || {});
        }
        let event = GatewayEvent::NodeDown {
            node: self.node.clone(),
            reason: reason.to_owned(),
            silent_for,
        };
        match self.shared.events.reserve().await {
            Ok(room) => self
                .shared
                .state
                .close(&self.node, self.id, || room.send(event)),
            // The operator stops.
            Err(_) => self.shared.state.close(&self.node, self.id, || {}),
        }
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        self.shared.metrics.sessions.dec();
        // Only where the task was dropped or panicked: there is nobody left to wait for room.
        self.shared.state.close(&self.node, self.id, || {
            if self.measures {
                return;
            }
            let _ = self.shared.events.try_send(GatewayEvent::NodeDown {
                node: self.node.clone(),
                reason: "the session broke".to_owned(),
                silent_for: Duration::ZERO,
            });
        });
    }
}

impl Session {
    /// Boxed, both: a task keeps room for its arguments twice.
    async fn run(self: Box<Self>, mut incoming: Box<Streaming<StreamMessage>>) {
        let (open, mut status) = match Box::pin(self.open(&mut incoming)).await {
            Ok(opened) => opened,
            Err(status) => {
                info!(node = %self.node, peer = %self.peer.address, error = status.message(), "stream refused");
                self.shared.metrics.refuse("hello");
                let _ = self.outgoing.clone().send(Box::new(Err(status))).await;
                return;
            }
        };
        let (reason, silent_for) = self.messages(&mut incoming, &open, &mut status).await;
        if Box::pin(open.close(&reason, silent_for)).await {
            debug!(node = %self.node, %reason, "stream ended");
            if self.measures {
                return;
            }
            nodes::set_ready(&mut status, false, "AgentUnreachable", &reason);
            self.shared.nodes.write(&self.node, *status);
        }
    }

    /// Hello, admission, welcome.
    async fn open(
        &self,
        incoming: &mut Streaming<StreamMessage>,
    ) -> Result<(OpenSession, Box<HyperionNodeStatus>), Status> {
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
                shown(&hello.node_id),
                self.node
            );
            return Err(Status::permission_denied(text));
        }
        if hello.boot_id.is_empty() || hello.boot_id.len() > 64 {
            return Err(Status::invalid_argument("hello.boot_id: empty or too long"));
        }
        let capabilities = convert::capabilities(hello.capabilities.as_ref())
            .map_err(|e| Status::invalid_argument(format!("hello.{e}")))?;
        if self.measures {
            let memory = capabilities.memory_bytes;
            let open = self.admit(&hello, memory, BTreeSet::new(), None).await?;
            return Ok((open, Box::default()));
        }
        let mut reports = Vec::with_capacity(hello.replicas.len());
        for report in &hello.replicas {
            match convert::report(report) {
                Ok(report) => reports.push(report),
                // One odd replica must not lock the whole node out.
                Err(e) => {
                    self.shared.metrics.refuse("replica_report");
                    warn!(node = %self.node, error = %e, "hello.replicas");
                }
            }
        }
        let (untaken, records) = away::decisions(&self.shared, &self.node, &hello.site_decisions);
        let addresses = sites::addresses(&hello.peer_addresses);
        self.shared.state.set_addresses(&self.node, &addresses);
        let memory_bytes = capabilities.memory_bytes;
        let (mut status, problems) = facts::describe(&capabilities);
        for problem in problems {
            warn!(node = %self.node, %problem, "node label");
        }
        status.boot_id.clone_from(&hello.boot_id);
        status.agent_version = shown(&hello.agent_version);
        status.hostname = capabilities
            .labels
            .get("kubernetes.io/hostname")
            .cloned()
            .unwrap_or_default();
        (status.peer_addresses, status.policy) = (addresses, away::hash(&hello.policy_hash));
        status.update = hello.update.as_ref().map(updates::read);
        let problem = printable(&hello.runtime_problem, PROBLEM);
        let up = GatewayEvent::NodeUp {
            node: self.node.clone(),
            boot_id: hello.boot_id.clone(),
            capabilities,
            runtime_problem: problem.clone(),
            agent_version: status.agent_version.clone(),
            update: status.update.clone(),
        };
        let open = self.admit(&hello, memory_bytes, untaken, Some(up)).await?;
        nodes::set_runtime(&mut status, &problem);
        self.shared.nodes.write(&self.node, status.clone());
        for report in reports {
            self.tell(GatewayEvent::Report {
                node: self.node.clone(),
                report,
            })
            .await;
        }
        // Behind the reports, which say how the copies do that were decided about.
        self.decisions(records).await;
        Ok((open, Box::new(status)))
    }

    /// Two devices with one identity (a cloned disk) must not take turns. A second boot of a node
    /// waits until the first has been silent for as long as its own interval allows; if it is not,
    /// the newcomer is refused. A crashed agent that is back at once pays that wait.
    async fn admit(
        &self,
        hello: &Hello,
        memory_total: u64,
        untaken: BTreeSet<Decision>,
        up: Option<GatewayEvent>,
    ) -> Result<OpenSession, Status> {
        let interval = Duration::from_millis(u64::from(hello.telemetry_interval_ms));
        let silence = (interval * 3).clamp(SILENCE, MAX_SILENCE);
        let came = Instant::now();
        loop {
            let room = self.shared.events.reserve().await;
            let new = NewSession {
                boot_id: hello.boot_id.clone(),
                memory_total,
                outgoing: self.outgoing.clone(),
                connection: self.peer.connection.clone(),
                silence,
                untaken: untaken.clone(),
                site_version: hello.site_info_version,
            };
            let admission = self.shared.state.open(&self.node, new, || {
                if let (Ok(room), Some(up)) = (room, &up) {
                    room.send(up.clone());
                }
            });
            let contested = match admission {
                Admission::Open(id) => {
                    self.shared.metrics.sessions.inc();
                    return Ok(OpenSession {
                        shared: self.shared.clone(),
                        node: self.node.clone(),
                        id,
                        lost: (interval * LOST_INTERVALS).clamp(LOST, MAX_LOST),
                        measures: self.measures,
                    });
                }
                Admission::CutOff => {
                    let text = format!("node {} is revoked or deleted", self.node);
                    return Err(Status::permission_denied(text));
                }
                Admission::Contested { heard, silence } => (heard, silence),
            };
            let (heard, silence) = contested;
            if came.elapsed() > silence + Duration::from_secs(1) {
                warn!(node = %self.node, peer = %self.peer.address, ?heard, "DuplicateIdentity");
                self.duplicate().await;
                return Err(Status::already_exists(format!(
                    "node id {} is in use by another device, heard {} ms ago; enrol this one with a token of its own",
                    self.node,
                    heard.as_millis()
                )));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Says that another agent came with the identity of one that is there.
    async fn duplicate(&self) {
        let message = format!(
            "a second agent, at {}, says that it is this node; it is refused",
            self.peer.address
        );
        let event = agent_v1::Event {
            reason: "DuplicateIdentity".to_owned(),
            message,
            warning: true,
            ..agent_v1::Event::default()
        };
        let node = self.node.clone();
        self.tell(GatewayEvent::Event { node, event }).await;
    }

    /// Takes a message of an agent that only measures; gives it back where it is to be taken like any
    /// agent's.
    async fn measured(&self, body: Body, id: u64) -> Option<Body> {
        match measuring::said(body) {
            Said::Usual(body) => return Some(*body),
            Said::Notices(Some(said)) => {
                let notices = self.notices(&said).await;
                self.shared.state.notices(&self.node, id, &notices);
            }
            Said::Notices(None) => {}
            Said::Refused(what) => self.shared.metrics.refuse(what),
        }
        None
    }

    /// Tells what the node's cloud is about to do to it.
    async fn notices(&self, said: &Interruptions) -> Vec<notices::Notice> {
        let read = notices::read(said);
        self.tell(GatewayEvent::Notices {
            node: self.node.clone(),
            notices: read.clone(),
        })
        .await;
        read
    }

    /// Takes messages until the stream ends; gives the reason, and how long the node was silent.
    async fn messages(
        &self,
        incoming: &mut Streaming<StreamMessage>,
        open: &OpenSession,
        status: &mut HyperionNodeStatus,
    ) -> (String, Duration) {
        let id = open.id;
        loop {
            let Ok(next) = tokio::time::timeout(open.lost, incoming.message()).await else {
                let reason = format!("not heard for {:?}", open.lost);
                let connection = &self.peer.connection;
                connection.close(transport::CLOSE_LOST, reason.as_bytes());
                // Read to its end: a stream is not dropped with a read pending.
                while let Ok(Some(_)) = incoming.message().await {}
                return (reason, open.lost);
            };
            match next {
                Ok(Some(message)) => {
                    self.shared.state.heard(&self.node, id);
                    if tls::unix_now() >= self.expires.load(Ordering::Relaxed) {
                        let reason = "the certificate has run out";
                        let code = transport::CLOSE_EXPIRED;
                        self.peer.connection.close(code, reason.as_bytes());
                        return (reason.to_owned(), Duration::ZERO);
                    }
                    // Unknown bodies come from newer agents: ignored.
                    if let Some(body) = message.body
                        && let Err(refused) = Box::pin(self.message(body, id, status)).await
                    {
                        debug!(node = %self.node, error = %refused, "message refused");
                    }
                }
                Ok(None) => return ("the agent ended the stream".to_owned(), Duration::ZERO),
                Err(status) => return (status.message().to_owned(), Duration::ZERO),
            }
        }
    }

    async fn runtime(&self, problem: String, status: &mut HyperionNodeStatus) {
        // The condition's message is the problem, empty where there is none.
        let mut ready = status.conditions.iter().filter(|c| c.type_ == "Ready");
        if ready.any(|c| c.message == problem) {
            return;
        }
        nodes::set_runtime(status, &problem);
        self.shared.nodes.write(&self.node, status.clone());
        let node = self.node.clone();
        self.tell(GatewayEvent::Runtime { node, problem }).await;
    }

    async fn message(
        &self,
        body: Body,
        id: u64,
        status: &mut HyperionNodeStatus,
    ) -> Result<(), convert::Invalid> {
        let refuse = |what: &'static str| {
            move |e: convert::Invalid| {
                self.shared.metrics.refuse(what);
                e
            }
        };
        let body = if self.measures {
            match self.measured(body, id).await {
                Some(body) => body,
                None => return Ok(()),
            }
        } else {
            body
        };
        match body {
            Body::Telemetry(t) => {
                let t: domain::Telemetry = convert::telemetry(&t).map_err(refuse("telemetry"))?;
                self.shared.metrics.telemetry_received.inc();
                self.shared.state.telemetry(&self.node, id, t);
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
                // A refused event is acknowledged too, or the agent would send it for ever.
                let checked = convert::event(&event).map_err(refuse("event"));
                if checked.is_ok() {
                    self.tell(GatewayEvent::Event {
                        node: self.node.clone(),
                        event,
                    })
                    .await;
                }
                self.shared.state.send(&self.node, ack);
                checked?;
            }
            Body::SiteDecisions(decisions) => {
                let (untaken, records) =
                    away::decisions(&self.shared, &self.node, &Some(decisions));
                self.shared.state.add_untaken(&self.node, id, untaken);
                self.decisions(records).await;
            }
            Body::TelemetryBatch(batch) => {
                let taken = away::backfill(&self.shared, &self.node, &batch);
                // A refused batch is acknowledged too, or the agent would send it for ever.
                let ack = Body::TelemetryAck(TelemetryAck { id: batch.id });
                self.shared.state.send(&self.node, ack);
                taken.map_err(refuse("telemetry_batch"))?;
            }
            Body::FetchPolicy(asked) => {
                let chunk = self.shared.state.policy_chunk(&asked);
                self.shared.state.send(&self.node, Body::PolicyChunk(chunk));
            }
            Body::NodeState(said) => {
                let addresses = sites::addresses(&said.peer_addresses);
                self.shared.state.set_addresses(&self.node, &addresses);
                let mut news = away::note(status, &said, addresses);
                if let Some(said) = &said.interruptions {
                    let notices = self.notices(said).await;
                    news |= notices::note(status, &notices);
                }
                if let Some(said) = &said.update {
                    let update = updates::read(said);
                    if updates::note(status, &update) {
                        news = true;
                        let node = self.node.clone();
                        self.tell(GatewayEvent::Update { node, update }).await;
                    }
                }
                if news {
                    self.shared.nodes.write(&self.node, status.clone());
                }
            }
            Body::RuntimeState(runtime) => {
                self.runtime(printable(&runtime.problem, PROBLEM), status)
                    .await;
            }
            Body::RenewCertificate(renew) => {
                let answer = Body::RenewedCertificate(self.renew(&renew.csr_der).await);
                self.shared.state.send(&self.node, answer);
            }
            Body::LogChunk(chunk) => self.shared.state.log_chunk(&self.node, chunk),
            Body::CommandResult(result) if !result.ok => {
                let error: String = result.error.chars().take(512).collect();
                warn!(node = %self.node, ?error, "command refused");
            }
            _ => {}
        }
        Ok(())
    }

    async fn renew(&self, csr_der: &[u8]) -> RenewedCertificate {
        let refused = |error: String| RenewedCertificate {
            error,
            ..Default::default()
        };
        let held = self
            .peer
            .certificate
            .as_deref()
            .map(CertificateFacts::parse);
        let facts = match (held, pki::request_key(csr_der)) {
            (Some(Ok(facts)), Ok(key)) if facts.public_key == key => facts,
            _ => return refused("the request is not signed by this node's key".to_owned()),
        };
        if self.shared.state.standing(&self.node) != Standing::Known {
            return refused(format!("node {} is revoked or deleted", self.node));
        }
        let (authority, ttl) = (&self.shared.authority, self.shared.certificate_ttl);
        let site = self.site(facts).await;
        match authority.sign_node(csr_der, &self.node, &site, ttl) {
            Ok(certificate_chain_der) => {
                let until = tls::unix_now().saturating_add(ttl.as_secs());
                self.expires.store(until, Ordering::Relaxed);
                RenewedCertificate {
                    certificate_chain_der,
                    error: String::new(),
                }
            }
            Err(e) => refused(e.to_string()),
        }
    }

    /// Site of the node: what its object says, or its certificate where the API server does not
    /// answer.
    async fn site(&self, held: CertificateFacts) -> String {
        let api: Api<HyperionNode> = Api::all(self.shared.client.clone());
        match tokio::time::timeout(SITE_WITHIN, api.get_opt(&self.node)).await {
            Ok(Ok(Some(node))) => node.spec.site,
            _ => held.site.unwrap_or_default(),
        }
    }

    async fn decisions(&self, records: Vec<ReplicaRecord>) {
        if !records.is_empty() {
            let node = self.node.clone();
            self.tell(GatewayEvent::SiteDecisions { node, records })
                .await;
        }
    }

    async fn tell(&self, event: GatewayEvent) {
        // A closed channel means that the operator stops.
        let _ = self.shared.events.send(event).await;
    }
}
