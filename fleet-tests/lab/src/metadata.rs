//! A stand-in for the metadata service of one machine in a cloud, that answers as the three clouds
//! document it: their ways to refuse, too.
//!
//! - AWS, instance metadata service version 2: a token by `PUT` with its time to live, 401 without
//!   one; `spot/instance-action` and `events/recommendations/rebalance` are 404 until there is one.
//! - Google Cloud: 403 without `Metadata-Flavor: Google`, which answers carry, too; with
//!   `wait_for_change` an answer waits until the value is another than that of `last_etag`.
//! - Azure: 400 without `Metadata: true` or without a version; scheduled events as one document, whose
//!   incarnation grows with each change.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde_json::json;

/// A cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cloud {
    /// Amazon Web Services.
    Aws,
    /// Google Cloud.
    Gcp,
    /// Microsoft Azure.
    Azure,
}

impl Cloud {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Aws, Self::Gcp, Self::Azure];

    /// Provider, as labels say it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Aws => "aws",
            Self::Gcp => "gcp",
            Self::Azure => "azure",
        }
    }

    /// Time from the notice to the end of the machine, as it is documented.
    #[must_use]
    pub const fn lead(self) -> Duration {
        match self {
            Self::Aws => Duration::from_secs(120),
            Self::Gcp | Self::Azure => Duration::from_secs(30),
        }
    }

    /// The machine of a lab that stands for one of this cloud: region, two zones and a type.
    #[must_use]
    pub const fn place(self) -> (&'static str, [&'static str; 2], &'static str) {
        match self {
            Self::Aws => ("us-east-1", ["us-east-1a", "us-east-1b"], "m5.xlarge"),
            Self::Gcp => (
                "us-central1",
                ["us-central1-a", "us-central1-b"],
                "n2-standard-4",
            ),
            Self::Azure => ("eastus", ["eastus-1", "eastus-2"], "Standard_D4s_v5"),
        }
    }
}

/// Token that the stand-in gives.
const TOKEN: &str = "stand-in";

#[derive(Debug, Default)]
struct State {
    /// When the machine is taken back.
    end: Option<Timestamp>,
    /// When a recommendation to leave it was made.
    rebalance: Option<Timestamp>,
    version: u64,
}

#[derive(Debug)]
struct Shared {
    cloud: Cloud,
    machine: String,
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
}

/// Serves as long as it lives.
#[derive(Debug)]
pub struct Metadata {
    shared: Arc<Shared>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Metadata {
    /// Serves for a machine of this name, on loopback.
    ///
    /// # Errors
    /// No port is free.
    pub fn serve(cloud: Cloud, machine: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("metadata service")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            cloud,
            machine: machine.to_owned(),
            state: Mutex::default(),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let serving = shared.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if serving.stop.load(Ordering::SeqCst) {
                    return;
                }
                let shared = serving.clone();
                std::thread::spawn(move || {
                    // Who hangs up needs no answer.
                    let _ = shared.answer(&stream);
                });
            }
        });
        Ok(Self {
            shared,
            address,
            thread: Some(thread),
        })
    }

    /// For `--cloud-metadata-url`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The cloud takes the machine back, with the notice that it documents.
    pub fn take_back(&self) {
        let end = Timestamp::now() + self.shared.cloud.lead();
        self.shared.change(|state| state.end = Some(end));
    }

    /// The cloud recommends to leave the machine; only AWS does.
    pub fn recommend(&self) {
        self.shared
            .change(|state| state.rebalance = Some(Timestamp::now()));
    }

    /// What was said does not hold any more.
    pub fn withdraw(&self) {
        self.shared
            .change(|state| (state.end, state.rebalance) = (None, None));
    }
}

impl Drop for Metadata {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.change(|_| {});
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

/// A request's method, path with query, and headers in lower case.
struct Request {
    method: String,
    path: String,
    query: String,
    headers: Vec<(String, String)>,
}

impl Request {
    fn read(stream: &TcpStream) -> Option<Self> {
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let mut lines = BufReader::new(stream).lines();
        let first = lines.next()?.ok()?;
        let mut words = first.split(' ');
        let (method, target) = (words.next()?.to_owned(), words.next()?);
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut headers = Vec::new();
        for line in lines {
            let line = line.ok()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':')?;
            headers.push((name.to_lowercase(), value.trim().to_owned()));
        }
        Some(Self {
            method,
            path: path.to_owned(),
            query: query.to_owned(),
            headers,
        })
    }

    fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(n, _)| n == name);
        found.map_or("", |(_, value)| value)
    }

    fn query(&self, name: &str) -> Option<&str> {
        let pairs = self
            .query
            .split('&')
            .filter_map(|pair| pair.split_once('='));
        pairs
            .filter(|(n, _)| *n == name)
            .map(|(_, v)| v)
            .next_back()
    }
}

