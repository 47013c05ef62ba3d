//! All of it behind one door.
//!
//! Each method does its part and then [settles](settle): members that came or went, the mode, what
//! this node says of itself, what is to be stored, what is to run here, what peers are to hear, in
//! this order. Places are decided in [`Autonomy::tick`] alone, which is given who decides;
//! [`Autonomy::next_wake`] is in the past where there is something to decide.

mod hold;
mod local;
mod mine;
mod orders;
mod people;
mod place;
mod settle;
mod shed;
mod status;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use hyperion_wire::agent_v1::{NodeCapabilities, ReplicaRecord, SiteInfo};
use hyperion_wire::domain::ReplicaKey;
use hyperion_wire::peer_v1::{Frame, HeldReplica, Load};

use crate::decide::Decide;
use crate::membership::Membership;
use crate::mode::{Machine, Mode};
use crate::output::Output;
use crate::profile::Profile;
use crate::site::{Own, Site};
use crate::sync::Sync;

pub use local::SITE_UID;
pub use status::{Counts, Member, MemberState, Status};

use hold::Majority;
use mine::Mine;
use people::People;
use shed::Shed;
use watch::Watch;

/// What a node brings to its start.
pub struct Start {
    /// Own node id.
    pub node_id: String,
    /// Random per start of the agent.
    pub boot_id: String,
    /// Starts of the agent on its store; orders the versions of its record.
    pub boot: u32,
    /// Seed of all that is drawn.
    pub seed: u64,
    /// Times.
    pub profile: Profile,
    /// From the store.
    pub records: Vec<ReplicaRecord>,
    /// From the store.
    pub site_info: Option<SiteInfo>,
    /// What the node says of itself. An `exclusive` replica that is among its `held` as running went
    /// on while the agent was away; another one is held back until it is certain that nobody else
    /// runs it.
    pub me: Me,
}

/// What a node says of itself; the core makes its record of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Me {
    /// What it has.
    pub capabilities: NodeCapabilities,
    /// How busy it is.
    pub load: Load,
    /// Takes new replicas.
    pub accepts: bool,
    /// What it runs.
    pub held: Vec<HeldReplica>,
    /// Images in its container runtime.
    pub images: Vec<String>,
    /// "HOST:PORT" of its peer port.
    pub addresses: Vec<String>,
    /// For people.
    pub agent_version: String,
}

/// The core of a node's autonomy. Every method takes the time and gives what is to be done.
pub struct Autonomy {
    node_id: String,
    boot_id: String,
    profile: Profile,
    started: Duration,
    site: Site,
    own: Own,
    membership: Membership,
    sync: Sync,
    machine: Machine,
    me: Me,
    policy_hash: String,
    /// What this node said last of its link, mode, site and relay.
    said: (bool, Mode, u64, bool),
    /// And whether there is more to say.
    unsaid: bool,
    /// What this node has or holds changed, and not only by time.
    me_changed: bool,
    /// Wall clock at the start, Unix milliseconds, where it is known.
    wall: Option<i64>,
    mine: BTreeMap<ReplicaKey, Mine>,
    /// Replicas that the control plane ordered on the link that stands.
    ordered: BTreeSet<ReplicaKey>,
    watch: Watch,
    majority: Majority,
    shed: Shed,
    people: People,
    counts: Counts,
    relay: Option<String>,
    /// The link runs through this peer.
    through: Option<String>,
    /// When to look at replicas that wait for something; see [`settle`].
    follow_at: Duration,
    /// When to look for replicas that need a place; see [`place`].
    place_at: Duration,
    /// When to look for what is too old to be kept.
    expire_at: Duration,
    /// Replicas that found no place are not tried again before.
    blocked: BTreeMap<ReplicaKey, Duration>,
}

/// Time between two looks for what is too old to be kept.
const EXPIRE: Duration = Duration::from_secs(600);

impl Autonomy {
    /// Starts: connects to nobody, knows what the store knew, mode `suspect`.
    #[must_use]
    pub fn new(start: Start, now: Duration) -> (Self, Vec<Output>) {
        let Start {
            node_id,
            boot_id,
            boot,
            seed,
            profile,
            records,
            site_info,
            me,
        } = start;
        let mut core = Self {
            site: Site::new(&node_id),
            own: Own::new(boot, profile.load_period),
            membership: Membership::new(&node_id, boot, &profile, seed, now),
            sync: Sync::new(&node_id, &profile, seed, now),
            machine: Machine::new(now, profile.autonomous_after),
            started: now,
            me,
            boot_id,
            policy_hash: String::new(),
            said: (false, Mode::Suspect, 0, false),
            unsaid: true,
            me_changed: true,
            wall: None,
            mine: BTreeMap::new(),
            ordered: BTreeSet::new(),
            watch: Watch::new(now, &profile),
            majority: Majority::default(),
            shed: Shed::default(),
            people: People::default(),
            counts: Counts::default(),
            relay: None,
            through: None,
            follow_at: now,
            place_at: now,
            expire_at: now + EXPIRE,
            blocked: BTreeMap::new(),
            node_id,
            profile,
        };
        let mut out = Vec::new();
        core.recall(records, site_info, now, &mut out);
        (core, out)
    }

