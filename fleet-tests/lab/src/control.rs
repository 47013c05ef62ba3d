//! The control plane: `hyperion-control --embedded`, or on a real Kubernetes API.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cluster::Cluster;
use crate::process::{Process, ProcessId};
use crate::{Kubectl, http, needs, wait};

/// An API that runs already, and that the control plane does not serve.
#[derive(Debug, Clone)]
pub struct OnApi {
    /// Kubeconfig of the administrator.
    pub admin: PathBuf,
    /// Kubeconfig that the control plane is given.
    pub operator: PathBuf,
}

/// A control plane on fixed loopback ports, so that it is the same one after a restart.
#[derive(Debug)]
pub struct Control {
    process: Process,
    kubectl: Kubectl,
    /// Who serves the API, where that is not the control plane.
    cluster: Option<Cluster>,
    /// Address of the embedded Kubernetes API, where that is used.
    pub api: String,
    /// Address of the link (UDP).
    pub link: String,
    /// Address of metrics and health.
    pub http: String,
}

impl Control {
    /// Describes it; nothing is started yet. Agents find it at `link_host`, and a real API server
    /// at `http_host`; `args` are added to those that every lab needs.
    ///
    /// # Errors
    /// No ports are free, or the API that was chosen can't be used.
    pub fn prepare(dir: &Path, link_host: &str, http_host: &str, args: &[String]) -> Result<Self> {
        let kubeconfig = dir.join("kubeconfig");
        let cluster = Cluster::prepare(dir, &kubeconfig)?;
        // A real API server leads nobody to a loopback address.
        let http_host = if cluster.is_some() {
            http_host
        } else {
            "127.0.0.1"
        };
        let (api, http) = (free_port()?, free_port_of(http_host)?);
        let link = free_udp_port(link_host)?;
        let kubeconfig_path = kubeconfig.display().to_string();
        let mut all = vec![
            ("--data-dir", dir.join("control").display().to_string()),
            ("--link-addr", link.clone()),
            ("--http-addr", http.clone()),
        ];
        if cluster.is_some() {
            all.push(("--kubeconfig", kubeconfig_path));
        } else {
            all.push(("--api-addr", api.clone()));
            all.push(("--kubeconfig-out", kubeconfig_path));
        }
        let mut all: Vec<String> = all
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value])
            .collect();
        if cluster.is_none() {
            all.insert(0, "--embedded".to_owned());
        }
        all.extend_from_slice(args);
        Ok(Self {
            process: program(dir, all),
            kubectl: Kubectl::new(&kubeconfig, dir),
            cluster,
            api,
            link,
            http,
        })
    }

    /// The same on an API that runs already.
    ///
    /// # Errors
    /// No ports are free.
    pub fn prepare_on(dir: &Path, link_host: &str, on: &OnApi, args: &[String]) -> Result<Self> {
        let (link, http) = (free_udp_port(link_host)?, free_port()?);
        let flags = [
            ("--data-dir", dir.join("control").display().to_string()),
            ("--link-addr", link.clone()),
            ("--http-addr", http.clone()),
            ("--kubeconfig", on.operator.display().to_string()),
        ];
        let mut all: Vec<String> = flags
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value])
            .collect();
        all.extend_from_slice(args);
        Ok(Self {
            process: program(dir, all),
            kubectl: Kubectl::new(&on.admin, dir),
            cluster: None,
            api: String::new(),
            link,
            http,
        })
    }

    /// Starts it (again) and waits until it is ready.
    ///
    /// # Errors
    /// It ends, or is not ready in time: the error has the end of its log.
    pub fn start(&mut self) -> Result<ProcessId> {
        self.start_cluster_only()?;
        self.wait_cluster()?;
        let id = self.process.start()?;
        self.wait_ready()?;
        Ok(id)
    }

    /// Starts the API server without waiting, where the fleet has one of its own and it does not
    /// run; gives its process then.
    ///
    /// # Errors
    /// It can't be run.
    pub fn start_cluster_only(&mut self) -> Result<Option<ProcessId>> {
        match &mut self.cluster {
            Some(cluster) => cluster.start_only(),
            None => Ok(None),
        }
    }

    /// Waits until the API server is ready, where the fleet has one of its own.
    ///
    /// # Errors
    /// It does not become ready: the error has the end of its log.
    pub fn wait_cluster(&mut self) -> Result<()> {
        match &mut self.cluster {
            Some(cluster) => cluster.wait_ready(),
            None => Ok(()),
        }
    }

    /// Removes what earlier fleets left in a cluster that all tests use in turn.
    ///
    /// # Errors
    /// The cluster does not answer, or runs a Hyperion that is not the tests'.
    pub fn clear_cluster(&self) -> Result<()> {
        match &self.cluster {
            Some(cluster) => cluster.clear(&self.kubectl),
            None => Ok(()),
        }
    }

    /// Who serves the API, where that is not the control plane.
    pub fn cluster(&mut self) -> Option<&mut Cluster> {
        self.cluster.as_mut()
    }

    /// Starts it without waiting.
    ///
    /// # Errors
    /// It can't be run.
    pub fn start_only(&mut self) -> Result<ProcessId> {
        self.process.start()
    }

    /// Waits until it is ready and its API answers `kubectl`.
    ///
    /// # Errors
    /// It ends, or is not ready in time: the error has the end of its log.
    pub fn wait_ready(&mut self) -> Result<()> {
        let ready = wait::until("control plane", Duration::from_secs(30), || {
            if let Some(status) = self.process.ended() {
                return Err(format!("ended: {status}"));
            }
            http::get(&self.http, "/readyz").map_err(|e| e.to_string())?;
            self.kubectl
                .run(&["get", "--raw", "/apis/hyperion.io/v1alpha1"])
                .map(|_| ())
                .map_err(|e| e.to_string())
        });
        ready
            .with_context(|| format!("log of the control plane:\n{}", self.process.log_tail(20)))?;
        let http: SocketAddr = self.http.parse().context("address of metrics and health")?;
        match &self.cluster {
            Some(cluster) if !http.ip().is_loopback() => cluster.publish(&self.kubectl, http),
            _ => Ok(()),
        }
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// SIGTERM; the exit status if it went by itself within 15 s.
    pub fn terminate(&mut self) -> Option<ExitStatus> {
        self.process.terminate(Duration::from_secs(15))
    }

    /// `kubectl` for it.
    #[must_use]
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The last lines that it printed.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        self.process.log_tail(lines)
    }

    /// Makes a join token.
    ///
    /// # Errors
    /// The console fails, or prints something else than a token and a fingerprint.
    pub fn token(&self, site: &str, uses: u32) -> Result<Token> {
        self.token_with(&["--site", site, "--ttl", "1h", "--uses", &uses.to_string()])
    }

    /// Makes a join token with other flags.
    ///
    /// # Errors
    /// The console fails, or prints something else than a token and a fingerprint.
    pub fn token_with(&self, flags: &[&str]) -> Result<Token> {
        let mut args = vec!["token", "create"];
        args.extend_from_slice(flags);
        let out = self.kubectl.hyperion(&args)?;
        Token::read(&out).with_context(|| format!("hyperion token create printed: {out}"))
    }
}

