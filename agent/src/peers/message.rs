//! Messages on QUIC streams: a varint of the length, then protobuf.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;

/// Piece that is read or written at once, bytes.
const PIECE: usize = 16 * 1024;
/// A peer that takes nothing for this long is not going to.
pub(super) const STUCK: Duration = Duration::from_secs(10);
/// Longest varint of a length that is within any limit here.
const MAX_PREFIX: usize = 5;

/// Why a message did not come.
#[derive(Debug)]
pub(super) enum Bad {
    /// The peer does not keep to the protocol.
    Malformed(String),
    /// The stream or its connection is gone.
    Gone(String),
}

impl std::fmt::Display for Bad {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Malformed(why) | Self::Gone(why)) = self;
        f.write_str(why)
    }
}

/// The receiving end of a stream.
pub(super) struct Incoming {
    recv: quinn::RecvStream,
    buffer: BytesMut,
}

impl Incoming {
    pub(super) fn new(recv: quinn::RecvStream) -> Self {
        Self {
            recv,
            buffer: BytesMut::new(),
        }
    }

    /// Next message of at most `most` bytes; none where the peer ended the stream before one.
    /// Cancel-safe.
    pub(super) async fn message<M: Message + Default>(
        &mut self,
        most: usize,
    ) -> Result<Option<M>, Bad> {
        match self.bytes(most).await? {
            Some(bytes) => M::decode(bytes)
                .map(Some)
                .map_err(|e| Bad::Malformed(format!("a message that is none: {e}"))),
            None => Ok(None),
        }
    }

    /// Like [`Self::message`], undecoded.
    pub(super) async fn bytes(&mut self, most: usize) -> Result<Option<Bytes>, Bad> {
        loop {
            if let Some((head, length)) = prefix(&self.buffer)? {
                if length > most {
                    let problem = format!("a message of {length} bytes; {most} are allowed");
                    return Err(Bad::Malformed(problem));
                }
                if self.buffer.len() >= head + length {
                    self.buffer.advance(head);
                    let message = self.buffer.split_to(length).freeze();
                    if self.buffer.is_empty() {
                        // Else the room of the longest message would stay for good.
                        self.buffer = BytesMut::new();
                    }
                    return Ok(Some(message));
                }
            }
            match self.piece().await? {
                Some(piece) => self.buffer.extend_from_slice(&piece),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(Bad::Malformed("a message that is cut off".to_owned())),
            }
        }
    }

    /// Next bytes of what follows the messages; none at the end.
    pub(super) async fn rest(&mut self) -> Result<Option<Bytes>, Bad> {
        if self.buffer.is_empty() {
            return self.piece().await;
        }
        Ok(Some(self.buffer.split().freeze()))
    }

    async fn piece(&mut self) -> Result<Option<Bytes>, Bad> {
        match self.recv.read_chunk(PIECE, true).await {
            Ok(chunk) => Ok(chunk.map(|chunk| chunk.bytes)),
            Err(e) => Err(Bad::Gone(e.to_string())),
        }
    }
}

/// Bytes of the length's varint and the length; none while there is too little to tell.
fn prefix(buffer: &[u8]) -> Result<Option<(usize, usize)>, Bad> {
    let mut length = 0_u64;
    for (i, byte) in buffer.iter().take(MAX_PREFIX).enumerate() {
        length |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Ok(Some((i + 1, usize::try_from(length).unwrap_or(usize::MAX))));
        }
    }
    if buffer.len() < MAX_PREFIX {
        return Ok(None);
    }
    Err(Bad::Malformed("a length that is none".to_owned()))
}

/// A message as it goes on a stream.
pub(super) fn framed(message: &impl Message) -> Bytes {
    message.encode_length_delimited_to_vec().into()
}

/// Writes all of it; fails when the peer takes nothing for [`STUCK`].
pub(super) async fn write(send: &mut quinn::SendStream, bytes: &[u8]) -> Result<(), Bad> {
    for piece in bytes.chunks(PIECE) {
        match tokio::time::timeout(STUCK, send.write_all(piece)).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => return Err(Bad::Gone(e.to_string())),
            Err(_) => return Err(Bad::Malformed("does not read what it is sent".to_owned())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read_as_protobuf_writes_them() {
        for length in [0_usize, 1, 127, 128, 300, 1 << 20, (1 << 31) + 7] {
            let mut bytes = BytesMut::new();
            prost::encode_length_delimiter(length, &mut bytes).unwrap();
            for cut in 0..bytes.len() {
                assert!(prefix(&bytes[..cut]).unwrap().is_none(), "{length} {cut}");
            }
            assert_eq!(prefix(&bytes).unwrap(), Some((bytes.len(), length)));
        }
    }

    #[test]
    fn a_length_without_end_is_none() {
        assert!(prefix(&[0x80; 4]).unwrap().is_none());
        assert!(matches!(prefix(&[0xff; 5]), Err(Bad::Malformed(_))));
    }
}
