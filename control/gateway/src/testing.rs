//! A Kubernetes API in memory, as far as the gateway uses one: for its own tests, and for
//! measuring the gateway apart from everything else. Not part of any program that people run.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use serde_json::{Value, json};
use tokio::sync::broadcast;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Changes that a watch may be behind.
const HISTORY: usize = 4096;

#[derive(Clone)]
struct Change {
    version: u64,
    path: String,
    event: Bytes,
}

struct Store {
    objects: BTreeMap<String, Value>,
    version: u64,
    history: VecDeque<Change>,
    changes: broadcast::Sender<Change>,
    failing: Option<String>,
}

/// The API; clones share the objects.
#[derive(Clone)]
pub struct MemoryApi {
    store: Arc<Mutex<Store>>,
}

impl Default for MemoryApi {
    fn default() -> Self {
        let store = Store {
            objects: BTreeMap::new(),
            version: 1,
            history: VecDeque::new(),
            changes: broadcast::channel(HISTORY).0,
            failing: None,
        };
        Self {
            store: Arc::new(Mutex::new(store)),
        }
    }
}

struct Refusal(StatusCode, &'static str);

impl MemoryApi {
    /// A client of this API.
    #[must_use]
    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    /// The object at a path such as `/api/v1/namespaces/x/secrets/y`.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<Value> {
        self.lock().objects.get(path).cloned()
    }

    /// Puts an object there, as somebody else would.
    pub fn put(&self, path: &str, object: Value) {
        self.lock().write(path, object);
    }

    /// Removes an object.
    pub fn delete(&self, path: &str) {
        self.lock().remove(path);
    }

    /// Has all writes of a kind fail, as an API server does that lost its store.
    pub fn fail_writes_of(&self, plural: &str, fail: bool) {
        self.lock().failing = fail.then(|| format!("/{plural}"));
    }

    /// All objects, for a later [`MemoryApi::restore`].
    #[must_use]
    pub fn dump(&self) -> Value {
        json!(self.lock().objects)
    }

    /// Puts dumped objects back.
    pub fn restore(&self, dump: &Value) {
        for (path, object) in dump.as_object().into_iter().flatten() {
            self.lock().write(path, object.clone());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(&self, request: Request<kube::client::Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let query = head.uri.query().unwrap_or_default().to_owned();
        if head.method == Method::GET && query.contains("watch=true") {
            return self.watch(head.uri.path(), &query);
        }
        let sent: Value = match body.collect().await {
            Ok(body) => serde_json::from_slice(&body.to_bytes()).unwrap_or_default(),
            Err(_) => Value::Null,
        };
        let answer = self.lock().handle(&head.method, head.uri.path(), sent);
        let (status, value) = match answer {
            Ok(value) => (StatusCode::OK, value),
            Err(Refusal(status, reason)) => (
                status,
                json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure",
                    "message": reason, "reason": reason, "code": status.as_u16() }),
            ),
        };
        respond(
            status,
            Full::new(Bytes::from(value.to_string())).boxed_unsync(),
        )
    }

    fn watch(&self, collection: &str, query: &str) -> Response<Body> {
        let since = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("resourceVersion="))
            .and_then(|v| v.parse().ok())
            .unwrap_or(0);
        let prefix = format!("{collection}/");
        let store = self.lock();
        let missed: Vec<Change> = store
            .history
            .iter()
            .filter(|c| c.version > since)
            .cloned()
            .collect();
        let live = store.changes.subscribe();
        drop(store);
        let live = futures::stream::unfold(live, |mut live| async move {
            // A watch that fell behind ends; its client lists again.
            let change = live.recv().await.ok()?;
            Some((change, live))
        });
        let frames = futures::stream::iter(missed)
            .chain(live)
            .filter(move |c| std::future::ready(c.path.starts_with(&prefix)))
            .map(|c| Ok(http_body::Frame::data(c.event)));
        respond(StatusCode::OK, StreamBody::new(frames).boxed_unsync())
    }
}

fn respond(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

impl Store {
    fn handle(&mut self, method: &Method, path: &str, sent: Value) -> Result<Value, Refusal> {
        let status_only = path.ends_with("/status");
        let path = path.strip_suffix("/status").unwrap_or(path);
        if *method != Method::GET && self.failing.as_ref().is_some_and(|f| path.contains(f)) {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            return Err(Refusal(status, "InternalError"));
        }
        let version = |v: &Value| v["metadata"]["resourceVersion"].as_str().map(str::to_owned);
        match *method {
            Method::GET if is_collection(path) => {
                let prefix = format!("{path}/");
                let items: Vec<&Value> = self
                    .objects
                    .iter()
                    .filter(|(p, _)| p.starts_with(&prefix))
                    .map(|(_, o)| o)
                    .collect();
                Ok(json!({ "kind": "List", "apiVersion": "v1", "items": items,
                    "metadata": { "resourceVersion": self.version.to_string() } }))
            }
            Method::GET => self.objects.get(path).cloned().ok_or(NOT_FOUND),
            Method::POST => {
                let name = sent["metadata"]["name"].as_str().unwrap_or_default();
                let path = format!("{path}/{name}");
                if self.objects.contains_key(&path) {
                    return Err(Refusal(StatusCode::CONFLICT, "AlreadyExists"));
                }
                Ok(self.write(&path, sent))
            }
            Method::PUT => {
                let held = self.objects.get(path).ok_or(NOT_FOUND)?;
                if version(&sent).is_some_and(|v| Some(v) != version(held)) {
                    return Err(Refusal(StatusCode::CONFLICT, "Conflict"));
                }
                Ok(self.write(path, sent))
            }
            Method::PATCH => {
                let mut merged = match self.objects.get(path) {
                    Some(held) => held.clone(),
                    None if status_only => return Err(NOT_FOUND),
                    None => json!({}),
                };
                merge(&mut merged, sent);
                Ok(self.write(path, merged))
            }
            Method::DELETE => self.remove(path).ok_or(NOT_FOUND),
            _ => Err(Refusal(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed")),
        }
    }

    fn write(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let known = self
            .objects
            .insert(path.to_owned(), object.clone())
            .is_some();
        self.publish(path, if known { "MODIFIED" } else { "ADDED" }, &object);
        object
    }

    fn remove(&mut self, path: &str) -> Option<Value> {
        let object = self.objects.remove(path)?;
        self.version += 1;
        self.publish(path, "DELETED", &object);
        Some(object)
    }

    fn publish(&mut self, path: &str, kind: &str, object: &Value) {
        let line = format!("{}\n", json!({ "type": kind, "object": object }));
        let (version, path) = (self.version, path.to_owned());
        let change = Change {
            version,
            path,
            event: Bytes::from(line),
        };
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(change.clone());
        // Nobody may be watching.
        let _ = self.changes.send(change);
    }
}

const NOT_FOUND: Refusal = Refusal(StatusCode::NOT_FOUND, "NotFound");

/// Paths of the kinds that the gateway uses: names follow the plural.
fn is_collection(path: &str) -> bool {
    ["secrets", "configmaps", "hyperionnodes"]
        .iter()
        .any(|plural| path.ends_with(plural))
}

/// Server-side apply by one manager who always sends all its fields, as the gateway does.
fn merge(held: &mut Value, sent: Value) {
    match (held, sent) {
        (Value::Object(held), Value::Object(sent)) => {
            for (key, value) in sent {
                merge(held.entry(key).or_insert(Value::Null), value);
            }
        }
        (held, sent) => *held = sent,
    }
}
