//! The link comes back.

use hyperion_proto::agent_v1::{
    DecisionsTaken, Interruption, InterruptionKind, RecordState, SiteDecisions, StopReplica,
    TakenRecord,
};

use super::*;
use crate::testing::key;

const IDS: [&str; 3] = ["edge-1", "edge-2", "edge-3"];

/// A site that took over a service of `edge-1`; and who has it.
fn taken_over() -> (World, String) {
    let mut world = World::cut_off(&IDS, &[("edge-1", placed("web", 1))]);
    world.pass(Duration::from_secs(5));
    world.kill("edge-1");
    world.until("taken over", Duration::from_secs(10), |w| {
        w.runs("web").len() == 1
    });
    let (winner, _) = world.runs("web").remove(0);
    (world, winner)
}

fn told(world: &World, id: &str) -> u64 {
    *world.members[id].fake.told.lock().unwrap()
}

#[test]
fn hello_tells_what_the_site_decided_and_no_list_removes_it_before_it_is_taken() {
    let (mut world, winner) = taken_over();
    let before = world.members[&winner].fake.runs();
    let incomplete = Welcome {
        replicas_complete: false,
        ..welcome(Vec::new(), &IDS)
    };
    let hello = world.connect(&winner, &incomplete);
    let decisions = hello.site_decisions.unwrap().records;
    assert_eq!(decisions.len(), 1);
    assert_eq!(decisions[0].node, winner);
    assert_eq!(decisions[0].generation, 2);
    assert!(!decisions[0].decider.is_empty() && decisions[0].explanation.is_some());
    assert_eq!(world.node(&winner).mode(), Mode::Reconciling);
    assert_eq!(world.members[&winner].fake.runs(), before);

    // A control plane that does not know of decisions says that its empty list is the whole.
    let complete = Body::Welcome(welcome(Vec::new(), &IDS));
    world.hear(&winner, complete);
    assert_eq!(world.members[&winner].fake.runs(), before);

    let taken = Body::DecisionsTaken(DecisionsTaken {
        records: vec![TakenRecord {
            key: decisions[0].key.clone(),
            generation: 2,
            decider: decisions[0].decider.clone(),
        }],
    });
    world.hear(&winner, taken);
    assert_eq!(world.node(&winner).untaken_count(), 0);
    let tells = told(&world, &winner);
    world.hear(
        &winner,
        Body::Welcome(welcome(vec![placed("web", 2)], &IDS)),
    );
    assert_eq!(world.node(&winner).mode(), Mode::Connected);
    assert_eq!(world.members[&winner].fake.runs(), before, "nothing moved");
    assert!(told(&world, &winner) >= tells);
    // Taken: now its list counts.
    world.hear(&winner, Body::Welcome(welcome(Vec::new(), &IDS)));
    assert!(world.members[&winner].fake.runs().is_empty());
}

#[test]
fn decisions_that_were_made_after_hello_follow_it() {
    let (mut world, winner) = taken_over();
    let other = IDS.into_iter().find(|id| *id != winner && *id != "edge-1");
    let other = other.unwrap();
    let hello = world.node_mut(other).hello();
    assert_eq!(hello.site_decisions.unwrap().records.len(), 1);
    // Between hello and welcome another is applied, elsewhere at the site.
    let record = applied("late", "site-9");
    let now = world.now();
    let member = world.members.get_mut(&winner).unwrap();
    let node = member.node.as_mut().unwrap();
    node.apply(vec![record], now, &member.out).unwrap();
    world.pass(Duration::from_secs(3));
    let now = world.now();
    let member = world.members.get_mut(other).unwrap();
    member.out.open.set(true);
    let incomplete = Welcome {
        replicas_complete: false,
        ..welcome(Vec::new(), &IDS)
    };
    let node = member.node.as_mut().unwrap();
    node.connected(&incomplete, now, &member.out);
    let sent: Vec<SiteDecisions> = member
        .out
        .take()
        .into_iter()
        .filter_map(|body| match body {
            Body::SiteDecisions(decisions) => Some(decisions),
            _ => None,
        })
        .collect();
    let names: Vec<_> = sent
        .iter()
        .flat_map(|d| &d.records)
        .map(|r| r.key.as_ref().unwrap().workload.clone())
        .collect();
    assert_eq!(names, ["late"], "once, and only what hello did not tell");
    world.pass(Duration::from_secs(3));
    let again = world.members[other].out.take();
    assert!(!again.iter().any(|b| matches!(b, Body::SiteDecisions(_))));
}

#[test]
fn an_order_that_is_older_than_what_the_site_decided_is_refused() {
    let (mut world, winner) = taken_over();
    let loser = IDS.into_iter().find(|id| *id != winner && *id != "edge-1");
    let loser = loser.unwrap();
    world.pass(Duration::from_secs(3));
    let late = Welcome {
        replicas_complete: false,
        ..welcome(vec![placed("web", 1)], &IDS)
    };
    world.connect(loser, &late);
    assert!(world.members[loser].fake.runs().is_empty());
    assert_eq!(world.node(loser).counts().orders_refused, 1);
    assert_eq!(world.runs("web"), [(winner, 2)]);
}

#[test]
fn orders_and_stops_become_records_of_the_site() {
    let mut alone = Alone::fresh("edge-1");
    alone.connect(&welcome(vec![placed("web", 3)], &["edge-1", "edge-2"]));
    let record = alone.node.store().record(&key("web", 0)).unwrap();
    assert_eq!(record.state(), RecordState::Placed);
    assert_eq!((record.generation, record.decider.as_str()), (3, ""));
    assert!(record.taken && record.intent.is_some());
    alone.hear(Body::StopReplica(StopReplica {
        key: Some((&key("web", 0)).into()),
        generation: 3,
        grace_seconds: 0,
        command_id: 1,
    }));
    let record = alone.node.store().record(&key("web", 0)).unwrap();
    assert_eq!(record.state(), RecordState::Removed);
    assert!(alone.fake.runs().is_empty());
    assert_eq!(alone.node.site_info().unwrap().members.len(), 2);
}

