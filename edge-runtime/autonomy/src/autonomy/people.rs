//! What people are told, once each: events of peers, of the mode, and of what was refused.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Autonomy;
use crate::decide::first_of;
use crate::membership::{Change, What};
use crate::mode::{Changed, Mode};
use crate::output::Output;

/// Peers whose refused messages are counted by name.
const MAX_REFUSED: usize = 256;
/// Time between two events about what a peer sends.
const REFUSED_AGAIN: Duration = Duration::from_secs(600);

/// What was told already.
#[derive(Debug, Default)]
pub(super) struct People {
    /// Peers that are dead, since when.
    pub dead: BTreeMap<String, Duration>,
    /// Replicas that were said to have no place, or no majority.
    pub waiting: BTreeSet<(hyperion_wire::domain::ReplicaKey, &'static str)>,
    /// Replicas that were said to be held back here.
    pub held_back: BTreeSet<hyperion_wire::domain::ReplicaKey>,
    /// The site was autonomous since it was last connected.
    away: bool,
    pub refused: BTreeMap<String, Refusals>,
}

/// What a peer sent and was dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusals {
    pub count: u64,
    pub last: String,
    told: Duration,
}

impl Autonomy {
    /// A peer came or went.
    pub(super) fn note_member(&mut self, change: &Change, out: &mut Vec<Output>) {
        self.follow_at = Duration::ZERO;
        self.place_at = Duration::ZERO;
        self.blocked.clear();
        self.majority.count_again();
        let node = change.node.as_str();
        match change.what {
            What::Up => {
                self.watch.up(node);
                if self.people.dead.remove(node).is_some() && self.speaks_for_the_site(node) {
                    out.push(event("PeerBack", format!("node {node} is back"), false));
                }
            }
            What::Suspect => self.watch.suspect(node, change.at),
            What::Down => {
                self.watch.down(node, change.at);
                self.people.dead.insert(node.to_owned(), change.at);
                if self.site.is_revoked(node) {
                    return;
                }
                if self.speaks_for_the_site(node) {
                    let message = format!("node {node} does not answer any of its peers");
                    out.push(event("PeerDead", message, true));
                }
            }
        }
    }

    /// One node of the site tells people what all of them know.
    fn speaks_for_the_site(&self, topic: &str) -> bool {
        first_of(topic, self.membership.live()) == Some(&self.node_id)
    }

    /// The mode changed.
    pub(super) fn note_mode(&mut self, changed: Changed, out: &mut Vec<Output>) {
        self.follow_at = Duration::ZERO;
        self.place_at = Duration::ZERO;
        self.people.waiting.clear();
        self.blocked.clear();
        match changed.to {
            Mode::Autonomous => {
                if !std::mem::replace(&mut self.people.away, true)
                    && self.speaks_for_the_site("mode")
                {
                    let message = format!("the site decides for itself: {}", changed.why);
                    out.push(event("SiteAutonomous", message, true));
                }
            }
            Mode::Connected => {
                if std::mem::take(&mut self.people.away) && self.speaks_for_the_site("mode") {
                    let message = "the control plane decides again".to_owned();
                    out.push(event("SiteConnected", message, false));
                }
            }
            Mode::Suspect | Mode::Reconciling => {}
        }
        out.push(Output::Mode {
            mode: changed.to,
            why: changed.why,
        });
    }

    /// Something that a peer sent was dropped.
    pub(super) fn refuse(&mut self, peer: &str, why: &str, now: Duration, out: &mut Vec<Output>) {
        self.counts.refused += 1;
        let known = self.people.refused.len();
        let last: String = why.chars().take(256).collect();
        let told = match self.people.refused.get_mut(peer) {
            Some(refusals) => {
                refusals.count += 1;
                refusals.last.clone_from(&last);
                let due = now.saturating_sub(refusals.told) >= REFUSED_AGAIN;
                if due {
                    refusals.told = now;
                }
                due
            }
            None if known < MAX_REFUSED => {
                let refusals = Refusals {
                    count: 1,
                    last: last.clone(),
                    told: now,
                };
                self.people.refused.insert(peer.to_owned(), refusals);
                true
            }
            None => false,
        };
        if told {
            let message = format!("dropped what peer {peer} sent: {last}");
            out.push(event("PeerRefused", message, true));
        }
    }
}

pub(super) fn event(reason: &'static str, message: String, warning: bool) -> Output {
    Output::Event {
        reason,
        message,
        warning,
        key: None,
    }
}
