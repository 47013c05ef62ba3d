//! The namespace: addresses, counters, losses.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// Port of every node.
const PORT: u16 = 7946;

/// Nodes' packets go through `lossy` when they arrive, so that the sender does not notice what
/// becomes of them; they are counted when they leave. A TCP connection that a node opens has an
/// address of its own at one end only. QUIC's packets of a handshake are those that begin with a one.
const RULES: &str = "
table inet bench {
  set dead { type ipv4_addr; }
  counter sent { }
  counter handshakes { }
  chain lossy {
    ip saddr @dead drop
    ip daddr @dead drop
  }
  chain node {
    counter name sent
    meta l4proto udp @th,64,1 1 counter name handshakes
  }
  chain out {
    type filter hook output priority 0;
    ip saddr 127.1.0.0/16 jump node
    ip saddr != 127.1.0.0/16 ip daddr 127.1.0.0/16 jump node
  }
  chain in {
    type filter hook input priority 0;
    ip saddr 127.1.0.0/16 jump lossy
    ip saddr != 127.1.0.0/16 ip daddr 127.1.0.0/16 jump lossy
  }
}
";

/// Name of a node.
pub(super) fn name(index: usize) -> String {
    format!("node-{index}")
}

/// The node of this name.
pub(super) fn index(name: &str) -> Option<usize> {
    name.strip_prefix("node-")?.parse().ok()
}

/// Address of a node.
pub(super) fn address(index: usize) -> SocketAddr {
    // At most a thousand nodes: both parts fit a byte.
    let part = |value: usize| u8::try_from(value).unwrap_or(u8::MAX);
    let ip = Ipv4Addr::new(127, 1, part(index / 250), part(index % 250 + 1));
    SocketAddr::from((ip, PORT))
}

/// The node with this address.
pub(super) fn of_address(address: SocketAddr) -> Option<usize> {
    let SocketAddr::V4(v4) = address else {
        return None;
    };
    match v4.ip().octets() {
        [127, 1, high, low] if low > 0 => Some(usize::from(high) * 250 + usize::from(low) - 1),
        _ => None,
    }
}

/// The network namespace that this process is in.
pub(super) struct Net;

impl Net {
    /// Sets up the namespace.
    ///
    /// # Errors
    /// It is not one of our own, or ip or nft are missing.
    pub(super) fn set_up() -> anyhow::Result<Self> {
        call("ip", &["link", "set", "lo", "up"], "")?;
        call("nft", &["-f", "-"], RULES)?;
        Ok(Self)
    }

    /// From now on so many per cent of the packets are lost.
    pub(super) fn lose(&self, percent: u32) -> anyhow::Result<()> {
        if percent == 0 {
            return Ok(());
        }
        let rule = format!("add rule inet bench lossy numgen random mod 100 < {percent} drop\n");
        call("nft", &["-f", "-"], &rule).map(drop)
    }

    /// The node's power is gone.
    pub(super) fn silence(&self, node: usize) -> anyhow::Result<()> {
        let ip = address(node).ip();
        let element = format!("add element inet bench dead {{ {ip} }}\n");
        call("nft", &["-f", "-"], &element).map(drop)
    }

    /// Packets and bytes sent so far, with their IP headers.
    pub(super) fn sent(&self) -> anyhow::Result<(f64, f64)> {
        self.counter("sent")
    }

    /// Packets and bytes of QUIC's handshakes sent so far.
    pub(super) fn handshakes(&self) -> anyhow::Result<(f64, f64)> {
        self.counter("handshakes")
    }

    fn counter(&self, name: &str) -> anyhow::Result<(f64, f64)> {
        let listed = call("nft", &["-j", "list", "counter", "inet", "bench", name], "")?;
        let listed: serde_json::Value = serde_json::from_str(&listed).context("nft's counter")?;
        let counter = listed["nftables"]
            .as_array()
            .and_then(|parts| parts.iter().find_map(|part| part.get("counter")))
            .context("nft lists no counter")?;
        let number = |name: &str| counter[name].as_f64().context("nft's counter");
        Ok((number("packets")?, number("bytes")?))
    }
}

fn call(program: &str, args: &[&str], input: &str) -> anyhow::Result<String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| program.to_owned())?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}", args.join(" "), why.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_has_its_own_address() {
        for node in [0, 1, 249, 250, 499, 999] {
            assert_eq!(of_address(address(node)), Some(node));
            assert_eq!(index(&name(node)), Some(node));
        }
        assert_eq!(address(250).to_string(), "127.1.1.1:7946");
        assert_eq!(of_address(SocketAddr::from(([127, 0, 0, 1], PORT))), None);
    }
}
