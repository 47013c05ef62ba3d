//! The command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser, ValueEnum};
use hyperion_placement::model::Provider;
use hyperion_providers::feeds::run::Wanted;

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
    /// Write the CRDs, the namespace and the Service at the start; `false` where a chart has
    /// installed them, and this process need not have the rights to
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    pub install: bool,
    /// Address of this process's Pod, whose name is in POD_NAME: while it leads, the Services
    /// hyperion-control and hyperion-agents lead to it; only with --install=false
    #[arg(long, value_name = "IP", conflicts_with = "embedded")]
    pub publish_ip: Option<IpAddr>,
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
    /// Share of the policy's new placements, 0 to 1, that are drawn from its best candidates by their
    /// scores where it would take the best: what becomes of them teaches `hyperion-train learn`
    #[arg(long, value_name = "SHARE", default_value = "0", value_parser = share)]
    pub explore: f64,
    /// Services that run well are looked at again this often, and moved where another place has
    /// become clearly better; 0 for never
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = interval)]
    pub reconsider: Duration,
    /// Live prices of these, for nodes whose price no label says: `aws`, `gcp`, `azure` (with the
    /// usual credentials of each) and `file:PATH`; without any, the built-in table
    #[arg(long, value_name = "FEED", value_delimiter = ',')]
    pub price_feed: Vec<Wanted>,
    /// How often the clouds are asked for prices
    #[arg(long, value_name = "DURATION", default_value = "30m", value_parser = refresh)]
    pub price_refresh: Duration,
    /// Regions to ask for prices of, such as `aws:us-east-1`; of a provider without any, those
    /// whose latencies are built in
    #[arg(long, value_name = "PROVIDER:REGION", value_delimiter = ',', value_parser = region)]
    pub price_region: Vec<(Provider, String)>,
    /// Folder that keeps prices for the next start; by default `prices` in the data folder
    #[arg(long, value_name = "DIR")]
    pub price_cache: Option<PathBuf>,
    /// Address of a Prometheus server, such as `http://prometheus.monitoring:9090`, that measures
    /// nodes without an agent
    #[arg(long, value_name = "URL")]
    pub prometheus: Option<String>,
    /// File with a bearer token for it
    #[arg(long, value_name = "FILE", requires = "prometheus")]
    pub prometheus_token: Option<PathBuf>,
    /// File with what it is asked (YAML); by default what node_exporter measures
    #[arg(long, value_name = "FILE", requires = "prometheus")]
    pub prometheus_queries: Option<PathBuf>,
    /// File with the credential plugins for clusters that ClusterProfiles name (JSON or YAML)
    #[arg(long, value_name = "FILE")]
    pub cluster_profile_providers: Option<PathBuf>,
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

fn refresh(text: &str) -> Result<Duration, String> {
    let refresh = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    let (least, most) = (Duration::from_secs(60), Duration::from_secs(24 * 3600));
    if !(least..=most).contains(&refresh) {
        return Err("between 1m and 24h".to_owned());
    }
    Ok(refresh)
}

fn region(text: &str) -> Result<(Provider, String), String> {
    let (provider, region) = text.split_once(':').ok_or("no provider before a colon")?;
    let provider: Provider = provider.parse().map_err(|e| format!("{e}"))?;
    if hyperion_providers::geography(provider, region).is_none() {
        return Err(format!(
            "{region:?} is no region of {provider} that is known"
        ));
    }
    Ok((provider, region.to_owned()))
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("a number from 0 to 1".to_owned()),
    }
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
            vec!["--explore", "1.5"],
            vec!["--explore", "-0.1"],
            vec!["--explore", "NaN"],
            vec!["--explore", "5%"],
            vec!["--reconsider", "1s"],
            vec!["--reconsider", "sometimes"],
            vec!["--api-addr", "localhost"],
            vec!["--price-feed", "ibm"],
            vec!["--price-feed", "file:"],
            vec!["--price-refresh", "1s"],
            vec!["--price-refresh", "2d"],
            vec!["--price-region", "us-east-1"],
            vec!["--price-region", "ibm:us-east-1"],
            vec!["--price-region", "azure:us-east-1"],
            vec!["--price-region", "edge:lab"],
            vec!["--link-advertise", "host"],
            vec!["--link-advertise", ":7444"],
            vec!["--link-advertise", "host:0"],
            vec!["--link-advertise", "::1:7444"],
            vec!["--link-advertise", "[host]:7444"],
            vec!["--link-advertise", "a b:7444"],
            vec!["--install", "perhaps"],
            vec!["--prometheus-queries", "f"],
            vec!["--prometheus-token", "f"],
            vec!["--publish-ip", "hyperion-control"],
            vec!["--publish-ip", "10.0.0.1", "--embedded", "--data-dir", "d"],
        ] {
            let words = std::iter::once("hyperion-control").chain(bad.iter().copied());
            assert!(Args::try_parse_from(words).is_err(), "{bad:?}");
        }
        let words = ["hyperion-control", "--embedded", "--data-dir", "d"];
        assert!(Args::try_parse_from(words).is_ok());
        let feeds = ["--price-feed", "aws,azure", "--price-feed", "file:/x.csv"];
        let args = Args::try_parse_from(words.iter().copied().chain(feeds));
        let file = Wanted::File("/x.csv".into());
        let wanted = args.map(|args| args.price_feed);
        assert_eq!(wanted.ok(), Some(vec![Wanted::Aws, Wanted::Azure, file]));
        for good in ["host.lan:7444", "10.0.0.1:1", "[2001:db8::1]:7444"] {
            let words = words.iter().copied().chain(["--link-advertise", good]);
            assert!(Args::try_parse_from(words).is_ok(), "{good}");
        }
    }
}
