//! A verdict, as a placement's explanation.

use hyperion_api::placement::{Explanation as Why, OtherChoice, Ranked, RunnerUp, ScoreTerm};
use hyperion_api::workload::Rejection;
use hyperion_placement::{Choice, Explanation};

use super::status::round;
use crate::decider::{Tried, Verdict};

/// Why the choice of this verdict was made.
pub(super) fn explanation(verdict: &Verdict) -> Why {
    let explanation = &verdict.decision.explanation;
    let top = explanation.top.iter();
    let flips: Vec<String> = explanation.flips.iter().map(ToString::to_string).collect();
    let choice = verdict.decision.choice.as_ref();
    Why {
        cause: String::new(),
        scorer: explanation.scorer.clone(),
        policy: verdict.policy.clone(),
        fallback: verdict
            .fallback
            .as_ref()
            .map_or_else(String::new, |(_, text)| text.clone()),
        tried: verdict.tried.as_ref().map_or_else(String::new, tried),
        candidates: i32::try_from(explanation.candidates).unwrap_or(i32::MAX),
        rejected: rejections(explanation),
        terms: terms(&explanation.terms),
        score: choice.map_or(0.0, |c| finite(c.score)),
        runner_up: explanation.runner_up.as_ref().map(|(id, score)| RunnerUp {
            id: id.clone(),
            score: finite(*score),
        }),
        top: top
            .map(|ranked| Ranked {
                id: ranked.candidate.id().to_owned(),
                score: finite(ranked.score),
                // Five of these in every placement: what adds nothing is left out.
                terms: some(terms(&ranked.terms)),
            })
            .collect(),
        second_wins: flips.join("; "),
        rules_choice: verdict.rules.as_ref().map(other),
        policy_choice: verdict.watching.as_ref().map(other),
    }
}

/// Nodes ruled out, by constraint.
pub(super) fn rejections(explanation: &Explanation) -> Vec<Rejection> {
    explanation
        .rejected
        .iter()
        .map(|(constraint, count)| Rejection {
            constraint: constraint.to_string(),
            count: i32::try_from(*count).unwrap_or(i32::MAX),
        })
        .collect()
}

/// JSON has no infinity.
fn finite(score: f64) -> f64 {
    if score.is_finite() {
        round(score)
    } else {
        f64::MIN
    }
}

fn terms(terms: &[(String, f64)]) -> Vec<ScoreTerm> {
    let term = |(name, value): &(String, f64)| ScoreTerm {
        name: name.clone(),
        value: finite(*value),
    };
    terms.iter().map(term).collect()
}

fn some(mut terms: Vec<ScoreTerm>) -> Vec<ScoreTerm> {
    terms.retain(|term| term.value != 0.0);
    terms.shrink_to_fit();
    terms
}

fn tried(tried: &Tried) -> String {
    format!(
        "{} was the best; this one was drawn with probability {:.3}, to learn from it",
        tried.best.id(),
        tried.probability
    )
}

fn other(choice: &Choice) -> OtherChoice {
    OtherChoice {
        id: choice.candidate.id().to_owned(),
        hourly_cost: round(choice.hourly_cost),
        p99_latency_ms: choice.p99_latency_ms.map(round),
    }
}
