//! The TUI as a whole: what keys, clicks and changes do to the screen, golden screens, and that no
//! input can break the drawing.

use std::path::PathBuf;
use std::sync::OnceLock;

use proptest::prelude::*;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Color;

use super::draw::draw;
use super::event::{Action, Channel, Event, Key};
use super::layout::Areas;
use super::simulate::Simulation;
use super::state::{Options, State, Subject, Tab};
use crate::fleet::live::LiveSample;
use crate::fleet::{Change, Condition, Happening, Node, Placement, Rollout, Workload};

/// 2025-06-15 13:20 UTC.
const NOW: i64 = 1_750_000_000_000;

fn options() -> Options {
    Options {
        colour: true,
        server: "https://fleet.example:6443/".to_owned(),
        ..Options::default()
    }
}

/// A minute of a fleet with this many nodes.
fn simulated(nodes: usize) -> State {
    let mut simulation = Simulation::new(7, nodes, NOW - 60_000);
    let mut state = State::new(options(), (80, 24), NOW - 60_000);
    for change in simulation.all() {
        state.handle(Event::Change(change), NOW - 60_000);
    }
    for second in (0..60).rev() {
        let now_ms = NOW - second * 1000;
        for change in simulation.step(now_ms) {
            state.handle(Event::Change(change), now_ms);
        }
        for channel in [Channel::Api, Channel::Live] {
            state.handle(Event::Reached(channel), now_ms);
        }
        state.settle();
    }
    state
}

fn small() -> State {
    static STATE: OnceLock<State> = OnceLock::new();
    STATE.get_or_init(|| simulated(200)).clone()
}

fn press(state: &mut State, keys: &[Key]) {
    for key in keys {
        state.settle();
        state.handle(Event::Key(*key), NOW);
    }
    state.settle();
}

fn type_text(state: &mut State, text: &str) {
    let keys: Vec<Key> = text.chars().map(Key::Char).collect();
    press(state, &keys);
}

fn screen(state: &State) -> Buffer {
    let mut buffer = Buffer::empty(Rect::new(0, 0, state.size.0, state.size.1));
    draw(state, &mut buffer);
    buffer
}

