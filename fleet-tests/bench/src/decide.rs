//! How long one decision takes, by the number of nodes and offers, while telemetry comes in.

mod draw;

pub use draw::{REQUESTS, network, nodes, offers, requests};

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hdrhistogram::Histogram;
use hyperion_placement::model::{Request, Resources};
use hyperion_placement::packing::{self, Lesson, Prices, TypicalRequests};
use hyperion_placement::policy::Network;
use hyperion_placement::{
    CandidateRef, Choice, Fleet, PolicyScorer, RulesScorer, Scorer, Scratch, decide,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::report::Report;
use hyperion_lab::proc;

/// Which scorer decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Which {
    /// The rules.
    Rules,
    /// A network: that of `--policy`, or one with random weights.
    Policy,
}

/// Measure placement decisions on synthetic fleets.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Nodes.
    #[arg(long, default_value_t = 10_000)]
    pub nodes: usize,
    /// Offers.
    #[arg(long, default_value_t = 0)]
    pub offers: usize,
    /// Who scores; with --policy, the policy.
    #[arg(long, value_enum)]
    pub scorer: Option<Which>,
    /// A policy file.
    #[arg(long)]
    pub policy: Option<PathBuf>,
    /// The fleet knows what its free GPU capacity is worth to these requests.
    #[arg(long)]
    pub packing: bool,
    /// Measure fleets of 100 to 100,000 nodes, instead of --nodes.
    #[arg(long)]
    pub sweep: bool,
    /// Messages of telemetry per node and second.
    #[arg(long, default_value_t = 1.0)]
    pub telemetry_rate: f64,
    /// Seed of fleet and requests.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Length of the measurement of one fleet, seconds; at least a hundred decisions are made.
    #[arg(long, default_value_t = 5)]
    pub seconds: u64,
}

/// Nodes that are held in memory at least, so that the memory of one can be told.
const HELD: usize = 20_000;
/// Sizes of a sweep.
const SWEEP: [usize; 7] = [100, 300, 1000, 3000, 10_000, 30_000, 100_000];
/// Replicas that run at the same time; the oldest goes when a new one comes.
const RUNNING: usize = 200;
/// Decisions compared with the reference, times nodes.
const COMPARED: usize = 400_000;

/// Runs the bench on one core.
///
/// # Errors
/// The policy can't be read, the histogram can't be made, or /proc can't be read.
pub fn run(args: &Args) -> anyhow::Result<Report> {
    let scorer = scorer(args)?;
    if !(0.0..=1e6).contains(&args.telemetry_rate) {
        bail!(
            "--telemetry-rate {}: not between 0 and 1e6",
            args.telemetry_rate
        );
    }
    let mut report = Report::new("decide", args.seed);
    report.condition("offers", args.offers);
    report.condition("cores", 1);
    report.condition("cpu", proc::cpu_model());
    report.condition("scorer", scorer.name());
    let weights = match (&args.policy, scorer.network()) {
        (Some(file), _) => file.display().to_string(),
        (None, Some(_)) => "random".to_owned(),
        (None, None) => "none".to_owned(),
    };
    report.condition("weights", weights);
    report.condition("requests", REQUESTS);
    report.condition("telemetry_per_node_and_s", args.telemetry_rate);
    report.condition("decision", "filter, score, choose, check");
    report.condition("packing", args.packing);
    if args.sweep {
        report.condition("nodes", SWEEP.to_vec());
        sweep(args, &scorer, &mut report)?;
        return Ok(report);
    }
    report.condition("nodes", args.nodes);
    report.figure("bytes_per_node", bytes_per_node(args, &scorer)?);
    if args.packing {
        learning(args, &scorer, &mut report);
    }
    let measured = measure(args, args.nodes, &scorer)?;
    report.figure("p50_us", measured.at(0.5));
    report.figure("p99_us", measured.at(0.99));
    report.figure("max_us", measured.times.max() as f64 / 1e3);
    report.figure("decisions_per_s", measured.per_s());
    report.figure("decisions", measured.times.len() as f64);
    report.figure("placed_percent", measured.placed_percent);
    report.figure("candidates_mean", measured.candidates_mean);
    report.figure("scored_roughly_mean", measured.rough_mean);
    report.figure("scored_exactly_mean", measured.exact_mean);
    report.figure("kinds", measured.kinds as f64);
    report.figure("telemetry_update_ns", measured.update_ns);
    report.figure("telemetry_updates", measured.updates as f64);
    report.figure("compared_with_reference", measured.compared as f64);
    report.figure("different_from_reference", measured.different as f64);
    Ok(report)
}

