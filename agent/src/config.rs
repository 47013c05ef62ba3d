//! The agent's flags. Parsing refuses nonsense and names the flag; nothing behind this module
//! validates again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::local::{self, LocalSocket};
use crate::notice::{Base, Cloud, CloudMetadata};
use crate::store::DEFAULT_RING;
use crate::telemetry::Reserved;

/// Runs the containers that the fleet's control plane places on this machine, and tells it how
/// the machine is. Needs the right to use containerd's socket, and a join token once.
#[derive(Debug, Clone, Parser)]
#[command(name = "hyperion-agent", version)]
pub struct Config {
    /// Link address of the control plane (UDP).
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_control)]
    pub control: String,
    /// Join token, from `hyperion token create`; needed once.
    #[arg(long, env = "HYPERION_TOKEN", hide_env_values = true, value_name = "TOKEN", value_parser = parse_token)]
    pub token: Option<String>,
    /// File with the join token.
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    pub token_file: Option<PathBuf>,
    /// Fingerprint of the fleet's CA, printed with the token; needed once.
    #[arg(long, value_name = "sha256:HEX", value_parser = parse_fingerprint)]
    pub ca_fingerprint: Option<String>,
    /// This machine is a node of the HyperionCluster of that name, whose kubelet runs its containers:
    /// measure it, follow its cloud's notices, and run nothing.
    #[arg(long, value_name = "NAME", value_parser = parse_cluster, conflicts_with_all = ["token", "token_file", "site"])]
    pub cluster: Option<String>,
    /// File with a token of the agent's Pod for audience `hyperion`, by which the cluster tells which
    /// node this is.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/run/secrets/hyperion/token"
    )]
    pub cluster_token_file: PathBuf,
    /// Folder for identity and store.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/hyperion")]
    pub data_dir: PathBuf,
    /// File with a secret that the disk does not hold, 64 hexadecimal digits: the key of a new identity is
    /// encrypted with it, where it is there.
    #[arg(long, env = "HYPERION_KEY_SECRET", value_name = "FILE")]
    pub key_secret: Option<PathBuf>,
    /// Socket of containerd.
    #[arg(
        long,
        value_name = "SOCKET",
        default_value = "/run/containerd/containerd.sock"
    )]
    pub containerd_socket: PathBuf,
    /// Site that this node belongs to; empty takes the token's.
    #[arg(long, default_value = "", value_parser = parse_site)]
    pub site: String,
    /// Label of the node; may be given again.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub labels: Vec<(String, String)>,
    /// Time between telemetry messages, 100ms to 60s.
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_interval)]
    pub telemetry_interval: Duration,
    /// Address of /metrics and /healthz; `off` for none.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:7446", value_parser = parse_http)]
    pub http_addr: HttpAddr,
    /// Address where the other nodes of the site reach this one (UDP); `off` for a node that knows
    /// no peers. [default: [::]:7445, or a free port where that is taken]
    #[arg(long, value_name = "IP:PORT", value_parser = parse_peer_addr)]
    pub peer_addr: Option<PeerAddr>,
    /// Address of another node of the site; may be given again. Nodes that the control plane knows,
    /// and those that answer to multicast DNS, are found without.
    #[arg(long = "peer", value_name = "HOST:PORT", value_parser = parse_control)]
    pub peers: Vec<String>,
    /// Do not look for peers by multicast DNS, and do not answer it.
    #[arg(long)]
    pub no_mdns: bool,
    /// Times of the site, the same on all its nodes: `default`, or `fast` for wired networks.
    #[arg(long, value_enum, default_value_t = ProfileName::Default)]
    pub profile: ProfileName,
    /// Telemetry that is kept while the control plane is out of reach, for example 16Mi; 0 for none.
    #[arg(long, value_name = "SIZE", default_value_t = Size(DEFAULT_RING), value_parser = parse_size)]
    pub offline_buffer: Size,
    /// Temperature at which the node gives work to others, degrees Celsius; 0 for never.
    #[arg(long, value_name = "DEGREES", default_value_t = 90, value_parser = clap::value_parser!(u16).range(0..=150))]
    pub throttle_celsius: u16,
    /// Unix socket where people at the site operate it, with `hyperion site`; `off` for none.
    /// [default: /run/hyperion/agent.sock]
    #[arg(long, value_name = "PATH", value_parser = local::parse_socket)]
    pub local_socket: Option<LocalSocket>,
    /// What the node keeps for itself, for example cpu=500m,memory=256Mi.
    #[arg(long, value_name = "LIST", default_value = "", value_parser = parse_reserved)]
    pub system_reserved: Reserved,
    /// Whose notices of interruption are followed: auto (the cloud that the machine's firmware
    /// names), aws, gcp, azure, or none.
    #[arg(long, value_name = "CLOUD", default_value = "auto", value_parser = parse_cloud)]
    pub cloud_metadata: CloudMetadata,
    /// Where that cloud's metadata service is, `http://HOST:PORT`, for tests.
    #[arg(long, value_name = "URL", hide = true)]
    pub cloud_metadata_url: Option<Base>,
    /// Root of procfs and sysfs, for tests.
    #[arg(long, value_name = "DIR", default_value = "/", hide = true)]
    pub root: PathBuf,
    /// Form of log lines.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object per line.
    Json,
}

