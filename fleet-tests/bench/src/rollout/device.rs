//! A device that follows orders to update: it takes its time, restarts, and comes back with the new
//! version or with the old one.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyperion_link::{Identity, Link, LinkConfig, LinkEvent};
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{
    Hello, NodeState, Slot, SlotState, StreamMessage, UpdateOrder, UpdatePhase, UpdateProgress,
    UpdateState,
};
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::watcher::Watcher;
use super::{INTERVAL, VERSION};
use crate::link::{capabilities, telemetry};

/// Board of the devices.
pub const MACHINE: &str = "simulated-board";
/// Version that they have.
const OLD: &str = "1.0.0";
/// Time until a message that found no room is tried again.
const AGAIN: Duration = Duration::from_millis(100);

/// How long what takes a device, seconds: from, to.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    download: (f64, f64),
    install: (f64, f64),
    restart: (f64, f64),
    trial: (f64, f64),
}

impl Times {
    /// A hundredth of what a board takes.
    pub const DEFAULT: Self = Self {
        download: (0.2, 2.0),
        install: (0.2, 1.0),
        restart: (0.5, 2.0),
        trial: (0.2, 1.0),
    };
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            ("download", self.download),
            ("install", self.install),
            ("restart", self.restart),
            ("trial", self.trial),
        ];
        let all = all.map(|(name, (from, to))| format!("{name} {from} to {to} s"));
        f.write_str(&all.join(", "))
    }
}

/// A device.
pub struct Device {
    number: usize,
    /// The bundle works on it.
    good: bool,
    times: Times,
    rng: StdRng,
    watcher: Arc<Watcher>,
    /// What it says of itself; the link's hello reads it, too.
    said: Arc<Mutex<UpdateState>>,
    /// To restart as soon as it is installed.
    activate: bool,
    /// When its phase ends.
    next: Option<Instant>,
    /// It says something that the control plane does not know.
    unsaid: bool,
    came: bool,
    /// Between the order to restart and the hello after it.
    out: bool,
    sequence: u64,
}

/// Why a session ended.
enum End {
    Stopped,
    Restart,
}

impl Device {
    pub fn new(
        number: usize,
        good: bool,
        times: Times,
        rng: StdRng,
        watcher: Arc<Watcher>,
    ) -> Self {
        let slot = |name: &str, version: &str, state: SlotState| Slot {
            name: name.to_owned(),
            version: version.to_owned(),
            state: state.into(),
            running: state == SlotState::Good,
        };
        let said = UpdateState {
            machine: MACHINE.to_owned(),
            system_version: OLD.to_owned(),
            slots: vec![
                slot("a", OLD, SlotState::Good),
                slot("b", "", SlotState::Empty),
            ],
            progress: None,
        };
        Self {
            number,
            good,
            times,
            rng,
            watcher,
            said: Arc::new(Mutex::new(said)),
            activate: false,
            next: None,
            unsaid: false,
            came: false,
            out: false,
            sequence: 0,
        }
    }

    /// Runs until `stop`, through its restarts.
    pub async fn run(mut self, config: LinkConfig, identity: Identity, stop: CancellationToken) {
        for boot in 0_u32.. {
            let hello = {
                let (said, node_id) = (self.said.clone(), identity.node_id.clone());
                let out = AtomicBool::new(std::mem::take(&mut self.out));
                let watcher = self.watcher.clone();
                move || {
                    let update = said.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    // From its hello on the control plane may count it as back.
                    if out.swap(false, Ordering::Relaxed) {
                        watcher.returns();
                        if phase(&update) == Some(UpdatePhase::RolledBack) {
                            watcher.ends(false);
                        }
                    }
                    Hello {
                        boot_id: format!("{node_id}-{boot}"),
                        node_id: node_id.clone(),
                        capabilities: Some(capabilities()),
                        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
                        telemetry_interval_ms: u32::try_from(INTERVAL.as_millis())
                            .unwrap_or(u32::MAX),
                        update: Some(update),
                        ..Hello::default()
                    }
                }
            };
            let mut link = hyperion_link::start(config.clone(), identity.clone(), Arc::new(hello));
            let end = self.session(&mut link, &stop).await;
            link.close().await;
            if let End::Stopped = end {
                return;
            }
            let restart = self.some(self.times.restart);
            tokio::select! {
                () = sleep(restart) => {}
                () = stop.cancelled() => return,
            }
            if self.good {
                self.phase(UpdatePhase::Trial, "");
                self.boots(VERSION, SlotState::Trial);
                self.next = Some(Instant::now() + self.some(self.times.trial));
            } else {
                // Its agent was never ready: the boot loader took the old slot again.
                self.phase(UpdatePhase::RolledBack, "NotReadyInTime");
                self.next = None;
            }
        }
    }

