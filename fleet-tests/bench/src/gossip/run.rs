//! The course of a measurement, the same for both.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::net::Net;
use super::tally::{self, Tally};
use super::{Args, Inside, Outcome, ours, serf};

/// Time for all to find each other.
const MEET: Duration = Duration::from_secs(300);
/// Between losses set in, or the last one met, and the quiet window.
const SETTLE: Duration = Duration::from_secs(8);
/// Between two deaths.
const DEATHS_APART: Duration = Duration::from_secs(3);
/// After the last death, at most.
const WAIT: Duration = Duration::from_secs(90);

/// Between the starts of two nodes, and what comes on top for each that runs already: one machine
/// has to do what is work for all of them.
const APART: Duration = Duration::from_millis(25);
const APART_EACH: Duration = Duration::from_micros(500);

/// Waits after the start of a node.
pub(super) async fn apart(node: usize) {
    let running = u32::try_from(node).unwrap_or(u32::MAX);
    tokio::time::sleep(APART + APART_EACH.saturating_mul(running)).await;
}

/// The nodes of one namespace.
pub(super) trait System {
    /// The node stops, at once and without a word.
    fn kill(&mut self, node: usize);
    /// Of all nodes, so far.
    fn cpu_seconds(&self) -> f64;
    /// Of all nodes.
    fn memory_bytes(&self) -> u64;
    /// Times that nodes stood still; none where they don't say.
    fn stalls(&self) -> Option<u64>;
}

/// Measures in the namespace that this process is in.
///
/// # Errors
/// The namespace can't be set up, or the nodes do not find each other.
pub(super) fn inside(args: &Args, inside: Inside) -> anyhow::Result<Outcome> {
    let net = Net::set_up()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let tally = Arc::new(Tally::default());
        let nodes = usize::try_from(args.nodes)?;
        let start = Instant::now();
        match inside {
            Inside::Ours => {
                let system = ours::Members::start(args, nodes, &tally).await?;
                course(args, nodes, system, &net, &tally, start).await
            }
            Inside::Serf => {
                let profile = serf::profile(&args.profile);
                let system = serf::Agents::start(nodes, profile, &tally).await?;
                course(args, nodes, system, &net, &tally, start).await
            }
        }
    })
}

async fn course(
    args: &Args,
    nodes: usize,
    mut system: impl System,
    net: &Net,
    tally: &Tally,
    start: Instant,
) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    while !tally.all_met(nodes) {
        ensure!(
            start.elapsed() < MEET,
            "the nodes have not all met within {MEET:?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    outcome.join_s = start.elapsed().as_secs_f64();
    net.lose(args.loss)?;
    tokio::time::sleep(SETTLE).await;

    let (packets, bytes) = net.sent()?;
    let (_, handshakes) = net.handshakes()?;
    let cpu = system.cpu_seconds();
    let from = Instant::now();
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    let to = Instant::now();
    let (packets_after, bytes_after) = net.sent()?;
    let (_, handshakes_after) = net.handshakes()?;
    let seconds = (to - from).as_secs_f64();
    let per_node = |sum: f64| sum / seconds / nodes as f64;
    outcome.packets_per_s_per_node = per_node(packets_after - packets);
    outcome.bytes_per_s_per_node = per_node(bytes_after - bytes);
    outcome.handshake_bytes_per_s_per_node = per_node(handshakes_after - handshakes);
    outcome.cpu_cores = (system.cpu_seconds() - cpu) / seconds;
    outcome.memory_mb = system.memory_bytes() as f64 / 1e6;
    let alarms = tally::false_alarms(&tally.events(), from, to);
    (
        outcome.false_deaths,
        outcome.false_death_words,
        outcome.suspicions,
    ) = alarms;

    let mut rng = StdRng::seed_from_u64(args.seed);
    let mut survivors: Vec<usize> = (0..nodes).collect();
    let mut deaths = Vec::new();
    for _ in 0..args.deaths {
        // serf's agents joined by the first one: it stays.
        let victim = survivors.swap_remove(rng.random_range(1..survivors.len()));
        net.silence(victim)?;
        system.kill(victim);
        deaths.push((victim, Instant::now()));
        tokio::time::sleep(DEATHS_APART).await;
    }
    let last = deaths.last().map(|(_, at)| *at).context("nobody died")?;
    loop {
        let events = tally.events();
        let noticed = deaths
            .iter()
            .map(|(node, died)| tally::noticed(&events, *node, *died, &survivors));
        let noticed: Vec<_> = noticed.collect();
        let over = last.elapsed() > WAIT;
        if !over && noticed.iter().any(|noticed| noticed.all.is_none()) {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        }
        for (noticed, (_, died)) in noticed.iter().zip(&deaths) {
            let longest = died.elapsed();
            outcome.undetected += usize::from(noticed.all.is_none());
            outcome
                .detect_s
                .push(noticed.all.unwrap_or(longest).as_secs_f64());
            outcome
                .first_s
                .push(noticed.first.unwrap_or(longest).as_secs_f64());
        }
        outcome.stalls = system.stalls();
        return Ok(outcome);
    }
}
