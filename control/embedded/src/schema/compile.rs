//! From JSON schema to [`Schema`].

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use regex::Regex;
use serde_json::Value;

use super::rules::Rule;
use super::{Kind, Limits, ListType, Schema};
use crate::status::Cause;

/// Deeper schemas than this are refused: the walks along them are recursive.
const DEPTH: usize = 64;

/// A schema that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {why}")]
pub(crate) struct CompileError {
    pub path: String,
    pub why: String,
}

/// Compiles the schema of a custom resource.
pub(crate) fn compile(json: &Value) -> Result<Schema, CompileError> {
    Compiler::default().schema(json, &mut Vec::new())
}

/// Compiles a schema of k8s-openapi, with its definitions under `$defs`.
pub(crate) fn compile_builtin(json: &Value) -> Result<Schema, CompileError> {
    let mut compiler = Compiler {
        definitions: json.get("$defs"),
        builtin: true,
        ..Compiler::default()
    };
    compiler.schema(json, &mut Vec::new())
}

#[derive(Default)]
struct Compiler<'a> {
    definitions: Option<&'a Value>,
    builtin: bool,
    done: HashMap<String, Arc<Schema>>,
    open: Vec<String>,
}

impl Compiler<'_> {
    fn shared(
        &mut self,
        json: &Value,
        path: &mut Vec<String>,
    ) -> Result<Arc<Schema>, CompileError> {
        let Some(name) = json["$ref"].as_str().and_then(|r| r.rsplit('/').next()) else {
            return self.schema(json, path).map(Arc::new);
        };
        if let Some(done) = self.done.get(name) {
            return Ok(Arc::clone(done));
        }
        let definition = self.definitions.and_then(|d| d.get(name));
        // A schema that contains itself: from the second round on anything goes.
        let Some(definition) = definition.filter(|_| !self.open.iter().any(|o| o == name)) else {
            return Ok(Arc::new(Schema {
                preserve: true,
                ..Schema::default()
            }));
        };
        self.open.push(name.to_owned());
        let schema = Arc::new(self.schema(definition, path)?);
        self.open.pop();
        self.done.insert(name.to_owned(), Arc::clone(&schema));
        Ok(schema)
    }

    fn schema(&mut self, json: &Value, path: &mut Vec<String>) -> Result<Schema, CompileError> {
        if path.len() > DEPTH {
            return Err(error(path, "schema is nested too deeply"));
        }
        let int_or_string = json["x-kubernetes-int-or-string"] == Value::Bool(true);
        let mut schema = Schema {
            kind: if int_or_string {
                Kind::IntOrString
            } else {
                kind(json, path)?
            },
            nullable: json["nullable"] == Value::Bool(true) || has_null_type(json),
            preserve: json["x-kubernetes-preserve-unknown-fields"] == Value::Bool(true),
            embedded: json["x-kubernetes-embedded-resource"] == Value::Bool(true),
            default: json.get("default").cloned().map(whole_numbers),
            required: strings(&json["required"]),
            limits: limits(json, path)?,
            atomic: json["x-kubernetes-map-type"] == "atomic",
            list: list_type(json),
            rules: self.rules(json, path)?,
            ..Schema::default()
        };
        self.children(json, &mut schema, path)?;
        self.junctors(json, &mut schema, path)?;
        if self.builtin
            && schema.kind == Kind::Object
            && schema.properties.is_empty()
            && schema.additional.is_none()
        {
            // Such as `fieldsV1`: the core kinds have no closed objects without fields.
            schema.preserve = true;
        }
        if !self.builtin {
            check_structure(json, &schema, path)?;
        }
        if int_or_string {
            // Its usual `anyOf: [integer, string]` says nothing more.
            schema.any_of.clear();
        }
        Ok(schema)
    }

    fn children(
        &mut self,
        json: &Value,
        schema: &mut Schema,
        path: &mut Vec<String>,
    ) -> Result<(), CompileError> {
        if let Some(properties) = json["properties"].as_object() {
            for (name, property) in properties {
                path.push(name.clone());
                let mut child = self.shared(property, path)?;
                if self.builtin && child.kind == Kind::Array && child.list == ListType::Atomic {
                    child = Arc::new(self.builtin_list(name, property, path)?);
                }
                path.pop();
                schema.properties.insert(name.clone(), child);
            }
        }
        if json["items"].is_object() {
            path.push("[]".to_owned());
            schema.items = Some(self.shared(&json["items"], path)?);
            path.pop();
        }
        match &json["additionalProperties"] {
            additional @ Value::Object(_) => {
                path.push("*".to_owned());
                schema.additional = Some(self.shared(additional, path)?);
                path.pop();
            }
            Value::Bool(true) => schema.preserve = true,
            _ => {}
        }
        Ok(())
    }

    /// The lists of core kinds that are merged by key, as the Kubernetes API documents them.
    fn builtin_list(
        &mut self,
        name: &str,
        json: &Value,
        path: &mut Vec<String>,
    ) -> Result<Schema, CompileError> {
        let mut schema = self.schema(json, path)?;
        let has = |field: &str| {
            let items = schema.items.as_ref();
            items.is_some_and(|i| i.properties.contains_key(field))
        };
        let keys: &[&str] = match name {
            "containers"
            | "initContainers"
            | "ephemeralContainers"
            | "volumes"
            | "env"
            | "imagePullSecrets"
            | "secrets"
            | "resourceClaims"
            | "claims"
                if has("name") =>
            {
                &["name"]
            }
            "ports" if has("containerPort") => &["containerPort", "protocol"],
            "ports" if has("port") => &["port", "protocol"],
            "conditions" | "addresses" if has("type") => &["type"],
            "volumeMounts" if has("mountPath") => &["mountPath"],
            "volumeDevices" if has("devicePath") => &["devicePath"],
            "ownerReferences" if has("uid") => &["uid"],
            "hostAliases" | "podIPs" | "hostIPs" if has("ip") => &["ip"],
            "topologySpreadConstraints" => &["topologyKey", "whenUnsatisfiable"],
            "finalizers" => {
                schema.list = ListType::Set;
                return Ok(schema);
            }
            _ => return Ok(schema),
        };
        schema.merge_key = Some(keys[0].to_owned());
        schema.list = ListType::Map(keys.iter().map(|&k| k.to_owned()).collect());
        Ok(schema)
    }

    fn junctors(
        &mut self,
        json: &Value,
        schema: &mut Schema,
        path: &mut Vec<String>,
    ) -> Result<(), CompileError> {
        for (word, place) in [
            ("allOf", &mut schema.all_of),
            ("anyOf", &mut schema.any_of),
            ("oneOf", &mut schema.one_of),
        ] {
            for (i, part) in json[word].as_array().into_iter().flatten().enumerate() {
                path.push(format!("{word}[{i}]"));
                place.push(self.schema(part, path)?);
                path.pop();
            }
        }
        if json["not"].is_object() {
            path.push("not".to_owned());
            schema.not = Some(Box::new(self.schema(&json["not"], path)?));
            path.pop();
        }
        Ok(())
    }

    fn rules(&mut self, json: &Value, path: &[String]) -> Result<Vec<Rule>, CompileError> {
        let list = json["x-kubernetes-validations"].as_array();
        list.into_iter()
            .flatten()
            .map(|rule| Rule::compile(rule).map_err(|why| error(path, &why)))
            .collect()
    }
}

