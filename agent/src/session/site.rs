//! The site's side of a session: peers' messages in and out, the way through a peer, and what is
//! fetched from peers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyperion_link::Link;
use hyperion_proto::peer_v1::ApplyAnswer;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{debug, info};

use super::{Session, lock, now};
use crate::local::{self, LocalRequest, SiteStatus};
use crate::node::{Fetched, Node};
use crate::peers::{PeerEvent, PeersHandle, PolicyFile, PolicyFiles, Relay};
use crate::runtime::Cri;
use crate::status::Mode;
use crate::workloads::Workloads;

/// Peers that are asked for a policy, one after the other.
const ASKED: usize = 3;
/// Wait after a way through a peer could not be opened.
const RELAY_AGAIN: Duration = Duration::from_secs(2);
/// Results of tasks that may wait.
const DONE: usize = 16;
/// Time between two looks at images and own addresses.
const LOOK: Duration = Duration::from_secs(30);
/// Own addresses that are told at most.
const ADDRESSES: usize = 8;

/// Nodes that have an image, for those who fetch it.
pub type Holders = Arc<dyn Fn(&str) -> Vec<String> + Send + Sync>;

/// The policy files that this node has, for peers.
#[derive(Clone, Default)]
pub struct PolicyShelf(Arc<Mutex<BTreeMap<String, PolicyFile>>>);

impl PolicyShelf {
    /// For the endpoint of the peers.
    #[must_use]
    pub fn files(&self) -> PolicyFiles {
        let shelf = self.clone();
        Arc::new(move |sha256| {
            let files = shelf.0.lock().unwrap_or_else(PoisonError::into_inner);
            files.get(sha256).cloned()
        })
    }

    fn set(&self, files: BTreeMap<String, PolicyFile>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = files;
    }
}

/// What a session needs of the site; nothing of it is needed by a node alone.
#[derive(Default)]
pub struct SiteConfig {
    /// The endpoint, and what happens there.
    pub peers: Option<(PeersHandle, mpsc::Receiver<PeerEvent>)>,
    /// The policy files that the endpoint gives away.
    pub shelf: PolicyShelf,
    /// Is given the way to find out who has an image.
    pub holders: Option<Box<dyn FnOnce(Holders) + Send>>,
    /// Orders and questions of people at the site.
    pub local: Option<mpsc::Receiver<LocalRequest>>,
    /// Whose images are told to peers.
    pub images: Option<Cri>,
}

/// What a task brought.
#[derive(Debug)]
pub(super) enum Done {
    Relay(String, Option<Relay>),
    RelayEnded(String),
    Policy(Fetched),
    Images(Vec<String>),
}

/// The way through a peer.
#[derive(Default)]
enum Way {
    #[default]
    None,
    Opening(String),
    /// Not before this time again.
    Failed(String, std::time::Instant),
    /// The task owns the way: both end together.
    Open {
        peer: String,
        _task: Held,
    },
}

impl Way {
    fn peer(&self) -> Option<&str> {
        match self {
            Self::None => None,
            Self::Opening(peer) | Self::Failed(peer, _) | Self::Open { peer, .. } => Some(peer),
        }
    }
}

/// Ends a task when it is dropped.
struct Held(JoinSet<()>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.abort_all();
    }
}

/// State of the site's side.
pub(super) struct Net {
    pub peers: Option<PeersHandle>,
    pub events: mpsc::Receiver<PeerEvent>,
    pub local: mpsc::Receiver<LocalRequest>,
    pub done: mpsc::Receiver<Done>,
    results: mpsc::Sender<Done>,
    shelf: PolicyShelf,
    shelved: String,
    images: Option<Cri>,
    way: Way,
    told: BTreeMap<String, Vec<String>>,
    look_at: Option<std::time::Instant>,
}

impl Net {
    pub(super) fn new<W: Workloads>(config: SiteConfig, node: &Arc<Mutex<Node<W>>>) -> Self {
        let SiteConfig {
            peers,
            shelf,
            holders,
            local,
            images,
        } = config;
        if let Some(give) = holders {
            let node = node.clone();
            give(Arc::new(move |image| lock(&node).image_holders(image)));
        }
        let (peers, events) = peers.unzip();
        let (results, done) = mpsc::channel(DONE);
        // A channel whose sender is gone says nothing more.
        Self {
            peers,
            events: events.unwrap_or_else(|| mpsc::channel(1).1),
            local: local.unwrap_or_else(|| mpsc::channel(1).1),
            done,
            results,
            shelf,
            shelved: "none yet".to_owned(),
            images,
            way: Way::None,
            told: BTreeMap::new(),
            look_at: None,
        }
    }

