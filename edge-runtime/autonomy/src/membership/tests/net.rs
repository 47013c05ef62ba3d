//! Many nodes on virtual time, with a network that delays, loses and cuts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};

use crate::membership::{Change, Datagrams, Membership, What};
use crate::profile::Profile;

pub(super) fn secs(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

pub(super) fn name(index: usize) -> String {
    format!("edge-{index}")
}

pub(super) struct Net {
    pub now: Duration,
    pub nodes: BTreeMap<String, Membership>,
    pub loss: f64,
    /// Pairs (from, to) that do not reach each other.
    pub cut: BTreeSet<(String, String)>,
    /// Who saw what.
    pub log: Vec<(String, Change)>,
    pub sent: u64,
    pub sent_bytes: u64,
    profile: Profile,
    rng: ChaCha8Rng,
    wakes: BTreeSet<(Duration, String)>,
    wake_of: BTreeMap<String, Duration>,
    flying: BTreeMap<(Duration, u64), (String, String, Bytes)>,
}

impl Net {
    pub(super) fn new(profile: Profile, seed: u64) -> Self {
        Self {
            now: Duration::ZERO,
            nodes: BTreeMap::new(),
            loss: 0.0,
            cut: BTreeSet::new(),
            log: Vec::new(),
            sent: 0,
            sent_bytes: 0,
            profile,
            rng: ChaCha8Rng::seed_from_u64(seed),
            wakes: BTreeSet::new(),
            wake_of: BTreeMap::new(),
            flying: BTreeMap::new(),
        }
    }

    /// A site of `count` nodes that all know of each other and have met.
    pub(super) fn site(profile: Profile, seed: u64, count: usize) -> Self {
        let mut net = Self::new(profile, seed);
        for index in 0..count {
            net.start(&name(index), 1, &(0..count).map(name).collect::<Vec<_>>());
        }
        net.until("all have met", secs(60.0), Net::agree);
        net.log.clear();
        net
    }

    pub(super) fn start(&mut self, node: &str, boot: u32, site: &[String]) {
        let mut member = Membership::new(node, boot, &self.profile, self.rng.random(), self.now);
        for other in site {
            member.found(other, self.now);
        }
        self.nodes.insert(node.to_owned(), member);
        self.after(node, Vec::new());
    }

    pub(super) fn kill(&mut self, node: &str) {
        self.nodes.remove(node);
        if let Some(at) = self.wake_of.remove(node) {
            self.wakes.remove(&(at, node.to_owned()));
        }
    }

    /// All nodes see exactly the running ones as live.
    pub(super) fn agree(&self) -> bool {
        let running: Vec<&str> = self.nodes.keys().map(String::as_str).collect();
        self.nodes.values().all(|member| member.live() == running)
    }

    pub(super) fn cut_between(&mut self, one: &[String], other: &[String]) {
        for a in one {
            for b in other {
                self.cut.insert((a.clone(), b.clone()));
                self.cut.insert((b.clone(), a.clone()));
            }
        }
    }

    /// Hands over a datagram that nobody sent.
    pub(super) fn inject(&mut self, from: &str, to: &str, bytes: &[u8]) {
        let now = self.now;
        let Some(member) = self.nodes.get_mut(to) else {
            return;
        };
        let out = member.datagram(from, bytes, now);
        self.after(to, out);
    }

    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
        self.now = end;
    }

    /// Runs until the condition holds, at most `limit` long; how long it took.
    pub(super) fn until(
        &mut self,
        what: &str,
        limit: Duration,
        holds: impl Fn(&Self) -> bool,
    ) -> Duration {
        let start = self.now;
        while !holds(self) {
            let end = (self.now + Duration::from_millis(50)).min(start + limit);
            assert!(self.now < start + limit, "not within {limit:?}: {what}");
            self.run(end - self.now);
        }
        self.now - start
    }

    pub(super) fn seen(&self, what: What) -> usize {
        self.log
            .iter()
            .filter(|(_, change)| change.what == what)
            .count()
    }

    fn step(&mut self, end: Duration) -> bool {
        let wake = self.wakes.first().cloned();
        let arrival = self.flying.keys().next().copied();
        let at_wake = wake.as_ref().map_or(Duration::MAX, |(at, _)| *at);
        let at_arrival = arrival.map_or(Duration::MAX, |(at, _)| at);
        let at = at_wake.min(at_arrival);
        if at > end {
            return false;
        }
        self.now = self.now.max(at);
        if at_arrival <= at_wake {
            let Some((from, to, bytes)) = arrival.and_then(|key| self.flying.remove(&key)) else {
                return false;
            };
            if self.cut.contains(&(from.clone(), to.clone())) {
                return true;
            }
            self.inject(&from, &to, &bytes);
        } else if let Some((_, node)) = wake {
            let now = self.now;
            if let Some(member) = self.nodes.get_mut(&node) {
                let out = member.tick(now);
                self.after(&node, out);
            }
        }
        true
    }

    fn after(&mut self, node: &str, out: Datagrams) {
        let Some(member) = self.nodes.get_mut(node) else {
            return;
        };
        for change in member.take_changes() {
            self.log.push((node.to_owned(), change));
        }
        let wake = member.next_wake();
        if let Some(before) = self.wake_of.insert(node.to_owned(), wake) {
            self.wakes.remove(&(before, node.to_owned()));
        }
        self.wakes.insert((wake, node.to_owned()));
        for (to, bytes) in out {
            self.sent += 1;
            self.sent_bytes += bytes.len() as u64;
            if self.rng.random_bool(self.loss) {
                continue;
            }
            let delay = Duration::from_micros(self.rng.random_range(300..5_000));
            let key = (self.now + delay, self.sent);
            self.flying.insert(key, (node.to_owned(), to, bytes));
        }
    }
}
