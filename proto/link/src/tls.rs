//! Who trusts whom.
//!
//! The agent pins the fleet's CA by fingerprint, from the join token's paper on, and accepts any
//! server certificate that this CA signed for `hyperion-control`. The gateway accepts clients with
//! a certificate of its CA, and clients without one for enrolment only.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::identity::{CertificateFacts, Identity, fingerprint};
use crate::transport::ALPN;

/// A TLS configuration that can't be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Keys or certificates do not go together.
    #[error("TLS configuration: {0}")]
    Rustls(#[from] Error),
    /// QUIC needs a cipher that is missing.
    #[error("TLS configuration has no initial cipher suite for QUIC")]
    Quic(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
    /// Client verification.
    #[error("client certificate verification: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Verifies a server against a pinned CA.
#[derive(Debug)]
struct PinnedCa {
    fingerprint: String,
    provider: Arc<CryptoProvider>,
}

impl PinnedCa {
    fn ca<'a>(&self, sent: &'a [CertificateDer<'_>]) -> Result<&'a CertificateDer<'a>, Error> {
        sent.iter()
            .find(|der| fingerprint(der) == self.fingerprint)
            .ok_or_else(|| {
                let seen = sent
                    .last()
                    .map_or_else(|| "none".to_owned(), |der| fingerprint(der));
                Error::General(format!(
                    "the server's CA has fingerprint {seen}, expected {}",
                    self.fingerprint
                ))
            })
    }
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca(intermediates)?.clone().into_owned())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
                .build()
                .map_err(|e| Error::General(e.to_string()))?;
        // Boards boot without a clock, in 1970 or at the image's build: a time before the server's
        // certificate began is wrong, and the pinned CA vouches for that certificate.
        let began = CertificateFacts::parse(end_entity)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?
            .not_before;
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs().max(began)));
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// The agent's side; without an identity only enrolment will be accepted.
///
/// # Errors
/// The identity's key and certificate do not go together.
pub fn client_config(
    ca_fingerprint: &str,
    identity: Option<&Identity>,
    transport: Arc<quinn::TransportConfig>,
) -> Result<quinn::ClientConfig, TlsError> {
    let verifier = PinnedCa {
        // People paste it; case carries no meaning in it.
        fingerprint: ca_fingerprint.trim().to_ascii_lowercase(),
        provider: provider(),
    };
    let builder = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match identity {
        Some(identity) => {
            let leaf = identity
                .chain_der
                .iter()
                .take(1)
                .cloned()
                .map(CertificateDer::from);
            builder.with_client_auth_cert(leaf.collect(), identity.key())?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A session ticket costs the server memory per agent and saves one signature in a day.
    config.resumption = rustls::client::Resumption::disabled();
    let quic = quinn::crypto::rustls::QuicClientConfig::try_from(config)?;
    let mut client = quinn::ClientConfig::new(Arc::new(quic));
    client.transport_config(transport);
    Ok(client)
}

/// The gateway's side: `chain` is its certificate and the CA's, which is also the one that
/// clients' certificates must come from.
///
/// # Errors
/// Key, certificate and CA do not go together.
pub fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    ca: CertificateDer<'static>,
    transport: Arc<quinn::TransportConfig>,
) -> Result<quinn::ServerConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(ca)?;
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    let quic = quinn::crypto::rustls::QuicServerConfig::try_from(config)?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(quic));
    server.transport_config(transport).max_incoming(32_768);
    Ok(server)
}

/// Seconds since the epoch by the system clock, 0 before it.
#[must_use]
pub fn unix_now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
