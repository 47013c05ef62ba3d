//! The gateway's end: accepts QUIC connections and feeds each request to a tonic service.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt};
use tracing::{debug, info, warn};

use crate::body::{self, BoxError, ChannelBody};
use crate::identity::peer_leaf;
use crate::waiting::Waiting;

/// What a service learns of its peer, as a request extension.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Certificate that the TLS handshake verified against the CA; none during enrolment.
    pub certificate: Option<Arc<[u8]>>,
    /// Address when the request arrived; may change later.
    pub address: SocketAddr,
    /// To close it or to read its round-trip time.
    pub connection: quinn::Connection,
}

/// A client that has not opened a request in this time after the handshake is let go.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// Handshakes in progress. When a fleet comes back at once, ten thousand half-done handshakes would
/// slow each other down until their peers repeat themselves; at a round trip of 100 ms this many
/// still give more than a thousand new connections a second.
const HANDSHAKES: usize = 256;
/// Time for a handshake: a peer that begins one and falls silent must not keep others out.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Wait for the turn of a handshake: longer than [`HANDSHAKE`], so that a flood of half-done ones
/// has gone by then; agents give up after 20 s, handshake included.
const PATIENCE: Duration = Duration::from_secs(12);
/// Most that wait, each with its first packet.
const MAX_WAITING: usize = 16_384;
/// Life of a connection without a certificate: enough for an enrolment.
const WITHOUT_CERTIFICATE: Duration = Duration::from_secs(60);
/// Wait for connections to end, at the end.
const DRAIN: Duration = Duration::from_secs(2);
/// Socket buffers, bytes.
const SOCKET_BUFFER: usize = 8 << 20;
/// Connection ids, bytes: as many as quinn takes by itself.
const CONNECTION_ID: usize = 8;

/// Opens the gateway's socket. `secret` must be the same after a restart: agents that still send to
/// the connections of the process before are then told at once, by a stateless reset that they can
/// verify, instead of finding out by silence.
///
/// # Errors
/// The address is taken, most often.
pub fn bind(
    address: SocketAddr,
    config: quinn::ServerConfig,
    secret: &[u8],
) -> std::io::Result<quinn::Endpoint> {
    bind_with(address, config, secret, CONNECTION_ID)
}

/// As [`bind`], with connection ids of so many bytes, at most 8: every packet to this endpoint
/// carries one. Ids only sort packets; what they may do is decided by their keys.
///
/// # Errors
/// The address is taken, most often.
pub fn bind_with(
    address: SocketAddr,
    config: quinn::ServerConfig,
    secret: &[u8],
    id_bytes: usize,
) -> std::io::Result<quinn::Endpoint> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::DGRAM,
        Some(socket2::Protocol::UDP),
    )?;
    if address.is_ipv6() {
        // Agents with either family; refused by hosts without IPv4.
        let _ = socket.set_only_v6(false);
    }
    // The kernel gives as much as net.core.rmem_max allows. Its default holds about a hundred
    // datagrams: too few for a fleet that comes back at once.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    socket.bind(&address.into())?;
    let mut digest = Sha256::new();
    digest.update(b"hyperion stateless reset");
    digest.update(secret);
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &digest.finalize());
    let mut endpoint = quinn::EndpointConfig::new(Arc::new(key));
    endpoint
        .cid_generator(move || Box::new(AnyConnectionId(id_bytes.clamp(1, CONNECTION_ID))))
        // A whole fleet asks after a restart. A reset is shorter than what it answers, so two
        // hosts that do not know each other's connections can't keep a loop going.
        .min_reset_interval(Duration::ZERO);
    quinn::Endpoint::new(
        endpoint,
        Some(config),
        socket.into(),
        Arc::new(quinn::TokioRuntime),
    )
}

/// Random connection ids. quinn's own generator marks its ids with a key of the process and drops
/// datagrams with others unanswered, so there would be no stateless resets after a restart.
struct AnyConnectionId(usize);

impl quinn::ConnectionIdGenerator for AnyConnectionId {
    fn generate_cid(&mut self) -> quinn::ConnectionId {
        quinn::ConnectionId::new(&rand::random::<[u8; CONNECTION_ID]>()[..self.0])
    }

