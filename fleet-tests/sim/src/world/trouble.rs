//! Faults as they begin and end.

use std::time::Duration;

use super::{Event, World, note};
use crate::faults::{Fault, Kind};

impl World {
    /// Something went wrong or was mended at a site: what takes time takes it from now.
    pub(super) fn disturb(&mut self, site: usize) {
        self.disturbed[site] = self.now;
    }

    fn disturb_all(&mut self) {
        let now = self.now;
        self.disturbed.fill(now);
    }

    pub(super) fn trouble(&mut self, n: usize, begins: bool) {
        let fault = self.plan.faults[n].clone();
        if begins {
            *self.counts.entry(fault.kind.name()).or_default() += 1;
        }
        note!(
            self,
            "fault {} {}, site {}, nodes {:?}",
            fault.kind,
            if begins { "begins" } else { "ends" },
            fault.site,
            fault.nodes
        );
        self.disturb(fault.site);
        match fault.kind {
            Kind::SiteCut | Kind::UplinkCut => {
                self.uplink(fault.site, begins);
                for node in &fault.nodes {
                    self.net.block_up(*node, begins);
                    self.net.block_down(*node, begins);
                }
            }
            Kind::UplinkOneWay => {
                self.uplink(fault.site, begins);
                for node in &fault.nodes {
                    if fault.dice.is_multiple_of(2) {
                        self.net.block_up(*node, begins);
                    } else {
                        self.net.block_down(*node, begins);
                    }
                }
            }
            Kind::ControlStop => self.control_stop(&fault, begins),
            Kind::ControlFailover if begins => {
                self.disturb_all();
                if self.leader.is_none() {
                    return;
                }
                self.end_lead(false);
                let wait = self.rng.millis(500, 6000);
                self.after(wait, Event::Lead);
            }
            Kind::SiteSplit | Kind::LanPartial | Kind::LanOneWay => self.lan(&fault, begins),
            Kind::LanLoss | Kind::LanDelay | Kind::LanDuplicates => self.shake(&fault, begins),
            Kind::Reboot | Kind::PowerCut | Kind::DeviceDead => self.device(&fault, begins),
            Kind::AgentCrash => {
                for node in &fault.nodes {
                    if begins {
                        // Without power there is none, and the device's start is not to be cancelled.
                        if self.devices[*node].powered {
                            self.end_agent(*node, false);
                        }
                    } else if self.devices[*node].node.is_none() {
                        let epoch = self.devices[*node].epoch;
                        self.after(Duration::ZERO, Event::StartAgent { node: *node, epoch });
                    }
                }
            }
            Kind::ContainerCrash if begins => self.crash_container(&fault),
            Kind::DiskFull => {
                for node in &fault.nodes {
                    let device = &mut self.devices[*node];
                    device.disk.set_full(begins);
                    device.disk_full = begins;
                    // Until the next start: what is confirmed now is in memory only.
                    device.store_behind = true;
                }
            }
            Kind::DiskSlow => {
                let slow = Duration::from_millis(10 + fault.dice % 190);
                for node in &fault.nodes {
                    self.devices[*node].slow = if begins { slow } else { Duration::ZERO };
                }
            }
            Kind::ClockJump | Kind::ClockWrong if begins => {
                for node in &fault.nodes {
                    // Up to ten years, either way.
                    let error = (fault.dice % 630_000_000_000) as i64 - 315_000_000_000;
                    self.devices[*node].clock_error_ms = error;
                }
                if fault.kind == Kind::ClockWrong {
                    self.device(&fault, true);
                }
            }
            Kind::ClockWrong => self.device(&fault, false),
            Kind::CertificateExpired => {
                self.uplink(fault.site, begins);
                for node in &fault.nodes {
                    self.net.block_up(*node, begins);
                    self.net.block_down(*node, begins);
                    self.devices[*node].expired = true;
                }
            }
            Kind::HostilePeer => {
                self.lan_counts(fault.site, begins);
                if begins {
                    self.after(Duration::ZERO, Event::Lie { fault: n });
                }
            }
            Kind::StaleOrders if begins => self.stale_orders(&fault),
            Kind::NoRegistry => {
                for node in &fault.nodes {
                    self.devices[*node]
                        .containers
                        .with(|r| r.registry = !begins);
                }
            }
            Kind::ControlFailover | Kind::ContainerCrash | Kind::ClockJump | Kind::StaleOrders => {}
        }
        self.control_soon();
    }

    fn uplink(&mut self, site: usize, begins: bool) {
        let way = if begins { 1 } else { -1 };
        self.uplink_trouble[site] = self.uplink_trouble[site].saturating_add_signed(way);
    }

