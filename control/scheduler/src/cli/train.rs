//! `hyperion-train train`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hyperion_placement::policy::Network;
use hyperion_placement::reward::RewardWeights;
use hyperion_policy::{Card, PolicyFile, Quantisation, SlotStats, Statistics, TrainingData};
use hyperion_scheduler::bound::{CHARGED, RoomPrices};
use hyperion_scheduler::ppo::{Config, Environment, FeatureStats, Schedule, Taste, Trainer};
use hyperion_scheduler::scenario::{Dice, Scenario, Size, Split};
use hyperion_scheduler::sim::{FleetEnv, SimConfig};
use hyperion_scheduler::world::World;

use super::curve::{Curve, Point};
use super::eval::FIRST_SEED;
use super::validation::{Best, Validation};
use super::{policy, print, say, world, write};

/// Flags.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Data directory; without it the small built-in world is used.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Decides everything that is random; 1 where neither this nor --config says.
    #[arg(long)]
    seed: Option<u64>,
    /// Directory for checkpoint, policy, curve and plots.
    #[arg(long)]
    out: PathBuf,
    /// Iterations.
    #[arg(long)]
    iterations: Option<u32>,
    /// Stop after so many minutes, and keep what was learnt.
    #[arg(long)]
    minutes: Option<f64>,
    /// Settings of the learner, JSON: those it names replace this program's; flags go before it.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Begin with this policy instead of one that knows nothing.
    #[arg(long, conflicts_with = "resume")]
    init: Option<PathBuf>,
    /// Go on from the checkpoint in --out.
    #[arg(long)]
    resume: bool,
    /// Share of what room on devices is worth to others that is charged.
    #[arg(long, default_value_t = CHARGED)]
    rent: f64,
    /// What the gain or loss of those on the same machine counts for; 0 leaves it out.
    #[arg(long, default_value_t = 0.0)]
    neighbours: f64,
    /// Share of the episodes that are small, as `eval --size small` plays them.
    #[arg(long, default_value_t = 0.0)]
    small: f64,
    /// Iterations between two validations.
    #[arg(long, default_value_t = 10)]
    validate_every: u32,
    /// Large episodes of a validation; with --small, eight times as many small ones beside them.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=1000))]
    validation_episodes: u64,
    /// Print one JSON object a line, instead of text.
    #[arg(long)]
    json: bool,
    /// Threads; the cores where neither this nor --config says.
    #[arg(long)]
    threads: Option<usize>,
}

/// Names of the policy's files.
const FULL: &str = "policy.safetensors";
const QUANTISED: &str = "policy-q8.gguf";

/// Small episodes of a validation for each large one: they are short, and differ more.
const SMALL_FOR_LARGE: u64 = 8;

/// Rounds for the prices of room.
const ROUNDS: u32 = 40;

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    let world = Arc::new(world(args.data.as_deref())?);
    let config = config(args)?;
    let environments = environments(&world, args, config.threads);
    let checkpoint = args.out.join("checkpoint");
    let mut validated = vec![(Size::default(), args.validation_episodes)];
    if args.small > 0.0 {
        validated.push((Size::small(), SMALL_FOR_LARGE * args.validation_episodes));
    }
    let validation = Validation::new(&world, &validated, config.threads);
    let mut trainer = if args.resume {
        Trainer::resume(config, environments, &checkpoint)?
    } else {
        Trainer::new(config, environments)?
    };
    let mut known = 0.0;
    if let Some(path) = &args.init {
        let file = policy(path)?;
        trainer.set_network(&file.network);
        known = file.card.steps as f64 / 1e3;
    }
    let references = validation.references();
    for (name, reward) in &references {
        say(&format!("validation: {name} {reward:.4}"));
    }
    let begun = Instant::now();
    let limit = args
        .minutes
        .map(|m| Duration::from_secs_f64(m.clamp(0.0, 1e6) * 60.0));
    let data = data(args)?;
    let first = trainer.network();
    let reward = judge(&validation, &first);
    say(&format!("validation: at first {reward:.4}"));
    let fresh = Curve {
        references,
        first: (known, reward),
        points: Vec::new(),
    };
    let kept = args.resume.then(|| Curve::read(&args.out)).transpose()?;
    let mut curve = kept.flatten().unwrap_or(fresh);
    let known = (curve.first.0 * 1e3).round() as u64;
    let mut best = Best {
        reward,
        network: first,
        steps: known + trainer.features().turns(),
    };
    if args.resume {
        best.recall(&args.out.join(FULL), &validation)?;
    }
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
            let network = trainer.averaged();
            let reward = judge(&validation, &network);
            point.validation = Some(reward);
            trainer.save(&checkpoint)?;
            if reward > best.reward {
                let steps = known + progress.total_turns;
                best = Best {
                    reward,
                    network,
                    steps,
                };
                store_policy(
                    &args.out,
                    &card(args, &data, &trainer, &best, &curve),
                    &best.network,
                )?;
            }
        }
        tell(args, &trainer, &point, begun.elapsed(), limit)?;
        let validated = point.validation.is_some();
        curve.points.push(point);
        if validated {
            curve.store(&args.out)?;
        }
    }
    let card = card(args, &data, &trainer, &best, &curve);
    store_policy(&args.out, &card, &best.network)
}