    fn cid_len(&self) -> usize {
        self.0
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// What a server serves: tonic's generated services are such.
pub trait GrpcService:
    Service<Request<ChannelBody>, Response = Response<tonic::body::Body>, Error = Infallible>
    + Send
    + 'static
{
}

impl<S> GrpcService for S where
    S: Service<Request<ChannelBody>, Response = Response<tonic::body::Body>, Error = Infallible>
        + Send
        + 'static
{
}

/// Accepts connections until `stop` is cancelled, then closes the endpoint, waits a moment for its
/// connections to end, and frees its address.
pub async fn serve<S>(endpoint: quinn::Endpoint, service: S, stop: CancellationToken)
where
    S: GrpcService + Clone,
    S::Future: Send,
{
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let mut waiting = Waiting::new(PATIENCE, MAX_WAITING);
    loop {
        // A turn first: while all are taken, those who come are put in the queue.
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            turn = handshakes.clone().acquire_owned(), if !waiting.is_empty() => {
                let Ok(turn) = turn else { break };
                if let Some(incoming) = waiting.pop() {
                    begin(incoming, turn, service.clone());
                }
            }
            incoming = endpoint.accept() => {
                let Some(incoming) = incoming else { break };
                match handshakes.clone().try_acquire_owned() {
                    Ok(turn) => begin(incoming, turn, service.clone()),
                    // Only those wait who can be reached at their address: a flood from forged ones
                    // costs a datagram each.
                    Err(_) if incoming.may_retry() => drop(incoming.retry()),
                    Err(_) => {
                        let away = waiting.push(incoming, Instant::now());
                        away.into_iter().for_each(quinn::Incoming::refuse);
                    }
                }
            }
        }
    }
    endpoint.close(0_u32.into(), b"control plane stops");
    let _ = tokio::time::timeout(DRAIN, endpoint.wait_idle()).await;
    if let Err(e) = leave_address(&endpoint) {
        warn!(error = %e, "the address is taken until all connections have drained");
    }
}

/// Gives up an endpoint's address, also where connections have not drained: each waits for three
/// probe timeouts (RFC 9000, 10.2), which are minutes where a fleet came back all at once. They drain
/// at another port.
fn leave_address(endpoint: &quinn::Endpoint) -> std::io::Result<()> {
    if endpoint.open_connections() == 0 {
        return Ok(());
    }
    let any: IpAddr = match endpoint.local_addr()? {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // quinn keeps the socket before the last one.
    for _ in 0..2 {
        endpoint.rebind(std::net::UdpSocket::bind((any, 0))?)?;
    }
    Ok(())
}

/// Makes a connection of what came in, and serves it.
fn begin<S>(incoming: quinn::Incoming, turn: OwnedSemaphorePermit, service: S)
where
    S: GrpcService + Clone,
    S::Future: Send,
{
    let from = incoming.remote_address();
    // Boxed, here and below: a task keeps room for its largest state as long as it lives, and for
    // what it hands on twice; handshakes are large, short, and not in progress for ten thousand
    // agents at once.
    let handshake = Box::pin(tokio::time::timeout(HANDSHAKE, establish(incoming)));
    tokio::spawn(async move {
        if let Err(e) = connection(handshake, turn, service).await {
            // A refused handshake is the peer's business until somebody looks for it.
            debug!(peer = %from, error = %e, "connection ended");
        }
    });
}

async fn connection<S>(
    handshake: Pin<Box<tokio::time::Timeout<impl Future<Output = Established>>>>,
    turn: OwnedSemaphorePermit,
    service: S,
) -> Result<(), BoxError>
where
    S: GrpcService + Clone,
    S::Future: Send,
{
    let established = handshake.await;
    drop(turn);
    let Some((h3, peer)) = established.map_err(|_| "no handshake in time")?? else {
        return Ok(());
    };
    let (known, connection) = (peer.certificate.is_some(), peer.connection.clone());
    let served = Box::pin(requests(h3, peer, service));
    if known {
        return served.await;
    }
    Box::pin(tokio::time::timeout(WITHOUT_CERTIFICATE, served))
        .await
        .unwrap_or_else(|_| {
            connection.close(0_u32.into(), b"enrolment took too long");
            Ok(())
        })
}

/// Serves a connection's requests, each in a task of its own.
async fn requests<S>(mut h3: Box<H3>, peer: Box<Peer>, service: S) -> Result<(), BoxError>
where
    S: GrpcService + Clone,
    S::Future: Send,
{
    let mut first = true;
    loop {
        let accepted = if first {
            Box::pin(tokio::time::timeout(FIRST_REQUEST, h3.accept()))
                .await
                .map_err(|_| {
                    peer.connection.close(0_u32.into(), b"no request");
                    "no request in time"
                })?
        } else {
            h3.accept().await
        };
        first = false;
        let Some(resolver) = accepted? else {
            return Ok(());
        };
        let from = peer.address;
        let responding = Box::pin(respond(resolver, Peer::clone(&peer), service.clone()));
        tokio::spawn(async move {
            if let Err(e) = request(responding).await {
                debug!(peer = %from, error = %e, "request ended");
            }
        });
    }
}

type H3 = h3::server::Connection<h3_quinn::Connection, Bytes>;

/// A connection after its handshake; none where the handshake was refused.
type Established = Result<Option<(Box<H3>, Box<Peer>)>, BoxError>;

async fn establish(incoming: quinn::Incoming) -> Established {
    let from = incoming.remote_address();
    let connection = match incoming.await {
        Ok(connection) => connection,
        Err(e) => {
            info!(peer = %from, error = %e, "handshake refused");
            return Ok(None);
        }
    };
    let h3 = h3::server::builder()
        .send_grease(false)
        .max_field_section_size(16 * 1024)
        .build::<_, Bytes>(h3_quinn::Connection::new(connection.clone()))
        .await?;
    let peer = Peer {
        certificate: peer_leaf(&connection).map(|der| der.as_ref().into()),
        address: connection.remote_address(),
        connection,
    };
    Ok(Some((Box::new(h3), Box::new(peer))))
}

async fn request<F>(responding: Pin<Box<F>>) -> Result<(), BoxError>
where
    F: Future<Output = Result<(SendHalf, tonic::body::Body), BoxError>>,
{
    let (mut send, body) = responding.await?;
    body::write_body(&mut send, body).await
}

type SendHalf = h3::server::RequestStream<h3_quinn::SendStream<Bytes>, Bytes>;

async fn respond<S>(
    resolver: h3::server::RequestResolver<h3_quinn::Connection, Bytes>,
    peer: Peer,
    service: S,
) -> Result<(SendHalf, tonic::body::Body), BoxError>
where
    S: GrpcService,
    S::Future: Send,
{
    let (head, stream) = resolver.resolve_request().await?;
    let (mut send, receive) = stream.split();
    let (mut parts, ()) = head.into_parts();
    parts.extensions.insert(peer);
    let request = Request::from_parts(parts, body::read_body(receive));
    let response = match service.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let (parts, body) = response.into_parts();
    send.send_response(Response::from_parts(parts, ())).await?;
    Ok((send, body))
}
