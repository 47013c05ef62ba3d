//! Commands against a scripted API server: what they ask for, and what they make of the answers.

use std::sync::{Arc, Mutex};

use http::{Request, Response};
use hyperion_api::fleet::PROXY_PREFIX;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

use super::output::{Format, Out};
use super::*;

/// Method and path, status and body; used up from the front.
type Script = Vec<(&'static str, u16, String)>;

struct Server {
    connection: Connection,
    /// Bodies of the requests.
    bodies: Arc<Mutex<Vec<Value>>>,
    script: Arc<Mutex<Script>>,
}

impl Server {
    /// Every call must be the next of the script.
    fn new(script: Script) -> Self {
        let script = Arc::new(Mutex::new(script));
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let (calls, seen) = (script.clone(), bodies.clone());
        let service = tower::service_fn(move |request: Request<Body>| {
            let (calls, seen) = (calls.clone(), seen.clone());
            async move {
                let asked = format!("{} {}", request.method(), request.uri());
                let body = request.into_body().collect_bytes().await?;
                seen.lock()
                    .unwrap()
                    .push(serde_json::from_slice(&body).unwrap_or(Value::Null));
                let (expected, status, answer) = calls.lock().unwrap().remove(0);
                assert!(asked.starts_with(expected), "{asked}, not {expected}");
                let answer = Response::builder()
                    .status(status)
                    .body(Body::from(answer.into_bytes()));
                Ok::<_, kube::Error>(answer.unwrap())
            }
        });
        Self {
            connection: Connection {
                client: Client::new(service, "default"),
                namespace: "default".to_owned(),
                server: "https://10.0.0.1:6443/".to_owned(),
            },
            bodies,
            script,
        }
    }

    /// All calls of the script were made.
    fn done(&self) {
        let left = self.script.lock().unwrap();
        assert!(left.is_empty(), "calls never made: {left:?}");
    }
}

fn captured() -> (Out, impl Fn() -> String) {
    let sink = Arc::new(Mutex::new(Vec::new()));
    let out = Out {
        captured: Some(sink.clone()),
        ..Out::default()
    };
    (out, move || {
        String::from_utf8(sink.lock().unwrap().clone()).unwrap()
    })
}

fn list(kind: &str, items: &[Value], next: &str) -> String {
    json!({"apiVersion": "hyperion.io/v1alpha1", "kind": format!("{kind}List"),
           "metadata": {"resourceVersion": "1", "continue": next}, "items": items})
    .to_string()
}

fn failure(code: u16, message: &str) -> String {
    let reason = if code == 404 { "NotFound" } else { "" };
    json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code,
           "message": message, "reason": reason})
    .to_string()
}

fn node(name: &str) -> Value {
    json!({"apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionNode",
           "metadata": {"name": name}, "spec": {"site": "lab"},
           "status": {"ready": "True", "mode": "connected", "arch": "arm64"}})
}

fn workload(replicas: i32) -> Value {
    json!({"apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionWorkload",
           "metadata": {"name": "llm", "namespace": "default"},
           "spec": {"template": {"spec": {"containers": []}}, "replicas": replicas},
           "status": {"phase": "Degraded", "readyReplicas": 1,
                      "conditions": [{"type": "Placed", "status": "False", "reason": "NoCandidate",
                                      "message": "replica 1: 0 of 9 nodes fit",
                                      "lastTransitionTime": "2026-01-01T00:00:00Z"}],
                      "rejected": [{"constraint": "nvidia.com/gpu", "count": 9}]}})
}

fn placement() -> Value {
    json!({"apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionPlacement",
           "metadata": {"name": "llm-0", "namespace": "default"},
           "spec": {"workload": "llm", "workloadUid": "u", "replica": 0, "node": "edge-1",
                    "provider": "edge", "region": "lab", "tier": "edge", "capacityType": "owned",
                    "generation": 3, "decidedBy": "control-plane", "templateHash": "h",
                    "hourlyCost": 0.0, "p99LatencyMs": 12.0,
                    "explanation": {"scorer": "rules", "candidates": 2, "score": 0.75,
                                    "rejected": [{"constraint": "memory", "count": 7}],
                                    "terms": [{"name": "latency", "value": 0.5},
                                              {"name": "cost", "value": 0.25}],
                                    "runnerUp": {"id": "edge-2", "score": 0.5}}},
           "status": {"phase": "Running", "ready": true}})
}

