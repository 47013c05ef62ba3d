//! Plays the kubelets of a cluster whose API is the embedded one, as kwok does for a real one: every Pod
//! on a node runs and is ready some time after it was made, and one that is deleted is gone.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::json;

/// Between two looks at what is due.
const TICK: Duration = Duration::from_millis(50);

/// Runs Pods `start` after they were made, until it is dropped.
pub(super) async fn run(client: kube::Client, start: Duration) {
    let all: Api<Pod> = Api::all(client.clone());
    let events = watcher(all, watcher::Config::default()).default_backoff();
    let mut events = std::pin::pin!(events);
    let mut due: BTreeMap<(String, String), Instant> = BTreeMap::new();
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod))) => {
                    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
                    if phase != Some("Running") && pod.spec.as_ref().is_some_and(|s| s.node_name.is_some()) {
                        due.entry(key(&pod)).or_insert_with(|| Instant::now() + start);
                    }
                }
                Some(Ok(watcher::Event::Delete(pod))) => {
                    due.remove(&key(&pod));
                }
                // The watcher tries again by itself.
                Some(_) => {}
                None => return,
            },
            _ = tick.tick() => {
                let now = Instant::now();
                let ready: Vec<_> = due.iter().filter(|(_, at)| **at <= now).map(|(k, _)| k.clone()).collect();
                for (namespace, name) in ready {
                    let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
                    let told = api.patch_status(&name, &PatchParams::default(), &Patch::Merge(running())).await;
                    // An API server that is away is asked again; a Pod that is gone is nobody's concern.
                    let gone = matches!(&told, Err(kube::Error::Api(status)) if status.code == 404);
                    if told.is_ok() || gone {
                        due.remove(&(namespace, name));
                    }
                }
            }
        }
    }
}

fn key(pod: &Pod) -> (String, String) {
    (pod.namespace().unwrap_or_default(), pod.name_any())
}

fn running() -> serde_json::Value {
    json!({ "status": {
        "phase": "Running", "podIP": "10.244.0.2",
        "conditions": [{ "type": "Ready", "status": "True" }],
        "containerStatuses": [{
            "name": "main", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "state": { "running": {} },
        }],
    }})
}
