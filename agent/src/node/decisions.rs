//! What the site decided, on its way to the control plane.

use std::collections::BTreeSet;

use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{RecordState, ReplicaRecord, SiteDecisions};
use hyperion_proto::domain::ReplicaKey;
use prost::Message;

use super::link::key_of;
use super::{Node, Outgoing};
use crate::workloads::Workloads;

/// Largest message of decisions, bytes; the link takes 4 MiB.
const MESSAGE: usize = 256 * 1024;
/// What hello carries of them, bytes.
const HELLO: usize = 1 << 20;

/// A decision that a connection was told.
pub(super) type Told = (ReplicaKey, u64, i32, String);

fn told(record: &ReplicaRecord) -> Option<Told> {
    let key = key_of(record.key.as_ref())?;
    Some((key, record.generation, record.state, record.decider.clone()))
}

impl<W: Workloads> Node<W> {
    /// Replicas that the site placed here and that the control plane has not taken: no list of its
    /// own removes them.
    pub(super) fn decided_here(&self) -> BTreeSet<ReplicaKey> {
        let own = &self.config.facts.node_id;
        self.autonomy
            .untaken()
            .iter()
            .filter(|r| r.state() == RecordState::Placed && r.node == *own)
            .filter_map(|r| key_of(r.key.as_ref()))
            .collect()
    }

    /// The decisions that go with hello; more follow.
    pub(super) fn decisions_for_hello(&mut self) -> Option<SiteDecisions> {
        self.sent_decisions.clear();
        let mut left = HELLO;
        let mut records = Vec::new();
        self.decisions_due = false;
        for record in self.autonomy.untaken() {
            let size = record.encoded_len();
            if size > left {
                self.decisions_due = true;
                continue;
            }
            left -= size;
            self.sent_decisions.extend(told(&record));
            records.push(record);
        }
        (!records.is_empty()).then_some(SiteDecisions { records })
    }

    /// Sends decisions that this connection was not told.
    pub(super) fn send_decisions(&mut self, out: &dyn Outgoing) {
        if !self.linked || !self.decisions_due {
            return;
        }
        let mut records = Vec::new();
        let mut size = 0;
        for record in self.autonomy.untaken() {
            let Some(id) = told(&record) else { continue };
            if self.sent_decisions.contains(&id) {
                continue;
            }
            let more = record.encoded_len();
            if size + more > MESSAGE && !records.is_empty() {
                if !self.send_decided(std::mem::take(&mut records), out) {
                    return;
                }
                size = 0;
            }
            size += more;
            records.push(record);
        }
        if records.is_empty() || self.send_decided(records, out) {
            self.decisions_due = false;
        }
    }

    fn send_decided(&mut self, records: Vec<ReplicaRecord>, out: &dyn Outgoing) -> bool {
        let ids: Vec<Told> = records.iter().filter_map(told).collect();
        let taken = out.send(Body::SiteDecisions(SiteDecisions { records }));
        if taken {
            self.sent_decisions.extend(ids);
        }
        taken
    }
}