const NODES: &str = "GET /apis/hyperion.io/v1alpha1/hyperionnodes";
const PLACEMENTS: &str = "GET /apis/hyperion.io/v1alpha1/hyperionplacements";
const WORKLOAD: &str = "GET /apis/hyperion.io/v1alpha1/namespaces/default/hyperionworkloads/llm";
const OF_WORKLOAD: &str = "GET /apis/hyperion.io/v1alpha1/namespaces/default/hyperionplacements";

fn live_path() -> &'static str {
    Box::leak(format!("GET {PROXY_PREFIX}/nodes?since=0").into_boxed_str())
}

fn nodes_args(output: Option<Format>) -> lists::NodesArgs {
    lists::NodesArgs {
        output: OutputArgs { output },
    }
}

#[tokio::test]
async fn nodes_are_listed_page_by_page_with_live_values() {
    let live = json!({"version": 4, "nodes": [{"id": "b", "connected": true, "cpuPercent": 41.6}]});
    let server = Server::new(vec![
        (NODES, 200, list("HyperionNode", &[node("b")], "more")),
        (NODES, 200, list("HyperionNode", &[node("a")], "")),
        (PLACEMENTS, 200, list("HyperionPlacement", &[], "")),
        (live_path(), 200, live.to_string()),
    ]);
    let (out, text) = captured();
    lists::nodes(&server.connection, &nodes_args(None), &out)
        .await
        .unwrap();
    let text = text();
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[1].starts_with("a ") && lines[1].contains("Ready"),
        "{text}"
    );
    assert!(
        lines[2].starts_with("b ") && lines[2].contains("42%"),
        "{text}"
    );
    server.done();
}

#[tokio::test]
async fn nodes_are_listed_without_telemetry_when_it_is_missing() {
    let server = Server::new(vec![
        (NODES, 200, list("HyperionNode", &[node("a")], "")),
        (PLACEMENTS, 403, failure(403, "no")),
        (live_path(), 503, failure(503, "no endpoints")),
    ]);
    let (out, text) = captured();
    lists::nodes(&server.connection, &nodes_args(None), &out)
        .await
        .unwrap();
    assert!(text().contains("\na "), "{}", text());
}

#[tokio::test]
async fn json_and_yaml_are_the_objects_themselves() {
    for format in [Format::Json, Format::Yaml] {
        let answer = list("HyperionNode", &[node("a")], "");
        let server = Server::new(vec![(NODES, 200, answer)]);
        let (out, text) = captured();
        lists::nodes(&server.connection, &nodes_args(Some(format)), &out)
            .await
            .unwrap();
        let read: Value = serde_yaml_ng::from_str(&text()).unwrap();
        assert_eq!(read["items"][0]["kind"], "HyperionNode");
        assert_eq!(read["items"][0]["spec"]["site"], "lab");
        server.done();
    }
}

fn explain_args(output: Option<Format>) -> explain::Args {
    explain::Args {
        workload: "llm".to_owned(),
        output: OutputArgs { output },
    }
}

#[tokio::test]
async fn explain_shows_the_whole_decision_and_why_a_replica_is_pending() {
    let server = Server::new(vec![
        (WORKLOAD, 200, workload(2).to_string()),
        (
            OF_WORKLOAD,
            200,
            list("HyperionPlacement", &[placement()], ""),
        ),
    ]);
    let (out, text) = captured();
    explain::run(&server.connection, &explain_args(None), &out)
        .await
        .unwrap();
    let expected = "\
default/llm  service · goal default · ◐ Degraded 1/2 ready

○ 1 replica has no place: replica 1: 0 of 9 nodes fit
  9 ruled out, by constraint
    nvidia.com/gpu       9 ━━━━━━━━━━━━━━━━━━━━

replica 0 → edge-1  edge lab owned  ● Running
  generation 3 by control-plane · scorer rules · 2 candidates
  runner-up edge-2 with +0.500
  latency    +0.500 ━━━━━━━━━━━━━━━━━━━━
  cost       +0.250 ━━━━━━━━━━
  score      +0.750
  7 ruled out, by constraint
    memory       7 ━━━━━━━━━━━━━━━━━━━━
";
    assert_eq!(text(), expected, "{}", text());
}

