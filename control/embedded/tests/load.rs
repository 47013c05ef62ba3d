//! Many objects at once. `EMBEDDED_LOAD` sets how many (default 500); the rate and the memory are
//! printed, not asserted: they depend on the machine and the build.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::collections::BTreeSet;
use std::pin::pin;
use std::time::{Duration, Instant};

use common::Server;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use kube::api::{Api, ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use serde_json::json;

/// Requests in flight.
const TOGETHER: usize = 128;

fn resident_mib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmRSS:"));
    let number = line.and_then(|l| l.split_whitespace().nth(1)?.parse::<usize>().ok());
    number.unwrap_or(0) / 1024
}

#[test]
fn a_crowd_is_stored_and_seen_by_a_watch() {
    let count: usize = std::env::var("EMBEDDED_LOAD")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(500);
    let server = Server::start();
    server.block_on(async {
        let api: Api<ConfigMap> = Api::default_namespaced(server.client().await);
        let watching = Api::<ConfigMap>::default_namespaced(server.client().await);
        let watch = tokio::spawn(async move {
            let mut names = BTreeSet::new();
            let params = WatchParams::default().timeout(290);
            let mut events = pin!(watching.watch(&params, "0").await.unwrap());
            while names.len() < count {
                match events.try_next().await.unwrap().unwrap() {
                    WatchEvent::Added(object) => names.insert(object.name_any()),
                    WatchEvent::Modified(_) | WatchEvent::Bookmark(_) => false,
                    other => panic!("{other:?}"),
                };
            }
        });
        let before = resident_mib();
        let began = Instant::now();
        futures::stream::iter(0..count)
            .for_each_concurrent(TOGETHER, |i| {
                let api = api.clone();
                async move {
                    // About as large as a node with its status.
                    let name = format!("node-{i}");
                    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap",
                        "metadata": { "name": name },
                        "data": { "a": "x".repeat(1500), "i": i.to_string() } });
                    let params = PatchParams::apply("load");
                    api.patch(&name, &params, &Patch::Apply(map)).await.unwrap();
                }
            })
            .await;
        let took = began.elapsed();
        let rate = count as f64 / took.as_secs_f64();
        println!(
            "{count} applied in {took:.1?}: {rate:.0}/s; memory {before} -> {} MiB (client included)",
            resident_mib()
        );
        tokio::time::timeout(Duration::from_secs(60), watch)
            .await
            .unwrap()
            .unwrap();
        let list = api.list(&ListParams::default()).await.unwrap();
        assert_eq!(list.items.len(), count);
    });
}