fn sweep(args: &Args, scorer: &Choosing, report: &mut Report) -> anyhow::Result<()> {
    let mut medians = Vec::new();
    let mut different = 0;
    for nodes in SWEEP {
        let measured = measure(args, nodes, scorer)?;
        report.figure(&format!("p50_us_at_{nodes:06}"), measured.at(0.5));
        report.figure(&format!("p99_us_at_{nodes:06}"), measured.at(0.99));
        report.figure(&format!("decisions_per_s_at_{nodes:06}"), measured.per_s());
        medians.push(measured.at(0.5));
        different += measured.different;
    }
    if let (Some(first), Some(last)) = (medians.first(), medians.last()) {
        report.figure("p50_growth_100_to_100000", last / first);
    }
    report.figure("different_from_reference", different as f64);
    Ok(())
}

enum Choosing {
    Rules,
    Policy(PolicyScorer),
}

impl Choosing {
    fn scorer(&self) -> &dyn Scorer {
        match self {
            Self::Rules => &RulesScorer,
            Self::Policy(policy) => policy,
        }
    }

    fn name(&self) -> &str {
        self.scorer().name()
    }

    const fn network(&self) -> Option<&Arc<Network>> {
        match self {
            Self::Rules => None,
            Self::Policy(policy) => Some(policy.network()),
        }
    }
}

fn scorer(args: &Args) -> anyhow::Result<Choosing> {
    let policy = match (args.scorer, &args.policy) {
        (Some(Which::Rules), Some(_)) => bail!("--scorer rules takes no --policy"),
        (Some(Which::Rules) | None, None) => return Ok(Choosing::Rules),
        (_, Some(file)) => read(file)?,
        (Some(Which::Policy), None) => network(args.seed),
    };
    Ok(Choosing::Policy(PolicyScorer::new(Arc::new(policy))))
}

fn read(file: &Path) -> anyhow::Result<Network> {
    let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
    let policy = hyperion_policy::PolicyFile::read(&bytes);
    Ok(policy.with_context(|| file.display().to_string())?.network)
}

fn fleet(args: &Args, count: usize, seed: u64, scorer: &Choosing) -> Fleet {
    let mut fleet = Fleet::new();
    fleet.set_network(scorer.network().cloned());
    fleet.set_latency(hyperion_providers::latency_matrix());
    for node in nodes(count, seed) {
        fleet.upsert_node(node);
    }
    for offer in offers(args.offers, seed) {
        fleet.upsert_offer(offer);
    }
    if args.packing {
        let lesson = lesson(&fleet, &requests(args.seed), Arc::default());
        fleet.set_packing(Arc::new(lesson.prices()));
    }
    fleet
}

/// What learning prices anew takes: `packing_lesson_ms` of whoever keeps the fleet,
/// `packing_learn_ms` beside it.
fn learning(args: &Args, scorer: &Choosing, report: &mut Report) {
    let fleet = fleet(args, args.nodes, args.seed, scorer);
    let requests = requests(args.seed);
    let started = Instant::now();
    let lesson = lesson(&fleet, &requests, fleet.packing().clone());
    let gathered = started.elapsed();
    let prices = lesson.prices();
    let learned = started.elapsed() - gathered;
    std::hint::black_box(prices);
    report.figure("packing_lesson_ms", gathered.as_secs_f64() * 1e3);
    report.figure("packing_learn_ms", learned.as_secs_f64() * 1e3);
}

