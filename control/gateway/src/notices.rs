//! What a node says that its cloud is about to do to it, made sane and noted in its status.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyperion_api::conditions;
use hyperion_api::node::HyperionNodeStatus;
use hyperion_proto::agent_v1::{InterruptionKind, Interruptions};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::GatewayEvent;
use crate::measuring::AGED;
use crate::service::{Shared, printable};

/// Notices of one node that are taken.
const MOST: usize = 16;
/// Longest text of one, characters.
const LONGEST: usize = 200;
/// A machine whose end is told further ahead is taken to end then.
const FAR: Duration = Duration::from_secs(7 * 24 * 3600);
/// Time between two looks at whether notices still hold.
const LOOK: Duration = Duration::from_secs(10);

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

/// Nodes of clusters with notices. What an agent said stands while it is heard, and some time longer; but
/// one that was taken away is not there to say that the machine stays, and its node would never take
/// anything again.
#[derive(Debug, Default)]
pub struct Noticed {
    by_node: HashMap<String, Stands>,
}

#[derive(Debug)]
struct Stands {
    /// When all of it is due; of one without a time when it was said.
    until: Instant,
    /// Since when its agent is silent.
    silent: Option<Instant>,
}

impl Noticed {
    /// A node's agent said these, the whole.
    pub fn said(&mut self, node: &str, notices: &[Notice], now: Instant, clock: Timestamp) {
        let left = |at: Timestamp| {
            let left = at.as_millisecond().saturating_sub(clock.as_millisecond());
            Duration::from_millis(u64::try_from(left).unwrap_or(0)).min(FAR)
        };
        let due = notices
            .iter()
            .map(|n| n.deadline.map_or(now, |at| now + left(at)));
        match due.max() {
            Some(until) => {
                let stands = Stands {
                    until,
                    silent: None,
                };
                self.by_node.insert(node.to_owned(), stands);
            }
            None => self.forget(node),
        }
    }

    /// Its agent is heard again. It says the whole anew.
    pub fn heard(&mut self, node: &str) {
        if let Some(stands) = self.by_node.get_mut(node) {
            stands.silent = None;
        }
    }

    /// Its agent is silent.
    pub fn silent(&mut self, node: &str, now: Instant) {
        if let Some(stands) = self.by_node.get_mut(node) {
            stands.silent = Some(now);
        }
    }

    /// Nothing is kept of a node.
    pub fn forget(&mut self, node: &str) {
        self.by_node.remove(node);
    }

    /// A node whose notices hold no longer: they are overdue, and nobody has said them, for [`AGED`].
    pub fn take_lapsed(&mut self, now: Instant) -> Option<String> {
        let aged = |since: Instant| now.saturating_duration_since(since) >= AGED;
        let mut all = self.by_node.iter();
        let lapsed = all.find(|(_, s)| aged(s.until) && s.silent.is_some_and(aged));
        let node = lapsed.map(|(node, _)| node.clone())?;
        self.forget(&node);
        Some(node)
    }
}

/// Takes notices back that hold no longer, until `stop`.
pub async fn take_back(shared: Arc<Shared>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stop.cancelled() => return,
        }
        while let Ok(room) = shared.events.reserve().await {
            let told = shared.state.lapse_notices(Instant::now(), |node| {
                info!(
                    node,
                    "its notices are overdue, and no agent says them any more"
                );
                room.send(GatewayEvent::Notices {
                    node,
                    notices: Vec::new(),
                });
            });
            if !told {
                break;
            }
        }
    }
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

    #[test]
    fn notices_outlive_their_agent_until_they_are_overdue() {
        let (start, clock) = (Instant::now(), Timestamp::now());
        let notice = |deadline: Option<Duration>| Notice {
            kind: NoticeKind::Spot,
            deadline: deadline.map(|after| clock + after),
            id: String::new(),
            detail: String::new(),
        };
        let hour = Duration::from_secs(3600);
        let mut noticed = Noticed::default();
        let says = |noticed: &mut Noticed, notices: &[Notice]| {
            noticed.said("east.n1", notices, start, clock);
        };
        says(&mut noticed, &[notice(None), notice(Some(hour))]);
        // As long as it is heard it is right, however late its cloud is.
        assert_eq!(noticed.take_lapsed(start + hour * 24), None);
        noticed.silent("east.n1", start);
        assert_eq!(noticed.take_lapsed(start + hour), None);
        noticed.heard("east.n1");
        assert_eq!(noticed.take_lapsed(start + hour * 24), None);
        noticed.silent("east.n1", start + hour * 2);
        assert_eq!(noticed.take_lapsed(start + hour * 2), None);
        let lapsed = noticed.take_lapsed(start + hour * 2 + AGED);
        assert_eq!(lapsed.as_deref(), Some("east.n1"));
        assert_eq!(noticed.take_lapsed(start + hour * 24), None, "once");
        // Without a time it is the silence that counts.
        says(&mut noticed, &[notice(None)]);
        noticed.silent("east.n1", start);
        assert_eq!(noticed.take_lapsed(start + AGED / 2), None);
        assert!(noticed.take_lapsed(start + AGED).is_some());
        // Withdrawn, and of a node that is gone.
        says(&mut noticed, &[notice(None)]);
        says(&mut noticed, &[]);
        noticed.silent("east.n1", start);
        assert_eq!(noticed.take_lapsed(start + AGED), None);
        says(&mut noticed, &[notice(None)]);
        noticed.silent("east.n1", start);
        noticed.forget("east.n1");
        assert_eq!(noticed.take_lapsed(start + AGED), None);
    }

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
