//! The whole control plane with workload clusters: embedded APIs whose kubelets are made up.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

mod common;

use common::cloud::{self, Cloud, Rule, is_ready};
use common::{Control, condition, eventually};
use hyperion_api::node::HyperionNode;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

/// A service that only clusters can run, for its volume.
fn service(name: &str, replicas: u32) -> Value {
    json!({ "apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionWorkload",
        "metadata": { "name": name },
        "spec": { "replicas": replicas, "template": {
            "metadata": { "labels": { "app": name } },
            "spec": {
                "nodeSelector": { "kubernetes.io/arch": "x86_64" },
                "volumes": [{ "name": "v", "emptyDir": {} }],
                "containers": [{ "name": "c", "image": "i", "volumeMounts": [{ "name": "v", "mountPath": "/v" }],
                    "resources": { "limits": { "cpu": "500m", "memory": "128Mi" } } }] } } } })
}

async fn node_is(
    control: &Control,
    id: &str,
    what: &str,
    ok: impl Fn(&HyperionNode) -> bool,
) -> HyperionNode {
    let (api, ok) = (control.nodes(), &ok);
    eventually(what, || {
        let api = api.clone();
        async move {
            match api.get_opt(id).await.map_err(|e| e.to_string())? {
                Some(node) if ok(&node) => Ok(node),
                other => Err(format!("{id}: {:?}", other.map(|n| (n.spec, n.status)))),
            }
        }
    })
    .await
}

fn ready(node: &HyperionNode) -> (String, String) {
    let status = node.status.clone().unwrap_or_default();
    let condition = status.conditions.into_iter().find(|c| c.type_ == "Ready");
    condition.map_or_else(Default::default, |c| (c.status, c.reason))
}

fn uids(pods: &[Pod]) -> Vec<String> {
    pods.iter().map(|p| p.uid().unwrap()).collect()
}

/// Reasons of the events of an object.
async fn has_event(client: kube::Client, kind: &str, name: &str, reason: &str) -> String {
    let api: Api<Event> = Api::all(client);
    eventually(&format!("event {reason} of {kind} {name}"), || {
        let api = api.clone();
        async move {
            let list = api
                .list(&ListParams::default())
                .await
                .map_err(|e| e.to_string())?;
            let of = |e: &&Event| {
                e.involved_object.kind.as_deref() == Some(kind)
                    && e.involved_object.name.as_deref() == Some(name)
            };
            let mine: Vec<&Event> = list.items.iter().filter(of).collect();
            let found = mine.iter().find(|e| e.reason.as_deref() == Some(reason));
            match found {
                Some(event) => Ok(event.message.clone().unwrap_or_default()),
                None => Err(format!(
                    "{:?}",
                    mine.iter().map(|e| &e.reason).collect::<Vec<_>>()
                )),
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_runs_as_pods_and_a_restart_of_the_control_plane_restarts_none() {
    let mut control = Control::start("30s").await;
    let aws = Cloud::start("east").await;
    aws.node("ip-10-0-0-1.ec2.internal", "aws", |_| {}).await;
    aws.join(&control, "aws", "us-east-1").await;
    is_ready(&control, "east", "True", "ClusterReady").await;
    let id = "east.ip-10-0-0-1.ec2.internal";
    let node = node_is(&control, id, "node ready", |n| ready(n).0 == "True").await;
    assert_eq!(node.spec.cluster.as_deref(), Some("east"));
    let status = node.status.unwrap();
    assert_eq!(
        (status.region.as_str(), status.zone.as_str()),
        ("us-east-1", "us-east-1a")
    );
    assert_eq!(status.gpus[0].model, "T4");
    assert!(status.price_per_hour > 0.0);

    control.apply(service("web", 2)).await;
    let running = control.running("web").await;
    assert_eq!(running.status.unwrap().nodes, id);
    let pods = aws.has_pods("two Pods", 2).await;
    let spec = pods[0].spec.as_ref().unwrap();
    assert_eq!(spec.node_name.as_deref(), Some("ip-10-0-0-1.ec2.internal"));
    assert_eq!(
        spec.node_selector, None,
        "a kubelet knows none of our words"
    );
    assert_eq!(spec.volumes.as_ref().unwrap()[0].name, "v");
    assert_eq!(spec.restart_policy.as_deref(), Some("Always"));
    assert_eq!(pods[0].labels()["app"], "web");
    assert_eq!(pods[0].labels()["hyperion.io/generation"], "1");

    control.stop().await;
    control.run().await;
    control.running("web").await;
    is_ready(&control, "east", "True", "ClusterReady").await;
    // What comes after the restart shows that lists were called complete, and nothing was stopped.
    control.apply(service("second", 1)).await;
    control.running("second").await;
    let now = aws.has_pods("three Pods", 3).await;
    let same: Vec<Pod> = now
        .into_iter()
        .filter(|p| p.labels()["app"] == "web")
        .collect();
    assert_eq!(uids(&same), uids(&pods));

    control.delete("web").await;
    control.gone("web").await;
    aws.has_pods("one Pod", 1).await;
}
