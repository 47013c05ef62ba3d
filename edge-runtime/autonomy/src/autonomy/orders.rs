//! The control plane: its link, its orders, and what it has taken.

use std::time::Duration;

use hyperion_wire::agent_v1::{RecordState, ReplicaPhase, ReplicaRecord, SiteInfo, TakenRecord};
use hyperion_wire::convert;
use hyperion_wire::domain::ReplicaKey;

use super::Autonomy;
use super::mine::Mine;
use crate::mode::Evidence;
use crate::output::Output;

impl Autonomy {
    /// The link to the control plane stands, and hello was sent; `welcomed` follows.
    pub fn link_up(&mut self, now: Duration) -> Vec<Output> {
        self.up(None, now)
    }

    /// As [`Autonomy::link_up`], for a link that runs through a peer.
    pub fn link_up_through(&mut self, peer: &str, now: Duration) -> Vec<Output> {
        self.up(Some(peer), now)
    }

    fn up(&mut self, through: Option<&str>, now: Duration) -> Vec<Output> {
        let mut out = Vec::new();
        self.through = through.map(str::to_owned);
        if let Some(changed) = self.machine.link_up(now) {
            self.note_mode(changed, &mut out);
        }
        self.settle(now, None, &mut out);
        out
    }

    /// The control plane's answer; `complete` says that its list was the whole. What the list said
    /// was told before with [`Autonomy::ordered`] and [`Autonomy::removed`].
    pub fn welcomed(&mut self, complete: bool, now: Duration) -> Vec<Output> {
        let mut out = Vec::new();
        if complete {
            self.drop_what_the_list_lacks(now, &mut out);
        }
        let untaken = self.site.has_untaken();
        let evidence = Evidence {
            linked_peer: None,
            untaken,
        };
        if let Some(changed) = self.machine.welcomed(complete, now, evidence) {
            self.note_mode(changed, &mut out);
        }
        self.follow_at = now;
        self.settle(now, None, &mut out);
        out
    }

    /// Records of replicas here that the control plane no longer wants, and that the agent does not
    /// hold: peers kept them, or they were held back. A copy that is held back and still on its way
    /// down must not come back.
    fn drop_what_the_list_lacks(&mut self, now: Duration, out: &mut Vec<Output>) {
        let gone: Vec<(ReplicaKey, u64)> = self
            .site
            .replicas()
            .filter(|(key, entry)| {
                entry.record.node == self.node_id
                    && matches!(entry.state(), RecordState::Placed | RecordState::Ended)
                    && !entry.untaken()
                    && !self.ordered.contains(*key)
                    && match self.mine.get(*key) {
                        Some(mine) => mine.hold.is_some(),
                        None => !self.holds(key),
                    }
            })
            .map(|(key, entry)| (key.clone(), entry.record.generation))
            .collect();
        for (key, generation) in gone {
            self.mine.remove(&key);
            self.remove(&key, generation, now, out);
        }
    }

    fn holds(&self, key: &ReplicaKey) -> bool {
        let held = self.me.held.iter().filter_map(|h| h.key.as_ref());
        held.into_iter().any(|k| super::mine::same(k, key))
    }

    /// The link is down.
    pub fn link_down(&mut self, now: Duration) -> Vec<Output> {
        let mut out = Vec::new();
        self.ordered.clear();
        self.through = None;
        if let Some(changed) = self.machine.link_down(now) {
            self.note_mode(changed, &mut out);
        }
        self.follow_at = now;
        self.settle(now, None, &mut out);
        out
    }

    /// The control plane turns this node away: it is revoked, or its identity is in use elsewhere.
    /// It decides nothing until the control plane takes it again.
    pub fn link_refused(&mut self, why: &str, now: Duration) -> Vec<Output> {
        let mut out = Vec::new();
        self.ordered.clear();
        self.through = None;
        if let Some(changed) = self.machine.refused(why, now) {
            self.note_mode(changed, &mut out);
        }
        self.settle(now, None, &mut out);
        out
    }

    /// What the control plane says of the site.
    pub fn site_info(&mut self, info: SiteInfo, now: Duration) -> Vec<Output> {
        let mut out = Vec::new();
        if let Err(refused) = self.site.merge_info("control-plane", info) {
            self.refuse("control-plane", &refused.problem, now, &mut out);
        }
        self.settle(now, None, &mut out);
        out
    }

