//! One connection as a tonic channel, and enrolment over it.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use hyperion_proto::agent_v1::agent_service_client::AgentServiceClient;
use hyperion_proto::agent_v1::{NodeCapabilities, RegisterNodeRequest};
use tracing::debug;

use crate::body::{self, BoxError, ChannelBody};
use crate::identity::{self, Identity, IdentityError};
use crate::route;
use crate::tls::{self, TlsError};
use crate::transport::{self, SERVER_NAME};

/// Where the control plane is and how to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlTarget {
    /// `host:port`, resolved anew at each attempt.
    pub addr: String,
    /// `sha256:<hex>` of the fleet's CA certificate.
    pub ca_fingerprint: String,
}

/// Why a connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Name resolution.
    #[error("control plane address {0:?}: {1}")]
    Resolve(String, String),
    /// TLS set-up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// QUIC.
    #[error("control plane {0}: {1}")]
    Connect(String, String),
    /// The control plane says that our certificate has run out, whatever our clock says.
    #[error("control plane {0}: our certificate has run out")]
    Expired(String),
    /// Nobody answered.
    #[error("control plane {0} did not answer within {1:?}")]
    Timeout(String, Duration),
    /// Local socket.
    #[error("cannot open a UDP socket: {0}")]
    Socket(std::io::Error),
}

/// An open connection: the QUIC side and the gRPC side.
pub(crate) struct Connected {
    pub(crate) quic: quinn::Connection,
    pub(crate) grpc: AgentServiceClient<H3Channel>,
}

impl Drop for Connected {
    /// Ends every stream of the connection at once, whatever became of its owner; see
    /// [`crate::body`] for why streams are not ended one by one.
    fn drop(&mut self) {
        self.quic.close(0_u32.into(), b"session ends");
    }
}

/// How long one attempt may take, handshake included.
const ATTEMPT: Duration = Duration::from_secs(20);

/// A client endpoint on any free port.
///
/// # Errors
/// The socket can't be opened.
pub fn client_endpoint() -> Result<quinn::Endpoint, ConnectError> {
    let any_v6 = std::net::SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 0));
    let any_v4 = std::net::SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, 0));
    quinn::Endpoint::client(any_v6)
        .or_else(|_| quinn::Endpoint::client(any_v4))
        .map_err(ConnectError::Socket)
}

pub(crate) async fn connect(
    endpoint: &quinn::Endpoint,
    target: &ControlTarget,
    identity: Option<&Identity>,
    transport: Arc<quinn::TransportConfig>,
) -> Result<Connected, ConnectError> {
    let config = tls::client_config(&target.ca_fingerprint, identity, transport)?;
    let attempt = async {
        let resolved = tokio::net::lookup_host(&target.addr)
            .await
            .map_err(|e| ConnectError::Resolve(target.addr.clone(), e.to_string()))?;
        let mut last = ConnectError::Resolve(target.addr.clone(), "no address".to_owned());
        for addr in resolved {
            match dial(endpoint, &config, addr).await {
                Ok(connected) => return Ok(connected),
                Err(e) if e.downcast_ref().is_some_and(says_expired) => {
                    return Err(ConnectError::Expired(addr.to_string()));
                }
                Err(e) => last = ConnectError::Connect(addr.to_string(), e.to_string()),
            }
        }
        Err(last)
    };
    tokio::time::timeout(ATTEMPT, attempt)
        .await
        .unwrap_or_else(|_| Err(ConnectError::Timeout(target.addr.clone(), ATTEMPT)))
}

async fn dial(
    endpoint: &quinn::Endpoint,
    config: &quinn::ClientConfig,
    addr: std::net::SocketAddr,
) -> Result<Connected, BoxError> {
    // A socket of the IPv6 family reaches IPv4 hosts by their mapped address.
    let addr = match (endpoint.local_addr()?, addr) {
        (std::net::SocketAddr::V6(_), std::net::SocketAddr::V4(v4)) => {
            std::net::SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port()))
        }
        (_, addr) => addr,
    };
    route::check(addr)?;
    let quic = endpoint
        .connect_with(config.clone(), addr, SERVER_NAME)?
        .await?;
    let built = h3::client::builder()
        .send_grease(false)
        .max_field_section_size(16 * 1024)
        .build::<_, _, Bytes>(h3_quinn::Connection::new(quic.clone()))
        .await;
    // In TLS 1.3 the server judges our certificate after our side of the handshake is done.
    let (mut driver, send) = match (built, quic.close_reason()) {
        (Ok(built), None) => built,
        (_, Some(closed)) => return Err(closed.into()),
        (Err(e), None) => return Err(e.into()),
    };
    tokio::spawn(async move {
        let end = std::future::poll_fn(|cx| driver.poll_close(cx)).await;
        debug!(%end, "HTTP/3 connection ended");
    });
    let origin = Uri::from_static("https://hyperion-control");
    let grpc = AgentServiceClient::with_origin(H3Channel { send }, origin)
        .max_decoding_message_size(transport::MAX_TO_AGENT);
    Ok(Connected { quic, grpc })
}

/// TLS's alert for a certificate that has run out (RFC 8446, section 6).
const CERTIFICATE_EXPIRED: u8 = 45;

