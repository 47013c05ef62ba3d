//! What is to be done next, from what was ordered and what is known. No I/O, no clock.

use hyperion_proto::agent_v1::{BundleKind, UpdateOrder, UpdatePhase, UpdateProgress, UpdateState};
use hyperion_proto::convert::{self, Invalid};
use hyperion_proto::domain;

use super::READY_SECONDS;
use super::bring::Failure;
use super::engine::{Action, EnginePhase, EngineState};
use crate::store::KeptUpdate;

/// What makes a node Ready, for what is on trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// The control plane has answered on the link.
    pub linked: bool,
    /// The container runtime answers.
    pub runtime: bool,
}

/// What is to be done now.
#[derive(Debug, Clone, PartialEq)]
pub enum Task {
    /// Nothing.
    None,
    /// Bring this bundle.
    Bring(Box<domain::UpdateOrder>),
    /// Ask root's part; a bundle to be installed is the order's.
    Ask {
        /// For what.
        action: Action,
        /// Order.
        id: String,
        /// Of the bundle.
        kind: BundleKind,
        /// Where the bundle comes from; empty unless it is to be installed.
        url: String,
        /// Time to be called good.
        ready_seconds: u32,
    },
}

/// See the module.
#[derive(Debug)]
pub struct Updates {
    kept: KeptUpdate,
    engine: Option<EngineState>,
    /// Ordered while another update was on trial.
    next: Option<UpdateOrder>,
}

impl Updates {
    /// Goes on with what a store has kept.
    #[must_use]
    pub fn new(mut kept: KeptUpdate) -> Self {
        // Where root's part does not say otherwise, the bundle is looked at, or brought, once more: it may
        // have been lost since.
        if let Some(progress) = &mut kept.progress
            && progress.phase() == UpdatePhase::Installing
        {
            progress.set_phase(UpdatePhase::Downloading);
        }
        Self {
            kept,
            engine: None,
            next: None,
        }
    }

    /// What is to be on disk.
    #[must_use]
    pub fn kept(&self) -> &KeptUpdate {
        &self.kept
    }

    /// Phase of the last order.
    #[must_use]
    pub fn phase(&self) -> UpdatePhase {
        let progress = self.kept.progress.as_ref();
        progress.map_or(UpdatePhase::Unspecified, UpdateProgress::phase)
    }

    /// For the control plane; none where this node can't be updated at all.
    #[must_use]
    pub fn state(&self) -> Option<UpdateState> {
        let none = EngineState::default();
        let engine = match &self.engine {
            Some(engine) => engine,
            // How an order was refused is told all the same.
            None if self.kept.progress.is_some() => &none,
            None => return None,
        };
        Some(UpdateState {
            machine: engine.machine.clone(),
            system_version: engine.system_version.clone(),
            slots: engine.slots.clone(),
            progress: self.kept.progress.clone(),
        })
    }

    /// The control plane's order. Absent from a welcome, nothing changes.
    ///
    /// # Errors
    /// Names the field that is wrong; nothing changes.
    pub fn ordered(&mut self, order: &UpdateOrder) -> Result<(), Invalid> {
        let Some(valid) = convert::update_order(order)? else {
            self.next = None;
            if !self.kept.local && !self.on_trial() {
                self.drop_order();
            }
            return Ok(());
        };
        let same = self.kept.order.as_ref().is_some_and(|o| o.id == valid.id);
        let told = self.kept.progress.as_ref();
        if same {
            if let Some(held) = &mut self.kept.order
                && self.kept.progress.as_ref().is_some_and(waits)
            {
                held.activate = order.activate;
                held.ready_seconds = order.ready_seconds;
            }
        } else if told.is_some_and(|p| p.order_id == valid.id && is_over(p)) {
            // Its end is known already.
        } else if self.on_trial() {
            self.next = Some(order.clone());
        } else {
            self.take(order.clone(), false);
        }
        Ok(())
    }

