//! The agent's local API: HTTP/1 on a unix socket.

use std::path::PathBuf;
use std::time::Duration;

use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use hyperion_wire::agent_v1::ReplicaRecord;
use hyperion_wire::peer_v1::Apply;
use prost::Message as _;
use serde_json::Value;
use tokio::net::UnixStream;

use super::model::SiteStatus;
use crate::error::{CliError, root_cause};
use crate::text::clean;

/// Time for a whole call; the agent itself gives up after 10 s.
const PATIENCE: Duration = Duration::from_secs(15);
/// Largest answer: a site of 4096 devices and its replicas.
const MAX_ANSWER: usize = 64 << 20;

/// The way to the agent on this device.
#[derive(Debug, Clone)]
pub struct SiteClient {
    /// Its socket.
    pub socket: PathBuf,
}

impl SiteClient {
    /// The site as the agent shows it.
    ///
    /// # Errors
    /// No agent answers, or it can't.
    pub async fn status(&self) -> Result<Value, CliError> {
        self.call(Method::GET, "/v1/site", Vec::new()).await
    }

    /// [`SiteClient::status`], read.
    ///
    /// # Errors
    /// As there, or an answer that is not understood.
    pub async fn site(&self) -> Result<SiteStatus, CliError> {
        let mut status: SiteStatus = serde_json::from_value(self.status().await?)
            .map_err(|e| self.nonsense(&e.to_string()))?;
        status.prepare();
        Ok(status)
    }

    /// Hands a workload to the site.
    ///
    /// # Errors
    /// What the agent refuses.
    pub async fn apply(&self, records: Vec<ReplicaRecord>) -> Result<(), CliError> {
        let body = Apply { records }.encode_to_vec();
        self.call(Method::POST, "/v1/apply", body).await.map(drop)
    }

    /// Deletes a workload at the site.
    ///
    /// # Errors
    /// What the agent refuses.
    pub async fn delete(&self, namespace: &str, name: &str) -> Result<(), CliError> {
        let path = format!("/v1/workloads/{namespace}/{name}");
        self.call(Method::DELETE, &path, Vec::new()).await.map(drop)
    }

    async fn call(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Value, CliError> {
        let called = tokio::time::timeout(PATIENCE, self.exchange(method, path, body)).await;
        let (code, bytes) = called.map_err(|_| {
            CliError::new(format!(
                "the agent at {} did not answer within {} s",
                self.socket.display(),
                PATIENCE.as_secs()
            ))
        })??;
        let answer: Value =
            serde_json::from_slice(&bytes).map_err(|e| self.nonsense(&e.to_string()))?;
        if code.is_success() {
            return Ok(answer);
        }
        match answer["error"].as_str() {
            Some(said) => Err(CliError::new(clean(said))),
            None => Err(self.nonsense(&format!("status {code}"))),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes), CliError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|e| self.away(&e))?;
        let broken = |e: &(dyn std::error::Error + 'static)| {
            let cause = root_cause(e);
            CliError::new(format!("the agent at {}: {cause}", self.socket.display()))
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| broken(&e))?;
        // Ends with the connection; what goes wrong on it is told to the sender, too.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| broken(&e))?;
        let response = sender.send_request(request).await.map_err(|e| broken(&e))?;
        let code = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|e| broken(&*e))?;
        Ok((code, body.to_bytes()))
    }

    fn away(&self, error: &std::io::Error) -> CliError {
        let socket = self.socket.display();
        let (said, hint) = match error.kind() {
            std::io::ErrorKind::PermissionDenied => (
                format!("{socket}: only root may talk to the agent"),
                "try it with sudo",
            ),
            _ => (
                format!("no agent answers at {socket}: {error}"),
                "run this on a device of the site; --socket names the agent's --local-socket",
            ),
        };
        CliError::new(said).hint(hint)
    }

    fn nonsense(&self, problem: &str) -> CliError {
        CliError::new(format!(
            "the answer of the agent at {} could not be understood: {}",
            self.socket.display(),
            clean(problem)
        ))
        .hint("are hyperion and hyperion-agent of the same version?")
    }
}
