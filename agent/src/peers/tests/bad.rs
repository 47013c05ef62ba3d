use hyperion_proto::peer_v1::stream_header::Kind;
use hyperion_proto::peer_v1::{FetchImage, Relay, StreamHeader, Sync};
use prost::Message;

use super::*;

fn header(kind: Kind) -> Vec<u8> {
    StreamHeader { kind: Some(kind) }.encode_length_delimited_to_vec()
}

#[tokio::test]
async fn only_nodes_of_this_fleet_and_site_are_heard() {
    let fleet = Fleet::new("f");
    let mut b = Node::start(fleet.identity("b", "lab"));
    for (identity, expected) in [
        (fleet.identity("x", "other"), "of site \"other\""),
        (fleet.identity("x", ""), "names no site"),
        (fleet.identity("b", "lab"), "clone"),
    ] {
        let (_endpoint, connection) = raw(&identity, b.addr()).await;
        let why = closed(&connection).await;
        assert!(why.contains(expected), "{why}");
        let (who, why) = b.refusal().await;
        assert!(why.contains(expected), "{who}: {why}");
    }
    assert_eq!(b.peers.stats().refused, 3);
    assert_eq!(b.peers.stats().connections, 0);
}

#[tokio::test]
async fn a_node_of_another_ca_is_refused_by_both_ends() {
    let (fleet, other) = (Fleet::new("f"), Fleet::new("f"));
    let mut b = Node::start(fleet.identity("b", "lab"));
    let x = Node::start(other.identity("x", "lab"));
    x.knows(&b);
    x.say(&b, "hello");
    eventually("x gives up", || x.peers.stats().calls_failed == 1).await;
    b.knows(&x);
    b.say(&x, "hello");
    eventually("b gives up", || b.peers.stats().calls_failed == 1).await;
    assert_eq!(b.peers.stats().datagrams_received, 0);
    assert_eq!(x.peers.stats().datagrams_received, 0);
    // One that trusts b's CA gets as far as to show its own certificate.
    let forged = Identity {
        chain_der: vec![
            other.identity("x", "lab").chain_der[0].clone(),
            fleet.ca.clone(),
        ],
        ..other.identity("x", "lab")
    };
    let key = new_key().unwrap();
    let forged = Identity {
        chain_der: vec![
            other.identity_of("x", "lab", NOW, &key).chain_der[0].clone(),
            fleet.ca.clone(),
        ],
        key_der: key,
        ..forged
    };
    let (_endpoint, connection) = raw(&forged, b.addr()).await;
    let why = closed(&connection).await;
    assert!(!why.is_empty());
    let (_, why) = b.refusal().await;
    assert!(why.contains("certificate"), "{why}");
}

#[tokio::test]
async fn certificates_without_a_valid_date_are_heard() {
    let fleet = Fleet::new("f");
    let key = new_key().unwrap();
    let mut a = Node::start(fleet.identity_of("a", "lab", (1980, 1981), &key));
    let mut b = Node::start(fleet.identity_of("b", "lab", (2080, 2081), &key));
    a.knows(&b);
    a.say(&b, "hello");
    assert_eq!(b.datagram().await, ("a".to_owned(), "hello".to_owned()));
    b.say(&a, "welcome");
    assert_eq!(a.datagram().await, ("b".to_owned(), "welcome".to_owned()));
}

#[tokio::test]
async fn a_revoked_node_is_cut_off_and_stays_out() {
    let fleet = Fleet::new("f");
    let mut a = Node::start(fleet.identity("a", "lab"));
    let mut b = Node::start(fleet.identity("b", "lab"));
    a.knows(&b);
    a.say(&b, "hello");
    b.datagram().await;
    b.peers.set_revoked(&["a".to_owned(), "z".to_owned()]);
    eventually("the connection ends", || a.peers.stats().connections == 0).await;
    b.knows(&a);
    b.say(&a, "not to you");
    assert_eq!(b.peers.stats().datagrams_dropped, 1);
    a.say(&b, "hello again");
    assert_eq!(b.refusal().await, ("a".to_owned(), "revoked".to_owned()));
    assert_eq!(b.peers.stats().datagrams_received, 1);
    // Taken back: the node is one like any other.
    b.peers.set_revoked(&[]);
    until_heard(&a, &mut b, "forgiven").await;
    b.say(&a, "welcome");
    assert_eq!(a.datagram().await.1, "welcome");
}

#[tokio::test]
async fn revoked_from_the_start_is_revoked() {
    let fleet = Fleet::new("f");
    let mut b = Node::with(PeersConfig {
        revoked: vec!["x".to_owned()],
        ..config(fleet.identity("b", "lab"))
    });
    let (_endpoint, connection) = raw(&fleet.identity("x", "lab"), b.addr()).await;
    assert!(closed(&connection).await.contains("revoked"));
    assert_eq!(b.refusal().await.0, "x");
}

