//! The fleet's certificate authority.
//!
//! It is made once, with a CREATE that only one control-plane replica can win; the losers read
//! what the winner wrote. Two CAs would lock out every device that enrolled with the other.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use hyperion_link::identity::{BACKDATE, CertificateFacts, fingerprint, site_uri, spiffe_uri};
use hyperion_link::transport::SERVER_NAME;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer,
};
use time::OffsetDateTime;
use tracing::warn;
use x509_parser::prelude::{FromDer, X509Certificate, X509CertificationRequest};

use crate::NAMESPACE;
use crate::nodes::MANAGER;

/// Secret and ConfigMap name.
const NAME: &str = "hyperion-ca";
const CA_YEARS: i64 = 20;
/// The server's own certificate is made at each start, its key is gone with the process, and no
/// process lives as long as this.
const SERVER_DAYS: i64 = 365 * 5;

/// What can go wrong with the CA.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// API server.
    #[error("Secret {NAMESPACE}/{NAME}: {0}")]
    Api(#[from] kube::Error),
    /// What everyone may read can't be written.
    #[error("ConfigMap {NAMESPACE}/{NAME}: {0}")]
    Publish(kube::Error),
    /// The Secret holds something else.
    #[error("Secret {NAMESPACE}/{NAME}: key {0} is missing or is not PEM")]
    Content(&'static str),
    /// The certificate is not as it was made.
    #[error(
        "Secret {NAMESPACE}/{NAME}: the certificate in key tls.crt is damaged: its signature by itself is wrong"
    )]
    Damaged,
    /// Certificate and key are of two CAs.
    #[error("Secret {NAMESPACE}/{NAME}: keys tls.crt and tls.key do not belong together")]
    Pair,
    /// Signing.
    #[error("certificate: {0}")]
    Sign(#[from] rcgen::Error),
    /// A request that is refused.
    #[error("certificate request: {0}")]
    Request(String),
}

/// The CA with its key.
pub struct Authority {
    fleet: String,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Reads the CA, or makes it.
    ///
    /// # Errors
    /// The API server can't be asked, or the Secret is damaged.
    pub async fn ensure(client: &kube::Client, fleet: &str) -> Result<Self, PkiError> {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
        let secret = match secrets.get_opt(NAME).await? {
            Some(secret) => secret,
            None => match secrets
                .create(&PostParams::default(), &new_ca(fleet)?)
                .await
            {
                Ok(secret) => secret,
                Err(kube::Error::Api(status)) if status.code == 409 => secrets.get(NAME).await?,
                Err(e) => return Err(e.into()),
            },
        };
        Self::from_secret(&secret, fleet)
    }

