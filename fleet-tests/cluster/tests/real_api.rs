//! What a real API server does otherwise than one of our own might: validation, field managers,
//! leases, compaction. The whole end-to-end suite of the lab runs on it besides.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

use std::time::Duration;

use hyperion_cluster::{Choice, chosen};
use hyperion_lab::cluster::Cluster;
use hyperion_lab::control::free_port;
use hyperion_lab::process::Process;
use hyperion_lab::scene::{SOON, service};
use hyperion_lab::{AgentSpec, Fleet, FleetOptions, http, needs, wait};
use rustix::process::Signal;
use serde_json::Value;

/// Long enough for an API server to start again, or for a lease to run out, on a busy machine.
const LONG: Duration = Duration::from_secs(120);

fn fleet(name: &str, agents: usize) -> Option<Fleet> {
    let embedded = !chosen().is_real();
    if needs::say_if(
        embedded,
        name,
        "it needs a real API: run `make test-cluster`",
    ) || needs::skip(name)
    {
        return None;
    }
    let mut fleet = Fleet::start(&FleetOptions::new(name)).unwrap();
    for n in 1..=agents {
        fleet.add(&AgentSpec::edge(&format!("edge-{n}"))).unwrap();
    }
    Some(fleet)
}

fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or("")
}

#[test]
fn the_specifications_example_passes_strict_validation() {
    let Some(fleet) = fleet("strict_validation", 1) else {
        return;
    };
    let kubectl = fleet.kubectl();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/resnet50.yaml");
    kubectl
        .run(&["apply", "--validate=strict", "-f", example])
        .unwrap();
    let server = ["apply", "--server-side", "--validate=strict", "-f", example];
    kubectl
        .run(&[&server[..], &["--force-conflicts"]].concat())
        .unwrap();
    let name = "resnet50-inference-job-us-east";
    wait::until("a status with counts", SOON, || {
        let object = kubectl.get(&["hyperionworkload", name]).unwrap();
        let rejected = object.pointer("/status/rejected").and_then(Value::as_array);
        if rejected.is_some_and(|r| !r.is_empty()) && text(&object, "/status/phase") == "Pending" {
            Ok(())
        } else {
            Err(object.to_string())
        }
    })
    .unwrap();
    // What happens to a workload is told as events of it.
    fleet.apply(&service("web", 1, None)).unwrap();
    fleet.wait_running("web-0", SOON).unwrap();
    wait::until("an event", SOON, || {
        let about = "--field-selector=involvedObject.name=web";
        let events = kubectl.run(&["get", "events", about]).unwrap();
        if events.contains("hyperionworkload/web") {
            Ok(())
        } else {
            Err(events)
        }
    })
    .unwrap();
    kubectl
        .run(&["delete", "hyperionworkload", "--all", "--timeout=60s"])
        .unwrap();
    fleet.no_panics().unwrap();
}

#[test]
fn stale_and_contested_writes_are_refused() {
    let Some(fleet) = fleet("contested_writes", 1) else {
        return;
    };
    let kubectl = fleet.kubectl();
    fleet.apply(&service("web", 1, None)).unwrap();
    fleet.wait_running("web-0", SOON).unwrap();
    let old = kubectl.get(&["hyperionworkload", "web"]).unwrap();
    kubectl
        .run(&["scale", "hyperionworkload/web", "--replicas=2"])
        .unwrap();
    fleet.wait_all_running("web", 2).unwrap();
    let out = kubectl
        .output(&["replace", "-f", "-"], Some(&old.to_string()))
        .unwrap();
    assert!(!out.success, "{}", out.stdout);
    assert!(
        out.stderr.contains("the object has been modified"),
        "{}",
        out.stderr
    );
    // A field of somebody else's is not taken without force.
    let other = ["apply", "--server-side", "--field-manager=other", "-f", "-"];
    let out = kubectl
        .output(&other, Some(&service("web", 5, None).to_string()))
        .unwrap();
    assert!(!out.success, "{}", out.stdout);
    assert!(out.stderr.contains("conflict"), "{}", out.stderr);
    fleet.wait_all_running("web", 2).unwrap();
}

