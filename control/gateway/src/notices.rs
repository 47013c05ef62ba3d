//! What a node says that its cloud is about to do to it, made sane and noted in its status.

use hyperion_api::conditions;
use hyperion_api::node::HyperionNodeStatus;
use hyperion_proto::agent_v1::{InterruptionKind, Interruptions};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::service::printable;

/// Notices of one node that are taken.
const MOST: usize = 16;
/// Longest text of one, characters.
const LONGEST: usize = 200;

/// What is about to happen to a node, the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NoticeKind {
    /// A spot machine is at a higher risk of being taken back.
    Rebalance,
    /// The machine is restarted, moved or ended, and its containers with it.
    Maintenance,
    /// A spot machine is taken back.
    Spot,
}

impl NoticeKind {
    /// Reason of the condition.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Spot => conditions::REASON_SPOT_INTERRUPTION,
            Self::Rebalance => conditions::REASON_REBALANCE,
            Self::Maintenance => conditions::REASON_MAINTENANCE,
        }
    }
}

/// A notice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// What.
    pub kind: NoticeKind,
    /// When; none where no time is set.
    pub deadline: Option<Timestamp>,
    /// Tells it from others of the node.
    pub id: String,
    /// The cloud's words.
    pub detail: String,
}

/// The notices that make sense; those of a kind that is not known here are left out.
#[must_use]
pub fn read(said: &Interruptions) -> Vec<Notice> {
    let text = |text: &str| printable(text, LONGEST);
    let read = said.notices.iter().filter_map(|notice| {
        let kind = match notice.kind() {
            InterruptionKind::Unspecified => return None,
            InterruptionKind::Spot => NoticeKind::Spot,
            InterruptionKind::Rebalance => NoticeKind::Rebalance,
            InterruptionKind::Maintenance => NoticeKind::Maintenance,
        };
        let deadline = Some(notice.deadline_unix_ms).filter(|ms| *ms > 0);
        Some(Notice {
            kind,
            deadline: deadline.and_then(|ms| Timestamp::from_millisecond(ms).ok()),
            id: text(&notice.id),
            detail: text(&notice.detail),
        })
    });
    read.take(MOST).collect()
}

/// The notice that counts: the worst, and of those the one that is due first.
#[must_use]
pub fn worst(notices: &[Notice]) -> Option<&Notice> {
    let due = |n: &Notice| n.deadline.unwrap_or(Timestamp::MAX);
    notices
        .iter()
        .min_by(|a, b| b.kind.cmp(&a.kind).then(due(a).cmp(&due(b))))
}

/// Notes them in the node's status; true where that is new.
pub fn note(status: &mut HyperionNodeStatus, notices: &[Notice]) -> bool {
    let mut held = status.conditions.iter();
    let held = held.position(|c| c.type_ == conditions::INTERRUPTION);
    let Some(worst) = worst(notices) else {
        return held.map(|at| status.conditions.remove(at)).is_some();
    };
    let message = match worst.deadline {
        Some(at) => format!(
            "due {}: {}",
            at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            worst.detail
        ),
        None => worst.detail.clone(),
    };
    let condition = Condition {
        type_: conditions::INTERRUPTION.to_owned(),
        status: "True".to_owned(),
        reason: worst.kind.reason().to_owned(),
        message,
        last_transition_time: Time(Timestamp::now()),
        observed_generation: None,
    };
    match held.and_then(|at| status.conditions.get_mut(at)) {
        Some(held) if held.reason == condition.reason && held.message == condition.message => false,
        Some(held) => {
            *held = condition;
            true
        }
        None => {
            status.conditions.push(condition);
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use hyperion_proto::agent_v1::Interruption;

    use super::*;

    fn said(kind: i32, deadline_unix_ms: i64, detail: &str) -> Interruption {
        Interruption {
            kind,
            deadline_unix_ms,
            id: detail.to_owned(),
            detail: detail.to_owned(),
        }
    }

    #[test]
    fn the_worst_counts_and_nonsense_is_left_out() {
        let (spot, rebalance) = (InterruptionKind::Spot.into(), 2);
        let notices = vec![
            said(rebalance, 0, "soon"),
            said(spot, 1_767_225_720_000, "later"),
            said(spot, 1_767_225_600_000, "ter\u{7}minate"),
            said(spot, i64::MIN, "no time"),
            said(99, 0, "of a newer agent"),
            said(0, 0, "nothing"),
        ];
        let read = read(&Interruptions { notices });
        assert_eq!(read.len(), 4);
        let mut status = HyperionNodeStatus::default();
        crate::nodes::set_ready(&mut status, true, "AgentConnected", "");
        assert!(note(&mut status, &read));
        assert!(!note(&mut status, &read));
        // Whether the agent is in reach is another matter.
        crate::nodes::set_ready(&mut status, false, "AgentUnreachable", "gone");
        let held = &status.conditions;
        let types: Vec<&str> = held.iter().map(|c| c.type_.as_str()).collect();
        assert_eq!(types, ["Ready", conditions::INTERRUPTION]);
        assert_eq!(held[1].reason, conditions::REASON_SPOT_INTERRUPTION);
        assert_eq!(held[1].message, "due 2026-01-01T00:00:00Z: terminate");
        assert!(note(&mut status, &[]));
        assert!(!note(&mut status, &[]));
        assert_eq!(status.conditions.len(), 1);
        let many = vec![said(spot, 0, &"x".repeat(5000)); 1000];
        let read = super::read(&Interruptions { notices: many });
        assert_eq!((read.len(), read[0].detail.len()), (MOST, LONGEST));
    }
}
