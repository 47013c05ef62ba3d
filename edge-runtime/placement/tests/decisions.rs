//! Behaviour of whole decisions, by example and by property.

use std::collections::BTreeMap;

use hyperion_placement::filter::Constraint;
use hyperion_placement::model::*;
use hyperion_placement::{CandidateRef, RulesScorer, check, decide};
use proptest::prelude::*;

fn node(id: &str, provider: Provider, region: &str, geography: Option<Geography>) -> Node {
    let edge = provider == Provider::Edge;
    Node {
        id: id.to_owned(),
        location: Location {
            tier: if edge { Tier::Edge } else { Tier::Cloud },
            provider,
            region: region.to_owned(),
            zone: String::new(),
            site: if edge {
                region.to_owned()
            } else {
                String::new()
            },
            geography,
        },
        arch: "amd64".to_owned(),
        capacity_type: if edge {
            CapacityType::Owned
        } else {
            CapacityType::OnDemand
        },
        instance_type: String::new(),
        allocatable: Resources {
            cpu_millis: 4000,
            memory_bytes: 8 << 30,
        },
        free: Resources {
            cpu_millis: 4000,
            memory_bytes: 8 << 30,
        },
        gpus: Vec::new(),
        labels: BTreeMap::new(),
        taints: Vec::new(),
        schedulable: true,
        ready: true,
        price_per_hour: if edge { 0.0 } else { 0.2 },
        cpu_utilization: 0.1,
        images: Vec::new(),
        supply: Supply::default(),
    }
}

fn request() -> Request {
    Request {
        resources: Resources {
            cpu_millis: 500,
            memory_bytes: 1 << 30,
        },
        ..Request::new("default/w/0")
    }
}

fn chosen(snapshot: &Snapshot, request: &Request) -> Option<String> {
    let decision = decide(snapshot, request, &RulesScorer);
    let choice = decision.choice?;
    assert_eq!(check(snapshot, request, &choice), Ok(()));
    match choice.candidate {
        CandidateRef::Node(id) | CandidateRef::Offer(id) => Some(id),
    }
}

fn fleet() -> Snapshot {
    let mut latency = LatencyMatrix::default();
    let eu = Place("geo:EU".to_owned());
    latency.insert(&eu, &Place("aws:us-east-1".to_owned()), 90.0);
    latency.insert(&eu, &Place("gcp:europe-west1".to_owned()), 20.0);
    Snapshot {
        version: 1,
        nodes: vec![
            node("a-edge", Provider::Edge, "lab", None),
            node("b-aws", Provider::Aws, "us-east-1", Some(Geography::Us)),
            node("c-gcp", Provider::Gcp, "europe-west1", Some(Geography::Eu)),
        ],
        offers: Vec::new(),
        latency,
        ..Snapshot::default()
    }
}

#[test]
fn latency_goal_goes_near_its_clients() {
    let mut r = request();
    r.goal = Goal::Latency;
    r.clouds = vec![Provider::Aws, Provider::Gcp];
    r.clients = vec![Client {
        place: Place("geo:EU".to_owned()),
        weight: 1.0,
    }];
    assert_eq!(chosen(&fleet(), &r).as_deref(), Some("c-gcp"));
}

#[test]
fn cost_goal_takes_owned_hardware() {
    let mut r = request();
    r.goal = Goal::Cost;
    assert_eq!(chosen(&fleet(), &r).as_deref(), Some("a-edge"));
}

#[test]
fn unknown_geography_never_satisfies_sovereignty() {
    let mut r = request();
    r.geographies = vec![Geography::Us];
    r.clouds = vec![Provider::Edge];
    let decision = decide(&fleet(), &r, &RulesScorer);
    assert!(decision.choice.is_none());
    assert_eq!(
        decision.explanation.rejected.get(&Constraint::Geographies),
        Some(&2)
    );
    assert_eq!(
        decision.explanation.rejected.get(&Constraint::Clouds),
        Some(&1)
    );
    assert_eq!(
        decision.explanation.summary(),
        "0 of 3 nodes fit: 2 ruled out by geographies, 1 by clouds"
    );
}