#[test]
fn a_job_that_ended_offline_is_told_to_the_site_and_never_runs_again() {
    let mut job = placed("job", 1);
    job.intent.as_mut().unwrap().workload_type = "job".to_owned();
    let mut world = World::cut_off(&IDS, &[("edge-1", job)]);
    let now = world.now();
    let member = world.members.get_mut("edge-1").unwrap();
    let node = member.node.as_mut().unwrap();
    let report = ReplicaReport {
        key: Some((&key("job", 0)).into()),
        generation: 1,
        phase: ReplicaPhase::Succeeded.into(),
        ..ReplicaReport::default()
    };
    let event = crate::supervisor::SupervisorEvent::Report(report);
    node.supervisor([event], now, &member.out);
    let record = node.store().record(&key("job", 0)).unwrap();
    assert_eq!(record.state(), RecordState::Ended);
    world.pass(Duration::from_secs(5));
    world.kill("edge-1");
    world.pass(Duration::from_secs(20));
    assert!(world.runs("job").is_empty(), "it has succeeded");
    let known = world.node("edge-2").store().record(&key("job", 0));
    assert_eq!(known.unwrap().outcome(), ReplicaPhase::Succeeded);
}

#[test]
fn the_control_plane_hears_of_mode_policy_and_addresses_when_they_change() {
    let mut alone = Alone::fresh("edge-1");
    let states = |alone: &Alone| -> Vec<(String, usize)> {
        let sent = alone.out.take().into_iter();
        sent.filter_map(|body| match body {
            Body::NodeState(state) => Some((state.mode, state.peer_addresses.len())),
            _ => None,
        })
        .collect()
    };
    let incomplete = Welcome {
        replicas_complete: false,
        ..welcome(Vec::new(), &["edge-1"])
    };
    alone.connect(&incomplete);
    alone.hear(Body::Welcome(welcome(Vec::new(), &["edge-1"])));
    let told = states(&alone);
    assert_eq!(told.last(), Some(&("connected".to_owned(), 1)), "{told:?}");
    alone.pass(Duration::from_secs(5));
    assert!(states(&alone).is_empty(), "nothing changed");
    let now = alone.now();
    let two = vec!["10.0.0.1:7445".to_owned(), "10.1.0.1:7445".to_owned()];
    alone.node.set_addresses(two, now);
    alone.pass(Duration::from_secs(2));
    assert_eq!(states(&alone), [("connected".to_owned(), 2)]);
    alone.disconnect();
    alone.connect(&welcome(Vec::new(), &["edge-1"]));
    assert_eq!(states(&alone).len(), 1, "again on a new connection");
}

#[test]
fn notices_are_told_again_on_each_connection_and_are_events_once() {
    let mut alone = Alone::fresh("edge-1");
    let told = |alone: &Alone| {
        let sent = alone.out.take();
        let mut states = sent.iter().filter_map(|body| match body {
            Body::NodeState(state) => Some(state.interruptions.clone()),
            _ => None,
        });
        let state = states.next_back().map(|i| i.map(|i| i.notices.len()));
        let mut events: Vec<String> = Vec::new();
        for body in sent {
            if let Body::Event(event) = body {
                events.push(event.reason);
            }
        }
        (state, events)
    };
    let say = |alone: &mut Alone, notices: Vec<Interruption>| {
        let now = alone.now();
        alone.node.interruptions(notices, now, &alone.out);
    };
    let notice = |id: &str, kind: InterruptionKind| Interruption {
        kind: kind.into(),
        id: id.to_owned(),
        ..Interruption::default()
    };
    alone.connect(&welcome(Vec::new(), &["edge-1"]));
    assert_eq!(told(&alone).0, Some(None), "nothing is known");
    say(&mut alone, Vec::new());
    assert_eq!(told(&alone), (Some(Some(0)), Vec::new()));
    let both = vec![
        notice("a", InterruptionKind::Spot),
        notice("b", InterruptionKind::Rebalance),
    ];
    alone.disconnect();
    say(&mut alone, both.clone());
    say(&mut alone, both);
    alone.connect(&welcome(Vec::new(), &["edge-1"]));
    let reasons = ["SpotInterruption", "RebalanceRecommendation"].map(str::to_owned);
    assert_eq!(told(&alone), (Some(Some(2)), reasons.to_vec()));
    say(&mut alone, vec![notice("b", InterruptionKind::Rebalance)]);
    let (state, events) = told(&alone);
    assert_eq!(state, Some(Some(1)));
    assert_eq!(events, ["InterruptionWithdrawn"]);
}

#[test]
fn a_refused_node_decides_nothing_and_keeps_what_runs() {
    let mut alone = Alone::fresh("edge-1");
    alone.connect(&welcome(vec![placed("web", 3)], &["edge-1"]));
    let now = alone.now();
    alone.out.open.set(false);
    let how = Gone::Refused("node edge-1 is revoked".to_owned());
    alone.node.disconnected(how, now);
    alone.pass(Duration::from_secs(30));
    assert_ne!(alone.node.mode(), Mode::Autonomous);
    assert_eq!(alone.fake.runs(), [("web".to_owned(), 3)]);
}

impl World {
    fn node_mut(&mut self, id: &str) -> &mut Node<Fake> {
        self.members.get_mut(id).unwrap().node.as_mut().unwrap()
    }
}
