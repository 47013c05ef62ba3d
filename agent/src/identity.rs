//! The node's identity, in a file of its own: a store that is lost does not cost the node its
//! name and key.
//!
//! Where the device has a secret that its disk does not hold (`hyperion-enrol` has the TPM open one at
//! each boot), the key of a new identity is encrypted with it: version 2 of the file. All else in it stays
//! readable. An identity of version 1 stays one where it is written again, as its certificate is renewed:
//! the agent of the other slot may be one that reads no other.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyperion_link::Identity;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SystemRandom, generate};
use serde::{Deserialize, Serialize};
use tracing::warn;

/// File in the data directory, readable by its owner only.
pub const FILE: &str = "identity.json";
/// The key as it is.
const PLAIN: u32 = 1;
/// The key encrypted.
const SEALED: u32 = 2;
/// Hexadecimal digits of a secret.
const DIGITS: usize = 64;

/// An identity file that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityFileError {
    /// Reading or writing.
    #[error("{path}: {source}")]
    Io {
        /// File.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Left alone.
    #[error("{path}: version {found}, this agent reads {SEALED}")]
    Newer {
        /// File.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// Not what enrolment wrote.
    #[error("{path}: not an identity: {problem}; remove it and enrol the node with a new token")]
    Invalid {
        /// File.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// A secret that can't be used, or does not open a key. The identity is untouched.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Reading.
    #[error("{path}: {source}")]
    Io {
        /// File.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Empty, cut off, or something else.
    #[error("{path}: not a secret; {DIGITS} hexadecimal digits are expected")]
    Invalid {
        /// File.
        path: PathBuf,
    },
    /// The identity was encrypted with one.
    #[error("there is no secret to open it with: hyperion-enrol says why")]
    Missing,
    /// Of another device or another time; or what is encrypted was changed.
    #[error("it was encrypted with another secret, or is damaged")]
    Wrong,
}

/// What keys are encrypted with. Debug output leaves it out.
#[derive(Debug, Clone)]
struct Secret(LessSafeKey);

impl Secret {
    /// Reads a secret; none where there is no such file.
    fn read(path: &Path) -> Result<Option<Self>, SecretError> {
        let io = |source| SecretError::Io {
            path: path.to_owned(),
            source,
        };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(io(source)),
        };
        if file.metadata().map_err(io)?.permissions().mode() & 0o077 != 0 {
            warn!(file = %path.display(), "other accounts may read the secret of this device");
        }
        let mut digits = Vec::new();
        // One more shows that there is more.
        let most = DIGITS as u64 + 1;
        file.take(most).read_to_end(&mut digits).map_err(io)?;
        let invalid = || SecretError::Invalid {
            path: path.to_owned(),
        };
        let secret = from_hex(&digits).ok_or_else(invalid)?;
        let key = UnboundKey::new(&AES_256_GCM, &secret).map_err(|_| invalid())?;
        Ok(Some(Self(LessSafeKey::new(key))))
    }

    /// Encrypts a key: nonce, text and tag. Nonces are random: a key is written a few hundred times in its
    /// life, and 2^32 times are allowed (NIST SP 800-38D, 8.3).
    fn seal(&self, node_id: &str, key_der: &[u8]) -> io::Result<Vec<u8>> {
        let failed = |_| io::Error::other("the key can't be encrypted");
        let nonce: [u8; NONCE_LEN] = generate(&SystemRandom::new()).map_err(failed)?.expose();
        let mut text = key_der.to_vec();
        let unique = Nonce::assume_unique_for_key(nonce);
        self.0
            .seal_in_place_append_tag(unique, Aad::from(node_id), &mut text)
            .map_err(failed)?;
        Ok([&nonce[..], &text].concat())
    }

    fn open(&self, node_id: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, text) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut text = text.to_vec();
        let key = self.0.open_in_place(nonce, Aad::from(node_id), &mut text);
        Some(key.ok()?.to_vec())
    }
}

fn from_hex(digits: &[u8]) -> Option<Vec<u8>> {
    let digit = |d: &u8| char::from(*d).to_digit(16);
    if digits.len() != DIGITS {
        return None;
    }
    digits
        .chunks_exact(2)
        .map(|pair| u8::try_from(digit(&pair[0])? * 16 + digit(&pair[1])?).ok())
        .collect()
}

#[derive(Serialize, Deserialize)]
struct Written {
    version: u32,
    node_id: String,
    site: String,
    /// PKCS#8, base64; encrypted in version 2.
    key: String,
    /// Node certificate, then the CA's, base64.
    chain: Vec<String>,
}

/// What the file holds.
#[derive(Debug)]
pub enum Kept {
    /// Nothing: the node has never enrolled.
    Nobody,
    /// Who the node is.
    Node(Identity),
    /// Who the node is, without its key.
    Closed(Identity, SecretError),
}

/// The identity's file, and how it is to be written.
#[derive(Debug, Clone)]
pub struct IdentityFile {
    dir: PathBuf,
    secret: Option<Secret>,
}

impl IdentityFile {
    /// Reads the identity in `dir`. The key of one that is written later is encrypted with the secret in
    /// `secret_file`, where there is one; a secret that can't be used is told in the log.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn open(dir: &Path, secret_file: Option<&Path>) -> Result<(Self, Kept), IdentityFileError> {
        let secret = || secret_file.map_or(Ok(None), Secret::read);
        let file = |secret| Self {
            dir: dir.to_owned(),
            secret,
        };
        let path = dir.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let secret = secret().unwrap_or_else(|e| {
                    warn!(error = %e, "the key of this node will not be encrypted");
                    None
                });
                return Ok((file(secret), Kept::Nobody));
            }
            Err(source) => return Err(IdentityFileError::Io { path, source }),
        };
        let (version, mut identity) = read(&text, &path)?;
        if version <= PLAIN {
            return Ok((file(None), Kept::Node(identity)));
        }
        let sealed = std::mem::take(&mut identity.key_der);
        let opened = match secret() {
            Ok(Some(secret)) => match secret.open(&identity.node_id, &sealed) {
                Some(key) => Ok((secret, key)),
                None => Err(SecretError::Wrong),
            },
            Ok(None) => Err(SecretError::Missing),
            Err(e) => Err(e),
        };
        Ok(match opened {
            Ok((secret, key_der)) => {
                identity.key_der = key_der;
                (file(Some(secret)), Kept::Node(identity))
            }
            Err(e) => (file(None), Kept::Closed(identity, e)),
        })
    }

    /// Writes the identity so that after a power cut the file holds either the old one or this.
    ///
    /// # Errors
    /// Names the file.
    pub fn save(&self, identity: &Identity) -> Result<(), IdentityFileError> {
        let path = self.dir.join(FILE);
        self.write(identity, &path)
            .map_err(|source| IdentityFileError::Io { path, source })
    }

    fn write(&self, identity: &Identity, path: &Path) -> io::Result<()> {
        let (version, key) = match &self.secret {
            Some(secret) => (SEALED, secret.seal(&identity.node_id, &identity.key_der)?),
            None => (PLAIN, identity.key_der.clone()),
        };
        let chain = identity.chain_der.iter().map(|c| STANDARD.encode(c));
        let written = Written {
            version,
            node_id: identity.node_id.clone(),
            site: identity.site.clone(),
            key: STANDARD.encode(key),
            chain: chain.collect(),
        };
        let text = serde_json::to_vec_pretty(&written)?;
        let new = path.with_extension("json.new");
        // A leftover of an interrupted write may have other permissions.
        let _ = fs::remove_file(&new);
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(&self.dir)?.sync_all()
    }
}