    /// The peer that the link runs through, where it does.
    pub(super) fn through(&self) -> Option<&str> {
        match &self.way {
            Way::Open { peer, .. } => Some(peer),
            _ => None,
        }
    }

    pub(super) fn fetch_policy(&self, sha256: String, holders: Vec<String>) {
        let (Some(peers), results) = (self.peers.clone(), self.results.clone()) else {
            return;
        };
        tokio::spawn(async move {
            for peer in holders.into_iter().take(ASKED) {
                match peers.fetch_policy(&peer, &sha256).await {
                    Ok(PolicyFile { bytes, signature }) => {
                        let fetched = Fetched {
                            sha256,
                            file: bytes,
                            signature,
                        };
                        let _ = results.send(Done::Policy(fetched)).await;
                        return;
                    }
                    Err(e) => debug!(%peer, error = %e, "no policy"),
                }
            }
        });
    }

    fn open_way(&mut self, peer: &str) {
        let Some(peers) = self.peers.clone() else {
            return;
        };
        self.way = Way::Opening(peer.to_owned());
        let (peer, results) = (peer.to_owned(), self.results.clone());
        tokio::spawn(async move {
            let relay = match peers.relay(&peer).await {
                Ok(relay) => Some(relay),
                Err(e) => {
                    debug!(%peer, error = %e, "no way through the peer");
                    None
                }
            };
            let _ = results.send(Done::Relay(peer, relay)).await;
        });
    }

    fn hold_way(&self, peer: &str, relay: Relay) -> Held {
        let (peer, results) = (peer.to_owned(), self.results.clone());
        let mut task = JoinSet::new();
        task.spawn(async move {
            relay.ended().await;
            let _ = results.send(Done::RelayEnded(peer)).await;
        });
        Held(task)
    }

    fn list_images(&self) {
        let (Some(cri), results) = (self.images.clone(), self.results.clone()) else {
            return;
        };
        tokio::spawn(async move {
            if let Ok(images) = cri.image_names().await {
                let _ = results.send(Done::Images(images)).await;
            }
        });
    }
}

impl<W: Workloads> Session<W> {
    pub(super) fn peer_events(&mut self, first: PeerEvent) {
        let mut next = Some(first);
        let mut left = super::TOGETHER;
        while let Some(event) = next {
            self.peer_event(event);
            left -= 1;
            next = if left > 0 {
                self.net.events.try_recv().ok()
            } else {
                None
            };
        }
    }

    fn peer_event(&mut self, event: PeerEvent) {
        let mut node = lock(&self.node);
        match event {
            PeerEvent::Found { node: peer, .. } => node.found(&peer, now()),
            PeerEvent::Datagram { from, bytes } => node.datagram(&from, bytes, now()),
            PeerEvent::Frame { from, frame } => node.frame(&from, *frame, now()),
            PeerEvent::Apply {
                from,
                apply,
                answer,
            } => {
                info!(%from, replicas = apply.records.len(), "a peer hands over a local order");
                let result = local::check_records(&apply.records)
                    .and_then(|()| node.apply(apply.records, now(), &self.sender));
                let error = result.err().unwrap_or_default();
                let _ = answer.send(ApplyAnswer { error });
            }
            PeerEvent::Refused { peer, why } => node.peer_refused(&peer, &why, now()),
        }
    }

    pub(super) fn local_request(&mut self, request: LocalRequest) {
        let mut node = lock(&self.node);
        match request {
            LocalRequest::Status(answer) => {
                let mut view = node.view(&self.mode_why, now());
                if self.status.mode() == Mode::Refused {
                    let why = format!("kept out of the fleet: {}", self.status.reason());
                    view.problems.push(why);
                }
                let _ = answer.send(SiteStatus::from(view));
            }
            LocalRequest::Update(answer) => drop(answer.send(node.update_state())),
            LocalRequest::Install { order, answer } => {
                let _ = answer.send(node.update_here(&order, now(), &self.sender));
            }
            LocalRequest::Apply { records, answer } => {
                let _ = answer.send(node.apply(records, now(), &self.sender));
            }
            LocalRequest::Delete {
                namespace,
                workload,
                answer,
            } => {
                let result = node.delete(&namespace, &workload, now(), &self.sender);
                let _ = answer.send(result);
            }
        }
    }

