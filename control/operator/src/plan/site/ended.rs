//! Jobs' replicas that ended while their node was out of reach.

use std::sync::Arc;

use hyperion_api::conditions;
use hyperion_api::placement::{HyperionPlacementStatus, PlacementPhase};
use hyperion_proto::agent_v1::ReplicaPhase;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::index::{Claim, Leaving, PlacementEntry, Stage, Template, WorkloadEntry};
use crate::plan::{Action, Pass};

impl Pass<'_> {
    /// A job's replica ended there.
    pub(super) fn ended_there(
        &mut self,
        workload: &WorkloadEntry,
        template: &Template,
        claim: &Claim,
        held: Option<PlacementEntry>,
    ) {
        let (record, theirs) = (&claim.record, claim.generation());
        let job = workload.is_job();
        let ended = held.as_ref().is_some_and(PlacementEntry::ended);
        let succeeded = claim.wire.outcome() == ReplicaPhase::Succeeded;
        if !job || ended || record.node.is_empty() || record.key.index >= workload.replicas() {
            self.nothing_follows(claim);
            return;
        }
        let ours = held.as_ref().map_or(0, |h| h.spec.generation);
        let replica = record.key.index;
        if let Some(held) = held.clone().filter(|_| theirs < ours) {
            if !succeeded {
                // The control plane is at another try already.
                self.nothing_follows(claim);
                return;
            }
            self.note_decided(workload, claim, Some(&held));
            self.end_elsewhere(held, &record.node);
        } else {
            let node = self.index.fleet.node(&record.node).cloned();
            let Some(node) = node else {
                self.nothing_follows(claim);
                return;
            };
            let spec = self.site_spec(workload, template, claim, held.as_ref(), &node, theirs);
            self.note_decided(workload, claim, held.as_ref());
            self.outcome(replica, succeeded, 0);
            if let Some(old) = held.as_ref().filter(|h| h.spec.node != spec.node) {
                self.index.leave(Leaving::of(old, None));
            }
            let same = held
                .as_ref()
                .is_some_and(|h| h.spec.generation == theirs && h.spec.node == spec.node);
            let resources = template.request.resources;
            let mut entry = match held.filter(|_| same) {
                // Stored already; only how it ended is new.
                Some(held) => held,
                None => PlacementEntry::decided(record.key.clone(), spec, resources),
            };
            let reason = if succeeded { "Completed" } else { "Error" };
            entry.report = None;
            entry.status = self.end(theirs, &record.node, succeeded, reason);
            if !same {
                entry.site_pod = claim.wire.pod.clone().map(Arc::new);
                self.store(workload, entry.clone());
            }
            self.write_ended(entry);
        }
        self.index.claims.verdicts.adopted += 1;
        self.index
            .set_stage(&record.key, Stage::Storing(theirs.max(ours)));
    }

    /// Jobs' replicas that were placed again, and had ended well on a node that was out of reach.
    pub(in crate::plan) fn late_ends(&mut self) {
        let placements = self.index.placements.get(&self.name).into_iter().flatten();
        let ended = placements
            .filter(|(_, p)| p.ended_on.is_some() && !p.ended() && !p.deleting)
            .map(|(_, p)| p.clone());
        for entry in ended.collect::<Vec<_>>() {
            if let Some(node) = entry.ended_on.clone() {
                self.end_elsewhere(entry, &node);
            }
        }
    }

    /// The replica has ended well on `node`: ours stops, and is not begun again.
    pub(super) fn end_elsewhere(&mut self, mut held: PlacementEntry, node: &str) {
        let generation = held.spec.generation;
        self.out.actions.push(Action::Stop {
            node: held.spec.node.clone(),
            key: held.key.clone(),
            generation,
        });
        held.report = None;
        held.stopping = None;
        held.status = self.end(generation, node, true, conditions::REASON_ENDED_ELSEWHERE);
        self.write_ended(held);
    }

    pub(super) fn end(
        &self,
        generation: i64,
        node: &str,
        succeeded: bool,
        reason: &str,
    ) -> HyperionPlacementStatus {
        HyperionPlacementStatus {
            phase: if succeeded {
                PlacementPhase::Succeeded
            } else {
                PlacementPhase::Failed
            },
            since: Some(Time(self.clock)),
            reason: reason.to_owned(),
            message: format!("it ended on node {node} while that was out of reach"),
            observed_generation: generation,
            ..HyperionPlacementStatus::default()
        }
    }

    pub(super) fn write_ended(&mut self, entry: PlacementEntry) {
        self.out.actions.push(Action::PlacementStatus {
            workload: self.name.clone(),
            replica: entry.key.index,
            status: Box::new(entry.status.clone()),
        });
        let node = entry.spec.node.clone();
        self.spread = None;
        self.index.put(entry);
        self.index.room_changed(&node);
    }
}