    /// Time passes. Also after [`Autonomy::next_wake`].
    pub fn tick(&mut self, now: Duration, decide: &dyn Decide) -> Vec<Output> {
        let mut out = Vec::new();
        if self.policy_hash != decide.policy_hash() {
            decide.policy_hash().clone_into(&mut self.policy_hash);
            self.unsaid = true;
        }
        let datagrams = self.membership.tick(now);
        send(datagrams, &mut out);
        if now >= self.expire_at {
            self.expire_at = now + EXPIRE;
            self.expire(now);
        }
        self.settle(now, None, &mut out);
        if now >= self.place_at {
            self.place(now, decide, &mut out);
            self.settle(now, None, &mut out);
        }
        let peers: Vec<&str> = self.membership.peers().collect();
        let frames = self.sync.tick(&self.site, &peers, now);
        out.extend(
            frames
                .into_iter()
                .map(|(to, frame)| Output::Frame { to, frame }),
        );
        out
    }

    /// When to call [`Autonomy::tick`] at the latest.
    #[must_use]
    pub fn next_wake(&self) -> Duration {
        [
            Some(self.membership.next_wake()),
            Some(self.sync.next_wake()),
            self.own.next_wake(),
            self.machine.next_wake(self.evidence()),
            Some(self.follow_at),
            (self.mode() == Mode::Autonomous).then_some(self.place_at),
            Some(self.expire_at),
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(Duration::MAX)
    }

    /// A datagram of an authenticated peer.
    #[expect(clippy::needless_pass_by_value, reason = "what arrived is the core's")]
    pub fn datagram(&mut self, from: &str, bytes: Bytes, now: Duration) -> Vec<Output> {
        let mut out = Vec::new();
        self.majority.heard(now);
        let datagrams = self.membership.datagram(from, &bytes, now);
        send(datagrams, &mut out);
        self.settle(now, None, &mut out);
        out
    }

    /// A frame of an authenticated peer.
    pub fn frame(&mut self, from: &str, frame: Frame, now: Duration) -> Vec<Output> {
        let mut out = Vec::new();
        if self.site.is_revoked(from) {
            self.refuse(from, "is revoked", now, &mut out);
            return out;
        }
        self.majority.heard(now);
        if let Some(version) = self.named_version(&frame) {
            // A life of this node that its store has lost said it: what is said now goes beyond.
            if let Some(record) = self.own.surpass(version, now)
                && let Err(refused) = self.site.put_own(record, now)
            {
                self.refuse(from, &refused.problem, now, &mut out);
            }
        }
        let (frames, refused) = self.sync.frame(&mut self.site, from, frame, now);
        out.extend(
            frames
                .into_iter()
                .map(|(to, frame)| Output::Frame { to, frame }),
        );
        for refused in refused {
            self.refuse(from, &refused.problem, now, &mut out);
        }
        self.settle(now, Some(from), &mut out);
        out
    }

    /// A node of the site was found (by mDNS, a static address, or because it called).
    pub fn found(&mut self, node: &str, now: Duration) -> Vec<Output> {
        let mut out = Vec::new();
        if !self.site.is_revoked(node) {
            self.membership.found(node, now);
        }
        self.settle(now, None, &mut out);
        out
    }

    /// What the node says of itself now. Cheap where nothing changed.
    pub fn set_me(&mut self, me: Me, now: Duration) -> Vec<Output> {
        let mut out = Vec::new();
        if me != self.me {
            self.note_held(&me);
            self.me = me;
            (self.unsaid, self.me_changed) = (true, true);
            self.follow_at = now;
        }
        self.settle(now, None, &mut out);
        out
    }

    /// What the wall clock shows, Unix milliseconds, where it can be trusted: for the times in
    /// decisions, which people read.
    pub fn set_wall_clock(&mut self, unix_ms: i64, now: Duration) {
        let since_start = i64::try_from(now.saturating_sub(self.started).as_millis());
        self.wall = since_start.ok().map(|since| unix_ms.saturating_sub(since));
    }

    fn unix_ms(&self, now: Duration) -> i64 {
        let since_start = i64::try_from(now.saturating_sub(self.started).as_millis());
        match (self.wall, since_start) {
            (Some(wall), Ok(since)) => wall.saturating_add(since),
            _ => 0,
        }
    }

    /// Mode.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.machine.mode()
    }

    /// A live peer whose link stands, through which this node may reach the control plane; none while
    /// its own stands.
    #[must_use]
    pub fn relay(&self) -> Option<&str> {
        self.relay.as_deref()
    }

    /// What is known of the site, for those who show it.
    #[must_use]
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// Who is alive, for those who show it.
    #[must_use]
    pub fn membership(&self) -> &Membership {
        &self.membership
    }
}

fn send(datagrams: Vec<(String, Bytes)>, out: &mut Vec<Output>) {
    out.extend(
        datagrams
            .into_iter()
            .map(|(to, bytes)| Output::Datagram { to, bytes }),
    );
}
