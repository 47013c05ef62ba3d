//! Columns: from printer columns of definitions, and by hand for core kinds.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::jsonpath::JsonPath;
use super::since::since;

/// Where a cell comes from.
enum Source {
    Path(JsonPath),
    Made(fn(&Value) -> Value),
}

/// One column.
pub(crate) struct Column {
    name: String,
    kind: String,
    format: String,
    description: String,
    priority: i64,
    source: Source,
}

impl Column {
    fn made(name: &str, priority: i64, make: fn(&Value) -> Value) -> Self {
        Self {
            name: name.to_owned(),
            kind: "string".to_owned(),
            format: String::new(),
            description: String::new(),
            priority,
            source: Source::Made(make),
        }
    }

    fn name_column() -> Self {
        Self {
            format: "name".to_owned(),
            description: "Name must be unique within a namespace.".to_owned(),
            ..Self::made("Name", 0, |o| o["metadata"]["name"].clone())
        }
    }

    fn age() -> Self {
        Self::made("Age", 0, |o| age(&o["metadata"]["creationTimestamp"]))
    }

    pub fn definition(&self) -> Value {
        json!({
            "name": self.name,
            "type": self.kind,
            "format": self.format,
            "description": self.description,
            "priority": self.priority,
        })
    }

    pub fn cell(&self, object: &Value) -> Value {
        match &self.source {
            Source::Made(make) => make(object),
            Source::Path(path) => {
                let found = path.find(object);
                match (self.kind.as_str(), found.as_slice()) {
                    (_, []) => Value::Null,
                    ("date", [one, ..]) => age(one),
                    (kind, [one]) => typed(kind, one),
                    (_, many) => {
                        let texts: Vec<String> = many.iter().map(|v| plain(v)).collect();
                        texts.join(",").into()
                    }
                }
            }
        }
    }
}

