//! What watches of the API servers tell of copies and decisions: who was ready when, on what money. It
//! asks neither the operator nor agents.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::StreamExt;
use hyperion_api::placement::HyperionPlacement;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::watch;

/// One Pod of a workload, from the first to the last that was heard of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Copy {
    /// Cluster.
    pub cluster: String,
    /// Workload.
    pub workload: String,
    /// Replica number.
    pub replica: String,
    /// Generation of the decision.
    pub generation: String,
    /// When it was made.
    pub from: Instant,
    /// It takes requests: ready, and nobody asked for its end.
    pub serves: bool,
    /// When it was gone.
    pub to: Option<Instant>,
}

#[derive(Debug, Default)]
struct Told {
    copies: BTreeMap<(String, String), Copy>,
    /// Workload, replica, generation: US dollars per hour at the price when it was placed.
    hourly: BTreeMap<(String, String, String), f64>,
    /// Workload, replica, node: the same, of the last decision for that node.
    on_node: BTreeMap<(String, String, String), f64>,
    /// Clusters that nobody reaches.
    dark: BTreeSet<String>,
}

impl Told {
    /// US dollars per hour of the decision for a copy.
    fn hourly(&self, copy: &Copy) -> Option<f64> {
        let key = (
            copy.workload.clone(),
            copy.replica.clone(),
            copy.generation.clone(),
        );
        self.hourly.get(&key).copied()
    }
}

/// What was told so far. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Seen(Arc<Mutex<Told>>);

