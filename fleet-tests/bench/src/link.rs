//! Ten thousand agents on one control plane: real QUIC connections with mutual TLS over loopback,
//! from a second process.
//!
//! The agents of the bench are the agent's own link code without the rest of the agent. Several of
//! them share a UDP socket (QUIC tells their connections apart), because one process may not open
//! that many; each has its own identity, connection, stream and task.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::StreamExt;
use hyperion_link::{
    ControlTarget, EnrolRequest, Identity, LinkConfig, LinkEvent, LinkSender, client,
};
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{
    Hello, NetworkStatus, NodeCapabilities, StreamMessage, Telemetry, Temperature,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::link_server::{self, Server};
use crate::report::Report;
use hyperion_lab::proc;

/// Measure the link between agents and control plane.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Agents.
    #[arg(long, default_value_t = 10_000)]
    pub agents: usize,
    /// Telemetry interval.
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    pub interval: Duration,
    /// Length of the measurement, seconds.
    #[arg(long, default_value_t = 60)]
    pub seconds: u64,
    /// UDP sockets that the agents share.
    #[arg(long, default_value_t = 32)]
    pub sockets: usize,
    /// Control plane to start; by default `hyperion-control` beside this program.
    #[arg(long)]
    pub control_bin: Option<std::path::PathBuf>,
    /// Measure the gateway alone, over a Kubernetes API in memory.
    #[arg(long)]
    pub gateway_only: bool,
    /// Be the server of `--gateway-only`.
    #[command(flatten)]
    pub serve: link_server::ServeArgs,
}

/// Agents that enrol or connect at the same time at the start.
const AT_ONCE: usize = 64;
/// Time for all agents to be connected.
const CONNECT_ALL: Duration = Duration::from_secs(180);

#[derive(Default)]
struct Counts {
    connected: AtomicUsize,
    sent: AtomicU64,
    unsent: AtomicU64,
    disconnects: AtomicU64,
    refused: AtomicU64,
}

/// Runs the bench; none where this process is the server of another one.
///
/// # Errors
/// The control plane does not start, or agents can't enrol.
pub async fn run(args: &Args) -> anyhow::Result<Option<Report>> {
    if let Some(dir) = &args.serve.serve {
        link_server::serve(dir, &args.serve).await?;
        return Ok(None);
    }
    raise_file_limit();
    let mut report = conditions(args);
    let dir = tempfile::tempdir()?;
    let mut server = Server::start(args, dir.path()).await?;
    let began = Instant::now();
    let identities = enrol_all(args, &server).await?;
    report.figure("enrol_all_s", began.elapsed().as_secs_f64());

    let rss_before = server.rss_bytes()?;
    let counts = Arc::new(Counts::default());
    // Agents send from the start: one that is silent for ten intervals is taken for lost.
    let received_before = server.received().await?;
    let (sending, gate) = watch::channel(true);
    let stop = CancellationToken::new();
    let began = Instant::now();
    let agents = start_all(args, &server.target, identities, &counts, &gate, &stop)?;
    all_connected(&counts, args.agents).await?;
    report.figure("connect_all_s", began.elapsed().as_secs_f64());

    // The window opens on a link at rest, so that no message is on its way over its edge.
    sending.send_replace(false);
    let warm = counts.sent.load(Ordering::Relaxed);
    let received_before = received_before + server.settle(received_before, warm).await?;
    let disconnects_before = counts.disconnects.load(Ordering::Relaxed);
    let unsent_before = counts.unsent.load(Ordering::Relaxed);
    let cpu_before = server.cpu_seconds()?;
    let window = Instant::now();
    sending.send_replace(true);
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    let cores = (server.cpu_seconds()? - cpu_before) / window.elapsed().as_secs_f64();
    sending.send_replace(false);
    let rss = server.rss_bytes()?;
    let sent = counts.sent.load(Ordering::Relaxed) - warm;
    let received = server.settle(received_before, sent).await?;
    report.figure("sent", sent as f64);
    report.figure("received", received as f64);
    report.figure("lost", sent as f64 - received as f64);
    let unsent = counts.unsent.load(Ordering::Relaxed) - unsent_before;
    report.figure("not_sent", unsent as f64);
    let disconnects = counts.disconnects.load(Ordering::Relaxed) - disconnects_before;
    report.figure("disconnects", disconnects as f64);
    report.figure("server_cpu_cores", cores);
    report.figure("server_rss_mb", rss as f64 / 1e6);
    report.figure(
        "server_bytes_per_agent",
        (rss.saturating_sub(rss_before)) as f64 / args.agents as f64,
    );

    sending.send_replace(true);
    for (name, kill) in [
        ("reconnect_all_s", false),
        ("reconnect_all_after_kill_s", true),
    ] {
        server.stop(kill).await?;
        // Counted from the moment the new control plane listens.
        counts.connected.store(0, Ordering::Relaxed);
        server.restart().await?;
        let began = Instant::now();
        let done = all_connected(&counts, args.agents).await;
        report.figure(name, done.is_ok().then(|| began.elapsed().as_secs_f64()));
    }
    report.figure("refused", counts.refused.load(Ordering::Relaxed) as f64);
    stop.cancel();
    drop(agents);
    server.stop(false).await?;
    Ok(Some(report))
}

