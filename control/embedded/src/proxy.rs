//! The service proxy: requests handed on to an address that the configuration gives.

use std::net::SocketAddr;
use std::time::Duration;

use http::header::{AUTHORIZATION, CONNECTION, HOST, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::api::{Api, Call, Reply};
use crate::path::ResourcePath;
use crate::status::{Result, Status};

const CONNECT: Duration = Duration::from_secs(5);

/// Hands a request on; `uri_tail` is the path behind `/proxy` with the query.
pub(crate) async fn proxy(
    api: &Api,
    path: &ResourcePath,
    call: Call,
    uri_tail: &str,
) -> Result<Reply> {
    let namespace = path.namespace.as_deref().unwrap_or_default();
    let service = path.name.as_deref().unwrap_or_default();
    let address = address(api, namespace, service).ok_or_else(|| {
        unavailable(format!(
            "no endpoints available for service {service:?} in namespace {namespace:?}"
        ))
    })?;
    let failed = |e: &dyn std::fmt::Display| {
        unavailable(format!(
            "error trying to reach service {service:?} at {address}: {e}"
        ))
    };
    let connect = tokio::time::timeout(CONNECT, TcpStream::connect(address)).await;
    let stream = connect
        .map_err(|_| failed(&"timed out"))?
        .map_err(|e| failed(&e))?;
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| failed(&e))?;
    // Ends with the answer's body, or when the service closes.
    tokio::spawn(async move {
        if let Err(e) = connection.await {
            tracing::debug!(error = %e, "proxied connection ended");
        }
    });
    let request =
        request(call, address, uri_tail).map_err(|e| Status::bad_request(e.to_string()))?;
    let mut reply = sender
        .send_request(request)
        .await
        .map_err(|e| failed(&e))?
        .map(|body| body.map_err(std::io::Error::other).boxed_unsync());
    for header in [CONNECTION, TRANSFER_ENCODING, UPGRADE] {
        reply.headers_mut().remove(header);
    }
    Ok(reply)
}

/// The address of `service`, `service:port` or `scheme:service:port`.
fn address(api: &Api, namespace: &str, service: &str) -> Option<SocketAddr> {
    let plain = service
        .strip_prefix("http:")
        .filter(|rest| !rest.is_empty())
        .unwrap_or(service);
    let find = |name: &str| {
        let key = (namespace.to_owned(), name.to_owned());
        api.service_proxies.get(&key).copied()
    };
    find(service).or_else(|| find(plain)).or_else(|| {
        // Without a port: the only one.
        let name = plain.trim_end_matches(':');
        let mut all = api
            .service_proxies
            .iter()
            .filter(|((ns, key), _)| ns == namespace && key.split(':').next() == Some(name));
        let first = all.next()?;
        (all.next().is_none() && !name.contains(':')).then_some(*first.1)
    })
}

fn request(
    call: Call,
    address: SocketAddr,
    uri_tail: &str,
) -> std::result::Result<Request<Full<bytes::Bytes>>, http::Error> {
    let mut request = Request::builder()
        .method(call.method)
        .uri(uri_tail)
        .body(Full::new(call.body))?;
    *request.headers_mut() = call.headers;
    let headers = request.headers_mut();
    // The token is for this server alone.
    for header in [AUTHORIZATION, CONNECTION, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(header);
    }
    headers.insert(HOST, HeaderValue::try_from(address.to_string())?);
    Ok(request)
}

fn unavailable(message: String) -> Box<Status> {
    Status::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "ServiceUnavailable",
        message,
    )
}
