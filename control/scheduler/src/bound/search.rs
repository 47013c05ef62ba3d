//! A good schedule found with perfect knowledge, played in the simulator with all its rules: what
//! the optimum reaches at the least.
//!
//! Starts from what a scheduler does. At each of its decisions every other answer is tried, with
//! and without staying there for some time, by playing the rest of the episode as before; the best
//! answer is kept. Repeated until nothing gets better.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::scenario::Scenario;
use crate::sim::{DecisionPoint, SimConfig, Simulator};

/// Hours for which a new answer is tried to be kept: until the next decision, and for good.
const HOLDS: [f64; 2] = [0.0, f64::INFINITY];

/// Answers by workload and time; none is to wait or to stay.
type Script = BTreeMap<(usize, u64), Option<String>>;

/// What is played.
struct Play {
    script: Script,
    /// By workload: until when it stays where it is.
    hold: Vec<f64>,
}

fn key(point: &DecisionPoint<'_>) -> (usize, u64) {
    (point.workload, point.hour.to_bits())
}

impl Play {
    /// The answer at a decision. Who waits where the script says nothing does what it said last.
    fn answer(&self, point: &DecisionPoint<'_>) -> Option<usize> {
        if point.request.current.is_some() && point.hour < self.hold[point.workload] {
            return None;
        }
        let said = self.script.get(&key(point)).or_else(|| {
            let (from, to) = ((point.workload, 0), key(point));
            let before = self.script.range(from..to).next_back();
            before
                .map(|(_, id)| id)
                .filter(|_| point.request.current.is_none())
        });
        let id = said?.as_ref()?;
        point
            .candidates
            .iter()
            .position(|c| *c.candidate.id == **id)
            .or_else(|| {
                // An instance of another number: the pool that it came from.
                let (pool, _) = id.rsplit_once('/')?;
                let mut candidates = point.candidates.iter();
                candidates.position(|c| c.candidate.id.starts_with(pool))
            })
    }

    fn finish(&self, simulator: &mut Simulator) -> f64 {
        while let Some(point) = simulator.next_decision() {
            let answer = self.answer(&point);
            simulator.act(answer);
        }
        simulator.team()
    }
}

/// A schedule and what it earns.
pub struct Found {
    /// Reward of all workloads.
    pub reward: f64,
    script: Script,
}

/// Writes down what a scheduler does.
#[must_use]
pub fn record(
    scenario: &Arc<Scenario>,
    config: SimConfig,
    mut decide: impl FnMut(&DecisionPoint<'_>) -> Option<usize>,
) -> Found {
    let mut simulator = Simulator::new(scenario, config);
    let mut script = Script::new();
    while let Some(point) = simulator.next_decision() {
        let choice = decide(&point);
        let id = choice.and_then(|c| point.candidates.get(c));
        script.insert(key(&point), id.map(|c| c.candidate.id.to_owned()));
        simulator.act(choice);
    }
    Found {
        reward: simulator.team(),
        script,
    }
}

/// Improves a schedule, `passes` times over its decisions at most.
#[must_use]
pub fn improve(scenario: &Arc<Scenario>, config: SimConfig, start: Found, passes: u32) -> Found {
    let mut best = start;
    for _ in 0..passes {
        let before = best.reward;
        best = pass(scenario, config, best);
        if best.reward <= before + 1e-6 * before.abs().max(1.0) {
            break;
        }
    }
    best
}

fn pass(scenario: &Arc<Scenario>, config: SimConfig, start: Found) -> Found {
    let count = scenario.workloads.len();
    let mut play = Play {
        script: start.script,
        hold: vec![f64::NEG_INFINITY; count],
    };
    let mut simulator = Simulator::new(scenario, config);
    let mut reward = play.finish(&mut simulator.clone());
    let mut said = Script::new();
    while let Some(point) = simulator.next_decision() {
        let (workload, hour, at) = (point.workload, point.hour, key(&point));
        let ids = point.candidates.iter().map(|c| c.candidate.id.to_owned());
        let ids: Vec<String> = ids.collect();
        let usual = play.answer(&point);
        let here = point.request.current.clone();
        let old = play.hold[workload];
        let mut chosen = (usual, old);
        let answers = (0..ids.len()).map(Some).chain([None]);
        for answer in answers {
            // Staying by name and by no answer is the same.
            if answer.is_some_and(|a| here.as_deref() == Some(&*ids[a])) {
                continue;
            }
            for hold in HOLDS {
                if answer == usual && hold == 0.0 {
                    continue;
                }
                let mut other = simulator.clone();
                play.hold[workload] = if hold > 0.0 { hour + hold } else { old };
                other.act(answer);
                let gained = play.finish(&mut other);
                if gained > reward + 1e-9 {
                    reward = gained;
                    chosen = (answer, play.hold[workload]);
                }
            }
        }
        play.hold[workload] = chosen.1;
        said.insert(at, chosen.0.map(|c| ids[c].clone()));
        simulator.act(chosen.0);
    }
    Found {
        reward: simulator.team(),
        script: said,
    }
}

/// The optimum of a world with very few decisions: every schedule is played. None where there are
/// more than `most` of them.
#[must_use]
pub fn exhaustive(scenario: &Arc<Scenario>, config: SimConfig, most: u64) -> Option<f64> {
    let mut left = most;
    every(Simulator::new(scenario, config), &mut left)
}

fn every(mut simulator: Simulator, left: &mut u64) -> Option<f64> {
    let Some(point) = simulator.next_decision() else {
        *left = left.checked_sub(1)?;
        return Some(simulator.team());
    };
    let here = point.request.current.as_deref();
    let others =
        (0..point.candidates.len()).filter(|c| here != Some(point.candidates[*c].candidate.id));
    let answers: Vec<Option<usize>> = others.map(Some).chain([None]).collect();
    let mut best = f64::NEG_INFINITY;
    for answer in answers {
        let mut next = simulator.clone();
        next.act(answer);
        best = best.max(every(next, left)?);
    }
    Some(best)
}
