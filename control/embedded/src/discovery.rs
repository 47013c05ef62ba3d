//! What the server has, for clients that ask before they speak.

use serde_json::{Value, json};

use crate::resource::{Registry, Resource, group_version};

/// Groups whose reviews are answered but not stored.
const REVIEWS: [(&str, &str, &str, bool); 4] = [
    (
        "authentication.k8s.io",
        "selfsubjectreviews",
        "SelfSubjectReview",
        false,
    ),
    (
        "authorization.k8s.io",
        "selfsubjectaccessreviews",
        "SelfSubjectAccessReview",
        false,
    ),
    (
        "authorization.k8s.io",
        "selfsubjectrulesreviews",
        "SelfSubjectRulesReview",
        false,
    ),
    (
        "authorization.k8s.io",
        "subjectaccessreviews",
        "SubjectAccessReview",
        false,
    ),
];

/// The version that is claimed: that of the core schemas.
pub(crate) fn version() -> Value {
    json!({
        "major": "1",
        "minor": "33",
        "gitVersion": "v1.33.0+embedded",
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "",
        "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
    })
}

/// `/api`.
pub(crate) fn core_versions() -> Value {
    json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] })
}

/// `/apis`.
pub(crate) fn groups(registry: &Registry) -> Value {
    let groups: Vec<Value> = group_versions(registry)
        .into_iter()
        .map(|(group, versions)| group_json(&group, &versions))
        .collect();
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
}

/// `/apis/g`.
pub(crate) fn group(registry: &Registry, name: &str) -> Option<Value> {
    let found = group_versions(registry)
        .into_iter()
        .find(|(g, _)| g == name);
    found.map(|(group, versions)| {
        let mut json = group_json(&group, &versions);
        json["kind"] = "APIGroup".into();
        json["apiVersion"] = "v1".into();
        json
    })
}

/// All groups but the core one, with their versions.
pub(crate) fn group_versions(registry: &Registry) -> Vec<(String, Vec<String>)> {
    let mut all: Vec<(String, Vec<String>)> = registry
        .groups
        .iter()
        .filter(|(group, _)| !group.is_empty())
        .map(|(group, versions)| (group.clone(), versions.clone()))
        .collect();
    for (group, ..) in REVIEWS {
        if !all.iter().any(|(g, _)| g == group) {
            all.push((group.to_owned(), vec!["v1".to_owned()]));
        }
    }
    all
}

fn group_json(group: &str, versions: &[String]) -> Value {
    let version = |v: &String| json!({ "groupVersion": group_version(group, v), "version": v });
    let all: Vec<Value> = versions.iter().map(version).collect();
    let preferred = all.first().cloned().unwrap_or_default();
    json!({ "name": group, "versions": all, "preferredVersion": preferred })
}

/// `/api/v1` or `/apis/g/v`.
pub(crate) fn resources(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    for resource in registry.in_version(group, version) {
        list.push(resource_json(resource));
        for sub in resource.subresources() {
            list.push(subresource_json(resource, sub));
        }
        if resource.plural == "services" && group.is_empty() {
            list.push(json!({ "name": "services/proxy", "singularName": "", "namespaced": true,
                "kind": "ServiceProxyOptions", "verbs": ["create", "delete", "get", "patch", "update"] }));
        }
    }
    for (g, plural, kind, namespaced) in REVIEWS {
        if g == group && version == "v1" {
            list.push(json!({ "name": plural, "singularName": kind.to_lowercase(),
                "namespaced": namespaced, "kind": kind, "verbs": ["create"] }));
        }
    }
    (!list.is_empty()).then(|| {
        json!({
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": group_version(group, version),
            "resources": list,
        })
    })
}

/// Other names, where a resource has some.
fn add_names(json: &mut Value, resource: &Resource) {
    for (field, list) in [
        ("shortNames", &resource.short_names),
        ("categories", &resource.categories),
    ] {
        if !list.is_empty() {
            json[field] = json!(list);
        }
    }
}

fn resource_json(resource: &Resource) -> Value {
    let mut json = json!({
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": resource.verbs(),
    });
    add_names(&mut json, resource);
    json
}

fn subresource_json(resource: &Resource, sub: &str) -> Value {
    let mut json = json!({
        "name": format!("{}/{sub}", resource.plural),
        "singularName": "",
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": ["get", "patch", "update"],
    });
    if sub == "scale" {
        json["group"] = "autoscaling".into();
        json["version"] = "v1".into();
        json["kind"] = "Scale".into();
    }
    json
}

/// Everything at once, for `/api` or `/apis`.
pub(crate) fn aggregated(registry: &Registry, core: bool) -> Value {
    let groups = if core {
        vec![(String::new(), vec!["v1".to_owned()])]
    } else {
        group_versions(registry)
    };
    let items: Vec<Value> = groups
        .iter()
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|v| aggregated_version(registry, group, v))
                .collect();
            let mut meta = json!({ "creationTimestamp": null });
            if !group.is_empty() {
                meta["name"] = group.as_str().into();
            }
            json!({ "metadata": meta, "versions": versions })
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    })
}

fn aggregated_version(registry: &Registry, group: &str, version: &str) -> Value {
    let mut resources: Vec<Value> = registry
        .in_version(group, version)
        .into_iter()
        .map(|r| aggregated_resource(r))
        .collect();
    for (g, plural, kind, _) in REVIEWS {
        if g == group {
            resources.push(json!({
                "resource": plural,
                "responseKind": { "group": group, "version": version, "kind": kind },
                "scope": "Cluster",
                "singularResource": kind.to_lowercase(),
                "verbs": ["create"],
            }));
        }
    }
    json!({ "version": version, "freshness": "Current", "resources": resources })
}

fn aggregated_resource(resource: &Resource) -> Value {
    let kind = |group: &str, version: &str, kind: &str| json!({ "group": group, "version": version, "kind": kind });
    let own = kind(&resource.group, &resource.version, &resource.kind);
    let subresources: Vec<Value> = resource
        .subresources()
        .into_iter()
        .map(|sub| {
            let response = if sub == "scale" {
                kind("autoscaling", "v1", "Scale")
            } else {
                own.clone()
            };
            json!({ "subresource": sub, "responseKind": response,
                "verbs": ["get", "patch", "update"] })
        })
        .collect();
    let mut json = json!({
        "resource": resource.plural,
        "responseKind": own,
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": resource.verbs(),
    });
    add_names(&mut json, resource);
    if !subresources.is_empty() {
        json["subresources"] = subresources.into();
    }
    json
}
