//! A private containerd for tests: own root, state, socket and network, and images without a
//! registry.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod fixture;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

/// Image with busybox, for everything.
pub const BUSYBOX: &str = "localhost/busybox:1";

/// A containerd that ends, with all that it mounted, when dropped.
pub struct Containerd {
    pub dir: PathBuf,
    bridge: String,
    child: Mutex<Option<Child>>,
}

/// Says why such a test can't run here.
pub fn missing() -> Option<String> {
    let id = Command::new("id").arg("-u").output().ok()?;
    if id.stdout.trim_ascii() != b"0" {
        return Some("needs root".to_owned());
    }
    for program in ["containerd", "ctr", "runc", "ip", "tar"] {
        if find(program).is_none() {
            return Some(format!("{program} is not installed"));
        }
    }
    if !Path::new("/usr/lib/cni/bridge").exists() {
        return Some("containernetworking-plugins is not installed".to_owned());
    }
    let busybox = fs::read("/bin/busybox").unwrap_or_default();
    // A dynamic one names its loader.
    if busybox.is_empty() || busybox.windows(9).any(|w| w == b"/ld-linux") {
        return Some("busybox-static is not installed".to_owned());
    }
    None
}

fn find(program: &str) -> Option<PathBuf> {
    ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"]
        .iter()
        .map(|dir| Path::new(dir).join(program))
        .find(|path| path.exists())
}

fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let path = find(program).ok_or_else(|| format!("{program}: not found"))?;
    let out = Command::new(path)
        .args(args)
        .output()
        .map_err(|e| format!("{program}: {e}"))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&out.stderr);
    Err(format!("{program} {args:?}: {words}"))
}

/// One containerd for all tests of this process that run at the same time.
pub fn shared() -> Arc<Containerd> {
    static SHARED: Mutex<Weak<Containerd>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(running) = shared.upgrade() {
        return running;
    }
    let started = Arc::new(Containerd::start());
    *shared = Arc::downgrade(&started);
    started
}

impl Containerd {
    /// Starts one.
    pub fn start() -> Self {
        let one = Self::prepare();
        one.launch();
        one.import(BUSYBOX, &["/bin/sh"]);
        one.import("localhost/pause:1", &["/bin/sleep", "1000000000"]);
        one
    }

    /// Makes folder and network; nothing runs yet.
    pub fn prepare() -> Self {
        let (number, bridge) = (0..200u32)
            .map(|n| (std::process::id() + n) % 250)
            .map(|number| (number, format!("hyprt{number}")))
            .find(|(_, bridge)| run("ip", &["link", "add", bridge, "type", "bridge"]).is_ok())
            .expect("a free bridge name");
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = PathBuf::from(format!("/run/hyperion-test-{}-{count}", std::process::id()));
        let one = Self {
            dir,
            bridge,
            child: Mutex::new(None),
        };
        fs::create_dir_all(one.dir.join("cni")).unwrap();
        fs::write(one.dir.join("cni/10-test.conflist"), one.cni(number)).unwrap();
        fs::write(one.dir.join("config.toml"), one.config()).unwrap();
        one
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("c.sock")
    }

    fn config(&self) -> String {
        let d = self.dir.display();
        format!(
            r#"version = 2
root = "{d}/root"
state = "{d}/state"
[grpc]
  address = "{d}/c.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{d}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{d}/cni"
"#
        )
    }

