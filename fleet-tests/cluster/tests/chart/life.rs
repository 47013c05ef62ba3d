//! All that a control plane does in its life, in some seconds.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hyperion_api::node::HyperionNode;
use hyperion_api::placement::HyperionPlacement;
use hyperion_api::workload::HyperionWorkload;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Secret};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use super::agent::{Agent, eventually, get, took_over};
use super::install::{Installed, SYSTEM};
use super::rights::Right;

/// How long a right that was taken away may go unmissed.
const MISSED: Duration = Duration::from_secs(60);

impl Installed {
    /// Runs a control plane, on a cluster that has seen none, through its whole life; gives what the
    /// API server refused it. `n` tells this life from others.
    pub async fn live(&mut self, n: usize) -> Vec<String> {
        let (begin, life) = self.begin(n).await;
        life.await.unwrap();
        self.control.kill();
        self.refused(begin)
    }

    /// Lets it live until the API server refuses what needs the missing right.
    ///
    /// # Errors
    /// Nobody missed it.
    pub async fn live_without(&mut self, n: usize, missing: &Right) -> Result<(), String> {
        let (begin, life) = self.begin(n).await;
        let deadline = Instant::now() + MISSED;
        let result = loop {
            // Before the look: whatever ended it is in the audit then.
            let ended = life.is_finished();
            let refused = self.refused(begin);
            if refused.iter().any(|r| missing.is_missed_by(r)) {
                break Ok(());
            }
            if ended || Instant::now() > deadline {
                break Err(format!("{missing}: refused was {refused:?}"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        life.abort();
        self.control.kill();
        result
    }

    /// Starts a life; gives where its audit begins, too.
    async fn begin(&mut self, n: usize) -> (usize, tokio::task::JoinHandle<()>) {
        let admin = self.admin().await;
        clear(&admin).await;
        let _none = std::fs::remove_dir_all(self.data());
        let begin = self.audited();
        self.control.start().unwrap();
        (begin, tokio::spawn(life(admin, self.link, self.http, n)))
    }
}

async fn life(admin: kube::Client, link: SocketAddr, http: SocketAddr, n: usize) {
    eventually("serving", || async move {
        let (_, text) = get(http, "/readyz").await.map_err(|e| e.to_string())?;
        text.contains("serving").then_some(()).ok_or(text)
    })
    .await;
    let endpoints: Api<Endpoints> = Api::namespaced(admin.clone(), SYSTEM);
    for name in ["hyperion-control", "hyperion-agents"] {
        let endpoints = &endpoints;
        eventually("the Service leads here", || async move {
            let held = endpoints.get_opt(name).await.map_err(|e| e.to_string())?;
            held.map(drop).ok_or_else(|| name.to_owned())
        })
        .await;
    }

    // A device comes, and once more with the certificate that it has.
    let mut agent = Agent::enrol(&admin, link, &[], 0).await;
    agent.enrol_again().await;

    // A workload of two replicas, each of which is told of: the second event is the first again.
    let web = apply(&admin, &service("web", 2)).await;
    running(&admin, "default", "web", "2/2").await;

    // What its site took in, in a namespace that is not there yet.
    agent.disconnect().await;
    let namespace = format!("field-{n}");
    let mut local: HyperionWorkload = serde_json::from_value(service("cam", 1)).unwrap();
    local.metadata.namespace = Some(namespace.clone());
    local.metadata.uid = Some(format!("site-{n}"));
    let mut record = took_over(&local, &agent, 1);
    record.intent.as_mut().unwrap().manifest = service("cam", 1).to_string();
    agent.runtime.lock().unwrap().take_over(record);
    agent.connect();
    running(&admin, &namespace, "cam", "1/1").await;

    // The end.
    let all: Api<HyperionWorkload> = Api::namespaced(admin.clone(), "default");
    all.delete(&web, &DeleteParams::default()).await.unwrap();
    gone(&all, &web).await;

    let leases: Api<Lease> = Api::namespaced(admin, SYSTEM);
    eventually("the lease is renewed", || {
        let leases = leases.clone();
        async move {
            let lease = leases.get("hyperion-control").await;
            let spec = lease.map_err(|e| e.to_string())?.spec.unwrap_or_default();
            if spec.renew_time > spec.acquire_time {
                Ok(())
            } else {
                Err(format!("{spec:?}"))
            }
        }
    })
    .await;
}

fn service(name: &str, replicas: u32) -> Value {
    let limits = json!({ "limits": { "cpu": "500m", "memory": "128Mi" } });
    json!({
        "apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionWorkload",
        "metadata": { "name": name },
        "spec": {
            "replicas": replicas,
            "template": { "spec": { "containers": [
                { "name": "c", "image": "i", "resources": limits },
            ] } },
        },
    })
}

async fn apply(admin: &kube::Client, object: &Value) -> String {
    let api: Api<HyperionWorkload> = Api::namespaced(admin.clone(), "default");
    let name = object["metadata"]["name"].as_str().unwrap();
    let params = PatchParams::apply("test").force();
    api.patch(name, &params, &Patch::Apply(object))
        .await
        .unwrap();
    name.to_owned()
}

async fn running(admin: &kube::Client, namespace: &str, name: &str, ready: &str) {
    let api: Api<HyperionWorkload> = Api::namespaced(admin.clone(), namespace);
    eventually("running", || {
        let api = api.clone();
        async move {
            let workload = api.get(name).await.map_err(|e| e.to_string())?;
            match workload.status {
                Some(status) if status.ready == ready => Ok(()),
                other => Err(format!("{other:?}")),
            }
        }
    })
    .await;
}

async fn gone(api: &Api<HyperionWorkload>, name: &str) {
    eventually("deleted", || async move {
        match api.get_opt(name).await {
            Ok(None) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// As after the install, but that what everyone may know of the CA is of an older one.
async fn clear(admin: &kube::Client) {
    for name in ["hyperion-ca", "join-token-test"] {
        remove::<Secret>(admin, name).await;
    }
    remove::<Lease>(admin, "hyperion-control").await;
    for name in ["hyperion-control", "hyperion-agents"] {
        remove::<Endpoints>(admin, name).await;
    }
    remove::<ConfigMap>(admin, "hyperion-ca").await;
    let maps: Api<ConfigMap> = Api::namespaced(admin.clone(), SYSTEM);
    let map = json!({ "metadata": { "name": "hyperion-ca" }, "data": { "ca.crt": "old" } });
    let map: ConfigMap = serde_json::from_value(map).unwrap();
    maps.create(&PostParams::default(), &map).await.unwrap();

    let workloads: Api<HyperionWorkload> = Api::all(admin.clone());
    for workload in workloads.list(&ListParams::default()).await.unwrap() {
        let namespace = workload.namespace().unwrap();
        let api: Api<HyperionWorkload> = Api::namespaced(admin.clone(), &namespace);
        let free = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
        let name = workload.name_any();
        api.patch(&name, &PatchParams::default(), &free)
            .await
            .unwrap();
        // The garbage collector may be faster with what belongs to it.
        let _gone = api.delete(&name, &DeleteParams::default()).await;
    }
    let placements: Api<HyperionPlacement> = Api::all(admin.clone());
    for placement in placements.list(&ListParams::default()).await.unwrap() {
        let namespace = placement.namespace().unwrap();
        let api: Api<HyperionPlacement> = Api::namespaced(admin.clone(), &namespace);
        let name = placement.name_any();
        let _gone = api.delete(&name, &DeleteParams::default()).await;
    }
    let nodes: Api<HyperionNode> = Api::all(admin.clone());
    for node in nodes.list(&ListParams::default()).await.unwrap() {
        let name = node.name_any();
        nodes.delete(&name, &DeleteParams::default()).await.unwrap();
    }
}

async fn remove<K>(admin: &kube::Client, name: &str)
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(admin.clone(), SYSTEM);
    match api.delete(name, &DeleteParams::default()).await {
        Err(kube::Error::Api(e)) if e.code == 404 => {}
        other => drop(other.unwrap()),
    }
}
