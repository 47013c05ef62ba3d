//! What sites decided while they were cut off, until the API holds what became of it.
//!
//! A node brings the decisions of its site when it is back, and so does every other node of the
//! site. They are kept by replica, the newest of each, and a pass looks at them. The nodes that
//! brought one are answered when what follows from it is stored: a control plane that ends before
//! that is told again, and finds what it has stored already.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use hyperion_api::conditions;
use hyperion_proto::agent_v1::ReplicaRecord;
use hyperion_proto::convert;
use hyperion_proto::domain::{Record, ReplicaKey, Report};

use super::{Index, Name, Priority};

/// A decision may be this many generations ahead of what is known: nobody decides so often while a
/// site is cut off.
const MAX_LEAP: i64 = 1 << 20;
/// Reports of one node that are kept although no placement is theirs.
const STRAY: usize = 4096;

/// Replica, generation and the node that decided.
pub type Decision = (ReplicaKey, u64, String);

/// How far a decision has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Nothing was done about it.
    New,
    /// What follows is on its way: done when the API holds this generation of the replica, or none.
    Storing(i64),
    /// The workload is being made.
    Making,
    /// It can't be taken now, and stays as it is.
    Kept,
}

/// A decision of a site about one replica.
#[derive(Debug, Clone)]
pub struct Claim {
    /// What was read of it.
    pub record: Arc<Record>,
    /// As it was sent.
    pub wire: Arc<ReplicaRecord>,
    /// Site of the nodes that brought it.
    pub site: String,
    /// When it came.
    pub since: Instant,
    /// How far it is.
    pub stage: Stage,
    /// Why it can't be taken, as it was said last.
    said: Option<String>,
    /// Nodes that wait for the answer, and what each of them brought.
    asked: BTreeMap<String, BTreeSet<(u64, String)>>,
}

impl Claim {
    /// Its generation, as placements count.
    #[must_use]
    pub fn generation(&self) -> i64 {
        i64::try_from(self.record.generation).unwrap_or(i64::MAX)
    }

    /// Nodes that wait for the answer.
    pub fn askers(&self) -> impl Iterator<Item = &str> {
        self.asked.keys().map(String::as_str)
    }
}

/// What a node is to be told of decisions that it brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Node.
    pub node: String,
    /// Decisions.
    pub decisions: Vec<Decision>,
    /// They are taken, or overruled by orders; else they stay as they are.
    pub taken: bool,
}

/// Something to be said of a node, in an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeNote {
    /// Node.
    pub node: String,
    /// CamelCase.
    pub reason: &'static str,
    /// For people.
    pub text: String,
}

/// What became of decisions of sites, for counting.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// Adopted as they were.
    pub adopted: u64,
    /// Decided otherwise.
    pub overruled: u64,
    /// Known already, or of no consequence.
    pub known: u64,
    /// They can't be taken and stay as they are.
    pub kept: u64,
    /// Refused: of another site's nodes, or from the future.
    pub refused: u64,
}

/// Decisions of sites, and answers on their way.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    held: BTreeMap<ReplicaKey, Claim>,
    answers: Vec<Answer>,
    notes: Vec<NodeNote>,
    pub verdicts: Verdicts,
}

/// Of two decisions about one replica the one with the higher order holds.
fn order(record: &Record) -> (u64, i32, &str) {
    use hyperion_proto::agent_v1::RecordState;
    let state = match record.state {
        RecordState::Unspecified | RecordState::Placed | RecordState::Pending => 0,
        RecordState::Ended => 1,
        RecordState::Removed => 2,
    };
    (record.generation, state, &record.decider)
}

impl Index {
    /// A node brings what its site decided while it was cut off.
    pub fn site_decided(&mut self, node: &str, records: Vec<ReplicaRecord>, now: Instant) {
        let spec = self.nodes.get(node).and_then(|n| n.spec.as_ref());
        let Some(site) = spec.map(|s| s.site.clone()) else {
            // Deleted a moment ago: its stream is about to end.
            return;
        };
        for wire in records {
            let Ok(record) = convert::record(&wire) else {
                // Checked where it came in.
                continue;
            };
            if let Some(lie) = self.lie(&site, &record) {
                self.claims.verdicts.refused += 1;
                let text = format!("what it says of {} is refused: {lie}", record.key);
                self.say_of_node(node, conditions::EVENT_SITE_OVERRULED, text);
                let decisions = vec![(record.key, record.generation, record.decider)];
                self.claims.answers.push(Answer {
                    node: node.to_owned(),
                    decisions,
                    taken: true,
                });
                continue;
            }
            let name = Name::new(&record.key.namespace, &record.key.workload);
            let mark = (record.generation, record.decider.clone());
            let record = Arc::new(record);
            let claim = self
                .claims
                .held
                .entry(record.key.clone())
                .or_insert_with(|| Claim {
                    record: record.clone(),
                    wire: Arc::new(wire.clone()),
                    site: site.clone(),
                    since: now,
                    stage: Stage::New,
                    said: None,
                    asked: BTreeMap::new(),
                });
            claim.asked.entry(node.to_owned()).or_default().insert(mark);
            if order(&record) > order(&claim.record) {
                (claim.record, claim.wire) = (record, Arc::new(wire));
                (claim.since, claim.stage) = (now, Stage::New);
            } else if claim.stage == Stage::Kept {
                // Whoever brings it now has to hear that, too.
                claim.stage = Stage::New;
            }
            self.touch(&name, Priority::High);
        }
    }

