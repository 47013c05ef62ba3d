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
        &[Write::Meta("schema", disk::SCHEMA + 40)],
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
    assert!(store.records().is_empty() && store.site().is_none() && store.policy().is_none());
    // From here on it is a file of this version, with what that can hold.
    store.apply(&[Change::Record(Box::new(record("web", 6)))], false);
    drop(store);
    let db = Database::open(dir.path().join(FILE)).unwrap();
    let meta: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("meta");
    let tx = redb::ReadableDatabase::begin_read(&db).unwrap();
    let schema = tx.open_table(meta).unwrap().get("schema").unwrap();
    assert_eq!(schema.unwrap().value(), 2);
    drop((tx, db));
    let store = Store::open(dir.path(), true).unwrap();
    assert_eq!(store.recorded_generation(&key("web", 0)), 6);
    assert_eq!(names(&store).len(), 2);
}

pub(super) fn record(workload: &str, generation: u64) -> ReplicaRecord {
    ReplicaRecord {
        key: Some((&key(workload, 0)).into()),
        generation,
        decider: "edge-2".to_owned(),
        state: hyperion_proto::agent_v1::RecordState::Placed.into(),
        node: "edge-1".to_owned(),
        pod: crate::testing::order(workload, 0, generation).pod,
        ..ReplicaRecord::default()
    }
}

fn sample(sequence: u64) -> hyperion_proto::agent_v1::StampedTelemetry {
    use hyperion_proto::agent_v1::{NetworkStatus, StampedTelemetry, Telemetry, Temperature};
    let sensor = |n: u64| Temperature {
        sensor: format!("thermal-{n}"),
        celsius: 41.5,
    };
    StampedTelemetry {
        unix_ms: 1_764_000_000_000 + i64::try_from(sequence * 1000).unwrap(),
        telemetry: Some(Telemetry {
            cpu_utilization_percent: 12.5,
            network_status: Some(NetworkStatus {
                rx_bytes_per_second: 12_345,
                tx_bytes_per_second: 54_321,
                control_rtt_ms: 0.0,
            }),
            memory_used_bytes: 3 << 30,
            disk_used_bytes: 17 << 30,
            load1: 0.75,
            temperatures: (0..4).map(sensor).collect(),
            uptime_ms: sequence * 1000,
            sequence,
            ..Telemetry::default()
        }),
    }
}

fn sequences(batch: &hyperion_proto::agent_v1::TelemetryBatch) -> Vec<u64> {
    let of =
        |s: &hyperion_proto::agent_v1::StampedTelemetry| s.telemetry.as_ref().unwrap().sequence;
    batch.samples.iter().map(of).collect()
}

#[test]
fn what_the_site_knows_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path(), false).unwrap();
    let info = SiteInfo {
        version: 7,
        site: "lab".to_owned(),
        ..SiteInfo::default()
    };
    store.apply(
        &[
            Change::Record(Box::new(record("a", 3))),
            Change::Record(Box::new(record("b", 4))),
            Change::Site(Box::new(info.clone())),
        ],
        true,
    );
    store.apply(
        &[
            Change::Record(Box::new(record("a", 5))),
            Change::Forget(key("b", 0)),
        ],
        false,
    );
    let offer = |hash: &str| hyperion_proto::agent_v1::PolicyOffer {
        sha256: hash.to_owned(),
        bytes: 3,
        signature: vec![1, 2],
    };
    store.set_policy(offer("aa"), bytes::Bytes::from_static(b"one"));
    store.set_policy(offer("bb"), bytes::Bytes::from_static(b"two"));
    drop(store);
    let mut store = Store::open(dir.path(), false).unwrap();
    assert_eq!(store.records(), [record("a", 5)]);
    assert_eq!(store.record(&key("b", 0)), None);
    assert_eq!(store.site(), Some(&info));
    assert_eq!(store.policy().unwrap().file.as_ref(), b"two");
    assert_eq!(store.previous_policy().unwrap().offer, offer("aa"));
    store.drop_policy();
    drop(store);
    let mut store = Store::open(dir.path(), false).unwrap();
    assert_eq!(store.policy().unwrap().file.as_ref(), b"one");
    assert!(store.previous_policy().is_none());
    store.reset();
    drop(store);
    let store = Store::open(dir.path(), false).unwrap();
    assert!(store.records().is_empty() && store.site().is_none());
}

