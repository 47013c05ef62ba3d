//! What is next, from every state that a device may be found in.

use hyperion_proto::agent_v1::{Bundle, BundleKind, UpdateOrder, UpdatePhase};

use super::super::bring::Failure;
use super::super::engine::{Action, EnginePhase, EngineState};
use super::super::machine::{Ready, Task, Updates};
use crate::store::KeptUpdate;

const READY: Ready = Ready {
    linked: true,
    runtime: true,
};
const ALONE: Ready = Ready {
    linked: false,
    runtime: true,
};
const NOTHING: Ready = Ready {
    linked: true,
    runtime: false,
};

fn order(id: &str, activate: bool) -> UpdateOrder {
    UpdateOrder {
        id: id.to_owned(),
        bundle: Some(Bundle {
            url: "http://a.example/b.swu".to_owned(),
            version: "2.0.0".to_owned(),
            kind: BundleKind::System.into(),
            ..Bundle::default()
        }),
        activate,
        ready_seconds: 120,
    }
}

fn engine(id: &str, phase: EnginePhase) -> Option<EngineState> {
    Some(EngineState {
        machine: "board".to_owned(),
        id: id.to_owned(),
        kind: BundleKind::System,
        phase,
        version: "2.0.0".to_owned(),
        ..EngineState::default()
    })
}

fn with_engine() -> Updates {
    let mut updates = Updates::new(KeptUpdate::default());
    updates.engine(engine("", EnginePhase::Idle));
    updates
}

/// What is asked of root's part; none where nothing is.
fn asked(updates: &Updates, ready: Ready) -> Option<Action> {
    match updates.task(ready) {
        Task::Ask { action, .. } => Some(action),
        Task::None | Task::Bring(_) => None,
    }
}

fn brings(updates: &Updates) -> bool {
    matches!(updates.task(READY), Task::Bring(_))
}

/// The agent ends, and starts again with what the store has.
fn restart(updates: &Updates, engine: Option<EngineState>) -> Updates {
    let mut next = Updates::new(updates.kept().clone());
    next.engine(engine);
    next.step(ALONE);
    next
}

/// An order up to where it waits for the restart.
fn installed() -> Updates {
    let mut updates = with_engine();
    updates.ordered(&order("u1", false)).unwrap();
    updates.brought("u1", Ok(()));
    updates.engine(engine("u1", EnginePhase::Installed));
    updates.step(READY);
    updates
}

#[test]
fn an_order_goes_its_way_and_a_restart_changes_nothing_of_it() {
    let mut updates = with_engine();
    updates.ordered(&order("u1", false)).unwrap();
    assert_eq!(updates.phase(), UpdatePhase::Downloading);
    assert!(brings(&updates) && updates.needs_bundle());
    assert!(brings(&restart(&updates, engine("", EnginePhase::Idle))));
    updates.brought_percent("u1", 57);
    assert_eq!(updates.kept().progress.as_ref().unwrap().percent, 50);
    updates.brought("other", Ok(()));
    assert!(brings(&updates), "of another order");
    updates.brought("u1", Ok(()));
    assert_eq!(asked(&updates, READY), Some(Action::Install));
    // Before root's part has heard of it, and while it wrote, the power went: the bundle may be lost, and is
    // looked at before it is asked for again.
    for cut in [
        engine("", EnginePhase::Idle),
        engine("u1", EnginePhase::Idle),
    ] {
        let mut again = restart(&updates, cut);
        assert!(brings(&again) && again.needs_bundle());
        again.brought("u1", Ok(()));
        assert_eq!(asked(&again, READY), Some(Action::Install));
    }
    updates.engine(engine("u1", EnginePhase::Installing));
    assert_eq!(updates.task(READY), Task::None);
    // The agent alone ended: root's part goes on.
    let again = restart(&updates, engine("u1", EnginePhase::Installing));
    assert_eq!(again.phase(), UpdatePhase::Installing);
    assert_eq!(again.task(READY), Task::None);
    updates.engine(engine("u1", EnginePhase::Installed));
    updates.step(READY);
    assert_eq!(updates.phase(), UpdatePhase::Installed);
    assert_eq!(updates.task(READY), Task::None, "it waits");
    assert!(!updates.needs_bundle());
    updates.ordered(&order("u1", true)).unwrap();
    updates.step(READY);
    assert_eq!(updates.phase(), UpdatePhase::Restarting);
    assert_eq!(asked(&updates, READY), Some(Action::Activate));
    // The power went before root's part had done it.
    let again = restart(&updates, engine("u1", EnginePhase::Installed));
    assert_eq!(asked(&again, READY), Some(Action::Activate));
    let mut updates = restart(&updates, engine("u1", EnginePhase::Trial));
    assert_eq!(updates.phase(), UpdatePhase::Trial);
    for not_yet in [ALONE, NOTHING] {
        assert_eq!(updates.task(not_yet), Task::None);
    }
    assert_eq!(asked(&updates, READY), Some(Action::Good));
    updates.engine(engine("u1", EnginePhase::Done));
    assert_eq!(updates.phase(), UpdatePhase::Done);
    assert_eq!(updates.task(READY), Task::None);
    updates.ordered(&order("u1", true)).unwrap();
    assert_eq!(updates.phase(), UpdatePhase::Done, "once");
}

