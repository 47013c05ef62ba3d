//! Who decides: rules, or a policy with rules as its guard rail and beside it. No I/O.
//!
//! - here: one decision, and what is counted of it;
//! - [`explore`]: now and then another choice than the best, to learn from;
//! - [`policy`]: a policy read from bytes, or the reason why it is refused;
//! - [`source`]: where policies come from, and which of them counts.

mod explore;
pub mod policy;
pub mod source;
#[cfg(test)]
pub(crate) mod tests;

use std::time::Duration;

use hyperion_api::fleet::ScorerStatus;
use hyperion_placement::choose::{self, CandidateRef};
use hyperion_placement::features::{self, REQUEST_LEN, Summary, encode_request};
use hyperion_placement::filter::Candidate;
use hyperion_placement::fleet::{Fleet, Scratch};
use hyperion_placement::model::{LatencyMatrix, Node, Request, Snapshot};
use hyperion_placement::{Choice, Decision, RulesScorer, Scorer, Violation};
use hyperion_policy::{Encoded, Reason, Shadow, Side};
use rand::SeedableRng as _;
use rand::rngs::Xoshiro256PlusPlus;

pub use explore::{Chance, Tried};
pub use policy::{Policy, Refused};

/// By how much the rules' score of another place must be above that of staying: a twentieth of the
/// weight that a goal gives to what it wants most. Less than that is within the error of prices
/// and latencies that change by the hour.
pub const RULES_MARGIN: f64 = 0.5;
/// By how much a policy's score of another place must be above that of staying, which its feature
/// `runs_here` is part of: ln 2, so that the policy as it was trained would choose the other place
/// twice as often.
pub const POLICY_MARGIN: f64 = std::f64::consts::LN_2;

/// A fleet with these nodes alone.
#[must_use]
pub fn part(fleet: &Fleet, nodes: Vec<Node>) -> Snapshot {
    Snapshot {
        version: fleet.version(),
        nodes,
        offers: Vec::new(),
        latency: fleet.latency().clone(),
        queue: fleet.summary().queue,
        packing: fleet.packing().clone(),
    }
}

/// The fleet that a decision is made on.
#[derive(Clone, Copy)]
pub enum View<'a> {
    /// All of it.
    Fleet(&'a Fleet),
    /// A part of it, by the reference path.
    Part(&'a Snapshot),
}

impl<'a> View<'a> {
    fn summary(self) -> Summary {
        match self {
            Self::Fleet(fleet) => *fleet.summary(),
            Self::Part(snapshot) => Summary::of(snapshot),
        }
    }

    fn latency(self) -> &'a LatencyMatrix {
        match self {
            Self::Fleet(fleet) => fleet.latency(),
            Self::Part(snapshot) => &snapshot.latency,
        }
    }

    fn candidate(self, of: &CandidateRef) -> Option<Candidate<'a>> {
        match (self, of) {
            (Self::Fleet(fleet), CandidateRef::Node(id)) => fleet.node(id).map(Candidate::from),
            (Self::Fleet(fleet), CandidateRef::Offer(id)) => fleet.offer(id).map(Candidate::from),
            (Self::Part(part), CandidateRef::Node(id)) => part.node(id).map(Candidate::from),
            (Self::Part(part), CandidateRef::Offer(id)) => part.offer(id).map(Candidate::from),
        }
    }

    fn decide(self, scratch: &mut Scratch, request: &Request, scorer: &dyn Scorer) -> Decision {
        match self {
            Self::Fleet(fleet) => fleet.decide(scratch, request, scorer),
            Self::Part(snapshot) => choose::decide(snapshot, request, scorer),
        }
    }

    fn explain(self, request: &Request, scorer: &dyn Scorer, decision: &mut Decision) {
        let explanation = &mut decision.explanation;
        match self {
            Self::Fleet(fleet) => fleet.explain(request, scorer, explanation),
            Self::Part(snapshot) => choose::explain(snapshot, request, scorer, explanation),
        }
    }

    /// The hard constraints that `choice` breaks.
    ///
    /// # Errors
    /// The violations, never empty.
    pub fn check(self, request: &Request, choice: &Choice) -> Result<(), Vec<Violation>> {
        match self {
            Self::Fleet(fleet) => fleet.check(request, choice),
            Self::Part(snapshot) => hyperion_placement::check(snapshot, request, choice),
        }
    }

    /// The best candidates of a decision, as a policy sees them.
    fn encoded(self, request: &Request, decision: &Decision) -> Vec<Encoded> {
        let top = decision.explanation.top.iter();
        top.filter_map(|ranked| {
            let candidate = self.candidate(&ranked.candidate)?;
            Some(Encoded::from(&features::encode(
                self.latency(),
                request,
                &candidate,
            )))
        })
        .collect()
    }
}

