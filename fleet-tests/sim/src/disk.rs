//! A device's disk: what was not synced when the power goes may be lost, in any part and order, and
//! the write under way may be torn.

use std::io::{Error, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

use crate::rng::Rng;

/// Drives write sectors as a whole.
const SECTOR: usize = 512;

#[derive(Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Len(u64),
}

#[derive(Debug)]
struct Inner {
    /// What survives.
    durable: Vec<u8>,
    /// What a program reads back.
    seen: Vec<u8>,
    /// Changes of `seen` that are not in `durable`.
    pending: Vec<Change>,
    /// Handles of an earlier start of the device or agent do nothing any more.
    start: u64,
    writes: u64,
    syncs: u64,
    /// The power is cut at this write.
    cut_at: Option<u64>,
    cut: bool,
    /// No write succeeds.
    full: bool,
    rng: Rng,
}

/// The disk; a clone is the same disk.
#[derive(Debug, Clone)]
pub(crate) struct Disk(Arc<Mutex<Inner>>);

impl Disk {
    pub(crate) fn new(rng: Rng) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            durable: Vec::new(),
            seen: Vec::new(),
            pending: Vec::new(),
            start: 0,
            writes: 0,
            syncs: 0,
            cut_at: None,
            cut: false,
            full: false,
            rng,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file, for a program that starts now.
    pub(crate) fn open(&self) -> File {
        File {
            disk: self.clone(),
            start: self.lock().start,
        }
    }

    /// The program that uses the disk is killed: its handles do nothing any more, what it wrote is
    /// with the operating system.
    pub(crate) fn killed(&self) {
        self.lock().start += 1;
    }

    /// The power is cut.
    pub(crate) fn power_cut(&self) {
        let mut inner = self.lock();
        inner.start += 1;
        let pending = std::mem::take(&mut inner.pending);
        let last = pending.len().saturating_sub(1);
        for (n, change) in pending.into_iter().enumerate() {
            // Anything that was not synced may or may not have reached the medium.
            if inner.rng.chance(0.5) {
                continue;
            }
            match change {
                Change::Len(len) => inner.durable.resize(len as usize, 0),
                Change::Write(at, mut data) => {
                    if n == last && data.len() > SECTOR {
                        let sectors = data.len() / SECTOR;
                        let kept = inner.rng.below(sectors + 1) * SECTOR;
                        data.truncate(kept);
                    }
                    put(&mut inner.durable, at, &data);
                }
            }
        }
        inner.seen = inner.durable.clone();
        inner.cut_at = None;
        inner.cut = false;
    }

    /// Cuts the power at the `n`-th write from now; [`Disk::is_cut`] tells when that has happened.
    pub(crate) fn cut_after(&self, n: u64) {
        let mut inner = self.lock();
        inner.cut_at = Some(inner.writes + n);
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.lock().cut
    }

    pub(crate) fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    /// Syncs since the last call: what a slow disk makes a program wait for.
    pub(crate) fn take_syncs(&self) -> u64 {
        std::mem::take(&mut self.lock().syncs)
    }

    /// Writes so far.
    #[cfg(test)]
    pub(crate) fn writes(&self) -> u64 {
        self.lock().writes
    }

    /// Bytes that the file has.
    pub(crate) fn bytes(&self) -> u64 {
        self.lock().seen.len() as u64
    }
}

fn put(file: &mut Vec<u8>, at: u64, data: &[u8]) {
    let (from, to) = (at as usize, at as usize + data.len());
    if file.len() < to {
        file.resize(to, 0);
    }
    file[from..to].copy_from_slice(data);
}

/// A handle of the file.
#[derive(Debug)]
pub(crate) struct File {
    disk: Disk,
    start: u64,
}

impl File {
    fn lock(&self) -> Result<MutexGuard<'_, Inner>, Error> {
        let inner = self.disk.lock();
        if inner.cut || inner.start != self.start {
            return Err(Error::other("the power is off"));
        }
        Ok(inner)
    }
}

