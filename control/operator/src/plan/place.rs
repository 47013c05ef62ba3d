//! Where a replica goes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hyperion_api::placement::{
    GpuAssignment, HyperionPlacement, HyperionPlacementSpec, PlacementPhase,
};
use hyperion_api::{LABEL_NODE, LABEL_WORKLOAD};
use hyperion_placement::model::{Location, Node, Provider, Request};
use hyperion_placement::{CandidateRef, Choice, Explanation};
use hyperion_proto::domain::ReplicaKey;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use tracing::error;

use super::status::round;
use super::{Action, DECISIONS, Pass, why};
use crate::decider::{Chance, Decider, Verdict, View, part};
use crate::index::{LEAVING, Name, PlacementEntry, Template, WorkloadEntry};

/// Written into placements that this program decides.
pub const DECIDED_BY: &str = "control-plane";
/// How long a node is avoided for a replica that failed there.
pub const AVOID: Duration = Duration::from_secs(600);

/// A choice and why.
pub(super) struct Decided {
    pub choice: Choice,
    pub node: Node,
    pub verdict: Verdict,
}

impl Pass<'_> {
    /// Decides for one replica on the whole fleet. None when this pass has decided enough.
    pub(super) fn decide(
        &mut self,
        template: &Template,
        replica: u32,
    ) -> Option<Result<Decided, Explanation>> {
        let request = self.request(template, replica);
        if self.like_others(&request, replica)
            && let Some(explanation) = &self.hopeless
        {
            return Some(Err(explanation.clone()));
        }
        if self.out.decisions >= DECISIONS {
            self.out.more = true;
            return None;
        }
        Some(self.decide_for(request, replica))
    }

    /// True where this replica asks for what each other asks for that has no place yet: with a quota,
    /// one that has a place may have what it has.
    fn like_others(&self, request: &Request, replica: u32) -> bool {
        let has_place = || self.index.placement(&self.name, replica).is_some();
        // All of them leave alone what is kept for others.
        let alike = request
            .avoid
            .keys()
            .all(|node| self.kept.contains_key(node));
        alike && !(self.index.has_quota(&self.name.namespace) && has_place())
    }

    /// Decides on a request of [`Self::request`], however many this pass has decided.
    #[allow(
        clippy::result_large_err,
        reason = "both are kept by value, and neither is rare"
    )]
    pub(super) fn decide_for(
        &mut self,
        mut request: Request,
        replica: u32,
    ) -> Result<Decided, Explanation> {
        if self.no_class.is_some() {
            return Err(Explanation::default());
        }
        let like_others = self.like_others(&request, replica);
        if !self.within_quota(&mut request, replica) {
            let explanation = Explanation::default();
            if like_others {
                self.hopeless = Some(explanation.clone());
            }
            return Err(explanation);
        }
        self.out.decisions += 1;
        let view = View::Fleet(&self.index.fleet);
        let verdict = self.decider.decide(view, &request, Chance::Sometimes);
        let decided = checked(verdict, view, &request);
        let decided = match decided.map_err(|explanation| *explanation) {
            Err(explanation) => self.decide_on_cold(&request).ok_or(explanation),
            decided => decided,
        };
        if let (Err(explanation), true) = (&decided, like_others) {
            self.hopeless = Some(explanation.clone());
        }
        decided
    }

    /// Decides on one node only, as if the replica were not there yet.
    pub(super) fn decide_here(
        &mut self,
        template: &Template,
        entry: &PlacementEntry,
    ) -> Option<Decided> {
        let node = self.without(entry)?;
        let part = part(&self.index.fleet, vec![node]);
        let mut request = self.request(template, entry.key.index);
        request.avoid.clear();
        request.current = Some(entry.spec.node.clone());
        decide_on(self.decider, View::Part(&part), &request).ok()
    }

    pub(super) fn request(&mut self, template: &Template, replica: u32) -> Request {
        Request {
            replica: format!("{}/{replica}", self.name),
            siblings: self.siblings(replica),
            avoid: self.avoid(replica),
            ..template.request.clone()
        }
    }

    /// Nodes with other replicas of the workload. They are counted once per pass, and not for each
    /// of ten thousand replicas.
    fn siblings(&mut self, replica: u32) -> BTreeSet<String> {
        let placements = self.index.placements.get(&self.name);
        let spread = self.spread.get_or_insert_with(|| {
            let mut spread = BTreeMap::new();
            let all = placements.into_iter().flatten().map(|(_, p)| p);
            for placement in all.filter(|p| p.takes_room()) {
                *spread.entry(placement.spec.node.clone()).or_insert(0) += 1;
            }
            spread
        });
        let own = placements
            .and_then(|p| p.get(&replica))
            .filter(|p| p.takes_room())
            .map(|p| &p.spec.node);
        spread
            .iter()
            .filter(|(node, count)| **count > usize::from(own == Some(*node)))
            .map(|(node, _)| node.clone())
            .collect()
    }

    fn avoid(&self, replica: u32) -> BTreeMap<String, String> {
        let failures = self.index.failures.get(&(self.name.clone(), replica));
        let mut avoid: BTreeMap<String, String> = failures
            .into_iter()
            .flatten()
            .filter(|(_, f)| self.now.duration_since(f.at) < AVOID)
            .map(|(node, f)| (node.clone(), f.reason.clone()))
            .collect();
        avoid.extend(self.kept.clone());
        avoid
    }

    /// A placement's node as if the replica were not on it, reachable and taking replicas; none
    /// where the node is not known.
    pub(super) fn without(&self, entry: &PlacementEntry) -> Option<Node> {
        let mut node = self.index.fleet.node(&entry.spec.node)?.clone();
        (node.ready, node.schedulable) = (true, true);
        if entry.takes_room() {
            node.free.cpu_millis += entry.resources.cpu_millis;
            node.free.memory_bytes += entry.resources.memory_bytes;
            for share in &entry.spec.gpus {
                if let Some(gpu) = node.gpus.iter_mut().find(|g| g.uuid == share.uuid) {
                    gpu.free_millis += u32::try_from(share.millis).unwrap_or(0);
                }
            }
        }
        Some(node)
    }

    /// Notes a decision in the index and has it stored.
    pub(super) fn commit(
        &mut self,
        workload: &WorkloadEntry,
        template: &Template,
        replica: u32,
        decided: &Decided,
    ) {
        let held = self.index.placement(&self.name, replica);
        let highest = self
            .index
            .workloads
            .get(&self.name)
            .map_or(0, |w| w.highest);
        let generation = held.map_or(0, |h| h.spec.generation).max(highest) + 1;
        let mut spec = placement_spec(&self.name, workload, template, replica, generation, decided);
        spec.launch = Some(self.launch(template, &decided.node));
        spec.priority = self.index.known_rank(&self.name);
        let held = held.cloned();
        self.spend(replica);
        self.remember(template, replica, generation, decided);
        let held = held.as_ref();
        let key = ReplicaKey {
            namespace: self.name.namespace.clone(),
            workload: self.name.name.clone(),
            uid: workload.uid().to_owned(),
            index: replica,
        };
        let leaving = self
            .index
            .leaving_annotation(&(self.name.clone(), replica), &spec.node);
        let mut entry = PlacementEntry::decided(key, spec, template.request.resources);
        entry.names_leaving = leaving.is_some();
        if let Some(held) = held {
            (entry.retries, entry.status.since) = (held.retries, held.status.since.clone());
            entry.status = held.status.clone();
            entry.status.ready = false;
            if held.ended() {
                // It takes room from now on, also for the decisions of this pass.
                entry.status.phase = PlacementPhase::Pending;
            }
        }
        if let Some(spread) = &mut self.spread {
            if let Some(count) = held
                .filter(|h| h.takes_room())
                .and_then(|h| spread.get_mut(&h.spec.node))
            {
                *count = count.saturating_sub(1);
            }
            if entry.takes_room() {
                *spread.entry(entry.spec.node.clone()).or_insert(0) += 1;
            }
        }
        self.out.actions.push(Action::Store(Box::new(object(
            &entry,
            workload.object_uid(),
            leaving,
        ))));
        self.index.put(entry);
        self.index.has_its_way(&(self.name.clone(), replica));
    }

    /// Has a placement stored again once no old copy goes on any more: it must not name them to the
    /// next control plane.
    pub(super) fn end_handover(&mut self, replica: u32) {
        if self.index.hands_over(&(self.name.clone(), replica)) {
            return;
        }
        let Some(workload) = self.index.workloads.get(&self.name) else {
            return;
        };
        let owner = workload.object_uid().to_owned();
        let Some(entry) = self.index.entry_mut(&self.name, replica) else {
            return;
        };
        // Of one that is about to be deleted nothing is stored.
        if entry.names_leaving && !entry.deleting && entry.stopping.is_none() {
            entry.names_leaving = false;
            let object = object(entry, &owner, None);
            self.out.actions.push(Action::Store(Box::new(object)));
        }
    }
}

