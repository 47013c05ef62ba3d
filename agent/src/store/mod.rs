//! What the agent knows after a reboot without network: which replicas to run, which orders are
//! stale, which events nobody has read yet.
//!
//! Memory is the truth that the agent acts on, and every order is on disk before it is acted on.
//! A file that can't be written any more (a full disk) does not stop the node: the store says so,
//! goes on in memory, and writes everything once that works again. A file that can't be read is
//! moved aside, never deleted; a file of a later agent is left alone.

mod disk;
mod state;

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hyperion_proto::agent_v1::Event;
use hyperion_proto::domain::ReplicaKey;
use redb::backends::{FileBackend, InMemoryBackend};
use redb::{Builder, Database, DatabaseError, Durability, StorageBackend};
use tracing::{info, warn};

use self::disk::{LoadError, Write};
use self::state::State;
pub use self::state::{EVENTS, TOMBSTONES};
use crate::supervisor::{Desired, Finished};

/// File in the data directory.
pub const FILE: &str = "store.redb";
/// Page cache of redb, bytes; its default of 1 GiB is meant for servers. The whole store has some
/// hundred kilobytes.
const CACHE: usize = 256 * 1024;
/// Time between attempts to write again after a failure.
const RETRY: Duration = Duration::from_secs(10);
/// Largest file that is read into memory where the disk takes no writes, bytes.
const COPY: u64 = 32 << 20;
/// Ids that are skipped at each start: those of events that were delivered but not yet on disk
/// when the agent was killed are not given out again.
const ID_GAP: u64 = 1 << 20;

