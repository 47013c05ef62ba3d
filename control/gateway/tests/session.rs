//! What an open stream carries, and how it ends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::{
    Fleet, disconnect, eventually, hello, key, message, next, refusal, start, telemetry, welcome,
};
use futures::StreamExt;
use hyperion_gateway::{GatewayEvent, LogRequest};
use hyperion_link::{Link, LinkEvent, SendError};
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{
    Event, LogChunk, RenewCertificate, ReplicaPhase, ReplicaReport, Telemetry, Welcome,
};
use hyperion_proto::convert;

fn report(phase: i32) -> ReplicaReport {
    ReplicaReport {
        key: Some(key("web", 0)),
        generation: 3,
        phase,
        ..ReplicaReport::default()
    }
}

/// A welcome in the middle of a session.
async fn welcome_again(link: &mut Link) -> Welcome {
    let Body::Welcome(welcome) = command(link).await else {
        panic!("no welcome");
    };
    welcome
}

async fn command(link: &mut Link) -> Body {
    loop {
        if let LinkEvent::Message(m) = next(link).await {
            return m.body.unwrap();
        }
    }
}

#[tokio::test]
async fn telemetry_becomes_live_state() {
    let fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    let mut link = fleet.link(&identity);
    let greeting = welcome(&mut link).await;
    assert!(greeting.wall_clock_unix_ms > 1_700_000_000_000);
    assert!(!greeting.replicas_complete);
    link.sender().try_send(telemetry(42.0)).unwrap();
    eventually("telemetry in live state", || {
        fleet.gateway.cpu_utilization(&identity.node_id) == Some(0.42)
    })
    .await;
    let live = fleet.gateway.live_since(0);
    assert_eq!(live.nodes.len(), 1);
    assert!(live.nodes[0].connected);
    assert_eq!(live.nodes[0].memory_total_bytes, 8 << 30);
    assert!(fleet.gateway.live_since(live.version).nodes.is_empty());
    assert!(link.sender().rtt_ms().is_some());
    link.close().await;
    eventually("disconnect in live state", || {
        let live = fleet.gateway.live_since(live.version);
        live.nodes.len() == 1 && !live.nodes[0].connected
    })
    .await;
}

#[tokio::test]
async fn a_nodes_object_says_ready_while_its_stream_is_open() {
    let fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    let path = common::node_path(&identity.node_id);
    let ready = || fleet.api.get(&path).unwrap()["status"]["ready"].clone();
    let mut link = fleet.link(&identity);
    welcome(&mut link).await;
    eventually("ready", || ready() == "True").await;
    link.close().await;
    eventually("not ready", || ready() == "False").await;
}

#[tokio::test]
async fn a_status_that_could_not_be_written_is_written_later() {
    let fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    fleet.api.fail_writes_of("hyperionnodes", true);
    let mut link = fleet.link(&identity);
    welcome(&mut link).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    fleet.api.fail_writes_of("hyperionnodes", false);
    let path = common::node_path(&identity.node_id);
    eventually("ready", || {
        // The write is tried again after longer than a silent node is believed in.
        let _ = link.sender().try_send(telemetry(1.0));
        fleet.api.get(&path).unwrap()["status"]["ready"] == "True"
    })
    .await;
}

#[tokio::test]
async fn telemetry_that_makes_no_sense_is_dropped_and_counted_and_the_session_lives() {
    let fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    let mut link = fleet.link(&identity);
    welcome(&mut link).await;
    let bad = [
        telemetry(f32::NAN),
        telemetry(f32::INFINITY),
        telemetry(f32::NEG_INFINITY),
        telemetry(-1.0),
        telemetry(101.0),
        message(Body::Telemetry(Telemetry {
            memory_used_bytes: -1,
            ..Telemetry::default()
        })),
        message(Body::Telemetry(Telemetry {
            load1: f32::NAN,
            ..Telemetry::default()
        })),
    ];
    let count = bad.len() as u64;
    for message in bad {
        link.sender().try_send(message).unwrap();
    }
    fleet.serves(&link).await;
    assert_eq!(fleet.refused("telemetry"), count);
    let cpu = fleet.gateway.cpu_utilization(&identity.node_id).unwrap();
    assert!((cpu - 0.01).abs() < 1e-6, "{cpu}");
}