#[test]
fn a_standby_leads_when_the_leader_is_killed() {
    let Some(mut fleet) = fleet("standby_leads", 0) else {
        return;
    };
    let http_addr = free_port().unwrap();
    let data = fleet.dir.join("standby");
    let flags = [
        ("--data-dir", data.display().to_string()),
        (
            "--kubeconfig",
            fleet.kubectl().kubeconfig().display().to_string(),
        ),
        ("--link-addr", "127.0.0.1:0".to_owned()),
        ("--http-addr", http_addr.clone()),
    ];
    let args = flags
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect();
    let program = needs::programs().join("hyperion-control");
    let mut standby = Process::new("standby", &program, args, &fleet.dir.join("logs"));
    standby.start().unwrap();
    let says = |word: &str| {
        wait::until(word, LONG, || {
            let said = http::get(&http_addr, "/readyz").map_err(|e| e.to_string())?;
            if said.contains(word) {
                Ok(())
            } else {
                Err(said)
            }
        })
        .unwrap();
    };
    says("standing by");
    let lease = |fleet: &Fleet| {
        let lease = ["lease", "hyperion-control", "-n", "hyperion-system"];
        let lease = fleet.kubectl().get(&lease).unwrap();
        text(&lease, "/spec/holderIdentity").to_owned()
    };
    let first = lease(&fleet);
    fleet.control.kill();
    says("serving");
    let second = lease(&fleet);
    assert_ne!(first, second);
    let status = standby.terminate(Duration::from_secs(30));
    assert!(status.is_some_and(|s| s.success()), "{status:?}");
    // It gave the lease back, so the other leads at once.
    fleet.start_control().unwrap();
    assert_eq!(lease(&fleet), first);
    fleet.no_panics().unwrap();
}

/// The control plane sleeps while the revision that its watches know is compacted, and the API
/// server starts again: it reads everything anew, and has missed nothing.
#[test]
fn a_watch_from_a_compacted_revision_begins_anew() {
    let name = "compacted_revision";
    let given = matches!(chosen(), Choice::Given(_));
    if needs::say_if(given, name, "it needs an API server of its own") {
        return;
    }
    let Some(mut fleet) = fleet(name, 1) else {
        return;
    };
    fleet.apply(&service("web", 1, None)).unwrap();
    fleet.wait_running("web-0", SOON).unwrap();
    let stays = fleet.wait_containers(None, 1).unwrap();
    let lists = |fleet: &mut Fleet| fleet.control.process().log().matches("list read").count();
    let before = lists(&mut fleet);

    let control = fleet.control.process().id().unwrap();
    control.signal(Signal::STOP);
    if let Some(Cluster::Own(server)) = fleet.control.cluster() {
        // Watches go to etcd itself, which is compacted every second. In order it would not end
        // before the connections of the control plane, which sleeps.
        server.kill();
        server.set_flags(&["--watch-cache=false", "--etcd-compaction-interval=1s"]);
    }
    fleet.start_cluster().unwrap();
    // After the connections are gone: no watch can have heard of it.
    fleet.apply(&service("new", 1, None)).unwrap();
    let revision = fleet.kubectl().get(&["hyperionworkload", "new"]).unwrap();
    let revision = text(&revision, "/metadata/resourceVersion").to_owned();
    let path = format!(
        "/apis/hyperion.io/v1alpha1/hyperionworkloads?resourceVersion={revision}&resourceVersionMatch=Exact"
    );
    let mut tick = 0;
    wait::until("compaction", LONG, || {
        // What is written last is never compacted.
        tick += 1;
        let (kubectl, note) = (fleet.kubectl(), format!("tick={tick}"));
        let annotate = ["annotate", "--overwrite", "hyperionworkload", "web", &note];
        kubectl.run(&annotate).map_err(|e| e.to_string())?;
        let out = kubectl.output(&["get", "--raw", &path], None);
        let out = out.map_err(|e| e.to_string())?;
        if !out.success && out.stderr.contains("too old") {
            Ok(())
        } else {
            Err(out.stderr)
        }
    })
    .unwrap();
    control.signal(Signal::CONT);

    fleet.wait_running("new-0", LONG).unwrap();
    assert!(lists(&mut fleet) > before);
    let now = fleet.wait_containers(None, 2).unwrap();
    assert!(now.is_superset(&stays));
    fleet.no_panics().unwrap();
}
