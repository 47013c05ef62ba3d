//! Two control planes on one API: one leads, the other stands by and takes over.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

mod common;

use std::net::SocketAddr;

use clap::Parser;
use common::{eventually, free_port, get};
use hyperion_operator::args::Args;
use tokio_util::sync::CancellationToken;

async fn role(http: SocketAddr, word: &'static str) {
    eventually(word, || async move {
        let (_, text) = get(http, "/readyz").await.map_err(|e| e.to_string())?;
        if text.contains(word) {
            Ok(())
        } else {
            Err(text)
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_over_when_the_leader_stops() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = dir.path().join("kubeconfig");
    let api = hyperion_embedded::start(hyperion_embedded::EmbeddedConfig {
        data_dir: dir.path().join("api"),
        api_addr: "127.0.0.1:0".parse().unwrap(),
        kubeconfig_out: Some(kubeconfig.clone()),
        service_proxies: Default::default(),
    })
    .await
    .unwrap();
    let start = |name: &str| {
        let http = free_port(false);
        let args = Args::parse_from([
            "hyperion-control".to_owned(),
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--data-dir={}", dir.path().join(name).display()),
            format!("--link-addr={}", free_port(true)),
            format!("--http-addr={http}"),
        ]);
        let stop = CancellationToken::new();
        let task = tokio::spawn(hyperion_operator::run::run(args, stop.clone()));
        (http, stop, task)
    };
    let (first, first_stop, first_task) = start("first");
    role(first, "serving").await;
    let (second, second_stop, second_task) = start("second");
    role(second, "standing by").await;
    let (status, text) = get(second, "/fleet/v1/nodes").await.unwrap();
    assert_eq!(status, 503, "{text}");
    first_stop.cancel();
    first_task.await.unwrap().unwrap();
    role(second, "serving").await;
    second_stop.cancel();
    second_task.await.unwrap().unwrap();
    api.shutdown().await;
}
