//! What a decision of a cut-off site takes on the path that a device goes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use hdrhistogram::Histogram;
use hyperion_agent::node::{Effect, Gone, Node, NodeConfig, NodeFacts, Now, Outgoing};
use hyperion_agent::store::Store;
use hyperion_agent::supervisor::{Desired, LogError, LogQuery};
use hyperion_agent::workloads::Workloads;
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{
    Container, Intent, NodeCapabilities, PodSpec, ReplicaKey, ReplicaPhase, ReplicaRecord,
    ReplicaReport, SiteInfo, SiteMember, Welcome,
};
use hyperion_proto::peer_v1::Frame;
use prost::Message;

use crate::report::Report;

/// Measure decisions of a cut-off site: gather what is known of all nodes, filter, score with the
/// quantised policy, choose and check, write the record to disk, and encode it for the peers.
///
/// All nodes are real node cores with a store on disk each; time, network and containers are
/// simulated.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Nodes of the site.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..=500))]
    pub nodes: u32,
    /// Workloads that are applied at the site, one after the other.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=5000))]
    pub decisions: u32,
    /// Folder on the disk that is measured; a temporary one where none is given.
    #[arg(long)]
    pub store: Option<PathBuf>,
    /// Seed of what nodes draw.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// 2026-01-01: nothing is decided by it.
const WALL_MS: i64 = 1_767_225_600_000;
/// Step of the simulated time.
const STEP: Duration = Duration::from_millis(50);
/// Answers to answers within one step.
const ROUNDS: usize = 8;
/// Longest wait for the site to decide something, simulated.
const PATIENCE: Duration = Duration::from_secs(120);

/// Measures.
///
/// # Errors
/// The disk, or a site that does not decide.
pub fn run(args: &Args) -> anyhow::Result<Report> {
    let temporary;
    let dir = if let Some(dir) = &args.store {
        dir
    } else {
        temporary = tempfile::tempdir().context("a folder for the stores")?;
        temporary.path()
    };
    let mut site = Site::new(args, dir)?;
    site.until("all know each other", Site::complete)?;
    site.cut_off();
    site.until("autonomous", |site| {
        site.nodes()
            .all(|node| node.mode() == hyperion_autonomy::Mode::Autonomous)
    })?;

    for n in 0..args.decisions {
        site.apply(n)?;
    }
    let applied = site.take_times()?;
    // More than that where a node found that it had no room after all: then it is decided again.
    anyhow::ensure!(
        site.decided >= u64::from(args.decisions),
        "{} of {} workloads were placed",
        site.decided,
        args.decisions
    );

    let (dead, lost) = site.kill_busiest();
    let before = site.decided;
    site.until("taken over", |site| site.decided - before >= lost)?;
    let taken_over = site.take_times()?;

    let mut report = Report::new("offline", args.seed);
    report.condition("nodes", args.nodes);
    report.condition("workloads", args.decisions);
    report.condition("dead_node_had", lost);
    report.condition("dead_node", dead);
    report.condition("policy", site.policy());
    report.condition(
        "timed",
        "one call of the node core: gather, filter, score, choose, check, fsync, encode for peers",
    );
    for (name, times) in [("decide", &applied), ("takeover", &taken_over)] {
        for (which, quantile) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
            let us = u32::try_from(times.value_at_quantile(quantile)).unwrap_or(u32::MAX);
            report.figure(&format!("{name}_{which}_ms"), f64::from(us) / 1000.0);
        }
    }
    Ok(report)
}

struct Site {
    start: Instant,
    passed: Duration,
    members: BTreeMap<String, Node<Instantly>>,
    /// Places that were decided since the beginning.
    decided: u64,
    /// Real time of each call in which a place was decided, for each place.
    times: Vec<Duration>,
}

impl Site {
    fn new(args: &Args, dir: &Path) -> anyhow::Result<Self> {
        let mut site = Self {
            start: Instant::now(),
            passed: Duration::ZERO,
            members: BTreeMap::new(),
            decided: 0,
            times: Vec::new(),
        };
        let ids: Vec<String> = (0..args.nodes).map(|n| format!("node-{n:03}")).collect();
        let welcome = welcome(&ids);
        for (seed, id) in (args.seed..).zip(&ids) {
            let own = dir.join(id);
            std::fs::create_dir_all(&own).with_context(|| format!("--store: {}", own.display()))?;
            let store = Store::open(&own, false)?;
            let now = site.now();
            let mut node = Node::new(config(id, seed), store, Instantly::default(), now);
            let _hello = node.hello();
            node.connected(&welcome, now, &Nowhere);
            site.members.insert(id.clone(), node);
        }
        Ok(site)
    }