fn program(dir: &Path, args: Vec<String>) -> Process {
    let program = needs::programs().join("hyperion-control");
    Process::new("control", &program, args, &dir.join("logs"))
}

/// What an agent needs to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// `<id>.<secret>`.
    pub token: String,
    /// `sha256:…` of the CA.
    pub fingerprint: String,
}

impl Token {
    /// Its public part.
    #[must_use]
    pub fn id(&self) -> &str {
        self.token.split('.').next().unwrap_or_default()
    }

    fn read(text: &str) -> Option<Self> {
        let words = || text.split(|c: char| c.is_whitespace() || "\"'`,;".contains(c));
        let plain = |s: &str| {
            s.len() >= 4
                && s.bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        let token = words().find(|w| {
            w.split_once('.')
                .is_some_and(|(id, secret)| plain(id) && plain(secret) && secret.len() >= 16)
        })?;
        let fingerprint = words().find(|w| w.starts_with("sha256:"))?;
        Some(Self {
            token: token.to_owned(),
            fingerprint: fingerprint.to_owned(),
        })
    }
}

/// A loopback address with a TCP port that is free now.
///
/// # Errors
/// There is none.
pub fn free_port() -> Result<String> {
    free_port_of("127.0.0.1")
}

fn free_port_of(host: &str) -> Result<String> {
    a_port(|port| Ok(TcpListener::bind((host, port))?.local_addr()?.to_string()))
}

fn free_udp_port(host: &str) -> Result<String> {
    a_port(|port| Ok(UdpSocket::bind((host, port))?.local_addr()?.to_string()))
}

/// A port at which something can be bound. It is let go of before a program binds it, so it is none
/// that the kernel gives to connections (from 32768 on), and processes begin at different ones.
fn a_port(bind: impl Fn(u16) -> std::io::Result<String>) -> Result<String> {
    const FIRST: u16 = 12_000;
    const PORTS: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // A few processes at a time: the golden ratio keeps their beginnings apart.
    let begin = (std::process::id().wrapping_mul(2_654_435_769) >> 16) as u16;
    let ports = (0..PORTS)
        .map(|_| FIRST + begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS);
    let mut last = None;
    for port in ports {
        match bind(port) {
            Ok(address) => return Ok(address),
            Err(e) => last = Some(e),
        }
    }
    Err(anyhow::Error::new(
        last.unwrap_or_else(|| std::io::ErrorKind::AddrInUse.into()),
    ))
    .context("find a free port")
}

/// Path of the kubeconfig that a control plane in `dir` writes.
#[must_use]
pub fn kubeconfig(dir: &Path) -> PathBuf {
    dir.join("kubeconfig")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_in_text_for_people() {
        let text = "Token:        ab12cd.0123456789abcdefghij\nCA fingerprint: sha256:00ff\n\
                    Expires 2026-01-01T00:00:00Z\n";
        let token = Token::read(text).unwrap();
        assert_eq!(token.token, "ab12cd.0123456789abcdefghij");
        assert_eq!(token.fingerprint, "sha256:00ff");
        assert_eq!(token.id(), "ab12cd");
    }
}
