//! The program with a real containerd, told what to run by a control plane in this process.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

mod runtime_support;
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{FetchLogs, PodSpec, ReplicaPhase, RestartPolicy, StartReplica};
use runtime_support::fixture::{forever, shell};
use runtime_support::{Containerd, missing};
use support::{Control, TOKEN, key, until};

fn order(workload: &str, generation: u64) -> StartReplica {
    let mut container = forever();
    if workload == "talker" {
        container = shell("echo hello from the node; sleep 100000");
    }
    StartReplica {
        key: Some(key(workload)),
        generation,
        pod: Some(PodSpec {
            containers: vec![container],
            restart_policy: RestartPolicy::Always.into(),
            termination_grace_period_seconds: 1,
            ..PodSpec::default()
        }),
        command_id: 0,
        ..Default::default()
    }
}

/// A running `hyperion-agent`; killed when dropped.
struct Agent(Child);

impl Agent {
    fn start(dir: &Path, control: &str, fingerprint: &str, containerd: &Containerd) -> Self {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(dir.join("agent.log"))
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_hyperion-agent"))
            .env_remove("HYPERION_TOKEN")
            .args(["--control", control, "--http-addr", "off"])
            .args(["--ca-fingerprint", fingerprint, "--token", TOKEN])
            .arg("--data-dir")
            .arg(dir)
            .arg("--containerd-socket")
            .arg(containerd.socket())
            .stderr(log)
            .spawn()
            .unwrap();
        Self(child)
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    fn terminate(mut self) {
        let pid = self.0.id().to_string();
        let kill = Command::new("kill").args(["-TERM", &pid]).status().unwrap();
        assert!(kill.success());
        assert_eq!(self.0.wait().unwrap().code(), Some(0));
    }

    /// Kilobytes: anonymous, all.
    fn memory(&self) -> (u64, u64) {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let field = |name: &str| {
            let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        (field("RssAnon"), field("VmRSS"))
    }

    fn cpu(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.0.id())).unwrap();
        tasks
            .filter_map(|t| std::fs::read_to_string(t.unwrap().path().join("schedstat")).ok())
            .filter_map(|t| t.split_whitespace().next()?.parse().ok())
            .map(Duration::from_nanos)
            .sum()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Workloads whose last report is running and ready, with their container ids.
fn running(control: &Control) -> BTreeMap<String, Vec<String>> {
    let mut last = BTreeMap::new();
    for hello in control.state.hellos.lock().unwrap().iter().rev().take(1) {
        for r in &hello.replicas {
            last.insert(r.key.clone().unwrap().workload, r.clone());
        }
    }
    for r in control.received(|body| match body {
        Body::ReplicaReport(r) => Some(r.clone()),
        _ => None,
    }) {
        last.insert(r.key.clone().unwrap().workload, r);
    }
    last.into_iter()
        .filter(|(_, r)| r.phase() == ReplicaPhase::Running && r.ready)
        .map(|(workload, r)| (workload, r.container_ids))
        .collect()
}

/// Processes of containers: task id and pid.
fn tasks(containerd: &Containerd) -> BTreeMap<String, String> {
    let list = containerd.ctr(&["task", "ls"]).unwrap();
    list.lines()
        .skip(1)
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (id, pid, state) = (words.next()?, words.next()?, words.next()?);
            (state == "RUNNING").then(|| (id.to_owned(), pid.to_owned()))
        })
        .collect()
}

