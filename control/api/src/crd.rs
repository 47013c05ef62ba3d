//! The CRDs, generated from the types, with the bounds and rules that a Rust type does not carry.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Value, json};

use crate::cluster::HyperionCluster;
use crate::node::HyperionNode;
use crate::placement::HyperionPlacement;
use crate::quota::HyperionQuota;
use crate::rollout::HyperionRollout;
use crate::workload::HyperionWorkload;

/// Kubernetes' own pattern for names of labels, containers and the like.
const LABEL_NAME: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
/// A quantity that is not negative.
const QUANTITY: &str =
    r"^\+?([0-9]{1,20}(\.[0-9]{0,9})?|\.[0-9]{1,9})([numkMGTPE]|[KMGTPE]i|[eE]\+?[0-9]{1,2})?$";
/// `30s`, `5m`, `1h30m`.
const DURATION: &str = "^([0-9]{1,9}(ms|s|m|h|d))+$";
const LOCALITY: &str = "^(aws|gcp|azure|edge):[a-z0-9][-a-z0-9]*$";
const URL: &str = "^[a-z][a-z0-9+.-]*://[^ ]+$";

/// All CRDs of Hyperion, in the order in which they are to be installed.
#[must_use]
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![
        bounded(HyperionWorkload::crd(), &workload_bounds()),
        bounded(HyperionPlacement::crd(), &placement_bounds()),
        bounded(HyperionNode::crd(), &node_bounds()),
        bounded(HyperionCluster::crd(), &cluster_bounds()),
        bounded(HyperionQuota::crd(), &quota_bounds()),
        bounded(HyperionRollout::crd(), &rollout_bounds()),
    ]
}

/// A path into the schema (`[]` steps into a list's items, `{}` into a map's values) and what is
/// merged in there.
type Bound = (&'static str, Value);

fn quota_bounds() -> Vec<Bound> {
    vec![
        (
            "spec.maxHourlyCost",
            json!({ "minimum": 0, "maximum": 1e9 }),
        ),
        ("spec.maxGpus", json!({ "minimum": 0, "maximum": 1e6 })),
    ]
}

fn workload_bounds() -> Vec<Bound> {
    let mut bounds = vec![
        (
            "spec",
            rule(
                "!(has(self.policy) && has(self.policy.gang) && self.policy.gang) || self.replicas <= 256",
                "a gang has at most 256 replicas",
            ),
        ),
        (
            "spec.policy.priority",
            json!({ "minimum": -1_000_000, "maximum": 1_000_000 }),
        ),
        ("spec.replicas", json!({ "minimum": 0, "maximum": 10_000 })),
        (
            "spec.type",
            rule(
                "self == oldSelf",
                "type can't be changed: delete the workload and make it again",
            ),
        ),
        ("spec.policy.maxHourlyCost", positive(1e6)),
        ("spec.policy.latencyTargetMs", positive(3.6e6)),
        ("spec.policy.clients", json!({ "maxItems": 32 })),
        (
            "spec.policy.clients[]",
            rule(
                "has(self.geography) != has(self.site)",
                "exactly one of geography and site must be set",
            ),
        ),
        ("spec.policy.clients[].weight", positive(1e6)),
        (
            "spec.policy.clients[].site",
            json!({ "pattern": LABEL_NAME, "maxLength": 63 }),
        ),
        (
            "spec.policy.constraints.geographies",
            json!({ "maxItems": 32 }),
        ),
        ("spec.policy.constraints.clouds", json!({ "maxItems": 8 })),
        ("spec.policy.constraints.tiers", json!({ "maxItems": 4 })),
        (
            "spec.policy.data.source",
            json!({ "pattern": URL, "maxLength": 2048 }),
        ),
        (
            "spec.policy.data.locality",
            json!({ "pattern": LOCALITY, "maxLength": 128 }),
        ),
        (
            "spec.policy.disconnect.replaceAfter",
            json!({ "pattern": DURATION, "maxLength": 32 }),
        ),
        (
            "spec.policy.disconnect.stopAfter",
            json!({ "pattern": DURATION, "maxLength": 32 }),
        ),
    ];
    bounds.extend(template_bounds());
    bounds
}

fn template_bounds() -> Vec<Bound> {
    let port = json!({ "minimum": 1, "maximum": 65_535 });
    vec![
        ("spec.template.spec", json!({ "required": ["containers"] })),
        (
            "spec.template.spec.containers",
            json!({ "minItems": 1, "maxItems": 32, "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"] }),
        ),
        (
            "spec.template.spec.containers[]",
            json!({ "required": ["name", "image"] }),
        ),
        (
            "spec.template.spec.containers[].name",
            json!({ "pattern": LABEL_NAME, "maxLength": 63 }),
        ),
        (
            "spec.template.spec.containers[].image",
            json!({ "minLength": 1, "maxLength": 1024 }),
        ),
        (
            "spec.template.spec.containers[].imagePullPolicy",
            json!({ "enum": ["Always", "IfNotPresent", "Never"] }),
        ),
        (
            "spec.template.spec.containers[].resources.limits{}",
            json!({ "pattern": QUANTITY, "minimum": 0 }),
        ),
        (
            "spec.template.spec.containers[].resources.requests{}",
            json!({ "pattern": QUANTITY, "minimum": 0 }),
        ),
        (
            "spec.template.spec.containers[].args",
            json!({ "maxItems": 1024 }),
        ),
        (
            "spec.template.spec.containers[].command",
            json!({ "maxItems": 1024 }),
        ),
        (
            "spec.template.spec.containers[].env",
            json!({ "maxItems": 1024 }),
        ),
        (
            "spec.template.spec.containers[].ports",
            json!({ "maxItems": 64 }),
        ),
        (
            "spec.template.spec.containers[].ports[].containerPort",
            port,
        ),
        (
            "spec.template.spec.containers[].ports[].hostPort",
            json!({ "minimum": 0, "maximum": 65_535 }),
        ),
        (
            "spec.template.spec.restartPolicy",
            json!({ "enum": ["Always", "OnFailure", "Never"] }),
        ),
        (
            "spec.template.spec.terminationGracePeriodSeconds",
            json!({ "minimum": 0, "maximum": 86_400 }),
        ),
        ("spec.template.spec.tolerations", json!({ "maxItems": 64 })),
    ]
}

