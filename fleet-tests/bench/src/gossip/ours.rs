//! Our members, in one process: each with an address and a task of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use hyperion_agent::peers::{self, PeerEvent, PeersConfig, PeersHandle};
use hyperion_autonomy::Profile;
use hyperion_autonomy::membership::{Membership, What};
use hyperion_gateway::pki::Authority;
use hyperion_gateway::testing::MemoryApi;
use hyperion_link::{Identity, identity};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::run::{self, System};
use super::tally::{Saw, Tally};
use super::{Args, Transport, net};
use hyperion_lab::proc;

/// The members that run.
pub(super) struct Members {
    stops: Vec<CancellationToken>,
    stalls: Arc<AtomicU64>,
}

impl Members {
    pub(super) async fn start(
        args: &Args,
        nodes: usize,
        tally: &Arc<Tally>,
    ) -> anyhow::Result<Self> {
        let profile = Profile::named(&args.profile).context("--profile")?;
        let identities = match args.transport {
            Transport::Udp => Vec::new(),
            Transport::Peers => identities(nodes).await?,
        };
        let mut identities = identities.into_iter();
        let stalls = Arc::new(AtomicU64::new(0));
        let mut stops = Vec::with_capacity(nodes);
        for index in 0..nodes {
            let stop = CancellationToken::new();
            let address = net::address(index);
            let (way, incoming) = match identities.next() {
                None => Way::udp(address).await?,
                Some(identity) => Way::peers(identity, address, index, nodes, &stop)?,
            };
            let started = Instant::now();
            let name = net::name(index);
            // As the agent knows its site: by the control plane's list.
            let seed = args.seed.wrapping_mul(1_000_003).wrapping_add(index as u64);
            let mut membership = Membership::new(&name, 1, &profile, seed, Duration::ZERO);
            for other in (0..nodes).filter(|other| *other != index) {
                membership.found(&net::name(other), Duration::ZERO);
            }
            let node = Node {
                index,
                membership,
                started,
                way,
                tally: Arc::clone(tally),
                suspicions: 0,
                stalls: 0,
                all_stalls: Arc::clone(&stalls),
            };
            tokio::spawn(node.run(incoming, stop.clone()));
            stops.push(stop);
            run::apart(index).await;
        }
        Ok(Self { stops, stalls })
    }
}

impl System for Members {
    fn kill(&mut self, node: usize) {
        if let Some(stop) = self.stops.get(node) {
            stop.cancel();
        }
    }

    fn cpu_seconds(&self) -> f64 {
        proc::cpu_seconds(std::process::id()).unwrap_or_default()
    }

    fn memory_bytes(&self) -> u64 {
        proc::rss_bytes(std::process::id()).unwrap_or_default()
    }

    fn stalls(&self) -> Option<u64> {
        Some(self.stalls.load(Ordering::Relaxed))
    }
}

/// Identities of a site, by a control plane's CA.
async fn identities(nodes: usize) -> anyhow::Result<Vec<Identity>> {
    let api = MemoryApi::default();
    let authority = Authority::ensure(&api.client(), "bench").await?;
    let mut identities = Vec::with_capacity(nodes);
    for index in 0..nodes {
        let key_der = identity::new_key()?;
        let request = identity::certificate_request(&key_der)?;
        let day = Duration::from_secs(86_400);
        let chain_der = authority.sign_node(&request, &net::name(index), "site", day)?;
        identities.push(Identity {
            node_id: net::name(index),
            site: "site".to_owned(),
            key_der,
            chain_der,
        });
    }
    Ok(identities)
}

/// How a node's datagrams leave it.
enum Way {
    Udp(Arc<UdpSocket>),
    Peers(PeersHandle),
}

/// What comes to a node.
type Incoming = mpsc::Receiver<(String, Option<Bytes>)>;

/// Datagrams that may wait for a node to look at them.
const WAITING: usize = 1024;

