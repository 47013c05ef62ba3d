//! Live prices of a running control plane: from a file that changes, to a decision.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

mod common;

use std::path::Path;
use std::process::Stdio;

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use common::{Control, eventually, free_port, get};
use serde_json::{Value, json};

const AWS: &[(&str, &str)] = &[
    ("hyperion.io/provider", "aws"),
    ("topology.kubernetes.io/region", "us-east-1"),
    ("topology.kubernetes.io/zone", "us-east-1a"),
    ("node.kubernetes.io/instance-type", "g4dn.xlarge"),
];
const AZURE: &[(&str, &str)] = &[
    ("hyperion.io/provider", "azure"),
    ("topology.kubernetes.io/region", "eastus"),
    ("node.kubernetes.io/instance-type", "Standard_NC4as_T4_v3"),
];

fn cheapest(name: &str) -> Value {
    json!({ "apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionWorkload",
        "metadata": { "name": name },
        "spec": { "policy": { "goal": "cost" }, "template": { "spec": { "containers": [
            { "name": "c", "image": "i", "resources": { "limits":
                { "cpu": "500m", "memory": "128Mi" } } }] } } } })
}

/// Written beside and renamed, as people should.
fn write(path: &Path, aws: &str, azure: &str) {
    let text = format!(
        "provider,region,instance_type,capacity_type,price_per_hour\n\
         aws,us-east-1,g4dn.xlarge,on-demand,{aws}\n\
         azure,eastus,Standard_NC4as_T4_v3,on-demand,{azure}\n"
    );
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text).unwrap();
    std::fs::rename(&fresh, path).unwrap();
}

async fn price_of(control: &Control, provider: &str) -> Result<f64, String> {
    let answer = get(control.http, "/fleet/v1/prices").await;
    let (_, text) = answer.map_err(|e| e.to_string())?;
    let shown: Vec<Value> = serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))?;
    let row = shown.iter().find(|row| row["provider"] == provider);
    let row = row.ok_or(text)?;
    assert_eq!(
        (&row["stale"], &row["feed"]),
        (&json!(false), &json!("file"))
    );
    row["pricePerHour"].as_f64().ok_or_else(|| row.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_price_that_changes_reaches_the_next_decision() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prices.csv");
    write(&file, "2.0", "0.25");
    let flags = [
        format!("--price-feed=file:{}", file.display()),
        "--policy=rules".to_owned(),
        "--reconsider=0".to_owned(),
    ];
    let control = Control::start_with("30s", &flags).await;
    eventually("the file is read", || price_of(&control, "azure")).await;
    let aws = control.agent(AWS, 0).await;
    let azure = control.agent(AZURE, 0).await;

    control.apply(cheapest("before")).await;
    control.running("before").await;
    assert_eq!(control.place("before-0").await.unwrap().0, azure.id());

    write(&file, "0.25", "2.0");
    eventually("the file is read again", || async {
        match price_of(&control, "azure").await? {
            2.0 => Ok(()),
            price => Err(price.to_string()),
        }
    })
    .await;
    // The feed has it: the loop that decides is told at the same time, by another task.
    let (control, aws) = (&control, aws.id());
    let mut tries = 0;
    eventually("decided by the new price", || {
        tries += 1;
        let (name, aws) = (format!("after-{tries}"), aws.clone());
        async move {
            control.apply(cheapest(&name)).await;
            control.running(&name).await;
            let node = control.place(&format!("{name}-0")).await.unwrap().0;
            if node == aws { Ok(()) } else { Err(node) }
        }
    })
    .await;
    // What is placed costs what it cost.
    let before = control.placements().get("before-0").await.unwrap();
    assert_eq!(before.spec.node, azure.id());
    assert!(
        before.spec.hourly_cost <= 0.25,
        "{}",
        before.spec.hourly_cost
    );

    let (_, metrics) = get(control.http, "/metrics").await.unwrap();
    for line in [
        r#"hyperion_price_offers{feed="file",provider="aws"} 1"#,
        r#"hyperion_price_stale_offers{feed="file",provider="aws"} 0"#,
        r#"hyperion_price_held_back{feed="file"} 0"#,
    ] {
        assert!(metrics.contains(line), "{line} in\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_feeds_the_prices_say_so() {
    let control = Control::start("30s").await;
    let (status, text) = get(control.http, "/fleet/v1/prices").await.unwrap();
    assert_eq!(status, 404);
    assert!(text.contains("--price-feed"), "{text}");
}

/// Answers as AWS does, whoever signed.
async fn cloud(headers: HeaderMap) -> Result<&'static str, StatusCode> {
    let signed = headers.get("authorization").and_then(|v| v.to_str().ok());
    if !signed.is_some_and(|v| v.contains("Credential=AKIDTEST/")) {
        return Err(StatusCode::UNAUTHORIZED);
    }
    Ok(if headers.contains_key("x-amz-target") {
        include_str!("../../providers/tests/data/aws-list-2.json")
    } else {
        include_str!("../../providers/tests/data/aws-spot-2.xml")
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_finds_credentials_where_others_do() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = axum::serve(listener, Router::new().fallback(cloud));
    let server = tokio::spawn(server.into_future());
    let dir = tempfile::tempdir().unwrap();
    let http = free_port(false);
    let data = dir.path().join("data");
    let program = tokio::process::Command::new(env!("CARGO_BIN_EXE_hyperion-control"))
        .args([
            "--embedded".to_owned(),
            format!("--data-dir={}", data.display()),
            format!("--api-addr={}", free_port(false)),
            format!("--link-addr={}", free_port(true)),
            format!("--http-addr={http}"),
            "--price-feed=aws".to_owned(),
            "--price-region=aws:us-east-1".to_owned(),
        ])
        .env_clear()
        .env("HOME", dir.path())
        .env("AWS_ENDPOINT_URL", &url)
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", "AKIDTEST")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let shown = eventually("prices", || async {
        let (_, text) = get(http, "/fleet/v1/prices")
            .await
            .map_err(|e| e.to_string())?;
        let shown: Vec<Value> = serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))?;
        if shown.is_empty() {
            Err(text)
        } else {
            Ok(shown)
        }
    })
    .await;
    let types: Vec<_> = shown
        .iter()
        .filter_map(|row| row["instanceType"].as_str())
        .collect();
    assert_eq!(types, ["g4dn.xlarge", "m5.8xlarge", "p4d.24xlarge"]);
    eventually("a cache", || async {
        let cache = std::fs::read_to_string(data.join("prices/prices-aws"));
        cache.map(drop).map_err(|e| e.to_string())
    })
    .await;
    drop(program);
    server.abort();
}
