//! One node, one workload.

use ratatui::layout::Rect;

use super::context;
use super::overview::{chart, happening_line, part};
use super::pen::Pen;
use super::table;
use crate::fleet::column::{Mark, Row as _};
use crate::fleet::explain;
use crate::fleet::live::Sample;
use crate::fleet::{Happening, Node, NodeState, Workload};
use crate::text::{self, Line, Tone};
use crate::top::layout::Areas;
use crate::top::state::{Detail, State, Subject};

/// Events shown.
const EVENTS: usize = 50;

/// Draws it.
pub fn draw(pen: &mut Pen<'_>, areas: &Areas, state: &State, detail: &Detail) {
    let head = head(state, detail);
    pen.lines(areas.head, &head, 0);
    let empty = match &detail.subject {
        Subject::Node(id) => {
            if let Some(node) = state.fleet.nodes.get(id) {
                charts(pen, areas.charts, node);
            }
            "No replicas on this node."
        }
        Subject::Workload(_) => "No replica has a place.",
    };
    let rows = &state.fleet.placements;
    table::draw(
        pen,
        areas.table,
        &detail.table,
        rows,
        state.hidden_columns(),
        context(state),
        empty,
    );
    text_pane(pen, areas.text, state, detail);
}

fn text_pane(pen: &mut Pen<'_>, area: Rect, state: &State, detail: &Detail) {
    if area.height == 0 {
        return;
    }
    let lines = super::text_lines(state, area.width);
    let height = usize::from(area.height);
    let last = lines.len().saturating_sub(height);
    let from = detail.scroll.min(last);
    pen.lines(area, &lines, from);
    if last > 0 && height > 2 {
        let said = match lines.len().saturating_sub(from + height) {
            0 => " end ".to_owned(),
            more => format!(" {more} more, PgDn "),
        };
        let style = pen.style(Tone::Dim);
        pen.text_right(area.x, area.bottom() - 1, area.width, &said, style);
    }
}

fn head(state: &State, detail: &Detail) -> Vec<Line> {
    let gone = |name: &str| {
        vec![
            vec![(Tone::Strong, name.to_owned())],
            vec![(Tone::Warn, "not there, or gone".to_owned())],
        ]
    };
    match &detail.subject {
        Subject::Node(id) => state
            .fleet
            .nodes
            .get(id)
            .map_or_else(|| gone(id), |n| node_head(state, n)),
        Subject::Workload(key) => state
            .fleet
            .workloads
            .get(key)
            .map_or_else(|| gone(key), |w| workload_head(state, w)),
    }
}

fn node_head(state: &State, node: &Node) -> Vec<Line> {
    let cell = node.state.cell();
    let mark = explain::sign(cell.mark.unwrap_or(Mark::Unknown), state.options.ascii);
    let price = if node.price == 0.0 {
        "owned".to_owned()
    } else {
        format!("{}/h {}", text::dollars(node.price), node.capacity_type)
    };
    let age = context(state).age(node.created_ms).text;
    vec![
        vec![
            (Tone::Strong, node.id.clone()),
            (cell.tone, format!("  {mark} {}", cell.text)),
            (Tone::Dim, format!("  {}", contact(node))),
        ],
        vec![(
            Tone::Dim,
            joined(&[
                &node.provider,
                node.place(),
                &node.instance_type,
                &node.arch,
                &price,
                &format!("enrolled {age} ago"),
            ]),
        )],
    ]
}

/// The agent's mode, as far as it can be known: one that is out of reach can't say.
fn contact(node: &Node) -> String {
    if node.state != NodeState::Lost || node.mode == "connected" {
        return format!("agent {}", node.mode);
    }
    let does = if node.site.is_empty() {
        "runs on"
    } else {
        "runs on, and its site may decide"
    };
    format!("out of reach: what it had {does}")
}

fn joined(parts: &[&str]) -> String {
    let present: Vec<&str> = parts.iter().copied().filter(|p| !p.is_empty()).collect();
    present.join(" · ")
}

fn workload_head(state: &State, row: &Workload) -> Vec<Line> {
    let mut lines = explain::head_lines(row, state.options.ascii);
    if lines.len() < 2 {
        lines.push(vec![(Tone::Dim, "no constraints".to_owned())]);
    }
    lines
}

fn charts(pen: &mut Pen<'_>, area: Rect, node: &Node) {
    let Some(live) = node.live.as_deref() else {
        let style = pen.style(Tone::Dim);
        pen.text(area.x, area.y, area.width, "no telemetry yet", style);
        return;
    };
    let percent = |byte: u8| {
        if byte == u8::MAX {
            f32::NAN
        } else {
            f32::from(byte)
        }
    };
    let history = live.history.iter();
    let most = history.clone().map(|s| s.rx + s.tx).fold(1.0, f32::max);
    type Get = fn(&Sample) -> f32;
    let memory = format!(
        "{}/{}",
        text::bytes(live.memory_used),
        text::bytes(live.memory_total)
    );
    let net = format!("↓{} ↑{}", text::bytes(live.rx), text::bytes(live.tx));
    let get: [Get; 4] = [
        |s| f32::from(s.cpu),
        |s| f32::from(s.memory),
        |s| s.rx + s.tx,
        |s| f32::from(s.gpu),
    ];
    let mut charts = vec![
        ("CPU", text::percent(live.cpu), get[0], 100.0),
        ("MEM", memory, get[1], 100.0),
        ("NET", net, get[2], most),
    ];
    if !live.gpus.is_empty() {
        charts.insert(1, ("GPU", text::percent(live.gpu_percent()), get[3], 100.0));
    }
    let count = charts.len() as u16;
    for (i, (name, value, get, most)) in charts.into_iter().enumerate() {
        let known = |v: f32| if name != "NET" { percent(v as u8) } else { v };
        let values = history.clone().map(|s| known(get(s)));
        chart(pen, part(area, i as u16, count), name, &value, values, most);
    }
}

