//! One connection: reads what the peer sends, writes frames to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use hyperion_proto::peer_v1::stream_header::Kind;
use hyperion_proto::peer_v1::{Frame, StreamHeader, Sync};
use tokio::sync::mpsc;
use tracing::debug;

use super::endpoint::{Shared, code};
use super::message::{self, Bad, Incoming, STUCK};
use super::{MAX_FRAME, PeerEvent, serve};

/// Datagrams a second that a peer may send, and how many at once: a peer that is probed, and
/// answers, sends a few.
const RATE: f64 = 200.0;
const BURST: f64 = 400.0;

/// Reads until the connection ends.
pub(super) async fn run(shared: Arc<Shared>, node: String, quic: quinn::Connection) {
    let mut bucket = Bucket::new(Instant::now());
    loop {
        tokio::select! {
            datagram = quic.read_datagram() => match datagram {
                Ok(bytes) => datagram_came(&shared, &node, bytes, &mut bucket),
                Err(_) => break,
            },
            stream = quic.accept_uni() => match stream {
                Ok(recv) => {
                    let (shared, node, quic) = (shared.clone(), node.clone(), quic.clone());
                    tokio::spawn(async move {
                        if let Err(bad) = frames(&shared, &node, recv).await {
                            judge(&shared, &node, &quic, &bad);
                        }
                    });
                }
                Err(_) => break,
            },
            stream = quic.accept_bi() => match stream {
                Ok((send, recv)) => {
                    let (shared, node, quic) = (shared.clone(), node.clone(), quic.clone());
                    tokio::spawn(async move {
                        if let Err(bad) = serve::stream(&shared, &node, send, recv).await {
                            judge(&shared, &node, &quic, &bad);
                        }
                    });
                }
                Err(_) => break,
            },
        }
    }
    if let Some(why) = quic.close_reason() {
        debug!(peer = %node, %why, "disconnected");
    }
    shared.ended(&node, &quic);
}

/// Closes the connection where the peer broke the protocol.
fn judge(shared: &Shared, node: &str, quic: &quinn::Connection, bad: &Bad) {
    match bad {
        Bad::Malformed(why) => shared.malformed(node, quic, why),
        Bad::Gone(why) => debug!(peer = %node, %why, "stream ended"),
    }
}

fn datagram_came(shared: &Shared, node: &str, bytes: Bytes, bucket: &mut Bucket) {
    let event = PeerEvent::Datagram {
        from: node.to_owned(),
        bytes,
    };
    if bucket.take(Instant::now()) && shared.events.try_send(event).is_ok() {
        shared.counters.datagrams_received.add();
    } else {
        shared.counters.flooded.add();
    }
}

/// Hands on a stream's frames; waits where the agent does not keep up, and with it the peer.
async fn frames(shared: &Shared, node: &str, recv: quinn::RecvStream) -> Result<(), Bad> {
    let mut incoming = Incoming::new(recv);
    match serve::header(&mut incoming).await?.kind {
        Some(Kind::Sync(Sync {})) => {}
        Some(_) => return Err(Bad::Malformed("a request on a one-way stream".to_owned())),
        // Of a newer agent.
        None => return Ok(()),
    }
    while let Some(frame) = incoming.message::<Frame>(MAX_FRAME).await? {
        if frame.body.is_none() {
            continue;
        }
        let event = PeerEvent::Frame {
            from: node.to_owned(),
            frame: Box::new(frame),
        };
        if shared.events.send(event).await.is_err() {
            return Ok(());
        }
        shared.counters.frames_received.add();
    }
    Ok(())
}

/// Writes frames until the queue's other end is gone.
pub(super) async fn send_frames(
    node: &str,
    quic: &quinn::Connection,
    mut frames: mpsc::Receiver<Bytes>,
    queued: &AtomicUsize,
) {
    let sent = async {
        let opened = tokio::time::timeout(STUCK, quic.open_uni()).await;
        let mut send = opened
            .map_err(|_| Bad::Malformed("takes no stream".to_owned()))?
            .map_err(|e| Bad::Gone(e.to_string()))?;
        let header = StreamHeader {
            kind: Some(Kind::Sync(Sync {})),
        };
        message::write(&mut send, &message::framed(&header)).await?;
        while let Some(frame) = frames.recv().await {
            message::write(&mut send, &frame).await?;
            queued.fetch_sub(frame.len(), Ordering::Relaxed);
        }
        let _ = send.finish();
        Ok(())
    };
    match sent.await {
        Ok(()) => {}
        Err(Bad::Gone(why)) => debug!(peer = %node, %why, "frames not sent"),
        Err(Bad::Malformed(why)) => {
            debug!(peer = %node, %why, "frames not sent");
            quic.close(code::MALFORMED, why.as_bytes());
        }
    }
}

/// A token bucket.
struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    fn new(now: Instant) -> Self {
        Self {
            tokens: BURST,
            filled: now,
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * RATE).min(BURST);
        self.filled = now;
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_flood_is_cut_to_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        let at_once = (0..10_000).filter(|_| bucket.take(start)).count();
        assert_eq!(at_once, 400);
        let second = (0..10_000).filter(|i| bucket.take(start + Duration::from_micros(i * 100)));
        assert!((190..=210).contains(&second.count()));
    }
}
