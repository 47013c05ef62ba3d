//! `hyperion-agent update`: for people at a device, also one that is never online. It asks the agent
//! that runs there.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use clap::{Args, Subcommand};
use http_body_util::{BodyExt, Full};
use hyper::header::HOST;
use hyper::{Method, Request};
use serde_json::Value;
use tokio::net::UnixStream;

use super::bring::send;
use crate::local::{DEFAULT_SOCKET, Install, UpdateStatus};

/// How long the agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// Something with the updates of this device.
#[derive(Debug, Clone, Subcommand)]
pub enum Update {
    /// Install a bundle that is a file here, and restart into it
    Install {
        /// What is asked for.
        #[command(flatten)]
        install: Install,
        /// Which agent is asked.
        #[command(flatten)]
        agent: Agent,
    },
    /// Say what the slots hold, and how far an update is
    Status {
        /// As one JSON object
        #[arg(long)]
        json: bool,
        /// Which agent is asked.
        #[command(flatten)]
        agent: Agent,
    },
}

/// Which agent is asked.
#[derive(Debug, Clone, Args)]
pub struct Agent {
    /// Socket of the agent
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    local_socket: PathBuf,
}

/// Does it, and writes the answer to `out`.
///
/// # Errors
/// No agent answers, it does not take the bundle, or the output can't be written.
pub async fn command(update: Update, out: &mut impl Write) -> anyhow::Result<()> {
    match update {
        Update::Status { json, agent } => {
            let text = ask(&agent.local_socket, Method::GET, None).await?;
            let status: UpdateStatus = serde_json::from_str(&text).context("the agent's answer")?;
            if json {
                writeln!(out, "{:#}", serde_json::to_value(&status)?)
            } else {
                write!(out, "{}", lines(&status))
            }
        }
        Update::Install { mut install, agent } => {
            let named = install.file.display().to_string();
            // The agent has another working directory.
            install.file = std::fs::canonicalize(&install.file).with_context(|| named.clone())?;
            let body = serde_json::to_value(install).with_context(|| named)?;
            let text = ask(&agent.local_socket, Method::POST, Some(body)).await?;
            let answer: Value = serde_json::from_str(&text).context("the agent's answer")?;
            let order = answer["order"].as_str().unwrap_or_default();
            writeln!(
                out,
                "{order}: `hyperion-agent update status` tells how far it is"
            )
        }
    }
    .and_then(|()| out.flush())
    .context("standard output")
}

fn lines(status: &UpdateStatus) -> String {
    use std::fmt::Write;
    let or = |text: &str, none: &str| match text {
        "" => none.to_owned(),
        text => text.to_owned(),
    };
    let mut text = String::new();
    let _ = writeln!(
        text,
        "machine  {}",
        or(&status.machine, "none: this device has no slots")
    );
    let _ = writeln!(text, "system   {}", or(&status.system_version, "unknown"));
    for slot in &status.slots {
        let running = if slot.running { "  running" } else { "" };
        let version = or(&slot.version, "-");
        let _ = writeln!(
            text,
            "slot {}   {version}  {}{running}",
            slot.name, slot.state
        );
    }
    let _ = match status.phase.as_str() {
        "" => writeln!(text, "update   none yet"),
        phase => writeln!(
            text,
            "update   {}  {phase} {}%",
            status.version, status.percent
        ),
    };
    if !status.reason.is_empty() {
        let _ = writeln!(text, "reason   {}: {}", status.reason, status.message);
    }
    text
}

/// One request to the agent.
async fn ask(socket: &Path, method: Method, body: Option<Value>) -> anyhow::Result<String> {
    let asked = async {
        let stream = UnixStream::connect(socket).await?;
        let body = body.map_or_else(String::new, |body| body.to_string());
        let request = Request::builder()
            .method(method)
            .uri("/v1/update")
            .header(HOST, "agent")
            .body(Full::new(Bytes::from(body)))?;
        let answer = send(stream, request).await?;
        let code = answer.status();
        let bytes = answer.into_body().collect().await?.to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if code.is_success() {
            return Ok(text);
        }
        let problem = serde_json::from_str::<Value>(&text).unwrap_or_default();
        match problem["error"].as_str() {
            Some(error) => bail!("{error}"),
            None => bail!("status {code}"),
        }
    };
    tokio::time::timeout(PATIENCE, asked)
        .await
        .map_err(|_| anyhow!("no answer in {PATIENCE:?}"))?
        .with_context(|| format!("the agent at {}", socket.display()))
}