/// Such requests are expected on such a fleet.
fn lesson(fleet: &Fleet, requests: &[Request], before: Arc<Prices>) -> Lesson {
    let mut typical = TypicalRequests::default();
    for request in requests {
        typical.observe(packing::demand_of(request));
    }
    Lesson::new(typical, fleet.nodes(), before)
}

fn bytes_per_node(args: &Args, scorer: &Choosing) -> anyhow::Result<Option<f64>> {
    let own = std::process::id();
    let before = proc::rss_bytes(own)?;
    let copies = HELD.div_ceil(args.nodes.max(1)).max(1);
    let held: Vec<Fleet> = (0..copies)
        .map(|copy| fleet(args, args.nodes, args.seed ^ copy as u64, scorer))
        .collect();
    let grown = proc::rss_bytes(own)?.saturating_sub(before);
    let count = held.iter().map(Fleet::len).sum::<usize>();
    Ok((count > 0).then(|| grown as f64 / count as f64))
}

struct Measured {
    times: Histogram<u64>,
    seconds: f64,
    placed_percent: f64,
    candidates_mean: f64,
    rough_mean: f64,
    exact_mean: f64,
    kinds: usize,
    updates: u64,
    update_ns: Option<f64>,
    compared: usize,
    different: usize,
}

impl Measured {
    fn at(&self, quantile: f64) -> f64 {
        self.times.value_at_quantile(quantile) as f64 / 1e3
    }

    fn per_s(&self) -> f64 {
        self.times.len() as f64 / self.seconds
    }
}

/// Telemetry that comes in evenly, node after node.
struct Telemetry {
    ids: Vec<String>,
    per_s: f64,
    rng: StdRng,
    updates: u64,
    spent: Duration,
}

impl Telemetry {
    /// Applies what has come in by `now`.
    fn apply(&mut self, fleet: &mut Fleet, now: Duration) -> anyhow::Result<()> {
        let due = (now.as_secs_f64() * self.per_s) as u64;
        // What can't be kept up with is dropped, as the gateway does.
        let from = self.updates.max(due.saturating_sub(self.ids.len() as u64));
        let start = Instant::now();
        for n in from..due {
            let at = usize::try_from(n)? % self.ids.len();
            fleet.set_telemetry(&self.ids[at], self.rng.random_range(0.0..1.0))?;
        }
        self.spent += start.elapsed();
        self.updates = due.max(self.updates);
        Ok(())
    }
}

