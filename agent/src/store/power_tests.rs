//! The power goes at every write and every sync in turn, over all that a store does: it opens each
//! time, and holds what was acknowledged.

use hyperion_proto::agent_v1::{
    PolicyOffer, StampedTelemetry, Telemetry, UpdateOrder, UpdatePhase, UpdateProgress,
};

use super::tests::{Disk, Unsynced, record};
use super::*;
use crate::supervisor::Finished;
use crate::testing::{desired, key};

/// What a store holds, as far as it may be compared over a restart.
#[derive(Debug, Clone, PartialEq)]
struct Content {
    desired: Vec<(String, u64, bool)>,
    highest: Vec<u64>,
    records: Vec<(String, u64)>,
    site: u64,
    policies: Vec<String>,
    events: Vec<String>,
    batches: Vec<u64>,
    dropped: u64,
    update: KeptUpdate,
}

const NAMES: [&str; 4] = ["web", "job", "cache", "gone"];

fn content(store: &Store) -> Content {
    let ring = &store.state.ring;
    let mut batches = Vec::new();
    while let Some(id) = ring.after(batches.last().copied().unwrap_or(0)) {
        batches.push(id);
    }
    Content {
        desired: store
            .desired()
            .iter()
            .map(|d| {
                let finished = d.finished.is_some();
                (d.start.key.to_string(), d.start.generation, finished)
            })
            .collect(),
        highest: NAMES.iter().map(|n| store.highest(&key(n, 0))).collect(),
        records: store
            .records()
            .iter()
            .map(|r| (r.key.as_ref().unwrap().workload.clone(), r.generation))
            .collect(),
        site: store.site().map_or(0, |info| info.version),
        policies: [store.policy(), store.previous_policy()]
            .into_iter()
            .map(|kept| kept.map_or_else(String::new, |k| k.offer.sha256.clone()))
            .collect(),
        events: store
            .events_after(0, 100)
            .into_iter()
            .map(|e| e.reason)
            .collect(),
        batches,
        dropped: ring.dropped,
        update: store.update().clone(),
    }
}

fn telemetry(n: u64) -> StampedTelemetry {
    StampedTelemetry {
        unix_ms: 0,
        telemetry: Some(Telemetry {
            sequence: n,
            ..Telemetry::default()
        }),
    }
}

fn update(id: &str, phase: UpdatePhase) -> KeptUpdate {
    KeptUpdate {
        order: Some(UpdateOrder {
            id: id.to_owned(),
            ..UpdateOrder::default()
        }),
        progress: Some(UpdateProgress {
            order_id: id.to_owned(),
            phase: phase.into(),
            ..UpdateProgress::default()
        }),
        ..KeptUpdate::default()
    }
}

/// A step, and whether what it did is acknowledged when it returns.
type Step = (fn(&mut Store), bool);

