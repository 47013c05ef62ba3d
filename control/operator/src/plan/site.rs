//! Decisions that sites made while they were cut off. They are adopted as they are, so that nothing
//! restarts; where the control plane has decided otherwise meanwhile, the copy that does well stays.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyperion_api::conditions as words;
use hyperion_api::placement::{
    Explanation, GpuAssignment, HyperionPlacementSpec, HyperionPlacementStatus, PlacementPhase,
    Ranked, RunnerUp, ScoreTerm,
};
use hyperion_api::workload::{HyperionWorkload, Reconcile, Rejection, WorkloadType};
use hyperion_api::{SITE_UID, agent_pod};
use hyperion_placement::features;
use hyperion_placement::filter::Candidate;
use hyperion_placement::model::Node;
use hyperion_proto::agent_v1::{PodSpec, RecordState, ReplicaPhase, SiteExplanation};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::place::{DECIDED_BY, object, region_of};
use super::status::round;
use super::{Action, Pass};
use crate::index::{
    Claim, HANDOVER, Leaving, PlacementEntry, Stage, Template, WorkloadEntry, is_site_uid,
};

/// How long a node may take to be back after another of its site: agents wait up to 15 s between
/// attempts.
pub const RETURN: Duration = Duration::from_secs(20);
/// How long both copies go on after a partition, where the one that stays is not ready yet: nothing
/// presses.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// Time within which all nodes of a site have heard that one of them has a link, or what one of them
/// has decided; agents compare what they know every 2 s.
const SITE_HEARS: Duration = Duration::from_secs(10);

/// How the copy of the control plane does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ours {
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
enum Verdict {
    /// The site's stays.
    Site,
    /// The control plane's stays.
    Ours,
    /// Nothing yet.
    Wait(Instant),
}

