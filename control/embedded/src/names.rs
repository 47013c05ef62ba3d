//! Checks of names and labels.

use serde_json::Value;

use crate::object;
use crate::status::Cause;

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
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
pub(crate) fn check(object: &Value, namespace_kind: bool) -> Vec<Cause> {
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
    causes
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
        ] {
            let causes = check(&json!({ "metadata": metadata }), false);
            assert_eq!(
                causes.first().map(|c| c.field.as_str()),
                field,
                "{metadata}"
            );
        }
    }
}
