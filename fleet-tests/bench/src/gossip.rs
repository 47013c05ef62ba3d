//! How soon the nodes of a site know of a death, how often they are wrong, and what it costs, beside
//! HashiCorp's serf under the same conditions.
//!
//! Each of the two runs in a network namespace of its own, where nothing else happens: every node has
//! an address of 127.1.0.0/16 on the loopback device, nftables counts what is sent there, drops the
//! wished share of packets on arrival, and all packets of nodes that are dead. So a death is that of
//! power: nobody says goodbye, and nothing answers for the dead. Ours are the members of
//! [`hyperion_autonomy::membership`], all in one process, over the agent's peer transport or plain
//! UDP; serf's are agents as they are installed, a process each, whose log says what they see.

mod net;
mod ours;
mod run;
mod serf;
mod tally;

use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::report::Report;
use hyperion_lab::proc;

/// Measure how a site notices deaths.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Nodes.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(3..=1000))]
    pub nodes: u32,
    /// Packets lost, per cent.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=90))]
    pub loss: u32,
    /// Length of the quiet window in which false alarms and bytes are counted, seconds.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,
    /// Times: `default` (beside serf's profile lan) or `fast` (beside serf's local).
    #[arg(long, default_value = "default", value_parser = ["default", "fast"])]
    pub profile: String,
    /// Seed of who dies, and of ours.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Nodes that die, one every three seconds.
    #[arg(long, default_value_t = 10)]
    pub deaths: u32,
    /// What carries our datagrams.
    #[arg(long, value_enum, default_value_t = Transport::Peers)]
    pub transport: Transport,
    /// Leave out serf.
    #[arg(long)]
    pub no_serf: bool,
    /// Be the part of the bench that runs in the namespace.
    #[arg(long, value_enum, hide = true)]
    pub inside: Option<Inside>,
}

/// What carries our datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    /// The agent's peer transport: QUIC with mutual TLS.
    Peers,
    /// Plain UDP.
    Udp,
}

/// Whose nodes run in a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Inside {
    /// Ours.
    Ours,
    /// serf's.
    Serf,
}

/// What was measured in one namespace.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Outcome {
    /// Until all knew all, seconds.
    join_s: f64,
    /// Of each death: until all survivors knew; the longest wait where some never did.
    detect_s: Vec<f64>,
    /// Of each death: until the first survivor knew.
    first_s: Vec<f64>,
    /// Deaths of which not all survivors knew in the end.
    undetected: usize,
    /// Live members declared dead in the quiet window: incidents, and words of it by all members.
    false_deaths: usize,
    false_death_words: usize,
    /// Live members suspected in the quiet window, each suspicion counted once, where it began.
    suspicions: usize,
    bytes_per_s_per_node: f64,
    /// Of these, of packets that belong to QUIC's handshakes.
    handshake_bytes_per_s_per_node: f64,
    packets_per_s_per_node: f64,
    /// Cores that all nodes together took in the quiet window.
    cpu_cores: f64,
    /// Times that ours stood still for longer than a probe takes, deaths included: too little CPU.
    stalls: Option<u64>,
    /// One process's or all processes' memory at the end of the window, megabytes.
    memory_mb: f64,
}

