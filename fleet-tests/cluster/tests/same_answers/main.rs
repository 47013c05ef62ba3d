//! The embedded API answers like a real API server: conversations with both, answer by answer.
//!
//! The conversations are in the YAML files beside this one. Each has a namespace of its own, `{ns}`
//! in paths and bodies; `${N.pointer}` is what a pointer finds in the answer to step N. Compared are
//! codes, objects and refusals, but for what differs from call to call (uids, times, revisions) and
//! what `talk::plain` says. A step compares less with `compare: code`, with `compare: fields` (a real
//! API server may tell more about the object, and its fields may have other managers), or with
//! `words: false`, which leaves out texts for people.
//!
//! `SAME_ANSWERS=TEXT` holds only the conversations whose `about` has that text.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

mod script;
mod talk;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use hyperion_cluster::{Choice, chosen};
use hyperion_embedded::{EmbeddedConfig, start};
use hyperion_lab::apiserver::ApiServer;
use hyperion_lab::needs;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use script::Conversation;
use talk::Answer;

const NAME: &str = "same_answers";

async fn client(kubeconfig: Kubeconfig) -> Client {
    let options = KubeConfigOptions::default();
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .unwrap();
    // Every answer is looked at.
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

/// What to show of two answers that differ; none where they are alike.
fn difference(
    conversation: &Conversation,
    at: usize,
    ours: &Answer,
    real: &Answer,
) -> Option<String> {
    let step = &conversation.steps[at];
    let (ours, real) = (ours.compared(step), real.compared(step));
    let alike = if step.fields_only() {
        talk::within(&ours, &real)
    } else {
        ours == real
    };
    (!alike).then(|| {
        format!(
            "{}, step {at}: {}\n{}",
            conversation.about,
            step.line(),
            talk::lines_that_differ(&ours, &real)
        )
    })
}

#[test]
fn both_apis_answer_alike() {
    if needs::say_if(
        chosen() != Choice::Real,
        NAME,
        "it needs a real API server of its own: run `make test-cluster`",
    ) {
        return;
    }
    if let Some(reason) = chosen().missing() {
        panic!("{NAME}: {reason}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir(path("logs")).unwrap();
    let mut server = ApiServer::prepare(&path("real"), &path("kubeconfig"), &path("logs")).unwrap();
    server.end_with_parent();
    server.start().unwrap();

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let differences = runtime.block_on(async {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let embedded = start(EmbeddedConfig {
            data_dir: path("embedded"),
            api_addr: any,
            kubeconfig_out: None,
            service_proxies: BTreeMap::new(),
        })
        .await
        .unwrap();
        let ours = client(Kubeconfig::from_yaml(&embedded.kubeconfig_yaml()).unwrap()).await;
        let real = client(Kubeconfig::read_from(path("kubeconfig")).unwrap()).await;
        let only = std::env::var("SAME_ANSWERS").unwrap_or_default();
        let mut differences = Vec::new();
        for (n, conversation) in script::all().iter().enumerate() {
            if n > 0 && !conversation.about.contains(&only) {
                continue;
            }
            let namespace = format!("same-{n}");
            let ours = talk::hold(&ours, conversation, &namespace).await;
            let real = talk::hold(&real, conversation, &namespace).await;
            let steps = 0..conversation.steps.len();
            differences
                .extend(steps.filter_map(|at| difference(conversation, at, &ours[at], &real[at])));
        }
        embedded.shutdown().await;
        differences
    });
    server.kill();
    assert!(
        differences.is_empty(),
        "{} answers differ (- embedded, + real)\n\n{}",
        differences.len(),
        differences.join("\n\n")
    );
}
