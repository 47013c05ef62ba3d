//! The policy that devices decide with while they are cut off: signed by the fleet's CA, offered
//! in welcomes, and handed out piece by piece.

use std::sync::Arc;

use hyperion_proto::agent_v1::{FetchPolicy, PolicyChunk, PolicyOffer};
use rcgen::{KeyPair, SigningKey};
use sha2::{Digest, Sha256};

/// Bytes of one piece.
pub const CHUNK: usize = 64 * 1024;

/// A policy that is offered.
#[derive(Debug, Clone)]
pub struct DevicePolicy {
    bytes: Arc<[u8]>,
    offer: PolicyOffer,
}

/// It can't be signed.
#[derive(Debug, thiserror::Error)]
#[error("the policy for devices can't be signed: {0}")]
pub struct SignError(#[from] rcgen::Error);

impl DevicePolicy {
    /// Signs a policy file. `key_der` is the CA's key, PKCS#8.
    ///
    /// # Errors
    /// The key does not sign.
    pub fn sign(bytes: &[u8], key_der: &[u8]) -> Result<Self, SignError> {
        let hash = Sha256::digest(bytes);
        let key = KeyPair::try_from(key_der)?;
        Ok(Self {
            offer: PolicyOffer {
                sha256: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
                bytes: bytes.len() as u64,
                signature: key.sign(&hash)?,
            },
            bytes: bytes.into(),
        })
    }

    /// What nodes are told.
    #[must_use]
    pub fn offer(&self) -> &PolicyOffer {
        &self.offer
    }
}

/// Answers a request for a piece.
#[must_use]
pub fn chunk(policy: Option<&DevicePolicy>, asked: &FetchPolicy) -> PolicyChunk {
    let refused = |error: &str| PolicyChunk {
        sha256: asked.sha256.chars().take(64).collect(),
        offset: asked.offset,
        end: true,
        error: error.to_owned(),
        ..PolicyChunk::default()
    };
    let Some(policy) = policy.filter(|p| p.offer.sha256 == asked.sha256) else {
        return refused("this policy is not offered");
    };
    let from = usize::try_from(asked.offset).unwrap_or(usize::MAX);
    let Some(rest) = policy.bytes.get(from..) else {
        return refused("fetch_policy.offset is beyond the end");
    };
    let data = &rest[..rest.len().min(CHUNK)];
    PolicyChunk {
        sha256: asked.sha256.clone(),
        offset: asked.offset,
        data: data.to_vec(),
        end: data.len() == rest.len(),
        error: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(policy: &DevicePolicy, offset: u64) -> FetchPolicy {
        FetchPolicy {
            sha256: policy.offer.sha256.clone(),
            offset,
        }
    }

    #[test]
    fn pieces_make_the_file() {
        let key = KeyPair::generate().unwrap().serialize_der();
        let file: Vec<u8> = (0..=255).cycle().take(CHUNK * 2 + 7).collect();
        let policy = DevicePolicy::sign(&file, &key).unwrap();
        let mut got = Vec::new();
        loop {
            let piece = chunk(Some(&policy), &asked(&policy, got.len() as u64));
            assert_eq!(piece.error, "");
            got.extend(piece.data);
            if piece.end {
                break;
            }
        }
        assert_eq!(got, file);
        assert_eq!(policy.offer().bytes, file.len() as u64);
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let key = KeyPair::generate().unwrap().serialize_der();
        let policy = DevicePolicy::sign(b"policy", &key).unwrap();
        assert!(chunk(None, &asked(&policy, 0)).end);
        for (policy, asked) in [
            (None, asked(&policy, 0)),
            (Some(&policy), asked(&policy, 7)),
            (Some(&policy), asked(&policy, u64::MAX)),
            (Some(&policy), FetchPolicy::default()),
        ] {
            assert_ne!(chunk(policy, &asked).error, "");
        }
        assert!(DevicePolicy::sign(b"policy", b"no key").is_err());
    }
}
