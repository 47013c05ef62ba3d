//! What has to do with nodes and sites that were out of reach: answers to what they decided, events
//! of that time, and the policy that they decide with.

use std::time::Duration;

use hyperion_api::conditions;
use hyperion_proto::agent_v1;
use jiff::Timestamp;
use tracing::{debug, info, warn};

use super::Work;
use crate::decider::source;
use crate::events::{self, Note};
use crate::index::Name;
use crate::plan::told_at;

/// Events that are older than this are published with their own time.
const LATE: Duration = Duration::from_secs(20);

impl Work {
    /// Tells nodes what became of decisions that they brought, and people what can't be taken over.
    pub(super) fn answers(&mut self) {
        for answer in self.index.take_answers() {
            let (node, decisions) = (&answer.node, &answer.decisions);
            debug!(
                node,
                decisions = decisions.len(),
                taken = answer.taken,
                "site"
            );
            let gateway = &self.leader.gateway;
            if answer.taken {
                gateway.decisions_taken(node, decisions);
            } else {
                gateway.decisions_kept(node, decisions);
            }
        }
        for note in self.index.take_node_notes() {
            warn!(node = note.node, reason = note.reason, "{}", note.text);
            self.publisher.publish(Note {
                about: events::node(&note.node),
                warning: true,
                reason: note.reason.to_owned(),
                text: note.text,
                past: None,
            });
        }
        self.leader
            .metrics
            .count_site_verdicts(&self.index.take_verdicts());
    }

    /// Publishes an event of a node, with the time when it happened where that was not now.
    pub(super) fn device_event(&mut self, node: &str, event: agent_v1::Event) {
        let about = match &event.replica {
            Some(key) => {
                let name = Name::new(&key.namespace, &key.workload);
                // A site may know the workload by a uid of its own.
                let known = self.index.object_uid(&name, &key.workload_uid);
                events::workload(&name, known.as_deref().unwrap_or(&key.workload_uid))
            }
            None => events::node(node),
        };
        let text = match &event.replica {
            Some(key) => format!("replica {} on node {node}: {}", key.index, event.message),
            None => event.message,
        };
        let now = Timestamp::now();
        let late = i64::try_from(LATE.as_millis()).unwrap_or(i64::MAX);
        let at = told_at(event.unix_ms, now);
        let at = at.filter(|at| now.as_millisecond() - at.as_millisecond() > late);
        let past = at.map(|at| (at, events::mark(&[node, &event.reason, &text], event.id)));
        self.publisher.publish(Note {
            about,
            warning: event.warning,
            reason: event.reason,
            text,
            past,
        });
    }

    /// Offers devices the policy that counts for them. One that is refused changes nothing: what
    /// they have goes on deciding.
    pub(super) fn device_policy(&mut self) {
        let offered = source::for_devices(&self.leader.policy, &self.map)
            .map_err(|refused| refused.to_string())
            .and_then(|bytes| {
                self.leader
                    .gateway
                    .set_device_policy(bytes)
                    .map(|()| bytes.map_or(0, <[u8]>::len))
                    .map_err(|e| e.to_string())
            });
        match offered {
            Ok(bytes) => info!(bytes, "policy for devices"),
            Err(error) => {
                warn!(
                    error,
                    "the policy for devices is refused: they keep what they have"
                );
                self.publisher.publish(Note {
                    about: events::policy(),
                    warning: true,
                    reason: conditions::EVENT_POLICY_REFUSED.to_owned(),
                    text: format!("{error}; devices keep the policy that they have"),
                    past: None,
                });
            }
        }
    }
}