    /// Order of a person at the device.
    ///
    /// # Errors
    /// Says why it is not taken.
    pub fn ordered_here(&mut self, order: &UpdateOrder) -> Result<(), String> {
        convert::update_order(order).map_err(|e| e.to_string())?;
        if self.goes_on() {
            return Err("another update goes on; `update status` tells which".to_owned());
        }
        self.take(order.clone(), true);
        Ok(())
    }

    /// What root's part tells; none where it is not there.
    pub fn engine(&mut self, engine: Option<EngineState>) {
        self.engine = engine;
        let (Some(engine), Some(order)) = (&self.engine, &self.kept.order) else {
            return;
        };
        let Some(progress) = self.kept.progress.as_mut().filter(|p| !is_over(p)) else {
            return;
        };
        if engine.id != order.id {
            match progress.phase() {
                // It has lost its notes: the bundle is brought and installed again.
                UpdatePhase::Installed => progress.set_phase(UpdatePhase::Downloading),
                UpdatePhase::Restarting | UpdatePhase::Trial => {
                    progress.set_phase(UpdatePhase::Failed);
                    "NotesLost".clone_into(&mut progress.reason);
                    "what became of the restart is not known".clone_into(&mut progress.message);
                }
                _ => {}
            }
            return;
        }
        let phase = match (engine.phase, progress.phase()) {
            (EnginePhase::Idle, _) => return,
            // Asked for, and not carried out yet.
            (EnginePhase::Installed, UpdatePhase::Restarting) => return,
            (EnginePhase::Installing, _) => UpdatePhase::Installing,
            (EnginePhase::Installed, _) => UpdatePhase::Installed,
            (EnginePhase::Restarting, _) => UpdatePhase::Restarting,
            (EnginePhase::Trial, _) => UpdatePhase::Trial,
            (EnginePhase::Done, _) => UpdatePhase::Done,
            (EnginePhase::RolledBack, _) => UpdatePhase::RolledBack,
            (EnginePhase::Refused, _) => UpdatePhase::Refused,
            (EnginePhase::Failed, _) => UpdatePhase::Failed,
        };
        progress.percent = match phase {
            UpdatePhase::Installing => tens(engine.percent),
            _ => 0,
        };
        progress.set_phase(phase);
        engine.tell(progress);
    }

    /// How far the bundle of an order has come.
    pub fn brought_percent(&mut self, id: &str, percent: u32) {
        if let Some(progress) = self.bringing(id) {
            progress.percent = tens(percent);
        }
    }

    /// The bundle of an order is here, or can't be had.
    pub fn brought(&mut self, id: &str, result: Result<(), Failure>) {
        let Some(progress) = self.bringing(id) else {
            return;
        };
        progress.percent = 0;
        match result {
            Ok(()) => progress.set_phase(UpdatePhase::Installing),
            Err(failure) => {
                progress.set_phase(UpdatePhase::Failed);
                failure.reason.clone_into(&mut progress.reason);
                progress.message = failure.message;
            }
        }
    }

    /// Goes on where nothing has to be waited for.
    pub fn step(&mut self, ready: Ready) {
        if self.phase() == UpdatePhase::Installed
            && let Some(order) = &self.kept.order
            && order.activate
            && let Some(progress) = &mut self.kept.progress
        {
            progress.set_phase(UpdatePhase::Restarting);
            self.kept.offline = self.kept.local && !ready.linked;
        }
        if !self.on_trial()
            && let Some(next) = self.next.take()
        {
            self.take(next, false);
        }
    }