    fn from_secret(secret: &Secret, fleet: &str) -> Result<Self, PkiError> {
        let key = KeyPair::from_pem(&pem(secret, "tls.key")?)
            .map_err(|_| PkiError::Content("tls.key"))?;
        let certificate_pem = pem(secret, "tls.crt")?;
        let (_, block) = x509_parser::pem::parse_x509_pem(certificate_pem.as_bytes())
            .map_err(|_| PkiError::Content("tls.crt"))?;
        // rcgen panics over names that it can't write again: nothing gets there that we did not
        // make ourselves, whole and for this key.
        let (_, certificate) =
            X509Certificate::from_der(&block.contents).map_err(|_| PkiError::Content("tls.crt"))?;
        certificate
            .verify_signature(None)
            .map_err(|_| PkiError::Damaged)?;
        if certificate.public_key().raw != key.subject_public_key_info() {
            return Err(PkiError::Pair);
        }
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key)?;
        Ok(Self {
            fleet: fleet.to_owned(),
            certificate: CertificateDer::from(block.contents),
            certificate_pem,
            issuer,
        })
    }

    /// What everyone may read, and the console prints with join tokens: the certificate, its
    /// fingerprint, and where agents find the gateway. Brings an older one up to date.
    ///
    /// # Errors
    /// There is none yet and it can't be made.
    pub async fn publish(&self, client: &kube::Client, link_address: &str) -> Result<(), PkiError> {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
        let map = ConfigMap {
            metadata: named(),
            data: Some(BTreeMap::from([
                ("ca.crt".to_owned(), self.certificate_pem.clone()),
                ("fingerprint".to_owned(), self.fingerprint()),
                ("link-address".to_owned(), link_address.to_owned()),
            ])),
            ..Default::default()
        };
        match maps.create(&PostParams::default(), &map).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(e) => return Err(PkiError::Publish(e)),
        }
        let params = PatchParams::apply(MANAGER).force();
        if let Err(e) = maps.patch(NAME, &params, &Patch::Apply(map)).await {
            // The one that is there serves; at worst the console prints an old address.
            warn!(error = %e, "cannot update ConfigMap {NAMESPACE}/{NAME}");
        }
        Ok(())
    }

    /// Fingerprint of the CA certificate.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.certificate)
    }

    /// The CA certificate.
    #[must_use]
    pub fn certificate_der(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }

    /// A certificate and key for the gateway itself, with the CA certificate behind it: agents
    /// find the CA that they pinned in what the server sends.
    ///
    /// # Errors
    /// Signing failed.
    pub fn server_certificate(
        &self,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), PkiError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()])?;
        validity(&mut params, time::Duration::days(SERVER_DAYS));
        params
            .distinguished_name
            .push(DnType::CommonName, SERVER_NAME);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok((
            vec![certificate.der().clone(), self.certificate.clone()],
            key,
        ))
    }

    /// Signs a node's request; whatever the request asked to be called, it becomes `node_id` of
    /// `site`. Without a site (an empty one) its peers will not hear it.
    ///
    /// # Errors
    /// The request does not parse or is not signed by its key.
    pub fn sign_node(
        &self,
        csr_der: &[u8],
        node_id: &str,
        site: &str,
        ttl: Duration,
    ) -> Result<Vec<Vec<u8>>, PkiError> {
        request_key(csr_der)?;
        let der = CertificateSigningRequestDer::from(csr_der);
        let mut csr = CertificateSigningRequestParams::from_der(&der)
            .map_err(|e| PkiError::Request(e.to_string()))?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, node_id);
        let uri = Ia5String::try_from(spiffe_uri(&self.fleet, node_id))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        if !site.is_empty() {
            let uri = Ia5String::try_from(site_uri(&self.fleet, site))?;
            params.subject_alt_names.push(SanType::URI(uri));
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let ttl = time::Duration::try_from(ttl).unwrap_or(time::Duration::days(1));
        validity(&mut params, ttl);
        csr.params = params;
        let certificate = csr.signed_by(&self.issuer)?;
        Ok(vec![certificate.der().to_vec(), self.certificate.to_vec()])
    }

    /// Node id of a certificate, expired or not, that this CA signed.
    ///
    /// # Errors
    /// It is not ours.
    pub fn verify_own(&self, certificate_der: &[u8]) -> Result<CertificateFacts, PkiError> {
        let refuse = |why: &str| PkiError::Request(why.to_owned());
        let facts = CertificateFacts::parse(certificate_der)
            .map_err(|e| PkiError::Request(e.to_string()))?;
        let (_, certificate) =
            X509Certificate::from_der(certificate_der).map_err(|_| refuse("not X.509"))?;
        let (_, ca) = X509Certificate::from_der(&self.certificate)
            .map_err(|_| refuse("the CA certificate is not X.509"))?;
        certificate
            .verify_signature(Some(ca.public_key()))
            .map_err(|_| refuse("the old certificate is not signed by this fleet's CA"))?;
        if facts.fleet.as_deref() != Some(self.fleet.as_str()) {
            return Err(refuse("the old certificate is of another fleet"));
        }
        Ok(facts)
    }

    /// Bytes that only this fleet's control plane knows, the same after every restart.
    #[must_use]
    pub fn secret(&self) -> Vec<u8> {
        self.issuer.key().serialize_der()
    }

    /// Trust domain.
    #[must_use]
    pub fn fleet(&self) -> &str {
        &self.fleet
    }
}

/// What is said of an address for agents where nobody said more: an address that only this machine
/// understands, or that means all of them, becomes `:PORT`, and readers know the host.
#[must_use]
pub fn link_address(bound: SocketAddr) -> String {
    if bound.ip().is_unspecified() || bound.ip().is_loopback() {
        format!(":{}", bound.port())
    } else {
        bound.to_string()
    }
}

/// Public key of a request that is signed by it.
///
/// # Errors
/// It does not parse, or the signature is wrong.
pub fn request_key(csr_der: &[u8]) -> Result<Vec<u8>, PkiError> {
    let (_, csr) = X509CertificationRequest::from_der(csr_der)
        .map_err(|e| PkiError::Request(e.to_string()))?;
    csr.verify_signature()
        .map_err(|_| PkiError::Request("not signed by its own key".to_owned()))?;
    Ok(csr.certification_request_info.subject_pki.raw.to_vec())
}

fn named() -> ObjectMeta {
    ObjectMeta {
        name: Some(NAME.to_owned()),
        namespace: Some(NAMESPACE.to_owned()),
        ..Default::default()
    }
}

fn new_ca(fleet: &str) -> Result<Secret, PkiError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Hyperion fleet {fleet}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params, time::Duration::days(365 * CA_YEARS));
    let certificate = params.self_signed(&key)?;
    let data = BTreeMap::from([
        (
            "tls.crt".to_owned(),
            ByteString(certificate.pem().into_bytes()),
        ),
        (
            "tls.key".to_owned(),
            ByteString(key.serialize_pem().into_bytes()),
        ),
    ]);
    Ok(Secret {
        metadata: named(),
        data: Some(data),
        type_: Some("kubernetes.io/tls".to_owned()),
        ..Default::default()
    })
}

