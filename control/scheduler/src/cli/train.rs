//! `hyperion-train train`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hyperion_placement::policy::Network;
use hyperion_placement::reward::RewardWeights;
use hyperion_policy::{Card, PolicyFile, Quantisation, SlotStats, Statistics, TrainingData};
use hyperion_scheduler::baselines;
use hyperion_scheduler::bound::RoomPrices;
use hyperion_scheduler::eval::episodes::{PPO, PolicyBrain};
use hyperion_scheduler::eval::plot::{Series, Titles, lines};
use hyperion_scheduler::eval::report::markdown;
use hyperion_scheduler::parallel::in_parallel;
use hyperion_scheduler::ppo::{
    Config, Environment, FeatureStats, Progress, Schedule, Taste, Trainer,
};
use hyperion_scheduler::scenario::{Scenario, Size, Split};
use hyperion_scheduler::sim::{Brain, FleetEnv, SimConfig, run as play};
use hyperion_scheduler::world::World;
use serde::{Deserialize, Serialize};

use super::eval::FIRST_SEED;
use super::{cores, print, say, world, write};

/// Flags.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Data directory; without it the small built-in world is used.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Decides everything that is random.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Directory for checkpoint, policy, curve and plots.
    #[arg(long)]
    out: PathBuf,
    /// Iterations.
    #[arg(long)]
    iterations: Option<u32>,
    /// Stop after so many minutes, and keep what was learnt.
    #[arg(long)]
    minutes: Option<f64>,
    /// Settings of the learner, JSON; flags go before it.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Go on from the checkpoint in --out.
    #[arg(long)]
    resume: bool,
    /// Iterations between two validations.
    #[arg(long, default_value_t = 10)]
    validate_every: u32,
    /// Episodes of a validation.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=1000))]
    validation_episodes: u64,
    /// Print one JSON object a line, instead of text.
    #[arg(long)]
    json: bool,
    /// Threads.
    #[arg(long, default_value_t = cores())]
    threads: usize,
}

/// Rounds for the prices of room.
const ROUNDS: u32 = 30;

/// Validation plays the worlds of training with seeds that neither training nor evaluation uses.
const VALIDATION_SEED: u64 = 1 << 41;

/// A point of the learning curve.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Point {
    #[serde(flatten)]
    progress: Progress,
    /// Seconds since training began.
    seconds: f64,
    /// Mean reward on the validation episodes, where it was taken.
    validation: Option<f64>,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    let world = Arc::new(world(args.data.as_deref())?);
    let config = config(args)?;
    let environments = environments(&world, args.threads);
    let checkpoint = args.out.join("checkpoint");
    let mut trainer = if args.resume {
        Trainer::resume(config, environments, &checkpoint)?
    } else {
        Trainer::new(config, environments)?
    };
    let validation = Validation::new(&world, args);
    let references = validation.references();
    for (name, reward) in &references {
        say(&format!("validation: {name} {reward:.4}"));
    }
    let begun = Instant::now();
    let limit = args
        .minutes
        .map(|m| Duration::from_secs_f64(m.clamp(0.0, 1e6) * 60.0));
    let data = data(args)?;
    let untrained = trainer.network();
    let mut best = (validation.reward(&untrained), untrained, 0);
    say(&format!("validation: untrained {:.4}", best.0));
    let mut curve = Curve::begin(args, references, best.0)?;
    let before = curve.points.last().map_or(0.0, |p| p.seconds);
    while trainer.iteration() < trainer.config().iterations
        && limit.is_none_or(|l| begun.elapsed() < l)
    {
        let progress = trainer.step()?;
        let mut point = Point {
            progress,
            seconds: before + begun.elapsed().as_secs_f64(),
            validation: None,
        };
        let last = progress.iteration == trainer.config().iterations
            || limit.is_some_and(|l| begun.elapsed() >= l);
        if last
            || progress
                .iteration
                .is_multiple_of(args.validate_every.max(1))
        {
            let network = trainer.network();
            let reward = validation.reward(&network);
            point.validation = Some(reward);
            if reward > best.0 {
                best = (reward, network, progress.total_turns);
            }
            trainer.save(&checkpoint)?;
        }
        tell(args, &trainer, &point, begun.elapsed(), limit)?;
        let validated = point.validation.is_some();
        curve.points.push(point);
        if validated {
            curve.store(&args.out)?;
        }
    }
    let card = card(args, data, &trainer, (best.0, best.2), &curve);
    store_policy(&args.out, &card, &best.1)
}