/// Status, extra headers, body.
type Reply = (&'static str, String, String);

const NOT_FOUND: &str = "404 Not Found";

fn plain(status: &'static str, body: impl Into<String>) -> Reply {
    (status, String::new(), body.into())
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        state.version += 1;
        self.changed.notify_all();
    }

    fn answer(&self, stream: &TcpStream) -> std::io::Result<()> {
        let Some(request) = Request::read(stream) else {
            return Ok(());
        };
        let (status, headers, body) = match self.cloud {
            Cloud::Aws => self.aws(&request),
            Cloud::Gcp => self.gcp(&request),
            Cloud::Azure => self.azure(&request),
        };
        let mut stream = stream;
        write!(
            stream,
            "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
    }

    fn aws(&self, request: &Request) -> Reply {
        if request.path == "/latest/api/token" {
            let ttl = request.header("x-aws-ec2-metadata-token-ttl-seconds");
            let fits = ttl.parse::<u32>().is_ok_and(|t| (1..=21_600).contains(&t));
            return match (request.method.as_str(), fits) {
                ("PUT", true) => plain("200 OK", TOKEN),
                ("PUT", false) => plain("400 Bad Request", ""),
                _ => plain("405 Method Not Allowed", ""),
            };
        }
        if request.header("x-aws-ec2-metadata-token") != TOKEN {
            return plain("401 Unauthorized", "");
        }
        let state = self.lock();
        let body = match request.path.as_str() {
            "/latest/meta-data/spot/instance-action" => state
                .end
                .map(|end| json!({ "action": "terminate", "time": rfc3339(end) })),
            "/latest/meta-data/events/recommendations/rebalance" => state
                .rebalance
                .map(|at| json!({ "noticeTime": rfc3339(at) })),
            _ => None,
        };
        body.map_or_else(
            || plain(NOT_FOUND, "<h1>404 - Not Found</h1>"),
            |body| plain("200 OK", body.to_string()),
        )
    }

    fn gcp(&self, request: &Request) -> Reply {
        if request.header("metadata-flavor") != "Google" {
            return plain("403 Forbidden", "Missing Metadata-Flavor:Google header.");
        }
        let value = |state: &State| match request.path.as_str() {
            "/computeMetadata/v1/instance/preempted" => {
                Some(if state.end.is_some() { "TRUE" } else { "FALSE" })
            }
            "/computeMetadata/v1/instance/maintenance-event" => Some("NONE"),
            _ => None,
        };
        let mut state = self.lock();
        if request.query("wait_for_change") == Some("true") {
            let known = request.query("last_etag").unwrap_or_default().to_owned();
            let wait = request.query("timeout_sec").and_then(|t| t.parse().ok());
            let wait = Duration::from_secs(wait.unwrap_or(3600));
            let same = |state: &mut State| {
                value(state).is_some_and(|v| etag(v) == known) && !self.stop.load(Ordering::SeqCst)
            };
            let waited = self.changed.wait_timeout_while(state, wait, same);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let Some(value) = value(&state) else {
            return plain(NOT_FOUND, "");
        };
        let headers = format!("Metadata-Flavor: Google\r\nETag: {}\r\n", etag(value));
        ("200 OK", headers, value.to_owned())
    }

    fn azure(&self, request: &Request) -> Reply {
        if !request.header("metadata").eq_ignore_ascii_case("true") {
            return plain("400 Bad Request", r#"{"error":"Bad request"}"#);
        }
        if request.query("api-version").is_none() {
            return plain("400 Bad Request", r#"{"error":"no api-version"}"#);
        }
        let state = self.lock();
        match request.path.as_str() {
            "/metadata/instance/compute/name" => plain("200 OK", self.machine.as_str()),
            "/metadata/scheduledevents" => {
                let event = state.end.map(|end| {
                    json!({ "EventId": "f020ba2e-3bc0-4c40-a10b-86575a9eabd5",
                        "EventType": "Preempt", "ResourceType": "VirtualMachine",
                        "Resources": [self.machine], "EventStatus": "Scheduled",
                        "NotBefore": end.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string(),
                        "Description": "", "EventSource": "Platform", "DurationInSeconds": -1 })
                });
                let events: Vec<_> = event.into_iter().collect();
                let document = json!({ "DocumentIncarnation": state.version, "Events": events });
                plain("200 OK", document.to_string())
            }
            _ => plain(NOT_FOUND, ""),
        }
    }
}

fn rfc3339(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn etag(value: &str) -> String {
    let sum = value.bytes().map(u32::from).sum::<u32>();
    format!("{sum:016x}")
}
