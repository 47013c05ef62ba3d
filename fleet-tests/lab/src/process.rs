//! Programs started by the lab: their logs, and their end.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

/// A process, told from a later one with the same number by its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Number.
    pub pid: u32,
    /// Clock ticks after boot at which it started.
    pub started: u64,
}

impl ProcessId {
    /// The process that has this number now.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the program's name and may hold anything; the rest follows its ')'.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        if fields.next()? == "Z" {
            return None;
        }
        let started = fields.nth(18)?.parse().ok()?;
        Some(Self { pid, started })
    }

    /// Does it still run?
    #[must_use]
    pub fn alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// Sends a signal, if it still runs.
    pub fn signal(&self, signal: Signal) {
        if !self.alive() {
            return;
        }
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended just now.
            let _gone = kill_process(pid, signal);
        }
    }

    /// SIGTERM, and SIGKILL after `grace`.
    pub fn stop(&self, grace: Duration) {
        self.signal(Signal::TERM);
        let start = Instant::now();
        while self.alive() && start.elapsed() < grace {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.signal(Signal::KILL);
    }
}

/// A program with its arguments, that can be started again as it was.
#[derive(Debug)]
pub struct Process {
    /// For people, and the name of its log.
    pub name: String,
    program: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// Describes a program; it is not started yet. Its output is appended to `logs/<name>.log`.
    #[must_use]
    pub fn new(name: &str, program: &Path, args: Vec<String>, logs: &Path) -> Self {
        Self {
            name: name.to_owned(),
            program: program.to_owned(),
            args,
            env: Vec::new(),
            log: logs.join(format!("{name}.log")),
            child: None,
        }
    }

    /// Sets a variable for the next start.
    pub fn env(&mut self, name: &str, value: &str) {
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// Replaces the arguments for the next start.
    pub fn set_args(&mut self, args: Vec<String>) {
        self.args = args;
    }

    /// Arguments.
    #[must_use]
    pub fn args(&self) -> &[String] {
        &self.args
    }

    /// Starts it, in a process group of its own: Ctrl-C goes to the lab alone, which then stops
    /// everything in order.
    ///
    /// # Errors
    /// The program can't be run or its log can't be opened.
    pub fn start(&mut self) -> Result<ProcessId> {
        use std::os::unix::process::CommandExt;
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("{}", self.log.display()))?;
        let child = Command::new(&self.program)
            .args(&self.args)
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        let id = ProcessId::of(child.id());
        self.child = Some(child);
        id.with_context(|| format!("{} ended at once: {}", self.name, self.log_tail(20)))
    }

    /// Its number, while it runs.
    #[must_use]
    pub fn id(&self) -> Option<ProcessId> {
        self.child.as_ref().and_then(|c| ProcessId::of(c.id()))
    }

    /// Its exit status, once it has ended by itself.
    #[must_use]
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().ok()?
    }

    /// `kill -9`, and waits for the end.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _gone = child.kill();
            let _status = child.wait();
        }
    }

    /// SIGTERM, waits, SIGKILL after `grace`; the exit status if it went by itself.
    pub fn terminate(&mut self, grace: Duration) -> Option<ExitStatus> {
        let mut child = self.child.take()?;
        if let Some(id) = ProcessId::of(child.id()) {
            id.signal(Signal::TERM);
        }
        let start = Instant::now();
        while start.elapsed() < grace {
            match child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) => std::thread::sleep(Duration::from_millis(20)),
                Err(_) => break,
            }
        }
        let _gone = child.kill();
        let _status = child.wait();
        None
    }

    /// Leaves it running; it is no longer ours to stop.
    pub fn release(&mut self) {
        self.child = None;
    }

    /// Path of its log.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Everything it has printed.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The last lines that it printed.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log(), lines)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last lines of a text.
#[must_use]
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    let from = all.len().saturating_sub(lines);
    all.get(from..).unwrap_or_default().join("\n")
}

/// Runs a command to its end.
///
/// # Errors
/// It can't be run, or failed: the error has its complaint.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    let out = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| program.to_owned())?;
    if !out.status.success() {
        anyhow::bail!(
            "{program} {}: {}: {}",
            args.join(" "),
            out.status,
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
