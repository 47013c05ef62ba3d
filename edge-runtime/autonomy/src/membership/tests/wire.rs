use std::sync::Arc;

use foca::{Codec as _, Header, Member, Message, State};
use proptest::prelude::*;

use super::net::{Net, name, secs};
use crate::membership::wire::{self, Codec, Identity};
use crate::profile::Profile;

fn identity() -> impl Strategy<Value = Identity> {
    ("[a-z0-9.-]{1,40}", 0u64..1 << 50).prop_map(|(node, number)| Identity {
        node: Arc::from(node),
        number,
    })
}

fn message() -> impl Strategy<Value = Message<Identity>> {
    (0..10, any::<u8>(), identity()).prop_map(|(kind, number, id)| match kind {
        0 => Message::Ping(number),
        1 => Message::Ack(number),
        2 => Message::PingReq {
            target: id,
            probe_number: number,
        },
        3 => Message::IndirectPing {
            origin: id,
            probe_number: number,
        },
        4 => Message::IndirectAck {
            target: id,
            probe_number: number,
        },
        5 => Message::ForwardedAck {
            origin: id,
            probe_number: number,
        },
        6 => Message::Announce,
        7 => Message::Feed,
        8 => Message::Gossip,
        _ => Message::TurnUndead,
    })
}

fn member() -> impl Strategy<Value = Member<Identity>> {
    let state = prop_oneof![Just(State::Alive), Just(State::Suspect), Just(State::Down)];
    (identity(), any::<u16>(), state)
        .prop_map(|(id, incarnation, state)| Member::new(id, incarnation, state))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_is_sent_is_what_is_read(
        src in identity(),
        dst in identity(),
        src_incarnation in any::<u16>(),
        message in message(),
        members in proptest::collection::vec(member(), 0..8),
    ) {
        let plain = matches!(message, Message::Announce | Message::TurnUndead);
        let members = if plain { Vec::new() } else { members };
        let header = Header { src: src.clone(), src_incarnation, dst: dst.clone(), message };
        let whole = wire::compose(&header, &members).unwrap();
        let sent = &whole[wire::names_len(&src.node, &dst.node)..];
        let read = wire::read(&src.node, &dst.node, sent);
        prop_assert_eq!(read, Ok((header.clone(), members)));
        prop_assert_eq!(wire::incarnation(sent), Some(src_incarnation));
        prop_assert_eq!(Codec.decode_header(whole.as_slice()), Ok(header));
    }

    #[test]
    fn garbage_is_counted_and_changes_nothing(datagrams in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..1300), 1..30)) {
        let mut net = Net::site(Profile::standard(), 21, 3);
        for bytes in &datagrams {
            net.inject(&name(1), &name(0), bytes);
        }
        net.run(secs(10.0));
        prop_assert!(net.agree());
    }

    /// A peer whose messages can be read and are false: others may be called dead or new, and strangers
    /// made up. Whatever it says, the site is whole again when it is silent.
    #[test]
    fn a_lying_peer_can_not_break_a_site_for_good(
        lies in proptest::collection::vec(
            (message(), proptest::collection::vec((0usize..6, 0u64..1 << 40, any::<u16>(), 0..3u8), 0..6), 0usize..4),
            1..40,
        ),
    ) {
        let mut net = Net::site(Profile::standard(), 22, 5);
        for (message, members, to) in lies {
            let members: Vec<Member<Identity>> = members
                .into_iter()
                .map(|(node, number, incarnation, state)| {
                    let state = [State::Alive, State::Suspect, State::Down][usize::from(state)];
                    Member::new(Identity { node: Arc::from(name(node)), number }, incarnation, state)
                })
                .collect();
            let liar = Identity { node: Arc::from(name(4)), number: 1 << 16 };
            let dst = Identity { node: Arc::from(name(to)), number: 1 << 16 };
            let header = Header { src: liar.clone(), src_incarnation: 3, dst: dst.clone(), message };
            let whole = wire::compose(&header, &members).unwrap();
            let sent = &whole[wire::names_len(&liar.node, &dst.node)..];
            net.inject(&name(4), &name(to), sent);
            net.run(secs(0.2));
        }
        net.until("the site is whole", secs(180.0), Net::agree);
    }
}

#[test]
fn a_datagram_with_own_name_or_too_long_a_one_is_foreign() {
    let mut net = Net::site(Profile::standard(), 23, 2);
    net.inject(&name(0), &name(0), &[0, 0, 0, 0, 1]);
    net.inject(&"x".repeat(300), &name(0), &[0, 0, 0, 0, 1]);
    net.inject("", &name(0), &[0, 0, 0, 0, 1]);
    assert_eq!(net.nodes[&name(0)].counters().foreign, 3);
    net.inject(&name(1), &name(0), &[200]);
    net.inject(&name(1), &name(0), &vec![8; 2000]);
    assert_eq!(net.nodes[&name(0)].counters().malformed, 2);
}

#[test]
fn a_flood_of_made_up_members_is_bounded() {
    let mut net = Net::site(Profile::standard(), 24, 2);
    let liar = Identity {
        node: Arc::from(name(1)),
        number: 1 << 16,
    };
    let dst = Identity {
        node: Arc::from(name(0)),
        number: 1 << 16,
    };
    for batch in 0..200 {
        let members: Vec<Member<Identity>> = (0..30)
            .map(|index| {
                let node = Arc::from(format!("made-up-{batch}-{index}"));
                Member::new(Identity { node, number: 1 }, 0, State::Alive)
            })
            .collect();
        let header = Header {
            src: liar.clone(),
            src_incarnation: 0,
            dst: dst.clone(),
            message: Message::Gossip,
        };
        let whole = wire::compose(&header, &members).unwrap();
        let sent = &whole[wire::names_len(&liar.node, &dst.node)..];
        net.inject(&name(1), &name(0), sent);
    }
    let member = &net.nodes[&name(0)];
    assert!(member.peers().count() <= super::super::MAX_MEMBERS);
    assert!(member.counters().ignored > 0);
}