/// Version and identity; the key is as the file has it, and empty where an encrypted one is no base64.
fn read(text: &[u8], path: &Path) -> Result<(u32, Identity), IdentityFileError> {
    fn invalid(path: &Path, problem: impl Display) -> IdentityFileError {
        IdentityFileError::Invalid {
            path: path.to_owned(),
            problem: problem.to_string(),
        }
    }
    let written: Written = serde_json::from_slice(text).map_err(|e| invalid(path, e))?;
    if written.version > SEALED {
        return Err(IdentityFileError::Newer {
            path: path.to_owned(),
            found: written.version,
        });
    }
    let decode = |text: &String| STANDARD.decode(text).map_err(|e| invalid(path, e));
    let key = decode(&written.key);
    let identity = Identity {
        node_id: written.node_id,
        site: written.site,
        key_der: if written.version == SEALED {
            key.unwrap_or_default()
        } else {
            key?
        },
        chain_der: written.chain.iter().map(decode).collect::<Result<_, _>>()?,
    };
    identity.validate().map_err(|e| invalid(path, e))?;
    Ok((written.version, identity))
}

#[cfg(test)]
mod tests {
    use hyperion_link::identity::spiffe_uri;
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    const SECRET: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1F";

    fn identity() -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        let uri = spiffe_uri("fleet", "press-7").try_into().unwrap();
        params.subject_alt_names = vec![SanType::URI(uri)];
        let certificate = params.self_signed(&key).unwrap().der().to_vec();
        Identity {
            node_id: "press-7".to_owned(),
            site: "hall".to_owned(),
            key_der: key.serialize_der(),
            chain_der: vec![certificate.clone(), certificate],
        }
    }

    /// A data directory, and a secret beside it.
    struct Device(tempfile::TempDir);

    impl Device {
        fn new(secret: &str) -> Self {
            let device = Self(tempfile::tempdir().unwrap());
            device.put_secret(secret);
            device
        }

        fn secret_file(&self) -> PathBuf {
            self.0.path().join("secret")
        }

        fn put_secret(&self, text: &str) {
            fs::write(self.secret_file(), text).unwrap();
        }

        fn open(&self) -> (IdentityFile, Kept) {
            IdentityFile::open(self.0.path(), Some(&self.secret_file())).unwrap()
        }

        fn enrol(&self) -> Identity {
            let (file, kept) = self.open();
            assert!(matches!(kept, Kept::Nobody));
            let identity = identity();
            file.save(&identity).unwrap();
            identity
        }

        fn json(&self) -> serde_json::Value {
            serde_json::from_slice(&fs::read(self.0.path().join(FILE)).unwrap()).unwrap()
        }

        fn change(&self, field: &str, value: serde_json::Value) {
            let mut json = self.json();
            json[field] = value;
            fs::write(self.0.path().join(FILE), json.to_string()).unwrap();
        }

        /// Why the key is closed. The rest is there, and nothing was changed.
        fn closed(&self) -> String {
            let before = self.json();
            let (_, kept) = self.open();
            let Kept::Closed(identity, why) = kept else {
                panic!("{kept:?}");
            };
            assert_eq!(identity.node_id, "press-7");
            assert!(identity.key_der.is_empty() && identity.chain_der.len() == 2);
            assert_eq!(self.json(), before);
            why.to_string()
        }
    }

    fn node(kept: Kept) -> Identity {
        match kept {
            Kept::Node(identity) => identity,
            kept => panic!("{kept:?}"),
        }
    }

    #[test]
    fn with_a_secret_the_file_holds_no_key_and_all_else_is_readable() {
        let device = Device::new(SECRET);
        let identity = device.enrol();
        let json = device.json();
        assert_eq!(
            (&json["version"], &json["node_id"]),
            (&2.into(), &"press-7".into())
        );
        let kept = STANDARD.decode(json["key"].as_str().unwrap()).unwrap();
        let part = &identity.key_der[40..60];
        assert!(!kept.windows(part.len()).any(|w| w == part));
        let (file, kept) = device.open();
        assert_eq!(node(kept), identity);
        // A renewed certificate: encrypted again, and never with the same nonce.
        file.save(&identity).unwrap();
        assert_ne!(device.json()["key"], json["key"]);
        assert_eq!(device.json()["version"], 2);
        assert_eq!(node(device.open().1), identity);
    }

    #[test]
    fn without_a_secret_the_key_is_kept_as_it_is() {
        let device = Device::new(SECRET);
        fs::remove_file(device.secret_file()).unwrap();
        let identity = device.enrol();
        assert_eq!(device.json()["version"], 1);
        assert_eq!(node(device.open().1), identity);
        // The agent of the other slot may read version 1 alone: a secret that comes later changes nothing.
        device.put_secret(SECRET);
        let (file, kept) = device.open();
        assert_eq!(node(kept), identity);
        file.save(&identity).unwrap();
        assert_eq!(device.json()["version"], 1);
    }

    #[test]
    fn a_secret_that_is_none_does_not_keep_a_node_from_enrolling() {
        for bad in [
            "",
            "00",
            &SECRET[1..],
            &format!("{SECRET}0"),
            &"g".repeat(64),
        ] {
            let device = Device::new(bad);
            let identity = device.enrol();
            assert_eq!(device.json()["version"], 1, "{bad}");
            assert_eq!(node(device.open().1), identity);
        }
    }

    #[test]
    fn a_secret_that_others_may_read_is_still_used() {
        let device = Device::new(SECRET);
        let everybody = fs::Permissions::from_mode(0o644);
        fs::set_permissions(device.secret_file(), everybody).unwrap();
        device.enrol();
        assert_eq!(device.json()["version"], 2);
    }

    #[test]
    fn each_damage_closes_the_key_and_loses_nothing() {
        let device = Device::new(SECRET);
        let identity = device.enrol();
        let good = device.json()["key"].clone();
        for bad in ["", &SECRET[1..]] {
            device.put_secret(bad);
            let why = device.closed();
            assert!(why.contains("64 hexadecimal digits"), "{why}");
        }
        device.put_secret(&"0".repeat(64));
        assert!(device.closed().contains("another secret"));
        fs::remove_file(device.secret_file()).unwrap();
        assert!(device.closed().contains("no secret"));
        fs::create_dir(device.secret_file()).unwrap();
        assert!(device.closed().contains("secret: "));
        fs::remove_dir(device.secret_file()).unwrap();
        let (_, kept) = IdentityFile::open(device.0.path(), None).unwrap();
        assert!(matches!(kept, Kept::Closed(_, SecretError::Missing)));

        device.put_secret(SECRET);
        let sealed = STANDARD.decode(good.as_str().unwrap()).unwrap();
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            device.change("key", STANDARD.encode(&changed).into());
            assert!(device.closed().contains("damaged"), "byte {at}");
            device.change("key", STANDARD.encode(&sealed[..at]).into());
            assert!(device.closed().contains("damaged"), "cut off at {at}");
        }
        device.change("key", "no base64".into());
        assert!(device.closed().contains("damaged"));
        // What was closed opens again.
        device.change("key", good);
        assert_eq!(node(device.open().1), identity);
    }

    #[test]
    fn a_key_belongs_to_its_node() {
        let (one, other) = (Device::new(SECRET), Device::new(SECRET));
        one.enrol();
        let (file, _) = other.open();
        let named = Identity {
            node_id: "press-8".to_owned(),
            ..identity()
        };
        file.save(&named).unwrap();
        one.change("key", other.json()["key"].clone());
        assert!(one.closed().contains("another secret"));
    }

    #[test]
    fn an_unknown_version_is_named_and_a_damaged_file_too() {
        let device = Device::new(SECRET);
        device.enrol();
        device.change("version", 3.into());
        let error = |device: &Device| {
            IdentityFile::open(device.0.path(), Some(&device.secret_file())).map(|_| ())
        };
        let said = error(&device).unwrap_err().to_string();
        assert!(said.contains("version 3") && said.contains(FILE), "{said}");
        device.change("version", 2.into());
        device.change("chain", Vec::<String>::new().into());
        let said = error(&device).unwrap_err().to_string();
        assert!(said.contains("not an identity"), "{said}");
    }
}
