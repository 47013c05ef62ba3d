//! Versions of what a node says of itself.

use std::time::Duration;

use hyperion_wire::peer_v1::NodeRecord;

/// Half of what [`convert`](hyperion_wire::convert::node_record) accepts, so that a node always has
/// a version that is higher and still accepted.
const MAX_BOOT: u64 = 1 << 29;

/// Makes the versions of a node's own record: `(starts of the agent << 32) + changes`. A change of
/// the load alone makes a new one no more often than every `load_period`.
#[derive(Debug)]
pub struct Own {
    boot: u64,
    counter: u64,
    last: Option<NodeRecord>,
    at: Duration,
    /// A changed load that waits for its time.
    waiting: Option<NodeRecord>,
    load_period: Duration,
}

impl Own {
    /// Nothing was said yet.
    #[must_use]
    pub fn new(boot: u32, load_period: Duration) -> Self {
        Self {
            boot: u64::from(boot),
            counter: 0,
            last: None,
            at: Duration::ZERO,
            waiting: None,
            load_period,
        }
    }

    /// The record with its version where it is to be told now. `record.version` is not read.
    pub fn say(&mut self, record: NodeRecord, now: Duration) -> Option<NodeRecord> {
        let record = NodeRecord {
            version: 0,
            ..record
        };
        let Some(last) = &self.last else {
            return Some(self.next(record, now));
        };
        if *last == record {
            self.waiting = None;
            return None;
        }
        let load_only = NodeRecord {
            load: last.load,
            ..record.clone()
        } == *last;
        // Whether a node is too hot decides where replicas go: that can't wait.
        let throttled = |r: &NodeRecord| r.load.is_some_and(|l| l.throttled);
        if load_only
            && throttled(last) == throttled(&record)
            && now < self.at.saturating_add(self.load_period)
        {
            self.waiting = Some(record);
            return None;
        }
        Some(self.next(record, now))
    }

    /// What waited and is due.
    pub fn due(&mut self, now: Duration) -> Option<NodeRecord> {
        if now < self.next_wake()? {
            return None;
        }
        let record = self.waiting.take()?;
        Some(self.next(record, now))
    }

    /// When something that waits is due.
    #[must_use]
    pub fn next_wake(&self) -> Option<Duration> {
        self.waiting
            .as_ref()
            .map(|_| self.at.saturating_add(self.load_period))
    }

    /// A peer knows this version of this node. Where it is higher than any that this life of the
    /// agent made, the store was lost: the next one goes beyond it, and is given.
    pub fn surpass(&mut self, version: u64, now: Duration) -> Option<NodeRecord> {
        let said = (self.boot << 32) + self.counter;
        // No agent was started more often: whoever says so makes it up.
        let made_up = version >> 32 >= MAX_BOOT;
        if made_up || version < said || (version == said && self.last.is_some()) {
            return None;
        }
        self.boot = (version >> 32) + 1;
        self.counter = 0;
        let record = self.waiting.take().or_else(|| self.last.clone())?;
        Some(self.next(record, now))
    }

    fn next(&mut self, record: NodeRecord, now: Duration) -> NodeRecord {
        self.counter += 1;
        self.at = now;
        self.waiting = None;
        self.last = Some(record.clone());
        NodeRecord {
            version: (self.boot << 32) + self.counter,
            ..record
        }
    }
}
