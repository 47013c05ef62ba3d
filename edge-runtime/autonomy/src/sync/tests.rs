use std::collections::BTreeMap;
use std::time::Duration;

use hyperion_wire::agent_v1::{NodeCapabilities, RecordState, ReplicaKey, ReplicaRecord, SiteInfo};
use hyperion_wire::peer_v1::{
    Entries, Frame, NodeRecord, NodeVersion, ReplicaVersion, Summary, Versions, Want, frame,
};
use proptest::prelude::*;
use prost::Message as _;
use rand::SeedableRng as _;
use rand::rngs::ChaCha8Rng;

use super::queue::LONGEST;
use super::{Frames, Sync};
use crate::profile::Profile;
use crate::site::{BUCKETS, Site};

fn secs(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn name(index: usize) -> String {
    format!("edge-{index}")
}

fn node(index: usize, version: u64, images: usize) -> NodeRecord {
    NodeRecord {
        node_id: name(index),
        version: (1 << 32) + version,
        boot_id: "b".to_owned(),
        capabilities: Some(NodeCapabilities {
            cpu_arch: "arm64".to_owned(),
            memory_bytes: 8 << 30,
            ..NodeCapabilities::default()
        }),
        images: (0..images)
            .map(|nth| format!("registry.example/team/image-number-{nth}:v1.2.3"))
            .collect(),
        ..NodeRecord::default()
    }
}

fn replica(index: u32, generation: u64) -> ReplicaRecord {
    ReplicaRecord {
        key: Some(ReplicaKey {
            namespace: "default".to_owned(),
            workload: "camera".to_owned(),
            workload_uid: "0b1c".to_owned(),
            index,
        }),
        generation,
        decider: name(0),
        state: RecordState::Removed.into(),
        ..ReplicaRecord::default()
    }
}

/// Nodes that send each other frames, on virtual time.
struct Fleet {
    now: Duration,
    nodes: BTreeMap<String, (Site, Sync)>,
    rng: ChaCha8Rng,
    flying: BTreeMap<(Duration, u64), (String, String, Frame)>,
    sent: u64,
    /// What each node sent, when and how much.
    bytes: Vec<(String, Duration, usize)>,
    /// Frames that are news, not an answer, are lost.
    lose_news: bool,
    loss: f64,
    refused: usize,
}

impl Fleet {
    fn new(count: usize, profile: &Profile) -> Self {
        let nodes = (0..count)
            .map(|index| {
                let site = Site::new(&name(index));
                let sync = Sync::new(&name(index), profile, index as u64, Duration::ZERO);
                (name(index), (site, sync))
            })
            .collect();
        Self {
            now: Duration::ZERO,
            nodes,
            rng: ChaCha8Rng::seed_from_u64(7),
            flying: BTreeMap::new(),
            sent: 0,
            bytes: Vec::new(),
            lose_news: false,
            loss: 0.0,
            refused: 0,
        }
    }

    /// A node learns something by itself, and spreads it.
    fn learn(&mut self, at: usize, what: impl FnOnce(&mut Site, Duration)) {
        let now = self.now;
        let (site, _) = self.nodes.get_mut(&name(at)).unwrap();
        what(site, now);
        self.spread(&name(at), None);
    }

    fn spread(&mut self, node: &str, from: Option<&str>) {
        let now = self.now;
        let peers: Vec<String> = self
            .nodes
            .keys()
            .filter(|peer| *peer != node)
            .cloned()
            .collect();
        let peers: Vec<&str> = peers.iter().map(String::as_str).collect();
        let (site, sync) = self.nodes.get_mut(node).unwrap();
        let changes = site.take_changes();
        if changes.is_empty() {
            return;
        }
        let frames = sync.spread(site, &changes, from, &peers, now);
        if !self.lose_news {
            self.send(node, frames);
        }
    }

    fn send(&mut self, from: &str, frames: Frames) {
        for (to, frame) in frames {
            self.sent += 1;
            self.bytes
                .push((from.to_owned(), self.now, frame.encoded_len()));
            if self.rng.random_bool(self.loss) {
                continue;
            }
            let delay = Duration::from_micros(self.rng.random_range(300..5_000));
            let key = (self.now + delay, self.sent);
            self.flying.insert(key, (from.to_owned(), to, frame));
        }
    }

    fn hear(&mut self, from: &str, to: &str, frame: Frame) {
        let now = self.now;
        let (site, sync) = self.nodes.get_mut(to).unwrap();
        let (frames, refused) = sync.frame(site, from, frame, now);
        self.refused += refused.len();
        self.send(to, frames);
        self.spread(to, Some(from));
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let wake = self
                .nodes
                .iter()
                .map(|(node, (_, sync))| (sync.next_wake(), node.clone()))
                .min()
                .unwrap();
            let arrival = self.flying.keys().next().copied();
            let at = arrival.map_or(wake.0, |(at, _)| at.min(wake.0));
            if at > end {
                break;
            }
            self.now = self.now.max(at);
            if let Some(key) = arrival
                && key.0 <= wake.0
            {
                let (from, to, frame) = self.flying.remove(&key).unwrap();
                self.hear(&from, &to, frame);
                continue;
            }
            let peers: Vec<String> = self
                .nodes
                .keys()
                .filter(|peer| **peer != wake.1)
                .cloned()
                .collect();
            let peers: Vec<&str> = peers.iter().map(String::as_str).collect();
            let now = self.now;
            let (site, sync) = self.nodes.get_mut(&wake.1).unwrap();
            let frames = sync.tick(site, &peers, now);
            let only_comparison =
                |(_, frame): &(String, Frame)| !matches!(frame.body, Some(frame::Body::Entries(_)));
            let frames = if self.lose_news {
                frames.into_iter().filter(only_comparison).collect()
            } else {
                frames
            };
            self.send(&wake.1, frames);
        }
        self.now = end;
    }

    fn until(&mut self, what: &str, limit: Duration, holds: impl Fn(&Self) -> bool) -> Duration {
        let start = self.now;
        while !holds(self) {
            assert!(self.now < start + limit, "not within {limit:?}: {what}");
            self.run(Duration::from_millis(50));
        }
        self.now - start
    }

    fn agree(&self) -> bool {
        let mut all = self.nodes.values().map(|(site, _)| site.buckets());
        let first = all.next().unwrap();
        all.all(|buckets| buckets == first)
    }
}

