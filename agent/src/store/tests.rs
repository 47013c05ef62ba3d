//! Store tests: what is acknowledged survives a power cut at any write, and no file stops a start.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex as StdMutex};

use super::*;
use crate::testing::{desired, key};

fn event(reason: &str) -> Event {
    Event {
        reason: reason.to_owned(),
        ..Event::default()
    }
}

fn names(store: &Store) -> Vec<(String, u64)> {
    store
        .desired()
        .iter()
        .map(|d| (d.start.key.to_string(), d.start.generation))
        .collect()
}

#[test]
fn everything_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path(), false).unwrap();
    assert_eq!(store.boot(), 1);
    store.apply(
        &[
            Change::Put(desired("web", 0, 3)),
            Change::Put(desired("job", 0, 1)),
            Change::Put(desired("gone", 0, 8)),
        ],
        true,
    );
    store.apply(&[Change::Remove(key("gone", 0), 9)], false);
    let outcome = Finished {
        phase: hyperion_proto::agent_v1::ReplicaPhase::Succeeded,
        exit_code: 0,
        reason: "Completed".to_owned(),
        message: "done".to_owned(),
    };
    assert!(store.finish(&key("job", 0), outcome.clone()));
    let first = store.add_event(event("A"));
    store.add_event(event("B"));
    store.ack(first);
    store.sync(Instant::now());
    drop(store);

    let store = Store::open(dir.path(), true).unwrap();
    assert_eq!(store.boot(), 2);
    assert!(!store.partial());
    assert_eq!(
        names(&store),
        [
            ("default/job/0".to_owned(), 1),
            ("default/web/0".to_owned(), 3)
        ]
    );
    assert_eq!(store.desired()[0].finished, Some(outcome));
    assert_eq!(store.desired()[1].start, desired("web", 0, 3).start);
    assert_eq!(store.highest(&key("gone", 0)), 9);
    let events = store.events_after(0, 10);
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].reason, "B");
}

#[test]
fn event_ids_only_grow_even_over_an_unsynced_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path(), false).unwrap();
    let before = store.add_event(event("lost"));
    // Killed: nothing of the event reached the disk.
    std::mem::forget(store.db.take());
    fs::copy(dir.path().join(FILE), dir.path().join("copy")).unwrap();
    fs::rename(dir.path().join("copy"), dir.path().join(FILE)).unwrap();
    let mut store = Store::open(dir.path(), false).unwrap();
    assert!(store.add_event(event("next")) > before);
}

#[test]
fn the_ring_drops_the_oldest_and_counts() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path(), false).unwrap();
    let first = store.add_event(event("0"));
    for i in 1..EVENTS + 10 {
        store.add_event(event(&i.to_string()));
    }
    store.sync(Instant::now());
    drop(store);
    let store = Store::open(dir.path(), false).unwrap();
    assert_eq!(store.dropped(), 10);
    let events = store.events_after(0, 10_000);
    assert_eq!(events.len(), EVENTS);
    assert_eq!(events[0].id, first + 10);
}

#[test]
fn tombstones_are_bounded_and_what_runs_is_never_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path(), false).unwrap();
    let mut changes = vec![Change::Put(desired("kept", 0, 7))];
    for i in 0..u32::try_from(TOMBSTONES).unwrap() + 50 {
        changes.push(Change::Remove(key("old", i), 5));
    }
    store.apply(&changes, false);
    drop(store);
    let store = Store::open(dir.path(), false).unwrap();
    assert_eq!(store.highest(&key("kept", 0)), 7);
    assert_eq!(store.highest(&key("old", 0)), 0, "the oldest is forgotten");
    assert_eq!(store.highest(&key("old", 1000)), 5);
    assert_eq!(store.state.seen.len(), TOMBSTONES + 1);
}

#[test]
fn long_messages_are_cut_at_a_character() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path(), false).unwrap();
    store.add_event(Event {
        message: "ä".repeat(5000),
        ..event("long")
    });
    let kept = &store.events_after(0, 1)[0].message;
    assert!(kept.len() <= state::MESSAGE && kept.len() > state::MESSAGE - 4);
}

