//! Peers that multicast DNS tells of. What is heard there is only a hint where to call: anybody on
//! the network may say anything, and who answers has to show a certificate.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyperion_link::Identity;
use mdns_sd::{DaemonEvent, ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tracing::{debug, info, warn};

use super::dial;
use super::endpoint::Shared;

/// Service of the peers (RFC 6763; a name has at most 15 letters).
const SERVICE: &str = "_hyperion-peer._udp.local.";
/// Calls at a time to nodes that only multicast DNS knows.
const CALLS: usize = 8;
/// Shortest time between two calls because of what is said of one node.
const AGAIN: Duration = Duration::from_secs(30);
/// Nodes whose calls are remembered.
const REMEMBERED: usize = 512;
/// Addresses that are taken from one record.
const ADDRESSES: usize = 8;
/// Longest node id: a site's name, a dash and eight digits.
const MAX_ID: usize = 128;

/// What a record has to say to be of this fleet and site.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    fleet: String,
    site: String,
    node: String,
}

impl Mark {
    /// Hashes tell strangers nothing of names. The fleet's is of its CA: two fleets may have the
    /// same name.
    fn of(identity: &Identity) -> Self {
        Self {
            fleet: hash(identity.ca_fingerprint().unwrap_or_default().as_bytes()),
            site: hash(identity.site.as_bytes()),
            node: identity.node_id.clone(),
        }
    }

    /// The node and where it says that it is; none where the record is of somebody else, or none.
    fn read(&self, service: &ResolvedService) -> Option<(String, Vec<SocketAddr>)> {
        let text = |key: &str| service.get_property_val_str(key);
        if text("fleet") != Some(&self.fleet) || text("site") != Some(&self.site) {
            return None;
        }
        let node = text("node")?;
        let word = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if node == self.node || node.is_empty() || node.len() > MAX_ID || !node.chars().all(word) {
            return None;
        }
        let port = service.get_port();
        let mut addresses: Vec<SocketAddr> = service
            .get_addresses()
            .iter()
            .map(|scoped| SocketAddr::new(scoped.to_ip_addr(), port))
            .filter(usable)
            .collect();
        // IPv4 first: link-local IPv6 addresses need a scope that is lost here.
        addresses.sort_by_key(SocketAddr::is_ipv6);
        addresses.truncate(ADDRESSES);
        (!addresses.is_empty()).then(|| (node.to_owned(), addresses))
    }
}