    /// What is to be done now.
    #[must_use]
    pub fn task(&self, ready: Ready) -> Task {
        let Some(engine) = &self.engine else {
            return Task::None;
        };
        let order = self.kept.order.as_ref();
        if engine.phase == EnginePhase::Installed && order.is_none_or(|o| o.id != engine.id) {
            return Task::Ask {
                action: Action::Cancel,
                id: engine.id.clone(),
                kind: engine.kind,
                url: String::new(),
                ready_seconds: 0,
            };
        }
        // Asked after every message: an order that has ended is not read again.
        if !self.goes_on() {
            return Task::None;
        }
        let Some(order) = order.and_then(|o| convert::update_order(o).ok().flatten()) else {
            return Task::None;
        };
        let its = engine.id == order.id;
        let action = match self.phase() {
            UpdatePhase::Downloading => return Task::Bring(Box::new(order)),
            UpdatePhase::Installing if !its || engine.phase == EnginePhase::Idle => Action::Install,
            UpdatePhase::Restarting if its && engine.phase == EnginePhase::Installed => {
                Action::Activate
            }
            UpdatePhase::Trial if self.is_ready(ready) && is_tried(engine) => Action::Good,
            _ => return Task::None,
        };
        let url = match action {
            Action::Install => order.bundle.url,
            Action::Activate | Action::Good | Action::Cancel => String::new(),
        };
        Task::Ask {
            action,
            id: order.id,
            kind: match order.bundle.kind {
                domain::BundleKind::System => BundleKind::System,
                domain::BundleKind::Agent => BundleKind::Agent,
            },
            url,
            ready_seconds: order.ready_seconds.unwrap_or(READY_SECONDS),
        }
    }

    /// True while a bundle that was brought may still be needed.
    #[must_use]
    pub fn needs_bundle(&self) -> bool {
        matches!(
            self.phase(),
            UpdatePhase::Downloading | UpdatePhase::Installing
        )
    }

    fn is_ready(&self, ready: Ready) -> bool {
        ready.runtime && (ready.linked || self.kept.offline)
    }

    /// An update was ordered, and has not ended.
    fn goes_on(&self) -> bool {
        let progress = self.kept.progress.as_ref();
        progress.is_some_and(|p| p.phase() != UpdatePhase::Unspecified && !is_over(p))
    }

    fn on_trial(&self) -> bool {
        matches!(self.phase(), UpdatePhase::Restarting | UpdatePhase::Trial)
    }

    fn bringing(&mut self, id: &str) -> Option<&mut UpdateProgress> {
        let progress = self.kept.progress.as_mut();
        progress.filter(|p| p.order_id == id && p.phase() == UpdatePhase::Downloading)
    }

    /// How an order ended is told until the next one.
    fn drop_order(&mut self) {
        self.kept.order = None;
        self.kept.progress = self.kept.progress.take().filter(is_over);
    }

    fn take(&mut self, order: UpdateOrder, local: bool) {
        let bundle = order.bundle.as_ref();
        let kind = bundle.map(hyperion_proto::agent_v1::Bundle::kind);
        let mut progress = UpdateProgress {
            order_id: order.id.clone(),
            phase: UpdatePhase::Downloading.into(),
            version: bundle.map_or_else(String::new, |b| b.version.clone()),
            ..UpdateProgress::default()
        };
        let engine = self.engine.as_ref();
        let able = engine.is_some_and(|e| kind == Some(BundleKind::Agent) || !e.machine.is_empty());
        if !able {
            progress.set_phase(UpdatePhase::Refused);
            "NoEngine".clone_into(&mut progress.reason);
            "this node has no slots to update".clone_into(&mut progress.message);
        }
        self.kept = KeptUpdate {
            order: Some(order),
            progress: Some(progress),
            local,
            offline: false,
        };
    }
}

/// What is on trial is what runs here: the agent before a new one still runs for a moment, and has no
/// say.
fn is_tried(engine: &EngineState) -> bool {
    engine.kind != BundleKind::Agent || engine.version == crate::version()
}

/// Whether to restart may still be said otherwise.
fn waits(progress: &UpdateProgress) -> bool {
    matches!(
        progress.phase(),
        UpdatePhase::Downloading | UpdatePhase::Installing | UpdatePhase::Installed
    )
}

fn is_over(progress: &UpdateProgress) -> bool {
    matches!(
        progress.phase(),
        UpdatePhase::Done | UpdatePhase::RolledBack | UpdatePhase::Refused | UpdatePhase::Failed
    )
}

/// Told in steps: each is a message, and a write at the control plane.
fn tens(percent: u32) -> u32 {
    percent.min(100) / 10 * 10
}
