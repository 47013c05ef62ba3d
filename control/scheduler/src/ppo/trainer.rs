//! The learner: plays, judges, learns.

use std::sync::Mutex;
use std::time::Instant;

use hyperion_placement::policy::Network;
use serde::{Deserialize, Serialize};

use super::adam::{Adam, Rates};
use super::batch::batches;
use super::loss::{Judged, Sample, Sums, Weights, judge, objective};
use super::model::Model;
use super::parameters::{self, actor_len, total_len};
use super::random::{Purpose, Stream, derive};
use super::returns::{Discount, Outcome, outcomes};
use super::rollout::{Mode, collect};
use super::samples::{mean_and_deviation, samples};
use super::stats::{FeatureStats, ReturnStats};
use super::{Config, Environment, Episode, Error};
use crate::parallel::in_parallel;

/// Learns a policy.
pub struct Trainer {
    pub(super) config: Config,
    pub(super) environments: Vec<Mutex<Box<dyn Environment>>>,
    pub(super) state: State,
}

/// All that changes as a trainer learns.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct State {
    pub iteration: u32,
    pub adam: Adam,
    /// The policy's weights, averaged over the iterations.
    pub average: Vec<f32>,
    pub returns: ReturnStats,
    pub features: FeatureStats,
}

/// What an iteration did.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Iterations done.
    pub iteration: u32,
    /// Turns of this one.
    pub turns: u64,
    /// Turns since training began.
    pub total_turns: u64,
    /// What all actors earned, mean over the episodes.
    pub mean_return: f64,
    /// Mean entropy of the choices, nats.
    pub entropy: f64,
    /// How far the policy moved, nats a turn.
    pub kl: f64,
    /// Share of turns whose probability has reached the clip.
    pub clipped: f64,
    /// Mean squared error of the critic, in variances of the return.
    pub value_loss: f64,
    /// Share of the variance of returns that the critic foresaw: 1 at best.
    pub explained_variance: f64,
    /// Norm of the policy's gradient, mean over the steps, before it is scaled down.
    pub gradient_norm: f64,
    /// Steps of the optimiser.
    pub steps: u32,
    /// Learning rate of the policy.
    pub learning_rate: f64,
    /// Seconds of wall time spent playing.
    pub play_seconds: f64,
    /// Seconds of wall time spent learning.
    pub learn_seconds: f64,
}

/// What learning from an iteration's turns did.
#[derive(Debug, Clone, Copy, Default)]
struct Learned {
    /// Means over the turns of the last pass.
    sums: Sums,
    gradient_norm: f64,
    steps: u32,
}

impl Trainer {
    /// A learner that has learned nothing yet.
    ///
    /// # Errors
    /// [`Error::Config`] where a setting makes no sense or there is no environment.
    pub fn new(config: Config, environments: Vec<Box<dyn Environment>>) -> Result<Self, Error> {
        config.check()?;
        if environments.is_empty() {
            return Err(Error::Config {
                field: "environments",
                problem: "there are none".to_owned(),
            });
        }
        let values = parameters::initial(config.seed, &config.taste);
        let average = values[..actor_len()].to_vec();
        Ok(Self {
            config,
            environments: environments.into_iter().map(Mutex::new).collect(),
            state: State {
                iteration: 0,
                adam: Adam::new(values),
                average,
                returns: ReturnStats::default(),
                features: FeatureStats::default(),
            },
        })
    }

    /// The settings.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Iterations done.
    #[must_use]
    pub const fn iteration(&self) -> u32 {
        self.state.iteration
    }

    /// The policy as it is now.
    #[must_use]
    pub fn network(&self) -> Network {
        parameters::network(&self.state.adam.values)
    }

    /// The policy averaged over the iterations by [`Config::averaging`]: what the noise of single
    /// iterations adds is gone from it.
    #[must_use]
    pub fn averaged(&self) -> Network {
        parameters::network(&self.state.average)
    }

    /// Goes on from another policy. The critic and what is known of features stay.
    pub fn set_network(&mut self, network: &Network) {
        parameters::set_network(&mut self.state.adam.values, network);
        self.state.average = self.state.adam.values[..actor_len()].to_vec();
        self.state.adam.forget();
    }

    /// What features were like since training began.
    #[must_use]
    pub const fn features(&self) -> &FeatureStats {
        &self.state.features
    }

