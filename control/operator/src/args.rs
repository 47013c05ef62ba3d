//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::decider::source::Asked;

/// Decides where AI workloads run, and serves the agents that run them.
#[derive(Debug, Clone, Parser)]
#[command(name = "hyperion-control", version)]
pub struct Args {
    /// Serve the Kubernetes API from this process, for one machine without a cluster
    #[arg(long, requires = "data_dir", conflicts_with = "kubeconfig")]
    pub embedded: bool,
    /// Kubeconfig of the cluster to run on; by default the cluster that this process runs in
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Folder of the embedded API's store and of this process's identity
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address of the embedded API (TCP, TLS)
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7443")]
    pub api_addr: SocketAddr,
    /// Address for agents (UDP, QUIC)
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7444")]
    pub link_addr: SocketAddr,
    /// Where agents find that address, for `hyperion token create`; by default --link-addr, with
    /// the API server's host where it names none that others understand
    #[arg(long, value_name = "HOST:PORT", value_parser = host_and_port)]
    pub link_advertise: Option<String>,
    /// Where the embedded API writes the kubeconfig for kubectl
    #[arg(long, value_name = "FILE", requires = "embedded")]
    pub kubeconfig_out: Option<PathBuf>,
    /// Address of /metrics, /healthz, /readyz and the fleet API (TCP, plain HTTP)
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7445")]
    pub http_addr: SocketAddr,
    /// Name of the fleet: the trust domain of the nodes' certificates
    #[arg(long, default_value = "hyperion", value_parser = fleet_name)]
    pub fleet: String,
    /// Lifetime of the nodes' certificates
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    pub certificate_ttl: Duration,
    /// Replicas are placed again after their node has been out of reach this long, where the
    /// workload does not say otherwise
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub replace_after: Duration,
    /// Policy that decides where replicas go: a file, or `rules` for none; by default the one that
    /// this program brings. A ConfigMap hyperion-system/hyperion-policy counts before a file
    #[arg(long, value_name = "FILE|rules")]
    pub policy: Option<Asked>,
    /// Rules decide, and the policy only watches: what it would have chosen is counted and shown
    #[arg(long)]
    pub shadow: bool,
    /// Services that run well are looked at again this often, and moved where another place has
    /// become clearly better; 0 for never
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = interval)]
    pub reconsider: Duration,
    /// Form of the log lines on standard error
    #[arg(long, default_value = "text")]
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

fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    if duration < Duration::from_secs(1) {
        return Err("at least 1s".to_owned());
    }
    Ok(duration)
}

fn interval(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    match humantime::parse_duration(text).map_err(|e| e.to_string())? {
        Duration::ZERO => Ok(Duration::ZERO),
        short if short < Duration::from_secs(10) => Err("at least 10s, or 0 for never".to_owned()),
        interval => Ok(interval),
    }
}

fn host_and_port(text: &str) -> Result<String, String> {
    let (host, port) = text.rsplit_once(':').ok_or("no port")?;
    let address = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let ok = match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let ok = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
            !host.is_empty() && host.len() <= 253 && host.chars().all(ok)
        }
    };
    if !ok {
        return Err(format!(
            "{host:?} is not a host; an IPv6 address goes in brackets"
        ));
    }
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok(text.to_owned()),
        _ => Err(format!("{port:?} is not a port")),
    }
}

fn fleet_name(text: &str) -> Result<String, String> {
    let ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if text.is_empty() || text.len() > 63 || !text.chars().all(ok) {
        return Err("a name of a-z, 0-9, '-' and '.', at most 63 long".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_that_make_no_sense_are_refused() {
        for bad in [
            vec!["--embedded"],
            vec!["--embedded", "--data-dir", "d", "--kubeconfig", "k"],
            vec!["--kubeconfig-out", "k"],
            vec!["--replace-after", "0s"],
            vec!["--replace-after", "soon"],
            vec!["--fleet", "a/b"],
            vec!["--policy", ""],
            vec!["--reconsider", "1s"],
            vec!["--reconsider", "sometimes"],
            vec!["--api-addr", "localhost"],
            vec!["--link-advertise", "host"],
            vec!["--link-advertise", ":7444"],
            vec!["--link-advertise", "host:0"],
            vec!["--link-advertise", "::1:7444"],
            vec!["--link-advertise", "[host]:7444"],
            vec!["--link-advertise", "a b:7444"],
        ] {
            let words = std::iter::once("hyperion-control").chain(bad.iter().copied());
            assert!(Args::try_parse_from(words).is_err(), "{bad:?}");
        }
        let words = ["hyperion-control", "--embedded", "--data-dir", "d"];
        assert!(Args::try_parse_from(words).is_ok());
        for good in ["host.lan:7444", "10.0.0.1:1", "[2001:db8::1]:7444"] {
            let words = words.iter().copied().chain(["--link-advertise", good]);
            assert!(Args::try_parse_from(words).is_ok(), "{good}");
        }
    }
}