/// What a policy earns in validation; says what it is of each size where there are several.
fn judge(validation: &Validation, network: &Network) -> f64 {
    let rewards = validation.rewards(network);
    let mean = Validation::overall(&rewards);
    if let [large, small] = rewards[..] {
        say(&format!(
            "validation: {mean:.4}: large {large:.4}, small {small:.4}"
        ));
    }
    mean
}

/// The settings: the program's, the file's, the flags'.
pub fn config(args: &Args) -> Result<Config> {
    let mut config = match args.init {
        Some(_) => refining(),
        None => defaults(),
    };
    if let Some(path) = &args.config {
        let named = || path.display().to_string();
        let given: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&super::read(path)?).with_context(named)?;
        let mut all = serde_json::to_value(&config)?;
        if let Some(all) = all.as_object_mut() {
            all.extend(given);
        }
        config = serde_json::from_value(all).with_context(named)?;
    }
    config.seed = args.seed.unwrap_or(config.seed);
    config.threads = args.threads.unwrap_or(config.threads);
    if let Some(iterations) = args.iterations {
        config.iterations = iterations;
    }
    if args.minutes.is_some_and(|m| !m.is_finite() || m <= 0.0) {
        bail!("--minutes must be more than 0");
    }
    if !args.rent.is_finite() || args.rent < 0.0 {
        bail!("--rent must be 0 or more");
    }
    if !args.neighbours.is_finite() || args.neighbours < 0.0 {
        bail!("--neighbours must be 0 or more");
    }
    if !(0.0..=1.0).contains(&args.small) {
        bail!("--small must be between 0 and 1");
    }
    Ok(config)
}

/// Settings for a policy that knows nothing.
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

/// Settings for a policy that can do something already: smaller steps, and an average over them.
fn refining() -> Config {
    let schedule = |from: f64, to: f64| Schedule { from, to };
    Config {
        iterations: 70,
        epochs: 3,
        learning_rate: schedule(1.5e-3, 5e-5),
        critic_learning_rate: schedule(3e-3, 3e-4),
        entropy: schedule(5e-4, 0.0),
        critic_warmup: 3,
        balance: 0.5,
        averaging: 0.9,
        ..defaults()
    }
}

/// An episode to learn from; `small` is the share of small ones.
pub fn episode(world: &World, seed: u64, small: f64) -> Scenario {
    let seed = seed % FIRST_SEED;
    let size = if Dice::new("size", seed).chance(small) {
        Size::small()
    } else {
        Size::default()
    };
    Scenario::draw(world, seed, Split::Train, &size)
}

fn environments(world: &Arc<World>, args: &Args, count: usize) -> Vec<Box<dyn Environment>> {
    let small = args.small;
    (0..count.max(1))
        .map(|_| {
            let world = Arc::clone(world);
            let draw = move |seed: u64| {
                let scenario = episode(&world, seed, small);
                let prices = RoomPrices::new(&scenario, &RewardWeights::default(), ROUNDS);
                (Arc::new(scenario), Some(Arc::new(prices)))
            };
            let env = FleetEnv::new(Box::new(draw), SimConfig::default());
            Box::new(env.charging(args.rent).caring(args.neighbours)) as Box<dyn Environment>
        })
        .collect()
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

/// What the policy is trained on, looked at before hours are spent.
fn data(args: &Args) -> Result<TrainingData> {
    let (names, hash) = match &args.data {
        Some(dir) => super::fingerprint(dir)?,
        None => (vec!["built in".to_owned()], String::new()),
    };
    Ok(TrainingData { names, hash })
}

fn card(args: &Args, data: &TrainingData, trainer: &Trainer, best: &Best, curve: &Curve) -> Card {
    Card {
        data: data.clone(),
        seed: trainer.config().seed,
        steps: best.steps,
        reward: RewardWeights::default(),
        statistics: statistics(trainer.features()),
        evaluation: serde_json::json!({
            "validation_reward": best.reward,
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
    for (name, bytes) in [(FULL, full), (QUANTISED, q8)] {
        let path = dir.join(name);
        write(&path, &bytes)?;
        say(&format!("{}: {} bytes", path.display(), bytes.len()));
    }
    Ok(())
}
