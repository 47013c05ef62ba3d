use hyperion_proto::peer_v1::{Apply, ApplyAnswer};

use super::*;
use crate::peers::{MAX_DATAGRAM, MAX_FRAME, PeerError};

#[tokio::test]
async fn three_peers_exchange_datagrams_and_frames() {
    let fleet = Fleet::new("f");
    let mut nodes: Vec<Node> = ["a", "b", "c"]
        .map(|id| Node::start(fleet.identity(id, "lab")))
        .into();
    for from in &nodes {
        for to in nodes.iter().filter(|to| to.id != from.id) {
            from.knows(to);
            // The very first probe is not lost.
            from.say(to, &format!("{} to {}", from.id, to.id));
            for number in 0..3 {
                from.peers.frame(&to.id, &frame(number));
            }
        }
    }
    for node in &mut nodes {
        let mut heard = Vec::new();
        let mut frames = std::collections::BTreeMap::<String, Vec<u64>>::new();
        while heard.len() < 2 || frames.values().map(Vec::len).sum::<usize>() < 6 {
            node.until(|event| match event {
                PeerEvent::Datagram { from, bytes } => {
                    heard.push((from, String::from_utf8(bytes.to_vec()).unwrap()));
                    Some(())
                }
                PeerEvent::Frame { from, frame } => {
                    let Some(Body::Summary(summary)) = frame.body else {
                        panic!("{frame:?}");
                    };
                    frames.entry(from).or_default().push(summary.buckets[0]);
                    Some(())
                }
                _ => None,
            })
            .await;
        }
        heard.sort();
        for (from, text) in &heard {
            assert_eq!(*text, format!("{from} to {}", node.id));
        }
        assert_eq!(heard.len(), 2);
        for (from, numbers) in frames {
            assert_eq!(numbers, [0, 1, 2], "{from} to {}", node.id);
        }
    }
    for node in &nodes {
        assert_eq!(node.peers.stats().connections, 2);
        assert_eq!(node.peers.stats().frames_dropped, 0);
    }
}

#[tokio::test]
async fn both_may_call_at_once_and_one_connection_stays() {
    let fleet = Fleet::new("f");
    for round in 0..10 {
        let mut a = Node::start(fleet.identity("a", "lab"));
        let mut b = Node::start(fleet.identity("b", "lab"));
        a.knows(&b);
        b.knows(&a);
        for number in 0..5 {
            a.say(&b, &format!("a{number}"));
            b.say(&a, &format!("b{number}"));
            a.peers.frame("b", &frame(number));
            b.peers.frame("a", &frame(number));
        }
        for (node, from) in [(&mut a, "b"), (&mut b, "a")] {
            let mut heard = Vec::new();
            let mut frames = 0;
            while heard.len() < 5 || frames < 5 {
                node.until(|event| {
                    match event {
                        PeerEvent::Datagram { bytes, .. } => heard.push(bytes),
                        PeerEvent::Frame { .. } => frames += 1,
                        _ => {}
                    }
                    Some(())
                })
                .await;
            }
            heard.sort();
            let expected: Vec<Bytes> = (0..5).map(|i| format!("{from}{i}").into()).collect();
            assert_eq!(heard, expected, "round {round}");
        }
        let open = |node: &Node| node.peers.shared.endpoint.open_connections();
        eventually("one connection is left", || open(&a) == 1 && open(&b) == 1).await;
        // And it works in both directions.
        until_heard(&a, &mut b, "still").await;
        until_heard(&b, &mut a, "here").await;
        assert_eq!((open(&a), open(&b)), (1, 1));
    }
}

