//! serf's agents, a process each. Their logs say what they see, the moment they see it.

use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context, ensure};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};

use super::net;
use super::run::{self, System};
use super::tally::{Saw, Tally};
use hyperion_lab::proc;

/// First port for the agents' RPC, on 127.0.0.1, which is neither counted nor lossy.
const RPC: usize = 20_000;

/// What is installed.
///
/// # Errors
/// Nothing is.
pub(super) fn version() -> anyhow::Result<String> {
    let output = std::process::Command::new("serf")
        .arg("version")
        .output()
        .context("serf version")?;
    ensure!(output.status.success(), "serf version: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(format!(
        "serf {}",
        text.lines().next().unwrap_or_default().trim()
    ))
}

/// serf's profile that is closest to one of ours.
pub(super) fn profile(ours: &str) -> &'static str {
    if ours == "fast" { "local" } else { "lan" }
}

/// The agents that run.
pub(super) struct Agents {
    children: Vec<Option<Child>>,
}

impl Agents {
    pub(super) async fn start(
        nodes: usize,
        profile: &str,
        tally: &Arc<Tally>,
    ) -> anyhow::Result<Self> {
        let mut children = Vec::with_capacity(nodes);
        for node in 0..nodes {
            let mut command = Command::new("serf");
            command
                .arg("agent")
                .arg(format!("-node={}", net::name(node)))
                .arg(format!("-bind={}", net::address(node)))
                .arg(format!("-rpc-addr=127.0.0.1:{}", RPC + node))
                .arg(format!("-profile={profile}"))
                .arg("-log-level=info")
                // Hundreds of them share the machine.
                .env("GOMAXPROCS", "1")
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .kill_on_drop(true);
            if node > 0 {
                command
                    .arg(format!("-retry-join={}", net::address(0)))
                    .arg("-retry-interval=1s");
            }
            let mut child = command.spawn().context("serf agent")?;
            if let Some(out) = child.stdout.take() {
                tokio::spawn(read(node, out, Arc::clone(tally)));
            }
            if let Some(out) = child.stderr.take() {
                tokio::spawn(read(node, out, Arc::clone(tally)));
            }
            children.push(Some(child));
            run::apart(node).await;
        }
        Ok(Self { children })
    }

    fn pids(&self) -> impl Iterator<Item = u32> {
        self.children.iter().flatten().filter_map(Child::id)
    }
}

impl System for Agents {
    fn kill(&mut self, node: usize) {
        // Dropping it kills it.
        if let Some(child) = self.children.get_mut(node) {
            *child = None;
        }
    }

    fn cpu_seconds(&self) -> f64 {
        self.pids()
            .filter_map(|pid| proc::cpu_seconds(pid).ok())
            .sum()
    }

    fn memory_bytes(&self) -> u64 {
        self.pids()
            .filter_map(|pid| proc::rss_bytes(pid).ok())
            .sum()
    }

    fn stalls(&self) -> Option<u64> {
        None
    }
}

async fn read(node: usize, out: impl AsyncRead + Unpin, tally: Arc<Tally>) {
    let mut lines = BufReader::new(out).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some((saw, other)) = event(&line) {
            tally.add(node, other, saw);
        }
    }
}

/// What a line of the log says of whom.
fn event(line: &str) -> Option<(Saw, usize)> {
    let kinds = [
        ("serf: EventMemberJoin: ", Saw::Up),
        ("serf: EventMemberFailed: ", Saw::Down),
        ("memberlist: Suspect ", Saw::Suspect),
    ];
    kinds.into_iter().find_map(|(start, saw)| {
        let (_, rest) = line.split_once(start)?;
        let node = net::index(rest.split(' ').next()?)?;
        Some((saw, node))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_read() {
        let lines = [
            "    2026/11/28 21:17:09 [INFO] serf: EventMemberJoin: node-2 127.1.0.3",
            "    2026/11/28 21:17:15 [INFO] memberlist: Suspect node-3 has failed, no acks received",
            "    2026/11/28 21:17:19 [INFO] memberlist: Marking node-3 as failed, suspect timeout reached (0 peer confirmations)",
            "    2026/11/28 21:17:19 [INFO] serf: EventMemberFailed: node-3 127.1.0.4",
            "    2026/11/28 21:17:20 [INFO] agent: Received event: member-failed",
            "==> Log data will now stream in as it occurs:",
        ];
        let read: Vec<_> = lines.iter().filter_map(|line| event(line)).collect();
        assert_eq!(read, [(Saw::Up, 2), (Saw::Suspect, 3), (Saw::Down, 3)]);
    }
}
