//! The agents' endpoint: enrolment, streams, telemetry, commands. Lives in `hyperion-control`.
//!
//! - [`pki`]: the fleet's CA, made once by create-or-read on a Secret.
//! - [`tokens`]: join tokens, Secrets too, counted down by compare-and-swap.
//! - [`state`]: what is in memory: sessions, live telemetry, desired replicas.
//! - [`logs`]: logs on their way to whoever asked.
//! - [`service`]: the gRPC service; one task per session.
//! - [`away`]: what a node brings of the time without a link; [`history`] keeps its telemetry.
//! - [`sites`]: what nodes are told of their site; [`policies`]: the policy for devices.
//! - [`measuring`]: agents that only measure a node of a workload cluster.
//! - [`notices`]: what a node's cloud is about to do to it.
//! - [`updates`]: what a node says of its versions and slots.
//! - [`nodes`]: writes `HyperionNode` objects, and watches them for revocation.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, clippy::expect_used))]

pub mod away;
pub mod facts;
pub mod history;
pub mod logs;
pub mod measuring;
pub mod metrics;
pub mod nodes;
pub mod notices;
pub mod pki;
pub mod policies;
pub mod service;
pub mod sites;
pub mod state;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tokens;
pub mod updates;

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use hyperion_api::fleet::{History, LiveNodes};
use hyperion_api::update::NodeUpdate;
use hyperion_link::{server, tls, transport};
use hyperion_proto::agent_v1::agent_service_server::AgentServiceServer;
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{self, ReplicaRecord, StartReplica, UpdateOrder};
use hyperion_proto::domain::{Capabilities, ReplicaKey, Report};
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::history::Histories;
use crate::measuring::Proof;
use crate::metrics::Metrics;
use crate::notices::Notice;
use crate::policies::{DevicePolicy, SignError};
use crate::service::{AgentEndpoint, Shared};
use crate::state::{Decision, State};

/// Namespace of the control plane's own objects.
pub const NAMESPACE: &str = "hyperion-system";

/// Settings.
pub struct GatewayConfig {
    /// UDP address for agents.
    pub link_addr: SocketAddr,
    /// Where agents find it, `HOST:PORT`, where that can't be told from [`Self::link_addr`].
    pub link_advertise: Option<String>,
    /// For Secrets and HyperionNodes.
    pub client: kube::Client,
    /// Trust domain of the node certificates.
    pub fleet: String,
    /// Lifetime of node certificates.
    pub certificate_ttl: Duration,
}

/// Why the gateway can't start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The CA.
    #[error(transparent)]
    Pki(#[from] pki::PkiError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// Port taken, most often.
    #[error("cannot listen for agents on {0} (UDP): {1}")]
    Bind(SocketAddr, std::io::Error),
}

/// What the operator hears.
#[derive(Debug, Clone)]
pub enum GatewayEvent {
    /// A node's stream is open; one `Report` per replica that it holds follows.
    NodeUp {
        /// Node id.
        node: String,
        /// Boot id of the agent.
        boot_id: String,
        /// What it has.
        capabilities: Capabilities,
        /// Why its container runtime does not answer; empty where it does.
        runtime_problem: String,
        /// Version of the agent.
        agent_version: String,
        /// What it says of its versions; none where it can't be updated by orders.
        update: Option<NodeUpdate>,
    },
    /// A node's stream ended.
    NodeDown {
        /// Node id.
        node: String,
        /// Why.
        reason: String,
        /// How long it had been silent when that was noticed; nothing where it said goodbye.
        silent_for: Duration,
    },
    /// Whether a node can start replicas has changed.
    Runtime {
        /// Node id.
        node: String,
        /// Why its container runtime does not answer; empty where it does.
        problem: String,
    },
    /// What a node says of its versions has changed.
    Update {
        /// Node id.
        node: String,
        /// The whole, sane.
        update: NodeUpdate,
    },
    /// What a node's cloud is about to do to it, the whole; also when a stream was opened, where
    /// the node knows.
    Notices {
        /// Node id.
        node: String,
        /// Sane; empty where nothing is.
        notices: Vec<Notice>,
    },
    /// What a node says of a replica.
    Report {
        /// Node id.
        node: String,
        /// The report.
        report: Report,
    },
    /// What a site decided while it was cut off. To be answered with [`Gateway::decisions_taken`]
    /// or [`Gateway::decisions_kept`], each of them: until then the node's list is not complete.
    SiteDecisions {
        /// Node that brings them.
        node: String,
        /// Sane, each by itself.
        records: Vec<ReplicaRecord>,
    },
    /// Something that a person may want to know.
    Event {
        /// Node id.
        node: String,
        /// The event.
        event: agent_v1::Event,
    },
}

