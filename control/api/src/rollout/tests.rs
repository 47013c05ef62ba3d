use serde_json::{Value, json};

use super::*;

const SHA: &str = "9F86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

fn spec(more: Value) -> HyperionRolloutSpec {
    let mut all = json!({ "bundle": {
        "url": "https://updates.example/2.swu", "sha256": SHA, "version": "2.0",
    } });
    let more = more.as_object().unwrap().clone();
    all.as_object_mut().unwrap().extend(more);
    serde_json::from_value(all).unwrap()
}

fn plan(more: Value) -> Plan {
    Plan::read(&spec(more)).unwrap()
}

#[test]
fn defaults_are_careful() {
    let plan = plan(json!({}));
    let waves: Vec<usize> = (0..plan.waves()).map(|w| plan.wave(w, 1000)).collect();
    assert_eq!(waves, [1, 100, 1000]);
    assert_eq!(
        (plan.max_unavailable(1000), plan.max_failures(1000)),
        (1, 0)
    );
    assert_eq!(plan.ready_within, READY_WITHIN);
    assert_eq!(plan.exclusive, Exclusive::Wait);
    assert_eq!(plan.bundle.wire.sha256[..2], [0x9f, 0x86]);
    assert!(plan.open(jiff::Timestamp::UNIX_EPOCH));
    assert_eq!(plan.opens(jiff::Timestamp::UNIX_EPOCH), None);
}

#[test]
fn numbers_and_percentages_are_of_the_nodes_that_there_are() {
    let plan = plan(json!({
        "waves": [2, "5%", "25%", 30], "maxUnavailable": "10%", "maxFailures": "3%", "acceptedFailures": 4,
    }));
    let waves = |all| -> Vec<usize> { (0..4).map(|w| plan.wave(w, all)).collect() };
    // 5% of 10 nodes is less than the wave before.
    assert_eq!(waves(10), [2, 2, 3, 10]);
    assert_eq!(waves(1000), [2, 50, 250, 250]);
    assert_eq!(waves(0), [0, 0, 0, 0]);
    assert_eq!(
        (plan.max_unavailable(5), plan.max_unavailable(1000)),
        (1, 100)
    );
    assert_eq!((plan.max_failures(10), plan.max_failures(1000)), (4, 34));
}

#[test]
fn what_can_not_be_carried_out_names_its_field() {
    let bundle = |change: Value| {
        let mut bundle = json!({ "url": "https://a/b", "sha256": SHA, "version": "2" });
        let change = change.as_object().unwrap().clone();
        bundle.as_object_mut().unwrap().extend(change);
        json!({ "bundle": bundle })
    };
    let window = |change: Value| {
        let mut window = json!({ "start": "22:00", "duration": "4h" });
        let change = change.as_object().unwrap().clone();
        window.as_object_mut().unwrap().extend(change);
        json!({ "windows": [{ "start": "00:00", "duration": "1h" }, window] })
    };
    for (more, field) in [
        (bundle(json!({ "url": "ftp://a/b" })), "bundle.url"),
        (bundle(json!({ "url": "" })), "bundle.url"),
        (bundle(json!({ "sha256": "abc" })), "bundle.sha256"),
        (bundle(json!({ "sha256": "ü".repeat(32) })), "bundle.sha256"),
        (bundle(json!({ "sha256": "x".repeat(64) })), "bundle.sha256"),
        (bundle(json!({ "sizeBytes": -1 })), "bundle.sizeBytes"),
        (bundle(json!({ "version": "" })), "bundle.version"),
        (bundle(json!({ "version": "../../etc" })), "bundle.version"),
        (
            bundle(json!({ "machines": ["a", ""] })),
            "bundle.machines[1]",
        ),
        (json!({ "waves": ["1", "ten"] }), "waves[1]"),
        (json!({ "waves": ["101%"] }), "waves[0]"),
        (json!({ "waves": [0] }), "waves[0]"),
        (json!({ "waves": [-1] }), "waves[0]"),
        (json!({ "waves": ["%"] }), "waves[0]"),
        (json!({ "waves": ["50%", "10%"] }), "waves[1]"),
        (json!({ "waves": vec!["1"; 33] }), "waves"),
        (json!({ "maxUnavailable": 0 }), "maxUnavailable"),
        (json!({ "maxUnavailable": "0%" }), "maxUnavailable"),
        (json!({ "maxFailures": "-3%" }), "maxFailures"),
        (
            json!({ "maxFailures": "99999999999999999999" }),
            "maxFailures",
        ),
        (json!({ "readyWithin": "soon" }), "readyWithin"),
        (json!({ "readyWithin": "0s" }), "readyWithin"),
        (json!({ "emptyWithin": "2days" }), "emptyWithin"),
        (window(json!({ "start": "24:00" })), "windows[1].start"),
        (window(json!({ "start": "9:00" })), "windows[1].start"),
        (window(json!({ "start": "+1:-1" })), "windows[1].start"),
        (window(json!({ "duration": "25h" })), "windows[1].duration"),
        (window(json!({ "duration": "1s" })), "windows[1].duration"),
        (window(json!({ "duration": "long" })), "windows[1].duration"),
        (window(json!({ "offset": "CET" })), "windows[1].offset"),
        (window(json!({ "offset": "+15:00" })), "windows[1].offset"),
        (window(json!({ "offset": "ü" })), "windows[1].offset"),
        (
            json!({ "windows": vec![json!({ "start": "00:00", "duration": "1h" }); 33] }),
            "windows",
        ),
    ] {
        let error = Plan::read(&spec(more.clone())).unwrap_err();
        assert_eq!(error.field, format!("spec.{field}"), "{more}");
        assert!(error.problem.len() < 200, "{error}");
    }
}

#[test]
fn windows_open_on_their_days_and_go_on_after_midnight() {
    let plan = plan(json!({ "windows": [
        { "days": ["Sat"], "start": "22:00", "duration": "4h", "offset": "+02:00" },
        { "days": ["Wed"], "start": "01:30", "duration": "30m" },
    ] }));
    let at = |text: &str| text.parse::<jiff::Timestamp>().unwrap();
    // 28 November 2026 is a Saturday.
    for (time, open) in [
        ("2026-11-28T19:59:59Z", false),
        ("2026-11-28T20:00:00Z", true),
        ("2026-11-28T23:59:59Z", true),
        ("2026-11-29T00:00:00Z", false),
        ("2026-11-29T20:30:00Z", false),
        ("2026-12-02T01:30:00Z", true),
        ("2026-12-02T02:00:00Z", false),
    ] {
        assert_eq!(plan.open(at(time)), open, "{time}");
    }
    let next = |time: &str| plan.opens(at(time)).unwrap().to_string();
    assert_eq!(next("2026-11-28T12:00:00Z"), "2026-11-28T20:00:00Z");
    assert_eq!(next("2026-11-28T20:00:00Z"), "2026-12-02T01:30:00Z");
    assert_eq!(next("2026-12-02T01:30:00Z"), "2026-12-05T20:00:00Z");
}