fn validity(params: &mut CertificateParams, lifetime: time::Duration) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATE;
    params.not_after = now + lifetime;
}

fn pem(secret: &Secret, key: &'static str) -> Result<String, PkiError> {
    let bytes = secret
        .data
        .as_ref()
        .and_then(|d| d.get(key))
        .ok_or(PkiError::Content(key))?;
    String::from_utf8(bytes.0.clone()).map_err(|_| PkiError::Content(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyperion_link::identity::{certificate_request, new_key};

    fn authority() -> Authority {
        Authority::from_secret(&new_ca("test").unwrap(), "test").unwrap()
    }

    #[test]
    fn a_node_certificate_says_who_it_is() {
        let ca = authority();
        let csr = certificate_request(&new_key().unwrap()).unwrap();
        let chain = ca
            .sign_node(&csr, "lab-1", "lab", Duration::from_secs(60))
            .unwrap();
        let facts = ca.verify_own(&chain[0]).unwrap();
        assert_eq!(facts.node_id.as_deref(), Some("lab-1"));
        assert_eq!(facts.site.as_deref(), Some("lab"));
        assert_eq!(facts.public_key, request_key(&csr).unwrap());
    }

    #[test]
    fn a_node_without_a_site_and_one_with_an_odd_name_are_signed_or_refused() {
        let ca = authority();
        let csr = certificate_request(&new_key().unwrap()).unwrap();
        let sign = |site: &str| ca.sign_node(&csr, "lab-1", site, Duration::from_secs(60));
        let facts = ca.verify_own(&sign("").unwrap()[0]).unwrap();
        assert_eq!(facts.node_id.as_deref(), Some("lab-1"));
        assert_eq!(facts.site, None);
        assert!(sign("läb").is_err());
    }

    #[test]
    fn an_address_that_others_cant_use_is_said_by_its_port() {
        for (bound, said) in [
            ("0.0.0.0:7444", ":7444"),
            ("[::]:1", ":1"),
            ("127.0.0.1:9000", ":9000"),
            ("[::1]:9000", ":9000"),
            ("10.1.2.3:7444", "10.1.2.3:7444"),
            ("[2001:db8::1]:7444", "[2001:db8::1]:7444"),
        ] {
            assert_eq!(link_address(bound.parse().unwrap()), said);
        }
    }

    #[test]
    fn a_damaged_ca_is_refused_by_name() {
        let (ours, other) = (new_ca("test").unwrap(), new_ca("test").unwrap());
        let mut mixed = ours.clone();
        let key = other.data.unwrap()["tls.key"].clone();
        mixed
            .data
            .as_mut()
            .unwrap()
            .insert("tls.key".to_owned(), key);
        let refused = Authority::from_secret(&mixed, "test")
            .err()
            .unwrap()
            .to_string();
        assert!(
            refused.contains("tls.crt and tls.key do not belong together"),
            "{refused}"
        );

        let mut changed = ours;
        let certificate = pem(&changed, "tls.crt").unwrap();
        let (_, mut block) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()).unwrap();
        // The first letter of the fleet's name.
        let at = block
            .contents
            .windows(8)
            .position(|w| w == b"Hyperion")
            .unwrap();
        block.contents[at] = b'h';
        let text = base64_pem(&block.contents);
        let data = changed.data.as_mut().unwrap();
        data.insert("tls.crt".to_owned(), ByteString(text.into_bytes()));
        let refused = Authority::from_secret(&changed, "test")
            .err()
            .unwrap()
            .to_string();
        assert!(refused.contains("tls.crt is damaged"), "{refused}");
    }

    fn base64_pem(der: &[u8]) -> String {
        // ByteString writes base64.
        let text = serde_json::to_string(&ByteString(der.to_vec())).unwrap();
        format!(
            "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
            text.trim_matches('"')
        )
    }

    #[test]
    fn a_certificate_of_another_ca_is_refused() {
        let csr = certificate_request(&new_key().unwrap()).unwrap();
        let other = authority()
            .sign_node(&csr, "lab-1", "lab", Duration::from_secs(60))
            .unwrap();
        let refused = authority().verify_own(&other[0]).unwrap_err().to_string();
        assert!(
            refused.contains("not signed by this fleet's CA"),
            "{refused}"
        );
    }

    #[test]
    fn a_damaged_request_is_refused() {
        let mut csr = certificate_request(&new_key().unwrap()).unwrap();
        let last = csr.len() - 1;
        csr[last] ^= 1;
        assert!(
            authority()
                .sign_node(&csr, "x", "lab", Duration::from_secs(60))
                .is_err()
        );
        assert!(request_key(b"random").is_err());
    }
}
