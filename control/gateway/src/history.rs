//! Telemetry of the time without a link, as nodes bring it when they are back. Bounded for each
//! node and for all of them; what is there is for people, and decides nothing.

use std::collections::{HashMap, VecDeque};

use hyperion_api::fleet::{History, PastTelemetry};
use hyperion_proto::agent_v1::TelemetryBatch;
use hyperion_proto::convert::{self, Invalid};
use hyperion_proto::domain::Telemetry;

/// Samples kept of one node: what it measured last.
pub const PER_NODE: usize = 4096;
/// Samples kept of all nodes, about 30 MB: beyond, the node that has not brought any for longest
/// loses its own.
pub const IN_ALL: usize = 400_000;
/// Samples of one batch.
const PER_BATCH: usize = 4096;
/// Batches whose acknowledgement may have been lost.
const RECENT: usize = 64;

#[derive(Default)]
struct Node {
    samples: VecDeque<PastTelemetry>,
    /// Ids and digests of the last batches.
    recent: VecDeque<(u64, u64)>,
    dropped: u64,
    /// When it brought something last, in batches of all nodes.
    turn: u64,
}

/// What became of a batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Samples that were new and sane.
    pub samples: u64,
    /// Samples that make no sense.
    pub refused: u64,
    /// Samples that the node had to drop since the batch before.
    pub dropped: u64,
}

/// Past telemetry of all nodes.
#[derive(Default)]
pub struct Histories {
    nodes: HashMap<String, Node>,
    samples: usize,
    turn: u64,
}

impl Histories {
    /// Takes a batch, in the order in which it came. One that was taken before changes nothing.
    ///
    /// # Errors
    /// It has too many samples: none is taken.
    pub fn take(&mut self, node: &str, batch: &TelemetryBatch) -> Result<Taken, Invalid> {
        if batch.samples.len() > PER_BATCH {
            return Err(Invalid {
                field: "telemetry_batch.samples".to_owned(),
                problem: format!("{}, at most {PER_BATCH} are accepted", batch.samples.len()),
            });
        }
        self.turn += 1;
        let held = self.nodes.entry(node.to_owned()).or_default();
        held.turn = self.turn;
        let mark = (batch.id, digest(batch));
        if held.recent.contains(&mark) {
            return Ok(Taken::default());
        }
        if held.recent.len() == RECENT {
            held.recent.pop_front();
        }
        held.recent.push_back(mark);
        let mut taken = Taken {
            // A store that was made anew counts from nothing.
            dropped: batch.dropped_total.saturating_sub(held.dropped),
            ..Taken::default()
        };
        held.dropped = batch.dropped_total;
        for sample in &batch.samples {
            let telemetry = sample.telemetry.clone().unwrap_or_default();
            let Ok(telemetry) = convert::telemetry(&telemetry) else {
                taken.refused += 1;
                continue;
            };
            taken.samples += 1;
            if held.samples.len() == PER_NODE {
                held.samples.pop_front();
                self.samples -= 1;
            }
            held.samples.push_back(past(sample.unix_ms, &telemetry));
            self.samples += 1;
        }
        self.make_room(node);
        Ok(taken)
    }

    fn make_room(&mut self, newest: &str) {
        while self.samples > IN_ALL {
            let others = self
                .nodes
                .iter()
                .filter(|(id, n)| id.as_str() != newest && !n.samples.is_empty());
            let Some(oldest) = others.min_by_key(|(_, n)| n.turn).map(|(id, _)| id.clone()) else {
                return;
            };
            if let Some(node) = self.nodes.get_mut(&oldest) {
                self.samples -= node.samples.len();
                node.samples = VecDeque::new();
            }
        }
    }

    /// What a node measured while it was away; none where it never brought anything.
    #[must_use]
    pub fn of(&self, node: &str) -> Option<History> {
        let held = self.nodes.get(node)?;
        Some(History {
            node: node.to_owned(),
            samples: held.samples.iter().cloned().collect(),
            dropped_total: held.dropped,
        })
    }