#[tokio::test]
async fn what_is_too_long_or_has_no_way_is_dropped_and_counted() {
    let fleet = Fleet::new("f");
    let a = Node::start(fleet.identity("a", "lab"));
    let mut b = Node::start(fleet.identity("b", "lab"));
    a.knows(&b);
    let longest = "x".repeat(MAX_DATAGRAM);
    a.say(&b, &longest);
    assert_eq!(b.datagram().await.1, longest);
    a.say(&b, &format!("{longest}x"));
    a.peers.datagram("nobody", Bytes::from_static(b"x"));
    a.peers.frame("nobody", &frame(1));
    a.peers.frame("b", &padded_frame(1, MAX_FRAME));
    let stats = a.peers.stats();
    assert_eq!((stats.datagrams_dropped, stats.frames_dropped), (2, 2));
    // The longest one that may go does.
    a.peers.frame("b", &padded_frame(7, MAX_FRAME - 100));
    assert_eq!(b.frame().await, ("a".to_owned(), 7));
}

#[tokio::test]
async fn a_peer_that_is_not_there_costs_its_own_messages_only() {
    let fleet = Fleet::new("f");
    let a = Node::start(fleet.identity("a", "lab"));
    let mut b = Node::start(fleet.identity("b", "lab"));
    // Nobody answers there.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    a.knows_at("gone", silent.local_addr().unwrap());
    a.knows(&b);
    for _ in 0..1000 {
        a.peers.datagram("gone", Bytes::from_static(b"probe"));
        a.peers.frame("gone", &frame(1));
    }
    a.say(&b, "hello");
    assert_eq!(b.datagram().await.1, "hello");
    eventually("the call fails", || a.peers.stats().calls_failed == 1).await;
    let stats = a.peers.stats();
    assert_eq!(
        (stats.datagrams_dropped, stats.frames_dropped),
        (1000, 1000)
    );
    assert_eq!(stats.calls, 2);
}

#[tokio::test]
async fn an_address_of_somebody_else_is_no_harm() {
    let fleet = Fleet::new("f");
    let mut a = Node::start(fleet.identity("a", "lab"));
    let mut b = Node::start(fleet.identity("b", "lab"));
    // The control plane's list is old: b has the address that c had.
    a.knows_at("c", b.addr());
    a.peers.datagram("c", Bytes::from_static(b"for c"));
    assert_eq!(a.found().await, "b");
    eventually("c is not reached", || a.peers.stats().calls_failed == 1).await;
    a.say(&b, "for b");
    assert_eq!(b.datagram().await.1, "for b");
}

#[tokio::test]
async fn a_static_peer_is_found_without_a_list() {
    let fleet = Fleet::new("f");
    let b = Node::start(fleet.identity("b", "lab"));
    let mut a = Node::with(PeersConfig {
        static_peers: vec![
            "no.such.host.invalid:1".to_owned(),
            b.addr().to_string(),
            "nonsense".to_owned(),
        ],
        ..config(fleet.identity("a", "lab"))
    });
    assert_eq!(a.found().await, "b");
}

#[tokio::test]
async fn a_static_peer_that_is_this_node_is_no_clone() {
    let fleet = Fleet::new("f");
    let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let own = free.local_addr().unwrap();
    drop(free);
    let mut a = Node::with(PeersConfig {
        listen: own,
        static_peers: vec![own.to_string()],
        ..config(fleet.identity("a", "lab"))
    });
    let b = Node::start(fleet.identity("b", "lab"));
    eventually("it has called itself", || {
        a.peers.shared.endpoint.stats().accepted_handshakes > 0
    })
    .await;
    b.knows(&a);
    b.say(&a, "hello");
    let first = a
        .until(|event| match event {
            PeerEvent::Refused { peer, why } => Some(format!("{peer}: {why}")),
            PeerEvent::Datagram { from, .. } => Some(from),
            _ => None,
        })
        .await;
    assert_eq!(first, "b");
    assert_eq!(a.peers.stats().refused, 0);
}