fn placement_bounds() -> Vec<Bound> {
    vec![
        ("spec.replica", json!({ "minimum": 0, "maximum": 10_000 })),
        ("spec.generation", json!({ "minimum": 1 })),
        (
            "spec.gpus[].millis",
            json!({ "minimum": 1, "maximum": 1000 }),
        ),
    ]
}

fn node_bounds() -> Vec<Bound> {
    vec![
        ("spec.taints", json!({ "maxItems": 64 })),
        (
            "spec.taints[].key",
            json!({ "minLength": 1, "maxLength": 316 }),
        ),
        (
            "spec.taints[].effect",
            json!({ "enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"] }),
        ),
    ]
}

fn cluster_bounds() -> Vec<Bound> {
    vec![
        (
            "spec",
            rule(
                "!(has(self.kubeconfigSecret) && has(self.clusterProfile))",
                "kubeconfigSecret and clusterProfile can't both be set",
            ),
        ),
        ("spec.region", json!({ "minLength": 1, "maxLength": 64 })),
        (
            "spec.kubeconfigSecret",
            json!({ "minLength": 1, "maxLength": 253 }),
        ),
        (
            "spec.clusterProfile.namespace",
            json!({ "pattern": LABEL_NAME, "maxLength": 63 }),
        ),
        (
            "spec.clusterProfile.name",
            json!({ "minLength": 1, "maxLength": 253 }),
        ),
        ("spec.nodeSelector", json!({ "maxProperties": 64 })),
        (
            "spec.capacity.nodeClassRef.group",
            json!({ "minLength": 1, "maxLength": 253 }),
        ),
        (
            "spec.capacity.nodeClassRef.kind",
            json!({ "minLength": 1, "maxLength": 63 }),
        ),
        (
            "spec.capacity.nodeClassRef.name",
            json!({ "minLength": 1, "maxLength": 253 }),
        ),
        ("spec.capacity.instanceTypes", json!({ "maxItems": 100 })),
        (
            "spec.capacity.instanceTypes[]",
            json!({ "minLength": 1, "maxLength": 64 }),
        ),
        ("spec.capacity.zones", json!({ "maxItems": 16 })),
        (
            "spec.capacity.zones[]",
            json!({ "minLength": 1, "maxLength": 64 }),
        ),
        (
            "spec.capacity.capacityTypes",
            json!({ "maxItems": 2, "x-kubernetes-validations": [{
                "rule": "self.all(t, t != 'owned')",
                "message": "what is owned can't be launched: spot or on-demand",
            }] }),
        ),
        (
            "spec.capacity.maxNodes",
            json!({ "minimum": 0, "maximum": 10_000 }),
        ),
        (
            "spec.capacity.maxHourlyCost",
            json!({ "minimum": 0, "maximum": 1e6 }),
        ),
        (
            "spec.capacity.launchTimeout",
            json!({ "pattern": DURATION, "maxLength": 32 }),
        ),
        (
            "spec.capacity.emptyAfter",
            json!({ "pattern": DURATION, "maxLength": 32 }),
        ),
        ("spec.capacity.labels", json!({ "maxProperties": 32 })),
        ("spec.capacity.taints", json!({ "maxItems": 16 })),
        (
            "spec.capacity.taints[].key",
            json!({ "minLength": 1, "maxLength": 316 }),
        ),
        (
            "spec.capacity.taints[].effect",
            json!({ "enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"] }),
        ),
    ]
}

