//! What an outcome was worth, in the terms of the simulator (`docs/simulator.md`).

use hyperion_placement::features::{REQUEST, REQUEST_LEN, RequestSlot};
use hyperion_placement::reward::{JOB_P99_MS, RewardWeights, VIOLATION};
use hyperion_policy::Experience;

use crate::sim::WAIT_PENALTY;

/// Hours that who lost its place is taken to go without one: about a boot, an image pull and a
/// start, as in the simulator's cloud pools.
pub const RECOVERY_HOURS: f64 = 0.25;

/// Whether the workload is a service.
#[must_use]
pub fn is_service(request: &[f32; REQUEST_LEN]) -> bool {
    request[RequestSlot::Service as usize] > 0.5
}

/// Reward per hour that the placement earned, the time without a place after a loss included. None
/// for a service whose p99 is not known.
///
/// A job that did not end there lost the work it had at risk, also where it was in fact moved: an
/// outcome does not tell these apart.
#[must_use]
pub fn realised(experience: &Experience, weights: &RewardWeights) -> Option<f64> {
    let outcome = &experience.outcome;
    if outcome.violations > 0 {
        return Some(VIOLATION);
    }
    let weights = weights.of(experience.goal);
    let service = is_service(&experience.request);
    let latency = if service {
        weights.latency_term(outcome.p99_ms?)
    } else {
        weights.latency / JOB_P99_MS
    };
    // A cost that is absurd must not outweigh a broken constraint.
    let rate = (weights.cost_term(outcome.cost_per_hour) + latency).max(VIOLATION);
    if outcome.completed {
        return Some(rate);
    }
    let at_risk = if service {
        0.0
    } else {
        hours_at_risk(&experience.request)
    };
    let worked = (outcome.hours - at_risk).max(0.0);
    let earned = rate * worked + WAIT_PENALTY * RECOVERY_HOURS;
    Some(earned / (outcome.hours + RECOVERY_HOURS))
}

/// By the feature `work_at_risk`.
fn hours_at_risk(request: &[f32; REQUEST_LEN]) -> f64 {
    let slot = RequestSlot::AtRisk as usize;
    f64::from(request[slot] * REQUEST[slot].scale)
        .exp_m1()
        .max(0.0)
}

#[cfg(test)]
mod tests {
    use hyperion_placement::model::Goal;
    use hyperion_policy::Outcome;

    use super::*;

    fn experience(service: bool, outcome: Outcome) -> Experience {
        let mut request = [0.0; REQUEST_LEN];
        request[RequestSlot::Service as usize] = f32::from(u8::from(service));
        request[RequestSlot::AtRisk as usize] = 2.0_f32.ln();
        Experience {
            goal: Goal::Cost,
            request,
            candidates: Vec::new(),
            chosen: 0,
            log_probability: 0.0,
            outcome,
        }
    }

    const GOOD: Outcome = Outcome {
        cost_per_hour: 0.2,
        p99_ms: Some(50.0),
        completed: true,
        violations: 0,
        hours: 2.75,
    };

    /// Both terms of [`GOOD`]: for a service of goal `cost` at 50 ms the second is a tenth.
    fn rate() -> f64 {
        RewardWeights::default().cost.cost_term(0.2) + 0.1
    }

    fn of(service: bool, outcome: Outcome) -> Option<f64> {
        realised(&experience(service, outcome), &RewardWeights::default())
    }

    #[test]
    fn a_completed_placement_earns_its_two_terms() {
        assert_eq!(of(true, GOOD), Some(rate()));
        assert_eq!(of(false, GOOD), Some(rate()), "a job's p99 is a constant");
        let absurd = Outcome {
            cost_per_hour: 1e300,
            ..GOOD
        };
        assert!(of(true, absurd).unwrap() >= VIOLATION);
    }

    #[test]
    fn a_loss_costs_work_at_risk_and_the_time_without_a_place() {
        let lost = Outcome {
            completed: false,
            ..GOOD
        };
        let service = (rate() * 2.75 - 0.25) / 3.0;
        assert!((of(true, lost).unwrap() - service).abs() < 1e-9);
        let job = (rate() * 1.75 - 0.25) / 3.0;
        assert!((of(false, lost).unwrap() - job).abs() < 1e-6);
        let at_once = Outcome { hours: 0.0, ..lost };
        assert_eq!(of(false, at_once), Some(WAIT_PENALTY));
    }

    #[test]
    fn a_broken_constraint_outweighs_all() {
        let broken = Outcome {
            violations: 2,
            ..GOOD
        };
        assert_eq!(of(true, broken), Some(VIOLATION));
    }

    #[test]
    fn a_service_without_p99_is_not_judged() {
        let unknown = Outcome {
            p99_ms: None,
            ..GOOD
        };
        assert_eq!(of(true, unknown), None);
        assert_eq!(of(false, unknown), Some(rate()));
    }
}