#[test]
fn a_removal_of_a_lower_generation_than_is_held_removes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path(), false).unwrap();
    store.apply(&[Change::Put(desired("web", 0, 5))], true);
    store.apply(&[Change::Remove(key("web", 0), 4)], false);
    assert!(store.held(&key("web", 0)).is_some());
    store.apply(&[Change::Remove(key("web", 0), 5)], false);
    drop(store);
    let store = Store::open(dir.path(), false).unwrap();
    assert!(store.held(&key("web", 0)).is_none());
}

#[test]
fn telemetry_comes_back_in_order_and_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path(), false).unwrap();
    let begin = Instant::now();
    for n in 0..150_u64 {
        store.add_telemetry(sample(n), begin + Duration::from_secs(n));
    }
    let kept = store.ring();
    assert!(kept.batches >= 2, "a batch a minute: {kept:?}");
    assert!(kept.waiting < 60);
    store.seal_telemetry();
    drop(store);
    let mut store = Store::open(dir.path(), false).unwrap();
    let mut seen = Vec::new();
    let mut last = 0;
    while let Some(batch) = store.telemetry_after(0) {
        assert!(batch.id > last, "ids grow");
        last = batch.id;
        seen.extend(sequences(&batch));
        store.ack_telemetry(batch.id);
    }
    assert_eq!(seen, (0..150).collect::<Vec<_>>());
    assert_eq!(store.ring(), RingCounts::default());
    // Ids of before are not given out again, acknowledged or not.
    store.sync(begin);
    drop(store);
    let mut store = Store::open(dir.path(), false).unwrap();
    store.add_telemetry(sample(200), begin);
    store.seal_telemetry();
    assert!(store.telemetry_after(0).unwrap().id > last);
}

#[test]
fn a_batch_that_was_sent_but_not_acknowledged_comes_again_with_its_id() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path(), false).unwrap();
    store.add_telemetry(sample(1), Instant::now());
    store.seal_telemetry();
    let sent = store.telemetry_after(0).unwrap();
    // Killed.
    std::mem::forget(store.db.take());
    fs::copy(dir.path().join(FILE), dir.path().join("copy")).unwrap();
    fs::rename(dir.path().join("copy"), dir.path().join(FILE)).unwrap();
    let mut store = Store::open(dir.path(), false).unwrap();
    assert_eq!(store.telemetry_after(0), Some(sent));
}

#[test]
fn a_day_of_telemetry_fits_and_the_oldest_goes_first_beyond() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path(), false).unwrap();
    let begin = Instant::now();
    let day = 86_400_u64;
    for n in 0..day {
        store.add_telemetry(sample(n), begin + Duration::from_secs(n));
    }
    store.seal_telemetry();
    let kept = store.ring();
    assert_eq!(kept.dropped, 0, "{kept:?}");
    assert!(kept.bytes <= DEFAULT_RING);
    let size = fs::metadata(dir.path().join(FILE)).unwrap().len();
    println!("a day: {kept:?}, file of {size} bytes");
    assert!(size < 3 * DEFAULT_RING, "{size}");

    // A smaller one, over a restart.
    store.set_ring_limit(1 << 20);
    let dropped = store.ring().dropped;
    assert!(dropped > 0 && store.ring().bytes <= 1 << 20);
    store.sync(begin);
    drop(store);
    let mut store = Store::open(dir.path(), false).unwrap();
    store.set_ring_limit(1 << 20);
    assert_eq!(store.ring().dropped, dropped);
    let oldest = store.telemetry_after(0).unwrap();
    assert_eq!(sequences(&oldest)[0], dropped, "what is left is the newest");
    assert_eq!(oldest.dropped_total, dropped);
    store.set_ring_limit(0);
    store.add_telemetry(sample(day), begin);
    store.seal_telemetry();
    assert_eq!(store.ring().batches, 0);
    assert_eq!(store.ring().dropped, day + 1);
}

