//! The overview: how many, how healthy, how busy, at what price.

use hyperion_api::rollout::RolloutPhase;
use ratatui::layout::Rect;

use super::context;
use super::pen::Pen;
use super::table;
use crate::fleet::column::{Context, Mark, Row as _};
use crate::fleet::summary::Group;
use crate::fleet::{Happening, NodeState, Rollout};
use crate::text::{self, Line, Tone};
use crate::top::layout::Areas;
use crate::top::state::{State, Total};

/// Warnings shown.
const WARNINGS: usize = 60;

/// Draws it.
pub fn draw(pen: &mut Pen<'_>, areas: &Areas, state: &State, empty: &str) {
    cards(pen, areas.cards, state);
    rollouts(pen, areas.rollouts, state);
    charts(pen, areas.charts, state);
    providers(pen, areas.providers, state);
    let context = context(state);
    table::draw(
        pen,
        areas.table,
        &state.tables.places,
        &state.places,
        &[],
        context,
        empty,
    );
    if areas.text.height > 1 {
        let lines = super::text_lines(state, areas.text.width);
        pen.lines(areas.text, &lines, 0);
    }
}

/// The `index`-th of `count` equal parts, with a blank after each.
pub fn part(area: Rect, index: u16, count: u16) -> Rect {
    let width = area.width / count.max(1);
    Rect {
        x: area.x + width * index,
        width: width.saturating_sub(1),
        ..area
    }
}

fn cards(pen: &mut Pen<'_>, area: Rect, state: &State) {
    let sum = &state.summary;
    let nodes = |s: NodeState| sum.states.get(&s).copied().unwrap_or(0);
    let [pending, running, degraded, succeeded, failed] = sum.workloads;
    let [good, moving, bad] = sum.placements;
    let workloads: usize = sum.workloads.iter().sum();
    let placements: usize = sum.placements.iter().sum();
    let cards = [
        (
            format!("NODES {}", text::grouped(sum.all.nodes as u64)),
            vec![
                (Mark::Good, Tone::Good, nodes(NodeState::Ready), "ready"),
                (
                    Mark::Half,
                    Tone::Warn,
                    nodes(NodeState::Cordoned) + nodes(NodeState::Draining),
                    "no new replicas",
                ),
                (
                    Mark::Unknown,
                    Tone::Warn,
                    nodes(NodeState::Unknown),
                    "unknown",
                ),
                (
                    Mark::Bad,
                    Tone::Bad,
                    nodes(NodeState::Lost) + nodes(NodeState::Revoked),
                    "lost, revoked",
                ),
            ],
        ),
        (
            format!("WORKLOADS {}", text::grouped(workloads as u64)),
            vec![
                (Mark::Good, Tone::Good, running + succeeded, "running, done"),
                (Mark::Half, Tone::Warn, degraded, "degraded"),
                (Mark::Unknown, Tone::Warn, pending, "pending"),
                (Mark::Bad, Tone::Bad, failed, "failed"),
            ],
        ),
        (
            format!("REPLICAS {}", text::grouped(placements as u64)),
            vec![
                (Mark::Good, Tone::Good, good, "running"),
                (Mark::Half, Tone::Warn, moving, "on their way"),
                (Mark::Bad, Tone::Bad, bad, "in trouble"),
            ],
        ),
    ];
    let cost = format!("  {}/h", text::dollars(sum.workload_cost));
    let third = part(area, 2, 3);
    let plain = pen.style(Tone::Plain);
    if area.height > 4 {
        pen.text(third.x, area.y + 4, third.width, &cost, plain);
    }
    for (i, (title, lines)) in cards.into_iter().enumerate() {
        let area = part(area, i as u16, 3);
        let style = pen.style(Tone::Strong);
        pen.text(area.x, area.y, area.width, &title, style);
        for ((mark, tone, count, what), y) in lines.into_iter().zip(area.y + 1..area.bottom()) {
            let tone = if count == 0 { Tone::Dim } else { tone };
            let line = vec![
                (tone, pen.sign(mark)),
                (tone, text::pad(&text::grouped(count as u64), 6, true)),
                (Tone::Dim, format!(" {what}")),
            ];
            pen.line(area.x, y, area.width, &line);
        }
    }
}

/// Those that are under way first.
fn rollouts(pen: &mut Pen<'_>, area: Rect, state: &State) {
    let mut rows: Vec<&Rollout> = state.fleet.rollouts.iter().map(|(_, row)| row).collect();
    rows.sort_by_key(|row| (row.phase == RolloutPhase::Complete, &row.name));
    let mut lines = vec![vec![(Tone::Strong, "ROLLOUTS".to_owned())]];
    lines.extend(rows.iter().map(|row| row.line(state.options.ascii)));
    pen.lines(area, &lines, 0);
}