/// Times of a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProfileName {
    /// For any network.
    Default,
    /// For wired networks with few losses.
    Fast,
}

/// Where peers reach the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerAddr {
    /// Nowhere.
    Off,
    /// Here; port 0 takes a free one.
    At(SocketAddr),
}

/// Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 > 0 && self.0.is_multiple_of(1 << 20) {
            write!(f, "{}Mi", self.0 >> 20)
        } else {
            write!(f, "{}", self.0)
        }
    }
}

/// Where metrics are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpAddr {
    /// Nowhere.
    Off,
    /// Here; port 0 takes a free one.
    At(SocketAddr),
}

impl Config {
    /// Labels by key; the last of a key stands.
    #[must_use]
    pub fn label_map(&self) -> BTreeMap<String, String> {
        self.labels.iter().cloned().collect()
    }

    /// The join token from flag, environment or file; none where none was given.
    ///
    /// # Errors
    /// Names the file that can't be read or holds no token.
    pub fn read_token(&self) -> Result<Option<String>, String> {
        let Some(file) = &self.token_file else {
            // An environment file may leave it empty.
            return Ok(self.token.clone().filter(|token| !token.is_empty()));
        };
        let name = file.display();
        let text =
            std::fs::read_to_string(file).map_err(|e| format!("--token-file {name}: {e}"))?;
        parse_token(text.trim())
            .and_then(|token| {
                if token.is_empty() {
                    Err("empty".to_owned())
                } else {
                    Ok(Some(token))
                }
            })
            .map_err(|e| format!("--token-file {name}: {e}"))
    }
}

fn parse_control(text: &str) -> Result<String, String> {
    let (host, port) = text
        .rsplit_once(':')
        .ok_or("no port; HOST:PORT is expected")?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    if host.is_empty() || host.contains(char::is_whitespace) || (host.contains(':') && !bracketed) {
        return Err(format!(
            "{host:?} is not a host; an IPv6 address goes in brackets"
        ));
    }
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok(text.to_owned()),
        _ => Err(format!("{port:?} is not a port")),
    }
}

fn parse_token(text: &str) -> Result<String, String> {
    let word = |w: &str| {
        !w.is_empty()
            && w.chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
    };
    match text.split_once('.') {
        Some((id, secret)) if word(id) && word(secret) && text.len() <= 256 => Ok(text.to_owned()),
        None if text.is_empty() => Ok(String::new()),
        // The token itself is a secret: the message does not repeat it.
        _ => Err("not a join token; <id>.<secret> is expected".to_owned()),
    }
}

fn parse_fingerprint(text: &str) -> Result<String, String> {
    let hex = text
        .strip_prefix("sha256:")
        .ok_or("does not begin with sha256:")?;
    if hex.len() != 64 || !hex.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err("64 hexadecimal digits are expected after sha256:".to_owned());
    }
    Ok(text.to_ascii_lowercase())
}

fn parse_site(text: &str) -> Result<String, String> {
    let ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if text.len() <= 63 && text.chars().all(ok) {
        Ok(text.to_owned())
    } else {
        Err("lower-case letters, digits and dashes are expected, at most 63".to_owned())
    }
}

fn parse_cluster(text: &str) -> Result<String, String> {
    match parse_site(text) {
        Ok(name) if !name.is_empty() => Ok(name),
        _ => Err("a HyperionCluster's name is expected: lower-case letters, digits and dashes, at most 63".to_owned()),
    }
}

