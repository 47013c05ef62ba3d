//! What an outcome was worth, in the terms of the simulator (`docs/simulator.md`).

use hyperion_placement::features::{
    FitSlot, NODE, NodeSlot, PAIR, PairSlot, REQUEST, REQUEST_LEN, RequestSlot, Slot,
};
use hyperion_placement::reward::{JOB_P99_MS, RewardWeights, VIOLATION, Weights};
use hyperion_policy::Experience;

use crate::sim::WAIT_PENALTY;

/// Hours that who lost its place is taken to go without one: about a boot, an image pull and a
/// start, as in the simulator's cloud pools.
pub const RECOVERY_HOURS: f64 = 0.25;

/// Hours over which the price of getting somewhere is spread at least. Replicas that run well are
/// looked at again no sooner in the simulator, so that what stays shorter was cut short by something
/// else.
const SPREAD_HOURS: f64 = 0.5;

/// Whether the workload is a service.
#[must_use]
pub fn is_service(request: &[f32; REQUEST_LEN]) -> bool {
    request[RequestSlot::Service as usize] > 0.5
}

/// Reward per hour that the placement earned, the price of getting there and the time without a place
/// after a loss included. None for a service whose p99 is not known.
///
/// A job that neither ended there nor left in good order lost the work it had at risk.
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
    let arrival = arrival(experience, &weights, rate) / outcome.hours.max(SPREAD_HOURS);
    let less_arrival = |rate: f64| (rate - arrival).max(VIOLATION);
    if outcome.completed || outcome.moved {
        return Some(less_arrival(rate));
    }
    let at_risk = if service {
        0.0
    } else {
        hours_at_risk(&experience.request)
    };
    let worked = (outcome.hours - at_risk).max(0.0);
    let earned = rate * worked + WAIT_PENALTY * RECOVERY_HOURS;
    Some(less_arrival(earned / (outcome.hours + RECOVERY_HOURS)))
}

/// Reward that getting there cost once, by the simulator's rules: egress of its data, and while the
/// machine booted the second copy of a service that moved, or else the wait. How long images took is
/// not in an experience. `rate` is what it earned an hour once it was there.
fn arrival(experience: &Experience, weights: &Weights, rate: f64) -> f64 {
    let Some(chosen) = experience.candidates.get(experience.chosen) else {
        return 0.0;
    };
    if chosen.fit[FitSlot::Here as usize] > 0.5 {
        return 0.0;
    }
    let egress = amount(&chosen.pair, PAIR, PairSlot::Egress as usize);
    let boot = amount(&chosen.node, NODE, NodeSlot::Startup as usize) / 3600.0;
    let boot = boot.min(experience.outcome.hours);
    let ran = experience.request[RequestSlot::Running as usize] > 0.5;
    let meanwhile = if ran && is_service(&experience.request) {
        weights.extra_usd_term(experience.outcome.cost_per_hour * boot)
    } else {
        (rate - WAIT_PENALTY).max(0.0) * boot
    };
    weights.extra_usd_term(egress) + meanwhile
}

/// What a slot stands for whose unit is the logarithm of one more.
fn amount(values: &[f32], table: &[Slot], slot: usize) -> f64 {
    f64::from(values[slot] * table[slot].scale)
        .exp_m1()
        .max(0.0)
}

/// By the feature `work_at_risk`.
fn hours_at_risk(request: &[f32; REQUEST_LEN]) -> f64 {
    amount(request, REQUEST, RequestSlot::AtRisk as usize)
}

#[cfg(test)]
mod tests {
    use hyperion_placement::features::{FIT_LEN, NODE_LEN, PAIR_LEN};
    use hyperion_placement::model::Goal;
    use hyperion_policy::{Encoded, Outcome};

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
        moved: false,
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
    fn a_job_that_was_moved_kept_its_work_and_one_that_was_lost_did_not() {
        let moved = Outcome {
            completed: false,
            moved: true,
            ..GOOD
        };
        assert_eq!(of(false, moved), Some(rate()));
        let lost = Outcome {
            moved: false,
            ..moved
        };
        assert!(of(false, lost) < of(false, moved));
    }

    /// What getting there cost an hour of the stay: 2 USD of egress, ten minutes to boot.
    fn price(service: bool, ran: bool, here: bool, outcome: Outcome) -> f64 {
        let mut arrived = experience(service, outcome);
        arrived.request[RequestSlot::Running as usize] = f32::from(u8::from(ran));
        let mut chosen = Encoded {
            node: [0.0; NODE_LEN],
            pair: [0.0; PAIR_LEN],
            fit: [0.0; FIT_LEN],
        };
        let free = of(service, outcome).unwrap();
        arrived.candidates = vec![chosen];
        let weights = RewardWeights::default();
        assert_eq!(realised(&arrived, &weights), Some(free));
        let (egress, startup) = (PairSlot::Egress as usize, NodeSlot::Startup as usize);
        chosen.pair[egress] = 3.0_f32.ln() / PAIR[egress].scale;
        chosen.node[startup] = 601.0_f32.ln() / NODE[startup].scale;
        chosen.fit[FitSlot::Here as usize] = f32::from(u8::from(here));
        arrived.candidates = vec![chosen];
        free - realised(&arrived, &weights).unwrap()
    }

    #[test]
    fn getting_there_has_its_price() {
        let near = |found: f64, wanted: f64| assert!((found - wanted).abs() < 1e-4, "{found}");
        // At 0.20 USD/h a dollar beyond the hourly cost is worth five of reward.
        let (egress, boot) = (10.0, 1.0 / 6.0);
        let second = 5.0 * 0.2 * boot;
        near(price(true, true, false, GOOD), (egress + second) / 2.75);
        let waits = boot * (rate() + 1.0);
        near(price(true, false, false, GOOD), (egress + waits) / 2.75);
        near(price(false, true, false, GOOD), (egress + waits) / 2.75);
        near(price(true, true, true, GOOD), 0.0);
        let short = Outcome { hours: 0.1, ..GOOD };
        let second = 5.0 * 0.2 * 0.1;
        near(price(true, true, false, short), (egress + second) / 0.5);
        let lost = Outcome {
            completed: false,
            ..GOOD
        };
        near(price(false, true, false, lost), (egress + waits) / 2.75);
    }

    #[test]
    fn an_absurd_price_does_not_outweigh_a_broken_constraint() {
        let mut arrived = experience(true, GOOD);
        let mut chosen = Encoded {
            node: [f32::MAX; NODE_LEN],
            pair: [f32::MAX; PAIR_LEN],
            fit: [0.0; FIT_LEN],
        };
        for odd in [f32::MAX, f32::MIN] {
            chosen.pair[PairSlot::Egress as usize] = odd;
            arrived.candidates = vec![chosen];
            let reward = realised(&arrived, &RewardWeights::default()).unwrap();
            assert!((VIOLATION..=rate()).contains(&reward), "{reward}");
        }
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
