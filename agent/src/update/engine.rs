//! Root's part, as the agent sees it: a file that tells how things are, and one that asks for
//! something. Both are lines of `name=value` and end with the line `end`; one without it was not
//! written to its end.

use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use hyperion_proto::agent_v1::{BundleKind, Slot, SlotState, UpdateProgress};

/// Longest status file that is read, bytes.
const LONGEST: u64 = 16 * 1024;

/// Where root's part is with its last request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EnginePhase {
    /// Nothing goes on.
    #[default]
    Idle,
    /// It verifies and writes.
    Installing,
    /// Beside what runs.
    Installed,
    /// The machine goes down.
    Restarting,
    /// Runs, and nobody has called it good.
    Trial,
    /// Is good.
    Done,
    /// Was taken back.
    RolledBack,
    /// Would be refused again.
    Refused,
    /// May be tried again.
    Failed,
}

/// What root's part tells.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EngineState {
    /// Board that bundles have to name; empty where the system can't be updated as a whole.
    pub machine: String,
    /// Of the system that runs.
    pub system_version: String,
    /// Both slots, where there are such.
    pub slots: Vec<Slot>,
    /// Of the last request.
    pub id: String,
    /// Of the last request.
    pub kind: BundleKind,
    /// Where it is.
    pub phase: EnginePhase,
    /// Of installing.
    pub percent: u32,
    /// CamelCase; empty where all goes well.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Of the bundle; empty before it was read.
    pub version: String,
}

impl EngineState {
    /// Reads a status; none where it was not written to its end.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut state = Self::default();
        let (mut a, mut b) = (Slot::default(), Slot::default());
        let mut running = "";
        let mut lines = text.lines();
        loop {
            let line = lines.next()?;
            if line == "end" {
                break;
            }
            let Some((name, value)) = line.split_once('=') else {
                continue;
            };
            let text = || {
                value
                    .chars()
                    .filter(|c| !c.is_control())
                    .take(300)
                    .collect()
            };
            match name {
                "machine" => state.machine = text(),
                "system_version" => state.system_version = text(),
                "running" => running = value,
                "slot_a_version" => a.version = text(),
                "slot_b_version" => b.version = text(),
                "slot_a_state" => a.state = slot_state(value).into(),
                "slot_b_state" => b.state = slot_state(value).into(),
                "id" => state.id = text(),
                "kind" => state.kind = kind(value),
                "phase" => state.phase = phase(value),
                "percent" => state.percent = value.parse().unwrap_or(0).min(100),
                "reason" => state.reason = text(),
                "message" => state.message = text(),
                "version" => state.version = text(),
                _ => {}
            }
        }
        for (name, mut slot) in [("A", a), ("B", b)] {
            if slot.state() != SlotState::Unspecified {
                slot.running = running == name;
                slot.name = name.to_owned();
                state.slots.push(slot);
            }
        }
        Some(state)
    }

    /// Copies how the request went.
    pub fn tell(&self, progress: &mut UpdateProgress) {
        progress.reason.clone_from(&self.reason);
        progress.message.clone_from(&self.message);
        if !self.version.is_empty() {
            progress.version.clone_from(&self.version);
        }
    }
}

fn slot_state(word: &str) -> SlotState {
    match word {
        "good" => SlotState::Good,
        "bad" => SlotState::Bad,
        "trial" => SlotState::Trial,
        "empty" => SlotState::Empty,
        _ => SlotState::Unspecified,
    }
}

fn kind(word: &str) -> BundleKind {
    match word {
        "system" => BundleKind::System,
        "agent" => BundleKind::Agent,
        _ => BundleKind::Unspecified,
    }
}

fn phase(word: &str) -> EnginePhase {
    match word {
        "installing" => EnginePhase::Installing,
        "installed" => EnginePhase::Installed,
        "restarting" => EnginePhase::Restarting,
        "trial" => EnginePhase::Trial,
        "done" => EnginePhase::Done,
        "rolled-back" => EnginePhase::RolledBack,
        "refused" => EnginePhase::Refused,
        "failed" => EnginePhase::Failed,
        _ => EnginePhase::Idle,
    }
}

/// What root's part can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Verify this bundle, and install it beside what runs.
    Install,
    /// Restart into what was installed.
    Activate,
    /// What is on trial is good.
    Good,
    /// What was installed is not to be activated.
    Cancel,
}

/// A request to root's part.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What.
    pub action: Action,
    /// Of the order.
    pub id: String,
    /// Of the bundle.
    pub kind: BundleKind,
    /// Where the bundle is; of [`Action::Install`].
    pub bundle: PathBuf,
    /// Time to be called good after the restart; of [`Action::Activate`].
    pub ready_seconds: u32,
}

impl Request {
    fn text(&self) -> String {
        let action = match self.action {
            Action::Install => "install",
            Action::Activate => "activate",
            Action::Good => "good",
            Action::Cancel => "cancel",
        };
        let kind = match self.kind {
            BundleKind::Agent => "agent",
            BundleKind::System | BundleKind::Unspecified => "system",
        };
        format!(
            "do={action}\nid={}\nkind={kind}\nbundle={}\nready-seconds={}\nend\n",
            self.id,
            self.bundle.display(),
            self.ready_seconds
        )
    }
}

/// The files that the agent and root's part share.
#[derive(Debug, Clone)]
pub struct RootPart {
    status: PathBuf,
    folder: PathBuf,
}

impl RootPart {
    /// Of a machine with this root; `folder` is the agent's own for updates.
    #[must_use]
    pub fn new(root: &Path, folder: &Path) -> Self {
        Self {
            status: root.join("run/hyperion-update/status"),
            folder: folder.to_owned(),
        }
    }

    /// How things are; none where root's part is not there.
    #[must_use]
    pub fn read(&self) -> Option<EngineState> {
        let file = std::fs::File::open(&self.status).ok()?;
        let mut text = String::new();
        file.take(LONGEST).read_to_string(&mut text).ok()?;
        EngineState::parse(&text)
    }

    /// Asks for something, unless the last request has not been taken yet.
    ///
    /// # Errors
    /// The folder can't be written.
    pub fn ask(&self, request: &Request) -> std::io::Result<()> {
        let path = self.folder.join("request");
        let new = self.folder.join("request.new");
        std::fs::create_dir_all(&self.folder)?;
        match std::fs::symlink_metadata(&path) {
            Ok(_) => return Ok(()),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        // Not synced: after a power cut it is made again.
        let mut file = std::fs::File::create(&new)?;
        file.write_all(request.text().as_bytes())?;
        std::fs::rename(&new, &path)
    }
}
