//! HTTP/3 bodies, each owned by one task.
//!
//! h3-quinn 0.0.10 keeps a receive stream inside the future of a pending read and panics when the
//! stream is asked to stop meanwhile (`RecvStream::stop_sending` on an empty option); the adapters
//! of h3-util ask for that whenever a body is dropped early, which gRPC clients and servers do at
//! every cancelled call. Here the body that tonic sees is only the end of a channel. The stream
//! itself belongs to a task that reads it to its end and never asks it to stop: when nobody
//! listens any more the task discards what arrives, until the peer ends or the connection closes.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use futures::channel::mpsc;
use futures::{SinkExt, StreamExt};
use h3::quic;
use http::HeaderMap;
use http_body::Frame;

/// Error type of bodies.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Frames in flight between a stream's task and its reader: enough to keep both busy; QUIC's flow
/// control does the rest.
const FRAMES: usize = 4;

/// What goes through a body's channel, which takes memory only for what waits in it: tokio's sets
/// room for 32 items aside, 2 KB for each of ten thousand streams.
enum Item {
    Data(Bytes),
    Trailers(Box<HeaderMap>),
    Failed(BoxError),
}

/// A message body fed by a stream's task.
pub struct ChannelBody {
    items: mpsc::Receiver<Item>,
}

impl http_body::Body for ChannelBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.items.poll_next_unpin(cx).map(|item| {
            item.map(|item| match item {
                Item::Data(data) => Ok(Frame::data(data)),
                Item::Trailers(trailers) => Ok(Frame::trailers(*trailers)),
                Item::Failed(e) => Err(e),
            })
        })
    }
}

/// One direction of an HTTP/3 message, from either end.
pub(crate) trait ReadHalf: Send + 'static {
    /// Next chunk, or none at the end of the data.
    fn data(&mut self) -> impl Future<Output = Result<Option<Bytes>, BoxError>> + Send;
    /// Trailers after the data.
    fn trailers(&mut self) -> impl Future<Output = Result<Option<HeaderMap>, BoxError>> + Send;
}

impl<S: quic::RecvStream + Send + 'static> ReadHalf for h3::client::RequestStream<S, Bytes> {
    async fn data(&mut self) -> Result<Option<Bytes>, BoxError> {
        let chunk = self.recv_data().await?;
        Ok(chunk.map(|mut b| b.copy_to_bytes(b.remaining())))
    }
    async fn trailers(&mut self) -> Result<Option<HeaderMap>, BoxError> {
        Ok(self.recv_trailers().await?)
    }
}

impl<S: quic::RecvStream + Send + 'static> ReadHalf for h3::server::RequestStream<S, Bytes> {
    async fn data(&mut self) -> Result<Option<Bytes>, BoxError> {
        let chunk = self.recv_data().await?;
        Ok(chunk.map(|mut b| b.copy_to_bytes(b.remaining())))
    }
    async fn trailers(&mut self) -> Result<Option<HeaderMap>, BoxError> {
        Ok(self.recv_trailers().await?)
    }
}

/// Gives the stream to a task of its own and returns the body that it feeds.
pub(crate) fn read_body(mut stream: impl ReadHalf) -> ChannelBody {
    let (mut tx, items) = mpsc::channel(FRAMES);
    // By reference: a task keeps room for the arguments of an async function twice.
    tokio::spawn(async move { pump(&mut stream, &mut tx).await });
    ChannelBody { items }
}

async fn pump(stream: &mut impl ReadHalf, tx: &mut mpsc::Sender<Item>) {
    loop {
        match stream.data().await {
            // A failed send means that nobody listens: go on reading, see the module's head.
            Ok(Some(data)) => drop(tx.send(Item::Data(data)).await),
            Ok(None) => break,
            Err(e) => {
                let _ = tx.send(Item::Failed(e)).await;
                return;
            }
        }
    }
    match Box::pin(stream.trailers()).await {
        Ok(Some(trailers)) => {
            drop(tx.send(Item::Trailers(Box::new(trailers))).await);
        }
        Ok(None) => {}
        Err(e) => drop(tx.send(Item::Failed(e)).await),
    }
}

/// One direction of an HTTP/3 message, outward.
pub(crate) trait WriteHalf {
    /// Sends a chunk.
    fn data(&mut self, data: Bytes) -> impl Future<Output = Result<(), BoxError>> + Send;
    /// Sends trailers.
    fn trailers(
        &mut self,
        trailers: HeaderMap,
    ) -> impl Future<Output = Result<(), BoxError>> + Send;
    /// Ends the stream.
    fn finish(&mut self) -> impl Future<Output = Result<(), BoxError>> + Send;
}

macro_rules! write_half {
    ($stream:ty) => {
        impl<S: quic::SendStream<Bytes> + Send> WriteHalf for $stream {
            async fn data(&mut self, data: Bytes) -> Result<(), BoxError> {
                Ok(self.send_data(data).await?)
            }
            async fn trailers(&mut self, trailers: HeaderMap) -> Result<(), BoxError> {
                Ok(self.send_trailers(trailers).await?)
            }
            async fn finish(&mut self) -> Result<(), BoxError> {
                Ok(self.finish().await?)
            }
        }
    };
}
write_half!(h3::client::RequestStream<S, Bytes>);
write_half!(h3::server::RequestStream<S, Bytes>);

/// Sends a body to its end.
pub(crate) async fn write_body<B>(stream: &mut impl WriteHalf, body: B) -> Result<(), BoxError>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let mut body = std::pin::pin!(body);
    while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        match frame.map_err(Into::into)?.into_data() {
            Ok(data) => stream.data(data).await?,
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    // Boxed: once in a stream's life.
                    Box::pin(stream.trailers(trailers)).await?;
                }
            }
        }
    }
    Box::pin(stream.finish()).await
}