#[test]
fn how_root_s_part_ends_an_order_is_told() {
    for (end, phase) in [
        (EnginePhase::RolledBack, UpdatePhase::RolledBack),
        (EnginePhase::Refused, UpdatePhase::Refused),
        (EnginePhase::Failed, UpdatePhase::Failed),
    ] {
        let mut updates = installed();
        let mut state = engine("u1", end).unwrap();
        "NotReady".clone_into(&mut state.reason);
        updates.engine(Some(state));
        updates.step(READY);
        let progress = updates.state().unwrap().progress.unwrap();
        assert_eq!(
            (progress.phase(), progress.reason.as_str()),
            (phase, "NotReady")
        );
        assert_eq!(updates.task(READY), Task::None);
        updates.ordered(&order("u2", false)).unwrap();
        assert!(brings(&updates), "the next one is taken");
    }
}

#[test]
fn an_order_that_was_not_activated_can_be_dropped() {
    let mut updates = installed();
    updates.ordered(&UpdateOrder::default()).unwrap();
    assert_eq!(updates.phase(), UpdatePhase::Unspecified);
    assert_eq!(asked(&updates, READY), Some(Action::Cancel));
    updates.engine(engine("", EnginePhase::Idle));
    assert_eq!(updates.task(READY), Task::None);
    // One that waits for another is dropped for it.
    let mut updates = installed();
    updates.ordered(&order("u2", true)).unwrap();
    assert_eq!(asked(&updates, READY), Some(Action::Cancel));
    updates.engine(engine("", EnginePhase::Idle));
    assert!(brings(&updates));
}

#[test]
fn an_update_that_a_factory_reset_forgot_is_cancelled_or_never_called_good() {
    let mut updates = Updates::new(KeptUpdate::default());
    for (phase, asks) in [
        (EnginePhase::Installing, None),
        (EnginePhase::Installed, Some(Action::Cancel)),
        (EnginePhase::Trial, None),
        (EnginePhase::RolledBack, None),
    ] {
        updates.engine(engine("of-the-fleet-before", phase));
        updates.step(READY);
        assert_eq!(asked(&updates, READY), asks, "{phase:?}");
        assert_eq!(updates.state().unwrap().progress, None, "{phase:?}");
    }
}

#[test]
fn what_is_on_trial_ends_before_anything_else() {
    let mut updates = installed();
    updates.ordered(&order("u1", true)).unwrap();
    updates.step(READY);
    updates.engine(engine("u1", EnginePhase::Trial));
    updates.ordered(&UpdateOrder::default()).unwrap();
    assert_eq!(updates.phase(), UpdatePhase::Trial);
    updates.ordered(&order("u2", false)).unwrap();
    updates.ordered(&order("u1", false)).unwrap();
    updates.step(READY);
    assert_eq!(asked(&updates, READY), Some(Action::Good));
    updates.engine(engine("u1", EnginePhase::Done));
    updates.step(READY);
    assert!(brings(&updates), "then the next");
}

#[test]
fn a_restart_can_be_put_off_until_it_was_asked_for() {
    let mut updates = installed();
    updates.engine(engine("u1", EnginePhase::Installing));
    updates.ordered(&order("u1", true)).unwrap();
    updates.ordered(&order("u1", false)).unwrap();
    updates.engine(engine("u1", EnginePhase::Installed));
    updates.step(READY);
    assert_eq!(updates.phase(), UpdatePhase::Installed);
}