    fn cni(&self, number: u32) -> String {
        serde_json::json!({
            "cniVersion": "0.4.0",
            "name": self.bridge,
            "plugins": [{
                "type": "bridge",
                "bridge": self.bridge,
                "isGateway": true,
                "ipMasq": false,
                "ipam": {
                    "type": "host-local",
                    "dataDir": self.dir.join("ipam"),
                    "ranges": [[{ "subnet": format!("198.18.{number}.0/24") }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            }],
        })
        .to_string()
    }

    /// Starts the process and waits until it answers.
    pub fn launch(&self) {
        let log = fs::File::create(self.dir.join("containerd.log")).unwrap();
        let child = Command::new(find("containerd").unwrap())
            .arg("--config")
            .arg(self.dir.join("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        *self.child.lock().unwrap() = Some(child);
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.ctr(&["version"]).is_err() {
            assert!(Instant::now() < deadline, "containerd: {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// `kill -9`; containers go on.
    pub fn kill(&self) {
        if let Some(mut child) = self.child.lock().unwrap().take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Sends the process a signal, for example `STOP`.
    pub fn signal(&self, signal: &str) {
        let pid = self.child.lock().unwrap().as_ref().unwrap().id();
        run("kill", &[&format!("-{signal}"), &pid.to_string()]).unwrap();
    }

    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.dir.join("containerd.log")).unwrap_or_default();
        text.lines().rev().take(20).collect::<Vec<_>>().join("\n")
    }

    pub fn ctr(&self, args: &[&str]) -> Result<String, String> {
        let socket = self.socket();
        let mut all = vec!["-a", socket.to_str().unwrap(), "-n", "k8s.io"];
        all.extend_from_slice(args);
        run("ctr", &all)
    }

    /// Makes an image of busybox as a file.
    pub fn image(&self, name: &str, command: &[&str]) -> PathBuf {
        let file = name.replace(['/', ':'], "-");
        let tar = self.dir.join(format!("{file}.tar"));
        image_tar(&self.dir.join(file), &tar, name, command);
        tar
    }

    /// Makes an image of busybox and imports it.
    pub fn import(&self, name: &str, command: &[&str]) {
        let tar = self.image(name, command);
        self.ctr(&["image", "import", tar.to_str().unwrap()])
            .unwrap();
    }

    /// Kills every task, as a power cut does, then containerd.
    pub fn cut_power(&self) {
        let tasks = self.ctr(&["task", "ls", "-q"]).unwrap();
        self.kill();
        for pid in self.shims() {
            let _ = run("kill", &["-9", &pid.to_string()]);
        }
        // The containers' processes are children of the shims and are reaped by init.
        for id in tasks.split_whitespace() {
            for pid in processes(|cmdline, cgroup| {
                let _ = cmdline;
                cgroup.contains(id)
            }) {
                let _ = run("kill", &["-9", &pid.to_string()]);
            }
        }
        unmount_below(&self.dir.join("state"));
        let _ = fs::remove_dir_all(self.dir.join("state"));
    }

    fn shims(&self) -> Vec<u32> {
        let socket = self.socket().display().to_string();
        processes(|cmdline, _| cmdline.contains("containerd-shim") && cmdline.contains(&socket))
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if let Ok(tasks) = self.ctr(&["task", "ls", "-q"]) {
            for id in tasks.split_whitespace() {
                let _ = self.ctr(&["task", "kill", "-s", "SIGKILL", id]);
            }
            for id in tasks.split_whitespace() {
                let _ = self.ctr(&["task", "delete", "-f", id]);
            }
        }
        self.kill();
        for pid in self.shims() {
            let _ = run("kill", &["-9", &pid.to_string()]);
        }
        unmount_below(&self.dir);
        let _ = run("ip", &["link", "del", &self.bridge]);
        if std::env::var_os("HYPERION_TEST_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

fn processes(wanted: impl Fn(&str, &str) -> bool) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let cmdline = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let cgroup = String::from_utf8_lossy(&read("cgroup")).into_owned();
        wanted(&cmdline, &cgroup)
    })
    .collect()
}

fn unmount_below(dir: &Path) {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let points: Vec<_> = mounts
        .lines()
        .filter_map(|l| l.split(' ').nth(1))
        .filter(|point| Path::new(point).starts_with(dir))
        .collect();
    for point in points.iter().rev() {
        let _ = run("umount", &["-l", point]);
    }
}

fn image_tar(work: &Path, tar: &Path, name: &str, command: &[&str]) {
    let _ = fs::remove_dir_all(work);
    let rootfs = work.join("rootfs");
    for folder in ["bin", "tmp", "etc"] {
        fs::create_dir_all(rootfs.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
    for applet in [
        "sh", "sleep", "cat", "echo", "httpd", "test", "true", "touch", "rm", "env", "pwd", "date",
        "dd", "tail", "seq", "nc", "hostname", "mkdir", "usleep", "yes", "head",
    ] {
        std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
    }
    let layout = work.join("layout");
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let layer = work.join("layer.tar");
    run(
        "tar",
        &[
            "-C",
            rootfs.to_str().unwrap(),
            "-cf",
            layer.to_str().unwrap(),
            ".",
        ],
    )
    .unwrap();
    let blob = |content: &[u8], kind: &str| {
        let digest = Sha256::digest(content);
        let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
        fs::write(layout.join("blobs/sha256").join(&hex), content).unwrap();
        serde_json::json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": format!("sha256:{hex}"),
            "size": content.len(),
        })
    };
    let layer = blob(&fs::read(&layer).unwrap(), "layer.v1.tar");
    let arch = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let config = serde_json::json!({
        "architecture": arch,
        "os": "linux",
        "config": { "Cmd": command, "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
    });
    let config = blob(config.to_string().as_bytes(), "config.v1+json");
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": [layer],
    });
    let mut manifest = blob(manifest.to_string().as_bytes(), "manifest.v1+json");
    manifest["annotations"] = serde_json::json!({ "io.containerd.image.name": name });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    let version = r#"{"imageLayoutVersion":"1.0.0"}"#;
    fs::write(layout.join("oci-layout"), version).unwrap();
    run(
        "tar",
        &[
            "-C",
            layout.to_str().unwrap(),
            "-cf",
            tar.to_str().unwrap(),
            ".",
        ],
    )
    .unwrap();
}