fn conditions(args: &Args) -> Report {
    let mut report = Report::new("link", 0);
    report.condition("agents", args.agents);
    report.condition("interval_s", args.interval.as_secs_f64());
    report.condition("seconds", args.seconds);
    report.condition("sockets", args.sockets);
    report.condition(
        "server",
        if args.gateway_only {
            "gateway alone"
        } else {
            "hyperion-control"
        },
    );
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    report.condition("cores_shared_by_both", cores);
    report.condition("cpu", proc::cpu_model());
    report.condition("message_bytes", telemetry_bytes());
    report
}

pub(crate) fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // As far as an ordinary user may; the sockets are few anyway.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}

async fn enrol_all(args: &Args, server: &Server) -> anyhow::Result<Vec<Identity>> {
    let mut enrolments = futures::stream::iter(0..args.agents)
        .map(|n| {
            let request = EnrolRequest {
                token: server.token.clone(),
                ..describe(n)
            };
            let target = server.target.clone();
            async move { hyperion_link::enrol(&target, request).await }
        })
        .buffer_unordered(AT_ONCE);
    let mut identities = Vec::with_capacity(args.agents);
    while let Some(enrolled) = enrolments.next().await {
        identities.push(enrolled.context("enrolment")?);
    }
    Ok(identities)
}

pub(crate) fn describe(n: usize) -> EnrolRequest {
    EnrolRequest {
        capabilities: capabilities(),
        hostname: format!("bench-{n}"),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        ..EnrolRequest::default()
    }
}

pub(crate) fn capabilities() -> NodeCapabilities {
    NodeCapabilities {
        cpu_arch: "aarch64".to_owned(),
        memory_bytes: 8 << 30,
        cpu_millis: 6000,
        ..NodeCapabilities::default()
    }
}

/// UDP sockets that agents share.
pub(crate) fn endpoints(sockets: usize) -> anyhow::Result<Vec<quinn::Endpoint>> {
    let all = (0..sockets.max(1)).map(|_| client::client_endpoint());
    Ok(all.collect::<Result<_, _>>()?)
}

