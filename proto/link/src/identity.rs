//! Keys, certificate requests, SPIFFE ids and fingerprints.

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

/// Certificates begin this long before they are made: clocks of devices may be behind by as much.
pub const BACKDATE: Duration = Duration::from_secs(3600);

/// Who a node is: what enrolment gave it and the key it made itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// Node id.
    pub node_id: String,
    /// Site of the join token.
    pub site: String,
    /// PKCS#8, DER. Never leaves the device.
    pub key_der: Vec<u8>,
    /// Node certificate, then the CA's.
    pub chain_der: Vec<Vec<u8>>,
}

impl std::fmt::Debug for Identity {
    /// Leaves the key out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({} of site {:?})", self.node_id, self.site)
    }
}

/// A certificate or key that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The chain lacks the node certificate or the CA's.
    #[error("certificate chain has {0} certificates; node and CA certificates are needed")]
    ShortChain(usize),
    /// DER that does not parse.
    #[error("certificate does not parse: {0}")]
    Certificate(String),
    /// No SPIFFE id of a node.
    #[error("certificate carries no URI spiffe://<fleet>/node/<id>")]
    NoSpiffeId,
    /// Key or CSR.
    #[error("key or certificate request: {0}")]
    Key(#[from] rcgen::Error),
}

impl Identity {
    /// Checks that the chain has both certificates and that the first one is this node's.
    ///
    /// # Errors
    /// What is wrong with the chain.
    pub fn validate(&self) -> Result<(), IdentityError> {
        if self.chain_der.len() < 2 {
            return Err(IdentityError::ShortChain(self.chain_der.len()));
        }
        let facts = CertificateFacts::parse(&self.chain_der[0])?;
        match facts.node_id {
            Some(id) if id == self.node_id => Ok(()),
            _ => Err(IdentityError::NoSpiffeId),
        }
    }

    /// The key as rustls wants it.
    #[must_use]
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key_der.clone()))
    }

    /// Fingerprint of the CA certificate.
    #[must_use]
    pub fn ca_fingerprint(&self) -> Option<String> {
        self.chain_der.get(1).map(|der| fingerprint(der))
    }
}

/// `sha256:<hex>` of a certificate's DER.
#[must_use]
pub fn fingerprint(der: &[u8]) -> String {
    let hex: String = Sha256::digest(der)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    format!("sha256:{hex}")
}

/// A new P-256 key, PKCS#8 DER.
///
/// # Errors
/// The random source failed.
pub fn new_key() -> Result<Vec<u8>, IdentityError> {
    Ok(KeyPair::generate()?.serialize_der())
}

/// A certificate signing request for the key. The node id is the control plane's to choose, so
/// the request names nobody.
///
/// # Errors
/// The key does not parse.
pub fn certificate_request(key_der: &[u8]) -> Result<Vec<u8>, IdentityError> {
    let key = KeyPair::try_from(key_der)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "hyperion-agent");
    Ok(params.serialize_request(&key)?.der().to_vec())
}

/// URI of a node.
#[must_use]
pub fn spiffe_uri(fleet: &str, node_id: &str) -> String {
    format!("spiffe://{fleet}/node/{node_id}")
}

/// URI of a site. Every node of the site carries it beside its own: peers hear only each other.
#[must_use]
pub fn site_uri(fleet: &str, site: &str) -> String {
    format!("spiffe://{fleet}/site/{site}")
}

/// What the two ends read in a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// From the SPIFFE URI.
    pub fleet: Option<String>,
    /// From the SPIFFE URI.
    pub node_id: Option<String>,
    /// From the SPIFFE URI of the site, where it is of the same fleet; certificates made before
    /// sites were written into them have none.
    pub site: Option<String>,
    /// Start of validity, seconds since the epoch.
    pub not_before: u64,
    /// End of validity, seconds since the epoch.
    pub not_after: u64,
    /// Subject public key info, DER.
    pub public_key: Vec<u8>,
    /// Serial number, hexadecimal.
    pub serial: String,
}

impl CertificateFacts {
    /// Reads a certificate.
    ///
    /// # Errors
    /// It does not parse.
    pub fn parse(der: &[u8]) -> Result<Self, IdentityError> {
        let (_, cert) = X509Certificate::from_der(der)
            .map_err(|e| IdentityError::Certificate(e.to_string()))?;
        let (mut fleet, mut node_id, mut sites) = (None, None, Vec::new());
        for extension in cert.extensions() {
            let ParsedExtension::SubjectAlternativeName(san) = extension.parsed_extension() else {
                continue;
            };
            for name in &san.general_names {
                let GeneralName::URI(uri) = name else {
                    continue;
                };
                let Some(path) = uri.strip_prefix("spiffe://") else {
                    continue;
                };
                if let Some((of, id)) = path.split_once("/node/")
                    && node_id.is_none()
                {
                    (fleet, node_id) = (Some(of), Some(id));
                } else if let Some((of, site)) = path.split_once("/site/") {
                    sites.push((of, site));
                }
            }
        }
        let site = sites
            .into_iter()
            .find(|(of, site)| Some(*of) == fleet && !site.is_empty());
        let seconds = |t: i64| u64::try_from(t).unwrap_or(0);
        Ok(Self {
            fleet: fleet.map(str::to_owned),
            node_id: node_id.map(str::to_owned),
            site: site.map(|(_, site)| site.to_owned()),
            not_before: seconds(cert.validity().not_before.timestamp()),
            not_after: seconds(cert.validity().not_after.timestamp()),
            public_key: cert.public_key().raw.to_vec(),
            serial: cert
                .raw_serial()
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect(),
        })
    }

