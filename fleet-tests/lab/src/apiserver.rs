//! A real Kubernetes API server with its etcd (see [`hyperion_cluster::build`]).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hyperion_cluster::Program;

use crate::Kubectl;
use crate::control::free_port;
use crate::process::{Process, ProcessId};

/// Time to be ready, on a busy machine.
const START: Duration = Duration::from_secs(180);
/// Time to leave in order.
const STOP: Duration = Duration::from_secs(30);
/// How often it is looked at.
const POLL: Duration = Duration::from_millis(100);

/// An API server on loopback that can be started again as it was: the same folder is the same
/// cluster. It is killed when this is dropped.
#[derive(Debug)]
pub struct ApiServer {
    process: Process,
    kubectl: Kubectl,
    dir: PathBuf,
    port: u16,
    flags: Vec<String>,
    node_grace: Option<Duration>,
    ends_with_parent: bool,
}

impl ApiServer {
    /// Describes one whose data is in `dir`; nothing is started yet. The administrator's kubeconfig
    /// goes to `kubeconfig`, what it says to `apiserver.log` in the folder `logs`.
    ///
    /// # Errors
    /// It is not built (see [`hyperion_cluster::build::build`]), or no port is free.
    pub fn prepare(dir: &Path, kubeconfig: &Path, logs: &Path) -> Result<Self> {
        let program = Program::ApiServer
            .kept()?
            .context("the API server is not built")?;
        let free: SocketAddr = free_port()?.parse()?;
        let mut server = Self {
            process: Process::new("apiserver", &program, Vec::new(), logs),
            kubectl: Kubectl::new(kubeconfig, dir),
            dir: dir.to_owned(),
            port: free.port(),
            flags: Vec::new(),
            node_grace: None,
            ends_with_parent: false,
        };
        server.set_args();
        Ok(server)
    }

    /// Flags of kube-apiserver for the next start.
    pub fn set_flags(&mut self, flags: &[&str]) {
        self.flags = flags.iter().map(|&flag| flag.to_owned()).collect();
        self.set_args();
    }

    /// For the next start: it ends when this process does, however that ends. A fleet's does not,
    /// because a fleet may be kept.
    pub fn end_with_parent(&mut self) {
        self.ends_with_parent = true;
        self.set_args();
    }

    /// For the next start: controllers look after nodes, of which each may keep silent this long.
    pub fn look_after_nodes(&mut self, grace: Duration) {
        self.node_grace = Some(grace);
        self.set_args();
    }

    fn set_args(&mut self) {
        let kubeconfig = self.kubectl.kubeconfig().display().to_string();
        let mut args = vec![
            format!("--data-dir={}", self.dir.display()),
            format!("--kubeconfig={kubeconfig}"),
            format!("--port={}", self.port),
        ];
        if let Some(grace) = self.node_grace {
            args.push(format!("--node-grace={}s", grace.as_secs()));
        }
        if self.ends_with_parent {
            args.push("--end-with-parent".to_owned());
        }
        args.push("--".to_owned());
        args.extend_from_slice(&self.flags);
        self.process.set_args(args);
    }

    /// Starts it (again) without waiting.
    ///
    /// # Errors
    /// It can't be run.
    pub fn start_only(&mut self) -> Result<ProcessId> {
        self.process.kill();
        self.process.start()
    }

    /// Starts it (again) and waits until it is ready.
    ///
    /// # Errors
    /// It ends, or is not ready in time: the error has the end of its log.
    pub fn start(&mut self) -> Result<ProcessId> {
        let id = self.start_only()?;
        self.wait_ready()?;
        Ok(id)
    }

    /// Waits until it is ready, and Pods can be made in the namespace `default`.
    ///
    /// # Errors
    /// It ends, or is not ready in time: the error has the end of its log.
    pub fn wait_ready(&mut self) -> Result<()> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.process.ended() {
                let log = self.process.log_tail(20);
                bail!("the API server ended: {status}\n{log}");
            }
            let ask = |what: &[&str]| {
                let all = [&["--request-timeout=10s", "get"], what].concat();
                self.kubectl.run(&all)
            };
            let ready = ask(&["--raw", "/readyz"]);
            let ready =
                ready.and_then(|_| ask(&["serviceaccount", "default", "--namespace=default"]));
            let Err(error) = ready else {
                return Ok(());
            };
            if begin.elapsed() > START {
                let log = self.process.log_tail(20);
                return Err(error.context(format!("not ready within {START:?}\n{log}")));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `kubectl` for its administrator.
    #[must_use]
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// Does it run?
    #[must_use]
    pub fn running(&self) -> bool {
        self.process.id().is_some()
    }

    /// `kill -9`, and waits for the end. A stopped one stays stopped.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// SIGTERM, and SIGKILL if it does not go; the exit status if it went by itself.
    pub fn stop(&mut self) -> Option<ExitStatus> {
        self.process.terminate(STOP)
    }

    /// The process, for its log and its end.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}
