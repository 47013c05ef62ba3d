//! All that a control plane does in its life, in some seconds.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hyperion_api::cluster::HyperionCluster;
use hyperion_api::node::HyperionNode;
use hyperion_api::placement::HyperionPlacement;
use hyperion_api::quota::HyperionQuota;
use hyperion_api::rollout::HyperionRollout;
use hyperion_api::workload::HyperionWorkload;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Secret};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::agent::{Agent, eventually, get, took_over};
use super::cloud;
use super::install::Installed;
use super::rights::Right;
use super::server::{SYSTEM, Server};

/// Name of the workload cluster, and of the Secret with its kubeconfig.
const CLUSTER: &str = "east";
/// Name of the rollout.
const ROLLOUT: &str = "new";
/// Name of the quota.
const QUOTA: &str = "team";
/// How long a right that was taken away may go unmissed.
const MISSED: Duration = Duration::from_secs(60);

impl Installed {
    /// The management cluster, or the workload cluster.
    pub fn server(&self, cloud: bool) -> &Server {
        if cloud { &self.cloud } else { &self.home }
    }

    /// Runs a control plane, on clusters that have seen none, through its whole life; gives what the
    /// API servers refused it. `n` tells this life from others.
    pub async fn live(&mut self, n: usize) -> Vec<String> {
        let (begin, life) = self.begin(n).await;
        life.await.unwrap();
        self.control.kill();
        let refused =
            [false, true].map(|cloud| self.server(cloud).refused(begin[usize::from(cloud)]));
        refused.concat()
    }

