//! Workload clusters that are reached by ClusterProfiles, with a plugin that prints a token.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

mod common;

use std::path::{Path, PathBuf};
use std::time::Duration;

use common::cloud::{self, Cloud, Rule, is_ready};
use common::{Control, eventually};
use k8s_openapi::ByteString;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde_json::{Value, json};

const TOKEN: &str = "token-of-the-plugin";

/// Plugins, and the file that names them.
struct Programs {
    dir: tempfile::TempDir,
}

impl Programs {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let good = format!(
            "printf '%s' \"$KUBERNETES_EXEC_INFO\" > '{0}/told.new' && mv '{0}/told.new' '{0}/told'\n\
             echo '{{\"apiVersion\": \"client.authentication.k8s.io/v1\", \"kind\": \"ExecCredential\", \
             \"status\": {{\"token\": \"{TOKEN}\"}}}}'\n",
            dir.path().display()
        );
        std::fs::write(dir.path().join("good"), good).unwrap();
        let broken = "echo SECRET; echo SECRET >&2; exit 1\n";
        std::fs::write(dir.path().join("broken"), broken).unwrap();
        let provider = |name: &str| {
            let script = dir.path().join(name);
            json!({ "name": name, "execConfig": {
                "apiVersion": "client.authentication.k8s.io/v1", "command": "/bin/sh",
                "args": [script], "env": [{ "name": "KEY", "value": "SECRET" }],
                "interactiveMode": "Never", "provideClusterInfo": true } })
        };
        let file = json!({ "providers": [provider("good"), provider("broken")] });
        std::fs::write(dir.path().join("providers"), file.to_string()).unwrap();
        Self { dir }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("providers")
    }

    /// What the good one was told last.
    fn told(&self) -> Value {
        let text = std::fs::read_to_string(self.dir.path().join("told")).unwrap();
        serde_json::from_str(&text).unwrap()
    }
}

async fn start(file: &Path) -> Control {
    let flag = format!("--cluster-profile-providers={}", file.display());
    Control::start_with("30s", &[flag]).await
}

/// What of the kind ClusterProfile is looked at.
async fn install_kind(control: &Control) {
    let any = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    let crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "clusterprofiles.multicluster.x-k8s.io",
            // Names of this group are for those that were approved.
            "annotations": { "api-approved.kubernetes.io": "unapproved, a test" } },
        "spec": {
            "group": "multicluster.x-k8s.io", "scope": "Namespaced",
            "names": { "kind": "ClusterProfile", "listKind": "ClusterProfileList",
                "plural": "clusterprofiles", "singular": "clusterprofile" },
            "versions": [{ "name": "v1alpha1", "served": true, "storage": true,
                "subresources": { "status": {} },
                "schema": { "openAPIV3Schema": { "type": "object", "properties": {
                    "spec": any, "status": any } } } }],
        },
    });
    let api: Api<CustomResourceDefinition> = Api::all(control.client());
    let name = "clusterprofiles.multicluster.x-k8s.io";
    let params = PatchParams::apply("test").force();
    api.patch(name, &params, &Patch::Apply(crd)).await.unwrap();
    eventually("ClusterProfiles are served", || async {
        let client = control.client();
        let list = client.list_api_group_resources("multicluster.x-k8s.io/v1alpha1");
        list.await.map(drop).map_err(|e| e.to_string())
    })
    .await;
}

fn profiles(control: &Control) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("multicluster.x-k8s.io", "v1alpha1", "ClusterProfile");
    let kind = ApiResource::from_gvk_with_plural(&kind, "clusterprofiles");
    Api::namespaced_with(control.client(), "default", &kind)
}

/// Writes a profile as its cluster manager does.
async fn profile(control: &Control, name: &str, offers: &Value) {
    let object = json!({
        "apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ClusterProfile",
        "metadata": { "name": name }, "spec": { "clusterManager": { "name": "test" } },
    });
    let api = profiles(control);
    let params = PatchParams::apply("test").force();
    api.patch(name, &params, &Patch::Apply(object))
        .await
        .unwrap();
    let status = Patch::Merge(json!({ "status": { "accessProviders": offers } }));
    api.patch_status(name, &PatchParams::default(), &status)
        .await
        .unwrap();
}

fn offer(name: &str, cluster: &Value) -> Value {
    json!([{ "name": name, "cluster": cluster }])
}

/// A HyperionCluster with access by the profile of its name.
fn cluster(name: &str) -> Value {
    json!({ "apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionCluster",
        "metadata": { "name": name },
        "spec": { "provider": "aws", "region": "us-east-1",
            "clusterProfile": { "namespace": "default", "name": name } } })
}