#[test]
fn gpu_shares_pack_on_the_fullest_device_with_room() {
    let mut s = fleet();
    let device = |uuid: &str, free_millis| GpuDevice {
        uuid: uuid.to_owned(),
        model: "L4".to_owned(),
        memory_bytes: 24 << 30,
        free_millis,
    };
    s.nodes[1].gpus = vec![device("g0", 1000), device("g1", 300), device("g2", 100)];
    let mut r = request();
    r.gpu = GpuRequest {
        count: 1,
        millis: 250,
    };
    let choice = decide(&s, &r, &RulesScorer).choice.unwrap();
    assert_eq!(choice.gpus, vec![("g1".to_owned(), 250)]);
    r.gpu = GpuRequest {
        count: 2,
        millis: 1000,
    };
    assert!(decide(&s, &r, &RulesScorer).choice.is_none());
}

#[test]
fn taints_need_a_toleration() {
    let mut s = fleet();
    s.nodes.truncate(1);
    s.nodes[0].taints = vec![Taint {
        key: "k".into(),
        value: "v".into(),
        effect: "NoSchedule".into(),
    }];
    assert_eq!(chosen(&s, &request()), None);
    let mut r = request();
    r.tolerations = vec![Toleration {
        key: "k".into(),
        operator: "Equal".into(),
        value: "v".into(),
        effect: String::new(),
    }];
    assert_eq!(chosen(&s, &r).as_deref(), Some("a-edge"));
}

#[test]
fn an_unknown_price_does_not_pass_a_cost_bound() {
    let mut s = fleet();
    s.nodes.remove(0);
    s.nodes[0].price_per_hour = f64::NAN;
    s.nodes[1].price_per_hour = -5.0;
    let mut r = request();
    r.max_hourly_cost = Some(1.0);
    assert_eq!(chosen(&s, &r), None);
}

#[test]
fn replicas_spread_over_equal_nodes() {
    let mut s = fleet();
    s.nodes = vec![
        node("x", Provider::Aws, "us-east-1", Some(Geography::Us)),
        node("y", Provider::Aws, "us-east-1", Some(Geography::Us)),
    ];
    let mut r = request();
    r.siblings.insert("x".to_owned());
    assert_eq!(chosen(&s, &r).as_deref(), Some("y"));
}

/// The encoding is a contract with trained policies: a change here needs a new schema number.
#[test]
fn feature_vector_is_golden() {
    use hyperion_placement::features::*;
    let s = fleet();
    let mut r = request();
    r.goal = Goal::Latency;
    r.clients = vec![Client {
        place: Place("geo:EU".to_owned()),
        weight: 1.0,
    }];
    let f = encode(&s.latency, &r, &(&s.nodes[2]).into());
    let asked = encode_request(&r, &Summary::of(&s));
    let groups: [(&[Slot], &[f32]); 4] = [
        (NODE, &f.node),
        (REQUEST, &asked),
        (PAIR, &f.pair),
        (FIT, &f.fit),
    ];
    let named: Vec<(&str, String)> = groups
        .iter()
        .flat_map(|(table, values)| table.iter().zip(*values))
        .filter(|(_, v)| **v != 0.0)
        .map(|(slot, v)| (slot.name, format!("{v:.5}")))
        .collect();
    let expected = [
        ("price", "0.18232"),
        ("price_known", "1.00000"),
        ("free_cpu", "1.00000"),
        ("free_memory", "1.00000"),
        ("cores", "0.40236"),
        ("memory", "0.54931"),
        ("cpu_utilization", "0.10000"),
        ("obtainable", "1.00000"),
        ("goal_latency", "1.00000"),
        ("is_service", "1.00000"),
        ("cpu_asked", "0.13516"),
        ("memory_asked", "0.17329"),
        ("clients_known", "1.00000"),
        ("service_time", "0.44794"),
        ("edge_share_of_nodes", "0.33333"),
        ("edge_free_cpu", "1.00000"),
        ("cloud_free_cpu", "1.00000"),
        ("replica_cost", "0.02469"),
        ("replica_cost_known", "1.00000"),
        ("cost_reward", "0.58640"),
        ("idle_p99", "0.57762"),
        ("p99_known", "1.00000"),
        ("latency_reward", "0.96046"),
        ("idle_reward", "0.60260"),
        ("free_cpu_after", "0.87500"),
        ("free_memory_after", "0.87500"),
        ("images_present", "1.00000"),
        ("p99", "0.62289"),
        ("latency_reward_lost_to_load", "0.39301"),
    ];
    let expected: Vec<(&str, String)> = expected
        .iter()
        .map(|(n, v)| (*n, (*v).to_owned()))
        .collect();
    assert_eq!(named, expected);
    assert_eq!(table_hash().len(), 64);
}