/// What makes a schema structural: each place has a type, lists have items, and defaults fit.
fn check_structure(json: &Value, schema: &Schema, path: &[String]) -> Result<(), CompileError> {
    // The parts of junctors say no types.
    let junctor = |step: &String| step == "not" || step.contains("Of[");
    if path.iter().any(junctor) {
        return Ok(());
    }
    let open = schema.preserve || schema.kind == Kind::IntOrString;
    if json["type"].as_str().is_none() && !open && !path.is_empty() {
        return Err(error(
            path,
            "type must not be empty for specified object fields",
        ));
    }
    if schema.kind == Kind::Array && schema.items.is_none() {
        return Err(error(path, "items must be specified"));
    }
    if let Some(default) = &schema.default
        && let Some(cause) = faults(schema, default.clone()).first()
    {
        return Err(error(path, &format!("default: {}", cause.message)));
    }
    Ok(())
}

/// What is wrong with a default, once the defaults inside it are there.
fn faults(schema: &Schema, mut default: Value) -> Vec<Cause> {
    super::fill_defaults(schema, &mut default);
    super::validate(schema, &default, None)
}

/// 1.0 is kept as 1.
fn whole_numbers(value: Value) -> Value {
    match value {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "checked to be whole and in range"
        )]
        Value::Number(n) => match n.as_f64() {
            Some(f) if n.is_f64() && f.fract() == 0.0 && f.abs() < 9e15 => (f as i64).into(),
            _ => Value::Number(n),
        },
        Value::Array(items) => items.into_iter().map(whole_numbers).collect(),
        Value::Object(map) => map
            .into_iter()
            .map(|(k, v)| (k, whole_numbers(v)))
            .collect(),
        other => other,
    }
}

