//! What Kubernetes checks of core kinds beyond their types, as far as this API stores them: a client
//! that is refused by a cluster is refused here.

use serde_json::Value;

use crate::object::{self, at};
use crate::resource::Resource;
use crate::status::Cause;

const DATA_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const IMMUTABLE: &str = "field is immutable when `immutable` is set";

/// What is wrong with an object; `old` is its former state.
pub(crate) fn check(resource: &Resource, value: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "configmaps") => data(value, old, &["data", "binaryData"], &mut causes),
        ("", "secrets") => {
            data(value, old, &["data"], &mut causes);
            unchanged(value, old, "type", &mut causes);
        }
        ("", "nodes") => node(value, old, &mut causes),
        ("", "pods") => {
            let containers = value["spec"]["containers"].as_array();
            if containers.is_none_or(Vec::is_empty) {
                causes.push(Cause::required("spec.containers", ""));
            }
        }
        ("", "services") => service(value, &mut causes),
        ("", "events") => event_namespace(value, "involvedObject", &mut causes),
        ("events.k8s.io", "events") => event(value, old, &mut causes),
        ("coordination.k8s.io", "leases") => lease(value, &mut causes),
        _ => {}
    }
    causes
}

/// Config maps and secrets: their keys, and that immutable ones stay as they are.
fn data(value: &Value, old: Option<&Value>, fields: &[&str], causes: &mut Vec<Cause>) {
    for field in fields {
        for key in value[*field]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(k, _)| k)
        {
            let good = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
            let dots = key == "." || key.starts_with("..");
            if key.is_empty() || key.len() > 253 || dots || !key.bytes().all(good) {
                causes.push(Cause::invalid(
                    &format!("{field}[{key}]"),
                    &format!("{key:?}"),
                    DATA_KEY,
                ));
            }
        }
    }
    let Some(old) = old.filter(|old| old["immutable"] == true) else {
        return;
    };
    if value["immutable"] != true {
        causes.push(Cause::forbidden("immutable", IMMUTABLE));
    }
    for field in fields {
        if value[*field] != old[*field] {
            causes.push(Cause::forbidden(field, IMMUTABLE));
        }
    }
}

/// A field that is given once.
pub(crate) fn unchanged(value: &Value, old: Option<&Value>, field: &str, causes: &mut Vec<Cause>) {
    if old.is_some_and(|old| at(old, field) != at(value, field)) {
        let shown = at(value, field).to_string();
        causes.push(Cause::invalid(field, &shown, "field is immutable"));
    }
}

/// A node's provider id is given once.
fn node(value: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    const FIELD: &str = "spec.providerID";
    let before = old.map_or("", |old| at(old, FIELD).as_str().unwrap_or_default());
    if !before.is_empty() && at(value, FIELD) != before {
        let words = "node updates may not change providerID except from \"\" to valid";
        causes.push(Cause::forbidden(FIELD, words));
    }
}

fn service(value: &Value, causes: &mut Vec<Cause>) {
    let spec = &value["spec"];
    let without = spec["type"] == "ExternalName" || spec["clusterIP"] == "None";
    if !without && spec["ports"].as_array().is_none_or(Vec::is_empty) {
        causes.push(Cause::required("spec.ports", ""));
    }
}

/// An event is where its object is.
fn event_namespace(value: &Value, about: &str, causes: &mut Vec<Cause>) {
    let of = value[about]["namespace"].as_str().unwrap_or_default();
    let own = object::namespace(value);
    // Objects without a namespace have theirs in the default one.
    let matches = of == own || (of.is_empty() && matches!(own, "default" | "kube-system"));
    if !matches {
        causes.push(Cause::invalid(
            &format!("{about}.namespace"),
            &format!("{of:?}"),
            "does not match event.namespace",
        ));
    }
}

/// Events of the newer group are complete, and only their series goes on.
fn event(value: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let text = |field: &str| value[field].as_str().unwrap_or_default();
    match old {
        // One that was made in the core group has no time of its own.
        Some(old) if old["eventTime"].is_string() => {
            for field in [
                "regarding",
                "reason",
                "action",
                "reportingController",
                "reportingInstance",
                "note",
                "type",
                "eventTime",
                "related",
            ] {
                unchanged(value, Some(old), field, causes);
            }
        }
        Some(_) => {}
        None if text("eventTime").is_empty() => {
            causes.push(Cause::required("eventTime", ""));
        }
        None => {
            for field in [
                "reportingController",
                "reportingInstance",
                "action",
                "reason",
            ] {
                if text(field).is_empty() {
                    causes.push(Cause::required(field, ""));
                }
            }
            if !matches!(text("type"), "Normal" | "Warning") {
                let shown = format!("{:?}", text("type"));
                let words = "has invalid value: ".to_owned() + &shown;
                causes.push(Cause::invalid("type", "\"\"", words));
            }
        }
    }
}

