//! A decision in words: why a replica is where it is, or why it has no place.

use hyperion_api::placement::{Explanation, OtherChoice, Ranked, ScoreTerm};
use hyperion_api::workload::WorkloadPhase;

use super::column::Mark;
use super::{Placement, Workload, placement, workload};
use crate::text::{self, Line, Tone};

/// Columns of the longest bar.
const BAR: usize = 20;

/// The sign of a mark.
#[must_use]
pub fn sign(mark: Mark, ascii: bool) -> &'static str {
    match (mark, ascii) {
        (Mark::Good, false) => "●",
        (Mark::Half, false) => "◐",
        (Mark::Bad, false) => "✖",
        (Mark::Unknown, false) => "○",
        (Mark::Good, true) => "*",
        (Mark::Half, true) => "~",
        (Mark::Bad, true) => "x",
        (Mark::Unknown, true) => "?",
    }
}

/// The whole explanation of a workload. `placements` are its own, by replica.
#[must_use]
pub fn workload_lines(row: &Workload, placements: &[&Placement], ascii: bool) -> Vec<Line> {
    let mut lines = head_lines(row, ascii);
    let missing = missing_lines(row, placements.len(), ascii);
    if !missing.is_empty() {
        lines.push(Vec::new());
        lines.extend(missing);
    }
    for placement in placements {
        lines.push(Vec::new());
        lines.extend(placement_lines(placement, ascii));
    }
    lines
}

/// What the workload is, and its constraints where it has any.
#[must_use]
pub fn head_lines(row: &Workload, ascii: bool) -> Vec<Line> {
    let mut lines = vec![headline(row, ascii)];
    if !row.constraints.is_empty() {
        lines.push(vec![
            (Tone::Dim, "constraints  ".to_owned()),
            (Tone::Plain, row.constraints.join(" · ")),
        ]);
    }
    lines
}

/// Why replicas have no place; empty if all have one.
#[must_use]
pub fn missing_lines(row: &Workload, placed: usize, ascii: bool) -> Vec<Line> {
    let missing = usize::try_from(row.desired)
        .unwrap_or(0)
        .saturating_sub(placed);
    // A job that is done needs no place any more.
    if missing == 0 || row.phase == WorkloadPhase::Succeeded {
        return Vec::new();
    }
    pending_lines(row, missing, ascii)
}

fn headline(row: &Workload, ascii: bool) -> Line {
    let phase = workload::phase_cell(row.phase);
    let mark = phase.mark.map_or("", |m| sign(m, ascii));
    let mut line = vec![
        (Tone::Strong, row.key.clone()),
        (Tone::Dim, format!("  {} · goal {} · ", row.kind, row.goal)),
        (phase.tone, format!("{mark} {}", phase.text)),
        (Tone::Plain, format!(" {}/{} ready", row.ready, row.desired)),
    ];
    if let Some(cost) = row.hourly_cost {
        line.push((Tone::Plain, format!(" · {}/h", text::dollars(cost))));
    }
    if let Some(p99) = row.p99_ms {
        line.push((Tone::Plain, format!(" · p99 {}", text::millis(p99))));
    }
    line
}

/// Why replicas have no place: the condition's message and the counts by constraint.
fn pending_lines(row: &Workload, missing: usize, ascii: bool) -> Vec<Line> {
    let mut lines = Vec::new();
    let plural = if missing == 1 {
        "replica has"
    } else {
        "replicas have"
    };
    let mut line: Line = vec![(
        Tone::Warn,
        format!("{} {missing} {plural} no place", sign(Mark::Unknown, ascii)),
    )];
    let why = row
        .conditions
        .iter()
        .find(|c| c.status == "False" && !c.message.is_empty());
    if let Some(condition) = why {
        line.push((Tone::Plain, format!(": {}", condition.message)));
    }
    lines.push(line);
    lines.extend(rejected_lines(&row.rejected, ascii));
    lines
}

