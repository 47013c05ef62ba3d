use std::convert::Infallible;

use http::{Response, StatusCode};
use kube::client::Body;
use serde_json::{Value, json};

use super::*;

const ADDRESS: &str = "/api/v1/namespaces/hyperion-agent/pods/agent-x1";

/// An API server that reviews every token as `status`, and has one Pod.
fn cluster(code: u16, status: Value, pod: Value) -> kube::Client {
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let (path, status, pod) = (request.uri().path().to_owned(), status.clone(), pod.clone());
        async move {
            let (code, answer) = match path.as_str() {
                "/apis/authentication.k8s.io/v1/tokenreviews" => (
                    code,
                    json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
                        "spec": {}, "status": status, "message": "no right", "code": code }),
                ),
                ADDRESS if !pod.is_null() => (200, pod),
                _ => (
                    404,
                    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure",
                        "reason": "NotFound", "message": "none", "code": 404 }),
                ),
            };
            let mut response = Response::new(Body::from(answer.to_string().into_bytes()));
            *response.status_mut() = StatusCode::from_u16(code).unwrap();
            Ok::<_, Infallible>(response)
        }
    });
    kube::Client::new(service, "default")
}

fn known() -> Value {
    json!({
        "authenticated": true,
        "audiences": ["hyperion"],
        "user": {
            "username": "system:serviceaccount:hyperion-agent:hyperion-agent",
            "extra": {
                "authentication.kubernetes.io/pod-name": ["agent-x1"],
                "authentication.kubernetes.io/pod-uid": ["u-1"],
            },
        },
    })
}

fn pod(uid: &str, spec: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "agent-x1", "namespace": "hyperion-agent", "uid": uid },
        "spec": spec })
}

fn placed() -> Value {
    pod("u-1", json!({ "nodeName": "n1", "containers": [] }))
}

#[tokio::test]
async fn the_node_is_the_one_that_the_pod_of_the_token_is_on() {
    let cluster = cluster(201, known(), placed());
    assert_eq!(node_of(&cluster, "t").await, Ok("n1".to_owned()));
}

#[tokio::test]
async fn what_the_cluster_does_not_bear_out_is_refused_and_said() {
    let changed = |path: &str, value: Value| {
        let mut status = known();
        *status.pointer_mut(path).unwrap() = value;
        status
    };
    let name = "/user/extra/authentication.kubernetes.io~1pod-name";
    let elsewhere = "system:serviceaccount:default:default";
    for (status, says) in [
        (changed("/authenticated", json!(false)), "does not know"),
        (json!({}), "does not know"),
        (changed("/audiences", json!(["api"])), "audience"),
        (changed("/user/username", json!(elsewhere)), elsewhere),
        (changed("/user/extra", json!({})), "bound to no Pod"),
        (changed(name, json!(["a", "b"])), "bound to no Pod"),
    ] {
        let said = node_of(&cluster(201, status, placed()), "t").await;
        let Err(Doubt::Ever(text)) = said else {
            panic!("{said:?}");
        };
        assert!(text.contains(says), "{text}");
    }
    let forbidden = node_of(&cluster(403, json!({}), placed()), "t").await;
    assert!(
        matches!(&forbidden, Err(Doubt::Ever(text)) if text.contains("can't review tokens")),
        "{forbidden:?}"
    );
}

#[tokio::test]
async fn what_may_be_true_in_a_moment_is_asked_again() {
    let unbound = pod("u-1", json!({ "containers": [] }));
    let later = pod("u-2", json!({ "nodeName": "n2", "containers": [] }));
    for (code, pod) in [
        (201, Value::Null),
        (201, unbound),
        // Of the same name, made since.
        (201, later),
        (500, placed()),
    ] {
        let said = node_of(&cluster(code, known(), pod), "t").await;
        assert!(matches!(said, Err(Doubt::Yet(_))), "{said:?}");
    }
}
