//! Two scorers beside each other: one decides, the other says what it would have done.

use hyperion_placement::Choice;
use hyperion_placement::model::Goal;
use hyperion_placement::reward::RewardWeights;
use serde::{Deserialize, Serialize};

use crate::Outcome;

/// What is expected of a choice, or was measured of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// US dollars per hour; none where unknown.
    pub hourly_cost: Option<f64>,
    /// p99 seen by clients, milliseconds; none for jobs and where unknown.
    pub p99_ms: Option<f64>,
}

impl From<&Choice> for Estimate {
    /// A choice has cost 0 both where it is free and where nobody knows. Here it is free.
    fn from(choice: &Choice) -> Self {
        Self {
            hourly_cost: Some(choice.hourly_cost),
            p99_ms: choice.p99_latency_ms,
        }
    }
}

impl From<&Outcome> for Estimate {
    fn from(outcome: &Outcome) -> Self {
        Self {
            hourly_cost: Some(outcome.cost_per_hour),
            p99_ms: outcome.p99_ms,
        }
    }
}

impl Estimate {
    /// The reward of it per hour. What is unknown, or no number, earns nothing.
    #[must_use]
    pub fn reward(&self, weights: &RewardWeights, goal: Goal) -> f64 {
        let weights = weights.of(goal);
        let known = |v: &f64| v.is_finite() && *v >= 0.0;
        let cost = self.hourly_cost.filter(known);
        let p99 = self.p99_ms.filter(known);
        cost.map_or(0.0, |c| weights.cost_term(c)) + p99.map_or(0.0, |p| weights.latency_term(p))
    }
}

/// One of the two in a comparison.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Side<'a> {
    /// Id of the candidate; none where it found none.
    pub candidate: Option<&'a str>,
    /// What is expected of it.
    pub estimate: Estimate,
}

impl<'a> From<Option<&'a Choice>> for Side<'a> {
    fn from(choice: Option<&'a Choice>) -> Self {
        let Some(choice) = choice else {
            return Self::default();
        };
        let (hyperion_placement::CandidateRef::Node(id)
        | hyperion_placement::CandidateRef::Offer(id)) = &choice.candidate;
        Self {
            candidate: Some(id),
            estimate: Estimate::from(choice),
        }
    }
}

/// Sums over the decisions of rules that were carried out, and those of a policy that were not.
///
/// Rewards are per hour and decision. What was carried out is judged by its outcome once there is
/// one, what was not by its estimate; [`Shadow::bias`] says how far estimates were from outcomes,
/// and so how far to trust the comparison.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Shadow {
    /// Decisions compared.
    pub decisions: u64,
    /// Both chose the same candidate, or both none.
    pub agreed: u64,
    /// They differed and the policy's choice was worth more.
    pub policy_better: u64,
    /// They differed and the rules' choice was worth more.
    pub rules_better: u64,
    /// Sum of what was lost by following the rules where the policy's choice was worth more.
    pub rules_regret: f64,
    /// Sum of what would have been lost by following the policy where the rules' was worth more.
    pub policy_regret: f64,
    /// Decisions with an outcome.
    pub outcomes: u64,
    /// Sum of estimate less outcome, in reward, over those.
    pub overestimated: f64,
}