fn config(args: &Args) -> Result<Config> {
    let mut config = match &args.config {
        Some(path) => serde_json::from_slice(&super::read(path)?)
            .with_context(|| path.display().to_string())?,
        None => defaults(),
    };
    config.seed = args.seed;
    config.threads = args.threads;
    if let Some(iterations) = args.iterations {
        config.iterations = iterations;
    }
    if args.minutes.is_some_and(|m| !m.is_finite() || m <= 0.0) {
        bail!("--minutes must be more than 0");
    }
    Ok(config)
}

/// Settings that the policy in the repository was trained with.
fn defaults() -> Config {
    let schedule = |from: f64, to: f64| Schedule { from, to };
    Config {
        iterations: 200,
        episodes: 6,
        // Others are counted by the prices of room, not by their noisy rewards.
        kappa: 0.0,
        epochs: 4,
        minibatch: 512,
        learning_rate: schedule(4e-3, 3e-4),
        critic_learning_rate: schedule(3e-3, 3e-4),
        entropy: schedule(3e-3, 0.0),
        taste: Taste {
            temperature: 0.05,
            stay_bonus: 0.1,
            noise: 0.02,
        },
        ..Config::default()
    }
}

fn environments(world: &Arc<World>, count: usize) -> Vec<Box<dyn Environment>> {
    (0..count.max(1))
        .map(|_| {
            let world = Arc::clone(world);
            let draw = move |seed: u64| {
                let seed = seed % FIRST_SEED;
                let scenario = Scenario::draw(&world, seed, Split::Train, &Size::default());
                let prices = RoomPrices::new(&scenario, &RewardWeights::default(), ROUNDS);
                (Arc::new(scenario), Some(Arc::new(prices)))
            };
            Box::new(FleetEnv::new(Box::new(draw), SimConfig::default())) as Box<dyn Environment>
        })
        .collect()
}

/// Episodes that tell how good a policy is while it learns.
struct Validation {
    scenarios: Vec<Arc<Scenario>>,
    threads: usize,
}

impl Validation {
    fn new(world: &World, args: &Args) -> Self {
        let seeds = VALIDATION_SEED..VALIDATION_SEED + args.validation_episodes.max(1);
        Self {
            scenarios: seeds
                .map(|s| Arc::new(Scenario::draw(world, s, Split::Train, &Size::default())))
                .collect(),
            threads: args.threads.max(1),
        }
    }

    fn references(&self) -> Vec<(String, f64)> {
        ["static", "cheapest", "rules", "greedy"]
            .into_iter()
            .map(|name| (name.to_owned(), self.mean(|| baselines::by_name(name))))
            .collect()
    }

    fn reward(&self, network: &Network) -> f64 {
        self.mean(|| {
            let brain = PolicyBrain::new(PPO, network.clone(), None);
            Some(Box::new(brain) as Box<dyn Brain + Send>)
        })
    }

    /// Mean reward over the episodes.
    fn mean(&self, brain: impl Fn() -> Option<Box<dyn Brain + Send>> + Sync) -> f64 {
        let rewards = in_parallel(self.threads, self.scenarios.len(), |i| {
            brain().map_or(0.0, |mut brain| {
                play(&self.scenarios[i], SimConfig::default(), &mut *brain)
                    .all
                    .mean_reward()
            })
        });
        rewards.iter().sum::<f64>() / rewards.len() as f64
    }
}

/// Says how it goes, with rate and time left.
fn tell(
    args: &Args,
    trainer: &Trainer,
    point: &Point,
    elapsed: Duration,
    limit: Option<Duration>,
) -> Result<()> {
    if args.json {
        return print(&serde_json::to_string(point)?);
    }
    let p = &point.progress;
    let all = trainer.config().iterations;
    let by_count = point.seconds / f64::from(p.iteration) * f64::from(all - p.iteration);
    let left = limit.map_or(by_count, |l| {
        by_count.min(l.saturating_sub(elapsed).as_secs_f64())
    });
    let validation = point
        .validation
        .map_or_else(String::new, |v| format!("  validation {v:.4}"));
    print(&format!(
        "{:>4}/{all}  {:>6} turns  {:>5.0}/s  return {:>8.1}  entropy {:.3}  kl {:.4}  critic {:.2}  {:.0} s, {:.0} s left{validation}",
        p.iteration,
        p.turns,
        p.turns as f64 / (p.play_seconds + p.learn_seconds).max(1e-9),
        p.mean_return,
        p.entropy,
        p.kl,
        p.explained_variance,
        point.seconds,
        left.max(0.0),
    ))
}

