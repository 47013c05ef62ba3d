//! What peers ask for, each on a stream of its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use hyperion_proto::peer_v1::stream_header::Kind;
use hyperion_proto::peer_v1::{Apply, ApplyAnswer, StreamAnswer, StreamHeader};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::endpoint::Shared;
use super::message::{self, Bad, Incoming};
use super::{MAX_FRAME, PeerEvent, PolicyFiles, relay};
use crate::runtime::{Cri, Export};

/// How long a peer may take to say what a stream is for.
const HEADER: Duration = Duration::from_secs(5);
/// How long an order may take.
pub(super) const ORDER: Duration = Duration::from_secs(30);
/// Images that are given at a time.
const EXPORTS: usize = 2;
/// Streams of peers to the control plane, in all and of each.
const RELAYS: usize = 64;
const RELAYS_EACH: usize = 4;

/// What this node gives.
pub(super) struct Serve {
    pub control: String,
    images: Option<Cri>,
    policies: PolicyFiles,
    exports: Arc<Semaphore>,
    relays: Arc<Mutex<HashMap<String, usize>>>,
}

impl Serve {
    pub(super) fn new(control: String, images: Option<Cri>, policies: PolicyFiles) -> Self {
        Self {
            control,
            images,
            policies,
            exports: Arc::new(Semaphore::new(EXPORTS)),
            relays: Arc::default(),
        }
    }

    /// A place for one more relayed stream of a peer; none where it, or all, have too many.
    pub(super) fn relay(&self, node: &str) -> Option<RelaySlot> {
        let mut relays = self.relays.lock().unwrap_or_else(PoisonError::into_inner);
        if relays.values().sum::<usize>() >= RELAYS {
            return None;
        }
        let of_node = relays.entry(node.to_owned()).or_default();
        if *of_node >= RELAYS_EACH {
            return None;
        }
        *of_node += 1;
        Some(RelaySlot {
            relays: self.relays.clone(),
            node: node.to_owned(),
        })
    }

    fn export(&self) -> Option<(Cri, OwnedSemaphorePermit)> {
        let cri = self.images.clone()?;
        Some((cri, self.exports.clone().try_acquire_owned().ok()?))
    }
}

/// Counts one relayed stream while it lives.
pub(super) struct RelaySlot {
    relays: Arc<Mutex<HashMap<String, usize>>>,
    node: String,
}

impl Drop for RelaySlot {
    fn drop(&mut self) {
        let mut relays = self.relays.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_node) = relays.get_mut(&self.node) {
            *of_node -= 1;
            if *of_node == 0 {
                relays.remove(&self.node);
            }
        }
    }
}

/// First message of a stream.
pub(super) async fn header(incoming: &mut Incoming) -> Result<StreamHeader, Bad> {
    match tokio::time::timeout(HEADER, incoming.message(MAX_FRAME)).await {
        Ok(Ok(Some(header))) => Ok(header),
        Ok(Ok(None)) => Err(Bad::Malformed("a stream without a header".to_owned())),
        Ok(Err(bad)) => Err(bad),
        Err(_) => Err(Bad::Malformed("no header of a stream in time".to_owned())),
    }
}

/// Does what a stream of a peer asks for.
pub(super) async fn stream(
    shared: &Arc<Shared>,
    node: &str,
    mut send: quinn::SendStream,
    recv: quinn::RecvStream,
) -> Result<(), Bad> {
    let mut incoming = Incoming::new(recv);
    match header(&mut incoming).await?.kind {
        Some(Kind::Sync(_)) => Err(Bad::Malformed("frames on a two-way stream".to_owned())),
        Some(Kind::Relay(_)) => relay::serve(shared, node, send, incoming).await,
        Some(Kind::FetchImage(asked)) => image(shared, node, &mut send, &asked.image).await,
        Some(Kind::FetchPolicy(asked)) => policy(shared, &mut send, &asked.sha256).await,
        Some(Kind::Apply(order)) => apply(shared, node, &mut send, order).await,
        // Of a newer agent, which finds out by the end of the stream.
        None => Ok(()),
    }
}

async fn refuse(send: &mut quinn::SendStream, error: String) -> Result<(), Bad> {
    let answer = StreamAnswer {
        error,
        ..Default::default()
    };
    message::write(send, &message::framed(&answer)).await?;
    let _ = send.finish();
    Ok(())
}

async fn policy(shared: &Shared, send: &mut quinn::SendStream, sha256: &str) -> Result<(), Bad> {
    let Some(file) = (shared.serve.policies)(sha256) else {
        return refuse(send, "no such policy here".to_owned()).await;
    };
    let answer = StreamAnswer {
        error: String::new(),
        bytes: file.bytes.len() as u64,
        signature: file.signature,
    };
    message::write(send, &message::framed(&answer)).await?;
    message::write(send, &file.bytes).await?;
    let _ = send.finish();
    shared.counters.given.add();
    Ok(())
}

async fn image(
    shared: &Shared,
    node: &str,
    send: &mut quinn::SendStream,
    image: &str,
) -> Result<(), Bad> {
    let Some((cri, _turn)) = shared.serve.export() else {
        let why = "gives no images, or gives others at the moment";
        return refuse(send, why.to_owned()).await;
    };
    let export = match Export::open(&cri, image).await {
        Ok(export) => export,
        Err(e) => return refuse(send, e.to_string()).await,
    };
    tracing::info!(peer = %node, %image, bytes = export.bytes(), "giving an image to a peer");
    let answer = StreamAnswer {
        bytes: export.bytes(),
        ..Default::default()
    };
    message::write(send, &message::framed(&answer)).await?;
    let mut pieces = std::pin::pin!(export.pieces());
    while let Some(piece) = pieces.next().await {
        match piece {
            Ok(piece) => message::write(send, &piece).await?,
            // The peer sees that bytes are missing.
            Err(e) => {
                tracing::warn!(%image, error = %e, "image not given whole");
                let _ = send.reset(1_u32.into());
                return Ok(());
            }
        }
    }
    let _ = send.finish();
    shared.counters.given.add();
    Ok(())
}

async fn apply(
    shared: &Shared,
    node: &str,
    send: &mut quinn::SendStream,
    apply: Apply,
) -> Result<(), Bad> {
    let (answer, answered) = oneshot::channel();
    let event = PeerEvent::Apply {
        from: node.to_owned(),
        apply,
        answer,
    };
    let gone = || ApplyAnswer {
        error: "the agent does not answer".to_owned(),
    };
    let answer = match shared.events.send(event).await {
        Ok(()) => match tokio::time::timeout(ORDER, answered).await {
            Ok(Ok(answer)) => answer,
            _ => gone(),
        },
        Err(_) => gone(),
    };
    message::write(send, &message::framed(&answer)).await?;
    let _ = send.finish();
    Ok(())
}
