//! The gRPC codec of our services.
//!
//! tonic sets two buffers of 8 KiB aside for each stream. Our usual message has 200 bytes and a
//! control plane holds ten thousand streams: they start small here, and grow where a message needs
//! it.

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::ProstCodec;

/// Initial size of a stream's buffer and step of its growth, bytes.
const BUFFER: usize = 512;
/// Encoded bytes after which messages are handed to the transport; tonic's own value.
const YIELD: usize = 32 * 1024;

/// Protobuf with small buffers.
#[derive(Debug, Clone)]
pub struct MessageCodec<T, U>(std::marker::PhantomData<(T, U)>);

impl<T, U> Default for MessageCodec<T, U> {
    fn default() -> Self {
        Self(std::marker::PhantomData)
    }
}

impl<T, U> Codec for MessageCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as Codec>::Encoder;
    type Decoder = <ProstCodec<T, U> as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER, YIELD))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER, YIELD))
    }
}
