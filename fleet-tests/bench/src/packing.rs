//! How much GPU capacity stays unallocated when requests arrive in random order.
//!
//! The procedure is that of "Beware of Fragmentation" (Weng and others, USENIX ATC 2023) and of the
//! simulator its authors published, so that figures can be compared with theirs: the pods of a
//! file arrive in random order, once the file is used up more are drawn from it at random, each is
//! placed where the scorer says or rejected where it fits nowhere, none ever leaves, and the run
//! ends when the GPU demand that has arrived reaches the cluster's GPU capacity.

mod production;
mod read;
mod replay;
mod scorers;

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::Context;

use crate::report::Report;
use hyperion_lab::proc;
use read::{Cluster, Pods};
use replay::Outcome;
use scorers::Kind;

/// Measure GPU packing on a cluster's nodes and pods.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Nodes: CSV with the columns sn, `cpu_milli`, `memory_mib`, gpu and, if it has one, model.
    #[arg(long)]
    pub nodes: PathBuf,
    /// Pods: CSV with the columns name, `cpu_milli`, `memory_mib`, `num_gpu`, `gpu_milli` and, if
    /// it has one, `gpu_spec` (models that will do, separated by |).
    #[arg(long)]
    pub pods: PathBuf,
    /// Orders of arrival that are tried.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub seeds: u32,
    /// The first seed; the others follow it.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Runs every scorer on every seed.
///
/// # Errors
/// A file can't be read or says something impossible; the error names file, line and column.
pub fn run(args: &Args) -> anyhow::Result<Report> {
    let (cluster, pods) = read::files(&args.nodes, &args.pods)?;
    let expected = replay::expected_arrivals(&cluster, &pods);
    anyhow::ensure!(
        expected <= replay::MOST_ARRIVALS,
        "{}: these pods ask for so little GPU that {expected:.0} of them would have to arrive to \
         fill the nodes of {}; {:.0} is the most",
        args.pods.display(),
        args.nodes.display(),
        replay::MOST_ARRIVALS
    );
    let began = Instant::now();
    let outcomes = all(&cluster, &pods, args)?;
    let mut report = Report::new("packing", args.seed);
    conditions(&mut report, args, &cluster, &pods);
    report.condition("seconds", began.elapsed().as_secs_f64());
    for (kind, outcomes) in Kind::ALL.iter().zip(&outcomes) {
        figures(&mut report, kind.name(), outcomes);
    }
    let arrived = outcomes.first().map(|of| mean(of, |o| o.arrived as f64));
    report.figure("pods_arrived", arrived);
    Ok(report)
}

/// By scorer and seed. The order of arrival depends on the seed alone, so that the scorers are
/// compared on the same arrivals, and the result does not depend on the number of threads.
fn all(cluster: &Cluster, pods: &Pods, args: &Args) -> anyhow::Result<Vec<Vec<Outcome>>> {
    let seeds = args.seeds as usize;
    let runs = Kind::ALL.len() * seeds;
    let next = AtomicUsize::new(0);
    let done = Mutex::new((0..runs).map(|_| None).collect::<Vec<_>>());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads.min(runs) {
            scope.spawn(|| {
                loop {
                    // Longest first: the last scorer takes most time.
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let Some(at) = (runs - 1).checked_sub(n) else {
                        return;
                    };
                    let seed = args.seed.wrapping_add((at % seeds) as u64);
                    let outcome = replay::run(cluster, pods, Kind::ALL[at / seeds], seed);
                    if let Ok(mut done) = done.lock() {
                        done[at] = Some(outcome);
                    }
                }
            });
        }
    });
    let done = done.into_inner().ok().context("a run failed")?;
    let done = done.into_iter().map(|of| of.context("a run is missing")?);
    let done = done.collect::<anyhow::Result<Vec<Outcome>>>()?;
    Ok(done.chunks(seeds).map(<[Outcome]>::to_vec).collect())
}

fn conditions(report: &mut Report, args: &Args, cluster: &Cluster, pods: &Pods) {
    report.condition("nodes_file", args.nodes.display().to_string());
    report.condition("pods_file", args.pods.display().to_string());
    report.condition("nodes", cluster.nodes.len());
    report.condition("gpus", cluster.gpu_millis() / 1000);
    report.condition("pods", pods.kind_of.len());
    report.condition("pod_kinds", pods.kinds.len());
    report.condition("first_seed", args.seed);
    report.condition("seeds", args.seeds);
    report.condition("cpu", proc::cpu_model());
    report.condition(
        "procedure",
        "pods in random order, then drawn at random from the same file; placed or rejected, never \
         removed; ends when the GPU demand that arrived reaches the GPU capacity",
    );
    report.condition(
        "knowledge",
        "fgd is told the whole file's distribution in advance, as published; hyperion learns it \
         from the pods that have arrived; the others use none",
    );
    report.condition(
        "production",
        "rules and policy are the control plane's decisions, the nodes owned machines of one site \
         that cost nothing",
    );
    report.condition("tuned_on", "hyperion: seeds 100 to 105 of openb default");
}

fn figures(report: &mut Report, scorer: &str, outcomes: &[Outcome]) {
    let unallocated = |o: &Outcome| o.unallocated_percent;
    let deviation = deviation(outcomes, unallocated);
    let runs = outcomes.len() as f64;
    let half_width = deviation.map(|s| student_95(outcomes.len() - 1) * s / runs.sqrt());
    let mut figure = |name: &str, value: Option<f64>| {
        report.figure(&format!("{scorer}_{name}"), value);
    };
    figure("unallocated_percent", Some(mean(outcomes, unallocated)));
    figure("stddev", deviation);
    figure("unallocated_percent_ci95", half_width);
    figure("pods_placed", Some(mean(outcomes, |o| o.placed as f64)));
    let several = mean(outcomes, |o| o.several_rejected_percent);
    figure("several_gpu_pods_rejected_percent", Some(several));
}

fn mean(outcomes: &[Outcome], of: impl Fn(&Outcome) -> f64) -> f64 {
    outcomes.iter().map(of).sum::<f64>() / outcomes.len() as f64
}

/// Of a sample; none of a single one.
fn deviation(outcomes: &[Outcome], of: impl Fn(&Outcome) -> f64) -> Option<f64> {
    let mean = mean(outcomes, &of);
    let squares: f64 = outcomes.iter().map(|o| (of(o) - mean).powi(2)).sum();
    (outcomes.len() > 1).then(|| (squares / (outcomes.len() - 1) as f64).sqrt())
}

/// The 97.5 % quantile of Student's distribution, from the usual table; above 30 degrees of
/// freedom the normal one, which is 4 % too small at worst.
fn student_95(degrees: usize) -> f64 {
    const TABLE: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
        2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
        2.052, 2.048, 2.045, 2.042,
    ];
    degrees
        .checked_sub(1)
        .and_then(|at| TABLE.get(at).copied())
        .unwrap_or(1.960)
}

#[cfg(test)]
mod tests;