#[tokio::test]
async fn peers_find_each_other_by_multicast() {
    let probe = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    if let Err(e) = probe.send_to(b"", "224.0.0.251:9") {
        println!("SKIPPED: no multicast here: {e}");
        return;
    }
    // qemu's emulation of programs does not know the option.
    let by_loopback =
        socket2::SockRef::from(&probe).set_multicast_if_v4(&std::net::Ipv4Addr::LOCALHOST);
    let unknown = rustix::io::Errno::NOPROTOOPT.raw_os_error();
    if by_loopback.is_err_and(|e| e.raw_os_error() == Some(unknown)) {
        println!("SKIPPED: no multicast by an interface of choice here");
        return;
    }
    let (fleet, stranger) = (Fleet::new("f"), Fleet::new("f"));
    let node = |identity: Identity| {
        Node::with(PeersConfig {
            mdns: true,
            listen: "0.0.0.0:0".parse().unwrap(),
            ..config(identity)
        })
    };
    let mut a = node(fleet.identity("a", "lab"));
    let elsewhere = node(fleet.identity("c", "other"));
    let other = node(stranger.identity("d", "lab"));
    let _b = node(fleet.identity("b", "lab"));
    assert_eq!(a.found().await, "b");
    // Records of others are not even called.
    assert_eq!(elsewhere.peers.stats().refused, 0);
    assert_eq!(other.peers.stats().refused, 0);
}

#[tokio::test]
async fn a_policy_comes_with_the_right_hash_only() {
    let fleet = Fleet::new("f");
    let file = PolicyFile {
        bytes: Bytes::from(vec![7; 300_000]),
        signature: vec![1, 2, 3],
    };
    let hash: String = {
        use sha2::Digest;
        let digest = sha2::Sha256::digest(&file.bytes);
        digest.iter().map(|b| format!("{b:02x}")).collect()
    };
    let given = file.clone();
    let known = hash.clone();
    let b = Node::with(PeersConfig {
        policies: Arc::new(move |asked| {
            (asked == known || asked == "forged").then(|| given.clone())
        }),
        ..config(fleet.identity("b", "lab"))
    });
    let a = Node::start(fleet.identity("a", "lab"));
    a.knows(&b);
    assert_eq!(a.peers.fetch_policy("b", &hash).await.unwrap(), file);
    let forged = a.peers.fetch_policy("b", "forged").await.unwrap_err();
    assert!(forged.to_string().contains("hash"), "{forged}");
    let missing = a.peers.fetch_policy("b", "00").await.unwrap_err();
    assert!(matches!(missing, PeerError::Refused { .. }), "{missing}");
    let nobody = a.peers.fetch_policy("x", &hash).await.unwrap_err();
    assert!(matches!(nobody, PeerError::Unreachable(_)), "{nobody}");
    assert_eq!(b.peers.stats().given, 2);
}

#[tokio::test]
async fn an_order_is_answered() {
    let fleet = Fleet::new("f");
    let a = Node::start(fleet.identity("a", "lab"));
    let mut b = Node::start(fleet.identity("b", "lab"));
    a.knows(&b);
    let orders = tokio::spawn(async move {
        for error in ["", "no room"] {
            let (from, answer) = b
                .until(|event| match event {
                    PeerEvent::Apply { from, answer, .. } => Some((from, answer)),
                    _ => None,
                })
                .await;
            assert_eq!(from, "a");
            answer
                .send(ApplyAnswer {
                    error: error.to_owned(),
                })
                .unwrap();
        }
        // An agent that drops the question.
        b.until(|event| matches!(event, PeerEvent::Apply { .. }).then_some(()))
            .await;
        b
    });
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.push(a.peers.apply("b", Apply::default()).await.unwrap().error);
    }
    assert_eq!(answers, ["", "no room", "the agent does not answer"]);
    drop(orders.await.unwrap());
}

#[tokio::test]
async fn multicast_that_leads_nowhere_is_no_harm() {
    let fleet = Fleet::new("f");
    let node = |id: &str| {
        Node::with(PeersConfig {
            mdns: true,
            ..config(fleet.identity(id, "lab"))
        })
    };
    let (a, mut b) = (node("a"), node("b"));
    a.knows(&b);
    a.say(&b, "hello");
    assert_eq!(b.datagram().await.1, "hello");
}