fn measure(args: &Args, count: usize, scorer: &Choosing) -> anyhow::Result<Measured> {
    let mut fleet = fleet(args, count, args.seed, scorer);
    let requests = requests(args.seed);
    let mut scratch = Scratch::new();
    let compared = (COMPARED / count.max(1)).clamp(4, requests.len());
    let different = compare(&fleet, &mut scratch, &requests[..compared], scorer);
    let ids: Vec<String> = fleet.nodes().map(|n| n.id.clone()).collect();
    let mut telemetry = Telemetry {
        per_s: args.telemetry_rate * ids.len() as f64,
        ids,
        rng: StdRng::seed_from_u64(args.seed.wrapping_add(4)),
        updates: 0,
        spent: Duration::ZERO,
    };
    let mut running = VecDeque::new();
    let mut times = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3)?;
    let (mut placed, mut candidates) = (0_u64, 0_u64);
    let (mut rough, mut exact) = (0_u64, 0_u64);
    let began = Instant::now();
    let until = Duration::from_secs(args.seconds);
    while began.elapsed() < until || times.len() < 100 {
        telemetry.apply(&mut fleet, began.elapsed())?;
        let turn = usize::try_from(times.len())? % requests.len();
        let request = requests.get(turn).context("requests")?;
        let start = Instant::now();
        let decision = fleet.decide(&mut scratch, request, scorer.scorer());
        let checked = decision
            .choice
            .as_ref()
            .map(|choice| fleet.check(request, choice));
        times.saturating_record(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
        if let Some(Err(broken)) = checked {
            bail!("a choice breaks {broken:?}");
        }
        candidates += decision.explanation.candidates as u64;
        rough += scratch.work().rough as u64;
        exact += scratch.work().exact as u64;
        if let Some(choice) = decision.choice {
            placed += 1;
            promise(&mut fleet, &mut running, request, choice)?;
        }
    }
    let decisions = times.len() as f64;
    Ok(Measured {
        seconds: began.elapsed().as_secs_f64(),
        placed_percent: 100.0 * placed as f64 / decisions,
        candidates_mean: candidates as f64 / decisions,
        rough_mean: rough as f64 / decisions,
        exact_mean: exact as f64 / decisions,
        kinds: fleet.kinds(),
        updates: telemetry.updates,
        update_ns: (telemetry.updates > 0)
            .then(|| telemetry.spent.as_nanos() as f64 / telemetry.updates as f64),
        compared,
        different,
        times,
    })
}

/// Reserves a choice, and gives the oldest back.
fn promise(
    fleet: &mut Fleet,
    running: &mut VecDeque<(Choice, Resources)>,
    request: &Request,
    choice: Choice,
) -> anyhow::Result<()> {
    if let Err(broken) = fleet.reserve(request, &choice) {
        bail!("a choice can't be reserved: {broken:?}");
    }
    running.push_back((choice, request.resources));
    if running.len() > RUNNING
        && let Some((choice, resources)) = running.pop_front()
        && let CandidateRef::Node(id) = &choice.candidate
    {
        fleet.release(id, resources, &choice.gpus)?;
    }
    Ok(())
}

/// How many decisions differ from the reference's.
fn compare(fleet: &Fleet, scratch: &mut Scratch, requests: &[Request], scorer: &Choosing) -> usize {
    let snapshot = fleet.snapshot();
    let differs = |request: &&Request| {
        let expected = decide(&snapshot, request, scorer.scorer());
        fleet.decide(scratch, request, scorer.scorer()) != expected
    };
    requests.iter().filter(differs).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyperion_placement::model::Snapshot;

    #[test]
    fn the_same_seed_gives_the_same_fleet() {
        assert_eq!(nodes(100, 7), nodes(100, 7));
        assert_ne!(nodes(100, 7), nodes(100, 8));
        assert_eq!(requests(3), requests(3));
        assert_eq!(network(3), network(3));
    }

    #[test]
    fn most_requests_find_a_place_in_a_fleet_of_a_thousand() {
        let snapshot = Snapshot {
            nodes: nodes(1000, 1),
            offers: offers(50, 1),
            latency: hyperion_providers::latency_matrix(),
            ..Snapshot::default()
        };
        let placed = requests(1)
            .iter()
            .filter(|r| decide(&snapshot, r, &RulesScorer).choice.is_some())
            .count();
        assert!(placed > REQUESTS * 3 / 4, "{placed} of {REQUESTS}");
    }

    #[test]
    fn decisions_are_those_of_the_reference() {
        let both = [Which::Rules, Which::Policy];
        for (which, packing) in both.into_iter().flat_map(|w| [(w, false), (w, true)]) {
            let args = Args {
                packing,
                nodes: 500,
                offers: 50,
                scorer: Some(which),
                policy: None,
                sweep: false,
                telemetry_rate: 10.0,
                seed: 1,
                seconds: 0,
            };
            let report = run(&args).unwrap();
            assert_eq!(report.figures["different_from_reference"], Some(0.0));
            assert_eq!(report.figures["compared_with_reference"], Some(64.0));
        }
    }
}
