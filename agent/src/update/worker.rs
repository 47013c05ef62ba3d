//! Does what is to be done: brings bundles, asks root's part, and looks how far that is.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tracing::{info, warn};

use super::bring::{self, Failure, Patience};
use super::engine::{EngineState, Request, RootPart};
use super::machine::Task;

/// A request that nothing came of is made again.
const AGAIN: Duration = Duration::from_secs(10);

/// What a worker has found out.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// The bundle of this order is here, or can't be had.
    Brought(String, Result<(), Failure>),
}

/// See the module.
#[derive(Debug)]
pub struct Worker {
    root: RootPart,
    folder: PathBuf,
    patience: Patience,
    task: Task,
    /// Of the download that goes on.
    percent: Arc<AtomicU32>,
    /// The download; ends when it is dropped.
    running: JoinSet<Told>,
    asked_at: Option<Instant>,
}

impl Worker {
    /// On a machine with this root; bundles lie in a folder of `data_dir`.
    #[must_use]
    pub fn new(root: &Path, data_dir: &Path) -> Self {
        let folder = data_dir.join("update");
        Self {
            root: RootPart::new(root, &folder),
            folder,
            patience: Patience::default(),
            task: Task::None,
            percent: Arc::default(),
            running: JoinSet::new(),
            asked_at: None,
        }
    }

    /// Waits as long as this.
    #[must_use]
    pub fn with_patience(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self
    }

    /// How root's part is with its work; none where it is not there.
    #[must_use]
    pub fn look(&self) -> Option<EngineState> {
        self.root.read()
    }

    /// The order whose bundle is being brought, and how far that is.
    #[must_use]
    pub fn bringing(&self) -> Option<(&str, u32)> {
        match &self.task {
            Task::Bring(order) => Some((&order.id, self.percent.load(Ordering::Relaxed))),
            _ => None,
        }
    }

    /// Does this from now on. `needed` says that bundles that are here may still be.
    pub fn follow(&mut self, task: Task, needed: bool, now: Instant) {
        if task == self.task {
            let again = self.asked_at.is_some_and(|at| now >= at + AGAIN);
            if again && let Task::Ask { .. } = &task {
                self.ask(&task, now);
            }
            return;
        }
        self.running.abort_all();
        self.asked_at = None;
        if !needed {
            self.clean();
        }
        match &task {
            Task::None => {}
            Task::Bring(order) => {
                self.percent = Arc::default();
                let (order, percent) = (order.clone(), self.percent.clone());
                let (folder, patience) = (self.folder.clone(), self.patience);
                info!(order = %order.id, version = %order.bundle.version, "bringing an update");
                self.running.spawn(async move {
                    let bundle = &order.bundle;
                    let brought = bring::bring(bundle, &order.id, &folder, &percent, patience);
                    let result = brought.await.map(drop);
                    if let Err(failure) = &result {
                        warn!(reason = failure.reason, message = %failure.message, "no bundle");
                    }
                    Told::Brought(order.id, result)
                });
            }
            Task::Ask { .. } => self.ask(&task, now),
        }
        self.task = task;
    }

    /// What was found out next; none where nothing is being brought.
    pub async fn told(&mut self) -> Option<Told> {
        loop {
            // One that was given up has nothing to tell.
            if let Ok(told) = self.running.join_next().await? {
                return Some(told);
            }
        }
    }

    fn ask(&mut self, task: &Task, now: Instant) {
        let Task::Ask {
            action,
            id,
            kind,
            url,
            ready_seconds,
        } = task
        else {
            return;
        };
        self.asked_at = Some(now);
        let bundle = match url.as_str() {
            "" => PathBuf::new(),
            url => bring::place(url, id, &self.folder),
        };
        let request = Request {
            action: *action,
            id: id.clone(),
            kind: *kind,
            bundle,
            ready_seconds: *ready_seconds,
        };
        info!(order = %id, ?action, "asking for an update");
        if let Err(e) = self.root.ask(&request) {
            warn!(error = %e, folder = %self.folder.display(), "an update can't be asked for");
        }
    }

    /// Bundles that nobody needs any more.
    fn clean(&self) {
        let Ok(entries) = std::fs::read_dir(&self.folder) else {
            return;
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            let kind = path.extension().and_then(|e| e.to_str());
            if matches!(kind, Some("swu" | "part")) {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}
