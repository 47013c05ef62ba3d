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

/// Two clusters with one node each; "east" is cheaper to run in where it is open.
async fn two(control: &Control) -> (Cloud, Cloud) {
    let (east, west) = (Cloud::start("east").await, Cloud::start("west").await);
    east.node("n1", "aws", |_| {}).await;
    west.node("n1", "gcp", |node| {
        node["spec"]["unschedulable"] = json!(true);
    })
    .await;
    east.join(control, "aws", "us-east-1").await;
    west.join(control, "gcp", "europe-west4").await;
    for cloud in ["east", "west"] {
        is_ready(control, cloud, "True", "ClusterReady").await;
    }
    node_is(control, "east.n1", "east", |n| ready(n).0 == "True").await;
    (east, west)
}

async fn uncordon(cloud: &Cloud, node: &str, cordoned: bool) {
    let patch = Patch::Merge(json!({ "spec": { "unschedulable": cordoned } }));
    let params = PatchParams::default();
    cloud.nodes().patch(node, &params, &patch).await.unwrap();
}

/// From now on "west" takes replicas, too.
async fn open_west(control: &Control, west: &Cloud) {
    uncordon(west, "n1", false).await;
    node_is(control, "west.n1", "west is open", |n| {
        !n.status.as_ref().unwrap().cordoned
    })
    .await;
}

/// [`two`], and the workload "web" running in "east".
async fn serving_in_east(control: &Control) -> (Cloud, Cloud) {
    let both = two(control).await;
    control.apply(service("web", 1)).await;
    runs_on(control, "web", "east.n1").await;
    both
}