#[test]
fn news_is_with_all_in_a_moment() {
    let mut fleet = Fleet::new(30, &Profile::standard());
    fleet.learn(3, |site, now| {
        site.merge_replica("edge-3", replica(0, 1), now).unwrap();
    });
    // By pushes alone it reaches most, by comparison the rest.
    let took = fleet.until("all know", secs(20.0), Fleet::agree);
    assert!(took < secs(5.0), "{took:?}");
    let heard = fleet
        .nodes
        .values()
        .filter(|(site, _)| site.replicas().count() == 1);
    assert_eq!(heard.count(), 30);
}

#[test]
fn what_no_push_brought_comparison_does() {
    let mut fleet = Fleet::new(30, &Profile::standard());
    fleet.lose_news = true;
    for index in 0..30 {
        fleet.learn(index, |site, now| {
            site.put_own(node(index, 1, 2), now).unwrap();
            let record = replica(u32::try_from(index).unwrap(), 1);
            site.merge_replica("edge-0", record, now).unwrap();
            if index == 5 {
                let info = SiteInfo {
                    version: 3,
                    ..SiteInfo::default()
                };
                site.merge_info("edge-5", info).unwrap();
            }
        });
    }
    let took = fleet.until("all know all", secs(60.0), Fleet::agree);
    assert!(took < secs(30.0), "{took:?}");
    for (site, _) in fleet.nodes.values() {
        assert_eq!(site.nodes().count(), 30);
        assert_eq!(site.replicas().count(), 30);
        assert_eq!(site.info().version, 3);
    }
    assert_eq!(fleet.refused, 0);
}

#[test]
fn half_of_all_frames_lost_only_delays() {
    let mut fleet = Fleet::new(12, &Profile::standard());
    fleet.loss = 0.5;
    for index in 0..12 {
        fleet.learn(index, |site, now| {
            site.put_own(node(index, 1, 2), now).unwrap();
        });
    }
    fleet.until("all know all", secs(120.0), Fleet::agree);
}

#[test]
fn the_newer_record_holds_wherever_it_was() {
    let mut fleet = Fleet::new(2, &Profile::standard());
    fleet.lose_news = true;
    for (at, generation) in [(0, 4), (1, 7)] {
        fleet.learn(at, |site, now| {
            site.merge_replica("edge-0", replica(0, generation), now)
                .unwrap();
            site.merge_replica("edge-0", replica(1, 11 - generation), now)
                .unwrap();
        });
    }
    fleet.until("both know", secs(10.0), Fleet::agree);
    for (site, _) in fleet.nodes.values() {
        let generations: Vec<u64> = site.replicas().map(|(_, e)| e.record.generation).collect();
        assert_eq!(generations, [7, 7]);
    }
}

