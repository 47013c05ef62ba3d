//! Runs probes: one task each, for as long as its container runs.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::Request;
use hyper_util::rt::TokioIo;
use hyperion_proto::agent_v1::HttpGet;
use hyperion_proto::agent_v1::probe::Handler;
use hyperion_proto::domain::ReplicaKey;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;

use super::insecure_tls;
use super::notice::Notice;
use super::probe::{Counter, Kind, Spec};
use crate::runtime::{Cri, shorten};

/// What is probed.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub key: ReplicaKey,
    pub container: String,
    /// Address that HTTP and TCP probes go to.
    pub host: String,
    pub started: Instant,
}

/// Probes until aborted, or until nobody listens.
pub(super) async fn run(
    cri: Cri,
    target: Target,
    kind: Kind,
    spec: Spec,
    notices: mpsc::Sender<Notice>,
) {
    // A container that was adopted has had its delay.
    let delay = spec.initial_delay.saturating_sub(target.started.elapsed());
    tokio::time::sleep(delay).await;
    let mut counter = Counter::new(kind);
    loop {
        let result = match once(&cri, &target, &spec).await {
            Some(result) => result,
            // The runtime is away: that says nothing about the container.
            None => {
                tokio::time::sleep(spec.period).await;
                continue;
            }
        };
        if let Some(verdict) = counter.take(&spec, result) {
            let notice = Notice::Probe {
                key: target.key.clone(),
                container: target.container.clone(),
                kind,
                verdict,
            };
            if notices.send(notice).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(counter.wait(&spec)).await;
    }
}

async fn once(cri: &Cri, target: &Target, spec: &Spec) -> Option<Result<(), String>> {
    let timed_out = || Err(format!("no answer within {} s", spec.timeout.as_secs()));
    match &spec.handler {
        Handler::TcpPort(port) => {
            let connect = TcpStream::connect((target.host.as_str(), number(*port)));
            Some(match tokio::time::timeout(spec.timeout, connect).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(format!("TCP port {port}: {error}")),
                Err(_) => timed_out(),
            })
        }
        Handler::HttpGet(get) => {
            let request = http(&target.host, get);
            Some(match tokio::time::timeout(spec.timeout, request).await {
                Ok(result) => result,
                Err(_) => timed_out(),
            })
        }
        Handler::Exec(exec) => exec_once(cri, &target.container, &exec.command, spec.timeout).await,
    }
}

async fn exec_once(
    cri: &Cri,
    container: &str,
    command: &[String],
    timeout: Duration,
) -> Option<Result<(), String>> {
    match cri.exec(container, command, timeout).await {
        Ok(done) if done.exit_code == 0 => Some(Ok(())),
        Ok(done) => Some(Err(format!(
            "exit code {}: {}",
            done.exit_code,
            shorten(&String::from_utf8_lossy(&done.output))
        ))),
        Err(error) if error.is_unavailable() => None,
        Err(error) => Some(Err(error.to_string())),
    }
}

/// Ports are checked where the wire is read; one that is not connects nowhere.
fn number(port: u32) -> u16 {
    port.try_into().unwrap_or(0)
}

/// Good from 200 to 399, as Kubernetes has it; redirections are not followed.
async fn http(host: &str, get: &HttpGet) -> Result<(), String> {
    let port = number(get.port);
    let name = |error: &dyn std::fmt::Display| format!("GET {host}:{port}{}: {error}", get.path);
    let stream = TcpStream::connect((host, port))
        .await
        .map_err(|e| name(&e))?;
    if !get.scheme.eq_ignore_ascii_case("https") {
        return ask(stream, host, port, get).await.map_err(|e| name(&e));
    }
    let config = insecure_tls::config().map_err(|e| name(&e))?;
    let server = ServerName::try_from(host.to_owned()).map_err(|e| name(&e))?;
    let stream = TlsConnector::from(config).connect(server, stream).await;
    let stream = stream.map_err(|e| name(&e))?;
    ask(stream, host, port, get).await.map_err(|e| name(&e))
}

async fn ask<S>(stream: S, host: &str, port: u16, get: &HttpGet) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    let path = if get.path.starts_with('/') {
        get.path.clone()
    } else {
        format!("/{}", get.path)
    };
    let given = |header: &str| {
        get.headers
            .iter()
            .any(|h| h.name.eq_ignore_ascii_case(header))
    };
    let mut request = Request::get(path);
    if !given("host") {
        request = request.header("host", format!("{host}:{port}"));
    }
    if !given("user-agent") {
        request = request.header("user-agent", "hyperion-probe");
    }
    for header in &get.headers {
        request = request.header(&header.name, &header.value);
    }
    let request = request
        .header("connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| e.to_string())?;
    // Both in one task: when the answer is there, or time is up, the connection is dropped.
    let answer = async {
        tokio::select! {
            answer = sender.send_request(request) => answer,
            Err(error) = connection => Err(error),
        }
    };
    let status = answer.await.map_err(|e| e.to_string())?.status();
    if status.is_success() || status.is_redirection() {
        Ok(())
    } else {
        Err(format!("status {}", status.as_u16()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::pki_types::PrivateKeyDer;

    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn answering(with: &'static str) -> (HttpGet, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port().into();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let n = stream.read(&mut request).await.unwrap();
            stream.write_all(with.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&request[..n]).into_owned()
        });
        let get = HttpGet {
            path: "healthz".into(),
            port,
            ..Default::default()
        };
        (get, server)
    }

    #[tokio::test]
    async fn redirections_are_good_and_errors_name_the_address() {
        let (get, server) = answering("HTTP/1.1 302 Found\r\nlocation: /x\r\n\r\n").await;
        http("127.0.0.1", &get).await.unwrap();
        assert!(server.await.unwrap().starts_with("GET /healthz HTTP/1.1"));
        let (get, _server) = answering("HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n").await;
        let error = http("127.0.0.1", &get).await.unwrap_err();
        assert!(
            error.contains("127.0.0.1") && error.contains("503"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn https_is_asked_whatever_the_certificate() {
        let made = rcgen::generate_simple_self_signed(["elsewhere".to_owned()]).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port().into();
        let server = tokio::spawn(async move {
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = acceptor.accept(stream).await.unwrap();
            let mut request = vec![0; 4096];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            stream.write_all(answer).await.unwrap();
        });
        let mut get = HttpGet {
            path: "/".into(),
            port,
            scheme: "HTTPS".into(),
            ..Default::default()
        };
        http("127.0.0.1", &get).await.unwrap();
        server.await.unwrap();
        // Plain HTTP on the other side is an error, not a wait.
        let (plain, _server) = answering("HTTP/1.1 200 OK\r\n\r\n").await;
        get.port = plain.port;
        assert!(http("127.0.0.1", &get).await.is_err());
    }

    #[tokio::test]
    async fn an_answer_that_is_not_http_is_an_error() {
        let (get, _server) = answering("SSH-2.0-x\r\n").await;
        assert!(http("127.0.0.1", &get).await.is_err());
        let (mut get, _server) = answering("").await;
        get.headers.push(hyperion_proto::agent_v1::EnvVar {
            name: "bad header\n".into(),
            value: "x".into(),
        });
        assert!(http("127.0.0.1", &get).await.is_err());
    }
}