/// True where the peer ended the connection because our certificate has run out.
pub(crate) fn says_expired(closed: &quinn::ConnectionError) -> bool {
    match closed {
        quinn::ConnectionError::ConnectionClosed(close) => {
            close.error_code == quinn::TransportErrorCode::crypto(CERTIFICATE_EXPIRED)
        }
        quinn::ConnectionError::ApplicationClosed(close) => {
            close.error_code == transport::CLOSE_EXPIRED
        }
        _ => false,
    }
}

/// A tonic channel over one HTTP/3 connection.
#[derive(Clone)]
pub(crate) struct H3Channel {
    send: h3::client::SendRequest<h3_quinn::OpenStreams, Bytes>,
}

impl tower::Service<Request<tonic::body::Body>> for H3Channel {
    type Response = Response<ChannelBody>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        let mut send = self.send.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let stream = send.send_request(Request::from_parts(parts, ())).await?;
            let (mut write, mut read) = stream.split();
            tokio::spawn(async move {
                if let Err(e) = body::write_body(&mut write, body).await {
                    debug!(error = %e, "request body ended");
                }
            });
            let (parts, ()) = read.recv_response().await?.into_parts();
            Ok(Response::from_parts(parts, body::read_body(read)))
        })
    }
}

/// What a device says of itself when it enrols.
#[derive(Debug, Clone, Default)]
pub struct EnrolRequest {
    /// Join token; empty on re-enrolment.
    pub token: String,
    /// Site; empty takes the token's.
    pub site: String,
    /// Capabilities.
    pub capabilities: NodeCapabilities,
    /// For people.
    pub hostname: String,
    /// For people.
    pub agent_version: String,
    /// For an agent that measures a node of a cluster, instead of a token.
    pub cluster: Option<InCluster>,
}

/// How an agent proves which node of which cluster it is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InCluster {
    /// Name of the HyperionCluster.
    pub cluster: String,
    /// File with the token of the agent's Pod; kubelets renew it, so that it is read each time.
    pub token_file: PathBuf,
}

impl InCluster {
    fn token(&self) -> Result<String, EnrolError> {
        let read = std::fs::read_to_string(&self.token_file);
        let read = read.map_err(|e| EnrolError::PodToken(self.token_file.clone(), e))?;
        Ok(read.trim().to_owned())
    }
}

/// Why enrolment failed.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Key trouble.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The token of the agent's Pod.
    #[error("token of the Pod {0:?}: {1}")]
    PodToken(PathBuf, std::io::Error),
    /// The control plane said no, and why.
    #[error("enrolment refused: {}", .0.message())]
    Refused(Box<tonic::Status>),
}

impl EnrolError {
    /// True where trying again with the same token can't help.
    #[must_use]
    pub fn is_final(&self) -> bool {
        use tonic::Code;
        matches!(self, Self::Refused(status) if matches!(
            status.code(),
            Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument | Code::AlreadyExists
        ))
    }
}

/// Makes a key on the device and has the control plane sign a certificate for it.
///
/// # Errors
/// No connection, or the token was refused.
pub async fn enrol(target: &ControlTarget, request: EnrolRequest) -> Result<Identity, EnrolError> {
    register(target, request, identity::new_key()?, Vec::new()).await
}

/// Gets a new certificate for the old key, with the old certificate as proof; for a device whose
/// certificate ran out while it was offline.
///
/// # Errors
/// No connection, or the device is revoked.
pub async fn re_enrol(
    target: &ControlTarget,
    identity: &Identity,
    request: EnrolRequest,
) -> Result<Identity, EnrolError> {
    let expired = identity.chain_der.first().cloned().unwrap_or_default();
    register(target, request, identity.key_der.clone(), expired).await
}

async fn register(
    target: &ControlTarget,
    request: EnrolRequest,
    key_der: Vec<u8>,
    expired_certificate_der: Vec<u8>,
) -> Result<Identity, EnrolError> {
    let csr_der = identity::certificate_request(&key_der)?;
    let (cluster, cluster_token) = match &request.cluster {
        Some(of) => (of.cluster.clone(), of.token()?),
        None => Default::default(),
    };
    let endpoint = client_endpoint()?;
    let transport = transport::config(None, ATTEMPT);
    let mut connected = connect(&endpoint, target, None, transport).await?;
    let message = RegisterNodeRequest {
        capabilities: Some(request.capabilities),
        token: request.token,
        csr_der,
        site: request.site,
        expired_certificate_der,
        hostname: request.hostname,
        agent_version: request.agent_version,
        cluster,
        cluster_token,
    };
    let answer = tokio::time::timeout(ATTEMPT, connected.grpc.register_node(message)).await;
    connected.quic.close(0_u32.into(), b"enrolled");
    let _ = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
    let response = answer
        .map_err(|_| ConnectError::Timeout(target.addr.clone(), ATTEMPT))?
        .map_err(|status| EnrolError::Refused(Box::new(status)))?
        .into_inner();
    let identity = Identity {
        node_id: response.node_id,
        site: response.site,
        key_der,
        chain_der: response.certificate_chain_der,
    };
    identity.validate()?;
    Ok(identity)
}
