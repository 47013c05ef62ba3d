//! The fault that the link contains. When this test fails, h3-quinn is mended, and
//! `proto/link/src/body.rs` may become simpler.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::Fleet;

#[tokio::test]
async fn stopping_a_stream_with_a_pending_read_still_panics_in_h3_quinn() {
    let fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    let mut raw = fleet.raw(Some(&identity)).await;
    let hello = common::hello(&identity.node_id, "boot-1");
    raw.message(&common::message(
        hyperion_proto::agent_v1::stream_message::Body::Hello(hello),
    ))
    .await;
    raw.receive.recv_response().await.unwrap();
    // After the welcome there is nothing to read.
    let mut receive = raw.receive;
    assert!(receive.recv_data().await.unwrap().is_some());
    let pending = tokio::time::timeout(std::time::Duration::from_millis(200), async {
        while receive.recv_data().await.unwrap().is_some() {}
    });
    assert!(pending.await.is_err(), "the stream ended");
    let stopped = tokio::spawn(async move {
        receive.stop_sending(h3::error::Code::H3_REQUEST_CANCELLED);
    });
    assert!(stopped.await.unwrap_err().is_panic());
}