#[test]
fn a_file_of_a_newer_version_is_named_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(dir.path(), false).unwrap());
    let path = dir.path().join(FILE);
    let db = Database::open(&path).unwrap();
    disk::write(
        &db,
        Durability::Immediate,
        &[Write::Meta("schema", disk::SCHEMA + 41)],
    )
    .unwrap();
    drop(db);
    let error = Store::open(dir.path(), false).err().unwrap().to_string();
    assert!(error.contains("store.redb"), "{error}");
    assert!(error.contains("version 42"), "{error}");
    let again = Store::open(dir.path(), false).err().unwrap().to_string();
    assert_eq!(error, again, "the file is as it was");
}

#[test]
fn an_unreadable_file_is_moved_aside_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let good = {
        let mut store = Store::open(dir.path(), false).unwrap();
        store.apply(&[Change::Put(desired("web", 0, 3))], true);
        drop(store);
        fs::read(&path).unwrap()
    };
    let random: Vec<u8> = (0..100_000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let mut header_only = good.clone();
    header_only[4096..].fill(0xA5);
    let cases = [
        ("random", random),
        ("truncated to half", good[..good.len() / 2].to_vec()),
        ("truncated to a page", good[..4096].to_vec()),
        ("truncated to ten bytes", good[..10].to_vec()),
        ("pages overwritten", header_only),
        ("text", b"this is not a store".to_vec()),
    ];
    for (n, (name, bytes)) in cases.into_iter().enumerate() {
        fs::write(&path, &bytes).unwrap();
        let mut store = Store::open(dir.path(), true).unwrap();
        let moved = store.take_moved_aside();
        let moved = moved.unwrap_or_else(|| panic!("{name}: not reported"));
        let aside = dir.path().join(format!("{FILE}.corrupt-{}", n + 1));
        assert!(moved.contains(aside.to_str().unwrap()), "{name}: {moved}");
        assert_eq!(fs::read(&aside).unwrap().len(), bytes.len(), "{name}");
        assert!(store.partial(), "{name}: what runs is not known");
        assert!(store.failure().is_none(), "{name}");
        store.apply(&[Change::Put(desired("new", 0, 1))], true);
        drop(store);
        let store = Store::open(dir.path(), true).unwrap();
        assert!(!store.partial());
        assert_eq!(names(&store), [("default/new/0".to_owned(), 1)], "{name}");
    }
}

#[test]
fn a_missing_store_of_an_enrolled_node_is_partial_until_the_whole_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path(), true).unwrap();
    assert!(store.partial());
    store.apply(&[Change::Put(desired("web", 0, 1))], false);
    assert!(store.partial());
    drop(store);
    let mut store = Store::open(dir.path(), true).unwrap();
    assert!(store.partial(), "a restart does not make it whole");
    store.apply(&[], true);
    assert!(!store.partial());
}

#[test]
fn a_reset_leaves_nothing_to_run_and_keeps_generations() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path(), true).unwrap();
    store.apply(&[Change::Put(desired("web", 0, 3))], false);
    store.add_event(event("old"));
    store.reset();
    drop(store);
    let store = Store::open(dir.path(), false).unwrap();
    assert!(store.desired().is_empty() && !store.partial());
    assert!(store.events_after(0, 9).is_empty());
    assert_eq!(store.highest(&key("web", 0)), 3);
}

#[test]
fn only_its_owner_reads_the_store() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(dir.path(), false).unwrap());
    let file = fs::metadata(dir.path().join(FILE)).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_replica_that_is_held_refuses_lower_generations_also_without_a_record_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path(), false).unwrap();
    store.apply(&[Change::Put(desired("web", 0, 5))], true);
    store.state.seen.clear();
    assert_eq!(store.highest(&key("web", 0)), 5);
    store.state.see(&key("web", 0), 3);
    assert_eq!(store.highest(&key("web", 0)), 5);
}