/// What is learnt from, once the outcome of a decision is known: the request and the best
/// candidates as they were, the best first.
#[derive(Debug, Clone, PartialEq)]
pub struct Memory {
    /// The request.
    pub request: [f32; REQUEST_LEN],
    /// The best candidates.
    pub candidates: Vec<Encoded>,
    /// Index of the chosen one.
    pub chosen: usize,
    /// Logarithm of the probability with which it was chosen: 0 where nothing was left to chance.
    pub log_probability: f64,
}

/// A decision, and what others would have decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// The decision, explained.
    pub decision: Decision,
    /// Hash of the policy that is loaded, its first digits; empty where none is.
    pub policy: String,
    /// Why rules decided although the policy was to.
    pub fallback: Option<(Reason, String)>,
    /// Why the choice is not the best candidate; none where it is.
    pub tried: Option<Tried>,
    /// What rules would have chosen, where the policy decided.
    pub rules: Option<Choice>,
    /// What the policy would have chosen, where rules decided and it watched.
    pub watching: Option<Choice>,
    /// For the outcome; none where nothing was chosen.
    pub memory: Option<Memory>,
}

/// Sums for `/metrics`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sums {
    /// Decisions by the policy.
    pub by_policy: u64,
    /// Of these, those that did not take the best candidate, to learn from.
    pub tried: u64,
    /// Decisions that were left to rules, in the order of [`Reason::ALL`].
    pub fallbacks: [u64; 3],
    /// The policy beside rules, whoever decided.
    pub beside: Shadow,
}

/// Decides.
pub struct Decider {
    policy: Option<Policy>,
    shadow: bool,
    /// Age of what is known of the fleet; set before decisions.
    pub age: Duration,
    /// Share of the policy's new placements that are left to chance, 0 to 1.
    pub explore: f64,
    /// Since the beginning.
    pub sums: Sums,
    scratch: Scratch,
    dice: Xoshiro256PlusPlus,
}

impl Decider {
    /// Rules decide until there is a policy. With `shadow` they go on, and it watches.
    #[must_use]
    pub fn new(shadow: bool) -> Self {
        Self {
            policy: None,
            shadow,
            age: Duration::ZERO,
            explore: 0.0,
            sums: Sums::default(),
            scratch: Scratch::new(),
            dice: Xoshiro256PlusPlus::seed_from_u64(rand::random()),
        }
    }

    /// Puts a policy in the place of the one before, or none. The fleet has to be given its network.
    pub fn set_policy(&mut self, policy: Option<Policy>) {
        self.policy = policy;
    }

    /// The policy that is loaded.
    #[must_use]
    pub fn policy(&self) -> Option<&Policy> {
        self.policy.as_ref()
    }

    /// Name of who decides, unless a guard rail holds.
    #[must_use]
    pub fn decides(&self) -> &str {
        match &self.policy {
            Some(policy) if !self.shadow => policy.scorer.name(),
            _ => RulesScorer.name(),
        }
    }

    /// What the fleet API says. `source` is where the policy comes from.
    #[must_use]
    pub fn status(&self, source: &str, refused: &str) -> ScorerStatus {
        ScorerStatus {
            decides: self.decides().to_owned(),
            policy: self
                .policy
                .as_ref()
                .map_or_else(String::new, |p| p.hash.clone()),
            source: source.to_owned(),
            shadow: self.shadow && self.policy.is_some(),
            refused: refused.to_owned(),
            fallbacks: self.sums.fallbacks.iter().sum(),
        }
    }

    /// Decides for one replica, and says why.
    pub fn decide(&mut self, view: View<'_>, request: &Request, chance: Chance) -> Verdict {
        let Some(policy) = self.policy.take() else {
            let decision = self.by_rules(view, request);
            return self.verdict(view, request, decision, &RulesScorer);
        };
        let verdict = if self.shadow {
            self.with_shadow(view, request, &policy)
        } else {
            self.with_policy(view, request, &policy, chance)
        };
        self.policy = Some(policy);
        verdict
    }

    fn by_rules(&mut self, view: View<'_>, request: &Request) -> Decision {
        view.decide(&mut self.scratch, request, &RulesScorer)
    }

    /// The policy's decision, unless it is not to be trusted with this one. Judged are the request
    /// and the candidates that the policy likes best: an odd one that it does not like does no harm.
    fn by_policy(
        &mut self,
        view: View<'_>,
        request: &Request,
        policy: &Policy,
    ) -> Result<Decision, Reason> {
        let decision = view.decide(&mut self.scratch, request, &policy.scorer);
        let top = &decision.explanation.top;
        if top.iter().any(|ranked| !ranked.score.is_finite()) {
            return Err(Reason::NotFinite);
        }
        let encoded = encode_request(request, &view.summary());
        let candidates = view.encoded(request, &decision);
        policy.guard.admit(&encoded, &candidates, self.age)?;
        Ok(decision)
    }

    fn left_to_rules(&mut self, reason: Reason, policy: &Policy) -> (Reason, String) {
        self.sums.fallbacks[reason as usize] += 1;
        let (name, hash) = (policy.scorer.name(), &policy.hash);
        let text = match reason {
            Reason::NotFinite => format!("a score of policy {name} {hash} is no number"),
            Reason::Stale => format!("what is known of the fleet is {} s old", self.age.as_secs()),
            Reason::Unfamiliar => format!(
                "workload or nodes are far from those that policy {name} {hash} was trained on"
            ),
        };
        (reason, text)
    }

