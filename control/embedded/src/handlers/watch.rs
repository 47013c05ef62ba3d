//! Watch: events after a revision, as a stream that stays open.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until};

use super::read;
use crate::api::{Api, Call, Place, Reply, metadata_of};
use crate::negotiate::Form;
use crate::object::meta_mut;
use crate::resource::{Conversion, Resource};
use crate::selector::Selector;
use crate::status::{Result, Status};
use crate::store::{Event, EventKind, Replay, Stored};
use crate::table::{Include, table};

/// A watch ends after this when its client names no timeout; clients then watch on.
const LONGEST: Duration = Duration::from_secs(60 * 60);
/// Bookmarks come this often.
const BOOKMARKS: Duration = Duration::from_secs(60);
/// Bytes of events put together before they are sent.
const CHUNK: usize = 64 << 10;

/// One open watch.
struct Watch {
    api: Arc<Api>,
    resource: Arc<Resource>,
    namespace: String,
    selector: Selector,
    form: Form,
    include: Include,
    bookmarks: bool,
    /// Events up to here were sent.
    seen: u64,
    changed: watch::Receiver<u64>,
    ticks: Interval,
    end: Instant,
    /// The state at the beginning, where the client wants it first.
    initial: VecDeque<Arc<Stored>>,
    /// Says that the initial state is complete.
    initial_end: bool,
    heads: bool,
    done: bool,
}