fn any_f64() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => 0.0..10.0_f64,
        1 => Just(f64::NAN),
        1 => Just(f64::INFINITY),
        1 => -5.0..0.0_f64,
    ]
}

prop_compose! {
    fn any_node(id: usize)(
        provider in 0..4_usize,
        geography in proptest::option::of(0..3_usize),
        price in any_f64(),
        utilization in any_f64(),
        cpu in 0..4000_u64,
        memory in 0..(8_u64 << 30),
        gpu in proptest::option::of(0..=1000_u32),
        ready in any::<bool>(),
        schedulable in any::<bool>(),
    ) -> Node {
        let mut n = node(
            &format!("n{id:03}"),
            Provider::ALL[provider],
            "r",
            geography.map(|g| Geography::ALL[g]),
        );
        n.price_per_hour = price;
        n.cpu_utilization = utilization as f32;
        n.free = Resources { cpu_millis: cpu, memory_bytes: memory };
        n.ready = ready;
        n.schedulable = schedulable;
        n.gpus = gpu
            .map(|free_millis| GpuDevice {
                uuid: "g".to_owned(),
                model: String::new(),
                memory_bytes: 0,
                free_millis,
            })
            .into_iter()
            .collect();
        n
    }
}

prop_compose! {
    fn any_request()(
        goal in 0..3_usize,
        cpu in 0..3000_u64,
        memory in 0..(6_u64 << 30),
        gpu in 0..=1_u32,
        millis in 1..=1000_u32,
        geography in proptest::option::of(0..3_usize),
        cloud in proptest::option::of(0..4_usize),
        most in proptest::option::of(any_f64()),
        target in proptest::option::of(any_f64()),
        weight in any_f64(),
    ) -> Request {
        let mut r = request();
        r.goal = Goal::ALL[goal];
        r.resources = Resources { cpu_millis: cpu, memory_bytes: memory };
        r.gpu = GpuRequest { count: gpu, millis };
        r.geographies = geography.map(|g| Geography::ALL[g]).into_iter().collect();
        r.clouds = cloud.map(|p| Provider::ALL[p]).into_iter().collect();
        r.max_hourly_cost = most;
        r.latency_target_ms = target;
        r.clients = vec![Client { place: Place("geo:EU".to_owned()), weight: weight as f32 }];
        r
    }
}

fn any_snapshot() -> impl Strategy<Value = Snapshot> {
    (0..12_usize)
        .prop_flat_map(|n| (0..n).map(any_node).collect::<Vec<_>>())
        .prop_map(|nodes| Snapshot {
            version: 1,
            nodes,
            offers: Vec::new(),
            latency: fleet().latency,
            ..Snapshot::default()
        })
}

