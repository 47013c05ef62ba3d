//! Calls.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hyperion_link::peer::SERVER_NAME;
use rand::RngExt;
use tracing::debug;

use super::endpoint::{HANDSHAKE, Shared};

/// Lead of each address over the next one.
const STAGGER: Duration = Duration::from_millis(200);
/// Addresses that are tried in one call.
const ADDRESSES: usize = 8;
/// Time for a name to be resolved.
const RESOLVE: Duration = Duration::from_secs(3);
/// Between looks whether a static address is still needed; longest wait between two calls of it.
const ALWAYS: Duration = Duration::from_secs(10);

/// Calls a peer at its addresses until one of them answers as this peer.
pub(super) async fn call(shared: Arc<Shared>, node: String, addresses: Vec<String>) {
    shared.counters.calls.add();
    let answered = {
        let mut attempts: FuturesUnordered<_> = addresses
            .into_iter()
            .take(ADDRESSES)
            .zip(0_u32..)
            .map(|(address, i)| {
                let shared = shared.clone();
                async move {
                    tokio::time::sleep(STAGGER * i).await;
                    call_address(&shared, &address).await
                }
            })
            .collect();
        let mut answered = false;
        while let Some(who) = attempts.next().await {
            // Somebody else may live at the address now; that connection is as good as any.
            answered = who.as_ref() == Some(&node);
            if answered {
                break;
            }
        }
        answered
    };
    if !answered {
        shared.counters.calls_failed.add();
    }
    let dropped = {
        let mut state = shared.lock();
        let peer = state.peers.get_mut(&node);
        peer.map_or((0, 0), |peer| peer.end_call(answered, Instant::now()))
    };
    for _ in 0..dropped.0 {
        shared.counters.datagrams_dropped.add();
    }
    for _ in 0..dropped.1 {
        shared.counters.frames_dropped.add();
    }
    shared.changed.notify_waiters();
}

/// Calls an address; the id of the node that answers and is heard.
pub(super) async fn call_address(shared: &Arc<Shared>, address: &str) -> Option<String> {
    let resolved = tokio::time::timeout(RESOLVE, tokio::net::lookup_host(address)).await;
    let resolved: Vec<SocketAddr> = match resolved {
        Ok(Ok(resolved)) => resolved.take(ADDRESSES).collect(),
        Ok(Err(e)) => {
            debug!(%address, error = %e, "no address");
            return None;
        }
        Err(_) => return None,
    };
    for remote in resolved {
        let Some(remote) = reachable(shared, remote) else {
            continue;
        };
        let client = {
            let state = shared.lock();
            state.circle.as_ref()?;
            state.client.clone()
        };
        let connecting = shared.endpoint.connect_with(client, remote, SERVER_NAME);
        let connected = match connecting {
            Ok(connecting) => tokio::time::timeout(HANDSHAKE, connecting).await,
            Err(e) => {
                debug!(%address, error = %e, "can't be called");
                continue;
            }
        };
        match connected {
            Ok(Ok(quic)) => {
                if let Some(node) = shared.admit(quic, true) {
                    return Some(node);
                }
            }
            Ok(Err(e)) => debug!(%address, error = %e, "no connection"),
            Err(_) => debug!(%address, "no answer"),
        }
    }
    None
}

/// The address as the socket's family wants it; none where it can't be reached from it.
fn reachable(shared: &Shared, remote: SocketAddr) -> Option<SocketAddr> {
    match (shared.endpoint.local_addr().ok()?, remote) {
        (SocketAddr::V6(_), SocketAddr::V4(v4)) => {
            Some((v4.ip().to_ipv6_mapped(), v4.port()).into())
        }
        (SocketAddr::V4(_), SocketAddr::V6(_)) => None,
        (_, remote) => Some(remote),
    }
}

/// Keeps calling an address while this node knows nobody: a static one is the way in when
/// everything else that was known is out of date.
pub(super) async fn always(shared: Arc<Shared>, address: String) {
    let mut wait = Duration::from_millis(300);
    let mut answered = false;
    loop {
        let needed = !answered || shared.lock().live() == 0;
        if needed {
            answered = call_address(&shared, &address).await.is_some();
            wait = if answered { ALWAYS } else { wait * 2 }.min(ALWAYS);
        }
        let jittered = wait.mul_f64(rand::rng().random_range(0.5..1.0));
        tokio::select! {
            () = tokio::time::sleep(jittered) => {}
            () = shared.stop.cancelled() => return,
        }
    }
}
