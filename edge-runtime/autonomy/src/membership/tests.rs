mod net;
mod wire;

use std::time::Duration;

use self::net::{Net, name, secs};
use super::{Membership, What};
use crate::profile::Profile;

/// Kills one node and returns the time until all others know.
fn kill_one(net: &mut Net, node: &str) -> Duration {
    net.kill(node);
    net.until("all know of the death", secs(60.0), Net::agree)
}

#[test]
fn nodes_that_know_one_of_them_all_meet() {
    let mut net = Net::new(Profile::standard(), 1);
    net.start(&name(0), 1, &[]);
    for index in 1..40 {
        net.start(&name(index), 1, &[name(0)]);
    }
    net.until("all have met", secs(90.0), Net::agree);
    assert_eq!(net.seen(What::Down), 0);
}

#[test]
fn a_death_is_known_to_all_in_seconds_and_nobody_else_is_declared_dead() {
    let mut net = Net::site(Profile::standard(), 2, 50);
    for victim in [7, 13, 21] {
        let took = kill_one(&mut net, &name(victim));
        assert!(took < secs(8.0), "{took:?}");
    }
    let falsely = net
        .log
        .iter()
        .filter(|(_, change)| change.what == What::Down && net.nodes.contains_key(&change.node));
    assert_eq!(falsely.count(), 0);
    assert_eq!(
        net.seen(What::Down),
        3 * 47 + 2 + 1,
        "each survivor of then saw each death once"
    );
}

#[test]
fn the_fast_profile_is_fast() {
    let mut net = Net::site(Profile::fast(), 3, 20);
    let took = kill_one(&mut net, &name(4));
    assert!(took < secs(2.5), "{took:?}");
}

#[test]
fn two_nodes_notice_each_other_and_the_last_one_is_alone() {
    let mut net = Net::site(Profile::standard(), 4, 2);
    kill_one(&mut net, &name(1));
    assert_eq!(net.nodes[&name(0)].live(), [name(0)]);
    assert_eq!(net.nodes[&name(0)].peers().count(), 0);
    net.start(&name(1), 2, &[name(0)]);
    net.until("it is back", secs(5.0), Net::agree);
}

#[test]
fn a_fifth_of_the_datagrams_lost_kills_nobody_and_hides_no_death() {
    let mut net = Net::site(Profile::standard(), 5, 60);
    net.loss = 0.2;
    net.run(secs(300.0));
    assert_eq!(net.seen(What::Down), 0, "{:?}", net.log);
    let suspected = net.seen(What::Suspect);
    // Of 18,000 probes.
    assert!(suspected < 60, "{suspected}");
    for victim in [5, 30, 59] {
        let took = kill_one(&mut net, &name(victim));
        assert!(took < secs(12.0), "{took:?}");
    }
}

#[test]
fn half_of_a_site_dying_at_once_is_noticed_as_soon() {
    let mut net = Net::site(Profile::standard(), 6, 60);
    for victim in 0..30 {
        net.kill(&name(victim));
    }
    let took = net.until("all are missed", secs(60.0), Net::agree);
    assert!(took < secs(15.0), "{took:?}");
}

#[test]
fn a_node_cut_off_from_all_knows_that_it_is_alone_at_once() {
    let mut net = Net::site(Profile::standard(), 7, 60);
    let rest: Vec<String> = (1..60).map(name).collect();
    net.cut_between(&[name(0)], &rest);
    let took = net.until("it is alone", secs(60.0), |net| {
        net.nodes[&name(0)].peers().count() == 0
    });
    assert!(took < secs(8.0), "{took:?}");
}

#[test]
fn a_rebooted_node_is_back_at_once_whether_it_was_missed_or_not() {
    let mut net = Net::site(Profile::standard(), 8, 12);
    let site: Vec<String> = (0..12).map(name).collect();
    // Faster than anybody can notice.
    net.kill(&name(3));
    net.start(&name(3), 2, &site);
    let took = net.until("it is back", secs(10.0), Net::agree);
    assert!(took < secs(4.0), "{took:?}");
    net.run(secs(60.0));
    assert!(net.agree());
    // After all have noticed.
    kill_one(&mut net, &name(3));
    net.start(&name(3), 3, &site);
    let took = net.until("it is back", secs(10.0), Net::agree);
    assert!(took < secs(4.0), "{took:?}");
}

#[test]
fn a_node_that_lost_count_of_its_starts_is_back_at_once() {
    let mut net = Net::site(Profile::standard(), 9, 8);
    let site: Vec<String> = (0..8).map(name).collect();
    kill_one(&mut net, &name(3));
    net.start(&name(3), 40, &site);
    net.until("it is back", secs(10.0), Net::agree);
    kill_one(&mut net, &name(3));
    // Its store was lost.
    net.start(&name(3), 1, &site);
    let took = net.until("it is back", secs(10.0), Net::agree);
    assert!(took < secs(4.0), "{took:?}");
}