    /// Time left until two thirds of the lifetime have passed, counted from when the certificate
    /// was made; zero when they have.
    #[must_use]
    pub fn renew_in(&self, now: SystemTime) -> Duration {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let made = self.not_before.saturating_add(BACKDATE.as_secs());
        let lifetime = self.not_after.saturating_sub(made);
        let renew_at = self.not_after.saturating_sub(lifetime / 3);
        Duration::from_secs(renew_at.saturating_sub(now))
    }

    /// True after the end of validity.
    #[must_use]
    pub fn expired(&self, now: SystemTime) -> bool {
        now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() >= self.not_after
    }
}

/// Leaf certificate of a TLS peer.
#[must_use]
pub fn peer_leaf(connection: &quinn::Connection) -> Option<CertificateDer<'static>> {
    let chain = connection
        .peer_identity()?
        .downcast::<Vec<CertificateDer<'static>>>()
        .ok()?;
    chain.into_iter().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(not_before: u64, not_after: u64) -> CertificateFacts {
        CertificateFacts {
            fleet: None,
            node_id: None,
            site: None,
            not_before,
            not_after,
            public_key: Vec::new(),
            serial: String::new(),
        }
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_certificate_is_renewed_after_two_thirds_of_the_life_it_was_made_for() {
        let made = 1_000_000;
        let day = facts(made - BACKDATE.as_secs(), made + 86_400);
        assert_eq!(day.renew_in(at(made)).as_secs(), 57_600);
        assert_eq!(day.renew_in(at(made + 80_000)), Duration::ZERO);
        // The backdating is no part of it: a short one is not due at once.
        let short = facts(made - BACKDATE.as_secs(), made + 60);
        assert_eq!(short.renew_in(at(made)).as_secs(), 40);
    }

    #[test]
    fn dates_that_make_no_sense_are_due_at_once_and_do_not_overflow() {
        for odd in [facts(u64::MAX, 0), facts(0, 0), facts(u64::MAX, u64::MAX)] {
            let _ = odd.renew_in(at(1_000_000));
        }
        assert!(facts(5, 4).expired(at(1_000_000)));
        assert_eq!(facts(5, 4).renew_in(at(1_000_000)), Duration::ZERO);
    }

    fn certificate(uris: &[&str]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = uris
            .iter()
            .map(|uri| rcgen::SanType::URI((*uri).try_into().unwrap()))
            .collect();
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn node_and_site_are_read_in_either_order() {
        let (node, site) = (spiffe_uri("f", "lab-1"), site_uri("f", "lab"));
        for uris in [[node.as_str(), &site], [site.as_str(), &node]] {
            let facts = CertificateFacts::parse(&certificate(&uris)).unwrap();
            assert_eq!(facts.fleet.as_deref(), Some("f"));
            assert_eq!(facts.node_id.as_deref(), Some("lab-1"));
            assert_eq!(facts.site.as_deref(), Some("lab"));
        }
    }

    #[test]
    fn a_site_of_another_fleet_or_without_a_name_is_none() {
        let node = spiffe_uri("f", "lab-1");
        for odd in [
            "spiffe://other/site/lab",
            "spiffe://f/site/",
            "https://f/site/lab",
        ] {
            let facts = CertificateFacts::parse(&certificate(&[&node, odd])).unwrap();
            assert_eq!(facts.node_id.as_deref(), Some("lab-1"), "{odd}");
            assert_eq!(facts.site, None, "{odd}");
        }
        let alone = CertificateFacts::parse(&certificate(&[&site_uri("f", "lab")])).unwrap();
        assert_eq!((alone.node_id, alone.site), (None, None));
    }

    #[test]
    fn an_identity_says_nothing_of_its_key() {
        let identity = Identity {
            node_id: "lab-1".to_owned(),
            site: "lab".to_owned(),
            key_der: b"secret".to_vec(),
            chain_der: Vec::new(),
        };
        assert_eq!(format!("{identity:?}"), "Identity(lab-1 of site \"lab\")");
        assert!(matches!(
            identity.validate(),
            Err(IdentityError::ShortChain(0))
        ));
    }
}
