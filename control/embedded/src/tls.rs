//! The server's own CA and certificate, and the token: made once, kept in the data folder, so
//! that a kubeconfig stays good over restarts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::Rng;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use crate::files::write_private;

const FILE: &str = "api-identity.json";
const CA_YEARS: i64 = 20;
const SERVER_DAYS: i64 = 365;

/// What can go wrong with the server's identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file can't be read or written.
    #[error("identity {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file holds something else.
    #[error(
        "identity {path}: {cause}; restore it from a copy, or remove it to make a new CA and token (kubeconfigs made before stop working)"
    )]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// Making certificates.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The TLS library refuses them.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// What is kept.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    ca_certificate: String,
    ca_key: String,
    token: String,
}

/// CA and token.
pub(crate) struct Identity {
    kept: Kept,
    issuer: Issuer<'static, KeyPair>,
}

impl Identity {
    /// Reads the identity, or makes it.
    pub fn load_or_make(data_dir: &Path) -> Result<Self, IdentityError> {
        let path = data_dir.join(FILE);
        let kept = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| IdentityError::Content {
                path: path.clone(),
                cause: e.to_string(),
            })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let kept = make()?;
                let text = serde_json::to_vec(&kept).map_err(|e| IdentityError::Content {
                    path: path.clone(),
                    cause: e.to_string(),
                })?;
                write_private(&path, &text).map_err(|source| IdentityError::File {
                    path: path.clone(),
                    source,
                })?;
                kept
            }
            Err(source) => return Err(IdentityError::File { path, source }),
        };
        let content = |cause: rcgen::Error| IdentityError::Content {
            path: path.clone(),
            cause: cause.to_string(),
        };
        let key = KeyPair::from_pem(&kept.ca_key).map_err(content)?;
        let issuer = Issuer::from_ca_cert_pem(&kept.ca_certificate, key).map_err(content)?;
        Ok(Self { kept, issuer })
    }

    pub fn ca_pem(&self) -> &str {
        &self.kept.ca_certificate
    }

    pub fn token(&self) -> &str {
        &self.kept.token
    }

    /// TLS for a server at an address, with a fresh certificate.
    pub fn server_config(&self, address: SocketAddr) -> Result<ServerConfig, IdentityError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![
            "localhost".to_owned(),
            "kubernetes".to_owned(),
            "kubernetes.default.svc".to_owned(),
        ])?;
        let mut addresses = vec![
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
        ];
        if !addresses.contains(&address.ip()) && !address.ip().is_unspecified() {
            addresses.push(address.ip());
        }
        params
            .subject_alt_names
            .extend(addresses.into_iter().map(SanType::IpAddress));
        params
            .distinguished_name
            .push(DnType::CommonName, "kube-apiserver");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        validity(&mut params, Duration::days(SERVER_DAYS));
        let certificate = params.signed_by(&key, &self.issuer)?;
        let ca = CertificateDer::from_pem_slice(self.ca_pem().as_bytes())
            .map_err(|_| rustls::Error::General("the CA certificate is not PEM".to_owned()))?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone(), ca], key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn make() -> Result<Kept, IdentityError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "embedded-api-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    validity(&mut params, Duration::days(365 * CA_YEARS));
    let certificate = params.self_signed(&key)?;
    let mut token = [0_u8; 24];
    rand::rng().fill_bytes(&mut token);
    Ok(Kept {
        ca_certificate: certificate.pem(),
        ca_key: key.serialize_pem(),
        token: token.iter().map(|b| format!("{b:02x}")).collect(),
    })
}

fn validity(params: &mut CertificateParams, length: Duration) {
    let now = OffsetDateTime::now_utc();
    // Clocks of clients may be behind.
    params.not_before = now - Duration::hours(1);
    params.not_after = now + length;
}