/// A word of a Kubernetes label: letters, digits, `-`, `_`, `.`, beginning and ending with a
/// letter or digit.
fn label_word(text: &str) -> bool {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && ends(text.chars().next())
        && ends(text.chars().last())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or("no '='; KEY=VALUE is expected")?;
    let (prefix, name) = key.rsplit_once('/').unwrap_or(("", key));
    let prefix_ok = prefix.is_empty() || prefix.split('.').all(label_word);
    if !label_word(name) || !prefix_ok || (key.contains('/') && prefix.is_empty()) {
        return Err(format!("{key:?} is not a label key"));
    }
    if !value.is_empty() && !label_word(value) {
        return Err(format!("{value:?} is not a label value"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    if (Duration::from_millis(100)..=Duration::from_secs(60)).contains(&interval) {
        Ok(interval)
    } else {
        Err("not between 100ms and 60s".to_owned())
    }
}

fn parse_cloud(text: &str) -> Result<CloudMetadata, String> {
    match text {
        "auto" => Ok(CloudMetadata::Auto),
        "none" => Ok(CloudMetadata::None),
        _ => [Cloud::Aws, Cloud::Gcp, Cloud::Azure]
            .into_iter()
            .find(|cloud| cloud.as_str() == text)
            .map(CloudMetadata::Of)
            .ok_or_else(|| "auto, aws, gcp, azure or none is expected".to_owned()),
    }
}

fn parse_http(text: &str) -> Result<HttpAddr, String> {
    if text == "off" {
        return Ok(HttpAddr::Off);
    }
    text.parse()
        .map(HttpAddr::At)
        .map_err(|_| "IP:PORT or off is expected".to_owned())
}

fn parse_peer_addr(text: &str) -> Result<PeerAddr, String> {
    if text == "off" {
        return Ok(PeerAddr::Off);
    }
    text.parse()
        .map(PeerAddr::At)
        .map_err(|_| "IP:PORT or off is expected".to_owned())
}

/// At most this much telemetry is kept, bytes: more would be a month.
const MOST_KEPT: u64 = 1 << 30;

fn parse_size(text: &str) -> Result<Size, String> {
    match parse_memory(text) {
        Some(bytes) if bytes <= MOST_KEPT => Ok(Size(bytes)),
        Some(_) => Err("at most 1Gi are kept".to_owned()),
        None => Err(format!("{text:?} is not a size, as in 16Mi")),
    }
}

fn parse_reserved(text: &str) -> Result<Reserved, String> {
    let mut reserved = Reserved::default();
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let (name, quantity) = part
            .split_once('=')
            .ok_or_else(|| format!("{part:?} has no '='"))?;
        let bad = || format!("{name}: {quantity:?} is not a quantity");
        match name {
            "cpu" => reserved.cpu_millis = parse_cpu(quantity).ok_or_else(bad)?,
            "memory" => reserved.memory_bytes = parse_memory(quantity).ok_or_else(bad)?,
            _ => return Err(format!("{name:?} is neither cpu nor memory")),
        }
    }
    Ok(reserved)
}

/// Thousandths of a core: `500m`, `2`, `0.5`.
fn parse_cpu(text: &str) -> Option<u64> {
    if let Some(millis) = text.strip_suffix('m') {
        return millis.parse().ok();
    }
    let cores: f64 = text.parse().ok()?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "bounded before the cast"
    )]
    (0.0..=1e6)
        .contains(&cores)
        .then(|| (cores * 1000.0).round() as u64)
}

