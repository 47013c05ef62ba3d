//! The link over networks as they are: restarts, changing addresses, forgetful NATs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Fleet, disconnect, eventually, next, telemetry, welcome};
use hyperion_link::{ControlTarget, Identity, Link, LinkEvent};
use tokio::net::UdpSocket;

/// A NAT on the way to the gateway: one mapping, forgotten after an idle time. What comes back to
/// a forgotten mapping is dropped; the next datagram from inside makes a new one, with a new port.
struct Nat {
    inside: SocketAddr,
    mappings: Arc<AtomicUsize>,
    cut: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Nat {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Nat {
    async fn start(to: SocketAddr, forget_after: Duration) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let inside = socket.local_addr().unwrap();
        let mappings = Arc::new(AtomicUsize::new(0));
        let cut = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(relay(
            socket,
            to,
            forget_after,
            mappings.clone(),
            cut.clone(),
        ));
        Self {
            inside,
            mappings,
            cut,
            task,
        }
    }

    fn mappings(&self) -> usize {
        self.mappings.load(Ordering::Relaxed)
    }
}

async fn relay(
    inside: UdpSocket,
    to: SocketAddr,
    forget_after: Duration,
    mappings: Arc<AtomicUsize>,
    cut: Arc<AtomicBool>,
) {
    let mut outside: Option<(UdpSocket, Instant)> = None;
    let mut device = None;
    let (mut up, mut down) = ([0; 2048], [0; 2048]);
    loop {
        if outside
            .as_ref()
            .is_some_and(|(_, used)| used.elapsed() > forget_after)
        {
            outside = None;
        }
        let back = async {
            match &outside {
                Some((socket, _)) => socket.recv_from(&mut down).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Ok((len, from)) = inside.recv_from(&mut up) => {
                if cut.load(Ordering::Relaxed) {
                    continue;
                }
                device = Some(from);
                if outside.is_none() {
                    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                    mappings.fetch_add(1, Ordering::Relaxed);
                    outside = Some((socket, Instant::now()));
                }
                if let Some((socket, used)) = &mut outside {
                    let _ = socket.send_to(&up[..len], to).await;
                    *used = Instant::now();
                }
            }
            Ok((len, _)) = back => {
                if !cut.load(Ordering::Relaxed)
                    && let (Some(device), Some((_, used))) = (device, &mut outside) {
                    *used = Instant::now();
                    let _ = inside.send_to(&down[..len], device).await;
                }
            }
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
    }
}

fn link_through(fleet: &Fleet, nat: &Nat, identity: &Identity, keep_alive: Duration) -> Link {
    fleet.link_with(identity, "boot-1", |config| {
        config.target = ControlTarget {
            addr: nat.inside.to_string(),
            ..config.target.clone()
        };
        config.keep_alive = keep_alive;
        config.idle = Duration::from_secs(10);
    })
}

async fn no_event(link: &mut Link, during: Duration) {
    if let Ok(event) = tokio::time::timeout(during, link.next_event()).await {
        panic!("the link did not stay as it was: {event:?}");
    }
}

#[tokio::test]
async fn keep_alives_hold_a_mapping_open() {
    let fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    let nat = Nat::start(fleet.gateway.local_addr(), Duration::from_millis(1500)).await;
    let mut link = link_through(&fleet, &nat, &identity, Duration::from_millis(500));
    welcome(&mut link).await;
    no_event(&mut link, Duration::from_secs(4)).await;
    fleet.serves(&link).await;
    assert_eq!(nat.mappings(), 1);
}

#[tokio::test]
async fn a_nat_that_forgets_does_not_break_the_stream() {
    let mut fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    let nat = Nat::start(fleet.gateway.local_addr(), Duration::from_millis(300)).await;
    let mut link = link_through(&fleet, &nat, &identity, Duration::from_millis(1200));
    welcome(&mut link).await;
    fleet.node_up().await;
    no_event(&mut link, Duration::from_secs(4)).await;
    fleet.serves(&link).await;
    // Commands too find the way to the device's new address.
    let order = common::start("web", 0, 1, 10);
    fleet.gateway.set_desired(&identity.node_id, order);
    assert!(matches!(next(&mut link).await, LinkEvent::Message(_)));
    assert!(nat.mappings() > 2, "{} mappings", nat.mappings());
    assert!(fleet.events.try_recv().is_err(), "the session changed");
}

#[tokio::test]
async fn a_device_that_changes_its_address_keeps_its_stream() {
    let mut fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let mut link = fleet.link_with(&identity, "boot-1", |config| {
        config.endpoint = Some(endpoint.clone());
    });
    welcome(&mut link).await;
    fleet.node_up().await;
    for round in 1..=3 {
        let before = endpoint.local_addr().unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        endpoint.rebind(socket).unwrap();
        assert_ne!(endpoint.local_addr().unwrap(), before);
        let received = fleet.telemetry_received();
        let began = Instant::now();
        link.sender().try_send(telemetry(1.0)).unwrap();
        eventually("telemetry from the new address", || {
            fleet.telemetry_received() > received
        })
        .await;
        assert!(began.elapsed() < Duration::from_secs(5), "round {round}");
    }
    no_event(&mut link, Duration::from_millis(500)).await;
    assert!(fleet.events.try_recv().is_err(), "the session changed");
}

#[tokio::test]
async fn a_fleet_comes_back_after_a_restart_and_not_in_step() {
    const DEVICES: usize = 20;
    let fleet = Fleet::start().await;
    let mut links = Vec::new();
    for _ in 0..DEVICES {
        let identity = fleet.enrol().await;
        let mut link = fleet.link(&identity);
        welcome(&mut link).await;
        links.push((identity.node_id, link));
    }
    let fleet = fleet.restart().await;
    let mut waits = Vec::new();
    for (_, link) in &mut links {
        let retry_in = loop {
            match next(link).await {
                LinkEvent::Disconnected { retry_in, .. } => break retry_in,
                other => assert!(!matches!(other, LinkEvent::Refused { .. }), "{other:?}"),
            }
        };
        assert!(retry_in >= Duration::from_millis(25), "{retry_in:?}");
        assert!(retry_in <= Duration::from_millis(500), "{retry_in:?}");
        waits.push(retry_in);
        welcome(link).await;
    }
    waits.sort();
    waits.dedup();
    assert!(waits.len() > DEVICES / 2, "no jitter: {waits:?}");
    eventually("all nodes are connected again", || {
        links.iter().all(|(node, _)| fleet.gateway.connected(node))
    })
    .await;
}

/// Peers that are in the middle of a handshake when a leader stops, or that answer late, keep their
/// connections from draining; whoever leads next needs the address.
#[tokio::test]
async fn connections_that_have_not_drained_do_not_keep_the_address() {
    let fleet = Fleet::start().await;
    let _attempts = fleet.half_open(50).await;
    // Behind those fifty.
    fleet.enrol().await;
    let address = fleet.gateway.local_addr();
    fleet.gateway.shutdown().await;
    let deadline = Instant::now() + Duration::from_millis(500);
    while let Err(e) = std::net::UdpSocket::bind(address) {
        assert!(Instant::now() < deadline, "{address}: {e}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_control_plane_that_died_is_noticed_by_its_successors_reset() {
    let fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    let nat = Nat::start(fleet.gateway.local_addr(), Duration::from_secs(60)).await;
    let mut link = link_through(&fleet, &nat, &identity, Duration::from_millis(300));
    welcome(&mut link).await;
    // The network is cut while the control plane stops, so that its farewell gets lost, as after
    // a kill.
    nat.cut.store(true, Ordering::Relaxed);
    let fleet = fleet.restart().await;
    nat.cut.store(false, Ordering::Relaxed);
    let began = Instant::now();
    let reason = disconnect(&mut link).await;
    assert!(reason.contains("reset"), "{reason}");
    // Long before the idle timeout of ten seconds.
    assert!(began.elapsed() < Duration::from_secs(6));
    welcome(&mut link).await;
    fleet.serves(&link).await;
}

#[tokio::test]
async fn waits_grow_while_nobody_answers() {
    let fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut link = fleet.link_with(&identity, "boot-1", |config| {
        config.target.addr = format!(
            "no-such-host.invalid:{}",
            taken.local_addr().unwrap().port()
        );
    });
    let mut waits = Vec::new();
    for _ in 0..5 {
        if let LinkEvent::Disconnected { reason, retry_in } = next(&mut link).await {
            assert!(reason.contains("no-such-host.invalid"), "{reason}");
            waits.push(retry_in);
        }
    }
    // Doubling, each between half and the whole: the third is longer than the first.
    assert!(waits[2] > waits[0], "{waits:?}");
    assert!(waits[4] <= Duration::from_millis(500), "{waits:?}");
}