    /// An order of the control plane to run a replica here was stored, with this record. A record
    /// that can't be read does not spread; the order is none of ours to refuse.
    pub fn ordered(&mut self, record: ReplicaRecord, now: Duration) -> Vec<Output> {
        let mut out = Vec::new();
        let generation = record.generation;
        if let Ok(key) = convert::replica_key("key", record.key.as_ref()) {
            self.ordered.insert(key.clone());
            let me = self.node_id.clone();
            if let Err(refused) = self.site.merge_replica(&me, record, now) {
                self.refuse("control-plane", &refused.problem, now, &mut out);
            }
            let elsewhere = self.site.replica(&key).filter(|entry| {
                // A job that ended here is kept with its outcome: told to stop, it would be
                // forgotten, and the next order would start it again.
                let ended_here = entry.state() == RecordState::Ended && entry.record.node == me;
                entry.untaken()
                    && entry.record.generation >= generation
                    && !entry.placed_on(&me)
                    && !ended_here
            });
            if let Some(entry) = elsewhere {
                // It does not know yet what the site decided, and will when it has taken it.
                let why = format!("the site has placed it on {:?}", entry.record.node);
                out.push(Output::Stop {
                    key: key.clone(),
                    generation,
                    why,
                });
            } else {
                let hold = self.must_hold(&key, now);
                let mine = Mine {
                    hold,
                    ..Mine::of(generation)
                };
                self.mine.insert(key.clone(), mine);
                if let Some(hold) = hold {
                    self.stop_for(&key, hold, now, &mut out);
                }
            }
        }
        self.settle(now, None, &mut out);
        out
    }

    /// An order of the control plane not to run it here was stored.
    pub fn removed(&mut self, key: &ReplicaKey, generation: u64, now: Duration) -> Vec<Output> {
        let mut out = Vec::new();
        self.ordered.remove(key);
        if self
            .mine
            .get(key)
            .is_some_and(|mine| mine.generation <= generation)
        {
            self.mine.remove(key);
        }
        self.remove(key, generation, now, &mut out);
        self.settle(now, None, &mut out);
        out
    }

    /// The replica is not to run here any more. The record gets the generation and the decider of
    /// what ran here, and not the order's: that may be what runs elsewhere by now.
    fn remove(&mut self, key: &ReplicaKey, generation: u64, now: Duration, out: &mut Vec<Output>) {
        let me = self.node_id.clone();
        let record = self
            .site
            .replica(key)
            .filter(|e| e.record.node == me && e.record.generation <= generation)
            .filter(|e| e.state() != RecordState::Removed)
            .map(|entry| ReplicaRecord {
                key: entry.record.key.clone(),
                generation: entry.record.generation,
                decider: entry.record.decider.clone(),
                state: RecordState::Removed.into(),
                outcome: entry.record.outcome,
                unix_ms: self.unix_ms(now),
                taken: true,
                ..ReplicaRecord::default()
            });
        if let Some(record) = record {
            self.keep(record, now, out);
        }
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
        let mut out = Vec::new();
        let me = self.node_id.clone();
        let record = self
            .site
            .replica(key)
            .filter(|e| e.placed_on(&me) && e.record.generation == generation)
            .map(|entry| ReplicaRecord {
                state: RecordState::Ended.into(),
                outcome: outcome.into(),
                exit_code,
                // Whichever node of the site is back first tells the control plane, which may be
                // about to place it again.
                taken: entry.record.taken && self.machine.linked(),
                ..entry.record.clone()
            });
        if let Some(record) = record {
            self.keep(record, now, &mut out);
        }
        self.mine.remove(key);
        self.settle(now, None, &mut out);
        out
    }

    /// The control plane has taken these decisions.
    pub fn taken(&mut self, records: &[TakenRecord], now: Duration) -> Vec<Output> {
        let mut out = Vec::new();
        for taken in records {
            let Ok(key) = convert::replica_key("key", taken.key.as_ref()) else {
                continue;
            };
            let record = self
                .site
                .replica(&key)
                .filter(|e| {
                    e.record.generation == taken.generation && e.record.decider == taken.decider
                })
                .map(|entry| ReplicaRecord {
                    taken: true,
                    ..entry.record.clone()
                });
            if let Some(record) = record {
                self.keep(record, now, &mut out);
            }
        }
        self.settle(now, None, &mut out);
        out
    }

    /// Decisions of the site that the control plane has not taken: for hello, and for the link
    /// whenever an [`Output::Store`] brought one.
    #[must_use]
    pub fn untaken(&self) -> Vec<ReplicaRecord> {
        self.site
            .replicas()
            .filter(|(_, entry)| entry.untaken())
            .map(|(_, entry)| entry.record.clone())
            .collect()
    }
}