/// What a person reads, without blanks at the ends of lines.
fn text(state: &State) -> String {
    let buffer = screen(state);
    let mut text = String::new();
    for y in 0..buffer.area.height {
        let mut line = String::new();
        let mut skip = 0;
        for x in 0..buffer.area.width {
            // The second half of a wide character is not there.
            if skip > 0 {
                skip -= 1;
                continue;
            }
            let symbol = buffer[(x, y)].symbol();
            skip = crate::text::width(symbol).saturating_sub(1);
            line.push_str(symbol);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn with_size(mut state: State, size: (u16, u16)) -> State {
    state.handle(
        Event::Resize {
            width: size.0,
            height: size.1,
        },
        NOW,
    );
    state.settle();
    state
}

#[test]
fn rollouts_are_on_the_first_screen_and_slots_in_the_details_of_a_node() {
    let rollout = |name: &str, done| Rollout {
        name: name.to_owned(),
        version: "2.0".to_owned(),
        wave: "2/3".to_owned(),
        reason: "NodesOffline".to_owned(),
        nodes: 1000,
        done,
        failed: 3,
        ..Rollout::default()
    };
    for size in [(80, 24), (200, 50)] {
        let mut state = with_size(small(), size);
        assert!(!text(&state).contains("ROLLOUTS"));
        let rows = vec![rollout("old\u{1b}[2J", 1000), rollout("v2", 230)];
        state.handle(Event::Change(Change::Rollouts(rows)), NOW);
        state.settle();
        let shown = text(&state);
        for part in [
            "ROLLOUTS",
            "v2 2.0",
            "Progressing",
            "230/1000",
            "wave 2/3",
            "3 failed",
        ] {
            assert!(shown.contains(part), "{part} at {size:?}: {shown}");
        }
        state.handle(Event::Change(Change::RolloutGone("v2".to_owned())), NOW);
        state.settle();
        assert!(!text(&state).contains("230/1000"));

        let node = Node {
            id: "press".to_owned(),
            system: "1.0 for board".to_owned(),
            slots: vec!["a: 1.0 Good, runs".to_owned(), "b: 2.0 Bad".to_owned()],
            update: "2.0 RolledBack: NotReadyInTime".to_owned(),
            ..Node::default()
        };
        state.handle(Event::Change(Change::Node(Box::new(node))), NOW);
        type_text(&mut state, "2/press");
        press(&mut state, &[Key::Enter, Key::Enter]);
        let shown = text(&state);
        for part in [
            "1.0 for board",
            "a: 1.0 Good, runs · b: 2.0 Bad",
            "NotReadyInTime",
        ] {
            assert!(shown.contains(part), "{part} at {size:?}: {shown}");
        }
    }
}

// Keys and clicks.

#[test]
fn digits_and_tab_walk_through_the_views() {
    let mut state = small();
    for (i, tab) in Tab::ALL.into_iter().enumerate() {
        type_text(&mut state, &(i + 1).to_string());
        assert_eq!(state.tab, tab);
    }
    press(&mut state, &[Key::Tab]);
    assert_eq!(state.tab, Tab::Overview);
    press(&mut state, &[Key::BackTab]);
    assert_eq!(state.tab, Tab::Events);
}

#[test]
fn a_filter_narrows_while_it_is_typed_and_esc_brings_back_what_was() {
    let mut state = small();
    type_text(&mut state, "2/aws");
    let narrowed = state.table().len();
    assert!(narrowed > 0 && narrowed < 200);
    assert!(text(&state).contains("/aws"));
    press(&mut state, &[Key::Esc]);
    assert_eq!(state.table().len(), 200);
    type_text(&mut state, "/qqqq");
    assert!(text(&state).contains("Nothing matches the filter \"qqqq\""));
    press(&mut state, &[Key::Enter, Key::Esc]);
    assert_eq!(state.table().len(), 200);
}

#[test]
fn letters_in_a_filter_are_not_commands() {
    let mut state = small();
    type_text(&mut state, "2/q?2");
    assert_eq!(
        (state.tab, state.table().filter.as_str()),
        (Tab::Nodes, "q?2")
    );
    assert!(!state.help);
}

#[test]
fn column_keys_sort_and_sort_the_other_way_round() {
    let mut state = small();
    type_text(&mut state, "2d");
    let price = |state: &State| {
        let slot = state.tables.nodes.visible(1)[0];
        state.fleet.nodes.at(slot).unwrap().price
    };
    assert_eq!(price(&state), 3.673);
    type_text(&mut state, "d");
    assert_eq!(price(&state), 0.0);
}

#[test]
fn a_click_on_a_heading_sorts_by_it() {
    let mut state = small();
    type_text(&mut state, "2");
    let heading = Areas::of(&state).table.y;
    let line = text(&state)
        .lines()
        .nth(usize::from(heading))
        .unwrap()
        .to_owned();
    let x = line.find("STATE").unwrap() as u16;
    state.handle(Event::Click { x, y: heading }, NOW);
    state.settle();
    assert!(text(&state).contains("STATE▲"), "{line}");
}

#[test]
fn a_click_selects_a_row_and_another_opens_it() {
    let mut state = small();
    type_text(&mut state, "2");
    let click = Event::Click {
        x: 3,
        y: Areas::of(&state).table.y + 4,
    };
    state.handle(click.clone(), NOW);
    state.settle();
    let selected = state.table().selected.clone().unwrap();
    assert_eq!(state.table().cursor, 3);
    state.handle(click, NOW);
    state.settle();
    assert_eq!(state.details[0].subject, Subject::Node(selected));
}

#[test]
fn a_click_on_a_tab_shows_it_and_the_wheel_scrolls() {
    let mut state = small();
    state.handle(Event::Click { x: 16, y: 1 }, NOW);
    state.settle();
    assert_eq!(state.tab, Tab::Nodes);
    let wheel = Event::Wheel {
        x: 9,
        y: 9,
        up: false,
    };
    state.handle(wheel, NOW);
    state.settle();
    assert_eq!((state.table().offset, state.table().cursor), (3, 3));
}

#[test]
fn from_a_workload_to_a_node_and_back() {
    let mut state = small();
    press(&mut state, &[Key::Char('3'), Key::Enter, Key::Enter]);
    assert!(matches!(
        state.details[..],
        [
            super::state::Detail {
                subject: Subject::Workload(_),
                ..
            },
            super::state::Detail {
                subject: Subject::Node(_),
                ..
            },
        ]
    ));
    press(&mut state, &[Key::Esc, Key::Esc]);
    assert!(state.details.is_empty() && state.tab == Tab::Workloads);
}

#[test]
fn a_site_of_the_overview_opens_its_nodes() {
    let mut state = small();
    press(&mut state, &[Key::Down, Key::Enter]);
    assert_eq!(state.tab, Tab::Nodes);
    assert!(!state.table().filter.is_empty() && !state.table().is_empty());
}

#[test]
fn opening_a_replica_puts_the_cursor_on_it() {
    let mut state = small();
    press(&mut state, &[Key::Char('4'), Key::End]);
    let selected = state.table().selected.clone();
    press(&mut state, &[Key::Enter]);
    assert_eq!(state.table().selected, selected);
}

#[test]
fn q_and_ctrl_c_quit_also_from_a_filter() {
    let mut state = small();
    let quit = |state: &mut State, key| state.handle(Event::Key(key), NOW) == Action::Quit;
    assert!(quit(&mut state, Key::Char('q')));
    type_text(&mut state, "/x");
    assert!(!quit(&mut state, Key::Char('q')));
    assert!(quit(&mut state, Key::Interrupt));
}

#[test]
fn the_same_events_give_the_same_screen() {
    let mut simulation = Simulation::new(3, 50, NOW);
    let mut events: Vec<Event> = simulation.all().into_iter().map(Event::Change).collect();
    events.extend(simulation.step(NOW).into_iter().map(Event::Change));
    events.extend("2c".chars().map(|c| Event::Key(Key::Char(c))));
    let written = serde_json::to_string(&events).unwrap();
    let read: Vec<Event> = serde_json::from_str(&written).unwrap();
    let shown = |events: Vec<Event>| {
        let mut state = State::new(options(), (100, 30), NOW);
        for event in events {
            state.handle(event, NOW);
            state.settle();
        }
        assert!(serde_json::to_string(&state).is_ok());
        text(&state)
    };
    assert_eq!(shown(events), shown(read));
}

// States of contact.

#[test]
fn an_unreachable_control_plane_is_said_and_the_last_state_stays() {
    let mut state = small();
    let failed = Event::Failed {
        channel: Channel::Api,
        cause: "connection refused".to_owned(),
    };
    state.handle(failed, NOW + 45_000);
    type_text(&mut state, "2");
    state.handle(Event::Clock, NOW + 45_000);
    state.settle();
    let shown = text(&state);
    assert!(shown.contains("Control plane unreachable; this is 45s old: connection refused"));
    assert!(shown.contains("austin-depot-000"), "{shown}");
    state.handle(Event::Reached(Channel::Api), NOW + 46_000);
    state.settle();
    assert!(!text(&state).contains("unreachable"));
}

#[test]
fn an_empty_fleet_says_what_to_do() {
    let mut state = State::new(options(), (80, 24), NOW);
    state.settle();
    assert!(text(&state).contains("Waiting for the first answer"));
    state.handle(Event::Change(Change::Nodes(Vec::new())), NOW);
    state.settle();
    assert!(text(&state).contains("hyperion token create"));
}

#[test]
fn a_small_terminal_says_how_large_it_should_be() {
    let state = with_size(small(), (30, 8));
    assert!(text(&state).contains("Too small: 30x8"));
}

#[test]
fn a_long_message_of_an_event_can_be_read_whole() {
    let mut state = State::new(options(), (80, 24), NOW);
    let event = Happening {
        key: "d/e".to_owned(),
        at_ms: NOW,
        kind: "workload".to_owned(),
        object: "llm".to_owned(),
        reason: "Unplaceable".to_owned(),
        message: "replica 0: 0 of 9 nodes fit: 9 ruled out by nvidia.com/gpu".to_owned(),
        ..Default::default()
    };
    state.handle(Event::Change(Change::Happenings(vec![event])), NOW);
    type_text(&mut state, "5");
    assert!(text(&state).contains("replica 0: 0 of 9 nodes fit: 9 ruled out by nvidia.com/gpu"));
}

#[test]
fn text_from_outside_cannot_drive_the_terminal() {
    let mut state = State::new(options(), (120, 30), NOW);
    let node = Node {
        id: "a\x1b]0;x\x07\u{202e}b".to_owned(),
        ..Default::default()
    };
    state.handle(Event::Change(Change::Nodes(vec![node])), NOW);
    type_text(&mut state, "2");
    let shown = text(&state);
    assert!(shown.contains("a]0;xb"), "{shown}");
    assert!(!shown.contains(['\x1b', '\x07', '\u{202e}']));
}

#[test]
fn without_colours_the_text_is_the_same_and_no_cell_has_one() {
    let mut state = small();
    for tab in "12345".chars() {
        type_text(&mut state, &tab.to_string());
        let coloured = text(&state);
        let mut bare = state.clone();
        bare.options.colour = false;
        assert_eq!(coloured, text(&bare));
        let buffer = screen(&bare);
        let plain = |c: &ratatui::buffer::Cell| c.fg == Color::Reset && c.bg == Color::Reset;
        assert!(buffer.content().iter().all(plain));
    }
}

#[test]
fn in_ascii_every_character_is() {
    let mut state = small();
    state.options.ascii = true;
    for keys in ["1", "2", "3", "4", "5", "?"] {
        type_text(&mut state, keys);
        assert!(text(&state).is_ascii(), "{}", text(&state));
    }
}

// Golden screens.

const SIZES: [(u16, u16); 2] = [(80, 24), (200, 50)];

fn compare(name: &str, state: &mut State, wrong: &mut Vec<String>) {
    for (width, height) in SIZES {
        state.handle(Event::Resize { width, height }, NOW);
        state.settle();
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/screens");
        let path = dir.join(format!("{name}-{width}x{height}.txt"));
        let shown = text(state);
        if std::env::var_os("HYPERION_REGENERATE").is_some() {
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(&path, &shown).unwrap();
        } else if std::fs::read_to_string(&path).ok().as_deref() != Some(&shown) {
            wrong.push(format!("{}:\n{shown}", path.display()));
        }
    }
}

#[test]
fn screens_look_as_documented() {
    let fleet = simulated(10_000);
    let mut wrong = Vec::new();
    let mut golden = |name: &str, keys: &[Key], change: &dyn Fn(&mut State)| {
        let mut state = fleet.clone();
        change(&mut state);
        press(&mut state, keys);
        compare(name, &mut state, &mut wrong);
    };
    let char = Key::Char;
    let same = |_: &mut State| {};
    golden("overview", &[char('1')], &same);
    golden("nodes", &[char('2')], &same);
    golden(
        "nodes-by-cpu",
        &[char('2'), char('c'), Key::PageDown],
        &same,
    );
    let filter: Vec<Key> = "2/berlin !ready".chars().map(char).collect();
    golden("nodes-filtered", &filter, &same);
    golden("workloads", &[char('3')], &same);
    golden("placements", &[char('4')], &same);
    golden("events", &[char('5')], &same);
    let busiest = [char('2'), char('o'), Key::Enter];
    golden("node", &busiest, &same);
    golden("workload", &[char('3'), Key::Enter], &same);
    let pending: Vec<Key> = "3/degraded"
        .chars()
        .map(char)
        .chain([Key::Enter, Key::Enter])
        .collect();
    golden("workload-degraded", &pending, &same);
    golden("help", &[char('2'), char('?')], &same);
    golden("no-colour", &[char('2')], &|s| s.options.colour = false);
    golden("ascii", &[char('1')], &|s| s.options.ascii = true);
    golden("simulated", &[char('1')], &|s| {
        s.options.simulated = Some(10_000);
    });
    golden("policy-refused", &[char('2')], &|s| {
        s.fleet.scorer.decides = "rules".to_owned();
        s.fleet.scorer.refused =
            "the policy has feature schema 1, this program 2: train it anew".to_owned();
    });
    golden("unreachable", &[char('2')], &|s| {
        s.contact.reached(Channel::Api, NOW - 45_000);
        s.contact
            .failed(Channel::Api, "Connection refused (os error 111)");
    });
    golden("no-telemetry", &[char('2')], &|s| {
        s.contact.reached(Channel::Live, NOW - 15_000);
        let cause = "the service is not available (503): no endpoints";
        s.contact.failed(Channel::Live, cause);
    });
    let mut empty = State::new(options(), (80, 24), NOW);
    empty.handle(Event::Change(Change::Nodes(Vec::new())), NOW);
    compare("empty", &mut empty, &mut wrong);
    assert!(
        wrong.is_empty(),
        "HYPERION_REGENERATE=1 writes these anew:\n{}",
        wrong.join("\n")
    );
}

// Anything at any size.

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        ".{0,12}",
        any::<String>(),
        "[日本語がゃ\u{301}\u{200d}👩‍🚀]{0,30}",
        "[\\x00-\\x1f\\x7f\\x1b]{0,8}",
        Just("x".repeat(5000)),
    ]
}

fn any_number() -> impl Strategy<Value = f64> {
    prop_oneof![any::<f64>(), Just(f64::NAN), Just(f64::MAX), 0.0..100.0]
}

prop_compose! {
    fn any_node()(id in any_text(), site in any_text(), mode in any_text(), label in any_text(),
                  gpus in prop::collection::vec(any_text(), 0..3), price in any_number(),
                  created in any::<Option<i64>>()) -> Node {
        Node { id, site: site.clone(), mode, region: site, price, created_ms: created, gpus,
               labels: [(label.clone(), label.clone())].into(),
               conditions: vec![Condition { message: label, ..Default::default() }],
               ..Default::default() }
    }
}

prop_compose! {
    fn any_sample(id: String)(cpu in any::<Option<f32>>(), used in any::<u64>(), total in any::<u64>(),
                  rx in any::<u64>(), age in any::<u64>(), gpu in prop::collection::vec(any::<Option<f32>>(), 0..3))
                  -> LiveSample {
        LiveSample { id: id.clone(), connected: true, age_ms: age, cpu_percent: cpu, load1: cpu, rtt_ms: cpu,
                     max_celsius: cpu, memory_used_bytes: used, memory_total_bytes: total,
                     rx_bytes_per_second: rx, tx_bytes_per_second: rx, gpu_percent: gpu, ..Default::default() }
    }
}

prop_compose! {
    fn any_objects()(node in any_node(), name in any_text(), text in any_text(), number in any_number(),
                     count in any::<i32>(), at in any::<i64>())
                    (sample in any_sample(node.id.clone()), node in Just(node), name in Just(name),
                     text in Just(text), number in Just(number), count in Just(count), at in Just(at))
                    -> Vec<Change> {
        let workload = Workload {
            key: format!("d/{name}"), namespace: "d".to_owned(), name: name.clone(), nodes: text.clone(),
            hourly_cost: Some(number), p99_ms: Some(number), desired: count, ready: count.wrapping_neg(),
            rejected: vec![(text.clone(), count)], constraints: vec![text.clone()],
            images: vec![text.clone()], created_ms: Some(at), ..Default::default()
        };
        let mut placement = Placement {
            key: format!("d/{name}-0"), namespace: "d".to_owned(), workload: name.clone(), replica: count,
            node: node.id.clone(), hourly_cost: number, p99_ms: Some(number), message: text.clone(),
            since_ms: Some(at), ..Default::default()
        };
        placement.explanation.score = number;
        placement.explanation.candidates = count;
        placement.explanation.terms = vec![hyperion_api::placement::ScoreTerm { name: text.clone(), value: number }];
        placement.explanation.fallback.clone_from(&text);
        placement.explanation.second_wins.clone_from(&text);
        placement.explanation.top = vec![hyperion_api::placement::Ranked {
            id: text.clone(), score: number, terms: placement.explanation.terms.clone() }; 2];
        placement.explanation.rules_choice = Some(hyperion_api::placement::OtherChoice {
            id: text.clone(), hourly_cost: number, p99_latency_ms: Some(number) });
        placement.explanation.rejected = vec![hyperion_api::workload::Rejection { constraint: text.clone(), count }];
        let scorer = hyperion_api::fleet::ScorerStatus {
            decides: text.clone(), refused: text.clone(), ..Default::default()
        };
        let happening = Happening {
            key: name.clone(), at_ms: at, kind: "node".to_owned(), object: node.id.clone(),
            message: text, warning: true, count, ..Default::default()
        };
        vec![Change::Nodes(vec![node]), Change::Workloads(vec![workload]),
             Change::Placements(vec![placement]), Change::Happenings(vec![happening]),
             Change::Live(vec![sample.clone(), sample]), Change::Scorer(scorer)]
    }
}

fn any_event() -> impl Strategy<Value = Event> {
    use Key as K;
    let keys = prop::sample::select(vec![
        K::Up,
        K::Down,
        K::Left,
        K::Right,
        K::PageUp,
        K::PageDown,
        K::Home,
        K::End,
        K::Enter,
        K::Esc,
        K::Backspace,
        K::Tab,
        K::BackTab,
        K::Clear,
        K::Refresh,
    ]);
    prop_oneof![
        4 => keys.prop_map(Event::Key),
        4 => prop::sample::select("12345/?srSgGjk nceotaubdwlhmpiy".chars().collect::<Vec<_>>())
            .prop_map(|c| Event::Key(K::Char(c))),
        1 => any::<char>().prop_map(|c| Event::Key(K::Char(c))),
        2 => (0..260_u16, 0..90_u16).prop_map(|(x, y)| Event::Click { x, y }),
        1 => (any::<u16>(), any::<u16>(), any::<bool>()).prop_map(|(x, y, up)| Event::Wheel { x, y, up }),
        3 => (1..=250_u16, 1..=80_u16).prop_map(|(width, height)| Event::Resize { width, height }),
        2 => any_text().prop_map(|cause| Event::Failed { channel: Channel::Api, cause }),
        1 => Just(Event::Reached(Channel::Api)),
    ]
}

/// PROPTEST_CASES makes it longer.
fn cases() -> u32 {
    let asked = std::env::var("PROPTEST_CASES").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(150)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn nothing_breaks_the_drawing(
        objects in prop::collection::vec(any_objects(), 1..3),
        events in prop::collection::vec(any_event(), 1..20),
        size in (1..=250_u16, 1..=80_u16),
        now_ms in prop_oneof![Just(NOW), any::<i64>()],
        (colour, ascii) in any::<(bool, bool)>(),
    ) {
        let options = Options { colour, ascii, ..options() };
        let mut state = State::new(options, size, NOW);
        for change in objects.into_iter().flatten() {
            state.handle(Event::Change(change), now_ms);
        }
        for event in events {
            state.handle(event, now_ms);
            state.settle();
            screen(&state);
        }
        // The terminal may be smaller or larger than the state knows.
        for (width, height) in [(1, 1), (250, 80)] {
            let mut buffer = Buffer::empty(Rect::new(0, 0, width, height));
            draw(&state, &mut buffer);
        }
    }
}

#[test]
fn every_size_can_be_drawn() {
    let mut state = small();
    for keys in ["1", "2", "3", "4", "5", "?"] {
        type_text(&mut state, keys);
        for width in (1..=250).step_by(11) {
            for height in (1..=80).step_by(9) {
                state.handle(Event::Resize { width, height }, NOW);
                state.settle();
                screen(&state);
            }
        }
    }
}