fn error(path: &[String], why: &str) -> CompileError {
    CompileError {
        path: path.join("."),
        why: why.to_owned(),
    }
}

fn has_null_type(json: &Value) -> bool {
    let types = json["type"].as_array();
    types.is_some_and(|t| t.iter().any(|t| t == "null"))
}

fn kind(json: &Value, path: &[String]) -> Result<Kind, CompileError> {
    let word = match &json["type"] {
        Value::Array(types) => types.iter().find(|t| *t != "null").and_then(Value::as_str),
        other => other.as_str(),
    };
    Ok(match word {
        None if json["properties"].is_object() => Kind::Object,
        None => Kind::Any,
        Some("object") => Kind::Object,
        Some("array") => Kind::Array,
        Some("string") => Kind::String,
        Some("integer") => Kind::Integer,
        Some("number") => Kind::Number,
        Some("boolean") => Kind::Boolean,
        Some(other) => return Err(error(path, &format!("unknown type {other:?}"))),
    })
}

fn strings(json: &Value) -> Vec<String> {
    let list = json.as_array().into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn list_type(json: &Value) -> ListType {
    match json["x-kubernetes-list-type"].as_str() {
        Some("map") => ListType::Map(strings(&json["x-kubernetes-list-map-keys"])),
        Some("set") => ListType::Set,
        _ => ListType::Atomic,
    }
}

fn limits(json: &Value, path: &[String]) -> Result<Limits, CompileError> {
    let pattern = match json["pattern"].as_str() {
        None => None,
        Some(text) => {
            let regex = Regex::new(text)
                .map_err(|e| error(path, &format!("pattern {text:?} is invalid: {e}")))?;
            Some((text.to_owned(), regex))
        }
    };
    let whole = |name: &str| json[name].as_u64();
    let flag = |name: &str| json[name] == Value::Bool(true);
    Ok(Limits {
        values: json["enum"].as_array().cloned().unwrap_or_default(),
        minimum: json["minimum"].as_f64(),
        maximum: json["maximum"].as_f64(),
        exclusive_minimum: flag("exclusiveMinimum"),
        exclusive_maximum: flag("exclusiveMaximum"),
        multiple_of: json["multipleOf"].as_f64().filter(|m| *m > 0.0),
        min_length: whole("minLength"),
        max_length: whole("maxLength"),
        pattern,
        min_items: whole("minItems"),
        max_items: whole("maxItems"),
        unique_items: flag("uniqueItems"),
        min_properties: whole("minProperties"),
        max_properties: whole("maxProperties"),
        format: json["format"].as_str().map(str::to_owned),
    })
}

/// Puts the metadata's schema into that of a custom resource, whose author leaves it open.
pub(crate) fn with_metadata(mut schema: Schema, metadata: &Arc<Schema>) -> Schema {
    let text = || {
        Arc::new(Schema {
            kind: Kind::String,
            ..Schema::default()
        })
    };
    let mut fixed = BTreeMap::from([
        ("apiVersion".to_owned(), text()),
        ("kind".to_owned(), text()),
        ("metadata".to_owned(), Arc::clone(metadata)),
    ]);
    schema.properties.append(&mut fixed);
    schema
}
