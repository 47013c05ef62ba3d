//! Who trusts whom among the nodes of one site: both ends show their node certificates.
//!
//! TLS proves that a certificate comes from the fleet's CA and that the other end has its key;
//! [`Circle::admit`] then says whether that node is heard here. Dates are not looked at: the site
//! must go on while the control plane is away, when certificates run out and can't be renewed, and
//! on boards that boot without a clock. What takes a node out is the control plane's list of
//! revoked nodes, which spreads among the peers.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::identity::{CertificateFacts, Identity, IdentityError};
use crate::tls::TlsError;

/// Protocol of the peers.
pub const ALPN: &[u8] = b"hyperion-peer/1";
/// Name that peers ask for. It says nothing: nodes are known by the ids in their certificates.
pub const SERVER_NAME: &str = "hyperion-peer";

/// An identity that can't be used among peers.
#[derive(Debug, thiserror::Error)]
pub enum PeerTlsError {
    /// Keys or certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The own certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl From<Error> for PeerTlsError {
    fn from(error: Error) -> Self {
        Self::Tls(error.into())
    }
}

/// Configurations of one endpoint that both calls and is called.
pub struct PeerTls {
    /// For being called.
    pub server: quinn::ServerConfig,
    /// For calling.
    pub client: quinn::ClientConfig,
}

/// TLS of a node among its peers.
///
/// # Errors
/// The identity's key and certificates do not go together.
pub fn configs(
    identity: &Identity,
    transport: Arc<quinn::TransportConfig>,
) -> Result<PeerTls, PeerTlsError> {
    let provider = Arc::new(ring::default_provider());
    let mut chain = identity.chain_der.iter().cloned().map(CertificateDer::from);
    let (Some(leaf), Some(ca)) = (chain.next(), chain.next()) else {
        return Err(IdentityError::ShortChain(identity.chain_der.len()).into());
    };
    let mut roots = RootCertStore::empty();
    roots.add(ca)?;
    // Node certificates are for clients, as far as X.509 is concerned; here both ends show one.
    let inner = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(TlsError::from)?;
    let verifier = Arc::new(AnyDate(inner));

    let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier.clone())
        .with_single_cert(vec![leaf.clone()], identity.key())?;
    server.alpn_protocols = vec![ALPN.to_vec()];
    server.send_tls13_tickets = 0;
    let quic = quinn::crypto::rustls::QuicServerConfig::try_from(server).map_err(TlsError::from)?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(quic));
    server
        .transport_config(transport.clone())
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size_total(INCOMING_BUFFER);

    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(vec![leaf], identity.key())?;
    client.alpn_protocols = vec![ALPN.to_vec()];
    client.resumption = rustls::client::Resumption::disabled();
    let quic = quinn::crypto::rustls::QuicClientConfig::try_from(client).map_err(TlsError::from)?;
    let mut client = quinn::ClientConfig::new(Arc::new(quic));
    client.transport_config(transport);
    Ok(PeerTls { server, client })
}

/// Callers that may wait for the agent to look at them.
const MAX_INCOMING: usize = 256;
/// What callers may send before that, bytes in all: strangers can make a device hold as much.
const INCOMING_BUFFER: u64 = 1 << 20;

/// Verifies that a certificate comes from the fleet's CA, at a date at which it was valid.
struct AnyDate(Arc<dyn ClientCertVerifier>);

impl fmt::Debug for AnyDate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnyDate")
    }
}

impl AnyDate {
    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<(), Error> {
        let began = CertificateFacts::parse(end_entity)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?
            .not_before;
        let then = UnixTime::since_unix_epoch(Duration::from_secs(began));
        self.0
            .verify_client_cert(end_entity, intermediates, then)
            .map(|_| ())
    }
}

impl ClientCertVerifier for AnyDate {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // The caller has one certificate only; a list of CAs would be bytes for nothing.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(end_entity, intermediates)
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

impl ServerCertVerifier for AnyDate {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(end_entity, intermediates)
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// The nodes that this node hears: those of its own fleet and site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Circle {
    /// Fleet.
    pub fleet: String,
    /// Site.
    pub site: String,
    /// Own node id.
    pub node: String,
}

/// Why a node is not heard.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotHeard {
    /// Its certificate can't be read.
    #[error("certificate does not parse")]
    Unreadable,
    /// No node id.
    #[error("certificate names no node")]
    NoNode,
    /// Of another fleet.
    #[error("of another fleet")]
    OtherFleet,
    /// Made before sites were written into certificates.
    #[error("certificate names no site: the node has to renew it")]
    NoSite,
    /// Of another site.
    #[error("of site {0:?}, not of this one")]
    OtherSite(String),
    /// It says that it is this node.
    #[error("has this node's own identity: a clone")]
    Clone,
}

impl Circle {
    /// What the own certificate says; none where it names no site, and then nobody will hear this
    /// node.
    ///
    /// # Errors
    /// The certificate can't be read.
    pub fn of(identity: &Identity) -> Result<Option<Self>, IdentityError> {
        let leaf = identity
            .chain_der
            .first()
            .ok_or(IdentityError::ShortChain(0))?;
        let facts = CertificateFacts::parse(leaf)?;
        let (Some(fleet), Some(node)) = (facts.fleet, facts.node_id) else {
            return Err(IdentityError::NoSpiffeId);
        };
        Ok(facts.site.map(|site| Self { fleet, site, node }))
    }

    /// Id of the node with this certificate, which TLS has verified.
    ///
    /// # Errors
    /// Why it is not heard.
    pub fn admit(&self, leaf: &[u8]) -> Result<String, NotHeard> {
        let facts = CertificateFacts::parse(leaf).map_err(|_| NotHeard::Unreadable)?;
        if facts.fleet.as_ref() != Some(&self.fleet) {
            return Err(NotHeard::OtherFleet);
        }
        let node = facts.node_id.ok_or(NotHeard::NoNode)?;
        match facts.site {
            None => Err(NotHeard::NoSite),
            Some(site) if site != self.site => Err(NotHeard::OtherSite(site)),
            Some(_) if node == self.node => Err(NotHeard::Clone),
            Some(_) => Ok(node),
        }
    }
}