    fn now(&self) -> Now {
        let passed = i64::try_from(self.passed.as_millis()).unwrap_or(i64::MAX);
        Now {
            at: self.start + self.passed,
            unix_ms: WALL_MS.saturating_add(passed),
        }
    }

    fn nodes(&self) -> impl Iterator<Item = &Node<Instantly>> {
        self.members.values()
    }

    fn complete(&self) -> bool {
        let all = self.members.len();
        self.nodes().all(|node| {
            let known = self.members.keys();
            let known = known.filter(|id| node.autonomy().site().node(id).is_some());
            known.count() == all
        })
    }

    fn cut_off(&mut self) {
        let now = self.now();
        for node in self.members.values_mut() {
            node.disconnected(Gone::Lost, now);
        }
    }

    fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) -> anyhow::Result<()> {
        let end = self.passed + PATIENCE;
        while !holds(self) {
            anyhow::ensure!(self.passed < end, "not within {PATIENCE:?}: {what}");
            self.step();
        }
        Ok(())
    }

    fn step(&mut self) {
        self.passed += STEP;
        let now = self.now();
        let mut sent = Vec::new();
        let due = self
            .members
            .iter()
            .filter(|(_, node)| node.next_wake() <= now.at);
        let due: Vec<String> = due.map(|(id, _)| id.clone()).collect();
        for id in due {
            self.call(&id, &mut sent, |node| node.tick(now, &Nowhere));
        }
        self.deliver(sent);
    }

    /// Applies a workload at one node after another, and waits until it has its place.
    fn apply(&mut self, n: u32) -> anyhow::Result<()> {
        let at = n as usize % self.members.len();
        let Some(id) = self.members.keys().nth(at).cloned() else {
            return Ok(());
        };
        let (now, before) = (self.now(), self.decided);
        let mut sent = Vec::new();
        let applied = self.call(&id, &mut sent, |node| {
            node.apply(vec![workload(n)], now, &Nowhere)
        });
        match applied {
            Some(Ok(())) => {}
            Some(Err(why)) => anyhow::bail!("workload {n} at {id}: {why}"),
            None => anyhow::bail!("{id} is gone"),
        }
        self.deliver(sent);
        self.until("a place for what was applied", |site| site.decided > before)
    }

    /// The node with most replicas dies. Gives its id and how many it had.
    fn kill_busiest(&mut self) -> (String, u64) {
        let busy = self
            .members
            .iter()
            .map(|(id, node)| (node.workloads().count(), id.clone()))
            .max()
            .unwrap_or_default();
        self.members.remove(&busy.1);
        (busy.1, busy.0)
    }

    /// One call of a node, with what follows from it until it may be told to others.
    fn call<T>(
        &mut self,
        id: &str,
        sent: &mut Vec<(String, Effect)>,
        act: impl FnOnce(&mut Node<Instantly>) -> T,
    ) -> Option<T> {
        let node = self.members.get_mut(id)?;
        let before = node.autonomy().counts().decisions;
        let begin = Instant::now();
        let result = act(node);
        let effects = node.take_effects();
        for effect in &effects {
            if let Effect::Frame { frame, .. } = effect {
                std::hint::black_box(frame.encode_to_vec());
            }
        }
        let took = begin.elapsed();
        let decided = node.autonomy().counts().decisions - before;
        if let Ok(places) = u32::try_from(decided)
            && places > 0
        {
            self.decided += decided;
            let each = std::iter::repeat_n(took / places, places as usize);
            self.times.extend(each);
        }
        sent.extend(effects.into_iter().map(|effect| (id.to_owned(), effect)));
        Some(result)
    }

    fn deliver(&mut self, mut sent: Vec<(String, Effect)>) {
        let now = self.now();
        for _ in 0..ROUNDS {
            let mut answers = Vec::new();
            for (from, effect) in sent {
                let (to, message) = match effect {
                    Effect::Datagram { to, bytes } => (to, Told::Datagram(bytes)),
                    Effect::Frame { to, frame } => (to, Told::Frame(frame)),
                    _ => continue,
                };
                self.call(&to, &mut answers, |node| match message {
                    Told::Datagram(bytes) => node.datagram(&from, bytes, now),
                    Told::Frame(frame) => node.frame(&from, *frame, now),
                });
            }
            if answers.is_empty() {
                return;
            }
            sent = answers;
        }
    }

    fn take_times(&mut self) -> anyhow::Result<Histogram<u64>> {
        let mut histogram = Histogram::new(3)?;
        for took in std::mem::take(&mut self.times) {
            histogram.record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX))?;
        }
        Ok(histogram)
    }

    /// What decides at the nodes.
    fn policy(&self) -> String {
        let node = self.nodes().next();
        node.map_or_else(String::new, |node| {
            use hyperion_autonomy::Decide;
            node.decider().policy_hash().to_owned()
        })
    }
}

