//! The node's identity, in a file of its own: a store that is lost does not cost the node its
//! name and key.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyperion_link::Identity;
use serde::{Deserialize, Serialize};

/// File in the data directory, readable by its owner only.
pub const FILE: &str = "identity.json";
const VERSION: u32 = 1;

/// An identity file that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityFileError {
    /// Reading or writing.
    #[error("{path}: {source}")]
    Io {
        /// File.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// Left alone.
    #[error("{path}: version {found}, this agent reads {VERSION}")]
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

#[derive(Serialize, Deserialize)]
struct Written {
    version: u32,
    node_id: String,
    site: String,
    /// PKCS#8, base64.
    key: String,
    /// Node certificate, then the CA's, base64.
    chain: Vec<String>,
}

/// Reads the identity; none where the node has never enrolled.
///
/// # Errors
/// Names the file and what is wrong with it.
pub fn load(dir: &Path) -> Result<Option<Identity>, IdentityFileError> {
    let path = dir.join(FILE);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(IdentityFileError::Io { path, source }),
    };
    let invalid = |problem: String| IdentityFileError::Invalid {
        path: path.clone(),
        problem,
    };
    let written: Written = serde_json::from_slice(&text).map_err(|e| invalid(e.to_string()))?;
    if written.version > VERSION {
        let found = written.version;
        return Err(IdentityFileError::Newer { path, found });
    }
    let decode = |text: &str| STANDARD.decode(text).map_err(|e| invalid(e.to_string()));
    let identity = Identity {
        node_id: written.node_id,
        site: written.site,
        key_der: decode(&written.key)?,
        chain_der: written
            .chain
            .iter()
            .map(|c| decode(c))
            .collect::<Result<_, _>>()?,
    };
    identity.validate().map_err(|e| invalid(e.to_string()))?;
    Ok(Some(identity))
}

/// Writes the identity so that after a power cut the file holds either the old one or this.
///
/// # Errors
/// Names the file.
pub fn save(dir: &Path, identity: &Identity) -> Result<(), IdentityFileError> {
    let path = dir.join(FILE);
    let written = Written {
        version: VERSION,
        node_id: identity.node_id.clone(),
        site: identity.site.clone(),
        key: STANDARD.encode(&identity.key_der),
        chain: identity
            .chain_der
            .iter()
            .map(|c| STANDARD.encode(c))
            .collect(),
    };
    let write = || -> std::io::Result<()> {
        let text = serde_json::to_vec_pretty(&written)?;
        let new = path.with_extension("json.new");
        // A leftover of an interrupted write may have other permissions.
        let _ = std::fs::remove_file(&new);
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        std::fs::File::open(dir)?.sync_all()
    };
    write().map_err(|source| IdentityFileError::Io {
        path: path.clone(),
        source,
    })
}