async fn all_running(control: &Control, count: usize, dir: &Path) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while running(control).len() < count {
        let log = std::fs::read_to_string(dir.join("agent.log")).unwrap_or_default();
        assert!(Instant::now() < deadline, "{:?}\n{log}", running(control));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn ten_containers_outlive_the_program_and_cost_it_little() {
    if let Some(reason) = missing() {
        println!("SKIPPED: {reason}");
        return;
    }
    let containerd = Containerd::start();
    let control = Control::start();
    let (address, fingerprint) = (control.addr.to_string(), control.fingerprint.clone());
    let dir = tempfile::tempdir().unwrap();
    let start = || Agent::start(dir.path(), &address, &fingerprint, &containerd);
    let agent = start();
    until("connected", || control.hellos() == 1).await;
    let names: Vec<String> = (0..9).map(|i| format!("web-{i}")).collect();
    let mut orders: Vec<StartReplica> = names.iter().map(|n| order(n, 1)).collect();
    orders.push(order("talker", 1));
    let begun = Instant::now();
    for order in &orders {
        control.send(Body::StartReplica(order.clone())).await;
    }
    all_running(&control, 10, dir.path()).await;
    println!("ten orders to running: {:?}", begun.elapsed());
    control.set_welcome(orders.clone(), true);

    control
        .send(Body::FetchLogs(FetchLogs {
            request_id: 1,
            key: Some(key("talker")),
            ..FetchLogs::default()
        }))
        .await;
    until("the log", || {
        let chunks = control.received(|body| match body {
            Body::LogChunk(c) => Some(c.clone()),
            _ => None,
        });
        let text: Vec<u8> = chunks.iter().flat_map(|c| c.data.clone()).collect();
        text == b"hello from the node\n" && chunks.last().is_some_and(|c| c.end)
    })
    .await;

    let telemetry = || {
        control
            .received(|body| matches!(body, Body::Telemetry(_)).then_some(()))
            .len()
    };
    let (cpu, at, first) = (agent.cpu(), Instant::now(), telemetry());
    until("five more messages", || telemetry() >= first + 5).await;
    let share = (agent.cpu() - cpu).as_secs_f64() / at.elapsed().as_secs_f64() * 100.0;
    let (anonymous, resident) = agent.memory();
    println!(
        "with ten containers: {anonymous} KiB anonymous, {resident} KiB resident, {share:.2} % of a core"
    );
    assert!(anonymous < 10 * 1024, "{anonymous} KiB anonymous");

    let before = tasks(&containerd);
    assert!(before.len() >= 20, "sandboxes and containers: {before:?}");
    let ids = running(&control);
    agent.kill();
    let agent = start();
    until("the next agent is there", || control.hellos() == 2).await;
    let hello = control.last_hello();
    assert_eq!(hello.replicas.len(), 10);
    for report in &hello.replicas {
        assert_eq!(report.phase(), ReplicaPhase::Running, "{report:?}");
        assert_eq!(
            report.container_ids,
            ids[&report.key.clone().unwrap().workload]
        );
    }
    // A new generation of the same pod is adopted, too.
    control.send(Body::StartReplica(order("web-0", 2))).await;
    until("generation 2 runs", || {
        control.received(|body| match body {
            Body::ReplicaReport(r) if r.generation == 2 => Some(r.phase()),
            _ => None,
        }) == [ReplicaPhase::Running]
    })
    .await;
    agent.terminate();
    assert_eq!(tasks(&containerd), before, "the same processes all along");

    // Without network, after the containers were lost.
    for id in before.keys() {
        let _ = containerd.ctr(&["task", "kill", "-s", "KILL", id]);
    }
    until("all are gone", || tasks(&containerd).is_empty()).await;
    let agent = Agent::start(dir.path(), "127.0.0.1:9", &fingerprint, &containerd);
    let deadline = Instant::now() + Duration::from_secs(60);
    while tasks(&containerd).len() < 20 {
        assert!(Instant::now() < deadline, "{:?}", tasks(&containerd));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    agent.terminate();

    // Told the whole again: nothing is to run.
    control.set_welcome(Vec::new(), true);
    let agent = start();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !tasks(&containerd).is_empty() {
        assert!(Instant::now() < deadline, "{:?}", tasks(&containerd));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    agent.terminate();
    let log = std::fs::read_to_string(dir.path().join("agent.log")).unwrap();
    assert!(!log.contains("ERROR"), "{log}");
    println!("{log}");
}

#[test]
fn image_import_prints_the_names_that_it_brought() {
    if let Some(reason) = missing() {
        println!("SKIPPED: {reason}");
        return;
    }
    let containerd = Containerd::start();
    let name = "localhost/from-file:1";
    let tar = containerd.image(name, &["/bin/sh"]);
    let output = Command::new(env!("CARGO_BIN_EXE_hyperion-agent"))
        .args(["image", "import"])
        .arg(&tar)
        .arg("--containerd-socket")
        .arg(containerd.socket())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{name}\n"));
    let images = containerd.ctr(&["image", "ls", "-q"]).unwrap();
    assert!(images.lines().any(|line| line == name), "{images}");
}