/// One placement's explanation.
#[must_use]
pub fn placement_lines(row: &Placement, ascii: bool) -> Vec<Line> {
    let phase = placement::phase_cell(row.phase, row.ready);
    let mark = phase.mark.map_or("", |m| sign(m, ascii));
    let arrow = if ascii { "->" } else { "→" };
    let mut lines = vec![vec![
        (Tone::Strong, format!("replica {} {arrow} ", row.replica)),
        (Tone::Accent, row.node.clone()),
        (
            Tone::Dim,
            format!("  {} {} {}  ", row.provider, row.region, row.capacity_type),
        ),
        (phase.tone, format!("{mark} {}", phase.text)),
    ]];
    if !row.message.is_empty() {
        lines.push(vec![(
            Tone::Warn,
            format!("  {}: {}", row.reason, row.message),
        )]);
    }
    let why = &row.explanation;
    lines.push(decision_line(row));
    if !why.cause.is_empty() {
        lines.push(vec![
            (
                Tone::Dim,
                "  decided while the site was cut off: ".to_owned(),
            ),
            (Tone::Plain, why.cause.clone()),
        ]);
    }
    if !why.fallback.is_empty() {
        lines.push(vec![(
            Tone::Warn,
            format!("  rules decided: {}", why.fallback),
        )]);
    }
    if !why.tried.is_empty() {
        lines.push(vec![
            (Tone::Dim, "  left to chance: ".to_owned()),
            (Tone::Plain, why.tried.clone()),
        ]);
    }
    lines.extend(other_line("rules", why.rules_choice.as_ref(), &row.node));
    lines.extend(other_line(
        &format!("policy {}", why.policy),
        why.policy_choice.as_ref(),
        &row.node,
    ));
    if let Some(second) = &why.runner_up {
        let mut line = vec![
            (Tone::Dim, "  runner-up ".to_owned()),
            (Tone::Plain, second.id.clone()),
            (Tone::Dim, format!(" with {}", score(second.score))),
        ];
        if let [_, ranked, ..] = &why.top[..] {
            line.extend(split(&ranked.terms, TERMS_BESIDE));
        }
        lines.push(line);
    }
    if !why.second_wins.is_empty() {
        lines.push(vec![(Tone::Plain, format!("  {}", why.second_wins))]);
    }
    // The largest first: a short screen shows those that decided.
    let mut terms: Vec<(String, f64)> = why
        .terms
        .iter()
        .map(|t| (t.name.clone(), t.value))
        .collect();
    terms.retain(|(_, value)| value.is_nan() || value.abs() >= LEAST_TERM);
    terms.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
    lines.extend(term_lines(&terms, why.score, ascii));
    lines.extend(rejected_lines(&rejected(why), ascii));
    lines.extend(top_lines(&why.top));
    lines
}

/// Terms that would be shown as nothing are left out.
const LEAST_TERM: f64 = 0.000_5;
/// Terms named beside a candidate's score where there is no line of its own for them.
const TERMS_BESIDE: usize = 2;

fn decision_line(row: &Placement) -> Line {
    let why = &row.explanation;
    let policy = if why.policy.is_empty() || why.scorer == "rules" {
        String::new()
    } else {
        format!(" {}", why.policy)
    };
    let plural = if why.candidates == 1 { "" } else { "s" };
    let said = format!(
        "  generation {} by {} · scorer {}{policy} · {} candidate{plural}",
        row.generation,
        placement::decider(&row.decided_by),
        why.scorer,
        text::grouped(u64::try_from(why.candidates).unwrap_or(0)),
    );
    vec![(Tone::Dim, said)]
}

/// What another scorer would have chosen; none where it was not asked.
fn other_line(who: &str, choice: Option<&OtherChoice>, node: &str) -> Option<Line> {
    let choice = choice?;
    if choice.id == node {
        return Some(vec![(
            Tone::Good,
            format!("  {who} would have chosen the same"),
        )]);
    }
    let cost = if choice.hourly_cost == 0.0 {
        "owned".to_owned()
    } else {
        format!("{}/h", text::dollars(choice.hourly_cost))
    };
    let p99 = choice.p99_latency_ms.map(text::millis);
    let p99 = p99.map_or_else(String::new, |p99| format!(", p99 {p99}"));
    Some(vec![
        (Tone::Warn, format!("  {who} would have chosen ")),
        (Tone::Plain, choice.id.clone()),
        (Tone::Dim, format!(": {cost}{p99}")),
    ])
}

