//! Each metric that the shipped rules and the dashboard name is one that a control plane has.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

mod common;

use std::collections::BTreeSet;

use common::{Control, eventually, get};
use hyperion_link::{ControlTarget, EnrolRequest};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;
use serde_json::{Value, json};

/// Names of metrics of ours in an expression.
fn named(text: &str, into: &mut BTreeSet<String>) {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = text.split(|c| !word(c));
    // Those with a colon are recorded by the rules themselves.
    into.extend(
        words
            .filter(|w| w.starts_with("hyperion_") && !w.contains(':'))
            .map(str::to_owned),
    );
}

/// Every string under a key of this name.
fn strings<'a>(value: &'a Value, key: &str, into: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match field {
                    Value::String(text) if name == key => into.push(text),
                    other => strings(other, key, into),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|v| strings(v, key, into)),
        _ => {}
    }
}

/// Names of samples that an answer of `/metrics` declares.
fn declared(text: &str) -> BTreeSet<String> {
    let types = text.lines().filter_map(|l| l.strip_prefix("# TYPE "));
    types
        .flat_map(|line| {
            let (name, kind) = line.split_once(' ').unwrap();
            let endings: &[&str] = match kind {
                "counter" => &["_total"],
                "histogram" => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            endings.iter().map(move |end| format!("{name}{end}"))
        })
        .collect()
}

fn service() -> Value {
    json!({ "apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionWorkload",
        "metadata": { "name": "web" },
        "spec": { "template": { "spec": { "containers": [{ "name": "c", "image": "i",
            "resources": { "limits": { "cpu": "500m", "memory": "128Mi" } } }] } } } })
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_and_dashboard_name_metrics_that_there_are() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../images/monitoring");
    let read = |name: &str| std::fs::read_to_string(format!("{folder}/{name}")).unwrap();
    let rules: Value = serde_yaml_ng::from_str(&read("rules.yaml")).unwrap();
    let dashboard: Value = serde_json::from_str(&read("dashboard.json")).unwrap();
    let mut expressions = Vec::new();
    strings(&rules, "expr", &mut expressions);
    strings(&dashboard, "expr", &mut expressions);
    strings(&dashboard, "query", &mut expressions);
    let mut names = BTreeSet::new();
    expressions.iter().for_each(|e| named(e, &mut names));
    assert!(names.len() > 25, "{names:?}");

    let dir = tempfile::tempdir().unwrap();
    let prices = dir.path().join("prices.csv");
    let rows = "provider,region,instance_type,capacity_type,price_per_hour\n\
                aws,us-east-1,g4dn.xlarge,on-demand,0.5\n";
    std::fs::write(&prices, rows).unwrap();
    let feed = format!("--price-feed=file:{}", prices.display());
    let control = Control::start_with("10m", &[feed]).await;
    let agent = control.agent(&[], 0).await;
    // What it costs has a name only when something runs.
    control.apply(service()).await;
    control.running("web").await;
    eventually("cost is counted", || async {
        let answer = get(control.http, "/metrics").await;
        let (_, text) = answer.map_err(|e| e.to_string())?;
        let counted = text.contains("hyperion_cost_usd_total{");
        counted.then_some(()).ok_or(text)
    })
    .await;
    // Refusals have a name only when there was one.
    let maps: Api<ConfigMap> = Api::namespaced(control.client(), "hyperion-system");
    let map = maps.get("hyperion-ca").await.unwrap().data.unwrap();
    let target = ControlTarget {
        // Of loopback it names the port alone.
        addr: format!("127.0.0.1{}", map["link-address"]),
        ca_fingerprint: map["fingerprint"].clone(),
    };
    let stranger = EnrolRequest {
        token: "no.such".to_owned(),
        ..EnrolRequest::default()
    };
    let refused = hyperion_link::enrol(&target, stranger).await.unwrap_err();
    assert!(refused.to_string().contains("cpu_arch"), "{refused}");

    let id = agent.id();
    let fleet = eventually("telemetry", || async {
        let answer = get(control.http, "/metrics/fleet").await;
        let (status, text) = answer.map_err(|e| e.to_string())?;
        let line = format!("hyperion_node_cpu_utilization_percent{{node=\"{id}\"}} 10.0");
        if status == 200 && text.contains(&line) {
            Ok(text)
        } else {
            Err(text)
        }
    })
    .await;
    let (status, own) = get(control.http, "/metrics").await.unwrap();
    assert_eq!(status, 200);
    let there: BTreeSet<String> = declared(&fleet).union(&declared(&own)).cloned().collect();
    let missing: Vec<&String> = names.difference(&there).collect();
    assert_eq!(missing, Vec::<&String>::new(), "in {there:?}");
}
