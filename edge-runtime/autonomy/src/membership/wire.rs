//! What a probe looks like on the wire, and foca's codec.
//!
//! foca's own form of a message starts with the names of sender and receiver. The transport has
//! authenticated both, so they are cut off before sending and put back on arrival: a datagram can't
//! claim to come from anybody but its sender, and is shorter.
//!
//! ```text
//! kind u8 | sender's incarnation, number | receiver's number | [probe number u8] | [third identity]
//! [count u16 | members]        member = identity | incarnation * 4 + state
//! identity = length u8, name, number            numbers are protobuf varints
//! ```

use std::sync::Arc;

use bytes::{Buf, BufMut};
use foca::{Header, Member, Message, State};
use prost::encoding::{decode_varint, encode_varint, encoded_len_varint};

/// Most bytes of a message in foca's form. A QUIC datagram of the smallest path MTU (1200) has room
/// for some 1160.
pub(super) const MAX_BYTES: usize = 1100;

/// Longest name of a node: that of a Kubernetes object.
pub(super) const MAX_NAME: usize = 253;

/// Numbers of identities lie below: 2^32 starts of the agent, 2^16 rejoins in each, and room to
/// jump over a number that somebody else made up.
const MAX_NUMBER: u64 = 1 << 56;

/// Highest number that a node outdoes: beyond, its own would soon be refused.
pub(super) const HIGHEST_OUTDONE: u64 = MAX_NUMBER / 2;

/// One life of a node in the membership. A node that restarted, or that was declared dead while it
/// lived, comes back with a higher number, which wins over all that is said of the lower ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    /// Node id.
    pub node: Arc<str>,
    /// Starts of the agent << 16, + rejoins since.
    pub number: u64,
}

impl foca::Identity for Identity {
    type Addr = Arc<str>;

    fn renew(&self) -> Option<Self> {
        Some(Self {
            node: Arc::clone(&self.node),
            number: self.number + 1,
        })
    }

    fn addr(&self) -> Arc<str> {
        Arc::clone(&self.node)
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.number > adversary.number
    }
}

/// Why a datagram can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Malformed(&'static str);

const SHORT: Malformed = Malformed("it ends too early");

/// foca's codec.
pub(super) struct Codec;

impl foca::Codec<Identity> for Codec {
    type Error = Malformed;