    /// Plays an episode for each seed, always with the best choice, without learning. Results are
    /// in the order of the seeds; the environments take turns.
    ///
    /// # Errors
    /// [`Error::Environment`] where one breaks its contract.
    pub fn evaluate(&self, seeds: &[u64]) -> Result<Vec<Episode>, Error> {
        let network = self.network();
        let threads = self.config.threads;
        collect(&self.environments, &network, seeds, Mode::Best, threads)
    }

    /// One iteration: plays [`Config::episodes`] and learns from every turn.
    ///
    /// # Errors
    /// [`Error::Environment`] where one breaks its contract, [`Error::Diverged`] where numbers got
    /// out of hand. The trainer is then as it was before.
    pub fn step(&mut self) -> Result<Progress, Error> {
        let begun = Instant::now();
        let (config, mut state) = (&self.config, self.state.clone());
        let iteration = state.iteration;
        let seeds: Vec<u64> = (0..u64::from(config.episodes))
            .map(|e| derive(config.seed, Purpose::Episode, u64::from(iteration), e))
            .collect();
        let network = parameters::network(&state.adam.values);
        let mode = Mode::Sample(config.seed, iteration);
        let threads = config.threads;
        let episodes = collect(&self.environments, &network, &seeds, mode, threads)?;
        for stats in in_parallel(threads, episodes.len(), |e| {
            let mut stats = FeatureStats::default();
            stats.add(&episodes[e].turns);
            stats
        }) {
            state.features.merge(&stats);
        }
        let played = Instant::now();

        let judged = judge_all(&state.adam.values, &episodes, threads)?;
        let (mean, deviation) = (state.returns.mean(), state.returns.deviation());
        let expected: Vec<f64> = judged
            .iter()
            .map(|j| f64::from(j.value) * deviation + mean)
            .collect();
        let outcomes = all_outcomes(config, &episodes, &expected)?;
        let explained = explained_variance(&outcomes, &expected);
        state.returns.add(outcomes.iter().map(|o| o.target));
        let (scale, shift) = (
            deviation / state.returns.deviation(),
            (mean - state.returns.mean()) / state.returns.deviation(),
        );
        // What the critic says in rewards stays the same as their mean and deviation change (van
        // Hasselt et al., 2016).
        parameters::rescale_critic(&mut state.adam.values, scale, shift);
        let samples = samples(
            &episodes,
            &judged,
            &outcomes,
            &state.returns,
            config.balance,
        );
        let learned = learn(config, iteration, &mut state.adam, &samples)?;

        state.iteration += 1;
        average(&mut state, config.averaging);
        let turns = samples.len() as u64;
        let teams = episodes.iter().map(Episode::team).sum::<f64>();
        let progress = Progress {
            iteration: state.iteration,
            turns,
            total_turns: state.features.turns(),
            mean_return: teams / episodes.len().max(1) as f64,
            entropy: learned.sums.entropy,
            kl: learned.sums.kl,
            clipped: learned.sums.clipped,
            value_loss: learned.sums.value_loss,
            explained_variance: explained,
            gradient_norm: learned.gradient_norm,
            steps: learned.steps,
            learning_rate: config.learning_rate.at(iteration, config.iterations),
            play_seconds: (played - begun).as_secs_f64(),
            learn_seconds: played.elapsed().as_secs_f64(),
        };
        self.state = state;
        Ok(progress)
    }
}

/// Takes the policy into the average: the plain mean at first, until it is old enough to forget.
fn average(state: &mut State, averaging: f64) {
    let iterations = f64::from(state.iteration);
    let kept = averaging.min(1.0 - 1.0 / iterations);
    for (mean, value) in state.average.iter_mut().zip(&state.adam.values) {
        *mean = (kept * f64::from(*mean) + (1.0 - kept) * f64::from(*value)) as f32;
    }
}

/// Judges every turn of every episode, in order.
fn judge_all(values: &[f32], episodes: &[Episode], threads: usize) -> Result<Vec<Judged>, Error> {
    let model = Model::new(values)?;
    let turns: Vec<_> = episodes
        .iter()
        .flat_map(|e| e.turns.iter().zip(&e.choices))
        .collect();
    let groups = batches((0..turns.len()).collect(), |i| turns[*i].0.candidates.len());
    let results = in_parallel(threads, groups.len(), |group| {
        let members = &groups[group];
        let choices = members.iter().map(|i| *turns[*i].1 as u32).collect();
        judge(
            &model,
            &members.iter().map(|i| turns[*i].0).collect::<Vec<_>>(),
            choices,
        )
    });
    let mut judged = vec![None; turns.len()];
    for (members, results) in groups.iter().zip(results) {
        for (member, result) in members.iter().zip(results?) {
            judged[*member] = Some(result);
        }
    }
    Ok(judged.into_iter().flatten().collect())
}

