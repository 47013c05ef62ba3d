//! Who decides while the site is cut off: the quantised policy behind its guard, else rules. The
//! steps are those of the control plane's decider; the choice, the check and the explanation are
//! the same code.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hyperion_autonomy::{Decide, Decided};
use hyperion_placement::choose::{self, CandidateRef};
use hyperion_placement::features::{
    self, FIT_LEN, NODE_LEN, PAIR_LEN, REQUEST_LEN, Summary, encode_request,
};
use hyperion_placement::filter::Candidate;
use hyperion_placement::model::{Request, Snapshot};
use hyperion_placement::policy::Network;
use hyperion_placement::{Decision, PolicyScorer, RulesScorer, Scorer, check};
use hyperion_policy::{
    BUILT_IN_QUANTISED, Encoded, Guard, Limits, PolicyFile, Precision, Reason, SlotStats,
};
use hyperion_proto::agent_v1::{CountedConstraint, RankedNode, ScoreTerm, SiteExplanation};
use sha2::{Digest, Sha256};

/// Digits of a hash that are shown: enough to tell policies apart.
const DIGITS: usize = 12;
/// Requests and candidates that a new policy is tried on, each.
const TRIES: u32 = 16;

/// A policy that was read and tried.
#[derive(Debug)]
struct Policy {
    scorer: PolicyScorer,
    guard: Guard,
    /// SHA-256 of its file, hex.
    hash: String,
}

/// Decides.
#[derive(Debug, Clone)]
pub struct Decider {
    policy: Option<Arc<Policy>>,
    /// Why there is no policy.
    without: String,
}

impl Decider {
    /// With the policy that is part of the program.
    #[must_use]
    pub fn built_in() -> Self {
        static POLICY: OnceLock<Decider> = OnceLock::new();
        let read = || {
            Self::read(BUILT_IN_QUANTISED)
                .unwrap_or_else(|why| Self::rules(&format!("the built-in policy: {why}")))
        };
        POLICY.get_or_init(read).clone()
    }

    /// Without a policy.
    #[must_use]
    pub fn rules(why: &str) -> Self {
        Self {
            policy: None,
            without: why.to_owned(),
        }
    }

    /// With the policy of this file, after it was tried.
    ///
    /// # Errors
    /// What is wrong with the file, its feature schema or its scores.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let file = PolicyFile::read(bytes).map_err(|e| e.to_string())?;
        let name = match file.precision {
            Precision::Full => "ppo",
            Precision::Quantised(quantisation) => quantisation.scorer_name(),
        };
        try_out(&file)?;
        let policy = Policy {
            scorer: PolicyScorer::named(name, Arc::new(file.network)),
            guard: Guard::new(&file.card.statistics, Limits::default()),
            hash: hash(bytes),
        };
        Ok(Self {
            policy: Some(Arc::new(policy)),
            without: String::new(),
        })
    }

    /// SHA-256 of the policy file, hex; empty where rules decide.
    #[must_use]
    pub fn hash(&self) -> &str {
        self.policy.as_ref().map_or("", |policy| &policy.hash)
    }

    /// Name of who decides, unless a guard rail holds.
    #[must_use]
    pub fn name(&self) -> &str {
        match &self.policy {
            Some(policy) => policy.scorer.name(),
            None => RulesScorer.name(),
        }
    }

    fn by_policy(
        policy: &Policy,
        snapshot: &Snapshot,
        request: &Request,
    ) -> Result<Decision, Reason> {
        let decision = choose::decide(snapshot, request, &policy.scorer);
        let top = &decision.explanation.top;
        if top.iter().any(|ranked| !ranked.score.is_finite()) {
            return Err(Reason::NotFinite);
        }
        let encoded = encode_request(request, &Summary::of(snapshot));
        let candidates: Vec<Encoded> = top
            .iter()
            .filter_map(|ranked| {
                let CandidateRef::Node(id) = &ranked.candidate else {
                    return None;
                };
                let candidate = Candidate::from(snapshot.node(id)?);
                let features = features::encode(&snapshot.latency, request, &candidate);
                Some(Encoded::from(&features))
            })
            .collect();
        // Records of live peers are seconds old: a dead one's node is no candidate.
        policy.guard.admit(&encoded, &candidates, Duration::ZERO)?;
        Ok(decision)
    }
}

