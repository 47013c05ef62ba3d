//! Finding out what a file is: a store, a new one, damaged, of a later agent, or one that the disk
//! does not let us write.

use std::io::Read;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;

use redb::backends::InMemoryBackend;
use redb::{Builder, Database, StorageBackend};
use tracing::warn;

use super::disk::{self, LoadError};
use super::state::State;
use super::{Store, StoreError};

/// Page cache of redb, bytes; its default of 1 GiB is meant for servers. What is read again and
/// again has some hundred kilobytes.
const CACHE: usize = 256 * 1024;
/// Largest file that is read into memory where the disk takes no writes, bytes.
const COPY: u64 = 32 << 20;

/// What a file turned out to be.
pub(super) enum Found {
    State(Database, State),
    Fresh(Database),
    /// Not readable as a store, and why.
    Corrupt(String),
    /// Readable or not, the disk does not take writes.
    Unwritable(Option<State>, String),
}

impl Store {
    pub(super) fn find(&self) -> Result<Found, StoreError> {
        // A damaged page can make redb panic where it trusts its own file.
        let opened = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let db = (self.opener)().map_err(LoadError::from)?;
            let state = disk::load(&db)?;
            Ok((db, state))
        }));
        match opened {
            Ok(Ok((db, Some(state)))) => Ok(Found::State(db, state)),
            Ok(Ok((db, None))) => Ok(Found::Fresh(db)),
            Ok(Err(error)) => self.classify(error),
            Err(_) => Ok(Found::Corrupt("the file's structure is damaged".to_owned())),
        }
    }

    fn classify(&self, error: LoadError) -> Result<Found, StoreError> {
        use std::io::ErrorKind;
        let path = self.path.clone();
        let error = match error {
            LoadError::Newer(found) => return Err(StoreError::Newer { path, found }),
            LoadError::Record(_) => return Ok(Found::Corrupt(error.to_string())),
            LoadError::Redb(error) => *error,
        };
        match error {
            redb::Error::DatabaseAlreadyOpen => Err(StoreError::Locked(path)),
            redb::Error::Io(source) => match source.kind() {
                ErrorKind::InvalidData | ErrorKind::UnexpectedEof | ErrorKind::InvalidInput => {
                    Ok(Found::Corrupt(source.to_string()))
                }
                ErrorKind::StorageFull
                | ErrorKind::QuotaExceeded
                | ErrorKind::ReadOnlyFilesystem => {
                    Ok(Found::Unwritable(self.read_only(), source.to_string()))
                }
                _ => Err(StoreError::Io { path, source }),
            },
            other => Ok(Found::Corrupt(other.to_string())),
        }
    }

    /// What a file holds that can be read but not written. After a power cut redb has to repair
    /// the file before it reads it, so that happens on a copy in memory.
    fn read_only(&self) -> Option<State> {
        let file = std::fs::File::open(&self.path).ok()?;
        let mut bytes = Vec::new();
        file.take(COPY).read_to_end(&mut bytes).ok()?;
        let copy = InMemoryBackend::new();
        copy.set_len(bytes.len() as u64).ok()?;
        copy.write(0, &bytes).ok()?;
        drop(bytes);
        let db = builder().create_with_backend(copy).ok()?;
        disk::load(&db).ok().flatten()
    }

    pub(super) fn move_aside(&mut self, why: &str) -> Result<(), StoreError> {
        let aside = (1..)
            .map(|n| PathBuf::from(format!("{}.corrupt-{n}", self.path.display())))
            .find(|aside| !aside.exists())
            .unwrap_or_else(|| self.path.with_extension("corrupt"));
        match std::fs::rename(&self.path, &aside) {
            Ok(()) => {}
            // The store is not a file, in tests.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => {
                let path = self.path.clone();
                return Err(StoreError::Io { path, source });
            }
        }
        let text = format!(
            "{} was not readable ({why}) and was moved to {}",
            self.path.display(),
            aside.display()
        );
        warn!(problem = %text, "store made anew");
        self.moved_aside = Some(text);
        Ok(())
    }
}

pub(super) fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE);
    // A few hundred kilobytes are read in a millisecond; trusting a damaged file costs more.
    builder.set_check_integrity_on_open(true);
    builder
}