/// Runs the bench; none where this process is its part in a namespace.
///
/// # Errors
/// No right to make a namespace, no nftables, or the nodes do not find each other.
pub fn run(args: &Args) -> anyhow::Result<Option<Report>> {
    ensure!(
        args.deaths + 2 < args.nodes,
        "--deaths {} leaves fewer than three of {} nodes",
        args.deaths,
        args.nodes
    );
    if let Some(inside) = args.inside {
        crate::link::raise_file_limit();
        let outcome = run::inside(args, inside)?;
        print(&serde_json::to_string(&outcome)?)?;
        return Ok(None);
    }
    let mut report = Report::new("gossip", args.seed);
    report.condition("nodes", args.nodes);
    report.condition("loss_percent", args.loss);
    report.condition("window_seconds", args.seconds);
    report.condition("profile", args.profile.clone());
    report.condition("deaths", args.deaths);
    report.condition("cpu", proc::cpu_model());
    report.condition(
        "cores",
        std::thread::available_parallelism().map_or(1, usize::from),
    );
    report.condition("load_before", load());
    report.condition(
        "bytes_are",
        "of all IP packets when they are sent, with IP, UDP and TCP headers",
    );
    let transport = match args.transport {
        Transport::Peers => "the agent's peer transport (QUIC, mutual TLS), one process",
        Transport::Udp => "plain UDP without encryption, one process",
    };
    report.condition("transport", transport);
    let ours = in_namespace(args, Inside::Ours)?;
    figures(&mut report, "", Some(&ours));
    let serf = match serf::version() {
        _ if args.no_serf => Err("left out by --no-serf".to_owned()),
        Err(e) => Err(format!("not installed: {e:#}")),
        Ok(version) => {
            let profile = serf::profile(&args.profile);
            report.condition(
                "serf",
                format!("{version}, profile {profile}, not encrypted, a process per node"),
            );
            in_namespace(args, Inside::Serf).map_err(|e| format!("{e:#}"))
        }
    };
    if let Err(why) = &serf {
        report.condition("serf_not_measured", why.clone());
    }
    figures(&mut report, "serf_", serf.as_ref().ok());
    report.condition("load_after", load());
    Ok(Some(report))
}

/// Load average of the last minute.
fn load() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().unwrap_or_default().to_owned()
}

fn figures(report: &mut Report, prefix: &str, outcome: Option<&Outcome>) {
    let mut figure = |name: &str, of: fn(&Outcome) -> Option<f64>| {
        report.figure(&format!("{prefix}{name}"), outcome.and_then(of));
    };
    figure("detect_p50_s", |o| tally::quantile(&o.detect_s, 0.5));
    figure("detect_p99_s", |o| tally::quantile(&o.detect_s, 0.99));
    figure("detect_first_p50_s", |o| tally::quantile(&o.first_s, 0.5));
    figure("undetected", |o| Some(o.undetected as f64));
    figure("false_suspicions", |o| Some(o.false_deaths as f64));
    figure("false_death_words", |o| Some(o.false_death_words as f64));
    figure("suspected", |o| Some(o.suspicions as f64));
    figure("bytes_per_s_per_node", |o| Some(o.bytes_per_s_per_node));
    if prefix.is_empty() {
        figure("handshake_bytes_per_s_per_node", |o| {
            Some(o.handshake_bytes_per_s_per_node)
        });
        figure("stalls", |o| o.stalls.map(|stalls| stalls as f64));
    }
    figure("packets_per_s_per_node", |o| Some(o.packets_per_s_per_node));
    figure("join_s", |o| Some(o.join_s));
    figure("cpu_cores", |o| Some(o.cpu_cores));
    figure("memory_mb", |o| Some(o.memory_mb));
}

/// Runs this program again in a network namespace of its own, which is gone when it ends.
fn in_namespace(args: &Args, inside: Inside) -> anyhow::Result<Outcome> {
    let own = std::env::current_exe().context("this program's path")?;
    let mut command = Command::new("unshare");
    command.arg("--net");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let inside = match inside {
        Inside::Ours => "ours",
        Inside::Serf => "serf",
    };
    let transport = match args.transport {
        Transport::Peers => "peers",
        Transport::Udp => "udp",
    };
    command
        .arg(own)
        .args(["gossip", "--inside", inside, "--transport", transport])
        .args(["--profile", &args.profile])
        .arg(format!("--nodes={}", args.nodes))
        .arg(format!("--loss={}", args.loss))
        .arg(format!("--seconds={}", args.seconds))
        .arg(format!("--seed={}", args.seed))
        .arg(format!("--deaths={}", args.deaths))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = command.output().context("unshare, of util-linux")?;
    if !output.status.success() {
        bail!(
            "the part in the namespace ({inside}) failed: {}",
            output.status
        );
    }
    serde_json::from_slice(&output.stdout).context("its outcome")
}

fn print(line: &str) -> anyhow::Result<()> {
    use std::io::Write as _;

    writeln!(std::io::stdout().lock(), "{line}")?;
    Ok(())
}