/// SHA-256, hex.
#[must_use]
pub fn hash(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn told(reason: Reason, policy: &Policy) -> String {
    let (name, hash) = (policy.scorer.name(), &policy.hash[..DIGITS]);
    match reason {
        Reason::NotFinite => format!("a score of policy {name} {hash} is no number"),
        Reason::Stale => "what is known of the site is old".to_owned(),
        Reason::Unfamiliar => {
            format!("workload or nodes are far from those that policy {name} {hash} was trained on")
        }
    }
}

impl Decide for Decider {
    fn decide(&self, snapshot: &Snapshot, request: &Request) -> Decided {
        let rules = || choose::decide(snapshot, request, &RulesScorer);
        let (decision, fallback) = match &self.policy {
            None => (rules(), self.without.clone()),
            Some(policy) => match Self::by_policy(policy, snapshot, request) {
                Ok(decision) => (decision, String::new()),
                Err(reason) => (rules(), told(reason, policy)),
            },
        };
        // The check is not the filter: what one lets through by mistake the other holds back.
        let choice = decision
            .choice
            .filter(|choice| check(snapshot, request, choice).is_ok());
        let explanation = decision.explanation;
        let top = explanation.top.iter();
        let explanation = SiteExplanation {
            cause: String::new(),
            scorer: explanation.scorer,
            policy: self
                .policy
                .as_ref()
                .map_or_else(String::new, |p| p.hash[..DIGITS].to_owned()),
            fallback,
            candidates: u32::try_from(explanation.candidates).unwrap_or(u32::MAX),
            rejected: explanation
                .rejected
                .iter()
                .map(|(constraint, count)| CountedConstraint {
                    constraint: constraint.as_str().to_owned(),
                    count: u32::try_from(*count).unwrap_or(u32::MAX),
                })
                .collect(),
            terms: explanation
                .terms
                .iter()
                .map(|(name, value)| ScoreTerm {
                    name: name.clone(),
                    value: *value,
                })
                .collect(),
            score: choice.as_ref().map_or(0.0, |choice| choice.score),
            top: top
                .map(|ranked| RankedNode {
                    node: ranked.candidate.id().to_owned(),
                    score: ranked.score,
                })
                .collect(),
        };
        let (node, gpus) = match choice {
            Some(choice) => match choice.candidate {
                CandidateRef::Node(id) => (Some(id), choice.gpus),
                // A site buys nothing.
                CandidateRef::Offer(_) => (None, Vec::new()),
            },
            None => (None, Vec::new()),
        };
        Decided {
            node,
            gpus,
            explanation,
        }
    }

    fn policy_hash(&self) -> &str {
        self.hash()
    }
}

/// Runs a policy on vectors over the range of what it was trained on, before it may decide: each
/// score is a number, by both ways in which scores are made, and candidates are told apart.
fn try_out(file: &PolicyFile) -> Result<(), String> {
    let statistics = &file.card.statistics;
    let mut seed = 1_u32;
    let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
    for _ in 0..TRIES {
        let request = vector::<REQUEST_LEN>(&statistics.request, &mut seed);
        let prepared = file.network.prepare(&request);
        for _ in 0..TRIES {
            let node = vector::<NODE_LEN>(&statistics.node, &mut seed);
            let pair = vector::<PAIR_LEN>(&statistics.pair, &mut seed);
            let fit = vector::<FIT_LEN>(&statistics.fit, &mut seed);
            let network: &Network = &file.network;
            let kind = network.prepare_kind(&prepared, &pair);
            let score = network.score(&prepared, &kind, &network.embed(&node), &fit);
            if !score.is_finite() {
                return Err("a score on the trial vectors is no number".to_owned());
            }
            (low, high) = (low.min(score), high.max(score));
        }
    }
    if high - low < 1e-6 {
        return Err("all trial vectors have the same score: it tells nothing apart".to_owned());
    }
    golden(file)
}

/// Scores that the file says it gives, where it does: `golden` in its evaluation, a list of
/// `{request, node, pair, fit, score}`.
fn golden(file: &PolicyFile) -> Result<(), String> {
    let Some(cases) = file.card.evaluation.get("golden") else {
        return Ok(());
    };
    let cases = cases.as_array().ok_or("golden: not a list")?;
    for (i, case) in cases.iter().enumerate() {
        let bad = |field: &str| format!("golden[{i}].{field}: missing or of another length");
        let request = numbers::<REQUEST_LEN>(&case["request"]).ok_or_else(|| bad("request"))?;
        let node = numbers::<NODE_LEN>(&case["node"]).ok_or_else(|| bad("node"))?;
        let pair = numbers::<PAIR_LEN>(&case["pair"]).ok_or_else(|| bad("pair"))?;
        let fit = numbers::<FIT_LEN>(&case["fit"]).ok_or_else(|| bad("fit"))?;
        let wanted = case["score"].as_f64().ok_or_else(|| bad("score"))?;
        let network = &file.network;
        let prepared = network.prepare(&request);
        let kind = network.prepare_kind(&prepared, &pair);
        let score = f64::from(network.score(&prepared, &kind, &network.embed(&node), &fit));
        // The last bits depend on the width of the machine's vector unit.
        let room = 1e-3 * wanted.abs().max(1.0);
        if (score - wanted).abs().is_nan() || (score - wanted).abs() > room {
            return Err(format!("golden[{i}]: score {score}, {wanted} is expected"));
        }
    }
    Ok(())
}

fn numbers<const N: usize>(value: &serde_json::Value) -> Option<[f32; N]> {
    let values = value.as_array()?;
    let mut out = [0.0; N];
    if values.len() != N {
        return None;
    }
    for (slot, value) in out.iter_mut().zip(values) {
        #[expect(clippy::cast_possible_truncation, reason = "scores are in f32")]
        let number = value.as_f64()? as f32;
        *slot = number;
    }
    Some(out)
}

/// Values between the least and the most of training, the same on every machine.
fn vector<const N: usize>(stats: &[SlotStats], seed: &mut u32) -> [f32; N] {
    let mut out = [0.0; N];
    for (slot, stat) in out.iter_mut().zip(stats) {
        *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        #[expect(clippy::cast_precision_loss, reason = "24 bits fit")]
        let part = (*seed >> 8) as f32 / 16_777_216.0;
        *slot = stat.min + (stat.max - stat.min) * part;
    }
    out
}

#[cfg(test)]
mod tests;