    /// Why nodes of this site can't have decided so; none where they can.
    fn lie(&self, site: &str, record: &Record) -> Option<String> {
        for (what, id) in [("decider", &record.decider), ("node", &record.node)] {
            let spec = self.nodes.get(id).and_then(|n| n.spec.as_ref());
            if let Some(spec) = spec.filter(|s| s.site != site) {
                let other = &spec.site;
                return Some(format!("{what} {id} is of site {other:?} and not {site:?}"));
            }
        }
        let name = Name::new(&record.key.namespace, &record.key.workload);
        let workload = self
            .workloads
            .get(&name)
            .filter(|w| w.uid() == record.key.uid)?;
        let held = self.placement(&name, record.key.index);
        let known = held.map_or(0, |p| p.spec.generation).max(workload.highest);
        let generation = i64::try_from(record.generation).unwrap_or(i64::MAX);
        (generation > known.saturating_add(MAX_LEAP))
            .then(|| format!("generation {generation} is from the future: {known} is the highest"))
    }

    /// Decisions about replicas of a workload.
    pub(crate) fn claims_of(&self, name: &Name) -> Vec<Claim> {
        let first = ReplicaKey {
            namespace: name.namespace.clone(),
            workload: name.name.clone(),
            uid: String::new(),
            index: 0,
        };
        let of = |key: &ReplicaKey| key.namespace == name.namespace && key.workload == name.name;
        let range = self.claims.held.range(first..);
        range
            .take_while(|(key, _)| of(key))
            .map(|(_, claim)| claim.clone())
            .collect()
    }

    /// Notes how far a decision is.
    pub(crate) fn set_stage(&mut self, key: &ReplicaKey, stage: Stage) {
        if let Some(claim) = self.claims.held.get_mut(key) {
            claim.stage = stage;
        }
    }

    /// The API holds what became of a decision, or orders say otherwise: it is answered.
    pub(crate) fn taken(&mut self, key: &ReplicaKey) {
        if let Some(claim) = self.claims.held.remove(key) {
            self.answer(claim, true);
        }
    }

    /// A decision stays as it is until something changes; nobody has to wait for it.
    pub(crate) fn kept(&mut self, key: &ReplicaKey) {
        if let Some(claim) = self.claims.held.get_mut(key) {
            claim.stage = Stage::Kept;
            let claim = claim.clone();
            self.answer(claim, false);
        }
    }

    fn answer(&mut self, claim: Claim, taken: bool) {
        let key = &claim.record.key;
        for (node, marks) in claim.asked {
            let decision = |(generation, decider)| (key.clone(), generation, decider);
            self.claims.answers.push(Answer {
                node,
                decisions: marks.into_iter().map(decision).collect(),
                taken,
            });
        }
    }

    /// Answers to nodes, since the last call.
    pub fn take_answers(&mut self) -> Vec<Answer> {
        std::mem::take(&mut self.claims.answers)
    }

    /// Has an event published on a node.
    pub(crate) fn say_of_node(&mut self, node: &str, reason: &'static str, text: String) {
        let node = node.to_owned();
        self.claims.notes.push(NodeNote { node, reason, text });
    }

    /// Events on nodes, since the last call.
    pub fn take_node_notes(&mut self) -> Vec<NodeNote> {
        std::mem::take(&mut self.claims.notes)
    }

    /// What became of decisions of sites since the last call.
    pub fn take_verdicts(&mut self) -> Verdicts {
        std::mem::take(&mut self.claims.verdicts)
    }

    /// Uid of the object of a workload that is known by `uid`; none where there is none.
    #[must_use]
    pub fn object_uid(&self, workload: &Name, uid: &str) -> Option<String> {
        let held = self.workloads.get(workload).filter(|w| w.uid() == uid)?;
        Some(held.object_uid().to_owned())
    }

    /// The API refused a workload that was applied at a site.
    pub fn not_made(&mut self, workload: &Name, error: &str) {
        for claim in self.claims_of(workload) {
            if claim.stage == Stage::Making {
                self.cant_take(&claim.record.key, error);
            }
        }
    }

    /// Keeps a decision as it is, and says why; false where that was said already.
    pub(crate) fn cant_take(&mut self, key: &ReplicaKey, why: &str) -> bool {
        let Some(claim) = self.claims.held.get_mut(key) else {
            return false;
        };
        let news = claim.said.as_deref() != Some(why);
        claim.said = Some(why.to_owned());
        let asker = claim.askers().next().map(str::to_owned);
        if let Some(node) = asker.filter(|_| news) {
            let text = format!("{key} was applied at the site and goes on there: {why}");
            self.claims.verdicts.kept += 1;
            self.say_of_node(&node, conditions::EVENT_NOT_TAKEN_OVER, text);
        }
        self.kept(key);
        news
    }

    /// The node's stream ended: it is told nothing any more, and brings everything again.
    pub(super) fn forget_asker(&mut self, node: &str) {
        self.claims.held.retain(|_, claim| {
            claim.asked.remove(node);
            claim.stage != Stage::Kept || !claim.asked.is_empty()
        });
    }

    /// Other nodes of its site speak for a node that is out of reach: it counts as heard now.
    pub(crate) fn vouched(&mut self, node: &str, now: Instant) {
        if let Some(entry) = self.nodes.get_mut(node).filter(|n| !n.connected) {
            entry.down_since = Some(now);
        }
    }

    /// Keeps a report that is of no placement: a copy that its site decided for.
    pub(super) fn stray(&mut self, node: &str, report: &Report, stopped: bool) {
        let Some(entry) = self.nodes.get_mut(node) else {
            return;
        };
        if stopped {
            entry.stray.remove(&report.key);
        } else if entry.stray.len() < STRAY || entry.stray.contains_key(&report.key) {
            entry.stray.insert(report.key.clone(), report.clone());
        }
    }

    /// Takes the report of a copy that has become a placement.
    pub(crate) fn take_stray(&mut self, node: &str, key: &ReplicaKey) -> Option<Report> {
        self.nodes.get_mut(node)?.stray.remove(key)
    }
}