/// Opens a watch.
pub(super) fn watch(api: &Arc<Api>, place: &Place, call: &Call) -> Result<Reply> {
    call.query.check_revision()?;
    let selector = read::selector(place, call)?;
    let bookmarks = call.query.flag("allowWatchBookmarks");
    let wants_initial = call.query.get("sendInitialEvents");
    if wants_initial == Some("true")
        && (!bookmarks || call.query.get("resourceVersionMatch") != Some("NotOlderThan"))
    {
        return Err(Status::bad_request(
            "sendInitialEvents needs allowWatchBookmarks=true and resourceVersionMatch=NotOlderThan",
        ));
    }
    let resource = &place.resource;
    // Before the state is read, so that no change falls between.
    let changed = api.store.subscribe(&resource.id);
    let from = match call.query.get("resourceVersion") {
        None | Some("0") => None,
        Some(text) => Some(text.parse::<u64>().map_err(|_| {
            Status::bad_request(format!(
                "resourceVersion: Invalid value: {text:?}: not a number"
            ))
        })?),
    };
    let with_state = match wants_initial {
        Some("true") => true,
        Some(_) => false,
        None => from.is_none(),
    };
    let (initial, seen) = if with_state {
        let page = read::page(api, place, &selector, "", usize::MAX);
        (page.items.into(), page.revision)
    } else {
        let seen = from.unwrap_or_else(|| api.store.revision());
        (VecDeque::new(), seen)
    };
    let timeout = call.query.number("timeoutSeconds")?.filter(|s| *s > 0);
    let timeout = timeout.map_or(LONGEST, |s| Duration::from_secs(s).min(LONGEST));
    let now = Instant::now();
    let mut ticks = interval_at(now + BOOKMARKS, BOOKMARKS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let watch = Watch {
        api: Arc::clone(api),
        resource: Arc::clone(resource),
        namespace: place.namespace.clone(),
        selector,
        form: call.form()?,
        include: call.include(),
        bookmarks,
        seen,
        changed,
        ticks,
        end: now + timeout,
        initial,
        initial_end: wants_initial == Some("true"),
        heads: true,
        done: false,
    };
    Ok(reply(watch))
}

fn reply(watch: Watch) -> Reply {
    let chunks = stream::unfold(watch, |mut watch| async move {
        let chunk = watch.next().await?;
        Some((Ok(Frame::data(chunk)), watch))
    });
    let mut reply = Response::new(StreamBody::new(chunks).boxed_unsync());
    *reply.status_mut() = StatusCode::OK;
    let json = HeaderValue::from_static("application/json");
    reply.headers_mut().insert(CONTENT_TYPE, json);
    reply
}

impl Watch {
    /// The next bytes; none at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.done {
                return None;
            }
            let chunk = self.collect();
            if !chunk.is_empty() {
                return Some(chunk);
            }
            let stopping = self.api.stopping.clone();
            tokio::select! {
                changed = self.changed.changed() => changed.ok()?,
                _ = self.ticks.tick() => {
                    if self.bookmarks {
                        return Some(self.bookmark(false));
                    }
                }
                () = sleep_until(self.end) => return None,
                () = stopping.cancelled() => return None,
            }
        }
    }

    /// What can be sent now.
    fn collect(&mut self) -> Bytes {
        let mut out = BytesMut::new();
        while let Some(stored) = self.initial.pop_front() {
            self.put_object(&mut out, "ADDED", &stored);
            if out.len() > CHUNK {
                return out.freeze();
            }
        }
        if std::mem::take(&mut self.initial_end) {
            out.extend_from_slice(&self.bookmark(true));
            return out.freeze();
        }
        self.changed.mark_unchanged();
        match self.api.store.replay(&self.resource.id, self.seen) {
            Replay::Events { events, revision } => {
                for event in &events {
                    self.put_event(&mut out, event);
                    self.seen = event.revision;
                    if out.len() > CHUNK {
                        self.changed.mark_changed();
                        return out.freeze();
                    }
                }
                self.seen = self.seen.max(revision);
            }
            Replay::Expired { oldest } => {
                let status = Status::expired(self.seen, oldest).to_json();
                put_line(&mut out, "ERROR", status.to_string().as_bytes());
                self.done = true;
            }
        }
        out.freeze()
    }

    fn put_event(&mut self, out: &mut BytesMut, event: &Event) {
        let object = &event.object;
        if !self.namespace.is_empty() && object.key.namespace() != self.namespace {
            return;
        }
        if self.selector.is_empty() {
            return self.put_object(out, word(event.kind), object);
        }
        let matches = |s: &Arc<Stored>| self.selector.matches(&self.resource.serve(s.value()));
        let before = event.before.as_ref().is_some_and(matches);
        let after = event.kind != EventKind::Deleted && matches(object);
        match (before, after) {
            (false, true) => self.put_object(out, "ADDED", object),
            (true, true) => self.put_object(out, "MODIFIED", object),
            (true, false) => match &event.before {
                // It goes from sight as it was last seen.
                Some(before) if event.kind != EventKind::Deleted => {
                    let mut value = before.value();
                    let revision = object.revision.to_string();
                    meta_mut(&mut value).insert("resourceVersion".to_owned(), revision.into());
                    self.put_value(out, "DELETED", value, object.revision);
                }
                _ => self.put_object(out, "DELETED", object),
            },
            (false, false) => {}
        }
    }

    fn put_object(&mut self, out: &mut BytesMut, kind: &str, stored: &Stored) {
        if self.form == Form::Object && self.resource.conversion == Conversion::None {
            return put_line(out, kind, &stored.bytes);
        }
        self.put_value(out, kind, stored.value(), stored.revision);
    }

    /// `value` is in its stored form.
    fn put_value(&mut self, out: &mut BytesMut, kind: &str, value: Value, revision: u64) {
        let served = self.resource.serve(value);
        let object = match self.form {
            Form::Object | Form::Discovery => served,
            Form::Metadata => metadata_of(&served),
            Form::Table => {
                let meta = json!({ "resourceVersion": revision.to_string() });
                let heads = std::mem::take(&mut self.heads);
                table(&self.resource, &[served], self.include, meta, heads)
            }
        };
        put_line(out, kind, object.to_string().as_bytes());
    }

    /// Tells how far the watch is.
    fn bookmark(&self, initial_end: bool) -> Bytes {
        let mut meta =
            json!({ "resourceVersion": self.seen.to_string(), "creationTimestamp": null });
        if initial_end {
            meta["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let (kind, api_version) = match self.form {
            Form::Metadata => (
                "PartialObjectMetadata".to_owned(),
                "meta.k8s.io/v1".to_owned(),
            ),
            _ => (self.resource.kind.clone(), self.resource.api_version()),
        };
        let mut object = json!({ "kind": kind, "apiVersion": api_version, "metadata": meta });
        if self.form == Form::Table {
            let row = json!({ "cells": [], "object": object });
            object = json!({ "kind": "Table", "apiVersion": "meta.k8s.io/v1",
                "metadata": { "resourceVersion": self.seen.to_string() },
                "columnDefinitions": Value::Null, "rows": [row] });
        }
        let mut out = BytesMut::new();
        put_line(&mut out, "BOOKMARK", object.to_string().as_bytes());
        out.freeze()
    }
}

fn word(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Added => "ADDED",
        EventKind::Modified => "MODIFIED",
        EventKind::Deleted => "DELETED",
    }
}

/// The object's bytes were serialised once, when it was written.
fn put_line(out: &mut BytesMut, kind: &str, object: &[u8]) {
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    out.extend_from_slice(object);
    out.extend_from_slice(b"}\n");
}
