//! What waits to be told. The listener may be slow; the driver never waits for it.

use std::collections::VecDeque;

use hyperion_proto::agent_v1::ReplicaReport;

use super::SupervisorEvent;

/// Most events that wait; older ones are dropped first.
const MAX_EVENTS: usize = 1024;

/// Bounded: one report per replica, and [`MAX_EVENTS`] events.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    queue: VecDeque<SupervisorEvent>,
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn pop(&mut self) -> Option<SupervisorEvent> {
        self.queue.pop_front()
    }

    /// Only the latest report of a replica is worth telling.
    pub(super) fn report(&mut self, report: ReplicaReport) {
        self.queue.retain(
            |waiting| !matches!(waiting, SupervisorEvent::Report(old) if old.key == report.key),
        );
        self.queue.push_back(SupervisorEvent::Report(report));
    }

    pub(super) fn event(&mut self, event: SupervisorEvent) {
        if self.queue.len() >= MAX_EVENTS
            && let Some(oldest) = self
                .queue
                .iter()
                .position(|e| matches!(e, SupervisorEvent::Event { .. }))
        {
            self.queue.remove(oldest);
        }
        self.queue.push_back(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyperion_proto::agent_v1::ReplicaKey;

    #[test]
    fn a_slow_listener_costs_old_news_not_memory() {
        let mut outbox = Outbox::default();
        for restarts in 0..3000 {
            outbox.report(ReplicaReport {
                key: Some(ReplicaKey::default()),
                restarts,
                ..Default::default()
            });
            outbox.event(SupervisorEvent::Event {
                reason: "R".into(),
                message: String::new(),
                warning: false,
                key: None,
            });
        }
        assert!(outbox.queue.len() <= MAX_EVENTS + 1);
        let reports: Vec<_> = std::iter::from_fn(|| outbox.pop())
            .filter_map(|e| match e {
                SupervisorEvent::Report(r) => Some(r.restarts),
                _ => None,
            })
            .collect();
        assert_eq!(reports, [2999]);
    }
}
