//! The story of a site's decisions, for people; and what was applied there, read.

use hyperion_api::placement::{Explanation, Ranked, RunnerUp, ScoreTerm};
use hyperion_api::workload::{HyperionWorkload, Rejection};
use hyperion_api::{SITE_UID, agent_pod, conditions};
use hyperion_proto::agent_v1::{RecordState, SiteExplanation};
use jiff::Timestamp;

use crate::index::{Claim, PlacementEntry, WorkloadEntry, is_site_uid};
use crate::plan::status::round;
use crate::plan::{Action, Pass};

impl Pass<'_> {
    pub(super) fn say_overruled(
        &mut self,
        workload: Option<&WorkloadEntry>,
        claim: &Claim,
        why: &str,
    ) {
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
            self.event(workload, false, conditions::EVENT_SITE_OVERRULED, note);
        } else if let Some(node) = claim.askers().next() {
            let note = format!(
                "what site {site} decided about {}{place} does not hold: {why}",
                record.key
            );
            let node = node.to_owned();
            self.index
                .say_of_node(&node, conditions::EVENT_SITE_OVERRULED, note);
        }
    }

    /// Tells the story of a decision.
    pub(super) fn note_decided(
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
        self.site_event(workload, claim, conditions::EVENT_DECIDED_BY_SITE, note);
    }

    /// An event of the time when the site decided, where it had a clock.
    pub(super) fn site_event(
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

pub(super) fn cause(claim: &Claim) -> String {
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
pub(super) fn explanation(why: &SiteExplanation) -> Explanation {
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
pub(super) fn read_manifest(manifest: &str, claim: &Claim) -> Result<HyperionWorkload, String> {
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