fn charts(pen: &mut Pen<'_>, area: Rect, state: &State) {
    let last = state.history.back();
    let value = |get: fn(&Total) -> f32| last.map_or(f32::NAN, get);
    let most = state
        .history
        .iter()
        .map(|t| t.network)
        .filter(|n| n.is_finite())
        .fold(1.0, f32::max);
    let network = value(|t| t.network);
    let network = if network.is_finite() {
        format!("{}/s", text::bytes(network as u64))
    } else {
        "–".to_owned()
    };
    type Chart = (&'static str, String, fn(&Total) -> f32, f32);
    let charts: [Chart; 3] = [
        ("CPU", text::percent(value(|t| t.cpu)), |t| t.cpu, 100.0),
        (
            "MEMORY",
            text::percent(value(|t| t.memory)),
            |t| t.memory,
            100.0,
        ),
        ("NETWORK", network, |t| t.network, most),
    ];
    for (i, (name, value, get, most)) in charts.into_iter().enumerate() {
        let area = part(area, i as u16, 3);
        chart(pen, area, name, &value, state.history.iter().map(get), most);
    }
}

/// A chart with its name and last value above it.
pub fn chart(
    pen: &mut Pen<'_>,
    area: Rect,
    name: &str,
    value: &str,
    values: impl DoubleEndedIterator<Item = f32>,
    most: f32,
) {
    let line = vec![
        (Tone::Dim, format!("{name} ")),
        (Tone::Strong, value.to_owned()),
    ];
    pen.line(area.x, area.y, area.width, &line);
    let below = Rect {
        y: area.y.saturating_add(1),
        height: area.height.saturating_sub(1),
        ..area
    };
    pen.chart(below, values, most, Tone::Accent);
}

fn providers(pen: &mut Pen<'_>, area: Rect, state: &State) {
    if area.height == 0 {
        return;
    }
    let sum = &state.summary;
    let row = |name: &str, cells: [String; 6]| -> String {
        let [nodes, ready, replicas, cpu, hour, month] = cells;
        format!("{name:<10} {nodes:>7} {ready:>7} {replicas:>8} {cpu:>5} {hour:>12} {month:>14}")
    };
    let heading = ["NODES", "READY", "REPL", "CPU", "$/h", "$/month"].map(str::to_owned);
    let style = pen
        .style(Tone::Dim)
        .add_modifier(ratatui::style::Modifier::UNDERLINED);
    pen.restyle(Rect { height: 1, ..area }, style);
    pen.text(area.x, area.y, area.width, &row("PROVIDER", heading), style);
    let cells = |g: &Group| {
        let price = |factor: f64| {
            if g.price == 0.0 {
                "owned".to_owned()
            } else {
                text::dollars(g.price * factor)
            }
        };
        [
            text::grouped(g.nodes as u64),
            text::grouped(g.ready as u64),
            text::grouped(g.replicas),
            text::percent(g.cpu()),
            price(1.0),
            // A cloud's month has 730 hours.
            price(730.0),
        ]
    };
    let plain = pen.style(Tone::Plain);
    for ((name, group), y) in sum.providers.iter().zip(area.y + 1..area.bottom()) {
        let name = if name.is_empty() { "–" } else { name };
        pen.text(
            area.x,
            y,
            area.width,
            &row(&text::fit(name, 10), cells(group)),
            plain,
        );
    }
}

/// The last warnings, newest first.
#[must_use]
pub fn warnings(state: &State) -> Vec<Line> {
    let mut found: Vec<&Happening> = state
        .fleet
        .happenings
        .iter()
        .map(|(_, h)| h)
        .filter(|h| h.warning)
        .collect();
    found.sort_by(|a, b| a.order(b, 0).then_with(|| a.key.cmp(&b.key)));
    let mut lines = vec![vec![(Tone::Strong, "LAST WARNINGS".to_owned())]];
    if found.is_empty() {
        lines.push(vec![(Tone::Dim, "none".to_owned())]);
    }
    let context = context(state);
    lines.extend(
        found
            .iter()
            .take(WARNINGS)
            .map(|h| happening_line(h, true, context)),
    );
    lines
}

/// An event in one line.
pub fn happening_line(row: &Happening, with_object: bool, context: Context) -> Line {
    let tone = if row.warning { Tone::Warn } else { Tone::Plain };
    let age = context.age(Some(row.at_ms)).text;
    let mut line = vec![(Tone::Dim, format!("{} ", text::pad(&age, 6, true)))];
    if with_object {
        line.push((Tone::Strong, format!("{}/{} ", row.kind, row.object)));
    }
    line.push((tone, row.reason.clone()));
    if !row.message.is_empty() {
        line.push((Tone::Plain, format!(": {}", row.message)));
    }
    if row.count > 1 {
        line.push((Tone::Dim, format!(" (x{})", row.count)));
    }
    line
}
