//! Protobuf bodies, as kubectl's typed commands send them (`create secret`, `auth can-i`): the few
//! messages that those commands use, become JSON. Answers are always JSON, which the same clients
//! accept.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// Media type of these bodies.
pub(crate) const CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf";
const MAGIC: &[u8] = b"k8s\0";

#[derive(Clone, Copy)]
enum Type {
    Text,
    Integer,
    Boolean,
    Bytes,
    Time,
    IntOrString,
    Message(&'static [Field]),
    TextMap,
    BytesMap,
}

#[derive(Clone, Copy)]
struct Field {
    number: u64,
    name: &'static str,
    of: Type,
    repeated: bool,
}

const fn one(number: u64, name: &'static str, of: Type) -> Field {
    Field {
        number,
        name,
        of,
        repeated: false,
    }
}

const fn many(number: u64, name: &'static str, of: Type) -> Field {
    Field {
        number,
        name,
        of,
        repeated: true,
    }
}

const OWNER: &[Field] = &[
    one(1, "kind", Type::Text),
    one(3, "name", Type::Text),
    one(4, "uid", Type::Text),
    one(5, "apiVersion", Type::Text),
    one(6, "controller", Type::Boolean),
    one(7, "blockOwnerDeletion", Type::Boolean),
];
const META: Field = one(
    1,
    "metadata",
    Type::Message(&[
        one(1, "name", Type::Text),
        one(2, "generateName", Type::Text),
        one(3, "namespace", Type::Text),
        one(5, "uid", Type::Text),
        one(6, "resourceVersion", Type::Text),
        one(7, "generation", Type::Integer),
        one(8, "creationTimestamp", Type::Time),
        one(9, "deletionTimestamp", Type::Time),
        one(11, "labels", Type::TextMap),
        one(12, "annotations", Type::TextMap),
        many(13, "ownerReferences", Type::Message(OWNER)),
        many(14, "finalizers", Type::Text),
    ]),
);
const NAMESPACE: &[Field] = &[
    META,
    one(
        2,
        "spec",
        Type::Message(&[many(1, "finalizers", Type::Text)]),
    ),
    one(3, "status", Type::Message(&[one(1, "phase", Type::Text)])),
];
const SECRET: &[Field] = &[
    META,
    one(2, "data", Type::BytesMap),
    one(3, "type", Type::Text),
    one(4, "stringData", Type::TextMap),
    one(5, "immutable", Type::Boolean),
];
const CONFIG_MAP: &[Field] = &[
    META,
    one(2, "data", Type::TextMap),
    one(3, "binaryData", Type::BytesMap),
    one(4, "immutable", Type::Boolean),
];
const NAMED: &[Field] = &[one(1, "name", Type::Text)];
const SERVICE_ACCOUNT: &[Field] = &[
    META,
    many(2, "secrets", Type::Message(&[one(3, "name", Type::Text)])),
    many(3, "imagePullSecrets", Type::Message(NAMED)),
    one(4, "automountServiceAccountToken", Type::Boolean),
];
const PORT: &[Field] = &[
    one(1, "name", Type::Text),
    one(2, "protocol", Type::Text),
    one(3, "port", Type::Integer),
    one(4, "targetPort", Type::IntOrString),
    one(5, "nodePort", Type::Integer),
    one(6, "appProtocol", Type::Text),
];
const SERVICE: &[Field] = &[
    META,
    one(
        2,
        "spec",
        Type::Message(&[
            many(1, "ports", Type::Message(PORT)),
            one(2, "selector", Type::TextMap),
            one(3, "clusterIP", Type::Text),
            one(4, "type", Type::Text),
            many(5, "externalIPs", Type::Text),
            one(7, "sessionAffinity", Type::Text),
            one(8, "loadBalancerIP", Type::Text),
            one(10, "externalName", Type::Text),
            many(18, "clusterIPs", Type::Text),
        ]),
    ),
];
const ACCESS: &[Field] = &[
    META,
    one(
        2,
        "spec",
        Type::Message(&[
            one(
                1,
                "resourceAttributes",
                Type::Message(&[
                    one(1, "namespace", Type::Text),
                    one(2, "verb", Type::Text),
                    one(3, "group", Type::Text),
                    one(4, "version", Type::Text),
                    one(5, "resource", Type::Text),
                    one(6, "subresource", Type::Text),
                    one(7, "name", Type::Text),
                ]),
            ),
            one(
                2,
                "nonResourceAttributes",
                Type::Message(&[one(1, "path", Type::Text), one(2, "verb", Type::Text)]),
            ),
        ]),
    ),
];
const RULES: &[Field] = &[
    META,
    one(2, "spec", Type::Message(&[one(1, "namespace", Type::Text)])),
];
const DELETE: &[Field] = &[
    one(1, "gracePeriodSeconds", Type::Integer),
    one(
        2,
        "preconditions",
        Type::Message(&[
            one(1, "uid", Type::Text),
            one(2, "resourceVersion", Type::Text),
        ]),
    ),
    one(3, "orphanDependents", Type::Boolean),
    one(4, "propagationPolicy", Type::Text),
    many(5, "dryRun", Type::Text),
];
const ENVELOPE: &[Field] = &[
    one(
        1,
        "typeMeta",
        Type::Message(&[one(1, "apiVersion", Type::Text), one(2, "kind", Type::Text)]),
    ),
    one(2, "raw", Type::Bytes),
];

fn fields(kind: &str) -> Option<&'static [Field]> {
    Some(match kind {
        "Namespace" => NAMESPACE,
        "Secret" => SECRET,
        "ConfigMap" => CONFIG_MAP,
        "ServiceAccount" => SERVICE_ACCOUNT,
        "Service" => SERVICE,
        "SelfSubjectAccessReview" => ACCESS,
        "SelfSubjectRulesReview" => RULES,
        "SelfSubjectReview" => &[META],
        "DeleteOptions" => DELETE,
        _ => return None,
    })
}

