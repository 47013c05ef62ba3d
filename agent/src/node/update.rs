//! Updates: what the control plane orders, what root's part tells, and what the node says of both.

use hyperion_proto::agent_v1::{UpdateOrder, UpdatePhase, UpdateProgress, UpdateState};
use tracing::info;

use super::{Node, Now, Outgoing};
use crate::store::KeptUpdate;
use crate::update::{EngineState, Ready, Task, Told};
use crate::workloads::Workloads;

impl<W: Workloads> Node<W> {
    /// What is to be done for an update now; to be looked at after each call that takes [`Now`].
    #[must_use]
    pub fn update_task(&self) -> Task {
        self.updates.task(self.ready())
    }

    /// True while a bundle that was brought may still be needed.
    #[must_use]
    pub fn update_needs_bundle(&self) -> bool {
        self.updates.needs_bundle()
    }

    /// Slots, versions and the last order; none where this node can't be updated.
    #[must_use]
    pub fn update_state(&self) -> Option<UpdateState> {
        self.updates.state()
    }

    /// Takes what root's part tells; none where it is not there.
    pub fn update_engine(&mut self, engine: Option<EngineState>, now: Now, out: &dyn Outgoing) {
        self.updates.engine(engine);
        self.update_step(now);
        // Replicas are none of its business, and this comes each second.
        self.send_state(out);
        self.send_events(out);
    }

    /// Takes how far the bundle of an order has come.
    pub fn update_percent(&mut self, id: &str, percent: u32) {
        self.updates.brought_percent(id, percent);
    }

    /// Takes what the worker has found out.
    pub fn update_told(&mut self, told: Told, now: Now, out: &dyn Outgoing) {
        let Told::Brought(id, result) = told;
        self.updates.brought(&id, result);
        self.update_step(now);
        self.report(out);
    }

    /// Takes the order of a person at the device.
    ///
    /// # Errors
    /// Says why it is not taken.
    pub fn update_here(
        &mut self,
        order: &UpdateOrder,
        now: Now,
        out: &dyn Outgoing,
    ) -> Result<(), String> {
        self.updates.ordered_here(order)?;
        self.update_step(now);
        self.report(out);
        Ok(())
    }

    /// Takes the control plane's order.
    pub(super) fn update_ordered(&mut self, order: &UpdateOrder, now: Now) {
        if let Err(e) = self.updates.ordered(order) {
            self.event("UpdateOrderRefused", e.to_string(), true, None, now);
        }
        self.update_step(now);
    }

    /// Goes on, and keeps what has changed before anything is done about it. Only what calls it changes an
    /// update, so neither time nor a new link needs to.
    fn update_step(&mut self, now: Now) {
        self.updates.step(self.ready());
        let kept = self.updates.kept();
        if same(kept, self.store.update()) {
            return;
        }
        let kept = kept.clone();
        let before = self.store.update().progress.as_ref();
        let before = before.map(UpdateProgress::phase);
        self.store.set_update(kept.clone());
        let Some(progress) = kept.progress else {
            return;
        };
        let phase = progress.phase();
        if before == Some(phase) {
            return;
        }
        info!(order = %progress.order_id, ?phase, reason = %progress.reason, "update");
        let (reason, warning) = match phase {
            UpdatePhase::Done => ("Updated", false),
            UpdatePhase::RolledBack => ("UpdateRolledBack", true),
            UpdatePhase::Refused => ("UpdateRefused", true),
            UpdatePhase::Failed => ("UpdateFailed", true),
            _ => return,
        };
        let why = match progress.reason.as_str() {
            "" => String::new(),
            reason => format!(": {reason}: {}", progress.message),
        };
        let message = format!("version {}{why}", progress.version);
        self.event(reason, message, warning, None, now);
    }

    fn ready(&self) -> Ready {
        Ready {
            linked: self.linked,
            runtime: self.runtime_answers,
        }
    }
}

/// Percents are not worth a write.
fn same(a: &KeptUpdate, b: &KeptUpdate) -> bool {
    let bare = |kept: &KeptUpdate| {
        let mut kept = kept.clone();
        if let Some(progress) = &mut kept.progress {
            progress.percent = 0;
        }
        kept
    };
    a == b || bare(a) == bare(b)
}
