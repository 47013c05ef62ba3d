//! `hyperion top` with ten thousand nodes: the real state, drawing and escape sequences, in real
//! time, into a sink instead of a terminal. Every node sends telemetry every second, as the JSON
//! that the fleet API answers with, while somebody scrolls, sorts and filters.

use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;
use hyperion_console::fleet::Change;
use hyperion_console::fleet::live::LiveAnswer;
use hyperion_console::top::event::{Channel, Event, Key};
use hyperion_console::top::headless::Headless;
use hyperion_console::top::simulate::Simulation;
use hyperion_console::top::state::Options;
use tokio::time::Instant as Deadline;

use crate::report::Report;
use hyperion_lab::proc;

/// Measure the fleet's terminal UI.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Nodes.
    #[arg(long, default_value_t = 10_000)]
    pub nodes: usize,
    /// Seed of the simulated fleet.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Length of each of the four measurements, seconds.
    #[arg(long, default_value_t = 15)]
    pub seconds: u64,
}

/// Sizes of the screen: the figures without a size in their name are of the last.
const SIZES: [(u16, u16); 2] = [(80, 24), (200, 50)];
/// Keys a second while somebody is busy: a key that is held down.
const KEYS_PER_SECOND: u32 = 30;
/// Different seconds of telemetry that take turns; made before measuring.
const SECONDS_MADE: usize = 10;
/// 2025-06-15 13:20 UTC.
const BEGIN_MS: i64 = 1_750_000_000_000;

/// A busy minute: scroll down and up, page, sort by live and by fixed columns, filter and clear,
/// look at the other views. Nodes are on the screen nearly all the time.
fn script() -> Vec<Key> {
    let mut keys = vec![Key::Char('2')];
    for sort in ['c', 'n', 'm', 'b', 't'] {
        keys.push(Key::Char(sort));
        keys.extend([Key::Down; 60]);
        keys.extend([Key::PageDown; 40]);
        keys.extend([Key::Up; 30]);
        keys.push(Key::End);
        keys.extend([Key::PageUp; 20]);
        keys.push(Key::Home);
        keys.extend("/lyon !lost".chars().map(Key::Char));
        keys.extend([Key::Enter, Key::Down, Key::Down, Key::Enter]);
        keys.extend([Key::Esc, Key::Esc]);
        keys.extend("13452".chars().map(Key::Char));
    }
    keys
}

struct Seconds {
    /// Changes besides live values.
    changes: Vec<Change>,
    /// Answer of the fleet API.
    json: String,
}

fn make_seconds(simulation: &mut Simulation) -> anyhow::Result<Vec<Seconds>> {
    (0..SECONDS_MADE)
        .map(|i| {
            let mut changes = simulation.step(BEGIN_MS + i as i64 * 1000);
            let live = changes.iter().position(|c| matches!(c, Change::Live(_)));
            let nodes = match live.map(|at| changes.remove(at)) {
                Some(Change::Live(nodes)) => nodes,
                _ => Vec::new(),
            };
            let version = i as u64 + 1;
            let json = serde_json::to_string(&LiveAnswer {
                version,
                nodes,
                ..LiveAnswer::default()
            })?;
            Ok(Seconds { changes, json })
        })
        .collect()
}

