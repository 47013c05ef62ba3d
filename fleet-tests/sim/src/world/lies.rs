//! A member of a site that sends garbage and lies to its peers, besides what its agent says.

use std::time::Duration;

use bytes::Bytes;
use hyperion_proto::agent_v1::{RecordState, ReplicaKey, ReplicaPhase, ReplicaRecord};
use hyperion_proto::peer_v1::frame::Body;
use hyperion_proto::peer_v1::{
    Entries, Frame, HeldReplica, NodeRecord, ReplicaVersion, Summary, Versions, Want,
};

use super::{Event, World};

/// Time between two lies.
const PERIOD: Duration = Duration::from_millis(400);

impl World {
    pub(super) fn lie(&mut self, fault: usize) {
        let fault_now = self.plan.faults[fault].clone();
        if self.now >= fault_now.end {
            return;
        }
        self.after(PERIOD, Event::Lie { fault });
        for liar in fault_now.nodes {
            if self.devices[liar].node.is_none() {
                continue;
            }
            let peers: Vec<usize> = self.sites[fault_now.site].1.clone();
            for peer in peers {
                if peer == liar || !self.net.lan_both(liar, peer) {
                    continue;
                }
                let wait = self.rng.millis(1, 5);
                if self.rng.chance(0.5) {
                    let bytes = self.garbage(liar, peer);
                    self.after(
                        wait,
                        Event::Datagram {
                            from: liar,
                            to: peer,
                            bytes,
                        },
                    );
                } else {
                    let frame = Box::new(self.false_frame(liar));
                    self.after(
                        wait,
                        Event::Frame {
                            from: liar,
                            to: peer,
                            frame,
                        },
                    );
                }
            }
        }
    }

    /// Random bytes, or what was true a while ago.
    fn garbage(&mut self, liar: usize, peer: usize) -> Bytes {
        let old = self
            .past
            .iter()
            .find(|(from, to, _)| (*from, *to) == (liar, peer));
        if let Some((_, _, bytes)) = old
            && self.rng.chance(0.5)
        {
            return bytes.clone();
        }
        let n = self.rng.below(200);
        self.rng.bytes(n).into()
    }

    fn false_frame(&mut self, liar: usize) -> Frame {
        let own = self.devices[liar].id.clone();
        let site = self.devices[liar].site;
        let other = *self.rng.pick(&self.sites[site].1).unwrap_or(&liar);
        let other = self.devices[other].id.clone();
        let stranger = (0..self.devices.len()).find(|n| self.devices[*n].site != site);
        let stranger = stranger.map_or_else(|| "nobody".to_owned(), |n| self.devices[n].id.clone());
        let number = self.rng.number();
        let key = |workload: &str, uid: &str| ReplicaKey {
            namespace: "default".to_owned(),
            workload: workload.to_owned(),
            workload_uid: uid.to_owned(),
            index: 0,
        };
        let record = |key: ReplicaKey, generation: u64, node: &str| ReplicaRecord {
            key: Some(key),
            generation,
            decider: own.clone(),
            state: RecordState::Placed.into(),
            node: node.to_owned(),
            ..ReplicaRecord::default()
        };
        let node = |id: &str, version: u64| NodeRecord {
            node_id: id.to_owned(),
            version,
            boot_id: "lie".to_owned(),
            accepts: true,
            linked: true,
            mode: "connected".to_owned(),
            ..NodeRecord::default()
        };
        let entries = |nodes: Vec<NodeRecord>, replicas: Vec<ReplicaRecord>| {
            Body::Entries(Entries {
                nodes,
                replicas,
                site_info: None,
            })
        };
        let body = match self.rng.below(9) {
            // Another node's record, of no sense.
            0 => entries(vec![node(&other, 0), node("", number)], Vec::new()),
            // Another site's identity.
            1 => entries(vec![node(&stranger, u64::MAX)], Vec::new()),
            // Placements that it does not have.
            2 => {
                let held = HeldReplica {
                    key: Some(key("w0", "uid-1")),
                    generation: 1 + number % 5,
                    phase: ReplicaPhase::Running.into(),
                    ready: true,
                };
                let lie = NodeRecord {
                    held: vec![held; 3],
                    ..node(&own, 0)
                };
                entries(vec![lie], Vec::new())
            }
            // Generations from the future.
            3 => entries(Vec::new(), vec![record(key("w0", "uid-1"), u64::MAX, &own)]),
            4 => entries(Vec::new(), vec![record(key("No Name", ""), 3, &own)]),
            // A place in another site.
            5 => entries(Vec::new(), vec![record(key("w1", "uid-2"), 1, &stranger)]),
            6 => Body::Summary(Summary {
                buckets: vec![number; self.rng.below(2000)],
            }),
            7 => Body::Versions(Versions {
                buckets: vec![u32::MAX; 4],
                replicas: vec![
                    ReplicaVersion {
                        key: None,
                        generation: number,
                        state: 77,
                        ..ReplicaVersion::default()
                    };
                    20
                ],
                ..Versions::default()
            }),
            _ => Body::Want(Want {
                nodes: vec![String::new(); 100],
                replicas: vec![key("w0", "uid-1"); 100],
                site_info: true,
            }),
        };
        Frame { body: Some(body) }
    }
}