#[tokio::test]
async fn cost_tells_what_spot_and_what_the_place_saved() {
    let mut done = placement();
    let (spec, status) = (
        json!({ "provider": "gcp", "capacityType": "spot", "hourlyCost": 0.1,
            "launch": { "at": "2026-01-01T23:00:00Z", "onDemand": 0.4, "baseline": 0.5 } }),
        json!({ "phase": "Succeeded", "since": "2026-01-02T03:00:00Z" }),
    );
    for (part, with) in [("spec", spec), ("status", status)] {
        let held = done[part].as_object_mut().unwrap();
        held.extend(with.as_object().unwrap().clone());
    }
    let mut held = workload(1);
    held["status"]["spent"] = json!({ "hours": 6.0, "usd": 1.0, "onDemandUsd": 2.0,
        "baselineUsd": 2.5, "days": { "2026-01-01": 1.0 } });
    let script = || {
        vec![
            (
                "GET /apis/hyperion.io/v1alpha1/namespaces/default/hyperionworkloads",
                200,
                list("HyperionWorkload", &[held.clone()], ""),
            ),
            (
                "GET /apis/hyperion.io/v1alpha1/namespaces/default/hyperionplacements",
                200,
                list("HyperionPlacement", &[done.clone()], ""),
            ),
        ]
    };
    let mut args = cost::Args {
        all_namespaces: false,
        daily: false,
        output: OutputArgs::default(),
    };
    let mut got = Vec::new();
    for daily in [false, true] {
        args.daily = daily;
        let server = Server::new(script());
        let (out, text) = captured();
        cost::run(&server.connection, &args, &out).await.unwrap();
        server.done();
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        got.push(text().lines().map(words).collect::<Vec<_>>());
    }
    assert_eq!(
        got[0],
        [
            "WORKLOAD HOURS USD USD/H ON-DEMAND US-EAST-1 SAVED-SPOT SAVED-PLACE",
            "llm 10.0 1.40 0.0000 3.60 4.50 2.20 0.90",
            "(all) 10.0 1.40 0.0000 3.60 4.50 2.20 0.90",
        ]
    );
    assert_eq!(
        got[1],
        [
            "DAY WORKLOAD USD",
            "2026-01-02 llm 0.30",
            "2026-01-02 (all) 0.30",
            "2026-01-01 llm 1.10",
            "2026-01-01 (all) 1.10",
        ]
    );
}

#[tokio::test]
async fn explain_tells_what_a_site_decided_while_it_was_cut_off() {
    let mut moved = placement();
    moved["spec"]["decidedBy"] = json!("edge-3");
    moved["spec"]["explanation"]["cause"] = json!("node edge-2 is dead");
    let server = Server::new(vec![
        (WORKLOAD, 200, workload(1).to_string()),
        (OF_WORKLOAD, 200, list("HyperionPlacement", &[moved], "")),
    ]);
    let (out, text) = captured();
    explain::run(&server.connection, &explain_args(None), &out)
        .await
        .unwrap();
    let expected = "
replica 0 → edge-1  edge lab owned  ● Running
  generation 3 by site (edge-3) · scorer rules · 2 candidates
  decided while the site was cut off: node edge-2 is dead
";
    assert!(text().contains(expected), "{}", text());
}

