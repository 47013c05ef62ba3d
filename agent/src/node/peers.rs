//! What comes from the site: from peers, and from people there.

use std::time::Duration;

use bytes::Bytes;
use hyperion_autonomy::membership::State;
use hyperion_proto::agent_v1::ReplicaRecord;
use hyperion_proto::peer_v1::Frame;

use super::glue::Work;
use super::{Node, Now, Outgoing};
use crate::local::{MemberState, MemberView, SiteView};
use crate::workloads::Workloads;

impl<W: Workloads> Node<W> {
    /// A datagram of an authenticated peer.
    pub fn datagram(&mut self, from: &str, bytes: Bytes, now: Now) {
        let outputs = self.autonomy.datagram(from, bytes, self.clock.since(now));
        self.carry_out(Work::of(outputs), now);
    }

    /// A frame of an authenticated peer.
    pub fn frame(&mut self, from: &str, frame: Frame, now: Now) {
        let outputs = self.autonomy.frame(from, frame, self.clock.since(now));
        self.carry_out(Work::of(outputs), now);
    }

    /// A node of the site was found: a connection with it stands.
    pub fn found(&mut self, peer: &str, now: Now) {
        let outputs = self.autonomy.found(peer, self.clock.since(now));
        self.carry_out(Work::of(outputs), now);
    }

    /// Somebody who claimed to be a peer was turned away.
    pub fn peer_refused(&mut self, peer: &str, why: &str, now: Now) {
        self.counts.peers_refused += 1;
        let message = format!("{peer}: {why}");
        self.event("PeerRefused", message, true, None, now);
    }

    /// A person applied a workload at the site: one record a replica, without node and generation.
    /// What is decided is on disk when this returns.
    ///
    /// # Errors
    /// Why it was not taken.
    pub fn apply(
        &mut self,
        records: Vec<ReplicaRecord>,
        now: Now,
        out: &dyn Outgoing,
    ) -> Result<(), String> {
        let since = self.clock.since(now);
        let outputs = self.autonomy.apply(records, since, &self.decider)?;
        self.carry_out(Work::of(outputs), now);
        self.report(out);
        Ok(())
    }

    /// A person deleted a workload at the site.
    ///
    /// # Errors
    /// Why not.
    pub fn delete(
        &mut self,
        namespace: &str,
        workload: &str,
        now: Now,
        out: &dyn Outgoing,
    ) -> Result<(), String> {
        let since = self.clock.since(now);
        let outputs = self.autonomy.delete(namespace, workload, since)?;
        self.carry_out(Work::of(outputs), now);
        self.report(out);
        Ok(())
    }

    /// Live nodes that say they have an image.
    #[must_use]
    pub fn image_holders(&self, image: &str) -> Vec<String> {
        let known = self.autonomy.site().nodes();
        known
            .filter(|(_, node)| node.record.images.iter().any(|held| held == image))
            .filter(|(id, _)| self.is_live_peer(id))
            .map(|(id, _)| id.to_owned())
            .collect()
    }

    /// Live nodes that decide with a policy.
    #[must_use]
    pub fn policy_holders(&self, sha256: &str) -> Vec<String> {
        let known = self.autonomy.site().nodes();
        known
            .filter(|(_, node)| node.record.policy_hash == sha256)
            .filter(|(id, _)| self.is_live_peer(id))
            .map(|(id, _)| id.to_owned())
            .collect()
    }

    fn is_live_peer(&self, id: &str) -> bool {
        id != self.config.facts.node_id && self.autonomy.membership().is_live(id)
    }

    /// Where the nodes of the site can be called, by node id: by the control plane's word and by
    /// their own.
    #[must_use]
    pub fn addresses(&self) -> Vec<(String, Vec<String>)> {
        let own = &self.config.facts.node_id;
        let mut all = std::collections::BTreeMap::<String, Vec<String>>::new();
        let info = self.autonomy.site().info();
        for member in &info.members {
            all.insert(member.node_id.clone(), member.addresses.clone());
        }
        for (id, node) in self.autonomy.site().nodes() {
            let addresses = all.entry(id.to_owned()).or_default();
            for address in &node.record.addresses {
                if !addresses.contains(address) {
                    addresses.push(address.clone());
                }
            }
        }
        all.remove(own);
        all.into_iter().collect()
    }

    /// The site as this node knows it, for people. `why` is why it is in its mode.
    #[must_use]
    pub fn view(&self, why: &str, now: Now) -> SiteView {
        let since = self.clock.since(now);
        let status = self.autonomy.status(since);
        let site = self.autonomy.site();
        let membership = self.autonomy.membership();
        let members = status.members.into_iter().map(|member| {
            let own = member.node == self.config.facts.node_id;
            let entry = site.node(&member.node);
            MemberView {
                state: match membership.state(&member.node) {
                    _ if own => MemberState::Alive,
                    _ if site.is_revoked(&member.node) => MemberState::Revoked,
                    Some((State::Alive, _)) => MemberState::Alive,
                    Some((State::Suspect, _)) => MemberState::Suspect,
                    Some((State::Down, _)) => MemberState::Dead,
                    None => MemberState::Unknown,
                },
                heard: if own {
                    Some(Duration::ZERO)
                } else {
                    entry.map(|entry| since.saturating_sub(entry.at))
                },
                record: entry.map(|entry| entry.record.clone()),
                id: member.node,
            }
        });
        let problems = [
            self.store.failure().map(|why| format!("store: {why}")),
            (!self.runtime_problem.is_empty())
                .then(|| format!("container runtime: {}", self.runtime_problem)),
        ];
        SiteView {
            node: self.config.facts.node_id.clone(),
            site: status.site,
            mode: status.mode,
            mode_for: since.saturating_sub(status.mode_since),
            why: why.to_owned(),
            policy: self.policy_hash().to_owned(),
            untaken: status.untaken,
            members: members.collect(),
            records: site
                .replicas()
                .map(|(_, entry)| entry.record.clone())
                .collect(),
            reports: self.all_reports().into_values().collect(),
            problems: problems.into_iter().flatten().collect(),
        }
    }
}
