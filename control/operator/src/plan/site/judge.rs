//! Of a copy of the site and one of the control plane: which stays.

use hyperion_api::workload::Reconcile;
use hyperion_proto::agent_v1::ReplicaPhase;
use std::time::Instant;

use super::RETURN;
use crate::index::{Claim, PlacementEntry, WorkloadEntry};
use crate::plan::Pass;

/// How the copy of the control plane does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ours {
    Healthy,
    /// On its way on a node in reach.
    Coming,
    No,
}

/// How the copy of the site does, by the word of its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Theirs {
    Healthy,
    Unhealthy,
    /// Its node may still be on its way back.
    Unknown(Instant),
}

/// What is done about a copy of the site and one of the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The site's stays.
    Site,
    /// The control plane's stays.
    Ours,
    /// Nothing yet.
    Wait(Instant),
}

impl Pass<'_> {
    pub(super) fn judge(
        &mut self,
        workload: &WorkloadEntry,
        claim: &Claim,
        held: &PlacementEntry,
    ) -> Verdict {
        let disconnect = workload.object.spec.policy.disconnect.as_ref();
        let reconcile = disconnect.and_then(|d| d.reconcile).unwrap_or_default();
        let newer = claim.generation() > held.spec.generation;
        match (reconcile, self.ours(claim, held), self.theirs(claim)) {
            // Nothing of ours runs.
            (_, Ours::No, _) if newer => Verdict::Site,
            (_, _, Theirs::Unknown(until)) => Verdict::Wait(until),
            (Reconcile::Site, _, Theirs::Healthy) => Verdict::Site,
            (Reconcile::ControlPlane, Ours::No, Theirs::Healthy) => Verdict::Site,
            (Reconcile::ControlPlane, _, _) | (_, Ours::Healthy, _) => Verdict::Ours,
            (Reconcile::Site, _, Theirs::Unhealthy) if newer => Verdict::Site,
            (Reconcile::Site, _, Theirs::Unhealthy) => Verdict::Ours,
        }
    }

    pub(super) fn site_of(&self, node: &str) -> &str {
        let spec = self.index.nodes.get(node).and_then(|n| n.spec.as_ref());
        spec.map_or("", |s| &s.site)
    }

    pub(super) fn ours(&self, claim: &Claim, held: &PlacementEntry) -> Ours {
        if self.away(&held.spec.node) || held.stopping.is_some() {
            return Ours::No;
        }
        let newer = claim.generation() > held.spec.generation;
        if newer && claim.askers().any(|asker| asker == held.spec.node) {
            // The node itself says that the replica is another's now.
            return Ours::No;
        }
        if held.ready() {
            return Ours::Healthy;
        }
        let told = self
            .index
            .held(&held.spec.node, &held.key, held.spec.generation);
        // What is not stored yet is about to be told.
        let coming = told || held.stored < held.spec.generation;
        if coming && held.failing_since.is_none() {
            Ours::Coming
        } else {
            Ours::No
        }
    }

    fn theirs(&self, claim: &Claim) -> Theirs {
        let record = &claim.record;
        let Some(node) = self.index.nodes.get(&record.node) else {
            return Theirs::Unhealthy;
        };
        if !node.connected {
            let until = claim.since + RETURN;
            return if self.now < until {
                Theirs::Unknown(until)
            } else {
                Theirs::Unhealthy
            };
        }
        let report = node.stray.get(&record.key);
        let well = |r: &&hyperion_proto::domain::Report| {
            r.generation == record.generation && r.ready && r.phase == ReplicaPhase::Running
        };
        if report.filter(well).is_some() {
            Theirs::Healthy
        } else {
            Theirs::Unhealthy
        }
    }
}
