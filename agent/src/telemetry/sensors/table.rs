//! Looks as tables, for people and programs.

use std::fmt::Write as _;

use serde_json::{Value, json as object};

use super::look::{Look, Sensor};
use super::metric;

/// The table of all sensors: metric, value, unit, source.
#[must_use]
pub fn table(look: &Look) -> String {
    let mut rows = vec![["METRIC", "VALUE", "UNIT", "SOURCE"].map(str::to_owned)];
    for fact in &look.facts {
        let source = fact.source.join(" ");
        rows.push([
            fact.name.to_owned(),
            fact.value.clone(),
            String::new(),
            source,
        ]);
    }
    for gpu in &look.gpus {
        let bytes = gpu.memory_bytes.map(|b| b.to_string());
        rows.push([
            format!("gpu{{uuid=\"{}\",model=\"{}\"}}", gpu.uuid, gpu.model),
            bytes.unwrap_or_else(|| "?".to_owned()),
            "bytes".to_owned(),
            String::new(),
        ]);
    }
    for metric in metric::ALL {
        for reading in look.of(metric) {
            rows.push([
                named(&reading.sensor),
                shown(reading.value),
                metric.unit.to_owned(),
                reading.sensor.source.join(" "),
            ]);
        }
    }
    for process in &look.processes {
        let bytes = process.memory_bytes.map(|b| b.to_string());
        rows.push([
            format!(
                "gpu_process{{gpu=\"{}\",pid=\"{}\"}}",
                process.gpu, process.pid
            ),
            bytes.unwrap_or_else(|| "?".to_owned()),
            "bytes".to_owned(),
            String::new(),
        ]);
    }
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths = [width(0), width(1), width(2)];
    let mut text = String::new();
    for [metric, value, unit, source] in &rows {
        let [a, b, c] = widths;
        let line = format!("{metric:a$}  {value:>b$}  {unit:c$}  {source}");
        let _ = writeln!(text, "{}", line.trim_end());
    }
    for left in &look.left_out {
        let _ = writeln!(text, "left out: {}: {}", left.what, left.why);
    }
    text
}

/// The same as one JSON object; fields are only ever added.
#[must_use]
pub fn json(look: &Look) -> Value {
    let readings = metric::ALL.iter().flat_map(|metric| look.of(metric));
    let metrics: Vec<Value> = readings
        .map(|r| {
            let labels = r.sensor.labels.iter();
            let labels: serde_json::Map<String, Value> = labels
                .map(|(name, value)| ((*name).to_owned(), value.as_str().into()))
                .collect();
            object!({
                "metric": r.sensor.metric.name,
                "labels": labels,
                "value": r.value,
                "unit": r.sensor.metric.unit,
                "source": r.sensor.source,
            })
        })
        .collect();
    let facts = look.facts.iter();
    let facts: Vec<Value> = facts
        .map(|f| object!({"fact": f.name, "value": f.value, "source": f.source}))
        .collect();
    let processes = look.processes.iter();
    let processes: Vec<Value> = processes
        .map(|p| object!({"gpu": p.gpu, "pid": p.pid, "memoryBytes": p.memory_bytes}))
        .collect();
    let left_out = look.left_out.iter();
    let left_out: Vec<Value> = left_out
        .map(|l| object!({"what": l.what, "why": l.why}))
        .collect();
    let gpus = look.gpus.iter();
    let gpus: Vec<Value> = gpus
        .map(|g| {
            object!({
                "uuid": g.uuid,
                "model": g.model,
                "memoryBytes": g.memory_bytes,
                "measuredAs": g.measured_as,
            })
        })
        .collect();
    object!({
        "facts": facts,
        "gpus": gpus,
        "metrics": metrics,
        "processes": processes,
        "leftOut": left_out,
    })
}

fn named(sensor: &Sensor) -> String {
    if sensor.labels.is_empty() {
        return sensor.metric.name.to_owned();
    }
    let labels = sensor.labels.iter();
    let labels: Vec<String> = labels
        .map(|(name, value)| format!("{name}=\"{value}\""))
        .collect();
    format!("{}{{{}}}", sensor.metric.name, labels.join(","))
}

/// At most six digits behind the point, without noughts at the end.
fn shown(value: f64) -> String {
    let text = format!("{value:.6}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0" } else { text }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_without_noughts() {
        let cases = [
            (0.5, "0.5"),
            (1e9, "1000000000"),
            (-0.000_000_1, "0"),
            (48.5, "48.5"),
        ];
        for (value, text) in cases {
            assert_eq!(shown(value), text);
        }
    }
}
