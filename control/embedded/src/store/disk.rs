//! The redb file.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::state::{Head, State};
use super::{Key, Stored};

/// `resource \0 namespace/name` → JSON.
const OBJECTS: TableDefinition<&str, &[u8]> = TableDefinition::new("objects");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// Of the layout above.
const VERSION: u64 = 1;
/// Everything is in memory once; redb's own cache need not hold it again.
const CACHE: usize = 8 << 20;

/// Why the store can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Not a store, damaged, held by another process, or not accessible.
    #[error("store {path}: {cause}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What redb says.
        cause: String,
    },
    /// Written by a later release.
    #[error(
        "store {path} has version {found}, this program knows {VERSION}: it was written by a newer release"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// An object in it can't be read.
    #[error(
        "store {path}: object {object}: {cause}; restore the file from a copy, or remove it to start empty"
    )]
    Object {
        /// The file.
        path: PathBuf,
        /// Its key.
        object: String,
        /// Why.
        cause: String,
    },
    /// No thread.
    #[error("start the store's thread: {0}")]
    Thread(std::io::Error),
}

/// Puts and removals of one transaction.
pub(super) struct Batch {
    pub puts: Vec<Arc<Stored>>,
    pub removals: Vec<Key>,
    pub revision: u64,
}

pub(super) struct Disk {
    path: PathBuf,
    /// None after an error: redb refuses further work until the file is opened anew.
    database: Option<Database>,
}

fn open(path: &Path) -> Result<Database, redb::DatabaseError> {
    Database::builder().set_cache_size(CACHE).create(path)
}

/// Secrets are in it.
fn protect(path: &Path) {
    let mode = std::fs::Permissions::from_mode(0o600);
    if let Err(e) = std::fs::set_permissions(path, mode) {
        tracing::warn!(path = %path.display(), error = %e, "store: can't set its mode to 0600");
    }
}

fn disk_key(key: &Key) -> String {
    format!("{}\0{}", key.resource, key.path)
}

impl Disk {
    pub fn open(path: PathBuf) -> Result<Self, DiskError> {
        match open(&path) {
            Ok(database) => {
                protect(&path);
                Ok(Self {
                    path,
                    database: Some(database),
                })
            }
            Err(e) => {
                let hint = match e {
                    redb::DatabaseError::DatabaseAlreadyOpen => "",
                    redb::DatabaseError::Storage(redb::StorageError::Io(ref io))
                        if io.kind() != std::io::ErrorKind::InvalidData =>
                    {
                        ""
                    }
                    _ => "; restore the file from a copy, or remove it to start empty",
                };
                let cause = format!("{e}{hint}");
                Err(DiskError::Open { path, cause })
            }
        }
    }

    /// Reads everything.
    pub fn load(&mut self) -> Result<State, DiskError> {
        let (revision, objects) = self.read_all().map_err(|e| DiskError::Open {
            path: self.path.clone(),
            cause: e.to_string(),
        })?;
        let version = objects.0;
        if version > VERSION {
            return Err(DiskError::Newer {
                path: self.path.clone(),
                found: version,
            });
        }
        let mut state = State::new(revision);
        for (key, bytes) in objects.1 {
            let fail = |cause: String| DiskError::Object {
                path: self.path.clone(),
                object: key.replace('\0', " "),
                cause,
            };
            let (resource, path) = key
                .split_once('\0')
                .ok_or_else(|| fail("not a key of this store".to_owned()))?;
            let head = Head::parse(&bytes).map_err(|e| fail(e.to_string()))?;
            let stored = Arc::new(Stored {
                key: Key {
                    resource: state
                        .collections
                        .get_key_value(resource)
                        .map_or_else(|| resource.into(), |(known, _)| Arc::clone(known)),
                    path: path.into(),
                },
                revision: head.revision(),
                uid: head.uid().into(),
                bytes: bytes.into(),
            });
            state.put(&stored, &head);
        }
        Ok(state)
    }

    #[expect(clippy::type_complexity, reason = "used once, just above")]
    fn read_all(&mut self) -> Result<(u64, (u64, Vec<(String, Vec<u8>)>)), redb::Error> {
        let Some(database) = &self.database else {
            return Err(redb::Error::DatabaseClosed);
        };
        let transaction = database.begin_write()?;
        let (revision, version);
        {
            let mut meta = transaction.open_table(META)?;
            let known = meta.get("version")?.map(|v| v.value());
            version = known.unwrap_or(VERSION);
            revision = meta.get("revision")?.map_or(1, |v| v.value());
            if known.is_none() {
                meta.insert("version", VERSION)?;
            }
            transaction.open_table(OBJECTS)?;
        }
        transaction.commit()?;
        let read = database.begin_read()?;
        let table = read.open_table(OBJECTS)?;
        let mut all = Vec::new();
        for entry in table.iter()? {
            let (key, value) = entry?;
            all.push((key.value().to_owned(), value.value().to_vec()));
        }
        Ok((revision, (version, all)))
    }

    /// Writes a batch durably; afterwards all of it is on disk, or nothing.
    pub fn commit(&mut self, batch: &Batch) -> Result<(), redb::Error> {
        let result = self.try_commit(batch);
        if result.is_err() {
            self.database = None;
        }
        result
    }

    fn try_commit(&mut self, batch: &Batch) -> Result<(), redb::Error> {
        if self.database.is_none() {
            self.database = Some(open(&self.path)?);
        }
        let Some(database) = &self.database else {
            return Err(redb::Error::DatabaseClosed);
        };
        let transaction = database.begin_write()?;
        {
            let mut objects = transaction.open_table(OBJECTS)?;
            for object in &batch.puts {
                objects.insert(disk_key(&object.key).as_str(), object.bytes.as_ref())?;
            }
            for key in &batch.removals {
                objects.remove(disk_key(key).as_str())?;
            }
            transaction
                .open_table(META)?
                .insert("revision", batch.revision)?;
        }
        transaction.commit()?;
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Bytes of an object with its new revision in it.
pub(super) fn encode(value: &serde_json::Value) -> Result<Bytes, serde_json::Error> {
    // Without the room that the writer had left: it would be kept as long as the object.
    let bytes = serde_json::to_vec(value)?;
    Ok(bytes.into_boxed_slice().into())
}
