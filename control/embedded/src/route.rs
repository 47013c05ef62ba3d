//! From a path to its handler.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, ETAG};
use http::{HeaderValue, Method, StatusCode};
use serde_json::json;

use crate::api::{Api, Call, Reply, json_reply, value_reply, whole};
use crate::discovery;
use crate::handlers;
use crate::negotiate::{Form, form};
use crate::openapi;
use crate::path::{ResourcePath, Target, parse};
use crate::proxy::proxy;
use crate::status::{Result, Status};

/// Answers a request. `uri` is the path with its query.
pub(crate) async fn route(api: &Arc<Api>, path: &str, uri: &str, call: Call) -> Result<Reply> {
    let target = parse(path).ok_or_else(Status::no_resource)?;
    if let Target::Resource(resource) = &target {
        if let Some(reply) = handlers::review(resource, &call) {
            return reply;
        }
        if is_proxy(resource) {
            let tail = uri.split_once("/proxy").map_or("", |(_, tail)| tail);
            let tail = if tail.starts_with('/') {
                tail.to_owned()
            } else {
                format!("/{tail}")
            };
            return proxy(api, resource, call, &tail).await;
        }
        return handlers::handle(api, resource, call).await;
    }
    if !matches!(call.method, Method::GET | Method::HEAD) {
        return Err(Status::method_not_allowed());
    }
    fixed(api, &target, &call)
}

fn is_proxy(path: &ResourcePath) -> bool {
    path.group.is_empty()
        && path.plural == "services"
        && path.subresource.as_deref() == Some("proxy")
}

fn fixed(api: &Api, target: &Target, call: &Call) -> Result<Reply> {
    let registry = api.registry();
    let value = match target {
        Target::Groups { core } => {
            if form(&call.headers) == Some(Form::Discovery) {
                return Ok(aggregated(&discovery::aggregated(&registry, *core)));
            }
            if *core {
                Some(discovery::core_versions())
            } else {
                Some(discovery::groups(&registry))
            }
        }
        Target::Group(group) => discovery::group(&registry, group),
        Target::Version(group, version) => discovery::resources(&registry, group, version),
        Target::Other(path) => return other(api, path, call),
        Target::Resource(_) => None,
    };
    let value = value.ok_or_else(Status::no_resource)?;
    Ok(value_reply(StatusCode::OK, &value))
}

fn aggregated(value: &serde_json::Value) -> Reply {
    let mut reply = value_reply(StatusCode::OK, value);
    let kind = HeaderValue::from_static(
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
    );
    reply.headers_mut().insert(CONTENT_TYPE, kind);
    reply
}

fn other(api: &Api, path: &str, call: &Call) -> Result<Reply> {
    match path {
        "version" => Ok(value_reply(StatusCode::OK, &discovery::version())),
        "healthz" | "livez" | "readyz" => Ok(text_reply("ok")),
        "" => Ok(value_reply(
            StatusCode::OK,
            &json!({ "paths": ["/api", "/apis", "/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"] }),
        )),
        "openapi/v2" => Ok(openapi_v2(&call.headers)),
        "openapi/v3" => Ok(value_reply(
            StatusCode::OK,
            &openapi::index(&api.registry()),
        )),
        _ => match path.strip_prefix("openapi/v3/") {
            Some(path) => document(api, path, call),
            None => Err(Status::no_resource()),
        },
    }
}

/// kubectl before 1.27 does not send an object before it has read this.
fn openapi_v2(headers: &http::HeaderMap) -> Reply {
    let accept = headers.get(ACCEPT).and_then(|a| a.to_str().ok());
    if accept.is_some_and(|a| a.contains(openapi::V2_ASKED)) {
        let mut reply = Reply::new(whole(Bytes::from(openapi::v2_protobuf())));
        let kind = HeaderValue::from_static(openapi::V2_PROTOBUF);
        reply.headers_mut().insert(CONTENT_TYPE, kind);
        return reply;
    }
    value_reply(StatusCode::OK, &openapi::v2())
}

fn document(api: &Api, path: &str, call: &Call) -> Result<Reply> {
    let accept = call.headers.get(ACCEPT).and_then(|a| a.to_str().ok());
    if accept.is_some_and(|a| !a.contains("json") && !a.contains("*/*")) {
        return Err(Status::new(
            StatusCode::NOT_ACCEPTABLE,
            "NotAcceptable",
            "only the following media types are accepted: application/json",
        ));
    }
    let bytes = api.document(path).ok_or_else(Status::no_resource)?;
    let mut reply = json_reply(StatusCode::OK, bytes);
    // The address carries a hash of the content: it may be kept.
    if let Some(hash) = call.query.get("hash")
        && let Ok(tag) = HeaderValue::from_str(&format!("\"{hash}\""))
    {
        let keep = HeaderValue::from_static("public, max-age=31536000, immutable");
        reply.headers_mut().insert(CACHE_CONTROL, keep);
        reply.headers_mut().insert(ETAG, tag);
    }
    Ok(reply)
}

fn text_reply(text: &'static str) -> Reply {
    let mut reply = Reply::new(whole(Bytes::from_static(text.as_bytes())));
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    reply.headers_mut().insert(CONTENT_TYPE, plain);
    reply
}