impl Shadow {
    /// Counts one decision. `outcome` is that of the rules' choice.
    pub fn record(
        &mut self,
        weights: &RewardWeights,
        goal: Goal,
        rules: Side<'_>,
        policy: Side<'_>,
        outcome: Option<Estimate>,
    ) {
        self.decisions += 1;
        let of = |side: Side<'_>| {
            side.candidate
                .map_or(0.0, |_| side.estimate.reward(weights, goal))
        };
        let estimated = of(rules);
        let outcome = outcome.filter(|_| rules.candidate.is_some());
        let real = outcome.map_or(estimated, |o| o.reward(weights, goal));
        if outcome.is_some() {
            self.outcomes += 1;
            self.overestimated += estimated - real;
        }
        if rules.candidate == policy.candidate {
            self.agreed += 1;
            return;
        }
        let gain = of(policy) - real;
        if gain > 0.0 {
            self.policy_better += 1;
            self.rules_regret += gain;
        } else if gain < 0.0 {
            self.rules_better += 1;
            self.policy_regret -= gain;
        }
    }

    /// Share of decisions on which both agreed, 0 to 1; none before the first.
    #[must_use]
    pub fn agreement(&self) -> Option<f64> {
        (self.decisions > 0).then(|| self.agreed as f64 / self.decisions as f64)
    }

    /// What the policy would earn more than the rules, per hour and decision; none before the
    /// first.
    #[must_use]
    pub fn gain(&self) -> Option<f64> {
        let gain = self.rules_regret - self.policy_regret;
        (self.decisions > 0).then(|| gain / self.decisions as f64)
    }

    /// By how much estimates were above outcomes, in reward per hour; none without outcomes.
    #[must_use]
    pub fn bias(&self) -> Option<f64> {
        (self.outcomes > 0).then(|| self.overestimated / self.outcomes as f64)
    }

    /// Adds another's sums.
    pub fn merge(&mut self, other: &Self) {
        self.decisions += other.decisions;
        self.agreed += other.agreed;
        self.policy_better += other.policy_better;
        self.rules_better += other.rules_better;
        self.rules_regret += other.rules_regret;
        self.policy_regret += other.policy_regret;
        self.outcomes += other.outcomes;
        self.overestimated += other.overestimated;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(candidate: &str, cost: f64) -> Side<'_> {
        Side {
            candidate: Some(candidate),
            estimate: Estimate {
                hourly_cost: Some(cost),
                p99_ms: None,
            },
        }
    }

    fn record(shadow: &mut Shadow, rules: Side<'_>, policy: Side<'_>, real: Option<f64>) {
        let outcome = real.map(|cost| Estimate {
            hourly_cost: Some(cost),
            p99_ms: None,
        });
        shadow.record(
            &RewardWeights::default(),
            Goal::Cost,
            rules,
            policy,
            outcome,
        );
    }

    #[test]
    fn regret_is_on_the_side_that_chose_worse() {
        let mut shadow = Shadow::default();
        record(&mut shadow, side("a", 0.2), side("a", 0.2), None);
        record(&mut shadow, side("a", 0.2), side("b", 0.1), None);
        record(&mut shadow, side("a", 0.1), side("b", 0.4), None);
        assert_eq!((shadow.decisions, shadow.agreed), (3, 1));
        assert_eq!((shadow.policy_better, shadow.rules_better), (1, 1));
        assert!((shadow.rules_regret - 1.01).abs() < 1e-9);
        assert!((shadow.policy_regret - 1.53).abs() < 1e-9);
        assert!((shadow.gain().unwrap() + 0.52 / 3.0).abs() < 1e-9);
        assert_eq!(shadow.bias(), None);
    }

    #[test]
    fn an_outcome_outweighs_the_estimate_of_what_was_carried_out() {
        let mut shadow = Shadow::default();
        record(&mut shadow, side("a", 0.1), side("b", 0.2), Some(0.4));
        assert_eq!((shadow.policy_better, shadow.rules_better), (1, 0));
        assert!((shadow.rules_regret - 0.52).abs() < 1e-9);
        assert!((shadow.bias().unwrap() - 1.53).abs() < 1e-9);
    }

    #[test]
    fn nothing_chosen_earns_nothing_and_agrees_with_nothing_chosen() {
        let mut shadow = Shadow::default();
        record(&mut shadow, Side::default(), Side::default(), Some(0.1));
        record(&mut shadow, Side::default(), side("b", 0.2), Some(0.1));
        assert_eq!((shadow.agreed, shadow.policy_better), (1, 1));
        assert_eq!(shadow.outcomes, 0);
        let mut sum = shadow;
        sum.merge(&shadow);
        assert_eq!(sum.decisions, 4);
    }

    #[test]
    fn what_is_no_number_earns_nothing() {
        let odd = Estimate {
            hourly_cost: Some(f64::NAN),
            p99_ms: Some(-1.0),
        };
        assert_eq!(odd.reward(&RewardWeights::default(), Goal::Latency), 0.0);
    }
}
