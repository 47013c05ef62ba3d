//! One module for each kind of request on resources.

mod create;
mod delete;
mod read;
mod review;
mod scale;
mod update;
mod watch;

use std::sync::Arc;

use http::Method;

pub(crate) use delete::{DeleteOptions, FOREGROUND, ORPHAN, delete_object};
pub(crate) use review::review;

use crate::api::{Api, Call, Place, Reply};
use crate::path::ResourcePath;
use crate::status::{Result, Status};

/// Answers a request on a resource.
pub(crate) async fn handle(api: &Arc<Api>, path: &ResourcePath, call: Call) -> Result<Reply> {
    let place = Place::find(&api.registry(), path)?;
    let subresource = path.subresource.as_deref().unwrap_or_default();
    match (subresource, path.name.is_some()) {
        ("scale", true) if place.resource.scale.is_some() => {
            return scale::handle(api, &place, &call).await;
        }
        ("status", true) if place.resource.status => {}
        ("finalize", true) if place.resource.id.as_ref() == "namespaces" => {}
        ("", _) => {}
        _ => return Err(Status::no_resource()),
    }
    let whole = subresource.is_empty();
    match (&call.method, path.name.is_some()) {
        (&Method::GET | &Method::HEAD, true) if call.query.flag("watch") => {
            watch::watch(api, &place, &call)
        }
        (&Method::GET | &Method::HEAD, true) => read::get(api, &place, &call),
        (&Method::GET | &Method::HEAD, false) if call.query.flag("watch") => {
            watch::watch(api, &place, &call)
        }
        (&Method::GET | &Method::HEAD, false) => read::list(api, &place, &call),
        (&Method::POST, false) => create::create(api, &place, &call).await,
        (&Method::PUT, true) => update::put(api, &place, &call, subresource).await,
        (&Method::PATCH, true) => update::patch(api, &place, &call, subresource).await,
        (&Method::DELETE, true) if whole => delete::delete(api, &place, &call).await,
        (&Method::DELETE, false) => delete::delete_collection(api, &place, &call).await,
        _ => Err(Status::method_not_allowed()),
    }
}
