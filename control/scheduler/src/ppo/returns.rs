//! From episodes to advantages: one trajectory for each actor, discounted by virtual time.

use std::collections::BTreeMap;

use super::{Ending, Episode, Error};

/// What a turn led to.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Outcome {
    /// How much better than the critic expected.
    pub advantage: f64,
    /// What the critic should have said.
    pub target: f64,
}

/// Discounts of [`outcomes`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Discount {
    pub kappa: f64,
    pub gamma: f64,
    pub lambda: f64,
}

/// A step of a trajectory: the reward until the next one, and the hours.
struct Step {
    reward: f64,
    hours: f64,
}

/// Outcome of every turn of an episode by generalised advantage estimation (Schulman et al., 2016)
/// with discounts of `gamma` to the power of the hours between two turns of an actor.
///
/// An actor that would have gone on is taken to be worth at the end what it was worth at its last
/// turn: nothing newer is known of it.
pub(super) fn outcomes(
    episode: &Episode,
    values: &[f64],
    discount: Discount,
) -> Result<Vec<Outcome>, Error> {
    let mut trajectories: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (i, turn) in episode.turns.iter().enumerate() {
        trajectories.entry(turn.actor).or_default().push(i);
    }
    let endings: BTreeMap<u64, &Ending> = episode.endings.iter().map(|e| (e.actor, e)).collect();
    let mut outcomes = vec![Outcome::default(); episode.turns.len()];
    for (actor, turns) in &trajectories {
        let problem = |problem: &str| Error::Environment {
            seed: episode.seed,
            problem: format!("actor {actor} {problem}"),
        };
        let ending = endings.get(actor).ok_or_else(|| problem("had no ending"))?;
        let steps = steps(episode, turns, ending, discount.kappa);
        if steps.iter().any(|s| !s.reward.is_finite()) {
            return Err(problem("ended with a reward that is not finite"));
        }
        if !steps.iter().all(|s| s.hours >= 0.0) {
            return Err(problem("went back in time"));
        }
        let last = turns.last().map_or(0.0, |t| values[*t]);
        let mut next_value = if ending.done { 0.0 } else { last };
        let mut next_advantage = 0.0;
        for (turn, step) in turns.iter().zip(&steps).rev() {
            let factor = discount.gamma.powf(step.hours);
            let surprise = step.reward + factor * next_value - values[*turn];
            next_advantage = surprise + factor * discount.lambda * next_advantage;
            next_value = values[*turn];
            outcomes[*turn] = Outcome {
                advantage: next_advantage,
                target: next_advantage + next_value,
            };
        }
    }
    Ok(outcomes)
}

fn steps(episode: &Episode, turns: &[usize], ending: &Ending, kappa: f64) -> Vec<Step> {
    let reward = |earned: f64, team: f64| earned + kappa * (team - earned);
    let times = turns.iter().map(|t| {
        let turn = &episode.turns[*t];
        (turn.hour, turn.earned, turn.team)
    });
    let ends =
        times
            .clone()
            .skip(1)
            .chain(std::iter::once((ending.hour, ending.earned, ending.team)));
    times
        .zip(ends)
        .map(|((hour, _, team), (later, earned, later_team))| Step {
            reward: reward(earned, later_team - team),
            hours: later - hour,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::{CandidateFeatures, Turn};
    use super::*;

    fn turn(actor: u64, hour: f64, earned: f64, team: f64) -> Turn {
        Turn {
            actor,
            hour,
            earned,
            team,
            request: [0.0; 32],
            candidates: vec![CandidateFeatures {
                node: [0.0; 32],
                pair: [0.0; 32],
                fit: [0.0; 16],
            }],
        }
    }

    fn episode(done: bool) -> Episode {
        Episode {
            seed: 7,
            turns: vec![
                turn(1, 0.0, 0.0, 0.0),
                turn(2, 1.0, 0.0, 3.0),
                turn(1, 2.0, 4.0, 10.0),
            ],
            choices: vec![0; 3],
            endings: vec![
                Ending {
                    actor: 1,
                    hour: 3.0,
                    earned: 8.0,
                    team: 20.0,
                    done,
                },
                Ending {
                    actor: 2,
                    hour: 3.0,
                    earned: 6.0,
                    team: 20.0,
                    done: true,
                },
            ],
        }
    }

    const DISCOUNT: Discount = Discount {
        kappa: 0.0,
        gamma: 0.5,
        lambda: 1.0,
    };

    #[test]
    fn rewards_are_discounted_by_the_hours_between_turns_of_an_actor() {
        let outcomes = outcomes(&episode(true), &[0.0; 3], DISCOUNT).unwrap();
        let targets: Vec<f64> = outcomes.iter().map(|o| o.target).collect();
        // Actor 1: 4 + 0.5^2 * 8 two hours earlier.
        assert_eq!(targets, [6.0, 6.0, 8.0]);
    }

    #[test]
    fn advantage_is_what_the_critic_did_not_expect() {
        let values = [6.0, 6.0, 8.0];
        for lambda in [0.0, 0.5, 1.0] {
            let discount = Discount { lambda, ..DISCOUNT };
            let outcomes = outcomes(&episode(true), &values, discount).unwrap();
            assert!(outcomes.iter().all(|o| o.advantage == 0.0));
        }
    }

    #[test]
    fn an_actor_that_would_go_on_is_worth_what_it_was_worth() {
        let outcomes = outcomes(&episode(false), &[0.0, 0.0, 2.0], DISCOUNT).unwrap();
        assert_eq!(outcomes[2].target, 8.0 + 0.5 * 2.0);
    }

    #[test]
    fn kappa_adds_a_share_of_what_the_others_earned() {
        let discount = Discount {
            kappa: 0.5,
            gamma: 1.0,
            ..DISCOUNT
        };
        let outcomes = outcomes(&episode(true), &[0.0; 3], discount).unwrap();
        // 8 of its own, and half of 20 - 10 - 8.
        assert_eq!(outcomes[2].target, 9.0);
        assert_eq!(outcomes[0].target, 9.0 + 4.0 + 0.5 * 6.0);
    }

    #[test]
    fn an_actor_without_an_ending_is_named() {
        let mut episode = episode(true);
        episode.endings.pop();
        let error = outcomes(&episode, &[0.0; 3], DISCOUNT).unwrap_err();
        assert!(error.to_string().contains("actor 2"), "{error}");
    }
}