/// The learning curve.
#[derive(Debug, Serialize, Deserialize)]
struct Curve {
    /// Baselines on the validation episodes.
    references: Vec<(String, f64)>,
    /// Turns and validation before learning.
    first: (f64, f64),
    points: Vec<Point>,
}

impl Curve {
    /// A new curve, or the one of the run that is resumed.
    fn begin(args: &Args, references: Vec<(String, f64)>, untrained: f64) -> Result<Self> {
        let path = args.out.join("curve.json");
        if args.resume && path.exists() {
            return serde_json::from_slice(&super::read(&path)?)
                .with_context(|| path.display().to_string());
        }
        Ok(Self {
            references,
            first: (0.0, untrained),
            points: Vec::new(),
        })
    }

    fn store(&self, dir: &Path) -> Result<()> {
        write(&dir.join("curve.json"), &serde_json::to_vec_pretty(self)?)?;
        let validated = || self.points.iter().filter(|p| p.validation.is_some());
        let rows: Vec<Vec<String>> = validated()
            .map(|p| {
                vec![
                    p.progress.iteration.to_string(),
                    p.progress.total_turns.to_string(),
                    format!("{:.0}", p.seconds),
                    format!("{:.4}", p.validation.unwrap_or(f64::NAN)),
                    format!("{:.3}", p.progress.entropy),
                    format!("{:.4}", p.progress.kl),
                    format!("{:.3}", p.progress.explained_variance),
                ]
            })
            .collect();
        let head = [
            "iteration",
            "turns",
            "seconds",
            "validation reward",
            "entropy",
            "KL",
            "explained variance",
        ];
        write(&dir.join("curve.md"), markdown(&head, &rows).as_bytes())?;
        let learnt =
            validated().filter_map(|p| Some((p.progress.total_turns as f64 / 1e3, p.validation?)));
        let points: Vec<(f64, f64)> = std::iter::once(self.first).chain(learnt).collect();
        let end = points.last().map_or(1.0, |p| p.0);
        let mut series = vec![Series {
            name: "ppo".to_owned(),
            points,
        }];
        for (name, reward) in &self.references {
            series.push(Series {
                name: name.clone(),
                points: vec![(0.0, *reward), (end, *reward)],
            });
        }
        let titles = Titles {
            title: "Learning curve: mean reward on validation episodes".to_owned(),
            x: "decisions, thousands".to_owned(),
            y: "reward per hour asked for".to_owned(),
        };
        lines(&dir.join("curve"), &titles, &series)
    }
}

/// What the policy is trained on, looked at before hours are spent.
fn data(args: &Args) -> Result<TrainingData> {
    let (names, hash) = match &args.data {
        Some(dir) => super::fingerprint(dir)?,
        None => (vec!["built in".to_owned()], String::new()),
    };
    Ok(TrainingData { names, hash })
}

/// `best` is the validated reward, and the decisions it took to get there.
fn card(
    args: &Args,
    data: TrainingData,
    trainer: &Trainer,
    best: (f64, u64),
    curve: &Curve,
) -> Card {
    Card {
        data,
        seed: args.seed,
        steps: best.1,
        reward: RewardWeights::default(),
        statistics: statistics(trainer.features()),
        evaluation: serde_json::json!({
            "validation_reward": best.0,
            "validation_episodes": args.validation_episodes,
            "baselines": curve.references,
        }),
    }
}

fn statistics(features: &FeatureStats) -> Statistics {
    let slots = |slots: Vec<hyperion_scheduler::ppo::SlotStats>| {
        slots
            .into_iter()
            .map(|s| SlotStats {
                mean: s.mean,
                deviation: s.deviation,
                min: s.min,
                max: s.max,
            })
            .collect()
    };
    Statistics {
        request: slots(features.request()),
        node: slots(features.node()),
        pair: slots(features.pair()),
        fit: slots(features.fit()),
    }
}

fn store_policy(dir: &Path, card: &Card, network: &Network) -> Result<()> {
    let full = PolicyFile::write_safetensors(card, network)?;
    let q8 = PolicyFile::write_gguf(card, network, Quantisation::Q8)?;
    for (name, bytes) in [("policy.safetensors", full), ("policy-q8.gguf", q8)] {
        let path = dir.join(name);
        write(&path, &bytes)?;
        say(&format!("{}: {} bytes", path.display(), bytes.len()));
    }
    Ok(())
}