#[test]
fn telemetry_is_kept_in_memory_while_the_disk_is_full_and_bounded_there() {
    let disk = Disk::default();
    let mut store = disk.store();
    let begin = Instant::now();
    store.add_telemetry(sample(0), begin);
    store.seal_telemetry();
    disk.image().full = true;
    for n in 1..10_000_u64 {
        store.add_telemetry(sample(n), begin + Duration::from_secs(n));
    }
    store.seal_telemetry();
    let kept = store.ring();
    assert!(store.failure().is_some());
    assert!(kept.bytes < 600 * 1024, "{kept:?}");
    assert!(kept.dropped > 0);
    disk.image().full = false;
    store.sync(begin);
    store.sync(begin + RETRY);
    assert_eq!(store.failure(), None);
    drop(store);
    let mut store = disk.store();
    assert_eq!(store.ring().batches, kept.batches);
    assert_eq!(store.ring().dropped, kept.dropped);
    assert_eq!(sequences(&store.telemetry_after(0).unwrap()), [0]);
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
pub(crate) struct Disk(Arc<StdMutex<Image>>);

/// What becomes of writes that were not synced when the power goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Unsynced {
    /// None is there.
    #[default]
    Lost,
    /// All are there, of the last one half.
    Torn,
    /// Every other one is there.
    Some,
}

#[derive(Debug, Default)]
pub(crate) struct Image {
    live: Vec<u8>,
    pub durable: Vec<u8>,
    /// Writes since the last sync.
    pending: Vec<(usize, Vec<u8>)>,
    /// Writes and syncs so far.
    pub operations: u64,
    /// Operation from which nothing reaches the disk any more.
    pub cut_at: Option<u64>,
    pub unsynced: Unsynced,
    pub full: bool,
}

impl Image {
    fn lost(&self) -> bool {
        self.cut_at.is_some_and(|n| self.operations >= n)
    }

    /// What was written is on the disk.
    fn settle(&mut self) {
        let length = self.live.len();
        self.durable.resize(length, 0);
        for (start, data) in std::mem::take(&mut self.pending) {
            // What a shrinking file cut off is nowhere.
            let end = (start + data.len()).min(length);
            if start < end {
                self.durable[start..end].copy_from_slice(&data[..end - start]);
            }
        }
    }

    /// What is on the disk when the power is back.
    pub fn left(&self) -> Vec<u8> {
        let mut disk = self.durable.clone();
        let last = self.pending.len().saturating_sub(1);
        for (n, (start, data)) in self.pending.iter().enumerate() {
            let kept = match self.unsynced {
                Unsynced::Lost => 0,
                Unsynced::Torn if n == last => data.len() / 2,
                Unsynced::Torn => data.len(),
                Unsynced::Some if n % 2 == 0 => data.len(),
                Unsynced::Some => 0,
            };
            let end = start + kept;
            if disk.len() < end {
                disk.resize(end, 0);
            }
            disk[*start..end].copy_from_slice(&data[..kept]);
        }
        disk
    }
}

impl Disk {
    pub(crate) fn of(bytes: Vec<u8>) -> Self {
        let image = Image {
            live: bytes.clone(),
            durable: bytes,
            ..Image::default()
        };
        Self(Arc::new(StdMutex::new(image)))
    }

    pub(crate) fn image(&self) -> std::sync::MutexGuard<'_, Image> {
        self.0.lock().unwrap()
    }

    pub(crate) fn cut(&self) -> bool {
        let image = self.image();
        image.cut_at.is_some_and(|n| image.operations >= n)
    }

    pub(crate) fn store(&self) -> Store {
        let disk = self.clone();
        Store::on(move || Ok(disk.clone()), false).unwrap()
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
        if !image.lost() {
            image.settle();
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
        // The one that the power goes in is torn; those behind it never began.
        if image.cut_at.is_none_or(|n| image.operations <= n) {
            image.pending.push((start, data.to_vec()));
        }
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