fn start_all(
    args: &Args,
    target: &ControlTarget,
    identities: Vec<Identity>,
    counts: &Arc<Counts>,
    gate: &watch::Receiver<bool>,
    stop: &CancellationToken,
) -> anyhow::Result<Vec<tokio::task::JoinHandle<()>>> {
    let endpoints = endpoints(args.sockets)?;
    let agents = identities.into_iter().enumerate().map(|(n, identity)| {
        let mut config = LinkConfig::new(target.clone());
        config.endpoint = Some(endpoints[n % endpoints.len()].clone());
        config.describe = describe(n);
        let phase = args.interval.mul_f64(n as f64 / args.agents as f64);
        let agent = Agent {
            counts: counts.clone(),
            gate: gate.clone(),
            interval: args.interval,
            phase,
        };
        tokio::spawn(agent.run(config, identity, stop.clone()))
    });
    Ok(agents.collect())
}

struct Agent {
    counts: Arc<Counts>,
    gate: watch::Receiver<bool>,
    interval: Duration,
    phase: Duration,
}

impl Agent {
    async fn run(self, config: LinkConfig, identity: Identity, stop: CancellationToken) {
        let node_id = identity.node_id.clone();
        let interval_ms = u32::try_from(self.interval.as_millis()).unwrap_or(u32::MAX);
        let hello = move || Hello {
            node_id: node_id.clone(),
            boot_id: node_id.clone(),
            capabilities: Some(capabilities()),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            telemetry_interval_ms: interval_ms,
            ..Hello::default()
        };
        let mut link = hyperion_link::start(config, identity, Arc::new(hello));
        let sender = link.sender();
        let start = tokio::time::Instant::now() + self.phase;
        let mut tick = tokio::time::interval_at(start, self.interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut sequence = 0;
        loop {
            tokio::select! {
                event = link.next_event() => match event {
                    Some(LinkEvent::Connected(_)) => {
                        self.counts.connected.fetch_add(1, Ordering::Relaxed);
                    }
                    Some(LinkEvent::Disconnected { .. }) => {
                        self.counts.disconnects.fetch_add(1, Ordering::Relaxed);
                    }
                    Some(LinkEvent::Refused { reason }) => {
                        if self.counts.refused.fetch_add(1, Ordering::Relaxed) == 0 {
                            tracing::warn!(reason, "first refusal");
                        }
                    }
                    Some(_) => {}
                    None => return,
                },
                _ = tick.tick() => if *self.gate.borrow() {
                    sequence += 1;
                    self.send(&sender, sequence);
                },
                () = stop.cancelled() => return link.close().await,
            }
        }
    }

    fn send(&self, sender: &LinkSender, sequence: u64) {
        let message = StreamMessage {
            body: Some(Body::Telemetry(telemetry(sequence))),
        };
        let count = match sender.try_send(message) {
            Ok(()) => &self.counts.sent,
            Err(_) => &self.counts.unsent,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a board reports: about as long as the real thing.
pub(crate) fn telemetry(sequence: u64) -> Telemetry {
    Telemetry {
        cpu_utilization_percent: 12.5,
        network_status: Some(NetworkStatus {
            rx_bytes_per_second: 120_000,
            tx_bytes_per_second: 80_000,
            control_rtt_ms: 1.5,
        }),
        memory_used_bytes: 3 << 30,
        disk_used_bytes: 20 << 30,
        load1: 0.7,
        temperatures: [
            "cpu-thermal",
            "gpu-thermal",
            "soc0-thermal",
            "soc1-thermal",
            "tj-thermal",
        ]
        .into_iter()
        .map(|sensor| Temperature {
            sensor: sensor.to_owned(),
            celsius: 47.5,
        })
        .collect(),
        uptime_ms: sequence * 1000,
        sequence,
        ..Telemetry::default()
    }
}

fn telemetry_bytes() -> usize {
    let message = StreamMessage {
        body: Some(Body::Telemetry(telemetry(1_000_000))),
    };
    prost::Message::encoded_len(&message)
}

async fn all_connected(counts: &Counts, agents: usize) -> anyhow::Result<()> {
    let deadline = Instant::now() + CONNECT_ALL;
    loop {
        let connected = counts.connected.load(Ordering::Relaxed);
        if connected >= agents {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{connected} of {agents} agents connected after {CONNECT_ALL:?}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