async fn runs_on(control: &Control, workload: &str, node: &str) {
    control
        .status(workload, &format!("{workload} on {node}"), |w| {
            w.status
                .as_ref()
                .is_some_and(|s| s.nodes == node && s.ready == "1/1")
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_others_delete_or_change_are_made_again() {
    let control = Control::start("30s").await;
    let (east, west) = serving_in_east(&control).await;
    let first = east.has_pods("one Pod", 1).await.remove(0);
    east.delete_pod(&first.name_any()).await;
    let again = eventually("another Pod", || async {
        let pods = east.live().await;
        match pods.first() {
            Some(pod) if pod.uid() != first.uid() => Ok(pod.clone()),
            _ => Err("not yet".to_owned()),
        }
    })
    .await;
    assert_eq!(again.name_any(), first.name_any(), "the same decision");
    runs_on(&control, "web", "east.n1").await;
    let text = has_event(control.client(), "HyperionWorkload", "web", "PodDeleted").await;
    assert!(text.contains("replica 0 on node east.n1"), "{text}");

    let image = Patch::Json::<()>(
        serde_json::from_value(json!([
        { "op": "replace", "path": "/spec/containers/0/image", "value": "evil" }]))
        .unwrap(),
    );
    let params = PatchParams::default();
    east.pods()
        .patch(&again.name_any(), &params, &image)
        .await
        .unwrap();
    eventually("our image", || async {
        let pods = east.live().await;
        match pods.first() {
            Some(pod) if pod.spec.as_ref().unwrap().containers[0].image.as_deref() == Some("i") => {
                Ok(())
            }
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    has_event(control.client(), "HyperionWorkload", "web", "PodChanged").await;
    runs_on(&control, "web", "east.n1").await;

    // A drain cordons, and then deletes: it must not come back there.
    open_west(&control, &west).await;
    uncordon(&east, "n1", true).await;
    node_is(&control, "east.n1", "east is cordoned", |n| {
        n.status.as_ref().unwrap().cordoned
    })
    .await;
    let pod = east.has_pods("one Pod", 1).await.remove(0);
    east.delete_pod(&pod.name_any()).await;
    runs_on(&control, "web", "west.n1").await;
    east.has_pods("none left", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_cut_off_loses_its_replicas_and_stops_them_when_it_is_back() {
    let control = Control::start("2s").await;
    let (east, west) = serving_in_east(&control).await;
    open_west(&control, &west).await;

    east.rule(Rule::Silent);
    let why = is_ready(&control, "east", "False", "Unreachable").await;
    assert!(why.contains("no answer"), "{why}");
    let lost = node_is(&control, "east.n1", "out of reach", |n| {
        ready(n).1 == "ClusterUnreachable"
    })
    .await;
    assert_eq!(lost.status.unwrap().ready, "False");
    runs_on(&control, "web", "west.n1").await;
    assert_eq!(east.live().await.len(), 1, "nobody could tell it to stop");

    east.rule(Rule::Pass);
    is_ready(&control, "east", "True", "ClusterReady").await;
    east.has_pods("the old copy ends", 0).await;
    runs_on(&control, "web", "west.n1").await;
    has_event(control.client(), "HyperionCluster", "east", "Unreachable").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_thing_that_keeps_a_cluster_away_has_a_reason() {
    let mut control = Control::start("30s").await;
    let east = Cloud::start("east").await;
    east.node("n1", "aws", |_| {}).await;
    cloud::cluster(&control, "east", "aws", "us-east-1", Some("east")).await;
    let why = is_ready(&control, "east", "False", "SecretMissing").await;
    assert_eq!(why, "Secret hyperion-system/east does not exist");
    // Of ours there is nothing in a cluster that never answered: it may go at once.
    cloud::cluster(&control, "nowhere", "aws", "us-east-1", Some("nowhere")).await;
    is_ready(&control, "nowhere", "False", "SecretMissing").await;
    let clusters = cloud::clusters(&control);
    let params = DeleteParams::default();
    clusters.delete("nowhere", &params).await.unwrap();
    cluster_gone(&control, "nowhere").await;
    cloud::secret(&control, "east", "{ this: is [no kubeconfig").await;
    let why = is_ready(&control, "east", "False", "KubeconfigInvalid").await;
    assert_eq!(
        why,
        "Secret hyperion-system/east, key kubeconfig: is no kubeconfig"
    );
    let nowhere = east
        .kubeconfig()
        .replace("server: http://127.0.0.1:", "server: https://127.0.0.1:1");
    let nowhere = nowhere.replace("https://127.0.0.1:1", "http://127.0.0.1:1 #");
    cloud::secret(&control, "east", &nowhere).await;
    is_ready(&control, "east", "False", "Unreachable").await;
    let plugin = east.kubeconfig().replace(
        "token: t",
        "exec:\n      apiVersion: client.authentication.k8s.io/v1\n      command: /bin/false\n      interactiveMode: Never",
    );
    cloud::secret(&control, "east", &plugin).await;
    let why = is_ready(&control, "east", "False", "CredentialsFailed").await;
    assert!(why.contains("/bin/false"), "{why}");
    east.rule(Rule::Unauthorized);
    cloud::secret(&control, "east", &east.kubeconfig()).await;
    is_ready(&control, "east", "False", "Unauthorized").await;
    east.rule(Rule::Pass);
    is_ready(&control, "east", "True", "ClusterReady").await;
    node_is(&control, "east.n1", "ready", |n| ready(n).0 == "True").await;

    // An object of an earlier control plane must not go on saying that it is ready.
    control.stop().await;
    east.rule(Rule::Unauthorized);
    control.run().await;
    is_ready(&control, "east", "False", "Unauthorized").await;
    node_is(&control, "east.n1", "not ready", |n| {
        ready(n).1 == "ClusterUnreachable"
    })
    .await;

    cloud::cluster(&control, "a.b", "aws", "us-east-1", Some("east")).await;
    is_ready(&control, "a.b", "False", "InvalidName").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_that_are_lost_keep_new_replicas_away_and_name_what_is_missing() {
    let control = Control::start("30s").await;
    let (east, _west) = serving_in_east(&control).await;
    east.rule(Rule::ReadOnly);
    control.apply(service("more", 1)).await;
    let why = is_ready(&control, "east", "False", "Forbidden").await;
    assert_eq!(why, "we may not create pods in all namespaces");
    // It is tried again where it is; that there is no other place is said, and not for long in status.
    let text = has_event(control.client(), "HyperionWorkload", "more", "Unplaceable").await;
    assert!(text.contains("cordoned"), "{text}");
    control
        .status("more", "why it fails", |w| {
            condition(w, "Ready").is_some_and(|c| c.0 == "False" && c.2.contains("Forbidden"))
        })
        .await;
    runs_on(&control, "web", "east.n1").await;
    east.rule(Rule::Pass);
    is_ready(&control, "east", "True", "ClusterReady").await;
    runs_on(&control, "more", "east.n1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_cluster_is_left_clean() {
    let control = Control::start("30s").await;
    let (east, west) = serving_in_east(&control).await;
    open_west(&control, &west).await;
    let params = DeleteParams::default();
    cloud::clusters(&control)
        .delete("east", &params)
        .await
        .unwrap();
    runs_on(&control, "web", "west.n1").await;
    cluster_gone(&control, "east").await;
    east.has_pods("nothing is left", 0).await;
    assert!(control.nodes().get_opt("east.n1").await.unwrap().is_none());
}

async fn cluster_gone(control: &Control, name: &str) {
    let api = cloud::clusters(control);
    eventually("cluster is gone", || {
        let api = api.clone();
        async move {
            match api.get_opt(name).await {
                Ok(None) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_cluster_out_of_reach_waits_until_a_person_lets_it_go() {
    let control = Control::start("2s").await;
    let (east, west) = serving_in_east(&control).await;
    open_west(&control, &west).await;
    east.rule(Rule::Silent);
    is_ready(&control, "east", "False", "Unreachable").await;
    let clusters = cloud::clusters(&control);
    clusters
        .delete("east", &DeleteParams::default())
        .await
        .unwrap();
    runs_on(&control, "web", "west.n1").await;
    eventually("it says what to do", || {
        let clusters = clusters.clone();
        async move {
            let held = clusters.get("east").await.map_err(|e| e.to_string())?;
            let text = format!("{:?}", held.status);
            if text.contains("hyperion.io/abandon=true") {
                Ok(())
            } else {
                Err(text)
            }
        }
    })
    .await;
    assert!(!clusters.get("east").await.unwrap().finalizers().is_empty());
    let patch =
        Patch::Merge(json!({ "metadata": { "annotations": { "hyperion.io/abandon": "true" } } }));
    clusters
        .patch("east", &PatchParams::default(), &patch)
        .await
        .unwrap();
    cluster_gone(&control, "east").await;
    let text = has_event(control.client(), "HyperionCluster", "east", "Abandoned").await;
    assert!(text.contains("default/web-0-1-"), "{text}");
    assert_eq!(east.live().await.len(), 1, "left behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_kubelet_refuses_is_tried_elsewhere_and_jobs_end() {
    let control = Control::start("30s").await;
    let (east, west) = two(&control).await;
    east.fate("web", json!({ "phase": "Failed", "reason": "OutOfcpu", "message": "Node didn't have enough resource: cpu" }));
    open_west(&control, &west).await;
    let mut web = service("web", 1);
    web["spec"]["policy"] = json!({ "constraints": { "geographies": ["US", "EU"] } });
    control.apply(web).await;
    runs_on(&control, "web", "west.n1").await;
    east.has_pods("the failed Pod is deleted", 0).await;

    let ended = json!({ "phase": "Succeeded", "containerStatuses": [{ "name": "c", "image": "i", "imageID": "",
        "ready": false, "restartCount": 0, "state": { "terminated": { "exitCode": 0, "reason": "Completed" } } }] });
    for cloud in [&east, &west] {
        cloud.fate("sum", ended.clone());
    }
    let mut job = service("sum", 1);
    job["spec"]["type"] = json!("job");
    control.apply(job).await;
    control
        .status("sum", "complete", |w| {
            condition(w, "Complete").is_some_and(|c| c.0 == "True")
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_cant_be_used_say_why_and_get_nothing() {
    let control = Control::start("30s").await;
    let east = Cloud::start("east").await;
    east.node("no-id", "aws", |n| {
        drop(n["spec"].as_object_mut().unwrap().remove("providerID"));
    })
    .await;
    east.node("other", "gcp", |_| {}).await;
    east.node("empty", "aws", |n| {
        n["status"]["allocatable"]["cpu"] = json!("0");
    })
    .await;
    east.node("silent", "aws", |n| {
        n["status"]["conditions"][0]["status"] = json!("Unknown");
    })
    .await;
    east.join(&control, "aws", "us-east-1").await;
    is_ready(&control, "east", "True", "ClusterReady").await;
    for (node, reason) in [
        ("no-id", "ProviderMissing"),
        ("other", "OtherProvider"),
        ("empty", "NoCapacity"),
        ("silent", "KubeletSilent"),
    ] {
        let id = format!("east.{node}");
        node_is(&control, &id, reason, |n| {
            ready(n) == ("False".to_owned(), reason.to_owned())
        })
        .await;
    }
    has_event(
        control.client(),
        "HyperionNode",
        "east.other",
        "OtherProvider",
    )
    .await;
    control.apply(service("web", 1)).await;
    let placed = |w: &hyperion_api::workload::HyperionWorkload| condition(w, "Placed");
    control
        .status("web", "no place", |w| {
            placed(w).is_some_and(|c| c.1 == "Unplaceable")
        })
        .await;
    let status = cloud::clusters(&control)
        .get("east")
        .await
        .unwrap()
        .status
        .unwrap();
    assert_eq!((status.nodes, status.unusable_nodes), (1, 3));
    // Its provider's word is put right, and it is used.
    let patch = Patch::Merge(json!({ "status": { "allocatable": { "cpu": "3" } } }));
    east.nodes()
        .patch_status("empty", &PatchParams::default(), &patch)
        .await
        .unwrap();
    runs_on(&control, "web", "east.empty").await;
    // A Node that is gone takes its machine with it.
    east.nodes()
        .delete("empty", &DeleteParams::default())
        .await
        .unwrap();
    eventually("its object goes, too", || async {
        match control.nodes().get_opt("east.empty").await {
            Ok(None) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    east.has_pods("nothing waits for a kubelet that is gone", 0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_of_the_control_plane_may_be_one_of_them() {
    let control = Control::start("30s").await;
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(control.client());
    let object = serde_json::from_value(cloud::node("n1", "aws")).unwrap();
    nodes.create(&Default::default(), &object).await.unwrap();
    let status = Patch::Merge(json!({ "status": cloud::node("n1", "aws")["status"] }));
    nodes
        .patch_status("n1", &PatchParams::default(), &status)
        .await
        .unwrap();
    cloud::cluster(&control, "home", "aws", "us-east-1", None).await;
    is_ready(&control, "home", "True", "ClusterReady").await;
    control.apply(service("web", 1)).await;
    let pods: Api<Pod> = Api::namespaced(control.client(), "default");
    eventually("its Pod", || async {
        let list = pods
            .list(&ListParams::default())
            .await
            .map_err(|e| e.to_string())?;
        if list.items.len() == 1 {
            Ok(())
        } else {
            Err(format!("{}", list.items.len()))
        }
    })
    .await;
}
