//! A workload cluster in this process: the embedded API, something that plays its kubelets, and a
//! proxy between it and the control plane that can be told to fail.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::header::{AUTHORIZATION, HOST};
use http::{Method, StatusCode};
use hyperion_api::cluster::HyperionCluster;
use hyperion_embedded::{Embedded, EmbeddedConfig};
use k8s_openapi::api::core::v1::{Node, Pod, Secret};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::{Control, eventually};

/// What the proxy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    Pass,
    /// Requests hang.
    Silent,
    /// 401.
    Unauthorized,
    /// 401, but for who has this token.
    Bearer(&'static str),
    /// Nothing but reading.
    ReadOnly,
}

/// What happens to a Pod, by workload; `running` where nothing is said.
pub type Fates = Arc<Mutex<HashMap<String, Value>>>;

pub struct Cloud {
    name: String,
    dir: tempfile::TempDir,
    api: Option<Embedded>,
    proxy: SocketAddr,
    rule: Arc<Mutex<Rule>>,
    client: kube::Client,
    pub fates: Fates,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for Cloud {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

pub fn running() -> Value {
    json!({ "phase": "Running", "podIP": "10.1.0.1",
        "conditions": [{ "type": "Ready", "status": "True" }],
        "containerStatuses": [{ "name": "c", "image": "i", "imageID": "", "ready": true,
            "restartCount": 0, "state": { "running": {} } }] })
}

impl Cloud {
    pub async fn start(name: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let api = hyperion_embedded::start(EmbeddedConfig {
            data_dir: dir.path().to_owned(),
            api_addr: "127.0.0.1:0".parse().unwrap(),
            kubeconfig_out: None,
            service_proxies: Default::default(),
        })
        .await
        .unwrap();
        let read = kube::config::Kubeconfig::from_yaml(&api.kubeconfig_yaml()).unwrap();
        let config = kube::Config::from_custom_kubeconfig(read, &Default::default())
            .await
            .unwrap();
        let client = kube::Client::try_from(config).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = listener.local_addr().unwrap();
        let rule = Arc::new(Mutex::new(Rule::Pass));
        let router = axum::Router::new()
            .fallback(forward)
            .with_state((client.clone(), rule.clone()));
        let fates = Fates::default();
        let tasks = vec![
            tokio::spawn(async move {
                let _ = axum::serve(listener, router).await;
            }),
            tokio::spawn(kubelets(client.clone(), fates.clone())),
        ];
        Self {
            name: name.to_owned(),
            dir,
            api: Some(api),
            proxy,
            rule,
            client,
            fates,
            tasks,
        }
    }

    pub fn rule(&self, rule: Rule) {
        *self.rule.lock().unwrap() = rule;
    }

    pub fn fate(&self, workload: &str, status: Value) {
        self.fates
            .lock()
            .unwrap()
            .insert(workload.to_owned(), status);
    }

    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    pub fn nodes(&self) -> Api<Node> {
        Api::all(self.client())
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client(), "default")
    }

    pub fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- name: c\n  cluster:\n    server: {}\ncontexts:\n- name: c\n  context:\n    cluster: c\n    user: c\nusers:\n- name: c\n  user:\n    token: t\n",
            self.server()
        )
    }

    /// Where the control plane finds it.
    pub fn server(&self) -> String {
        format!("http://{}", self.proxy)
    }

    /// Makes a node as the provider's cluster would have it.
    pub async fn node(&self, name: &str, provider: &str, change: impl FnOnce(&mut Value)) {
        let mut node = node(name, provider);
        change(&mut node);
        let object: Node = serde_json::from_value(node).unwrap();
        let api = self.nodes();
        api.create(&PostParams::default(), &object).await.unwrap();
        let status = json!({ "status": object.status });
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await
            .unwrap();
    }

    /// Has the control plane follow it.
    pub async fn join(&self, control: &Control, provider: &str, region: &str) {
        secret(control, &self.name, &self.kubeconfig()).await;
        cluster(control, &self.name, provider, region, Some(&self.name)).await;
    }

    /// Pods that do not end, by name.
    pub async fn live(&self) -> Vec<Pod> {
        let pods = self.pods().list(&ListParams::default()).await.unwrap();
        let mut pods = pods.items;
        pods.sort_by_key(ResourceExt::name_any);
        pods
    }

    /// Waits for so many Pods.
    pub async fn has_pods(&self, what: &str, count: usize) -> Vec<Pod> {
        eventually(what, || async move {
            let pods = self.live().await;
            let names: Vec<String> = pods.iter().map(ResourceExt::name_any).collect();
            if pods.len() == count {
                Ok(pods)
            } else {
                Err(format!("{}: {names:?}", self.name))
            }
        })
        .await
    }

    pub async fn delete_pod(&self, name: &str) {
        let params = DeleteParams::default();
        self.pods().delete(name, &params).await.unwrap();
    }
}

