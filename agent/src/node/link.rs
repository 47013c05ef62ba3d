//! What comes from the control plane.

use hyperion_autonomy::Output;
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{CommandResult, Hello, ReplicaKey, StreamMessage, Welcome};
use hyperion_proto::convert;
use tracing::{debug, info, warn};

use super::glue::{Work, ordered};
use super::orders::{Batch, Told};
use super::{Effect, Node, Now, Outgoing};
use crate::workloads::Workloads;

/// How the link went down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gone {
    /// It ended, or could not be made.
    Lost,
    /// The control plane does not want this node, for this reason.
    Refused(String),
}

impl<W: Workloads> Node<W> {
    /// First message of a connection.
    pub fn hello(&mut self) -> Hello {
        let reports = self.all_reports();
        let site_decisions = self.decisions_for_hello();
        self.sent_event = 0;
        self.sent_state = None;
        self.reported = reports.clone();
        self.reported_problem.clone_from(&self.runtime_problem);
        self.telemetry.new_connection();
        let facts = &self.config.facts;
        Hello {
            node_id: facts.node_id.clone(),
            boot_id: facts.boot_id.clone(),
            capabilities: Some(facts.capabilities.clone()),
            replicas: reports.into_values().collect(),
            agent_version: crate::version().to_owned(),
            telemetry_interval_ms: facts.telemetry_interval_ms,
            runtime_problem: self.runtime_problem.clone(),
            site_decisions,
            policy_hash: self.policy_hash().to_owned(),
            peer_addresses: self.me.addresses.clone(),
            site_info_version: self.store.site().map_or(0, |info| info.version),
            update: self.update_state(),
        }
    }

    /// The control plane answered hello.
    pub fn connected(&mut self, welcome: &Welcome, now: Now, out: &dyn Outgoing) {
        let mut outputs = self.end_link(now);
        outputs.extend(self.autonomy.link_up(self.clock.since(now)));
        self.welcomed(welcome, outputs, now, out);
    }

    /// The control plane answered hello, on a link that runs through a peer.
    pub fn connected_through(
        &mut self,
        peer: &str,
        welcome: &Welcome,
        now: Now,
        out: &dyn Outgoing,
    ) {
        let mut outputs = self.end_link(now);
        let since = self.clock.since(now);
        outputs.extend(self.autonomy.link_up_through(peer, since));
        self.welcomed(welcome, outputs, now, out);
    }

    /// Where a new connection stands before the end of the one before was told.
    fn end_link(&mut self, now: Now) -> Vec<Output> {
        if !std::mem::replace(&mut self.linked, false) {
            return Vec::new();
        }
        self.autonomy.link_down(self.clock.since(now))
    }

    fn welcomed(
        &mut self,
        welcome: &Welcome,
        mut outputs: Vec<Output>,
        now: Now,
        out: &dyn Outgoing,
    ) {
        self.linked = true;
        self.draining = false;
        self.clock.hear(welcome.wall_clock_unix_ms, now);
        self.tell_clock(now);
        let since = self.clock.since(now);
        if let Some(info) = &welcome.site {
            outputs.extend(self.autonomy.site_info(info.clone(), since));
        }
        let mut batch = Batch::default();
        let decided = self.decided_here();
        let whole = batch.welcome(&self.store, welcome, &decided);
        info!(
            replicas = welcome.replicas.len(),
            complete = welcome.replicas_complete,
            changes = batch.changes.len(),
            "connected"
        );
        let told = std::mem::take(&mut batch.told);
        outputs.extend(self.tell(told, now));
        outputs.extend(self.autonomy.welcomed(whole, since));
        let changes = std::mem::take(&mut batch.changes);
        self.carry_out(
            Work {
                changes,
                whole,
                outputs,
            },
            now,
        );
        // What is wanted may be known only now, also where nothing changed.
        self.push_desired();
        self.store.seal_telemetry();
        if let Some(offer) = &welcome.policy {
            self.offered(offer, now, out);
        }
        if let Some(order) = &welcome.update {
            self.update_ordered(order, now);
        }
        self.answer(batch, now, out);
        self.refresh(now);
        self.backfill(now, out);
    }

    /// Takes messages that came together: those that change what runs share one write.
    pub fn messages(
        &mut self,
        messages: impl IntoIterator<Item = StreamMessage>,
        now: Now,
        out: &dyn Outgoing,
    ) {
        let mut batch = Batch::default();
        for message in messages {
            batch = self.message(message, batch, now, out);
        }
        self.commit(batch, now, out);
        self.refresh(now);
    }

