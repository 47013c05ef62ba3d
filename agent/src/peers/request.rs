//! What this node asks of a peer.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyperion_proto::peer_v1::stream_header::Kind;
use hyperion_proto::peer_v1::{
    Apply, ApplyAnswer, FetchImage, FetchPolicyFile, StreamAnswer, StreamHeader,
};
use sha2::{Digest, Sha256};

use super::endpoint::Shared;
use super::message::{self, Bad, Incoming};
use super::{MAX_FRAME, PeerError, PeersHandle, PolicyFile, serve};

/// How long a peer may take to be reached.
const REACH: Duration = Duration::from_secs(12);
/// How long it may take to begin with an answer, or to go on with one.
const ANSWER: Duration = Duration::from_secs(30);
/// Longest answer before the bytes.
const MAX_ANSWER: usize = 64 * 1024;
/// Largest policy file, bytes.
const MAX_POLICY: u64 = 64 << 20;

impl Shared {
    /// A connection with the peer, which is called where there is none.
    async fn connection(self: &Arc<Self>, node: &str) -> Result<quinn::Connection, PeerError> {
        let unreachable = || PeerError::Unreachable(node.to_owned());
        let reach = async {
            loop {
                let mut changed = std::pin::pin!(self.changed.notified());
                changed.as_mut().enable();
                match self.connected(node) {
                    Ok(quic) => return Ok(quic),
                    Err(true) => changed.await,
                    Err(false) => return Err(unreachable()),
                }
            }
        };
        tokio::time::timeout(REACH, reach)
            .await
            .unwrap_or_else(|_| Err(unreachable()))
    }

    /// Opens a stream and says what it is for.
    pub(super) async fn open(
        self: &Arc<Self>,
        node: &str,
        kind: Kind,
    ) -> Result<(quinn::SendStream, Incoming), PeerError> {
        let quic = self.connection(node).await?;
        let (mut send, recv) = match tokio::time::timeout(ANSWER, quic.open_bi()).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(e)) => return Err(lost(node, e.to_string())),
            Err(_) => return Err(lost(node, "takes no stream")),
        };
        let header = StreamHeader { kind: Some(kind) };
        message::write(&mut send, &message::framed(&header))
            .await
            .map_err(|e| lost(node, e))?;
        Ok((send, Incoming::new(recv)))
    }
}

pub(super) fn lost(node: &str, problem: impl ToString) -> PeerError {
    PeerError::Lost {
        peer: node.to_owned(),
        problem: problem.to_string(),
    }
}

/// An answer that has begun: its bytes follow.
pub(super) struct Answer {
    node: String,
    pub bytes: u64,
    signature: Vec<u8>,
    incoming: Incoming,
    come: u64,
}

impl Answer {
    async fn read(node: &str, mut incoming: Incoming) -> Result<Self, PeerError> {
        let answer = in_time(node, incoming.message::<StreamAnswer>(MAX_ANSWER)).await?;
        let answer = answer.ok_or_else(|| lost(node, "no answer: it may be an older agent"))?;
        if !answer.error.is_empty() {
            return Err(PeerError::Refused {
                peer: node.to_owned(),
                why: crate::runtime::shorten(&answer.error),
            });
        }
        Ok(Self {
            node: node.to_owned(),
            bytes: answer.bytes,
            signature: answer.signature,
            incoming,
            come: 0,
        })
    }

    /// Next bytes; none when all have come.
    pub(super) async fn piece(&mut self) -> Result<Option<Bytes>, PeerError> {
        let piece = in_time(&self.node, self.incoming.rest()).await?;
        let length = piece.as_ref().map_or(0, Bytes::len) as u64;
        self.come = self.come.saturating_add(length);
        if self.come > self.bytes || (piece.is_none() && self.come < self.bytes) {
            let problem = format!("{} bytes came, {} were announced", self.come, self.bytes);
            return Err(lost(&self.node, problem));
        }
        Ok(piece)
    }
}

async fn in_time<T>(
    node: &str,
    reading: impl Future<Output = Result<T, Bad>>,
) -> Result<T, PeerError> {
    match tokio::time::timeout(ANSWER, reading).await {
        Ok(read) => read.map_err(|e| lost(node, e)),
        Err(_) => Err(lost(node, "no answer in time")),
    }
}

impl PeersHandle {
    /// Hands an order over.
    ///
    /// # Errors
    /// The peer can't be reached, or does not answer.
    pub async fn apply(&self, to: &str, apply: Apply) -> Result<ApplyAnswer, PeerError> {
        let (mut send, mut incoming) = self.shared.open(to, Kind::Apply(apply)).await?;
        let _ = send.finish();
        let reading = incoming.message::<ApplyAnswer>(MAX_ANSWER);
        match tokio::time::timeout(serve::ORDER + ANSWER, reading).await {
            Ok(Ok(Some(answer))) => Ok(answer),
            Ok(Ok(None)) => Err(lost(to, "no answer")),
            Ok(Err(e)) => Err(lost(to, e)),
            Err(_) => Err(lost(to, "no answer in time")),
        }
    }

    /// Gets the policy file with this SHA-256 (hex). The hash was checked; the signature was not.
    ///
    /// # Errors
    /// The peer can't be reached, does not have it, or sent something else.
    pub async fn fetch_policy(&self, from: &str, sha256: &str) -> Result<PolicyFile, PeerError> {
        let kind = Kind::FetchPolicy(FetchPolicyFile {
            sha256: sha256.to_owned(),
        });
        let (mut send, incoming) = self.shared.open(from, kind).await?;
        let _ = send.finish();
        let mut answer = Answer::read(from, incoming).await?;
        if answer.bytes > MAX_POLICY {
            let problem = format!("a policy of {} bytes", answer.bytes);
            return Err(lost(from, problem));
        }
        let mut bytes = BytesMut::new();
        let mut hash = Sha256::new();
        while let Some(piece) = answer.piece().await? {
            hash.update(&piece);
            bytes.extend_from_slice(&piece);
        }
        let found: String = hash
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        if !found.eq_ignore_ascii_case(sha256) {
            let problem = format!("sent a file with hash {found}, not {sha256}");
            return Err(lost(from, problem));
        }
        Ok(PolicyFile {
            bytes: bytes.freeze(),
            signature: answer.signature,
        })
    }

    /// Begins to get an image, as an OCI layout in a tar file.
    pub(super) async fn fetch_image(&self, from: &str, image: &str) -> Result<Answer, PeerError> {
        let kind = Kind::FetchImage(FetchImage {
            image: image.to_owned(),
        });
        let (mut send, incoming) = self.shared.open(from, kind).await?;
        let _ = send.finish();
        Answer::read(from, incoming).await
    }
}

// A header carries an order whole.
const _: () = assert!(MAX_ANSWER <= MAX_FRAME);
