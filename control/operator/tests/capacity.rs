//! The whole control plane with a cluster in which machines are launched: an embedded API whose
//! Karpenter and kubelets are made up.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

mod common;

use common::cloud::{self, Cloud};
use common::{Control, condition, eventually};
use hyperion_operator::clusters::claims::object;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

const CLUSTER: &str = "east";

fn definition(group: &str, version: &str, kind: &str) -> Value {
    let plural = format!(
        "{}{}",
        kind.to_lowercase(),
        if kind.ends_with('s') { "es" } else { "s" }
    );
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.{group}") },
        "spec": {
            "group": group, "scope": "Cluster",
            "names": { "kind": kind, "plural": plural, "singular": kind.to_lowercase(),
                "listKind": format!("{kind}List") },
            "versions": [{
                "name": version, "served": true, "storage": true,
                "subresources": { "status": {} },
                "schema": { "openAPIV3Schema": {
                    "type": "object", "x-kubernetes-preserve-unknown-fields": true } },
            }],
        },
    })
}

async fn define(cloud: &Cloud, group: &str, version: &str, kind: &str) {
    let object: CustomResourceDefinition =
        serde_json::from_value(definition(group, version, kind)).unwrap();
    let api: Api<CustomResourceDefinition> = Api::all(cloud.client());
    api.create(&PostParams::default(), &object).await.unwrap();
}

async fn make_class(cloud: &Cloud) {
    let kind = GroupVersionKind::gvk("karpenter.k8s.aws", "v1", "EC2NodeClass");
    let kind = ApiResource::from_gvk_with_plural(&kind, "ec2nodeclasses");
    let api: Api<DynamicObject> = Api::all_with(cloud.client(), &kind);
    let class = DynamicObject::new("gpu", &kind);
    api.create(&PostParams::default(), &class).await.unwrap();
}

fn claims_of(cloud: &Cloud) -> Api<DynamicObject> {
    Api::all_with(cloud.client(), &object::kind())
}

/// Names of the claims that there are.
async fn names(cloud: &Cloud) -> Vec<String> {
    let list = claims_of(cloud).list(&ListParams::default()).await;
    let list = list.map_or_else(|_| Vec::new(), |l| l.items);
    list.iter().map(ResourceExt::name_any).collect()
}

async fn has_claims(cloud: &Cloud, what: &str, ok: impl Fn(&[String]) -> bool) -> Vec<String> {
    let ok = &ok;
    eventually(what, || async move {
        let names = names(cloud).await;
        if ok(&names) {
            Ok(names)
        } else {
            Err(format!("{names:?}"))
        }
    })
    .await
}

/// Plays Karpenter: the claim's machine joins.
async fn launches(cloud: &Cloud, name: &str, node: &str) {
    let claim = claims_of(cloud).get(name).await.unwrap();
    let requirements = claim.data["spec"]["requirements"].as_array().unwrap();
    let zone = requirements
        .iter()
        .find(|r| r["key"] == "topology.kubernetes.io/zone");
    let zone = zone.unwrap()["values"][0].as_str().unwrap().to_owned();
    cloud
        .node(node, "aws", |n| {
            n["metadata"]["labels"]["topology.kubernetes.io/zone"] = json!(zone);
        })
        .await;
    let conditions = ["Launched", "Registered", "Initialized", "Ready"];
    let conditions = conditions.map(|type_| json!({ "type": type_, "status": "True" }));
    let status = json!({ "status": { "nodeName": node, "conditions": conditions } });
    claims_of(cloud)
        .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();
}

fn service(name: &str) -> Value {
    json!({ "apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionWorkload",
        "metadata": { "name": name },
        "spec": { "policy": { "goal": "cost" }, "template": { "spec": { "containers": [{
            "name": "c", "image": "i",
            "resources": { "limits": { "cpu": "500m", "memory": "128Mi", "nvidia.com/gpu": "1" } } }] } } } })
}

/// Waits for the Capacity condition of the cluster, and gives its message.
async fn capacity_is(control: &Control, reason: &str) -> String {
    let api = cloud::clusters(control);
    eventually(reason, || {
        let api = api.clone();
        async move {
            let cluster = api.get(CLUSTER).await.map_err(|e| e.to_string())?;
            let conditions = cluster.status.unwrap_or_default().conditions;
            match conditions.into_iter().find(|c| c.type_ == "Capacity") {
                Some(c) if c.reason == reason => Ok(c.message),
                other => Err(format!("{other:?}")),
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_are_launched_once_taken_over_by_the_next_leader_and_given_back() {
    let mut control = Control::start("2s").await;
    let east = Cloud::start(CLUSTER).await;
    cloud::secret(&control, CLUSTER, &east.kubeconfig()).await;
    let spec = json!({
        "provider": "aws", "region": "us-east-1", "kubeconfigSecret": CLUSTER,
        "capacity": {
            "nodeClassRef": { "group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "gpu" },
            "instanceTypes": ["g4dn.xlarge"], "zones": ["us-east-1a", "us-east-1b"],
            "capacityTypes": ["on-demand"], "emptyAfter": "8s",
        },
    });
    let object = json!({ "apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionCluster",
        "metadata": { "name": CLUSTER }, "spec": spec });
    let params = PatchParams::apply("test").force();
    cloud::clusters(&control)
        .patch(CLUSTER, &params, &Patch::Apply(object))
        .await
        .unwrap();

    // What is missing is named, one thing after the other.
    let message = capacity_is(&control, "KarpenterMissing").await;
    assert!(message.contains("karpenter.sh/v1"), "{message}");
    control.apply(service("w")).await;
    control
        .status("w", "why nothing is launched", |w| {
            condition(w, "Placed").is_some_and(|c| c.2.contains("Karpenter is not installed"))
        })
        .await;
    define(&east, "karpenter.sh", "v1", "NodeClaim").await;
    let message = capacity_is(&control, "NodeClassMissing").await;
    assert!(
        message.contains("no EC2NodeClass of karpenter.k8s.aws"),
        "{message}"
    );
    define(&east, "karpenter.k8s.aws", "v1", "EC2NodeClass").await;
    make_class(&east).await;
    capacity_is(&control, "CapacityReady").await;

    // The first is not to be had.
    let first = has_claims(&east, "a claim", |n| n.len() == 1).await;
    control
        .status("w", "launching", |w| {
            condition(w, "Placed").is_some_and(|c| c.1 == "Launching" && c.2.contains(&first[0]))
        })
        .await;
    let now = DeleteParams::default();
    claims_of(&east).delete(&first[0], &now).await.unwrap();
    let second = has_claims(&east, "the next", |n| n.len() == 1 && n != first).await;

    // Who leads next finds it, and asks for no other.
    control.stop().await;
    control.run().await;
    launches(&east, &second[0], "joined").await;
    control.running("w").await;
    assert_eq!(control.place("w-0").await.unwrap().0, "east.joined");
    assert_eq!(names(&east).await, second);
    assert_eq!(east.has_pods("its Pod", 1).await.len(), 1);

    // One that nobody knows, and one that nobody needs any more, are given back.
    let mut stray = claims_of(&east).get(&second[0]).await.unwrap();
    stray.metadata = kube::core::ObjectMeta {
        name: Some("stray".to_owned()),
        labels: stray.metadata.labels,
        ..Default::default()
    };
    claims_of(&east)
        .create(&PostParams::default(), &stray)
        .await
        .unwrap();
    has_claims(&east, "no stray", |n| n == second).await;
    control.delete("w").await;
    control.gone("w").await;
    has_claims(&east, "no claim", <[String]>::is_empty).await;
}