/// Decides, by what is known to be best.
pub(super) fn decide_on(
    decider: &mut Decider,
    view: View<'_>,
    request: &Request,
) -> Result<Decided, Box<Explanation>> {
    let verdict = decider.decide(view, request, Chance::Never);
    checked(verdict, view, request)
}

/// The check has the last word, whoever decided.
fn checked(
    verdict: Verdict,
    view: View<'_>,
    request: &Request,
) -> Result<Decided, Box<Explanation>> {
    let Some(choice) = verdict.decision.choice.clone() else {
        return Err(Box::new(verdict.decision.explanation));
    };
    if let Err(violations) = view.check(request, &choice) {
        let found: Vec<String> = violations.iter().map(ToString::to_string).collect();
        error!(replica = request.replica, ?choice, violations = %found.join("; "), "decision dropped");
        return Err(Box::new(verdict.decision.explanation));
    }
    let node = match (&choice.candidate, view) {
        (CandidateRef::Node(id), View::Fleet(fleet)) => fleet.node(id).cloned(),
        (CandidateRef::Node(id), View::Part(part)) => part.node(id).cloned(),
        // There are no offers in the fleet yet.
        (CandidateRef::Offer(_), _) => None,
    };
    match node {
        Some(node) => Ok(Decided {
            choice,
            node,
            verdict,
        }),
        None => Err(Box::new(verdict.decision.explanation)),
    }
}

