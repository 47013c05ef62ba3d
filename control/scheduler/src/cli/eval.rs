//! `hyperion-train eval`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;
use hyperion_placement::model::Goal;
use hyperion_policy::{PolicyFile, Quantisation};
use hyperion_scheduler::eval::episodes::{Plan, Played};
use hyperion_scheduler::eval::figures::{
    cost_reductions, note, p99_reductions, reward_bars, table,
};
use hyperion_scheduler::eval::plot::{Series, Titles, bars, lines};
use hyperion_scheduler::eval::report::Report;
use hyperion_scheduler::eval::stats::quantile;
use hyperion_scheduler::scenario::{Size, Split};
use hyperion_scheduler::sim::SimConfig;

use super::{cores, print, read, say, world, write};

/// Flags.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Data directory; without it the small built-in world is used.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Episodes in each set of worlds.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    seeds: u64,
    /// Seed of the first episode.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(..1 << 39))]
    seed: u64,
    /// Policy file; without it the one that is built in.
    #[arg(long)]
    policy: Option<PathBuf>,
    /// Which worlds.
    #[arg(long, value_enum, default_value = "all")]
    worlds: Worlds,
    /// Size of the episodes.
    #[arg(long, value_enum, default_value = "full")]
    size: Sizes,
    /// Rounds of the clairvoyant bound; more give a lower one; 0 leaves it out.
    #[arg(long, default_value_t = 60)]
    bound_rounds: u32,
    /// Rounds of the bound on the optimum of small and medium episodes; 0 leaves the optimum out.
    #[arg(long, default_value_t = 100)]
    optimum_rounds: u32,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Directory for tables and plots.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Threads.
    #[arg(long, default_value_t = cores())]
    threads: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Worlds {
    /// Worlds that training never saw.
    Unseen,
    /// Worlds as training sees them, with seeds of their own.
    Seen,
    /// Both, reported apart.
    All,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Sizes {
    /// As in training.
    Full,
    /// A few workloads in two regions.
    Small,
    /// As many as the bound on the optimum can take.
    Medium,
}

/// Evaluation never plays seeds below this, and training only those.
pub const FIRST_SEED: u64 = 1 << 40;

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let world = world(args.data.as_deref())?;
    let file = match &args.policy {
        Some(path) => PolicyFile::read(&read(path)?).with_context(|| path.display().to_string())?,
        None => super::built_in()?,
    };
    let q8 = PolicyFile::write_gguf(&file.card, &file.network, Quantisation::Q8)?;
    let quantised = PolicyFile::read(&q8)?.network;
    let plan = Plan {
        world: &world,
        size: match args.size {
            Sizes::Full => Size::default(),
            Sizes::Small => Size::small(),
            Sizes::Medium => Size::medium(),
        },
        config: SimConfig::default(),
        policy: Some((file.network, quantised)),
        bound_rounds: args.bound_rounds,
        optimum_rounds: match args.size {
            Sizes::Full => 0,
            Sizes::Small | Sizes::Medium => args.optimum_rounds,
        },
        threads: args.threads,
    };
    let first = FIRST_SEED + args.seed;
    let seeds: Vec<u64> = (first..first + args.seeds).collect();
    let mut report = Report::new("eval", args.seed);
    report.condition("episodes", args.seeds);
    report.condition("hours", plan.size.horizon);
    report.condition(
        "data",
        args.data
            .as_ref()
            .map_or_else(|| "built in".to_owned(), |d| d.display().to_string()),
    );
    report.condition("unseen", "figures without prefix: regions, price windows, stretches of traces and seeds that training never drew");
    report.condition(
        "clairvoyant",
        "a bound: perfect knowledge, room on devices priced; only its reward is known",
    );
    report.condition("vs_static", "for each workload that ran in both, at published quotes that stay, for an hour of service or of work that was not lost; cost-goal jobs, latency-goal services with clients at a site");
    let schedulers = plan.schedulers();
    for (split, prefix, title) in [
        (Split::Unseen, "", "worlds that training never saw"),
        (Split::Train, "seen_", "worlds as training sees them"),
    ] {
        let wanted = match args.worlds {
            Worlds::All => true,
            Worlds::Unseen => split == Split::Unseen,
            Worlds::Seen => split == Split::Train,
        };
        if !wanted {
            continue;
        }
        let all = seeds.len();
        let played = plan.play(split, &seeds, &|done| {
            say(&format!("{split}: {done} of {all} episodes"));
        });
        note(&mut report, prefix, &schedulers, &played);
        if let Some(dir) = &args.out {
            store(dir, split, title, &schedulers, &played)?;
        }
        if !args.json {
            print(&text(title, &schedulers, &played))?;
        }
    }
    if let Some(dir) = &args.out {
        write(&dir.join("eval.json"), &serde_json::to_vec_pretty(&report)?)?;
    }
    if args.json {
        print(&serde_json::to_string(&report)?)?;
    }
    Ok(())
}

fn text(title: &str, schedulers: &[&'static str], played: &[Played]) -> String {
    let mut text = format!("## In {title}\n\n{}", table(schedulers, played, None));
    for goal in Goal::ALL {
        text += &format!(
            "\nGoal `{goal}`:\n\n{}",
            table(schedulers, played, Some(*goal))
        );
    }
    let (costs, p99s) = (cost_reductions(played), p99_reductions(played));
    for (name, values) in [
        ("Cost of an hour of work, cost-goal jobs", costs),
        ("p99, latency-goal services with clients at a site", p99s),
    ] {
        let at =
            |q: f64| quantile(&values, q).map_or_else(|| "–".to_owned(), |v| format!("{v:.1}"));
        text += &format!(
            "\n{name}, lower than in static AWS us-east-1 by, per cent of {} workloads: worst {}, tenth {}, median {}, ninetieth {}, best {}\n",
            values.len(),
            at(0.0),
            at(0.1),
            at(0.5),
            at(0.9),
            at(1.0)
        );
    }
    text
}

fn store(
    dir: &std::path::Path,
    split: Split,
    title: &str,
    schedulers: &[&'static str],
    played: &[Played],
) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    write(
        &dir.join(format!("eval-{split}.md")),
        text(title, schedulers, played).as_bytes(),
    )?;
    let titles = Titles {
        title: format!("Mean reward in {title} ({} episodes, 95 %)", played.len()),
        x: String::new(),
        y: "reward per hour asked for".to_owned(),
    };
    bars(
        &dir.join(format!("reward-{split}")),
        &titles,
        &reward_bars(schedulers, played),
    )?;
    let curve = |name: &str, values: &[f64]| Series {
        name: format!("{name} ({} workloads)", values.len()),
        points: (0..=100)
            .filter_map(|p| Some((quantile(values, f64::from(p) / 100.0)?, f64::from(p))))
            .collect(),
    };
    let series = [
        curve("cost, cost-goal jobs", &cost_reductions(played)),
        curve(
            "p99, latency-goal services with edge clients",
            &p99_reductions(played),
        ),
    ];
    let titles = Titles {
        title: "Lower than static AWS us-east-1 on demand, at published prices".to_owned(),
        x: "reduction, per cent".to_owned(),
        y: "share of workloads with less, per cent".to_owned(),
    };
    lines(&dir.join(format!("vs-static-{split}")), &titles, &series)
}