fn rollout_bounds() -> Vec<Bound> {
    let time = || json!({ "pattern": DURATION, "maxLength": 32 });
    let number = || json!({ "minimum": 0, "maximum": 1_000_000 });
    vec![
        (
            "spec.bundle.url",
            json!({ "pattern": "^(https?|file)://[^ ]+$", "maxLength": 2048 }),
        ),
        (
            "spec.bundle.sha256",
            json!({ "pattern": "^[0-9a-fA-F]{64}$" }),
        ),
        ("spec.bundle.sizeBytes", json!({ "minimum": 0 })),
        (
            "spec.bundle.version",
            json!({ "pattern": "^[A-Za-z0-9_+~-][A-Za-z0-9._+~-]*$", "maxLength": 128 }),
        ),
        ("spec.bundle.machines", json!({ "maxItems": 32 })),
        (
            "spec.bundle.machines[]",
            json!({ "minLength": 1, "maxLength": 128 }),
        ),
        ("spec.nodeSelector", json!({ "maxProperties": 64 })),
        ("spec.sites", json!({ "maxItems": 1000 })),
        ("spec.waves", json!({ "maxItems": 32 })),
        ("spec.acceptedFailures", number()),
        ("spec.attempt", number()),
        ("spec.windows", json!({ "maxItems": 32 })),
        (
            "spec.windows[].start",
            json!({ "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$" }),
        ),
        ("spec.windows[].duration", time()),
        (
            "spec.windows[].offset",
            json!({ "pattern": "^(Z|UTC|[+-](0[0-9]|1[0-4]):[0-5][0-9])$" }),
        ),
        ("spec.windows[].days", json!({ "maxItems": 7 })),
        ("spec.readyWithin", time()),
        ("spec.emptyWithin", time()),
    ]
}

fn positive(most: f64) -> Value {
    json!({ "minimum": 0.0, "exclusiveMinimum": true, "maximum": most })
}

fn rule(rule: &str, message: &str) -> Value {
    json!({ "x-kubernetes-validations": [{ "rule": rule, "message": message }] })
}

fn bounded(crd: CustomResourceDefinition, bounds: &[Bound]) -> CustomResourceDefinition {
    let Ok(mut value) = serde_json::to_value(&crd) else {
        return crd;
    };
    if let Some(schema) = value.pointer_mut("/spec/versions/0/schema/openAPIV3Schema") {
        for (path, bound) in bounds {
            // A path that leads nowhere is found by a test.
            if let (Some(field), Value::Object(extra)) = (field_mut(schema, path), bound) {
                for (key, value) in extra {
                    field[key.as_str()] = value.clone();
                }
            }
        }
        tidy(schema);
        // `kubectl explain` begins with it.
        if let Some(description) = schema.pointer("/properties/spec/description").cloned() {
            schema["description"] = description;
        }
    }
    serde_json::from_value(value).unwrap_or(crd)
}