impl Inner {
    fn write(&mut self, change: Change) -> Result<(), Error> {
        self.writes += 1;
        if self.full {
            return Err(Error::from(ErrorKind::StorageFull));
        }
        match &change {
            Change::Len(len) => self.seen.resize(*len as usize, 0),
            Change::Write(at, data) => put(&mut self.seen, *at, data),
        }
        self.pending.push(change);
        if self.cut_at.is_some_and(|at| self.writes >= at) {
            self.cut = true;
            return Err(Error::other("the power went"));
        }
        Ok(())
    }
}

impl StorageBackend for File {
    fn len(&self) -> Result<u64, Error> {
        Ok(self.lock()?.seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), Error> {
        let inner = self.lock()?;
        let from = offset as usize;
        let part = inner.seen.get(from..from + out.len());
        out.copy_from_slice(part.ok_or_else(|| Error::from(ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), Error> {
        self.lock()?.write(Change::Len(len))
    }

    fn sync_data(&self) -> Result<(), Error> {
        let mut inner = self.lock()?;
        inner.syncs += 1;
        if inner.full {
            return Err(Error::from(ErrorKind::StorageFull));
        }
        for change in std::mem::take(&mut inner.pending) {
            match change {
                Change::Len(len) => inner.durable.resize(len as usize, 0),
                Change::Write(at, data) => put(&mut inner.durable, at, &data),
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.lock()?.write(Change::Write(offset, data.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use redb::{Builder, Database, Durability, ReadableDatabase, TableDefinition};

    use super::*;

    const TABLE: TableDefinition<'static, u64, u64> = TableDefinition::new("t");

    fn open(disk: &Disk) -> Result<Database, redb::DatabaseError> {
        Builder::new().create_with_backend(disk.open())
    }

    fn set(db: &Database, key: u64, value: u64) -> Result<(), redb::Error> {
        let mut tx = db.begin_write()?;
        tx.set_durability(Durability::Immediate)?;
        tx.open_table(TABLE)?.insert(key, value)?;
        tx.commit()?;
        Ok(())
    }

    fn get(db: &Database, key: u64) -> Option<u64> {
        let table = db.begin_read().unwrap().open_table(TABLE).unwrap();
        table.get(key).unwrap().map(|v| v.value())
    }

    #[test]
    fn what_was_committed_survives_a_cut_at_any_write() {
        let mut cuts = 0;
        for n in 1..200 {
            let disk = Disk::new(Rng::new(n, "disk"));
            let db = open(&disk).unwrap();
            set(&db, 1, 0).unwrap();
            disk.cut_after(n);
            let mut stored = 0;
            for value in 1..20 {
                if set(&db, 1, value).is_err() {
                    break;
                }
                stored = value;
            }
            cuts += u64::from(disk.is_cut());
            let wrote = disk.writes();
            assert!(!disk.is_cut() || wrote >= n);
            disk.power_cut();
            drop(db);
            assert_eq!(disk.writes(), wrote, "a dead program wrote");
            let found = get(&open(&disk).unwrap(), 1).unwrap();
            assert!(
                found == stored || found == stored + 1,
                "{n}: {found} {stored}"
            );
        }
        assert!(cuts > 20, "{cuts}");
    }

    #[test]
    fn a_killed_program_loses_nothing_and_a_full_disk_takes_nothing() {
        let disk = Disk::new(Rng::new(1, "disk"));
        let db = open(&disk).unwrap();
        set(&db, 1, 7).unwrap();
        disk.killed();
        drop(db);
        let db = open(&disk).unwrap();
        assert_eq!(get(&db, 1), Some(7));
        disk.set_full(true);
        assert!(set(&db, 1, 8).is_err());
        drop(db);
        disk.set_full(false);
        assert_eq!(get(&open(&disk).unwrap(), 1), Some(7));
    }
}
