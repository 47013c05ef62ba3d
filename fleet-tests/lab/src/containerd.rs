//! A containerd of our own: configuration, state, socket and network are the fleet's.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hyperion_images::PAUSE_IMAGE;
use serde_json::{Value, json};

use crate::process::{Process, ProcessId, run};
use crate::{state, wait};

/// Label of a sandbox that names its node.
pub const NODE_LABEL: &str = "hyperion.io/node";

/// Containers' network: a bridge and its subnet.
#[derive(Debug, Clone)]
pub struct Network {
    /// Name of the bridge.
    pub bridge: String,
    /// Third byte of 198.18.x.0/24.
    pub number: u8,
}

impl Network {
    /// Makes a bridge with the first free number.
    ///
    /// # Errors
    /// No number is free, or bridges can't be made here.
    pub fn make() -> Result<Self> {
        let first = std::process::id() % 250;
        let mut last = String::new();
        for n in 0..250 {
            let number = u8::try_from((first + n) % 250)?;
            let bridge = format!("hyp{number}");
            // A bridge without an address of its own takes the lowest of its ports', and another one
            // with each lower that joins: who had asked for the old one talks to nobody for a minute.
            let mac = format!("02:68:79:70:00:{number:02x}");
            let link = ["link", "add", &bridge, "address", &mac, "type", "bridge"];
            match run("ip", &link) {
                Ok(_) => {
                    let network = Self { bridge, number };
                    let address = format!("{}/24", network.gateway());
                    run("ip", &["addr", "add", &address, "dev", &network.bridge])?;
                    run("ip", &["link", "set", &network.bridge, "up"])?;
                    return Ok(network);
                }
                Err(e) => last = e.to_string(),
            }
        }
        bail!("no bridge could be made: {last}")
    }

    /// Address of this machine in the network.
    #[must_use]
    pub fn gateway(&self) -> String {
        format!("198.18.{}.1", self.number)
    }
}

/// A private containerd.
#[derive(Debug)]
pub struct Containerd {
    dir: PathBuf,
    process: Process,
}

impl Containerd {
    /// Writes the configuration; nothing is started yet.
    ///
    /// # Errors
    /// The folder can't be written.
    pub fn prepare(dir: &Path, network: &Network) -> Result<Self> {
        let logs = dir.join("logs");
        std::fs::create_dir_all(&logs)?;
        std::fs::create_dir_all(dir.join("cni"))?;
        std::fs::write(dir.join("cni/10-lab.conflist"), cni(dir, network))?;
        let config = dir.join("containerd.toml");
        std::fs::write(&config, toml(dir))?;
        let program = crate::needs::find("containerd").context("containerd is not installed")?;
        let args = vec!["--config".to_owned(), config.display().to_string()];
        Ok(Self {
            dir: dir.to_owned(),
            process: Process::new("containerd", &program, args, &logs),
        })
    }

    /// Starts it (again) and waits until its CRI answers.
    ///
    /// # Errors
    /// It ends, or does not answer in time.
    pub fn start(&mut self) -> Result<ProcessId> {
        let id = self.process.start()?;
        wait::until("containerd", Duration::from_secs(30), || {
            if let Some(status) = self.process.ended() {
                return Err(format!("ended: {status}"));
            }
            let plugins = self.ctr(&["plugins", "ls"]).map_err(|e| e.to_string())?;
            let cri = plugins
                .lines()
                .find(|l| l.contains("io.containerd.grpc.v1") && l.contains(" cri "));
            match cri {
                Some(line) if line.trim_end().ends_with("ok") => Ok(()),
                other => Err(format!("CRI plugin: {other:?}")),
            }
        })
        .with_context(|| self.process.log_tail(20))?;
        Ok(id)
    }

    /// `kill -9`; containers and their shims go on.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Leaves it running after this process.
    pub fn release(&mut self) {
        self.process.release();
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        state::socket(&self.dir)
    }

    /// Its log.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Runs `ctr` in the namespace of the CRI.
    ///
    /// # Errors
    /// It failed: the error has its complaint.
    pub fn ctr(&self, args: &[&str]) -> Result<String> {
        let socket = self.socket();
        let socket = socket.to_string_lossy();
        let mut all = vec!["--address", &*socket, "--namespace", "k8s.io"];
        all.extend_from_slice(args);
        run("ctr", &all)
    }

    /// Imports an image from a file.
    ///
    /// # Errors
    /// `ctr` refuses it.
    pub fn import(&self, tar: &Path) -> Result<()> {
        self.ctr(&["image", "import", &tar.to_string_lossy()])?;
        Ok(())
    }

    /// Names of the images.
    ///
    /// # Errors
    /// containerd can't be asked.
    pub fn images(&self) -> Result<Vec<String>> {
        let out = self.ctr(&["image", "ls", "-q"])?;
        Ok(out.lines().map(str::to_owned).collect())
    }

    /// The sandboxes and containers of one node, or of all.
    ///
    /// # Errors
    /// containerd can't be asked.
    pub fn containers(&self, node: Option<&str>) -> Result<Vec<Container>> {
        let ids = self.ctr(&["container", "ls", "-q"])?;
        let mut all = Vec::new();
        let tasks = self.tasks()?;
        for id in ids.split_whitespace() {
            // It may be removed between the two calls.
            let Ok(text) = self.ctr(&["container", "info", id]) else {
                continue;
            };
            let info: Value = serde_json::from_str(&text).context("ctr container info")?;
            all.push(Container::read(id, &info, &tasks));
        }
        let Some(node) = node else { return Ok(all) };
        let sandboxes: Vec<String> = all
            .iter()
            .filter(|c| c.node == node)
            .map(|c| c.sandbox.clone())
            .collect();
        all.retain(|c| sandboxes.contains(&c.sandbox));
        Ok(all)
    }