    fn message(
        &mut self,
        message: StreamMessage,
        mut batch: Batch,
        now: Now,
        out: &dyn Outgoing,
    ) -> Batch {
        match message.body {
            Some(Body::StartReplica(order)) => {
                batch = self.in_order(order.key.as_ref(), batch, now, out);
                batch.start(&self.store, &order, self.draining);
            }
            Some(Body::StopReplica(order)) => {
                batch = self.in_order(order.key.as_ref(), batch, now, out);
                batch.stop(&self.store, &order);
            }
            Some(Body::EventAck(ack)) => {
                self.store.ack(ack.id);
                self.send_events(out);
            }
            Some(Body::TelemetryAck(ack)) => self.telemetry_acknowledged(ack.id, now, out),
            Some(Body::FetchLogs(fetch)) => self.effects.push(Effect::Logs(Box::new(fetch))),
            Some(Body::Drain(drain)) => {
                // What runs is moved by the control plane, replica by replica; until its next
                // welcome nothing new comes here.
                self.draining = true;
                info!("drained: no new replicas are taken");
                batch.results.push(CommandResult {
                    command_id: drain.command_id,
                    ok: true,
                    error: String::new(),
                });
            }
            Some(Body::DecisionsTaken(taken)) => {
                // Orders that came before belong before it.
                self.commit(std::mem::take(&mut batch), now, out);
                let outputs = self.autonomy.taken(&taken.records, self.clock.since(now));
                self.carry_out(Work::of(outputs), now);
            }
            Some(Body::SiteInfo(info)) => {
                let outputs = self.autonomy.site_info(info, self.clock.since(now));
                self.carry_out(Work::of(outputs), now);
            }
            Some(Body::PolicyOffer(offer)) => self.offered(&offer, now, out),
            Some(Body::UpdateOrder(order)) => self.update_ordered(&order, now),
            Some(Body::PolicyChunk(chunk)) => self.policy_chunk(&chunk, now, out),
            // A second welcome: the control plane has read its state, or has taken the site's
            // decisions, and tells the whole.
            Some(Body::Welcome(welcome)) => {
                self.commit(std::mem::take(&mut batch), now, out);
                self.welcomed(&welcome, Vec::new(), now, out);
            }
            // Made by a newer control plane, or not for an agent.
            _ => debug!("message ignored"),
        }
        batch
    }

    /// Orders for one replica are taken one after the other.
    fn in_order(
        &mut self,
        key: Option<&ReplicaKey>,
        batch: Batch,
        now: Now,
        out: &dyn Outgoing,
    ) -> Batch {
        if !batch.touches(key) {
            return batch;
        }
        self.commit(batch, now, out);
        Batch::default()
    }

    /// Writes, then acts, then answers.
    fn commit(&mut self, mut batch: Batch, now: Now, out: &dyn Outgoing) {
        for (key, grace) in batch.hurried.drain(..) {
            self.workloads.hurry(&key, grace);
        }
        let told = std::mem::take(&mut batch.told);
        let work = Work {
            changes: std::mem::take(&mut batch.changes),
            whole: false,
            outputs: self.tell(told, now),
        };
        self.carry_out(work, now);
        self.answer(batch, now, out);
    }

    /// Tells autonomy what the control plane ordered.
    fn tell(&mut self, told: Vec<Told>, now: Now) -> Vec<Output> {
        let (since, unix_ms) = (self.clock.since(now), self.clock.unix_ms(now));
        let mut outputs = Vec::new();
        for told in told {
            outputs.extend(match told {
                Told::Start(order) => {
                    let record = ordered(&order, &self.config.facts.node_id, unix_ms);
                    self.autonomy.ordered(record, since)
                }
                Told::Stop(key, generation) => self.autonomy.removed(&key, generation, since),
            });
        }
        outputs
    }

    fn answer(&mut self, batch: Batch, now: Now, out: &dyn Outgoing) {
        self.counts.orders_refused += batch.refused.len() as u64;
        for (key, why) in batch.refused {
            warn!(error = %why, "order refused");
            self.event("OrderRefused", why, true, key.as_ref(), now);
        }
        for (key, generation) in &batch.absent {
            self.note_absent(key, *generation);
        }
        for result in batch.results {
            // An answer that is not taken is made up for by the next welcome.
            out.send(Body::CommandResult(result));
        }
        self.report(out);
    }

    /// The link is down, or could not be made.
    pub fn disconnected(&mut self, how: Gone, now: Now) {
        let mut outputs = self.end_link(now);
        // An attempt that failed is no news; one that was refused is.
        if let Gone::Refused(why) = how {
            outputs.extend(self.autonomy.link_refused(&why, self.clock.since(now)));
        }
        self.carry_out(Work::of(outputs), now);
    }

    /// A renewed certificate could not be written.
    pub fn identity_not_saved(&mut self, why: String, now: Now) {
        self.event("IdentityNotSaved", why, true, None, now);
    }
}

/// Replica of a message, where it has a good one.
pub(super) fn key_of(key: Option<&ReplicaKey>) -> Option<hyperion_proto::domain::ReplicaKey> {
    convert::replica_key("", key).ok()
}
