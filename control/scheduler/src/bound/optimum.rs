//! Between which rewards the optimum of a small world lies.

use std::sync::Arc;

use super::foresight::Foresight;
use super::search::{Found, improve, record};
use super::sharp::sharp;
use crate::scenario::Scenario;
use crate::sim::{Brain, SimConfig};

/// Times that the search goes over an episode's decisions at most.
const PASSES: u32 = 2;

/// The optimum of one episode, as mean rewards like those of schedulers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Optimum {
    /// The simulator was seen to pay so much.
    pub at_least: f64,
    /// No schedule earns more.
    pub at_most: f64,
}

/// Finds a good schedule, from the best of some schedulers and `foresight`, and a bound on all; none
/// for more than [`super::MOST_WORKLOADS`] workloads. `rounds` of the bound: more only lower it.
#[must_use]
pub fn optimum(
    scenario: &Arc<Scenario>,
    config: SimConfig,
    foresight: &Foresight,
    brains: &mut [Box<dyn Brain + Send>],
    rounds: u32,
) -> Option<Optimum> {
    let starts: Vec<Found> = brains
        .iter_mut()
        .map(|brain| {
            record(scenario, config, |point| {
                let (snapshot, request) = (point.snapshot, point.request);
                brain.decide(snapshot, request, &point.candidates, &point.truth())
            })
        })
        .collect();
    let planned = record(scenario, config, |point| foresight.choose(point));
    let start = starts.into_iter().fold(planned, |best, start| {
        if start.reward > best.reward {
            start
        } else {
            best
        }
    });
    let reached = improve(scenario, config, start, PASSES).reward;
    let most = sharp(scenario, &config, rounds, reached)?.min(foresight.bound.reward);
    let demanded = scenario.demanded_hours();
    let per_hour = |reward: f64| reward / demanded.max(f64::MIN_POSITIVE);
    Some(Optimum {
        at_least: per_hour(reached),
        at_most: per_hour(most),
    })
}