#[test]
fn a_second_agent_on_one_store_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _held = Store::open(dir.path(), false).unwrap();
    let error = Store::open(dir.path(), false).err().unwrap();
    assert!(matches!(error, StoreError::Locked(_)), "{error}");
}

#[test]
fn the_sample_of_version_1_is_read() {
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/store-v1.redb");
    let dir = tempfile::tempdir().unwrap();
    fs::copy(sample, dir.path().join(FILE)).unwrap();
    let mut store = Store::open(dir.path(), true).unwrap();
    assert_eq!(store.take_moved_aside(), None);
    assert_eq!(
        names(&store),
        [
            ("default/job/0".to_owned(), 2),
            ("default/web/0".to_owned(), 5)
        ]
    );
    assert!(store.desired()[0].finished.is_some());
    assert_eq!(store.highest(&key("gone", 0)), 9);
    assert_eq!(store.events_after(0, 10)[0].reason, "Sample");
}

/// Makes the sample; run by hand when a new version comes, never over an old one.
#[test]
#[ignore = "writes testdata"]
fn make_the_sample() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path(), false).unwrap();
    store.apply(
        &[
            Change::Put(desired("web", 0, 5)),
            Change::Put(desired("job", 0, 2)),
            Change::Remove(key("gone", 0), 9),
        ],
        true,
    );
    store.finish(
        &key("job", 0),
        Finished {
            phase: hyperion_proto::agent_v1::ReplicaPhase::Succeeded,
            exit_code: 0,
            reason: "Completed".to_owned(),
            message: String::new(),
        },
    );
    store.add_event(event("Sample"));
    store.sync(Instant::now());
    store.db.as_mut().unwrap().compact().unwrap();
    drop(store);
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/store-v", "1.redb");
    fs::copy(dir.path().join(FILE), sample).unwrap();
}

/// A disk in memory: what was written, what was synced, and where the power goes or the space
/// ends.
#[derive(Debug, Clone, Default)]
struct Disk(Arc<StdMutex<Image>>);

#[derive(Debug, Default)]
struct Image {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// Writes and syncs so far.
    operations: u64,
    /// Operation from which nothing reaches the disk any more.
    cut_at: Option<u64>,
    full: bool,
}

impl Disk {
    fn of(bytes: Vec<u8>) -> Self {
        let image = Image {
            live: bytes.clone(),
            durable: bytes,
            ..Image::default()
        };
        Self(Arc::new(StdMutex::new(image)))
    }