/// Bytes: a whole number with or without a suffix.
fn parse_memory(text: &str) -> Option<u64> {
    const SUFFIXES: [(&str, u64); 8] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("k", 1000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
    ];
    for (suffix, factor) in SUFFIXES {
        if let Some(number) = text.strip_suffix(suffix) {
            return number.parse::<u64>().ok()?.checked_mul(factor);
        }
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Config, String> {
        let base = ["hyperion-agent", "--control", "127.0.0.1:7444"];
        Config::try_parse_from(base.iter().chain(args)).map_err(|e| e.to_string())
    }

    #[test]
    fn every_flag_of_the_manual_is_taken() {
        let fingerprint = format!("sha256:{}", "A0".repeat(32));
        let c = parse(&[
            "--token",
            "abc.def0",
            "--ca-fingerprint",
            &fingerprint,
            "--data-dir",
            "/tmp/x",
            "--containerd-socket",
            "/run/c.sock",
            "--site",
            "lab",
            "--label",
            "topology.kubernetes.io/region=us-east-1",
            "--label",
            "hyperion.io/price-per-hour=0.51",
            "--telemetry-interval",
            "500ms",
            "--http-addr",
            "off",
            "--system-reserved",
            "cpu=500m,memory=256Mi",
            "--log-format",
            "json",
            "--peer-addr",
            "0.0.0.0:7000",
            "--peer",
            "10.0.0.2:7445",
            "--peer",
            "[fe80::1]:7445",
            "--no-mdns",
            "--profile",
            "fast",
            "--offline-buffer",
            "8Mi",
            "--throttle-celsius",
            "80",
            "--local-socket",
            "off",
            "--cloud-metadata",
            "gcp",
            "--cloud-metadata-url",
            "http://127.0.0.1:8080",
        ])
        .unwrap();
        assert_eq!(
            c.peer_addr,
            Some(PeerAddr::At("0.0.0.0:7000".parse().unwrap()))
        );
        assert_eq!(c.peers.len(), 2);
        assert!(c.no_mdns && c.profile == ProfileName::Fast);
        assert_eq!(c.offline_buffer, Size(8 << 20));
        assert_eq!(c.throttle_celsius, 80);
        assert_eq!(c.local_socket, Some(LocalSocket::Off));
        assert_eq!(parse(&[]).unwrap().offline_buffer.to_string(), "16Mi");
        assert_eq!(c.ca_fingerprint.unwrap(), fingerprint.to_lowercase());
        assert_eq!(c.telemetry_interval, Duration::from_millis(500));
        assert_eq!(c.http_addr, HttpAddr::Off);
        assert_eq!(c.system_reserved.cpu_millis, 500);
        assert_eq!(c.system_reserved.memory_bytes, 256 << 20);
        assert_eq!(c.labels[1].1, "0.51");
        assert_eq!(c.cloud_metadata, CloudMetadata::Of(Cloud::Gcp));
        let base = c.cloud_metadata_url.unwrap().to_string();
        assert_eq!(base, "http://127.0.0.1:8080");
    }

    #[test]
    fn an_agent_that_measures_needs_no_token_and_takes_none() {
        let c = parse(&["--cluster", "east"]).unwrap();
        assert_eq!(c.cluster.as_deref(), Some("east"));
        let file = c.cluster_token_file.display().to_string();
        assert_eq!(file, "/var/run/secrets/hyperion/token");
        let both = parse(&["--cluster", "east", "--token", "abc.def0"]).unwrap_err();
        assert!(both.contains("--token"), "{both}");
    }

    #[test]
    fn bad_values_name_their_flag() {
        for (flag, value) in [
            ("--label", "novalue"),
            ("--label", "=x"),
            ("--label", "a b=x"),
            ("--telemetry-interval", "1"),
            ("--telemetry-interval", "1ms"),
            ("--ca-fingerprint", "sha256:12"),
            ("--ca-fingerprint", "md5:12"),
            ("--token", "no-dot"),
            ("--site", "Lab/1"),
            ("--cluster", "East.1"),
            ("--cluster", ""),
            ("--http-addr", "localhost"),
            ("--system-reserved", "cpu=-1"),
            ("--system-reserved", "disk=1"),
            ("--system-reserved", "memory=99999999999Ti"),
            ("--log-format", "xml"),
            ("--peer-addr", "7445"),
            ("--peer", "host"),
            ("--profile", "slow"),
            ("--offline-buffer", "much"),
            ("--offline-buffer", "2Gi"),
            ("--throttle-celsius", "200"),
            ("--local-socket", "relative"),
            ("--cloud-metadata", "oracle"),
            ("--cloud-metadata-url", "https://169.254.169.254"),
            ("--cloud-metadata-url", "http://user@host"),
            ("--cloud-metadata-url", "http://a/b"),
        ] {
            let error = parse(&[&format!("{flag}={value}")]).unwrap_err();
            assert!(error.contains(flag), "{flag} {value}: {error}");
        }
    }

    #[test]
    fn a_control_address_needs_a_host_and_a_port() {
        for bad in [
            "host",
            "host:",
            ":7444",
            "host:0",
            "host:99999",
            "fe80::1:7444",
        ] {
            let args = ["hyperion-agent", "--control", bad];
            let error = Config::try_parse_from(args).unwrap_err().to_string();
            assert!(error.contains("--control"), "{bad}: {error}");
        }
        for good in ["host:7444", "[::1]:7444", "10.0.0.1:1"] {
            assert!(parse_control(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn an_unreadable_token_file_is_named() {
        assert_eq!(parse(&["--token="]).unwrap().read_token(), Ok(None));
        let c = parse(&["--token-file", "/nowhere/token"]).unwrap();
        let error = c.read_token().unwrap_err();
        assert!(error.contains("--token-file /nowhere/token"), "{error}");
    }
}