    /// Process numbers of the containers of one node that run now, sandboxes left out.
    ///
    /// # Errors
    /// containerd can't be asked.
    pub fn running(&self, node: Option<&str>) -> Result<Vec<u32>> {
        let mut pids: Vec<u32> = self
            .containers(node)?
            .iter()
            .filter(|c| !c.is_sandbox)
            .filter_map(|c| c.pid)
            .collect();
        pids.sort_unstable();
        Ok(pids)
    }

    /// Ends every container and sandbox of a node at once, as if its machine had lost power.
    ///
    /// # Errors
    /// containerd can't be asked.
    pub fn cut_power(&self, node: &str) -> Result<usize> {
        let containers = self.containers(Some(node))?;
        let mut ended = 0;
        // Workloads first, so that none outlives the sandbox that gives it its network.
        for container in containers
            .iter()
            .filter(|c| !c.is_sandbox)
            .chain(containers.iter().filter(|c| c.is_sandbox))
        {
            if container.pid.is_some() {
                self.ctr(&["task", "kill", "--signal", "SIGKILL", &container.id])?;
                ended += usize::from(!container.is_sandbox);
            }
        }
        Ok(ended)
    }

    /// Container id and process number of every task that runs.
    fn tasks(&self) -> Result<Vec<(String, u32)>> {
        let out = self.ctr(&["task", "ls"])?;
        Ok(out
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                let (id, pid, status) = (words.next()?, words.next()?, words.next()?);
                (status == "RUNNING").then(|| Some((id.to_owned(), pid.parse().ok()?)))?
            })
            .collect())
    }
}

/// A container or a sandbox, as containerd has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Id.
    pub id: String,
    /// Its sandbox; its own id for a sandbox.
    pub sandbox: String,
    /// Is it a sandbox?
    pub is_sandbox: bool,
    /// Node that a sandbox belongs to.
    pub node: String,
    /// Labels.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Process number, while it runs.
    pub pid: Option<u32>,
}

impl Container {
    fn read(id: &str, info: &Value, tasks: &[(String, u32)]) -> Self {
        let labels: std::collections::BTreeMap<String, String> = info
            .get("Labels")
            .and_then(|l| serde_json::from_value(l.clone()).ok())
            .unwrap_or_default();
        let annotation = |key: &str| {
            let value = info.pointer("/Spec/annotations")?.get(key)?;
            value.as_str().map(str::to_owned)
        };
        let is_sandbox =
            annotation("io.kubernetes.cri.container-type").as_deref() == Some("sandbox");
        Self {
            id: id.to_owned(),
            sandbox: annotation("io.kubernetes.cri.sandbox-id").unwrap_or_default(),
            is_sandbox,
            node: labels.get(NODE_LABEL).cloned().unwrap_or_default(),
            labels,
            pid: tasks.iter().find(|t| t.0 == id).map(|t| t.1),
        }
    }
}

/// Does this kernel have containers' cgroups and overlay mounts? Asked by running a command in
/// a throw-away mount.
#[must_use]
pub fn overlay_works(dir: &Path) -> bool {
    let base = dir.join("overlay-probe");
    let folders = ["lower", "upper", "work", "merged"].map(|f| base.join(f));
    if folders.iter().any(|f| std::fs::create_dir_all(f).is_err()) {
        return false;
    }
    let [lower, upper, work, merged] = folders;
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.display(),
        work.display()
    );
    let mounted = Command::new("mount")
        .args(["-t", "overlay", "overlay", "-o", &options])
        .arg(&merged)
        .output()
        .is_ok_and(|o| o.status.success());
    if mounted {
        let _busy = run("umount", &["--lazy", &merged.to_string_lossy()]);
    }
    let _rest = std::fs::remove_dir_all(&base);
    mounted
}

fn toml(dir: &Path) -> String {
    let snapshotter = if overlay_works(dir) {
        "overlayfs"
    } else {
        "native"
    };
    let d = dir.display();
    // restrict_oom_score_adj: where root lacks CAP_SYS_RESOURCE every sandbox would fail.
    // netns_mounts_under_state_dir: so that clean_up finds all that was mounted below one folder.
    format!(
        r#"version = 2
root = "{d}/root"
state = "{d}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{d}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni}"
    conf_dir = "{d}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"#,
        socket = state::socket(dir).display(),
        cni = crate::needs::cni_plugins().display(),
    )
}

fn cni(dir: &Path, network: &Network) -> String {
    json!({
        "cniVersion": "0.4.0",
        "name": network.bridge,
        "plugins": [{
            "type": "bridge",
            "bridge": network.bridge,
            "isGateway": true,
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "dataDir": dir.join("ipam"),
                "ranges": [[{
                    "subnet": format!("198.18.{}.0/24", network.number),
                    // Above that are devices.
                    "rangeEnd": format!("198.18.{}.{}", network.number, crate::device::FIRST_HOST - 1),
                }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }],
    })
    .to_string()
}
