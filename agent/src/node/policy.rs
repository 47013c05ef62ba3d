//! Policies on their way to this node: offered by the control plane, fetched over the link or from
//! a peer, verified, tried, kept, and switched to. The one before stays as a fallback. One that is
//! refused is told once, and nothing changes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyperion_autonomy::Decide;
use hyperion_link::identity::CertificateFacts;
use hyperion_policy::MAX_BYTES;
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{FetchPolicy, PolicyChunk, PolicyOffer};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};

use super::{Effect, Node, Now, Outgoing};
use crate::decider::{Decider, hash};
use crate::store::{KeptPolicy, Store};
use crate::workloads::Workloads;

/// Wait without a chunk after which the rest is asked for again.
const AGAIN: Duration = Duration::from_secs(5);
/// Wait between two tries to get it from a peer.
const PEER_AGAIN: Duration = Duration::from_secs(15);
/// Refused policies that are remembered, so that each is fetched and told of once.
const REFUSED: usize = 32;
/// Subject public key info of a P-256 key, up to the point.
const P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Why a policy was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyRefused {
    /// The offer itself.
    #[error("policy_offer.{field}: {problem}")]
    Offer {
        /// Field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Not signed by the fleet's CA.
    #[error("policy {0}: the signature is not the fleet CA's")]
    Signature(String),
    /// Another file than was offered.
    #[error("policy {offered}: the file has SHA-256 {found}")]
    Hash {
        /// What was offered.
        offered: String,
        /// What came.
        found: String,
    },
    /// Not a policy for this program, or one that does nothing sensible.
    #[error("policy {sha256}: {problem}")]
    File {
        /// Which.
        sha256: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// A policy file that a peer gave.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// SHA-256 that was asked for, hex.
    pub sha256: String,
    /// The file.
    pub file: Bytes,
    /// The CA's signature over the SHA-256.
    pub signature: Vec<u8>,
}

/// What is on its way.
#[derive(Default)]
pub(super) struct Rollout {
    offer: Option<PolicyOffer>,
    bytes: Vec<u8>,
    /// Last chunk or request.
    moved: Option<Instant>,
    asked_peers: Option<Instant>,
    pub(super) refused: BTreeSet<String>,
}

/// Who decides, by what the store holds, and what is wrong with it.
pub(super) fn decider_of(store: &Store, ca_der: &[u8]) -> (Decider, Vec<String>) {
    let mut problems = Vec::new();
    for kept in [store.policy(), store.previous_policy()] {
        let Some(kept) = kept else { continue };
        if kept.offer.sha256.is_empty() {
            let why = "the control plane took its policy back";
            return (Decider::rules(why), problems);
        }
        match judge(&kept.offer, &kept.file, ca_der) {
            Ok(decider) => return (decider, problems),
            Err(why) => problems.push(why.to_string()),
        }
    }
    (Decider::built_in(), problems)
}

/// The decider that an offered file makes, after everything was checked.
fn judge(offer: &PolicyOffer, file: &[u8], ca_der: &[u8]) -> Result<Decider, PolicyRefused> {
    verify(offer, ca_der)?;
    let found = hash(file);
    if found != offer.sha256 {
        return Err(PolicyRefused::Hash {
            offered: offer.sha256.clone(),
            found,
        });
    }
    Decider::read(file).map_err(|problem| PolicyRefused::File {
        sha256: offer.sha256.clone(),
        problem,
    })
}

/// An offer that is well formed and signed.
fn verify(offer: &PolicyOffer, ca_der: &[u8]) -> Result<(), PolicyRefused> {
    let bad = |field, problem: String| PolicyRefused::Offer { field, problem };
    let digest = digest(&offer.sha256).ok_or_else(|| {
        bad(
            "sha256",
            "64 lower-case hexadecimal digits are expected".into(),
        )
    })?;
    if offer.bytes > MAX_BYTES as u64 {
        let problem = format!("{} is more than {MAX_BYTES}", offer.bytes);
        return Err(bad("bytes", problem));
    }
    let unsigned = || PolicyRefused::Signature(offer.sha256.clone());
    let facts = CertificateFacts::parse(ca_der).map_err(|_| unsigned())?;
    let point = facts.public_key.strip_prefix(&P256).ok_or_else(unsigned)?;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point)
        .verify(&digest, &offer.signature)
        .map_err(|_| unsigned())
}

fn digest(hex: &str) -> Option<[u8; 32]> {
    let digits = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if hex.len() != 64 || !hex.bytes().all(digits) {
        return None;
    }
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).ok()?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(out)
}

