//! A server of its own for each test, and the real kubectl against it.
//!
//! Where `HYPERION_TEST_APISERVER` names the program of `fleet-tests/cluster`, the server is a real
//! API server: what these tests say of the embedded API holds there too.
#![allow(dead_code, reason = "each test program uses a part")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hyperion_embedded::{Embedded, EmbeddedConfig, start};

pub const CRD: &str = include_str!("../data/crd.yaml");
pub const WORK: &str = include_str!("../data/work.yaml");

/// Program of a real API server.
fn real() -> Option<PathBuf> {
    let program = std::env::var_os("HYPERION_TEST_APISERVER")?;
    (!program.is_empty()).then(|| program.into())
}

/// A server in a folder that goes with it.
pub struct Server {
    runtime: tokio::runtime::Runtime,
    embedded: Option<Embedded>,
    real: Option<(Child, SocketAddr)>,
    pub folder: tempfile::TempDir,
    proxies: BTreeMap<(String, String), SocketAddr>,
}

impl Server {
    pub fn start() -> Self {
        Self::with_proxies(BTreeMap::new())
    }

    pub fn with_proxies(proxies: BTreeMap<(String, String), SocketAddr>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let mut server = Self {
            runtime,
            embedded: None,
            real: None,
            folder,
            proxies,
        };
        server.run("127.0.0.1:0".parse().unwrap());
        server
    }

    fn run(&mut self, api_addr: SocketAddr) {
        if let Some(program) = real() {
            self.run_real(&program, api_addr);
            return;
        }
        let config = EmbeddedConfig {
            data_dir: self.folder.path().join("data"),
            api_addr,
            kubeconfig_out: Some(self.kubeconfig()),
            service_proxies: self.proxies.clone(),
        };
        self.embedded = Some(self.runtime.block_on(start(config)).unwrap());
    }

    fn run_real(&mut self, program: &Path, api_addr: SocketAddr) {
        let path = self.folder.path().join("log");
        for _ in 0..3 {
            let address = self.spawn_real(program, api_addr, &path);
            let deadline = Instant::now() + Duration::from_secs(180);
            loop {
                let ready = self.kubectl("get --raw /readyz").success
                    && self.kubectl("get serviceaccount default").success;
                if ready {
                    return;
                }
                let (child, _) = self.real.as_mut().unwrap();
                if child.try_wait().unwrap().is_some() && api_addr.port() == 0 {
                    // Another program may have taken the port that was free.
                    break;
                }
                let late = Instant::now() > deadline;
                assert!(!late, "{address} is not ready:\n{}", read(&path));
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        panic!("the API server ends again and again:\n{}", read(&path));
    }

    fn spawn_real(&mut self, program: &Path, api_addr: SocketAddr, log: &Path) -> SocketAddr {
        // Frees the port again, for a program that can't choose one itself.
        let listener = TcpListener::bind(api_addr).unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let log = File::create(log).unwrap();
        let child = Command::new(program)
            .arg("--data-dir")
            .arg(self.folder.path().join("data"))
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .args(["--end-with-parent", "--port", &address.port().to_string()])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.real = Some((child, address));
        address
    }

    /// Stops and starts on the same address and data.
    pub fn restart(&mut self) {
        let address = self.address();
        self.stop();
        self.run(address);
    }

    pub fn stop(&mut self) {
        if let Some(embedded) = self.embedded.take() {
            self.runtime.block_on(embedded.shutdown());
        }
        if let Some((mut child, _)) = self.real.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn address(&self) -> SocketAddr {
        match &self.real {
            Some((_, address)) => *address,
            None => self.embedded.as_ref().unwrap().local_addr(),
        }
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    pub async fn config(&self) -> kube::Config {
        let yaml = match &self.embedded {
            Some(embedded) => embedded.kubeconfig_yaml(),
            None => read(&self.kubeconfig()),
        };
        let kubeconfig = kube::config::Kubeconfig::from_yaml(&yaml).unwrap();
        kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default())
            .await
            .unwrap()
    }

    pub async fn client(&self) -> kube::Client {
        kube::Client::try_from(self.config().await).unwrap()
    }

    pub fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new("kubectl");
        command
            .args(arguments.split_whitespace())
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", self.folder.path());
        command
    }

    /// Runs kubectl with text on its standard input.
    pub fn kubectl_in(&self, arguments: &str, input: &str) -> Ran {
        run(self.command(arguments), input)
    }

    pub fn kubectl(&self, arguments: &str) -> Ran {
        self.kubectl_in(arguments, "")
    }

    /// With the sample definition and one object of it.
    pub fn with_work() -> Self {
        let server = Self::start();
        server.kubectl_in("apply -f -", CRD).ok();
        server
            .kubectl("wait --for=condition=Established crd/works.example.com")
            .ok();
        server.kubectl_in("apply -f -", WORK).ok();
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub success: bool,
    pub out: String,
    pub err: String,
}

pub fn run(mut command: Command, input: &str) -> Ran {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    Ran {
        success: output.status.success(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Ran {
    /// Its output, when it did well and had nothing to complain about.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.success && self.err.is_empty(), "{self:?}");
        self.out
    }

    /// What it complained about.
    #[track_caller]
    pub fn fails(self) -> String {
        assert!(!self.success, "{self:?}");
        self.err
    }
}

/// Whether there is no kubectl here; says so.
pub fn no_kubectl() -> bool {
    let missing = Command::new("kubectl")
        .arg("--help")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_err();
    if missing {
        println!("SKIPPED: no kubectl");
    }
    missing
}

/// Waits until a condition holds.
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
