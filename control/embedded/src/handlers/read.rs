//! Get and list.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use serde_json::{Value, json};

use crate::api::{
    Api, Call, Place, Reply, json_reply, metadata_of, raw_list, stored_reply, value_reply,
};
use crate::negotiate::Form;
use crate::resource::Conversion;
use crate::selector::Selector;
use crate::status::{Result, Status};
use crate::store::Page;
use crate::table::table;

pub(super) fn get(api: &Api, place: &Place, call: &Call) -> Result<Reply> {
    let stored = place.stored(&api.store)?;
    stored_reply(call, &place.resource, &stored)
}

/// Where a list goes on: the first page's revision, and the last key.
struct Continue {
    revision: u64,
    after: String,
}

impl Continue {
    fn decode(token: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (revision, after) = text.split_once(' ')?;
        Some(Self {
            revision: revision.parse().ok()?,
            after: after.to_owned(),
        })
    }

    fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(format!("{} {}", self.revision, self.after))
    }
}

pub(super) fn list(api: &Api, place: &Place, call: &Call) -> Result<Reply> {
    call.query.check_revision()?;
    let selector = selector(place, call)?;
    let limit = call.query.number("limit")?.filter(|l| *l > 0);
    let limit = limit.map_or(usize::MAX, |l| usize::try_from(l).unwrap_or(usize::MAX));
    let from = match call.query.get("continue") {
        None => None,
        Some(token) => Some(Continue::decode(token).ok_or_else(|| {
            Status::bad_request("continue key is not valid: it was not given by this server")
        })?),
    };
    let form = call.form()?;
    let after = from.as_ref().map_or("", |c| c.after.as_str());
    let mut page = page(api, place, &selector, after, limit);
    if let Some(from) = from {
        // A watch from the end of a paged list must see what changed since its first page.
        page.revision = from.revision;
    }
    let meta = list_meta(&page);
    let resource = &place.resource;
    if form == Form::Object && resource.conversion == Conversion::None {
        return Ok(json_reply(
            StatusCode::OK,
            raw_list(resource, &meta, &page.items),
        ));
    }
    let items = page.items.iter().map(|s| resource.serve(s.value()));
    let value = match form {
        Form::Table => {
            let items: Vec<Value> = items.collect();
            table(resource, &items, call.include(), meta, true)
        }
        Form::Metadata => json!({
            "kind": "PartialObjectMetadataList",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": meta,
            "items": items.map(|i| metadata_of(&i)).collect::<Vec<_>>(),
        }),
        Form::Object | Form::Discovery => json!({
            "kind": resource.list_kind(),
            "apiVersion": resource.api_version(),
            "metadata": meta,
            "items": items.collect::<Vec<_>>(),
        }),
    };
    Ok(value_reply(StatusCode::OK, &value))
}

/// The selector, refused where the API does not know a field.
pub(super) fn selector(place: &Place, call: &Call) -> Result<Selector> {
    let mut selector = call.query.selector()?;
    if !place.name.is_empty() {
        let own = Selector::parse("", &format!("metadata.name={}", place.name));
        selector = own.map_err(Status::bad_request)?;
    }
    let own = known_fields(place);
    let unknown = selector
        .field_paths()
        .find(|p| !matches!(*p, "metadata.name" | "metadata.namespace") && !own.contains(p));
    match unknown {
        // Kinds without fields of their own have their own words.
        Some(path) if place.resource.builtin && own.is_empty() => {
            Err(Status::bad_request(format!(
                "{path:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
            )))
        }
        Some(path) => Err(Status::bad_request(format!(
            "field label not supported: {path}"
        ))),
        None => Ok(selector),
    }
}

/// Fields that a field selector may name besides name and namespace.
fn known_fields(place: &Place) -> &'static [&'static str] {
    let resource = &place.resource;
    if !resource.builtin {
        return &[];
    }
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("events.k8s.io", "events") => &[
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingController",
            "type",
        ],
        ("", "events") => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        ("", "namespaces") => &["status.phase"],
        ("", "nodes") => &["spec.unschedulable"],
        ("", "pods") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        ("", "secrets") => &["type"],
        ("", "services") => &["spec.clusterIP", "spec.type"],
        _ => &[],
    }
}

/// The objects of a place that match.
pub(super) fn page(
    api: &Api,
    place: &Place,
    selector: &Selector,
    after: &str,
    limit: usize,
) -> Page {
    let resource = &place.resource;
    let namespace = Some(place.namespace.as_str()).filter(|ns| !ns.is_empty());
    if selector.is_empty() {
        return api.store.list(&resource.id, namespace, after, limit);
    }
    let mut page = api.store.list(&resource.id, namespace, after, usize::MAX);
    page.items.retain(|stored| {
        selector.name().is_none_or(|name| stored.key.name() == name)
            && selector.matches(&resource.serve(stored.value()))
    });
    if page.items.len() > limit {
        page.remaining = page.items.len() - limit;
        page.items.truncate(limit);
    }
    page
}

fn list_meta(page: &Page) -> Value {
    let mut meta = json!({ "resourceVersion": page.revision.to_string() });
    if page.remaining > 0
        && let Some(last) = page.items.last()
    {
        let next = Continue {
            revision: page.revision,
            after: last.key.path.to_string(),
        };
        meta["continue"] = next.encode().into();
        meta["remainingItemCount"] = page.remaining.into();
    }
    meta
}