fn all_outcomes(
    config: &Config,
    episodes: &[Episode],
    expected: &[f64],
) -> Result<Vec<Outcome>, Error> {
    let discount = Discount {
        kappa: config.kappa,
        gamma: config.gamma,
        lambda: config.lambda,
    };
    let (mut all, mut rest) = (Vec::with_capacity(expected.len()), expected);
    for episode in episodes {
        let (values, left) = rest.split_at(episode.turns.len());
        all.extend(outcomes(episode, values, discount)?);
        rest = left;
    }
    Ok(all)
}

fn explained_variance(outcomes: &[Outcome], expected: &[f64]) -> f64 {
    let (_, all) = mean_and_deviation(outcomes.iter().map(|o| o.target));
    let left = outcomes.iter().zip(expected).map(|(o, e)| o.target - e);
    let (_, left) = mean_and_deviation(left);
    if all > 0.0 {
        1.0 - (left / all) * (left / all)
    } else {
        0.0
    }
}

fn learn(
    config: &Config,
    iteration: u32,
    adam: &mut Adam,
    samples: &[Sample<'_>],
) -> Result<Learned, Error> {
    let at = |schedule: super::Schedule| schedule.at(iteration, config.iterations);
    let rates = Rates {
        actor: (iteration >= config.critic_warmup).then(|| at(config.learning_rate)),
        critic: Some(at(config.critic_learning_rate)),
    };
    let mut learned = Learned::default();
    let mut random = Stream::new(config.seed, Purpose::Order, u64::from(iteration), 0);
    let mut order: Vec<Sample<'_>> = samples.to_vec();
    let chunk = even_chunk(order.len(), config.minibatch);
    let mut norms = 0.0;
    for _ in 0..config.epochs {
        random.shuffle(&mut order);
        let (mut sums, mut turns, mut stop) = (Sums::default(), 0, false);
        for minibatch in order.chunks(chunk) {
            let weights = Weights {
                clip: config.clip,
                entropy: at(config.entropy),
                share_trunk: config.share_trunk,
                per_turn: 1.0 / minibatch.len() as f64,
            };
            let (gradient, found) = gradient(config.threads, &adam.values, minibatch, weights)?;
            let diverged = |what| Error::Diverged { what, iteration };
            if !gradient.iter().all(|g| g.is_finite()) {
                return Err(diverged("a gradient"));
            }
            sums += found;
            turns += minibatch.len();
            stop = found.kl > config.max_kl * minibatch.len() as f64;
            if stop {
                break;
            }
            norms += adam.step(&gradient, rates, config.max_gradient_norm, &config.adam);
            learned.steps += 1;
            if !adam.values.iter().all(|v| v.is_finite()) {
                return Err(diverged("a weight"));
            }
        }
        learned.sums = sums.over(turns);
        if stop {
            break;
        }
    }
    learned.gradient_norm = norms / f64::from(learned.steps.max(1));
    Ok(learned)
}

/// Length of chunks of about the same length, none longer than `most`.
pub(super) fn even_chunk(count: usize, most: usize) -> usize {
    count.div_ceil(count.div_ceil(most).max(1)).max(1)
}

/// Gradient of a minibatch, summed in the order of its batches whichever thread did which.
fn gradient(
    threads: usize,
    values: &[f32],
    minibatch: &[Sample<'_>],
    weights: Weights,
) -> Result<(Vec<f32>, Sums), Error> {
    let model = Model::new(values)?;
    let groups = batches(minibatch.to_vec(), |s| s.turn.candidates.len());
    let results = in_parallel(threads, groups.len(), |group| {
        objective(&model, &groups[group], weights)
    });
    let (mut gradient, mut sums) = (vec![0.0; total_len()], Sums::default());
    for result in results {
        let (part, found) = result?;
        add(&mut gradient, &part);
        sums += found;
    }
    Ok((gradient, sums))
}

pub(super) fn add(sum: &mut [f32], part: &[f32]) {
    for (sum, part) in sum.iter_mut().zip(part) {
        *sum += part;
    }
}
