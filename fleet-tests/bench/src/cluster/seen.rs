//! When Pods got a node, and when they ran, as a watch tells it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::StreamExt;
use hyperion_lab::{wait, watch};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::Api;
use kube::runtime::watcher;

/// Moments of one Pod.
#[derive(Debug, Clone, Copy, Default)]
struct Times {
    bound: Option<Instant>,
    running: Option<Instant>,
}

type All = Arc<Mutex<BTreeMap<String, Times>>>;

/// A watch of all Pods in namespace default, for as long as this value lives.
pub(super) struct Pods {
    seen: All,
    /// Dropped with this value, which ends the watching thread.
    _stop: tokio::sync::oneshot::Sender<()>,
}

/// The last of many.
#[derive(Debug, Clone, Copy)]
pub(super) struct Last {
    /// When the last had a node.
    pub bound: Instant,
    /// When the last ran.
    pub running: Instant,
}

impl Pods {
    /// Begins to watch; returns when it has begun.
    pub(super) fn watch(kubeconfig: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let client = runtime.block_on(watch::client(kubeconfig))?;
        let seen = All::default();
        let (begun, has_begun) = std::sync::mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let sink = Arc::clone(&seen);
        std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = follow(client, &sink, &begun) => {}
                    _ = stopped => {}
                }
            });
        });
        has_begun
            .recv_timeout(Duration::from_secs(30))
            .context("the watch of Pods did not begin")?;
        Ok(Self { seen, _stop: stop })
    }

    /// Waits until so many Pods have run.
    pub(super) fn wait(&self, count: usize, deadline: Duration) -> Result<Last> {
        wait::until("Pods that run", deadline, || {
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let bound = seen.values().filter_map(|times| times.bound);
            let running = seen.values().filter_map(|times| times.running);
            let (has_node, run) = (bound.clone().count(), running.clone().count());
            match (bound.max(), running.max()) {
                (Some(bound), Some(running)) if run >= count => Ok(Last { bound, running }),
                _ => Err(format!("of {count}, {has_node} have a node and {run} run")),
            }
        })
    }
}

async fn follow(client: kube::Client, sink: &All, begun: &Sender<()>) {
    let api: Api<Pod> = Api::namespaced(client, "default");
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default()));
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) => note(sink, &pod),
            Ok(watcher::Event::InitDone) => {
                // Only the first one is waited for.
                let _heard = begun.send(());
            }
            // The watcher tries again by itself.
            Ok(_) | Err(_) => {}
        }
    }
}

fn note(sink: &All, pod: &Pod) {
    let now = Instant::now();
    let bound = pod
        .spec
        .as_ref()
        .is_some_and(|spec| spec.node_name.is_some());
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    let mut all = sink.lock().unwrap_or_else(PoisonError::into_inner);
    let times = all.entry(pod.name_any()).or_default();
    if bound {
        times.bound.get_or_insert(now);
    }
    if phase == Some("Running") {
        times.running.get_or_insert(now);
    }
}
