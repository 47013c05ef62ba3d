//! Requests of strangers: bounded in time and size, and every kind of bad answer told apart.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use jiff::Timestamp;

use super::{Failure, Reason};

/// Time for one request, from the name's look-up to the last byte. Measured answers take less than
/// ten seconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of one answer. The largest, 1,000 SKUs of GCP, has about 1.6 million.
const MOST_BYTES: usize = 16 << 20;
/// Time to find credentials: some are asked of servers that may hang.
pub(super) const CREDENTIALS: Duration = Duration::from_secs(60);
/// The longest that a feed lets itself be sent away for.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// Bounds on one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Time for all of it.
    pub patience: Duration,
    /// Bytes of its body.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            patience: PATIENCE,
            bytes: MOST_BYTES,
        }
    }
}

/// An HTTP client. It follows no redirects.
#[derive(Debug, Clone)]
pub struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    limits: Limits,
}

impl Http {
    /// With the roots that the machine trusts.
    ///
    /// # Errors
    /// There are none.
    pub fn new(limits: Limits) -> std::io::Result<Self> {
        let provider = rustls::crypto::ring::default_provider();
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(provider)?
            .https_or_http()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(connector);
        Ok(Self { client, limits })
    }

    /// The body of the answer. `what` names the request in failures.
    ///
    /// # Errors
    /// Whatever kept a body with something in it from coming, as [`Reason`] tells apart.
    pub async fn send(&self, request: Request<Full<Bytes>>, what: &str) -> Result<Bytes, Failure> {
        tokio::time::timeout(self.limits.patience, self.exchange(request, what))
            .await
            .unwrap_or_else(|_| {
                let text = format!(
                    "no whole answer within {} s",
                    self.limits.patience.as_secs()
                );
                Err(Failure::new(Reason::Timeout, what, text))
            })
    }

    async fn exchange(&self, request: Request<Full<Bytes>>, what: &str) -> Result<Bytes, Failure> {
        let answer = self
            .client
            .request(request)
            .await
            .map_err(|e| Failure::new(Reason::Network, what, chain(&e)))?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, self.limits.bytes)
            .collect()
            .await
            .map_err(|e| {
                if e.is::<LengthLimitError>() {
                    let text = format!("more than {} bytes", self.limits.bytes);
                    Failure::new(Reason::TooLarge, what, text)
                } else {
                    Failure::new(Reason::Network, what, chain(&*e))
                }
            })?
            .to_bytes();
        judge(head.status, &head.headers, &body).map_err(|(reason, text)| Failure {
            retry_after: retry_after(&head.headers, Timestamp::now()),
            ..Failure::new(reason, what, text)
        })?;
        Ok(body)
    }
}

/// `text` as an address of a feed.
///
/// # Errors
/// It is none, or not over HTTP.
pub(super) fn address(text: &str, what: &str) -> Result<Uri, Failure> {
    let wrong = |text: String| Failure::new(Reason::Pages, what, text);
    let uri: Uri = text
        .parse()
        .map_err(|e| wrong(format!("{text:?} is no address: {e}")))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(_)) => Ok(uri),
        _ => Err(wrong(format!("{text:?} is no address of a web page"))),
    }
}

/// True where both are of one server.
pub(super) fn same_server(a: &Uri, b: &Uri) -> bool {
    let usual = |uri: &Uri| {
        if uri.scheme_str() == Some("http") {
            80
        } else {
            443
        }
    };
    let port = |uri: &Uri| uri.port_u16().unwrap_or_else(|| usual(uri));
    a.scheme() == b.scheme() && a.host() == b.host() && port(a) == port(b)
}