/// Which logs.
#[derive(Debug, Clone)]
pub struct LogRequest {
    /// Replica.
    pub key: ReplicaKey,
    /// Container; empty takes the first.
    pub container: String,
    /// Last lines only; 0 means all.
    pub tail_lines: u32,
    /// Go on as the container writes.
    pub follow: bool,
}

/// Why there are no logs.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The node's stream is down.
    #[error("node {0} is out of reach")]
    Unreachable(String),
    /// The node's word.
    #[error("{0}")]
    Node(String),
}

/// Handle of a running gateway.
#[derive(Clone)]
pub struct Gateway {
    shared: Arc<Shared>,
    proofs: Arc<Mutex<Option<mpsc::Receiver<Proof>>>>,
    local_addr: SocketAddr,
    stop: CancellationToken,
    done: CancellationToken,
}

/// Events that may wait for the operator before sessions are slowed down.
const EVENTS: usize = 4096;

/// Starts the gateway: CA, socket, node writer, revocation watch.
///
/// # Errors
/// See [`GatewayError`]; nothing is left running.
pub async fn start(
    config: GatewayConfig,
    registry: &mut Registry,
) -> Result<(Gateway, mpsc::Receiver<GatewayEvent>), GatewayError> {
    let authority = pki::Authority::ensure(&config.client, &config.fleet).await?;
    let (chain, key) = authority.server_certificate()?;
    let transport = transport::of_gateway();
    let tls = tls::server_config(chain, key, authority.certificate_der(), transport)?;
    let endpoint = server::bind(config.link_addr, tls, &authority.secret())
        .map_err(|e| GatewayError::Bind(config.link_addr, e))?;
    let local_addr = endpoint
        .local_addr()
        .map_err(|e| GatewayError::Bind(config.link_addr, e))?;
    let advertised = config
        .link_advertise
        .unwrap_or_else(|| pki::link_address(local_addr));
    authority.publish(&config.client, &advertised).await?;
    let (events, receiver) = mpsc::channel(EVENTS);
    let (proofs, to_prove) = mpsc::channel(measuring::WAITING);
    let stop = CancellationToken::new();
    let done = CancellationToken::new();
    let (node_writer, node_writes) = nodes::writer(config.client.clone(), stop.clone());
    tokio::spawn(node_writes);
    let shared = Arc::new(Shared {
        authority,
        certificate_ttl: config.certificate_ttl,
        client: config.client.clone(),
        state: State::default(),
        events,
        metrics: Metrics::register(registry),
        nodes: node_writer,
        histories: Mutex::new(Histories::default()),
        token_use: tokio::sync::Mutex::default(),
        proofs,
    });
    shared
        .state
        .set_latency(hyperion_providers::latency_matrix());
    tokio::spawn(nodes::tell_sites(shared.clone(), stop.clone()));
    tokio::spawn(notices::take_back(shared.clone(), stop.clone()));
    tokio::spawn(nodes::watch(config.client, shared.clone(), stop.clone()));
    let service = AgentServiceServer::new(AgentEndpoint::new(shared.clone()))
        .max_decoding_message_size(transport::MAX_FROM_AGENT);
    tokio::spawn({
        let (stop, done) = (stop.clone(), done.clone());
        async move {
            server::serve(endpoint, service, stop).await;
            done.cancel();
        }
    });
    Ok((
        Gateway {
            shared,
            proofs: Arc::new(Mutex::new(Some(to_prove))),
            local_addr,
            stop,
            done,
        },
        receiver,
    ))
}

