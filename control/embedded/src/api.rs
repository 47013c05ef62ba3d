//! What all handlers share.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::crd;
use crate::negotiate::{Form, form};
use crate::object::depth;
use crate::path::ResourcePath;
use crate::proto;
use crate::query::Query;
use crate::resource::{Registry, Resource};
use crate::status::{About, Result, Status};
use crate::store::{Store, Stored};
use crate::table::{Include, table};

/// Body of an answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;
/// An answer.
pub(crate) type Reply = Response<Body>;

/// State of the server.
pub(crate) struct Api {
    pub store: Store,
    registry: RwLock<Arc<Registry>>,
    pub service_proxies: BTreeMap<(String, String), SocketAddr>,
    /// Ends watches at shutdown.
    pub stopping: CancellationToken,
}

impl Api {
    pub fn new(store: Store, service_proxies: BTreeMap<(String, String), SocketAddr>) -> Self {
        let registry = RwLock::new(Arc::new(crd::registry(&store)));
        Self {
            store,
            registry,
            service_proxies,
            stopping: CancellationToken::new(),
        }
    }

    /// An OpenAPI document; made once for each state of the registry.
    pub fn document(&self, path: &str) -> Option<Bytes> {
        let registry = self.registry();
        let mut documents = registry
            .documents
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = documents.get(path) {
            return Some(known.clone());
        }
        let made = crate::openapi::document(&registry, path)?;
        documents.insert(path.to_owned(), made.clone());
        Some(made)
    }

    pub fn registry(&self) -> Arc<Registry> {
        let guard = self.registry.read();
        Arc::clone(&guard.unwrap_or_else(PoisonError::into_inner))
    }

    /// After a definition changed.
    pub fn reload_registry(&self) {
        // Read under the lock, so that of two reloads the later one wins.
        let mut guard = self
            .registry
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *guard = Arc::new(crd::registry(&self.store));
    }
}

/// A request, its body read.
pub(crate) struct Call {
    pub method: Method,
    pub headers: HeaderMap,
    pub query: Query,
    pub body: Bytes,
}

impl Call {
    fn header(&self, name: http::header::HeaderName) -> &str {
        self.headers
            .get(name)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
    }

    /// Media type of the body, without parameters.
    pub fn content_type(&self) -> &str {
        let value = self.header(CONTENT_TYPE);
        value.split(';').next().unwrap_or_default().trim()
    }

    /// Who writes: the parameter, or the program's name.
    pub fn field_manager(&self) -> &str {
        self.query.get("fieldManager").unwrap_or_else(|| {
            let agent = self.header(http::header::USER_AGENT);
            let name = agent.split('/').next().unwrap_or_default();
            if name.is_empty() { "unknown" } else { name }
        })
    }

    /// Kind of the parameters of this request.
    pub fn options(&self) -> &'static str {
        match self.method {
            Method::POST => "CreateOptions",
            Method::PUT => "UpdateOptions",
            Method::PATCH => "PatchOptions",
            Method::DELETE => "DeleteOptions",
            _ => "ListOptions",
        }
    }

    /// Refuses `value`, which the body gives or makes: Kubernetes could not read it as this kind.
    pub fn unreadable(&self, kind: &str, version: &str, value: &Value, why: &str) -> Box<Status> {
        if self.method == Method::PATCH {
            return Status::invalid_patch(value, why);
        }
        Status::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: {why}"
        ))
    }

    /// Whether nothing is to be stored.
    pub fn dry_run(&self) -> Result<bool> {
        self.query.dry_run(self.options())
    }

    /// The form of the answer.
    pub fn form(&self) -> Result<Form> {
        form(&self.headers).ok_or_else(|| {
            Status::new(
                StatusCode::NOT_ACCEPTABLE,
                "NotAcceptable",
                "only the following media types are accepted: application/json",
            )
        })
    }

    pub fn include(&self) -> Include {
        Include::parse(self.query.get("includeObject"))
    }

    /// The body as a tree.
    pub fn decode_body(&self) -> Result<Value> {
        decode(self.content_type(), &self.body)
    }
}

/// Deepest nesting of a body. What is stored must be read again, with the record of its fields,
/// by a parser that stops at 128.
pub(crate) const DEPTH: usize = 100;

/// Reads JSON, YAML, or protobuf.
pub(crate) fn decode(content_type: &str, body: &[u8]) -> Result<Value> {
    let value = decode_any(content_type, body)?;
    if depth(&value) > DEPTH {
        return Err(Status::bad_request(format!(
            "the body of the request is nested more than {DEPTH} levels deep"
        )));
    }
    Ok(value)
}

