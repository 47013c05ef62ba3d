//! OpenAPI v3: what `kubectl explain` prints and what tells kubectl that fields are validated
//! here.

use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::builtin::metadata_document;
use crate::discovery::group_versions;
use crate::object::map_mut;
use crate::resource::{OpenApi, Registry, Resource};

const TITLE: &str = "Hyperion embedded API";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const KIND_TEXT: &str = "Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
const VERSION_TEXT: &str = "APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const META_TEXT: &str = "Standard object's metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";

/// What kubectl's name of the media type of OpenAPI v2 begins with.
pub(crate) const V2_ASKED: &str = "application/com.github.proto-openapi.spec.v2";
/// The media type in the form that Go's mime package reads; old clients ask for it with an `@`.
pub(crate) const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// `/openapi/v2`: a document without definitions. A kubectl that reads it leaves the checking of
/// fields to the server, where it is done anyway.
pub(crate) fn v2() -> Value {
    json!({
        "swagger": "2.0",
        "info": { "title": TITLE, "version": env!("CARGO_PKG_VERSION") },
        "paths": {},
    })
}

/// [`v2`] as a message `openapi.v2.Document` of the gnostic library.
pub(crate) fn v2_protobuf() -> Vec<u8> {
    prost::Message::encode_to_vec(&V2Document {
        swagger: "2.0".to_owned(),
        info: Some(V2Info {
            title: TITLE.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }),
        paths: Some(V2Paths {}),
    })
}

#[derive(Clone, PartialEq, prost::Message)]
struct V2Document {
    #[prost(string, tag = "1")]
    swagger: String,
    #[prost(message, optional, tag = "2")]
    info: Option<V2Info>,
    #[prost(message, optional, tag = "8")]
    paths: Option<V2Paths>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct V2Info {
    #[prost(string, tag = "1")]
    title: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct V2Paths {}

/// `/openapi/v3`: one path for each group and version.
pub(crate) fn index(registry: &Registry) -> Value {
    let mut paths = Map::new();
    let mut add = |group: &str, version: &str| {
        let path = gv_path(group, version);
        let url = format!(
            "/openapi/v3/{path}?hash={:016x}",
            hash(registry, group, version)
        );
        paths.insert(path, json!({ "serverRelativeURL": url }));
    };
    add("", "v1");
    for (group, versions) in group_versions(registry) {
        for version in versions {
            add(&group, &version);
        }
    }
    json!({ "paths": paths })
}

fn gv_path(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("api/{version}")
    } else {
        format!("apis/{group}/{version}")
    }
}

/// Changes when the document does, so that clients may keep documents for long.
fn hash(registry: &Registry, group: &str, version: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    env!("CARGO_PKG_VERSION").hash(&mut hasher);
    for resource in registry.in_version(group, version) {
        resource.kind.hash(&mut hasher);
        resource.namespaced.hash(&mut hasher);
        if let OpenApi::Custom(schema) = &resource.openapi {
            schema.to_string().hash(&mut hasher);
        }
    }
    hasher.finish()
}

/// `/openapi/v3/api/v1` or `/openapi/v3/apis/g/v`.
pub(crate) fn document(registry: &Registry, path: &str) -> Option<Bytes> {
    let parts: Vec<&str> = path.split('/').collect();
    let (group, version) = match parts.as_slice() {
        ["api", version] => ("", *version),
        ["apis", group, version] => (*group, *version),
        _ => return None,
    };
    let known = group_versions(registry)
        .iter()
        .any(|(g, versions)| g == group && versions.iter().any(|v| v == version));
    if !known && (group, version) != ("", "v1") {
        return None;
    }
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    for resource in registry.in_version(group, version) {
        let name = add_schema(resource, &mut schemas);
        add_paths(resource, &name, &mut paths);
    }
    let document = json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": "v1.33.0" },
        "paths": paths,
        "components": { "schemas": schemas },
    });
    Some(document.to_string().into())
}

fn gvk(resource: &Resource) -> Value {
    json!({ "group": resource.group, "version": resource.version, "kind": resource.kind })
}

/// Adds the schema of a resource and all that it refers to; gives its name.
fn add_schema(resource: &Resource, schemas: &mut Map<String, Value>) -> String {
    let (name, mut schema) = match &resource.openapi {
        OpenApi::Builtin(make) => {
            let mut root = make();
            let name = root["title"].as_str().unwrap_or(&resource.kind).to_owned();
            move_definitions(&mut root, schemas);
            (name, root)
        }
        OpenApi::Custom(schema) => {
            let mut metadata = metadata_document();
            move_definitions(&mut metadata, schemas);
            schemas.insert(META.to_owned(), metadata);
            let mut parts: Vec<&str> = resource.group.split('.').rev().collect();
            parts.push(&resource.version);
            parts.push(&resource.kind);
            (parts.join("."), custom(schema))
        }
    };
    schema["x-kubernetes-group-version-kind"] = json!([gvk(resource)]);
    schemas.insert(name.clone(), schema);
    name
}

