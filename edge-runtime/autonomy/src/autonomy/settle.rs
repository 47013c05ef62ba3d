//! After each input: what follows from it, in the order in which it has to be done.

use std::time::Duration;

use hyperion_wire::agent_v1::{ReplicaRecord, SiteInfo};
use hyperion_wire::peer_v1::{Frame, NodeRecord, frame};

use super::Autonomy;
use crate::mode::Evidence;
use crate::output::Output;

/// Least time between two passes over all replicas for changed loads.
const PASS: Duration = Duration::from_millis(250);

impl Autonomy {
    /// Members, mode, own record; then what is to be stored, what is to run, what peers are to hear.
    /// `from` sent what was news, and needs not hear it again.
    pub(super) fn settle(&mut self, now: Duration, from: Option<&str>, out: &mut Vec<Output>) {
        for change in self.membership.take_changes() {
            self.note_member(&change, out);
        }
        self.look_at_majority(now);
        let evidence = evidence(self);
        let linked_peer = evidence.0.clone();
        let changed = self.machine.look(
            now,
            Evidence {
                linked_peer: linked_peer.as_deref(),
                untaken: evidence.1,
            },
        );
        if let Some(changed) = changed {
            self.note_mode(changed, out);
        }
        self.choose_relay();
        self.say(now, out);
        let changes = self.site.take_changes();
        if self.site.info().members.is_empty() && !changes.nodes.is_empty() {
            // Then everybody that was heard is counted.
            self.majority.count_again();
        }
        if !changes.replicas.is_empty() || !changes.nodes.is_empty() {
            self.follow_at = now;
            // Loads change all the time: what may have changed for places can wait for more of it.
            let wait = if changes.replicas.is_empty() && !self.me_changed {
                PASS
            } else {
                Duration::ZERO
            };
            self.place_at = self.place_at.min(now.saturating_add(wait));
            self.blocked.clear();
            self.me_changed = false;
        }
        for key in &changes.replicas {
            match self.site.replica(key) {
                Some(entry) => out.push(Output::Store(Box::new(entry.record.clone()))),
                None => out.push(Output::Forget(key.clone())),
            }
        }
        if changes.info {
            out.push(Output::StoreSite(Box::new(self.site.info().clone())));
            self.meet_members(now, out);
        }
        if now >= self.follow_at {
            self.follow(now, out);
        }
        if !changes.is_empty() {
            let peers: Vec<&str> = self.membership.peers().collect();
            let frames = self.sync.spread(&self.site, &changes, from, &peers, now);
            out.extend(
                frames
                    .into_iter()
                    .map(|(to, frame)| Output::Frame { to, frame }),
            );
        }
    }

