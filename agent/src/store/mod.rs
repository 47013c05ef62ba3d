//! What the agent knows after a reboot without network: which replicas to run, which orders are
//! stale, which events nobody has read yet.
//!
//! Memory is the truth that the agent acts on, and every order is on disk before it is acted on.
//! A file that can't be written any more (a full disk) does not stop the node: the store says so,
//! goes on in memory, and writes everything once that works again. A file that can't be read is
//! moved aside, never deleted; a file of a later agent is left alone.

mod disk;
mod open;
mod policy;
mod ring;
mod state;
mod telemetry;
mod update;

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hyperion_proto::agent_v1::{Event, ReplicaRecord, SiteInfo};
use hyperion_proto::convert;
use hyperion_proto::domain::ReplicaKey;
use prost::Message;
use redb::backends::FileBackend;
use redb::{Database, DatabaseError, Durability, StorageBackend};
use tracing::{info, warn};

use self::disk::Write;
use self::open::{Found, builder};
pub use self::ring::DEFAULT as DEFAULT_RING;
pub use self::state::{EVENTS, KeptPolicy, TOMBSTONES};
use self::state::{KeptRecord, State};
pub use self::telemetry::RingCounts;
pub use self::update::KeptUpdate;
use crate::supervisor::{Desired, Finished};

/// File in the data directory.
pub const FILE: &str = "store.redb";
/// Time between attempts to write again after a failure.
const RETRY: Duration = Duration::from_secs(10);
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

/// Change of what this node should run, or of what the site knows.
#[derive(Debug, Clone)]
pub enum Change {
    /// Run this; replaces what was held for the replica.
    Put(Desired),
    /// Run it no longer, unless it is held with a higher generation; the generation is remembered.
    Remove(ReplicaKey, u64),
    /// Keep this record in the place of the one before of its replica. One whose key is none is
    /// left out.
    Record(Box<ReplicaRecord>),
    /// Keep no record of this replica.
    Forget(ReplicaKey),
    /// Keep what is known of the site.
    Site(Box<SiteInfo>),
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
    fresh: bool,
    /// Changes go to memory only, and that was said.
    degraded: bool,
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

    /// Opens or makes a store on another storage than a file: memory, or a disk that fails when a
    /// test wants it to. `backend` is called for each attempt to open it.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn on<B: StorageBackend>(
        backend: impl Fn() -> std::io::Result<B> + Send + Sync + 'static,
        expected: bool,
    ) -> Result<Self, StoreError> {
        let opener: Opener = Box::new(move || builder().create_with_backend(backend()?));
        Self::with_opener(PathBuf::from("/not-a-file/store"), opener, expected)
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
            fresh: false,
            degraded: false,
        };
        match store.find()? {
            Found::State(db, state) => (store.db, store.state) = (Some(db), state),
            Found::Fresh(db) => {
                store.db = Some(db);
                store.state.partial = expected;
                store.fresh = true;
            }
            Found::Corrupt(why) => {
                store.move_aside(&why)?;
                store.state.partial = true;
                store.fresh = true;
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
        store.state.ring.next_id = store.state.ring.next_id.saturating_add(ID_GAP);
        store.rewrite();
        Ok(store)
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
        // Records are encoded once, for memory and file.
        let records: Vec<Option<(ReplicaKey, KeptRecord)>> = changes.iter().map(kept).collect();
        for (change, record) in changes.iter().zip(&records) {
            let (key, generation) = match change {
                Change::Put(desired) => {
                    let key = &desired.start.key;
                    self.state.desired.insert(key.clone(), desired.clone());
                    writes.push(Write::Desired(desired));
                    (key, desired.start.generation)
                }
                Change::Remove(key, generation) => {
                    let held = self.held(key).map_or(0, |held| held.start.generation);
                    if held <= *generation {
                        self.state.desired.remove(key);
                        writes.push(Write::Removed(key));
                    }
                    (key, *generation)
                }
                Change::Record(_) => {
                    if let Some((key, record)) = record {
                        self.state.records.insert(key.clone(), record.clone());
                        writes.push(Write::Record(key, &record.bytes));
                    }
                    continue;
                }
                Change::Forget(key) => {
                    self.state.records.remove(key);
                    writes.push(Write::RecordGone(key));
                    continue;
                }
                Change::Site(info) => {
                    self.state.site = Some(SiteInfo::clone(info));
                    writes.push(Write::Site(info));
                    continue;
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

    /// Forgets what to run, what the site knew and whom to tell, for a node that enrols anew: all
    /// were another node's. Generations stay, and so does the policy.
    pub fn reset(&mut self) {
        let mut changes: Vec<Change> = self
            .keys()
            .map(|key| Change::Remove(key.clone(), self.highest(key)))
            .collect();
        changes.extend(self.state.records.keys().cloned().map(Change::Forget));
        changes.push(Change::Site(Box::default()));
        self.apply(&changes, true);
        self.state.site = None;
        self.set_update(KeptUpdate::default());
        self.ack(u64::MAX);
        self.ack_telemetry(u64::MAX);
    }

    /// What the site knows of its replicas.
    #[must_use]
    pub fn records(&self) -> Vec<ReplicaRecord> {
        let records = self.state.records.values();
        records
            .filter_map(|kept| ReplicaRecord::decode(kept.bytes.as_slice()).ok())
            .collect()
    }

    /// What the site knows of one.
    #[must_use]
    pub fn record(&self, key: &ReplicaKey) -> Option<ReplicaRecord> {
        let kept = self.state.records.get(key)?;
        ReplicaRecord::decode(kept.bytes.as_slice()).ok()
    }

    /// Records of replicas that are kept.
    #[must_use]
    pub fn record_count(&self) -> usize {
        self.state.records.len()
    }

    /// Generation of what the site knows of a replica, 0 where it knows nothing.
    #[must_use]
    pub fn recorded_generation(&self, key: &ReplicaKey) -> u64 {
        self.state.records.get(key).map_or(0, |r| r.generation)
    }

    /// What the control plane said of the site; none where it said nothing.
    #[must_use]
    pub fn site(&self) -> Option<&SiteInfo> {
        self.state.site.as_ref().filter(|info| info.version > 0)
    }

    /// True where this start made the store anew.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.fresh
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
            match self.retry_at {
                // Just failed: the store has no clock of its own.
                None => self.retry_at = Some(now + RETRY),
                Some(at) if now >= at => {
                    self.retry_at = Some(now + RETRY);
                    self.reopen();
                }
                Some(_) => {}
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
        match disk::rewrite(db, &mut self.state) {
            Ok(()) => {
                self.retry_at = None;
                self.degraded = false;
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
        if self.db.is_some() {
            self.retry_at = None;
        } else if !std::mem::replace(&mut self.degraded, true) {
            let why = self.failure.clone().unwrap_or_default();
            self.degrade(&why);
        }
    }

    fn degrade(&mut self, why: &str) {
        warn!(file = %self.path.display(), error = why, "store is not on disk; going on in memory");
        self.db = None;
        self.failure = Some(why.to_owned());
        self.retry_at = None;
        self.degraded = true;
    }
}

/// A record, to be kept.
fn kept(change: &Change) -> Option<(ReplicaKey, KeptRecord)> {
    let Change::Record(record) = change else {
        return None;
    };
    let key = convert::replica_key("replica_record.key", record.key.as_ref()).ok()?;
    Some((key, KeptRecord::of(record)))
}

#[cfg(test)]
mod power_tests;
#[cfg(test)]
pub(crate) mod tests;
