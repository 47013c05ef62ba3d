//! What the site decided becomes the placement, or the control plane's stays.

use std::sync::Arc;
use std::time::Duration;

use hyperion_api::agent_pod;
use hyperion_api::placement::{Explanation, GpuAssignment, HyperionPlacementSpec};
use hyperion_placement::features;
use hyperion_placement::filter::Candidate;
use hyperion_placement::model::Node;
use hyperion_proto::agent_v1::PodSpec;

use super::RETURN;
use super::judge::Ours;
use super::words::explanation;
use crate::index::{Claim, HANDOVER, Leaving, PlacementEntry, Stage, Template, WorkloadEntry};
use crate::plan::place::{DECIDED_BY, object, region_of};
use crate::plan::status::round;
use crate::plan::{Action, Pass};

/// How long both copies go on after a partition, where the one that stays is not ready yet: nothing
/// presses.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

impl Pass<'_> {
    /// Makes the site's decision the placement. Its node need not be told anything new, unless the
    /// control plane has given out a higher generation meanwhile.
    pub(super) fn adopt(
        &mut self,
        workload: &WorkloadEntry,
        template: &Template,
        claim: &Claim,
        held: Option<PlacementEntry>,
        generation: i64,
    ) {
        let record = &claim.record;
        let node = self.index.fleet.node(&record.node).cloned();
        if node.is_none() && self.index.nodes.contains_key(&record.node) {
            // Enrolled, and what it has is not known before it is back. It may run the replica.
            let until = claim.since + RETURN;
            if self.now < until || workload.object.spec.policy.exclusive {
                let later = self.now + RETURN;
                self.wake_at(if self.now < until { until } else { later });
                let (node, site) = (&record.node, &claim.site);
                let why =
                    format!("site {site} has placed it on node {node}, which is not back yet");
                self.open.insert(record.key.index, why);
                return;
            }
        }
        let (Some(node), Some(pod)) = (node, claim.wire.pod.clone()) else {
            let why = format!("node {} is not known any more", record.node);
            self.overrule(Some(workload), claim, &why);
            return;
        };
        self.index.vouched(&record.node, self.now);
        let spec = self.site_spec(workload, template, claim, held.as_ref(), &node, generation);
        let resources = record
            .intent
            .as_ref()
            .map_or(template.request.resources, |i| i.wants.resources);
        let moved = held.as_ref().filter(|h| h.spec.node != spec.node);
        if let Some(old) = moved {
            let until = (self.ours(claim, old) == Ours::Healthy && !workload.runs_alone())
                .then(|| self.now + PATIENCE);
            self.index.leave(Leaving::of(old, until));
        }
        self.outcome(record.key.index, false, 0);
        self.spend(record.key.index);
        let mut entry = PlacementEntry::decided(record.key.clone(), spec, resources);
        entry.site_pod = Some(Arc::new(pod));
        if generation == claim.generation() {
            entry.report = self.index.take_stray(&record.node, &record.key);
            entry.report.take_if(|r| r.generation != record.generation);
        }
        entry.status.since = held.as_ref().and_then(|h| h.status.since.clone());
        self.note_decided(workload, claim, held.as_ref());
        self.store(workload, entry);
        self.index.claims.verdicts.adopted += 1;
        self.index
            .set_stage(&record.key, Stage::Storing(generation));
    }

    /// Notes a placement in the index and has it stored, with the old copies that it names.
    pub(super) fn store(&mut self, workload: &WorkloadEntry, mut entry: PlacementEntry) {
        let at = (self.name.clone(), entry.key.index);
        let leaving = self.index.leaving_annotation(&at, &entry.spec.node);
        entry.names_leaving = leaving.is_some();
        let stored = object(&entry, workload.object_uid(), leaving);
        self.out.actions.push(Action::Store(Box::new(stored)));
        self.spread = None;
        self.index.put(entry);
    }

    pub(super) fn site_spec(
        &self,
        workload: &WorkloadEntry,
        template: &Template,
        claim: &Claim,
        held: Option<&PlacementEntry>,
        node: &Node,
        generation: i64,
    ) -> HyperionPlacementSpec {
        let (record, at) = (&claim.record, &node.location);
        let pod = claim.wire.pod.clone().unwrap_or_default();
        let gpus: Vec<GpuAssignment> = gpus_of(&pod);
        let current = agent_pod::pod_spec(&workload.object.spec, &gpus).is_ok_and(|p| p == pod);
        let before = held.map(|h| &h.spec.template_hash);
        let template_hash = match before.filter(|hash| **hash != template.hash) {
            _ if current => template.hash.clone(),
            Some(before) => before.clone(),
            None => "site".to_owned(),
        };
        let candidate = Candidate::from(node);
        let features = features::encode(self.index.fleet.latency(), &template.request, &candidate);
        let by = if record.decider.is_empty() {
            DECIDED_BY.to_owned()
        } else {
            record.decider.clone()
        };
        HyperionPlacementSpec {
            workload: self.name.name.clone(),
            workload_uid: workload.uid().to_owned(),
            replica: i32::try_from(record.key.index).unwrap_or(i32::MAX),
            node: node.id.clone(),
            provider: at.provider.into(),
            region: region_of(at),
            tier: at.tier.into(),
            capacity_type: node.capacity_type.into(),
            generation,
            decided_by: by,
            template_hash,
            priority: self.index.known_rank(&self.name),
            gpus,
            hourly_cost: round(features.hourly_cost.unwrap_or(0.0)),
            launch: Some(self.launch(template, node)),
            p99_latency_ms: features.p99_ms.map(round),
            explanation: claim
                .wire
                .explanation
                .as_ref()
                .map_or_else(Explanation::default, explanation),
        }
    }

    /// The control plane's copy stays; the site's goes on until that one is ready.
    pub(super) fn keep_ours(
        &mut self,
        workload: &WorkloadEntry,
        template: &Template,
        claim: &Claim,
        held: PlacementEntry,
    ) {
        let record = &claim.record;
        let ready = self.ours(claim, &held) == Ours::Healthy;
        // Of two of one generation, a site takes its own for the newer one; and an old copy that goes
        // on has to be older than the one that it waits for.
        let renews = claim.generation() > held.spec.generation
            || (claim.generation() == held.spec.generation
                && (!ready || self.site_of(&held.spec.node) == claim.site));
        let pod = claim.wire.pod.clone().unwrap_or_default();
        let serves = !workload.runs_alone() && (!ready || renews);
        let until = serves.then(|| self.now + if ready { HANDOVER } else { PATIENCE });
        let node = held.spec.node.clone();
        self.say_overruled(
            Some(workload),
            claim,
            &format!("the control plane has it on node {node}"),
        );
        self.index.leave(Leaving {
            node: record.node.clone(),
            key: record.key.clone(),
            generation: claim.generation(),
            resources: template.request.resources,
            gpus: gpus_of(&pod),
            stopping: None,
            until,
        });
        if until.is_some() {
            // So that its list has it until then.
            self.index
                .told(&record.node, &record.key, claim.generation());
            self.out.actions.push(Action::Start {
                node: record.node.clone(),
                key: record.key.clone(),
                generation: claim.generation(),
                pod: Box::new(pod),
                intent: template.intent.clone(),
            });
        }
        if renews {
            self.renew(held, claim);
            return;
        }
        let generation = held.spec.generation;
        if until.is_some() {
            self.store(workload, held);
        }
        self.index
            .set_stage(&record.key, Stage::Storing(generation));
    }
}

fn gpus_of(pod: &PodSpec) -> Vec<GpuAssignment> {
    let share = |gpu: &hyperion_proto::agent_v1::GpuShare| GpuAssignment {
        uuid: gpu.uuid.clone(),
        millis: i32::try_from(gpu.millis).unwrap_or(i32::MAX),
    };
    pod.gpus.iter().map(share).collect()
}