/// What is wrong with an answer whose body came whole.
fn judge(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Result<(), (Reason, String)> {
    // Errors of AWS and GCP begin with a code in a few hundred bytes.
    let start = String::from_utf8_lossy(body.get(..2048).unwrap_or(body));
    let start = start.trim_start_matches('\u{feff}').trim_start();
    let throttled = ["RequestLimitExceeded", "Throttling", "RESOURCE_EXHAUSTED"]
        .iter()
        .any(|code| start.contains(code));
    let said = || format!("status {status}: {start}");
    if status == StatusCode::TOO_MANY_REQUESTS || (!status.is_success() && throttled) {
        return Err((Reason::RateLimited, said()));
    }
    if status.is_server_error() {
        return Err((Reason::Server, said()));
    }
    // EC2 refuses unknown credentials with 401, the price list with 400 and a code.
    let refused = [
        "UnrecognizedClient",
        "InvalidSignature",
        "ExpiredToken",
        "API_KEY_INVALID",
    ]
    .iter()
    .any(|code| start.contains(code));
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
        || (!status.is_success() && refused)
    {
        return Err((Reason::Credentials, said()));
    }
    if !status.is_success() {
        return Err((Reason::Status, said()));
    }
    if start.is_empty() {
        return Err((Reason::Empty, "an answer without a word".to_owned()));
    }
    let declared = headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.starts_with("text/html"));
    let lower = start.get(..14).unwrap_or_default().to_ascii_lowercase();
    if declared || lower.starts_with("<!doctype html") || lower.starts_with("<html") {
        return Err((
            Reason::Html,
            "a web page, where data was expected".to_owned(),
        ));
    }
    Ok(())
}

/// How long the other side wants to be left alone: seconds, or a time.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let pause = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let at = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
            Duration::try_from(at.duration_since(now)).unwrap_or_default()
        }
    };
    Some(pause.min(LONGEST_PAUSE))
}

/// An error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(header::HeaderName, &str)]) -> HeaderMap {
        let pair = |(name, value): &(header::HeaderName, &str)| {
            (name.clone(), value.parse().expect("a header value"))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn pauses_are_read_as_seconds_or_as_a_time() {
        let now: Timestamp = "1994-11-06T08:49:00Z".parse().expect("a time");
        let of = |text: &str| retry_after(&headers(&[(header::RETRY_AFTER, text)]), now);
        assert_eq!(of("120"), Some(Duration::from_secs(120)));
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(of(date), Some(Duration::from_secs(37)));
        let past = "Sun, 06 Nov 1994 08:00:00 GMT";
        assert_eq!(of(past), Some(Duration::ZERO));
        assert_eq!(of("99999999999"), Some(LONGEST_PAUSE));
        assert_eq!(of("-5"), None);
        assert_eq!(of("soon"), None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

    #[test]
    fn bad_answers_are_told_apart() {
        let html = headers(&[(header::CONTENT_TYPE, "text/html; charset=utf-8")]);
        let none = HeaderMap::new();
        let reason = |status: u16, headers: &HeaderMap, body: &str| {
            let status = StatusCode::from_u16(status).expect("a status");
            judge(status, headers, body.as_bytes()).err().map(|e| e.0)
        };
        assert_eq!(reason(200, &none, "{}"), None);
        assert_eq!(reason(429, &none, ""), Some(Reason::RateLimited));
        assert_eq!(reason(500, &html, "<html>"), Some(Reason::Server));
        let code = "<Code>RequestLimitExceeded</Code>";
        assert_eq!(reason(503, &none, code), Some(Reason::RateLimited));
        let code = r#"{"__type":"ThrottlingException"}"#;
        assert_eq!(reason(400, &none, code), Some(Reason::RateLimited));
        let code = r#"{"__type":"UnrecognizedClientException"}"#;
        assert_eq!(reason(400, &none, code), Some(Reason::Credentials));
        assert_eq!(reason(403, &none, ""), Some(Reason::Credentials));
        assert_eq!(reason(404, &none, ""), Some(Reason::Status));
        assert_eq!(reason(302, &none, ""), Some(Reason::Status));
        assert_eq!(reason(200, &html, "{}"), Some(Reason::Html));
        assert_eq!(
            reason(200, &none, "\u{feff} <!DOCTYPE HTML>"),
            Some(Reason::Html)
        );
        assert_eq!(reason(200, &none, "  \n"), Some(Reason::Empty));
    }

    #[test]
    fn the_usual_port_need_not_be_said() {
        let uri = |text: &str| text.parse::<Uri>().expect("an address");
        let base = uri("https://prices.azure.com/api/retail/prices");
        assert!(same_server(
            &base,
            &uri("https://prices.azure.com:443/x?$skip=100")
        ));
        assert!(!same_server(&base, &uri("http://prices.azure.com/x")));
        assert!(!same_server(
            &base,
            &uri("https://prices.azure.com.evil.example/x")
        ));
        assert!(!same_server(&base, &uri("https://prices.azure.com:8443/x")));
    }
}