fn age(value: &Value) -> Value {
    match value.as_str() {
        Some(text) => since(text, Timestamp::now()).into(),
        None => "<unknown>".into(),
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn typed(kind: &str, value: &Value) -> Value {
    match (kind, value) {
        ("integer", Value::Number(n)) => match n.as_f64() {
            // The cell of an integer column is cut, as the real server does it.
            #[expect(clippy::cast_possible_truncation, reason = "checked to be in range")]
            Some(f) if f.fract() != 0.0 && f.abs() < 9e15 => (f as i64).into(),
            _ => value.clone(),
        },
        ("number" | "integer" | "boolean", v) if !v.is_string() => v.clone(),
        (_, v) => plain(v).into(),
    }
}

/// Columns of a definition: the name, then its own, or the age.
pub(crate) fn custom_columns(given: &[Value]) -> Vec<Column> {
    let mut columns = vec![Column::name_column()];
    let text = |c: &Value, f: &str| c[f].as_str().unwrap_or_default().to_owned();
    for column in given {
        let Ok(path) = JsonPath::parse(column["jsonPath"].as_str().unwrap_or_default()) else {
            continue;
        };
        columns.push(Column {
            name: text(column, "name"),
            kind: text(column, "type"),
            format: text(column, "format"),
            description: match text(column, "description").as_str() {
                "" => {
                    let path = text(column, "jsonPath");
                    format!("Custom resource definition column (in JSONPath format): {path}")
                }
                given => given.to_owned(),
            },
            priority: column["priority"].as_i64().unwrap_or(0),
            source: Source::Path(path),
        });
    }
    if given.is_empty() {
        columns.push(Column::age());
    }
    columns
}

/// Columns of a core kind.
pub(crate) fn core_columns(plural: &str) -> Vec<Column> {
    let mut columns = match plural {
        "events" => return event_columns(),
        "customresourcedefinitions" => {
            return vec![
                Column::name_column(),
                Column::made("Created At", 0, |o| {
                    o["metadata"]["creationTimestamp"].clone()
                }),
            ];
        }
        _ => vec![Column::name_column()],
    };
    let own: Vec<Column> = match plural {
        "namespaces" => vec![Column::made("Status", 0, |o| {
            or(&o["status"]["phase"], "Active")
        })],
        "secrets" => vec![
            Column::made("Type", 0, |o| o["type"].clone()),
            Column::made("Data", 0, |o| count(&o["data"])),
        ],
        "configmaps" => vec![Column::made("Data", 0, |o| {
            let both = size(&o["data"]) + size(&o["binaryData"]);
            both.into()
        })],
        "nodes" => vec![
            Column::made("Status", 0, node_status),
            Column::made("Roles", 0, |_| "<none>".into()),
            Column::made("Version", 0, |o| {
                o["status"]["nodeInfo"]["kubeletVersion"].clone()
            }),
        ],
        "pods" => vec![
            Column::made("Ready", 0, pod_ready),
            Column::made("Status", 0, |o| or(&o["status"]["phase"], "Pending")),
            Column::made("Restarts", 0, pod_restarts),
            Column::made("Node", 1, |o| or(&o["spec"]["nodeName"], "<none>")),
        ],
        "services" => vec![
            Column::made("Type", 0, |o| or(&o["spec"]["type"], "ClusterIP")),
            Column::made("Cluster-IP", 0, |o| or(&o["spec"]["clusterIP"], "<none>")),
            Column::made("Port(s)", 0, service_ports),
        ],
        "serviceaccounts" => vec![Column::made("Secrets", 0, |o| count(&o["secrets"]))],
        "leases" => vec![Column::made("Holder", 0, |o| {
            or(&o["spec"]["holderIdentity"], "")
        })],
        _ => vec![],
    };
    columns.extend(own);
    columns.push(Column::age());
    columns
}

fn event_columns() -> Vec<Column> {
    vec![
        Column::made("Last Seen", 0, |o| {
            let times = [
                &o["series"]["lastObservedTime"],
                &o["lastTimestamp"],
                &o["deprecatedLastTimestamp"],
                &o["eventTime"],
                &o["metadata"]["creationTimestamp"],
            ];
            let last = times.into_iter().find(|t| t.is_string());
            last.map_or_else(|| "<unknown>".into(), age)
        }),
        Column::made("Type", 0, |o| o["type"].clone()),
        Column::made("Reason", 0, |o| o["reason"].clone()),
        Column::made("Object", 0, |o| {
            let about = match &o["involvedObject"] {
                Value::Null => &o["regarding"],
                core => core,
            };
            let kind = about["kind"].as_str().unwrap_or_default().to_lowercase();
            format!("{kind}/{}", about["name"].as_str().unwrap_or_default()).into()
        }),
        Column::made("Message", 0, |o| {
            let text = o["message"].as_str().or_else(|| o["note"].as_str());
            text.unwrap_or_default().trim().into()
        }),
        Column {
            format: "name".to_owned(),
            ..Column::made("Name", 1, |o| o["metadata"]["name"].clone())
        },
    ]
}

fn or(value: &Value, otherwise: &str) -> Value {
    value
        .as_str()
        .filter(|s| !s.is_empty())
        .unwrap_or(otherwise)
        .into()
}

fn size(value: &Value) -> usize {
    match value {
        Value::Object(map) => map.len(),
        Value::Array(items) => items.len(),
        _ => 0,
    }
}

fn count(value: &Value) -> Value {
    size(value).into()
}

fn node_status(node: &Value) -> Value {
    let conditions = node["status"]["conditions"].as_array();
    let ready = conditions
        .into_iter()
        .flatten()
        .find(|c| c["type"] == "Ready");
    let mut text = match ready.map(|c| &c["status"]) {
        Some(Value::String(s)) if s == "True" => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if node["spec"]["unschedulable"] == true {
        text.push_str(",SchedulingDisabled");
    }
    text.into()
}

fn pod_ready(pod: &Value) -> Value {
    let statuses = pod["status"]["containerStatuses"].as_array();
    let ready = statuses
        .into_iter()
        .flatten()
        .filter(|s| s["ready"] == true)
        .count();
    format!("{ready}/{}", size(&pod["spec"]["containers"])).into()
}

fn pod_restarts(pod: &Value) -> Value {
    let statuses = pod["status"]["containerStatuses"].as_array();
    let restarts: i64 = statuses
        .into_iter()
        .flatten()
        .filter_map(|s| s["restartCount"].as_i64())
        .fold(0, i64::saturating_add);
    restarts.to_string().into()
}

fn service_ports(service: &Value) -> Value {
    let ports = service["spec"]["ports"].as_array();
    let texts: Vec<String> = ports
        .into_iter()
        .flatten()
        .map(|p| {
            let protocol = p["protocol"].as_str().unwrap_or("TCP");
            format!("{}/{protocol}", p["port"])
        })
        .collect();
    if texts.is_empty() {
        return "<none>".into();
    }
    texts.join(",").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_follow_the_columns_type() {
        let columns = custom_columns(&[
            json!({ "name": "N", "type": "integer", "jsonPath": ".spec.n" }),
            json!({ "name": "Nodes", "type": "string", "jsonPath": ".status.nodes[*]" }),
            json!({ "name": "Missing", "type": "string", "jsonPath": ".status.x" }),
            json!({ "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" }),
        ]);
        let object = json!({ "metadata": { "name": "a" }, "spec": { "n": 2.5 },
            "status": { "nodes": ["x", "y"] } });
        let cells: Vec<Value> = columns.iter().map(|c| c.cell(&object)).collect();
        assert_eq!(
            cells,
            [json!("a"), json!(2), json!("x,y"), Value::Null, Value::Null]
        );
    }
}