    fn lan_counts(&mut self, site: usize, begins: bool) {
        let way = if begins { 1 } else { -1 };
        self.lan_trouble[site] = self.lan_trouble[site].saturating_add_signed(way);
    }

    fn control_stop(&mut self, fault: &Fault, begins: bool) {
        self.disturb_all();
        if begins {
            self.stopped += 1;
            self.end_lead(fault.dice.is_multiple_of(2));
        } else {
            self.stopped = self.stopped.saturating_sub(1);
            let wait = self.rng.millis(200, 1500);
            self.after(wait, Event::Lead);
        }
    }

    fn lan(&mut self, fault: &Fault, begins: bool) {
        let others: Vec<usize> = self.sites[fault.site]
            .1
            .iter()
            .copied()
            .filter(|n| !fault.nodes.contains(n))
            .collect();
        self.lan_counts(fault.site, begins);
        for (a, node) in fault.nodes.iter().enumerate() {
            for (b, other) in others.iter().enumerate() {
                let hit = match fault.kind {
                    // Some of the pairs, the same ones when it ends.
                    Kind::LanPartial => (fault.dice >> ((a * 7 + b * 3) % 61)) & 1 == 0,
                    _ => true,
                };
                if !hit {
                    continue;
                }
                self.net.block_lan(*node, *other, begins);
                if fault.kind != Kind::LanOneWay {
                    self.net.block_lan(*other, *node, begins);
                }
            }
        }
    }

    fn shake(&mut self, fault: &Fault, begins: bool) {
        self.lan_counts(fault.site, begins);
        for node in &fault.nodes {
            match fault.kind {
                Kind::LanLoss => {
                    let loss = 0.05 + (fault.dice % 30) as f64 / 100.0;
                    self.net.set_loss(*node, if begins { loss } else { 0.0 });
                }
                Kind::LanDelay => {
                    let delay = Duration::from_millis(20 + fault.dice % 400);
                    let delay = if begins { delay } else { Duration::ZERO };
                    self.net.set_delay(*node, delay);
                }
                _ => self
                    .net
                    .set_duplicates(*node, if begins { 0.3 } else { 0.0 }),
            }
        }
    }

    fn device(&mut self, fault: &Fault, begins: bool) {
        for node in &fault.nodes {
            let node = *node;
            if !begins {
                let device = &mut self.devices[node];
                device.down = device.down.saturating_sub(1);
                if !device.powered {
                    let epoch = device.epoch;
                    self.after(Duration::ZERO, Event::Boot { node, epoch });
                }
                continue;
            }
            if fault.kind == Kind::PowerCut && self.devices[node].node.is_some() {
                // At one of the next writes, wherever that is.
                self.devices[node].disk.cut_after(1 + fault.dice % 40);
                continue;
            }
            self.devices[node].down += 1;
            let cut = fault.kind == Kind::DeviceDead && !fault.dice.is_multiple_of(4);
            self.power_off(node, cut);
        }
    }

    fn crash_container(&mut self, fault: &Fault) {
        let now = self.now;
        for node in &fault.nodes {
            let device = &self.devices[*node];
            let keys: Vec<_> = device
                .containers
                .with(|r| r.live().map(|(key, _)| key.clone()).collect());
            if let Some(key) = keys.get(fault.dice as usize % keys.len().max(1)) {
                device.containers.with(|r| r.crash(key, now));
                self.runtime_advance(*node);
                self.tell_soon(*node);
            }
        }
    }

    /// Orders that were overtaken arrive again, as from a control plane that does not know that it
    /// no longer leads.
    fn stale_orders(&mut self, fault: &Fault) {
        let first = fault.dice as usize % self.devices.len();
        for n in 0..self.devices.len() {
            let node = &((first + n) % self.devices.len());
            let Some(session) = self.devices[*node].session else {
                continue;
            };
            let stale: Vec<_> = self.orders[*node]
                .iter()
                .filter(|(key, order)| self.checker.highest(*node, key) > order.generation)
                .map(|(_, order)| order.clone())
                .collect();
            for mut order in stale.into_iter().take(3) {
                order.command_id = u64::MAX;
                note!(
                    self,
                    "{} gets a stale order: {:?} generation {}",
                    self.devices[*node].id,
                    order.key,
                    order.generation
                );
                self.stale += 1;
                let body = hyperion_proto::agent_v1::stream_message::Body::StartReplica(order);
                self.arrive_down(session, body);
            }
        }
    }
}
