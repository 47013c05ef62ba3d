//! Orders, root's part by its files, and servers that cut, lie and send on.

mod bring;
mod machine;

use std::fs;
use std::time::Instant;

use hyperion_proto::agent_v1::{BundleKind, SlotState};

use super::engine::EnginePhase;
use super::*;

const STATUS: &str = "machine=board\nsystem_version=1.0.0\nrunning=A\npercent=40\nslot_a_version=1.0.0\n\
slot_a_state=good\nslot_b_version=2.0.0\nslot_b_state=trial\nid=u1\nkind=system\nphase=installing\nreason=\n\
message=\nversion=2.0.0\ntarget=B\nready_seconds=300\nprevious=\nwhy=\nend\n";

#[test]
fn a_status_is_read_whole_or_not_at_all() {
    let state = EngineState::parse(STATUS).unwrap();
    assert_eq!((state.machine.as_str(), state.percent), ("board", 40));
    assert_eq!(state.phase, EnginePhase::Installing);
    assert_eq!(state.kind, BundleKind::System);
    let slots: Vec<_> = state
        .slots
        .iter()
        .map(|s| (s.name.as_str(), s.state(), s.running))
        .collect();
    assert_eq!(
        slots,
        [("A", SlotState::Good, true), ("B", SlotState::Trial, false)]
    );
    for cut in 0..STATUS.len() - 4 {
        assert_eq!(EngineState::parse(&STATUS[..cut]), None, "{cut}");
    }
    for odd in [
        "",
        "end",
        "phase=flying\npercent=x\nend",
        "====\n\nend",
        "\u{1b}[2J\nend",
    ] {
        let state = EngineState::parse(odd);
        assert!(
            state.is_none_or(|s| s.phase == EnginePhase::Idle && s.slots.is_empty()),
            "{odd:?}"
        );
    }
    let escape = EngineState::parse("message=a\u{1b}[31mb\nend\n").unwrap();
    assert_eq!(escape.message, "a[31mb");
}

#[test]
fn a_device_without_roots_part_has_no_state() {
    let dir = tempfile::tempdir().unwrap();
    let root = RootPart::new(dir.path(), &dir.path().join("update"));
    assert_eq!(root.read(), None);
    fs::create_dir_all(dir.path().join("run/hyperion-update/status")).unwrap();
    assert_eq!(root.read(), None, "a folder");
}

fn ask(action: Action, url: &str) -> Task {
    Task::Ask {
        action,
        id: "u1".to_owned(),
        kind: BundleKind::Agent,
        url: url.to_owned(),
        ready_seconds: 60,
    }
}

#[tokio::test]
async fn a_request_is_made_once_and_again_only_when_nothing_came_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut worker = Worker::new(dir.path(), dir.path());
    let request = dir.path().join("update/request");
    let at = Instant::now();
    let task = ask(Action::Install, "https://a.example/b.swu");
    worker.follow(task.clone(), true, at);
    let text = fs::read_to_string(&request).unwrap();
    let bundle = dir.path().join("update/u1.swu");
    let expected = format!(
        "do=install\nid=u1\nkind=agent\nbundle={}\nready-seconds=60\nend\n",
        bundle.display()
    );
    assert_eq!(text, expected);
    // Root's part takes it.
    fs::remove_file(&request).unwrap();
    worker.follow(task.clone(), true, at + std::time::Duration::from_secs(1));
    assert!(!request.exists(), "it was asked for already");
    worker.follow(task.clone(), true, at + std::time::Duration::from_secs(60));
    assert!(request.exists(), "nothing came of it");
    // One that was not taken is not replaced.
    worker.follow(ask(Action::Good, ""), false, at);
    assert_eq!(fs::read_to_string(&request).unwrap(), expected);
}

#[tokio::test]
async fn bundles_go_when_nobody_needs_them_and_nothing_else_does() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("update");
    fs::create_dir_all(&folder).unwrap();
    for name in ["u0.swu", "u1.part", "request", "notes.txt"] {
        fs::write(folder.join(name), "x").unwrap();
    }
    let mut worker = Worker::new(dir.path(), dir.path());
    worker.follow(ask(Action::Good, ""), true, Instant::now());
    assert!(folder.join("u0.swu").exists());
    worker.follow(Task::None, false, Instant::now());
    let mut left: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["notes.txt", "request"]);
}