async fn join(control: &Control, object: &Value) -> Result<(), kube::Error> {
    let name = object["metadata"]["name"].as_str().unwrap();
    let params = PatchParams::apply("test").force();
    let api = cloud::clusters(control);
    api.patch(name, &params, &Patch::Apply(object))
        .await
        .map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_followed_to_where_its_profile_says() {
    let programs = Programs::new();
    let control = start(&programs.file()).await;
    install_kind(&control).await;
    let (first, second) = (Cloud::start("first").await, Cloud::start("second").await);
    for cloud in [&first, &second] {
        cloud.rule(Rule::Bearer(TOKEN));
    }
    first.node("n1", "aws", |_| {}).await;
    second.node("n2", "aws", |_| {}).await;
    let at = |cloud: &Cloud| {
        offer(
            "good",
            &json!({ "server": cloud.server(), "extensions": [{
                "name": "client.authentication.k8s.io/exec", "extension": { "clusterName": "e" } }] }),
        )
    };
    profile(&control, "east", &at(&first)).await;
    join(&control, &cluster("east")).await.unwrap();
    is_ready(&control, "east", "True", "ClusterReady").await;
    has_node(&control, "east.n1").await;
    let told = programs.told();
    assert_eq!(told["kind"], "ExecCredential");
    assert_eq!(told["spec"]["interactive"], false);
    assert_eq!(told["spec"]["cluster"]["server"], first.server());
    assert_eq!(told["spec"]["cluster"]["config"]["clusterName"], "e");

    // It moves, though where it was still answers: that is looked at every 30 s.
    profile(&control, "east", &at(&second)).await;
    let moved = async {
        while programs.told()["spec"]["cluster"]["server"] != second.server() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(2 * common::DEADLINE, moved)
        .await
        .expect("the move is seen");
    has_node(&control, "east.n2").await;

    let params = DeleteParams::default();
    profiles(&control).delete("east", &params).await.unwrap();
    second.rule(Rule::Unauthorized);
    let why = is_ready(&control, "east", "False", "ProfileMissing").await;
    assert!(
        why.starts_with("ClusterProfile default/east does not exist"),
        "{why}"
    );
}

async fn has_node(control: &Control, id: &str) {
    eventually(id, || async {
        let all = control.nodes().list(&Default::default()).await;
        let all = all.map_err(|e| e.to_string())?.items;
        let names: Vec<String> = all.iter().map(ResourceExt::name_any).collect();
        let there = names.iter().any(|name| name == id);
        there.then_some(()).ok_or_else(|| format!("{names:?}"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_the_access_is_said_and_nothing_of_credentials() {
    let programs = Programs::new();
    let control = start(&programs.file()).await;
    join(&control, &cluster("early")).await.unwrap();
    let why = is_ready(&control, "early", "False", "ProfileMissing").await;
    assert_eq!(
        why,
        "ClusterProfile default/early does not exist: the management cluster has no CRD \
         clusterprofiles.multicluster.x-k8s.io with version v1alpha1"
    );
    install_kind(&control).await;
    join(&control, &cluster("missing")).await.unwrap();
    let why = is_ready(&control, "missing", "False", "ProfileMissing").await;
    assert_eq!(why, "ClusterProfile default/missing does not exist");

    let server = json!({ "server": "http://127.0.0.1:1" });
    let no_ca = json!({ "server": "https://127.0.0.1:1", "certificate-authority-data":
        ByteString(b"no certificate".to_vec()) });
    // In PEM, but nothing that TLS can read.
    let odd_ca = json!({ "server": "https://127.0.0.1:1", "certificate-authority-data":
        ByteString(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_vec()) });
    for (name, offers, reason, said) in [
        (
            "empty",
            json!([]),
            "ProfileUnusable",
            "ClusterProfile default/empty: it offers no access (status.accessProviders)",
        ),
        (
            "foreign",
            offer("gke-fleet", &server),
            "ProfileUnusable",
            "it offers access by \"gke-fleet\", and the control plane has plugins for \"good\", \"broken\"",
        ),
        (
            "url",
            offer("good", &json!({ "server": "east.example" })),
            "ProfileUnusable",
            "its server \"east.example\" is no URL of an API server",
        ),
        (
            "no-ca",
            offer("good", &no_ca),
            "ProfileUnusable",
            "its certificate-authority-data has no certificate in it",
        ),
        (
            "odd-ca",
            offer("good", &odd_ca),
            "ProfileUnusable",
            "ClusterProfile default/odd-ca: ",
        ),
        (
            "broken",
            offer("broken", &server),
            "CredentialsFailed",
            "credential plugin /bin/sh failed: exit status: 1",
        ),
        ("nowhere", offer("good", &server), "Unreachable", "refused"),
    ] {
        profile(&control, name, &offers).await;
        join(&control, &cluster(name)).await.unwrap();
        let why = is_ready(&control, name, "False", reason).await;
        assert!(why.contains(said), "{name}: {why}");
        assert!(!why.contains("SECRET") && !why.contains(TOKEN), "{why}");
    }

    let mut both = cluster("both");
    both["spec"]["kubeconfigSecret"] = json!("east");
    let refused = join(&control, &both).await.unwrap_err().to_string();
    assert!(
        refused.contains("kubeconfigSecret and clusterProfile can't both be set"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_plugins_there_is_no_access_by_profiles() {
    let control = Control::start("30s").await;
    join(&control, &cluster("east")).await.unwrap();
    let why = is_ready(&control, "east", "False", "ProfileUnusable").await;
    assert_eq!(
        why,
        "ClusterProfile default/east: the control plane has no credential plugins \
         (--cluster-profile-providers)"
    );
}