/// Runs the bench.
///
/// # Errors
/// /proc can't be read.
pub async fn run(args: &Args) -> anyhow::Result<Report> {
    let mut report = Report::new("tui", args.seed);
    report.condition("nodes", args.nodes);
    report.condition("cpu", proc::cpu_model());
    report.condition("seconds_each", args.seconds);
    report.condition("keys_per_second", KEYS_PER_SECOND);
    report.condition(
        "frame",
        "take the event in, bring order and totals up to date, draw, encode",
    );
    report.condition(
        "cpu_percent_of_core",
        "of the whole process in real time at 200x50 with 30 keys a second, reading the JSON of 10,000 nodes a second included; idle_ is the same without keys",
    );
    let mut simulation = Simulation::new(args.seed, args.nodes, BEGIN_MS);
    let all = simulation.all();
    let seconds = make_seconds(&mut simulation)?;
    report.figure("json_kb_per_s", seconds[0].json.len() as f64 / 1e3);
    drop(simulation);
    for size in SIZES {
        let name = |what: &str| format!("{what}_{}x{}", size.0, size.1);
        let mut top = Headless::new(
            Options {
                colour: true,
                ..Options::default()
            },
            size,
            BEGIN_MS,
        )?;
        let began = Instant::now();
        for change in all.clone() {
            top.handle(Event::Change(change), BEGIN_MS);
        }
        top.frame()?;
        report.figure(&name("first_frame_ms"), began.elapsed().as_secs_f64() * 1e3);

        let idle = drive(&mut top, args.seconds, &seconds, &[]).await?;
        let busy = drive(&mut top, args.seconds, &seconds, &script()).await?;
        for suffix in [format!("_{}x{}", size.0, size.1), String::new()] {
            let mut figure =
                |what: &str, value: f64| report.figure(&format!("{what}{suffix}"), value);
            figure("frame_p50_ms", busy.quantile_ms(0.5));
            figure("frame_p99_ms", busy.quantile_ms(0.99));
            figure("frame_max_ms", busy.quantile_ms(1.0));
            figure("frames", busy.frames.len() as f64);
            figure(
                "frame_bytes",
                busy.bytes as f64 / busy.frames.len().max(1) as f64,
            );
            figure("cpu_percent_of_core", busy.cpu_percent);
            figure("idle_frame_p99_ms", idle.quantile_ms(0.99));
            figure("idle_cpu_percent_of_core", idle.cpu_percent);
        }
    }
    report.figure("rss_mb", proc::rss_bytes(std::process::id())? as f64 / 1e6);
    Ok(report)
}

struct Driven {
    /// Microseconds.
    frames: Histogram<u64>,
    cpu_percent: f64,
    bytes: u64,
}

impl Driven {
    fn quantile_ms(&self, q: f64) -> f64 {
        self.frames.value_at_quantile(q) as f64 / 1e3
    }
}

/// `seconds` of real time with a frame for each second of telemetry and for each key.
async fn drive(
    top: &mut Headless,
    seconds: u64,
    made: &[Seconds],
    keys: &[Key],
) -> anyhow::Result<Driven> {
    let mut frames = Histogram::<u64>::new(3)?;
    let mut keys = keys.iter().cycle();
    let pid = std::process::id();
    let (cpu, bytes) = (proc::cpu_seconds(pid)?, top.bytes());
    let begin = Deadline::now();
    let gap = Duration::from_secs(1) / KEYS_PER_SECOND;
    for second in 0..seconds {
        let now_ms = BEGIN_MS + second as i64 * 1000;
        let made = &made[second as usize % made.len()];
        // Reading happens in another thread of the real program: no frame waits for it.
        let answer: LiveAnswer = serde_json::from_str(&made.json).context("fleet API")?;
        let mut events = vec![
            Event::Reached(Channel::Api),
            Event::Reached(Channel::Live),
            Event::Change(Change::Live(answer.nodes)),
            Event::Clock,
        ];
        events.extend(made.changes.iter().cloned().map(Event::Change));
        timed(&mut frames, top, events, now_ms)?;
        for i in 1..=KEYS_PER_SECOND {
            tokio::time::sleep_until(begin + Duration::from_secs(second) + gap * i).await;
            if let Some(key) = keys.next() {
                timed(&mut frames, top, vec![Event::Key(*key)], now_ms)?;
            }
        }
    }
    let cpu = proc::cpu_seconds(pid)? - cpu;
    Ok(Driven {
        frames,
        cpu_percent: cpu / begin.elapsed().as_secs_f64() * 100.0,
        bytes: top.bytes() - bytes,
    })
}

fn timed(
    frames: &mut Histogram<u64>,
    top: &mut Headless,
    events: Vec<Event>,
    now_ms: i64,
) -> anyhow::Result<()> {
    let began = Instant::now();
    for event in events {
        top.handle(event, now_ms);
    }
    top.frame()?;
    let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    frames.record(micros.max(1)).context("histogram")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_short_run_gives_all_figures() {
        let args = Args {
            nodes: 50,
            seed: 3,
            seconds: 1,
        };
        let report = run(&args).await.unwrap();
        for name in [
            "frame_p50_ms",
            "frame_p99_ms",
            "cpu_percent_of_core",
            "frame_p50_ms_80x24",
        ] {
            let figure = report.figures[name].unwrap();
            assert!(figure.is_finite() && figure >= 0.0, "{name}");
        }
        assert!(report.figures["frames"] >= Some(30.0));
    }
}
