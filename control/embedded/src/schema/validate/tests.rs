//! The words of faults.

use serde_json::json;

use super::super::compile;
use super::*;

fn lines(schema: Value, value: Value) -> Vec<String> {
    let schema = compile(&schema).unwrap();
    let causes = validate(&schema, &value, None);
    causes
        .into_iter()
        .map(|c| format!("{}: {}", c.field, c.message))
        .collect()
}

#[test]
fn each_mistake_is_said_as_kubernetes_says_it() {
    let schema = json!({ "type": "object", "properties": { "spec": { "type": "object",
        "required": ["image"],
        "properties": {
            "image": { "type": "string", "minLength": 1 },
            "goal": { "type": "string", "enum": ["cost", "latency", "default"] },
            "replicas": { "type": "integer", "format": "int32", "minimum": 0, "maximum": 10 },
            "name": { "type": "string", "pattern": "^[a-z]+$", "maxLength": 5 },
            "list": { "type": "array", "maxItems": 1, "items": { "type": "string" } },
            "size": { "x-kubernetes-int-or-string": true, "anyOf": [{"type":"integer"},{"type":"string"}] },
            "when": { "type": "string", "format": "date-time", "nullable": true },
            "side": { "type": "string", "enum": ["a"], "nullable": true },
            "none": { "type": "string", "enum": ["a", null], "nullable": true },
        } } } });
    for (spec, expected) in [
        (json!({}), "spec.image: Required value"),
        (
            json!({ "image": "i", "goal": "fast" }),
            r#"spec.goal: Unsupported value: "fast": supported values: "cost", "latency", "default""#,
        ),
        (
            json!({ "image": "i", "replicas": "two" }),
            r#"spec.replicas: Invalid value: "string": spec.replicas in body must be of type integer: "string""#,
        ),
        (
            json!({ "image": "i", "replicas": -1 }),
            "spec.replicas: Invalid value: -1: spec.replicas in body should be greater than or equal to 0",
        ),
        (
            json!({ "image": "i", "name": "A" }),
            r#"spec.name: Invalid value: "A": spec.name in body should match '^[a-z]+$'"#,
        ),
        (
            json!({ "image": "i", "name": "abcdef" }),
            "spec.name: Too long: may not be more than 5 bytes",
        ),
        (
            json!({ "image": "i", "list": ["a", "b"] }),
            "spec.list: Too many: 2: must have at most 1 items",
        ),
        (
            json!({ "image": "i", "when": "now" }),
            r#"spec.when: Invalid value: "now": spec.when in body must be of type date-time: "now""#,
        ),
        (
            json!({ "image": "i", "side": null }),
            r#"spec.side: Unsupported value: null: supported values: "a""#,
        ),
        (
            json!({ "image": "i", "none": null }),
            r#"spec.none: Unsupported value: null: supported values: "a", "null""#,
        ),
        (
            json!({ "image": "" }),
            r#"spec.image: Invalid value: "": spec.image in body should be at least 1 chars long"#,
        ),
    ] {
        assert_eq!(lines(schema.clone(), json!({ "spec": spec })), [expected]);
    }
    for spec in [
        json!({ "image": "i", "size": 2, "when": null }),
        json!({ "image": "i", "size": "2Gi", "replicas": 10 }),
    ] {
        assert_eq!(lines(schema.clone(), json!({ "spec": spec })), [""; 0]);
    }
}

#[test]
fn bounds_are_printed_as_go_prints_them() {
    for (number, text) in [
        (0.0, "0"),
        (-2.5, "-2.5"),
        (999_999.0, "999999"),
        (1e6, "1e+06"),
        (-3.6e6, "-3.6e+06"),
        (1e300, "1e+300"),
        (0.000_01, "1e-05"),
    ] {
        assert_eq!(go_float(number), text);
    }
}

#[test]
fn rules_are_asked_where_no_fault_keeps_them_from_it() {
    let schema = json!({ "type": "object", "properties": { "spec": { "type": "object",
        "required": ["a"],
        "properties": { "a": { "type": "string", "pattern": "^x" }, "b": { "type": "string", "nullable": true } },
        "x-kubernetes-validations": [{ "rule": "!has(self.b)", "message": "no b" }] } } });
    let said = |spec: Value| lines(schema.clone(), json!({ "spec": spec }));
    assert_eq!(
        said(json!({})),
        [
            "spec.a: Required value".to_owned(),
            format!("<nil>: Invalid value: null: {UNCHECKED}")
        ]
    );
    assert_eq!(
        said(json!({ "a": "y", "b": "" })),
        [
            "spec.a: Invalid value: \"y\": spec.a in body should match '^x'",
            "spec: Invalid value: no b"
        ]
    );
    assert_eq!(
        said(json!({ "a": "x", "b": null })),
        [""; 0],
        "null is not set"
    );
}

#[test]
fn items_of_a_map_list_have_different_keys() {
    let schema = json!({ "type": "object", "properties": { "l": { "type": "array",
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
        "items": { "type": "object", "properties": { "name": { "type": "string" } } } } } });
    assert_eq!(
        lines(schema, json!({ "l": [{ "name": "a" }, { "name": "a" }] })),
        [r#"l[1]: Duplicate value: {"name":"a"}"#]
    );
}
