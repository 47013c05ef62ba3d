//! Plays episodes with every baseline and says how fast: `play [--data DIR] [--seeds N]`.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use hyperion_scheduler::baselines;
use hyperion_scheduler::scenario::{Scenario, Size, Split};
use hyperion_scheduler::sim::{SimConfig, run};
use hyperion_scheduler::world::World;

#[derive(Parser)]
struct Args {
    /// Data directory; without it, the built-in world.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Episodes.
    #[arg(long, default_value_t = 5)]
    seeds: u64,
    /// First seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Worlds that training never saw.
    #[arg(long)]
    unseen: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let world = match &args.data {
        Some(dir) => World::load(dir)?.0,
        None => World::builtin(),
    };
    let split = if args.unseen {
        Split::Unseen
    } else {
        Split::Train
    };
    let mut out = std::io::stdout().lock();
    let began = Instant::now();
    let scenarios: Vec<Arc<Scenario>> = (args.seed..args.seed + args.seeds)
        .map(|seed| Arc::new(Scenario::draw(&world, seed, split, &Size::default())))
        .collect();
    let sum = |count: fn(&Scenario) -> usize| scenarios.iter().map(|s| count(s)).sum::<usize>();
    writeln!(
        out,
        "{} episodes drawn in {:.2} s: {} workloads, {} pools, {} devices",
        args.seeds,
        began.elapsed().as_secs_f64(),
        sum(|s| s.workloads.len()),
        sum(|s| s.pools.len()),
        sum(|s| s.devices.len()),
    )?;
    writeln!(
        out,
        "{:<14} {:>8} {:>8} {:>8} {:>8} {:>8} {:>6} {:>6} {:>6} {:>8} {:>7} {:>8} {:>7}",
        "scheduler",
        "reward",
        "cost",
        "latency",
        "default",
        "USD/h",
        "p99",
        "SLO%",
        "idle%",
        "JCT",
        "moves",
        "refused",
        "dec/s"
    )?;
    for name in baselines::NAMES {
        let Some(mut brain) = baselines::by_name(name) else {
            continue;
        };
        let began = Instant::now();
        let outcomes: Vec<_> = scenarios
            .iter()
            .map(|s| run(s, SimConfig::default(), &mut *brain))
            .collect();
        let seconds = began.elapsed().as_secs_f64();
        let n = outcomes.len().max(1) as f64;
        let mean = |read: &dyn Fn(&hyperion_scheduler::sim::Outcome) -> f64| {
            outcomes.iter().map(read).sum::<f64>() / n
        };
        writeln!(
            out,
            "{name:<14} {:>8.4} {:>8.4} {:>8.4} {:>8.4} {:>8.3} {:>6.1} {:>6.2} {:>6.2} {:>8.1} {:>7.1} {:>8.1} {:>7.0}",
            mean(&|o| o.all.mean_reward()),
            mean(&|o| o.goals[0].mean_reward()),
            mean(&|o| o.goals[1].mean_reward()),
            mean(&|o| o.goals[2].mean_reward()),
            mean(&|o| o.all.usd_per_hour()),
            mean(&|o| o.all.p99_ms().unwrap_or(0.0)),
            mean(&|o| o.all.slo_miss_percent().unwrap_or(0.0)),
            mean(&idle_percent),
            mean(&|o| o.all.mean_jct_minutes().unwrap_or(0.0)),
            mean(&|o| o.all.moves as f64),
            mean(&|o| o.counts.refused as f64),
            outcomes.iter().map(|o| o.counts.decisions).sum::<u64>() as f64 / seconds,
        )?;
    }
    Ok(())
}

/// Share of the services' time in which they were not served at all, per cent.
fn idle_percent(outcome: &hyperion_scheduler::sim::Outcome) -> f64 {
    let services = outcome.workloads.iter();
    let services = services.filter(|w| w.jct_minutes.is_none());
    let (hours, running) = services.fold((0.0, 0.0), |(hours, running), w| {
        (hours + w.account.hours, running + w.account.running_hours)
    });
    100.0 * (hours - running) / f64::max(hours, 1e-9)
}
