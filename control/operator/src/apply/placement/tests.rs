use std::collections::BTreeMap;

use super::*;

/// RFC 7386, as an API server does it.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let fields = target.as_object_mut().unwrap();
    for (name, value) in patch {
        if value.is_null() {
            fields.remove(name);
        } else {
            merge(fields.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}

fn least() -> Value {
    json!({
        "apiVersion": "hyperion.io/v1alpha1",
        "kind": "HyperionPlacement",
        "metadata": {
            "name": "w-0", "namespace": "default", "labels": { "hyperion.io/node": "b" },
        },
        "spec": {
            "workload": "w", "workloadUid": "u", "replica": 0, "node": "b", "provider": "edge",
            "region": "hall", "tier": "edge", "capacityType": "owned", "generation": 2,
            "decidedBy": "c", "templateHash": "h", "hourlyCost": 0.5,
            "explanation": {
                "scorer": "rules", "candidates": 1, "rejected": [], "terms": [], "score": 1.0,
            },
        },
    })
}

fn most() -> Value {
    let mut object = least();
    object["metadata"]["annotations"] = json!({ LEAVING: "a" });
    let spec = &mut object["spec"];
    spec["gpus"] = json!([{ "uuid": "g", "millis": 500 }]);
    spec["launch"] = json!({ "at": "2026-01-01T00:00:00Z", "onDemand": 1.0, "baseline": 2.0 });
    spec["p99LatencyMs"] = json!(3.0);
    let why = &mut spec["explanation"];
    why["cause"] = json!("New");
    why["policy"] = json!("0a");
    why["runnerUp"] = json!({ "id": "c", "score": 0.5 });
    why["top"] = json!([{ "id": "b", "score": 1.0 }]);
    why["rulesChoice"] = json!({ "id": "c", "hourlyCost": 1.0, "p99LatencyMs": 3.0 });
    object
}

fn read(object: &Value) -> HyperionPlacement {
    serde_json::from_value(object.clone()).unwrap()
}

#[test]
fn nothing_of_an_earlier_placement_stays() {
    let mut held = most();
    held["metadata"]["labels"]["of-a-person"] = json!("kept");
    held["metadata"]["annotations"]["of-a-person"] = json!("kept");
    held["status"] = json!({ "phase": "Running" });
    merge(&mut held, &whole(&read(&least())));

    assert_eq!(read(&held).spec, read(&least()).spec);
    let kept = BTreeMap::from([("of-a-person".to_owned(), "kept".to_owned())]);
    let metadata = read(&held).metadata;
    assert_eq!(metadata.annotations, Some(kept));
    assert_eq!(metadata.labels.unwrap()["of-a-person"], "kept");
    assert_eq!(held["status"]["phase"], "Running");

    merge(&mut held, &whole(&read(&most())));
    assert_eq!(read(&held).spec, read(&most()).spec);
    assert_eq!(held["metadata"]["annotations"][LEAVING], "a");
}

#[test]
fn an_inner_choice_loses_what_it_lacks() {
    let mut held = most();
    let mut next = most();
    let choice = json!({ "id": "d", "hourlyCost": 2.0 });
    next["spec"]["explanation"]["rulesChoice"] = choice.clone();
    next["spec"]["launch"] = json!({ "at": "2026-01-02T00:00:00Z" });
    merge(&mut held, &whole(&read(&next)));
    assert_eq!(held["spec"]["explanation"]["rulesChoice"], choice);
    assert_eq!(held["spec"]["launch"], next["spec"]["launch"]);
}

/// A map with free keys would keep those that a merge patch does not name.
#[test]
fn a_placement_has_no_maps_with_free_keys() {
    fn check(path: &str, schema: &JSONSchemaProps) {
        assert!(schema.additional_properties.is_none(), "{path}");
        for (name, field) in schema.properties.iter().flatten() {
            check(&format!("{path}.{name}"), field);
        }
    }
    check("spec", SCHEMA.as_ref().expect("the CRD has a schema"));
}