/// Why the store can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Left alone: a later agent may want it back.
    #[error(
        "{path}: the store has version {found}, this agent reads up to {}; install the newer agent again or move the file away",
        disk::SCHEMA
    )]
    Newer {
        /// File.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// Held by another process.
    #[error("{0}: in use by another agent")]
    Locked(PathBuf),
    /// Reading or moving.
    #[error("{path}: {source}")]
    Io {
        /// File.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
}

/// Change of what this node should run.
#[derive(Debug, Clone)]
pub enum Change {
    /// Run this; replaces what was held for the replica.
    Put(Desired),
    /// Run it no longer; the generation is remembered.
    Remove(ReplicaKey, u64),
}

type Opener = Box<dyn Fn() -> Result<Database, DatabaseError> + Send + Sync>;

/// The store.
pub struct Store {
    path: PathBuf,
    opener: Opener,
    db: Option<Database>,
    state: State,
    failure: Option<String>,
    retry_at: Option<Instant>,
    /// Written without waiting for the disk since the last sync.
    unsynced: bool,
    moved_aside: Option<String>,
}

/// What a file turned out to be.
enum Found {
    State(Database, State),
    Fresh(Database),
    /// Not readable as a store, and why.
    Corrupt(String),
    /// Readable or not, the disk does not take writes.
    Unwritable(Option<State>, String),
}

impl Store {
    /// Opens or makes the store of a data directory. `expected` says that there should be one:
    /// then a missing or unreadable file means that what runs is not known, see
    /// [`Store::partial`].
    ///
    /// # Errors
    /// The file is of a newer version, in use, or can't be reached.
    pub fn open(dir: &Path, expected: bool) -> Result<Self, StoreError> {
        let path = dir.join(FILE);
        let opener: Opener = Box::new({
            let path = path.clone();
            move || {
                // Environment variables of pods may be secrets.
                let file = std::fs::OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .mode(0o600)
                    .open(&path)?;
                builder().create_with_backend(FileBackend::new(file)?)
            }
        });
        Self::with_opener(path, opener, expected)
    }

    fn with_opener(path: PathBuf, opener: Opener, expected: bool) -> Result<Self, StoreError> {
        let mut store = Self {
            path,
            opener,
            db: None,
            state: State {
                next_event: 1,
                ..State::default()
            },
            failure: None,
            retry_at: None,
            unsynced: false,
            moved_aside: None,
        };
        match store.find()? {
            Found::State(db, state) => (store.db, store.state) = (Some(db), state),
            Found::Fresh(db) => {
                store.db = Some(db);
                store.state.partial = expected;
            }
            Found::Corrupt(why) => {
                store.move_aside(&why)?;
                store.state.partial = true;
                match store.find()? {
                    Found::Fresh(db) | Found::State(db, _) => store.db = Some(db),
                    Found::Corrupt(why) | Found::Unwritable(_, why) => store.degrade(&why),
                }
            }
            Found::Unwritable(state, why) => {
                store.state.partial = state.is_none() && expected;
                if let Some(state) = state {
                    store.state = state;
                }
                store.degrade(&why);
            }
        }
        store.state.boot = store.state.boot.saturating_add(1);
        store.state.next_event = store.state.next_event.saturating_add(ID_GAP);
        store.rewrite();
        Ok(store)
    }

    fn find(&self) -> Result<Found, StoreError> {
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

    fn move_aside(&mut self, why: &str) -> Result<(), StoreError> {
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

    /// What became of an unreadable file, once.
    pub fn take_moved_aside(&mut self) -> Option<String> {
        self.moved_aside.take()
    }

    /// What this node should run, ordered by replica.
    #[must_use]
    pub fn desired(&self) -> Vec<Desired> {
        self.state.desired.values().cloned().collect()
    }

    /// Replicas that this node should run.
    pub fn keys(&self) -> impl Iterator<Item = &ReplicaKey> {
        self.state.desired.keys()
    }

    /// What is held for a replica.
    #[must_use]
    pub fn held(&self, key: &ReplicaKey) -> Option<&Desired> {
        self.state.desired.get(key)
    }

    /// Highest generation ever seen for a replica, 0 for a new one.
    #[must_use]
    pub fn highest(&self, key: &ReplicaKey) -> u64 {
        self.state.highest(key)
    }

    /// True where a store was lost and the control plane has not told the whole yet: then what is
    /// held is not all that this node should run.
    #[must_use]
    pub fn partial(&self) -> bool {
        self.state.partial
    }

    /// Starts of the agent on this store, this one included.
    #[must_use]
    pub fn boot(&self) -> u64 {
        self.state.boot
    }

    /// Why changes are not on disk, where they are not.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Events that the ring dropped over the life of the store.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.state.dropped
    }

    /// Takes changes, all or none, and returns when they are on disk (or when the disk failed:
    /// see [`Store::failure`]). `whole` says that what is held now is all that should run.
    pub fn apply(&mut self, changes: &[Change], whole: bool) {
        let mut writes = Vec::with_capacity(2 * changes.len() + 1);
        let mut forgotten = Vec::new();
        for change in changes {
            let (key, generation) = match change {
                Change::Put(desired) => {
                    let key = &desired.start.key;
                    self.state.desired.insert(key.clone(), desired.clone());
                    writes.push(Write::Desired(desired));
                    (key, desired.start.generation)
                }
                Change::Remove(key, generation) => {
                    self.state.desired.remove(key);
                    writes.push(Write::Removed(key));
                    (key, *generation)
                }
            };
            let seen = self.state.see(key, generation);
            writes.extend(seen.set.map(|seen| Write::Seen(key, seen)));
            forgotten.extend(seen.forgotten);
        }
        writes.extend(forgotten.iter().map(Write::Forgotten));
        if whole && self.state.partial {
            self.state.partial = false;
            writes.push(Write::Meta("partial", 0));
        }
        if !writes.is_empty() {
            Self::write(
                &mut self.db,
                &mut self.failure,
                Durability::Immediate,
                &writes,
            );
            self.after_write();
        }
    }

    /// Forgets what to run and whom to tell, for a node that enrols anew: both were another
    /// node's. Generations stay.
    pub fn reset(&mut self) {
        let changes: Vec<Change> = self
            .keys()
            .map(|key| Change::Remove(key.clone(), self.highest(key)))
            .collect();
        self.apply(&changes, true);
        self.ack(u64::MAX);
    }

    /// Notes how a job's replica ended; false where nothing is held for it any more.
    pub fn finish(&mut self, key: &ReplicaKey, outcome: Finished) -> bool {
        let Some(held) = self.state.desired.get(key).cloned() else {
            return false;
        };
        let finished = Some(outcome);
        self.apply(&[Change::Put(Desired { finished, ..held })], false);
        true
    }

    /// Keeps an event until it is acknowledged; its id is given by the store. On disk with the
    /// next [`Store::sync`]: a flash disk does not take a write for each event of a crash loop.
    pub fn add_event(&mut self, event: Event) -> u64 {
        let (event, pushed_out) = self.state.add_event(event);
        let mut writes = vec![
            Write::Event(&event),
            Write::Meta("next_event", self.state.next_event),
        ];
        if !pushed_out.is_empty() {
            writes.push(Write::Meta("dropped", self.state.dropped));
        }
        writes.extend(pushed_out.into_iter().map(Write::EventGone));
        Self::write(&mut self.db, &mut self.failure, Durability::None, &writes);
        self.unsynced = true;
        self.after_write();
        event.id
    }

    /// Undelivered events after an id, oldest first.
    #[must_use]
    pub fn events_after(&self, id: u64, most: usize) -> Vec<Event> {
        let later = self.state.events.range(id.saturating_add(1)..);
        later.take(most).map(|(_, event)| event.clone()).collect()
    }

    /// Forgets the events up to an id.
    pub fn ack(&mut self, id: u64) {
        let gone = self.state.ack(id);
        if gone.is_empty() {
            return;
        }
        let writes: Vec<Write<'_>> = gone.into_iter().map(Write::EventGone).collect();
        Self::write(&mut self.db, &mut self.failure, Durability::None, &writes);
        self.unsynced = true;
        self.after_write();
    }

    /// Puts events and acknowledgements on disk, and tries again where the disk failed before.
    /// Cheap where there is nothing to do; to be called about once a second.
    pub fn sync(&mut self, now: Instant) {
        if self.db.is_none() {
            if self.retry_at.is_none_or(|at| now >= at) {
                self.retry_at = Some(now + RETRY);
                self.reopen();
            }
            return;
        }
        if std::mem::take(&mut self.unsynced) {
            Self::write(&mut self.db, &mut self.failure, Durability::Immediate, &[]);
            self.after_write();
        }
    }

    fn reopen(&mut self) {
        match self.find() {
            Ok(Found::State(db, _) | Found::Fresh(db)) => {
                self.db = Some(db);
                self.rewrite();
            }
            Ok(Found::Corrupt(why)) => {
                if self.move_aside(&why).is_err() {
                    self.failure = Some(why);
                }
            }
            Ok(Found::Unwritable(_, why)) => self.failure = Some(why),
            Err(e) => self.failure = Some(e.to_string()),
        }
    }

    fn rewrite(&mut self) {
        let Some(db) = &self.db else { return };
        match disk::rewrite(db, &self.state) {
            Ok(()) => {
                self.retry_at = None;
                if self.failure.take().is_some() {
                    info!(file = %self.path.display(), "store is on disk again");
                }
            }
            Err(e) => self.degrade(&e.to_string()),
        }
    }

    fn write(
        db: &mut Option<Database>,
        failure: &mut Option<String>,
        durability: Durability,
        writes: &[Write<'_>],
    ) {
        // redb takes no writes after a failed one until the file is opened again.
        if let Some(open) = db
            && let Err(e) = disk::write(open, durability, writes)
        {
            *db = None;
            *failure = Some(e.to_string());
        }
    }

    fn after_write(&mut self) {
        if self.db.is_none() && self.retry_at.is_none() {
            let why = self.failure.clone().unwrap_or_default();
            self.degrade(&why);
        } else if self.db.is_some() {
            self.retry_at = None;
        }
    }

    fn degrade(&mut self, why: &str) {
        warn!(file = %self.path.display(), error = why, "store is not on disk; going on in memory");
        self.db = None;
        self.failure = Some(why.to_owned());
        self.retry_at = Some(Instant::now() + RETRY);
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE);
    // A few hundred kilobytes are read in a millisecond; trusting a damaged file costs more.
    builder.set_check_integrity_on_open(true);
    builder
}

#[cfg(test)]
mod tests;
