//! How records spread: news at once to a few random partners (`ring`), which tell it on if it
//! is news to them, and by comparison for those that missed it.
//!
//! Every so often a node sends a random partner the hashes of what it knows. The peer answers with the
//! versions in the buckets that differ; the first sends what the peer lacks and asks for what it
//! lacks itself:
//!
//! ```text
//! A  Summary (64 hashes)            B
//!    <- Versions (of what differs)
//!    Entries, Want ->
//!    <- Entries
//! ```
//!
//! What is to be sent waits in a queue for each peer. One token bucket bounds all of it; peers take
//! turns, and so do comparison, news and what is owed within each: none of them starves another.
//! Queues hold names of records, each once, so a peer that asks for all again and again costs no
//! memory and gets no more than its turn.

mod budget;
mod queue;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hyperion_wire::convert;
use hyperion_wire::peer_v1::{Entries, Frame, ReplicaVersion, Summary, Versions, Want, frame};
use prost::Message as _;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};

use crate::profile::Profile;
use crate::ring::Partners;
use crate::site::{
    BUCKETS, Changes, MAX_NODES, MAX_REPLICAS, Refused, Side, Site, bucket_of_node,
    bucket_of_replica,
};
use budget::Budget;
use queue::{Item, Queue};

/// News that comes within so long of other news is sent together with it.
const TOGETHER: Duration = Duration::from_millis(100);

/// What was asked of one peer is not asked of another for so many periods.
const ASKED: u32 = 3;

/// Frames to send, each with the node that it is for.
pub type Frames = Vec<(String, Frame)>;

/// Spreads what one node knows.
pub struct Sync {
    rng: ChaCha8Rng,
    period: Duration,
    fanout: usize,
    partners: Partners,
    budget: Budget,
    compare_at: Duration,
    /// News, by the peer that told it; it needs not hear it again.
    news: BTreeMap<Option<String>, BTreeSet<Item>>,
    /// When the news goes out.
    news_at: Duration,
    queues: BTreeMap<String, Queue>,
    /// Whose turn it was.
    last: String,
    /// When something was asked for, of whomever.
    asked: BTreeMap<Item, Duration>,
}

