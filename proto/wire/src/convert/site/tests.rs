use super::*;

fn wants() -> wire::Intent {
    wire::Intent {
        workload_type: "service".into(),
        goal: "latency".into(),
        exclusive: true,
        replace_after_ms: 5000,
        stop_after_ms: 60_000,
        reconcile: wire::Reconcile::ControlPlane.into(),
        priority: -3,
        cpu_millis: 500,
        memory_bytes: 1 << 28,
        gpu_count: 1,
        gpu_millis: 250,
        geographies: vec!["EU".into()],
        clouds: vec!["edge".into()],
        tiers: vec!["edge".into()],
        archs: vec!["arm64".into()],
        node_selector: [("a".to_owned(), "b".to_owned())].into(),
        tolerations: vec![wire::Toleration {
            key: "k".into(),
            operator: "Exists".into(),
            ..Default::default()
        }],
        max_hourly_cost: Some(0.5),
        prefer_spot: true,
        latency_target_ms: Some(20.0),
        clients: vec![wire::ClientShare {
            place: "site:lab".into(),
            weight: 2.0,
        }],
        data_locality: "aws:us-east-1".into(),
        data_gib: 1.5,
        cluster_only_fields: vec!["spec.volumes".into()],
        manifest: "{}".into(),
    }
}

fn placed() -> wire::ReplicaRecord {
    wire::ReplicaRecord {
        key: Some(wire::ReplicaKey {
            namespace: "default".into(),
            workload: "web".into(),
            workload_uid: "8d3f".into(),
            index: 0,
        }),
        generation: 1,
        state: wire::RecordState::Placed.into(),
        node: "edge-1".into(),
        pod: Some(wire::PodSpec {
            containers: vec![wire::Container {
                name: "main".into(),
                image: "i".into(),
                ..Default::default()
            }],
            ..Default::default()
        }),
        intent: Some(wants()),
        ..Default::default()
    }
}

#[test]
fn an_intent_survives_the_way_there_and_back() {
    let read = intent(&wants()).unwrap();
    assert_eq!(wire::Intent::from(&read), wants());
    assert_eq!(read.replace_after, Some(Duration::from_secs(5)));
    let key = replica_key("k", placed().key.as_ref()).unwrap();
    assert_eq!(read.request(&key).replica, "default/web/0");
}

type Spoil = fn(&mut wire::Intent);

#[test]
fn every_wrong_field_of_an_intent_is_named() {
    let cases: &[(&str, Spoil)] = &[
        ("intent.workload_type", |i| i.workload_type = "cron".into()),
        ("intent.goal", |i| i.goal = String::new()),
        ("intent.replace_after_ms", |i| i.replace_after_ms = u64::MAX),
        ("intent.stop_after_ms", |i| i.stop_after_ms = u64::MAX),
        ("intent.reconcile", |i| i.reconcile = 9),
        ("intent.cpu_millis", |i| i.cpu_millis = -1),
        ("intent.memory_bytes", |i| i.memory_bytes = i64::MAX),
        ("intent.gpu_count", |i| i.gpu_count = u32::MAX),
        ("intent.gpu_millis", |i| i.gpu_millis = 0),
        ("intent.gpu_millis", |i| i.gpu_count = 2),
        ("intent.geographies", |i| {
            i.geographies = vec!["MARS".into()];
        }),
        ("intent.clouds", |i| i.clouds = vec!["x".into()]),
        ("intent.tiers", |i| i.tiers = vec!["x".into()]),
        ("intent.archs", |i| i.archs = vec![String::new()]),
        ("intent.max_hourly_cost", |i| {
            i.max_hourly_cost = Some(f64::NAN);
        }),
        ("intent.latency_target_ms", |i| {
            i.latency_target_ms = Some(-1.0);
        }),
        ("intent.clients[0].weight", |i| {
            i.clients[0].weight = f32::NAN;
        }),
        ("intent.clients[0].place", |i| {
            i.clients[0].place = String::new();
        }),
        ("intent.data_gib", |i| i.data_gib = f64::INFINITY),
        ("intent.tolerations[0].value", |i| {
            i.tolerations[0].value = "\0".into();
        }),
        ("intent.manifest", |i| i.manifest = "x".repeat(1 << 19)),
    ];
    for (field, spoil) in cases {
        let mut wrong = wants();
        spoil(&mut wrong);
        assert_eq!(intent(&wrong).unwrap_err().field, *field);
    }
}

#[test]
fn a_record_with_an_intent_that_can_not_be_read_stays_where_it_is() {
    let mut wire = placed();
    assert!(record(&wire).unwrap().intent.is_some());
    if let Some(intent) = &mut wire.intent {
        intent.goal = "fun".into();
    }
    let read = record(&wire).unwrap();
    assert_eq!(read.intent, None);
    assert!(read.intent_problem.unwrap().starts_with("intent.goal"));
}

type SpoilRecord = fn(&mut wire::ReplicaRecord);

#[test]
fn every_wrong_field_of_a_record_is_named() {
    let cases: &[(&str, SpoilRecord)] = &[
        ("replica_record.key", |r| r.key = None),
        ("replica_record.generation", |r| r.generation = 0),
        ("replica_record.generation", |r| r.generation = u64::MAX),
        ("replica_record.state", |r| r.state = 17),
        ("replica_record.node", |r| r.node = String::new()),
        ("replica_record.node", |r| r.node = "../x".into()),
        ("replica_record.node", |r| {
            r.state = wire::RecordState::Pending.into();
        }),
        ("replica_record.decider", |r| r.decider = "A B".into()),
        ("replica_record.pod", |r| r.pod = None),
        ("replica_record.pod.containers", |r| {
            r.pod = Some(wire::PodSpec::default());
        }),
        ("replica_record.outcome", |r| {
            r.state = wire::RecordState::Ended.into();
        }),
        ("replica_record", |r| r.decider = "x".repeat(2 << 20)),
    ];
    for (field, spoil) in cases {
        let mut wrong = placed();
        spoil(&mut wrong);
        assert_eq!(record(&wrong).unwrap_err().field, *field);
    }
}

#[test]
fn what_a_node_says_of_itself_is_bounded() {
    let good = peer_v1::NodeRecord {
        node_id: "edge-1".into(),
        version: 1 << 32,
        capabilities: Some(wire::NodeCapabilities {
            cpu_arch: "arm64".into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    assert_eq!(node_record(&good).unwrap().0, "edge-1");
    let version = peer_v1::NodeRecord {
        version: u64::MAX,
        ..good.clone()
    };
    assert_eq!(
        node_record(&version).unwrap_err().field,
        "node_record.version"
    );
    let load = peer_v1::NodeRecord {
        load: Some(peer_v1::Load {
            cpu_percent: 101,
            ..Default::default()
        }),
        ..good.clone()
    };
    assert_eq!(
        node_record(&load).unwrap_err().field,
        "node_record.load.cpu_percent"
    );
    let held = peer_v1::NodeRecord {
        held: vec![peer_v1::HeldReplica::default()],
        ..good
    };
    assert_eq!(
        node_record(&held).unwrap_err().field,
        "node_record.held.key"
    );
}

#[test]
fn a_site_with_a_node_that_is_none_is_refused() {
    let info = wire::SiteInfo {
        members: vec![wire::SiteMember {
            node_id: "x/y".into(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let refused = site_info(&info).unwrap_err();
    assert_eq!(refused.field, "site_info.members[0].node_id");
}