    pub(super) fn done(&mut self, done: Done, link: &Link) {
        match done {
            Done::Relay(peer, relay) if self.net.way.peer() == Some(&peer) => match relay {
                Some(relay) => {
                    info!(%peer, "the control plane is tried through a peer");
                    link.set_via(Some(relay.address()));
                    let task = self.net.hold_way(&peer, relay);
                    self.net.way = Way::Open { peer, _task: task };
                }
                None => {
                    let at = now().at + RELAY_AGAIN;
                    self.net.way = Way::Failed(peer, at);
                }
            },
            // Not wanted any more.
            Done::Relay(..) => {}
            Done::RelayEnded(peer) => {
                if self.net.through() == Some(&peer) {
                    link.set_via(None);
                    self.net.way = Way::None;
                }
            }
            Done::Policy(fetched) => lock(&self.node).policy_fetched(fetched, now()),
            Done::Images(images) => lock(&self.node).set_images(images, now()),
        }
    }

    /// Opens, keeps or closes the way through a peer.
    pub(super) fn follow_way(&mut self, link: &Link) {
        let (linked, wanted) = {
            let node = lock(&self.node);
            (node.linked(), node.relay().map(str::to_owned))
        };
        if linked && self.sender.relayed() {
            // It is what the link runs on.
            return;
        }
        let wanted = if linked { None } else { wanted };
        match (&self.net.way, wanted) {
            (Way::None, None) => {}
            (way, Some(peer)) if way.peer() == Some(&peer) => {
                if matches!(way, Way::Failed(_, at) if *at <= now().at) {
                    self.net.open_way(&peer);
                }
            }
            (_, None) => {
                link.set_via(None);
                self.net.way = Way::None;
            }
            (_, Some(peer)) => {
                link.set_via(None);
                self.net.open_way(&peer);
            }
        }
    }

    /// Once a second: where peers are called, what they are given.
    pub(super) fn look_around(&mut self) {
        let now = now();
        if self.net.look_at.is_none_or(|at| now.at >= at) {
            self.net.look_at = Some(now.at + LOOK);
            self.net.list_images();
            if let Some(own) = self.own_addresses() {
                lock(&self.node).set_addresses(own, now);
            }
        }
        let node = lock(&self.node);
        let hash = node.decider().hash();
        if hash != self.net.shelved {
            hash.clone_into(&mut self.net.shelved);
            self.net.shelf.set(
                node.policy_files()
                    .map(|(sha256, bytes, signature)| (sha256, PolicyFile { bytes, signature }))
                    .collect(),
            );
        }
        let Some(peers) = &self.net.peers else {
            return;
        };
        for (peer, addresses) in node.addresses() {
            if self.net.told.get(&peer) != Some(&addresses) {
                peers.set_addresses(&peer, addresses.clone());
                self.net.told.insert(peer, addresses);
            }
        }
        self.status.set_peers(&peers.stats());
    }

    fn own_addresses(&self) -> Option<Vec<String>> {
        let listen = self.net.peers.as_ref()?.local_addr()?;
        if !listen.ip().is_unspecified() {
            return Some(vec![listen.to_string()]);
        }
        let interfaces = if_addrs::get_if_addrs().ok()?;
        let good = |ip: &std::net::IpAddr| match ip {
            std::net::IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
            std::net::IpAddr::V6(ip) => {
                listen.is_ipv6() && !ip.is_loopback() && !ip.is_unicast_link_local()
            }
        };
        let mut ips: Vec<_> = interfaces.iter().map(if_addrs::Interface::ip).collect();
        ips.retain(good);
        ips.sort_unstable();
        ips.dedup();
        ips.truncate(ADDRESSES);
        let all = ips.into_iter().map(|ip| SocketAddr::new(ip, listen.port()));
        Some(all.map(|address| address.to_string()).collect())
    }
}
