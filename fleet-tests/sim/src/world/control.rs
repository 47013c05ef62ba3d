//! The control plane in the world: its process, its API, and what goes between.

use std::time::Duration;

use hyperion_api::node::{HyperionNode, HyperionNodeSpec};
use hyperion_operator::apply::Applied;
use hyperion_operator::plan::Action;
use hyperion_proto::agent_v1::stream_message::Body;

use super::{EPOCH_MS, Event, REPLACE_AFTER, World, note};
use crate::control::Leader;
use crate::control::api::Change;

impl World {
    /// A device that has enrolled has an object.
    pub(super) fn enrol(&mut self, node: usize) {
        let device = &self.devices[node];
        let spec = HyperionNodeSpec {
            site: self.sites[device.site].0.clone(),
            ..HyperionNodeSpec::default()
        };
        self.api.add_node(HyperionNode::new(&device.id, spec));
    }

    /// A process of the control plane begins to lead.
    pub(super) fn lead(&mut self) {
        if self.leader.is_some() || self.stopped > 0 {
            return;
        }
        self.leaders += 1;
        self.api.changes.clear();
        let leader = Leader::new(&self.api, self.base, self.now, REPLACE_AFTER, EPOCH_MS);
        self.leader = Some(leader);
        self.control_at = Duration::MAX;
        note!(self, "control plane {} leads", self.leaders);
        self.control_soon();
    }

    /// The process that leads ends.
    pub(super) fn end_lead(&mut self, orderly: bool) {
        let Some(leader) = self.leader.take() else {
            return;
        };
        self.decided.0 += leader.adopted;
        self.decided.1 += leader.decisions;
        note!(self, "control plane {} ends", self.leaders);
        self.control_gone(orderly);
        // Writes that were on their way arrive, or do not; nobody hears of it.
        self.control_at = Duration::MAX;
    }

    /// Lets the control plane do what is due at this instant.
    pub(super) fn control_soon(&mut self) {
        if self.leader.is_some() && self.control_at > self.now {
            self.control_at = self.now;
            let leader = self.leaders;
            self.after(Duration::ZERO, Event::Control { leader });
        }
    }

    pub(super) fn control(&mut self, leader: u64) {
        if leader != self.leaders || self.control_at > self.now {
            return;
        }
        let now = self.now;
        let Some(process) = &mut self.leader else {
            return;
        };
        let lost = process.lost(now);
        let next = process.run(now).max(now + Duration::from_millis(1));
        let endless = process.endless;
        self.control_at = next;
        self.at(next, Event::Control { leader });
        for (node, session) in lost {
            note!(self, "the control plane does not hear {node}");
            self.control_closed(session);
        }
        if endless {
            let what = "passes over workloads do not come to an end".to_owned();
            self.checker.violate(now, "endless_passes", what);
            self.end_lead(false);
            return;
        }
        self.flush();
    }

    /// Sends what the control plane has to say, to nodes and to the API.
    fn flush(&mut self) {
        let Some(process) = &mut self.leader else {
            return;
        };
        let out = std::mem::take(&mut process.gateway.out);
        let writes = std::mem::take(&mut process.writes);
        let leader = self.leaders;
        for message in out {
            self.send_down(message.session, message.body);
        }
        for action in writes {
            let wait = self.rng.millis(1, 8);
            self.write_at = (self.now + wait).max(self.write_at);
            let (at, action) = (self.write_at, Box::new(action));
            self.at(at, Event::Write { leader, action });
        }
        self.show();
    }

    /// Has watches show what has changed in the API.
    pub(super) fn show(&mut self) {
        let changes = std::mem::take(&mut self.api.changes);
        if self.leader.is_none() {
            return;
        }
        let leader = self.leaders;
        for change in changes {
            self.after(Duration::from_millis(3), Event::Watch { leader, change });
        }
    }

    pub(super) fn watch(&mut self, leader: u64, change: Change) {
        let now = self.now;
        if leader == self.leaders
            && let Some(process) = &mut self.leader
        {
            process.change(change, now);
            self.control_soon();
        }
    }

    pub(super) fn write(&mut self, leader: u64, action: Action) {
        let current = leader == self.leaders && self.leader.is_some();
        // Of a process that died some writes had been sent.
        if !current && self.rng.chance(0.5) {
            return;
        }
        if let Some(applied) = self.api.write(action)
            && current
        {
            let applied = Box::new(applied);
            self.after(Duration::from_millis(1), Event::Applied { leader, applied });
        }
        self.show();
    }

    pub(super) fn applied(&mut self, leader: u64, applied: &Applied) {
        if leader == self.leaders
            && let Some(process) = &mut self.leader
        {
            process.applied(applied);
            self.control_soon();
        }
    }

    /// A message of a node.
    pub(super) fn hear(&mut self, node: &str, session: u64, body: Body) {
        let now = self.now;
        if let Some(process) = &mut self.leader {
            process.message(node, session, body, now, &mut self.heard);
            self.control_soon();
        }
    }

    /// A node ends its session in order.
    pub(super) fn close(&mut self, node: &str, session: u64) {
        let now = self.now;
        if let Some(process) = &mut self.leader {
            process.closed(node, session, now);
            self.control_soon();
        }
        if let Some(held) = self.sessions.get_mut(&session) {
            held.forget_control();
        }
    }
}
