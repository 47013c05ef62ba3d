//! What really runs, and since when: read from containerd's own files by a thread that asks no
//! agent and no control plane.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::fleet::Fleet;
use crate::process::run;
use crate::{state, wait};

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// Longest wait for a connection to a service.
const CONNECT: Duration = Duration::from_millis(200);

/// One container from its start to its end, as it was seen.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Workload.
    pub workload: String,
    /// Replica number.
    pub replica: String,
    /// Node.
    pub node: String,
    /// Address in the containers' network; empty where it has none.
    pub address: String,
    /// Container.
    pub container: String,
    /// First seen.
    pub from: Instant,
    /// Last seen; none while it runs.
    pub to: Option<Instant>,
}

#[derive(Default)]
struct Seen {
    spans: BTreeMap<String, Span>,
    looks: u64,
}

/// Looks at containerd's files as long as it lives.
pub struct Truth {
    seen: Arc<Mutex<Seen>>,
    dir: PathBuf,
    bridge: String,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Truth {
    /// Begins to look at a fleet's containers.
    #[must_use]
    pub fn watch(fleet: &Fleet) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let looker = Looker {
            dir: fleet.dir.clone(),
            bridge: fleet.network.bridge.clone(),
            seen: seen.clone(),
            labels: BTreeMap::new(),
        };
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || looker.run(&stopped));
        Self {
            seen,
            dir: fleet.dir.clone(),
            bridge: fleet.network.bridge.clone(),
            stop,
            thread: Some(thread),
        }
    }

    /// All that was seen of a workload, in order of their starts.
    #[must_use]
    pub fn spans(&self, workload: &str) -> Vec<Span> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut spans: Vec<Span> = seen
            .spans
            .values()
            .filter(|s| s.workload == workload)
            .cloned()
            .collect();
        spans.sort_by_key(|s| s.from);
        spans
    }

    /// The copies of a workload that run now.
    #[must_use]
    pub fn running(&self, workload: &str) -> Vec<Span> {
        let mut spans = self.spans(workload);
        spans.retain(|s| s.to.is_none());
        spans
    }

    /// Waits until the copies of a workload that run now are as wanted, by a look that began after
    /// this call; gives them.
    ///
    /// # Errors
    /// Not in time: the error has the last copies.
    pub fn wait(
        &self,
        workload: &str,
        deadline: Duration,
        wanted: impl Fn(&[Span]) -> bool,
    ) -> Result<Vec<Span>> {
        let looks = self.looks();
        wait::until(&format!("copies of {workload}"), deadline, || {
            let running = self.running(workload);
            if self.looks() > looks + 1 && wanted(&running) {
                Ok(running)
            } else {
                Err(format!("{running:?}"))
            }
        })
    }

    /// Waits until a copy of a service answers that is not on `lost`; gives the copy and the moment
    /// of its answer.
    ///
    /// # Errors
    /// None does in time.
    pub fn wait_answer(
        &self,
        workload: &str,
        lost: Option<&str>,
        deadline: Duration,
    ) -> Result<(Span, Instant)> {
        wait::until(&format!("an answer of {workload}"), deadline, || {
            let running = self.running(workload);
            for span in &running {
                if Some(span.node.as_str()) != lost && answers(&span.address) {
                    return Ok((span.clone(), Instant::now()));
                }
            }
            Err(format!("{running:?}"))
        })
    }

    /// Does anything answer in the containers' network as a service of the demo image does? It asks
    /// every address that was given out, also of containers of which nothing else is known yet.
    #[must_use]
    pub fn anyone_answers(&self) -> bool {
        addresses(&self.dir, &self.bridge).any(|(address, _)| answers(&address))
    }

    /// Most copies of one replica that ran at one moment.
    #[must_use]
    pub fn most_at_once(&self, workload: &str, replica: &str) -> usize {
        let spans = self.spans(workload);
        let mine: Vec<&Span> = spans.iter().filter(|s| s.replica == replica).collect();
        let at = |moment: Instant| {
            let runs = |s: &&&Span| s.from <= moment && s.to.is_none_or(|to| to > moment);
            mine.iter().filter(runs).count()
        };
        mine.iter().map(|s| at(s.from)).max().unwrap_or(0)
    }

    /// Who ran where and for how long, as a table for people; times in seconds since `zero`.
    #[must_use]
    pub fn table(
        &self,
        workloads: &[&str],
        zero: Instant,
        name: impl Fn(&str) -> String,
    ) -> String {
        let mut text = String::from("WORKLOAD  REPLICA  NODE        FROM S    TO S\n");
        for workload in workloads {
            for span in self.spans(workload) {
                let since = |at: Instant| {
                    let (sign, time) = if at < zero {
                        ("-", zero - at)
                    } else {
                        ("", at - zero)
                    };
                    format!("{sign}{:.1}", time.as_secs_f64())
                };
                let to = span.to.map_or_else(|| "runs".to_owned(), since);
                let _infallible = writeln!(
                    text,
                    "{:<9} {:>7}  {:<10} {:>7} {:>7}",
                    span.workload,
                    span.replica,
                    name(&span.node),
                    since(span.from),
                    to
                );
            }
        }
        text
    }

    fn looks(&self) -> u64 {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .looks
    }
}