/// Reads a body.
///
/// # Errors
/// It is malformed, or of a kind that is only read as JSON.
pub(crate) fn decode(body: &[u8]) -> Result<Value, String> {
    let body = body.strip_prefix(MAGIC).ok_or("it has no k8s prefix")?;
    let envelope = message(ENVELOPE, body)?;
    let text = |f: &str| {
        envelope["typeMeta"][f]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let fields = fields(&kind).ok_or_else(|| format!("kind {kind:?} is only read as JSON"))?;
    let raw = STANDARD
        .decode(envelope["raw"].as_str().unwrap_or_default())
        .map_err(|e| e.to_string())?;
    let mut value = message(fields, &raw)?;
    value["apiVersion"] = api_version.into();
    value["kind"] = kind.into();
    Ok(value)
}

/// One field of a message on the wire.
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Fixed-width numbers, which none of our messages has.
    Skipped,
}

fn varint(bytes: &mut &[u8]) -> Result<u64, String> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or("truncated number")?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("number is too long".to_owned())
}

fn take<'a>(bytes: &mut &'a [u8], length: u64) -> Result<&'a [u8], String> {
    let length = usize::try_from(length).map_err(|_| "length is too large")?;
    let (taken, rest) = bytes.split_at_checked(length).ok_or("truncated field")?;
    *bytes = rest;
    Ok(taken)
}

fn field<'a>(bytes: &mut &'a [u8]) -> Result<(u64, Wire<'a>), String> {
    let tag = varint(bytes)?;
    let wire = match tag & 7 {
        0 => Wire::Number(varint(bytes)?),
        1 => take(bytes, 8).map(|_| Wire::Skipped)?,
        2 => {
            let length = varint(bytes)?;
            Wire::Bytes(take(bytes, length)?)
        }
        5 => take(bytes, 4).map(|_| Wire::Skipped)?,
        other => return Err(format!("unknown wire type {other}")),
    };
    Ok((tag >> 3, wire))
}

fn message(fields: &[Field], mut bytes: &[u8]) -> Result<Value, String> {
    let mut map = Map::new();
    while !bytes.is_empty() {
        let (number, wire) = field(&mut bytes)?;
        let Some(known) = fields.iter().find(|f| f.number == number) else {
            continue;
        };
        let Some(value) = value(known, &wire)? else {
            continue;
        };
        let place = map.entry(known.name).or_insert(Value::Null);
        match (place, value) {
            (Value::Object(map), Value::Object(more)) => map.extend(more),
            (Value::Array(list), more) if known.repeated => list.push(more),
            (place, value) if known.repeated => *place = json!([value]),
            (place, value) => *place = value,
        }
    }
    Ok(Value::Object(map))
}