/// The largest terms of a score, ` · name +0.123` each.
fn split(terms: &[ScoreTerm], most: usize) -> Line {
    let mut shown: Vec<&ScoreTerm> = terms
        .iter()
        .filter(|t| t.value.is_finite() && t.value.abs() >= LEAST_TERM)
        .collect();
    shown.sort_by(|a, b| b.value.abs().total_cmp(&a.value.abs()));
    shown.truncate(most);
    shown
        .into_iter()
        .flat_map(|t| {
            [
                (Tone::Dim, format!(" · {} ", t.name)),
                (Tone::Plain, score(t.value)),
            ]
        })
        .collect()
}

/// The best candidates, each with its score by term.
fn top_lines(top: &[Ranked]) -> Vec<Line> {
    if top.len() < 2 {
        return Vec::new();
    }
    let mut lines = vec![vec![(Tone::Dim, format!("  the best {}", top.len()))]];
    let ids = top.iter().map(|r| text::width(&r.id));
    let width = ids.max().unwrap_or(0).clamp(5, 36);
    for (place, ranked) in top.iter().enumerate() {
        let id = text::pad(&ranked.id, width, false);
        let mut line = vec![
            (Tone::Dim, format!("    {} ", place + 1)),
            (Tone::Plain, id),
            (Tone::Strong, text::pad(&score(ranked.score), 9, true)),
        ];
        line.extend(split(&ranked.terms, usize::MAX));
        lines.push(line);
    }
    lines
}

fn rejected(why: &Explanation) -> Vec<(String, i32)> {
    let rejected = why.rejected.iter();
    rejected.map(|r| (r.constraint.clone(), r.count)).collect()
}

fn score(value: f64) -> String {
    if value.is_finite() {
        format!("{value:+.3}")
    } else {
        "–".to_owned()
    }
}

fn term_lines(terms: &[(String, f64)], total: f64, ascii: bool) -> Vec<Line> {
    let largest = terms
        .iter()
        .map(|(_, v)| v.abs())
        .filter(|v| v.is_finite())
        .fold(0.0, f64::max);
    let name_width = terms
        .iter()
        .map(|(n, _)| text::width(n))
        .max()
        .unwrap_or(0)
        .clamp(5, 24);
    let mut lines: Vec<Line> = terms
        .iter()
        .map(|(name, value)| {
            let share = if largest > 0.0 && value.is_finite() {
                value.abs() / largest
            } else {
                0.0
            };
            let tone = if *value < 0.0 { Tone::Warn } else { Tone::Good };
            vec![
                (
                    Tone::Plain,
                    format!("  {} ", text::pad(name, name_width, false)),
                ),
                (Tone::Plain, text::pad(&score(*value), 9, true)),
                (tone, format!(" {}", bar(share, BAR, ascii))),
            ]
        })
        .collect();
    if !terms.is_empty() {
        lines.push(vec![
            (
                Tone::Strong,
                format!("  {} ", text::pad("score", name_width, false)),
            ),
            (Tone::Strong, text::pad(&score(total), 9, true)),
        ]);
    }
    lines
}

fn rejected_lines(rejected: &[(String, i32)], ascii: bool) -> Vec<Line> {
    if rejected.is_empty() {
        return Vec::new();
    }
    let total: i64 = rejected.iter().map(|(_, n)| i64::from(*n)).sum();
    let most = rejected.iter().map(|(_, n)| *n).max().unwrap_or(1).max(1);
    let width = rejected
        .iter()
        .map(|(n, _)| text::width(n))
        .max()
        .unwrap_or(0)
        .clamp(5, 28);
    let mut lines = vec![vec![(
        Tone::Dim,
        format!(
            "  {} ruled out, by constraint",
            text::grouped(u64::try_from(total).unwrap_or(0))
        ),
    )]];
    for (name, count) in rejected {
        let share = f64::from(*count) / f64::from(most);
        lines.push(vec![
            (
                Tone::Plain,
                format!("    {} ", text::pad(name, width, false)),
            ),
            (
                Tone::Plain,
                text::pad(&text::grouped(u64::try_from(*count).unwrap_or(0)), 7, true),
            ),
            (Tone::Bad, format!(" {}", bar(share, BAR, ascii))),
        ]);
    }
    lines
}

/// A bar without its rest; at least one column for anything above nothing.
fn bar(share: f64, columns: usize, ascii: bool) -> String {
    let full = (share.clamp(0.0, 1.0) * columns as f64).round() as usize;
    let full = if share > 0.0 { full.max(1) } else { 0 };
    (if ascii { "#" } else { "━" }).repeat(full)
}
