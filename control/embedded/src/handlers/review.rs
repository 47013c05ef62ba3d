//! Reviews of access: whoever holds the token may do everything.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::api::{Call, Reply, value_reply};
use crate::path::ResourcePath;
use crate::status::{Result, Status};

/// Answers a review; none when the path is no review.
pub(crate) fn review(path: &ResourcePath, call: &Call) -> Option<Result<Reply>> {
    let status = match (
        path.group.as_str(),
        path.version.as_str(),
        path.plural.as_str(),
    ) {
        (
            "authorization.k8s.io",
            "v1",
            "selfsubjectaccessreviews" | "subjectaccessreviews" | "localsubjectaccessreviews",
        ) => json!({ "allowed": true, "reason": "the token may do everything" }),
        ("authorization.k8s.io", "v1", "selfsubjectrulesreviews") => json!({
            "resourceRules": [{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] }],
            "nonResourceRules": [{ "verbs": ["*"], "nonResourceURLs": ["*"] }],
            "incomplete": false,
        }),
        ("authentication.k8s.io", "v1", "selfsubjectreviews") => {
            json!({ "userInfo": { "username": "admin", "groups": ["system:masters", "system:authenticated"] } })
        }
        _ => return None,
    };
    Some(answer(call, status))
}

fn answer(call: &Call, status: Value) -> Result<Reply> {
    if call.method != Method::POST {
        return Err(Status::method_not_allowed());
    }
    let mut body = call.decode_body()?;
    if !body.is_object() {
        return Err(Status::bad_request(
            "the body of the request is not an object",
        ));
    }
    body["status"] = status;
    Ok(value_reply(StatusCode::CREATED, &body))
}
