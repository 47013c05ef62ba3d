//! What a fleet has started, written down so that it can be stopped by another process.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::process::{ProcessId, run};

/// Prefix of a fleet's folder in the temporary folder.
pub const PREFIX: &str = "hyperion-lab-";
const FILE: &str = "state.json";

/// Everything that one fleet has started.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct State {
    /// The fleet's folder.
    pub dir: PathBuf,
    /// Process that owns the fleet.
    pub owner: Option<ProcessId>,
    /// The fleet outlives its owner, until `hyperion-demo stop`.
    pub keep: bool,
    /// Agents and control planes.
    pub processes: Vec<ProcessId>,
    /// containerd.
    pub containerd: Option<ProcessId>,
    /// Bridge of the containers' network.
    pub bridge: Option<String>,
    /// Network namespaces of devices.
    #[serde(default)]
    pub netns: Vec<String>,
}

impl State {
    /// Reads the state of the fleet in `dir`.
    ///
    /// # Errors
    /// There is none, or it can't be read.
    pub fn read(dir: &Path) -> Result<Self> {
        let file = dir.join(FILE);
        let text = std::fs::read(&file).with_context(|| file.display().to_string())?;
        serde_json::from_slice(&text).with_context(|| file.display().to_string())
    }

    /// Writes it to the fleet's folder.
    ///
    /// # Errors
    /// The folder can't be written.
    pub fn write(&self) -> Result<()> {
        let (file, new) = (self.dir.join(FILE), self.dir.join("state.json.new"));
        std::fs::write(&new, serde_json::to_vec_pretty(self)?)
            .with_context(|| new.display().to_string())?;
        std::fs::rename(&new, &file).with_context(|| file.display().to_string())
    }

    /// Has its owner gone without cleaning up?
    #[must_use]
    pub fn orphaned(&self) -> bool {
        !self.keep && !self.owner.is_some_and(|o| o.alive())
    }
}

/// Stops whatever earlier labs left behind when they were killed.
pub fn sweep() {
    for state in all().into_iter().filter(State::orphaned) {
        clean_up(&state);
    }
}

/// The fleets that have a folder on this machine.
#[must_use]
pub fn all() -> Vec<State> {
    let Ok(entries) = std::fs::read_dir(std::env::temp_dir()) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with(PREFIX))
        .filter_map(|e| State::read(&e.path()).ok())
        .collect()
}

/// Stops everything that a fleet started and removes its folder. Each step is tried even when one
/// before it failed; nothing outside the fleet is touched.
pub fn clean_up(state: &State) {
    for process in &state.processes {
        process.stop(Duration::from_secs(5));
    }
    let socket = socket(&state.dir);
    let containers = container_ids(&state.dir);
    if state.containerd.is_some_and(|c| c.alive()) {
        remove_tasks(&socket);
    }
    if let Some(containerd) = &state.containerd {
        containerd.stop(Duration::from_secs(5));
    }
    stop_shims(&socket);
    remove_runc_state(&containers);
    unmount_below(&state.dir);
    for netns in &state.netns {
        // Its end of the cable goes with it.
        let _gone = run("ip", &["netns", "del", netns]);
    }
    if let Some(bridge) = &state.bridge {
        // It may never have been made.
        let _gone = run("ip", &["link", "del", bridge]);
    }
    // A program that is just ending may write once more; a mount that would not go keeps its folder.
    let begin = std::time::Instant::now();
    while std::fs::remove_dir_all(&state.dir).is_err()
        && state.dir.exists()
        && begin.elapsed() < Duration::from_secs(2)
    {
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Socket of a fleet's containerd.
#[must_use]
pub fn socket(dir: &Path) -> PathBuf {
    dir.join("containerd.sock")
}

fn remove_tasks(socket: &Path) {
    let socket = socket.to_string_lossy();
    let ctr = |args: &[&str]| {
        let mut all = vec!["--address", &*socket, "--namespace", "k8s.io"];
        all.extend_from_slice(args);
        run("ctr", &all)
    };
    let Ok(tasks) = ctr(&["task", "ls", "-q"]) else {
        return;
    };
    let tasks: Vec<&str> = tasks.split_whitespace().collect();
    if !tasks.is_empty() {
        let mut args = vec!["task", "rm", "--force"];
        args.extend_from_slice(&tasks);
        // Those that ended meanwhile are no error.
        let _rest = ctr(&args);
    }
}

/// Ids of the containers and sandboxes that a fleet's containerd has files of.
fn container_ids(dir: &Path) -> Vec<String> {
    let cri = dir.join("root/io.containerd.grpc.v1.cri");
    let folders = [
        dir.join("state/io.containerd.runtime.v2.task/k8s.io"),
        cri.join("containers"),
        cri.join("sandboxes"),
    ];
    let names = folders.iter().filter_map(|f| std::fs::read_dir(f).ok());
    let mut ids: Vec<String> = names
        .flat_map(Iterator::flatten)
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    ids.sort();
    ids.dedup();
    ids
}

/// What runc keeps of containers whose shim could not tell it any more that they are gone: its
/// state, which lies outside the fleet's folder, and cgroups, in each hierarchy.
fn remove_runc_state(containers: &[String]) {
    let state = Path::new("/run/containerd/runc/k8s.io");
    for id in containers.iter().filter(|id| state.join(id).is_dir()) {
        let args = ["--root", &state.to_string_lossy(), "delete", "--force", id];
        // Where runc can't read the state any more, only the folder is left to remove.
        if run("runc", &args).is_err() {
            let _gone = std::fs::remove_dir_all(state.join(id));
        }
    }
    let root = Path::new("/sys/fs/cgroup");
    let mut parents = vec![root.join("k8s.io")];
    if let Ok(entries) = std::fs::read_dir(root) {
        parents.extend(entries.flatten().map(|e| e.path().join("k8s.io")));
    }
    for parent in parents.iter().filter(|p| p.is_dir()) {
        for id in containers {
            // Only an empty cgroup goes, and most are gone already.
            let _gone = std::fs::remove_dir(parent.join(id));
        }
    }
}

/// Shims outlive containerd; those with our socket in their arguments are ours.
fn stop_shims(socket: &Path) {
    let address = socket.to_string_lossy();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return;
    };
    let pids = entries
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    for pid in pids {
        let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else {
            continue;
        };
        let line = String::from_utf8_lossy(&line);
        let mut words = line.split('\0');
        let is_shim = words
            .next()
            .is_some_and(|p| p.contains("containerd-shim-runc"));
        if !is_shim || !words.any(|w| w == address) {
            continue;
        }
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        for child in children.unwrap_or_default().split_whitespace() {
            if let Some(child) = child.parse().ok().and_then(ProcessId::of) {
                child.signal(rustix::process::Signal::KILL);
            }
        }
        if let Some(shim) = ProcessId::of(pid) {
            shim.stop(Duration::from_secs(1));
        }
    }
}

fn unmount_below(dir: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut points: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split_whitespace().nth(4))
        .filter(|point| Path::new(point).starts_with(dir))
        .collect();
    // Inner mounts first.
    points.sort_by_key(|point| std::cmp::Reverse(point.len()));
    for point in points {
        let _busy = run("umount", &["--lazy", point]);
    }
}
