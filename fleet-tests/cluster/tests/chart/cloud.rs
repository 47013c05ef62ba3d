//! The workload cluster: a node without a kubelet, and something that plays it.

use std::time::Duration;

use hyperion_proto::domain::ReplicaKey;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

const NODE: &str = "ip-10-0-0-1.ec2.internal";

/// As a new cluster of one GPU node has it.
pub async fn clear(admin: &kube::Client) {
    let pods: Api<Pod> = Api::all(admin.clone());
    for pod in pods.list(&ListParams::default()).await.unwrap() {
        end(admin, &pod).await;
    }
    let namespaces: Api<Namespace> = Api::all(admin.clone());
    for namespace in namespaces.list(&ListParams::default()).await.unwrap() {
        let name = namespace.name_any();
        if name.starts_with("field-") {
            let _going = namespaces.delete(&name, &DeleteParams::default()).await;
        }
    }
    let nodes: Api<Node> = Api::all(admin.clone());
    if nodes.get_opt(NODE).await.unwrap().is_some() {
        return;
    }
    let node: Node = serde_json::from_value(node()).unwrap();
    nodes.create(&PostParams::default(), &node).await.unwrap();
    let patch = Patch::Merge(json!({ "status": node.status }));
    nodes
        .patch_status(NODE, &PatchParams::default(), &patch)
        .await
        .unwrap();
}

fn node() -> Value {
    let room = json!({ "cpu": "3920m", "memory": "14Gi", "pods": "110", "nvidia.com/gpu": "1" });
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": NODE, "labels": {
            "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux",
            "topology.kubernetes.io/region": "us-east-1",
            "topology.kubernetes.io/zone": "us-east-1a",
            "node.kubernetes.io/instance-type": "g4dn.xlarge",
        } },
        "spec": { "providerID": "aws:///us-east-1a/i-0123456789abcdef0" },
        "status": {
            "capacity": room, "allocatable": room,
            "conditions": [{ "type": "Ready", "status": "True", "reason": "KubeletReady" }],
        },
    })
}

/// Runs Pods, and lets them go, for ever.
pub async fn kubelet(admin: kube::Client) {
    let pods: Api<Pod> = Api::all(admin.clone());
    loop {
        let list = pods.list(&ListParams::default()).await;
        for pod in list.map_or_else(|_| Vec::new(), |l| l.items) {
            if pod.metadata.deletion_timestamp.is_some() {
                end(&admin, &pod).await;
                continue;
            }
            let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
            if phase == Some("Running") {
                continue;
            }
            let running = json!({ "status": {
                "phase": "Running", "podIP": "10.1.0.1", "podIPs": [{ "ip": "10.1.0.1" }],
                "conditions": [{ "type": "Ready", "status": "True" }],
                "containerStatuses": [{ "name": "c", "image": "i", "imageID": "", "ready": true,
                    "restartCount": 0, "state": { "running": {} } }],
            } });
            let api: Api<Pod> = Api::namespaced(admin.clone(), &pod.namespace().unwrap());
            // It may be gone by now.
            let _gone = api
                .patch_status(
                    &pod.name_any(),
                    &PatchParams::default(),
                    &Patch::Merge(running),
                )
                .await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn end(admin: &kube::Client, pod: &Pod) {
    let api: Api<Pod> = Api::namespaced(admin.clone(), &pod.namespace().unwrap());
    let now = DeleteParams::default().grace_period(0);
    let _gone = api.delete(&pod.name_any(), &now).await;
}

/// Makes a Pod of the name that a replica's first Pod will have.
pub async fn take_name(admin: &kube::Client, workload: &str, uid: &str) {
    let key = ReplicaKey {
        namespace: "default".to_owned(),
        workload: workload.to_owned(),
        uid: uid.to_owned(),
        index: 0,
    };
    let name = hyperion_operator::clusters::pod::pod_name(&key, 1);
    let pod = json!({
        "metadata": { "name": name },
        "spec": {
            "nodeName": NODE, "automountServiceAccountToken": false,
            "containers": [{ "name": "c", "image": "somebody-elses" }],
        },
    });
    let pod: Pod = serde_json::from_value(pod).unwrap();
    let api: Api<Pod> = Api::namespaced(admin.clone(), "default");
    api.create(&PostParams::default(), &pod).await.unwrap();
}
