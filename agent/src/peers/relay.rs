//! The way to the control plane through a peer. The link's packets come to a local socket here, go
//! on a stream to the peer, and from there by UDP to the control plane, and the same way back. The
//! link's own TLS goes through it: the peer can lose packets, and nothing else.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyperion_proto::peer_v1::Relay as RelayHeader;
use hyperion_proto::peer_v1::stream_header::Kind;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

use super::endpoint::Shared;
use super::message::{self, Bad, Incoming};
use super::request::lost;
use super::{PeerError, PeersHandle};

/// Longest packet, bytes: an Ethernet frame's.
const MAX_PACKET: usize = 1500;
/// A stream without packets from the asking side ends after this; a link sends one every 12 s.
const IDLE: Duration = Duration::from_secs(60);
/// Local senders at a time: a link, and one that enrols again.
const SENDERS: usize = 4;
/// Packets that wait for the stream; more are dropped, as any network does.
const QUEUE: usize = 64;

/// A way to the control plane through a peer. It ends when this is dropped.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    ended: CancellationToken,
    _stop: DropGuard,
}

impl Relay {
    /// `IP:PORT` of the local socket: for [`hyperion_link::Link::set_via`].
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Ends when the peer can't be reached any more.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }
}

impl PeersHandle {
    /// Opens a way to the control plane through a peer.
    ///
    /// # Errors
    /// The peer can't be reached.
    pub async fn relay(&self, through: &str) -> Result<Relay, PeerError> {
        // Found out now rather than by the silence of the link.
        let (mut send, _) = self.shared.open(through, kind()).await?;
        let _ = send.finish();
        let local = |e: std::io::Error| PeerError::Local(format!("relay socket: {e}"));
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .map_err(local)?;
        let address = socket.local_addr().map_err(local)?;
        let stop = self.shared.stop.child_token();
        let ended = CancellationToken::new();
        let pump = pump(
            self.shared.clone(),
            through.to_owned(),
            Arc::new(socket),
            ended.clone(),
        );
        let stopped = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = pump => {}
                () = stopped.cancelled() => {}
            }
        });
        Ok(Relay {
            address,
            ended,
            _stop: stop.drop_guard(),
        })
    }
}

fn kind() -> Kind {
    Kind::Relay(RelayHeader {})
}

/// Gives each local sender a stream of its own: answers carry no address.
async fn pump(
    shared: Arc<Shared>,
    through: String,
    socket: Arc<UdpSocket>,
    ended: CancellationToken,
) {
    let mut senders: HashMap<SocketAddr, mpsc::Sender<Vec<u8>>> = HashMap::new();
    let mut tasks = tokio::task::JoinSet::new();
    let mut buffer = [0; MAX_PACKET + 1];
    loop {
        let (length, from) = tokio::select! {
            received = socket.recv_from(&mut buffer) => match received {
                Ok(received) => received,
                // An answer that nobody takes any more comes back as an error of the socket.
                Err(_) => continue,
            },
            Some(_) = tasks.join_next() => continue,
        };
        senders.retain(|_, sender| !sender.is_closed());
        if length > MAX_PACKET || (senders.len() >= SENDERS && !senders.contains_key(&from)) {
            continue;
        }
        let sender = senders.entry(from).or_insert_with(|| {
            let (sender, packets) = mpsc::channel(QUEUE);
            let (shared, through) = (shared.clone(), through.clone());
            let (socket, ended) = (socket.clone(), ended.clone());
            tasks.spawn(async move {
                let carried = carry(&shared, &through, &socket, from, packets).await;
                if let Err(e) = carried {
                    debug!(peer = %through, error = %e, "relayed stream ended");
                    if matches!(e, PeerError::Unreachable(_)) {
                        ended.cancel();
                    }
                }
            });
            sender
        });
        let _ = sender.try_send(buffer[..length].to_vec());
    }
}

/// Carries the packets of one local sender.
async fn carry(
    shared: &Arc<Shared>,
    through: &str,
    socket: &UdpSocket,
    to: SocketAddr,
    mut packets: mpsc::Receiver<Vec<u8>>,
) -> Result<(), PeerError> {
    let (mut send, mut incoming) = shared.open(through, kind()).await?;
    let up = async {
        loop {
            match tokio::time::timeout(IDLE, packets.recv()).await {
                Ok(Some(packet)) => message::write(&mut send, &packed(&packet)).await?,
                Ok(None) | Err(_) => return Ok::<(), Bad>(()),
            }
        }
    };
    let down = async {
        while let Some(packet) = incoming.bytes(MAX_PACKET).await? {
            // A sender that is gone needs it no more.
            let _ = socket.send_to(&packet, to).await;
        }
        Ok::<(), Bad>(())
    };
    tokio::select! {
        end = up => end,
        end = down => end,
    }
    .map_err(|e| lost(through, e))
}

fn packed(packet: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(packet.len() + 2);
    // A vector grows as it needs to: that does not fail.
    let _ = prost::encode_length_delimiter(packet.len(), &mut bytes);
    bytes.extend_from_slice(packet);
    bytes
}

/// Passes a peer's packets on to this node's control plane, and the answers back.
pub(super) async fn serve(
    shared: &Arc<Shared>,
    node: &str,
    mut send: quinn::SendStream,
    mut incoming: Incoming,
) -> Result<(), Bad> {
    let Some(_slot) = shared.serve.relay(node) else {
        debug!(peer = %node, "too many relayed streams");
        return Ok(());
    };
    let socket = match towards(&shared.serve.control).await {
        Ok(socket) => socket,
        Err(e) => {
            debug!(peer = %node, error = %e, "no way to the control plane for a peer");
            return Ok(());
        }
    };
    let up = async {
        loop {
            match tokio::time::timeout(IDLE, incoming.bytes(MAX_PACKET)).await {
                Ok(Ok(Some(packet))) => {
                    shared.counters.relayed.add();
                    // It may be lost, as on any way.
                    let _ = socket.send(&packet).await;
                }
                Ok(Ok(None)) | Err(_) => return Ok(()),
                Ok(Err(bad)) => return Err(bad),
            }
        }
    };
    let down = async {
        let mut buffer = [0; MAX_PACKET];
        loop {
            let Ok(length) = socket.recv(&mut buffer).await else {
                // Nobody listens there at the moment.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            shared.counters.relayed.add();
            message::write(&mut send, &packed(&buffer[..length])).await?;
        }
    };
    tokio::select! {
        end = up => end,
        end = down => end,
    }
}

/// A socket that speaks with the control plane only.
async fn towards(control: &str) -> std::io::Result<UdpSocket> {
    let mut last = std::io::Error::other("no address");
    for address in tokio::net::lookup_host(control).await? {
        let any = match address {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let connected = async {
            let socket = UdpSocket::bind(any).await?;
            socket.connect(address).await?;
            Ok(socket)
        };
        match connected.await {
            Ok(socket) => return Ok(socket),
            Err(e) => last = e,
        }
    }
    Err(last)
}