#[test]
fn a_live_node_declared_dead_comes_back_by_itself() {
    let mut net = Net::site(Profile::standard(), 10, 10);
    let rest: Vec<String> = (1..10).map(name).collect();
    net.cut_between(&[name(0)], &rest);
    net.until("it is missed", secs(20.0), |net| {
        (1..10).all(|index| !net.nodes[&name(index)].is_live(&name(0)))
    });
    net.cut.clear();
    let took = net.until("it is back", secs(30.0), Net::agree);
    assert!(took < secs(15.0), "{took:?}");
    assert!(net.nodes[&name(0)].counters().rejoins > 0);
}

#[test]
fn halves_that_were_apart_for_hours_find_each_other_and_cost_little_meanwhile() {
    let mut net = Net::site(Profile::standard(), 11, 12);
    let one: Vec<String> = (0..6).map(name).collect();
    let other: Vec<String> = (6..12).map(name).collect();
    net.cut_between(&one, &other);
    net.until("they are apart", secs(60.0), |net| {
        net.nodes.values().all(|member| member.peers().count() == 5)
    });
    let before = net.sent_bytes;
    let hours = 2.0;
    net.run(secs(hours * 3600.0));
    let rate = (net.sent_bytes - before) as f64 / (hours * 3600.0) / 12.0;
    assert!(rate < 300.0, "{rate} bytes a second and node");
    assert!(net.nodes.values().all(|member| member.peers().count() == 5));
    net.cut.clear();
    let took = net.until("they are one again", secs(120.0), Net::agree);
    assert!(took < secs(40.0), "{took:?}");
}

#[test]
fn a_node_that_stood_still_takes_nobody_for_dead() {
    let mut net = Net::site(Profile::standard(), 12, 6);
    let mut member = net.nodes.remove(&name(0)).unwrap();
    let wake = member.next_wake();
    // Woken 20 s late, then at once again and again, with the answers on their way.
    for late in 0..30 {
        member.tick(wake + secs(20.0) + Duration::from_millis(late * 10));
    }
    assert!(member.counters().stalls > 0);
    assert!(
        member
            .take_changes()
            .iter()
            .all(|change| change.what == What::Up)
    );
}

#[test]
fn a_node_that_hears_but_is_not_heard_is_declared_dead() {
    let mut net = Net::site(Profile::standard(), 13, 10);
    for other in 1..10 {
        net.cut.insert((name(0), name(other)));
    }
    net.until("it is missed", secs(20.0), |net| {
        (1..10).all(|index| !net.nodes[&name(index)].is_live(&name(0)))
    });
}

#[test]
fn one_broken_path_kills_nobody() {
    let mut net = Net::site(Profile::standard(), 14, 10);
    net.cut_between(&[name(0)], &[name(1)]);
    net.run(secs(600.0));
    assert_eq!(net.seen(What::Down), 0);
    assert_eq!(net.seen(What::Suspect), 0);
}

#[test]
fn banned_nodes_are_down_and_not_heard() {
    let mut net = Net::site(Profile::standard(), 15, 6);
    for index in 0..5 {
        let now = net.now;
        net.nodes
            .get_mut(&name(index))
            .unwrap()
            .ban(&[name(5)], now);
    }
    net.run(secs(60.0));
    for index in 0..5 {
        assert!(!net.nodes[&name(index)].is_live(&name(5)));
        assert!(net.nodes[&name(index)].counters().foreign > 0);
    }
}

#[test]
fn a_quiet_site_costs_a_few_hundred_bytes_a_second_and_node() {
    let mut net = Net::site(Profile::standard(), 16, 50);
    let before = (net.sent, net.sent_bytes);
    net.run(secs(120.0));
    let datagrams = (net.sent - before.0) as f64 / 120.0 / 50.0;
    let bytes = (net.sent_bytes - before.1) as f64 / 120.0 / 50.0;
    assert!(datagrams < 2.5, "{datagrams}");
    assert!(bytes < 120.0, "{bytes}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || {
        let mut net = Net::site(Profile::standard(), 17, 10);
        net.loss = 0.3;
        net.run(secs(60.0));
        (net.sent, net.sent_bytes, net.log)
    };
    assert_eq!(run(), run());
}

#[test]
fn a_node_alone_sleeps() {
    let member = Membership::new("edge-1", 1, &Profile::standard(), 1, Duration::ZERO);
    assert!(member.next_wake() > Duration::ZERO);
    assert_eq!(member.live(), ["edge-1"]);
    assert!(member.is_live("edge-1"));
    assert!(!member.is_live("edge-2"));
}
