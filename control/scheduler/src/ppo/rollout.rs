//! Playing episodes.

use std::sync::Mutex;

use hyperion_placement::policy::Network;

use super::act::Actor;
use super::random::{Purpose, Stream};
use super::{Ending, Environment, Error, Turn};
use crate::parallel::in_parallel;

/// An episode that was played.
#[derive(Debug, Clone, PartialEq)]
pub struct Episode {
    /// Its seed.
    pub seed: u64,
    /// The turns, in order.
    pub turns: Vec<Turn>,
    /// What was chosen in each.
    pub choices: Vec<usize>,
    /// How it ended for each actor.
    pub endings: Vec<Ending>,
}

impl Episode {
    /// What all actors earned; 0 where there was none.
    #[must_use]
    pub fn team(&self) -> f64 {
        let last = |a: &&Ending, b: &&Ending| a.hour.total_cmp(&b.hour);
        self.endings.iter().max_by(last).map_or(0.0, |e| e.team)
    }
}

/// Plays one episode.
///
/// # Errors
/// [`Error::Environment`] where a turn has no candidates, or numbers that are not finite;
/// [`Error::Choice`] where the choice is not among the candidates.
pub fn play(
    environment: &mut dyn Environment,
    seed: u64,
    mut choose: impl FnMut(&Turn) -> usize,
) -> Result<Episode, Error> {
    environment.reset(seed);
    let (mut turns, mut choices) = (Vec::new(), Vec::new());
    while let Some(turn) = environment.turn() {
        check(&turn, seed)?;
        let (choice, candidates) = (choose(&turn), turn.candidates.len());
        if choice >= candidates {
            return Err(Error::Choice {
                seed,
                choice,
                candidates,
            });
        }
        environment.act(choice);
        turns.push(turn);
        choices.push(choice);
    }
    Ok(Episode {
        seed,
        turns,
        choices,
        endings: environment.endings(),
    })
}

fn check(turn: &Turn, seed: u64) -> Result<(), Error> {
    let problem = |problem: &str| {
        let (actor, hour) = (turn.actor, turn.hour);
        Err(Error::Environment {
            seed,
            problem: format!("the turn of actor {actor} at hour {hour} {problem}"),
        })
    };
    if turn.candidates.is_empty() {
        return problem("has no candidates");
    }
    if ![turn.hour, turn.earned, turn.team]
        .iter()
        .all(|v| v.is_finite())
    {
        return problem("has a time or a reward that is not finite");
    }
    if !turn.request.iter().all(|v| v.is_finite()) {
        return problem("has a request that is not finite");
    }
    for (i, c) in turn.candidates.iter().enumerate() {
        if !c
            .node
            .iter()
            .chain(&c.pair)
            .chain(&c.fit)
            .all(|v| v.is_finite())
        {
            return problem(&format!(
                "has features of candidate {i} that are not finite"
            ));
        }
    }
    Ok(())
}

/// How choices are made from scores.
#[derive(Debug, Clone, Copy)]
pub(super) enum Mode {
    /// Drawn with the probabilities that they stand for; of seed and iteration.
    Sample(u64, u32),
    /// The best.
    Best,
}

/// Plays an episode for each seed; the environments take turns. Results are in the order of the
/// seeds.
pub(super) fn collect(
    environments: &[Mutex<Box<dyn Environment>>],
    network: &Network,
    seeds: &[u64],
    mode: Mode,
    threads: usize,
) -> Result<Vec<Episode>, Error> {
    let count = environments.len();
    let played = in_parallel(threads, count.min(seeds.len()), |first| {
        let mut environment = match environments[first].lock() {
            Ok(environment) => environment,
            // Whatever a panic left behind, the reset does away with.
            Err(poisoned) => poisoned.into_inner(),
        };
        let mut actor = Actor::new(network);
        (first..seeds.len())
            .step_by(count)
            .map(|episode| {
                let environment = environment.as_mut();
                let seed = seeds[episode];
                match mode {
                    Mode::Best => play(environment, seed, |turn| actor.best(turn)),
                    Mode::Sample(run, iteration) => {
                        let (iteration, episode) = (u64::from(iteration), episode as u64);
                        let mut random = Stream::new(run, Purpose::Choices, iteration, episode);
                        play(environment, seed, |turn| actor.sample(turn, &mut random))
                    }
                }
            })
            .collect::<Result<Vec<_>, Error>>()
    });
    let mut by_environment = Vec::with_capacity(played.len());
    for episodes in played {
        by_environment.push(episodes?.into_iter());
    }
    Ok((0..seeds.len())
        .filter_map(|episode| by_environment[episode % count].next())
        .collect())
}