fn steps() -> Vec<Step> {
    vec![
        (
            |s| {
                s.apply(
                    &[
                        Change::Put(desired("web", 0, 1)),
                        Change::Record(Box::new(record("web", 1))),
                    ],
                    true,
                );
            },
            true,
        ),
        (
            |s| s.apply(&[Change::Put(desired("job", 0, 1))], false),
            true,
        ),
        (
            |s| {
                let info = SiteInfo {
                    version: 3,
                    ..SiteInfo::default()
                };
                s.apply(&[Change::Site(Box::new(info))], false);
            },
            true,
        ),
        (
            |s| {
                s.add_event(Event {
                    reason: "A".to_owned(),
                    ..Event::default()
                });
            },
            false,
        ),
        (|s| s.sync(Instant::now()), true),
        (
            |s| {
                let outcome = Finished {
                    phase: hyperion_proto::agent_v1::ReplicaPhase::Succeeded,
                    exit_code: 0,
                    reason: String::new(),
                    message: String::new(),
                };
                s.finish(&key("job", 0), outcome);
            },
            true,
        ),
        (
            |s| {
                s.add_telemetry(telemetry(1), Instant::now());
                s.add_telemetry(telemetry(2), Instant::now());
                s.seal_telemetry();
            },
            true,
        ),
        // A takeover: the record, and the replica to run, or neither.
        (
            |s| {
                s.apply(
                    &[
                        Change::Record(Box::new(record("cache", 7))),
                        Change::Put(desired("cache", 0, 7)),
                    ],
                    false,
                );
            },
            true,
        ),
        (
            |s| {
                let offer = PolicyOffer {
                    sha256: "aa".to_owned(),
                    ..PolicyOffer::default()
                };
                s.set_policy(offer, bytes::Bytes::from(vec![7; 20_000]));
            },
            true,
        ),
        (
            |s| s.set_update(update("u1", UpdatePhase::Downloading)),
            true,
        ),
        (
            |s| s.set_update(update("u1", UpdatePhase::Restarting)),
            true,
        ),
        (|s| s.ack(u64::MAX), false),
        (
            |s| {
                s.add_event(Event {
                    reason: "B".to_owned(),
                    ..Event::default()
                });
            },
            false,
        ),
        (
            |s| {
                s.add_telemetry(telemetry(3), Instant::now());
                s.seal_telemetry();
            },
            true,
        ),
        (
            |s| {
                let first = s.telemetry_after(0).map_or(0, |batch| batch.id);
                s.ack_telemetry(first);
            },
            false,
        ),
        (
            |s| {
                let offer = PolicyOffer {
                    sha256: "bb".to_owned(),
                    ..PolicyOffer::default()
                };
                s.set_policy(offer, bytes::Bytes::from(vec![8; 20_000]));
            },
            true,
        ),
        // Another decision holds: the copy goes, its record stays.
        (
            |s| {
                s.apply(
                    &[
                        Change::Record(Box::new(record("web", 2))),
                        Change::Remove(key("web", 0), 2),
                    ],
                    false,
                );
            },
            true,
        ),
        (
            |s| {
                s.apply(
                    &[
                        Change::Forget(key("web", 0)),
                        Change::Remove(key("gone", 0), 4),
                    ],
                    false,
                );
            },
            true,
        ),
        (|s| s.set_update(KeptUpdate::default()), true),
        (|s| s.set_ring_limit(0), false),
        (|s| s.sync(Instant::now()), true),
        (
            |s| s.apply(&[Change::Put(desired("gone", 0, 5))], false),
            true,
        ),
    ]
}

#[test]
fn a_power_cut_anywhere_leaves_a_store_that_was() {
    let blank = {
        let disk = Disk::default();
        drop(disk.store());
        disk.image().durable.clone()
    };
    // What it holds after each step.
    let mut model = Vec::new();
    {
        let disk = Disk::of(blank.clone());
        let mut store = disk.store();
        model.push(content(&store));
        for (step, _) in steps() {
            step(&mut store);
            model.push(content(&store));
        }
    }
    let mut cuts = 0_u64;
    for unsynced in [Unsynced::Lost, Unsynced::Torn, Unsynced::Some] {
        for cut_at in 1_u64.. {
            let disk = Disk::of(blank.clone());
            disk.image().unsynced = unsynced;
            disk.image().cut_at = Some(cut_at);
            let mut store = disk.store();
            let mut acknowledged = 0;
            let mut begun = 0;
            for (n, (step, durable)) in steps().into_iter().enumerate() {
                if disk.cut() {
                    break;
                }
                begun = n + 1;
                step(&mut store);
                if durable && !disk.cut() {
                    acknowledged = n + 1;
                }
            }
            std::mem::forget(store.db.take());
            let done = !disk.cut();
            let left = Disk::of(disk.image().left());
            let store = left.store();
            let name = format!("{unsynced:?}, cut at {cut_at}, {acknowledged} of {begun}");
            assert!(store.moved_aside.is_none(), "{name}: not readable");
            let found = content(&store);
            let one_of = &model[acknowledged..=begun];
            assert!(one_of.contains(&found), "{name}: {found:#?}");
            cuts += 1;
            if done {
                assert_eq!(acknowledged, steps().len(), "{name}");
                break;
            }
        }
    }
    println!("{cuts} power cuts");
    assert!(cuts > 300, "only {cuts} were tried");
}
