use super::*;

const AFTER: Duration = Duration::from_secs(5);
const NOBODY: Evidence<'static> = Evidence {
    linked_peer: None,
    untaken: false,
};

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn connected() -> Machine {
    let mut machine = Machine::new(at(0), AFTER);
    machine.link_up(at(1));
    machine.welcomed(true, at(1), NOBODY);
    assert_eq!(machine.mode(), Mode::Connected);
    machine
}

#[test]
fn a_node_that_starts_without_link_helps_itself_after_a_while() {
    let mut machine = Machine::new(at(0), AFTER);
    assert_eq!(machine.mode(), Mode::Suspect);
    assert_eq!(machine.next_wake(NOBODY), Some(at(5)));
    assert_eq!(machine.look(at(4), NOBODY), None);
    let changed = machine.look(at(5), NOBODY).unwrap();
    assert_eq!(
        (changed.from, changed.to),
        (Mode::Suspect, Mode::Autonomous)
    );
    assert_eq!(machine.next_wake(NOBODY), None);
}

#[test]
fn one_broken_uplink_is_not_a_dead_control_plane() {
    let mut machine = connected();
    machine.link_down(at(10));
    let peer = Evidence {
        linked_peer: Some("edge-2"),
        untaken: false,
    };
    for second in 10..100 {
        machine.look(at(second), peer);
        assert_eq!(machine.mode(), Mode::Suspect);
    }
    assert_eq!(machine.next_wake(peer), None);
    // From when the peer lost it, too.
    machine.look(at(103), NOBODY);
    assert_eq!(machine.mode(), Mode::Suspect);
    machine.look(at(104), NOBODY);
    assert_eq!(machine.mode(), Mode::Autonomous);
    machine.look(at(110), peer);
    assert_eq!(machine.mode(), Mode::Suspect);
}

#[test]
fn a_link_that_flaps_without_a_welcome_is_no_contact() {
    let mut machine = connected();
    machine.link_down(at(10));
    let mut autonomous = false;
    for second in 10..16 {
        machine.link_up(at(second));
        machine.look(at(second), NOBODY);
        autonomous |= machine.mode() == Mode::Autonomous;
        machine.link_down(at(second));
        machine.look(at(second), NOBODY);
        autonomous |= machine.mode() == Mode::Autonomous;
    }
    assert!(autonomous);
}

#[test]
fn a_link_that_flaps_with_a_welcome_keeps_the_site_from_deciding() {
    let mut machine = connected();
    for second in 10..60 {
        if second % 4 == 0 {
            machine.link_up(at(second));
            machine.welcomed(true, at(second), NOBODY);
        } else {
            machine.link_down(at(second));
        }
        machine.look(at(second), NOBODY);
        assert_ne!(machine.mode(), Mode::Autonomous);
    }
}

#[test]
fn a_refused_node_never_decides() {
    let mut machine = connected();
    machine.refused("revoked", at(10));
    machine.link_down(at(11));
    machine.look(at(1000), NOBODY);
    assert_eq!(machine.mode(), Mode::Suspect);
    machine.link_up(at(1001));
    machine.welcomed(true, at(1001), NOBODY);
    assert_eq!(machine.mode(), Mode::Connected);
}

#[test]
fn returns_through_reconciling_until_all_is_taken() {
    let mut machine = connected();
    machine.link_down(at(10));
    machine.look(at(15), NOBODY);
    assert_eq!(machine.mode(), Mode::Autonomous);
    machine.link_up(at(20));
    assert_eq!(machine.mode(), Mode::Reconciling);
    let waiting = Evidence {
        untaken: true,
        ..NOBODY
    };
    machine.welcomed(false, at(21), waiting);
    assert_eq!(machine.mode(), Mode::Reconciling);
    machine.look(at(22), NOBODY);
    assert_eq!(
        machine.mode(),
        Mode::Reconciling,
        "the list was not complete"
    );
    machine.welcomed(true, at(23), waiting);
    assert_eq!(machine.mode(), Mode::Reconciling, "not all is taken");
    machine.look(at(24), NOBODY);
    assert_eq!(machine.mode(), Mode::Connected);
    machine.look(at(25), waiting);
    assert_eq!(
        machine.mode(),
        Mode::Reconciling,
        "a peer brought a decision"
    );
}

#[test]
fn a_link_that_waits_for_its_welcome_is_no_reason_to_decide() {
    let mut machine = connected();
    machine.link_down(at(10));
    machine.look(at(100), NOBODY);
    assert_eq!(machine.mode(), Mode::Autonomous);
    machine.link_up(at(100));
    assert_eq!(machine.look(at(101), NOBODY), None);
    assert_eq!(machine.mode(), Mode::Reconciling);
    assert_eq!(machine.own_contact(at(101)), at(10));
    machine.link_down(at(102));
    assert_eq!(machine.look(at(110), NOBODY).unwrap().to, Mode::Autonomous);
}