impl<W: Workloads> Node<W> {
    /// SHA-256 of the policy that decides, hex; empty where rules do.
    pub(super) fn policy_hash(&self) -> &str {
        self.decider.policy_hash()
    }

    /// A policy file that this node has, for a peer: the file and its signature.
    #[must_use]
    pub fn policy_file(&self, sha256: &str) -> Option<(Bytes, Vec<u8>)> {
        let kept = [self.store.policy(), self.store.previous_policy()];
        let kept = kept
            .into_iter()
            .flatten()
            .find(|kept| kept.offer.sha256 == sha256 && !kept.file.is_empty())?;
        Some((kept.file.clone(), kept.offer.signature.clone()))
    }

    /// All policy files that this node has: SHA-256, file, signature.
    pub fn policy_files(&self) -> impl Iterator<Item = (String, Bytes, Vec<u8>)> {
        let kept = [self.store.policy(), self.store.previous_policy()];
        kept.into_iter()
            .flatten()
            .filter(|kept| !kept.file.is_empty())
            .map(|kept| {
                let offer = &kept.offer;
                let (sha256, signature) = (offer.sha256.clone(), offer.signature.clone());
                (sha256, kept.file.clone(), signature)
            })
    }

    pub(super) fn offered(&mut self, offer: &PolicyOffer, now: Now, out: &dyn Outgoing) {
        if offer.sha256.is_empty() {
            self.policy_taken_back(now);
            return;
        }
        if offer.sha256 == self.policy_hash() {
            self.rollout.offer = None;
            self.rollout.bytes = Vec::new();
            return;
        }
        if self.rollout.refused.contains(&offer.sha256) {
            return;
        }
        if let Err(why) = verify(offer, &self.config.ca_der) {
            self.refuse_policy(&offer.sha256, &why, now);
            return;
        }
        // One of before, which is offered again.
        if let Some((file, _)) = self.policy_file(&offer.sha256) {
            self.take_policy(offer.clone(), file, now);
            return;
        }
        let same = |o: &PolicyOffer| o.sha256 == offer.sha256;
        if !self.rollout.offer.as_ref().is_some_and(same) {
            self.rollout.bytes = Vec::new();
        }
        self.rollout.offer = Some(offer.clone());
        self.ask_for_policy(now, out);
    }

    fn policy_taken_back(&mut self, now: Now) {
        self.rollout.offer = None;
        self.rollout.bytes = Vec::new();
        let already = |kept: &KeptPolicy| kept.offer.sha256.is_empty();
        if self.store.policy().is_some_and(already) {
            return;
        }
        self.store.set_policy(PolicyOffer::default(), Bytes::new());
        self.decider = Decider::rules("the control plane took its policy back");
        let message = "the control plane took its policy back; rules decide".to_owned();
        self.event("PolicySwitched", message, false, None, now);
    }

    fn ask_for_policy(&mut self, now: Now, out: &dyn Outgoing) {
        let Some(offer) = &self.rollout.offer else {
            return;
        };
        let asked = out.send(Body::FetchPolicy(FetchPolicy {
            sha256: offer.sha256.clone(),
            offset: self.rollout.bytes.len() as u64,
        }));
        if asked {
            self.rollout.moved = Some(now.at);
        }
    }

