//! The gateway's end: accepts QUIC connections and feeds each request to a tonic service.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt};
use tracing::{debug, info};

use crate::body::{self, BoxError, ChannelBody};
use crate::identity::peer_leaf;

/// What a service learns of its peer, as a request extension.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Certificate that the TLS handshake verified against the CA; none during enrolment.
    pub certificate: Option<Vec<u8>>,
    /// Address when the request arrived; may change later.
    pub address: SocketAddr,
    /// To close it or to read its round-trip time.
    pub connection: quinn::Connection,
}

/// A client that has not opened a request in this time after the handshake is let go.
const FIRST_REQUEST: Duration = Duration::from_secs(10);

/// Accepts connections until `stop` is cancelled, then closes the endpoint and waits for its
/// connections to end.
pub async fn serve<S>(endpoint: quinn::Endpoint, service: S, stop: CancellationToken)
where
    S: Service<Request<ChannelBody>, Response = Response<tonic::body::Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = stop.cancelled() => None,
        };
        let Some(incoming) = incoming else { break };
        let from = incoming.remote_address();
        let service = service.clone();
        tokio::spawn(async move {
            if let Err(e) = connection(incoming, service).await {
                // A refused handshake is the peer's business until somebody looks for it.
                debug!(peer = %from, error = %e, "connection ended");
            }
        });
    }
    endpoint.close(0_u32.into(), b"control plane stops");
    let _ = tokio::time::timeout(Duration::from_secs(2), endpoint.wait_idle()).await;
}

async fn connection<S>(incoming: quinn::Incoming, service: S) -> Result<(), BoxError>
where
    S: Service<Request<ChannelBody>, Response = Response<tonic::body::Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    let from = incoming.remote_address();
    let connection = match incoming.await {
        Ok(connection) => connection,
        Err(e) => {
            info!(peer = %from, error = %e, "handshake refused");
            return Ok(());
        }
    };
    let peer = Peer {
        certificate: peer_leaf(&connection).map(|der| der.to_vec()),
        address: connection.remote_address(),
        connection: connection.clone(),
    };
    let mut h3 = h3::server::builder()
        .send_grease(false)
        .max_field_section_size(16 * 1024)
        .build::<_, Bytes>(h3_quinn::Connection::new(connection.clone()))
        .await?;
    let mut first = true;
    loop {
        let accepted = if first {
            tokio::time::timeout(FIRST_REQUEST, h3.accept())
                .await
                .map_err(|_| {
                    connection.close(0_u32.into(), b"no request");
                    "no request in time"
                })?
        } else {
            h3.accept().await
        };
        first = false;
        let Some(resolver) = accepted? else {
            return Ok(());
        };
        let (peer, service) = (peer.clone(), service.clone());
        tokio::spawn(async move {
            if let Err(e) = request(resolver, peer, service).await {
                debug!(peer = %from, error = %e, "request ended");
            }
        });
    }
}

async fn request<S>(
    resolver: h3::server::RequestResolver<h3_quinn::Connection, Bytes>,
    peer: Peer,
    service: S,
) -> Result<(), BoxError>
where
    S: Service<Request<ChannelBody>, Response = Response<tonic::body::Body>, Error = Infallible>
        + Send
        + 'static,
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
    body::write_body(send, body).await
}