#[tokio::test]
async fn explain_shows_how_a_policy_decided_and_what_rules_would_have_chosen() {
    let term = |name: &str, value: f64| json!({"name": name, "value": value});
    let mut object = placement();
    let why = &mut object["spec"]["explanation"];
    why["scorer"] = json!("ppo");
    why["policy"] = json!("3f9c2a71be04");
    why["top"] = json!([
        {"id": "edge-1", "score": 0.75, "terms": [term("latency", 0.5), term("cost", 0.25)]},
        {"id": "edge-2", "score": 0.5, "terms": [term("latency", 0.6), term("cost", -0.1), term("move", 0.0)]},
    ]);
    why["secondWins"] = json!("edge-2 would win if its price fell from 0.2000 to 0.1000 USD/h");
    why["rulesChoice"] = json!({"id": "edge-3", "hourlyCost": 0.0, "p99LatencyMs": 30.0});
    let server = Server::new(vec![
        (WORKLOAD, 200, workload(1).to_string()),
        (OF_WORKLOAD, 200, list("HyperionPlacement", &[object], "")),
    ]);
    let (out, text) = captured();
    explain::run(&server.connection, &explain_args(None), &out)
        .await
        .unwrap();
    let expected = "\
replica 0 → edge-1  edge lab owned  ● Running
  generation 3 by control-plane · scorer ppo 3f9c2a71be04 · 2 candidates
  rules would have chosen edge-3: owned, p99 30ms
  runner-up edge-2 with +0.500 · latency +0.600 · cost -0.100
  edge-2 would win if its price fell from 0.2000 to 0.1000 USD/h
  latency    +0.500 ━━━━━━━━━━━━━━━━━━━━
  cost       +0.250 ━━━━━━━━━━
  score      +0.750
  7 ruled out, by constraint
    memory       7 ━━━━━━━━━━━━━━━━━━━━
  the best 2
    1 edge-1   +0.750 · latency +0.500 · cost +0.250
    2 edge-2   +0.500 · latency +0.600 · cost -0.100
";
    assert!(text().ends_with(expected), "{}", text());
}

#[tokio::test]
async fn explain_says_why_rules_decided_and_what_a_policy_that_watches_would_have_chosen() {
    let mut object = placement();
    let why = &mut object["spec"]["explanation"];
    why["policy"] = json!("3f9c2a71be04");
    why["fallback"] = json!("what is known of the fleet is 75 s old");
    why["policyChoice"] = json!({"id": "edge-2", "hourlyCost": 0.25});
    let server = Server::new(vec![
        (WORKLOAD, 200, workload(1).to_string()),
        (OF_WORKLOAD, 200, list("HyperionPlacement", &[object], "")),
    ]);
    let (out, text) = captured();
    explain::run(&server.connection, &explain_args(None), &out)
        .await
        .unwrap();
    let expected = "\
  generation 3 by control-plane · scorer rules · 2 candidates
  rules decided: what is known of the fleet is 75 s old
  policy 3f9c2a71be04 would have chosen edge-2: $0.250/h
";
    assert!(text().contains(expected), "{}", text());
}

#[tokio::test]
async fn a_workload_that_is_not_there_is_named_with_its_namespace() {
    let server = Server::new(vec![(WORKLOAD, 404, failure(404, "not found"))]);
    let (out, _) = captured();
    let error = explain::run(&server.connection, &explain_args(None), &out)
        .await
        .unwrap_err();
    assert_eq!(
        error.message,
        "no workload \"llm\" in namespace \"default\""
    );
    assert_eq!(error.code, 1);
}

#[tokio::test]
async fn drain_sets_the_fields_and_nothing_else() {
    let path = "PATCH /apis/hyperion.io/v1alpha1/hyperionnodes/edge-1";
    let server = Server::new(vec![(path, 200, node("edge-1").to_string())]);
    let (out, text) = captured();
    let target = node::Target {
        nodes: vec!["edge-1".to_owned()],
    };
    node::run(&server.connection, &node::Command::Drain(target), &out)
        .await
        .unwrap();
    assert_eq!(text(), "node edge-1 draining\n");
    let body = server.bodies.lock().unwrap()[0].clone();
    assert_eq!(
        body,
        json!({"spec": {"unschedulable": true, "draining": true}})
    );
}