/// The text of the view, not wrapped.
#[must_use]
pub fn text(state: &State, detail: &Detail) -> Vec<Line> {
    let mut lines = match &detail.subject {
        Subject::Node(id) => state.fleet.nodes.get(id).map(|n| node_text(state, n)),
        Subject::Workload(key) => state
            .fleet
            .workloads
            .get(key)
            .map(|w| workload_text(state, detail, w)),
    }
    .unwrap_or_default();
    let mut events: Vec<&Happening> = state
        .fleet
        .happenings
        .iter()
        .map(|(_, h)| h)
        .filter(|h| detail.subject.concerns(h))
        .collect();
    events.sort_by(|a, b| a.order(b, 0).then_with(|| a.key.cmp(&b.key)));
    if !events.is_empty() {
        lines.push(Vec::new());
        lines.push(vec![(Tone::Strong, "EVENTS".to_owned())]);
    }
    let context = context(state);
    lines.extend(
        events
            .iter()
            .take(EVENTS)
            .map(|h| happening_line(h, false, context)),
    );
    lines
}

fn workload_text(state: &State, detail: &Detail, row: &Workload) -> Vec<Line> {
    let ascii = state.options.ascii;
    let placed = detail.table.len();
    let mut lines = explain::missing_lines(row, placed, ascii);
    let selected = detail.table.selected.as_deref();
    if let Some(placement) = selected.and_then(|id| state.fleet.placements.get(id)) {
        if !lines.is_empty() {
            lines.push(Vec::new());
        }
        lines.extend(explain::placement_lines(placement, ascii));
    }
    if !row.images.is_empty() {
        lines.push(Vec::new());
        lines.push(fact("images", row.images.join(", ")));
    }
    lines.extend(conditions(&row.conditions, ascii));
    lines
}

fn fact(name: &str, value: impl Into<String>) -> Line {
    vec![
        (Tone::Dim, text::pad(name, 12, false)),
        (Tone::Plain, value.into()),
    ]
}

fn conditions(conditions: &[crate::fleet::Condition], ascii: bool) -> Vec<Line> {
    conditions
        .iter()
        .map(|c| {
            let (mark, tone) = match c.status.as_str() {
                "True" => (Mark::Good, Tone::Good),
                "False" => (Mark::Bad, Tone::Warn),
                _ => (Mark::Unknown, Tone::Warn),
            };
            vec![
                (Tone::Dim, text::pad("condition", 12, false)),
                (
                    tone,
                    format!("{} {} {}", explain::sign(mark, ascii), c.name, c.status),
                ),
                (Tone::Plain, format!(" {}", c.reason)),
                (Tone::Dim, format!(" {}", c.message)),
            ]
        })
        .collect()
}

fn node_text(state: &State, node: &Node) -> Vec<Line> {
    let mut lines = Vec::new();
    if let Some(live) = node.live.as_deref() {
        let number = |v: f32, digits: usize| {
            if v.is_finite() {
                format!("{v:.digits$}")
            } else {
                "–".to_owned()
            }
        };
        let mut now = joined(&[
            &format!("load {}", number(live.load1, 2)),
            &format!("rtt {}", text::millis(f64::from(live.rtt_ms))),
            &format!("disk {}", text::bytes(live.disk_used)),
        ]);
        if let Some(celsius) = live.celsius {
            now.push_str(&format!(" · {celsius:.0}°C"));
        }
        if live.dropped > 0 {
            now.push_str(&format!(
                " · {} messages dropped",
                text::grouped(live.dropped)
            ));
        }
        let stale = live.is_stale(state.now_ms);
        lines.push(fact(if stale { "last known" } else { "now" }, now));
        if stale {
            let age = context(state).age(Some(live.at_ms)).text;
            lines.push(vec![(Tone::Warn, format!("{:12}last heard {age} ago", ""))]);
        }
    }
    let zone = joined(&[&node.region, &node.zone, &node.geography, &node.tier]);
    let machine = joined(&[&node.hostname, &node.instance_type, &node.arch]);
    let allocatable: Vec<String> = node
        .allocatable
        .iter()
        .map(|(name, amount)| format!("{name} {}", text::quantity(amount)))
        .collect();
    for (name, value) in [
        ("site", node.site.clone()),
        ("place", zone),
        ("machine", machine),
        ("agent", node.version.clone()),
        ("system", node.system.clone()),
        ("slots", node.slots.join(" · ")),
        ("update", node.update.clone()),
        ("allocatable", allocatable.join(" · ")),
        ("gpus", node.gpus.join(", ")),
    ] {
        if !value.is_empty() {
            lines.push(fact(name, value));
        }
    }
    lines.extend(conditions(&node.conditions, state.options.ascii));
    for (i, (key, value)) in node.labels.iter().enumerate() {
        let name = if i == 0 { "labels" } else { "" };
        lines.push(fact(name, format!("{key}={value}")));
    }
    lines
}
