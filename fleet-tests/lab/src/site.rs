//! A site of devices, each with a network of its own, and what can happen to it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::beacon::Beacon;
use crate::device::Cut;
use crate::fleet::Placement;
use crate::scene::{SOON, service, set};
use crate::truth::{Span, Truth};
use crate::{AgentSpec, Fleet, FleetOptions, wait};

/// Longest wait for a takeover; the targets are far below.
const LONG: Duration = Duration::from_secs(60);

/// A site with a control plane, and the truth about its containers.
pub struct Site {
    /// All of it.
    pub fleet: Fleet,
    /// Counts starts of workloads.
    pub beacon: Beacon,
    /// Looks at the containers.
    pub truth: Truth,
}

impl Site {
    /// Starts a control plane and so many devices of one site with this profile (`default` or
    /// `fast`).
    ///
    /// # Errors
    /// Something does not start.
    pub fn start(name: &str, profile: &str, devices: usize) -> Result<Self> {
        let mut fleet = Fleet::start(&FleetOptions::new(name).devices())?;
        for n in 1..=devices {
            fleet.add_only(&AgentSpec::edge(&format!("edge-{n}")).flag("--profile", profile))?;
        }
        for at in 0..devices {
            fleet.wait_agent(at)?;
        }
        let beacon = Beacon::listen(&fleet.network.gateway())?;
        let truth = Truth::watch(&fleet);
        Ok(Self {
            fleet,
            beacon,
            truth,
        })
    }

    /// Runs a service and waits until all its replicas answer.
    ///
    /// # Errors
    /// They do not in time.
    pub fn run_service(&self, name: &str, replicas: u32, exclusive: bool) -> Result<()> {
        let mut object = service(name, replicas, Some(&self.beacon));
        if exclusive {
            set(&mut object, "/spec/policy/exclusive", json!(true));
        }
        self.fleet.apply(&object)?;
        let replicas = usize::try_from(replicas)?;
        self.fleet.wait_all_running(name, replicas)?;
        self.truth
            .wait(name, SOON, |running| running.len() == replicas)?;
        Ok(())
    }

    /// The agent of the only copy of a workload.
    ///
    /// # Errors
    /// It has none, or more than one.
    pub fn agent_with(&self, workload: &str) -> Result<usize> {
        let running = self.truth.running(workload);
        ensure!(running.len() == 1, "{workload} has copies {running:?}");
        let node = running.first().map(|s| s.node.clone());
        self.fleet
            .agent_of(&node.unwrap_or_default())
            .context("no agent has this node")
    }

    /// Ends the control plane at once and waits until every agent that runs acts alone; gives the
    /// time that took.
    ///
    /// # Errors
    /// They do not in time.
    pub fn lose_control(&mut self) -> Result<Duration> {
        let agents: Vec<usize> = (0..self.fleet.agents.len()).collect();
        self.fleet.control.kill();
        self.wait_autonomous(&agents)
    }

    /// Waits until these agents act alone; gives the time that took.
    ///
    /// # Errors
    /// They do not in time.
    pub fn wait_autonomous(&self, agents: &[usize]) -> Result<Duration> {
        let begin = Instant::now();
        for &at in agents {
            self.fleet.wait_mode(at, "autonomous")?;
        }
        Ok(begin.elapsed())
    }

    /// Starts the control plane again and waits until these agents have their link back; gives the
    /// moment at which the last of them had.
    ///
    /// # Errors
    /// Not in time.
    pub fn regain_control(&mut self, agents: &[usize]) -> Result<Instant> {
        self.fleet.start_control()?;
        for &at in agents {
            let node = self.fleet.node(at);
            self.fleet.wait_node(&node, "True")?;
        }
        Ok(Instant::now())
    }

    /// Waits until the control plane shows that a replica is on a node by the site's decision.
    ///
    /// # Errors
    /// It does not in time.
    pub fn wait_adopted(&self, placement: &str, node: &str) -> Result<Placement> {
        self.fleet.wait_placement(placement, LONG, |p| {
            p.node == node && p.decided_by != "control-plane" && p.phase == "Running" && p.ready
        })
    }

    /// Cuts the site in two, links to the control plane left as they are.
    ///
    /// # Errors
    /// The packet filter refuses.
    pub fn split(&mut self, left: &[usize], right: &[usize]) -> Result<()> {
        for &at in left {
            for &other in right {
                self.cut(at, other, Cut::Both)?;
                self.cut(other, at, Cut::Both)?;
            }
        }
        Ok(())
    }

    /// Cuts the way from one device to another.
    ///
    /// # Errors
    /// The packet filter refuses.
    pub fn cut(&mut self, at: usize, other: usize, cut: Cut) -> Result<()> {
        let address = self.fleet.agent(other)?.device.clone();
        let address = address.context("not a device")?.address;
        let agent = self.fleet.agent(at)?;
        agent
            .device
            .as_ref()
            .context("not a device")?
            .cut(&address, cut)
    }

    /// Cuts a device's way to the control plane.
    ///
    /// # Errors
    /// The packet filter refuses.
    pub fn cut_uplink(&mut self, at: usize) -> Result<()> {
        let gateway = self.fleet.network.gateway();
        let agent = self.fleet.agent(at)?;
        let device = agent.device.as_ref().context("not a device")?;
        device.cut(&gateway, Cut::Both)
    }

    /// Mends all networks.
    ///
    /// # Errors
    /// The packet filter refuses.
    pub fn mend(&mut self) -> Result<()> {
        let mut devices = self.fleet.agents.iter().filter_map(|a| a.device.as_ref());
        devices.try_for_each(super::device::Device::mend)
    }

    /// Ids of all containers of a workload that run.
    #[must_use]
    pub fn ids(&self, workload: &str) -> BTreeSet<String> {
        let running = self.truth.running(workload);
        running.into_iter().map(|s| s.container).collect()
    }

    /// Checks for a while that exactly these containers of a workload run.
    ///
    /// # Errors
    /// One ended, or another began.
    pub fn stays(&self, workload: &str, ids: &BTreeSet<String>, span: Duration) -> Result<()> {
        wait::holds(&format!("the same copies of {workload}"), span, || {
            let now = self.ids(workload);
            if &now == ids {
                Ok(())
            } else {
                Err(format!("were {ids:?}, are {now:?}"))
            }
        })
    }

    /// Waits until exactly one copy of each of so many replicas runs, everywhere.
    ///
    /// # Errors
    /// Not in time.
    pub fn wait_one_each(&self, workload: &str, replicas: usize) -> Result<Vec<Span>> {
        self.truth.wait(workload, LONG, |running| {
            let names: BTreeSet<&str> = running.iter().map(|s| s.replica.as_str()).collect();
            running.len() == replicas && names.len() == replicas
        })
    }
}