fn usable(address: &SocketAddr) -> bool {
    let link_local = match address.ip() {
        IpAddr::V4(_) => false,
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let ip = address.ip();
    address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !link_local
}

fn hash(text: &[u8]) -> String {
    let digest = Sha256::digest(text);
    digest
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Announces this node and looks for others until the endpoint stops. A host without multicast goes
/// on without.
pub(super) fn start(shared: Arc<Shared>, identity: &Identity) {
    let mark = Mark::of(identity);
    let port = shared.endpoint.local_addr().map_or(0, |a| a.port());
    tokio::spawn(async move {
        if let Err(e) = run(&shared, mark, port).await {
            warn!(error = %e, "peers are not looked for by multicast DNS");
        }
    });
}

async fn run(shared: &Arc<Shared>, mark: Mark, port: u16) -> mdns_sd::Result<()> {
    let daemon = ServiceDaemon::new()?;
    let monitor = daemon.monitor()?;
    let name = hash(mark.node.as_bytes());
    let text = [
        ("fleet", mark.fleet.as_str()),
        ("site", mark.site.as_str()),
        ("node", mark.node.as_str()),
    ];
    let host = format!("{name}.local.");
    let service = ServiceInfo::new(SERVICE, &name, &host, "", port, &text[..])?.enable_addr_auto();
    let announced = service.get_fullname().to_owned();
    daemon.register(service)?;
    let found = daemon.browse(SERVICE)?;
    let mut calls = Calls::new();
    let mut complained = false;
    loop {
        tokio::select! {
            event = found.recv_async() => match event {
                Ok(ServiceEvent::ServiceResolved(service)) => {
                    if let Some((node, addresses)) = mark.read(&service) {
                        calls.hinted(shared, &node, &addresses);
                    }
                }
                Ok(_) => {}
                Err(_) => break,
            },
            event = monitor.recv_async() => match event {
                Ok(DaemonEvent::Error(e)) if !complained => {
                    complained = true;
                    info!(error = %e, "multicast DNS does not work on every interface");
                }
                Ok(_) => {}
                Err(_) => break,
            },
            () = shared.stop.cancelled() => break,
        }
    }
    // Others forget this node at once where that still gets out.
    let _ = daemon.unregister(&announced);
    let _ = daemon.shutdown();
    Ok(())
}

/// Calls to nodes that were hinted at.
struct Calls {
    called: HashMap<String, Instant>,
    turns: Arc<Semaphore>,
}

impl Calls {
    fn new() -> Self {
        Self {
            called: HashMap::new(),
            turns: Arc::new(Semaphore::new(CALLS)),
        }
    }

    /// Whether a node may be called because of a hint.
    fn may(&mut self, node: &str, now: Instant) -> bool {
        self.called
            .retain(|_, at| now.saturating_duration_since(*at) < AGAIN);
        if self.called.len() >= REMEMBERED || self.called.contains_key(node) {
            return false;
        }
        self.called.insert(node.to_owned(), now);
        true
    }

    /// A node that is known gets the addresses besides its own; one that is not is called, to see
    /// whether it is what the record says.
    fn hinted(&mut self, shared: &Arc<Shared>, node: &str, addresses: &[SocketAddr]) {
        {
            let mut state = shared.lock();
            if state.revoked.contains(node) {
                return;
            }
            if let Some(peer) = state.peers.get_mut(node) {
                for address in addresses.iter().rev() {
                    peer.hint(*address);
                }
                return;
            }
        }
        if !self.may(node, Instant::now()) {
            return;
        }
        let Ok(turn) = self.turns.clone().try_acquire_owned() else {
            self.called.remove(node);
            return;
        };
        debug!(%node, ?addresses, "found by multicast DNS");
        let (shared, addresses) = (shared.clone(), addresses.to_vec());
        tokio::spawn(async move {
            for address in addresses {
                if dial::call_address(&shared, &address.to_string())
                    .await
                    .is_some()
                {
                    break;
                }
            }
            drop(turn);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(node: &str) -> Mark {
        Mark {
            fleet: "f1".to_owned(),
            site: "s1".to_owned(),
            node: node.to_owned(),
        }
    }

    fn record(text: &[(&str, &str)], ip: &str, port: u16) -> ResolvedService {
        ServiceInfo::new(SERVICE, "x", "x.local.", ip, port, text)
            .unwrap()
            .as_resolved_service()
    }

    #[test]
    fn a_record_of_this_site_is_a_hint() {
        let text = [("fleet", "f1"), ("site", "s1"), ("node", "lab-2")];
        let read = mark("lab-1").read(&record(&text, "10.0.0.7,127.0.0.1", 7447));
        let (node, addresses) = read.unwrap();
        assert_eq!(node, "lab-2");
        assert!(
            addresses.contains(&"10.0.0.7:7447".parse().unwrap()),
            "{addresses:?}"
        );
    }

    #[test]
    fn other_records_and_bad_ones_are_ignored() {
        let long = "x".repeat(200);
        for (text, ip, port) in [
            (
                [("fleet", "f2"), ("site", "s1"), ("node", "lab-2")],
                "10.0.0.7",
                7447,
            ),
            (
                [("fleet", "f1"), ("site", "s2"), ("node", "lab-2")],
                "10.0.0.7",
                7447,
            ),
            (
                [("fleet", "f1"), ("site", "s1"), ("node", "lab-1")],
                "10.0.0.7",
                7447,
            ),
            (
                [("fleet", "f1"), ("site", "s1"), ("node", "")],
                "10.0.0.7",
                7447,
            ),
            (
                [("fleet", "f1"), ("site", "s1"), ("node", "a b\n")],
                "10.0.0.7",
                7447,
            ),
            (
                [("fleet", "f1"), ("site", "s1"), ("node", &long)],
                "10.0.0.7",
                7447,
            ),
            (
                [("fleet", "f1"), ("site", "s1"), ("nod", "lab-2")],
                "10.0.0.7",
                7447,
            ),
            (
                [("fleet", "f1"), ("site", "s1"), ("node", "lab-2")],
                "10.0.0.7",
                0,
            ),
            (
                [("fleet", "f1"), ("site", "s1"), ("node", "lab-2")],
                "224.0.0.7",
                7447,
            ),
            (
                [("fleet", "f1"), ("site", "s1"), ("node", "lab-2")],
                "0.0.0.0",
                7447,
            ),
        ] {
            let read = mark("lab-1").read(&record(&text, ip, port));
            assert_eq!(read, None, "{text:?} {ip}:{port}");
        }
    }

    #[test]
    fn a_node_is_not_called_for_every_record() {
        let mut calls = Calls::new();
        let now = Instant::now();
        assert!(calls.may("a", now));
        assert!(!calls.may("a", now));
        assert!(calls.may("a", now + AGAIN));
        let many = (0..10_000).filter(|i| calls.may(&format!("n{i}"), now + AGAIN));
        assert_eq!(many.count(), REMEMBERED - 1);
    }

    #[test]
    fn marks_tell_no_names() {
        let identity = Identity {
            node_id: "lab-1".to_owned(),
            site: "lab".to_owned(),
            key_der: Vec::new(),
            chain_der: vec![Vec::new(), b"ca".to_vec()],
        };
        let mark = Mark::of(&identity);
        assert_eq!((mark.fleet.len(), mark.site.len()), (16, 16));
        assert_ne!(mark.fleet, mark.site);
    }
}
