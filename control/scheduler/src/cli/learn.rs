//! `hyperion-train learn`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use hyperion_placement::policy::Network;
use hyperion_policy::{Card, PolicyFile, Quantisation};
use hyperion_scheduler::learn::{Error, Figure, Judging, Lessons, Stage, Verdict, continue_policy};
use hyperion_scheduler::ppo::Offline;
use hyperion_scheduler::scenario::Size;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{cores, print, read, say, world, write};

/// Exit status where the new policy is not promoted.
const NOT_PROMOTED: u8 = 3;

/// Flags.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The running policy.
    #[arg(long)]
    policy: PathBuf,
    /// File of experiences, JSON lines; may be given several times.
    #[arg(long, required = true)]
    experience: Vec<PathBuf>,
    /// Where the new policy goes if it is promoted: GGUF in 8 bits where the name ends in .gguf,
    /// safetensors otherwise.
    #[arg(long)]
    out: PathBuf,
    /// Data directory of the simulator; without it the small built-in world is used.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Episodes of the simulator in which it must not be worse.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(2..=1000))]
    episodes: u64,
    /// How far the new policy may be from the running one, nats a decision.
    #[arg(long, default_value_t = Offline::default().max_kl)]
    max_kl: f64,
    /// Believe in the replay although whoever decided always took its best candidate: decisions
    /// that were easy then look like decisions that were good.
    #[arg(long)]
    accept_greedy: bool,
    /// Decides everything that is random. What is held out does not depend on it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Threads.
    #[arg(long, default_value_t = cores())]
    threads: usize,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    if args.threads == 0 {
        bail!("--threads must be at least 1");
    }
    let file = PolicyFile::read(&read(&args.policy)?)
        .with_context(|| args.policy.display().to_string())?;
    let lessons = Lessons::read(&args.experience, &file.card.reward, &file.network)?;
    let world = world(args.data.as_deref())?;
    let stage = Stage {
        world: &world,
        size: Size::default(),
        episodes: args.episodes,
        weights: file.card.reward,
        threads: args.threads,
    };
    let offline = Offline {
        seed: args.seed,
        threads: args.threads,
        max_kl: args.max_kl,
        ..Offline::default()
    };
    let judging = Judging {
        accept_greedy: args.accept_greedy,
    };
    // What is judged is what would be used.
    let as_written = |network: &Network| -> Result<Network, Error> {
        let bytes = encode(&args.out, &file.card, network)?;
        Ok(PolicyFile::read(&bytes)?.network)
    };
    let (network, verdict) = continue_policy(
        &file.network,
        &lessons,
        &offline,
        judging,
        &stage,
        as_written,
    )?;
    if args.json {
        print(&serde_json::to_string(&verdict)?)?;
    } else {
        print(&text(&verdict))?;
    }
    if !verdict.promoted {
        say("not promoted: nothing is written");
        return Ok(ExitCode::from(NOT_PROMOTED));
    }
    let card = card(args, &file.card, &lessons, &verdict)?;
    let bytes = encode(&args.out, &card, &network)?;
    write(&args.out, &bytes)?;
    say(&format!("{}: {} bytes", args.out.display(), bytes.len()));
    Ok(ExitCode::SUCCESS)
}

fn encode(out: &Path, card: &Card, network: &Network) -> Result<Vec<u8>, Error> {
    let quantised = out.extension().is_some_and(|e| e == "gguf");
    Ok(if quantised {
        PolicyFile::write_gguf(card, network, Quantisation::Q8)?
    } else {
        PolicyFile::write_safetensors(card, network)?
    })
}

/// What the new policy says of itself: what the running one said, and what was added. The
/// statistics for the guard stay: the bounds of what it knows are those of its training.
fn card(args: &Args, running: &Card, lessons: &Lessons, verdict: &Verdict) -> Result<Card> {
    let mut card = running.clone();
    let files = args.experience.iter();
    card.data
        .names
        .extend(files.map(|f| format!("experience {}", file_name(f))));
    let mut hash = Sha256::new();
    hash.update(running.data.hash.as_bytes());
    hash.update(lessons.hash);
    card.data.hash = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    card.seed = args.seed;
    card.steps = card.steps.saturating_add(verdict.learning.choices as u64);
    let trained = &running.evaluation;
    let trained = trained.get("trained").unwrap_or(trained);
    card.evaluation = json!({ "trained": trained, "learnt": verdict });
    Ok(card)
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

fn text(verdict: &Verdict) -> String {
    let (read, replay) = (&verdict.read, &verdict.replay);
    let mut lines = vec![
        format!(
            "{} lines: {} to learn from, {} held out; left out {} that are there twice, {} without \
             a choice, {} services without p99",
            read.lines,
            read.learn,
            read.held_out,
            read.duplicates,
            read.without_choice,
            read.unmeasured
        ),
        format!(
            "{:.1} % of the choices were certainly not the likeliest",
            100.0 * read.tried_share()
        ),
        format!(
            "learnt in {} passes, now {:.4} nats from the running policy",
            verdict.learning.epochs, verdict.learning.kl
        ),
        String::new(),
        "replay of what was held out, reward per hour (95 %):".to_owned(),
        format!("  earned      {}", replay.earned),
        estimate("running", replay.running.reward, replay.running.effective),
        estimate("new", replay.new.reward, replay.new.effective),
        format!("  difference  {}", replay.gain),
    ];
    if let Some(rehearsal) = &verdict.rehearsal {
        lines.extend([
            String::new(),
            format!(
                "simulator, {} episodes, reward per hour asked for (95 %):",
                rehearsal.episodes
            ),
            format!("  running     {}", rehearsal.running),
            format!("  new         {}", rehearsal.new),
            format!("  difference  {}", rehearsal.difference),
            format!("  violations  {}", rehearsal.violations),
        ]);
    }
    lines.push(String::new());
    if verdict.promoted {
        lines.push("promoted".to_owned());
    }
    let reasons = verdict.reasons.iter();
    lines.extend(reasons.map(|reason| format!("not promoted: {reason}")));
    lines.join("\n")
}

fn estimate(name: &str, reward: Figure, effective: f64) -> String {
    format!("  {name:<11} {reward}  ({effective:.0} experiences' worth)")
}