fn field_mut<'a>(schema: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    let mut at = schema;
    for step in path.split('.') {
        let name = step.trim_end_matches("[]").trim_end_matches("{}");
        at = at.get_mut("properties")?.get_mut(name)?;
        if step.ends_with("[]") {
            at = at.get_mut("items")?;
        } else if step.ends_with("{}") {
            at = at.get_mut("additionalProperties")?;
        }
    }
    Some(at)
}

/// What API servers do not know or warn about: number formats of Rust, and bounds of theirs that
/// only repeat the type.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map
                .get("format")
                .and_then(Value::as_str)
                .is_some_and(|f| f.starts_with("uint"))
            {
                map.remove("format");
            }
            map.values_mut().for_each(tidy);
        }
        Value::Array(list) => list.iter_mut().for_each(tidy),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(crd: &CustomResourceDefinition) -> Value {
        let value = serde_json::to_value(crd).unwrap();
        value["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
    }

    #[test]
    fn every_bound_has_its_place() {
        let all = [
            workload_bounds(),
            placement_bounds(),
            node_bounds(),
            cluster_bounds(),
            quota_bounds(),
            rollout_bounds(),
        ];
        for (crd, bounds) in crds().iter().zip(all) {
            let mut schema = schema(crd);
            for (path, bound) in bounds {
                let field = field_mut(&mut schema, path)
                    .unwrap_or_else(|| panic!("no {path} in {:?}", crd.metadata.name));
                for (key, value) in bound.as_object().unwrap() {
                    let same = match (field.get(key).and_then(Value::as_f64), value.as_f64()) {
                        (Some(held), Some(wanted)) => held == wanted,
                        _ => field.get(key) == Some(value),
                    };
                    assert!(same, "{path}.{key}: {:?}", field.get(key));
                }
            }
        }
    }

    /// The structural-schema rules of a real API server that generators break most often.
    fn structural(path: &str, schema: &Value, problems: &mut Vec<String>) {
        let Value::Object(map) = schema else { return };
        let has = |key: &str| map.contains_key(key);
        if has("$ref") || has("definitions") || has("$defs") {
            problems.push(format!("{path}: reference"));
        }
        if has("additionalProperties") && has("properties") {
            problems.push(format!("{path}: additionalProperties and properties"));
        }
        let opaque =
            has("x-kubernetes-int-or-string") || has("x-kubernetes-preserve-unknown-fields");
        if !has("type") && !opaque {
            problems.push(format!("{path}: no type"));
        }
        if map.get("type").is_some_and(|t| !t.is_string()) {
            problems.push(format!("{path}: type is not one word"));
        }
        if map.get("type") == Some(&json!("array")) && !has("items") {
            problems.push(format!("{path}: no items"));
        }
        for (name, field) in map
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            structural(&format!("{path}.{name}"), field, problems);
        }
        for key in ["items", "additionalProperties"] {
            if let Some(field) = map.get(key) {
                structural(&format!("{path}[]"), field, problems);
            }
        }
        if let Some(keys) = map
            .get("x-kubernetes-list-map-keys")
            .and_then(Value::as_array)
        {
            for key in keys.iter().filter_map(Value::as_str) {
                let item = &map["items"];
                let required = item["required"]
                    .as_array()
                    .is_some_and(|r| r.contains(&json!(key)));
                if !required && item["properties"][key].get("default").is_none() {
                    problems.push(format!(
                        "{path}: list key {key} neither required nor defaulted"
                    ));
                }
            }
        }
    }

    #[test]
    fn schemas_are_structural() {
        for crd in crds() {
            let mut problems = Vec::new();
            structural("", &schema(&crd), &mut problems);
            assert_eq!(problems, Vec::<String>::new(), "{:?}", crd.metadata.name);
        }
    }

    #[test]
    fn a_schema_stays_readable() {
        for crd in crds() {
            let text = serde_yaml_ng::to_string(&crd).unwrap();
            assert!(
                text.len() < 100_000,
                "{:?}: {}",
                crd.metadata.name,
                text.len()
            );
        }
    }
}