    /// Forgets a node.
    pub fn forget(&mut self, node: &str) {
        if let Some(node) = self.nodes.remove(node) {
            self.samples -= node.samples.len();
        }
    }
}

fn past(unix_ms: i64, t: &Telemetry) -> PastTelemetry {
    PastTelemetry {
        unix_ms,
        cpu_percent: t.cpu_percent,
        memory_used_bytes: t.memory_used_bytes,
        disk_used_bytes: t.disk_used_bytes,
        load1: t.load1,
        max_celsius: t.max_celsius,
        gpu_percent: t.gpu_percent.iter().copied().fold(None, |max, percent| {
            Some(max.map_or(percent, |m: f32| m.max(percent)))
        }),
    }
}

/// Tells a batch that comes again from another one of the same id, of a store that was made anew.
fn digest(batch: &TelemetryBatch) -> u64 {
    let bytes = prost::Message::encode_to_vec(batch);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyperion_proto::agent_v1::{self, StampedTelemetry};

    fn batch(id: u64, from: i64, count: i64, dropped_total: u64) -> TelemetryBatch {
        let sample = |n: i64| StampedTelemetry {
            unix_ms: from + n,
            telemetry: Some(agent_v1::Telemetry {
                cpu_utilization_percent: 10.0,
                ..Default::default()
            }),
        };
        TelemetryBatch {
            id,
            samples: (0..count).map(sample).collect(),
            dropped_total,
        }
    }

    #[test]
    fn a_batch_is_taken_once_and_in_order() {
        let mut all = Histories::default();
        let first = batch(1, 100, 3, 2);
        assert_eq!(all.take("a", &first).unwrap().samples, 3);
        assert_eq!(
            all.take("a", &first).unwrap(),
            Taken::default(),
            "its acknowledgement was lost"
        );
        let taken = all.take("a", &batch(2, 200, 2, 5)).unwrap();
        assert_eq!((taken.samples, taken.dropped), (2, 3));
        let history = all.of("a").unwrap();
        let times: Vec<i64> = history.samples.iter().map(|s| s.unix_ms).collect();
        assert_eq!(times, [100, 101, 102, 200, 201]);
        assert_eq!(history.dropped_total, 5);
        // A store that was made anew begins at 1 again.
        assert_eq!(all.take("a", &batch(1, 900, 1, 0)).unwrap().samples, 1);
        assert!(all.of("b").is_none());
    }

    #[test]
    fn samples_that_make_no_sense_are_refused_alone() {
        let mut all = Histories::default();
        let mut odd = batch(1, 0, 3, 0);
        odd.samples[1]
            .telemetry
            .as_mut()
            .unwrap()
            .cpu_utilization_percent = f32::NAN;
        let taken = all.take("a", &odd).unwrap();
        assert_eq!((taken.samples, taken.refused), (2, 1));
        let huge = batch(2, 0, 5000, 0);
        assert_eq!(
            all.take("a", &huge).unwrap_err().field,
            "telemetry_batch.samples"
        );
    }

    #[test]
    fn memory_is_bounded_for_each_node_and_for_all() {
        let mut all = Histories::default();
        for id in 0..3 {
            all.take(
                "a",
                &batch(id, i64::try_from(id).unwrap() * 10_000, 4096, 0),
            )
            .unwrap();
        }
        let samples = all.of("a").unwrap().samples;
        assert_eq!((samples.len(), samples[0].unix_ms), (PER_NODE, 20_000));
        for node in 0..=IN_ALL / PER_NODE {
            all.take(&format!("n{node}"), &batch(1, 0, 4096, 0))
                .unwrap();
        }
        assert!(all.samples <= IN_ALL);
        assert!(all.of("a").unwrap().samples.is_empty(), "the oldest goes");
        all.forget("n3");
        assert!(all.of("n3").is_none());
    }
}