    /// Lets it live until an API server refuses what needs the missing right, or the control plane
    /// says by itself that it is missing.
    ///
    /// # Errors
    /// Nobody missed it.
    pub async fn live_without(
        &mut self,
        n: usize,
        cloud: bool,
        missing: &Right,
    ) -> Result<(), String> {
        let (begin, life) = self.begin(n).await;
        let deadline = Instant::now() + MISSED;
        let clusters: Api<HyperionCluster> = Api::all(self.home.admin().await);
        let result = loop {
            // Before the look: whatever ended it is in the audit then.
            let ended = life.is_finished();
            let refused = self.server(cloud).refused(begin[usize::from(cloud)]);
            let said = match clusters.get_opt(CLUSTER).await {
                Ok(Some(cluster)) => format!("{:?}", cluster.status),
                _ => String::new(),
            };
            if refused.iter().any(|r| missing.is_missed_by(r))
                || (cloud && said.contains(&missing.missed_by_name()))
            {
                break Ok(());
            }
            if ended || Instant::now() > deadline {
                break Err(format!("{missing}: refused was {refused:?}; {said}"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        life.abort();
        self.control.kill();
        result
    }

    /// Starts a life; gives where its audits begin, too.
    async fn begin(&mut self, n: usize) -> ([usize; 2], JoinHandle<()>) {
        let (home, cloud) = (self.home.admin().await, self.cloud.admin().await);
        clear(&home).await;
        cloud::clear(&cloud).await;
        let _none = std::fs::remove_dir_all(self.data());
        let begin = [self.home.audited(), self.cloud.audited()];
        self.control.start().unwrap();
        let (link, http, kubeconfig) = (self.link, self.http, self.cloud.kubeconfig());
        let life = async move {
            edge(&home, link, http, n).await;
            tokio::select! {
                () = clouds(&home, &cloud, &kubeconfig, (link, http), n) => {}
                () = cloud::kubelet(cloud.clone()) => {}
            }
            renewed(home).await;
        };
        (begin, tokio::spawn(life))
    }
}

/// Devices, and a workload on one of them.
async fn edge(admin: &kube::Client, link: SocketAddr, http: SocketAddr, n: usize) {
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
    let mut agent = Agent::enrol(admin, link, &[], 0).await;
    agent.enrol_again().await;

    // A quota, whose use is told.
    let quotas: Api<HyperionQuota> = Api::namespaced(admin.clone(), "default");
    let quota = json!({ "metadata": { "name": QUOTA }, "spec": { "maxGpus": 8 } });
    let quota: HyperionQuota = serde_json::from_value(quota).unwrap();
    quotas.create(&PostParams::default(), &quota).await.unwrap();

    // A workload of two replicas, each of which is told of: the second event is the first again.
    let web = apply(admin, "default", &service("web", 2)).await;
    running(admin, "default", "web", "2/2").await;
    eventually("the quota's use is told", || async {
        let quota = quotas.get(QUOTA).await.map_err(|e| e.to_string())?;
        quota.status.map(drop).ok_or_else(|| "nothing".to_owned())
    })
    .await;

    // Another template: its placements change.
    let mut other = service("web", 2);
    other["spec"]["template"]["spec"]["containers"][0]["image"] = json!("j");
    apply(admin, "default", &other).await;
    let placements: Api<HyperionPlacement> = Api::namespaced(admin.clone(), "default");
    eventually("a placement changes", || async {
        let all = placements.list(&ListParams::default()).await;
        let all = all.map_err(|e| e.to_string())?.items;
        let changed = all.iter().any(|p| p.spec.generation > 1);
        changed.then_some(()).ok_or_else(|| format!("{all:?}"))
    })
    .await;

    // A version for devices of which there are none.
    let rollouts: Api<HyperionRollout> = Api::all(admin.clone());
    let bundle = json!({
        "url": "https://updates.example/2.swu", "sha256": "5e".repeat(32), "version": "2.0.0",
        "kind": "System",
    });
    let spec = json!({ "bundle": bundle, "sites": ["nowhere"] });
    let rollout = json!({ "metadata": { "name": ROLLOUT }, "spec": spec });
    let rollout: HyperionRollout = serde_json::from_value(rollout).unwrap();
    let made = rollouts.create(&PostParams::default(), &rollout).await;
    made.unwrap();
    eventually("the rollout is looked at", || async {
        let rollout = rollouts.get(ROLLOUT).await.map_err(|e| e.to_string())?;
        rollout.status.map(drop).ok_or_else(|| "nothing".to_owned())
    })
    .await;

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
    running(admin, &namespace, "cam", "1/1").await;

    // The end.
    for (namespace, name) in [("default", web.as_str()), (&namespace, "cam")] {
        delete(admin, namespace, name).await;
    }
}

/// A workload cluster comes, runs something, and goes.
async fn clouds(
    home: &kube::Client,
    cloud: &kube::Client,
    kubeconfig: &str,
    (link, http): (SocketAddr, SocketAddr),
    n: usize,
) {
    let secrets: Api<Secret> = Api::namespaced(home.clone(), SYSTEM);
    let secret =
        json!({ "metadata": { "name": CLUSTER }, "stringData": { "kubeconfig": kubeconfig } });
    let secret: Secret = serde_json::from_value(secret).unwrap();
    secrets
        .create(&PostParams::default(), &secret)
        .await
        .unwrap();
    let spec = json!({ "provider": "aws", "region": "us-east-1", "kubeconfigSecret": CLUSTER });
    let object = json!({ "metadata": { "name": CLUSTER }, "spec": spec });
    let object: HyperionCluster = serde_json::from_value(object).unwrap();
    let clusters: Api<HyperionCluster> = Api::all(home.clone());

    // Somebody has a Pod of the name that the first replica's will have.
    let taken: HyperionWorkload = {
        let api: Api<HyperionWorkload> = Api::namespaced(home.clone(), "default");
        apply(home, "default", &on_gpu("taken")).await;
        api.get("taken").await.unwrap()
    };
    cloud::take_name(cloud, "taken", &taken.uid().unwrap()).await;
    clusters
        .create(&PostParams::default(), &object)
        .await
        .unwrap();

    // In a namespace that the cluster has not, and of a queue: its Pod is bound when nothing holds it
    // back.
    let namespace = format!("field-{n}");
    let mut pod = on_gpu("pod");
    pod["metadata"]["labels"] = json!({ "kueue.x-k8s.io/queue-name": "team" });
    apply(home, &namespace, &pod).await;
    running(home, &namespace, "pod", "1/1").await;
    delete(home, "default", "taken").await;

    // Its log, for which there is no kubelet to ask, and an agent, whose token is none.
    let log = format!("/fleet/v1/logs?namespace={namespace}&workload=pod");
    let (status, text) = get(http, &log).await.unwrap();
    assert!(
        status >= 500 && text.contains("in cluster east"),
        "{status} {text}"
    );
    let refused = Agent::measures(home, link, CLUSTER).await;
    assert!(refused.contains("cluster east"), "{refused}");

    clusters
        .delete(CLUSTER, &DeleteParams::default())
        .await
        .unwrap();
    let nodes: Api<HyperionNode> = Api::all(home.clone());
    eventually("the node is drained", || async {
        let all = nodes.list(&ListParams::default()).await;
        let all = all.map_err(|e| e.to_string())?.items;
        let drained = all.iter().any(|node| node.spec.draining);
        drained.then_some(()).ok_or_else(|| format!("{all:?}"))
    })
    .await;
    delete(home, &namespace, "pod").await;
    eventually("the cluster is left", || async {
        match clusters.get_opt(CLUSTER).await {
            Ok(None) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// Who leads goes on to lead.
async fn renewed(admin: kube::Client) {
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

/// A service that no device can run: it has a GPU.
fn on_gpu(name: &str) -> Value {
    let mut object = service(name, 1);
    let limits = &mut object["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"];
    limits["nvidia.com/gpu"] = json!("1");
    object
}

async fn delete(admin: &kube::Client, namespace: &str, name: &str) {
    let api: Api<HyperionWorkload> = Api::namespaced(admin.clone(), namespace);
    api.delete(name, &DeleteParams::default()).await.unwrap();
    eventually("deleted", || async {
        match api.get_opt(name).await {
            Ok(None) => Ok(()),
            other => Err(format!("{other:?}")),
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

async fn apply(admin: &kube::Client, namespace: &str, object: &Value) -> String {
    let api: Api<HyperionWorkload> = Api::namespaced(admin.clone(), namespace);
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

/// As after the install, but that what everyone may know of the CA is of an older one.
async fn clear(admin: &kube::Client) {
    for name in ["hyperion-ca", "join-token-test", CLUSTER] {
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
        let name = workload.name_any();
        api.patch(&name, &PatchParams::default(), &free())
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
    let quotas: Api<HyperionQuota> = Api::namespaced(admin.clone(), "default");
    let _none = quotas.delete(QUOTA, &DeleteParams::default()).await;
    let rollouts: Api<HyperionRollout> = Api::all(admin.clone());
    let _none = rollouts.delete(ROLLOUT, &DeleteParams::default()).await;
    let clusters: Api<HyperionCluster> = Api::all(admin.clone());
    if clusters.get_opt(CLUSTER).await.unwrap().is_some() {
        clusters
            .patch(CLUSTER, &PatchParams::default(), &free())
            .await
            .unwrap();
        let _gone = clusters.delete(CLUSTER, &DeleteParams::default()).await;
    }
    let nodes: Api<HyperionNode> = Api::all(admin.clone());
    for node in nodes.list(&ListParams::default()).await.unwrap() {
        let name = node.name_any();
        // Those of the cluster go with it.
        let _gone = nodes.delete(&name, &DeleteParams::default()).await;
    }
}

fn free() -> Patch<Value> {
    Patch::Merge(json!({ "metadata": { "finalizers": null } }))
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