    pub(super) fn policy_chunk(&mut self, chunk: &PolicyChunk, now: Now, out: &dyn Outgoing) {
        let rollout = &mut self.rollout;
        let Some(offer) = rollout.offer.clone() else {
            return;
        };
        if chunk.sha256 != offer.sha256 {
            return;
        }
        if !chunk.error.is_empty() {
            // It may be there at the next welcome.
            rollout.offer = None;
            rollout.bytes = Vec::new();
            let message = format!("policy {}: {}", offer.sha256, chunk.error);
            self.event("PolicyNotFetched", message, true, None, now);
            return;
        }
        if chunk.offset != rollout.bytes.len() as u64 {
            return;
        }
        let length = rollout.bytes.len() + chunk.data.len();
        if length > MAX_BYTES || length as u64 > offer.bytes {
            let problem = format!("more than the {} bytes that were offered", offer.bytes);
            let why = PolicyRefused::File {
                sha256: offer.sha256.clone(),
                problem,
            };
            self.refuse_policy(&offer.sha256, &why, now);
            return;
        }
        rollout.bytes.extend_from_slice(&chunk.data);
        rollout.moved = Some(now.at);
        if chunk.end || rollout.bytes.len() as u64 == offer.bytes {
            let file = Bytes::from(std::mem::take(&mut rollout.bytes));
            self.take_policy(offer, file, now);
        } else {
            self.ask_for_policy(now, out);
        }
    }

    /// A peer gave the file of [`Effect::FetchPolicy`].
    pub fn policy_fetched(&mut self, fetched: Fetched, now: Now) {
        let wanted = self.rollout.offer.take();
        match wanted {
            Some(offer) if offer.sha256 == fetched.sha256 => {
                let signature = fetched.signature;
                let offer = PolicyOffer { signature, ..offer };
                self.take_policy(offer, fetched.file, now);
            }
            // Came over the link meanwhile, or another is offered now.
            other => self.rollout.offer = other,
        }
    }

    fn take_policy(&mut self, offer: PolicyOffer, file: Bytes, now: Now) {
        match judge(&offer, &file, &self.config.ca_der) {
            Ok(decider) => {
                let before = self.policy_hash().to_owned();
                self.rollout.offer = None;
                self.rollout.bytes = Vec::new();
                self.store.set_policy(offer, file);
                self.decider = decider;
                let message = format!(
                    "policy {} {} decides in the place of {}",
                    self.decider.name(),
                    short(self.policy_hash()),
                    if before.is_empty() {
                        "rules"
                    } else {
                        short(&before)
                    },
                );
                self.event("PolicySwitched", message, false, None, now);
                self.refresh(now);
            }
            Err(why) => self.refuse_policy(&offer.sha256, &why, now),
        }
    }

    fn refuse_policy(&mut self, sha256: &str, why: &PolicyRefused, now: Now) {
        self.rollout.offer = None;
        self.rollout.bytes = Vec::new();
        self.counts.policies_refused += 1;
        if self.rollout.refused.len() == REFUSED {
            self.rollout.refused.pop_first();
        }
        self.rollout.refused.insert(sha256.to_owned());
        self.event("PolicyRefused", why.to_string(), true, None, now);
    }

    pub(super) fn rollout_tick(&mut self, now: Now, out: &dyn Outgoing) {
        let Some(offer) = &self.rollout.offer else {
            return;
        };
        let waited = |since: Option<Instant>, time: Duration| {
            since.is_none_or(|at| now.at.saturating_duration_since(at) >= time)
        };
        if self.linked {
            if waited(self.rollout.moved, AGAIN) {
                self.ask_for_policy(now, out);
            }
        } else if waited(self.rollout.asked_peers, PEER_AGAIN) {
            let sha256 = offer.sha256.clone();
            self.rollout.asked_peers = Some(now.at);
            self.effects.push(Effect::FetchPolicy { sha256 });
        }
    }
}

/// First digits of a hash.
fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}