fn custom(schema: &Value) -> Value {
    let mut schema = schema.clone();
    let properties = map_mut(
        map_mut(&mut schema)
            .entry("properties")
            .or_insert(Value::Null),
    );
    properties.insert(
        "apiVersion".to_owned(),
        json!({ "type": "string", "description": VERSION_TEXT }),
    );
    properties.insert(
        "kind".to_owned(),
        json!({ "type": "string", "description": KIND_TEXT }),
    );
    properties.insert(
        "metadata".to_owned(),
        json!({ "description": META_TEXT,
            "allOf": [{ "$ref": format!("#/components/schemas/{META}") }] }),
    );
    schema
}

/// Takes `$defs` out of a root schema and points the references to components.
fn move_definitions(root: &mut Value, schemas: &mut Map<String, Value>) {
    let map = map_mut(root);
    map.remove("$schema");
    map.remove("title");
    let definitions = map.remove("$defs");
    point_to_components(root);
    if let Some(Value::Object(definitions)) = definitions {
        for (name, mut definition) in definitions {
            point_to_components(&mut definition);
            schemas.insert(name, definition);
        }
    }
}

/// `$ref` with neighbours becomes `allOf`, as OpenAPI 3.0 wants it.
fn point_to_components(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            map.values_mut().for_each(point_to_components);
            let Some(Value::String(reference)) = map.get("$ref") else {
                return;
            };
            let name = reference.rsplit('/').next().unwrap_or_default();
            let target: Value = format!("#/components/schemas/{name}").into();
            if map.len() == 1 {
                map.insert("$ref".to_owned(), target);
            } else {
                map.remove("$ref");
                map.insert("allOf".to_owned(), json!([{ "$ref": target }]));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(point_to_components),
        _ => {}
    }
}

fn add_paths(resource: &Resource, schema: &str, paths: &mut Map<String, Value>) {
    let root = format!("/{}", gv_path(&resource.group, &resource.version));
    let plural = &resource.plural;
    let list = if resource.namespaced {
        format!("{root}/namespaces/{{namespace}}/{plural}")
    } else {
        format!("{root}/{plural}")
    };
    let reference = json!({ "$ref": format!("#/components/schemas/{schema}") });
    let operation = |action: &str, write: bool| {
        let mut operation = json!({
            "operationId": format!("{action}{}{}", resource.version, resource.kind),
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": gvk(resource),
            "parameters": [],
            "responses": { "200": { "description": "OK",
                "content": { "application/json": { "schema": reference } } } },
        });
        if write {
            operation["parameters"] = ["dryRun", "fieldManager", "fieldValidation"]
                .iter()
                .map(|name| json!({ "name": name, "in": "query", "schema": { "type": "string" } }))
                .collect();
        }
        operation
    };
    let parameter = |name: &str| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } });
    let namespace = resource.namespaced.then(|| parameter("namespace"));
    let of_list: Vec<Value> = namespace.clone().into_iter().collect();
    let of_one: Vec<Value> = namespace.into_iter().chain([parameter("name")]).collect();
    paths.insert(
        format!("{list}/{{name}}"),
        json!({
            "get": operation("get", false),
            "put": operation("put", true),
            "patch": operation("patch", true),
            "delete": operation("delete", false),
            "parameters": of_one,
        }),
    );
    paths.insert(
        list,
        json!({
            "get": operation("list", false),
            "post": operation("post", true),
            "parameters": of_list,
        }),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn core_documents_resolve_all_their_references() {
        let registry = crate::builtin::registry();
        let bytes = document(&registry, "api/v1").unwrap();
        let value: Value = serde_json::from_slice(&bytes).unwrap();
        let schemas = value["components"]["schemas"].as_object().unwrap();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        for part in text.split("#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(schemas.contains_key(name), "{name}");
        }
        assert!(!text.contains("$defs"));
        assert_eq!(
            value["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"]["x-kubernetes-group-version-kind"]
                ["kind"],
            "Pod"
        );
    }

    #[test]
    fn unknown_documents_are_not_found() {
        let registry = crate::builtin::registry();
        assert!(document(&registry, "apis/no.such/v1").is_none());
        assert!(document(&registry, "nonsense").is_none());
    }
}