impl Seen {
    fn lock(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to watch the Pods of a cluster, as long as the runtime lives.
    ///
    /// # Errors
    /// It can't be reached.
    pub fn follow_pods(&self, runtime: &Runtime, name: &str, kubeconfig: &Path) -> Result<()> {
        let (seen, name) = (self.clone(), name.to_owned());
        runtime.block_on(async {
            let api: Api<Pod> = Api::all(watch::client(kubeconfig).await?);
            let (begun, has_begun) = oneshot::channel();
            tokio::spawn(async move {
                let mut begun = Some(begun);
                let events = watcher(api, watcher::Config::default()).default_backoff();
                let mut events = std::pin::pin!(events);
                let mut listed = BTreeSet::new();
                while let Some(event) = events.next().await {
                    match event {
                        Ok(watcher::Event::Init) => listed.clear(),
                        Ok(watcher::Event::InitApply(pod)) => {
                            listed.insert(pod.uid().unwrap_or_default());
                            seen.pod(&name, &pod);
                        }
                        Ok(watcher::Event::InitDone) => {
                            seen.only(&name, &listed);
                            begun.take().map(|begun| begun.send(()));
                        }
                        Ok(watcher::Event::Apply(pod)) => seen.pod(&name, &pod),
                        Ok(watcher::Event::Delete(pod)) => {
                            seen.gone(&name, &pod.uid().unwrap_or_default());
                        }
                        // The watcher tries again by itself.
                        Err(_) => {}
                    }
                }
            });
            has_begun.await.context("the watch of Pods did not begin")
        })
    }

    /// Begins to watch decisions, as long as the runtime lives.
    ///
    /// # Errors
    /// The API can't be reached.
    pub fn follow_decisions(&self, runtime: &Runtime, kubeconfig: &Path) -> Result<()> {
        let seen = self.clone();
        runtime.block_on(async {
            let api: Api<HyperionPlacement> = Api::all(watch::client(kubeconfig).await?);
            tokio::spawn(async move {
                let events = watcher(api, watcher::Config::default()).default_backoff();
                let mut events = std::pin::pin!(events);
                while let Some(event) = events.next().await {
                    if let Ok(watcher::Event::Apply(p) | watcher::Event::InitApply(p)) = event {
                        let spec = &p.spec;
                        let key = (
                            spec.workload.clone(),
                            spec.replica.to_string(),
                            spec.generation.to_string(),
                        );
                        let on = (key.0.clone(), key.1.clone(), spec.node.clone());
                        let mut told = seen.lock();
                        told.hourly.insert(key, spec.hourly_cost);
                        told.on_node.insert(on, spec.hourly_cost);
                    }
                }
            });
            Ok(())
        })
    }

    fn pod(&self, cluster: &str, pod: &Pod) {
        let label = |key: &str| pod.labels().get(key).cloned().unwrap_or_default();
        let workload = label("hyperion.io/workload");
        if workload.is_empty() {
            return;
        }
        let status = pod.status.clone().unwrap_or_default();
        let mut conditions = status.conditions.into_iter().flatten();
        let ready = conditions.any(|c| c.type_ == "Ready" && c.status == "True");
        let serves = ready && pod.metadata.deletion_timestamp.is_none();
        let key = (cluster.to_owned(), pod.uid().unwrap_or_default());
        let mut told = self.lock();
        let copy = told.copies.entry(key).or_insert_with(|| Copy {
            cluster: cluster.to_owned(),
            workload,
            replica: label("hyperion.io/replica"),
            generation: label("hyperion.io/generation"),
            from: Instant::now(),
            serves: false,
            to: None,
        });
        copy.serves = serves;
    }

    fn gone(&self, cluster: &str, uid: &str) {
        let key = (cluster.to_owned(), uid.to_owned());
        if let Some(copy) = self.lock().copies.get_mut(&key) {
            copy.serves = false;
            copy.to.get_or_insert_with(Instant::now);
        }
    }

    /// A list names all that there are.
    fn only(&self, cluster: &str, listed: &BTreeSet<String>) {
        let gone: Vec<String> = {
            let told = self.lock();
            let of = told.copies.iter().filter(|((c, uid), copy)| {
                c == cluster && copy.to.is_none() && !listed.contains(uid)
            });
            of.map(|((_, uid), _)| uid.clone()).collect()
        };
        for uid in gone {
            self.gone(cluster, &uid);
        }
    }

    /// Nobody reaches this cluster, or everybody does again.
    pub fn set_dark(&self, cluster: &str, dark: bool) {
        let mut told = self.lock();
        if dark {
            told.dark.insert(cluster.to_owned());
        } else {
            told.dark.remove(cluster);
        }
    }

    /// Does a copy of the workload take requests, that somebody reaches?
    #[must_use]
    pub fn serves(&self, workload: &str) -> bool {
        let told = self.lock();
        let mut copies = told.copies.values();
        copies.any(|c| c.workload == workload && c.serves && !told.dark.contains(&c.cluster))
    }

    /// All copies of a workload so far, in order of their making.
    #[must_use]
    pub fn copies(&self, workload: &str) -> Vec<Copy> {
        let told = self.lock();
        let of = told.copies.values().filter(|c| c.workload == workload);
        let mut copies: Vec<Copy> = of.cloned().collect();
        copies.sort_by_key(|c| c.from);
        copies
    }

    /// Most copies of one replica of a workload that there were at one moment.
    #[must_use]
    pub fn most_at_once(&self, workload: &str) -> usize {
        let copies = self.copies(workload);
        let at = |one: &Copy| {
            let beside = copies.iter().filter(|c| {
                c.replica == one.replica
                    && c.from <= one.from
                    && c.to.is_none_or(|to| to > one.from)
            });
            beside.count()
        };
        copies.iter().map(at).max().unwrap_or(0)
    }

    /// US dollars for all Pods between two moments, each at the price when it was placed.
    #[must_use]
    pub fn spent(&self, from: Instant, to: Instant) -> f64 {
        let told = self.lock();
        let cost = |copy: &Copy| {
            let hourly = told.hourly(copy).unwrap_or_default();
            let (begin, end) = (copy.from.max(from), copy.to.unwrap_or(to).min(to));
            hourly * end.saturating_duration_since(begin).as_secs_f64() / 3600.0
        };
        told.copies.values().map(cost).sum()
    }

    /// US dollars per hour of the last decision for a node.
    #[must_use]
    pub fn hourly_on(&self, workload: &str, replica: &str, node: &str) -> Option<f64> {
        let key = (workload.to_owned(), replica.to_owned(), node.to_owned());
        self.lock().on_node.get(&key).copied()
    }

    /// US dollars per hour of a decision.
    #[must_use]
    pub fn hourly(&self, copy: &Copy) -> Option<f64> {
        self.lock().hourly(copy)
    }
}

/// Time between two requests.
const REQUEST: Duration = Duration::from_millis(20);

/// What those who asked a service got.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Served {
    /// Requests.
    pub asked: u64,
    /// Those that nobody answered.
    pub failed: u64,
    /// Longest time from an answer to the next one with failures between.
    pub gap: Duration,
}

