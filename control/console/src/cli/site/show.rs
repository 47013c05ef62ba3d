//! `site status` for people.

use super::model::{Member, Replica, SiteStatus};
use crate::cli::output::Out;
use crate::cli::table;
use crate::fleet::column::{Cell, Column, Mark};
use crate::fleet::placement::decider;
use crate::text::{self, Line, Tone};

const MEMBERS: &[Column] = &[
    Column::text("DEVICE", 'n', 12, 32, 0),
    Column::text("STATE", 't', 9, 9, 0),
    Column::number("HEARD", 'h', 5, 6, 2),
    Column::text("LINK", 'l', 4, 4, 1),
    Column::number("CPU", 'c', 4, 5, 3),
    Column::number("MEM", 'm', 4, 5, 3),
    Column::number("TEMP", 'e', 5, 5, 5),
    Column::text("TAKES", 'w', 5, 5, 4),
    Column::number("REPL", 'r', 4, 5, 1),
];

const REPLICAS: &[Column] = &[
    Column::text("REPLICA", 'n', 16, 48, 0),
    Column::text("NODE", 'o', 10, 32, 0),
    Column::text("PHASE", 'p', 11, 11, 0),
    Column::number("GEN", 'g', 3, 5, 3),
    Column::text("DECIDED-BY", 'd', 13, 40, 1),
    Column::text("WHY", 'w', 12, 120, 2),
];

/// Everything.
pub(super) fn status(site: &SiteStatus, out: &Out) -> String {
    let mut all = String::new();
    for line in head(site, out) {
        all.push_str(&text::render_line(&line, out.colour));
        all.push('\n');
    }
    if !site.members.is_empty() {
        all.push('\n');
        let rows = site.members.iter().map(|m| member(m, site)).collect();
        all.push_str(&table::render_cells(MEMBERS, rows, out));
    }
    all.push('\n');
    if site.replicas.is_empty() {
        all.push_str("no replicas\n");
    } else {
        let rows = site.replicas.iter().map(replica).collect();
        all.push_str(&table::render_cells(REPLICAS, rows, out));
    }
    all
}

fn head(site: &SiteStatus, out: &Out) -> Vec<Line> {
    let tone = match site.mode.as_str() {
        "connected" => Tone::Good,
        "suspect" => Tone::Warn,
        _ => Tone::Accent,
    };
    let dot = if out.ascii { "-" } else { "·" };
    let seconds = i64::try_from(site.mode_for_ms / 1000).unwrap_or(i64::MAX);
    let name = if site.site.is_empty() {
        "no site".to_owned()
    } else {
        format!("site {}", site.site)
    };
    let mut first: Line = vec![
        (Tone::Strong, name),
        (Tone::Dim, format!(" {dot} ")),
        (tone, site.mode.clone()),
        (Tone::Plain, format!(" for {}", text::age(seconds))),
    ];
    if !site.why.is_empty() {
        first.push((Tone::Dim, format!(": {}", site.why)));
    }
    let scorer = if site.policy.is_empty() {
        "decides by rules".to_owned()
    } else {
        let start: String = site.policy.chars().take(12).collect();
        format!("decides with policy {start}")
    };
    let mut lines = vec![
        first,
        vec![(Tone::Dim, format!("seen by {} {dot} {scorer}", site.node))],
    ];
    if let Some(advice) = advice(&site.mode) {
        lines.push(vec![(Tone::Plain, advice.to_owned())]);
    }
    if site.untaken > 0 {
        let plural = if site.untaken == 1 { "" } else { "s" };
        let said = format!(
            "{} decision{plural} that the control plane does not know yet",
            text::grouped(site.untaken)
        );
        lines.push(vec![(Tone::Warn, said)]);
    }
    lines.extend(site.problems.iter().map(|p| vec![(Tone::Bad, p.clone())]));
    lines
}