    fn with_policy(
        &mut self,
        view: View<'_>,
        request: &Request,
        policy: &Policy,
        chance: Chance,
    ) -> Verdict {
        let mut verdict = match self.by_policy(view, request, policy) {
            Ok(decision) => {
                self.sums.by_policy += 1;
                let mut verdict = self.verdict(view, request, decision, &policy.scorer);
                if verdict.decision.choice.is_some() {
                    verdict.rules = self.by_rules(view, request).choice;
                    let chosen = verdict.decision.choice.clone();
                    self.compare(request, policy, verdict.rules.as_ref(), chosen.as_ref());
                }
                if let (Chance::Sometimes, View::Fleet(fleet)) = (chance, view)
                    && self.explore > 0.0
                {
                    self.leave_to_chance(fleet, request, policy, &mut verdict);
                }
                verdict
            }
            Err(reason) => {
                let fallback = self.left_to_rules(reason, policy);
                let decision = self.by_rules(view, request);
                let mut verdict = self.verdict(view, request, decision, &RulesScorer);
                verdict.fallback = Some(fallback);
                verdict
            }
        };
        verdict.policy.clone_from(&policy.hash);
        verdict
    }

    fn with_shadow(&mut self, view: View<'_>, request: &Request, policy: &Policy) -> Verdict {
        let decision = self.by_rules(view, request);
        let mut verdict = self.verdict(view, request, decision, &RulesScorer);
        verdict.policy.clone_from(&policy.hash);
        if verdict.decision.choice.is_none() {
            return verdict;
        }
        match self.by_policy(view, request, policy) {
            Ok(decision) => {
                let chosen = verdict.decision.choice.clone();
                self.compare(request, policy, chosen.as_ref(), decision.choice.as_ref());
                verdict.watching = decision.choice;
            }
            Err(reason) => {
                self.left_to_rules(reason, policy);
            }
        }
        verdict
    }

    fn compare(
        &mut self,
        request: &Request,
        policy: &Policy,
        rules: Option<&Choice>,
        other: Option<&Choice>,
    ) {
        self.sums.beside.record(
            &policy.weights,
            request.goal,
            Side::from(rules),
            Side::from(other),
            None,
        );
    }

    fn verdict(
        &mut self,
        view: View<'_>,
        request: &Request,
        mut decision: Decision,
        scorer: &dyn Scorer,
    ) -> Verdict {
        let memory = decision.choice.as_ref().map(|_| Memory {
            request: encode_request(request, &view.summary()),
            candidates: view.encoded(request, &decision),
            chosen: 0,
            log_probability: 0.0,
        });
        view.explain(request, scorer, &mut decision);
        Verdict {
            decision,
            policy: String::new(),
            fallback: None,
            tried: None,
            rules: None,
            watching: None,
            memory,
        }
    }

    /// Score of staying on node `id`, by who decided `verdict`; none where there is no such node.
    /// `request.current` says that it is the replica's.
    #[must_use]
    pub fn score_of_staying(
        &self,
        fleet: &Fleet,
        request: &Request,
        verdict: &Verdict,
    ) -> Option<f64> {
        let id = request.current.as_deref()?;
        let top = verdict.decision.explanation.top.iter();
        let held = top
            .clone()
            .find(|r| matches!(&r.candidate, CandidateRef::Node(n) if n == id));
        if let Some(ranked) = held {
            return Some(ranked.score);
        }
        let candidate = Candidate::from(fleet.node(id)?);
        Some(self.score_of(fleet, request, &candidate, verdict))
    }

    /// Score of a candidate that need not be in the fleet, by who decided `verdict`.
    #[must_use]
    pub fn score_of(
        &self,
        fleet: &Fleet,
        request: &Request,
        candidate: &Candidate<'_>,
        verdict: &Verdict,
    ) -> f64 {
        let features = features::encode(fleet.latency(), request, candidate);
        let rules: &dyn Scorer = &RulesScorer;
        let scorer = match &self.policy {
            Some(policy) if self.by_policy_was(verdict) => &policy.scorer as &dyn Scorer,
            _ => rules,
        };
        let ready = scorer.for_request(request, fleet.summary());
        let scorer = ready.as_deref().unwrap_or(scorer);
        scorer.total(request, candidate, &features)
    }

    /// By how much another place must be better than staying, by who decided `verdict`.
    #[must_use]
    pub fn margin(&self, verdict: &Verdict) -> f64 {
        if self.by_policy_was(verdict) {
            POLICY_MARGIN
        } else {
            RULES_MARGIN
        }
    }

    fn by_policy_was(&self, verdict: &Verdict) -> bool {
        self.policy.is_some() && !self.shadow && verdict.fallback.is_none()
    }
}