fn decode_any(content_type: &str, body: &[u8]) -> Result<Value> {
    let bad = |what: &str, e: String| {
        Status::bad_request(format!("the body of the request is not valid {what}: {e}"))
    };
    if content_type.contains("yaml") {
        return serde_yaml_ng::from_slice(body).map_err(|e| bad("YAML", e.to_string()));
    }
    if content_type.contains("json") || content_type.is_empty() {
        return serde_json::from_slice(body).map_err(|e| bad("JSON", e.to_string()));
    }
    if content_type == proto::CONTENT_TYPE {
        return proto::decode(body).map_err(|e| bad("protobuf", e));
    }
    Err(Status::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "UnsupportedMediaType",
        format!(
            "the body of the request was in an unknown format ({content_type:?}) - accepted media types include: application/json, application/yaml"
        ),
    ))
}

pub(crate) fn about(resource: &Resource, name: &str) -> About {
    About {
        group: resource.group.clone(),
        kind: resource.plural.clone(),
        name: name.to_owned(),
    }
}

/// With the kind in place of the plural, as validation words it.
pub(crate) fn about_kind(resource: &Resource, name: &str) -> About {
    About {
        kind: resource.kind.clone(),
        ..about(resource, name)
    }
}

/// A resource request, looked up.
pub(crate) struct Place {
    pub resource: Arc<Resource>,
    /// Empty for cluster-scoped objects, and for all namespaces.
    pub namespace: String,
    pub name: String,
}

impl Place {
    pub fn find(registry: &Registry, path: &ResourcePath) -> Result<Self> {
        let resource = registry
            .get(&path.group, &path.version, &path.plural)
            .ok_or_else(Status::no_resource)?;
        if path.namespace.is_some() && !resource.namespaced {
            return Err(Status::no_resource());
        }
        if path.name.is_some() && resource.namespaced && path.namespace.is_none() {
            return Err(Status::no_resource());
        }
        Ok(Self {
            resource: Arc::clone(resource),
            namespace: path.namespace.clone().unwrap_or_default(),
            name: path.name.clone().unwrap_or_default(),
        })
    }

    pub fn about(&self) -> About {
        about(&self.resource, &self.name)
    }

    /// The stored object.
    pub fn stored(&self, store: &Store) -> Result<Arc<Stored>> {
        store
            .get(&self.resource.key(&self.namespace, &self.name))
            .ok_or_else(|| Status::not_found(&self.about()))
    }
}

/// Whole bytes as a body.
pub(crate) fn whole(bytes: Bytes) -> Body {
    Full::new(bytes)
        .map_err(|never| match never {})
        .boxed_unsync()
}

pub(crate) fn json_reply(code: StatusCode, bytes: Bytes) -> Reply {
    let mut reply = Response::new(whole(bytes));
    *reply.status_mut() = code;
    let json = HeaderValue::from_static("application/json");
    reply.headers_mut().insert(CONTENT_TYPE, json);
    reply
}

pub(crate) fn value_reply(code: StatusCode, value: &Value) -> Reply {
    json_reply(code, value.to_string().into())
}

/// One object in the form that the client asked for. `value` is in its stored form.
pub(crate) fn object_reply(
    call: &Call,
    resource: &Resource,
    code: StatusCode,
    value: Value,
) -> Result<Reply> {
    let served = resource.serve(value);
    Ok(value_reply(code, &formed(call, resource, served, true)?))
}

/// A served object in the form that the client asked for.
pub(crate) fn formed(
    call: &Call,
    resource: &Resource,
    served: Value,
    heads: bool,
) -> Result<Value> {
    Ok(match call.form()? {
        Form::Object | Form::Discovery => served,
        Form::Metadata => metadata_of(&served),
        Form::Table => {
            let revision = served["metadata"]["resourceVersion"].clone();
            let meta = serde_json::json!({ "resourceVersion": revision });
            table(resource, &[served], call.include(), meta, heads)
        }
    })
}

pub(crate) fn metadata_of(object: &Value) -> Value {
    serde_json::json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object["metadata"],
    })
}

/// Stored bytes as they are, where the client wants exactly those.
pub(crate) fn stored_reply(call: &Call, resource: &Resource, stored: &Stored) -> Result<Reply> {
    if call.form()? == Form::Object && resource.conversion == crate::resource::Conversion::None {
        return Ok(json_reply(StatusCode::OK, stored.bytes.clone()));
    }
    object_reply(call, resource, StatusCode::OK, stored.value())
}

/// A list from the stored bytes of its items, without parsing them.
pub(crate) fn raw_list(resource: &Resource, meta: &Value, items: &[Arc<Stored>]) -> Bytes {
    let size: usize = items.iter().map(|i| i.bytes.len() + 1).sum();
    let mut bytes = BytesMut::with_capacity(size + 256);
    let head = format!(
        "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{meta},\"items\":[",
        resource.list_kind(),
        resource.api_version()
    );
    bytes.extend_from_slice(head.as_bytes());
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            bytes.extend_from_slice(b",");
        }
        bytes.extend_from_slice(&item.bytes);
    }
    bytes.extend_from_slice(b"]}");
    bytes.freeze()
}
