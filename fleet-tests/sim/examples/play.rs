//! Plays seeds and prints what is wrong: `play FIRST COUNT NODES SITES FAULTS ENOUGH`. A bench without
//! the rest of the bench, to build quickly.

#![allow(clippy::print_stdout)]

use hyperion_sim::{Scenario, parse_faults, run, seeds};

fn main() {
    // Logs of the watched run, where RUST_LOG asks for them.
    if std::env::var_os("RUST_LOG").is_some() {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .without_time()
            .with_writer(std::io::stderr)
            .init();
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |n: usize, usual: u64| args.get(n).and_then(|a| a.parse().ok()).unwrap_or(usual);
    let faults = args.get(4).map_or("all", String::as_str);
    let scenario = Scenario {
        seed: number(0, 1),
        nodes: number(2, 3) as usize,
        sites: number(3, 1) as usize,
        faults: parse_faults(faults).unwrap_or_default(),
        watched: false,
    };
    let enough = number(5, 10) as usize;
    let summary = seeds(
        &scenario,
        number(0, 1),
        number(1, 1),
        enough,
        |seed, outcome| {
            println!("seed {seed}");
            for v in &outcome.violations {
                println!("  {:.3} {}: {}", v.at.as_secs_f64(), v.invariant, v.what);
            }
        },
    );
    let mut first = true;
    for (seed, _) in &summary.failed {
        if std::mem::take(&mut first) {
            let again = run(&Scenario {
                seed: *seed,
                watched: true,
                ..scenario.clone()
            });
            for line in again.trace {
                println!("    {line}");
            }
        }
    }
    println!(
        "{} runs, {} failed, {} violations, {:.2} s, {} events, {} starts, requests {}/{}, site {} control {} stale {}",
        summary.runs,
        summary.failed.len(),
        summary.violations(),
        summary.took.as_secs_f64(),
        summary.events,
        summary.starts,
        summary.unanswered,
        summary.requests,
        summary.site_decisions,
        summary.decisions,
        summary.stale_orders,
    );
    println!("{:?}", summary.faults);
}
