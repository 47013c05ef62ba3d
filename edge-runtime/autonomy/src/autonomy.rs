//! All of it behind one door.

use std::time::Duration;

use bytes::Bytes;
use hyperion_wire::agent_v1::{
    NodeCapabilities, ReplicaPhase, ReplicaRecord, SiteInfo, TakenRecord,
};
use hyperion_wire::domain::ReplicaKey;
use hyperion_wire::peer_v1::{Frame, HeldReplica, Load};

use crate::decide::Decide;
use crate::mode::Mode;
use crate::output::Output;
use crate::profile::Profile;

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
    /// What the node says of itself.
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
pub struct Autonomy {}

impl Autonomy {
    /// Starts: connects to nobody, knows what the store knew, mode `suspect`.
    #[must_use]
    pub fn new(start: Start, now: Duration) -> (Self, Vec<Output>) {
        let _ = (start, now);
        (Self {}, Vec::new())
    }

    /// Time passes. Also after [`Autonomy::next_wake`].
    pub fn tick(&mut self, now: Duration, decide: &dyn Decide) -> Vec<Output> {
        let _ = (now, decide);
        Vec::new()
    }

    /// When to call [`Autonomy::tick`] at the latest.
    #[must_use]
    pub fn next_wake(&self) -> Duration {
        Duration::MAX
    }

    /// A datagram of an authenticated peer.
    pub fn datagram(&mut self, from: &str, bytes: Bytes, now: Duration) -> Vec<Output> {
        let _ = (from, bytes, now);
        Vec::new()
    }

    /// A frame of an authenticated peer.
    pub fn frame(&mut self, from: &str, frame: Frame, now: Duration) -> Vec<Output> {
        let _ = (from, frame, now);
        Vec::new()
    }

    /// A node of the site was found (by mDNS, a static address, or because it called).
    pub fn found(&mut self, node: &str, now: Duration) -> Vec<Output> {
        let _ = (node, now);
        Vec::new()
    }

    /// What the node says of itself now. Cheap where nothing changed.
    pub fn set_me(&mut self, me: Me, now: Duration) -> Vec<Output> {
        let _ = (me, now);
        Vec::new()
    }

    /// The link to the control plane stands, and hello was sent; `welcomed` follows.
    pub fn link_up(&mut self, now: Duration) -> Vec<Output> {
        let _ = now;
        Vec::new()
    }

    /// The control plane's answer; `complete` says that its list was the whole.
    pub fn welcomed(&mut self, complete: bool, now: Duration) -> Vec<Output> {
        let _ = (complete, now);
        Vec::new()
    }

    /// The link is down.
    pub fn link_down(&mut self, now: Duration) -> Vec<Output> {
        let _ = now;
        Vec::new()
    }

    /// What the control plane says of the site.
    pub fn site_info(&mut self, info: SiteInfo, now: Duration) -> Vec<Output> {
        let _ = (info, now);
        Vec::new()
    }

    /// An order of the control plane to run a replica here was stored, with this record.
    pub fn ordered(&mut self, record: ReplicaRecord, now: Duration) -> Vec<Output> {
        let _ = (record, now);
        Vec::new()
    }

    /// An order of the control plane not to run it here was stored.
    pub fn removed(&mut self, key: &ReplicaKey, generation: u64, now: Duration) -> Vec<Output> {
        let _ = (key, generation, now);
        Vec::new()
    }

    /// A job's replica ended on this node.
    pub fn ended(
        &mut self,
        key: &ReplicaKey,
        generation: u64,
        outcome: ReplicaPhase,
        exit_code: i32,
        now: Duration,
    ) -> Vec<Output> {
        let _ = (key, generation, outcome, exit_code, now);
        Vec::new()
    }

    /// A person applied workloads at the site: one record a replica, without node and generation.
    ///
    /// # Errors
    /// Why they can't be taken; nothing was changed.
    pub fn apply(
        &mut self,
        records: Vec<ReplicaRecord>,
        now: Duration,
        decide: &dyn Decide,
    ) -> Result<Vec<Output>, String> {
        let _ = (records, now, decide);
        Ok(Vec::new())
    }

    /// A person deleted a workload at the site.
    ///
    /// # Errors
    /// Why not; nothing was changed.
    pub fn delete(
        &mut self,
        namespace: &str,
        workload: &str,
        now: Duration,
    ) -> Result<Vec<Output>, String> {
        let _ = (namespace, workload, now);
        Ok(Vec::new())
    }

    /// The control plane has taken these decisions.
    pub fn taken(&mut self, records: &[TakenRecord], now: Duration) -> Vec<Output> {
        let _ = (records, now);
        Vec::new()
    }

    /// Decisions of the site that the control plane has not taken: for hello.
    #[must_use]
    pub fn untaken(&self) -> Vec<ReplicaRecord> {
        Vec::new()
    }

    /// Mode.
    #[must_use]
    pub fn mode(&self) -> Mode {
        Mode::Suspect
    }

    /// A live peer whose link stands, through which this node may reach the control plane.
    #[must_use]
    pub fn relay(&self) -> Option<&str> {
        None
    }
}
