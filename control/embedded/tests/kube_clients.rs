//! What an operator's client library uses: watches, server-side apply, leases, events.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use common::{CRD, Server, WORK};
use futures::TryStreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch,
    PatchParams, PostParams, WatchEvent, WatchParams,
};
use kube::runtime::events::{EventType, Recorder, Reporter};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::watcher::{self, watcher};
use kube::{Client, Resource, ResourceExt};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(20);

fn works(client: &Client) -> Api<DynamicObject> {
    let gvk = GroupVersionKind::gvk("example.com", "v1alpha1", "Work");
    Api::default_namespaced_with(
        client.clone(),
        &ApiResource::from_gvk_with_plural(&gvk, "works"),
    )
}

async fn install(client: &Client) -> Api<DynamicObject> {
    let crd: Value = serde_yaml_ng::from_str(CRD).unwrap();
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    crds.patch(
        "works.example.com",
        &PatchParams::apply("test").force(),
        &Patch::Apply(&crd),
    )
    .await
    .unwrap();
    let established = await_condition(crds, "works.example.com", conditions::is_crd_established());
    tokio::time::timeout(LONG, established)
        .await
        .unwrap()
        .unwrap();
    works(client)
}

fn work(name: &str) -> Value {
    let mut value: Value = serde_yaml_ng::from_str(WORK).unwrap();
    value["metadata"]["name"] = name.into();
    value
}

fn config_map(name: &str, labels: &[(&str, &str)]) -> ConfigMap {
    let mut map = ConfigMap::default();
    map.metadata.name = Some(name.to_owned());
    let pairs = labels
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    map.metadata.labels = Some(pairs.collect::<BTreeMap<_, _>>());
    map
}

