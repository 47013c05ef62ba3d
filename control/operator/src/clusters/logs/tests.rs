use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use futures::{StreamExt, TryStreamExt};
use http::{Response, StatusCode};
use hyperion_proto::domain::ReplicaKey;
use kube::client::Body;
use serde_json::json;

use super::*;

type Asked = Arc<Mutex<Vec<String>>>;

fn key() -> ReplicaKey {
    ReplicaKey {
        namespace: "shop".to_owned(),
        workload: "web".to_owned(),
        uid: "u".to_owned(),
        index: 1,
    }
}

fn request() -> LogRequest {
    LogRequest {
        key: key(),
        container: String::new(),
        tail_lines: 0,
        follow: false,
    }
}

/// A cluster whose API server has the Pod, and answers for its log with this; notes what was asked.
fn cluster(code: u16, log: &'static str) -> (Clusters, Asked) {
    let asked = Asked::default();
    let noted = asked.clone();
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let uri = request.uri().clone();
        noted.lock().unwrap().push(uri.to_string());
        let (code, answer) = if uri.path().ends_with("/log") {
            (code, log.to_owned())
        } else {
            let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p" },
                "spec": { "containers": [{ "name": "main" }, { "name": "side" }] } });
            (200, pod.to_string())
        };
        let mut response = Response::new(Body::from(answer.into_bytes()));
        *response.status_mut() = StatusCode::from_u16(code).unwrap();
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let clusters = Clusters::default();
    let about = k8s_openapi::api::core::v1::ObjectReference::default();
    clusters.take("east", about).unwrap();
    let client = kube::Client::new(service, "default");
    clusters.reached("east", Ok(client));
    (clusters, asked)
}

async fn refused(clusters: &Clusters, cluster: &str) -> NoLogs {
    match open(clusters, cluster, &request(), 7).await {
        Err(no) => no,
        Ok(_) => panic!("it is there"),
    }
}

fn failure(code: u16, message: &str) -> &'static str {
    let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "message": message, "reason": "Any", "code": code });
    Box::leak(status.to_string().into_boxed_str())
}

#[tokio::test]
async fn the_log_is_that_of_the_replica_s_pod_and_of_its_first_container() {
    let (clusters, asked) = cluster(200, "one\ntwo\n");
    let chunks = open(&clusters, "east", &request(), 7).await;
    let chunks: Vec<Bytes> = chunks
        .unwrap_or_else(|e| panic!("{e}"))
        .try_collect()
        .await
        .unwrap();
    assert_eq!(chunks.concat(), b"one\ntwo\n");
    let pod = pod_name(&key(), 7);
    let log = asked.lock().unwrap().last().cloned().unwrap();
    assert!(
        log.starts_with(&format!("/api/v1/namespaces/shop/pods/{pod}/log")),
        "{log}"
    );
    assert!(
        log.contains("container=main") && !log.contains("tailLines"),
        "{log}"
    );

    let wanted = LogRequest {
        container: "side".to_owned(),
        tail_lines: 5,
        follow: true,
        ..request()
    };
    let mut chunks = open(&clusters, "east", &wanted, 7)
        .await
        .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(chunks.next().await.unwrap().unwrap(), "one\ntwo\n");
    let log = asked.lock().unwrap().last().cloned().unwrap();
    for part in ["container=side", "tailLines=5", "follow=true"] {
        assert!(log.contains(part), "{log}");
    }
}

#[tokio::test]
async fn what_is_wrong_is_said_by_name() {
    let waiting = "container \"main\" in pod \"p\" is waiting to start: ContainerCreating";
    let (clusters, _) = cluster(400, failure(400, waiting));
    let no = refused(&clusters, "east").await;
    assert!(
        matches!(&no, NoLogs::Missing(text) if text.contains("waiting to start")),
        "{no}"
    );
    assert!(no.to_string().contains("in cluster east"), "{no}");

    let (clusters, _) = cluster(403, failure(403, "cannot get resource \"pods/log\""));
    let no = refused(&clusters, "east").await;
    assert!(
        matches!(&no, NoLogs::Refused(text) if text.contains("get pods/log")),
        "{no}"
    );

    let (clusters, _) = cluster(500, failure(500, "dial tcp 10.0.0.1:10250: timed out"));
    let no = refused(&clusters, "east").await;
    assert!(
        matches!(&no, NoLogs::Unreachable(text) if text.contains("10250")),
        "{no}"
    );

    let no = refused(&clusters, "west").await;
    assert!(
        matches!(&no, NoLogs::Unreachable(text) if text.contains("\"west\"")),
        "{no}"
    );
    clusters.reached("east", Err("no route".to_owned()));
    let no = refused(&clusters, "east").await;
    assert!(
        matches!(&no, NoLogs::Unreachable(text) if text.contains("no route")),
        "{no}"
    );
}
