//! One side of a conversation, and what is compared of it.

use std::time::{Duration, Instant};

use http::Request;
use kube::Client;
use kube::client::Body;
use serde_json::{Map, Value, json};

use crate::script::{Conversation, Step};

/// Long enough for any controller, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// What came back.
pub struct Answer {
    code: u16,
    /// Warnings for people.
    warnings: Vec<String>,
    /// An object; several, where it was a watch; or a text.
    body: Value,
}

/// Says all that a conversation says.
pub async fn hold(client: &Client, conversation: &Conversation, namespace: &str) -> Vec<Answer> {
    let made = json!({ "metadata": { "name": namespace } });
    let namespaces = "/api/v1/namespaces";
    let made = send(client, "POST", namespaces, "application/json", None, &made).await;
    assert_eq!(made.code, 201, "{}", made.body);
    let mut answers: Vec<Answer> = Vec::new();
    for step in &conversation.steps {
        let (method, kind, path) = step.request();
        let path = filled(path, namespace, &answers);
        let body = filled(&step.body.to_string(), namespace, &answers);
        let body: Value = serde_json::from_str(&body).unwrap();
        let kind = step.r#type.as_deref().unwrap_or(kind);
        let begin = Instant::now();
        let answer = loop {
            let answer = send(client, method, &path, kind, step.accept.as_deref(), &body).await;
            // What is missing then is a difference like others.
            let late = begin.elapsed() > PATIENCE;
            if late || step.until.is_none_or(|code| code == answer.code) {
                break answer;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        answers.push(answer);
    }
    answers
}

/// A text with the namespace and with what earlier answers said.
fn filled(text: &str, namespace: &str, answers: &[Answer]) -> String {
    let text = text.replace("{ns}", namespace);
    let mut parts = text.split("${");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (what, rest) = part.split_once('}').unwrap();
        let (step, pointer) = what.split_once('.').unwrap();
        let answer = &answers[step.parse::<usize>().unwrap()];
        let found = answer.body.pointer(pointer);
        let found = found.and_then(Value::as_str);
        out.push_str(found.unwrap_or("(nothing)"));
        out.push_str(rest);
    }
    out
}

async fn send(
    client: &Client,
    method: &str,
    path: &str,
    kind: &str,
    accept: Option<&str>,
    body: &Value,
) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(accept) = accept {
        request = request.header("accept", accept);
    }
    let bytes = match body {
        Value::Null => Vec::new(),
        Value::String(text) => text.clone().into_bytes(),
        object => object.to_string().into_bytes(),
    };
    if !bytes.is_empty() {
        request = request.header("content-type", kind);
    }
    let reply = client.send(request.body(Body::from(bytes)).unwrap()).await;
    let reply = reply.unwrap_or_else(|e| panic!("{method} {path}: {e}"));
    let warnings = reply.headers().get_all("warning").iter();
    let warnings = warnings.map(|w| w.to_str().unwrap().to_owned()).collect();
    let code = reply.status().as_u16();
    let bytes = reply.into_body().collect_bytes().await.unwrap();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let body = serde_json::from_str(&text).unwrap_or_else(|_| {
        let events: Result<Vec<Value>, _> = text.lines().map(serde_json::from_str).collect();
        events.map_or(Value::String(text), Value::Array)
    });
    Answer {
        code,
        warnings,
        body,
    }
}

impl Answer {
    /// What of it is compared.
    pub fn compared(&self, step: &Step) -> Value {
        let mut body = self.body.clone();
        if step.code_only() {
            return json!({ "code": self.code });
        }
        plain(&mut body, "");
        if !step.words {
            without_words(&mut body);
        }
        json!({ "code": self.code, "warnings": self.warnings, "body": body })
    }
}

