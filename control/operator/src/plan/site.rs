//! Decisions that sites made while they were cut off. They are adopted as they are, so that nothing
//! restarts; where the control plane has decided otherwise meanwhile, the copy that does well stays.

mod adopt;
mod ended;
mod judge;
mod words;

use std::sync::Arc;
use std::time::Duration;

use hyperion_api::conditions;
use hyperion_api::placement::PlacementPhase;
use hyperion_proto::agent_v1::{RecordState, ReplicaPhase};

use self::judge::{Ours, Verdict};
pub use self::words::told_at;
use self::words::{cause, read_manifest};
use super::place::DECIDED_BY;
use super::{Action, Pass};
use crate::index::{Claim, PlacementEntry, Stage, Template, WorkloadEntry};

/// How long a node may take to be back after another of its site: agents wait up to 15 s between
/// attempts.
pub const RETURN: Duration = Duration::from_secs(20);
/// Time within which all nodes of a site have heard that one of them has a link, or what one of them
/// has decided; agents compare what they know every 2 s.
const SITE_HEARS: Duration = Duration::from_secs(10);

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
                self.event(workload, true, conditions::EVENT_NOT_TAKEN_OVER, note);
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
        if workload.is_job() && claim.wire.outcome() == ReplicaPhase::Succeeded {
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
        self.site_event(workload, claim, conditions::EVENT_DECIDED_BY_SITE, note);
        self.index.claims.verdicts.adopted += 1;
        self.index
            .set_stage(key, Stage::Storing(claim.generation() + 1));
        self.retire(key.index);
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
}