impl Sync {
    /// Has told nobody anything. No two nodes should have the same `seed` and name.
    #[must_use]
    pub fn new(me: &str, profile: &Profile, seed: u64, now: Duration) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ bucket_of_node(me) as u64 ^ 0x5afe);
        // Nodes that start together do not compare together.
        let compare_at = now + profile.sync_period.mul_f64(rng.random_range(0.0..1.0));
        Self {
            rng,
            period: profile.sync_period.max(Duration::from_millis(10)),
            fanout: profile.fanout.max(1),
            partners: Partners::new(me),
            budget: Budget::new(profile.sync_bytes_per_s, now),
            compare_at,
            news: BTreeMap::new(),
            news_at: now,
            queues: BTreeMap::new(),
            last: String::new(),
            asked: BTreeMap::new(),
        }
    }

    /// Tells `fanout` random partners of what changed; `from` told it to this node. News that follows
    /// other news closely waits for the next [`Sync::tick`].
    pub fn spread(
        &mut self,
        site: &Site,
        changes: &Changes,
        from: Option<&str>,
        peers: &[&str],
        now: Duration,
    ) -> Frames {
        let news = self.news.entry(from.map(str::to_owned)).or_default();
        news.extend(changes.replicas.iter().cloned().map(Item::Replica));
        news.extend(changes.nodes.iter().cloned().map(Item::Node));
        if changes.info {
            news.insert(Item::Info);
        }
        self.tell(peers, now);
        self.pump(site, now)
    }

    /// Time passes: compares with a random partner, sends what waits. To be called at
    /// [`Sync::next_wake`]. What waits for nodes that are not among `peers` is forgotten.
    pub fn tick(&mut self, site: &Site, peers: &[&str], now: Duration) -> Frames {
        self.queues
            .retain(|node, queue| !queue.is_empty() && peers.contains(&node.as_str()));
        self.tell(peers, now);
        if now >= self.compare_at {
            self.compare_at = now + self.period.mul_f64(self.rng.random_range(0.75..1.25));
            let old = now.saturating_sub(self.period * ASKED);
            self.asked.retain(|_, at| *at > old);
            let partners = self.partners.among(peers);
            if !partners.is_empty() {
                let partner = Arc::clone(&partners[self.rng.random_range(0..partners.len())]);
                self.queue(&partner).summary = true;
            }
        }
        self.pump(site, now)
    }

    /// When to call [`Sync::tick`].
    #[must_use]
    pub fn next_wake(&self) -> Duration {
        let mut wake = self.compare_at;
        if !self.news.is_empty() {
            wake = wake.min(self.news_at);
        }
        if self.queues.values().any(|queue| !queue.is_empty()) {
            wake = wake.min(self.budget.opens_at());
        }
        wake
    }

    /// A frame of an authenticated peer: merges what it brings, and answers. What was news is among
    /// the site's changes then, and is to be [spread](Sync::spread).
    pub fn frame(
        &mut self,
        site: &mut Site,
        from: &str,
        frame: Frame,
        now: Duration,
    ) -> (Frames, Vec<Refused>) {
        let mut refused = Vec::new();
        match frame.body {
            Some(frame::Body::Summary(theirs)) => {
                refused.extend(self.compare(site, from, &theirs).err());
            }
            Some(frame::Body::Versions(theirs)) => {
                self.exchange(site, from, theirs, now, &mut refused);
            }
            Some(frame::Body::Want(wanted)) => self.owe(site, from, wanted, &mut refused),
            Some(frame::Body::Entries(entries)) => {
                self.merge(site, from, entries, now, &mut refused);
            }
            // Of a newer version of the agent.
            None => {}
        }
        (self.pump(site, now), refused)
    }

    fn compare(&mut self, site: &Site, from: &str, theirs: &Summary) -> Result<(), Refused> {
        if theirs.buckets.len() != BUCKETS {
            return Err(Refused {
                peer: from.to_owned(),
                problem: format!("summary.buckets: {}, not {BUCKETS}", theirs.buckets.len()),
            });
        }
        let differ = (0..BUCKETS).filter(|at| theirs.buckets[*at] != site.buckets()[*at]);
        let differ: Vec<usize> = differ.collect();
        if !differ.is_empty() {
            self.queue(from).buckets.extend(differ);
        }
        Ok(())
    }

    fn exchange(
        &mut self,
        site: &Site,
        from: &str,
        theirs: Versions,
        now: Duration,
        refused: &mut Vec<Refused>,
    ) {
        let mut owed = BTreeSet::new();
        let mut lacking = Vec::new();
        let mut nodes = BTreeSet::new();
        let mut replicas = BTreeSet::new();
        for node in theirs.nodes {
            match site.compare_node(&node) {
                Side::Ours => {
                    owed.insert(Item::Node(node.node_id.clone()));
                }
                Side::Theirs if node.node_id != site.me() && !site.is_revoked(&node.node_id) => {
                    lacking.push(Item::Node(node.node_id.clone()));
                }
                Side::Theirs | Side::Same => {}
            }
            nodes.insert(node.node_id);
        }
        for replica in theirs.replicas {
            match versions_key(site, from, &replica) {
                Ok((key, side)) => {
                    match side {
                        Side::Ours => {
                            owed.insert(Item::Replica(key.clone()));
                        }
                        Side::Theirs => lacking.push(Item::Replica(key.clone())),
                        Side::Same => {}
                    }
                    replicas.insert(key);
                }
                Err(e) => refused.push(e),
            }
        }
        let complete: BTreeSet<usize> = theirs
            .buckets
            .iter()
            .filter_map(|bucket| usize::try_from(*bucket).ok())
            .collect();
        let unlisted = site
            .nodes()
            .filter(|(id, _)| !nodes.contains(*id) && complete.contains(&bucket_of_node(id)));
        owed.extend(unlisted.map(|(id, _)| Item::Node(id.to_owned())));
        let unlisted = site.replicas().filter(|(key, _)| {
            !replicas.contains(*key) && complete.contains(&bucket_of_replica(key))
        });
        owed.extend(unlisted.map(|(key, _)| Item::Replica(key.clone())));
        match site.info().version.cmp(&theirs.site_info_version) {
            std::cmp::Ordering::Less => lacking.push(Item::Info),
            std::cmp::Ordering::Equal => {}
            std::cmp::Ordering::Greater => {
                owed.insert(Item::Info);
            }
        }
        let want: Vec<Item> = lacking
            .into_iter()
            .filter(|item| self.may_ask(item, now))
            .collect();
        if !owed.is_empty() || !want.is_empty() {
            let queue = self.queue(from);
            queue.owed.extend(owed);
            queue.want.extend(want);
        }
    }

    /// What was asked for and has not come yet is not asked for again at once. A peer that makes up
    /// versions can't make this node remember more than a site may have.
    fn may_ask(&mut self, item: &Item, now: Duration) -> bool {
        if let Some(at) = self.asked.get_mut(item) {
            let again = *at + self.period * ASKED <= now;
            if again {
                *at = now;
            }
            return again;
        }
        let room = self.asked.len() < MAX_NODES + MAX_REPLICAS;
        if room {
            self.asked.insert(item.clone(), now);
        }
        room
    }

    fn owe(&mut self, site: &Site, from: &str, wanted: Want, refused: &mut Vec<Refused>) {
        let mut owed = BTreeSet::new();
        for id in wanted.nodes {
            if site.node(&id).is_some() {
                owed.insert(Item::Node(id));
            }
        }
        for key in &wanted.replicas {
            match convert::replica_key("want.replicas", Some(key)) {
                Ok(key) => {
                    if site.replica(&key).is_some() {
                        owed.insert(Item::Replica(key));
                    }
                }
                Err(e) => refused.push(Refused {
                    peer: from.to_owned(),
                    problem: e.to_string(),
                }),
            }
        }
        if wanted.site_info {
            owed.insert(Item::Info);
        }
        if !owed.is_empty() {
            self.queue(from).owed.extend(owed);
        }
    }

    fn merge(
        &mut self,
        site: &mut Site,
        from: &str,
        entries: Entries,
        now: Duration,
        refused: &mut Vec<Refused>,
    ) {
        if let Some(info) = entries.site_info {
            self.asked.remove(&Item::Info);
            refused.extend(site.merge_info(from, info).err());
        }
        for replica in entries.replicas {
            if let Ok(key) = convert::replica_key("replica_record.key", replica.key.as_ref()) {
                self.asked.remove(&Item::Replica(key));
            }
            refused.extend(site.merge_replica(from, replica, now).err());
        }
        for node in entries.nodes {
            self.asked.remove(&Item::Node(node.node_id.clone()));
            refused.extend(site.merge_node(from, node, now).err());
        }
    }

    /// Puts news whose time has come into the queues of random partners.
    fn tell(&mut self, peers: &[&str], now: Duration) {
        if self.news.is_empty() || now < self.news_at {
            return;
        }
        self.news_at = now + TOGETHER;
        for (from, news) in std::mem::take(&mut self.news) {
            let mut others: Vec<Arc<str>> = self
                .partners
                .among(peers)
                .iter()
                .filter(|peer| Some(&***peer) != from.as_deref())
                .cloned()
                .collect();
            for _ in 0..self.fanout.min(others.len()) {
                let peer = others.swap_remove(self.rng.random_range(0..others.len()));
                let queue = self.queue(&peer);
                for item in &news {
                    queue.owed.remove(item);
                    queue.news.insert(item.clone());
                }
            }
        }
    }

    /// Sends what there is while the budget allows it, one frame a peer in turn.
    fn pump(&mut self, site: &Site, now: Duration) -> Frames {
        let mut out = Vec::new();
        while self.budget.open(now) {
            let waiting =
                |(peer, queue): (&String, &Queue)| (!queue.is_empty()).then(|| peer.clone());
            let next = self
                .queues
                .range::<String, _>((
                    std::ops::Bound::Excluded(&self.last),
                    std::ops::Bound::Unbounded,
                ))
                .find_map(waiting)
                .or_else(|| self.queues.iter().find_map(waiting));
            let Some(peer) = next else { break };
            let frame = self
                .queues
                .get_mut(&peer)
                .and_then(|queue| queue.next(site));
            if let Some(frame) = frame {
                self.budget.spend(frame.encoded_len());
                out.push((peer.clone(), frame));
            }
            self.last = peer;
        }
        out
    }

    fn queue(&mut self, peer: &str) -> &mut Queue {
        self.queues.entry(peer.to_owned()).or_default()
    }
}

fn versions_key(
    site: &Site,
    from: &str,
    theirs: &ReplicaVersion,
) -> Result<(hyperion_wire::domain::ReplicaKey, Side), Refused> {
    let side = site.compare_replica(from, theirs)?;
    let key = convert::replica_key("versions.replicas.key", theirs.key.as_ref()).map_err(|e| {
        Refused {
            peer: from.to_owned(),
            problem: e.to_string(),
        }
    })?;
    Ok((key, side))
}
