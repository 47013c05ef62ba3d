//! Two control planes on one API: one leads, the other stands by and takes over.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

mod common;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Parser;
use common::{eventually, free_port, get};
use hyperion_operator::args::Args;
use hyperion_operator::lease::LEASE;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;
use tokio::task::JoinHandle;
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

/// An API server of its own, and where its kubeconfig is.
async fn api(dir: &Path) -> (hyperion_embedded::Embedded, PathBuf) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kubeconfig = dir.join("kubeconfig");
    let api = hyperion_embedded::start(hyperion_embedded::EmbeddedConfig {
        data_dir: dir.join("api"),
        api_addr: "127.0.0.1:0".parse().unwrap(),
        kubeconfig_out: Some(kubeconfig.clone()),
        service_proxies: Default::default(),
    })
    .await
    .unwrap();
    (api, kubeconfig)
}

/// A control plane.
struct Control {
    http: SocketAddr,
    link: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

fn start(dir: &Path, kubeconfig: &Path, name: &str) -> Control {
    let (http, link) = (free_port(false), free_port(true));
    let args = Args::parse_from([
        "hyperion-control".to_owned(),
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--data-dir={}", dir.join(name).display()),
        format!("--link-addr={link}"),
        format!("--http-addr={http}"),
    ]);
    let stop = CancellationToken::new();
    let task = tokio::spawn(hyperion_operator::run::run(args, stop.clone()));
    Control {
        http,
        link,
        stop,
        task,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_over_when_the_leader_stops() {
    let dir = tempfile::tempdir().unwrap();
    let (api, kubeconfig) = api(dir.path()).await;
    let first = start(dir.path(), &kubeconfig, "first");
    role(first.http, "serving").await;
    let second = start(dir.path(), &kubeconfig, "second");
    role(second.http, "standing by").await;
    let (status, text) = get(second.http, "/fleet/v1/nodes").await.unwrap();
    assert_eq!(status, 503, "{text}");
    first.stop.cancel();
    first.task.await.unwrap().unwrap();
    role(second.http, "serving").await;
    second.stop.cancel();
    second.task.await.unwrap().unwrap();
    api.shutdown().await;
}

/// Where it leads again its own port may not be free yet: that must not end it.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_cannot_lead_again_at_once_tries_until_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let (api, kubeconfig) = api(dir.path()).await;
    let control = start(dir.path(), &kubeconfig, "control");
    role(control.http, "serving").await;
    let read = Kubeconfig::read_from(&kubeconfig).unwrap();
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(read, &options).await;
    let client = kube::Client::try_from(config.unwrap()).unwrap();
    let leases: Api<Lease> = Api::namespaced(client, hyperion_api::NAMESPACE);
    let hand_to = |holder: Option<&'static str>| {
        let spec = json!({ "spec": { "holderIdentity": holder } });
        let (leases, patch) = (leases.clone(), Patch::Merge(spec));
        async move {
            let params = PatchParams::default();
            let lease = leases.patch(LEASE, &params, &patch).await.unwrap();
            lease.spec.unwrap().lease_transitions
        }
    };

    hand_to(Some("another")).await;
    role(control.http, "standing by").await;
    // Its connections are gone a moment later than it stands by.
    let taken = eventually("the port is free", || async {
        std::net::UdpSocket::bind(control.link).map_err(|e| e.to_string())
    })
    .await;
    let before = hand_to(None).await;
    eventually("it has tried and given the lease back", || async {
        let spec = leases.get(LEASE).await.unwrap().spec.unwrap();
        let tried = spec.lease_transitions > before && spec.holder_identity.is_none();
        tried.then_some(()).ok_or_else(|| format!("{spec:?}"))
    })
    .await;
    drop(taken);
    role(control.http, "serving").await;
    control.stop.cancel();
    control.task.await.unwrap().unwrap();
    api.shutdown().await;
}
