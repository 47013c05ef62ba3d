//! Orders to update reach their node, and what it says of them reaches its object.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Fleet, eventually, hello, message, next, welcome};
use hyperion_link::{Link, LinkConfig, LinkEvent};
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{
    NodeState, Slot, SlotState, UpdateOrder, UpdatePhase, UpdateProgress, UpdateState,
};

fn order(id: &str, activate: bool) -> UpdateOrder {
    UpdateOrder {
        id: id.to_owned(),
        activate,
        ..UpdateOrder::default()
    }
}

/// The next order.
async fn told(link: &mut Link) -> UpdateOrder {
    loop {
        if let LinkEvent::Message(m) = next(link).await
            && let Some(Body::UpdateOrder(order)) = m.body
        {
            return order;
        }
    }
}

fn state(phase: UpdatePhase, version: &str) -> UpdateState {
    UpdateState {
        machine: "board".to_owned(),
        system_version: version.to_owned(),
        slots: vec![Slot {
            name: "a".to_owned(),
            version: version.to_owned(),
            state: SlotState::Good.into(),
            running: true,
        }],
        progress: Some(UpdateProgress {
            order_id: "one".to_owned(),
            phase: phase.into(),
            ..UpdateProgress::default()
        }),
    }
}

#[tokio::test]
async fn orders_come_with_the_welcome_and_when_they_change() {
    let fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    let start = |update: Option<UpdateState>| {
        let mut config = LinkConfig::new(fleet.target());
        config.backoff_min = Duration::from_millis(50);
        config.backoff_max = Duration::from_millis(500);
        let mut hello = hello(&identity.node_id, "boot-1");
        hello.update = update;
        hyperion_link::start(config, identity.clone(), Arc::new(move || hello.clone()))
    };
    let mut link = start(Some(state(UpdatePhase::Downloading, "1")));
    // The control plane has not read its state: the node keeps the order that it has.
    assert_eq!(welcome(&mut link).await.update, None);
    fleet.gateway.mark_updates_known();
    assert_eq!(told(&mut link).await.id, "");
    fleet
        .gateway
        .set_update(&identity.node_id, order("one", false));
    assert_eq!(told(&mut link).await, order("one", false));
    fleet
        .gateway
        .set_update(&identity.node_id, order("one", true));
    assert_eq!(told(&mut link).await, order("one", true));

    let path = common::node_path(&identity.node_id);
    let held = || fleet.api.get(&path).unwrap()["status"]["update"].clone();
    eventually("what hello said", || {
        held()["progress"]["phase"] == "Downloading"
    })
    .await;
    let news = NodeState {
        update: Some(state(UpdatePhase::Done, "2")),
        ..NodeState::default()
    };
    link.sender()
        .try_send(message(Body::NodeState(news)))
        .unwrap();
    eventually("what changed", || {
        let _ = link.sender().try_send(common::telemetry(1.0));
        held()["progress"]["phase"] == "Done" && held()["slots"][0]["version"] == "2"
    })
    .await;
    // An agent that says nothing of it says nothing against it.
    let other = NodeState {
        mode: "connected".to_owned(),
        ..NodeState::default()
    };
    link.sender()
        .try_send(message(Body::NodeState(other)))
        .unwrap();
    link.close().await;
    eventually("gone", || {
        fleet.api.get(&path).unwrap()["status"]["ready"] == "False"
    })
    .await;
    assert_eq!(held()["systemVersion"], "2");

    let mut link = start(None);
    assert_eq!(welcome(&mut link).await.update, Some(order("one", true)));
    fleet
        .gateway
        .set_update(&identity.node_id, UpdateOrder::default());
    assert_eq!(told(&mut link).await.id, "");
    link.close().await;
    let mut link = start(None);
    let nothing = welcome(&mut link).await.update;
    assert_eq!(nothing, Some(UpdateOrder::default()));
}
