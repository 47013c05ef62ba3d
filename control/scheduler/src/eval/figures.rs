//! From episodes to figures, tables and plots.

use std::fmt::Write as _;

use hyperion_placement::model::{Goal, WorkloadType};

use super::episodes::{PPO, Played};
use super::plot::Bar;
use super::report::{Report, markdown};
use super::stats::{Mean, mean, quantile};
use crate::baselines;
use crate::bound::Optimum;
use crate::sim::{Figures, Outcome, Record};

/// What is reported of one scheduler, with how it is read from an episode.
type Metric = (&'static str, fn(&Figures) -> Option<f64>);

const METRICS: [Metric; 7] = [
    ("reward", |f| Some(f.mean_reward())),
    ("cost_usd_per_h", |f| Some(f.usd_per_hour())),
    ("p99_ms", |f| f.p99_ms()),
    ("slo_miss_percent", |f| f.slo_miss_percent()),
    ("jct_min", |f| f.mean_jct_minutes()),
    ("violations", |f| Some(f.violations as f64)),
    ("moves", |f| Some(f.moves as f64)),
];

fn figures(outcome: &Outcome, goal: Option<usize>) -> &Figures {
    goal.map_or(&outcome.all, |g| &outcome.goals[g])
}

fn metric(played: &[Played], scheduler: &str, goal: Option<usize>, read: Metric) -> Option<Mean> {
    let outcomes = played.iter().filter_map(|p| p.of(scheduler));
    mean(outcomes.filter_map(|o| (read.1)(figures(o, goal))))
}

/// A scheduler's name as figures write it.
fn key(scheduler: &str) -> String {
    scheduler.replace('-', "_")
}

/// Notes all figures of `played`, each name with `prefix` before it.
pub fn note(report: &mut Report, prefix: &str, schedulers: &[&'static str], played: &[Played]) {
    for scheduler in schedulers {
        let name = key(scheduler);
        for m in METRICS {
            report.mean(
                &format!("{prefix}{name}_{}", m.0),
                metric(played, scheduler, None, m),
            );
            for (g, goal) in Goal::ALL.iter().enumerate() {
                report.mean(
                    &format!("{prefix}{name}_{goal}_{}", m.0),
                    metric(played, scheduler, Some(g), m),
                );
            }
        }
        let tails = played.iter().filter_map(|p| p.of(scheduler));
        let p99 = mean(tails.filter_map(|o| o.all.tail.quantile(0.99)));
        report.mean(&format!("{prefix}{name}_p99_tail_ms"), p99);
    }
    let bounds = played.iter().filter_map(|p| p.bound.as_ref());
    let bound = mean(bounds.map(|b| b.mean_reward));
    report.mean(&format!("{prefix}clairvoyant_reward"), bound);
    for m in &METRICS[1..] {
        report.figure(&format!("{prefix}clairvoyant_{}", m.0), None);
    }
    if let Some((least, most)) = optimum(played) {
        report.mean(&format!("{prefix}optimum_at_least_reward"), Some(least));
        report.mean(&format!("{prefix}optimum_at_most_reward"), Some(most));
        for scheduler in schedulers {
            if let Some(mean) = metric(played, scheduler, None, METRICS[0]) {
                let name = format!("{prefix}{}_of_optimum", key(scheduler));
                let share = |of: Mean| 100.0 * mean.value / of.value;
                report.figure(&format!("{name}_at_least_percent"), share(most));
                report.figure(&format!("{name}_at_most_percent"), share(least));
            }
        }
    }
    compare(report, prefix, schedulers, played);
}

/// What the optimum is at the least and at the most, where it was looked for.
fn optimum(played: &[Played]) -> Option<(Mean, Mean)> {
    let of = |read: fn(&Optimum) -> f64| {
        mean(played.iter().filter_map(|p| p.optimum.as_ref()).map(read))
    };
    Some((of(|o| o.at_least)?, of(|o| o.at_most)?))
}

/// Ratios between schedulers, each from the same episodes.
fn compare(report: &mut Report, prefix: &str, schedulers: &[&'static str], played: &[Played]) {
    if !schedulers.contains(&PPO) {
        return;
    }
    let rewards = |name: &str| -> Vec<f64> {
        let outcomes = played.iter().filter_map(|p| p.of(name));
        outcomes.map(|o| o.all.mean_reward()).collect()
    };
    let ours = rewards(PPO);
    let best = schedulers
        .iter()
        .filter(|s| baselines::NAMES.contains(s))
        .filter_map(|s| Some((*s, mean(rewards(s))?)))
        .max_by(|a, b| a.1.value.total_cmp(&b.1.value));
    if let (Some((name, best)), Some(mine)) = (best, mean(ours.iter().copied())) {
        report.condition(&format!("{prefix}best_baseline"), name);
        let gain = 100.0 * (mine.value - best.value) / best.value.abs().max(1e-9);
        report.figure(&format!("{prefix}ppo_over_best_baseline_percent"), gain);
        let paired = ours.iter().zip(rewards(name)).map(|(a, b)| a - b);
        report.mean(
            &format!("{prefix}ppo_minus_best_baseline_reward"),
            mean(paired),
        );
    }
    let bounds: Vec<f64> = played
        .iter()
        .filter_map(|p| p.bound.as_ref())
        .map(|b| b.mean_reward)
        .collect();
    if let (Some(bound), Some(mine)) = (mean(bounds), mean(ours)) {
        let share = 100.0 * mine.value / bound.value;
        report.figure(&format!("{prefix}ppo_of_clairvoyant_percent"), share);
    }
    let (asked, agreed) = played
        .iter()
        .fold((0, 0), |(a, b), p| (a + p.agreed.0, b + p.agreed.1));
    let percent = (asked > 0).then(|| 100.0 * agreed as f64 / asked as f64);
    report.figure(&format!("{prefix}quantised_agreement_percent"), percent);
    report.figure(&format!("{prefix}quantised_decisions"), asked as f64);
    let (costs, p99s) = (cost_reductions(played), p99_reductions(played));
    for (name, values) in [("cost", &costs), ("p99", &p99s)] {
        let name = format!("{prefix}vs_static_{name}_reduction");
        report.figure(&format!("{name}_percent_median"), quantile(values, 0.5));
        report.figure(&format!("{name}_percent_best"), quantile(values, 1.0));
        report.figure(&format!("{name}_percent_worst"), quantile(values, 0.0));
        report.figure(&format!("{name}_percent_p10"), quantile(values, 0.1));
        report.figure(&format!("{name}_percent_p90"), quantile(values, 0.9));
        let most = values.iter().filter(|v| **v >= 90.0).count();
        let share = (!values.is_empty()).then(|| 100.0 * most as f64 / values.len() as f64);
        report.figure(&format!("{name}_at_least_90_share_percent"), share);
        report.figure(&format!("{name}_workloads"), values.len() as f64);
    }
}

/// By how much each cost-goal job is cheaper for an hour of work than in the control group, per
/// cent, at list prices.
#[must_use]
pub fn cost_reductions(played: &[Played]) -> Vec<f64> {
    reductions(played, |r| {
        (r.goal == Goal::Cost && r.workload_type == WorkloadType::Job)
            .then_some(r.usd_per_hour)
            .flatten()
    })
}

/// By how much the p99 of each latency-goal service with clients at the edge is lower than in the
/// control group, per cent.
#[must_use]
pub fn p99_reductions(played: &[Played]) -> Vec<f64> {
    reductions(played, |r| {
        (r.goal == Goal::Latency && r.edge_clients)
            .then_some(r.p99_ms)
            .flatten()
    })
}

fn reductions(played: &[Played], read: fn(&Record) -> Option<f64>) -> Vec<f64> {
    let mut found = Vec::new();
    for (control, ours) in played.iter().filter_map(|p| p.list_prices.as_ref()) {
        for (a, b) in control.workloads.iter().zip(&ours.workloads) {
            if let (Some(before), Some(after)) = (read(a), read(b))
                && before > 0.0
            {
                found.push(100.0 * (1.0 - after / before));
            }
        }
    }
    found
}

/// A table of all schedulers: means over episodes with 95 % intervals.
#[must_use]
pub fn table(schedulers: &[&'static str], played: &[Played], goal: Option<Goal>) -> String {
    let index = goal.and_then(|goal| Goal::ALL.iter().position(|g| *g == goal));
    let mut rows: Vec<Vec<String>> = schedulers
        .iter()
        .map(|scheduler| {
            let cells = METRICS.iter().enumerate().map(|(i, m)| {
                let digits = if i < 2 { 3 } else { 1 };
                cell(metric(played, scheduler, index, *m), digits)
            });
            std::iter::once((*scheduler).to_owned())
                .chain(cells)
                .collect()
        })
        .collect();
    if goal.is_none() {
        let bounds = played.iter().filter_map(|p| p.bound.as_ref());
        let bound = mean(bounds.map(|b| b.mean_reward)).map(|b| ("clairvoyant bound", b));
        let optimum = optimum(played)
            .into_iter()
            .flat_map(|(least, most)| [("optimum, at least", least), ("optimum, at most", most)]);
        for (name, mean) in optimum.chain(bound) {
            let mut row = vec![name.to_owned(), cell(Some(mean), 3)];
            row.resize(METRICS.len() + 1, "–".to_owned());
            rows.push(row);
        }
    }
    let head = [
        "scheduler",
        "mean reward",
        "USD/h",
        "p99 ms",
        "SLO missed %",
        "JCT min",
        "violations",
        "moves",
    ];
    markdown(&head, &rows)
}

fn cell(mean: Option<Mean>, digits: usize) -> String {
    let mut text = String::new();
    match mean {
        Some(m) => {
            let _ = write!(text, "{:.digits$} ± {:.digits$}", m.value, m.ci95);
        }
        None => text.push('–'),
    }
    text
}

/// Mean rewards as bars.
#[must_use]
pub fn reward_bars(schedulers: &[&'static str], played: &[Played]) -> Vec<Bar> {
    let bar = |name: &str, m: Mean| Bar {
        name: name.to_owned(),
        value: m.value,
        ci95: m.ci95,
    };
    let mut bars: Vec<Bar> = schedulers
        .iter()
        .filter_map(|s| Some(bar(s, metric(played, s, None, METRICS[0])?)))
        .collect();
    let bounds = played.iter().filter_map(|p| p.bound.as_ref());
    if let Some(m) = mean(bounds.map(|b| b.mean_reward)) {
        bars.push(bar("bound", m));
    }
    bars
}
