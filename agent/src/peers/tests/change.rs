use super::*;

#[tokio::test]
async fn a_restarted_peer_is_heard_and_reached_again() {
    let fleet = Fleet::new("f");
    let mut a = Node::start(fleet.identity("a", "lab"));
    let identity = fleet.identity("b", "lab");
    // In a runtime of its own, which dies as a process does: without a word.
    let (die, death) = tokio::sync::oneshot::channel::<()>();
    let (born, birth) = tokio::sync::oneshot::channel();
    let born_with = identity.clone();
    let life = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let _ = born.send(Node::start(born_with));
            let _ = death.await;
        });
    });
    let mut b = birth.await.unwrap();
    a.knows(&b);
    let addr = b.addr();
    until_heard(&a, &mut b, "before").await;
    die.send(()).unwrap();
    tokio::task::spawn_blocking(move || life.join().unwrap())
        .await
        .unwrap();
    drop(b);
    a.peers.datagram("b", Bytes::from_static(b"into the void"));
    let mut b = loop {
        let stop = CancellationToken::new();
        let config = PeersConfig {
            listen: addr,
            ..config(identity.clone())
        };
        match start(config, stop.clone()) {
            Ok((peers, events)) => {
                break Node {
                    id: "b".to_owned(),
                    peers,
                    events,
                    stop,
                };
            }
            Err(e) => println!("{e}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    // b knows nobody: it is a that has to notice.
    until_heard(&a, &mut b, "after").await;
    until_heard(&b, &mut a, "here again").await;
    assert_eq!(a.peers.stats().connections, 1);
}

#[tokio::test]
async fn a_peer_that_moved_is_reached_at_its_new_address() {
    let fleet = Fleet::new("f");
    let mut a = Node::start(fleet.identity("a", "lab"));
    let mut b = Node::start(fleet.identity("b", "lab"));
    // Both ways of having called.
    b.knows(&a);
    until_heard(&b, &mut a, "before").await;
    for (round, called) in ["by b", "by a"].into_iter().enumerate() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let new = socket.local_addr().unwrap();
        b.peers.shared.endpoint.rebind(socket).unwrap();
        until_heard(&b, &mut a, &format!("moved {round}, called {called}")).await;
        until_heard(&a, &mut b, &format!("answer {round}")).await;
        assert_eq!(b.addr(), new);
        if round == 0 {
            // Now a makes the call.
            b.peers.set_addresses("a", Vec::new());
            for quic in connections(&b, "a") {
                quic.close(0_u32.into(), b"test");
            }
            eventually("the connection ends", || {
                a.peers.stats().connections + b.peers.stats().connections == 0
            })
            .await;
            a.knows(&b);
            until_heard(&a, &mut b, "called by a").await;
            b.knows(&a);
        }
    }
    eventually("one connection is left", || {
        a.peers.shared.endpoint.open_connections() == 1
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_ended_idle_comes_back_with_the_next_datagram() {
    let fleet = Fleet::new("f");
    let idle = Duration::from_millis(300);
    let mut a = Node::idle_after(config(fleet.identity("a", "lab")), idle);
    let mut b = Node::idle_after(config(fleet.identity("b", "lab")), idle);
    a.knows(&b);
    b.knows(&a);
    for round in 1..=2 {
        a.say(&b, "ping");
        assert_eq!(b.datagram().await.1, "ping");
        b.say(&a, "pong");
        assert_eq!(a.datagram().await.1, "pong");
        assert_eq!(a.peers.stats().calls, round);
        ended_idle(&a, &b).await;
    }
    // Whoever is called, all is looked at again that was looked at the first time.
    b.peers.frame("a", &frame(7));
    assert_eq!(a.frame().await, ("b".to_owned(), 7));
    assert_eq!(b.peers.stats().calls, 1);
    ended_idle(&a, &b).await;
    b.peers.set_revoked(&["a".to_owned()]);
    a.say(&b, "unheard");
    let (who, why) = b.refusal().await;
    assert_eq!((who.as_str(), why.as_str()), ("a", "revoked"));
    let received = b.peers.stats().datagrams_received;
    assert_eq!(received, 2);
}

async fn ended_idle(a: &Node, b: &Node) {
    eventually("the connection ends", || {
        a.peers.stats().connections + b.peers.stats().connections == 0
    })
    .await;
}

fn connections(node: &Node, peer: &str) -> Vec<quinn::Connection> {
    let state = node.peers.shared.lock();
    state.peers[peer].connections().cloned().collect()
}

#[tokio::test]
async fn a_new_list_of_addresses_is_tried_at_once() {
    let fleet = Fleet::new("f");
    let a = Node::start(fleet.identity("a", "lab"));
    let mut b = Node::start(fleet.identity("b", "lab"));
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    a.knows_at("b", silent.local_addr().unwrap());
    a.say(&b, "lost");
    eventually("nobody answers", || a.peers.stats().calls_failed == 1).await;
    a.knows(&b);
    a.say(&b, "found");
    assert_eq!(b.datagram().await.1, "found");
}

#[tokio::test]
async fn the_first_of_many_addresses_that_answers_is_taken() {
    let fleet = Fleet::new("f");
    let a = Node::start(fleet.identity("a", "lab"));
    let mut b = Node::start(fleet.identity("b", "lab"));
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let dead = silent.local_addr().unwrap().to_string();
    let addresses = vec![
        dead.clone(),
        "no.such.host.invalid:7".to_owned(),
        "nonsense".to_owned(),
        String::new(),
        b.addr().to_string(),
    ];
    a.peers.set_addresses("b", addresses);
    a.say(&b, "hello");
    assert_eq!(b.datagram().await.1, "hello");
    assert_eq!(a.peers.stats().calls_failed, 0);
}

#[tokio::test]
async fn a_certificate_without_a_site_is_of_use_once_it_is_renewed() {
    let fleet = Fleet::new("f");
    let key = new_key().unwrap();
    let mut a = Node::start(fleet.identity_of("a", "", NOW, &key));
    let mut b = Node::start(fleet.identity("b", "lab"));
    let (who, why) = a.refusal().await;
    assert!(why.contains("names no site"), "{who}: {why}");
    a.knows(&b);
    a.say(&b, "unheard");
    b.knows(&a);
    b.say(&a, "unheard");
    eventually("a does not answer", || b.peers.stats().calls_failed == 1).await;
    assert_eq!(a.peers.stats().calls, 0);
    a.peers
        .set_identity(&fleet.identity_of("a", "lab", NOW, &key));
    a.say(&b, "renewed");
    assert_eq!(b.datagram().await, ("a".to_owned(), "renewed".to_owned()));
}

#[tokio::test]
async fn a_renewed_certificate_changes_nothing_else() {
    let fleet = Fleet::new("f");
    let key = new_key().unwrap();
    let mut a = Node::start(fleet.identity_of("a", "lab", NOW, &key));
    let mut b = Node::start(fleet.identity("b", "lab"));
    a.knows(&b);
    a.say(&b, "before");
    b.datagram().await;
    a.peers
        .set_identity(&fleet.identity_of("a", "lab", NOW, &key));
    // Garbage is refused, and the one before stays.
    let broken = Identity {
        chain_der: vec![b"x".to_vec(), b"y".to_vec()],
        ..fleet.identity("a", "lab")
    };
    a.peers.set_identity(&broken);
    a.say(&b, "after");
    assert_eq!(b.datagram().await.1, "after");
    b.say(&a, "answer");
    assert_eq!(a.datagram().await.1, "answer");
    assert_eq!(a.peers.stats().calls, 1);
}