#[tokio::test]
async fn one_odd_replica_does_not_lock_a_node_out() {
    let mut fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    let mut raw = fleet.raw(Some(&identity)).await;
    let mut first = hello(&identity.node_id, "boot-1");
    first.replicas = vec![report(99), report(ReplicaPhase::Running.into())];
    raw.message(&message(Body::Hello(first))).await;
    assert_eq!(fleet.node_up().await, identity.node_id);
    let GatewayEvent::Report { report, .. } = fleet.next_event().await else {
        panic!("no report");
    };
    assert_eq!(report.phase, ReplicaPhase::Running);
    assert_eq!(fleet.refused("replica_report"), 1);
}

#[tokio::test]
async fn events_are_acknowledged_even_where_they_are_refused() {
    let mut fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    let mut link = fleet.link(&identity);
    welcome(&mut link).await;
    for (id, reason) in [(1, "x".repeat(500)), (2, "ImagePulled".to_owned())] {
        let event = Event {
            id,
            reason,
            ..Event::default()
        };
        link.sender().try_send(message(Body::Event(event))).unwrap();
        let Body::EventAck(ack) = command(&mut link).await else {
            panic!("no acknowledgement");
        };
        assert_eq!(ack.id, id);
    }
    assert_eq!(fleet.refused("event"), 1);
    loop {
        if let GatewayEvent::Event { event, .. } = fleet.next_event().await {
            assert_eq!(event.id, 2);
            break;
        }
    }
}

#[tokio::test]
async fn revoking_cuts_off_at_once_and_for_good() {
    let mut fleet = Fleet::start().await;
    let (good, bad) = (fleet.enrol().await, fleet.enrol().await);
    let mut healthy = fleet.link(&good);
    welcome(&mut healthy).await;
    let mut link = fleet.link(&bad);
    welcome(&mut link).await;
    let began = std::time::Instant::now();
    fleet.set_node(&bad.node_id, |o| o["spec"]["revoked"] = true.into());
    assert!(refusal(&mut link).await.contains("is revoked"));
    assert!(began.elapsed() < Duration::from_secs(2));
    assert_eq!(fleet.node_down().await.0, bad.node_id);
    // It goes on trying, and is refused each time.
    assert!(refusal(&mut link).await.contains("is revoked"));
    assert!(refusal(&mut link).await.contains("is revoked"));
    assert!(!fleet.gateway.connected(&bad.node_id));
    fleet.serves(&healthy).await;
}

#[tokio::test]
async fn a_node_revoked_while_it_is_away_is_refused_also_after_a_restart() {
    let fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    fleet.set_node(&identity.node_id, |o| o["spec"]["revoked"] = true.into());
    let fleet = fleet.restart().await;
    let mut link = fleet.link(&identity);
    assert!(refusal(&mut link).await.contains("is revoked"));
    // Forgiven by a person: it comes back by itself.
    fleet.set_node(&identity.node_id, |o| o["spec"]["revoked"] = false.into());
    welcome(&mut link).await;
}

#[tokio::test]
async fn the_certificate_of_another_node_is_refused() {
    let fleet = Fleet::start().await;
    let (mine, other) = (fleet.enrol().await, fleet.enrol().await);
    let mut pretender = other.clone();
    pretender.key_der.clone_from(&mine.key_der);
    pretender.chain_der.clone_from(&mine.chain_der);
    let mut link = fleet.link(&pretender);
    let reason = refusal(&mut link).await;
    assert!(reason.contains(&mine.node_id), "{reason}");
    assert!(reason.contains(&other.node_id), "{reason}");
    assert!(!fleet.gateway.connected(&other.node_id));
}

