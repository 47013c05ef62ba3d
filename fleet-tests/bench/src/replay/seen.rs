//! What the API servers tell of placements and Pods, from watches.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::{Context, Result};
use futures::StreamExt;
use hyperion_api::placement::HyperionPlacement;
use hyperion_lab::watch;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::Api;
use kube::runtime::watcher;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Time for all watches to begin.
const BEGIN: Duration = Duration::from_secs(30);

/// Where an object is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    /// Placements of the control plane.
    Placements,
    /// Pods of a workload cluster, by its number.
    Pods(usize),
}

/// An object as it is now.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub source: Source,
    /// Namespace and name.
    pub key: String,
    /// None where it is gone.
    pub object: Option<Value>,
}

/// Watches for as long as this value lives.
pub(super) struct Watches {
    changes: Receiver<Change>,
    /// Dropped with this value, which ends the watching thread.
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl Watches {
    /// Begins to watch placements of one API server and Pods of others; returns when all have begun.
    pub(super) fn start(home: &Path, clusters: &[PathBuf]) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (sink, changes) = channel();
        let (begun, has_begun) = channel();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let placements: Api<HyperionPlacement> = Api::all(runtime.block_on(watch::client(home))?);
        let mut pods: Vec<Api<Pod>> = Vec::new();
        for cluster in clusters {
            pods.push(Api::all(runtime.block_on(watch::client(cluster))?));
        }
        let count = pods.len() + 1;
        std::thread::spawn(move || {
            runtime.block_on(async {
                let of_pods = pods
                    .into_iter()
                    .enumerate()
                    .map(|(at, api)| follow(api, Source::Pods(at), sink.clone(), begun.clone()));
                let all = futures::future::join(
                    follow(placements, Source::Placements, sink.clone(), begun.clone()),
                    futures::future::join_all(of_pods),
                );
                tokio::select! {
                    _ = all => {}
                    _ = stopped => {}
                }
            });
        });
        for _ in 0..count {
            let wait = has_begun.recv_timeout(BEGIN);
            wait.context("the watches of placements and Pods did not begin")?;
        }
        Ok(Self {
            changes,
            _stop: stop,
        })
    }

    /// Everything since the last call, in order.
    pub(super) fn changes(&self) -> Vec<Change> {
        self.changes.try_iter().collect()
    }
}

async fn follow<K>(api: Api<K>, source: Source, sink: Sender<Change>, begun: Sender<()>)
where
    K: kube::Resource + Clone + std::fmt::Debug + Serialize + DeserializeOwned + Send + 'static,
    K::DynamicType: Default + Clone,
{
    let key = |object: &K| {
        format!(
            "{}/{}",
            object.namespace().unwrap_or_default(),
            object.name_any()
        )
    };
    let tell = |key: String, object: Option<Value>| {
        // Nobody listens any more at the end.
        let _ended = sink.send(Change {
            source,
            key,
            object,
        });
    };
    let (mut known, mut listed) = (BTreeSet::new(), BTreeSet::new());
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default()));
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Apply(object)) => {
                known.insert(key(&object));
                tell(key(&object), serde_json::to_value(&object).ok());
            }
            Ok(watcher::Event::Delete(object)) => {
                known.remove(&key(&object));
                tell(key(&object), None);
            }
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(object)) => {
                listed.insert(key(&object));
                tell(key(&object), serde_json::to_value(&object).ok());
            }
            Ok(watcher::Event::InitDone) => {
                // What a new list does not have has gone while the watch was broken.
                for gone in known.difference(&listed) {
                    tell(gone.clone(), None);
                }
                known = std::mem::take(&mut listed);
                // Only the first one is waited for.
                let _heard = begun.send(());
            }
            // The watcher tries again by itself.
            Err(_) => {}
        }
    }
}