impl Way {
    async fn udp(address: SocketAddr) -> anyhow::Result<(Self, Incoming)> {
        let socket = UdpSocket::bind(address)
            .await
            .with_context(|| address.to_string())?;
        let socket = Arc::new(socket);
        let (sender, incoming) = mpsc::channel(WAITING);
        let reader = Arc::clone(&socket);
        tokio::spawn(async move {
            let mut buf = vec![0; 2048];
            loop {
                // Nobody but the bench is in the namespace: the address says who it is.
                let Ok((len, from)) = reader.recv_from(&mut buf).await else {
                    continue;
                };
                let Some(from) = net::of_address(from) else {
                    continue;
                };
                let bytes = Bytes::copy_from_slice(&buf[..len]);
                if sender.send((net::name(from), Some(bytes))).await.is_err() {
                    return;
                }
            }
        });
        Ok((Self::Udp(socket), incoming))
    }

    fn peers(
        identity: Identity,
        address: SocketAddr,
        index: usize,
        nodes: usize,
        stop: &CancellationToken,
    ) -> anyhow::Result<(Self, Incoming)> {
        let config = PeersConfig {
            identity,
            listen: address,
            static_peers: Vec::new(),
            mdns: false,
            revoked: Vec::new(),
            control: "127.0.0.1:1".to_owned(),
            images: None,
            policies: Arc::new(|_| None),
        };
        let (handle, mut events) = peers::start(config, stop.clone())?;
        for other in (0..nodes).filter(|other| *other != index) {
            handle.set_addresses(&net::name(other), vec![net::address(other).to_string()]);
        }
        let (sender, incoming) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                let input = match event {
                    PeerEvent::Datagram { from, bytes } => (from, Some(bytes)),
                    PeerEvent::Found { node, .. } => (node, None),
                    _ => continue,
                };
                if sender.send(input).await.is_err() {
                    return;
                }
            }
        });
        Ok((Self::Peers(handle), incoming))
    }

    fn send(&self, to: &str, bytes: Bytes) {
        match self {
            Self::Udp(socket) => {
                if let Some(to) = net::index(to) {
                    // A full buffer is a loss like any other.
                    let _ = socket.try_send_to(&bytes, net::address(to));
                }
            }
            Self::Peers(handle) => handle.datagram(to, bytes),
        }
    }
}

struct Node {
    index: usize,
    membership: Membership,
    started: Instant,
    way: Way,
    tally: Arc<Tally>,
    suspicions: u64,
    stalls: u64,
    all_stalls: Arc<AtomicU64>,
}

impl Node {
    async fn run(mut self, mut incoming: Incoming, stop: CancellationToken) {
        loop {
            let wake = self.started + self.membership.next_wake().min(Duration::from_secs(3600));
            let out = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                input = incoming.recv() => match input {
                    None => return,
                    Some((from, Some(bytes))) => {
                        self.membership.datagram(&from, &bytes, self.started.elapsed())
                    }
                    Some((node, None)) => {
                        self.membership.found(&node, self.started.elapsed());
                        Vec::new()
                    }
                },
                () = tokio::time::sleep_until(wake.into()) => {
                    self.membership.tick(self.started.elapsed())
                }
            };
            for (to, bytes) in out {
                self.way.send(&to, bytes);
            }
            self.note();
        }
    }

    fn note(&mut self) {
        for change in self.membership.take_changes() {
            let Some(node) = net::index(&change.node) else {
                continue;
            };
            match change.what {
                What::Up => self.tally.add(self.index, node, Saw::Up),
                What::Down => self.tally.add(self.index, node, Saw::Down),
                // Most of them are others' word, which they counted themselves.
                What::Suspect => {}
            }
        }
        let counters = self.membership.counters();
        let stalls = counters.stalls - self.stalls;
        self.all_stalls.fetch_add(stalls, Ordering::Relaxed);
        self.stalls = counters.stalls;
        let suspicions = counters.suspicions;
        for _ in self.suspicions..suspicions {
            self.tally.add(self.index, self.index, Saw::Suspect);
        }
        self.suspicions = suspicions;
    }
}
