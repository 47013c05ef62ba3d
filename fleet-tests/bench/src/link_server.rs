//! The server side of the link bench: a child process, either `hyperion-control --embedded` or
//! this program again with the gateway alone.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hyperion_gateway::testing::MemoryApi;
use hyperion_gateway::{GatewayConfig, NAMESPACE};
use hyperion_link::ControlTarget;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, PostParams};
use prometheus_client::registry::Registry;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::link::Args;
use hyperion_lab::proc;

/// Hidden flags of the child process.
#[derive(Debug, Clone, clap::Args)]
pub struct ServeArgs {
    /// Serve the gateway alone, with its objects kept in this folder.
    #[arg(long, hide = true)]
    pub serve: Option<PathBuf>,
    /// Address for agents.
    #[arg(long, hide = true, default_value = "127.0.0.1:0")]
    pub link_addr: SocketAddr,
    /// Address for metrics.
    #[arg(long, hide = true, default_value = "127.0.0.1:0")]
    pub http_addr: SocketAddr,
}

/// One token for all agents of a run.
const TOKEN_ID: &str = "bench";
const TOKEN_SECRET: &str = "bench0secret0of0loopback";
/// Path of the child's HTTP address that writes its objects to its folder.
const SAVE: &str = "/save";
/// Time for the control plane to listen.
const START: Duration = Duration::from_secs(60);

/// The running server.
pub struct Server {
    child: Child,
    program: PathBuf,
    arguments: Vec<String>,
    http: SocketAddr,
    gateway_only: bool,
    /// Where agents go.
    pub target: ControlTarget,
    /// Join token.
    pub token: String,
}

impl Server {
    /// Starts it and waits until it serves agents.
    pub(crate) async fn start(args: &Args, dir: &Path) -> anyhow::Result<Self> {
        let link = free_address(true)?;
        let http = free_address(false)?;
        let kubeconfig = dir.join("kubeconfig");
        let own = std::env::current_exe()?;
        let (program, arguments) = if args.gateway_only {
            (
                own,
                vec![
                    "link".to_owned(),
                    "--serve".to_owned(),
                    dir.display().to_string(),
                ],
            )
        } else {
            let beside = own.with_file_name("hyperion-control");
            let arguments = vec![
                "--embedded".to_owned(),
                "--data-dir".to_owned(),
                dir.join("data").display().to_string(),
                "--api-addr".to_owned(),
                free_address(false)?.to_string(),
                "--kubeconfig-out".to_owned(),
                kubeconfig.display().to_string(),
            ];
            (args.control_bin.clone().unwrap_or(beside), arguments)
        };
        let addresses = [
            "--link-addr".to_owned(),
            link.to_string(),
            "--http-addr".to_owned(),
            http.to_string(),
        ];
        let arguments: Vec<String> = arguments.into_iter().chain(addresses).collect();
        let mut server = Self {
            child: spawn(&program, &arguments)?,
            program,
            arguments,
            http,
            gateway_only: args.gateway_only,
            target: ControlTarget {
                addr: link.to_string(),
                ca_fingerprint: String::new(),
            },
            token: format!("{TOKEN_ID}.{TOKEN_SECRET}"),
        };
        server.ready().await?;
        server.target.ca_fingerprint = if args.gateway_only {
            std::fs::read_to_string(dir.join("fingerprint"))?
        } else {
            prepare(&kubeconfig).await?
        };
        Ok(server)
    }

    /// Starts it again, on the same addresses and data.
    pub(crate) async fn restart(&mut self) -> anyhow::Result<()> {
        self.child = spawn(&self.program, &self.arguments)?;
        self.ready().await
    }

    /// Ends it: SIGTERM, or SIGKILL where `kill`.
    pub(crate) async fn stop(&mut self, kill: bool) -> anyhow::Result<()> {
        if self.gateway_only {
            // Its objects are in memory only, where a real API server would have them on disk.
            http_get(self.http, SAVE).await?;
        }
        let pid = self.pid()?;
        let pid = rustix::process::Pid::from_raw(pid.cast_signed()).context("pid")?;
        let signal = if kill {
            rustix::process::Signal::KILL
        } else {
            rustix::process::Signal::TERM
        };
        rustix::process::kill_process(pid, signal)?;
        self.child.wait().await?;
        Ok(())
    }

