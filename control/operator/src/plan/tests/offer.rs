//! Machines that are launched for replicas that fit nowhere.

use hyperion_api::capacity::Capacity;
use hyperion_placement::model::Provider;

use super::*;
use crate::clusters::claims::{Make, Purpose, Seen, Stage};
use crate::index::{Heard, Market};

const CLUSTER: &str = "east";
const EMPTY: Duration = Duration::from_secs(300);
const LAUNCH: Duration = Duration::from_secs(900);

fn market(capacity: Option<Value>) -> Heard {
    let capacity = capacity.map(|more| {
        let mut all = json!({ "nodeClassRef": { "group": "g", "kind": "K", "name": "n" },
            "instanceTypes": ["g4dn.2xlarge", "g6.xlarge", "m5.2xlarge"] });
        all.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        Arc::new(serde_json::from_value::<Capacity>(all).unwrap())
    });
    Heard::Market(Box::new(Market {
        capacity,
        provider: Provider::Aws,
        region: "us-east-1".to_owned(),
        selector: BTreeMap::new(),
    }))
}

fn gpu_service(replicas: i32) -> Value {
    let mut spec = service(replicas, "i");
    spec["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] = json!("1");
    with_policy(spec, json!({ "goal": "cost" }))
}

fn world(capacity: Value) -> World {
    let mut w = World::new();
    w.heard(market(Some(capacity)));
    w.heard(Heard::Listed(Vec::new()));
    w
}

impl World {
    fn heard(&mut self, heard: Heard) {
        self.index.machines_heard(CLUSTER, heard, self.now);
        self.settle();
    }

    /// Time passes, and what is due is done.
    fn due_after(&mut self, time: Duration) {
        self.now += time;
        self.index.machines_due(self.now);
        self.settle();
    }

    /// Name and offer of the claims to be made.
    fn made(&mut self) -> Vec<(String, String)> {
        let make = self.index.claims_wanted(CLUSTER).make;
        let of = |(name, make): (String, Arc<Make>)| (name, make.purpose.offer.clone());
        make.into_iter().map(of).collect()
    }

    fn given_back(&mut self) -> Vec<String> {
        let wants = self.index.claims_wanted(CLUSTER);
        wants.give_back.into_iter().collect()
    }

    fn claim(&mut self, name: &str, stage: Stage, node: &str) {
        let seen = Seen {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            stage,
            node: node.to_owned(),
            ..Seen::default()
        };
        self.heard(Heard::Seen(Box::new(seen)));
    }

    /// The node of a claim joins.
    fn joins(&mut self, node: &str, kind: &str) {
        let id = format!("{CLUSTER}.{node}");
        self.node_spec(&id, json!({ "cluster": CLUSTER }));
        let labels = json!({ "hyperion.io/provider": "aws",
            "topology.kubernetes.io/region": "us-east-1",
            "node.kubernetes.io/instance-type": kind });
        self.connect(&id, labels, 1);
    }

    fn reason(&self) -> String {
        self.condition("Placed").1
    }

    fn told(&self, reason: &str) -> usize {
        self.events.iter().filter(|(r, _)| *r == reason).count()
    }
}

#[test]
fn a_replica_that_fits_nowhere_waits_for_the_cheapest_offer_and_is_placed_on_its_node() {
    let mut w = world(json!({}));
    w.node("full", json!({}), 0);
    w.workload(gpu_service(1));
    let made = w.made();
    let [(name, offer)] = made.as_slice() else {
        panic!("{made:?}")
    };
    assert_eq!(offer, "aws/us-east-1/-/g4dn.2xlarge/spot");
    let (_, reason, message) = w.condition("Placed");
    assert_eq!(reason, "Launching");
    assert!(
        message.contains(name) && message.contains(offer),
        "{message}"
    );
    assert_eq!((w.told("Launching"), w.told("Unplaceable")), (1, 0));

    w.claim(name, Stage::Launched, "");
    assert!(w.condition("Placed").2.contains("is launched"));
    w.claim(name, Stage::Ready, "n1");
    assert_eq!(w.on(0), None);
    w.joins("n1", "g4dn.2xlarge");
    assert_eq!(w.on(0), Some(("east.n1".to_owned(), 1)));
    w.run_all();
    w.due_after(EMPTY * 3);
    assert_eq!(w.given_back(), Vec::<String>::new());
    assert_eq!(w.made().len(), 1);
}

#[test]
fn a_node_that_has_room_is_taken_and_nothing_is_launched() {
    let mut w = world(json!({}));
    w.node("lab", json!({}), 1);
    w.workload(gpu_service(1));
    assert_eq!(w.on(0), Some(("lab".to_owned(), 1)));
    assert_eq!(w.made(), []);
}

#[test]
fn replicas_share_a_machine_that_has_room_and_what_is_not_wanted_is_given_back() {
    let mut w = world(json!({ "instanceTypes": ["m5.2xlarge"] }));
    w.workload(service(3, "i"));
    let made = w.made();
    assert_eq!(made.len(), 1, "{made:?}");
    assert!(w.condition("Placed").2.contains("and 2 more"));
    w.index.touch(&World::name(), Priority::High);
    w.settle();
    assert_eq!(w.made(), made, "nothing is asked for twice");

    w.workload(service(0, "i"));
    w.due_after(Duration::from_secs(2));
    w.due_after(Duration::from_secs(30));
    assert_eq!(w.given_back(), [made[0].0.clone()]);
}

#[test]
fn where_there_is_no_capacity_the_next_offer_is_taken_and_in_the_end_on_demand() {
    let mut w = world(json!({ "instanceTypes": ["g4dn.2xlarge"], "zones": ["a", "b", "c", "d"] }));
    w.workload(gpu_service(1));
    let mut offers = Vec::new();
    for _ in 0..5 {
        let made = w.made();
        let (name, offer) = made.first().unwrap().clone();
        offers.push(offer);
        w.claim(&name, Stage::Asked, "");
        w.heard(Heard::Gone(name));
    }
    // Three zones without spot are enough to see that there is none.
    let kind = |offer: &String| offer.rsplit('/').next().unwrap().to_owned();
    let kinds: Vec<String> = offers.iter().map(kind).collect();
    assert_eq!(kinds, ["spot", "spot", "spot", "on-demand", "on-demand"]);
    let unlike: BTreeSet<&String> = offers.iter().collect();
    assert_eq!(unlike.len(), 5, "{offers:?}");
    let notes = w.index.take_capacity_notes();
    let failed = notes.iter().filter(|n| n.reason == "LaunchFailed");
    assert_eq!(failed.count(), 5, "{notes:?}");

    // When all are left alone the status says so, and after a while they are tried again.
    for _ in 0..2 {
        let name = w.made()[0].0.clone();
        w.heard(Heard::Refused(name, "quota".to_owned()));
    }
    assert_eq!(w.made(), []);
    let (_, reason, message) = w.condition("Placed");
    assert_eq!(reason, "Unplaceable");
    assert!(message.contains("left alone"), "{message}");
    w.due_after(Duration::from_secs(600));
    assert_eq!(w.made().len(), 1);
}

#[test]
fn after_some_that_did_not_come_dearer_ones_are_not_gone_through() {
    let mut w = world(json!({ "instanceTypes": [], "capacityTypes": ["on-demand"] }));
    w.workload(gpu_service(1));
    let mut tried = 0;
    while let Some((name, _)) = w.made().first().cloned() {
        tried += 1;
        assert!(tried < 20);
        w.heard(Heard::Refused(name, "no rights".to_owned()));
    }
    assert_eq!(tried, 8);
    let message = w.condition("Placed").2;
    assert!(
        message.contains("for a while") && message.contains("no rights"),
        "{message}"
    );
    w.due_after(Duration::from_secs(600));
    assert_eq!(w.made().len(), 1);
}

#[test]
fn one_that_is_not_ready_in_time_of_another_type_or_deleted_is_not_waited_for() {
    let bad: [fn(&mut World, &str); 4] = [
        |w, name| {
            let seen = Seen {
                name: name.to_owned(),
                trouble: "LaunchFailed: over quota".to_owned(),
                ..Seen::default()
            };
            w.heard(Heard::Seen(Box::new(seen)));
            w.due_after(Duration::from_secs(29));
            assert_eq!(w.given_back(), Vec::<String>::new());
            w.due_after(Duration::from_secs(1));
        },
        |w, name| {
            w.claim(name, Stage::Launched, "");
            w.due_after(LAUNCH);
        },
        |w, name| {
            let seen = Seen {
                name: name.to_owned(),
                stage: Stage::Launched,
                instance_type: "t3.nano".to_owned(),
                ..Seen::default()
            };
            w.heard(Heard::Seen(Box::new(seen)));
        },
        |w, name| {
            let seen = Seen {
                name: name.to_owned(),
                deleting: true,
                trouble: "InsufficientCapacityError".to_owned(),
                ..Seen::default()
            };
            w.heard(Heard::Seen(Box::new(seen)));
        },
    ];
    for breaks in bad {
        let mut w = world(json!({}));
        w.workload(gpu_service(1));
        let first = w.made()[0].clone();
        breaks(&mut w, &first.0);
        assert_eq!(w.given_back(), std::slice::from_ref(&first.0));
        let made = w.made();
        assert_eq!(made.len(), 1, "{made:?}");
        assert_ne!(made[0].1, first.1);
        assert_eq!(w.reason(), "Launching");
    }
}

#[test]
fn a_machine_on_which_nothing_fits_is_given_back_and_not_bought_again_at_once() {
    let mut w = world(json!({}));
    w.workload(gpu_service(1));
    let name = w.made()[0].0.clone();
    // It has joined without the GPU that was asked for.
    w.claim(&name, Stage::Ready, "n1");
    w.due_after(EMPTY);
    assert_eq!(w.given_back(), [name]);
    assert_eq!(w.made(), []);
    let (_, reason, message) = w.condition("Placed");
    assert_eq!(reason, "Unplaceable");
    assert!(message.contains("no replica was placed there"), "{message}");
    w.due_after(Duration::from_secs(600));
    assert_eq!(w.made().len(), 1);
}

#[test]
fn an_empty_machine_is_given_back_and_takes_nothing_from_then_on() {
    let mut w = world(json!({}));
    w.workload(gpu_service(1));
    let name = w.made()[0].0.clone();
    w.claim(&name, Stage::Ready, "n1");
    w.joins("n1", "g4dn.2xlarge");
    w.run_all();
    w.due_after(Duration::from_secs(2));
    w.workload(gpu_service(0));
    let key = ReplicaKey {
        namespace: "default".to_owned(),
        workload: "w".to_owned(),
        uid: "uid-1".to_owned(),
        index: 0,
    };
    w.report_of("east.n1", key, 1, ReplicaPhase::Stopped, "", 0);
    w.due_after(Duration::from_secs(2));
    w.due_after(EMPTY - Duration::from_secs(1));
    assert_eq!(w.given_back(), Vec::<String>::new());
    w.due_after(Duration::from_secs(1));
    assert_eq!(w.given_back(), std::slice::from_ref(&name));
    assert!(!w.index.fleet().node("east.n1").unwrap().schedulable);
    // A replica that comes now gets another machine.
    w.workload(gpu_service(1));
    let made = w.made();
    assert!(made.len() == 1 && made[0].0 != name, "{made:?}");
}

#[test]
fn whoever_leads_next_finds_claims_again_and_those_of_nobody_are_given_back() {
    let seen = |name: &str, uid: Option<&str>| Seen {
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        purpose: uid.map(|uid| Purpose {
            offer: "aws/us-east-1/-/g4dn.2xlarge/spot".to_owned(),
            price_per_hour: 0.2256,
            namespace: "default".to_owned(),
            workload: "w".to_owned(),
            uid: uid.to_owned(),
            replica: 0,
        }),
        stage: Stage::Launched,
        ..Seen::default()
    };
    let mut w = World::new();
    let start = w.now + Duration::from_secs(20);
    w.index.launch_from(start);
    w.heard(market(Some(json!({}))));
    w.workload(gpu_service(1));
    assert_eq!(w.made(), [], "what there is has not been listed");
    w.heard(Heard::Listed(vec![
        seen("ours", Some("uid-1")),
        seen("old", Some("uid-0")),
        seen("blank", None),
    ]));
    assert_eq!(w.reason(), "Launching");
    assert_eq!(w.made(), [], "nothing is asked for twice");
    w.due_after(Duration::from_secs(2));
    w.due_after(Duration::from_secs(30));
    assert_eq!(w.given_back(), ["blank", "old"]);
    assert_eq!(w.made(), []);
    w.claim("ours", Stage::Ready, "n1");
    w.joins("n1", "g4dn.2xlarge");
    assert_eq!(w.on(0), Some(("east.n1".to_owned(), 1)));
}

#[test]
fn bounds_of_a_cluster_and_of_a_quota_hold() {
    let mut w = world(json!({ "maxNodes": 2 }));
    w.workload(gpu_service(4));
    assert_eq!(w.made().len(), 2);
    let (_, reason, message) = w.condition("Placed");
    assert_eq!(reason, "Unplaceable");
    assert!(message.contains("beyond maxNodes"), "{message}");

    let mut w = world(json!({ "maxHourlyCost": 0.5 }));
    w.workload(gpu_service(4));
    // At 0.2256 each.
    assert_eq!(w.made().len(), 2);
}

#[test]
fn selectors_taints_and_what_is_closed_are_seen_to() {
    let mut selects = gpu_service(1);
    selects["template"]["spec"]["nodeSelector"] = json!({ "team": "vision" });
    let taints = json!([{ "key": "gpu", "effect": "NoSchedule" }]);
    let mut w = world(json!({ "labels": { "team": "vision" }, "taints": taints }));
    w.workload(selects.clone());
    assert_eq!(w.made(), []);
    let message = w.condition("Placed").2;
    assert!(message.contains("ruled out by taints"), "{message}");
    selects["template"]["spec"]["tolerations"] = json!([{ "operator": "Exists" }]);
    w.workload(selects);
    assert_eq!(w.made().len(), 1);

    let mut w = world(json!({}));
    w.heard(Heard::Closed(Some("no such class".to_owned())));
    w.workload(gpu_service(1));
    assert_eq!(w.made(), []);
    let message = w.condition("Placed").2;
    assert!(message.contains("no such class"), "{message}");
    w.heard(Heard::Closed(None));
    assert_eq!(w.made().len(), 1);
}

#[test]
fn a_machine_that_others_take_away_is_left_before_it_goes() {
    let mut w = world(json!({}));
    w.workload(gpu_service(1));
    let name = w.made()[0].0.clone();
    w.claim(&name, Stage::Ready, "n1");
    w.joins("n1", "g4dn.2xlarge");
    w.run_all();
    w.node("lab", json!({}), 1);
    let seen = Seen {
        name,
        stage: Stage::Ready,
        node: "n1".to_owned(),
        deleting: true,
        ..Seen::default()
    };
    w.heard(Heard::Seen(Box::new(seen)));
    assert_eq!(w.on(0), Some(("lab".to_owned(), 2)));
    assert_eq!(
        w.stopped,
        [],
        "the old copy goes on until the new one is ready"
    );
}

#[test]
fn a_machine_that_is_much_better_is_bought_for_a_service_that_has_a_place() {
    const INTERVAL: Duration = Duration::from_secs(600);
    let mut w = world(json!({ "instanceTypes": ["m5.2xlarge"], "capacityTypes": ["spot"] }));
    w.index.reconsider = Some(INTERVAL);
    let mut dear = aws();
    dear["hyperion.io/price-per-hour"] = json!("90.0");
    w.node("dear", dear, 0);
    w.workload(with_policy(service(1, "i"), json!({ "goal": "cost" })));
    w.run_all();
    assert_eq!(w.on(0), Some(("dear".to_owned(), 1)));
    assert_eq!(w.made(), []);
    w.wait(INTERVAL);
    assert_eq!(w.made(), [], "one look is no reason to buy");
    w.wait(INTERVAL);
    let made = w.made();
    assert_eq!(made.len(), 1);
    assert_eq!(w.told("Launching"), 1);
    assert_eq!(w.on(0), Some(("dear".to_owned(), 1)));
    w.wait(INTERVAL);
    assert_eq!(w.made(), made, "nothing is bought twice");

    w.claim(&made[0].0, Stage::Ready, "n1");
    w.joins("n1", "m5.2xlarge");
    w.due_after(Duration::from_secs(2));
    assert_eq!(w.on(0), Some(("east.n1".to_owned(), 2)));
    assert_eq!(
        w.stopped,
        [],
        "the old copy goes on until the new one is ready"
    );
    w.run_all();
    w.due_after(EMPTY * 2);
    assert_eq!(w.given_back(), Vec::<String>::new());
}

#[test]
fn a_machine_that_is_a_little_better_is_not_bought() {
    const INTERVAL: Duration = Duration::from_secs(600);
    let mut w = world(json!({ "instanceTypes": ["m5.2xlarge"], "capacityTypes": ["spot"] }));
    w.index.reconsider = Some(INTERVAL);
    let mut fair = aws();
    fair["hyperion.io/price-per-hour"] = json!("0.5");
    w.node("fair", fair, 0);
    w.workload(with_policy(service(1, "i"), json!({ "goal": "cost" })));
    w.run_all();
    for _ in 0..4 {
        w.wait(INTERVAL);
    }
    assert_eq!(w.made(), []);
}