    fn encode_header(
        &mut self,
        header: &Header<Identity>,
        mut buf: impl BufMut,
    ) -> Result<(), Malformed> {
        let (kind, probe, third) = parts(&header.message);
        let incarnation = u64::from(header.src_incarnation);
        let len = 2
            + header.src.node.len()
            + header.dst.node.len()
            + 1
            + encoded_len_varint(incarnation)
            + encoded_len_varint(header.src.number)
            + encoded_len_varint(header.dst.number)
            + usize::from(probe.is_some())
            + third.map_or(0, identity_len);
        if buf.remaining_mut() < len {
            return Err(Malformed("no room for a header"));
        }
        put_name(&header.src.node, &mut buf);
        put_name(&header.dst.node, &mut buf);
        buf.put_u8(kind);
        encode_varint(incarnation, &mut buf);
        encode_varint(header.src.number, &mut buf);
        encode_varint(header.dst.number, &mut buf);
        if let Some(probe) = probe {
            buf.put_u8(probe);
        }
        if let Some(third) = third {
            put_identity(third, &mut buf);
        }
        Ok(())
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<Identity>, Malformed> {
        let src = get_name(&mut buf)?;
        let dst = get_name(&mut buf)?;
        let kind = get_u8(&mut buf)?;
        let src_incarnation = u16::try_from(get_number(&mut buf)?)
            .map_err(|_| Malformed("an incarnation is too high"))?;
        let src = Identity {
            node: src,
            number: get_number(&mut buf)?,
        };
        let dst = Identity {
            node: dst,
            number: get_number(&mut buf)?,
        };
        let message = match kind {
            0 => Message::Ping(get_u8(&mut buf)?),
            1 => Message::Ack(get_u8(&mut buf)?),
            2 => Message::PingReq {
                probe_number: get_u8(&mut buf)?,
                target: get_identity(&mut buf)?,
            },
            3 => Message::IndirectPing {
                probe_number: get_u8(&mut buf)?,
                origin: get_identity(&mut buf)?,
            },
            4 => Message::IndirectAck {
                probe_number: get_u8(&mut buf)?,
                target: get_identity(&mut buf)?,
            },
            5 => Message::ForwardedAck {
                probe_number: get_u8(&mut buf)?,
                origin: get_identity(&mut buf)?,
            },
            6 => Message::Announce,
            7 => Message::Feed,
            8 => Message::Gossip,
            9 => Message::TurnUndead,
            _ => return Err(Malformed("its kind is unknown")),
        };
        Ok(Header {
            src,
            src_incarnation,
            dst,
            message,
        })
    }

    fn encode_member(
        &mut self,
        member: &Member<Identity>,
        mut buf: impl BufMut,
    ) -> Result<(), Malformed> {
        if buf.remaining_mut() < member_len(member) {
            return Err(Malformed("no room for a member"));
        }
        put_identity(member.id(), &mut buf);
        encode_varint(state_and_incarnation(member), &mut buf);
        Ok(())
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<Member<Identity>, Malformed> {
        let id = get_identity(&mut buf)?;
        let both = get_number(&mut buf)?;
        let incarnation =
            u16::try_from(both >> 2).map_err(|_| Malformed("an incarnation is too high"))?;
        let state = match both & 3 {
            0 => State::Alive,
            1 => State::Suspect,
            2 => State::Down,
            _ => return Err(Malformed("a state is unknown")),
        };
        Ok(Member::new(id, incarnation, state))
    }
}

/// A message in foca's form with these members, as many as there is room for.
pub(super) fn compose(header: &Header<Identity>, members: &[Member<Identity>]) -> Option<Vec<u8>> {
    use foca::Codec as _;

    let mut buf = Vec::with_capacity(128).limit(MAX_BYTES);
    Codec.encode_header(header, &mut buf).ok()?;
    if !members.is_empty() && buf.remaining_mut() > 2 {
        let count_at = buf.get_ref().len();
        buf.put_u16(0);
        let mut count = 0u16;
        for member in members {
            if Codec.encode_member(member, &mut buf).is_err() {
                break;
            }
            count += 1;
        }
        let mut bytes = buf.into_inner();
        bytes[count_at..count_at + 2].copy_from_slice(&count.to_be_bytes());
        return Some(bytes);
    }
    Some(buf.into_inner())
}

/// Bytes of foca's form that are not sent.
pub(super) fn names_len(src: &str, dst: &str) -> usize {
    2 + src.len() + dst.len()
}

/// Reads a datagram from `from` to `me`: all of it is sound, or it is refused.
pub(super) fn read(
    from: &Arc<str>,
    me: &Arc<str>,
    datagram: &[u8],
) -> Result<(Header<Identity>, Vec<Member<Identity>>), Malformed> {
    use foca::Codec as _;

    if datagram.len() + names_len(from, me) > MAX_BYTES {
        return Err(Malformed("it is too long"));
    }
    let mut whole = Vec::with_capacity(datagram.len() + names_len(from, me));
    put_name(from, &mut whole);
    put_name(me, &mut whole);
    whole.extend_from_slice(datagram);
    let mut rest = whole.as_slice();
    let header = Codec.decode_header(&mut rest)?;
    let mut members = Vec::new();
    if !rest.is_empty() {
        if rest.len() < 2 {
            return Err(SHORT);
        }
        for _ in 0..rest.get_u16() {
            members.push(Codec.decode_member(&mut rest)?);
        }
    }
    if !rest.is_empty() {
        return Err(Malformed("bytes are left over"));
    }
    if !members.is_empty() && matches!(header.message, Message::Announce | Message::TurnUndead) {
        return Err(Malformed("members where none belong"));
    }
    Ok((header, members))
}

/// Whether a message in foca's form is for some member, no matter which.
pub(super) fn to_anybody(me: &str, to: &Identity, whole: &[u8]) -> bool {
    matches!(whole.get(names_len(me, &to.node)), Some(6 | 8))
}

/// The same message for another member; none where there is no room for it.
pub(super) fn redirect(me: &str, to: &Identity, other: &Identity, whole: &[u8]) -> Option<Vec<u8>> {
    use foca::Codec as _;

    let mut rest = whole;
    let header = Codec.decode_header(&mut rest).ok()?;
    debug_assert!(*header.src.node == *me && header.dst == *to);
    let header = Header {
        dst: other.clone(),
        ..header
    };
    let mut buf = Vec::with_capacity(whole.len() + 64).limit(MAX_BYTES);
    Codec.encode_header(&header, &mut buf).ok()?;
    if buf.remaining_mut() < rest.len() {
        return None;
    }
    buf.put_slice(rest);
    Some(buf.into_inner())
}

/// The sender's incarnation in a datagram of this node.
pub(super) fn incarnation(mut datagram: &[u8]) -> Option<u16> {
    get_u8(&mut datagram).ok()?;
    u16::try_from(get_number(&mut datagram).ok()?).ok()
}

/// A node's name, if it may be one.
pub(super) fn name(text: &str) -> Option<Arc<str>> {
    (!text.is_empty() && text.len() <= MAX_NAME).then(|| Arc::from(text))
}

/// Kind, probe number, third identity.
fn parts(message: &Message<Identity>) -> (u8, Option<u8>, Option<&Identity>) {
    match message {
        Message::Ping(probe) => (0, Some(*probe), None),
        Message::Ack(probe) => (1, Some(*probe), None),
        Message::PingReq {
            target,
            probe_number,
        } => (2, Some(*probe_number), Some(target)),
        Message::IndirectPing {
            origin,
            probe_number,
        } => (3, Some(*probe_number), Some(origin)),
        Message::IndirectAck {
            target,
            probe_number,
        } => (4, Some(*probe_number), Some(target)),
        Message::ForwardedAck {
            origin,
            probe_number,
        } => (5, Some(*probe_number), Some(origin)),
        Message::Announce => (6, None, None),
        Message::Feed => (7, None, None),
        // Broadcasts carry user data, of which there is none here.
        Message::Gossip | Message::Broadcast => (8, None, None),
        Message::TurnUndead => (9, None, None),
    }
}

fn state_and_incarnation(member: &Member<Identity>) -> u64 {
    let state = match member.state() {
        State::Alive => 0,
        State::Suspect => 1,
        State::Down => 2,
    };
    u64::from(member.incarnation()) << 2 | state
}

fn identity_len(id: &Identity) -> usize {
    1 + id.node.len() + encoded_len_varint(id.number)
}

fn member_len(member: &Member<Identity>) -> usize {
    identity_len(member.id()) + encoded_len_varint(state_and_incarnation(member))
}

fn put_name(name: &str, buf: &mut impl BufMut) {
    // At most MAX_NAME bytes: names are made by `name` and `get_name`.
    buf.put_u8(u8::try_from(name.len()).unwrap_or(u8::MAX));
    buf.put_slice(name.as_bytes());
}

fn put_identity(id: &Identity, buf: &mut impl BufMut) {
    put_name(&id.node, buf);
    encode_varint(id.number, buf);
}

fn get_u8(buf: &mut impl Buf) -> Result<u8, Malformed> {
    if buf.has_remaining() {
        Ok(buf.get_u8())
    } else {
        Err(SHORT)
    }
}

fn get_number(buf: &mut impl Buf) -> Result<u64, Malformed> {
    if !buf.has_remaining() {
        return Err(SHORT);
    }
    match decode_varint(buf) {
        Ok(number) if number < MAX_NUMBER => Ok(number),
        Ok(_) => Err(Malformed("a number is too high")),
        Err(_) => Err(Malformed("a number is not one")),
    }
}

fn get_name(buf: &mut impl Buf) -> Result<Arc<str>, Malformed> {
    let len = usize::from(get_u8(buf)?);
    if len == 0 || len > MAX_NAME {
        return Err(Malformed("a name is empty or too long"));
    }
    if buf.remaining() < len {
        return Err(SHORT);
    }
    let bytes = buf.copy_to_bytes(len);
    std::str::from_utf8(&bytes)
        .map(Arc::from)
        .map_err(|_| Malformed("a name is not UTF-8"))
}

fn get_identity(buf: &mut impl Buf) -> Result<Identity, Malformed> {
    Ok(Identity {
        node: get_name(buf)?,
        number: get_number(buf)?,
    })
}