fn placement_spec(
    name: &Name,
    workload: &WorkloadEntry,
    template: &Template,
    replica: u32,
    generation: i64,
    decided: &Decided,
) -> HyperionPlacementSpec {
    let Decided {
        choice,
        node,
        verdict,
    } = decided;
    let at = &node.location;
    HyperionPlacementSpec {
        workload: name.name.clone(),
        workload_uid: workload.uid().to_owned(),
        replica: i32::try_from(replica).unwrap_or(i32::MAX),
        node: node.id.clone(),
        provider: at.provider.into(),
        region: region_of(at),
        tier: at.tier.into(),
        capacity_type: node.capacity_type.into(),
        generation,
        decided_by: DECIDED_BY.to_owned(),
        template_hash: template.hash.clone(),
        priority: None,
        gpus: choice
            .gpus
            .iter()
            .map(|(uuid, millis)| GpuAssignment {
                uuid: uuid.clone(),
                millis: i32::try_from(*millis).unwrap_or(i32::MAX),
            })
            .collect(),
        hourly_cost: round(choice.hourly_cost),
        launch: None,
        p99_latency_ms: choice.p99_latency_ms.map(round),
        explanation: why::explanation(verdict),
    }
}

/// The object of a placement. `owner` is the uid of the workload's object.
pub(super) fn object(
    entry: &PlacementEntry,
    owner: &str,
    leaving: Option<String>,
) -> HyperionPlacement {
    let mut object = HyperionPlacement::new(&entry.object_name(), entry.spec.clone());
    object.metadata.namespace = Some(entry.key.namespace.clone());
    object.metadata.labels = Some(BTreeMap::from([
        (LABEL_WORKLOAD.to_owned(), label(&entry.key.workload)),
        (LABEL_NODE.to_owned(), label(&entry.spec.node)),
    ]));
    object.metadata.annotations = leaving.map(|text| BTreeMap::from([(LEAVING.to_owned(), text)]));
    object.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "hyperion.io/v1alpha1".to_owned(),
        kind: "HyperionWorkload".to_owned(),
        name: entry.key.workload.clone(),
        uid: owner.to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }]);
    object
}

/// Label values hold at most 63 bytes; names may be longer. Names are ASCII.
fn label(value: &str) -> String {
    value
        .get(..63)
        .unwrap_or(value)
        .trim_end_matches(['-', '.'])
        .to_owned()
}

/// Region of a placement as people read it: of an edge node its site.
pub(super) fn region_of(at: &Location) -> String {
    if at.provider == Provider::Edge {
        at.site.clone()
    } else {
        at.region.clone()
    }
}
