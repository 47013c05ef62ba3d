//! Notes when each placement first reached each phase, from a watch of the API: what a user's own
//! controller would see, without the time that starting `kubectl` takes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::StreamExt;
use hyperion_api::placement::{HyperionPlacement, PlacementPhase};
use kube::ResourceExt;
use kube::api::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher;

use crate::wait;

/// A change of a placement, as the watch told it.
#[derive(Debug, Clone)]
pub struct Change {
    /// When it arrived here.
    pub at: Instant,
    /// Name of the placement.
    pub name: String,
    /// Node.
    pub node: String,
    /// Phase.
    pub phase: PlacementPhase,
    /// Readiness.
    pub ready: bool,
}

/// A watch that runs as long as this value lives.
#[derive(Debug)]
pub struct Watch {
    changes: Arc<Mutex<Vec<Change>>>,
    /// Dropped with this value, which ends the watching thread.
    _stop: tokio::sync::oneshot::Sender<()>,
}

/// A client for a kubeconfig file.
///
/// # Errors
/// The file can't be read or names no usable cluster.
pub async fn client(kubeconfig: &Path) -> Result<kube::Client> {
    let file = Kubeconfig::read_from(kubeconfig)?;
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(kube::Client::try_from(config)?)
}

impl Watch {
    /// Starts watching all placements, and waits until the watch has begun.
    ///
    /// # Errors
    /// The API can't be reached within ten seconds.
    pub fn start(kubeconfig: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let client = runtime
            .block_on(client(kubeconfig))
            .with_context(|| kubeconfig.display().to_string())?;
        let changes = Arc::new(Mutex::new(Vec::new()));
        let (begun, has_begun) = std::sync::mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let sink = Arc::clone(&changes);
        std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = follow(client, sink, begun) => {}
                    _ = stopped => {}
                }
            });
        });
        has_begun
            .recv_timeout(Duration::from_secs(10))
            .context("the watch of placements did not begin")?;
        Ok(Self {
            changes,
            _stop: stop,
        })
    }

    /// Everything seen so far, in order.
    #[must_use]
    pub fn changes(&self) -> Vec<Change> {
        self.changes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits for the first change after `since` that is as wanted.
    ///
    /// # Errors
    /// Not in time: the error has the last change of each placement.
    pub fn first(
        &self,
        what: &str,
        since: Instant,
        deadline: Duration,
        wanted: impl Fn(&Change) -> bool,
    ) -> Result<Change> {
        wait::until(what, deadline, || {
            let changes = self.changes();
            let found = changes.iter().find(|c| c.at >= since && wanted(c));
            found.cloned().ok_or_else(|| last(&changes))
        })
    }
}

async fn follow(client: kube::Client, sink: Arc<Mutex<Vec<Change>>>, begun: Sender<()>) {
    let api: Api<HyperionPlacement> = Api::all(client);
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default()));
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Apply(p) | watcher::Event::InitApply(p)) => note(&sink, &p),
            Ok(watcher::Event::InitDone) => {
                // Only the first one is waited for.
                let _heard = begun.send(());
            }
            // The watcher tries again by itself.
            Ok(_) | Err(_) => {}
        }
    }
}

fn note(sink: &Mutex<Vec<Change>>, placement: &HyperionPlacement) {
    let status = placement.status.clone().unwrap_or_default();
    sink.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(Change {
            at: Instant::now(),
            name: placement.name_any(),
            node: placement.spec.node.clone(),
            phase: status.phase,
            ready: status.ready,
        });
}

fn last(changes: &[Change]) -> String {
    let latest: BTreeMap<&str, String> = changes
        .iter()
        .map(|c| (&*c.name, format!("{:?} on {}", c.phase, c.node)))
        .collect();
    format!("{latest:?}")
}