fn token_args() -> token::Create {
    let line = [
        "hyperion", "token", "create", "--site", "lab", "--ttl", "1h", "-o", "json",
    ];
    match Cli::try_parse_from(line).unwrap().command {
        Command::Token(token::Command::Create(args)) => args,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_token_is_printed_once_and_stored_as_a_hash() {
    const CA: &str = "GET /api/v1/namespaces/hyperion-system/configmaps/hyperion-ca";
    const SECRETS: &str = "POST /api/v1/namespaces/hyperion-system/secrets";
    let ca = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "hyperion-ca"},
                    "data": {"fingerprint": "sha256:abc"}});
    let stored = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}});
    let server = Server::new(vec![
        (CA, 200, ca.to_string()),
        (SECRETS, 201, stored.to_string()),
    ]);
    let (out, text) = captured();
    let create = token::Command::Create(token_args());
    token::run(&server.connection, &create, &out).await.unwrap();
    let printed: Value = serde_json::from_str(&text()).unwrap();
    assert_eq!(printed["caFingerprint"], "sha256:abc");
    let token = printed["token"].as_str().unwrap();
    let (id, secret) = token.split_once('.').unwrap();
    let command = printed["command"].as_str().unwrap();
    assert!(command.contains(token) && command.contains("--control 10.0.0.1:7444"));
    let body = server.bodies.lock().unwrap()[1].clone();
    assert_eq!(body["metadata"]["name"], format!("join-token-{id}"));
    assert_eq!(body["type"], "hyperion.io/join-token");
    assert!(!body.to_string().contains(secret));
}

#[tokio::test]
async fn a_token_s_command_goes_where_the_control_plane_says() {
    let ca = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "hyperion-ca"},
                    "data": {"fingerprint": "sha256:abc", "link-address": "edge.example:9000"}});
    let stored = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}});
    for (flag, expected) in [(None, "edge.example:9000"), (Some("other:1"), "other:1")] {
        let server = Server::new(vec![
            ("GET /api/v1/", 200, ca.to_string()),
            ("POST /api/v1/", 201, stored.to_string()),
        ]);
        let (out, text) = captured();
        let mut args = token_args();
        args.control = flag.map(str::to_owned);
        let create = token::Command::Create(args);
        token::run(&server.connection, &create, &out).await.unwrap();
        let printed: Value = serde_json::from_str(&text()).unwrap();
        let command = printed["command"].as_str().unwrap();
        let start = format!("hyperion-agent --control {expected} --token ");
        assert!(command.starts_with(&start), "{command}");
    }
}

#[tokio::test]
async fn a_fleet_without_a_ca_gets_no_token() {
    let script = vec![(
        "GET /api/v1/",
        404,
        failure(404, "configmaps \"hyperion-ca\" not found"),
    )];
    let server = Server::new(script);
    let (out, text) = captured();
    let create = token::Command::Create(token_args());
    let error = token::run(&server.connection, &create, &out)
        .await
        .unwrap_err();
    assert!(error.message.contains("no CA yet") && error.hint.is_some());
    assert_eq!(text(), "");
}

#[tokio::test]
async fn settings_of_a_device_come_with_a_token_that_is_made_for_them() {
    let fingerprint = format!("sha256:{}", "0a".repeat(32));
    let ca = |said: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "hyperion-ca"},
               "data": {"fingerprint": said, "link-address": "edge.example:9000"}})
        .to_string()
    };
    let stored = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}});
    let dir = tempfile::tempdir().unwrap();
    let prepare = || {
        let line = ["hyperion", "image", "prepare", "--site", "lab", "--stick"];
        let line = line.into_iter().chain(dir.path().to_str());
        match Cli::try_parse_from(line).unwrap().command {
            Command::Image(command) => command,
            other => panic!("{other:?}"),
        }
    };
    let file = dir.path().join("hyperion.conf");
    // A fleet that says of itself what devices would not take.
    let server = Server::new(vec![
        ("GET /api/v1/", 200, ca("sha256:abc")),
        ("POST /api/v1/", 201, stored.to_string()),
    ]);
    let (out, _) = captured();
    let error = image::run(prepare(), async || Ok(server.connection.clone()), &out)
        .await
        .unwrap_err();
    assert!(error.message.contains("CA fingerprint"), "{error}");
    assert!(!file.exists());

    let server = Server::new(vec![
        ("GET /api/v1/", 200, ca(&fingerprint)),
        ("POST /api/v1/", 201, stored.to_string()),
    ]);
    let (out, said) = captured();
    image::run(prepare(), async || Ok(server.connection.clone()), &out)
        .await
        .unwrap();
    server.done();
    let text = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let [control, token, ca, "site=lab", "end"] = lines[..] else {
        panic!("{text}");
    };
    assert_eq!(control, "control=edge.example:9000");
    assert_eq!(ca, format!("ca-fingerprint={fingerprint}"));
    let (id, secret) = token
        .strip_prefix("token=")
        .unwrap()
        .split_once('.')
        .unwrap();
    let body = server.bodies.lock().unwrap()[1].clone();
    assert_eq!(body["metadata"]["name"], format!("join-token-{id}"));
    assert!(!said().contains(secret));

    // It is there: nobody asks for a token that would not be used.
    let nobody = async || panic!("a token is made");
    assert!(image::run(prepare(), nobody, &out).await.is_err());
}

