//! An order on its way through the node: on disk before it is acted on, and told.

use hyperion_proto::agent_v1::{Bundle, BundleKind, UpdateOrder, UpdatePhase, UpdateState};

use super::*;
use crate::supervisor::{RuntimeState, SupervisorEvent};
use crate::update::{Action, EnginePhase, EngineState, Task, Told};

fn order(activate: bool) -> UpdateOrder {
    UpdateOrder {
        id: "u1".to_owned(),
        bundle: Some(Bundle {
            url: "http://a.example/b.swu".to_owned(),
            version: "2.0.0".to_owned(),
            kind: BundleKind::System.into(),
            ..Bundle::default()
        }),
        activate,
        ready_seconds: 60,
    }
}

fn engine(phase: EnginePhase) -> Option<EngineState> {
    Some(EngineState {
        machine: "board".to_owned(),
        id: match phase {
            EnginePhase::Idle => String::new(),
            _ => "u1".to_owned(),
        },
        phase,
        reason: match phase {
            EnginePhase::RolledBack => "NotReady".to_owned(),
            _ => String::new(),
        },
        ..EngineState::default()
    })
}

impl Alone {
    fn engine(&mut self, phase: EnginePhase) {
        let now = self.now();
        self.node.update_engine(engine(phase), now, &self.out);
    }

    /// What was told last of the update.
    fn told(&self) -> Option<UpdateState> {
        let told = self.out.take();
        told.into_iter().rev().find_map(|body| match body {
            Body::NodeState(state) => state.update,
            _ => None,
        })
    }

    fn told_phase(&self) -> UpdatePhase {
        self.told().unwrap().progress.unwrap().phase()
    }
}

fn asks(node: &Node<Fake>, what: Action) -> bool {
    matches!(node.update_task(), Task::Ask { action, .. } if action == what)
}

#[test]
fn an_order_survives_restarts_and_ends_with_an_event() {
    let disk = Disk::default();
    let mut alone = Alone::new(config("a"), disk.store());
    alone.engine(EnginePhase::Idle);
    let hello = alone.connect(&Welcome {
        update: Some(order(false)),
        ..Welcome::default()
    });
    let state = hello.update.unwrap();
    assert_eq!((state.machine.as_str(), state.progress), ("board", None));
    alone.pass(Duration::from_secs(1));
    assert_eq!(alone.told_phase(), UpdatePhase::Downloading);
    assert!(matches!(alone.node.update_task(), Task::Bring(_)));
    let now = alone.now();
    let told = Told::Brought("u1".to_owned(), Ok(()));
    alone.node.update_told(told, now, &alone.out);
    assert!(asks(&alone.node, Action::Install));
    alone.engine(EnginePhase::Installed);
    assert_eq!(alone.told_phase(), UpdatePhase::Installed);
    alone.hear(Body::UpdateOrder(order(true)));
    assert!(asks(&alone.node, Action::Activate));
    drop(alone);

    // The machine restarts into it.
    let mut alone = Alone::new(config("a"), disk.store());
    alone.engine(EnginePhase::Trial);
    alone.connect(&Welcome::default());
    assert_eq!(
        alone.node.update_task(),
        Task::None,
        "no runtime has answered"
    );
    let answers = RuntimeState::Available {
        name: "fake".to_owned(),
        version: "1".to_owned(),
    };
    let now = alone.now();
    let event = SupervisorEvent::Runtime(answers);
    alone.node.supervisor([event], now, &alone.out);
    assert!(asks(&alone.node, Action::Good));
    alone.disconnect();
    assert_eq!(alone.node.update_task(), Task::None, "the link is lost");
    alone.connect(&Welcome::default());
    alone.engine(EnginePhase::Done);
    assert_eq!(alone.told_phase(), UpdatePhase::Done);
    assert!(alone.events().contains(&"Updated".to_owned()));
    assert_eq!(alone.node.update_task(), Task::None);
}

#[test]
fn a_rollback_is_told_with_its_reason_by_what_ran_before() {
    let disk = Disk::default();
    let mut alone = Alone::new(config("a"), disk.store());
    alone.engine(EnginePhase::Idle);
    alone.connect(&Welcome {
        update: Some(order(true)),
        ..Welcome::default()
    });
    let now = alone.now();
    let told = Told::Brought("u1".to_owned(), Ok(()));
    alone.node.update_told(told, now, &alone.out);
    alone.engine(EnginePhase::Installed);
    drop(alone);
    let mut alone = Alone::new(config("a"), disk.store());
    alone.engine(EnginePhase::RolledBack);
    let progress = alone.node.hello().update.unwrap().progress.unwrap();
    assert_eq!(progress.phase(), UpdatePhase::RolledBack);
    assert_eq!(progress.reason, "NotReady");
    assert!(alone.events().contains(&"UpdateRolledBack".to_owned()));
}

#[test]
fn an_order_that_is_wrong_is_an_event_and_nothing_else() {
    let mut alone = Alone::fresh("a");
    alone.engine(EnginePhase::Idle);
    alone.connect(&Welcome::default());
    let mut bad = order(true);
    "../../etc".clone_into(&mut bad.id);
    alone.hear(Body::UpdateOrder(bad));
    assert_eq!(alone.node.update_task(), Task::None);
    assert!(alone.events().contains(&"UpdateOrderRefused".to_owned()));
}