#[tokio::test]
async fn of_two_devices_with_one_identity_the_first_stays() {
    let mut fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    let mut first = fleet.link_with(&identity, "boot-1", |_| {});
    welcome(&mut first).await;
    let sender = first.sender();
    let alive = tokio::spawn(async move {
        loop {
            let _ = sender.try_send(telemetry(1.0));
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    let mut second = fleet.link_with(&identity, "boot-2", |_| {});
    let reason = refusal(&mut second).await;
    assert!(reason.contains("in use by another device"), "{reason}");
    fleet.serves(&first).await;
    assert_eq!(fleet.node_up().await, identity.node_id);
    second.close().await;
    let mut told = 0;
    while let Ok(event) = fleet.events.try_recv() {
        let GatewayEvent::Event { node, event } = event else {
            panic!("the first was disturbed: {event:?}");
        };
        assert_eq!(
            (node, event.reason.as_str()),
            (identity.node_id.clone(), "DuplicateIdentity")
        );
        told += 1;
    }
    assert!(told > 0);
    alive.abort();
}

#[tokio::test]
async fn a_crashed_agent_that_is_back_takes_over_after_a_silence() {
    let fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    // Says hello and is never heard again, with its connection left open.
    let mut crashed = fleet.raw(Some(&identity)).await;
    crashed
        .message(&message(Body::Hello(hello(&identity.node_id, "boot-1"))))
        .await;
    eventually("connected", || fleet.gateway.connected(&identity.node_id)).await;
    let began = std::time::Instant::now();
    let mut link = fleet.link_with(&identity, "boot-2", |_| {});
    welcome(&mut link).await;
    assert!(began.elapsed() < Duration::from_secs(6));
    assert!(crashed.closed().await.contains("newer session"));
    fleet.serves(&link).await;
}

#[tokio::test]
async fn a_node_that_falls_silent_is_down_long_before_quic_notices() {
    let mut fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    let mut silent = fleet.raw(Some(&identity)).await;
    silent
        .message(&message(Body::Hello(hello(&identity.node_id, "boot-1"))))
        .await;
    fleet.node_up().await;
    let began = std::time::Instant::now();
    let (node, reason) = fleet.node_down().await;
    assert_eq!(node, identity.node_id);
    assert!(reason.contains("not heard"), "{reason}");
    assert!(began.elapsed() < Duration::from_secs(15));
    assert!(silent.closed().await.contains("not heard"));
}

#[tokio::test]
async fn the_same_boot_replaces_its_old_session_without_going_down() {
    let mut fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    let mut old = fleet.raw(Some(&identity)).await;
    old.message(&message(Body::Hello(hello(&identity.node_id, "boot-1"))))
        .await;
    fleet.node_up().await;
    let mut link = fleet.link_with(&identity, "boot-1", |_| {});
    welcome(&mut link).await;
    fleet.node_up().await;
    old.closed().await;
    fleet.serves(&link).await;
    assert!(fleet.events.try_recv().is_err(), "a NodeDown came");
    assert_eq!(fleet.metric("hyperion_gateway_sessions"), 1);
}

#[tokio::test]
async fn what_a_node_should_run_is_told_at_connect_and_when_it_changes() {
    let fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    let node = &identity.node_id;
    fleet.gateway.set_desired(node, start("web", 0, 2, 10));
    fleet.gateway.set_desired(node, start("web", 0, 1, 10));
    fleet.gateway.mark_desired_complete();
    let mut link = fleet.link(&identity);
    let greeting = welcome(&mut link).await;
    assert!(greeting.replicas_complete);
    assert_eq!(greeting.replicas.len(), 1);
    assert_eq!(greeting.replicas[0].generation, 2);
    fleet.gateway.set_desired(node, start("web", 1, 1, 10));
    let Body::StartReplica(order) = command(&mut link).await else {
        panic!("no order");
    };
    assert_eq!(order.key, Some(key("web", 1)));
    let gone = convert::replica_key("key", Some(&key("web", 0))).unwrap();
    // An older order to stop does not undo a newer order to start.
    fleet.gateway.remove_desired(node, &gone, 1);
    fleet.gateway.remove_desired(node, &gone, 2);
    let Body::StopReplica(order) = command(&mut link).await else {
        panic!("no order");
    };
    assert_eq!((order.key, order.generation), (Some(key("web", 0)), 2));
}

#[tokio::test]
async fn a_node_that_is_held_back_learns_of_a_complete_list_when_it_is_released() {
    let fleet = Fleet::start().await;
    let (held, other) = (fleet.enrol().await, fleet.enrol().await);
    let mut there = fleet.link(&held);
    assert!(!welcome(&mut there).await.replicas_complete);
    fleet.gateway.hold_back([held.node_id.clone()].into());
    fleet.gateway.mark_desired_complete();
    assert!(!welcome_again(&mut there).await.replicas_complete);
    there.close().await;
    let mut back = fleet.link(&held);
    assert!(!welcome(&mut back).await.replicas_complete);
    let mut link = fleet.link(&other);
    assert!(welcome(&mut link).await.replicas_complete);
    fleet
        .gateway
        .set_desired(&held.node_id, start("web", 0, 1, 10));
    assert!(matches!(command(&mut back).await, Body::StartReplica(_)));
    fleet.gateway.hold_back([].into());
    let greeting = welcome_again(&mut back).await;
    assert!(greeting.replicas_complete);
    assert_eq!(greeting.replicas.len(), 1);
}

#[tokio::test]
async fn a_welcome_of_many_megabytes_arrives() {
    let fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    for index in 0..100 {
        fleet
            .gateway
            .set_desired(&identity.node_id, start("web", index, 1, 100_000));
    }
    fleet.gateway.mark_desired_complete();
    let mut link = fleet.link(&identity);
    let greeting = welcome(&mut link).await;
    assert_eq!(greeting.replicas.len(), 100);
    assert!(greeting.replicas_complete);
}

#[tokio::test]
async fn what_does_not_fit_in_a_welcome_follows_and_nothing_is_stopped() {
    let fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    for index in 0..40 {
        fleet
            .gateway
            .set_desired(&identity.node_id, start("big", index, 1, 1 << 20));
    }
    fleet.gateway.mark_desired_complete();
    let mut link = fleet.link(&identity);
    let greeting = welcome(&mut link).await;
    assert!(!greeting.replicas_complete);
    let mut orders = greeting.replicas.len();
    while orders < 40 {
        assert!(matches!(command(&mut link).await, Body::StartReplica(_)));
        orders += 1;
    }
}

#[tokio::test]
async fn an_agent_that_does_not_read_is_let_go_and_holds_up_nobody() {
    let mut fleet = Fleet::start().await;
    let (slow, good) = (fleet.enrol().await, fleet.enrol().await);
    let mut healthy = fleet.link(&good);
    welcome(&mut healthy).await;
    fleet.node_up().await;
    let mut raw = fleet.raw(Some(&slow)).await;
    raw.message(&message(Body::Hello(hello(&slow.node_id, "boot-1"))))
        .await;
    assert_eq!(fleet.node_up().await, slow.node_id);
    for generation in 1..=600 {
        let began = std::time::Instant::now();
        fleet
            .gateway
            .set_desired(&slow.node_id, start("web", 0, generation, 10_000));
        assert!(began.elapsed() < Duration::from_secs(1), "blocked");
    }
    let (node, reason) = fleet.node_down().await;
    assert_eq!(node, slow.node_id, "{reason}");
    assert!(raw.closed().await.contains("does not keep up"));
    fleet.serves(&healthy).await;
}

fn logs_of(workload: &str) -> LogRequest {
    LogRequest {
        key: convert::replica_key("key", Some(&key(workload, 0))).unwrap(),
        container: String::new(),
        tail_lines: 0,
        follow: true,
    }
}

async fn log_order(link: &mut Link) -> hyperion_proto::agent_v1::FetchLogs {
    loop {
        if let Body::FetchLogs(order) = command(link).await {
            return order;
        }
    }
}

fn chunk(request_id: u64, data: &[u8], end: bool) -> hyperion_proto::agent_v1::StreamMessage {
    message(Body::LogChunk(LogChunk {
        request_id,
        data: data.to_vec(),
        end,
        error: String::new(),
    }))
}

#[tokio::test]
async fn logs_come_through_and_a_reader_that_leaves_ends_them() {
    let fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    let mut link = fleet.link(&identity);
    welcome(&mut link).await;
    let node = &identity.node_id;
    let mut logs = Box::pin(fleet.gateway.fetch_logs(node, logs_of("web")).unwrap());
    let order = log_order(&mut link).await;
    link.sender()
        .try_send(chunk(order.request_id, b"hello", false))
        .unwrap();
    assert_eq!(logs.next().await.unwrap().unwrap(), "hello");
    drop(logs);
    let cancel = log_order(&mut link).await;
    assert!(cancel.cancel);
    assert_eq!(cancel.request_id, order.request_id);

    let mut logs = Box::pin(fleet.gateway.fetch_logs(node, logs_of("web")).unwrap());
    let order = log_order(&mut link).await;
    link.sender()
        .try_send(chunk(order.request_id, b"bye", true))
        .unwrap();
    assert_eq!(logs.next().await.unwrap().unwrap(), "bye");
    assert!(logs.next().await.is_none());

    let mut logs = Box::pin(fleet.gateway.fetch_logs(node, logs_of("web")).unwrap());
    log_order(&mut link).await;
    link.close().await;
    let error = logs.next().await.unwrap().unwrap_err().to_string();
    assert!(error.contains("out of reach"), "{error}");
    let gone = fleet.gateway.fetch_logs("nobody", logs_of("web"));
    assert!(gone.err().unwrap().to_string().contains("nobody"));
}

#[tokio::test]
async fn a_reader_of_logs_that_stalls_does_not_hold_up_the_node() {
    let fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    let mut link = fleet.link(&identity);
    welcome(&mut link).await;
    let logs = fleet
        .gateway
        .fetch_logs(&identity.node_id, logs_of("web"))
        .unwrap();
    let id = log_order(&mut link).await.request_id;
    let sender = link.sender();
    let writer = tokio::spawn(async move {
        let data = vec![b'x'; 256 * 1024];
        for _ in 0..200 {
            let mut next = chunk(id, &data, false);
            while let Err(SendError::Full(back)) = sender.try_send(next) {
                next = *back;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    let cancel = log_order(&mut link).await;
    assert!(cancel.cancel, "the node is told to stop");
    writer.await.unwrap();
    fleet.serves(&link).await;
    let last = logs.collect::<Vec<_>>().await.pop().unwrap();
    assert!(last.unwrap_err().to_string().contains("keep up"));
}

#[tokio::test]
async fn a_renewal_for_another_key_is_refused() {
    let fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    let mut raw = fleet.raw(Some(&identity)).await;
    raw.message(&message(Body::Hello(hello(&identity.node_id, "b"))))
        .await;
    let key = hyperion_link::identity::new_key().unwrap();
    for csr_der in [
        hyperion_link::identity::certificate_request(&key).unwrap(),
        b"no request".to_vec(),
        Vec::new(),
    ] {
        raw.message(&message(Body::RenewCertificate(RenewCertificate {
            csr_der,
        })))
        .await;
    }
    raw.receive.recv_response().await.unwrap();
    let mut bytes = Vec::new();
    let words: &[u8] = b"not signed by this node's key";
    let seen = |bytes: &[u8]| bytes.windows(words.len()).filter(|w| *w == words).count();
    while seen(&bytes) < 3 {
        let mut data = raw.receive.recv_data().await.unwrap().unwrap();
        let left = bytes::Buf::remaining(&data);
        bytes.extend_from_slice(&bytes::Buf::copy_to_bytes(&mut data, left));
    }
    assert!(fleet.gateway.connected(&identity.node_id));
}

#[tokio::test]
async fn an_operator_that_is_slow_gets_every_event_in_order() {
    let mut fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    let mut link = fleet.link(&identity);
    welcome(&mut link).await;
    let sender = link.sender();
    const REPORTS: u64 = 6000;
    let writer = tokio::spawn(async move {
        for generation in 1..=REPORTS {
            let mut next = message(Body::ReplicaReport(ReplicaReport {
                generation,
                ..report(ReplicaPhase::Running.into())
            }));
            while let Err(SendError::Full(back)) = sender.try_send(next) {
                next = *back;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    });
    let mut expected = 1;
    while expected <= REPORTS {
        if let GatewayEvent::Report { report, .. } = fleet.next_event().await {
            assert_eq!(report.generation, expected);
            expected += 1;
            if expected == 10 {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
    writer.await.unwrap();
    assert!(fleet.gateway.connected(&identity.node_id));
}

#[tokio::test]
async fn a_stream_without_hello_is_refused_in_words() {
    let fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    let mut raw = fleet.raw(Some(&identity)).await;
    raw.message(&telemetry(1.0)).await;
    let (code, text) = raw.status().await;
    assert_eq!(code, "3");
    assert!(text.contains("not") && text.contains("hello"), "{text}");
    let mut link = fleet.link_with(&identity, "", |_| {});
    assert!(disconnect(&mut link).await.contains("boot_id"));
    let mut silent = fleet.raw(Some(&identity)).await;
    let (code, text) = silent.status().await;
    assert_eq!(code, "4", "{text}");
}