#[test]
fn nodes_that_know_the_same_send_hashes_and_nothing_else() {
    let mut fleet = Fleet::new(10, &Profile::standard());
    for index in 0..10 {
        fleet.learn(index, |site, now| {
            site.put_own(node(index, 1, 2), now).unwrap();
        });
    }
    fleet.until("all know all", secs(60.0), Fleet::agree);
    fleet.run(secs(1.0));
    fleet.bytes.clear();
    fleet.run(secs(60.0));
    let bytes: usize = fleet.bytes.iter().map(|(_, _, bytes)| bytes).sum();
    let rate = bytes as f64 / 60.0 / 10.0;
    assert!(rate < 300.0, "{rate} bytes a second and node");
    assert!(
        fleet
            .bytes
            .iter()
            .all(|(_, _, bytes)| *bytes < BUCKETS * 8 + 16)
    );
}

/// The most that one node sent within any second.
fn most_in_a_second(fleet: &Fleet, node: &str) -> usize {
    let sent: Vec<(Duration, usize)> = fleet
        .bytes
        .iter()
        .filter(|(from, _, _)| from == node)
        .map(|(_, at, bytes)| (*at, *bytes))
        .collect();
    (0..sent.len())
        .map(|start| {
            let end = sent[start].0 + secs(1.0);
            let within = sent[start..].iter().take_while(|(at, _)| *at <= end);
            within.map(|(_, bytes)| bytes).sum()
        })
        .max()
        .unwrap_or(0)
}

#[test]
fn a_large_set_goes_out_in_pieces_within_the_bound_and_news_passes_it() {
    let profile = Profile {
        sync_bytes_per_s: 20_000,
        ..Profile::standard()
    };
    let mut fleet = Fleet::new(4, &profile);
    // Some 600 kB of which three others know nothing.
    fleet.learn(0, |site, now| {
        for index in 100..300 {
            site.merge_node("edge-0", node(index, 1, 60), now).unwrap();
        }
    });
    fleet.run(secs(10.0));
    assert!(!fleet.agree());
    let before = fleet.now;
    fleet.learn(0, |site, now| {
        site.merge_replica("edge-0", replica(0, 1), now).unwrap();
    });
    fleet.until("the news is with all", secs(20.0), |fleet| {
        fleet
            .nodes
            .values()
            .all(|(site, _)| site.replicas().count() == 1)
    });
    assert!(fleet.now - before < secs(5.0), "{:?}", fleet.now - before);
    assert!(!fleet.agree(), "the large set was through already");
    fleet.until("all know all", secs(300.0), Fleet::agree);
    for index in 0..4 {
        let most = most_in_a_second(&fleet, &name(index));
        assert!(most <= 2 * 20_000 + LONGEST, "{most} of edge-{index}");
    }
    assert!(
        fleet
            .bytes
            .iter()
            .all(|(_, _, bytes)| *bytes <= LONGEST + 100)
    );
}

#[test]
fn a_peer_that_asks_for_all_again_and_again_keeps_nobody_waiting() {
    let profile = Profile {
        sync_bytes_per_s: 20_000,
        ..Profile::standard()
    };
    let mut fleet = Fleet::new(3, &profile);
    fleet.learn(0, |site, now| {
        for index in 100..200 {
            site.merge_node("edge-0", node(index, 1, 60), now).unwrap();
        }
    });
    let want = Frame {
        body: Some(frame::Body::Want(Want {
            nodes: (100..200).map(name).collect(),
            ..Want::default()
        })),
    };
    let took = {
        let start = fleet.now;
        while fleet.nodes[&name(1)].0.nodes().count() < 100 {
            fleet.hear(&name(2), &name(0), want.clone());
            fleet.run(Duration::from_millis(100));
            assert!(fleet.now - start < secs(120.0), "edge-1 starves");
        }
        fleet.now - start
    };
    assert!(took < secs(60.0), "{took:?}");
    let most = most_in_a_second(&fleet, &name(0));
    assert!(most <= 2 * 20_000 + LONGEST, "{most}");
}