#[tokio::test]
async fn nonsense_on_a_stream_ends_that_connection_and_nothing_else() {
    let fleet = Fleet::new("f");
    let mut b = Node::start(fleet.identity("b", "lab"));
    let a = Node::start(fleet.identity("a", "lab"));
    a.knows(&b);
    a.say(&b, "before");
    b.datagram().await;
    let sync = header(Kind::Sync(Sync {}));
    let with = |tail: &[u8]| [&sync, tail].concat();
    let one_way: Vec<(&str, Vec<u8>)> = vec![
        ("random header", vec![3, 0xff, 0xff, 0xff]),
        ("endless length", vec![0xff; 64]),
        ("no header", Vec::new()),
        ("cut off header", vec![200, 1, 1]),
        ("request", header(Kind::Relay(Relay {}))),
        ("random frame", with(&[4, 0xde, 0xad, 0xbe, 0xef])),
        ("frame that is cut off", with(&[100, 1, 2, 3])),
        ("frame that is too long", with(&[0xff, 0xff, 0xff, 0x7f, 1])),
        ("endless frame length", with(&[0xff; 32])),
    ];
    for (i, (what, bytes)) in one_way.into_iter().enumerate() {
        let id = format!("x{i}");
        let (_endpoint, connection) = raw(&fleet.identity(&id, "lab"), b.addr()).await;
        let mut send = connection.open_uni().await.unwrap();
        send.write_all(&bytes).await.unwrap();
        let _ = send.finish();
        assert_eq!(b.refusal().await.0, id, "{what}");
        assert!(
            closed(&connection).await.contains("closed by peer"),
            "{what}"
        );
    }
    let two_way: Vec<(&str, Vec<u8>)> = vec![
        ("random header", vec![3, 0xff, 0xff, 0xff]),
        ("frames", sync.clone()),
        (
            "packet that is too long",
            [header(Kind::Relay(Relay {})), vec![0xff, 0x7f]].concat(),
        ),
    ];
    for (i, (what, bytes)) in two_way.into_iter().enumerate() {
        let id = format!("y{i}");
        let (_endpoint, connection) = raw(&fleet.identity(&id, "lab"), b.addr()).await;
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        send.write_all(&bytes).await.unwrap();
        assert_eq!(b.refusal().await.0, id, "{what}");
        assert!(
            closed(&connection).await.contains("closed by peer"),
            "{what}"
        );
    }
    assert_eq!(b.peers.stats().malformed, 12);
    a.say(&b, "after");
    assert_eq!(b.datagram().await, ("a".to_owned(), "after".to_owned()));
    assert_eq!(b.peers.stats().connections, 1);
}

#[tokio::test]
async fn what_a_newer_agent_may_say_is_left_alone() {
    let fleet = Fleet::new("f");
    let mut b = Node::start(fleet.identity("b", "lab"));
    let (_endpoint, connection) = raw(&fleet.identity("x", "lab"), b.addr()).await;
    // A header of an unknown kind: field 99, empty.
    let unknown = [3, 0x9a, 0x06, 0];
    let mut send = connection.open_uni().await.unwrap();
    send.write_all(&unknown).await.unwrap();
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&unknown).await.unwrap();
    assert!(recv.read_to_end(100).await.unwrap_or_default().is_empty());
    // A frame of an unknown kind, then one that is known.
    let mut send = connection.open_uni().await.unwrap();
    send.write_all(&header(Kind::Sync(Sync {}))).await.unwrap();
    send.write_all(&unknown).await.unwrap();
    let known = frame(5).encode_length_delimited_to_vec();
    send.write_all(&known).await.unwrap();
    assert_eq!(b.frame().await, ("x".to_owned(), 5));
    assert_eq!(b.peers.stats().malformed, 0);
}

#[tokio::test]
async fn a_node_without_images_says_so() {
    let fleet = Fleet::new("f");
    let b = Node::start(fleet.identity("b", "lab"));
    let (_endpoint, connection) = raw(&fleet.identity("x", "lab"), b.addr()).await;
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    let image = "localhost/a:1".to_owned();
    send.write_all(&header(Kind::FetchImage(FetchImage { image })))
        .await
        .unwrap();
    let answer = recv.read_to_end(1000).await.unwrap();
    let answer = hyperion_proto::peer_v1::StreamAnswer::decode_length_delimited(&*answer).unwrap();
    assert!(answer.error.contains("no images"), "{answer:?}");
}

#[tokio::test]
async fn a_flood_is_cut_and_does_not_drown_the_others() {
    let fleet = Fleet::new("f");
    let mut b = Node::start(fleet.identity("b", "lab"));
    let a = Node::start(fleet.identity("a", "lab"));
    a.knows(&b);
    let (_endpoint, connection) = raw(&fleet.identity("x", "lab"), b.addr()).await;
    let flood = tokio::spawn(async move {
        loop {
            let sent = connection.send_datagram_wait(Bytes::from_static(b"flood"));
            if sent.await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
    });
    eventually("the flood is cut", || b.peers.stats().flooded > 1000).await;
    // The queue is full of what came before; then there is room.
    while b.events.try_recv().is_ok() {}
    until_heard(&a, &mut b, "through the flood").await;
    flood.abort();
}

#[tokio::test]
async fn a_peer_that_does_not_read_costs_its_own_frames_only() {
    let fleet = Fleet::new("f");
    let a = Node::start(fleet.identity("a", "lab"));
    let mut b = Node::start(fleet.identity("b", "lab"));
    a.knows(&b);
    // Takes the stream, reads nothing.
    let (_endpoint, connection) = raw(&fleet.identity("x", "lab"), a.addr()).await;
    eventually("x is known", || a.peers.stats().connections == 1).await;
    let mut sent = 0;
    while a.peers.stats().frames_dropped < 100 {
        a.peers.frame("x", &padded_frame(sent, 60_000));
        a.peers.frame("b", &frame(sent));
        assert_eq!(b.frame().await, ("a".to_owned(), sent));
        sent += 1;
        assert!(sent < 10_000, "{:?}", a.peers.stats());
    }
    // In the end it is let go.
    assert!(closed(&connection).await.contains("does not read"));
}