enum Told {
    Datagram(Bytes),
    Frame(Box<Frame>),
}

/// Runs what it is told at once.
#[derive(Clone, Default)]
struct Instantly(Arc<Mutex<Vec<Desired>>>);

impl Instantly {
    fn count(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }
}

impl Workloads for Instantly {
    fn set_desired(&self, desired: Vec<Desired>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = desired;
    }

    fn reports(&self) -> Vec<ReplicaReport> {
        let desired = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let report = |d: &Desired| ReplicaReport {
            key: Some((&d.start.key).into()),
            generation: d.start.generation,
            phase: ReplicaPhase::Running.into(),
            ready: true,
            ..ReplicaReport::default()
        };
        desired.iter().map(report).collect()
    }

    fn logs(&self, _: LogQuery) -> BoxStream<'static, Result<Bytes, LogError>> {
        futures::stream::empty().boxed()
    }
}

/// The way to a control plane that is not there.
struct Nowhere;

impl Outgoing for Nowhere {
    fn send(&self, _: Body) -> bool {
        false
    }
}

fn config(id: &str, seed: u64) -> NodeConfig {
    NodeConfig {
        seed,
        addresses: vec![format!("{id}:7445")],
        ..NodeConfig::new(NodeFacts {
            node_id: id.to_owned(),
            boot_id: format!("first boot of {id}"),
            capabilities: NodeCapabilities {
                cpu_arch: "arm64".to_owned(),
                cpu_millis: 6000,
                memory_bytes: 8 << 30,
                disk_bytes: 64 << 30,
                container_runtime: "simulated".to_owned(),
                ..NodeCapabilities::default()
            },
            telemetry_interval_ms: 1000,
        })
    }
}

fn welcome(ids: &[String]) -> Welcome {
    let member = |id: &String| SiteMember {
        node_id: id.clone(),
        addresses: vec![format!("{id}:7445")],
        schedulable: true,
        price_per_hour: 0.02,
    };
    Welcome {
        replicas_complete: true,
        wall_clock_unix_ms: WALL_MS,
        site: Some(SiteInfo {
            version: 1,
            site: "bench".to_owned(),
            members: ids.iter().map(member).collect(),
            ..SiteInfo::default()
        }),
        ..Welcome::default()
    }
}

fn workload(n: u32) -> ReplicaRecord {
    ReplicaRecord {
        key: Some(ReplicaKey {
            namespace: "default".to_owned(),
            workload: format!("web-{n}"),
            workload_uid: format!("site-{n}"),
            ..ReplicaKey::default()
        }),
        pod: Some(PodSpec {
            containers: vec![Container {
                name: "main".to_owned(),
                image: "demo:1".to_owned(),
                ..Container::default()
            }],
            ..PodSpec::default()
        }),
        intent: Some(Intent {
            workload_type: "service".to_owned(),
            goal: ["default", "latency", "cost"][n as usize % 3].to_owned(),
            cpu_millis: 200,
            memory_bytes: 128 << 20,
            manifest: "{}".to_owned(),
            ..Intent::default()
        }),
        ..ReplicaRecord::default()
    }
}
