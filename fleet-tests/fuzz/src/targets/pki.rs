//! Certificates, requests and the CA's own Secret.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyperion_gateway::NAMESPACE;
use hyperion_gateway::pki::{self, Authority};
use hyperion_gateway::testing::MemoryApi;
use hyperion_link::identity::{CertificateFacts, Identity, certificate_request, new_key};
use serde_json::json;
use tokio::runtime::Runtime;

use crate::{Case, Outcome};

pub(crate) fn runtime() -> anyhow::Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    Ok(builder.enable_all().build()?)
}

fn authority() -> anyhow::Result<Authority> {
    let api = MemoryApi::default();
    runtime()?.block_on(ensure(&api))
}

/// In an async function, because a client starts a task.
async fn ensure(api: &MemoryApi) -> anyhow::Result<Authority> {
    let client = api.client();
    Ok(Authority::ensure(&client, "hyperion").await?)
}

/// Object identifiers and tags of X.509.
fn dictionary() -> Vec<Vec<u8>> {
    let words: [&[u8]; 10] = [
        &[0x06, 0x03, 0x55, 0x1d, 0x11],
        &[0x06, 0x03, 0x55, 0x1d, 0x13],
        &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02],
        &[0x30, 0x80],
        &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff],
        &[0x86, 0x10],
        b"spiffe://",
        b"/node/",
        b"19700101000000Z",
        b"99991231235959Z",
    ];
    words.iter().map(|w| w.to_vec()).collect()
}

/// Certificate requests.
pub struct RequestCase {
    authority: Authority,
    seed: Vec<u8>,
}

impl RequestCase {
    /// Makes a CA.
    ///
    /// # Errors
    /// No random numbers.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self {
            authority: authority()?,
            seed: certificate_request(&new_key()?)?,
        })
    }
}

impl Case for RequestCase {
    fn seeds(&self) -> Vec<Vec<u8>> {
        vec![self.seed.clone()]
    }

    fn dictionary(&self) -> Vec<Vec<u8>> {
        dictionary()
    }

    fn run(&mut self, input: &[u8]) -> Outcome {
        let key = pki::request_key(input);
        let ttl = Duration::from_secs(60);
        let signed = self.authority.sign_node(input, "lab-1", "lab", ttl);
        if let Ok(chain) = &signed {
            // Whatever the request asked for, this is what it gets.
            let facts = chain.first().map(|der| self.authority.verify_own(der));
            let node = facts.and_then(Result::ok).and_then(|f| f.node_id);
            assert_eq!(node.as_deref(), Some("lab-1"));
        }
        Outcome::of(&key).and(Outcome::of(&signed))
    }
}

/// Certificates.
pub struct CertificateCase {
    authority: Authority,
    seeds: Vec<Vec<u8>>,
}

impl CertificateCase {
    /// Makes a CA and a node's certificate.
    ///
    /// # Errors
    /// No random numbers.
    pub fn new() -> anyhow::Result<Self> {
        let authority = authority()?;
        let csr = certificate_request(&new_key()?)?;
        let seeds = authority.sign_node(&csr, "lab-1", "lab", Duration::from_secs(3600))?;
        Ok(Self { authority, seeds })
    }
}

/// The to-be-signed part of a certificate of ours: first element of the outer sequence, both with
/// lengths of two bytes.
fn signed_part(certificate: &[u8]) -> &[u8] {
    let length = |at: usize| usize::from(certificate[at]) << 8 | usize::from(certificate[at + 1]);
    &certificate[4..8 + length(6)]
}

impl Case for CertificateCase {
    fn seeds(&self) -> Vec<Vec<u8>> {
        self.seeds.clone()
    }

    fn dictionary(&self) -> Vec<Vec<u8>> {
        dictionary()
    }

    fn run(&mut self, input: &[u8]) -> Outcome {
        let facts = CertificateFacts::parse(input);
        if let Ok(facts) = &facts {
            let now = SystemTime::now();
            let _ = (facts.renew_in(now), facts.expired(now));
        }
        let verified = self.authority.verify_own(input);
        // What we signed can't be changed. What stands around it can: the outer name of the
        // signature's algorithm is not signed, and says nothing that anybody reads.
        if verified.is_ok() {
            let ours = self.seeds.iter().any(|s| {
                let signed = signed_part(s);
                input.windows(signed.len()).any(|w| w == signed)
            });
            assert!(ours, "forged");
        }
        let identity = Identity {
            node_id: "lab-1".to_owned(),
            site: String::new(),
            key_der: input.to_vec(),
            chain_der: vec![input.to_vec(), input.to_vec()],
        };
        Outcome::of(&facts)
            .and(Outcome::of(&verified))
            .and(Outcome::of(&identity.validate()))
            .and(Outcome::of(&certificate_request(input)))
    }
}

/// The CA's Secret: certificate and key, as PEM, with an empty line between them.
pub struct SecretCase {
    runtime: Runtime,
    seed: Vec<u8>,
}

impl SecretCase {
    /// Makes a CA and reads its Secret.
    ///
    /// # Errors
    /// No random numbers.
    pub fn new() -> anyhow::Result<Self> {
        let api = MemoryApi::default();
        let runtime = runtime()?;
        runtime.block_on(ensure(&api))?;
        let secret = api.get(&secret_path()).unwrap_or_default();
        let text = |key: &str| {
            let encoded = secret["data"][key].as_str().unwrap_or_default().to_owned();
            STANDARD.decode(encoded).unwrap_or_default()
        };
        let seed = [text("tls.crt"), b"\n\n".to_vec(), text("tls.key")].concat();
        Ok(Self { runtime, seed })
    }
}

fn secret_path() -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/secrets/hyperion-ca")
}

impl Case for SecretCase {
    fn seeds(&self) -> Vec<Vec<u8>> {
        vec![self.seed.clone()]
    }

    fn dictionary(&self) -> Vec<Vec<u8>> {
        let words: [&[u8]; 4] = [
            b"-----BEGIN CERTIFICATE-----\n",
            b"-----END CERTIFICATE-----\n",
            b"-----BEGIN PRIVATE KEY-----\n",
            b"\n\n",
        ];
        words.iter().map(|w| w.to_vec()).collect()
    }

    fn run(&mut self, input: &[u8]) -> Outcome {
        let middle = input.windows(2).position(|w| w == b"\n\n");
        let (certificate, key) = input.split_at(middle.unwrap_or(input.len()));
        let api = MemoryApi::default();
        api.put(
            &secret_path(),
            json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "hyperion-ca" },
                "data": { "tls.crt": STANDARD.encode(certificate), "tls.key": STANDARD.encode(key) } }),
        );
        let ensured = self.runtime.block_on(ensure(&api));
        if let Ok(authority) = &ensured {
            let _ = authority.server_certificate();
        }
        Outcome::of(&ensured)
    }
}