    fn image(&self) -> std::sync::MutexGuard<'_, Image> {
        self.0.lock().unwrap()
    }

    fn cut(&self) -> bool {
        let image = self.image();
        image.cut_at.is_some_and(|n| image.operations >= n)
    }

    fn store(&self) -> Store {
        let disk = self.clone();
        let opener: Opener = Box::new(move || builder().create_with_backend(disk.clone()));
        Store::with_opener(PathBuf::from("/nowhere/store"), opener, false).unwrap()
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> std::io::Result<u64> {
        Ok(self.image().live.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let image = self.image();
        let start = usize::try_from(offset).unwrap();
        let bytes = image
            .live
            .get(start..start + out.len())
            .ok_or(std::io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        let mut image = self.image();
        if image.full && len > image.live.len() as u64 {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        image.live.resize(usize::try_from(len).unwrap(), 0);
        Ok(())
    }

    fn sync_data(&self) -> std::io::Result<()> {
        let mut image = self.image();
        image.operations += 1;
        if image.cut_at.is_none_or(|n| image.operations < n) {
            image.durable = image.live.clone();
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        let mut image = self.image();
        if image.full {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        image.operations += 1;
        let end = usize::try_from(offset).unwrap() + data.len();
        if image.live.len() < end {
            image.live.resize(end, 0);
        }
        let start = end - data.len();
        image.live[start..end].copy_from_slice(data);
        Ok(())
    }
}

#[test]
fn a_power_cut_at_any_operation_loses_nothing_that_was_acknowledged() {
    let disk = Disk::default();
    drop(disk.store());
    let before = disk.image().durable.clone();
    let mut cut_at = 1;
    loop {
        let disk = Disk::of(before.clone());
        disk.image().cut_at = Some(cut_at);
        let mut acknowledged = Vec::new();
        let mut store = disk.store();
        for generation in 1..=6_u32 {
            let replica = desired("web", generation, u64::from(generation));
            store.apply(&[Change::Put(replica)], false);
            if !disk.cut() {
                acknowledged.push(generation);
            }
        }
        std::mem::forget(store.db.take());
        let done = !disk.cut();
        let image = disk.image().durable.clone();
        let store = Disk::of(image).store();
        assert!(store.moved_aside.is_none(), "cut at {cut_at}");
        for generation in &acknowledged {
            let held = store.held(&key("web", *generation));
            assert!(held.is_some(), "cut at {cut_at}: {generation} is lost");
            assert_eq!(
                store.highest(&key("web", *generation)),
                u64::from(*generation)
            );
        }
        if done {
            assert_eq!(acknowledged.len(), 6);
            assert!(cut_at > 20, "only {cut_at} operations were tried");
            break;
        }
        cut_at += 1;
    }
}

#[test]
fn a_full_disk_is_survived_in_memory_and_made_up_for() {
    let disk = Disk::default();
    let mut store = disk.store();
    store.apply(&[Change::Put(desired("early", 0, 1))], false);
    disk.image().full = true;
    store.apply(&[Change::Put(desired("late", 0, 1))], false);
    assert!(store.failure().is_some());
    assert_eq!(store.desired().len(), 2, "memory goes on");
    let id = store.add_event(event("Full"));
    store.sync(Instant::now() + RETRY);
    assert!(store.failure().is_some(), "still full");
    disk.image().full = false;
    store.sync(Instant::now() + RETRY + RETRY);
    store.sync(Instant::now() + RETRY + RETRY + RETRY);
    assert_eq!(store.failure(), None);
    drop(store);
    let store = disk.store();
    assert_eq!(store.desired().len(), 2);
    assert_eq!(store.events_after(0, 5)[0].id, id);
}

#[test]
fn a_disk_that_is_full_at_the_start_still_says_what_to_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let mut store = Store::open(dir.path(), false).unwrap();
    store.apply(&[Change::Put(desired("web", 0, 3))], true);
    // Killed, so that the file has to be repaired before it is read.
    std::mem::forget(store.db.take());
    let disk = Disk::of(fs::read(&path).unwrap());
    disk.image().full = true;
    let opener: Opener = Box::new(move || builder().create_with_backend(disk.clone()));
    let store = Store::with_opener(path, opener, true).unwrap();
    assert!(store.failure().is_some());
    assert!(!store.partial());
    assert_eq!(names(&store), [("default/web/0".to_owned(), 3)]);
}

#[test]
fn no_damage_to_the_file_stops_a_start() {
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/store-v1.redb");
    let good = fs::read(sample).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    // A fixed sequence: the same damage on every run.
    let mut seed = 0x9E37_79B9_u64;
    let mut random = move |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(seed >> 33).unwrap() % below
    };
    let mut kept = 0;
    for round in 0..100 {
        let mut bytes = good.clone();
        for _ in 0..=random(4) {
            let at = random(bytes.len());
            let end = (at + 1 + random(64)).min(bytes.len());
            for byte in &mut bytes[at..end] {
                *byte ^= u8::try_from(1 + random(255)).unwrap();
            }
        }
        if round % 10 == 0 {
            let end = random(bytes.len());
            bytes.truncate(end);
        }
        fs::write(&path, &bytes).unwrap();
        let mut store = Store::open(dir.path(), true).unwrap();
        if store.take_moved_aside().is_none() && !store.partial() {
            kept += 1;
            assert_eq!(store.desired().len(), 2, "round {round}");
            assert_eq!(store.highest(&key("gone", 0)), 9, "round {round}");
        }
        store.apply(&[Change::Put(desired("new", 0, 1))], true);
        assert_eq!(store.failure(), None, "round {round}");
        drop(store);
        for entry in fs::read_dir(dir.path()).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
    }
    assert!(kept < 100, "nothing was damaged");
}
