//! Telemetry of the time without a link.

use hyperion_proto::agent_v1::{Telemetry, TelemetryAck, TelemetryBatch, Temperature};

use super::*;

fn sample() -> Telemetry {
    Telemetry {
        cpu_utilization_percent: 7.5,
        memory_used_bytes: 1 << 30,
        disk_used_bytes: 5 << 30,
        load1: 0.5,
        temperatures: (0..5)
            .map(|n| Temperature {
                sensor: format!("thermal-{n}"),
                celsius: 45.0,
            })
            .collect(),
        ..Telemetry::default()
    }
}

/// One sample a second, with the ticks that come between.
fn measure(alone: &mut Alone, seconds: u64) {
    for _ in 0..seconds {
        alone.at += Duration::from_secs(1);
        let now = alone.now();
        alone.node.tick(now, &alone.out);
        alone.node.measured(sample(), now, &alone.out);
    }
}

fn batches(alone: &Alone) -> Vec<TelemetryBatch> {
    let sent = alone.out.take().into_iter();
    sent.filter_map(|body| match body {
        Body::TelemetryBatch(batch) => Some(batch),
        _ => None,
    })
    .collect()
}

fn sequences(batch: &TelemetryBatch) -> impl Iterator<Item = u64> {
    let samples = batch.samples.iter();
    samples.map(|s| s.telemetry.as_ref().unwrap().sequence)
}

#[test]
fn hours_offline_come_back_complete_in_order_and_beside_live_telemetry() {
    let mut alone = Alone::fresh("edge-1");
    alone.connect(&welcome(Vec::new(), &["edge-1"]));
    measure(&mut alone, 5);
    alone.disconnect();
    // Four hours; a whole day is measured by the store's own test.
    let away = 4 * 3600;
    measure(&mut alone, away);
    let kept = alone.node.ring();
    assert_eq!(kept.dropped, 0, "{kept:?}");
    alone.out.take();

    alone.connect(&welcome(Vec::new(), &["edge-1"]));
    let begin = alone.at;
    let mut seen = Vec::new();
    let mut last = 0;
    let mut live = 0;
    while alone.node.ring().batches > 0 {
        let mut sent = VecDeque::from(alone.out.take());
        while let Some(body) = sent.pop_front() {
            match body {
                Body::Telemetry(_) => live += 1,
                Body::TelemetryBatch(batch) => {
                    assert!(batch.id > last, "in order");
                    assert_eq!(batch.dropped_total, 0);
                    last = batch.id;
                    seen.extend(sequences(&batch));
                    alone.hear(Body::TelemetryAck(TelemetryAck { id: batch.id }));
                    sent.extend(alone.out.take());
                }
                _ => {}
            }
        }
        measure(&mut alone, 1);
        assert!(alone.at - begin < Duration::from_secs(3600), "too slow");
    }
    let took = alone.at - begin;
    println!("{away} samples: {kept:?}; drained in {took:?}");
    assert_eq!(seen, (6..6 + away).collect::<Vec<_>>());
    assert!(took < Duration::from_secs(200), "{took:?}");
    let seconds = usize::try_from(took.as_secs()).unwrap();
    assert!(live + 2 >= seconds, "live telemetry kept its place: {live}");
    assert_eq!(alone.node.ring().dropped, 0);
}

#[test]
fn a_lost_acknowledgement_sends_the_same_batch_again_and_another_ones_is_ignored() {
    let mut alone = Alone::fresh("edge-1");
    measure(&mut alone, 10);
    alone.connect(&welcome(Vec::new(), &["edge-1"]));
    let first = batches(&alone);
    assert_eq!(first.len(), 1);
    let of_another = TelemetryAck {
        id: first[0].id + 5,
    };
    alone.hear(Body::TelemetryAck(of_another));
    assert_eq!(alone.node.ring().batches, 1);
    alone.disconnect();
    // An acknowledgement of an earlier connection comes late.
    alone.connect(&welcome(Vec::new(), &["edge-1"]));
    assert_eq!(batches(&alone), first);
    alone.hear(Body::TelemetryAck(TelemetryAck { id: first[0].id }));
    assert_eq!(alone.node.ring().batches, 0);
    alone.hear(Body::TelemetryAck(TelemetryAck { id: first[0].id }));
    measure(&mut alone, 5);
    assert!(batches(&alone).is_empty(), "once");
    assert_eq!(alone.node.counts().batches_acknowledged, 1);
}

#[test]
fn a_control_plane_that_never_acknowledges_is_not_flooded() {
    let mut alone = Alone::fresh("edge-1");
    measure(&mut alone, 10);
    alone.connect(&welcome(Vec::new(), &["edge-1"]));
    measure(&mut alone, 600);
    assert_eq!(batches(&alone).len(), 3);
    assert_eq!(alone.node.ring().batches, 1, "kept for a newer one");
}

#[test]
fn a_crash_between_sending_and_acknowledgement_doubles_nothing() {
    let disk = Disk::default();
    let mut alone = Alone::new(config("edge-1"), disk.store());
    measure(&mut alone, 10);
    alone.connect(&welcome(Vec::new(), &["edge-1"]));
    let first = batches(&alone);
    let left = disk.image().left();
    std::mem::forget(alone);
    let mut alone = Alone::new(config("edge-1"), Disk::of(left).store());
    measure(&mut alone, 3);
    alone.connect(&welcome(Vec::new(), &["edge-1"]));
    let again = batches(&alone);
    assert_eq!(again, first, "the same id, so that it is known as the same");
    alone.hear(Body::TelemetryAck(TelemetryAck { id: first[0].id }));
    let next = batches(&alone);
    assert!(next[0].id > first[0].id);
}

#[test]
fn a_store_that_was_lost_gives_out_higher_ids_than_before() {
    let mut alone = Alone::fresh("edge-1");
    measure(&mut alone, 3);
    alone.connect(&welcome(Vec::new(), &["edge-1"]));
    let before = batches(&alone)[0].id;
    let mut anew = Alone::fresh("edge-1");
    anew.at += Duration::from_secs(1);
    measure(&mut anew, 3);
    anew.connect(&welcome(Vec::new(), &["edge-1"]));
    let after = batches(&anew)[0].id;
    assert!(before >= u64::try_from(WALL / 1000).unwrap() << 20);
    assert!(after >= before);
}
