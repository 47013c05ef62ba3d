//! What a node says of its versions, slots and update, made sane for its status.

use hyperion_api::node::HyperionNodeStatus;
use hyperion_api::update::{NodeSlot, NodeUpdate, SlotState, UpdatePhase, UpdateProgress};
use hyperion_proto::agent_v1 as wire;

use crate::service::printable as text;

/// Slots of one node that are taken.
const SLOTS: usize = 8;
/// Longest name, version or reason, characters.
const WORD: usize = 128;
/// Longest message, characters.
const MESSAGE: usize = 512;
/// A download is noted in steps of so many per cent: each is a write to the API.
const STEP: u32 = 10;

fn slot_state(state: wire::SlotState) -> SlotState {
    match state {
        wire::SlotState::Unspecified => SlotState::Unknown,
        wire::SlotState::Good => SlotState::Good,
        wire::SlotState::Bad => SlotState::Bad,
        wire::SlotState::Trial => SlotState::Trial,
        wire::SlotState::Empty => SlotState::Empty,
    }
}

fn phase(phase: wire::UpdatePhase) -> UpdatePhase {
    match phase {
        wire::UpdatePhase::Unspecified => UpdatePhase::Unknown,
        wire::UpdatePhase::Downloading => UpdatePhase::Downloading,
        wire::UpdatePhase::Installing => UpdatePhase::Installing,
        wire::UpdatePhase::Installed => UpdatePhase::Installed,
        wire::UpdatePhase::Restarting => UpdatePhase::Restarting,
        wire::UpdatePhase::Trial => UpdatePhase::Trial,
        wire::UpdatePhase::Done => UpdatePhase::Done,
        wire::UpdatePhase::RolledBack => UpdatePhase::RolledBack,
        wire::UpdatePhase::Refused => UpdatePhase::Refused,
        wire::UpdatePhase::Failed => UpdatePhase::Failed,
    }
}

/// What a node says, bounded: what is too long is cut, what is too much is left out.
#[must_use]
pub fn read(said: &wire::UpdateState) -> NodeUpdate {
    let slot = |slot: &wire::Slot| NodeSlot {
        name: text(&slot.name, WORD),
        version: text(&slot.version, WORD),
        state: slot_state(slot.state()),
        running: slot.running,
    };
    let progress = |p: &wire::UpdateProgress| UpdateProgress {
        order: text(&p.order_id, WORD),
        phase: phase(p.phase()),
        percent: p.percent.min(100) / STEP * STEP,
        reason: text(&p.reason, WORD),
        message: text(&p.message, MESSAGE),
        version: text(&p.version, WORD),
    };
    NodeUpdate {
        machine: text(&said.machine, WORD),
        system_version: text(&said.system_version, WORD),
        slots: said.slots.iter().take(SLOTS).map(slot).collect(),
        progress: said.progress.as_ref().map(progress),
    }
}

/// Notes it in the node's status; true where that is new.
pub fn note(status: &mut HyperionNodeStatus, update: &NodeUpdate) -> bool {
    if status.update.as_ref() == Some(update) {
        return false;
    }
    status.update = Some(update.clone());
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_is_cut_and_what_is_new_is_noted_once() {
        let slot = wire::Slot {
            name: "a\u{1b}[31m".to_owned(),
            version: "x".repeat(100_000),
            state: 99,
            running: true,
        };
        let progress = wire::UpdateProgress {
            order_id: "1".to_owned(),
            phase: -7,
            percent: u32::MAX,
            reason: "No\nSuch".to_owned(),
            message: "ü".repeat(100_000),
            version: String::new(),
        };
        let mut said = wire::UpdateState {
            machine: "\0board".to_owned(),
            slots: vec![slot; 1000],
            progress: Some(progress),
            ..wire::UpdateState::default()
        };
        let held = read(&said);
        assert_eq!((held.machine.as_str(), held.slots.len()), ("board", SLOTS));
        assert_eq!(held.slots[0].name, "a[31m");
        assert_eq!(held.slots[0].version.len(), WORD);
        assert_eq!(held.slots[0].state, SlotState::Unknown);
        let progress = held.progress.unwrap();
        assert_eq!(
            (progress.phase, progress.percent),
            (UpdatePhase::Unknown, 100)
        );
        assert_eq!(progress.reason, "NoSuch");
        assert_eq!(progress.message.chars().count(), MESSAGE);
        let mut status = HyperionNodeStatus::default();
        assert!(note(&mut status, &read(&said)));
        assert!(!note(&mut status, &read(&said)));
        // A few per cent more are not worth a write.
        said.progress.as_mut().unwrap().percent = 41;
        assert!(note(&mut status, &read(&said)));
        said.progress.as_mut().unwrap().percent = 49;
        assert!(!note(&mut status, &read(&said)));
    }
}