async fn watch_sees_everything(config: watcher::Config) {
    let server = tokio::task::spawn_blocking(Server::start).await.unwrap();
    let client = server.client().await;
    let api = install(&client).await;
    api.create(
        &PostParams::default(),
        &serde_json::from_value(work("a")).unwrap(),
    )
    .await
    .unwrap();
    let mut events = pin!(watcher(api.clone(), config));
    let mut seen = Vec::new();
    let mut step = 0;
    while seen.len() < 5 {
        let event = tokio::time::timeout(LONG, events.try_next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        match event {
            watcher::Event::InitApply(o) => seen.push(format!("init {}", o.name_any())),
            watcher::Event::InitDone => seen.push("done".to_owned()),
            watcher::Event::Apply(o) => {
                seen.push(format!(
                    "apply {} {}",
                    o.name_any(),
                    o.data["spec"]["replicas"]
                ));
            }
            watcher::Event::Delete(o) => seen.push(format!("delete {}", o.name_any())),
            watcher::Event::Init => continue,
        }
        match (seen.last().unwrap().as_str(), step) {
            ("done", 0) => {
                step = 1;
                let b = serde_json::from_value(work("b")).unwrap();
                api.create(&PostParams::default(), &b).await.unwrap();
            }
            ("apply b 1", 1) => {
                step = 2;
                let patch = Patch::Merge(json!({ "spec": { "replicas": 2 } }));
                api.patch("a", &PatchParams::default(), &patch)
                    .await
                    .unwrap();
            }
            ("apply a 2", 2) => {
                step = 3;
                api.delete("b", &DeleteParams::default()).await.unwrap();
            }
            _ => {}
        }
    }
    // A real API server's cache may be a moment behind the write before: then it comes as a change.
    if seen[..2] == ["done", "apply a 1"] {
        seen.splice(..2, ["init a".to_owned(), "done".to_owned()]);
    }
    assert_eq!(
        seen,
        ["init a", "done", "apply b 1", "apply a 2", "delete b"]
    );
    tokio::task::spawn_blocking(move || drop(server))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_listing_watcher_sees_everything() {
    watch_sees_everything(watcher::Config::default()).await;
}

#[tokio::test]
async fn a_streaming_watcher_sees_everything() {
    watch_sees_everything(watcher::Config::default().streaming_lists()).await;
}

#[test]
fn a_selecting_watch_sees_objects_come_and_go() {
    let server = Server::start();
    server.block_on(async {
        let api: Api<ConfigMap> = Api::default_namespaced(server.client().await);
        let post = PostParams::default();
        api.create(&post, &config_map("in", &[("a", "1")]))
            .await
            .unwrap();
        api.create(&post, &config_map("out", &[])).await.unwrap();
        let params = WatchParams::default().labels("a=1").timeout(30);
        let mut events = pin!(api.watch(&params, "0").await.unwrap());
        let label =
            |value: Option<&str>| Patch::Merge(json!({ "metadata": { "labels": { "a": value } } }));
        let patch = PatchParams::default();
        let mut seen = Vec::new();
        while let Some(event) = tokio::time::timeout(LONG, events.try_next())
            .await
            .unwrap()
            .unwrap()
        {
            let (word, name) = match event {
                // They come when they come.
                WatchEvent::Bookmark(_) => continue,
                WatchEvent::Added(o) => ("added", o.name_any()),
                WatchEvent::Modified(o) => ("modified", o.name_any()),
                WatchEvent::Deleted(o) => {
                    assert_eq!(o.labels().get("a").unwrap(), "1", "as it was last seen");
                    ("deleted", o.name_any())
                }
                other => panic!("{other:?}"),
            };
            seen.push(format!("{word} {name}"));
            match seen.len() {
                1 => drop(api.patch("out", &patch, &label(Some("1"))).await.unwrap()),
                2 => drop(
                    api.patch(
                        "out",
                        &patch,
                        &Patch::Merge(json!({ "data": { "x": "y" } })),
                    )
                    .await
                    .unwrap(),
                ),
                3 => drop(api.patch("in", &patch, &label(None)).await.unwrap()),
                4 => drop(api.delete("out", &DeleteParams::default()).await.unwrap()),
                _ => break,
            }
        }
        assert_eq!(
            seen,
            [
                "added in",
                "added out",
                "modified out",
                "deleted in",
                "deleted out"
            ]
        );
    });
}

#[test]
fn a_watch_from_a_forgotten_revision_is_gone() {
    let mut server = Server::start();
    server.restart();
    server.block_on(async {
        let api: Api<ConfigMap> = Api::default_namespaced(server.client().await);
        let mut events = pin!(api.watch(&WatchParams::default(), "1").await.unwrap());
        let event = tokio::time::timeout(LONG, events.try_next()).await.unwrap();
        match event.unwrap().unwrap() {
            WatchEvent::Error(status) => {
                assert_eq!(status.code, 410);
                assert!(
                    status.message.contains("too old resource version: 1"),
                    "{status:?}"
                );
            }
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn applying_the_same_writes_nothing() {
    let server = Server::start();
    server.block_on(async {
        let api = install(&server.client().await).await;
        let params = PatchParams::apply("operator").force();
        let first = api.patch("a", &params, &Patch::Apply(work("a"))).await.unwrap();
        let second = api.patch("a", &params, &Patch::Apply(work("a"))).await.unwrap();
        assert_eq!(first.resource_version(), second.resource_version());
        let status = json!({ "apiVersion": "example.com/v1alpha1", "kind": "Work",
            "status": { "phase": "Running", "conditions": [
                { "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-02T03:04:05Z" }] } });
        let done = api.patch_status("a", &params, &Patch::Apply(&status)).await.unwrap();
        assert_eq!(done.data["status"]["phase"], "Running");
        assert_eq!(done.metadata.generation, Some(1));
        let again = api.patch_status("a", &params, &Patch::Apply(&status)).await.unwrap();
        assert_eq!(done.resource_version(), again.resource_version());
        let spec = api.patch("a", &params, &Patch::Apply(work("a"))).await.unwrap();
        assert_eq!(spec.data["status"]["phase"], "Running", "the status has its own owner");
    });
}

/// Code, and field of the first cause, of a refusal.
fn refusal<T>(result: Result<T, kube::Error>) -> (u16, String) {
    match result.map(drop).unwrap_err() {
        kube::Error::Api(status) => {
            let causes = status.details.iter().flat_map(|d| &d.causes);
            let field = causes.map(|c| c.field.clone()).next();
            (status.code, field.unwrap_or_default())
        }
        other => panic!("{other}"),
    }
}

#[test]
fn patches_for_another_object_of_the_same_name_are_refused() {
    let server = Server::start();
    server.block_on(async {
        let api = install(&server.client().await).await;
        let params = PatchParams::apply("operator").force();
        let held = |name: &str, uid: &str, finalizers: &[&str]| {
            Patch::Apply(
                json!({ "apiVersion": "example.com/v1alpha1", "kind": "Work",
                "metadata": { "name": name, "uid": uid, "finalizers": finalizers } }),
            )
        };
        let user = PatchParams::apply("user");
        let made = api
            .patch("a", &user, &Patch::Apply(work("a")))
            .await
            .unwrap();
        let uid = made.uid().unwrap();
        let x = ["example.com/x"];
        let own = api.patch("a", &params, &held("a", &uid, &x)).await.unwrap();
        assert_eq!(own.finalizers(), x);

        // A field that can't be changed where there is an object, a conflict where there is none.
        let immutable = (422, "metadata.uid".to_owned());
        let other = api.patch("a", &params, &held("a", "0-0", &[])).await;
        assert_eq!(refusal(other), immutable);
        let merge = Patch::Merge(json!({ "metadata": { "uid": "0-0" } }));
        assert_eq!(
            refusal(api.patch("a", &PatchParams::default(), &merge).await),
            immutable
        );
        let gone = api.patch("gone", &params, &held("gone", &uid, &x)).await;
        assert_eq!(refusal(gone), (409, String::new()));
        assert!(api.get_opt("gone").await.unwrap().is_none());
        // The uid of a PUT is a precondition.
        let mut put = own.clone();
        put.metadata.uid = Some("0-0".to_owned());
        let put = api.replace("a", &PostParams::default(), &put).await;
        assert_eq!(refusal(put), (409, String::new()));
        assert_eq!(api.get("a").await.unwrap().finalizers(), x);

        // An object that goes takes no new finalizer.
        api.delete("a", &DeleteParams::default()).await.unwrap();
        let two = held("a", &uid, &["example.com/x", "example.com/y"]);
        let two = api.patch("a", &params, &two).await;
        assert_eq!(refusal(two), (422, "metadata.finalizers".to_owned()));
        api.patch("a", &params, &held("a", &uid, &[]))
            .await
            .unwrap();
        assert!(api.get_opt("a").await.unwrap().is_none());
    });
}

#[test]
fn stale_updates_conflict_and_the_winner_stays() {
    let server = Server::start();
    server.block_on(async {
        let leases: Api<Lease> = Api::default_namespaced(server.client().await);
        let mut lease = Lease::default();
        lease.metadata.name = Some("leader".to_owned());
        let created = leases.create(&PostParams::default(), &lease).await.unwrap();
        let holder = |name: &str| {
            let mut lease = created.clone();
            lease.spec.get_or_insert_default().holder_identity = Some(name.to_owned());
            lease
        };
        leases.replace("leader", &PostParams::default(), &holder("a")).await.unwrap();
        let lost = leases.replace("leader", &PostParams::default(), &holder("b")).await;
        match lost.unwrap_err() {
            kube::Error::Api(status) => {
                assert_eq!(status.code, 409);
                assert!(status.message.contains(
                    "Operation cannot be fulfilled on leases.coordination.k8s.io \"leader\": the object has been modified"
                ), "{status:?}");
            }
            other => panic!("{other}"),
        }
        let now = leases.get("leader").await.unwrap();
        assert_eq!(now.spec.unwrap().holder_identity.unwrap(), "a");
    });
}

#[test]
fn concurrent_patches_all_land() {
    let server = Server::start();
    server.block_on(async {
        let api: Api<ConfigMap> = Api::default_namespaced(server.client().await);
        api.create(&PostParams::default(), &config_map("m", &[]))
            .await
            .unwrap();
        let patches = (0..12).map(|i| {
            let api = api.clone();
            async move {
                let patch = Patch::Merge(json!({ "data": { format!("k{i}"): "v" } }));
                api.patch("m", &PatchParams::default(), &patch)
                    .await
                    .unwrap();
            }
        });
        futures::future::join_all(patches).await;
        assert_eq!(api.get("m").await.unwrap().data.unwrap().len(), 12);
    });
}

#[test]
fn events_of_the_recorder_are_seen_in_the_core_group() {
    let server = Server::start();
    server.block_on(async {
        let client = server.client().await;
        let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
        let map = api
            .create(&PostParams::default(), &config_map("m", &[]))
            .await
            .unwrap();
        let recorder = Recorder::new(client.clone(), Reporter::from("test"));
        let event = kube::runtime::events::Event {
            type_: EventType::Warning,
            reason: "Lost".to_owned(),
            note: Some("node is lost".to_owned()),
            action: "Watch".to_owned(),
            secondary: None,
        };
        let reference = map.object_ref(&());
        recorder.publish(&event, &reference).await.unwrap();
        recorder.publish(&event, &reference).await.unwrap();
        let events: Api<Event> = Api::default_namespaced(client);
        let selector = ListParams::default().fields("involvedObject.name=m,type=Warning");
        let found = events.list(&selector).await.unwrap();
        assert_eq!(found.items.len(), 1, "the second one counts on the first");
        assert_eq!(found.items[0].message.as_deref(), Some("node is lost"));
        assert!(found.items[0].series.is_some());
    });
}

#[test]
fn lists_come_in_pages_that_are_whole() {
    let server = Server::start();
    server.block_on(async {
        let api: Api<Secret> = Api::default_namespaced(server.client().await);
        for i in 0..7 {
            let mut secret = Secret::default();
            secret.metadata.generate_name = Some(format!("s{i}-"));
            api.create(&PostParams::default(), &secret).await.unwrap();
        }
        let mut params = ListParams::default().limit(3);
        let (mut names, mut sizes) = (Vec::new(), Vec::new());
        loop {
            let page = api.list(&params).await.unwrap();
            sizes.push(page.items.len());
            names.extend(page.items.iter().map(ResourceExt::name_any));
            match page.metadata.continue_ {
                Some(token) => params = params.continue_token(&token),
                None => break,
            }
        }
        assert_eq!(sizes, [3, 3, 1]);
        names.dedup();
        assert_eq!(names.len(), 7);
        api.delete_collection(&DeleteParams::default(), &ListParams::default())
            .await
            .unwrap();
        assert!(
            api.list(&ListParams::default())
                .await
                .unwrap()
                .items
                .is_empty()
        );
    });
}