impl Pass<'_> {
    /// Looks at what sites decided about this workload's replicas.
    pub(super) fn claims(&mut self) {
        let claims = self.index.claims_of(&self.name);
        if claims.is_empty() {
            return;
        }
        let workload = self.index.workloads.get(&self.name).cloned();
        let broken = self.index.broken.contains_key(&self.name);
        for claim in claims {
            let key = &claim.record.key;
            match (&workload, claim.stage) {
                (_, Stage::Storing(_)) | (None, Stage::Making) => {}
                // What runs goes on until the object can be read.
                _ if broken => self.index.kept(key),
                (None, _) => self.unknown(&claim),
                (Some(w), _) if w.uid() != key.uid => self.namesake(w, &claim),
                (Some(w), _) if w.deleting() => {
                    self.overrule(Some(w), &claim, "the workload is being deleted");
                }
                (Some(w), _) => match w.template.clone() {
                    Ok(template) => self.claim(w, &template, &claim),
                    Err(_) => self.index.kept(key),
                },
            }
        }
    }

    /// Answers those whose outcome the API holds and nodes were told of.
    pub(super) fn settle_claims(&mut self) {
        for claim in self.index.claims_of(&self.name) {
            let Stage::Storing(generation) = claim.stage else {
                continue;
            };
            let key = &claim.record.key;
            let held = self.index.placement(&self.name, key.index);
            let settled = held.filter(|h| h.key == *key).is_none_or(|h| {
                let at = h.spec.generation;
                let told = h.told >= at || h.ended() || h.stopping.is_some();
                at >= generation && h.stored >= at && told && !h.deleting
            });
            if settled {
                self.index.taken(key);
            }
        }
    }

    /// There is no such workload: it was deleted meanwhile, or applied at the site.
    fn unknown(&mut self, claim: &Claim) {
        let manifest = claim.record.intent.as_ref().map(|i| i.manifest.as_str());
        let applied = manifest.is_some_and(|m| !m.is_empty());
        if claim.record.state == RecordState::Removed {
            self.index.claims.verdicts.known += 1;
            self.index.taken(&claim.record.key);
        } else if applied {
            self.make(claim, manifest.unwrap_or_default());
        } else {
            self.overrule(None, claim, "the workload was deleted");
        }
    }

    /// Makes a workload of what was applied at the site. One object, whatever the replicas.
    fn make(&mut self, claim: &Claim, manifest: &str) {
        let key = &claim.record.key;
        match read_manifest(manifest, claim) {
            Ok(workload) => {
                let mut others = self.index.claims_of(&self.name).into_iter();
                if !others.any(|c| c.stage == Stage::Making) {
                    self.out.actions.push(Action::Make(Box::new(workload)));
                }
                self.index.set_stage(key, Stage::Making);
            }
            Err(why) => drop(self.index.cant_take(key, &why)),
        }
    }

    /// Another workload of the name.
    fn namesake(&mut self, workload: &WorkloadEntry, claim: &Claim) {
        let key = &claim.record.key;
        let intent = claim.record.intent.as_ref();
        if claim.record.state == RecordState::Removed {
            self.index.taken(key);
        } else if intent.is_some_and(|i| !i.manifest.is_empty()) {
            let why = "there is another workload of this name; delete or rename one of them";
            if self.index.cant_take(key, why) {
                let site = &claim.site;
                let note = format!("site {site} runs another workload of this name: {why}");
                self.event(workload, true, words::EVENT_NOT_TAKEN_OVER, note);
            }
        } else {
            self.overrule(None, claim, "the workload was deleted and made again");
        }
    }

    fn claim(&mut self, workload: &WorkloadEntry, template: &Template, claim: &Claim) {
        let key = &claim.record.key;
        let held = self.index.placement(&self.name, key.index).cloned();
        if held.as_ref().is_some_and(|h| h.deleting) {
            // Looked at when it is gone.
            return;
        }
        let held = held.filter(|h| h.key == *key);
        let wanted = key.index < workload.replicas();
        match claim.record.state {
            RecordState::Placed if !wanted && self.unseen(workload, &claim.record.node) => {
                // Looked at when that node is back, or lost.
            }
            RecordState::Placed | RecordState::Pending if !wanted => {
                let why = format!("the workload has {} replicas", workload.replicas());
                self.overrule(Some(workload), claim, &why);
            }
            RecordState::Placed => self.placed_there(workload, template, claim, held),
            RecordState::Pending => self.pending_there(workload, claim, held),
            RecordState::Ended => self.ended_there(workload, template, claim, held),
            RecordState::Removed => self.removed_there(workload, claim, held),
            RecordState::Unspecified => self.nothing_follows(claim),
        }
    }

    /// The placement that the site says is void: one of its own nodes, and not of a later decision.
    fn of_site(&self, claim: &Claim, held: Option<PlacementEntry>) -> Option<PlacementEntry> {
        held.filter(|h| {
            h.spec.generation <= claim.generation()
                && !h.ended()
                && self.site_of(&h.spec.node) == claim.site
        })
    }

    /// A person took it away at the site.
    fn removed_there(
        &mut self,
        workload: &WorkloadEntry,
        claim: &Claim,
        held: Option<PlacementEntry>,
    ) {
        let Some(held) = self.of_site(claim, held) else {
            self.nothing_follows(claim);
            return;
        };
        let job = workload.object.spec.type_ == WorkloadType::Job;
        if job && claim.wire.outcome() == ReplicaPhase::Succeeded {
            // It had ended well before: that stands.
            let (node, generation) = (held.spec.node.clone(), held.spec.generation);
            let key = &claim.record.key;
            self.index.remember_generation(key, claim.generation());
            self.end_elsewhere(held, &node);
            self.index.claims.verdicts.adopted += 1;
            self.index.set_stage(key, Stage::Storing(generation));
            return;
        }
        let why = "it was removed at the site, and the workload wants it";
        self.say_overruled(Some(workload), claim, why);
        self.renew(held, claim);
    }

    /// Nothing follows, beyond that later decisions are of a higher generation.
    fn nothing_follows(&mut self, claim: &Claim) {
        let key = &claim.record.key;
        self.index.claims.verdicts.known += 1;
        self.index.remember_generation(key, claim.generation());
        self.index.taken(key);
    }

    /// The site has it on a node.
    fn placed_there(
        &mut self,
        workload: &WorkloadEntry,
        template: &Template,
        claim: &Claim,
        held: Option<PlacementEntry>,
    ) {
        let (theirs, record) = (claim.generation(), &claim.record);
        let Some(held) = held else {
            let highest = self
                .index
                .workloads
                .get(&self.name)
                .map_or(0, |w| w.highest);
            let generation = if theirs > highest {
                theirs
            } else {
                highest + 1
            };
            self.adopt(workload, template, claim, None, generation);
            return;
        };
        let ours = held.spec.generation;
        if held.status.phase == PlacementPhase::Succeeded && held.ended() {
            self.overrule(Some(workload), claim, "the replica has ended");
            return;
        }
        if held.spec.node == record.node && theirs <= ours {
            // Stored before a restart, or by the word of another node.
            if let Some(entry) = self.index.entry_mut(&self.name, record.key.index)
                && theirs == ours
            {
                entry.site_pod = claim.wire.pod.clone().map(Arc::new);
            }
            self.index.claims.verdicts.known += 1;
            self.index.set_stage(&record.key, Stage::Storing(ours));
            return;
        }
        let by_site = held.spec.decided_by != DECIDED_BY;
        if record.decider.is_empty() && theirs <= ours
            || by_site && theirs < ours
            || by_site && theirs == ours && record.decider <= held.spec.decided_by
        {
            // Its own site, or an order of the control plane, has decided again since.
            self.nothing_follows(claim);
            return;
        }
        if held.spec.node == record.node {
            self.adopt(workload, template, claim, Some(held), theirs);
            return;
        }
        match self.judge(workload, claim, &held) {
            Verdict::Wait(until) => self.wake_at(until),
            Verdict::Site => {
                let generation = if theirs > ours { theirs } else { ours + 1 };
                self.adopt(workload, template, claim, Some(held), generation);
            }
            Verdict::Ours => self.keep_ours(workload, template, claim, held),
        }
    }

    fn judge(&mut self, workload: &WorkloadEntry, claim: &Claim, held: &PlacementEntry) -> Verdict {
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

    fn site_of(&self, node: &str) -> &str {
        let spec = self.index.nodes.get(node).and_then(|n| n.spec.as_ref());
        spec.map_or("", |s| &s.site)
    }

    fn ours(&self, claim: &Claim, held: &PlacementEntry) -> Ours {
        let node = self.index.nodes.get(&held.spec.node);
        if node.is_none_or(|n| !n.connected) || held.stopping.is_some() {
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

    /// Makes the site's decision the placement. Its node need not be told anything new, unless the
    /// control plane has given out a higher generation meanwhile.
    fn adopt(
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
            let until = (self.ours(claim, old) == Ours::Healthy && !alone(workload))
                .then(|| self.now + PATIENCE);
            self.index.leave(Leaving::of(old, until));
        }
        self.outcome(record.key.index, false, 0);
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
    fn store(&mut self, workload: &WorkloadEntry, mut entry: PlacementEntry) {
        let at = (self.name.clone(), entry.key.index);
        let leaving = self.index.leaving_annotation(&at, &entry.spec.node);
        entry.names_leaving = leaving.is_some();
        let stored = object(&entry, workload.object_uid(), leaving);
        self.out.actions.push(Action::Store(Box::new(stored)));
        self.spread = None;
        self.index.put(entry);
    }

    fn site_spec(
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
            gpus,
            hourly_cost: round(features.hourly_cost.unwrap_or(0.0)),
            p99_latency_ms: features.p99_ms.map(round),
            explanation: claim
                .wire
                .explanation
                .as_ref()
                .map_or_else(Explanation::default, explanation),
        }
    }

    /// The control plane's copy stays; the site's goes on until that one is ready.
    fn keep_ours(
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
        let serves = !alone(workload) && (!ready || renews);
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

    /// Gives a placement a generation above the site's, so that what the site knows of it does not
    /// count any more. Its node goes on with what it runs.
    fn renew(&mut self, held: PlacementEntry, claim: &Claim) {
        let generation = claim.generation().max(held.spec.generation) + 1;
        let Some(workload) = self.index.workloads.get(&self.name).cloned() else {
            return;
        };
        let mut entry = PlacementEntry { told: 0, ..held };
        entry.spec.generation = generation;
        entry.report = None;
        self.store(&workload, entry);
        self.index
            .set_stage(&claim.record.key, Stage::Storing(generation));
    }

    /// What has to be known before the control plane may place an exclusive replica that a site calls
    /// pending; none where it may.
    ///
    /// A majority of the site may place it, also one that is out of reach: it claims a replica first,
    /// and a claim has no place. So more than half of the site's nodes have to say so. Whichever
    /// majority there is later has one of those in it, which knows that the control plane has taken
    /// it. Those that were about to place it have heard of the link by then.
    fn may_be_placed_there(&mut self, claim: &Claim) -> Option<String> {
        let site = &claim.site;
        if site.is_empty() {
            return None;
        }
        let specs = self.index.nodes.values().filter_map(|n| n.spec.as_ref());
        let members = specs.filter(|s| !s.revoked && s.site == *site).count();
        if members <= 1 {
            return None;
        }
        let say = claim.askers().count();
        if say * 2 <= members {
            return Some(format!(
                "site {site} may place it: {say} of its {members} nodes have said that it has not"
            ));
        }
        let until = claim.since + SITE_HEARS;
        if self.now < until {
            self.wake_at(until);
            return Some(format!("site {site} may have placed it a moment ago"));
        }
        None
    }

    /// The site has no place for it.
    fn pending_there(
        &mut self,
        workload: &WorkloadEntry,
        claim: &Claim,
        held: Option<PlacementEntry>,
    ) {
        let key = &claim.record.key;
        let placed = held.is_some();
        let held = self.of_site(claim, held);
        if placed && held.is_none() {
            self.nothing_follows(claim);
            return;
        }
        let exclusive = workload.object.spec.policy.exclusive;
        if let Some(held) = &held {
            self.index.remember_generation(key, claim.generation());
            // It has found its place again since. Or it is exclusive, and nobody can tell whether a
            // node out of reach runs it: it waits for that node like any other.
            let own_word = claim.askers().any(|asker| asker == held.spec.node);
            let unsure = exclusive && self.away(&held.spec.node) && !own_word;
            if unsure || self.ours(claim, held) == Ours::Healthy {
                self.renew(held.clone(), claim);
                return;
            }
        }
        if exclusive && let Some(why) = self.may_be_placed_there(claim) {
            self.open.insert(key.index, why);
            return;
        }
        if held.is_none() {
            self.nothing_follows(claim);
            return;
        }
        let cause = cause(claim);
        let site = &claim.site;
        let note = format!("site {site} has no place for replica {}{cause}", key.index);
        self.site_event(workload, claim, words::EVENT_DECIDED_BY_SITE, note);
        self.index.claims.verdicts.adopted += 1;
        self.index
            .set_stage(key, Stage::Storing(claim.generation() + 1));
        self.retire(key.index);
    }

    /// A job's replica ended there.
    fn ended_there(
        &mut self,
        workload: &WorkloadEntry,
        template: &Template,
        claim: &Claim,
        held: Option<PlacementEntry>,
    ) {
        let (record, theirs) = (&claim.record, claim.generation());
        let job = workload.object.spec.type_ == WorkloadType::Job;
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
    pub(super) fn late_ends(&mut self) {
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
    fn end_elsewhere(&mut self, mut held: PlacementEntry, node: &str) {
        let generation = held.spec.generation;
        self.out.actions.push(Action::Stop {
            node: held.spec.node.clone(),
            key: held.key.clone(),
            generation,
        });
        held.report = None;
        held.stopping = None;
        held.status = self.end(generation, node, true, words::REASON_ENDED_ELSEWHERE);
        self.write_ended(held);
    }

    fn end(
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

    fn write_ended(&mut self, entry: PlacementEntry) {
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

    /// What the site decided does not hold: its copy stops.
    fn overrule(&mut self, workload: Option<&WorkloadEntry>, claim: &Claim, why: &str) {
        let record = &claim.record;
        self.say_overruled(workload, claim, why);
        if record.state == RecordState::Placed {
            self.out.actions.push(Action::Stop {
                node: record.node.clone(),
                key: record.key.clone(),
                generation: claim.generation(),
            });
        }
        let held = self.index.placement(&self.name, record.key.index).cloned();
        let held = held.filter(|h| {
            let stays = !h.deleting && !h.ended() && h.stopping.is_none();
            stays && h.key == record.key && h.spec.generation <= claim.generation()
        });
        match held {
            Some(held) if record.key.index < workload.map_or(0, WorkloadEntry::replicas) => {
                self.renew(held, claim);
            }
            _ => {
                self.index
                    .remember_generation(&record.key, claim.generation());
                self.index.taken(&record.key);
            }
        }
    }

    fn say_overruled(&mut self, workload: Option<&WorkloadEntry>, claim: &Claim, why: &str) {
        self.index.claims.verdicts.overruled += 1;
        let (record, site) = (&claim.record, &claim.site);
        let place = match record.node.as_str() {
            "" => String::new(),
            node => format!(" on node {node}"),
        };
        if let Some(workload) = workload {
            let note = format!(
                "what site {site} decided about replica {}{place} does not hold: {why}",
                record.key.index
            );
            self.event(workload, false, words::EVENT_SITE_OVERRULED, note);
        } else if let Some(node) = claim.askers().next() {
            let note = format!(
                "what site {site} decided about {}{place} does not hold: {why}",
                record.key
            );
            let node = node.to_owned();
            self.index
                .say_of_node(&node, words::EVENT_SITE_OVERRULED, note);
        }
    }

    /// Tells the story of a decision.
    fn note_decided(
        &mut self,
        workload: &WorkloadEntry,
        claim: &Claim,
        held: Option<&PlacementEntry>,
    ) {
        let record = &claim.record;
        let (node, replica) = (&record.node, record.key.index);
        let what = match record.state {
            RecordState::Ended => format!("replica {replica} ended on node {node}"),
            _ => match held.map(|h| &h.spec.node).filter(|old| *old != node) {
                Some(old) => format!("node {node} took over replica {replica} from node {old}"),
                None => format!("node {node} runs replica {replica}"),
            },
        };
        let when = told_at(claim.wire.unix_ms, self.clock).map_or_else(String::new, |at| {
            format!(" at {}", at.strftime("%Y-%m-%d %H:%M:%S UTC"))
        });
        let by = match record.decider.as_str() {
            by if by.is_empty() || by == node => String::new(),
            by => format!(", by decision of node {by}"),
        };
        let (site, cause) = (&claim.site, cause(claim));
        let note = format!("{what}{when}{by}, while site {site} was cut off{cause}");
        self.site_event(workload, claim, words::EVENT_DECIDED_BY_SITE, note);
    }

    /// An event of the time when the site decided, where it had a clock.
    fn site_event(
        &mut self,
        workload: &WorkloadEntry,
        claim: &Claim,
        reason: &'static str,
        note: String,
    ) {
        self.out.actions.push(Action::Event {
            workload: self.name.clone(),
            uid: workload.object_uid().to_owned(),
            warning: false,
            reason,
            note,
            at: told_at(claim.wire.unix_ms, self.clock),
        });
    }
}

/// At most one copy, or one that must not run beside another.
fn alone(workload: &WorkloadEntry) -> bool {
    workload.object.spec.policy.exclusive || workload.object.spec.type_ == WorkloadType::Job
}

fn gpus_of(pod: &PodSpec) -> Vec<GpuAssignment> {
    let share = |gpu: &hyperion_proto::agent_v1::GpuShare| GpuAssignment {
        uuid: gpu.uuid.clone(),
        millis: i32::try_from(gpu.millis).unwrap_or(i32::MAX),
    };
    pod.gpus.iter().map(share).collect()
}

fn cause(claim: &Claim) -> String {
    let cause = claim.wire.explanation.as_ref().map(|e| e.cause.trim());
    cause
        .filter(|c| !c.is_empty())
        .map_or_else(String::new, |cause| format!(", because {cause}"))
}

/// A time by a device's clock, where that can be right: after 2020, and not in the future.
#[must_use]
pub fn told_at(unix_ms: i64, now: Timestamp) -> Option<Timestamp> {
    const BEGIN: i64 = 1_577_836_800_000;
    (BEGIN..=now.as_millisecond())
        .contains(&unix_ms)
        .then(|| Timestamp::from_millisecond(unix_ms).ok())
        .flatten()
}

/// The site's explanation in the words of a placement.
fn explanation(why: &SiteExplanation) -> Explanation {
    let finite = |score: f64| {
        if score.is_finite() {
            round(score)
        } else {
            f64::MIN
        }
    };
    let ranked = |r: &hyperion_proto::agent_v1::RankedNode| Ranked {
        id: r.node.clone(),
        score: finite(r.score),
        terms: Vec::new(),
    };
    Explanation {
        cause: why.cause.clone(),
        scorer: why.scorer.clone(),
        policy: why.policy.clone(),
        fallback: why.fallback.clone(),
        candidates: i32::try_from(why.candidates).unwrap_or(i32::MAX),
        rejected: why
            .rejected
            .iter()
            .map(|r| Rejection {
                constraint: r.constraint.clone(),
                count: i32::try_from(r.count).unwrap_or(i32::MAX),
            })
            .collect(),
        terms: why
            .terms
            .iter()
            .map(|t| ScoreTerm {
                name: t.name.clone(),
                value: finite(t.value),
            })
            .collect(),
        score: finite(why.score),
        runner_up: why.top.get(1).map(|second| RunnerUp {
            id: second.node.clone(),
            score: finite(second.score),
        }),
        top: why.top.iter().take(5).map(ranked).collect(),
        ..Explanation::default()
    }
}

/// The object that was applied at a site, as it is made here.
fn read_manifest(manifest: &str, claim: &Claim) -> Result<HyperionWorkload, String> {
    let key = &claim.record.key;
    if !is_site_uid(&key.uid) {
        return Err(format!("uid {:?} is none that a site gives", key.uid));
    }
    let read: HyperionWorkload =
        serde_json::from_str(manifest).map_err(|e| format!("the manifest can't be read: {e}"))?;
    if read.metadata.name.as_deref() != Some(&key.workload) {
        return Err("the manifest is of another name".to_owned());
    }
    hyperion_api::request::request(&read.spec)
        .and_then(|_| agent_pod::pod_spec(&read.spec, &[]))
        .and_then(|_| hyperion_api::intent::intent(&read.spec))
        .map_err(|e| e.to_string())?;
    let mut made = HyperionWorkload::new(&key.workload, read.spec);
    made.metadata.namespace = Some(key.namespace.clone());
    made.metadata.labels = read.metadata.labels;
    let mut annotations = read.metadata.annotations.unwrap_or_default();
    annotations.insert(SITE_UID.to_owned(), key.uid.clone());
    made.metadata.annotations = Some(annotations);
    Ok(made)
}