impl Drop for Truth {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // A panic of the looker shows in the test that waits for it.
            let _ended = thread.join();
        }
    }
}

/// Does a service of the demo image answer?
#[must_use]
pub fn answers(address: &str) -> bool {
    let ask = || -> Result<()> {
        let address: SocketAddr = format!("{address}:8080").parse()?;
        let mut stream = TcpStream::connect_timeout(&address, CONNECT)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        std::io::Write::write_all(&mut stream, b"GET /readyz HTTP/1.0\r\n\r\n")?;
        let mut head = [0_u8; 12];
        stream.read_exact(&mut head)?;
        ensure!(head.ends_with(b" 200"), "not ready");
        Ok(())
    };
    ask().is_ok()
}

struct Looker {
    dir: PathBuf,
    bridge: String,
    seen: Arc<Mutex<Seen>>,
    /// What containerd said of a container, once; none for a sandbox.
    labels: BTreeMap<String, Option<Facts>>,
}

#[derive(Clone)]
struct Facts {
    workload: String,
    replica: String,
    node: String,
    sandbox: String,
}

impl Looker {
    fn run(mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::SeqCst) {
            self.look();
            std::thread::sleep(LOOK);
        }
    }

    fn look(&mut self) {
        let now = Instant::now();
        let mut running = Vec::new();
        for id in tasks(&self.dir) {
            if !self.labels.contains_key(&id) {
                // It may be gone again; then there is nothing to know.
                let Ok(facts) = self.ask(&id) else { continue };
                self.labels.insert(id.clone(), facts);
            }
            if let Some(Some(facts)) = self.labels.get(&id) {
                running.push((id, facts.clone()));
            }
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, facts) in &running {
            let address = address_of(&self.dir, &self.bridge, &facts.sandbox);
            let span = seen.spans.entry(id.clone()).or_insert_with(|| Span {
                workload: facts.workload.clone(),
                replica: facts.replica.clone(),
                node: facts.node.clone(),
                address: String::new(),
                container: id.clone(),
                from: now,
                to: None,
            });
            if span.address.is_empty() {
                span.address = address.unwrap_or_default();
            }
        }
        for (id, span) in &mut seen.spans {
            if span.to.is_none() && !running.iter().any(|(other, _)| other == id) {
                span.to = Some(now);
            }
        }
        seen.looks += 1;
    }

    fn ask(&self, id: &str) -> Result<Option<Facts>> {
        let socket = state::socket(&self.dir);
        let socket = socket.to_string_lossy();
        let text = run(
            "ctr",
            &[
                "--address",
                &socket,
                "-n",
                "k8s.io",
                "container",
                "info",
                id,
            ],
        )?;
        let info: Value = serde_json::from_str(&text).context("ctr container info")?;
        let label = |name: &str| {
            let value = info.get("Labels")?.get(name)?.as_str()?;
            Some(value.to_owned())
        };
        let annotation = |name: &str| {
            let value = info.pointer("/Spec/annotations")?.get(name)?.as_str()?;
            Some(value.to_owned())
        };
        match annotation("io.kubernetes.cri.container-type").as_deref() {
            Some("sandbox") => Ok(None),
            Some("container") => Ok(Some(Facts {
                workload: label("hyperion.io/workload").context("no workload")?,
                replica: label("hyperion.io/replica").context("no replica")?,
                node: label("hyperion.io/node").context("no node")?,
                sandbox: annotation("io.kubernetes.cri.sandbox-id").context("no sandbox")?,
            })),
            other => bail!("container {id} is of type {other:?}"),
        }
    }
}

/// Tasks whose first process lives.
fn tasks(dir: &Path) -> Vec<String> {
    let tasks = dir.join("state/io.containerd.runtime.v2.task/k8s.io");
    let Ok(entries) = std::fs::read_dir(tasks) else {
        return Vec::new();
    };
    let lives = |path: &Path| {
        let pid = std::fs::read_to_string(path.join("init.pid")).ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).ok()?;
        let state = stat.rsplit_once(')')?.1.split_whitespace().next()?;
        (state != "Z" && state != "X").then_some(())
    };
    entries
        .flatten()
        .filter(|e| lives(&e.path()).is_some())
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Address that the containers' network gave to a sandbox.
fn address_of(dir: &Path, bridge: &str, sandbox: &str) -> Option<String> {
    let found = addresses(dir, bridge).find(|(_, of)| of == sandbox);
    found.map(|(address, _)| address)
}

/// Addresses that the containers' network gave out, each with its sandbox.
fn addresses(dir: &Path, bridge: &str) -> impl Iterator<Item = (String, String)> {
    let entries = std::fs::read_dir(dir.join("ipam").join(bridge));
    entries.into_iter().flatten().flatten().filter_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(entry.path()).ok()?;
        let sandbox = text.lines().next()?.trim().to_owned();
        name.starts_with("198.18.").then_some((name, sandbox))
    })
}