    async fn session(&mut self, link: &mut Link, stop: &CancellationToken) -> End {
        let phase = self.some((0.0, INTERVAL.as_secs_f64()));
        let mut tick = tokio::time::interval_at(Instant::now() + phase, INTERVAL);
        let sender = link.sender();
        loop {
            if self.activates() {
                return End::Restart;
            }
            let idle = Instant::now() + Duration::from_secs(3600);
            let again = self.unsaid.then(|| Instant::now() + AGAIN);
            let due = self.next.into_iter().chain(again).min().unwrap_or(idle);
            tokio::select! {
                event = link.next_event() => match event {
                    Some(LinkEvent::Connected(welcome)) => {
                        self.connected();
                        if let Some(order) = welcome.update {
                            self.order(&order);
                        }
                    }
                    Some(LinkEvent::Message(message)) => match message.body {
                        Some(Body::UpdateOrder(order)) => self.order(&order),
                        Some(Body::Welcome(welcome)) => {
                            if let Some(order) = welcome.update {
                                self.order(&order);
                            }
                        }
                        _ => {}
                    },
                    Some(_) => {}
                    None => return End::Stopped,
                },
                _ = tick.tick() => {
                    self.sequence += 1;
                    let body = Body::Telemetry(telemetry(self.sequence));
                    // The next one will do.
                    let _lost = sender.try_send(StreamMessage { body: Some(body) });
                }
                () = sleep_until(due) => self.goes_on(),
                () = stop.cancelled() => return End::Stopped,
            }
            if self.unsaid {
                let state = NodeState {
                    mode: "connected".to_owned(),
                    update: Some(self.state()),
                    ..NodeState::default()
                };
                let body = Some(Body::NodeState(state));
                self.unsaid = sender.try_send(StreamMessage { body }).is_err();
            }
        }
    }

    fn connected(&mut self) {
        if !std::mem::replace(&mut self.came, true) {
            self.watcher.came();
        }
        // Hello was written before the connection was made, and may say what was so then.
        self.unsaid = true;
    }

    fn order(&mut self, order: &UpdateOrder) {
        let held = self.state().progress;
        if order.id.is_empty() {
            if waits(self.held()) {
                self.change(|said| said.progress = None);
                (self.next, self.activate) = (None, false);
            }
            return;
        }
        if held.is_none_or(|p| p.order_id != order.id) {
            let bundle = order.bundle.clone().unwrap_or_default();
            if self.held().is_some() {
                self.watcher.violated(self.number, "another order");
            }
            self.change(|said| {
                said.progress = Some(UpdateProgress {
                    order_id: order.id.clone(),
                    version: bundle.version,
                    ..UpdateProgress::default()
                });
            });
            self.phase(UpdatePhase::Downloading, "");
            self.next = Some(Instant::now() + self.some(self.times.download));
        }
        self.activate = order.activate;
    }

    /// Its phase is over.
    fn goes_on(&mut self) {
        if self.next.is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.next = None;
        match self.held() {
            Some(UpdatePhase::Downloading) => {
                self.phase(UpdatePhase::Installing, "");
                self.next = Some(Instant::now() + self.some(self.times.install));
            }
            Some(UpdatePhase::Installing) => self.phase(UpdatePhase::Installed, ""),
            Some(UpdatePhase::Trial) => {
                self.boots(VERSION, SlotState::Good);
                self.phase(UpdatePhase::Done, "");
                self.watcher.ends(true);
            }
            _ => {}
        }
    }

    /// True where it restarts now.
    fn activates(&mut self) -> bool {
        let phase = self.held();
        if !self.activate || !waits(phase) {
            return false;
        }
        self.watcher
            .begins(self.number, phase == Some(UpdatePhase::Installed));
        self.phase(UpdatePhase::Restarting, "");
        (self.activate, self.out) = (false, true);
        true
    }

    fn state(&self) -> UpdateState {
        self.said
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn held(&self) -> Option<UpdatePhase> {
        phase(&self.state())
    }

    fn change(&mut self, change: impl FnOnce(&mut UpdateState)) {
        change(&mut self.said.lock().unwrap_or_else(PoisonError::into_inner));
        self.unsaid = true;
    }

    fn phase(&mut self, phase: UpdatePhase, reason: &str) {
        self.change(|said| {
            if let Some(progress) = &mut said.progress {
                progress.phase = phase.into();
                reason.clone_into(&mut progress.reason);
            }
        });
    }

    /// It runs this version from the second slot.
    fn boots(&mut self, version: &str, state: SlotState) {
        self.change(|said| {
            version.clone_into(&mut said.system_version);
            for slot in &mut said.slots {
                slot.running = slot.name == "b";
                if slot.running {
                    version.clone_into(&mut slot.version);
                    slot.state = state.into();
                }
            }
        });
    }

    /// A time from this range.
    fn some(&mut self, (from, to): (f64, f64)) -> Duration {
        Duration::from_secs_f64(self.rng.random_range(from..to))
    }
}

/// The phase of the order that a device has.
fn phase(state: &UpdateState) -> Option<UpdatePhase> {
    state.progress.as_ref().map(UpdateProgress::phase)
}

/// It has an order, and has not restarted for it.
const fn waits(phase: Option<UpdatePhase>) -> bool {
    matches!(
        phase,
        Some(UpdatePhase::Downloading | UpdatePhase::Installing | UpdatePhase::Installed)
    )
}