#[test]
fn bad_frames_are_refused_by_name_and_the_rest_of_them_is_taken() {
    let mut fleet = Fleet::new(2, &Profile::standard());
    let frames = [
        frame::Body::Summary(Summary {
            buckets: vec![1; 3],
        }),
        frame::Body::Want(Want {
            replicas: vec![ReplicaKey::default()],
            ..Want::default()
        }),
        frame::Body::Versions(Versions {
            buckets: vec![9999, 3],
            replicas: vec![ReplicaVersion::default()],
            ..Versions::default()
        }),
        frame::Body::Entries(Entries {
            nodes: vec![NodeRecord::default(), node(7, 1, 1)],
            replicas: vec![ReplicaRecord::default(), replica(1, 1)],
            site_info: None,
        }),
    ];
    let (site, sync) = fleet.nodes.get_mut(&name(0)).unwrap();
    let mut problems = Vec::new();
    for body in frames {
        let frame = Frame { body: Some(body) };
        let (_, refused) = sync.frame(site, "edge-1", frame, secs(1.0));
        assert!(refused.iter().all(|r| r.peer == "edge-1"));
        problems.extend(refused.into_iter().map(|r| r.problem));
    }
    assert_eq!(problems.len(), 5, "{problems:?}");
    assert!(problems[0].contains("summary.buckets"), "{problems:?}");
    assert_eq!(site.nodes().count(), 1);
    assert_eq!(site.replicas().count(), 1);
    let (frames, refused) = sync.frame(site, "edge-1", Frame { body: None }, secs(1.0));
    assert!(frames.is_empty() && refused.is_empty());
}

#[test]
fn made_up_versions_cost_no_more_memory_than_a_site() {
    let mut fleet = Fleet::new(2, &Profile::standard());
    let (site, sync) = fleet.nodes.get_mut(&name(0)).unwrap();
    for batch in 0..40 {
        let nodes = (0..1000)
            .map(|index| NodeVersion {
                node_id: format!("made-up-{batch}-{index}"),
                version: 1 << 32,
            })
            .collect();
        let versions = Versions {
            nodes,
            ..Versions::default()
        };
        let frame = Frame {
            body: Some(frame::Body::Versions(versions)),
        };
        sync.frame(site, "edge-1", frame, secs(1.0));
    }
    assert!(sync.asked.len() <= super::MAX_NODES + super::MAX_REPLICAS);
    // And it is forgotten when it does not come.
    sync.tick(site, &["edge-1"], secs(100.0));
    assert!(sync.asked.is_empty());
}

#[test]
fn what_waits_for_a_dead_node_is_forgotten() {
    let profile = Profile {
        sync_bytes_per_s: 100,
        ..Profile::standard()
    };
    let mut site = Site::new("edge-0");
    let mut sync = Sync::new("edge-0", &profile, 1, Duration::ZERO);
    for index in 0..50 {
        site.merge_replica("edge-0", replica(index, 1), Duration::ZERO)
            .unwrap();
    }
    let changes = site.take_changes();
    sync.spread(&site, &changes, None, &["edge-1", "edge-2"], secs(1.0));
    assert!(sync.queues.contains_key("edge-1"));
    sync.tick(&site, &["edge-2"], secs(1.1));
    assert!(!sync.queues.contains_key("edge-1"));
    let far = sync.next_wake();
    assert!(far > secs(1.1) && far < secs(120.0), "{far:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn nodes_with_any_sets_of_records_come_to_know_the_same(
        sets in proptest::collection::vec(
            proptest::collection::vec((0u32..12, 1u64..6), 0..12),
            2..6,
        ),
        loss in 0.0..0.4f64,
    ) {
        let mut fleet = Fleet::new(sets.len(), &Profile::fast());
        fleet.loss = loss;
        let mut highest: BTreeMap<u32, u64> = BTreeMap::new();
        for (at, set) in sets.iter().enumerate() {
            for (index, generation) in set {
                let top = highest.entry(*index).or_default();
                *top = (*top).max(*generation);
                fleet.learn(at, |site, now| {
                    site.merge_replica(&name(at), replica(*index, *generation), now).unwrap();
                });
            }
        }
        fleet.until("all know the same", secs(300.0), Fleet::agree);
        for (site, _) in fleet.nodes.values() {
            let known: BTreeMap<u32, u64> = site
                .replicas()
                .map(|(key, entry)| (key.index, entry.record.generation))
                .collect();
            prop_assert_eq!(&known, &highest);
        }
    }
}
