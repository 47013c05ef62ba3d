//! Checks of names and labels.

use serde_json::Value;

use crate::object;
use crate::resource::Resource;
use crate::status::Cause;

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
pub(crate) const DNS_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const KEY: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
/// Bytes of all annotations of an object.
const ANNOTATIONS: usize = 256 << 10;

/// Lowercase letters, digits and dashes, not at its ends.
pub(crate) fn is_label(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    text.len() <= 63
        && bytes.first().is_some_and(|b| good(*b))
        && bytes.last().is_some_and(|b| good(*b))
        && bytes.iter().all(|b| good(*b) || *b == b'-')
}

/// Labels joined by dots.
fn is_subdomain(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|part| {
            // Parts of a subdomain may be longer than labels.
            part.len() <= 63 && is_label(part)
                || part.len() > 63
                    && part
                        .bytes()
                        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        })
}

fn is_word(text: &str, empty: bool) -> bool {
    let bytes = text.as_bytes();
    if bytes.is_empty() {
        return empty;
    }
    let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    text.len() <= 63
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

fn is_key(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_subdomain(prefix) && is_word(name, false),
        None => is_word(text, false),
    }
}

/// What is wrong with the name, labels and annotations of an object.
pub(crate) fn check(object: &Value, resource: &Resource) -> Vec<Cause> {
    let namespace_kind = matches!(resource.id.as_ref(), "namespaces" | "services");
    let mut causes = Vec::new();
    let name = object::name(object);
    let quoted = format!("{name:?}");
    if name.is_empty() {
        causes.push(Cause::required(
            "metadata.name",
            "name or generateName is required",
        ));
    } else if namespace_kind && !is_label(name) {
        causes.push(Cause::invalid("metadata.name", &quoted, LABEL));
    } else if !is_subdomain(name) {
        causes.push(Cause::invalid("metadata.name", &quoted, SUBDOMAIN));
    }
    for (key, value) in object["metadata"]["labels"]
        .as_object()
        .into_iter()
        .flatten()
    {
        let text = value.as_str().unwrap_or_default();
        if !is_key(key) {
            causes.push(Cause::invalid("metadata.labels", &format!("{key:?}"), KEY));
        }
        if !is_word(text, true) {
            let shown = value.to_string();
            let words = if text.len() > 63 {
                "must be no more than 63 characters"
            } else {
                LABEL_VALUE
            };
            causes.push(Cause::invalid("metadata.labels", &shown, words));
        }
    }
    let annotations = object["metadata"]["annotations"].as_object();
    let mut bytes = 0;
    for (key, value) in annotations.into_iter().flatten() {
        bytes += key.len() + value.as_str().map_or(0, str::len);
        if !is_key(&key.to_lowercase()) {
            causes.push(Cause::invalid(
                "metadata.annotations",
                &format!("{key:?}"),
                KEY,
            ));
        }
    }
    if bytes > ANNOTATIONS {
        causes.push(Cause {
            reason: "FieldValueTooLong",
            field: "metadata.annotations".to_owned(),
            message: format!("Too long: may not be more than {ANNOTATIONS} bytes"),
        });
    }
    check_finalizers(
        object,
        resource.builtin && resource.group.is_empty(),
        &mut causes,
    );
    check_owners(object, &mut causes);
    causes
}

/// Finalizers are qualified names; those of core kinds have a prefix, but for Kubernetes' own.
fn check_finalizers(object: &Value, core: bool, causes: &mut Vec<Cause>) {
    for (i, name) in object::finalizers(object).into_iter().enumerate() {
        let own = matches!(name, "kubernetes" | "orphan" | "foregroundDeletion");
        let why = if !is_key(name) {
            KEY
        } else if core && !own && !name.contains('/') {
            "name is neither a standard finalizer name nor is it fully qualified"
        } else {
            continue;
        };
        let field = format!("metadata.finalizers[{i}]");
        causes.push(Cause::invalid(&field, &format!("{name:?}"), why));
    }
}

fn check_owners(object: &Value, causes: &mut Vec<Cause>) {
    const OWNERS: &str = "metadata.ownerReferences";
    let owners = object["metadata"]["ownerReferences"].as_array();
    let mut controllers = Vec::new();
    for owner in owners.into_iter().flatten() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner[field].as_str().unwrap_or_default().is_empty() {
                let words = match field {
                    "apiVersion" => "version must not be empty".to_owned(),
                    other => format!("{other} must not be empty"),
                };
                causes.push(Cause::invalid(&format!("{OWNERS}.{field}"), "\"\"", words));
            }
        }
        if owner["controller"] == true {
            controllers.push(owner["name"].as_str().unwrap_or_default());
        }
    }
    if let [first, second, ..] = controllers.as_slice() {
        let words = format!(
            "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {second}"
        );
        causes.push(Cause::invalid(OWNERS, "\"array\"", words));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_and_labels_are_checked() {
        for (metadata, field) in [
            (json!({ "name": "a.b-c" }), None),
            (json!({ "name": "A" }), Some("metadata.name")),
            (json!({ "name": "a/b" }), Some("metadata.name")),
            (json!({ "name": "-a" }), Some("metadata.name")),
            (json!({}), Some("metadata.name")),
            (json!({ "name": "a", "labels": { "x.io/y": "Z_1" } }), None),
            (
                json!({ "name": "a", "labels": { "x": "a b" } }),
                Some("metadata.labels"),
            ),
            (
                json!({ "name": "a", "labels": { "/x": "a" } }),
                Some("metadata.labels"),
            ),
            (
                json!({ "name": "a", "finalizers": ["x.io/y", "orphan"] }),
                None,
            ),
            (
                json!({ "name": "a", "finalizers": ["x.io/y", "z"] }),
                Some("metadata.finalizers[1]"),
            ),
            (
                json!({ "name": "a", "ownerReferences": [
                    { "apiVersion": "v1", "kind": "X", "name": "x", "uid": "1" },
                ] }),
                None,
            ),
            (
                json!({ "name": "a", "ownerReferences": [
                    { "apiVersion": "v1", "kind": "X", "name": "x" },
                ] }),
                Some("metadata.ownerReferences.uid"),
            ),
            (
                json!({ "name": "a", "ownerReferences": [
                    { "apiVersion": "v1", "kind": "X", "name": "x", "uid": "1", "controller": true },
                    { "apiVersion": "v1", "kind": "X", "name": "y", "uid": "2", "controller": true },
                ] }),
                Some("metadata.ownerReferences"),
            ),
        ] {
            let registry = crate::builtin::registry();
            let resource = registry.get("", "v1", "configmaps").unwrap();
            let causes = check(&json!({ "metadata": metadata }), resource);
            assert_eq!(
                causes.first().map(|c| c.field.as_str()),
                field,
                "{metadata}"
            );
        }
    }
}
