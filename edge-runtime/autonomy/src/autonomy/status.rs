//! What people see.

use std::collections::BTreeMap;
use std::time::Duration;

use hyperion_wire::agent_v1::RecordState;

use super::Autonomy;
use crate::membership::State;
use crate::mode::Mode;

/// Counted since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Places that this node decided.
    pub decisions: u64,
    /// Decisions that found no place.
    pub no_room: u64,
    /// Replicas that this node gave up.
    pub shed: u64,
    /// Copies here that ended because another decision held.
    pub superseded: u64,
    /// Messages of peers that were dropped, or parts of them.
    pub refused: u64,
}

/// How a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberState {
    /// This node.
    Own,
    /// It answers.
    Alive,
    /// It does not answer, and may still object.
    Suspect,
    /// It does not answer anybody.
    Dead,
    /// It was not heard since this node started.
    Unseen,
    /// It is not to be heard.
    Revoked,
}

impl MemberState {
    /// The word for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
            Self::Unseen => "unseen",
            Self::Revoked => "revoked",
        }
    }
}

/// A node of the site.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// Node id.
    pub node: String,
    /// State.
    pub state: MemberState,
    /// In this state; none where that is not known.
    pub since: Option<Duration>,
    /// It has a link to the control plane.
    pub linked: bool,
    /// Its mode, by its own word; empty where it said nothing.
    pub mode: String,
    /// Replicas that are placed on it.
    pub replicas: usize,
    /// Messages of it that were dropped.
    pub refused: u64,
    /// The last of them.
    pub last_refused: String,
}

/// The site as this node sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// Mode.
    pub mode: Mode,
    /// In this mode.
    pub mode_since: Duration,
    /// Last contact with the control plane, of this node or of a peer.
    pub contact: Duration,
    /// What the control plane calls the site.
    pub site: String,
    /// Nodes that are enrolled, seen or named, this one included, by id.
    pub members: Vec<Member>,
    /// More than half of the enrolled nodes are alive.
    pub majority: bool,
    /// Replicas that run, or are to run.
    pub placed: usize,
    /// Replicas that wait for a place.
    pub pending: usize,
    /// Replicas of jobs that ended.
    pub ended: usize,
    /// Replicas that this node holds back.
    pub held_back: usize,
    /// Decisions of the site that the control plane has not taken.
    pub untaken: usize,
    /// Counted since the start.
    pub counts: Counts,
}

impl Autonomy {
    /// The site as this node sees it: for people, metrics and the local API.
    #[must_use]
    pub fn status(&self, now: Duration) -> Status {
        let mut replicas: BTreeMap<&str, usize> = BTreeMap::new();
        let (mut placed, mut pending, mut ended, mut untaken) = (0, 0, 0, 0);
        for (_, entry) in self.site.replicas() {
            match entry.state() {
                RecordState::Placed => {
                    placed += 1;
                    *replicas.entry(&entry.record.node).or_default() += 1;
                }
                RecordState::Pending => pending += 1,
                RecordState::Ended => ended += 1,
                RecordState::Removed | RecordState::Unspecified => {}
            }
            untaken += usize::from(entry.untaken());
        }
        let mut ids: Vec<&str> = self.site.nodes().map(|(id, _)| id).collect();
        let info = self.site.info();
        ids.extend(info.members.iter().map(|m| m.node_id.as_str()));
        ids.extend(info.revoked.iter().map(String::as_str));
        ids.extend(self.membership.live());
        ids.sort_unstable();
        ids.dedup();
        let members = ids
            .into_iter()
            .map(|id| self.member(id, replicas.get(id).copied().unwrap_or(0)))
            .collect();
        Status {
            mode: self.mode(),
            mode_since: self.machine.since(),
            contact: if self.machine.linked() {
                now
            } else {
                self.machine.contact()
            },
            site: info.site.clone(),
            members,
            majority: self.sees_majority(),
            placed,
            pending,
            ended,
            held_back: self.mine.values().filter(|m| m.hold.is_some()).count(),
            untaken,
            counts: self.counts,
        }
    }

    fn member(&self, id: &str, replicas: usize) -> Member {
        let known = self.membership.state(id);
        let state = if id == self.node_id {
            MemberState::Own
        } else if self.site.is_revoked(id) {
            MemberState::Revoked
        } else {
            match known {
                Some((State::Alive, _)) => MemberState::Alive,
                Some((State::Suspect, _)) => MemberState::Suspect,
                Some((State::Down, _)) => MemberState::Dead,
                None => MemberState::Unseen,
            }
        };
        let said = self.site.node(id).map(|n| &n.record);
        let refusals = self.people.refused.get(id);
        Member {
            node: id.to_owned(),
            state,
            since: known.map(|(_, since)| since),
            linked: said.is_some_and(|r| r.linked),
            mode: said.map_or_else(String::new, |r| r.mode.clone()),
            replicas,
            refused: refusals.map_or(0, |r| r.count),
            last_refused: refusals.map_or_else(String::new, |r| r.last.clone()),
        }
    }

    /// Counted since the start.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }
}