/// Without what differs from call to call.
fn plain(value: &mut Value, key: &str) {
    match value {
        Value::Object(map) => {
            for gone in [
                "uid",
                "resourceVersion",
                "creationTimestamp",
                "selfLink",
                "remainingItemCount",
                "continue",
                "lastTransitionTime",
                "storageVersionHash",
            ] {
                map.remove(gone);
            }
            if map.get("details").is_some_and(|d| *d == json!({})) {
                map.remove("details");
            }
            // Some server's columns of core kinds have none.
            if let Some(Value::String(text)) = map.get("description")
                && !text.starts_with("Custom")
            {
                map.remove("description");
            }
            // A typed list says the kind of its items once.
            if key == "items" && map.get("apiVersion").is_some_and(is_core) {
                map.remove("apiVersion");
                map.remove("kind");
            }
            // References are owned as a whole there, by field here.
            if key == "f:ownerReferences" {
                map.clear();
            }
            if map.contains_key("deletionTimestamp") {
                map.insert("deletionTimestamp".to_owned(), "set".into());
            }
            if map.contains_key("fieldsV1") {
                map.remove("time");
            }
            for (key, value) in map.iter_mut() {
                plain(value, key);
            }
        }
        Value::Array(list) => {
            for value in list.iter_mut() {
                plain(value, key);
            }
            if matches!(key, "managedFields" | "resources" | "verbs" | "causes") {
                list.sort_by_key(ToString::to_string);
                // What two stages of a real API server check, it says twice.
                list.dedup();
            }
        }
        Value::String(text) if key == "message" => *text = without_ids(text),
        Value::String(text) if key == "cells" && is_age(text) => *text = "AGE".to_owned(),
        _ => {}
    }
}

fn is_core(api_version: &Value) -> bool {
    let text = api_version.as_str().unwrap_or_default();
    text == "v1" || text.contains(".k8s.io/")
}

/// `5s`, as in the age of an object.
fn is_age(text: &str) -> bool {
    let number = text.strip_suffix('s').unwrap_or_default();
    !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
}

/// A message without uids, revisions and times.
fn without_ids(text: &str) -> String {
    let mut words: Vec<String> = text.split(' ').map(ToOwned::to_owned).collect();
    for word in &mut words {
        let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        let uid = bare.len() == 36 && bare.bytes().filter(|&b| b == b'-').count() == 4;
        if uid || (bare.len() > 2 && bare.bytes().all(|b| b.is_ascii_digit())) {
            *word = word.replace(bare, "ID");
        }
    }
    words.join(" ")
}

fn without_words(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("message");
            map.values_mut().for_each(without_words);
        }
        Value::Array(list) => list.iter_mut().for_each(without_words),
        _ => {}
    }
}

/// Has the second everything that the first has?
pub fn within(small: &Value, large: &Value) -> bool {
    match (small, large) {
        (Value::Object(small), Value::Object(large)) => small.iter().all(|(key, value)| {
            key == "managedFields" || large.get(key).is_some_and(|l| within(value, l))
        }),
        (Value::Array(small), Value::Array(large)) => {
            small.len() == large.len() && small.iter().zip(large).all(|(s, l)| within(s, l))
        }
        (small, large) => small == large,
    }
}

/// The lines in which two values differ.
pub fn lines_that_differ(ours: &Value, real: &Value) -> String {
    let lines = |value: &Value| {
        let mut lines = Vec::new();
        flatten(value, "", &mut lines);
        lines
    };
    let (ours, real) = (lines(ours), lines(real));
    let only = |sign: &str, these: &[String], those: &[String]| -> Vec<String> {
        let only = these.iter().filter(|line| !those.contains(line));
        only.map(|line| format!("  {sign} {line}")).collect()
    };
    let mut all = only("-", &ours, &real);
    all.extend(only("+", &real, &ours));
    all.join("\n")
}

fn flatten(value: &Value, path: &str, lines: &mut Vec<String>) {
    match value {
        Value::Object(map) if !map.is_empty() => flatten_map(map, path, lines),
        Value::Array(list) if !list.is_empty() => {
            for (n, value) in list.iter().enumerate() {
                flatten(value, &format!("{path}/{n}"), lines);
            }
        }
        _ => lines.push(format!("{path}: {value}")),
    }
}

fn flatten_map(map: &Map<String, Value>, path: &str, lines: &mut Vec<String>) {
    for (key, value) in map {
        flatten(value, &format!("{path}/{key}"), lines);
    }
}