impl Served {
    /// Two of them together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            asked: self.asked + other.asked,
            failed: self.failed + other.failed,
            gap: self.gap.max(other.gap),
        }
    }
}

/// Asks a service all the time, until it is stopped.
pub struct Asking {
    stop: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<Served>,
}

impl Asking {
    /// Begins; `ask` is one request.
    pub fn begin(ask: impl Fn() -> bool + Send + 'static) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let mut served = Served::default();
            let mut last = Instant::now();
            let mut failing = false;
            while matches!(stopped.try_recv(), Err(oneshot::error::TryRecvError::Empty)) {
                served.asked += 1;
                if ask() {
                    if failing {
                        served.gap = served.gap.max(last.elapsed());
                    }
                    (failing, last) = (false, Instant::now());
                } else {
                    (failing, served.failed) = (true, served.failed + 1);
                }
                std::thread::sleep(REQUEST);
            }
            if failing {
                served.gap = served.gap.max(last.elapsed());
            }
            served
        });
        Self { stop, thread }
    }

    /// Ends it; what came of it.
    ///
    /// # Errors
    /// Who asked has panicked.
    pub fn end(self) -> Result<Served> {
        drop(self.stop);
        let served = self.thread.join();
        served.map_err(|_| anyhow::anyhow!("who asked the service has panicked"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, generation: u32, ready: bool) -> Pod {
        let ready = if ready { "True" } else { "False" };
        let object = json!({
            "metadata": { "name": uid, "uid": uid, "labels": {
                "hyperion.io/workload": "web", "hyperion.io/replica": "0",
                "hyperion.io/generation": generation.to_string(),
            }},
            "spec": { "nodeName": "one", "containers": [] },
            "status": { "conditions": [{ "type": "Ready", "status": ready }] },
        });
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_copy_serves_from_its_readiness_to_its_end_where_somebody_reaches_it() {
        let seen = Seen::default();
        seen.pod("a", &pod("x", 1, false));
        assert!(!seen.serves("web"));
        seen.pod("a", &pod("x", 1, true));
        assert!(seen.serves("web") && !seen.serves("other"));
        seen.set_dark("a", true);
        assert!(!seen.serves("web"));
        seen.pod("b", &pod("y", 2, true));
        assert!(seen.serves("web"));
        assert_eq!(seen.most_at_once("web"), 2);
        seen.set_dark("a", false);
        seen.gone("b", "y");
        assert!(seen.serves("web"));
        // A list without it tells its end, too, and nothing of other clusters.
        seen.only("b", &BTreeSet::new());
        assert!(seen.serves("web"));
        seen.only("a", &BTreeSet::new());
        assert!(!seen.serves("web"));
    }

    #[test]
    fn each_copy_costs_what_its_decision_says_while_it_is_there() {
        let seen = Seen::default();
        let from = Instant::now();
        let hour = Duration::from_secs(3600);
        seen.pod("a", &pod("x", 1, true));
        seen.pod("b", &pod("y", 2, true));
        {
            let mut told = seen.lock();
            for copy in told.copies.values_mut() {
                copy.from = from;
            }
            for (generation, usd) in [("1", 0.5), ("2", 0.25)] {
                let key = ("web".to_owned(), "0".to_owned(), generation.to_owned());
                told.hourly.insert(key, usd);
            }
            let first = told.copies.values_mut().next().unwrap();
            first.to = Some(from + hour);
        }
        let spent = seen.spent(from, from + hour * 2);
        assert!((spent - 1.0).abs() < 1e-9, "{spent}");
    }

    #[test]
    fn failures_are_counted_and_the_gap_is_between_answers() {
        let asking = Asking::begin(|| false);
        crate::wait::until("some requests", Duration::from_secs(5), || {
            if asking.thread.is_finished() {
                Err("ended".to_owned())
            } else {
                Ok(())
            }
        })
        .unwrap();
        std::thread::yield_now();
        let served = asking.end().unwrap();
        assert_eq!(served.asked, served.failed);
        let good = Asking::begin(|| true).end().unwrap();
        assert_eq!((good.failed, good.gap), (0, Duration::ZERO));
    }
}
