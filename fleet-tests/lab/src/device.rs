//! A device's own place in the network: a namespace with one address on the containers' bridge, so
//! that a link, a whole site or one direction of it can be cut and mended.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::containerd::Network;
use crate::process::run;

/// First host number of devices; containers get the lower ones.
pub const FIRST_HOST: u8 = 200;
/// UDP port of the agents' peers.
pub const PEER_PORT: u16 = 7445;

/// A network namespace. It is removed by [`crate::state::clean_up`].
#[derive(Debug, Clone)]
pub struct Device {
    /// Name of the namespace.
    pub netns: String,
    /// Its one interface.
    interface: String,
    /// Its address.
    pub address: String,
}

/// Which way packets no longer go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Neither way.
    Both,
    /// What the other sends does not arrive.
    From,
    /// What this one sends does not arrive.
    To,
}

impl Device {
    /// Makes the namespace with host number [`FIRST_HOST`]` + at`.
    ///
    /// # Errors
    /// It can't be made here.
    pub fn make(network: &Network, at: usize) -> Result<Self> {
        let host = u8::try_from(at)
            .ok()
            .and_then(|at| FIRST_HOST.checked_add(at))
            .filter(|host| *host < 255)
            .context("a lab has at most 55 devices")?;
        let number = network.number;
        let netns = format!("hyp{number}-{host}");
        let (outside, inside) = (format!("hv{number}-{host}"), format!("hw{number}-{host}"));
        let address = format!("198.18.{number}.{host}");
        run("ip", &["netns", "add", &netns])?;
        let device = Self {
            netns,
            interface: inside.clone(),
            address,
        };
        run(
            "ip",
            &[
                "link", "add", &outside, "type", "veth", "peer", "name", &inside,
            ],
        )?;
        run("ip", &["link", "set", &inside, "netns", &device.netns])?;
        run(
            "ip",
            &["link", "set", &outside, "master", &network.bridge, "up"],
        )?;
        let cidr = format!("{}/24", device.address);
        device.ip(&["addr", "add", &cidr, "dev", &inside])?;
        device.ip(&["link", "set", &inside, "up"])?;
        device.ip(&["link", "set", "lo", "up"])?;
        device.nft(&["add", "table", "inet", "lab"])?;
        for hook in ["input", "output"] {
            let chain = format!("{{ type filter hook {hook} priority 0 ; }}");
            device.nft(&["add", "chain", "inet", "lab", hook, &chain])?;
        }
        Ok(device)
    }

    /// The command that runs a program inside.
    #[must_use]
    pub fn inside(&self, program: &Path, args: Vec<String>) -> (PathBuf, Vec<String>) {
        let mut all = vec![
            format!("--net=/run/netns/{}", self.netns),
            program.display().to_string(),
        ];
        all.extend(args);
        (PathBuf::from("nsenter"), all)
    }

    /// Pulls its cable: without it there is no route either.
    ///
    /// # Errors
    /// The interface is gone.
    pub fn unplug(&self) -> Result<()> {
        self.ip(&["link", "set", &self.interface, "down"])
    }

    /// Plugs its cable in again.
    ///
    /// # Errors
    /// The interface is gone.
    pub fn plug(&self) -> Result<()> {
        self.ip(&["link", "set", &self.interface, "up"])
    }

    /// Cuts the way between this device and an address, for UDP alone: containers are reached by
    /// another way.
    ///
    /// # Errors
    /// The packet filter refuses.
    pub fn cut(&self, other: &str, cut: Cut) -> Result<()> {
        if cut != Cut::To {
            self.rule("input", &["ip", "saddr", other, "udp", "dport", "1-65535"])?;
        }
        if cut != Cut::From {
            self.rule("output", &["ip", "daddr", other, "udp", "dport", "1-65535"])?;
        }
        Ok(())
    }

    /// Mends everything.
    ///
    /// # Errors
    /// The packet filter refuses.
    pub fn mend(&self) -> Result<()> {
        for hook in ["input", "output"] {
            self.nft(&["flush", "chain", "inet", "lab", hook])?;
        }
        Ok(())
    }

    fn rule(&self, hook: &str, what: &[&str]) -> Result<()> {
        let mut args = vec!["add", "rule", "inet", "lab", hook];
        args.extend_from_slice(what);
        args.push("drop");
        self.nft(&args)
    }

    fn ip(&self, args: &[&str]) -> Result<()> {
        let mut all = vec!["-n", &self.netns];
        all.extend_from_slice(args);
        run("ip", &all).map(drop)
    }

    fn nft(&self, args: &[&str]) -> Result<()> {
        let net = format!("--net=/run/netns/{}", self.netns);
        let mut all = vec![net.as_str(), "nft"];
        all.extend_from_slice(args);
        run("nsenter", &all).map(drop)
    }
}