#[test]
fn the_check_does_not_rest_on_the_filter() {
    let mut tainted = node("n", Provider::Aws, "us-east-1", Some(Geography::Us));
    let plain = tainted.clone();
    tainted.taints.push(Taint {
        key: "dedicated".to_owned(),
        value: "db".to_owned(),
        effect: "NoSchedule".to_owned(),
    });
    let world = |node: &Node| Snapshot {
        nodes: vec![node.clone()],
        ..Snapshot::default()
    };
    let choice = decide(&world(&plain), &request(), &RulesScorer)
        .choice
        .unwrap();
    let broken = |node: &Node, request: &Request| {
        let found = check(&world(node), request, &choice);
        found.err().map(|v| v[0].constraint)
    };
    assert_eq!(broken(&plain, &request()), None);
    assert_eq!(broken(&tainted, &request()), Some("taints"));
    let mut tolerant = request();
    tolerant.tolerations.push(Toleration {
        key: "dedicated".to_owned(),
        operator: "Equal".to_owned(),
        value: "db".to_owned(),
        effect: String::new(),
    });
    assert_eq!(broken(&tainted, &tolerant), None);
    let mut volumes = request();
    volumes.cluster_only_fields.push("spec.volumes".to_owned());
    assert_eq!(broken(&plain, &volumes), Some("clusterOnlyFields"));
}

#[test]
fn clusters_carry_out_the_whole_template_and_hand_out_whole_gpus() {
    let on = |id: &str| {
        let mut node = node(id, Provider::Aws, "us-east-1", Some(Geography::Us));
        node.gpus = vec![GpuDevice {
            uuid: "gpu".to_owned(),
            model: "T4".to_owned(),
            memory_bytes: 16 << 30,
            free_millis: 1000,
        }];
        node
    };
    let mut pods = on("b");
    pods.labels
        .insert(CLUSTER_LABEL.to_owned(), "eu".to_owned());
    let world = Snapshot {
        nodes: vec![on("a"), pods],
        ..Snapshot::default()
    };
    let placed = |request: &Request| {
        let decision = decide(&world, request, &RulesScorer);
        let rejected: Vec<Constraint> = decision.explanation.rejected.keys().copied().collect();
        (decision.choice.map(|c| c.candidate), rejected)
    };
    let mut volumes = request();
    volumes.cluster_only_fields.push("spec.volumes".to_owned());
    let b = CandidateRef::Node("b".to_owned());
    assert_eq!(placed(&volumes), (Some(b), vec![Constraint::ClusterOnly]));
    let mut share = request();
    share.gpu = GpuRequest {
        count: 1,
        millis: 500,
    };
    let a = CandidateRef::Node("a".to_owned());
    assert_eq!(placed(&share), (Some(a), vec![Constraint::Gpu]));
}

proptest! {
    #[test]
    fn whatever_is_chosen_passes_the_check(s in any_snapshot(), r in any_request()) {
        let decision = decide(&s, &r, &RulesScorer);
        if let Some(choice) = &decision.choice {
            prop_assert_eq!(check(&s, &r, choice), Ok(()));
            prop_assert!(choice.score.is_finite());
        }
        let counted = decision.explanation.candidates
            + decision.explanation.rejected.values().sum::<usize>();
        prop_assert_eq!(counted, s.nodes.len());
        prop_assert_eq!(decision.choice.is_some(), decision.explanation.candidates > 0);
    }

    #[test]
    fn order_of_nodes_does_not_matter(s in any_snapshot(), r in any_request()) {
        let mut reversed = s.clone();
        reversed.nodes.reverse();
        prop_assert_eq!(decide(&s, &r, &RulesScorer), decide(&reversed, &r, &RulesScorer));
    }

    #[test]
    fn a_node_that_does_not_fit_changes_nothing(s in any_snapshot(), r in any_request()) {
        let mut more = s.clone();
        let mut extra = node("zzz", Provider::Aws, "r", None);
        extra.ready = false;
        more.nodes.push(extra);
        prop_assert_eq!(
            decide(&s, &r, &RulesScorer).choice,
            decide(&more, &r, &RulesScorer).choice
        );
    }
}