impl Gateway {
    /// Address that agents reach.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// What agents that only measure show when they enrol, to be answered by their clusters; none
    /// after the first call. Unanswered, none of them enrols.
    #[must_use]
    pub fn proofs(&self) -> Option<mpsc::Receiver<Proof>> {
        let mut proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner);
        proofs.take()
    }

    /// Fingerprint of the fleet's CA.
    #[must_use]
    pub fn ca_fingerprint(&self) -> String {
        self.shared.authority.fingerprint()
    }

    /// The node should run this replica: told at once if it is connected, and at every connect.
    pub fn set_desired(&self, node: &str, start: StartReplica) {
        self.shared.state.set_desired(node, start);
    }

    /// The node should not run the replica with this generation or a lower one.
    pub fn remove_desired(&self, node: &str, key: &ReplicaKey, generation: u64) {
        self.stop_within(node, key, generation, None);
    }

    /// The same, with at most so much time between SIGTERM and SIGKILL; none for the pod's own.
    pub fn stop_within(
        &self,
        node: &str,
        key: &ReplicaKey,
        generation: u64,
        within: Option<Duration>,
    ) {
        // 0 would be the pod's own.
        let grace = within.map_or(0, |w| w.as_secs().clamp(1, u64::from(u32::MAX)));
        let grace = u32::try_from(grace).unwrap_or(u32::MAX);
        self.shared
            .state
            .remove_desired(node, key, generation, grace);
    }

    /// Nodes that hold replicas which can't be described to them now: they are not told that their
    /// lists are complete, so that they stop nothing that is missing in them. A node that is no
    /// longer among them gets its complete list at once.
    pub fn hold_back(&self, nodes: BTreeSet<String>) {
        self.shared.state.hold_back(nodes);
    }

    /// All that should run has been set: from now on nodes stop what is not listed, except those
    /// that are held back.
    pub fn mark_desired_complete(&self) {
        self.shared.state.mark_complete();
    }

    /// The API holds what became of these decisions, or they do not hold and orders say so: the node
    /// is told, and gets its complete list with the last of them.
    pub fn decisions_taken(&self, node: &str, decisions: &[Decision]) {
        self.shared.state.decided(node, decisions, true);
    }

    /// These decisions can't be taken now and stay as they are: the node is not told that they are
    /// taken, so that it stops nothing of them, and its list no longer waits for them.
    pub fn decisions_kept(&self, node: &str, decisions: &[Decision]) {
        self.shared.state.decided(node, decisions, false);
    }

    /// Offers nodes a policy to decide with while they are cut off; none takes it back.
    ///
    /// # Errors
    /// The CA's key does not sign; what was offered before stays.
    pub fn set_device_policy(&self, bytes: Option<&[u8]>) -> Result<(), SignError> {
        let key = self.shared.authority.secret();
        let policy = bytes
            .map(|bytes| DevicePolicy::sign(bytes, &key))
            .transpose()?;
        self.shared.state.set_policy(policy);
        Ok(())
    }

    /// What the node is to be updated with: told at once if it is connected, and at every connect.
    /// With an empty id nothing is wanted of it any more.
    pub fn set_update(&self, node: &str, order: UpdateOrder) {
        self.shared.state.set_update(node, order);
    }

    /// All orders to update have been set: from now on nodes drop those that they are not given.
    pub fn mark_updates_known(&self) {
        self.shared.state.mark_updates_known();
    }

    /// What a node measured while it was out of reach; none where it has brought nothing.
    #[must_use]
    pub fn history(&self, node: &str) -> Option<History> {
        let histories = &self.shared.histories;
        let held = histories.lock().unwrap_or_else(PoisonError::into_inner);
        held.of(node)
    }

    /// Live state changed after `version`.
    #[must_use]
    pub fn live_since(&self, version: u64) -> LiveNodes {
        self.shared.state.live_since(version)
    }

    /// Share of CPU in use on a connected node, 0 to 1.
    #[must_use]
    pub fn cpu_utilization(&self, node: &str) -> Option<f32> {
        self.shared.state.cpu_utilization(node)
    }

    /// Share of CPU in use, 0 to 1, by node, of the nodes that said so since the last call: work
    /// that grows with what came in and not with the fleet.
    #[must_use]
    pub fn take_measured(&self) -> HashMap<String, f32> {
        self.shared.state.take_measured()
    }

    /// True while the node's stream is open.
    #[must_use]
    pub fn connected(&self, node: &str) -> bool {
        self.shared.state.connected(node)
    }

    /// Streams logs of a replica from its node.
    ///
    /// # Errors
    /// The node is out of reach. What the node answers comes through the stream.
    pub fn fetch_logs(
        &self,
        node: &str,
        request: LogRequest,
    ) -> Result<impl Stream<Item = Result<Bytes, LogError>> + Send + use<>, LogError> {
        let (id, chunks) = self.shared.state.open_log(node);
        let order = agent_v1::FetchLogs {
            request_id: id,
            key: Some((&request.key).into()),
            container: request.container,
            tail_lines: request.tail_lines,
            follow: request.follow,
            cancel: false,
        };
        if !self.shared.state.send(node, Body::FetchLogs(order)) {
            self.shared.state.close_log(node, id);
            return Err(LogError::Unreachable(node.to_owned()));
        }
        let guard = LogGuard {
            shared: self.shared.clone(),
            node: node.to_owned(),
            id,
        };
        Ok(futures::stream::unfold(
            (chunks, Some(guard)),
            |(mut chunks, guard)| async move {
                guard.as_ref()?;
                let chunk = chunks.next().await?;
                if !chunk.error.is_empty() {
                    return Some((Err(LogError::Node(chunk.error)), (chunks, None)));
                }
                let guard = if chunk.end { None } else { guard };
                Some((Ok(Bytes::from(chunk.data)), (chunks, guard)))
            },
        ))
    }

    /// Ends all sessions and frees the socket.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.done.cancelled().await;
    }
}

/// Cancels a followed log when its reader goes away.
struct LogGuard {
    shared: Arc<Shared>,
    node: String,
    id: u64,
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        self.shared.state.close_log(&self.node, self.id);
    }
}