    async fn ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START;
        loop {
            // The gateway registers its counters before it listens; the leader only does.
            if self.received().await.is_ok() {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended: {status}", self.program.display());
            }
            if Instant::now() > deadline {
                bail!(
                    "{} does not serve agents after {START:?}",
                    self.program.display()
                );
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn pid(&self) -> anyhow::Result<u32> {
        self.child.id().context("the control plane has ended")
    }

    /// Telemetry messages that the server counted.
    pub(crate) async fn received(&self) -> anyhow::Result<u64> {
        let text = http_get(self.http, "/metrics").await?;
        text.lines()
            .find_map(|l| l.strip_prefix("hyperion_gateway_telemetry_received_total "))
            .and_then(|v| v.trim().parse().ok())
            .context("/metrics lacks hyperion_gateway_telemetry_received_total")
    }

    /// Messages received since `before`, once all that were `sent` have come or ten seconds passed.
    pub(crate) async fn settle(&self, before: u64, sent: u64) -> anyhow::Result<u64> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let received = self.received().await? - before;
            if received >= sent || Instant::now() > deadline {
                return Ok(received);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Resident memory.
    pub(crate) fn rss_bytes(&self) -> anyhow::Result<u64> {
        proc::rss_bytes(self.pid()?)
    }

    /// User and system time so far.
    pub(crate) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        proc::cpu_seconds(self.pid()?)
    }
}

fn spawn(program: &Path, arguments: &[String]) -> anyhow::Result<Child> {
    Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))
}

fn free_address(udp: bool) -> std::io::Result<SocketAddr> {
    if udp {
        std::net::UdpSocket::bind("127.0.0.1:0")?.local_addr()
    } else {
        std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()
    }
}

/// Makes the join token through the API and gives the CA's fingerprint.
async fn prepare(kubeconfig: &Path) -> anyhow::Result<String> {
    let config = kube::config::Kubeconfig::read_from(kubeconfig)?;
    let config = kube::Config::from_custom_kubeconfig(config, &Default::default()).await?;
    let client = kube::Client::try_from(config)?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    secrets
        .create(
            &PostParams::default(),
            &serde_json::from_value(token_secret())?,
        )
        .await?;
    let maps: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
    let map = maps.get("hyperion-ca").await?;
    let data = map.data.unwrap_or_default();
    data.get("fingerprint")
        .cloned()
        .context("ConfigMap hyperion-ca lacks key fingerprint")
}

fn token_secret() -> serde_json::Value {
    let hash: String = Sha256::digest(TOKEN_SECRET)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": format!("join-token-{TOKEN_ID}"), "namespace": NAMESPACE },
        "type": "hyperion.io/join-token",
        "stringData": {
            "secret-sha256": hash,
            "site": "bench",
            "expires": "2100-01-01T00:00:00Z",
            "uses-left": "1000000",
        },
    })
}

async fn http_get(addr: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut stream = tokio::net::TcpStream::connect(addr).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// The child process of `--gateway-only`.
pub(crate) async fn serve(dir: &Path, args: &ServeArgs) -> anyhow::Result<()> {
    let api = MemoryApi::default();
    let objects = dir.join("objects.json");
    if let Ok(text) = std::fs::read_to_string(&objects) {
        api.restore(&serde_json::from_str(&text)?);
    } else {
        let mut secret = token_secret();
        // The API in memory does not turn stringData into data.
        let data: serde_json::Map<_, _> = secret["stringData"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(k, v)| (k.clone(), json!(base64(v.as_str().unwrap_or_default()))))
            .collect();
        secret["data"] = data.into();
        api.put(
            &format!("/api/v1/namespaces/{NAMESPACE}/secrets/join-token-{TOKEN_ID}"),
            secret,
        );
    }
    let mut registry = Registry::default();
    let config = GatewayConfig {
        link_addr: args.link_addr,
        link_advertise: None,
        client: api.client(),
        fleet: "hyperion".to_owned(),
        certificate_ttl: Duration::from_secs(24 * 3600),
    };
    let (gateway, mut events) = hyperion_gateway::start(config, &mut registry).await?;
    gateway.mark_desired_complete();
    std::fs::write(dir.join("fingerprint"), gateway.ca_fingerprint())?;
    std::fs::write(&objects, api.dump().to_string())?;
    tokio::spawn(async move { while events.recv().await.is_some() {} });
    let listener = tokio::net::TcpListener::bind(args.http_addr).await?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    let save = || std::fs::write(&objects, api.dump().to_string());
                    if let Err(e) = answer(stream, &registry, save).await {
                        tracing::warn!(error = %e, "HTTP request");
                    }
                }
            }
            _ = terminate.recv() => {
                gateway.shutdown().await;
                return Ok(());
            }
        }
    }
}

async fn answer(
    mut stream: tokio::net::TcpStream,
    registry: &Registry,
    save: impl FnOnce() -> std::io::Result<()>,
) -> anyhow::Result<()> {
    let mut request = [0; 1024];
    let len = stream.read(&mut request).await?;
    let mut text = String::from("HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n");
    if request
        .get(..len)
        .is_some_and(|r| r.starts_with(b"GET /save "))
    {
        save()?;
    } else {
        prometheus_client::encoding::text::encode(&mut text, registry)?;
    }
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await?;
    Ok(())
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}
