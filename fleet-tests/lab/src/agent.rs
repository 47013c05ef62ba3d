//! Agents: `hyperion-agent`, one process each, all on one containerd.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::control::{Control, Token};
use crate::device::{Device, PEER_PORT};
use crate::process::{Process, ProcessId};
use crate::{needs, wait};

/// Label that tells which agent of a lab a node is.
pub const NAME_LABEL: &str = "lab.hyperion.io/agent";

/// What an agent is told.
#[derive(Debug, Clone, Default)]
pub struct AgentSpec {
    /// Name in the lab.
    pub name: String,
    /// Site to join.
    pub site: String,
    /// Labels.
    pub labels: Vec<(String, String)>,
    /// More flags.
    pub args: Vec<String>,
}

impl AgentSpec {
    /// An edge node of site `lab`.
    #[must_use]
    pub fn edge(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            site: "lab".to_owned(),
            ..Self::default()
        }
    }

    /// A node that stands for one at a provider: its price comes from the built-in table.
    #[must_use]
    pub fn cloud(name: &str, provider: &str, region: &str, instance: &str, spot: bool) -> Self {
        let labels = [
            ("hyperion.io/provider", provider),
            ("topology.kubernetes.io/region", region),
            ("node.kubernetes.io/instance-type", instance),
            (
                "hyperion.io/capacity-type",
                if spot { "spot" } else { "on-demand" },
            ),
        ];
        Self {
            name: name.to_owned(),
            site: format!("{provider}-{region}"),
            labels: labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            args: Vec::new(),
        }
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Adds a flag with its value.
    #[must_use]
    pub fn flag(mut self, flag: &str, value: &str) -> Self {
        self.args.extend([flag.to_owned(), value.to_owned()]);
        self
    }
}

/// An agent.
#[derive(Debug)]
pub struct Agent {
    /// Name in the lab.
    pub name: String,
    /// Its data folder.
    pub data: PathBuf,
    /// Its place in the network, where it has one of its own.
    pub device: Option<Device>,
    process: Process,
    /// Node id, once it is known.
    pub node: String,
}

impl Agent {
    /// Describes an agent; it is not started yet.
    #[must_use]
    pub fn prepare(
        dir: &Path,
        link: &str,
        socket: &Path,
        token: Option<&Token>,
        spec: &AgentSpec,
        device: Option<Device>,
    ) -> Self {
        let data = dir.join("agents").join(&spec.name);
        let mut args: Vec<String> = [
            ("--control", link.to_owned()),
            ("--data-dir", data.display().to_string()),
            ("--containerd-socket", socket.display().to_string()),
            ("--site", spec.site.clone()),
            ("--label", format!("{NAME_LABEL}={}", spec.name)),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect();
        if !spec.args.iter().any(|a| a == "--http-addr") {
            args.extend(["--http-addr".to_owned(), "off".to_owned()]);
        }
        if let Some(token) = token {
            args.extend(["--token".to_owned(), token.token.clone()]);
            args.extend(["--ca-fingerprint".to_owned(), token.fingerprint.clone()]);
        }
        for (key, value) in &spec.labels {
            args.extend(["--label".to_owned(), format!("{key}={value}")]);
        }
        let peers = match &device {
            Some(device) => format!("{}:{PEER_PORT}", device.address),
            None => "127.0.0.1:0".to_owned(),
        };
        let local = data.join("agent.sock").display().to_string();
        for (flag, value) in [("--peer-addr", peers), ("--local-socket", local)] {
            if !spec.args.iter().any(|a| a == flag) {
                args.extend([flag.to_owned(), value]);
            }
        }
        args.push("--no-mdns".to_owned());
        // The machine that the lab runs on may be a cloud's.
        if !spec.args.iter().any(|a| a == "--cloud-metadata") {
            args.extend(["--cloud-metadata".to_owned(), "none".to_owned()]);
        }
        args.extend(spec.args.iter().cloned());
        let mut program = needs::programs().join("hyperion-agent");
        if let Some(device) = &device {
            (program, args) = device.inside(&program, args);
        }
        let process = Process::new(
            &format!("agent-{}", spec.name),
            &program,
            args,
            &dir.join("logs"),
        );
        Self {
            name: spec.name.clone(),
            data,
            device,
            process,
            node: String::new(),
        }
    }

    /// Starts it (again).
    ///
    /// # Errors
    /// It can't be run.
    pub fn start(&mut self) -> Result<ProcessId> {
        std::fs::create_dir_all(&self.data)?;
        self.process.start()
    }

    /// Waits until its node is there and ready; notes the node id.
    ///
    /// # Errors
    /// It ends, or is not ready in time: the error has the end of its log.
    pub fn wait_ready(&mut self, control: &Control) -> Result<()> {
        let ready = wait::until(
            &format!("agent {}", self.name),
            Duration::from_secs(30),
            || {
                if let Some(status) = self.process.ended() {
                    return Err(format!("ended: {status}"));
                }
                let nodes = control
                    .kubectl()
                    .get(&["hyperionnodes"])
                    .map_err(|e| e.to_string())?;
                let items = nodes.get("items").and_then(|i| i.as_array());
                let node = items.into_iter().flatten().find(|n| {
                    let label = n.pointer("/status/labels").and_then(|l| l.get(NAME_LABEL));
                    label.and_then(|l| l.as_str()) == Some(&self.name)
                });
                let Some(node) = node else {
                    return Err("no node has its label".to_owned());
                };
                let text = |path| node.pointer(path).and_then(|v| v.as_str());
                self.node = text("/metadata/name").unwrap_or_default().to_owned();
                match text("/status/ready") {
                    Some("True") => Ok(()),
                    other => Err(format!("node {} is ready: {other:?}", self.node)),
                }
            },
        );
        ready.with_context(|| format!("log of agent {}:\n{}", self.name, self.process.log_tail(20)))
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// SIGTERM; the exit status if it went by itself within 15 s.
    pub fn terminate(&mut self) -> Option<ExitStatus> {
        self.process.terminate(Duration::from_secs(15))
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Everything it has printed.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }
}
