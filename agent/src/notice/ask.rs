//! One request to a metadata service. It goes to one address, over no proxy, follows no redirect,
//! and has a time and a size that it can't exceed, whatever answers there.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::header::{HOST, HeaderMap};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Longest answer, bytes. Azure names every machine of an event, at most a few hundred.
const LONGEST: usize = 256 * 1024;

/// Where a metadata service is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// "HOST:PORT".
    authority: String,
}

impl Default for Base {
    /// The link-local address that all three clouds have: no name has to be resolved.
    fn default() -> Self {
        Self {
            authority: "169.254.169.254:80".to_owned(),
        }
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority)
    }
}

impl FromStr for Base {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text
            .strip_prefix("http://")
            .ok_or("does not begin with http://")?;
        let rest = rest.trim_end_matches('/');
        let authority: hyper::http::uri::Authority = rest
            .parse()
            .map_err(|_| format!("{rest:?} is not HOST or HOST:PORT"))?;
        if authority.as_str().contains('@') {
            return Err("a user is named".to_owned());
        }
        let port = authority.port_u16().unwrap_or(80);
        Ok(Self {
            authority: format!("{}:{port}", authority.host()),
        })
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// No connection, or one that breaks.
    #[error("{0}")]
    Network(String),
    /// In this time.
    #[error("no answer in {0:?}")]
    Late(Duration),
    /// Another status than a service of this kind has.
    #[error("{path}: status {status}")]
    Status { path: String, status: StatusCode },
    /// It is not what it should be.
    #[error("{path}: {what}")]
    Odd { path: String, what: String },
}

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

/// Asks one service.
#[derive(Debug, Clone)]
pub(super) struct Client {
    base: Base,
    /// Name that the service answers to.
    host: &'static str,
}

impl Client {
    pub fn new(base: &Base, host: &'static str) -> Self {
        Self {
            base: base.clone(),
            host,
        }
    }

    /// Asks; any status is an answer.
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, &str)],
        patience: Duration,
    ) -> Result<Answer, Trouble> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.host);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let odd = |what: String| Trouble::Odd {
            path: path.to_owned(),
            what,
        };
        let request = request
            .body(Empty::<Bytes>::new())
            .map_err(|e| odd(e.to_string()))?;
        let answer = async {
            let stream = TcpStream::connect(&self.base.authority)
                .await
                .map_err(|e| Trouble::Network(e.to_string()))?;
            let network = |e: hyper::Error| Trouble::Network(e.to_string());
            let (mut send, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream))
                    .await
                    .map_err(network)?;
            // Both in this task: where it is given up, nothing goes on behind it.
            let answer = async {
                let answer = send.send_request(request).await.map_err(network)?;
                let (head, body) = answer.into_parts();
                let body = Limited::new(body, LONGEST).collect().await;
                let body = body.map_err(|e| odd(e.to_string()))?.to_bytes();
                let body = String::from_utf8(body.into())
                    .map_err(|_| odd("the answer is no text".to_owned()))?;
                Ok(Answer {
                    status: head.status,
                    headers: head.headers,
                    body,
                })
            };
            tokio::pin!(answer, connection);
            let mut open = true;
            loop {
                tokio::select! {
                    answer = &mut answer => return answer,
                    // What it ended with is what the answer ends with.
                    _ = &mut connection, if open => open = false,
                }
            }
        };
        tokio::time::timeout(patience, answer)
            .await
            .map_err(|_| Trouble::Late(patience))?
    }

    /// `GET`; the answer of a 200, or none where there is no such thing (404).
    pub async fn get(
        &self,
        path: &str,
        headers: &[(&'static str, &str)],
        patience: Duration,
    ) -> Result<Option<Answer>, Trouble> {
        let answer = self.ask(Method::GET, path, headers, patience).await?;
        match answer.status {
            StatusCode::OK => Ok(Some(answer)),
            StatusCode::NOT_FOUND => Ok(None),
            status => Err(Trouble::Status {
                path: path.to_owned(),
                status,
            }),
        }
    }
}

/// Where an answer is not what it should be.
pub(super) fn odd(path: &str, what: impl fmt::Display) -> Trouble {
    Trouble::Odd {
        path: path.to_owned(),
        what: what.to_string(),
    }
}

/// The cloud's words, fit for people and logs.
pub(super) fn words(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}
