//! The core kinds that are served, with the schemas of k8s-openapi.

use std::sync::{Arc, OnceLock};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::JsonSchema;
use serde_json::Value;

use crate::object::map_mut;
use crate::resource::{Conversion, OpenApi, Registry, Resource, SchemaSource};
use crate::schema::{Schema, compile_builtin};
use crate::table::core_columns;

/// Group of custom resource definitions.
pub(crate) const CRD_GROUP: &str = "apiextensions.k8s.io";
/// Id of custom resource definitions in the store.
pub(crate) const CRD_ID: &str = "customresourcedefinitions.apiextensions.k8s.io";

/// Group, version, kind, plural, short names, namespaced, status.
type Line = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static [&'static str],
    bool,
    bool,
);

/// The registry without any custom resource.
pub(crate) fn registry() -> Registry {
    let mut registry = Registry::default();
    let mut add = |line, make: fn() -> Arc<Schema>, openapi: fn() -> Value| {
        registry.insert(Arc::new(resource(line, make, openapi)));
    };
    #[rustfmt::skip]
    let () = {
        add(("", "v1", "ConfigMap", "configmaps", &["cm"], true, false), compiled::<core::ConfigMap>, document::<core::ConfigMap>);
        add(("", "v1", "Event", "events", &["ev"], true, false), compiled::<core::Event>, document::<core::Event>);
        add(("", "v1", "Namespace", "namespaces", &["ns"], false, true), compiled::<core::Namespace>, document::<core::Namespace>);
        add(("", "v1", "Node", "nodes", &["no"], false, true), compiled::<core::Node>, document::<core::Node>);
        add(("", "v1", "Pod", "pods", &["po"], true, true), compiled::<core::Pod>, document::<core::Pod>);
        add(("", "v1", "Secret", "secrets", &[], true, false), compiled::<core::Secret>, document::<core::Secret>);
        add(("", "v1", "Service", "services", &["svc"], true, true), compiled::<core::Service>, document::<core::Service>);
        add(("", "v1", "ServiceAccount", "serviceaccounts", &["sa"], true, false), compiled::<core::ServiceAccount>, document::<core::ServiceAccount>);
        add(("coordination.k8s.io", "v1", "Lease", "leases", &[], true, false), compiled::<Lease>, document::<Lease>);
        add(("events.k8s.io", "v1", "Event", "events", &["ev"], true, false), compiled::<Event>, document::<Event>);
        add(("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", &["pc"], false, false), compiled::<PriorityClass>, document::<PriorityClass>);
        add((CRD_GROUP, "v1", "CustomResourceDefinition", "customresourcedefinitions", &["crd", "crds"], false, true), compiled::<CustomResourceDefinition>, document::<CustomResourceDefinition>);
    };
    registry
}

fn resource(line: Line, make: fn() -> Arc<Schema>, openapi: fn() -> Value) -> Resource {
    let (group, version, kind, plural, short_names, namespaced, status) = line;
    let event_alias = group == "events.k8s.io";
    let id = if group.is_empty() || event_alias {
        plural.to_owned()
    } else {
        format!("{plural}.{group}")
    };
    let categories: &[&str] = match plural {
        "pods" | "services" => &["all"],
        "customresourcedefinitions" => &["api-extensions"],
        _ => &[],
    };
    Resource {
        group: group.to_owned(),
        version: version.to_owned(),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
        singular: kind.to_lowercase(),
        short_names: short_names.iter().map(|&s| s.to_owned()).collect(),
        categories: categories.iter().map(|&s| s.to_owned()).collect(),
        namespaced,
        status,
        scale: None,
        builtin: true,
        id: id.into(),
        conversion: if event_alias {
            Conversion::Event
        } else {
            Conversion::None
        },
        columns: core_columns(plural),
        schema: SchemaSource::Lazy(OnceLock::new(), make),
        openapi: OpenApi::Builtin(openapi),
    }
}

/// JSON schema of a type, definitions under `$defs`.
fn document<T: JsonSchema>() -> Value {
    let generator = schemars::generate::SchemaSettings::default().into_generator();
    generator.into_root_schema_for::<T>().to_value()
}

fn compiled<T: JsonSchema>() -> Arc<Schema> {
    // The schemas of k8s-openapi are fixed; the tests compile each of them.
    Arc::new(compile_builtin(&document::<T>()).unwrap_or_default())
}

/// Schema of `metadata`, shared by all custom resources.
pub(crate) fn metadata_schema() -> Arc<Schema> {
    static SCHEMA: OnceLock<Arc<Schema>> = OnceLock::new();
    Arc::clone(SCHEMA.get_or_init(compiled::<ObjectMeta>))
}

/// OpenAPI of `metadata`.
pub(crate) fn metadata_document() -> Value {
    document::<ObjectMeta>()
}

/// Names of an event's fields: in `events.k8s.io`, and in the core group, where they are kept.
const EVENT_FIELDS: [(&str, &str); 8] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
    ("reportingInstance", "reportingInstance"),
];

pub(crate) fn event_to_core(value: Value) -> Value {
    rename(value, "v1", |(new, core)| (*new, *core))
}

pub(crate) fn event_from_core(value: Value) -> Value {
    rename(value, "events.k8s.io/v1", |(new, core)| (*core, *new))
}

fn rename(
    mut event: Value,
    api_version: &str,
    pick: fn(&'static (&'static str, &'static str)) -> (&'static str, &'static str),
) -> Value {
    let map = map_mut(&mut event);
    for (from, to) in EVENT_FIELDS.iter().map(pick) {
        if let Some(value) = map.remove(from) {
            map.insert(to.to_owned(), value);
        }
    }
    map.insert("apiVersion".to_owned(), api_version.into());
    event
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_core_schema_compiles() {
        for resource in registry().all() {
            let OpenApi::Builtin(document) = resource.openapi else {
                panic!("{} is not built in", resource.kind);
            };
            compile_builtin(&document()).unwrap();
            assert!(resource.schema().properties.contains_key("metadata"));
        }
    }

    #[test]
    fn events_keep_their_content_in_both_groups() {
        let event = json!({ "apiVersion": "events.k8s.io/v1", "kind": "Event", "note": "n",
            "regarding": { "name": "x" }, "reason": "r" });
        let core = event_to_core(event.clone());
        assert_eq!(core["message"], "n");
        assert_eq!(core["involvedObject"]["name"], "x");
        assert_eq!(event_from_core(core), event);
    }
}
