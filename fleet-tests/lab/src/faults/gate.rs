//! Stands between the control plane and the API servers that it writes to, counts what it writes, and
//! kills it at the write that it is told: just before the API server gets it, or just after.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::header::{AUTHORIZATION, HOST};
use http::{Method, StatusCode};
use rustix::process::Signal;
use tokio::runtime::Runtime;

use crate::process::ProcessId;
use crate::watch;

/// Objects of the API are at most 3 MiB.
const LARGEST: usize = 4 << 20;

/// When the control plane dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// The write is not forwarded.
    Before,
    /// The write is done, and its answer not delivered.
    After,
}

impl When {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Before, Self::After];

    /// In a word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "after",
        }
    }
}

#[derive(Debug, Default)]
struct Ledger {
    writes: Vec<String>,
    armed: Option<(usize, When, ProcessId)>,
    /// The write at which it was killed.
    hit: Option<String>,
}

/// What gates count and do together; all gates of one control plane share it.
#[derive(Debug, Clone, Default)]
pub struct Trap(Arc<Mutex<Ledger>>);

impl Trap {
    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts anew; at the `nth` write (from 1) the process dies.
    pub fn arm(&self, nth: usize, when: When, victim: ProcessId) {
        *self.lock() = Ledger {
            armed: Some((nth, when, victim)),
            ..Ledger::default()
        };
    }

    /// Nobody dies any more.
    pub fn disarm(&self) {
        self.lock().armed = None;
    }

    /// The write at which it was killed, where it was.
    #[must_use]
    pub fn hit(&self) -> Option<String> {
        self.lock().hit.clone()
    }

    /// What was written since it was armed.
    #[must_use]
    pub fn writes(&self) -> Vec<String> {
        self.lock().writes.clone()
    }

    /// Counts a write. Who is to die, and when, if it is this one. After a death nothing more of the
    /// dead is forwarded.
    fn count(&self, write: &str) -> Option<(When, ProcessId)> {
        let mut ledger = self.lock();
        ledger.writes.push(write.to_owned());
        let at = ledger.writes.len();
        let (nth, when, victim) = ledger.armed?;
        if at < nth {
            return None;
        }
        if at > nth {
            return Some((When::Before, victim));
        }
        ledger.hit = Some(write.to_owned());
        if when == When::Before {
            victim.signal(Signal::KILL);
        }
        Some((when, victim))
    }
}

/// Serves until the runtime ends.
#[derive(Debug)]
pub struct Gate {
    address: SocketAddr,
}

#[derive(Clone)]
struct Forward {
    name: String,
    client: kube::Client,
    trap: Trap,
}

impl Gate {
    /// Serves on loopback what the API server of this kubeconfig serves, with that one's rights.
    ///
    /// # Errors
    /// The kubeconfig can't be used, or no port is free.
    pub fn open(runtime: &Runtime, name: &str, kubeconfig: &Path, trap: &Trap) -> Result<Self> {
        runtime.block_on(async {
            let state = Forward {
                name: name.to_owned(),
                client: watch::client(kubeconfig).await?,
                trap: trap.clone(),
            };
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
            let address = listener.local_addr()?;
            let router = axum::Router::new().fallback(forward).with_state(state);
            tokio::spawn(async move {
                // It ends with the runtime.
                let _ended = axum::serve(listener, router).await;
            });
            Ok(Self { address })
        })
    }

    /// Writes a kubeconfig that leads here.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write_kubeconfig(&self, path: &Path) -> Result<PathBuf> {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: gate\nclusters:\n- name: gate\n  cluster:\n    \
             server: http://{}\ncontexts:\n- name: gate\n  context:\n    cluster: gate\n    user: gate\n    \
             namespace: default\nusers:\n- name: gate\n  user:\n    token: none\n",
            self.address
        );
        std::fs::write(path, text).with_context(|| path.display().to_string())?;
        Ok(path.to_owned())
    }
}

/// A write that is a step of something, in words. Signs of life are none: leases, events, what is asked
/// about rights, and what is told of nodes and clusters.
fn step(name: &str, method: &Method, path: &str) -> Option<String> {
    let reads = [Method::GET, Method::HEAD, Method::OPTIONS];
    let of_no_move = [
        "/leases",
        "/events",
        "/selfsubjectaccessreviews",
        "/hyperionnodes/",
        "/hyperionclusters/",
    ];
    if reads.contains(method) || of_no_move.iter().any(|part| path.contains(part)) {
        return None;
    }
    Some(format!("{method} {name}{path}"))
}

async fn forward(State(gate): State<Forward>, request: Request) -> Response {
    let write = step(&gate.name, request.method(), request.uri().path());
    let (mut parts, body) = request.into_parts();
    let Ok(bytes) = to_bytes(body, LARGEST).await else {
        return (StatusCode::PAYLOAD_TOO_LARGE, "too large").into_response();
    };
    let death = write.and_then(|write| gate.trap.count(&write));
    if matches!(death, Some((When::Before, _))) {
        return (StatusCode::BAD_GATEWAY, "nobody waits for this").into_response();
    }
    for header in [HOST, AUTHORIZATION] {
        parts.headers.remove(header);
    }
    let request = Request::from_parts(parts, kube::client::Body::from(bytes.to_vec()));
    // What was begun is finished, though the one who asked be dead.
    let sent = tokio::spawn(async move { gate.client.send(request).await }).await;
    if let Some((When::After, victim)) = death {
        victim.signal(Signal::KILL);
    }
    match sent {
        Ok(Ok(answer)) => answer.map(Body::new),
        Ok(Err(e)) => (StatusCode::BAD_GATEWAY, e.to_string()).into_response(),
        Err(e) => (StatusCode::BAD_GATEWAY, e.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_writes_that_change_what_runs() {
        let home = |method: &Method, path: &str| step("home", method, path).is_some();
        let placements = "/apis/hyperion.io/v1alpha1/namespaces/default/hyperionplacements";
        assert!(home(&Method::POST, placements));
        assert!(home(&Method::PATCH, &format!("{placements}/web-0/status")));
        assert!(home(
            &Method::DELETE,
            "/api/v1/namespaces/default/pods/web-0"
        ));
        assert!(!home(&Method::GET, placements));
        let lease =
            "/apis/coordination.k8s.io/v1/namespaces/hyperion-system/leases/hyperion-control";
        assert!(!home(&Method::PUT, lease));
        let node = "/apis/hyperion.io/v1alpha1/hyperionnodes/east.one/status";
        assert!(!home(&Method::PATCH, node));
    }

    #[test]
    fn the_nth_write_is_the_last_that_arrives() {
        // Nobody has this number: signals go nowhere.
        let nobody = ProcessId { pid: 0, started: 0 };
        for when in When::ALL {
            let trap = Trap::default();
            trap.arm(2, when, nobody);
            assert!(trap.count("first").is_none() && trap.hit().is_none());
            assert_eq!(trap.count("second").map(|d| d.0), Some(when));
            assert_eq!(trap.count("third").map(|d| d.0), Some(When::Before));
            assert_eq!(trap.hit().as_deref(), Some("second"));
            trap.disarm();
            assert!(trap.count("of the next process").is_none());
        }
    }
}