/// None for what means "not set": empty texts, zero times, numbers 0 and false.
fn value(field: &Field, wire: &Wire<'_>) -> Result<Option<Value>, String> {
    let text = |b: &[u8]| {
        String::from_utf8(b.to_vec()).map_err(|_| format!("{}: text is not UTF-8", field.name))
    };
    Ok(match (field.of, wire) {
        (Type::Text, Wire::Bytes(b)) => Some(text(b)?).filter(|t| !t.is_empty()).map(Value::String),
        (Type::Integer, Wire::Number(n)) => Some(json!(n.cast_signed())).filter(|_| *n != 0),
        (Type::Boolean, Wire::Number(n)) => Some(json!(*n != 0)),
        (Type::Bytes, Wire::Bytes(b)) => Some(STANDARD.encode(b).into()),
        (Type::Time, Wire::Bytes(b)) => time(b)?,
        (Type::IntOrString, Wire::Bytes(b)) => Some(int_or_string(b)?),
        (Type::Message(fields), Wire::Bytes(b)) => Some(message(fields, b)?),
        (Type::TextMap | Type::BytesMap, Wire::Bytes(b)) => {
            let of = if matches!(field.of, Type::TextMap) {
                Type::Text
            } else {
                Type::Bytes
            };
            let pair = message(&[one(1, "key", Type::Text), one(2, "value", of)], b)?;
            let key = pair["key"].as_str().unwrap_or_default();
            let value = pair["value"].as_str().unwrap_or_default();
            Some(json!({ key: value }))
        }
        _ => return Err(format!("{}: has another wire type", field.name)),
    })
}

fn time(bytes: &[u8]) -> Result<Option<Value>, String> {
    let parts = message(&[one(1, "seconds", Type::Integer)], bytes)?;
    let Some(seconds) = parts["seconds"].as_i64() else {
        return Ok(None);
    };
    let time = Timestamp::from_second(seconds).map_err(|e| e.to_string())?;
    Ok(Some(time.to_string().into()))
}

fn int_or_string(bytes: &[u8]) -> Result<Value, String> {
    let parts = message(
        &[
            one(1, "type", Type::Integer),
            one(2, "int", Type::Integer),
            one(3, "text", Type::Text),
        ],
        bytes,
    )?;
    Ok(match parts["type"].as_i64() {
        Some(1) => parts["text"].as_str().unwrap_or_default().into(),
        _ => parts["int"].as_i64().unwrap_or(0).into(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A length-delimited field.
    fn put(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
        out.push((number << 3) | 2);
        out.push(u8::try_from(bytes.len()).unwrap());
        out.extend_from_slice(bytes);
    }

    fn nested(parts: &[(u8, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (number, bytes) in parts {
            put(&mut out, *number, bytes);
        }
        out
    }

    #[test]
    fn a_secret_becomes_json() {
        let meta = nested(&[(1, b"s"), (11, &nested(&[(1, b"a"), (2, b"b")])), (8, b"")]);
        let data = nested(&[(1, b"k"), (2, b"v")]);
        let secret = nested(&[(1, &meta), (2, &data), (3, b"Opaque")]);
        let kind = nested(&[(1, b"v1"), (2, b"Secret")]);
        let mut body = MAGIC.to_vec();
        body.extend(nested(&[(1, &kind), (2, &secret)]));
        assert_eq!(
            decode(&body).unwrap(),
            json!({ "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
                "metadata": { "name": "s", "labels": { "a": "b" } }, "data": { "k": "dg==" } })
        );
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut body = MAGIC.to_vec();
            body.extend(&bytes);
            let _ = decode(&body);
            let _ = decode(&bytes);
            for kind in ["Secret", "Service", "DeleteOptions", "SelfSubjectAccessReview"] {
                let _ = message(fields(kind).unwrap(), &bytes);
            }
        }
    }
}