/// A node of a provider's cluster, in the form that these have.
pub fn node(name: &str, provider: &str) -> Value {
    let (id, region, zone, type_, more) = match provider {
        "aws" => (
            "aws:///us-east-1a/i-0123456789abcdef0",
            "us-east-1",
            "us-east-1a",
            "g4dn.xlarge",
            json!({ "eks.amazonaws.com/nodegroup": "gpu", "eks.amazonaws.com/capacityType": "ON_DEMAND" }),
        ),
        "gcp" => (
            "gce://project/europe-west4-a/gke-pool-1",
            "europe-west4",
            "europe-west4-a",
            "g2-standard-4",
            json!({ "cloud.google.com/gke-nodepool": "l4", "cloud.google.com/gke-spot": "true" }),
        ),
        other => panic!("{other}"),
    };
    let mut labels = json!({
        "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux", "kubernetes.io/hostname": name,
        "topology.kubernetes.io/region": region, "topology.kubernetes.io/zone": zone,
        "node.kubernetes.io/instance-type": type_,
    });
    labels
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let room = json!({ "cpu": "3920m", "memory": "14Gi", "pods": "110", "nvidia.com/gpu": "1" });
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": labels },
        "spec": { "providerID": id },
        "status": {
            "capacity": room, "allocatable": room,
            "conditions": [{ "type": "Ready", "status": "True", "reason": "KubeletReady",
                "message": "kubelet is posting ready status" }],
            "nodeInfo": { "architecture": "amd64", "bootID": "b", "containerRuntimeVersion": "containerd://2",
                "kernelVersion": "6", "kubeProxyVersion": "v1.33.0", "kubeletVersion": "v1.33.0",
                "machineID": "m", "operatingSystem": "linux", "osImage": "o", "systemUUID": "u" },
        },
    })
}

/// Writes a kubeconfig Secret.
pub async fn secret(control: &Control, name: &str, kubeconfig: &str) {
    let api: Api<Secret> = Api::namespaced(control.client(), "hyperion-system");
    let object = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name },
        "stringData": { "kubeconfig": kubeconfig } });
    let params = PatchParams::apply("test").force();
    api.patch(name, &params, &Patch::Apply(object))
        .await
        .unwrap();
}

/// Writes a HyperionCluster.
pub async fn cluster(
    control: &Control,
    name: &str,
    provider: &str,
    region: &str,
    secret: Option<&str>,
) {
    let object = json!({ "apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionCluster",
        "metadata": { "name": name },
        "spec": { "provider": provider, "region": region, "kubeconfigSecret": secret } });
    let params = PatchParams::apply("test").force();
    clusters(control)
        .patch(name, &params, &Patch::Apply(object))
        .await
        .unwrap();
}

pub fn clusters(control: &Control) -> Api<HyperionCluster> {
    Api::all(control.client())
}

/// Waits for the Ready condition of a cluster: status, reason; gives its message.
pub async fn is_ready(control: &Control, name: &str, status: &str, reason: &str) -> String {
    let api = clusters(control);
    eventually(&format!("cluster {name} {status} {reason}"), || {
        let api = api.clone();
        async move {
            let cluster = api.get(name).await.map_err(|e| e.to_string())?;
            let conditions = cluster.status.unwrap_or_default().conditions;
            let ready = conditions.into_iter().find(|c| c.type_ == "Ready");
            match ready {
                Some(c) if c.status == status && c.reason == reason => Ok(c.message),
                other => Err(format!("{other:?}")),
            }
        }
    })
    .await
}

async fn forward(
    State((client, rule)): State<(kube::Client, Arc<Mutex<Rule>>)>,
    request: Request,
) -> Response {
    let rule = *rule.lock().unwrap();
    let reading = request.method() == Method::GET;
    let review = request.uri().path().contains("selfsubjectaccessreviews");
    let authorization = request.headers().get(AUTHORIZATION);
    let authorization = authorization.map(|a| a.to_str().unwrap().to_owned());
    let (mut parts, body) = request.into_parts();
    let bytes = to_bytes(body, 4 << 20).await.unwrap();
    let refused = |code: StatusCode, reason: &str, message: &str| {
        let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure",
            "code": code.as_u16(), "reason": reason, "message": message });
        (code, axum::Json(status)).into_response()
    };
    match rule {
        Rule::Pass => {}
        Rule::Silent => std::future::pending().await,
        Rule::Bearer(token) if authorization == Some(format!("Bearer {token}")) => {}
        Rule::Unauthorized | Rule::Bearer(_) => {
            return refused(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized");
        }
        Rule::ReadOnly if review => {
            let mut review: Value = serde_json::from_slice(&bytes).unwrap();
            let verb = review["spec"]["resourceAttributes"]["verb"]
                .as_str()
                .unwrap();
            let allowed = matches!(verb, "list" | "watch");
            review["status"] = json!({ "allowed": allowed });
            return (StatusCode::CREATED, axum::Json(review)).into_response();
        }
        Rule::ReadOnly if !reading => {
            let message = "pods is forbidden: User \"u\" cannot create resource \"pods\" in API group \"\" in the namespace \"default\"";
            return refused(StatusCode::FORBIDDEN, "Forbidden", message);
        }
        Rule::ReadOnly => {}
    }
    parts.headers.remove(HOST);
    let request = Request::from_parts(parts, kube::client::Body::from(bytes.to_vec()));
    match client.send(request).await {
        Ok(answer) => answer.map(Body::new),
        Err(e) => refused(StatusCode::BAD_GATEWAY, "", &e.to_string()),
    }
}

/// Gives Pods the status that their workload's fate says.
async fn kubelets(client: kube::Client, fates: Fates) {
    let pods: Api<Pod> = Api::all(client.clone());
    loop {
        let list = pods.list(&ListParams::default()).await;
        for pod in list.map_or_else(|_| Vec::new(), |l| l.items) {
            let (name, namespace) = (pod.name_any(), pod.namespace().unwrap_or_default());
            let workload = pod.labels().get("hyperion.io/workload").cloned();
            let Some(workload) = workload else { continue };
            let fate = fates.lock().unwrap().get(&workload).cloned();
            let fate = fate.unwrap_or_else(running);
            let held = serde_json::to_value(&pod.status).unwrap_or_default();
            if held["phase"] == fate["phase"]
                && held["containerStatuses"][0]["state"] == fate["containerStatuses"][0]["state"]
            {
                continue;
            }
            let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
            let patch = Patch::Merge(json!({ "status": fate }));
            let _ = api
                .patch_status(&name, &PatchParams::default(), &patch)
                .await;
        }
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
    }
}