/// What a person may do now.
fn advice(mode: &str) -> Option<&'static str> {
    match mode {
        "connected" => Some("the control plane is in reach and decides: use kubectl for changes"),
        "suspect" => {
            Some("out of contact; the site decides nothing before it knows that it is cut off")
        }
        "autonomous" => Some("cut off: the site decides; `hyperion site apply` takes workloads"),
        "reconciling" => Some("the control plane is back and takes over what the site decided"),
        _ => None,
    }
}

fn member(m: &Member, site: &SiteStatus) -> Vec<Cell> {
    let (mark, tone) = match m.state.as_str() {
        "alive" => (Mark::Good, Tone::Good),
        "suspect" => (Mark::Half, Tone::Warn),
        "dead" | "revoked" => (Mark::Bad, Tone::Bad),
        _ => (Mark::Unknown, Tone::Warn),
    };
    let known = ["alive", "suspect"].contains(&m.state.as_str());
    let only = |cell: Cell| if known { cell } else { Cell::unknown() };
    let yes = |yes: bool| {
        if yes {
            Cell::plain("yes")
        } else {
            Cell::toned("no", Tone::Warn)
        }
    };
    let memory = if m.memory_bytes == 0 {
        Cell::unknown()
    } else {
        Cell::load(
            (m.memory_used_bytes as f64 / m.memory_bytes as f64 * 100.0) as f32,
            false,
        )
    };
    vec![
        Cell::toned(&*m.node, Tone::Strong),
        Cell::marked(mark, &*m.state, tone),
        match m.heard_ms {
            _ if m.node == site.node => Cell::toned("self", Tone::Dim),
            Some(ms) => Cell::plain(text::age(i64::try_from(ms / 1000).unwrap_or(i64::MAX))),
            None => Cell::unknown(),
        },
        only(if m.relayed {
            Cell::plain("peer")
        } else if m.linked {
            Cell::toned("up", Tone::Good)
        } else {
            Cell::toned("down", Tone::Warn)
        }),
        only(Cell::load(m.cpu_percent as f32, false)),
        only(memory),
        only(match m.max_celsius {
            Some(t) if t.is_finite() => {
                let tone = if m.throttled { Tone::Bad } else { Tone::Plain };
                Cell::toned(format!("{t:.0}°C"), tone)
            }
            _ => Cell::unknown(),
        }),
        only(yes(m.accepts && !m.throttled)),
        Cell::plain(site.replicas_on(&m.node).to_string()),
    ]
}

fn replica(r: &Replica) -> Vec<Cell> {
    let phase = match (r.state.as_str(), r.phase.as_str()) {
        ("pending", _) => Cell::marked(Mark::Unknown, "Pending", Tone::Warn),
        (_, "Running") if r.ready => Cell::marked(Mark::Good, "Running", Tone::Good),
        (_, "Succeeded") => Cell::marked(Mark::Good, "Succeeded", Tone::Dim),
        (_, word @ ("Backoff" | "Failed")) => Cell::marked(Mark::Bad, word, Tone::Bad),
        (_, "") => Cell::marked(Mark::Unknown, "Unknown", Tone::Warn),
        (_, word) => Cell::marked(Mark::Half, word, Tone::Warn),
    };
    vec![
        Cell::toned(r.key(), Tone::Strong),
        Cell::plain(&*r.node),
        phase,
        Cell::plain(r.generation.to_string()),
        Cell::plain(decider(&r.decided_by)),
        Cell::toned(why(r), Tone::Dim),
    ]
}

/// Why it is there, or why it has no place.
fn why(r: &Replica) -> String {
    let mut why = r.cause.clone();
    if r.state == "pending" && !r.rejected.is_empty() {
        let ruled: Vec<String> = r
            .rejected
            .iter()
            .map(|(constraint, count)| format!("{count} by {constraint}"))
            .collect();
        let gap = if why.is_empty() { "" } else { "; " };
        why = format!("{why}{gap}no device fits: {}", ruled.join(", "));
    }
    why
}