fn apply_args() -> apply::Args {
    apply::Args {
        filename: Vec::new(),
        force_conflicts: false,
        dry_run: false,
    }
}

fn discovery() -> String {
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "hyperion.io/v1alpha1",
           "resources": [{"name": "hyperionworkloads", "singularName": "hyperionworkload",
                          "namespaced": true, "kind": "HyperionWorkload",
                          "verbs": ["get", "patch", "create"]}]})
    .to_string()
}

#[tokio::test]
async fn apply_goes_on_after_a_refusal_and_says_what_became_of_each() {
    const KINDS: &str = "GET /apis/hyperion.io/v1alpha1";
    const A: &str = "/apis/hyperion.io/v1alpha1/namespaces/default/hyperionworkloads/a";
    const B: &str = "/apis/hyperion.io/v1alpha1/namespaces/default/hyperionworkloads/b";
    let at = |path: &str, verb: &str| -> &'static str {
        Box::leak(format!("{verb} {path}").into_boxed_str())
    };
    let object = |version: &str| {
        json!({"apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionWorkload",
               "metadata": {"name": "b", "resourceVersion": version}})
        .to_string()
    };
    let refusal = json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": 422,
        "message": "invalid", "reason": "Invalid", "details": {"causes": [
            {"field": "spec.policy.goal", "message": "Unsupported value: \"fast\""}]}});
    let server = Server::new(vec![
        (KINDS, 200, discovery()),
        (at(A, "GET"), 404, failure(404, "not found")),
        (
            at(
                &format!("{A}?&fieldManager=hyperion&fieldValidation=Strict"),
                "PATCH",
            ),
            422,
            refusal.to_string(),
        ),
        (KINDS, 200, discovery()),
        (at(B, "GET"), 200, object("1")),
        (at(B, "PATCH"), 200, object("2")),
    ]);
    let one = |name: &str| {
        format!(
            "apiVersion: hyperion.io/v1alpha1\nkind: HyperionWorkload\nmetadata: {{name: {name}}}\n---\n"
        )
    };
    let documents = apply::parse("f.yaml", &(one("a") + &one("b"))).unwrap();
    let (out, text) = captured();
    let error = apply::run(&server.connection, &apply_args(), documents, None, &out)
        .await
        .unwrap_err();
    assert_eq!(text(), "hyperionworkload/b configured\n");
    assert_eq!(
        error.message,
        "f.yaml, document 1: HyperionWorkload a: field spec.policy.goal: Unsupported value: \"fast\""
    );
    server.done();
}

#[tokio::test]
async fn logs_stream_what_the_node_sends() {
    let path: &'static str = Box::leak(
        format!("GET {PROXY_PREFIX}/logs?namespace=default&workload=llm&replica=1&follow=false")
            .into_boxed_str(),
    );
    let server = Server::new(vec![
        (WORKLOAD, 200, workload(2).to_string()),
        (path, 200, "line 1\nline 2\n".to_owned()),
    ]);
    let (out, text) = captured();
    let args = logs::Args {
        workload: "default/llm".to_owned(),
        replica: 1,
        container: None,
        tail: None,
        follow: false,
    };
    logs::run(&server.connection, &args, &out).await.unwrap();
    assert_eq!(text(), "line 1\nline 2\n");
    server.done();
}

#[tokio::test]
async fn logs_of_a_replica_that_cannot_be_are_refused_before_asking_for_them() {
    let server = Server::new(vec![(WORKLOAD, 200, workload(2).to_string())]);
    let (out, _) = captured();
    let args = logs::Args {
        workload: "llm".to_owned(),
        replica: 2,
        container: None,
        tail: None,
        follow: false,
    };
    let error = logs::run(&server.connection, &args, &out)
        .await
        .unwrap_err();
    assert!(
        error.message.contains("no replica 2: it has 2"),
        "{}",
        error.message
    );
}