#[test]
fn a_node_without_slots_says_so() {
    let mut updates = Updates::new(KeptUpdate::default());
    assert_eq!(updates.state(), None);
    updates.ordered(&order("u1", false)).unwrap();
    let progress = updates.state().unwrap().progress.unwrap();
    assert_eq!(progress.phase(), UpdatePhase::Refused);
    assert_eq!(progress.reason, "NoEngine");
    // It can have its agent updated.
    updates.engine(Some(EngineState::default()));
    updates.ordered(&order("u2", false)).unwrap();
    assert_eq!(updates.phase(), UpdatePhase::Refused);
    let mut agent = order("u3", false);
    agent.bundle.as_mut().unwrap().kind = BundleKind::Agent.into();
    updates.ordered(&agent).unwrap();
    assert!(brings(&updates));
}

#[test]
fn the_agent_before_a_new_one_does_not_call_that_good() {
    let on_trial = |version: &str| {
        let engine = engine("u1", EnginePhase::Trial);
        engine.map(|e| EngineState {
            kind: BundleKind::Agent,
            version: version.to_owned(),
            ..e
        })
    };
    let mut updates = with_engine();
    let mut agent = order("u1", true);
    agent.bundle.as_mut().unwrap().kind = BundleKind::Agent.into();
    updates.ordered(&agent).unwrap();
    updates.engine(on_trial("99.0.0"));
    assert_eq!(updates.phase(), UpdatePhase::Trial);
    assert_eq!(updates.task(READY), Task::None);
    updates.engine(on_trial(crate::version()));
    assert_eq!(asked(&updates, READY), Some(Action::Good));
}

#[test]
fn an_order_that_is_wrong_changes_nothing() {
    let mut updates = installed();
    let before = updates.kept().clone();
    let mut bad = order("u2", true);
    "ftp://a.example".clone_into(&mut bad.bundle.as_mut().unwrap().url);
    let error = updates.ordered(&bad).unwrap_err().to_string();
    assert!(error.contains("update_order.bundle.url"), "{error}");
    assert_eq!(updates.kept(), &before);
}

#[test]
fn a_bundle_that_can_t_be_had_fails_the_order() {
    let mut updates = with_engine();
    updates.ordered(&order("u1", true)).unwrap();
    let failure = Failure {
        reason: "NotFound",
        message: "status 404".to_owned(),
    };
    updates.brought("u1", Err(failure));
    updates.step(READY);
    assert_eq!(updates.phase(), UpdatePhase::Failed);
    assert_eq!(updates.task(READY), Task::None);
}

#[test]
fn root_s_part_that_lost_its_notes_is_no_trap() {
    let mut updates = installed();
    updates.engine(engine("", EnginePhase::Idle));
    assert!(brings(&updates), "it is installed again");
    let mut updates = installed();
    updates.ordered(&order("u1", true)).unwrap();
    updates.step(READY);
    updates.engine(engine("", EnginePhase::Idle));
    assert_eq!(updates.phase(), UpdatePhase::Failed);
}

#[test]
fn a_person_s_order_is_not_the_control_plane_s_to_drop() {
    let mut updates = with_engine();
    updates.ordered_here(&order("local-1", true)).unwrap();
    updates.ordered(&UpdateOrder::default()).unwrap();
    assert!(brings(&updates));
    assert!(
        updates.ordered_here(&order("local-2", true)).is_err(),
        "one at a time"
    );
    updates.brought("local-1", Ok(()));
    updates.engine(engine("local-1", EnginePhase::Installed));
    // A device that is never online is Ready without a link; one that had a link needs it again.
    updates.step(ALONE);
    updates.engine(engine("local-1", EnginePhase::Trial));
    assert_eq!(asked(&updates, ALONE), Some(Action::Good));
    let mut online = with_engine();
    online.ordered_here(&order("local-1", true)).unwrap();
    online.brought("local-1", Ok(()));
    online.engine(engine("local-1", EnginePhase::Installed));
    online.step(READY);
    online.engine(engine("local-1", EnginePhase::Trial));
    assert_eq!(online.task(ALONE), Task::None);
}