fn lease(value: &Value, causes: &mut Vec<Cause>) {
    let number = |field: &str| value["spec"][field].as_i64();
    if let Some(n) = number("leaseDurationSeconds").filter(|n| *n <= 0) {
        let field = "spec.leaseDurationSeconds";
        causes.push(Cause::invalid(
            field,
            &n.to_string(),
            "must be greater than 0",
        ));
    }
    if let Some(n) = number("leaseTransitions").filter(|n| *n < 0) {
        let words = "must be greater than or equal to 0";
        causes.push(Cause::invalid(
            "spec.leaseTransitions",
            &n.to_string(),
            words,
        ));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(group: &str, plural: &str, value: &Value, old: Option<&Value>) -> Vec<String> {
        let registry = crate::builtin::registry();
        let resource = registry.get(group, "v1", plural).unwrap();
        let causes = check(resource, value, old);
        causes.into_iter().map(|c| c.field).collect()
    }

    #[test]
    fn each_kind_has_its_rules() {
        let event = json!({ "metadata": { "namespace": "a" }, "regarding": { "namespace": "a" },
            "eventTime": "2026-01-02T03:04:05.000000Z", "reportingController": "c",
            "reportingInstance": "i", "action": "A", "reason": "R", "type": "Normal" });
        let mut early = event.clone();
        early["eventTime"] = Value::Null;
        let other =
            json!({ "metadata": { "namespace": "a" }, "involvedObject": { "namespace": "b" } });
        for (group, plural, value, expected) in [
            (
                "",
                "configmaps",
                json!({ "data": { "a.b-C_1": "" } }),
                &[][..],
            ),
            (
                "",
                "configmaps",
                json!({ "data": { "a b": "" } }),
                &["data[a b]"],
            ),
            (
                "",
                "configmaps",
                json!({ "binaryData": { "..a": "" } }),
                &["binaryData[..a]"],
            ),
            ("", "secrets", json!({ "data": { "": "" } }), &["data[]"]),
            (
                "",
                "pods",
                json!({ "spec": { "containers": [] } }),
                &["spec.containers"],
            ),
            ("", "pods", json!({ "spec": { "containers": [{}] } }), &[]),
            ("", "services", json!({ "spec": {} }), &["spec.ports"]),
            (
                "",
                "services",
                json!({ "spec": { "clusterIP": "None" } }),
                &[],
            ),
            ("", "events", other, &["involvedObject.namespace"]),
            ("events.k8s.io", "events", event, &[]),
            ("events.k8s.io", "events", early, &["eventTime"]),
            (
                "coordination.k8s.io",
                "leases",
                json!({ "spec": { "leaseDurationSeconds": 0, "leaseTransitions": -1 } }),
                &["spec.leaseDurationSeconds", "spec.leaseTransitions"],
            ),
        ] {
            assert_eq!(fields(group, plural, &value, None), expected, "{value}");
        }
    }

    #[test]
    fn what_is_fixed_can_not_be_changed() {
        let map = json!({ "immutable": true, "data": { "a": "1" } });
        let node = json!({ "spec": { "providerID": "x" } });
        let secret = json!({ "type": "Opaque" });
        let event = json!({ "eventTime": "2026-01-02T03:04:05.000000Z", "note": "n" });
        for (group, plural, old, new, expected) in [
            ("", "configmaps", &map, map.clone(), &[][..]),
            (
                "",
                "configmaps",
                &map,
                json!({ "immutable": true, "data": {} }),
                &["data"],
            ),
            (
                "",
                "configmaps",
                &map,
                json!({ "data": { "a": "1" } }),
                &["immutable"],
            ),
            (
                "",
                "secrets",
                &secret,
                json!({ "type": "other" }),
                &["type"],
            ),
            (
                "",
                "nodes",
                &node,
                json!({ "spec": { "providerID": "y" } }),
                &["spec.providerID"],
            ),
            ("", "nodes", &json!({}), node.clone(), &[]),
            (
                "events.k8s.io",
                "events",
                &event,
                json!({ "eventTime": event["eventTime"] }),
                &["note"],
            ),
        ] {
            assert_eq!(fields(group, plural, &new, Some(old)), expected, "{new}");
        }
    }
}