    /// For those who only ask when to wake.
    pub(super) fn evidence(&self) -> Evidence<'static> {
        let (peer, untaken) = evidence(self);
        Evidence {
            // Which one does not matter.
            linked_peer: peer.map(|_| ""),
            untaken,
        }
    }

    /// A live peer with a link of its own before one whose link runs through others; the same one as
    /// long as it is as good.
    fn choose_relay(&mut self) {
        if self.machine.linked() {
            // What it runs through is kept while it runs.
            self.relay = None;
            return;
        }
        let good = |id: &str| {
            self.membership.is_live(id)
                && !self.site.is_revoked(id)
                && self
                    .site
                    .node(id)
                    .is_some_and(|n| n.record.linked && !n.record.relayed)
        };
        if self.relay.as_deref().is_some_and(good) {
            return;
        }
        let peers = self.membership.peers().filter(|id| good(id));
        self.relay = crate::decide::first_of(&self.node_id, peers).map(str::to_owned);
    }

    fn say(&mut self, now: Duration, out: &mut Vec<Output>) {
        let state = (
            self.machine.linked(),
            self.mode(),
            self.site.info().version,
            self.through.is_some(),
        );
        if !self.unsaid && state == self.said && self.own.next_wake().is_none_or(|at| now < at) {
            return;
        }
        (self.unsaid, self.said) = (false, state);
        let record = NodeRecord {
            node_id: self.node_id.clone(),
            version: 0,
            boot_id: self.boot_id.clone(),
            capabilities: Some(self.me.capabilities.clone()),
            load: Some(self.me.load),
            accepts: self.me.accepts,
            linked: self.machine.linked(),
            mode: self.mode().as_str().to_owned(),
            held: self.me.held.clone(),
            policy_hash: self.policy_hash.clone(),
            images: self.me.images.clone(),
            addresses: self.me.addresses.clone(),
            agent_version: self.me.agent_version.clone(),
            site_info_version: self.site.info().version,
            relayed: self.machine.linked() && self.through.is_some(),
        };
        let said = self.own.say(record, now).or_else(|| self.own.due(now));
        if let Some(record) = said
            && let Err(refused) = self.site.put_own(record, now)
        {
            let me = self.node_id.clone();
            self.refuse(&me, &refused.problem, now, out);
        }
    }

    /// The nodes of the control plane's list are called, those that it has revoked are heard no
    /// more.
    fn meet_members(&mut self, now: Duration, out: &mut Vec<Output>) {
        self.majority.count_again();
        self.place_at = now;
        let info = self.site.info().clone();
        let datagrams = self.membership.ban(&info.revoked, now);
        super::send(datagrams, out);
        for member in &info.members {
            if member.node_id != self.node_id {
                self.membership.found(&member.node_id, now);
            }
        }
    }

    /// Keeps a record of this node's own making; false, with an event, where that makes no sense.
    pub(super) fn keep(
        &mut self,
        record: ReplicaRecord,
        now: Duration,
        out: &mut Vec<Output>,
    ) -> bool {
        let me = self.node_id.clone();
        let kept = self.site.merge_replica(&me, record, now);
        if let Err(refused) = &kept {
            self.refuse(&me, &refused.problem, now, out);
        }
        kept.is_ok()
    }

    /// What the store knew.
    pub(super) fn recall(
        &mut self,
        records: Vec<ReplicaRecord>,
        info: Option<SiteInfo>,
        now: Duration,
        out: &mut Vec<Output>,
    ) {
        let me = self.node_id.clone();
        if let Some(info) = info
            && let Err(refused) = self.site.merge_info(&me, info)
        {
            self.refuse(&me, &refused.problem, now, out);
        }
        for record in records {
            self.keep(record, now, out);
        }
        // The store has them already.
        let _ = self.site.take_changes();
        self.meet_members(now, out);
        let mine: Vec<_> = self
            .site
            .replicas()
            .filter(|(_, entry)| entry.placed_on(&self.node_id))
            .map(|(key, entry)| (key.clone(), entry.record.generation))
            .collect();
        self.look_at_majority(now);
        for (key, generation) in mine {
            let hold = self.hold_at_start(&key, now);
            let mine = super::Mine {
                hold,
                ..super::Mine::of(generation)
            };
            self.mine.insert(key.clone(), mine);
            match hold {
                Some(hold) => self.stop_for(&key, hold, now, out),
                None => self.run(&key, out),
            }
        }
        self.settle(now, None, out);
    }

    /// Forgets what is too old, and nodes that are gone for good.
    pub(super) fn expire(&mut self, now: Duration) {
        let info = self.site.info().clone();
        let enrolled = |id: &str| info.members.iter().any(|m| m.node_id == id);
        let (membership, after) = (&self.membership, self.profile.forget_dead);
        let site = &self.site;
        let known = |key: &_| site.replica(key).is_some();
        self.people.held_back.retain(known);
        self.people.waiting.retain(|(key, _)| known(key));
        self.site.expire(now, |id, entry| {
            !membership.is_live(id) && !enrolled(id) && now.saturating_sub(entry.at) > after
        });
    }

    /// The highest version of this node's record that a peer names.
    pub(super) fn named_version(&self, frame: &Frame) -> Option<u64> {
        let me = self.node_id.as_str();
        match frame.body.as_ref()? {
            frame::Body::Entries(entries) => entries
                .nodes
                .iter()
                .filter(|n| n.node_id == me)
                .map(|n| n.version)
                .max(),
            frame::Body::Versions(versions) => versions
                .nodes
                .iter()
                .filter(|n| n.node_id == me)
                .map(|n| n.version)
                .max(),
            _ => None,
        }
    }
}

/// A live peer that has a link, and whether a decision of the site waits.
fn evidence(core: &Autonomy) -> (Option<String>, bool) {
    let linked = core
        .membership
        .peers()
        .find(|id| core.site.node(id).is_some_and(|n| n.record.linked));
    let untaken = core.site.has_untaken();
    (linked.map(str::to_owned), untaken)
}
